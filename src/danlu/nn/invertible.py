r"""Invertible layers that only move numbers about, and the chain that adds up log-determinants.

    f = f_k o ... o f_1,   log|det df/dx| = sum_i log|det df_i / dh_{i-1}|                                    (1)
    squeeze: (C, H, W) -> (4 C, H/2, W/2), the four pixels of a block become channels 4 c .. 4 c + 3          (2)
    a scale exp(l_c) for each channel: log|det| = P sum_c l_c                                                 (3)

Every invertible layer of danlu has `forward(x) -> (y, log_det)` and `inverse(y) -> (x, log_det of the inverse)`, with
log_det (N,) in float32 or better. P is the number of positions that share a channel; to forget it is the classic slip.
In (2) the channels stand in the order of torch.nn.functional.pixel_unshuffle: (c, row, column); TensorFlow code that
reshapes height x width x channels has (row, column, c) or (c, row, column) by version, so imported weights need a look.
A squeezed image is stored channels_last, as the convolutions and products behind it want it.

Source: Dinh et al., 2016, arXiv:1605.08803 (1), (2); kexue.fm/archives/5776 and 5807.
Shapes: N batch, C channels, H and W pixels.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from danlu.math.precision import wide, wide_dtype

__all__ = ["ChannelPermutation", "Flatten", "InvertibleSequential", "Squeeze", "channel_log_det"]


def channel_log_det(x: Tensor, log_scale: Tensor) -> Tensor:
    """The log-determinant of a map that is the same at all positions, eq. (3).

    Args:
        x: (N, C, ...) the input, for its sizes.
        log_scale: any shape, whose sum is the log-determinant at one position.

    Returns:
        (N,) all equal, float32 or better.

    >>> channel_log_det(torch.zeros(2, 1, 3, 3), torch.ones(1))
    tensor([9., 9.])
    """
    return (wide(log_scale).sum() * math.prod(x.shape[2:])).expand(len(x))  # eq. (3)


def _no_log_det(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=wide_dtype(x), device=x.device)


class InvertibleSequential(nn.Module):
    """Layers one after the other, eq. (1); the inverse runs them backwards.

    Args:
        layers: invertible modules.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        for layer in self.layers:
            if not callable(getattr(layer, "inverse", None)):
                raise ValueError(f"{type(layer).__name__} has no inverse(y); an InvertibleSequential needs one of each")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, ...) -> (N, ...), (N,)
        log_det = _no_log_det(x)
        for layer in self.layers:
            x, added = layer(x)
            log_det = log_det + added  # eq. (1)
        return x, log_det

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x from y, with the log-determinant of this inverse.

        Args:
            y: (N, ...).

        Returns:
            (N, ...) and (N,).
        """
        log_det = _no_log_det(y)
        for layer in [*self.layers][::-1]:
            y, added = layer.inverse(y)
            log_det = log_det + added
        return y, log_det


class ChannelPermutation(nn.Module):
    """Channels in another order: "reverse" (NICE) or one random order for ever, "shuffle" (RealNVP).

    Args:
        num_channels: C.
        mode: "reverse" or "shuffle".
        generator: source of the random order.
    """

    order: Tensor

    def __init__(self, num_channels: int, mode: str = "reverse", generator: torch.Generator | None = None) -> None:
        super().__init__()
        if mode not in ("reverse", "shuffle"):
            raise ValueError(f"mode must be 'reverse' or 'shuffle', got {mode!r}")
        if mode == "reverse":
            order = torch.arange(num_channels - 1, -1, -1)
        else:
            order = torch.randperm(num_channels, generator=generator, device=generator.device if generator else None)
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, C, ...) -> the same, (N,)
        return x[:, self._order(x)], _no_log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x from y, with log-determinant 0.

        Args:
            y: (N, C, ...).

        Returns:
            (N, C, ...) and (N,).
        """
        return y[:, self._order(y).argsort()], _no_log_det(y)

    def _order(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[1] != len(self.order):
            raise ValueError(f"this permutation takes (N, {len(self.order)}, ...), got {tuple(x.shape)}")
        return self.order


class Squeeze(nn.Module):
    """Blocks of factor x factor pixels become channels, eq. (2).

    Args:
        factor: >= 1.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor must be >= 1, got {factor}")
        self.factor = factor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, C, H, W) -> (N, C f^2, H/f, W/f), (N,)
        if x.ndim != 4 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"a squeeze by {self.factor} needs images (N, C, H, W) with height and width divisible by "
                f"{self.factor}, got {tuple(x.shape)}; pad or crop them"
            )
        n, c, h, w = x.shape
        f = self.factor
        blocks = x.reshape(n, c, h // f, f, w // f, f).permute(0, 2, 4, 1, 3, 5)  # (N, H/f, W/f, C, f, f)
        return blocks.reshape(n, h // f, w // f, c * f * f).permute(0, 3, 1, 2), _no_log_det(x)  # eq. (2)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x from y, with log-determinant 0.

        Args:
            y: (N, C f^2, H, W).

        Returns:
            (N, C, H f, W f) and (N,).
        """
        if y.ndim != 4 or y.shape[1] % self.factor**2:
            raise ValueError(
                f"undoing a squeeze by {self.factor} needs (N, C, H, W) with channels divisible by "
                f"{self.factor**2}, got {tuple(y.shape)}"
            )
        n, c, h, w = y.shape
        f = self.factor
        blocks = y.reshape(n, c // f**2, f, f, h, w).permute(0, 1, 4, 2, 5, 3)  # (N, C, H, f, W, f)
        return blocks.reshape(n, c // f**2, h * f, w * f), _no_log_det(y)


class Flatten(nn.Module):
    """Items of a given shape as vectors.

    Args:
        shape: of one item.
    """

    def __init__(self, shape: Iterable[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, *shape) -> (N, D), (N,)
        if x.shape[1:] != self.shape:
            raise ValueError(f"this layer flattens items of shape {self.shape}, got a batch {tuple(x.shape)}")
        return x.flatten(1), _no_log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x from y, with log-determinant 0.

        Args:
            y: (N, D).

        Returns:
            (N, *shape) and (N,).
        """
        if y.ndim != 2 or y.shape[1] != math.prod(self.shape):
            raise ValueError(
                f"items of shape {self.shape} come from (N, {math.prod(self.shape)}), got {tuple(y.shape)}"
            )
        return y.reshape(-1, *self.shape) if len(y) else y.reshape(0, *self.shape), _no_log_det(y)
