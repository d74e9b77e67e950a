r"""Kullback-Leibler, Jeffreys, Chernoff, Bhattacharyya and Hellinger of two Gaussians, full covariances, in batches.

    KL(p||q) = 1/2 [ d^T S_q^-1 d + tr(S_q^-1 S_p) - D - log det(S_q^-1 S_p) ]                                 (1)
    A = L_q^-1 L_p,   KL = 1/2 [ |L_q^-1 d|^2 + sum_{i>j} A_ij^2 + sum_i g(A_ii) ],   g(r) = r^2 - 1 - log r^2   (2)
    J = KL(p||q) + KL(q||p)                                                                                    (3)
    C_a = -log int p^a q^(1-a) = a(1-a)/2 d^T S_a^-1 d + 1/2 log( det S_a / (det S_p^(1-a) det S_q^a) )        (4)
    B = C_1/2,   H^2 = 1 - exp(-B) = 1/2 int (sqrt p - sqrt q)^2                                               (5)

d = m_p - m_q, S = L L^T by Cholesky, S_a = (1-a) S_p + a S_q. (2) is (1) as a sum of terms that cannot be negative, so
that nearly equal Gaussians keep their digits and no divergence comes out below 0: A is triangular, its squares are the
trace, its diagonal the determinant. No inverse and no determinant is formed. The Renyi divergence of order a < 1 is
C_a / (1 - a). H is in [0, 1]; tables of f-divergences list 2 H^2.

Singular covariances: where the two live on one subspace, the divergence within it; where they share no support (one is
singular and the other is not, say) inf, and H = 1, without gradient. See danlu.math.gaussian_support.

Source: kexue.fm/archives/8512, (1) and (5). (2) and (4) follow by writing out.
Shapes: ... any leading axes, broadcast between p and q; D features.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from danlu.math.gaussian_support import GaussianPair, gaussian_pair, safe_sqrt

__all__ = [
    "gaussian_bhattacharyya",
    "gaussian_chernoff",
    "gaussian_hellinger",
    "gaussian_jeffreys",
    "gaussian_kl",
    "width_cost",
]

SERIES = 0.1  # |r^2 - 1| below which g is a series: the difference would lose digits


def gaussian_kl(mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor) -> Tensor:
    """KL(p||q), the mean of log(p / q) under p, eq. (2).

    Args:
        mean_p: (..., D), any float dtype.
        cov_p: (..., D, D), symmetric.
        mean_q: (..., D).
        cov_q: (..., D, D).

    Returns:
        (...) nats >= 0, float32 or better; inf where p is not inside the support of q, or is thinner than it.

    Raises:
        ValueError: shapes do not fit, entries are not finite, or a covariance is not symmetric or has a negative
            eigenvalue.

    >>> gaussian_kl(torch.tensor([1.0]), torch.eye(1), torch.tensor([0.0]), torch.eye(1))  # half the squared gap
    tensor(0.5000)
    """
    return _between("gaussian_kl", _kl, torch.inf, mean_p, cov_p, mean_q, cov_q)


def gaussian_jeffreys(mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor) -> Tensor:
    """KL(p||q) + KL(q||p), eq. (3); half of it is the symmetrised KL of some texts.

    Args:
        mean_p: (..., D), any float dtype.
        cov_p: (..., D, D), symmetric.
        mean_q: (..., D).
        cov_q: (..., D, D).

    Returns:
        (...) nats >= 0, float32 or better.

    Raises:
        ValueError: as of `gaussian_kl`.

    >>> gaussian_jeffreys(torch.tensor([1.0]), torch.eye(1), torch.tensor([0.0]), torch.eye(1))
    tensor(1.)
    """
    return _between("gaussian_jeffreys", _jeffreys, torch.inf, mean_p, cov_p, mean_q, cov_q)


def gaussian_chernoff(mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor, alpha: float = 0.5) -> Tensor:
    """-log of the integral of p^alpha q^(1 - alpha), eq. (4).

    Args:
        mean_p: (..., D), any float dtype.
        cov_p: (..., D, D), symmetric.
        mean_q: (..., D).
        cov_q: (..., D, D).
        alpha: the exponent of p, in (0, 1).

    Returns:
        (...) nats >= 0, float32 or better; inf where the two share no support.

    Raises:
        ValueError: alpha is not in (0, 1), or as of `gaussian_kl`.

    >>> gaussian_chernoff(torch.tensor([2.0]), torch.eye(1), torch.tensor([0.0]), torch.eye(1), alpha=0.25)  # 3/32 * 4
    tensor(0.3750)
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}; at 0 and 1 the integral is 1, see gaussian_kl there")
    return _between("gaussian_chernoff", partial(_chernoff, alpha=alpha), torch.inf, mean_p, cov_p, mean_q, cov_q)


