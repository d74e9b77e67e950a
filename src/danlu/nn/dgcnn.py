r"""Dilated gated convolution: each position keeps its old vector or takes in what it sees left and right.

    [u ; h] = Conv1d_{k, r, same}(m * x)         one convolution with twice the outputs                       (1)
    g = sigmoid(dropout(h))                      dropout before the sigmoid: a dropped gate stands at 1/2     (2)
    y = m * (x + g * (u - x))                    a highway: g = 0 passes x on, g = 1 is the convolution       (3)
    R = 1 + (k - 1) * sum of r                   positions that a stack can see                               (4)

x is the input, m the mask, k the kernel size, r the dilation, u the candidate, g the gate. Where the output is
wider or narrower than x, x goes through a 1x1 convolution in (3). The mask acts before (1), so that padding cannot leak
in, and after (3), so that the next layer finds zeros there. The last rate 1 of the usual stack smooths the grid that
large dilations leave.

The convolution runs as a 1 x k one over channels-last memory: no copy to (B, D, T), and in bfloat16 on a processor
with AMX half the time of `conv1d`. The dropout is that of `danlu.nn.dropout`, which on the CPU rounds the rate to
1/65536.

Source: kexue.fm/archives/5409 (2018); open version kexue.fm/archives/6906 (2019). The gate is that of Dauphin et
al., 2016, arXiv:1612.08083; the dilation that of Yu and Koltun, 2015, arXiv:1511.07122. Not the point-cloud network of
that name.
Shapes: B batch, T positions, D features, O output features.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.nn.dropout import dropout

__all__ = ["DGCNN", "DilatedGatedConv1d"]


class DilatedGatedConv1d(nn.Module):
    r"""One gated convolution with its highway, eq. (1) to (3); weights start as Keras starts them.

    `conv.weight` has the layout of `nn.Conv1d`, (2 O, D, k): first the O candidates, then the O gates. A Keras kernel
    (k, D, 2 O) loads after `permute(2, 1, 0)`.

    Args:
        dim: features of the input.
        out_dim: features of the output; None keeps `dim`.
        kernel_size: odd number of taps.
        dilation: distance between two taps, in positions.
        gate_dropout: share of gates that are set to 1/2 in training, in [0, 1).

    Raises:
        ValueError: a setting is out of its range.

    >>> DilatedGatedConv1d(8)(torch.ones(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self, dim: int, out_dim: int | None = None, kernel_size: int = 3, dilation: int = 1, gate_dropout: float = 0.1
    ) -> None:
        super().__init__()
        out_dim = dim if out_dim is None else out_dim
        if dim < 1 or out_dim < 1:
            raise ValueError(f"dim and out_dim must be at least 1, got {dim} and {out_dim}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd, so that a position has as many neighbours left as right; got {kernel_size}; "
                f"use {max(kernel_size, 0) + 1}"
            )
        if dilation < 1:
            raise ValueError(f"dilation must be at least 1, got {dilation}; 1 is the ordinary convolution")
        if not 0 <= gate_dropout < 1:
            raise ValueError(f"gate_dropout must lie in [0, 1), got {gate_dropout}; 0 switches it off")
        self.dilation = dilation
        self.gate_dropout = gate_dropout
        self.conv = nn.Conv1d(dim, 2 * out_dim, kernel_size, padding="same", dilation=dilation)
        self.skip = nn.Linear(dim, out_dim) if out_dim != dim else None
        for part in (self.conv, self.skip):
            if part is not None:
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The sequence after one layer, (B, T, O); zeros where the mask is False.

        Args:
            x: (B, T, D) vectors, any float dtype; what stands at masked positions has no influence.
            mask: (B, T) bool, True = keep; None keeps all.

        Returns:
            (B, T, O) in the dtype of x, or that of the autocast region.

        Raises:
            ValueError: x or mask has another shape, or mask is not bool.
        """
        keep = _checked_keep(x, mask, self.conv.in_channels)
        if keep is not None:
            x = x.masked_fill(~keep, 0)  # a fill, because 0 * nan is nan
        both = _conv_channels_last(x, self.conv.weight, self.conv.bias, self.dilation)  # (B, T, 2 O)  eq. (1)
        candidate, gate = both.chunk(2, dim=-1)  # (B, T, O) each
        if self.training and self.gate_dropout:
            gate = dropout(gate, self.gate_dropout)
        gate = torch.sigmoid(gate)  # eq. (2)
        if self.skip is not None:
            x = self.skip(x)
        y = torch.lerp(x.to(candidate.dtype), candidate, gate)  # (B, T, O)  eq. (3)
        return y if keep is None else y * keep

    def extra_repr(self) -> str:
        """The setting that the parts do not show."""
        return f"gate_dropout={self.gate_dropout}"


class DGCNN(nn.Module):
    r"""A stack of dilated gated convolutions of one width: a light encoder of sequences.

    Args:
        dim: features of input and output.
        dilations: one layer for each; (1, 2, 4, 8, 16, 1) sees 32 positions to each side, eq. (4).
        kernel_size: odd number of taps of every layer.
        gate_dropout: share of gates that are set to 1/2 in training, in [0, 1).

    Raises:
        ValueError: there are no dilations, or a setting is out of its range.

    >>> DGCNN(8, dilations=(1, 2, 1)).receptive_field
    9
    """

    def __init__(
        self,
        dim: int,
        dilations: Sequence[int] = (1, 2, 4, 8, 16, 1),
        kernel_size: int = 3,
        gate_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not dilations:
            raise ValueError("dilations must name at least one layer, got none; (1,) is a single ordinary one")
        self.layers = nn.ModuleList(
            DilatedGatedConv1d(dim, kernel_size=kernel_size, dilation=r, gate_dropout=gate_dropout) for r in dilations
        )
        self.receptive_field = 1 + (kernel_size - 1) * sum(dilations)  # eq. (4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The sequence after all layers, (B, T, D); zeros where the mask is False.

        Args:
            x: (B, T, D) vectors, any float dtype; what stands at masked positions has no influence.
            mask: (B, T) bool, True = keep; None keeps all.

        Returns:
            (B, T, D) in the dtype of x, or that of the autocast region.

        Raises:
            ValueError: x or mask has another shape, or mask is not bool.
        """
        for layer in self.layers:
            x = layer(x, mask)
        return x


def _checked_keep(x: Tensor, mask: Tensor | None, dim: int) -> Tensor | None:
    """The mask as (B, T, 1), or None."""
    if x.ndim != 3 or x.shape[-1] != dim:
        raise ValueError(
            f"a gated convolution of dim {dim} needs x (batch, positions, {dim}); got {tuple(x.shape)}. "
            "Channels come last here; move them with x.transpose(1, 2)."
        )
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
        raise ValueError(
            f"mask must be bool {tuple(x.shape[:2])}, True = keep; got {mask.dtype} {tuple(mask.shape)}. "
            "Turn a 0/1 mask into one with mask.bool()."
        )
    return mask[..., None]


def _conv_channels_last(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """`F.conv1d` with "same" padding on (B, T, D), as a 1 x k convolution whose memory is channels-last already."""
    if x.shape[0] == 0 or x.shape[1] == 0:  # nothing to convolve, and the kernels refuse length 0
        return x.new_zeros(*x.shape[:2], weight.shape[0])
    padding = dilation * (weight.shape[2] // 2)
    x, weight = x.mT[:, :, None], weight[:, :, None]  # (B, D, 1, T), (2 O, D, 1, k)
    return F.conv2d(x, weight, bias, padding=(0, padding), dilation=(1, dilation))[:, :, 0].mT  # (B, T, 2 O)
