r"""Coupling layers: half of the numbers pass, and what they say moves the other half; the inverse costs the same.

    y1 = x1,   y2 = s(x1) * x2 + t(x1),   log|det dy/dx| = sum log s(x1)                  affine              (1)
    y1 = x1,   y2 = x2 + t(x1),           log|det dy/dx| = 0                              additive            (2)
    x2 = (y2 - t(y1)) / s(y1)                                                             inverse             (3)
    log s = c tanh(r / c)                                                                 "bounded"           (4)
    log s = r                                                                             "exp"               (5)
    log s = log sigmoid(r + 2),   y2 = (x2 + t) s                                         "sigmoid"           (6)

A network of any kind reads x1 and gives r and t (additive: t alone). (4) starts at the identity where the network
starts at zero and keeps every s in [e^-c, e^c], so that no single layer's inverse can amplify by more than e^c on the
moved half; (5) and (6) have no such bound, and flows trained with them are known for samples that overflow. (6) is the
form of Glow's released code; it starts at log s = -0.1269 a number.

Splits: "half" cuts the channels in two, "even_odd" takes every second one (NICE), "checkerboard" every second pixel
(RealNVP): there the network sees all channels with the moved pixels set to 0. `swap` exchanges the two parts. The
network may run in half precision under autocast; scale, shift, sum and log-determinant are float32 or better. Forward
and inverse must run it in the same precision, or they are not inverse.

Source: Dinh et al., 2014, arXiv:1410.8516 (2); Dinh et al., 2016, arXiv:1605.08803 (1), (3); Kingma and Dhariwal, 2018,
    arXiv:1807.03039 (6); kexue.fm/archives/5776 and 5807; (4) is ours.
Shapes: N batch, C channels, ... any trailing axes (none for vectors).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math.precision import wide

__all__ = ["Coupling", "affine_coupling", "checkerboard", "coupling_log_scale", "coupling_sizes"]

SPLITS = ("half", "even_odd", "checkerboard")
FORMS = ("bounded", "exp", "sigmoid")


def affine_coupling(x: Tensor, shift: Tensor, log_scale: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """The moved half of a coupling and its log-determinant, eqs. (1) and (3).

    Args:
        x: (N, ...) the half that moves.
        shift: (N, ...) t.
        log_scale: (N, ...) log s.
        inverse: whether to undo instead.

    Returns:
        The moved half, shape and dtype of x, and the log-determinant (N,) of the map that was made, float32 or better.

    Raises:
        ValueError: three tensors of different shapes, or without a batch axis.

    >>> y, log_det = affine_coupling(torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1, 2))
    >>> y, log_det
    (tensor([[2., 2.]]), tensor([0.]))
    """
    if x.ndim < 2 or x.shape != shift.shape or x.shape != log_scale.shape:
        raise ValueError(
            f"affine_coupling needs x, shift and log_scale of one shape (N, ...), got {tuple(x.shape)}, "
            f"{tuple(shift.shape)} and {tuple(log_scale.shape)}; does the network give as many channels as move?"
        )
    log_scale, shift, moved = wide(log_scale), wide(shift), wide(x)
    log_det = log_scale.flatten(1).sum(1)  # (N,)
    if inverse:
        return ((moved - shift) * (-log_scale).exp()).to(x.dtype), -log_det  # eq. (3)
    return (moved * log_scale.exp() + shift).to(x.dtype), log_det  # eq. (1)


def coupling_log_scale(raw: Tensor, form: str = "bounded", limit: float = 2.0) -> Tensor:
    """The log of the scale from what the network gave, eqs. (4) to (6).

    Args:
        raw: r, any shape.
        form: "bounded", "exp" or "sigmoid".
        limit: c > 0 of (4).

    Returns:
        log s in the shape of raw, float32 or better.

    Raises:
        ValueError: another form, or a limit that is not a positive finite number.

    >>> coupling_log_scale(torch.tensor([0.0, torch.inf]))
    tensor([0., 2.])
    """
    if form not in FORMS or not 0 < limit < math.inf:
        raise ValueError(f"form must be one of {FORMS} and limit a finite number > 0, got {form!r} and {limit}")
    if form == "bounded":
        return limit * torch.tanh(wide(raw) / limit)  # eq. (4)
    return wide(raw) if form == "exp" else F.logsigmoid(wide(raw) + 2)  # eqs. (5) and (6)


def coupling_sizes(num_channels: int, split: str = "half", swap: bool = False) -> tuple[int, int]:
    """How many channels a coupling's network reads, and how many it moves; it gives twice (additive: once) the latter.

    Args:
        num_channels: C >= 1.
        split: "half", "even_odd" or "checkerboard".
        swap: whether the second part reads.

    Returns:
        The two numbers.

    Raises:
        ValueError: another split, or nothing would move.

    >>> coupling_sizes(5), coupling_sizes(5, swap=True), coupling_sizes(5, "checkerboard")
    ((3, 2), (2, 3), (5, 5))
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if split == "checkerboard":
        return num_channels, num_channels
    if num_channels < 2:
        raise ValueError(
            f"a split of the channels needs at least 2 of them, got {num_channels}; squeeze the image first "
            "(danlu.nn.Squeeze) or take split='checkerboard'"
        )
    first, second = (num_channels + 1) // 2, num_channels // 2
    return (second, first) if swap else (first, second)


