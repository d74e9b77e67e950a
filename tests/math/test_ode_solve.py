"""Solutions at given times: closed forms, the source's table, scipy, gradients, time reversal, invariants, messages."""

import math

import pytest
import torch

from danlu.math import ODE_METHODS, solve_ode

P = torch.tensor([0.1, 0.3, 1e-4, 2e-4, 0.002, 0.003], dtype=torch.float64)
START = torch.tensor([100.0, 150.0], dtype=torch.float64)
DAYS = [0.0, 10.0, 15.0, 30.0, 36.0, 40.0, 42.0]


def competition(p):  # the source's example, written out by itself
    def field(t, x):
        x1, x2 = x[..., 0], x[..., 1]
        r1, r2, a1, a2, b1, b2 = p
        return torch.stack((r1 * x1 * (1 - b1 * x1) - a1 * x1 * x2, r2 * x2 * (1 - b2 * x2) - a2 * x1 * x2), -1)

    return field


def logistic(t, x):
    return 0.1 * x * (1 - x / 500)


def test_errors_of_euler_and_rk4_on_the_logistic_equation():
    exact = 500 / (1 + 4 * math.exp(-5.0))
    x0 = torch.tensor([100.0], dtype=torch.float64)

    def error(method, h):
        return solve_ode(logistic, x0, [0.0, 50.0], method, step=h)[-1].item() - exact

    assert [abs(error("euler", h)) for h in (1, 0.5, 0.25)] == pytest.approx([1.1807, 0.5881, 0.2935], abs=1e-4)
    assert [error("rk4", h) for h in (1, 0.5, 0.25)] == pytest.approx([-2.1e-5, -1.3e-6, -7.9e-8], rel=0.05)
    assert error("dopri5", 1.0) == pytest.approx(0.0, abs=1e-5)
    assert solve_ode(logistic, x0, [0.0, 50.0], "dopri5", rtol=1e-9)[-1].item() == pytest.approx(exact, abs=1e-5)


def test_the_table_of_the_source():
    found = solve_ode(competition(P), START, DAYS, "euler", step=0.1)
    assert found[:, 0].round().tolist() == [100, 165, 197, 280, 305, 318, 324]
    assert found[:, 1].round().tolist() == [150, 283, 290, 276, 269, 266, 264]
    assert found[1, 1].item() == pytest.approx(282.86, abs=0.005)
    coarse = solve_ode(competition(P), START, DAYS, "euler", step=1.0)
    assert coarse[1, 1].item() == pytest.approx(286.55, abs=0.005)


def test_competition_against_scipy_and_its_equilibrium():
    from scipy.integrate import solve_ivp

    times = [*DAYS, 100.0]
    field = competition(P)
    found = solve_ode(field, START, times, "dopri5", rtol=1e-10, atol=1e-10)
    other = solve_ivp(
        lambda t, x: field(t, torch.from_numpy(x)).numpy(),
        (0, 100),
        START.numpy(),
        t_eval=times,
        rtol=1e-11,
        atol=1e-11,
    )
    torch.testing.assert_close(found, torch.from_numpy(other.y.T.copy()), rtol=1e-7, atol=1e-6)
    expected = [100, 165.06, 196.68, 280.03, 304.89, 318.43, 324.34, 373.55]
    assert found[:, 0].tolist() == pytest.approx(expected, abs=0.006)
    assert found[-1, 1].item() == pytest.approx(250.447142, abs=1e-5)
    far = solve_ode(field, START, [0.0, 2000.0], "dopri5")[-1]
    assert far.tolist() == pytest.approx([375.0, 250.0], abs=1e-3)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_gradient_with_respect_to_logarithms_of_the_parameters(method):
    q = P.log().requires_grad_()
    step = 1.0 if method == "rk4" else None
    x = solve_ode(competition(q.exp()), START, [0.0, *DAYS[2:], 100.0], method, step, rtol=1e-9, atol=1e-9)
    (x / 100).square().sum().backward()
    expected = torch.tensor([70.298, 10.550, -40.493, -11.737, -81.634, -48.321], dtype=torch.float64)
    torch.testing.assert_close(q.grad, expected, rtol=0, atol=1e-3)


