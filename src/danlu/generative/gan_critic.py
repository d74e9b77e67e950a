r"""Image critics of a GAN: strided convolutions (DCGAN) or residual blocks, with spectral normalisation.

    dcgan     n times 4 x 4 convolution of stride 2, [batch norm], leaky ReLU 0.2; channels c, 2 c, 4 c, ...;
              phi(x) all numbers of the last stage                                                        (1)
    resnet    blocks x + a conv(relu(conv(relu(x)))), the first without its first ReLU; halved by averages until
              the side is at most 8, then two blocks more; ReLU; phi(x) the sum over places               (2)
    score     s(x) = w . phi(x) + b,    s(x, y) = s(x) + E(y) . phi(x)                                    (3)

An odd side gets one row or column of zeros before it is halved in (1), and windows of what there is in (2). A score is
no probability: `danlu.losses` reads it as the log-odds of real, as a margin, or as a potential.

Spectral normalisation moves its iteration at each training forward. Methods: "reshaped" divides by the largest singular
value of the reshaped kernel, as the paper does, which leaves a layer's gain up to the root of its windows; "true" gives
gain 1. For labels call the losses yourself: `critic(x, labels)` for real and generated images, with `held(critic)`
around the generator's backward pass.

Source: Radford, Metz and Chintala, 2015, arXiv:1511.06434 (1); Miyato et al., 2018, arXiv:1802.05957 (2); Miyato and
    Koyama, 2018, arXiv:1802.05637 (3); kexue.fm/archives/6549.
Shapes: N images of C channels, H x W; scores (N,).
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.generative.gan_config import CriticConfig, stage_sides
from danlu.nn.modulated_norm import ModulatedNorm
from danlu.nn.spectral_norm import spectral_norm

__all__ = ["ImageCritic"]

Sides = tuple[int, int]


class ImageCritic(nn.Module):
    """Scores of images in [-1, 1], eqs. (1) to (3).

    Args:
        config: what it is built from.

    >>> ImageCritic(CriticConfig((1, 7, 5), channels=4))(torch.zeros(2, 1, 7, 5)).shape
    torch.Size([2])
    """

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        if config.network == "dcgan":
            sides = stage_sides(config.shape)
            widths = [config.shape[0], *(c * 2**i for i in range(len(sides) - 1))]
            stages: list[nn.Module] = [
                _Strided(before, after, side, config, normed=i > 0)
                for i, ((before, after), side) in enumerate(zip(pairwise(widths), sides, strict=False))
            ]
            features = widths[-1] * math.prod(sides[-1])
        else:
            sides = stage_sides(config.shape, 8)
            stages = [_Residual(config.shape[0], c, sides[0], config, first=True)]
            stages += [_Residual(c, c, side, config) for side in sides[1:-1]]
            stages += [_Residual(c, c, sides[-1], config, halves=False) for _ in range(2)]
            features = c
        self.stages = nn.ModuleList(stages)
        self.to_score = _constrained(nn.Linear(features, 1), config)
        self.to_fit: nn.Module | None = None
        if config.num_classes is not None:
            self.to_fit = _constrained(nn.Embedding(config.num_classes, features), config)

    def features(self, x: Tensor) -> Tensor:
        """phi(x) of eqs. (1) and (2).

        Args:
            x: (N, C, H, W) in [-1, 1].

        Returns:
            (N, F).

        Raises:
            ValueError: images of another shape, or whole numbers.
        """
        if x.shape[1:] != self.config.shape or not x.is_floating_point():
            raise ValueError(
                f"this critic takes images (N, {', '.join(map(str, self.config.shape))}) as floats in [-1, 1], got "
                f"{tuple(x.shape)} {x.dtype}; for stored pixels write to_signed(x)"
            )
        for stage in self.stages:
            x = stage(x)
        if self.config.network == "dcgan":
            return x.flatten(1)  # eq. (1)
        return F.relu(x).sum((2, 3))  # eq. (2)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Scores.

        Args:
            x: (N, C, H, W) in [-1, 1].
            labels: (N,) int64, only with num_classes.

        Returns:
            (N,), float32 or better under autocast.

        Raises:
            ValueError: images of another shape, or labels missing or not expected.
        """
        if (labels is None) != (self.to_fit is None) or (labels is not None and labels.shape != x.shape[:1]):
            given = "none" if labels is None else str(tuple(labels.shape))
            wanted = "takes no labels" if self.to_fit is None else "takes labels (N,), one for each image"
            raise ValueError(f"this critic {wanted}; got {given} with images {tuple(x.shape)}")
        phi = self.features(x)
        with torch.autocast(x.device.type, enabled=False):  # scores are compared: float32 from here on
            phi = phi.to(next(self.to_score.parameters()).dtype)
            scores: Tensor = self.to_score(phi)[:, 0]  # eq. (3)
            if labels is None or self.to_fit is None:
                return scores
            return scores + (self.to_fit(labels) * phi).sum(1)  # eq. (3)


class _Strided(nn.Module):
    """One stage of eq. (1)."""

    def __init__(self, before: int, after: int, side: Sides, config: CriticConfig, normed: bool) -> None:
        super().__init__()
        self.padding = (0, side[1] % 2, 0, side[0] % 2)
        conv = nn.Conv2d(before, after, 4, stride=2, padding=1)
        nn.init.normal_(conv.weight, std=0.02)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        self.conv = _constrained(conv, config, (side[0] + side[0] % 2, side[1] + side[1] % 2))
        self.norm = ModulatedNorm(after) if normed and config.norm == "batch" else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pad(x, self.padding))
        return F.leaky_relu(x if self.norm is None else self.norm(x), 0.2)  # eq. (1)


class _Residual(nn.Module):
    """One block of eq. (2)."""

    def __init__(
        self, before: int, after: int, side: Sides, config: CriticConfig, first: bool = False, halves: bool = True
    ) -> None:
        super().__init__()
        self.first, self.halves, self.scale = first, halves, config.residual_scale
        self.conv1 = _glorot(nn.Conv2d(before, after, 3, padding=1), config, side, math.sqrt(2))
        self.conv2 = _glorot(nn.Conv2d(after, after, 3, padding=1), config, side, math.sqrt(2))
        self.shortcut = _glorot(nn.Conv2d(before, after, 1), config, side) if halves or before != after else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.halves:  # averages and 1 x 1 maps commute: the shortcut pools first, where the map is cheaper
            h, x = (F.avg_pool2d(part, 2, ceil_mode=True) for part in (h, x))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return x + self.scale * h  # eq. (2)


def _glorot(conv: nn.Conv2d, config: CriticConfig, side: Sides, gain: float = 1.0) -> nn.Module:
    nn.init.xavier_uniform_(conv.weight, gain)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return _constrained(conv, config, side)


def _constrained(layer: nn.Module, config: CriticConfig, side: Sides | None = None) -> nn.Module:
    if config.norm != "spectral":
        return layer
    return spectral_norm(layer, method=config.spectral_method, input_size=side)
