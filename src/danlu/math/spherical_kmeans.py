r"""k-means on the unit sphere: clusters of directions.

For rows x_i of length 1 (scaled here) and k centres of length 1,

    maximise sum_i max_c x_i.m_c                                                                          (1)
    assign c_i = argmax_c x_i.m_c,   then   m_c = s_c / |s_c|,   s_c = sum_{i: c_i = c} x_i               (2)

until no item changes its cluster; no step makes (1) smaller. The first centres are rows, each drawn with a probability
proportional to 1 - max_c x_i.m_c, half its squared distance to the nearest centre so far. A cluster that loses all its
items takes the item that fits its own worst. The best of several starts is returned.

Source: Dhillon and Modha, 2001; the first centres are those of k-means++ (Arthur and Vassilvitskii, 2007).
Shapes: N items, D features, K clusters.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["SphericalClusters", "spherical_kmeans"]


class SphericalClusters(NamedTuple):
    """labels (N,) int64, centres (K, D) of length 1, and the mean cosine of an item to its centre."""

    labels: Tensor
    centres: Tensor
    cohesion: Tensor


def spherical_kmeans(
    x: Tensor, k: int, starts: int = 4, max_steps: int = 100, generator: torch.Generator | None = None
) -> SphericalClusters:
    """Clusters of directions, eq. (1) and (2).

    Args:
        x: (N, D) any float dtype, no row zero.
        k: clusters, 1 <= k <= N.
        starts: attempts, of which the best counts.
        max_steps: assignments in an attempt at most.
        generator: of the first centres; None takes torch's global one.

    Returns:
        SphericalClusters in float32 or better; every cluster has an item where there are k different rows.

    Raises:
        ValueError: x is not (N, D), holds a zero row or a number that is not finite, or k, starts or max_steps is out
            of range.

    >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 3.0]])
    >>> labels = spherical_kmeans(x, 2, generator=torch.Generator().manual_seed(0)).labels
    >>> bool(labels[0] == labels[1] != labels[2] == labels[3])
    True
    """
    if x.ndim != 2 or not 1 <= k <= len(x) or starts < 1 or max_steps < 1:
        raise ValueError(
            f"spherical_kmeans needs x (N, D), 1 <= k <= N, starts >= 1 and max_steps >= 1; got {tuple(x.shape)}, "
            f"k={k}, starts={starts}, max_steps={max_steps}"
        )
    x = wide(x)
    top = x.abs().amax(1, keepdim=True) if x.shape[1] else x.new_zeros(len(x), 1)
    if not bool(torch.isfinite(top).all()) or bool((top == 0).any()):
        row = int((~torch.isfinite(top) | (top == 0)).flatten().nonzero()[0])
        raise ValueError(f"every row needs a direction, but row {row} is zero or not finite; leave it out")
    x = F.normalize(x / top, dim=1)
    found = [_attempt(x, k, max_steps, generator) for _ in range(starts)]
    return max(found, key=lambda f: float(f.cohesion))


def _attempt(x: Tensor, k: int, max_steps: int, generator: torch.Generator | None) -> SphericalClusters:
    centres = _first_centres(x, k, generator)
    labels = torch.full((len(x),), -1, device=x.device)
    best = x.new_zeros(len(x))
    for _ in range(max_steps):
        before = labels
        best, labels = (x @ centres.T).max(1)  # eq. (2)
        labels, best = _fill_empty(labels, best, k)
        if torch.equal(labels, before):
            break
        sums = x.new_zeros(k, x.shape[1]).index_add_(0, labels, x)
        size = sums.norm(dim=1, keepdim=True)
        centres = torch.where(size > 1e-12, sums / size, centres)  # opposite items have no mean direction
    return SphericalClusters(labels, centres, (x * centres[labels]).sum(1).mean())


def _first_centres(x: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    device = x.device if generator is None else generator.device
    first = int(torch.randint(len(x), (1,), generator=generator, device=device))
    rows = [first]
    far = 1 - x @ x[first]
    for _ in range(k - 1):
        weight = far.clamp_min(0).double()
        weight[rows] = 0
        if not bool(weight.sum() > 1e-12):  # fewer different rows than centres
            weight = torch.ones_like(weight)
            weight[rows] = 0
        ends = weight.cumsum(0)
        at = torch.rand(1, generator=generator, device=device, dtype=torch.float64).to(x.device) * ends[-1]
        rows.append(min(int(torch.searchsorted(ends, at, right=True)), len(x) - 1))
        far = torch.minimum(far, 1 - x @ x[rows[-1]])
    return x[rows]


def _fill_empty(labels: Tensor, best: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Give every cluster without an item the worst fitting one of a cluster that has several."""
    sizes = torch.bincount(labels, minlength=k)
    for empty in (sizes == 0).nonzero().flatten().tolist():
        fit = best.masked_fill(sizes[labels] < 2, torch.inf)
        worst = int(fit.argmin())
        sizes[labels[worst]] -= 1
        labels[worst], best[worst], sizes[empty] = empty, torch.inf, 1
    return labels, best
