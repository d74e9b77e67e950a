"""One step of every rule: matrix exponential, order by halving, a nonlinear root, gradients, rows, dtypes, messages."""

import math

import pytest
import torch

from danlu.math import ODE_METHODS, ode_step

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "dopri5": 5, "backward_euler": 1, "trapezoid": 2}
X = torch.tensor([[1.0, 0.5], [2.0, -1.0]], dtype=torch.float64)
A = torch.tensor([[-0.5, 1.0], [-2.0, -0.1]], dtype=torch.float64)


def linear(t, x):
    return x @ A.T


def forced(t, x):  # explicit in time: nodes and stages both count; no polynomial
    return torch.stack((math.cos(3 * t) * x[..., 1], -x[..., 0] * x[..., 1] + math.exp(-t)), -1)


def test_every_method_is_listed():
    assert set(ODE_METHODS) == set(ORDERS)


@pytest.mark.parametrize("method", ODE_METHODS)
def test_one_step_misses_the_exponential_by_its_order_plus_one(method):
    errors = []
    for h in (0.1, 0.05):
        exact = X @ torch.linalg.matrix_exp(A * h).T
        errors.append((ode_step(linear, 0.0, X, h, method) - exact).norm().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[method] + 1, abs=0.25)


@pytest.mark.parametrize("method", ODE_METHODS)
def test_global_order_on_an_equation_that_depends_on_time(method):
    from scipy.integrate import solve_ivp

    f = lambda t, x: forced(t, torch.from_numpy(x)).numpy()  # noqa: E731
    exact = torch.from_numpy(solve_ivp(f, (0.3, 2.3), X[0].numpy(), rtol=1e-12, atol=1e-13, method="DOP853").y[:, -1])
    errors = []
    for count in (40, 80):
        x = X[0]
        for i in range(count):
            x = ode_step(forced, 0.3 + i * 2 / count, x, 2 / count, method)
        errors.append((x - exact).norm().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[method], abs=0.35)


def test_explicit_rules_are_the_taylor_polynomial_on_linear_equations():
    for method, terms in (("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)):
        one = torch.ones(1, dtype=torch.float64)
        expected = sum((-0.7) ** n / math.factorial(n) for n in range(terms + 1))
        assert ode_step(lambda t, x: -0.7 * x, 0.0, one, 1.0, method).item() == pytest.approx(expected, abs=1e-14)


def test_implicit_rules_by_hand_and_stay_bounded_where_euler_explodes():
    one = torch.ones(1, dtype=torch.float64)
    assert ode_step(lambda t, x: -50 * x, 0.0, one, 1.0, "backward_euler").item() == pytest.approx(1 / 51)
    assert ode_step(lambda t, x: -50 * x, 0.0, one, 1.0, "trapezoid").item() == pytest.approx(-24 / 26)
    assert ode_step(lambda t, x: -50 * x, 0.0, one, 1.0, "euler").item() == -49


def test_the_implicit_root_of_a_square():  # y = 1 - y^2: the golden section
    y = ode_step(lambda t, x: -x.square(), 0.0, torch.ones(1, dtype=torch.float64), 1.0, "backward_euler")
    assert y.item() == pytest.approx((math.sqrt(5) - 1) / 2, abs=1e-14)


def test_a_row_without_a_root_is_nan_and_the_others_stay():  # y = x + y^2 has no root for x > 1/4
    x = torch.tensor([[0.2], [1.0]], dtype=torch.float64)
    y = ode_step(lambda t, x: x.square(), 0.0, x, 1.0, "backward_euler")
    assert y[0].item() == pytest.approx((1 - math.sqrt(1 - 0.8)) / 2)
    assert y[1].isnan()


@pytest.mark.parametrize("method", ODE_METHODS)
def test_gradcheck_in_state_and_parameter(method):
    p = torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)

    def step(x, p):
        return ode_step(lambda t, x: torch.tanh(p * x.flip(-1)) - t * x, 0.4, x, 0.3, method)

    assert torch.autograd.gradcheck(step, (X.clone().requires_grad_(), p))


@pytest.mark.parametrize("method", ODE_METHODS)
def test_rows_do_not_see_one_another_and_any_axes_lead(method):
    whole = ode_step(forced, 0.2, X, 0.1, method)
    for i in range(2):
        torch.testing.assert_close(ode_step(forced, 0.2, X[i], 0.1, method), whole[i], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(ode_step(forced, 0.2, X[None].expand(3, -1, -1), 0.1, method)[2], whole)
    strided = torch.stack((X, X), -1)[..., 0]
    torch.testing.assert_close(ode_step(forced, 0.2, strided, 0.1, method), whole)


@pytest.mark.parametrize("method", ODE_METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_follows_the_state(method, dtype):
    y = ode_step(linear_as(dtype), 0.0, X.to(dtype), 0.1, method)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), ode_step(linear, 0.0, X, 0.1, method), rtol=0.02, atol=0.02)


def linear_as(dtype):
    def field(t, x):
        assert x.dtype == dtype  # a module in half precision gets what it can take
        return x @ A.T.to(dtype)

    return field


def test_a_constant_slope_and_no_rows():
    for method in ODE_METHODS:
        torch.testing.assert_close(ode_step(lambda t, x: torch.ones_like(x), 0.0, X, 0.5, method), X + 0.5)
        assert ode_step(linear, 0.0, X[:0], 0.5, method).shape == (0, 2)


def test_nothing_leaks_out_of_no_grad_and_inference_mode():
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for method in ODE_METHODS:
                y = ode_step(forced, 0.2, X, 0.1, method)
                assert not y.requires_grad
                assert y.isfinite().all()


def test_messages():
    with pytest.raises(ValueError, match=r"one of euler, midpoint.*got 'rk5'"):
        ode_step(linear, 0.0, X, 0.1, "rk5")
    with pytest.raises(ValueError, match=r"float tensor \(\.\.\., d\), got torch.int64"):
        ode_step(linear, 0.0, torch.tensor([1]), 0.1)
    with pytest.raises(ValueError, match=r"finite time and step, got t=0\.0 and h=nan"):
        ode_step(linear, 0.0, X, math.nan)
    with pytest.raises(ValueError, match=r"shape of x, \(2, 2\); got \(2, 1\)"):
        ode_step(lambda t, x: x[..., :1], 0.0, X, 0.1)
