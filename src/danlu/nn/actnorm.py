r"""Actnorm: a scale and a shift for each channel that start by making the first batch standard, then are trained.

    y = exp(l) (x + b),   log|det dy/dx| = P sum_c l_c,   x = exp(-l) y - b                                   (1)
    first training batch:   b = -mean,   l = -log max(std, min_std)                                           (2)

P is the number of positions that share a channel (H W for images, 1 for vectors). (2) runs once, on the first batch
that comes in training mode, and is remembered in the state dict; before that the layer is the identity. A channel that
is constant in that batch (the border of digits) would get an endless scale: min_std bounds it. `init="zeros"` leaves
(2) out. Without the shift and with init="zeros" it is the scaling layer of NICE, z = exp(l) h: the same as learning the
variances of the prior, and a large l_c says that dimension c holds almost nothing.

With several processes run one forward on the same batch in each before wrapping the model: parameters are not
broadcast after that.

Source: Kingma and Dhariwal, 2018, arXiv:1807.03039; the scaling layer: Dinh et al., 2014, arXiv:1410.8516;
    kexue.fm/archives/5776 and 5807.
Shapes: N batch, C channels, ... any trailing axes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from danlu.math.precision import wide
from danlu.nn.invertible import channel_log_det

__all__ = ["ActNorm", "standardize_channels"]


def standardize_channels(x: Tensor, min_std: float = 1e-2) -> tuple[Tensor, Tensor]:
    """The log-scale and the shift that give every channel of a batch mean 0 and standard deviation 1, eq. (2).

    Args:
        x: (N, C, ...) with at least one number a channel.
        min_std: > 0, least standard deviation that is believed.

    Returns:
        l (C,) and b (C,), float32 or better, without a graph.

    Raises:
        ValueError: no numbers, numbers that are not finite, min_std <= 0.

    >>> standardize_channels(torch.tensor([[0.0], [4.0]]))  # mean 2, standard deviation 2
    (tensor([-0.6931]), tensor([-2.]))
    """
    if x.ndim < 2 or not x.numel() or not min_std > 0:
        raise ValueError(
            f"standardize_channels needs a batch (N, C, ...) with numbers in it and min_std > 0, got {tuple(x.shape)} "
            f"and {min_std}"
        )
    rows = wide(x.detach()).movedim(1, -1).flatten(0, -2)  # (N P, C)
    std, mean = torch.std_mean(rows, 0, correction=0)
    if not bool(mean.isfinite().all() and std.isfinite().all()):
        raise ValueError(
            f"the batch that starts an actnorm must be finite; this one, {tuple(x.shape)}, holds nan or infinities"
        )
    return -std.clamp_min(min_std).log(), -mean  # eq. (2)


class ActNorm(nn.Module):
    """Eqs. (1) and (2); `forward` gives (y, log_det (N,)), `inverse` undoes it.

    Args:
        num_channels: C.
        init: "data" or "zeros".
        shift: False leaves b out.
        min_std: of (2).
    """

    initialized: Tensor

    def __init__(self, num_channels: int, init: str = "data", shift: bool = True, min_std: float = 1e-2) -> None:
        super().__init__()
        if init not in ("data", "zeros") or not min_std > 0:
            raise ValueError(f"init must be 'data' or 'zeros' and min_std > 0, got {init!r} and {min_std}")
        self.log_scale = nn.Parameter(torch.zeros(num_channels))
        self.shift = nn.Parameter(torch.zeros(num_channels)) if shift else None
        self.min_std = min_std
        self.register_buffer("initialized", torch.tensor(init == "zeros"))
        self._known = init == "zeros"  # spares a look at the buffer, which waits for a GPU

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, C, ...) -> the same, (N,)
        self.prepare(x)
        log_scale, shift = self.per_channel(x)
        y = wide(x) * log_scale.exp() if shift is None else (wide(x) + shift) * log_scale.exp()  # eq. (1)
        return y.to(x.dtype), channel_log_det(x, self.log_scale)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x from y, with the log-determinant of this inverse.

        Args:
            y: (N, C, ...).

        Returns:
            (N, C, ...) and (N,).
        """
        log_scale, shift = self.per_channel(y)
        x = wide(y) * (-log_scale).exp()  # eq. (1)
        return (x if shift is None else x - shift).to(y.dtype), -channel_log_det(y, self.log_scale)

    @torch.no_grad()
    def prepare(self, x: Tensor) -> None:
        """Set scale and shift from this batch, eq. (2), if that is still to be done and the layer is in training.

        Args:
            x: (N, C, ...); an empty batch is passed over.
        """
        if self._known or not self.training:
            return
        if not bool(self.initialized):
            if not x.numel():
                return
            log_scale, shift = standardize_channels(x, self.min_std)
            self.log_scale.copy_(log_scale)
            if self.shift is not None:
                self.shift.copy_(shift)
            self.initialized.fill_(True)
        self._known = True

    def per_channel(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """l and b in a shape that broadcasts with the tensor.

        Args:
            x: (N, C, ...).

        Returns:
            l and b, (C, 1, ...), float32 or better; None without shift.
        """
        if x.ndim < 2 or x.shape[1] != len(self.log_scale):
            raise ValueError(f"this actnorm takes (N, {len(self.log_scale)}, ...), got {tuple(x.shape)}")
        shape = (-1, *[1] * (x.ndim - 2))
        return wide(self.log_scale).reshape(shape), None if self.shift is None else wide(self.shift).reshape(shape)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._known = False  # the file may come from before or after the first batch

    def extra_repr(self) -> str:
        return f"{len(self.log_scale)}, shift={self.shift is not None}, min_std={self.min_std}"
