r"""Where the constants of GELU's elementary forms come from, and which ones would be better.

    G(x) = x/2 (1 + tanh(a_1 x + a_3 x^3 + a_5 x^5))                                                          (1)
    erf(x / sqrt 2) = sqrt(2/pi) (x - x^3/6 + x^5/40 - ...) = sqrt(2/pi) sum_k (-1)^k x^(2k+1) / (2^k k! (2k+1))   (2)
    a_1 = s,   a_3 = s^3/3 - s/6,   a_5 = s/40 - s^3/6 + s^5/5,   s = sqrt(2/pi)                               (3)
    "erf"   max over x of | erf(x / sqrt 2) - tanh(...) |                                                      (4)
    "cdf"   half of that: the error in Phi                                                                     (5)
    "gelu"  max over x of | x Phi(x) - G(x) |                                                                  (6)

With one term (1) is x sigma(2 a_1 x), the sigmoid form; with two the tanh form, c = a_3 / a_1. (3) makes tanh agree
with (2) around 0: c = 2/(3 pi) - 1/6 = 0.04554. The usual constants are answers to another question:

    c = 0.044715     smallest (4) with a_1 = sqrt(2/pi) kept, the exact slope at 0: 0.0447149                  (7)
    1.702            smallest (5) of one term: 1.7017449                                                       (8)

Neither is the best for GELU itself: by (6) 1.7729340 has two thirds of 1.702's error, and both terms free have 4/7 of
0.044715's. A third term, `GELU_ODD5`, divides that by ten more. But a checkpoint trained with 1.702 wants 1.702: better
constants are for standing in for the erf form.

Beyond |x| = 8, where the third term would turn the bracket around, its argument goes on with slope a_1.

Source: kexue.fm/archives/7309, (2) to (5), (7), (8); Hendrycks and Gimpel, 2016, arXiv:1606.08415; (6) and `GELU_ODD5`
are computed here.
Shapes: any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from danlu.math.minimax import MinimaxFit, largest_error, least_squares_fit, minimax_fit
from danlu.math.precision import wide

__all__ = ["GELU_ODD5", "gelu_fit", "gelu_odd", "gelu_odd_error", "gelu_series", "gelu_table"]

GELU_ODD5 = (0.797507884, 0.0370056460, -3.51516789e-4)  # a_1, a_3, a_5 of the smallest (6)
SLOPE = math.sqrt(2 / math.pi)
MEASURES = ("erf", "cdf", "gelu")
_BEND, _FAR = 8.0, 1000.0  # where the polynomial ends; where the gate is 0 or 1 in every dtype
_STARTS = ((0.85,), (0.7979, 0.0357), (0.7975, 0.0370, -3.5e-4))


def gelu_odd(x: Tensor, coefficients: Sequence[float] = GELU_ODD5) -> Tensor:
    """GELU with the normal distribution function written as tanh of an odd polynomial, eq. (1).

    Args:
        x: any shape, any float dtype.
        coefficients: a_1, a_3, ..., one to three numbers; (0.851,) is the sigmoid form with 1.702.

    Returns:
        The shape and dtype of x, computed in float32 or better; 0 and inf at infinity, nan stays nan.

    Raises:
        ValueError: no coefficients, or more than three.

    >>> gelu_odd(torch.tensor([-torch.inf, 0.0, 1.0, torch.inf]))  # Phi(1) = 0.84134, and 2e-5 more
    tensor([-0.0000, 0.0000, 0.8414,    inf])
    """
    if not 1 <= len(coefficients) <= 3:
        raise ValueError(f"coefficients are a_1, a_3 and a_5 at the most; got {len(coefficients)} numbers")
    y = wide(x)
    inner = y.clamp(-_FAR, _FAR)
    gate = (1 + torch.tanh(_odd(inner, coefficients))) / 2
    return torch.where(y > _FAR, y, inner * gate).to(x.dtype)  # eq. (1)


def gelu_series(terms: int = 2) -> tuple[float, ...]:
    """The coefficients that agree with erf around 0, eq. (3).

    Args:
        terms: 1 to 3.

    Returns:
        a_1, a_3, a_5, as many as asked for.

    Raises:
        ValueError: another number of terms.

    >>> a, b = gelu_series()
    >>> round(b / a, 6)  # 2/(3 pi) - 1/6
    0.04554
    """
    _check_terms(terms)
    s = SLOPE
    return (s, s**3 / 3 - s / 6, s / 40 - s**3 / 6 + s**5 / 5)[:terms]  # eq. (3)


def gelu_fit(
    terms: int = 2, measure: str = "erf", keep_slope: bool = False, start: Sequence[float] | None = None
) -> MinimaxFit:
    """The coefficients of eq. (1) with the smallest largest error.

    Args:
        terms: 1 (sigmoid form), 2 (tanh form) or 3.
        measure: "erf", "cdf" or "gelu", eq. (4) to (6).
        keep_slope: a_1 stays sqrt(2/pi), as the post has it for the tanh form; only with more than one term.
        start: coefficients to start from, without a_1 if that is kept; None: good ones.

    Returns:
        The fit; params are a_1, a_3, a_5, as many as there are terms, and 1.702 is twice the only one.

    Raises:
        ValueError: another number of terms, an unknown measure, a start of another size, or no optimum near it.

    >>> a, b = gelu_fit(2, "erf", keep_slope=True).params
    >>> round(b / a, 6), round(2 * gelu_fit(1, "cdf").params[0], 3)  # eqs. (7) and (8)
    (0.044715, 1.702)
    """
    _check_terms(terms)
    _check_measure(measure)
    if keep_slope and terms == 1:
        raise ValueError("with one term the slope is all there is to fit; leave keep_slope out")
    begin = _STARTS[terms - 1][1 if keep_slope else 0 :] if start is None else tuple(start)
    if len(begin) != terms - keep_slope:
        raise ValueError(f"start must have {terms - keep_slope} numbers, one for each that is free; got {len(begin)}")

    def family(x: Tensor, params: Tensor) -> Tensor:
        free = list(params.unbind())
        return _measured(x, torch.tanh(_odd(x, [SLOPE, *free] if keep_slope else free)), measure)

    fit = minimax_fit(lambda x: _measured(x, torch.erf(x / math.sqrt(2)), measure), family, begin)
    return replace(fit, params=(SLOPE, *fit.params)) if keep_slope else fit


def gelu_odd_error(x: Tensor, coefficients: Sequence[float], measure: str = "gelu") -> Tensor:
    """The error curve of given coefficients, approximation minus truth.

    Args:
        x: any shape, any float dtype; computed in float64.
        coefficients: a_1, a_3, a_5, one to three of them.
        measure: "erf", "cdf" or "gelu", without the maximum and the absolute value of eq. (4) to (6).

    Returns:
        The shape of x, float64.

    Raises:
        ValueError: an unknown measure.

    >>> c = 0.044715
    >>> round(gelu_odd_error(torch.tensor(2.7), (SLOPE, c * SLOPE)).item(), 6)  # nowhere is the tanh form farther off
    0.000473
    """
    _check_measure(measure)
    x = x.double()
    return _measured(x, torch.tanh(_odd(x, coefficients)) - torch.erf(x / math.sqrt(2)), measure)


def gelu_table() -> list[dict[str, Any]]:
    """The usual constants and the best ones beside each other, computed afresh.

    Returns:
        Rows with "form", "question", "coefficients", "constant" (c of the tanh form, lambda of the sigmoid form, None
        for three terms), and the largest errors "erf", "cdf" and "gelu" with "at", the place of the last one.
    """
    rows: list[tuple[str, str, tuple[float, ...]]] = [
        ("tanh", "usual, 0.044715", (SLOPE, 0.044715 * SLOPE)),
        ("tanh", "series around 0", gelu_series(2)),
        ("tanh", "minimax erf, slope kept", gelu_fit(2, "erf", keep_slope=True).params),
        ("tanh", "minimax gelu, slope kept", gelu_fit(2, "gelu", keep_slope=True).params),
        ("tanh", "minimax erf", gelu_fit(2, "erf").params),
        ("tanh", "minimax gelu", gelu_fit(2, "gelu").params),
        ("tanh of three terms", "minimax gelu", gelu_fit(3, "gelu").params),
        ("sigmoid", "usual, 1.702", (0.851,)),
        ("sigmoid", "series around 0", gelu_series(1)),
        ("sigmoid", "variance of the logistic", (math.pi / math.sqrt(12),)),
        ("sigmoid", "minimax cdf", gelu_fit(1, "cdf").params),
        ("sigmoid", "minimax gelu", gelu_fit(1, "gelu").params),
        ("sigmoid", "least squares cdf", _least_squares("cdf")),
        ("sigmoid", "least squares gelu", _least_squares("gelu")),
        ("sigmoid", "least squares gelu, normal x", _least_squares("gelu", normal=True)),
    ]
    found = []
    for form, question, a in rows:
        worst = {m: _worst(a, m) for m in MEASURES}
        constant = 2 * a[0] if len(a) == 1 else a[1] / a[0] if len(a) == 2 else None
        row: dict[str, Any] = {"form": form, "question": question, "coefficients": a, "constant": constant}
        found.append({**row, **{m: worst[m][0] for m in MEASURES}, "at": worst["gelu"][1]})
    return found


def _odd(x: Tensor, coefficients: Sequence[Any]) -> Tensor:
    """The odd polynomial in tanh, which goes on as a straight line beyond the bend."""
    inner = x.clamp(-_BEND, _BEND)
    square, total = inner.square(), torch.zeros_like(inner)
    for a in reversed(coefficients):
        total = total * square + a
    return total * inner + coefficients[0] * (x - inner)


def _measured(x: Tensor, gate: Tensor, measure: str) -> Tensor:
    """What eq. (4) to (6) compare, of erf(x / sqrt 2) or of its stand-in."""
    return gate if measure == "erf" else gate / 2 if measure == "cdf" else x * gate / 2


def _worst(coefficients: Sequence[float], measure: str) -> tuple[float, float]:
    return largest_error(torch.zeros_like, lambda x: gelu_odd_error(x, coefficients, measure))


def _least_squares(measure: str, normal: bool = False) -> tuple[float, ...]:
    fit = least_squares_fit(
        lambda x: _measured(x, torch.erf(x / math.sqrt(2)), measure),
        lambda x, p: _measured(x, torch.tanh(p[0] * x), measure),
        (0.85,),
        weight=(lambda x: torch.exp(-x * x / 4)) if normal else None,
    )
    return fit.params


def _check_terms(terms: int) -> None:
    if terms not in (1, 2, 3):
        raise ValueError(f"terms must be 1 (sigmoid form), 2 (tanh form) or 3, got {terms}")


def _check_measure(measure: str) -> None:
    if measure not in MEASURES:
        raise ValueError(f"measure must be 'erf', 'cdf' or 'gelu', got {measure!r}")