def test_gradient_through_ten_rk4_steps():
    x0, p = START.clone().requires_grad_(), P.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x0, q: solve_ode(competition(q * P), x0, [0.0, 3.0, 10.0], step=1.0),
        (x0, (p / P).detach().requires_grad_()),
    )


def test_adaptive_gradient_is_that_of_the_equation_for_tight_tolerances():
    r = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    solve_ode(lambda t, x: -r * x, one, [0.0, 2.0], "dopri5", rtol=1e-10, atol=1e-12)[-1].sum().backward()
    assert r.grad.item() == pytest.approx(-2 * math.exp(-1.4), rel=1e-8)


def turn(t, x):
    return torch.stack((x[..., 1], -x[..., 0]), -1)


@pytest.mark.parametrize("method", ODE_METHODS)
def test_forth_and_back(method):
    x0 = torch.tensor([[1.0, 0.0], [0.3, -2.0]], dtype=torch.float64)
    step = None if method == "dopri5" else 0.01
    there = solve_ode(turn, x0, [0.0, 1.0], method, step, rtol=1e-9, atol=1e-9)[-1]
    back = solve_ode(turn, there, [1.0, 0.5, 0.0], method, step, rtol=1e-9, atol=1e-9)[-1]
    tolerance = {"euler": 0.03, "backward_euler": 0.03, "midpoint": 1e-4, "heun": 1e-4}.get(method, 1e-8)
    torch.testing.assert_close(back, x0, rtol=0, atol=tolerance)
    if method == "trapezoid":  # keeps the circle exactly
        torch.testing.assert_close(there.norm(dim=-1), x0.norm(dim=-1), rtol=0, atol=1e-12)


