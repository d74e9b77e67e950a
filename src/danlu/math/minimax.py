r"""Constants by the largest error: the parameters of a family whose worst error is as small as it can be.

    min over p of  max over x of  |e(x)|,    e(x) = w(x) (f(x, p) - g(x)),   low <= x <= high                  (1)
    e(x_i) = (-1)^i s E,    i = 0 ... k                                                                       (2)
    min over p of  integral of e(x)^2                                                                         (3)

g is the target, f a family with k parameters p. At the optimum the error swings k times between +E and -E (Chebyshev):
(2) is the certificate that a result carries, k + 1 places and the errors there. Remez' exchange finds it: solve (2) for
p and E by Newton's steps, move the places to the extremes of the new error, repeat. The start is the least-squares fit
(3) on Gauss' nodes. For families linear in p (2) is also sufficient; for others it
makes p the best one nearby.

Source: Remez, 1934; Barrar and Loeb, 1970, for families that are not linear; the way of choosing constants is that of
kexue.fm/archives/7309.
Shapes: x of N numbers, p of k; everything in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from danlu.math.least_squares import levenberg_marquardt, rowwise_jacobian

__all__ = ["MinimaxFit", "largest_error", "least_squares_fit", "minimax_fit"]

Function = Callable[[Tensor], Tensor]
Family = Callable[[Tensor, Tensor], Tensor]
_GRID = 4_000  # intervals in which the extremes of an error are looked for
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class MinimaxFit:
    """Parameters, their largest error, and the certificate of eq. (2).

    Args:
        params: the k numbers p.
        max_error: E, or for `least_squares_fit` the largest |e|.
        points: places of the extremes, rising; k + 1 for `minimax_fit`.
        errors: e at these places.
    """

    params: tuple[float, ...]
    max_error: float
    points: tuple[float, ...]
    errors: tuple[float, ...]


def minimax_fit(
    target: Function,
    family: Family,
    start: Sequence[float],
    domain: tuple[float, float] = (0.0, 8.0),
    weight: Function | None = None,
) -> MinimaxFit:
    """The parameters with the smallest largest error, eq. (1).

    Args:
        target: g, takes (N,) float64 and gives (N,).
        family: f, takes (N,) and the parameters (k,); torch must be able to differentiate it by them.
        start: k numbers not too far from the answer; the least-squares fit goes on from them.
        domain: (low, high) of x.
        weight: w, takes (N,); None: 1.

    Returns:
        The fit with k + 1 places of equal error and alternating sign.

    Raises:
        ValueError: no start, an empty domain, an error that swings less than k times or stays uneven (no optimum near
            the start), or values that are not finite.

    >>> fit = minimax_fit(lambda x: x * x, lambda x, p: p[0] + p[1] * x, (0.0, 0.0), (0.0, 1.0))
    >>> [round(p, 6) for p in fit.params], round(fit.max_error, 6)  # the line x - 1/8 runs 1/8 beside x^2
    ([-0.125, 1.0], 0.125)
    """
    error = _error(target, family, weight)
    params = torch.tensor(least_squares_fit(target, family, start, domain, weight).params, dtype=torch.float64)
    best, stalled = (torch.inf, params), 0
    for _ in range(50):

        def now(x: Tensor, params: Tensor = params) -> Tensor:
            return error(x, params)

        x, e = _swings(*_extremes(now, domain), len(params))
        spread = float(1 - e.abs().min() / e.abs().max())
        stalled = 0 if spread < best[0] else stalled + 1
        best = min(best, (spread, params), key=lambda pair: pair[0])
        if spread < 1e-13 or stalled == 3:  # as even as float64 makes it
            break
        for _ in range(3):
            params = _levelled(error, params, x, float(e[0].sign()))
    if best[0] > 1e-6:
        raise ValueError(f"the extremes still differ by {best[0]:.0e} of the largest; start nearer to the optimum")
    params = best[1]
    x, e = _swings(*_extremes(lambda x: error(x, params), domain), len(params))
    return MinimaxFit(tuple(params.tolist()), float(e.abs().max()), tuple(x.tolist()), tuple(e.tolist()))


def least_squares_fit(
    target: Function,
    family: Family,
    start: Sequence[float],
    domain: tuple[float, float] = (0.0, 8.0),
    weight: Function | None = None,
) -> MinimaxFit:
    """The parameters with the smallest mean square error, eq. (3); the square of the weight is the density of x.

    Args:
        target: g, takes (N,) float64 and gives (N,).
        family: f, takes (N,) and the parameters (k,); torch must be able to differentiate it by them.
        start: k numbers not too far from the answer.
        domain: (low, high) of x.
        weight: w, takes (N,); None: 1.

    Returns:
        The fit with its largest error and every extreme of it.

    Raises:
        ValueError: no start, an empty domain, or values that are not finite.

    >>> fit = least_squares_fit(lambda x: x * x, lambda x, p: p[0] + p[1] * x, (0.0, 0.0), (0.0, 1.0))
    >>> [round(p, 6) for p in fit.params]  # x - 1/6
    [-0.166667, 1.0]
    """
    low, high = domain
    if not len(start) or not low < high:
        raise ValueError(f"a fit needs parameters to start from and low < high; got {list(start)} and {domain}")
    error = _error(target, family, weight)
    nodes, shares = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(300))
    x = low + (high - low) * (nodes + 1) / 2
    residuals = _over_copies(lambda x, params: shares.sqrt() * error(x, params), x)  # eq. (3)
    first = torch.tensor([list(start)], dtype=torch.float64)
    params = levenberg_marquardt(lambda p, rows: residuals(p), first, max_iter=200, tol=1e-15).x[0]
    x, e = _extremes(lambda x: error(x, params), domain)
    return MinimaxFit(tuple(params.tolist()), float(e.abs().max()), tuple(x.tolist()), tuple(e.tolist()))


def largest_error(
    target: Function, approximation: Function, domain: tuple[float, float] = (0.0, 8.0), weight: Function | None = None
) -> tuple[float, float]:
    """The largest |e| of an approximation whose constants are given, and where it is.

    Args:
        target: g, takes (N,) float64 and gives (N,).
        approximation: takes (N,), gives (N,).
        domain: (low, high) of x.
        weight: w, takes (N,); None: 1.

    Returns:
        (largest |e|, its x).

    Raises:
        ValueError: an empty domain, or values that are not finite.

    >>> [round(n, 6) for n in largest_error(torch.zeros_like, lambda x: x * (1 - x), (0.0, 1.0))]
    [0.25, 0.5]
    """
    error = _error(target, lambda x, p: approximation(x), weight)
    x, e = _extremes(lambda x: error(x, x[:0]), domain)
    at = int(e.abs().argmax())
    return float(e[at].abs()), float(x[at])


def _error(target: Function, family: Family, weight: Function | None) -> Callable[[Tensor, Tensor], Tensor]:
    def error(x: Tensor, params: Tensor) -> Tensor:
        e = family(x, params) - target(x)
        return e if weight is None else weight(x) * e

    return error


def _extremes(error: Function, domain: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Places and values of the local extremes of |e|, both ends among them, to within rounding."""
    low, high = domain
    if not low < high:
        raise ValueError(f"a domain is (low, high) with low < high, got {domain}")
    x = torch.linspace(low, high, _GRID + 1, dtype=torch.float64)
    e = error(x)
    if not bool(e.isfinite().all()):
        raise ValueError(f"the error is not finite at x = {float(x[~e.isfinite()][0]):g}; take a smaller domain")
    size = e.abs()
    left, right = size[1:-1] - size[:-2], size[1:-1] - size[2:]
    inner = 1 + ((left >= 0) & (right >= 0) & (size[1:-1] > 1e-9 * size.max())).nonzero()[:, 0]
    a, b = x[inner - 1], x[inner + 1]
    for _ in range(45):  # golden section, all brackets at once
        c, d = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
        keeps_left = error(c).abs() > error(d).abs()
        a, b = torch.where(keeps_left, a, c), torch.where(keeps_left, d, b)
    places = torch.cat([x[:1], (a + b) / 2, x[-1:]])
    return places, error(places)


