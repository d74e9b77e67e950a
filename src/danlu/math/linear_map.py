r"""The linear map inside a layer, without its matrix: forward and adjoint of a weight.

    matrix:       A v = W v,               A^T u = W^T u                             (1)
    convolution:  A v = conv(pad(v), W),   A^T u = pad^T conv_transpose(u, W)        (2)

W of (1) is the weight flattened to (out, in * kernel), one block for each group. pad^T of (2) cuts zeros off, and adds
what circular padding repeats to where it came from. A transposed convolution is the adjoint of a convolution and has
its norm, so it is described by that convolution.

Source: the definitions of torch.nn.Conv1d to Conv3d and their transposes; kexue.fm/archives/6051 for (1).
Shapes: v is (G, M) for (1), G groups, M inputs of each; (C, *N) for (2), C channels, N sizes of one input.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvMap", "MatrixMap", "conv_map", "layer_map"]

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Size = int | Sequence[int]


@dataclass(frozen=True)
class MatrixMap:
    """Eq. (1): the weight as a matrix, or as one block for each group."""

    shape: tuple[int, int]  # of v

    def blocks(self, weight: Tensor) -> Tensor:
        """(G, out / G, M)."""
        return weight.reshape(self.shape[0], -1, self.shape[1])

    def forward(self, weight: Tensor, v: Tensor) -> Tensor:
        """A v, (G, out / G)."""
        return (self.blocks(weight) @ v[:, :, None])[:, :, 0]  # eq. (1)

    def adjoint(self, weight: Tensor, u: Tensor) -> Tensor:
        """A^T u, (G, M)."""
        return (self.blocks(weight).mT @ u[:, :, None])[:, :, 0]  # eq. (1)


@dataclass(frozen=True)
class ConvMap:
    """Eq. (2): a convolution of inputs of one size; padding is (before, after) for each axis."""

    shape: tuple[int, ...]  # of v: channels and sizes
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    padding_mode: str = "zeros"

    @property
    def flat_padding(self) -> list[int]:
        """The padding in the order of torch's pad: last axis first."""
        return [amount for pair in reversed(self.padding) for amount in pair]

    def output_size(self, kernel: Sequence[int]) -> tuple[int, ...]:
        """Sizes of the output for a kernel of these sizes."""
        sizes = zip(self.shape[1:], self.padding, self.dilation, kernel, self.stride, strict=True)
        return tuple((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sizes)

    def forward(self, weight: Tensor, v: Tensor) -> Tensor:
        """A v, (out, *output sizes)."""
        conv = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
        mode = "circular" if self.padding_mode == "circular" else "constant"
        x = F.pad(v[None], self.flat_padding, mode=mode) if any(self.flat_padding) else v[None]
        return conv(x, weight, None, self.stride, 0, self.dilation, self.groups)[0]  # eq. (2)

    def adjoint(self, weight: Tensor, u: Tensor) -> Tensor:
        """A^T u, in the shape of v."""
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[weight.ndim - 3]
        sizes = zip(self.shape[1:], self.padding, self.stride, self.dilation, weight.shape[2:], strict=True)
        left = [(n + sum(p) - d * (k - 1) - 1) % s for n, p, s, d, k in sizes]  # rows that no window reaches
        x = transposed(u[None], weight, None, self.stride, 0, left, self.groups, self.dilation)[0]
        for axis, (n, (before, after)) in enumerate(zip(self.shape[1:], self.padding, strict=True), 1):
            kept = x.narrow(axis, before, n)
            if self.padding_mode == "circular":
                places = torch.arange(-before, n + after, device=x.device) % n
                kept = torch.zeros_like(kept).index_add(axis, places, x)
            x = kept
        return x  # eq. (2)


def conv_map(
    weight: Tensor,
    input_size: Size,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> ConvMap:
    """The map of a convolution, from the arguments of torch.nn.Conv1d to Conv3d.

    Args:
        weight: (out, in / groups, *kernel), 1 to 3 axes of kernel.
        input_size: sizes of one input without channels, such as (H, W); one number stands for all axes.
        stride: as in torch.
        padding: as in torch, a number, one for each axis, "same" or "valid".
        dilation: as in torch.
        groups: as in torch.
        padding_mode: "zeros" or "circular".

    Returns:
        A `ConvMap`.

    Raises:
        ValueError: a weight that is no kernel, sizes that do not fit, another padding mode.

    >>> conv_map(torch.ones(4, 3, 3, 3), 8, padding=1).shape
    (3, 8, 8)
    """
    axes = weight.ndim - 2
    if axes not in (1, 2, 3):
        raise ValueError(
            f"a kernel is (out, in / groups, *kernel) with 1 to 3 axes of kernel, got {tuple(weight.shape)}; for a "
            "matrix use torch.linalg.matrix_norm(weight, 2)"
        )
    if padding_mode not in ("zeros", "circular"):
        raise ValueError(
            f"padding_mode must be 'zeros' or 'circular', got {padding_mode!r}; reflected and replicated pixels are "
            "another map, whose norm is not computed here"
        )
    size, steps, spread = (each_axis(x, axes, n) for x, n in
                           ((input_size, "input_size"), (stride, "stride"), (dilation, "dilation")))  # fmt: skip
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding must be numbers, 'same' or 'valid', got {padding!r}")
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(spread, weight.shape[2:], strict=True)]
        pairs = tuple((t // 2, t - t // 2) for t in total)
    else:
        pairs = tuple((p, p) for p in each_axis(padding, axes, "padding"))
    found = ConvMap((weight.shape[1] * groups, *size), steps, pairs, spread, groups, padding_mode)
    if min(found.output_size(weight.shape[2:])) < 1 or weight.shape[0] % groups:
        raise ValueError(
            f"a kernel {tuple(weight.shape)} with groups={groups}, padding={padding}, dilation={dilation} does not fit "
            f"inputs of size {size}"
        )
    if padding_mode == "circular" and any(max(p) > n for p, n in zip(pairs, size, strict=True)):
        raise ValueError(f"circular padding {pairs} goes round inputs of size {size} more than once")
    return found


def layer_map(layer: nn.Module, weight: Tensor, input_size: Size | None = None) -> MatrixMap | ConvMap:
    """The map that a layer makes of its weight: eq. (2) for a convolution whose input size is known, else eq. (1).

    Args:
        layer: any module; convolutions and their transposes give their settings.
        weight: its weight.
        input_size: sizes of one input of the layer, without channels; None: eq. (1).

    Returns:
        A `ConvMap` or a `MatrixMap`.

    Raises:
        ValueError: sizes that do not fit, a padding mode that is not supported, a weight with less than two axes.

    >>> layer_map(nn.Conv1d(4, 2, 3), torch.ones(2, 4, 3))
    MatrixMap(shape=(1, 12))
    """
    if weight.ndim < 2:
        raise ValueError(f"a linear map needs a weight with two axes or more, got {tuple(weight.shape)}")
    groups = layer.groups if isinstance(layer, (*CONV, *TRANSPOSED)) else 1
    if input_size is None or not isinstance(layer, (*CONV, *TRANSPOSED)):
        return MatrixMap((int(groups), weight[0].numel()))
    size = each_axis(input_size, weight.ndim - 2, "input_size")
    if isinstance(layer, TRANSPOSED):
        numbers = zip(size, layer.stride, layer.padding, layer.dilation, weight.shape[2:], layer.output_padding,
                      strict=True)  # fmt: skip
        size = tuple((n - 1) * s - 2 * int(p) + d * (k - 1) + o + 1 for n, s, p, d, k, o in numbers)
    return conv_map(weight, size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)


def each_axis(value: Size, axes: int, name: str) -> tuple[int, ...]:
    """One number for each axis."""
    values = (value,) * axes if isinstance(value, int) else tuple(int(x) for x in value)
    if len(values) != axes or min(values) < (0 if name == "padding" else 1):
        least = "0" if name == "padding" else "1"
        raise ValueError(f"{name} must be a number >= {least} or {axes} of them, got {value!r}")
    return values
