r"""Precision, recall, density and coverage: how two sets of features fill each other's neighbourhoods.

    R_i = distance of x_i to its k-th nearest among the other real ones;   B(x_i) the closed ball of that radius  (1)
    precision = share of the y_j in some B(x_i),    recall = share of the x_i in some B(y_j)                      (2)
    density = 1 / (k M) sum_j #{i: y_j in B(x_i)},   coverage = share of the x_i with some y_j in B(x_i)          (3)
    same law:   E density = 1,    E coverage = 1 - prod_{l=1..k} (N - l) / (N + M - l)                            (4)

x are real and y generated. Precision falls with noise, recall with modes that are missing; either is generous to a set
whose balls are large, so that one outlier among the real ones vouches for much: density counts balls instead, and
coverage takes the real ones' balls, which the generator cannot widen. (4) is exact for every law without ties, since
the k nearest of N + M - 1 exchangeable points are all real by chance with that probability, and the mean number of y in
a ball is k M / N. Precision and recall have no such number: compare with two halves of the real set.

Every distance is of float64; two vectors whose distance equals a radius but for rounding count as inside. Only a strip
of the N x M distances is held at a time. A vector is not its own neighbour, but a copy of it is.

Source: Kynkaanniemi et al., 2019, arXiv:1904.06991 (2), k = 3 there; Naeem et al., 2020, arXiv:2002.09797 (3) and (4),
k = 5 there.
Shapes: N real, M generated vectors of D features.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from danlu.math.feature_sets import feature_pair
from danlu.math.gaussian_support import shared_dtype

__all__ = ["DensityCoverage", "PrecisionRecall", "density_coverage", "expected_coverage", "precision_recall"]

AT_ONCE = 2**22  # distances held at a time


class PrecisionRecall(NamedTuple):
    """Two shares, and what they are the means of: fake_inside (M,) and real_inside (N,), bool."""

    precision: Tensor
    recall: Tensor
    fake_inside: Tensor
    real_inside: Tensor


class DensityCoverage(NamedTuple):
    """Density and coverage, and what they are means of: num_balls (M,) int64 around each fake, covered (N,) bool."""

    density: Tensor
    coverage: Tensor
    num_balls: Tensor
    covered: Tensor


@torch.no_grad()
def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> PrecisionRecall:
    """Which share of either set lies among the other, eq. (2).

    Args:
        real: (N, D), any float dtype, N > k.
        fake: (M, D), M > k; as many as real ones, or the two shares do not compare.
        k: neighbours, >= 1.

    Returns:
        The record; shares in float32 or better, without a graph.

    Raises:
        ValueError: too few vectors, different numbers of features, or features that are not finite.

    >>> x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.5], [9.0]])
    >>> found = precision_recall(x, y, k=1)  # 9 is far from all; the balls of y reach 8.5 around
    >>> found.precision, found.recall
    (tensor(0.5000), tensor(1.))
    """
    x, y = _frame("precision_recall", real, fake, k, k + 1)
    radius_x, radius_y = _radii(x, k), _radii(y, k)
    fake_inside, real_inside = [], torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for rows, distance, slack in _strips(y, x):
        fake_inside.append((distance <= radius_x + slack).any(1))
        real_inside |= (distance <= radius_y[rows, None] + slack).any(0)
    inside, dtype = torch.cat(fake_inside), shared_dtype(real, fake)
    return PrecisionRecall(inside.to(dtype).mean(), real_inside.to(dtype).mean(), inside, real_inside)  # eq. (2)


@torch.no_grad()
def density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> DensityCoverage:
    """How densely the generated ones lie among the real ones, and how many of these they reach, eq. (3).

    Args:
        real: (N, D), any float dtype, N > k.
        fake: (M, D), M >= 1.
        k: neighbours, >= 1.

    Returns:
        The record; density >= 0 and coverage in [0, 1], float32 or better, without a graph.

    Raises:
        ValueError: too few vectors, different numbers of features, or features that are not finite.

    >>> x, y = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [9.0]])
    >>> found = density_coverage(x, y, k=1)  # 0.5 lies in the balls of 0 and 1, not in 3's of radius 2
    >>> found.density, found.coverage
    (tensor(1.), tensor(0.6667))
    """
    x, y = _frame("density_coverage", real, fake, k, 1)
    radius = _radii(x, k)
    counts, covered = [], torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _, distance, slack in _strips(y, x):
        inside = distance <= radius + slack
        counts.append(inside.sum(1))
        covered |= inside.any(0)
    balls, dtype = torch.cat(counts), shared_dtype(real, fake)
    density = balls.sum().double() / (k * len(y))  # eq. (3)
    return DensityCoverage(density.to(dtype), covered.to(dtype).mean(), balls, covered)


def expected_coverage(n: int, m: int, k: int = 5) -> float:
    """The coverage of a perfect generator on average, eq. (4); no more can be asked for.

    Args:
        n: real vectors, > k.
        m: generated ones, >= 1.
        k: neighbours, >= 1.

    Returns:
        A number in (0, 1).

    Raises:
        ValueError: numbers out of range.

    >>> expected_coverage(3, 2, k=1)  # the nearest of 4 others is real in 2 of 4 cases
    0.5
    """
    if k < 1 or n <= k or m < 1:
        raise ValueError(f"expected_coverage needs k >= 1, n > k and m >= 1; got n={n}, m={m} and k={k}")
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (n - i) / (n + m - i)
    return 1.0 - missed  # eq. (4)


def _frame(name: str, real: Tensor, fake: Tensor, k: int, least_fake: int) -> tuple[Tensor, Tensor]:
    """Both sets with the real mean at 0 and the largest number 1: all of (1) to (3) stays, and squares keep digits."""
    if k < 1:
        raise ValueError(f"{name} needs k >= 1 neighbours, got {k}")
    x, y = feature_pair(name, real, fake, k + 1, least_fake)
    center = x.mean(0)
    x, y = x - center, y - center
    scale = torch.maximum(x.abs().amax(), y.abs().amax())
    scale = torch.where(scale > 0, scale, 1.0)
    return x / scale, y / scale


def _strips(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Strip by strip: which rows of a, their squared distances (n, len(b)) to b, and how much of these is rounding."""
    eps, square_b = torch.finfo(a.dtype).eps, b.square().sum(1)
    start = 0
    for part in a.split(max(1, AT_ONCE // len(b))):
        size = part.square().sum(1)[:, None] + square_b
        yield (
            slice(start, start + len(part)),
            (size - 2 * part @ b.mT).clamp_min(0.0),
            4 * (a.shape[1] + 4) * eps * size,
        )
        start += len(part)


def _radii(x: Tensor, k: int) -> Tensor:
    """Squared radii of eq. (1), (N,)."""
    places, found = torch.arange(len(x), device=x.device), []
    for rows, distance, _ in _strips(x, x):
        others = distance.masked_fill(places[rows, None] == places, torch.inf)
        found.append(others.topk(k, dim=1, largest=False).values[:, -1])
    return torch.cat(found)
