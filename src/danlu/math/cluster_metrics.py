r"""How well a clustering agrees with classes: purity, normalised mutual information, adjusted Rand index.

With n_ij items in cluster i and class j, sums a_i and b_j, and N = sum n_ij,

    purity = sum_i max_j n_ij / N                                                                         (1)
    I = sum_ij n_ij / N log(N n_ij / (a_i b_j)),   H(a) = -sum_i a_i / N log(a_i / N)                     (2)
    NMI = I / mean(H(a), H(b)),   the mean arithmetic, geometric, the smaller or the larger               (3)
    ARI = (S - E) / ((A + B) / 2 - E),   S = sum_ij C(n_ij, 2), A = sum_i C(a_i, 2), B likewise,
          E = A B / C(N, 2)                                                                               (4)

Names of clusters do not matter. Purity grows with the number of clusters; (3) and (4) do so less or not at all. Where
(3) or (4) is 0 / 0 both sides are one group, or all items stand alone: the same partition, 1.

Source: Strehl and Ghosh, 2002; Hubert and Arabie, 1985.
Shapes: N items.
"""

import torch
from torch import Tensor

__all__ = ["adjusted_rand_index", "normalized_mutual_information", "purity"]

_AVERAGES = ("arithmetic", "geometric", "min", "max")


def purity(clusters: Tensor, classes: Tensor) -> Tensor:
    """Share of items whose class is the most frequent one of their cluster, eq. (1).

    Args:
        clusters: (N,) whole numbers, N >= 1.
        classes: (N,) whole numbers.

    Returns:
        Scalar float64 in (0, 1].

    Raises:
        ValueError: the two are not lists of whole numbers of one length, or empty.

    >>> purity(torch.tensor([0, 0, 0, 1]), torch.tensor([5, 5, 7, 7]))
    tensor(0.7500, dtype=torch.float64)
    """
    table = _table(clusters, classes)
    return table.amax(1).sum() / table.sum()  # eq. (1)


def normalized_mutual_information(clusters: Tensor, classes: Tensor, average: str = "arithmetic") -> Tensor:
    """Mutual information of clusters and classes as a share of their entropies, eq. (3).

    Args:
        clusters: (N,) whole numbers, N >= 1.
        classes: (N,) whole numbers.
        average: of the entropies: "arithmetic", "geometric", "min" or "max".

    Returns:
        Scalar float64 in [0, 1].

    Raises:
        ValueError: the two are not lists of whole numbers of one length, or empty, or `average` is unknown.

    >>> normalized_mutual_information(torch.tensor([1, 1, 0, 0]), torch.tensor([0, 0, 1, 1]))
    tensor(1., dtype=torch.float64)
    """
    if average not in _AVERAGES:
        raise ValueError(f"average must be one of {', '.join(_AVERAGES)}, got {average!r}")
    p = _table(clusters, classes)
    p = p / p.sum()
    h_a, h_b = (-torch.special.xlogy(q, q).sum() for q in (p.sum(1), p.sum(0)))
    both = -torch.special.xlogy(p, p).sum()
    mean = {
        "arithmetic": (h_a + h_b) / 2,
        "geometric": (h_a * h_b).sqrt(),
        "min": torch.minimum(h_a, h_b),
        "max": torch.maximum(h_a, h_b),
    }[average]
    if p.shape[0] == 1 or p.shape[1] == 1:  # nothing to be known of one group
        return p.new_tensor(1.0 if p.shape[0] == p.shape[1] else 0.0)
    return ((h_a + h_b - both) / mean).clamp(0, 1)  # eq. (2), (3)


def adjusted_rand_index(clusters: Tensor, classes: Tensor) -> Tensor:
    """Agreement on pairs of items, 0 on average where clusters are drawn at random, eq. (4).

    Args:
        clusters: (N,) whole numbers, N >= 1.
        classes: (N,) whole numbers.

    Returns:
        Scalar float64, at most 1, negative for less agreement than chance has.

    Raises:
        ValueError: the two are not lists of whole numbers of one length, or empty.

    >>> adjusted_rand_index(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
    tensor(-0.5000, dtype=torch.float64)
    """
    table = _table(clusters, classes)
    s, a, b = (_pairs(n).sum() for n in (table, table.sum(1), table.sum(0)))
    every = _pairs(table.sum())
    expected = a * b / every.clamp_min(1)
    top = (a + b) / 2
    return torch.where(top == expected, torch.ones_like(s), (s - expected) / (top - expected))  # eq. (4)


def _pairs(n: Tensor) -> Tensor:
    return n * (n - 1) / 2


def _table(clusters: Tensor, classes: Tensor) -> Tensor:
    """n_ij as float64, without empty rows or columns."""
    whole = not (clusters.is_floating_point() or classes.is_floating_point())
    if clusters.ndim != 1 or clusters.shape != classes.shape or not len(clusters) or not whole:
        raise ValueError(
            "clusters and classes must be whole numbers (N,) of one length N >= 1, got "
            f"{tuple(clusters.shape)} {clusters.dtype} and {tuple(classes.shape)} {classes.dtype}"
        )
    i, j = (x.unique(return_inverse=True)[1] for x in (clusters, classes))
    rows, columns = int(i.max()) + 1, int(j.max()) + 1
    return torch.bincount(i * columns + j, minlength=rows * columns).reshape(rows, columns).double()
