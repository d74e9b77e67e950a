"""Fits of equations: known truths, biases, error bars, missing readings, batches, three ways down, messages."""

import dataclasses
import functools
import math
import warnings

import pytest
import torch

from danlu.math import rowwise_jacobian, solve_ode
from danlu.nn import Competition, Logistic, Observations, Pendulum, fit_ode

TRUTH = {"r1": 0.1, "r2": 0.3, "a1": 1e-4, "a2": 2e-4, "b1": 0.002, "b2": 0.003}
DAYS = torch.tensor([10.0, 15.0, 30.0, 36.0, 40.0, 42.0], dtype=torch.float64)
X0 = torch.tensor([100.0, 150.0], dtype=torch.float64)
P = torch.tensor(list(TRUTH.values()), dtype=torch.float64)


def snapshots(step=0.1, method="rk4"):
    system = Competition(**TRUTH)
    return solve_ode(lambda t, x: system.field(t, x, P), X0, [0.0, *DAYS.tolist()], method, step)[1:]


def moved(system, p, t, x):
    return system.field(t, x, p)


def logistic(count=12, noise=0.2, sets=None, seed=0):
    """Observations of r = 0.2, capacity = 10 from x0 = 1, with noise."""
    times = torch.linspace(1, 40, count, dtype=torch.float64)
    exact = Logistic.solution(times, 1.0, 0.2, 10.0)[:, None]
    shape = exact.shape if sets is None else (sets, *exact.shape)
    z = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return times, exact + noise * z


ONE = torch.ones(1, dtype=torch.float64)


def test_six_parameters_come_back_from_snapshots_without_noise():
    start = Competition(r1=0.05, r2=0.1, a1=3e-5, a2=1e-4, b1=0.001, b2=0.001)
    raw = start.raw.detach().clone()
    fit = fit_ode(start, Observations(DAYS, snapshots(1.0)), X0, step=1.0, max_iter=300)
    assert ((fit.estimate / P - 1).abs() < 1e-6).all()
    assert fit.names == start.parameter_names
    assert fit.start_ssr.shape == (1,)
    assert torch.equal(start.raw, raw)
    assert start.raw.grad is None


def test_the_solver_is_part_of_the_model():
    fit = fit_ode(Competition(**TRUTH), Observations(DAYS, snapshots()), X0, step=0.5, solver="euler")
    error = dict(zip(fit.names, (fit.estimate / P - 1).tolist(), strict=True))
    assert error["r2"] == pytest.approx(-0.034, abs=0.004)
    assert error["a2"] == pytest.approx(-0.045, abs=0.005)


def test_one_percent_of_noise_hides_one_parameter():
    data = Observations(DAYS, snapshots(1.0), noise="log", sigma=0.01)
    fit = fit_ode(Competition(**TRUTH), data, X0, step=1.0)
    assert torch.equal(fit.std.argsort(), torch.tensor([5, 3, 1, 0, 4, 2]))
    q = P.log()  # the same by differences of the solver
    columns, system = [], Competition(**TRUTH)
    for h in 1e-5 * torch.eye(6, dtype=torch.float64):
        up, down = (
            solve_ode(functools.partial(moved, system, (q + d).exp()), X0, [0.0, *DAYS.tolist()], step=1.0)
            for d in (h, -h)
        )
        columns.append(((up.log() - down.log())[1:] / 2e-5).flatten())
    expected = torch.linalg.inv(torch.stack(columns, 1).mT @ torch.stack(columns, 1)).diagonal().sqrt() * 0.01
    torch.testing.assert_close(fit.std, expected, rtol=1e-3, atol=0)
    assert fit.weak.tolist() == [name == "a1" for name in fit.names]
    again = fit_ode(Competition(**TRUTH), dataclasses.replace(data, sigma=0.02), X0, step=1.0)
    torch.testing.assert_close(again.std, 2 * fit.std, rtol=1e-6, atol=0)
    torch.testing.assert_close(again.correlation, fit.correlation, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fit.correlation.diagonal(), torch.ones(6, dtype=torch.float64))


