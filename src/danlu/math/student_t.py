r"""Quantiles of Student's t, for intervals around estimates whose noise was estimated too.

    P(0 < t < q) = C int_0^{arctan(q / sqrt(nu))} cos^{nu - 1}(a) da                                         (1)
    C = Gamma((nu + 1) / 2) / (sqrt(pi) Gamma(nu / 2))

by t = sqrt(nu) tan(a). The integrand is smooth, so 64 Gauss-Legendre nodes give it to rounding; q by bisection.

Source: own definitions.
Shapes: plain numbers.
"""

import math

import numpy as np

__all__ = ["student_t_quantile"]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)
MANY = 1e7  # degrees of freedom beyond which t is normal to seven digits


def student_t_quantile(probability: float, dof: float) -> float:
    """The number below which Student's t falls with that probability, eq. (1).

    Args:
        probability: in (0, 1).
        dof: degrees of freedom nu, >= 1; inf gives the normal distribution.

    Returns:
        The quantile, right to nine digits for probabilities between 1e-4 and 1 - 1e-4.

    Raises:
        ValueError: probability is not in (0, 1) or dof < 1.

    >>> round(student_t_quantile(0.75, 1), 6), round(student_t_quantile(0.975, float("inf")), 4)
    (1.0, 1.96)
    """
    if not 0 < probability < 1 or not dof >= 1:
        raise ValueError(f"needs a probability in (0, 1) and dof >= 1, got {probability} and {dof}")
    if probability < 0.5:
        return -student_t_quantile(1.0 - probability, dof)
    dof = min(dof, MANY)
    log_c = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(math.pi)
    low = 0.0
    high = 0.5 * math.pi if dof < 100 else math.atan(40.0 / math.sqrt(dof))  # of the angle; the nodes must see the peak
    for _ in range(80):
        middle = 0.5 * (low + high)
        angles = 0.5 * middle * (NODES + 1.0)
        values = np.exp(log_c + (dof - 1) * np.log(np.cos(angles)))
        below = 0.5 * middle * float(WEIGHTS @ values)  # eq. (1)
        low, high = (middle, high) if below < probability - 0.5 else (low, middle)
    return math.sqrt(dof) * math.tan(0.5 * (low + high))
