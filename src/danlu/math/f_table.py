r"""The usual f-divergences in closed form, all in one coordinate: v = log(p / q), larger where data are likelier.

    name                integral of               T(v) = f'(e^v)              f*(T(v))
    kl                  p log(p / q)              1 + v                       e^v                              (1)
    reverse_kl          q log(q / p)              -e^-v                       v - 1                            (2)
    pearson             (p - q)^2 / q             2 (e^v - 1)                 e^2v - 1                         (3)
    neyman              (p - q)^2 / p             1 - e^-2v                   2 - 2 e^-v                       (4)
    squared_hellinger   (sqrt p - sqrt q)^2       1 - e^(-v/2)                e^(v/2) - 1                      (5)
    jeffreys            (p - q) log(p / q)        1 + v - e^-v                e^v + v - 1                      (6)
    js                  half of gan               (log 2 - s(-v)) / 2         (s(v) - log 2) / 2               (7)
    gan                 p log 2p/(p+q) + q log 2q/(p+q)      -s(-v)           s(v) - 2 log 2                   (8)
    triangular          (p - q)^2 / (p + q)       1 - 4 sigma(-v)^2           4 sigma(v)^2 - 1                 (9)
    total_variation     |p - q| / 2               tanh(v) / 2                 tanh(v) / 2                     (10)
    swapped             D(Q || P), f~(u) = u f(1 / u)     -f*(T(-v))          -T(-v)                         (11)

s is softplus and sigma its derivative, logs are natural. Published activations for the same rows are these after a
change of the network's output; several of them fall with p / q (v -> -v, v / 2, 2 v), which a bound does not mind and
who reads the critic as a score does. In (10) alone T(v) is not f'(e^v): that is a step, through which no gradient
comes; v there is a score without a unit, and the bound is met as |v| grows. A term c (u - 1) in f changes no
divergence and moves T and f* alike. "neyman" and "pearson" are called the other way round by some:
`FDivergence.formula` says. `danlu.math.f_alpha` has a family that runs through most of these.

Source: Nowozin, Cseke and Tomioka, 2016, arXiv:1606.00709 and kexue.fm/archives/6016 for f and f* of (1)-(8) and (10),
each checked against the supremum here; (9) and the single coordinate v are ours.
Shapes: any; everything is elementwise.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.f_convex import Elementwise, FDivergence, divergence_from_f, limit, numeric_conjugate
from danlu.math.precision import wide

__all__ = ["F_DIVERGENCES", "as_f_divergence", "f_swap"]

LOG2 = math.log(2)


def as_f_divergence(divergence: str | FDivergence | Elementwise) -> FDivergence:
    """The record of a divergence that is given by its name, by itself, or as a convex function.

    Args:
        divergence: a key of F_DIVERGENCES, an FDivergence, or f; f is checked each time, so build its record once.

    Returns:
        The record.

    Raises:
        ValueError: an unknown name, or what `divergence_from_f` says of a function.

    >>> as_f_divergence("pearson").formula
    '(p - q)^2 / q'
    """
    if isinstance(divergence, FDivergence):
        return divergence
    if isinstance(divergence, str):
        if divergence not in F_DIVERGENCES:
            raise ValueError(
                f"no f-divergence {divergence!r}; there are {', '.join(F_DIVERGENCES)}, alpha_divergence(a), and any "
                "convex function: lambda u: ..."
            )
        return F_DIVERGENCES[divergence]
    return divergence_from_f(divergence)


def f_swap(divergence: str | FDivergence | Elementwise) -> FDivergence:
    """The divergence with data and model exchanged, eq. (11).

    Args:
        divergence: a name, a record, or a convex function.

    Returns:
        The record; its conjugate is found numerically.

    Raises:
        ValueError: what `as_f_divergence` says.

    >>> f_swap("kl").activation(torch.tensor([0.0])), f_swap("kl").zero  # reverse KL
    (tensor([-1.]), inf)
    """
    given = as_f_divergence(divergence)
    if given is F_DIVERGENCES["total_variation"]:  # symmetric, and its T is not f'
        return given

    def activation(v: Tensor) -> Tensor:
        return -given.activation_conjugate(-v)  # eq. (11)

    def f(u: Tensor) -> Tensor:
        return u * given.f(1 / u)

    # f~'(0) = -lim f*(T(v)); near enough for a form by autograd to be still exact to eight digits
    lowest = -limit(lambda u: given.activation_conjugate(u.log()), 1, reach=6.0)
    return FDivergence(
        f"swapped {given.name}",
        f"{given.formula}, p and q exchanged",
        f,
        activation,
        lambda v: -given.activation(-v),  # eq. (11)
        partial(numeric_conjugate, f, activation, given.infinity, given.zero, lowest),
        zero=given.infinity,
        infinity=given.zero,
        lowest=lowest,
    )


def _within(t: Tensor, left: Tensor, inside: Elementwise, outside: Tensor | float) -> Tensor:
    """inside(t), but `outside` where `left`, with no gradient there and no nan from what inside(t) would be."""
    return torch.where(left, outside, inside(torch.where(left, -0.25, t)))  # -0.25 lies in every domain


def _softplus(v: Tensor) -> Tensor:
    return -F.logsigmoid(-v)  # F.softplus is exact to nine digits only


def _gan(u: Tensor) -> Tensor:
    return torch.special.xlogy(u, u) - (u + 1) * ((u + 1) / 2).log() - LOG2 * (u - 1)


def _js_conjugate(t: Tensor) -> Tensor:  # -log(2 - e^2t) / 2
    t = wide(t)
    return _within(t, 2 * t >= LOG2, lambda t: -((-torch.expm1(2 * t - LOG2)).log() + LOG2) / 2, math.inf)


def _gan_conjugate(t: Tensor) -> Tensor:
    t = wide(t)
    return _within(t, t >= 0, lambda t: -(-torch.expm1(t)).log() - 2 * LOG2, math.inf)


def _triangular_conjugate(t: Tensor) -> Tensor:
    t = wide(t)
    inside = _within(t, t > 1, lambda t: (2 - (1 - t).sqrt()).square() - 1, math.inf)
    return torch.where(t < -3, -1.0, inside)


def _variation_conjugate(t: Tensor) -> Tensor:
    t = wide(t)
    return torch.where(t > 0.5, math.inf, t.clamp_min(-0.5))


def _jeffreys(u: Tensor) -> Tensor:
    return (u - 1) * u.log()


def _jeffreys_activation(v: Tensor) -> Tensor:
    return wide(v) - torch.expm1(-wide(v))  # eq. (6)


_ROWS = [
    FDivergence(
        "kl",
        "p log(p / q)",
        lambda u: torch.special.xlogy(u, u),
        lambda v: 1 + wide(v),  # eq. (1)
        lambda v: wide(v).exp(),
        lambda t: (wide(t) - 1).exp(),
        zero=0.0,
        infinity=math.inf,
        lowest=-math.inf,
    ),
    FDivergence(
        "reverse_kl",
        "q log(q / p)",
        lambda u: -u.log(),
        lambda v: -(-wide(v)).exp(),  # eq. (2)
        lambda v: wide(v) - 1,
        lambda t: _within(wide(t), t >= 0, lambda t: -1 - (-t).log(), math.inf),
        zero=math.inf,
        infinity=0.0,
        lowest=-math.inf,
    ),
    FDivergence(
        "pearson",
        "(p - q)^2 / q",
        lambda u: (u - 1).square(),
        lambda v: 2 * torch.expm1(wide(v)),  # eq. (3)
        lambda v: torch.expm1(2 * wide(v)),
        lambda t: _within(wide(t), t < -2, lambda t: t.square() / 4 + t, -1.0),
        zero=1.0,
        infinity=math.inf,
        lowest=-2.0,
    ),
    FDivergence(
        "neyman",
        "(p - q)^2 / p",
        lambda u: (u - 1).square() / u,
        lambda v: -torch.expm1(-2 * wide(v)),  # eq. (4)
        lambda v: -2 * torch.expm1(-wide(v)),
        lambda t: _within(wide(t), t > 1, lambda t: 2 - 2 * (1 - t).sqrt(), math.inf),
        zero=math.inf,
        infinity=1.0,
        lowest=-math.inf,
    ),
    FDivergence(
        "squared_hellinger",
        "(sqrt p - sqrt q)^2",
        lambda u: (u.sqrt() - 1).square(),
        lambda v: -torch.expm1(-wide(v) / 2),  # eq. (5)
        lambda v: torch.expm1(wide(v) / 2),
        lambda t: _within(wide(t), t >= 1, lambda t: t / (1 - t), math.inf),
        zero=1.0,
        infinity=1.0,
        lowest=-math.inf,
    ),
    FDivergence(
        "jeffreys",
        "(p - q) log(p / q)",
        _jeffreys,
        _jeffreys_activation,
        lambda v: torch.expm1(wide(v)) + wide(v),
        partial(
            numeric_conjugate, _jeffreys, _jeffreys_activation, math.inf, math.inf, -math.inf
        ),  # spares Lambert's W
        zero=math.inf,
        infinity=math.inf,
        lowest=-math.inf,
    ),
    FDivergence(
        "js",
        "(p log(2 p / (p + q)) + q log(2 q / (p + q))) / 2",
        lambda u: (_gan(u) + LOG2 * (u - 1)) / 2,
        lambda v: (LOG2 - _softplus(-wide(v))) / 2,  # eq. (7)
        lambda v: (_softplus(wide(v)) - LOG2) / 2,
        _js_conjugate,
        zero=LOG2 / 2,
        infinity=LOG2 / 2,
        lowest=-math.inf,
    ),
    FDivergence(
        "gan",
        "p log(2 p / (p + q)) + q log(2 q / (p + q))",
        _gan,
        lambda v: -_softplus(-wide(v)),  # eq. (8)
        lambda v: _softplus(wide(v)) - 2 * LOG2,
        _gan_conjugate,
        zero=2 * LOG2,
        infinity=0.0,
        lowest=-math.inf,
    ),
    FDivergence(
        "triangular",
        "(p - q)^2 / (p + q)",
        lambda u: (u - 1).square() / (u + 1),
        lambda v: 1 - 4 * torch.sigmoid(-wide(v)).square(),  # eq. (9)
        lambda v: 4 * torch.sigmoid(wide(v)).square() - 1,
        _triangular_conjugate,
        zero=1.0,
        infinity=1.0,
        lowest=-3.0,
    ),
    FDivergence(
        "total_variation",
        "|p - q| / 2",
        lambda u: (u - 1).abs() / 2,
        lambda v: torch.tanh(wide(v)) / 2,  # eq. (10)
        lambda v: torch.tanh(wide(v)) / 2,
        _variation_conjugate,
        zero=0.5,
        infinity=0.5,
        lowest=-0.5,
    ),
]
F_DIVERGENCES = {row.name: row for row in _ROWS}
