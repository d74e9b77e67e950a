r"""The two networks of NVAE: one reads an image from fine to coarse, one makes it from coarse to fine, group by group.

    taps: what the reader knows at each group's scale; the coarsest through elu, conv 1x1, elu                (1)
    d_1 = h, learned;   d_l = cells(d)  for l > 1;   prior of l: conv 1x1(elu(d_l)), of l = 1 the standard normal   (2)
    posterior of l: conv 3x3(tap_l + conv 1x1(d_l)), of l = 1 conv 3x3(tap_1)                                 (3)
    d <- conv 1x1([d_l, z_l]), doubled after the last group of a scale;  at the end conv 3x3(elu(post cells(d)))    (4)

The reader reaches the maker through (3) alone: with all z given, nothing else of the image enters. So the prior of a
group depends on coarser groups only, and a model that has dreamt the z makes the image the same way.

Source: Vahdat and Kautz, 2020, arXiv:2007.03898.
Shapes: N images, K latent channels, L groups.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from danlu.generative.nvae_cells import MakingCell, ReadingCell
from danlu.generative.nvae_config import NVAEConfig
from danlu.generative.nvae_layers import LogNormConv2d
from danlu.generative.residual_normal import DiagonalNormal, clamped_normal, residual_normal
from danlu.math.precision import wide_dtype

__all__ = ["BottomUp", "Choose", "LatentGroup", "TopDown"]

Choose = Callable[[int, DiagonalNormal, DiagonalNormal | None], Tensor]  # group, prior, posterior -> z


class BottomUp(nn.Module):
    """The reader, eq. (1): (N, C, *padded) -> taps of all groups, coarse to fine.

    Args:
        config: what to build.

    >>> from danlu.generative.nvae_config import NVAEConfig
    >>> [tuple(t.shape) for t in BottomUp(NVAEConfig((1, 8, 8), groups=(1, 2), channels=4))(torch.zeros(2, 1, 8, 8))]
    [(2, 16, 2, 2), (2, 8, 4, 4), (2, 8, 4, 4)]
    """

    def __init__(self, config: NVAEConfig) -> None:
        super().__init__()
        self.stem = LogNormConv2d(config.shape[0], config.channels, 3)
        width = config.channels
        before: list[nn.Module] = []
        for _ in range(config.pre_blocks):
            before += [ReadingCell(width, gate=config.gate) for _ in range(config.pre_cells - 1)]
            before += [ReadingCell(width, 2 * width, down=True, gate=config.gate)]
            width *= 2
        self.before = nn.Sequential(*before)
        self.towers, self.downs = nn.ModuleList(), nn.ModuleList()
        for scale in reversed(range(len(config.groups))):  # fine to coarse
            for _ in range(config.groups[scale]):
                cells = [ReadingCell(width, gate=config.gate) for _ in range(config.encoder_cells)]
                self.towers.append(nn.Sequential(*cells))
                self.downs.append(nn.Identity())
            if scale:
                self.downs[-1] = ReadingCell(width, 2 * width, down=True, gate=config.gate)
                width *= 2
        self.top = nn.Sequential(nn.ELU(), LogNormConv2d(width, width, 1), nn.ELU())

    def forward(self, x: Tensor) -> list[Tensor]:  # (N, C, H, W)
        h = self.before(self.stem(x))
        taps: list[Tensor] = []
        for cells, down in zip(self.towers, self.downs, strict=True):
            taps.append(cells(h))
            h = down(taps[-1])
        return [self.top(h), *reversed(taps[:-1])]  # eq. (1)


class LatentGroup(nn.Module):
    """One group of the maker: its prior and posterior, eqs. (2) and (3), and how its z enters, eq. (4).

    Args:
        config: what to build.
        scale: of the group, counted from the coarsest.
        first: whether it is the first group of all.
        last: whether it is the last of its scale, and sides double behind it.
    """

    def __init__(self, config: NVAEConfig, scale: int, first: bool, last: bool) -> None:
        super().__init__()
        width, latent = config.width(scale), config.latent_channels
        self.residual, self.latent_channels = config.residual, latent
        self.cells = nn.Sequential(*([] if first else [cell(config, width) for _ in range(config.decoder_cells)]))
        self.prior = None if first else nn.Sequential(nn.ELU(), LogNormConv2d(width, 2 * latent, 1))
        self.merge = None if first else LogNormConv2d(width, width, 1)
        self.posterior = LogNormConv2d(width, 2 * latent, 3)
        self.mix = LogNormConv2d(width + latent, width, 1)
        self.up = cell(config, width, width // 2) if last else nn.Identity()

    def forward(self, d: Tensor, tap: Tensor | None) -> tuple[Tensor, DiagonalNormal, DiagonalNormal | None]:
        """d_l, prior and posterior for the state (N, C, H, W) and a tap of its shape; no posterior without tap."""
        d = self.cells(d)
        raw = None if self.prior is None else self.prior(d)  # eq. (2)
        if raw is None:
            mean = d.new_zeros(len(d), self.latent_channels, *d.shape[2:], dtype=wide_dtype(d))
            prior = DiagonalNormal(mean, torch.ones_like(mean))
        else:
            prior = clamped_normal(raw)
        if tap is None:
            return d, prior, None
        change = self.posterior(tap if self.merge is None else tap + self.merge(d))  # eq. (3)
        posterior = residual_normal(raw, change) if self.residual and raw is not None else clamped_normal(change)
        return d, prior, posterior

    def absorb(self, d: Tensor, z: Tensor) -> Tensor:
        """The state behind the group, eq. (4), for z (N, K, H, W)."""
        return self.up(self.mix(torch.cat([d, z.to(d.dtype)], 1)))


class TopDown(nn.Module):
    """The maker, eqs. (2) to (4): whoever calls it chooses every z.

    Args:
        config: what to build.
        features: of one pixel of the image that is put out.
    """

    def __init__(self, config: NVAEConfig, features: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.rand(config.width(0), *config.sides(0)))
        self.groups = nn.ModuleList()
        for scale, count in enumerate(config.groups):
            for index in range(count):
                last = index == count - 1 and scale < len(config.groups) - 1
                self.groups.append(LatentGroup(config, scale, not self.groups, last))
        width = config.width(len(config.groups) - 1)
        after: list[nn.Module] = []
        for _ in range(config.pre_blocks):
            after += [cell(config, width, width // 2, config.post_expansion)]
            width //= 2
            after += [cell(config, width, None, config.post_expansion) for _ in range(config.pre_cells - 1)]
        self.after = nn.Sequential(*after, nn.ELU())
        self.image = LogNormConv2d(width, features, 3)

    def forward(self, count: int, taps: Sequence[Tensor], choose: Choose) -> Tensor:
        """(count, features, *padded), for taps of the first groups, (count, ...) each, and a choice of z."""
        d = self.start.expand(count, *self.start.shape)
        for index, group in enumerate(self.groups):
            assert isinstance(group, LatentGroup)
            d, prior, posterior = group(d, taps[index] if index < len(taps) else None)
            d = group.absorb(d, choose(index, prior, posterior))
        return self.image(self.after(d))  # eq. (4)


def cell(config: NVAEConfig, width: int, out: int | None = None, expansion: int | None = None) -> MakingCell:
    """A cell of the maker; one with a number of channels out doubles the sides."""
    return MakingCell(width, out, out is not None, expansion or config.expansion, config.gate)
