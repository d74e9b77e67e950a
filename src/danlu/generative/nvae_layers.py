r"""Small layers of NVAE: a convolution by direction and length, squeeze and excitation, halving without loss.

    W_o = exp(g_o) V_o / ||V_o||,    g_o = log ||V_o|| at the start                                           (1)
    y = x * sigmoid(A relu(B mean_positions(x)))                                                              (2)
    y = concat of four 1x1 convolutions, each of one phase (2i + a, 2j + b) of silu(x)                        (3)

(1) is weight normalisation with its length as a logarithm, so that a step of an optimizer changes it by a factor and
never its sign; a fresh layer computes what the plain one does. In (3) every pixel is read once; a 1x1 convolution of
stride 2 by itself reads one of four.

Source: Salimans and Kingma, 2016, arXiv:1602.07868 (1); Hu et al., 2017, arXiv:1709.01507 (2); Vahdat and Kautz, 2020,
    arXiv:2007.03898.
Shapes: N images of C channels, O channels out, H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math.precision import wide

__all__ = ["FactorizedReduce", "LogNormConv2d", "SqueezeExcitation"]

TINY = 1e-12  # below this length a kernel has no direction


class LogNormConv2d(nn.Conv2d):
    """A convolution with bias, zero padding that keeps the sides at stride 1, and the weights of eq. (1).

    Args:
        channels: in.
        out: channels out.
        kernel_size: odd.
        stride: of both sides.

    >>> layer = LogNormConv2d(1, 1, 1)
    >>> torch.allclose(layer.normed_weight(), layer.weight)
    True
    """

    def __init__(self, channels: int, out: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(channels, out, kernel_size, stride, padding=kernel_size // 2)
        lengths = self.weight.detach().flatten(1).norm(dim=1)
        self.log_length = nn.Parameter(lengths.clamp_min(TINY).log())

    def normed_weight(self) -> Tensor:
        """The weights that convolve, eq. (1), float32 or better."""
        v = wide(self.weight)
        length = v.flatten(1).norm(dim=1).clamp_min(TINY)
        return v * (wide(self.log_length).exp() / length)[:, None, None, None]  # eq. (1)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W)
        weight = self.normed_weight().to(self.weight.dtype)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)  # (N, O, H, W)


class SqueezeExcitation(nn.Module):
    """Eq. (2): every channel times a gate that has seen the means of all.

    Args:
        channels: C.

    >>> SqueezeExcitation(8)(torch.zeros(2, 8, 3, 3)).shape
    torch.Size([2, 8, 3, 3])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 4)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W)
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()  # (N, C)
        return x * gate[:, :, None, None]  # eq. (2)


class FactorizedReduce(nn.Module):
    """Eq. (3): half of the sides.

    Args:
        channels: in.
        out: channels out, >= 4.

    Raises:
        ValueError: fewer than four channels out.

    >>> FactorizedReduce(2, 5)(torch.zeros(1, 2, 6, 4)).shape
    torch.Size([1, 5, 3, 2])
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        if out < 4:
            raise ValueError(f"FactorizedReduce puts out four phases and needs out >= 4 channels, got {out}")
        parts = [out // 4] * 3 + [out - 3 * (out // 4)]
        self.phases = nn.ModuleList(LogNormConv2d(channels, part, 1, stride=2) for part in parts)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W), even sides
        x = F.silu(x)
        corners = ((0, 0), (1, 1), (0, 1), (1, 0))
        return torch.cat([p(x[:, :, a:, b:]) for p, (a, b) in zip(self.phases, corners, strict=True)], 1)  # eq. (3)
