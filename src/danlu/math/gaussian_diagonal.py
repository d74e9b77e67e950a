r"""Kullback-Leibler, Bhattacharyya, Hellinger and Wasserstein-2 of Gaussians with independent features, in O(D).

    KL(p||q) = 1/2 sum [ (d / s_q)^2 + g(s_p / s_q) ],   g(r) = r^2 - 1 - log r^2                              (1)
    B = sum [ (d / v)^2 / 8 + 1/2 log(1 + (s_p - s_q)^2 / (2 s_p s_q)) ],   v^2 = (s_p^2 + s_q^2) / 2          (2)
    H^2 = 1 - exp(-B)                                                                                          (3)
    W^2 = sum [ d^2 + (s_p - s_q)^2 ]                                                                          (4)

d = m_p - m_q, s the standard deviations. All terms are >= 0 as they stand, and none squares a deviation by itself, so
deviations as small as 1e-30 are safe in float32. A feature with s_p = s_q = d = 0 adds nothing; where one deviation
is 0 and the rest of it differs the two share no support: inf, and H = 1, without gradient.

Source: kexue.fm/archives/8512, (1) to (4) for diagonal covariances.
Shapes: ... any leading axes, broadcast between p and q; D features.
"""

import torch
from torch import Tensor

from danlu.math.gaussian_divergence import width_cost
from danlu.math.gaussian_support import safe_sqrt, shared_dtype

__all__ = [
    "gaussian_bhattacharyya_diagonal",
    "gaussian_hellinger_diagonal",
    "gaussian_kl_diagonal",
    "gaussian_wasserstein_diagonal",
]


def gaussian_kl_diagonal(mean_p: Tensor, std_p: Tensor, mean_q: Tensor, std_q: Tensor) -> Tensor:
    """KL(p||q), eq. (1).

    Args:
        mean_p: (..., D), any float dtype.
        std_p: (..., D) standard deviations, >= 0; of log variances: (0.5 * log_var).exp().
        mean_q: (..., D).
        std_q: (..., D).

    Returns:
        (...) nats >= 0, float32 or better.

    Raises:
        ValueError: shapes do not fit, entries are not finite or a deviation is negative.

    >>> gaussian_kl_diagonal(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]))
    tensor(0.5000)
    """
    gap, s_p, s_q, apart = _features("gaussian_kl_diagonal", mean_p, std_p, mean_q, std_q)
    cost = ((gap / s_q).square() + width_cost(s_p / s_q)).sum(-1) / 2  # eq. (1)
    return torch.where(apart, torch.inf, cost)


def gaussian_bhattacharyya_diagonal(mean_p: Tensor, std_p: Tensor, mean_q: Tensor, std_q: Tensor) -> Tensor:
    """The Bhattacharyya distance, eq. (2).

    Args:
        mean_p: (..., D), any float dtype.
        std_p: (..., D) standard deviations, >= 0.
        mean_q: (..., D).
        std_q: (..., D).

    Returns:
        (...) nats >= 0, float32 or better.

    Raises:
        ValueError: as of `gaussian_kl_diagonal`.

    >>> one = torch.ones(1)
    >>> gaussian_bhattacharyya_diagonal(2 * one, one, 0 * one, one)  # 4 / 8
    tensor(0.5000)
    """
    gap, s_p, s_q, apart = _features("gaussian_bhattacharyya_diagonal", mean_p, std_p, mean_q, std_q)
    return torch.where(apart, torch.inf, _bhattacharyya(gap, s_p, s_q))


