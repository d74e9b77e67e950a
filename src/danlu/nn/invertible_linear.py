r"""Invertible linear maps of the channels by their LU factors: Glow's 1x1 convolution, and a dense layer for vectors.

    y = W x at every position,   W = P L (U + diag(sgn * exp(l)))                                             (1)
    log|det dy/dx| = positions * sum_c l_c                                                                    (2)
    x = (U + diag)^-1 L^-1 P^T y,   two triangular solves                                                     (3)
    l = c tanh(r / c)                                                                                         (4)

P is a permutation and sgn a sign, both fixed; L is unit lower triangular, U strictly upper. They start as the factors
of a random rotation, whose log-determinant is 0. (2) costs C where the determinant of a free W costs C^3, and a W of
this form can never become singular; it can still come close, and (4) bounds how close: every pivot stays in
[e^-c, e^c] (None: l = r, as in the source). W is never inverted: (3) solves in float32 or better, also under autocast.

The name 1x1 convolution hides what it is: one dense layer shared by all positions, of use outside images too. A lower
loss than that of a fixed shuffle does not mean better samples at the same number of epochs (the post's experience).

Source: Kingma and Dhariwal, 2018, arXiv:1807.03039; kexue.fm/archives/5807; (4) is ours.
Shapes: N batch, C channels, ... any trailing axes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math.precision import wide
from danlu.nn.invertible import channel_log_det

__all__ = ["InvertibleLinear", "channel_linear", "channel_solve", "random_rotation"]


def channel_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + b at every position, as one matrix product in float32 or better.

    Args:
        x: (N, C, ...); channels_last images are read and written without a copy.
        weight: (K, C).
        bias: (K,) or None.

    Returns:
        (N, K, ...) in the dtype of x.

    >>> channel_linear(torch.ones(1, 2), torch.tensor([[0.0, 2.0]]))
    tensor([[2.]])
    """
    with torch.autocast(x.device.type, enabled=False):
        y = F.linear(wide(x).movedim(1, -1), wide(weight), None if bias is None else wide(bias))  # eq. (1)
    return y.movedim(-1, 1).to(x.dtype)


def channel_solve(y: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """(L U)^-1 y at every position by two triangular solves, eq. (3) without the permutation.

    Args:
        y: (N, C, ...).
        lower: (C, C), whose part below the diagonal is L's; the rest is not read.
        upper: (C, C), of which the part below the diagonal is not read.

    Returns:
        (N, C, ...) in the dtype of y.

    >>> channel_solve(torch.tensor([[2.0, 3.0]]), torch.zeros(2, 2), torch.eye(2) * 2)
    tensor([[1.0000, 1.5000]])
    """
    with torch.autocast(y.device.type, enabled=False):
        rows = wide(y).movedim(1, -1)  # (N, ..., C)
        flat = rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])  # (N P, C): x U^T L^T = y
        flat = torch.linalg.solve_triangular(wide(lower).mT, flat, upper=True, left=False, unitriangular=True)
        flat = torch.linalg.solve_triangular(wide(upper).mT, flat, upper=False, left=False)
    return flat.reshape(rows.shape).movedim(-1, 1).to(y.dtype)


def random_rotation(size: int, generator: torch.Generator | None = None) -> Tensor:
    """A random orthogonal matrix, uniformly distributed.

    Args:
        size: C.
        generator: source of the draws.

    Returns:
        (C, C) float64, on the generator's device.

    >>> w = random_rotation(3)
    >>> bool(torch.allclose(w @ w.mT, torch.eye(3, dtype=w.dtype)))
    True
    """
    device = generator.device if generator else None
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator, device=device))
    return q * r.diagonal().sign()  # without the signs the distribution is not uniform


class InvertibleLinear(nn.Module):
    """Eqs. (1) to (4); `forward` gives (y, log_det (N,)), `inverse` undoes it.

    Args:
        num_channels: C.
        limit: c of (4); None for no bound.
        generator: source of the rotation it starts from.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, num_channels: int, limit: float | None = 5.0, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if num_channels < 1 or (limit is not None and not 0 < limit < math.inf):
            raise ValueError(f"num_channels must be >= 1 and limit > 0 or None, got {num_channels} and {limit}")
        self.limit = limit
        p, lower, upper = torch.linalg.lu(random_rotation(num_channels, generator))
        pivots = upper.diagonal()
        log_scale = pivots.abs().log()
        if limit is not None:  # the inverse of (4); a pivot beyond the limit starts just inside
            log_scale = limit * torch.atanh((log_scale / limit).clamp(-0.99, 0.99))
        dtype = torch.get_default_dtype()
        self.lower = nn.Parameter(lower.tril(-1).to(dtype))
        self.upper = nn.Parameter(upper.triu(1).to(dtype))
        self.raw_log_scale = nn.Parameter(log_scale.to(dtype))
        self.register_buffer("sign", pivots.sign().to(dtype))
        self.register_buffer("permutation", p.argmax(1))  # row i of P has its 1 there

    def log_scale(self) -> Tensor:
        """l of eq. (4).

        Returns:
            (C,) float32 or better.
        """
        raw = wide(self.raw_log_scale)
        return raw if self.limit is None else self.limit * torch.tanh(raw / self.limit)  # eq. (4)

    def upper_factor(self) -> Tensor:
        """U + diag(sgn * exp(l)) of eq. (1).

        Returns:
            (C, C) float32 or better.
        """
        return wide(self.upper).triu(1) + torch.diag(wide(self.sign) * self.log_scale().exp())

    def weight(self) -> Tensor:
        """W of eq. (1).

        Returns:
            (C, C) float32 or better.
        """
        lower = wide(self.lower).tril(-1)
        with torch.autocast(lower.device.type, enabled=False):
            upper = self.upper_factor()
            return (upper + lower @ upper)[self.permutation]  # L is lower + 1  eq. (1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, C, ...) -> the same, (N,)
        self._check(x)
        return channel_linear(x, self.weight()), channel_log_det(x, self.log_scale())  # eq. (2)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x from y, eq. (3), with the log-determinant of this inverse.

        Args:
            y: (N, C, ...).

        Returns:
            (N, C, ...) and (N,).
        """
        self._check(y)
        x = channel_solve(y[:, self.permutation.argsort()], self.lower, self.upper_factor())  # eq. (3)
        return x, -channel_log_det(y, self.log_scale())

    def _check(self, x: Tensor) -> None:
        if x.ndim < 2 or x.shape[1] != len(self.sign):
            raise ValueError(f"this layer mixes {len(self.sign)} channels and takes (N, C, ...), got {tuple(x.shape)}")
