r"""A generator in the manner of StyleGAN: a constant picture, and styles of a mapped latent in every norm.

    w = mapping(z / rms(z)),  layers of leaky ReLU 0.2                                                    (1)
    h <- AdaIN(leaky(h + b * noise), w_l),  twice for each size; first on a learned constant              (2)
    w' = m + psi (w - m),   m <- 0.995 m + 0.005 E w in training                                          (3)
    mixing: layers before a cut follow one latent, the others another                                    (4)

The post reads it as self-modulation with three differences: the input is a constant, the statistics are those of each
image (AdaIN), the condition is w. As there, the end is a tanh; the paper's is linear. Layers have equalized learning
rates (`danlu.nn.equalized`), the mapping a hundredth of it; up is bilinear. Noise starts with size b = 0. AdaIN's gain
and shift are not zero at the start: with a constant input all images would be one.

Source: Karras, Laine and Aila, 2018, arXiv:1812.04948; kexue.fm/archives/6549.
Shapes: N images of C channels, H x W; K size of z, S of w, L = 2 (n + 1) layers for n doublings.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.generative.evaluation_mode import evaluation_mode
from danlu.generative.gan_config import StyleConfig, stage_sides
from danlu.generative.latent import draw_normal
from danlu.math.precision import wide
from danlu.nn.equalized import equalized
from danlu.nn.modulated_norm import ModulatedNorm

__all__ = ["StyleGenerator"]

RATE = 0.005  # of the average style, eq. (3)
GAIN = math.sqrt(2)


class StyleGenerator(nn.Module):
    """From latents to images in [-1, 1] by eqs. (1) to (4).

    Args:
        config: what it is built from.

    >>> net = StyleGenerator(StyleConfig((1, 8, 8), latent_dim=3, style_dim=5, channels=4))
    >>> net.styles(torch.randn(2, 3)).shape, net(torch.randn(2, 3)).shape
    (torch.Size([2, 4, 5]), torch.Size([2, 1, 8, 8]))
    """

    mean_style: Tensor

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.config = config
        self.sides = stage_sides(config.shape)[::-1]
        widths = [min(config.max_channels, config.channels * 2**i) for i in reversed(range(len(self.sides)))]
        sizes = [config.latent_dim, *[config.style_dim] * config.mapping_layers]
        self.mapping = nn.ModuleList(
            equalized(nn.Linear(size, config.style_dim), GAIN, config.mapping_lr) for size in sizes[:-1]
        )
        self.register_buffer("mean_style", torch.zeros(config.style_dim))
        self.constant = nn.Parameter(torch.ones(widths[0], *self.sides[0]))
        convs = [None, *[w for w in widths for _ in range(2)][1:]]
        self.layers = nn.ModuleList(
            _Layer(widths[max(0, i - 1) // 2], width or widths[0], config, convolves=width is not None)
            for i, width in enumerate(convs)
        )
        self.end = equalized(nn.Conv2d(widths[-1], config.shape[0], 1))
        assert isinstance(self.end.bias, Tensor)
        nn.init.zeros_(self.end.bias)

    def styles(self, z: Tensor) -> Tensor:
        """The style of every layer, eq. (1); moves the average style in training.

        Args:
            z: (N, K), of any length > 0: only its direction counts.

        Returns:
            (N, L, S), float32 or better.

        Raises:
            ValueError: z is not (N, K).
        """
        if z.ndim != 2 or z.shape[1] != self.config.latent_dim:
            raise ValueError(f"this generator takes latents (N, {self.config.latent_dim}), got {tuple(z.shape)}")
        with torch.autocast(z.device.type, enabled=False):
            w = F.normalize(z.to(self.constant.dtype), dim=1) * math.sqrt(z.shape[1])
            for layer in self.mapping:
                w = F.leaky_relu(layer(w), 0.2)  # eq. (1)
        if self.training and len(w):
            with torch.no_grad():
                self.mean_style.lerp_(w.detach().mean(0).to(self.mean_style.dtype), RATE)  # eq. (3)
        return wide(w)[:, None].expand(-1, len(self.layers), -1)

    def truncated(self, styles: Tensor, psi: float = 0.7) -> Tensor:
        """Styles drawn towards the average one, eq. (3): better images, fewer kinds of them.

        Args:
            styles: (N, L, S).
            psi: 1 leaves them, 0 gives the average style.

        Returns:
            (N, L, S).

        >>> net = StyleGenerator(StyleConfig((1, 4, 4), 2, 2, 2, mapping_layers=0))
        >>> net.truncated(torch.ones(1, 4, 2), 0.25)[0, 0]  # the average is 0 before training
        tensor([0.2500, 0.2500])
        """
        return self.mean_style + psi * (styles - self.mean_style)  # eq. (3)

    def mixed(self, first: Tensor, other: Tensor, cut: int | Tensor) -> Tensor:
        """Styles of which the layers before a cut come from one batch and the rest from another, eq. (4).

        Args:
            first: (N, L, S), for layers l < cut: pose and outline.
            other: (N, L, S), for the rest: colour and texture.
            cut: 0 to L, for all or (N,).

        Returns:
            (N, L, S).
        """
        place = torch.arange(len(self.layers), device=first.device)
        cut = torch.as_tensor(cut, device=first.device)
        before = (place < cut[..., None]).expand(len(first), -1)  # (N, L)
        return torch.where(before[..., None], first, other)  # eq. (4)

    def synthesize(self, styles: Tensor, generator: torch.Generator | None = None, noise: bool = True) -> Tensor:
        """Images for styles, eq. (2).

        Args:
            styles: (N, L, S).
            generator: source of the noise.
            noise: False leaves the noise out: the image of the styles alone.

        Returns:
            (N, C, H, W) in [-1, 1].

        Raises:
            ValueError: styles of another shape.
        """
        if styles.ndim != 3 or styles.shape[1:] != (len(self.layers), self.config.style_dim):
            raise ValueError(
                f"this generator takes styles (N, {len(self.layers)}, {self.config.style_dim}), as styles(z) gives "
                f"them, got {tuple(styles.shape)}"
            )
        h = self.constant.expand(len(styles), -1, -1, -1)
        for i, layer in enumerate(self.layers):
            side = self.sides[i // 2]
            if i and i % 2 == 0:
                h = F.interpolate(h, scale_factor=2, mode="bilinear")[..., : side[0], : side[1]]
            h = layer(h, styles[:, i], generator, noise)
        return self.end(h).tanh()

    def forward(self, z: Tensor, generator: torch.Generator | None = None, mixing: float = 0.0) -> Tensor:
        """Images for latents.

        Args:
            z: (N, K).
            generator: source of the noise and of the mixing.
            mixing: share of images that follow a second latent, drawn here, from a random layer on; 0.9 in the paper.

        Returns:
            (N, C, H, W) in [-1, 1].

        Raises:
            ValueError: z is not (N, K), or mixing is not in [0, 1].
        """
        if not 0 <= mixing <= 1:
            raise ValueError(f"mixing is the share of mixed images, from 0 to 1, got {mixing}")
        styles = self.styles(z)
        if mixing:
            device = z.device if generator is None else generator.device
            other = self.styles(draw_normal(torch.zeros_like(z), torch.ones_like(z), generator=generator)[0])
            cut = torch.randint(1, len(self.layers), (len(z),), generator=generator, device=device)
            plain = torch.rand(len(z), generator=generator, device=device) >= mixing
            styles = self.mixed(styles, other, cut.masked_fill(plain, len(self.layers)).to(z.device))
        return self.synthesize(styles, generator)

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """New images, in evaluation mode.

        Args:
            n: how many.
            generator: source of latents and noise.
            temperature: psi of eq. (3), as the length of z does not count.

        Returns:
            (n, C, H, W) in [-1, 1].
        """
        with evaluation_mode(self):
            zero = torch.zeros(n, self.config.latent_dim, device=self.constant.device)
            styles = self.styles(draw_normal(zero, zero + 1, generator=generator)[0])
            return self.synthesize(self.truncated(styles, temperature), generator)

    def interpolate(self, a: Tensor, b: Tensor, steps: int = 8) -> Tensor:
        """Images along the straight lines between the styles of two batches of latents, without noise.

        Args:
            a: (N, K) latents.
            b: (N, K) latents.
            steps: T >= 2, both ends among them.

        Returns:
            (T, N, C, H, W) in [-1, 1].

        Raises:
            ValueError: fewer than two steps, or batches of different sizes.
        """
        if steps < 2 or a.shape != b.shape:
            raise ValueError(
                f"interpolate needs steps >= 2 and latents of one shape, got {steps}, {tuple(a.shape)} and "
                f"{tuple(b.shape)}"
            )
        with evaluation_mode(self):
            first, last = self.styles(a), self.styles(b)
            share = torch.linspace(0, 1, steps, dtype=first.dtype, device=first.device)[:, None, None, None]
            styles = torch.lerp(first, last, share)
            return self.synthesize(styles.flatten(0, 1), noise=False).unflatten(0, (steps, len(a)))


class _Layer(nn.Module):
    """[Convolution,] noise, leaky ReLU, AdaIN: half a size of eq. (2)."""

    def __init__(self, before: int, after: int, config: StyleConfig, convolves: bool) -> None:
        super().__init__()
        self.conv = equalized(nn.Conv2d(before, after, 3, padding=1, bias=False), GAIN) if convolves else None
        self.bias = nn.Parameter(torch.zeros(after))
        self.noise_size = nn.Parameter(torch.zeros(after)) if config.noise else None
        self.norm = ModulatedNorm(after, config.style_dim, "instance", hidden=None)
        for head in (self.norm.to_gain, self.norm.to_shift):
            assert head is not None
            equalized(head)

    def forward(self, x: Tensor, style: Tensor, generator: torch.Generator | None, noise: bool) -> Tensor:
        if self.conv is not None:
            x = self.conv(x)
        x = x + self.bias[:, None, None].to(x.dtype)
        if noise and self.noise_size is not None:
            device = x.device if generator is None else generator.device
            drawn = torch.randn(len(x), 1, *x.shape[2:], generator=generator, device=device).to(x)
            x = x + self.noise_size[:, None, None].to(x.dtype) * drawn
        return self.norm(F.leaky_relu(x, 0.2), style)  # eq. (2)
