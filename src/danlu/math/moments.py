r"""Mean and covariance of vectors that arrive in pieces, sound where the mean is large beside the spread.

    n,   mu = sum_i x_i / n,   M = sum_i (x_i - mu)(x_i - mu)^T,   covariance = M / n                         (1)
    a piece     z_i = x_i - c,   mu = c + zbar,   M = sum_i z_i z_i^T - n zbar zbar^T                         (2)
    two parts   g = mu_b - mu_a,   mu = mu_a + (n_b / n) g,   M = M_a + M_b + (n_a n_b / n) g g^T             (3)
    any parts   mu = sum_p n_p mu_p / n,   M = sum_p M_p + n_p (mu_p - mu)(mu_p - mu)^T                       (4)

c is the mean of the piece as its own dtype holds it: x - c loses nothing there, zbar is rounding, and nothing large is
subtracted from anything large. The recursion of the post, Sigma + mu^T mu less the new mu^T mu, is the same on paper
and in float32 worthless once the mean is a hundred times the spread. Means, M and all sums over pieces are float64. The
products z z^T of float32 vectors are float32 (relative error about 1e-7 of the two features' own variances); for
directions whose variance is below 1e-6 of the largest, products=torch.float64 costs about twice the time. Pieces whose
squares leave the range of float32 are computed in float64. (3) is associative up to rounding, so streams, files and
processes may be cut and merged in any way.

Source: Chan, Golub and LeVeque, 1983, doi:10.1080/00031305.1983.10483115, (3); kexue.fm/archives/8069, the recursion.
Shapes: N vectors, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Moments", "all_reduce_moments", "merge_moments", "moments"]

PIECE = 2**23  # numbers of a piece, 32 MiB in float32
STRIP = 192  # columns of the lower triangle that are multiplied at a time
SMALLEST = 1e-30  # mean square below which products in float32 lose digits or vanish


class Moments(NamedTuple):
    """Number, mean and scatter matrix of vectors, eq. (1).

    count: N. mean: (D,) float64. scatter: (D, D) float64, M, symmetric. products: float32 where any product was rounded
    to it, else float64.
    """

    count: int  # type: ignore[assignment]  # of vectors; hides tuple.count, which nobody asks here
    mean: Tensor
    scatter: Tensor
    products: torch.dtype = torch.float64

    @property
    def covariance(self) -> Tensor:
        """(D, D) float64 with divisor N, eq. (1); zeros of no vectors."""
        return self.scatter / max(self.count, 1)


@torch.no_grad()
def moments(x: Tensor, products: torch.dtype | None = None) -> Moments:
    """Number, mean and scatter of some vectors, eq. (2) piece by piece.

    Args:
        x: (N, D) real, any dtype and strides; N may be 0.
        products: dtype of the products z z^T, torch.float32 or torch.float64; None takes float32 for floats of up to 32
            bits, unless torch.set_float32_matmul_precision lets it be less than that, and float64 for all others. With
            float64 everything is.

    Returns:
        The Moments, on the device of x and without a graph.

    Raises:
        ValueError: x is not (N, D) with D >= 1 and real, holds nan or an infinity (the first is named), or numbers
            whose squares overflow float64; products is another dtype.

    >>> m = moments(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    >>> m.count, m.mean, m.covariance[0]
    (2, tensor([2., 0.], dtype=torch.float64), tensor([1., 0.], dtype=torch.float64))
    """
    if x.ndim != 2 or not x.shape[1] or x.is_complex():
        raise ValueError(f"moments needs real vectors (N, D), D >= 1; got {x.dtype} {tuple(x.shape)}; one is x[None]")
    if products not in (None, torch.float32, torch.float64):
        raise ValueError(f"products must be torch.float32, torch.float64 or None, got {products}")
    wide = torch.float32 if x.is_floating_point() and x.dtype != torch.float64 else torch.float64
    if products is None:
        products = wide if torch.get_float32_matmul_precision() == "highest" else torch.float64
    wide = torch.promote_types(wide, products)
    dim, device = x.shape[1], x.device
    count, mean = 0, torch.zeros(dim, dtype=torch.float64, device=device)
    scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)  # only the lower triangle, until the end
    for piece in x.split(max(256, PIECE // dim)) if len(x) else ():
        n = len(piece)
        center, rest, gram = _piece(piece, wide, products, count)
        gap = center + rest - mean
        scatter += gram
        scatter.addr_(rest, rest, alpha=-n)  # eq. (2)
        scatter.addr_(gap, gap, alpha=count * (n / (count + n)))  # eq. (3)
        mean += gap * (n / (count + n))  # eq. (3)
        count += n
    scatter = scatter.tril() + scatter.tril(-1).mT
    return Moments(count, mean, scatter, products)


@torch.no_grad()
def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of the vectors of both, eq. (3).

    Args:
        a: of some vectors, or of none.
        b: of others, as many features.

    Returns:
        New Moments; with no vectors on one side the other one as it is.

    Raises:
        ValueError: the numbers of features differ.

    >>> x = torch.tensor([[1.0], [3.0], [8.0]])
    >>> merge_moments(moments(x[:2]), moments(x[2:])).covariance  # mean 4: (9 + 1 + 16) / 3
    tensor([[8.6667]], dtype=torch.float64)
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"merge_moments needs vectors of one kind; got {len(a.mean)} and {len(b.mean)} features: both parts must "
            "come from the same encoder and pooling"
        )
    if not a.count or not b.count:
        return a if a.count else b
    count = a.count + b.count
    gap = b.mean - a.mean
    scatter = a.scatter + b.scatter + a.count * (b.count / count) * torch.outer(gap, gap)  # eq. (3)
    return Moments(count, a.mean + gap * (b.count / count), scatter, _coarser(a.products, b.products))


@torch.no_grad()
def all_reduce_moments(own: Moments, group: torch.distributed.ProcessGroup | None = None) -> Moments:
    """The moments of the vectors of all processes, eq. (4), the same on each.

    Args:
        own: of this process's vectors, or of none: `moments(x[:0])`.
        group: of torch.distributed; None: all processes.

    Returns:
        New Moments.

    Raises:
        ValueError: torch.distributed is not initialised.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        raise ValueError(
            "all_reduce_moments needs torch.distributed.init_process_group first; within one process use merge_moments"
        )
    coarse = float(own.products == torch.float32 and own.count > 0)
    head = torch.cat([own.mean.new_tensor([own.count, coarse]), own.count * own.mean])  # (2 + D,)
    torch.distributed.all_reduce(head, group=group)
    count = round(head[0].item())
    mean = head[2:] / max(count, 1)  # eq. (4)
    gap = own.mean - mean
    scatter = own.scatter + own.count * torch.outer(gap, gap)
    torch.distributed.all_reduce(scatter, group=group)  # eq. (4)
    return Moments(count, mean, scatter, torch.float32 if head[1].item() else torch.float64)


def _piece(x: Tensor, wide: torch.dtype, products: torch.dtype, before: int) -> tuple[Tensor, Tensor, Tensor]:
    """c and zbar (D,) float64 and the lower triangle of sum z z^T (D, D) of eq. (2); `before` rows came earlier."""
    wide_x = x.to(wide)
    center = wide_x.mean(0)  # (D,)
    z = wide_x - center  # (n, D)
    rest = z.sum(0).double() / len(z)  # (D,)
    gram = _lower_gram(z.to(products))
    square = gram.diagonal()
    if not bool(square.isfinite().all() & rest.isfinite().all()):
        bad = (~x.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise ValueError(
                f"moments needs finite vectors; vector {before + row} holds {x[row, column].item()} at feature {column}"
                "; leave such vectors out, and look for what made them"
            )
        if wide == products == torch.float64:
            raise ValueError("moments cannot square these numbers, they overflow float64; divide the vectors first")
        return _piece(x, torch.float64, torch.float64, before)
    weak = square <= SMALLEST * len(z)
    if products == torch.float32 and bool(weak.any()) and bool(z[:, weak].any()):
        return _piece(x, torch.float64, torch.float64, before)
    return center.double(), rest, gram


def _lower_gram(z: Tensor) -> Tensor:
    """z^T z (D, D), its upper triangle unspecified: strips of the lower one need little more than half the products."""
    dim = z.shape[1]
    with torch.autocast(z.device.type, enabled=False):
        if dim <= STRIP:
            return z.mT @ z
        out = z.new_zeros(dim, dim)
        for i in range(0, dim, STRIP):
            j = min(i + STRIP, dim)
            torch.mm(z[:, i:j].mT, z[:, :j], out=out[i:j, :j])
        return out


def _coarser(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    return torch.float32 if torch.float32 in (a, b) else torch.float64