def test_error_bars_are_those_of_scipy():
    from scipy.optimize import curve_fit
    from scipy.stats import t as student

    times, values = logistic()
    fit = fit_ode(Logistic(r=0.3, capacity=7.0), Observations(times, values), ONE, step=0.5)
    best, covariance = curve_fit(
        lambda t, r, k: k / (1 + (k - 1) * torch.exp(-r * torch.as_tensor(t))).numpy(),
        times.numpy(),
        values[:, 0],
        [0.3, 7],
    )
    assert fit.estimate.tolist() == pytest.approx(list(best), rel=1e-5)
    natural = fit.std * fit.estimate
    assert natural.tolist() == pytest.approx([math.sqrt(covariance[0, 0]), math.sqrt(covariance[1, 1])], rel=1e-3)
    low, high = fit.interval(0.9)
    half = student.ppf(0.95, 10) * fit.std
    torch.testing.assert_close(low, fit.estimate * torch.exp(-half))
    torch.testing.assert_close(high, fit.estimate * torch.exp(half))
    assert fit.dof == 10
    torch.testing.assert_close(fit.variance, fit.ssr / 10)
    assert fit.fitted(times)[:, 0].tolist() == pytest.approx((values[:, 0] - 0.0).tolist(), abs=1.0)


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_gradient_descent_ends_where_least_squares_ends(method):
    times, values = logistic()
    data = Observations(times, values)
    expected = fit_ode(Logistic(r=0.3, capacity=7.0), data, ONE, step=2.0)
    found = fit_ode(Logistic(r=0.3, capacity=7.0), data, ONE, method=method, step=2.0, max_iter=120, lr=0.05)
    torch.testing.assert_close(found.estimate, expected.estimate, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.std, expected.std, rtol=1e-2, atol=0)
    assert found.ssr >= expected.ssr * (1 - 1e-12)
    assert found.converged or method == "adam"  # which circles the end


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(mode):
    times, values = logistic()
    data = Observations(times, values)
    expected = fit_ode(Logistic(r=0.3, capacity=7.0), data, ONE, step=2.0)
    system = Logistic(r=0.3, capacity=7.0)
    with mode():
        torch.testing.assert_close(fit_ode(system, data, ONE, step=2.0).estimate, expected.estimate)
    with torch.no_grad():
        for method in ("adam", "lbfgs"):
            assert fit_ode(system, data, ONE, method=method, step=2.0, max_iter=3).ssr < 0.95 * 20


def test_missing_readings_do_not_count():
    times, values = logistic()
    keep = torch.ones(12, dtype=torch.bool)
    keep[[2, 7]] = False
    short = fit_ode(Logistic(r=0.3, capacity=7.0), Observations(times[keep], values[keep]), ONE, step=0.5)
    holes = values.clone()
    holes[~keep] = math.nan
    wild = values.clone()
    wild[~keep] = -1e9
    for data in (Observations(times, holes), Observations(times, wild, mask=keep[:, None])):
        fit = fit_ode(Logistic(r=0.3, capacity=7.0), data, ONE, step=0.5)
        torch.testing.assert_close(fit.estimate, short.estimate, rtol=1e-6, atol=0)
        torch.testing.assert_close(fit.covariance, short.covariance, rtol=1e-4, atol=0)
        assert fit.dof == 8


def test_order_and_repetition_of_times_do_not_matter():
    times, values = logistic()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    plain = fit_ode(Logistic(r=0.3, capacity=7.0), Observations(times, values), ONE, step=0.5)
    mixed = fit_ode(Logistic(r=0.3, capacity=7.0), Observations(times[order], values[order]), ONE, step=0.5)
    torch.testing.assert_close(mixed.estimate, plain.estimate, rtol=1e-8, atol=0)
    twice = Observations(times.repeat(2), values.repeat(2, 1), sigma=0.2)
    double = fit_ode(Logistic(r=0.3, capacity=7.0), twice, ONE, step=0.5)
    torch.testing.assert_close(double.estimate, plain.estimate, rtol=1e-7, atol=0)
    single = fit_ode(Logistic(r=0.3, capacity=7.0), Observations(times, values, sigma=0.2), ONE, step=0.5)
    torch.testing.assert_close(double.std * math.sqrt(2), single.std, rtol=1e-6, atol=0)