def test_other_times_change_nothing_beyond_the_tolerance():
    x0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    few = solve_ode(turn, x0, [0.0, 7.0], "dopri5", rtol=1e-8, atol=1e-8)[-1]
    many = solve_ode(turn, x0, torch.linspace(0, 7, 300, dtype=torch.float64), "dopri5", rtol=1e-8, atol=1e-8)[-1]
    exact = torch.tensor([math.cos(7), -math.sin(7)], dtype=torch.float64)
    torch.testing.assert_close(few, exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(many, exact, rtol=0, atol=1e-6)


def test_times_off_the_grid_are_met_exactly():
    x0 = torch.ones(1, dtype=torch.float64)
    found = solve_ode(lambda t, x: torch.full_like(x, t), x0, [0.0, 0.77, 1.3, 1.3], "midpoint", step=0.5)[:, 0]
    assert found.tolist() == pytest.approx([1 + t * t / 2 for t in (0, 0.77, 1.3, 1.3)], abs=1e-14)


def test_a_step_that_divides_the_interval_is_not_cut_once_more():
    calls = []

    def field(t, x):
        calls.append(t)
        return -x

    solve_ode(field, torch.ones(1), [0.0, 0.3], "euler", step=0.1)
    assert len(calls) == 3


def test_a_stiff_equation_by_the_trapezoid_against_scipy():
    from scipy.integrate import solve_ivp

    field = lambda t, x: torch.stack((-1000 * x[..., 0] + 999 * x[..., 1], -x[..., 1]), -1)  # noqa: E731
    x0 = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = solve_ode(field, x0, [0.0, 1.0], "trapezoid", step=0.01)[-1]
    other = solve_ivp(lambda t, x: field(t, torch.from_numpy(x)).numpy(), (0, 1), x0.numpy(), method="LSODA", rtol=1e-9)
    torch.testing.assert_close(found, torch.from_numpy(other.y[:, -1].copy()), rtol=1e-4, atol=1e-5)


def test_float32_one_time_no_rows_and_times_as_a_tensor():
    found = solve_ode(turn, torch.ones(2), torch.tensor([0.0, 1.0]), step=0.1)
    assert found.dtype == torch.float32
    assert solve_ode(turn, torch.ones(2), [3.0]).shape == (1, 2)
    for method in ("rk4", "dopri5"):
        assert solve_ode(turn, torch.ones(0, 2), [0.0, 1.0], method).shape == (2, 0, 2)
    half = solve_ode(turn, torch.ones(2, dtype=torch.bfloat16), [0.0, 1.0], step=0.01)
    assert half.dtype == torch.bfloat16  # a hundred small steps are not lost in eight bits
    torch.testing.assert_close(half.float(), found, rtol=0.02, atol=0.02)
    wide = solve_ode(turn, torch.ones(2), [0.0, 1.0], "dopri5")
    torch.testing.assert_close(wide, found, rtol=0, atol=1e-4)


def test_the_longest_error_of_all_rows_decides():
    x0 = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    rate = torch.tensor([[0.1], [30.0]], dtype=torch.float64)
    found = solve_ode(lambda t, x: -rate * x, x0, [0.0, 1.0], "dopri5", rtol=1e-8, atol=1e-10)[-1]
    torch.testing.assert_close(found, torch.exp(-rate), rtol=0, atol=1e-8)


def test_zero_tolerance_and_zero_state():
    still = solve_ode(lambda t, x: 0 * x, torch.zeros(2), [0.0, 5.0], "dopri5")
    assert still.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    relative = solve_ode(lambda t, x: -x, torch.ones(1).double(), [0.0, 1.0], "dopri5", rtol=1e-8, atol=0.0)
    assert relative[-1].item() == pytest.approx(math.exp(-1), rel=1e-7)


def test_a_blow_up_names_time_row_and_state():
    x0 = torch.tensor([[0.1, 1.0], [0.1, 2.0]], dtype=torch.float64)
    field = lambda t, x: torch.stack((-x[..., 0], x[..., 1].square()), -1)  # noqa: E731  # the second row ends at t = 1/2
    with pytest.raises(
        RuntimeError, match=r"beyond t=0\.5 within a step of .*row 1, state 1 \(of 2\).*stiff or blows up"
    ):
        solve_ode(field, x0, [0.0, 3.0], "dopri5")
    with pytest.raises(RuntimeError, match=r"within 5 steps"):
        solve_ode(turn, x0, [0.0, 300.0], "dopri5", max_steps=5)
    with pytest.raises(RuntimeError, match="could not be solved beyond t=0 "):
        solve_ode(lambda t, x: x * math.nan, x0, [0.0, 1.0], "dopri5")


def test_messages():
    x0 = torch.ones(1)
    with pytest.raises(ValueError, match=r"all rise or all fall; got 2\.0 and then 1\.0"):
        solve_ode(logistic, x0, [0.0, 2.0, 1.0, 3.0])
    with pytest.raises(ValueError, match="finite and at least one"):
        solve_ode(logistic, x0, [])
    with pytest.raises(ValueError, match="finite and at least one"):
        solve_ode(logistic, x0, [0.0, math.nan])
    with pytest.raises(ValueError, match=r"step must be > 0, got -0\.1"):
        solve_ode(logistic, x0, [0.0, 1.0], step=-0.1)
    with pytest.raises(ValueError, match=r"1000000 steps of 1e-06 are more than max_steps=100000"):
        solve_ode(logistic, x0, [0.0, 1.0], step=1e-6)
    with pytest.raises(ValueError, match="rtol, atol >= 0 and not both 0"):
        solve_ode(logistic, x0, [0.0, 1.0], "dopri5", rtol=0.0, atol=0.0)
    with pytest.raises(ValueError, match="method must be one of"):
        solve_ode(logistic, x0, [0.0, 1.0], "lsoda")
