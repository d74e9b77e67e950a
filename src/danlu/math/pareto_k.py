r"""Pareto k of importance weights: how heavy their tail is, and so whether an average over them can be trusted.

    tail: the n = ceil(min(0.2 M, 3 sqrt(M))) largest of M weights, x_i the excess over the next below          (1)
    density of an excess   (1/s) (1 + k x / s)^{-1/k - 1}                                                       (2)
    b_j = 1/x_max + (1 - sqrt(m / (j - 1/2))) / (3 x_*),   j = 1 .. m,   m = 30 + floor(sqrt(n))                (3)
    k(b) = mean_i log(1 - b x_i),   l(b) = n (log(-b / k(b)) - k(b) - 1)                                        (4)
    b^ = sum_j b_j softmax(l)_j,   k = (n k(b^) + 5) / (n + 10)                                                 (5)

(2) is the generalised Pareto density; weights with tail k have finite moments of order below 1/k: from k = 0.5 on their
variance is infinite, from 0.7 on averages over any affordable number of them are off by more than their error bar says.
b = -k/s; (4) is its profile likelihood, and (5) the mean over the grid (3), x_* being the first quartile of the
excesses: an estimate without iterations. The last step draws k towards 0.5 with the weight of ten excesses.

Ties and zeros: equal excesses count each for itself, weights equal to the one below the tail are no part of it.

Source: Zhang and Stephens, 2009, doi:10.1198/tech.2009.08017 (3)-(5); Vehtari et al., 2015, arXiv:1507.02646 (1), the
    pull towards 0.5 and, from its revision of 2022 on, the limit: JMLR 25(72), 2024, section 3.2.4, eq. (13).
Shapes: ... any, M samples along `dim`.
"""

import math

import torch
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["pareto_k", "pareto_k_limit"]

AT_ONCE = 2**21  # numbers of the table b_j x_i held at a time
FEWEST = 5  # excesses that a tail is fitted to


@torch.no_grad()
def pareto_k(log_weights: Tensor, dim: int = -1) -> Tensor:
    """Pareto k of the largest weights, eq. (5); the scale of the weights does not matter.

    Args:
        log_weights: any shape, M samples along dim; -inf is a weight of 0.
        dim: the dimension of the samples.

    Returns:
        The shape without dim, float32 or better. nan: fewer than 21 samples, or nan, +inf or nothing but zeros among
        them; inf: fewer than 5 weights stand above the rest; -inf: none does (all weights equal up to rounding).

    Raises:
        ValueError: log_weights is not float, or dim is none of its dimensions or is empty.

    >>> pareto_k(torch.zeros(2, 100))
    tensor([-inf, -inf])
    """
    check_log_weights("pareto_k", log_weights, dim)
    x = wide(log_weights).movedim(dim, -1)  # (..., M)
    count = x.shape[-1]
    n = math.ceil(min(0.2 * count, 3 * math.sqrt(count)))  # eq. (1)
    if n < FEWEST:
        return x.new_full(x.shape[:-1], torch.nan)
    rows = x.reshape(-1, count)
    top = rows.topk(n + 1, dim=1).values.flip(1).double()  # (N, n + 1), ascending
    most = top[:, -1:]
    cutoff, tail = top[:, :1], top[:, 1:]
    excess = torch.where(tail > cutoff, -torch.expm1(cutoff - tail) * (tail - most).exp(), 0.0)  # (N, n)
    size = 30 + math.isqrt(n)
    fitted = [_fit(part) for part in excess.split(max(1, AT_ONCE // (size * n)))]
    k = torch.cat(fitted) if len(rows) else excess.new_zeros(0)
    number = (excess > 0).sum(1)
    least = rows.amin(1).double().clamp_min(-1e300)  # a weight of 0 is unlike the others, not far away
    rounding = 16 * torch.finfo(log_weights.dtype).eps * most[:, 0].abs()
    k = torch.where(number < FEWEST, torch.inf, k)
    k = torch.where((number == 0) | (most[:, 0] - least <= rounding), -torch.inf, k)
    k = torch.where(most[:, 0].isfinite(), k, torch.nan)  # topk puts nan first
    return k.to(x.dtype).reshape(x.shape[:-1])


def pareto_k_limit(num_samples: int) -> float:
    """The Pareto k from which on an average over so many weights is not to be trusted: min(1 - 1 / log10 M, 0.7).

    Args:
        num_samples: M >= 1.

    Returns:
        At most 0.7, reached from 2155 samples on; -inf for one.

    Raises:
        ValueError: num_samples < 1.

    >>> pareto_k_limit(100), pareto_k_limit(5000)
    (0.5, 0.7)
    """
    if num_samples < 1:
        raise ValueError(f"pareto_k_limit needs num_samples >= 1, got {num_samples}")
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf  # eq. (13) of Vehtari et al.


def check_log_weights(name: str, log_weights: Tensor, dim: int) -> None:
    """Raise unless there is a sample along dim."""
    shape = tuple(log_weights.shape)
    if not log_weights.is_floating_point() or not -len(shape) <= dim < len(shape) or not shape[dim]:
        raise ValueError(
            f"{name} needs float log weights with at least one sample along dim={dim}; got {log_weights.dtype} {shape}"
        )


def _fit(excess: Tensor) -> Tensor:
    """Eq. (5) for rows (N, n) of ascending excesses that may begin with zeros, which do not count."""
    width = excess.shape[1]
    number = (excess > 0).sum(1, keepdim=True)  # (N, 1), n of eq. (3) to (5)
    n = number.clamp_min(1).to(excess.dtype)
    size = 30 + n.sqrt().floor()  # (N, 1), m
    place = (width - number + (n / 4 + 0.5).floor().long() - 1).clamp(0, width - 1)
    quartile = excess.gather(1, place).clamp_min(1e-300)  # x_*
    j = torch.arange(1, 31 + math.isqrt(width), dtype=excess.dtype, device=excess.device)  # (m of the fullest row,)
    b = 1 / excess[:, -1:].clamp_min(1e-300) + (1 - (size / (j - 0.5)).sqrt()) / (3 * quartile)  # eq. (3)
    k = torch.log1p(-b[:, :, None] * excess[:, None, :]).sum(-1) / n  # (N, m)  eq. (4)
    slope = torch.where(b == 0, n / excess.sum(1, keepdim=True), -b / k)  # 1/s; at b = 0 the exponential's
    fit = torch.where(j <= size, n * (slope.log() - k - 1), -torch.inf)  # eq. (4)
    best = (b * fit.softmax(1)).sum(1, keepdim=True)  # (N, 1)  eq. (5)
    shape = torch.log1p(-best * excess).sum(1) / n[:, 0]
    return (n[:, 0] * shape + 5.0) / (n[:, 0] + 10.0)  # eq. (5)
