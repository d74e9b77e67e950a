"""Minimax fits: Chebyshev's polynomials, a second library, the certificate, SquarePlus, starts, weights, messages."""

import math

import numpy as np
import pytest
import torch

from danlu.math.minimax import largest_error, least_squares_fit, minimax_fit


def polynomial(x, p):
    return sum(a * x**i for i, a in enumerate(p.unbind()))


def test_the_best_cubic_for_a_quartic_is_chebyshevs():  # x^4 - p(x) is the monic Chebyshev polynomial T_4 / 8
    fit = minimax_fit(lambda x: x**4, polynomial, (0.0, 0.0, 0.0, 0.0), (-1.0, 1.0))
    np.testing.assert_allclose(fit.params, [-1 / 8, 0, 1, 0], atol=1e-12)
    assert fit.max_error == pytest.approx(1 / 8, abs=1e-13)
    np.testing.assert_allclose(fit.points, [-1, -math.sqrt(0.5), 0, math.sqrt(0.5), 1], atol=1e-6)
    np.testing.assert_allclose(fit.errors, [-1 / 8, 1 / 8, -1 / 8, 1 / 8, -1 / 8], atol=1e-13)


def test_least_squares_is_legendres():  # and the largest of its errors, at the ends
    fit = least_squares_fit(lambda x: x**3, polynomial, (0.0, 0.0, 0.0), (-1.0, 1.0))
    np.testing.assert_allclose(fit.params, [0, 3 / 5, 0], atol=1e-10)
    assert fit.max_error == pytest.approx(2 / 5, abs=1e-9)
    assert fit.points[0] == -1
    assert fit.points[-1] == 1


def test_exponential_line_by_hand():  # e^x on [0, 1]: the slope is e - 1, the middle place log of it
    fit = minimax_fit(torch.exp, polynomial, (1.0, 1.0), (0.0, 1.0))
    slope = math.e - 1
    intercept = (1 + slope - slope * math.log(slope)) / 2
    np.testing.assert_allclose(fit.params, [intercept, slope], atol=1e-11)
    np.testing.assert_allclose(fit.points, [0, math.log(slope), 1], atol=1e-6)
    assert fit.max_error == pytest.approx(1 - intercept, abs=1e-11)


def test_a_weight_makes_relative_errors():  # a constant for x on [1, 3], weight 1 / x: |a - 1| = |a - 3| / 3
    fit = minimax_fit(lambda x: x, lambda x, p: p[0] + 0 * x, (2.0,), (1.0, 3.0), weight=lambda x: 1 / x)
    assert fit.params[0] == pytest.approx(1.5, abs=1e-12)
    assert fit.max_error == pytest.approx(0.5, abs=1e-12)


def test_weighted_least_squares_by_hand():  # min of int w^2 (a - x)^2 with w = x on [0, 1]: int x^3 / int x^2
    fit = least_squares_fit(lambda x: x, lambda x, p: p[0] + 0 * x, (2.0,), (0.0, 1.0), weight=lambda x: x)
    assert fit.params[0] == pytest.approx(3 / 4, abs=1e-9)


@pytest.mark.parametrize("start", [0.5, 1.0, 2.0, 3.5])
def test_squareplus_for_softplus(start):  # not linear in b; scipy looks at a grid
    from scipy.optimize import minimize_scalar

    def squareplus(x, p):
        return (x + (x * x + p[0]).sqrt()) / 2

    fit = minimax_fit(torch.nn.functional.softplus, squareplus, (start,), (0.0, 30.0))
    x = np.arange(0, 30, 1e-3)
    target = np.log1p(np.exp(-x)) + x
    grid = minimize_scalar(
        lambda b: np.abs((x + np.sqrt(x * x + b)) / 2 - target).max(), bounds=(0.5, 4), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    assert fit.params[0] == pytest.approx(grid.x, abs=1e-5)
    assert fit.max_error == pytest.approx(grid.fun, abs=1e-7)
    assert fit.points[0] == 0
    assert fit.errors[0] == pytest.approx(math.sqrt(fit.params[0]) / 2 - math.log(2), abs=1e-12)
    assert fit.errors[0] == pytest.approx(-fit.errors[1], rel=1e-9)


def test_no_other_parameter_has_a_smaller_worst_error():
    fit = minimax_fit(torch.exp, polynomial, (1.0, 1.0, 0.5), (0.0, 1.0))
    x = torch.linspace(0, 1, 2_001, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        other = torch.tensor(fit.params) + 1e-3 * torch.randn(3, generator=generator)
        assert (polynomial(x, other.double()) - x.exp()).abs().max() > fit.max_error
    assert (polynomial(x, torch.tensor(fit.params, dtype=torch.float64)) - x.exp()).abs().max() <= fit.max_error + 1e-15


def test_largest_error_between_grid_points():
    height, at = largest_error(torch.zeros_like, lambda x: torch.exp(-((x - 1.23456789) ** 2) * 50), (0.0, 8.0))
    assert height == pytest.approx(1, abs=1e-14)
    assert at == pytest.approx(1.23456789, abs=1e-8)
    height, at = largest_error(torch.exp, lambda x: 0 * x, (0.0, 1.0))
    assert (height, at) == (pytest.approx(math.e), 1.0)  # an end


def test_messages():
    with pytest.raises(ValueError, match=r"start from and low < high; got \[\] and \(0.0, 8.0\)"):
        minimax_fit(torch.exp, polynomial, ())
    with pytest.raises(ValueError, match=r"low < high; got \[1.0\] and \(2.0, 1.0\)"):
        least_squares_fit(torch.exp, polynomial, (1.0,), (2.0, 1.0))
    with pytest.raises(ValueError, match="low < high, got"):
        largest_error(torch.exp, torch.exp, (1.0, 1.0))
    with pytest.raises(ValueError, match="not finite at x = 0; take a smaller domain"):
        largest_error(torch.log, torch.exp, (0.0, 1.0))
    with pytest.raises(ValueError, match="a parameter has no influence at the extremes"):
        minimax_fit(lambda x: x**3, lambda x, p: p[0] * x + 0 * p[1], (1.0, 1.0), (-1.0, 1.0))
    with pytest.raises(ValueError, match="changes sign 0 times, an optimum with 1 parameters needs 1"):
        minimax_fit(torch.exp, lambda x, p: 0 * x - p[0] ** 2, (1.0,), (0.0, 1.0))  # always below: no optimum inside