def test_several_data_sets_are_each_alone():
    times, values = logistic(sets=3)
    values[1, 4] = math.nan
    start = torch.tensor([[1.0], [1.0], [1.2]])
    fit = fit_ode(Logistic(r=0.3, capacity=7.0), Observations(times, values), start, step=0.5)
    assert fit.estimate.shape == (3, 2)
    assert fit.fitted(times).shape == (12, 3, 1)
    low, high = fit.interval()
    for i in range(3):
        alone = fit_ode(Logistic(r=0.3, capacity=7.0), Observations(times, values[i]), start[i], step=0.5)
        torch.testing.assert_close(alone.estimate, fit.estimate[i], rtol=1e-9, atol=0)
        torch.testing.assert_close(alone.covariance, fit.covariance[i], rtol=1e-7, atol=0)
        torch.testing.assert_close(torch.stack(alone.interval()), torch.stack((low[i], high[i])), rtol=1e-7, atol=0)
        torch.testing.assert_close(alone.fitted(times), fit.fitted(times)[:, i], rtol=1e-9, atol=0)


def test_intervals_hold_what_they_promise():
    times, values = logistic(count=10, sets=300, noise=0.3, seed=3)
    fit = fit_ode(Logistic(r=0.25, capacity=9.0), Observations(times, values), ONE, step=2.0)
    low, high = fit.interval(0.9)
    truth = torch.tensor([0.2, 10.0], dtype=torch.float64)
    inside = ((low <= truth) & (truth <= high)).double().mean(0)
    error = math.sqrt(0.9 * 0.1 / 300)
    assert ((inside - 0.9).abs() < 4 * error).all(), inside
    assert fit.variance.mean().item() == pytest.approx(0.09, abs=4 * 0.09 * math.sqrt(2 / 8 / 300))


def test_a_free_start_and_a_signed_one():
    pendulum = Pendulum(stiffness=9.0, damping=0.3)
    times = torch.linspace(0.1, 4, 30, dtype=torch.float64)
    p = torch.tensor([9.0, 0.3], dtype=torch.float64)
    start = torch.tensor([-1.0, 0.5], dtype=torch.float64)
    seen = solve_ode(lambda t, x: pendulum.field(t, x, p), start, [0.0, *times.tolist()], step=0.02)[1:, :1]
    seen = seen + 1e-3 * torch.sin(40 * times)[:, None]
    data = Observations(times, seen, states=("angle",))
    guess = torch.tensor([-0.8, 0.0], dtype=torch.float64)
    fit = fit_ode(
        Pendulum(stiffness=8.0, damping=0.1), data, guess, ("stiffness", "damping", "angle", "velocity"), step=0.02
    )
    assert fit.estimate.tolist() == pytest.approx([9.0, 0.3, -1.0, 0.5], rel=0.01)
    low, high = fit.interval()
    assert (low < high).all()
    assert low[2] < 0


def test_log_noise_takes_a_reading_of_zero_with_an_offset_only():
    times, values = logistic(noise=0.0)
    values[0] = 0.0
    with pytest.raises(ValueError, match=r"x at time 1 is 0 with offset=0\.0"):
        fit_ode(Logistic(r=0.3, capacity=7.0), Observations(times, values, "log"), ONE)
    fit = fit_ode(Logistic(r=0.3, capacity=7.0), Observations(times, values, "log", offset=1.0), ONE, step=0.5)
    assert fit.estimate.isfinite().all()


