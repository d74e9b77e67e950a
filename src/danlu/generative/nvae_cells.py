r"""The residual cells of NVAE: dense ones for what reads an image, depthwise-separable ones for what makes it.

    y = skip(x) + 0.1 gate(branch(x))                                                                         (1)
    reading: branch = [norm, silu, conv 3x3] twice, the first with stride 2 where sides are halved            (2)
    making:  branch = [nearest x 2,] norm, conv 1x1 to E C, norm, silu, depthwise 5x5, norm, silu, conv 1x1, norm    (3)

The maker needs wide receptive fields and gets them cheaply, by depthwise 5x5 convolutions on E times the channels; for
the reader dense 3x3 ones are no worse and faster. The factor 0.1 starts a deep stack near the identity. Batch norms
have momentum 0.05: their running means, which evaluation uses, follow slowly; where they cannot follow, see
`danlu.generative.sampling_statistics`.

Source: Vahdat and Kautz, 2020, arXiv:2007.03898; the factor and sizes: the authors' program.
Shapes: N images of C channels, E expansion.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from danlu.generative.nvae_layers import FactorizedReduce, LogNormConv2d, SqueezeExcitation

__all__ = ["MakingCell", "ReadingCell"]

SHARE = 0.1  # of the branch


class ReadingCell(nn.Module):
    """Eq. (2) in eq. (1), for encoders.

    Args:
        channels: C.
        out: channels out; None: C.
        down: whether the sides are halved; they must be even then.
        gate: whether squeeze and excitation ends the branch.

    Raises:
        ValueError: more channels without halving the sides.

    >>> import torch
    >>> ReadingCell(4, 8, down=True)(torch.zeros(2, 4, 6, 6)).shape
    torch.Size([2, 8, 3, 3])
    """

    def __init__(self, channels: int, out: int | None = None, down: bool = False, gate: bool = True) -> None:
        super().__init__()
        out = _same_unless("down", channels, out, down)
        self.skip = FactorizedReduce(channels, out) if down else nn.Identity()
        self.norm1, self.conv1 = _norm(channels), LogNormConv2d(channels, out, 3, stride=2 if down else 1)
        self.norm2, self.conv2 = _norm(out), LogNormConv2d(out, out, 3)
        self.gate = SqueezeExcitation(out) if gate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))  # eq. (2)
        return self.skip(x) + SHARE * self.gate(h)  # eq. (1)


class MakingCell(nn.Module):
    """Eq. (3) in eq. (1), for decoders.

    Args:
        channels: C.
        out: channels out; None: C.
        up: whether the sides are doubled.
        expansion: E.
        gate: whether squeeze and excitation ends the branch.

    Raises:
        ValueError: other channels without doubling the sides.

    >>> import torch
    >>> MakingCell(8, 4, up=True)(torch.zeros(2, 8, 3, 3)).shape
    torch.Size([2, 4, 6, 6])
    """

    def __init__(
        self, channels: int, out: int | None = None, up: bool = False, expansion: int = 6, gate: bool = True
    ) -> None:
        super().__init__()
        out = _same_unless("up", channels, out, up)
        wide = expansion * channels
        self.up = up
        self.skip = LogNormConv2d(channels, out, 1) if up else nn.Identity()
        self.norm1, self.widen = _norm(channels), nn.Conv2d(channels, wide, 1, bias=False)
        self.norm2, self.depthwise = _norm(wide), nn.Conv2d(wide, wide, 5, padding=2, groups=wide, bias=False)
        self.norm3, self.narrow = _norm(wide), nn.Conv2d(wide, out, 1, bias=False)
        self.norm4 = _norm(out)
        self.gate = SqueezeExcitation(out) if gate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W)
        h = F.interpolate(x, scale_factor=2.0) if self.up else x
        h = F.silu(self.norm2(self.widen(self.norm1(h))))
        h = F.silu(self.norm3(self.depthwise(h)))
        h = self.norm4(self.narrow(h))  # eq. (3)
        if self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        return self.skip(x) + SHARE * self.gate(h)  # eq. (1)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.05)


def _same_unless(word: str, channels: int, out: int | None, resized: bool) -> int:
    if out not in (None, channels) and not resized:
        raise ValueError(f"a cell from {channels} to {out} channels has no identity to add; set {word}=True")
    return channels if out is None else out