def checkerboard(height: int, width: int, swap: bool = False, device: torch.device | None = None) -> Tensor:
    """The pixels that a checkerboard coupling reads: those whose row and column add to an even number.

    Args:
        height: rows.
        width: columns.
        swap: whether it is the odd ones.
        device: of the mask.

    Returns:
        (height, width) bool.

    >>> checkerboard(2, 3)
    tensor([[ True, False,  True],
            [False,  True, False]])
    """
    odd = (torch.arange(height, device=device)[:, None] + torch.arange(width, device=device)) % 2 == 1
    return odd if swap else ~odd


class Coupling(nn.Module):
    """A coupling around a network; `forward` gives (y, log_det (N,)), `inverse` undoes it.

    Args:
        net: reads (N, kept, ...) and gives (N, 2 moved, ...), r before t, or for additive (N, moved, ...); the sizes
            are those of `coupling_sizes`.
        split: "half", "even_odd" or "checkerboard".
        swap: exchange the parts, as every second layer does.
        additive: eq. (2) in place of (1).
        form: of the scale, "bounded", "exp" or "sigmoid".
        limit: c of (4).
    """

    def __init__(
        self,
        net: nn.Module,
        split: str = "half",
        swap: bool = False,
        additive: bool = False,
        form: str = "bounded",
        limit: float = 2.0,
    ) -> None:
        super().__init__()
        coupling_sizes(2, split)  # only the messages
        coupling_log_scale(torch.zeros(()), form, limit)
        self.net = net
        self.split, self.swap, self.additive, self.form, self.limit = split, swap, additive, form, limit

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, C, ...) -> the same, (N,)
        return self._run(x, inverse=False)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x from y, with the log-determinant of this inverse.

        Args:
            y: (N, C, ...).

        Returns:
            (N, C, ...) and (N,).
        """
        return self._run(y, inverse=True)

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if self.split == "checkerboard":
            return self._run_checkerboard(x, inverse)
        kept, moved = self._parts(x)
        log_scale, shift = self._ask(kept, moved.shape)
        moved, log_det = _move(moved, shift, log_scale, inverse)
        return self._join(kept, moved), log_det

    def _run_checkerboard(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if x.ndim != 4:
            raise ValueError(f"a checkerboard needs images (N, C, H, W), got {tuple(x.shape)}; vectors: 'even_odd'")
        keep = checkerboard(x.shape[2], x.shape[3], self.swap, x.device)  # (H, W)
        log_scale, shift = self._ask(x.masked_fill(~keep, 0.0), x.shape)
        if log_scale is not None:
            log_scale = log_scale.masked_fill(keep, 0.0)
        return _move(x, shift.masked_fill(keep, 0.0), log_scale, inverse)

    def _ask(self, kept: Tensor, moved: torch.Size) -> tuple[Tensor | None, Tensor]:
        """log s (None: additive) and t, in the shape of what moves."""
        out = self.net(kept)
        channels = moved[1] if self.additive else 2 * moved[1]
        if out.shape != (moved[0], channels, *moved[2:]):
            raise ValueError(
                f"the network of this coupling must give {(moved[0], channels, *moved[2:])} for "
                f"{tuple(kept.shape)}, got {tuple(out.shape)}; see danlu.nn.coupling_sizes"
            )
        if self.additive:
            return None, wide(out)
        raw, shift = out.chunk(2, dim=1)
        log_scale = coupling_log_scale(raw, self.form, self.limit)
        return log_scale, wide(shift) * log_scale.exp() if self.form == "sigmoid" else wide(shift)  # eq. (6)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        coupling_sizes(x.shape[1])  # only the message
        if self.split == "half":
            first, second = x.split(((x.shape[1] + 1) // 2, x.shape[1] // 2), dim=1)
        else:
            first, second = x[:, ::2], x[:, 1::2]
        kept, moved = (second, first) if self.swap else (first, second)
        return kept, moved

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        x = torch.cat((moved, kept) if self.swap else (kept, moved), dim=1)
        if self.split == "half":
            return x
        order = torch.arange(x.shape[1], device=x.device)
        return x[:, order // 2 + order % 2 * ((x.shape[1] + 1) // 2)]

    def extra_repr(self) -> str:
        kind = "additive" if self.additive else f"form={self.form!r}, limit={self.limit}"
        return f"split={self.split!r}, swap={self.swap}, {kind}"


def _move(x: Tensor, shift: Tensor, log_scale: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    if log_scale is not None:
        return affine_coupling(x, shift, log_scale, inverse)
    y = wide(x) - shift if inverse else wide(x) + shift  # eq. (2)
    return y.to(x.dtype), torch.zeros(len(x), dtype=shift.dtype, device=x.device)
