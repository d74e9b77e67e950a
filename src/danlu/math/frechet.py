r"""The Frechet distance of two sets of features, what it comes to by chance, and its value without that.

    d = |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr (S_x^1/2 S_y S_x^1/2)^1/2                                       (1)
    E d(n, m) = d + c_x / n + c_y / m + O(n^-2)                                                                (2)
    same law, Gaussian:   E d(n, m) = (1/n + 1/m) tr S
                                      + 1/2 (1/(n-1) + 1/(m-1)) sum_ij (1 + [i = j]) l_i l_j / (l_i + l_j)     (3)
    d = d(n, m) - (mean_g d_-g - d(n, m)) / (r - 1),   r = mean_g of n / n_-g                                  (4)
    se^2 = (G - 1) / G sum_g (d_-g - mean d_-g)^2                                                              (5)

(1) is the squared Wasserstein-2 distance of the Gaussians with the sets' means and covariances (divisor n - 1); it sees
nothing of the sets but these. Samples never fit each other: (3), l the eigenvalues of S, is what two samples of one
Gaussian show, about (1/n + 1/m) D (D + 5) / 4 where all l are 1. The first term of (3) holds for every law; the second
comes from expanding (1) around S to second order with the variances of a Wishart matrix, and is right to order 1/n for
Gaussian features and n well above D. No number of (1) means anything beside another one unless n and m are the same.

(4) takes (2) at its word: a line in 1/n through the distance of all features and the mean of the distances without one
of G groups each, read off at 1/n = 0. That is the jackknife, and (5) its standard error. What is left of the bias is
of order n^-2. Near d = 0 the result may be negative.

Source: Heusel et al., 2017, arXiv:1706.08500 (1); Chong and Forsyth, 2020, arXiv:1911.07023, (2) and extrapolation (on
subsets of many sizes there); (3) is our derivation.
Shapes: n, m vectors of D features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from danlu.math.covariance import checked_covariance
from danlu.math.feature_sets import checked_features
from danlu.math.gaussian_support import shared_dtype
from danlu.math.gaussian_wasserstein import gaussian_wasserstein
from danlu.math.moments import Moments, merge_moments, moments

__all__ = ["FrechetEstimate", "frechet_distance", "frechet_estimate", "frechet_floor"]


class FrechetEstimate(NamedTuple):
    """The distance (1), its value for endless samples (4), and the standard error (5) of either; scalars, no graph."""

    value: Tensor
    limit: Tensor
    standard_error: Tensor


def frechet_distance(real: Tensor | Moments, fake: Tensor | Moments) -> Tensor:
    """The Frechet distance of two sets of features, eq. (1), differentiable once with respect to the features.

    Args:
        real: (N, D), any float dtype, N >= 2, N <= D included; or the Moments of a stream of vectors.
        fake: (M, D), M >= 2; or Moments.

    Returns:
        Scalar >= 0 in squared units of the features, float32 or better; float64 from Moments.

    Raises:
        ValueError: fewer than two vectors, different numbers of features, or features that are not finite.

    >>> frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [7.0]]))  # shifted by 5
    tensor(25.)
    """
    mean_x, cov_x, dtype_x = _gaussian("real", real)
    mean_y, cov_y, dtype_y = _gaussian("fake", fake)
    if len(mean_x) != len(mean_y):
        raise ValueError(
            f"frechet_distance compares features of one network; got {len(mean_x)} features in real and {len(mean_y)} "
            "in fake"
        )
    distance = gaussian_wasserstein(mean_x, cov_x, mean_y, cov_y)  # eq. (1)
    return distance.to(torch.promote_types(dtype_x, dtype_y))


@torch.no_grad()
def frechet_floor(covariance: Tensor, n: int, m: int) -> Tensor:
    """What eq. (1) shows on average between two samples of one Gaussian, eq. (3).

    Args:
        covariance: (D, D) symmetric, of the features, any float dtype; may be singular.
        n: vectors of one sample, >= 2.
        m: vectors of the other, >= 2.

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: not a covariance, or fewer than two vectors.

    >>> frechet_floor(torch.ones(1, 1), 101, 101)  # 2/101 + 1/100
    tensor(0.0298)
    """
    if covariance.ndim != 2 or n < 2 or m < 2:
        raise ValueError(
            f"frechet_floor needs a covariance (D, D) and samples of 2 or more; got {tuple(covariance.shape)}, n={n} "
            f"and m={m}"
        )
    eigenvalues = torch.linalg.eigvalsh(checked_covariance("covariance", covariance, torch.float64)).clamp_min(0.0)
    total = eigenvalues[:, None] + eigenvalues  # (D, D)
    pairs = eigenvalues[:, None] * eigenvalues / torch.where(total > 0, total, 1.0)
    spread = (pairs.sum() + pairs.diagonal().sum()) / 2
    floor = (1 / n + 1 / m) * eigenvalues.sum() + (1 / (n - 1) + 1 / (m - 1)) * spread  # eq. (3)
    return floor.to(shared_dtype(covariance))


@torch.no_grad()
def frechet_estimate(
    real: Tensor, fake: Tensor, groups: int = 20, generator: torch.Generator | None = None
) -> FrechetEstimate:
    """The Frechet distance with its bias taken off and its standard error, eqs. (4) and (5).

    Args:
        real: (N, D), any float dtype; rows must be independent of each other.
        fake: (M, D).
        groups: G >= 2, into which either set is parted by chance.
        generator: for that parting, on the CPU.

    Returns:
        The estimate, float32 or better.

    Raises:
        ValueError: fewer than two groups or too few vectors: without one group D + 2 must be left, for the bias is no
            line in 1/n below; or what `frechet_distance` refuses.

    >>> x = torch.arange(8.0)[:, None]
    >>> estimate = frechet_estimate(x, x, groups=4, generator=torch.Generator().manual_seed(0))
    >>> estimate.value.item(), estimate.limit.item() < 0
    (0.0, True)
    """
    name = "frechet_estimate"
    x, y = checked_features(name, "real", real, 2), checked_features(name, "fake", fake, 2)
    least = x.shape[1] + 2
    if groups < 2 or min(len(x), len(y)) - -(-min(len(x), len(y)) // max(groups, 1)) < least:
        raise ValueError(
            f"{name} leaves out one of groups >= 2 groups at a time and needs {least} vectors of {x.shape[1]} features "
            f"in the others; got {len(x)} and {len(y)} vectors and groups={groups}. Take more of them, or "
            "frechet_distance, biased as it is"
        )
    whole_x, rest_x = _without_each(x, groups, generator)
    whole_y, rest_y = _without_each(y, groups, generator)
    value = frechet_distance(whole_x, whole_y)
    without = torch.stack([frechet_distance(a, b) for a, b in zip(rest_x, rest_y, strict=True)])  # (G,)
    ratio = sum(len(x) / a.count + len(y) / b.count for a, b in zip(rest_x, rest_y, strict=True)) / (2 * groups)
    limit = value - (without.mean() - value) / (ratio - 1)  # eq. (4)
    error = ((groups - 1) / groups * (without - without.mean()).square().sum()).sqrt()  # eq. (5)
    dtype = shared_dtype(real, fake)
    return FrechetEstimate(value.to(dtype), limit.to(dtype), error.to(dtype))


def _gaussian(which: str, x: Tensor | Moments) -> tuple[Tensor, Tensor, torch.dtype]:
    """Mean (D,) and covariance (D, D) with divisor n - 1, float64, and the dtype of a result."""
    if isinstance(x, Moments):
        if x.count < 2:
            raise ValueError(f"frechet_distance needs the Moments of 2 or more vectors, got {which} of {x.count}")
        return x.mean, x.scatter / (x.count - 1), torch.float64
    features = checked_features("frechet_distance", which, x, 2)
    if features.requires_grad:
        mean = features.mean(0)
        centred = features - mean
        return mean, centred.mT @ centred / (len(x) - 1), shared_dtype(x)
    found = moments(features)
    return found.mean, found.scatter / (found.count - 1), shared_dtype(x)


def _without_each(x: Tensor, groups: int, generator: torch.Generator | None) -> tuple[Moments, list[Moments]]:
    """The moments of all vectors, and without each group in turn: sums of what is left, nothing is subtracted."""
    order = torch.randperm(len(x), generator=generator).to(x.device)
    parts = [moments(part) for part in x[order].tensor_split(groups)]
    before = [moments(x[:0])]
    for part in parts:
        before.append(merge_moments(before[-1], part))
    after, rest = moments(x[:0]), []
    for head, part in zip(reversed(before[:-1]), reversed(parts), strict=True):
        rest.append(merge_moments(head, after))
        after = merge_moments(part, after)
    return before[-1], rest[::-1]
