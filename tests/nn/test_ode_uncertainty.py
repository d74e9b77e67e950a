"""Bootstrap, profiles and bands: against Fisher where the model is straight, against theory where it is not."""

import math

import pytest
import torch

from danlu.nn import (
    Logistic,
    Observations,
    ODESystem,
    bootstrap_ode,
    fit_ode,
    ode_band,
    profile_ode,
    sample_ode,
)

TIMES = torch.linspace(1, 40, 14, dtype=torch.float64)
ONE = torch.ones(1, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Slope(ODESystem):
    """x' = speed: a straight line, for which everything is known."""

    states, parameter_names, signed = ("x",), ("speed",), ("speed", "x")

    def field(self, t, x, p):
        return p[..., :1].expand_as(x)


def line(sigma=None, count=14):
    noise = 0.5 * torch.randn(count, 1, dtype=torch.float64, generator=generator(1))
    data = Observations(TIMES[:count], 2.0 + 0.3 * TIMES[:count, None] + noise, sigma=sigma)
    return fit_ode(Slope(speed=0.1), data, ONE, ("speed", "x"), step=1.0)


def growth(**settings):
    noise = 0.2 * torch.randn(14, 1, dtype=torch.float64, generator=generator(1))
    data = Observations(TIMES, Logistic.solution(TIMES, 1.0, 0.2, 10.0)[:, None] + noise, **settings)
    return fit_ode(Logistic(r=0.3, capacity=7.0), data, ONE, step=1.0)


@pytest.mark.parametrize("kind", ["parametric", "residual"])
def test_bootstrap_of_a_line_is_its_covariance(kind):
    fit = line()
    again = bootstrap_ode(fit, 2000, kind, generator=generator())
    assert again.converged.all()
    spread = again.raw.mT.cov()
    torch.testing.assert_close(spread, fit.covariance, rtol=0.15, atol=0)
    error = fit.std / math.sqrt(2000)
    assert ((again.raw.mean(0) - fit.raw).abs() < 4 * error).all()


def test_bootstrap_of_a_curve_is_near_fisher_and_repeats():
    fit = growth()
    again = bootstrap_ode(fit, 400, generator=generator())
    assert again.estimate.shape == (400, 2)
    torch.testing.assert_close(again.raw.std(0), fit.std, rtol=0.2, atol=0)
    torch.testing.assert_close(bootstrap_ode(fit, 400, generator=generator()).raw, again.raw, rtol=0, atol=0)
    low, high = again.estimate.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    assert ((low < fit.estimate) & (fit.estimate < high)).all()


def test_bootstrap_keeps_missing_readings_missing_and_log_noise_positive():
    values = Logistic.solution(TIMES, 1.0, 0.2, 10.0)[:, None] * torch.exp(0.2 * torch.sin(9 * TIMES))[:, None]
    values[3] = math.nan
    fit = fit_ode(Logistic(r=0.3, capacity=7.0), Observations(TIMES, values, "log", sigma=0.3), ONE, step=1.0)
    again = bootstrap_ode(fit, 300, generator=generator())
    assert (again.problem.keep.sum(1) == 13).all()
    assert (again.problem.observed[again.problem.keep] > 0).all()
    left = again.problem.target - fit.problem.predict(fit.raw[None], torch.zeros(1, dtype=torch.long))[0].log()
    assert left[again.problem.keep].std().item() == pytest.approx(0.3, rel=0.05)  # the sigma given


def test_profile_of_a_line_is_a_parabola_and_its_interval_that_of_t():
    fit = line()
    grid, ssr, (low, high) = profile_ode(fit, "speed", points=41)
    expected = fit.ssr + fit.variance * ((grid - fit.estimate[0]) / fit.std[0]) ** 2
    torch.testing.assert_close(ssr, expected)
    ends = fit.interval()
    assert low == pytest.approx(ends[0][0].item(), rel=0.01)
    assert high == pytest.approx(ends[1][0].item(), rel=0.01)
    assert grid[20] == pytest.approx(fit.estimate[0].item())


def test_profile_of_a_curve_holds_the_name_and_refits_the_rest():
    fit = growth()
    grid, ssr, (low, high) = profile_ode(fit, "capacity", points=9)
    assert ssr[4].item() == pytest.approx(fit.ssr.item(), rel=1e-9)
    assert (ssr >= fit.ssr * (1 - 1e-9)).all()
    assert low < fit.estimate[1] < high
    held = fit_ode(Logistic(r=0.2, capacity=grid[0].item()), fit.problem.data, ONE, ("r",), step=1.0)
    assert ssr[0].item() == pytest.approx(held.ssr.item(), rel=1e-5)  # the system keeps float32
    near = profile_ode(fit, "capacity", points=3, width=0.5)[2]
    assert near == (0.0, math.inf)


def test_draws_have_the_covariance_of_the_fit():
    fit = growth()
    parameters, x0 = sample_ode(fit, 4000, generator())
    torch.testing.assert_close(parameters.log().mT.cov(), fit.covariance, rtol=0.15, atol=1e-6)
    assert (x0 == 1).all()


def test_the_band_of_a_line_is_that_of_regression():
    fit = line(sigma=0.5)
    times = torch.tensor([0.0, 20.0, 60.0], dtype=torch.float64)
    low, middle, high = ode_band(fit, times, 0.9, 8000, generator=generator())
    design = torch.stack((times, torch.ones_like(times)), -1)
    sd = ((design @ fit.covariance) * design).sum(1).sqrt()
    torch.testing.assert_close((high - low)[:, 0], 2 * 1.6449 * sd, rtol=0.06, atol=0)
    torch.testing.assert_close(middle[:, 0], design @ fit.raw, rtol=0, atol=0.05)


def test_what_if_changes_are_seen_by_the_band():
    fit = growth()
    times = torch.tensor([0.0, 200.0], dtype=torch.float64)

    def twice(parameters, x0):
        return parameters * torch.tensor([1.0, 2.0]), 0 * x0 + 3

    plain, changed = (
        ode_band(fit, times, generator=generator()),
        ode_band(fit, times, change=twice, generator=generator()),
    )
    torch.testing.assert_close(changed[1][1], 2 * plain[1][1], rtol=1e-6, atol=0)
    assert changed[0][0].item() == changed[2][0].item() == 3.0
    none = ode_band(fit, times, change=lambda p, x0: (p, 0 * x0), generator=generator())
    assert none[2].max() == 0


def test_messages():
    fit = growth()
    both = Observations(TIMES, torch.stack([fit.problem.data.values] * 2))
    several = fit_ode(Logistic(r=0.3, capacity=7.0), both, ONE, step=1.0)
    for call in (
        bootstrap_ode,
        lambda f: profile_ode(f, "r"),
        lambda f: sample_ode(f, 3),
        lambda f: ode_band(f, TIMES),
    ):
        with pytest.raises(ValueError, match=r"takes the fit of one data set, values \(T, D\); this one has 2"):
            call(several)
    with pytest.raises(ValueError, match="kind in parametric, residual and samples >= 1; got 'wild' and 9"):
        bootstrap_ode(fit, 9, "wild")
    with pytest.raises(ValueError, match="one of at least two unknowns, r, capacity; got 'K'"):
        profile_ode(fit, "K")
    with pytest.raises(ValueError, match="odd number of points >= 3"):
        profile_ode(fit, "r", points=4)
    with pytest.raises(ValueError, match="samples must be >= 1, got 0"):
        sample_ode(fit, 0)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 2"):
        ode_band(fit, TIMES, level=2)
    with pytest.raises(ValueError, match=r"times must be \(T,\), none before 0\.0"):
        ode_band(fit, TIMES - 9)
    with pytest.raises(RuntimeError, match="none of 5 draws has a finite solution"):
        ode_band(fit, TIMES, samples=5, change=lambda p, x0: (p * 1e300, x0))