def test_several_starts_find_what_one_misses():
    times, values = logistic()
    data = Observations(times, values)
    lost = Logistic(r=30.0, capacity=1.0)  # at capacity from the first day: no slope in r at all
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = fit_ode(lost, data, ONE, step=1.0)
    many = fit_ode(lost, data, ONE, starts=30, spread=3.0, step=1.0, generator=torch.Generator().manual_seed(0))
    assert many.ssr < 0.2 * one.ssr
    assert many.start_ssr.shape == (30,)
    assert many.ssr == many.start_ssr.min()
    again = fit_ode(lost, data, ONE, starts=30, spread=3.0, step=1.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(many.estimate, again.estimate)


@pytest.mark.parametrize("solver", ["trapezoid", "backward_euler", "dopri5"])
def test_sensitivities_go_through_every_solver(solver):
    times, values = logistic(count=4)
    fit = fit_ode(Logistic(r=0.3, capacity=7.0), Observations(times, values), ONE, step=2.0, solver=solver, max_iter=20)
    problem, rows, q = fit.problem, torch.zeros(1, dtype=torch.long), fit.raw[None]
    _, jacobian = rowwise_jacobian(lambda z: problem.residuals(z, rows), q)
    for j in range(2):
        h = torch.zeros_like(q)
        h[0, j] = 1e-5
        slope = (problem.residuals(q + h, rows) - problem.residuals(q - h, rows))[0] / 2e-5
        torch.testing.assert_close(jacobian[0, :, j], slope, rtol=1e-6, atol=1e-8)


def test_no_finite_solution_anywhere():
    times, values = logistic()
    with pytest.raises(RuntimeError, match="no start of data set 0 has a finite solution"):
        fit_ode(Logistic(r=1e200, capacity=1.0), Observations(times, values), ONE, step=1.0)


def test_messages():
    times, values = logistic()
    system, data = Logistic(r=0.3, capacity=7.0), Observations(times, values)
    for change, message in (
        ({"noise": "poisson"}, "noise must be one of normal, log; got 'poisson'"),
        ({"offset": -1.0}, "offset must be finite and >= 0"),
        ({"states": ("y",)}, "states must be among x, each once"),
        ({"values": values[:3]}, r"values must end in \(12, 1\), times by states \(x\); got \(3, 1\)"),
        ({"values": values[:, 0]}, r"times \(T,\) and values \(T, D\)"),
        ({"start": 5.0}, r"not before start=5\.0; got 1 at least"),
        ({"mask": torch.ones(12)}, r"mask must be bool \(12, 1\)"),
        ({"values": values / 0}, "values must be finite or nan"),
        ({"sigma": 0.0}, r"sigma must be > 0, a number or \(1,\); got 0\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_ode(system, dataclasses.replace(data, **change), ONE)
    with pytest.raises(ValueError, match="lm, lbfgs, adam; got 'newton'"):
        fit_ode(system, data, ONE, method="newton")
    with pytest.raises(ValueError, match="starts=0"):
        fit_ode(system, data, ONE, starts=0)
    with pytest.raises(ValueError, match=r"free must name parameters or states, each once, of r, capacity, x"):
        fit_ode(system, data, ONE, ("r", "r"))
    with pytest.raises(ValueError, match=r"x0 must be \(1,\) or \(1, 1\)"):
        fit_ode(system, data, torch.ones(2))
    with pytest.raises(ValueError, match="x0 must be finite"):
        fit_ode(system, data, ONE * math.nan)
    with pytest.raises(ValueError, match="x is free and positive, so it must start above 0; got 0"):
        fit_ode(system, data, 0 * ONE, ("x", "r"))
    with pytest.raises(ValueError, match=r"2 observations cannot fix 2 unknowns \(r, capacity\)"):
        fit_ode(system, Observations(times[:2], values[:2]), ONE)
    with pytest.raises(ValueError, match="0 observations cannot fix"):
        fit_ode(system, dataclasses.replace(data, values=values * math.nan), ONE)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 95"):
        fit_ode(system, data, ONE, step=1.0).interval(95)
