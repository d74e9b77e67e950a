r"""Mode coverage: which of the known modes of a distribution a sampler reaches, and in what proportion.

    mode of x    the nearest one;  x is good if it lies within the radius                                  (1)
    h_k = n_k / sum n,   n_k good samples of mode k                                                        (2)
    KL(h || w) = sum_k h_k log(h_k / w_k),   w the true shares of the modes                                (3)
    floor        (K - 1) / (2 n)                                                                           (4)

A mode counts as hit by `least` good samples. (3) is the reverse KL of a mode histogram: what the model invents weighs,
modes it misses cost no more than log K in all, so it is read beside the number of modes hit. (4) is what (3) comes to
on average for a perfect sampler, n good samples over K modes: no sampler can be told from perfect below it. Of a
Gaussian mode with deviation s the usual radius is 3 s: in 2 dimensions 98.9 % of its samples are good.

Source: own definitions; the numbers are those of the literature on mode collapse since Metz et al., 2016,
arXiv:1611.02163, which counts modes and takes the KL.
Shapes: N samples, K modes, D dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["ModeCoverage", "mode_coverage"]

AT_ONCE = 2**22  # distances held at a time


@dataclass(frozen=True)
class ModeCoverage:
    """counts (K,) int64 of good samples, number of modes hit, share of good samples, KL (3) in nats and floor (4)."""

    counts: Tensor
    hit: int
    good: float
    kl: float
    floor: float


@torch.no_grad()
def mode_coverage(
    samples: Tensor, modes: Tensor, radius: float, weights: Tensor | None = None, least: int = 1
) -> ModeCoverage:
    """How a sample falls on known modes, eqs. (1) to (4).

    Args:
        samples: (N, D), any float dtype, N >= 1; one that is not finite is not good.
        modes: (K, D), their places.
        radius: > 0, of eq. (1), Euclidean.
        weights: (K,) true shares of the modes, > 0, of any sum; None for equal ones.
        least: good samples that make a mode hit, >= 1.

    Returns:
        The record; without a good sample kl and floor are inf.

    Raises:
        ValueError: shapes that do not fit, no sample or mode, a radius, weights or `least` out of range.

    >>> x = torch.tensor([[0.0], [0.1], [5.0], [1.0]])
    >>> found = mode_coverage(x, torch.tensor([[0.0], [1.0]]), radius=0.5)  # 5 is near neither
    >>> found.counts.tolist(), found.hit, found.good
    ([2, 1], 2, 0.75)
    """
    if (
        samples.ndim != 2
        or modes.ndim != 2
        or samples.shape[1:] != modes.shape[1:]
        or not (len(samples) and len(modes))
    ):
        raise ValueError(
            f"mode_coverage needs samples (N, D) and modes (K, D) with N, K >= 1; got {tuple(samples.shape)} and "
            f"{tuple(modes.shape)}"
        )
    if not (radius > 0 and least >= 1):
        raise ValueError(f"mode_coverage needs radius > 0 and least >= 1, got {radius} and {least}")
    if weights is not None and (weights.shape != modes.shape[:1] or not bool((weights > 0).all())):
        raise ValueError(
            f"weights must be {len(modes)} numbers > 0, one a mode, got {weights.tolist()}; leave out modes without "
            "a share"
        )
    count = len(modes)
    places = wide(modes).double()
    counts = torch.zeros(count, dtype=torch.long, device=samples.device)
    for part in wide(samples).double().split(max(1, AT_ONCE // (count * max(1, modes.shape[1])))):
        distance, mode = (part[:, None] - places).square().sum(2).nan_to_num(torch.inf, torch.inf).min(1)  # eq. (1)
        counts += mode[(distance <= radius**2) & distance.isfinite()].bincount(minlength=count)
    good = int(counts.sum())
    share = torch.ones(count) if weights is None else wide(weights)
    log_true = (share.double() / share.double().sum()).log().to(counts.device)
    kl = floor = torch.inf
    if good:
        h = counts.double() / good  # eq. (2)
        kl = max(0.0, float((torch.special.xlogy(h, h) - h * log_true).sum()))  # eq. (3)
        floor = (count - 1) / (2 * good)  # eq. (4)
    return ModeCoverage(counts, int((counts >= least).sum()), good / len(samples), kl, floor)