def gaussian_hellinger_diagonal(
    mean_p: Tensor, std_p: Tensor, mean_q: Tensor, std_q: Tensor, squared: bool = True
) -> Tensor:
    """The squared Hellinger distance, eq. (3).

    Args:
        mean_p: (..., D), any float dtype.
        std_p: (..., D) standard deviations, >= 0.
        mean_q: (..., D).
        std_q: (..., D).
        squared: False: H, a metric, whose gradient at 0 is given as 0.

    Returns:
        (...) in [0, 1], float32 or better.

    Raises:
        ValueError: as of `gaussian_kl_diagonal`.

    >>> one = torch.ones(1)
    >>> gaussian_hellinger_diagonal(2 * one, one, 0 * one, one)  # 1 - exp(-1/2)
    tensor(0.3935)
    """
    gap, s_p, s_q, apart = _features("gaussian_hellinger_diagonal", mean_p, std_p, mean_q, std_q)
    value = torch.where(apart, 1.0, -torch.expm1(-_bhattacharyya(gap, s_p, s_q)))  # eq. (3)
    return value if squared else safe_sqrt(value)


def gaussian_wasserstein_diagonal(
    mean_p: Tensor, std_p: Tensor, mean_q: Tensor, std_q: Tensor, squared: bool = True
) -> Tensor:
    """The squared Wasserstein-2 distance, eq. (4).

    Args:
        mean_p: (..., D), any float dtype.
        std_p: (..., D) standard deviations, >= 0.
        mean_q: (..., D).
        std_q: (..., D).
        squared: False: the distance itself, whose gradient at 0 is given as 0.

    Returns:
        (...), float32 or better, in squared units of the features.

    Raises:
        ValueError: as of `gaussian_kl_diagonal`.

    >>> one = torch.ones(1)
    >>> gaussian_wasserstein_diagonal(3 * one, 2 * one, one, 3 * one)  # 4 + 1
    tensor(5.)
    """
    gap, s_p, s_q = _checked("gaussian_wasserstein_diagonal", mean_p, std_p, mean_q, std_q)
    value = (gap.square() + (s_p - s_q).square()).sum(-1)  # eq. (4)
    return value if squared else safe_sqrt(value)


def _bhattacharyya(gap: Tensor, s_p: Tensor, s_q: Tensor) -> Tensor:
    """Eq. (2)."""
    width = torch.hypot(s_p, s_q) * 0.5**0.5
    ratio = (s_p - s_q) / s_p * ((s_p - s_q) / s_q) / 2
    return ((gap / width).square() / 8 + torch.log1p(ratio) / 2).sum(-1)  # eq. (2)


def _checked(name: str, mean_p: Tensor, std_p: Tensor, mean_q: Tensor, std_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d, s_p and s_q at one dtype."""
    shapes = [tuple(x.shape) for x in (mean_p, std_p, mean_q, std_q)]
    problem = not all(shapes) or len({shape[-1] for shape in shapes}) != 1
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        problem = True
    if problem:
        raise ValueError(
            f"{name} needs means and standard deviations (..., D) of one D that broadcast; got {shapes[0]}, "
            f"{shapes[1]} and {shapes[2]}, {shapes[3]}. Full covariances: {name.removesuffix('_diagonal')}"
        )
    dtype = shared_dtype(mean_p, std_p, mean_q, std_q)
    gap, s_p, s_q = mean_p.to(dtype) - mean_q.to(dtype), std_p.to(dtype), std_q.to(dtype)
    for s in (s_p, s_q):
        if not bool(((s >= 0) & s.isfinite()).all()):
            raise ValueError(
                f"{name} needs finite standard deviations >= 0, got {s.min().item()}; logarithms of variances go in as "
                "(0.5 * log_var).exp()"
            )
    if not bool(gap.isfinite().all()):
        raise ValueError(f"{name} needs finite means; one holds nan or an infinity, or their difference overflows")
    return gap, s_p, s_q


def _features(
    name: str, mean_p: Tensor, std_p: Tensor, mean_q: Tensor, std_q: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d, s_p, s_q with what both lack replaced by equal unit widths, and where no support is shared."""
    gap, s_p, s_q = _checked(name, mean_p, std_p, mean_q, std_q)
    flat = (s_p == 0) | (s_q == 0)
    apart = (flat & ((s_p != s_q) | (gap != 0))).any(-1)
    return torch.where(flat, 0.0, gap), torch.where(flat, 1.0, s_p), torch.where(flat, 1.0, s_q), apart