def gaussian_bhattacharyya(mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor) -> Tensor:
    """The Bhattacharyya distance, eq. (4) with a = 1/2; exp(-B) is the Bhattacharyya coefficient.

    Args:
        mean_p: (..., D), any float dtype.
        cov_p: (..., D, D), symmetric.
        mean_q: (..., D).
        cov_q: (..., D, D).

    Returns:
        (...) nats >= 0, float32 or better; inf where the two share no support.

    Raises:
        ValueError: as of `gaussian_kl`.

    >>> gaussian_bhattacharyya(torch.tensor([2.0]), torch.eye(1), torch.tensor([0.0]), torch.eye(1))  # 4 / 8
    tensor(0.5000)
    """
    return _between("gaussian_bhattacharyya", _chernoff, torch.inf, mean_p, cov_p, mean_q, cov_q)


def gaussian_hellinger(mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor, squared: bool = True) -> Tensor:
    """The squared Hellinger distance H^2 of eq. (5).

    Args:
        mean_p: (..., D), any float dtype.
        cov_p: (..., D, D), symmetric.
        mean_q: (..., D).
        cov_q: (..., D, D).
        squared: False: H, a metric, whose gradient at 0 is given as 0.

    Returns:
        (...) in [0, 1], float32 or better; 1 where the two share no support.

    Raises:
        ValueError: as of `gaussian_kl`.

    >>> gaussian_hellinger(torch.tensor([2.0]), torch.eye(1), torch.tensor([0.0]), torch.eye(1))  # 1 - exp(-1/2)
    tensor(0.3935)
    """
    value = _between("gaussian_hellinger", _hellinger, 1.0, mean_p, cov_p, mean_q, cov_q)
    return value if squared else safe_sqrt(value)


def width_cost(ratio: Tensor) -> Tensor:
    """g of eq. (2), r^2 - 1 - log(r^2) of the ratio of two widths, to the last digits also near r = 1.

    Args:
        ratio: any shape, > 0, float32 or better.

    Returns:
        The shape of ratio, >= 0, 0 at 1 alone.

    >>> width_cost(torch.tensor([1.0, 2.0]))  # 3 - 2 log 2
    tensor([0.0000, 1.6137])
    """
    e = (ratio - 1) * (ratio + 1)
    small = e.abs() < SERIES
    x = torch.where(small, e, 0.0)
    s = x / (2 + x)  # log(1 + x) = 2 artanh(s), and x - 2 s = x s
    tail = torch.zeros_like(s)
    for power in range(17, 1, -2):
        tail = 1 / power + s * s * tail
    far = torch.where(small, 1.0, ratio)
    return torch.where(small, s * (x - 2 * s * s * tail), far.square() - 1 - 2 * far.log())


def _between(
    name: str, cost: Callable[[GaussianPair], Tensor], far: float, mean_p: Tensor, cov_p: Tensor, mean_q: Tensor,
    cov_q: Tensor,
) -> Tensor:  # fmt: skip
    """The cost of two Gaussians, in float32 or better under autocast too; `far` where they share no support."""
    with torch.autocast(cov_p.device.type, enabled=False):
        pair = gaussian_pair(name, mean_p, cov_p, mean_q, cov_q)
        return torch.where(pair.apart, far, cost(pair))


def _kl(pair: GaussianPair) -> Tensor:
    """Eq. (2)."""
    a = torch.linalg.solve_triangular(pair.factor_q, pair.factor_p, upper=False)  # (..., D, D)
    y = torch.linalg.solve_triangular(pair.factor_q, pair.gap[..., None], upper=False)[..., 0]  # (..., D)
    diagonal = a.diagonal(dim1=-2, dim2=-1)
    shape = a.tril(-1).square().sum((-2, -1)) + width_cost(diagonal).sum(-1)
    return (y.square().sum(-1) + shape) / 2  # eq. (2)


def _jeffreys(pair: GaussianPair) -> Tensor:
    """Eq. (3); a gap from q to p has the other sign, which no square minds."""
    return _kl(pair) + _kl(pair._replace(factor_p=pair.factor_q, factor_q=pair.factor_p))  # eq. (3)


def _hellinger(pair: GaussianPair) -> Tensor:
    """H^2 of eq. (5)."""
    return -torch.expm1(-_chernoff(pair))  # eq. (5)


def _chernoff(pair: GaussianPair, alpha: float = 0.5) -> Tensor:
    """Eq. (4); rounding below 0 is cut, its gradient kept."""
    factor = torch.linalg.cholesky((1 - alpha) * pair.cov_p + alpha * pair.cov_q)
    y = torch.linalg.solve_triangular(factor, pair.gap[..., None], upper=False)[..., 0]  # (..., D)
    own, p, q = (x.diagonal(dim1=-2, dim2=-1) for x in (factor, pair.factor_p, pair.factor_q))
    shape = ((1 - alpha) * (own / p).log() + alpha * (own / q).log()).sum(-1)  # half the log of eq. (4)
    shape = shape + (shape.clamp_min(0) - shape).detach()
    return alpha * (1 - alpha) / 2 * y.square().sum(-1) + shape
