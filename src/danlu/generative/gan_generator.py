r"""Image generators of a GAN: transposed convolutions (DCGAN) or residual blocks, with plain or modulated norms.

    dcgan     z -> linear -> c 2^(n-1) channels on the smallest side; then n times norm, ReLU, transposed 4 x 4
              convolution of stride 2, channels halved; the last one gives the image                      (1)
    resnet    z -> linear -> c channels; n blocks x -> up(x) * 1x1 + a conv(relu(norm(conv(up(relu(norm(x)))))));
              norm, ReLU, convolution                                                                     (2)
    image = tanh(.) in [-1, 1]                                                                            (3)
    labels    z' = z + E(y) + E'(y) z, the condition of self-modulation                                   (4)

n and the sides of the stages are those of `stage_sides`: 4, 8, 16, 32, or 4, 7, 14, 28, where the doubled picture loses
its last row and column. up repeats pixels. A 4 x 4 kernel of stride 2 reaches every pixel with 2 x 2 weights, but other
ones for odd and even places, so a checkerboard can be learned; (2) has none. With norm "self_mod" every norm, the first
on the smallest side too, follows z (`danlu.nn.modulated_norm`); it begins as the plain batch norm.

Batch norms: in training one image sees the others; evaluation takes running statistics, which lag behind a generator
that moves. Before measuring run `torch.optim.swa_utils.update_bn(list_of_latents, generator)`, after an average of the
weights (`danlu.optim.EMA`) always.

Source: Radford, Metz and Chintala, 2015, arXiv:1511.06434 (1); Miyato et al., 2018, arXiv:1802.05957 (2, with shortcuts
    that repeat pixels); Chen et al., 2018, arXiv:1810.01365 (4); kexue.fm/archives/6549.
Shapes: N images of C channels, H x W; K size of a latent z.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.generative.evaluation_mode import evaluation_mode
from danlu.generative.gan_config import GeneratorConfig, stage_sides
from danlu.generative.latent import draw_normal
from danlu.generative.latent_paths import spherical_path
from danlu.math.precision import wide
from danlu.nn.modulated_norm import ModulatedNorm

__all__ = ["ImageGenerator", "doubled"]

Sides = tuple[int, int]
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class ImageGenerator(nn.Module):
    """From latents to images in [-1, 1], eqs. (1) to (4); trained with `critic_step` and `generator_step`.

    Args:
        config: what it is built from.

    >>> config = GeneratorConfig((1, 7, 5), latent_dim=3, channels=4, norm="self_mod")
    >>> ImageGenerator(config)(torch.randn(2, 3)).shape
    torch.Size([2, 1, 7, 5])
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        sides = stage_sides(config.shape)[::-1]
        n, c = len(sides) - 1, config.channels
        self.start_side = sides[0]
        self.stages = nn.ModuleList()
        if config.network == "dcgan":
            widths = [c * 2**i for i in reversed(range(n))]
            for width, following, side in zip(widths, [*widths[1:], config.shape[0]], sides[1:], strict=True):
                self.stages.append(_Transposed(width, following, side, config))
        else:
            widths = [c] * (n + 1)
            self.stages.extend(_Residual(c, side, config) for side in sides[1:])
            self.end_norm = _norm(c, config)
            self.end = _drawn(nn.Conv2d(c, config.shape[0], 3, padding=1), config)
        self.start = _drawn(nn.Linear(config.latent_dim, widths[0] * math.prod(sides[0])), config)
        self.to_shift: nn.Embedding | None = None
        self.to_scale: nn.Embedding | None = None
        if config.norm == "self_mod" and config.num_classes is not None:
            self.to_shift = nn.Embedding(config.num_classes, config.latent_dim)
            self.to_scale = nn.Embedding(config.num_classes, config.latent_dim)
            nn.init.zeros_(self.to_shift.weight)
            nn.init.zeros_(self.to_scale.weight)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images for latents.

        Args:
            z: (N, K).
            labels: (N,) int64, only with num_classes.

        Returns:
            (N, C, H, W) in [-1, 1].

        Raises:
            ValueError: shapes that do not fit, labels missing or not expected, or a single latent in training where
                the norms take statistics over the batch.
        """
        if z.ndim != 2 or z.shape[1] != self.config.latent_dim:
            raise ValueError(f"this generator takes latents (N, {self.config.latent_dim}), got {tuple(z.shape)}")
        if self.training and len(z) < 2 and self.config.norm in ("batch", "self_mod", "class"):
            raise ValueError(
                f"norm {self.config.norm!r} takes statistics over the batch in training, and {len(z)} latent(s) have "
                "none; give two or more, or call eval()"
            )
        condition = self._condition(z, labels)
        h = self.start(z).unflatten(1, (-1, *self.start_side))
        for stage in self.stages:
            h = stage(h, condition)
        if self.config.network == "resnet":
            h = self.end(F.relu(self.end_norm(h, condition)))  # eq. (2)
        return h.tanh()  # eq. (3)

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        labels: Tensor | None = None,
    ) -> Tensor:
        """New images, in evaluation mode.

        Args:
            n: how many.
            generator: source of the latents.
            temperature: factor of the latents' deviation.
            labels: (n,) int64, only with num_classes.

        Returns:
            (n, C, H, W) in [-1, 1].
        """
        with evaluation_mode(self):
            zero = self.start.weight.new_zeros(n, self.config.latent_dim)
            z = draw_normal(zero, zero + temperature, generator=generator)[0]
            return self(z.to(zero.dtype), labels)

    def interpolate(self, a: Tensor, b: Tensor, steps: int = 8, labels: Tensor | None = None) -> Tensor:
        """Images along the arcs between latents, in evaluation mode.

        Args:
            a: (N, K) latents.
            b: (N, K) latents.
            steps: T >= 2, both ends among them.
            labels: (N,) int64, only with num_classes.

        Returns:
            (T, N, C, H, W) in [-1, 1].

        Raises:
            ValueError: fewer than two steps, or latents of different shapes.
        """
        with evaluation_mode(self):
            z = spherical_path(a, b, steps).to(self.start.weight.dtype)
            repeated = None if labels is None else labels.repeat(steps)
            return self(z.flatten(0, 1), repeated).unflatten(0, (steps, len(a)))

    def _condition(self, z: Tensor, labels: Tensor | None) -> Tensor | None:
        """What the norms follow."""
        classes = self.config.num_classes
        if (labels is None) != (classes is None) or (labels is not None and labels.shape != z.shape[:1]):
            given = "none" if labels is None else str(tuple(labels.shape))
            wanted = "takes no labels" if classes is None else f"takes labels (N,) below {classes}, one for each latent"
            raise ValueError(f"this generator {wanted}; got {given} with latents {tuple(z.shape)}")
        if self.config.norm == "class" and labels is not None and classes is not None:
            return F.one_hot(labels, classes).to(wide(z))
        if self.config.norm != "self_mod":
            return None
        if labels is None or self.to_shift is None or self.to_scale is None:
            return z
        return z + self.to_shift(labels) + self.to_scale(labels) * z  # eq. (4)


class _Transposed(nn.Module):
    """One stage of eq. (1)."""

    def __init__(self, width: int, following: int, side: Sides, config: GeneratorConfig) -> None:
        super().__init__()
        self.side = side
        self.norm = _norm(width, config)
        self.conv = _drawn(nn.ConvTranspose2d(width, following, 4, stride=2, padding=1), config)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        x = self.conv(F.relu(self.norm(x, condition)))  # eq. (1)
        return x[..., : self.side[0], : self.side[1]]


class _Residual(nn.Module):
    """One block of eq. (2)."""

    def __init__(self, width: int, side: Sides, config: GeneratorConfig) -> None:
        super().__init__()
        self.side, self.scale = side, config.residual_scale
        self.norm1, self.norm2 = _norm(width, config), _norm(width, config)
        self.conv1 = _drawn(nn.Conv2d(width, width, 3, padding=1), config, math.sqrt(2))
        self.conv2 = _drawn(nn.Conv2d(width, width, 3, padding=1), config, math.sqrt(2))
        self.shortcut = _drawn(nn.Conv2d(width, width, 1), config)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        h = self.conv1(doubled(F.relu(self.norm1(x, condition)), self.side))
        h = self.conv2(F.relu(self.norm2(h, condition)))
        return doubled(self.shortcut(x), self.side) + self.scale * h  # eq. (2): a 1 x 1 map commutes with up


class _NoNorm(nn.Module):
    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return x


def doubled(x: Tensor, side: Sides) -> Tensor:
    """Every pixel four times, cut to a side.

    Args:
        x: (N, C, h, w).
        side: (H, W) with ceil(H / 2) = h and ceil(W / 2) = w.

    Returns:
        (N, C, H, W).

    >>> doubled(torch.tensor([[[[1.0, 2.0]]]]), (2, 3))[0, 0]
    tensor([[1., 1., 2.],
            [1., 1., 2.]])
    """
    return F.interpolate(x, scale_factor=2)[..., : side[0], : side[1]]


def _norm(width: int, config: GeneratorConfig) -> nn.Module:
    if config.norm == "none":
        return _NoNorm()
    if config.norm == "self_mod":
        return ModulatedNorm(width, config.latent_dim, hidden=config.hidden)
    if config.norm == "class":
        return ModulatedNorm(width, config.num_classes, hidden=None)
    return ModulatedNorm(width, kind=config.norm)


def _drawn(layer: Layer, config: GeneratorConfig, gain: float = 1.0) -> Layer:
    """First weights: N(0, 0.02) for dcgan, Glorot's for resnet; no bias."""
    if config.network == "dcgan":
        nn.init.normal_(layer.weight, std=0.02)
    else:
        nn.init.xavier_uniform_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