def _swings(x: Tensor, e: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """count + 1 extremes with alternating signs, the largest ones that there are."""
    keep: list[int] = []
    floor = 1e-9 * float(e.abs().max())
    for i, value in enumerate(e.tolist()):
        if abs(value) <= floor:
            continue
        if keep and (value > 0) == (float(e[keep[-1]]) > 0):
            keep[-1] = i if abs(value) > abs(float(e[keep[-1]])) else keep[-1]
        else:
            keep.append(i)
    while len(keep) > count + 1:
        keep.pop(0 if abs(float(e[keep[0]])) < abs(float(e[keep[-1]])) else -1)
    if len(keep) < count + 1:
        raise ValueError(
            f"the error changes sign {max(len(keep) - 1, 0)} times, an optimum with {count} parameters needs {count}; "
            "start nearer to it, or take a wider domain"
        )
    return x[keep], e[keep]


def _levelled(error: Callable[[Tensor, Tensor], Tensor], params: Tensor, x: Tensor, sign: float) -> Tensor:
    """The parameters after one of Newton's steps towards eq. (2) at fixed places."""
    signs = sign * torch.tensor([(-1.0) ** i for i in range(len(x))], dtype=torch.float64)
    e, slope = (part[0] for part in rowwise_jacobian(_over_copies(error, x), params[None]))  # (k + 1,), (k + 1, k)
    step, failed = torch.linalg.solve_ex(torch.cat([slope, -signs[:, None]], 1), e)  # eq. (2)
    if int(failed):
        raise ValueError("a parameter has no influence at the extremes of the error; take it out, or start elsewhere")
    return params - step[:-1]


def _over_copies(error: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Function:
    """The errors (..., N) at fixed places of parameters (..., k)."""

    def errors(params: Tensor) -> Tensor:
        each = [error(x, copy) for copy in params.reshape(-1, params.shape[-1]).unbind()]
        return torch.stack(each).reshape(*params.shape[:-1], len(x))

    return errors
