r"""The alpha divergences: one family through Kullback-Leibler both ways, both chi squares and Hellinger's.

    T(v) = f'(e^v) = E(a - 1)          E(b) = (e^bv - 1) / b,  v at b = 0                                (1)
    f*(T(v)) = E(a)                                                                                      (2)
    f(u) = u E(a - 1) - E(a) = (u^a - a u - 1 + a) / (a (a - 1)),   v = log u                            (3)
    f*(t) = E(a) at v = log(1 + (a - 1) t) / (a - 1)                                                     (4)

The integrand is (p^a q^(1-a) - a p - (1 - a) q) / (a (a - 1)), never negative. a = 1 is KL(P || Q), 0 is
KL(Q || P), 2 half of Pearson's chi square, -1 half of Neyman's, and 1/2 twice the squared Hellinger distance; 1 - a
exchanges P and Q. Through E nothing is divided by a small a (a - 1), and the family is continuous in floats, too.

Source: Nowozin, Cseke and Tomioka, 2016, arXiv:1606.00709 and kexue.fm/archives/6016 for f and f*; the
forms in v are ours.
Shapes: any; everything is elementwise.
"""

import math
from functools import partial

import torch
from torch import Tensor

from danlu.math.f_convex import FDivergence
from danlu.math.precision import wide

__all__ = ["alpha_divergence", "growth"]


def alpha_divergence(alpha: float) -> FDivergence:
    """The member alpha of the family (1), continuous through alpha = 0 and 1.

    Args:
        alpha: any finite number; large: what the model misses costs much, negative: what it invents does.

    Returns:
        The record.

    Raises:
        ValueError: alpha is not finite.

    >>> alpha_divergence(2.0).f(torch.tensor([3.0]))  # half of Pearson's (u - 1)^2
    tensor([2.])
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, got {alpha}")
    a = float(alpha)
    name = f"alpha[{a:g}]"
    formula = {0.0: "q log(q / p) + p - q", 1.0: "p log(p / q) + q - p"}.get(
        a, f"(p^a q^(1-a) - a p - (1 - a) q) / (a (a - 1)), a = {a:g}"
    )
    return FDivergence(
        name,
        formula,
        partial(_alpha_f, a),
        lambda v: growth(a - 1, wide(v)),  # eq. (1)
        lambda v: growth(a, wide(v)),  # eq. (2)
        partial(_alpha_conjugate, a),
        zero=1 / a if a > 0 else math.inf,
        infinity=1 / (1 - a) if a < 1 else math.inf,
        lowest=-1 / (a - 1) if a > 1 else -math.inf,
    )


def growth(b: float, v: Tensor) -> Tensor:
    """E(b) of eq. (1), (e^bv - 1) / b, with a slope that has all its digits too.

    Args:
        b: finite; v itself at 0.
        v: any shape, float32 or better.

    Returns:
        The shape of v.

    >>> growth(2.0, torch.tensor([0.0, 1.0])), growth(0.0, torch.tensor([3.0]))  # (e^2 - 1) / 2
    (tensor([0.0000, 3.1945]), tensor([3.]))
    """
    if not b:
        return v
    x = b * v
    falling = x.clamp_max(0.0).exp() - 1  # torch takes expm1's slope from its value, where small ones drown
    return torch.where(x < -1, falling, torch.expm1(x)) / b


def _alpha_f(a: float, u: Tensor) -> Tensor:
    v = u.log()
    return u * growth(a - 1, v) - growth(a, v)  # eq. (3)


def _alpha_conjugate(a: float, t: Tensor) -> Tensor:
    t = wide(t)
    base = 1 + (a - 1) * t
    outside = torch.full_like(t, -1 / a if a > 1 else math.inf)
    if a < 0:
        outside = torch.where(base < 0, outside, -1 / a)

    def inside(t: Tensor) -> Tensor:
        return growth(a, torch.log1p((a - 1) * t) / (a - 1) if a != 1 else t)  # eq. (4)

    left = base <= 0
    return torch.where(left, outside, inside(t.masked_fill(left, 0.0)))  # filled, so that no nan reaches the gradient
