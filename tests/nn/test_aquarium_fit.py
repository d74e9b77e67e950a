"""Rates of the aquarium from noisy readings: recovered from wrong starts, correlated as they must be, or refused."""

import pytest
import torch

from danlu.math import solve_ode
from danlu.nn import Aquarium, Observations, fit_ode

FREE = ("mu_a", "k_a", "mu_n", "k_n", "ammonia_oxidisers", "nitrite_oxidisers")


def tank_data(seed, sd=0.08):
    days = torch.arange(2.0, 43.0, 2.0, dtype=torch.float64)
    tank = Aquarium()
    exact = solve_ode(
        lambda t, x: tank.field(t, x, torch.tensor([*Aquarium.defaults.values()], dtype=torch.float64)),
        Aquarium.start(),
        [0.0, *days.tolist()],
        step=0.25,
    )[1:, :3]
    noise = torch.randn(exact.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values = (exact + 0.05) * torch.exp(sd * noise) - 0.05
    return Observations(days, values, "log", offset=0.05, states=Aquarium.states[:3])


def test_defaults_stand_in_the_order_of_the_names():
    assert tuple(Aquarium.defaults) == Aquarium.parameter_names


def test_the_tank_is_recovered_from_four_starts():
    wrong = {"mu_a": 0.9, "k_a": 2.0, "mu_n": 0.4, "k_n": 0.6}
    x0 = Aquarium.start() * torch.tensor([1, 1, 1, 0.5, 3.0])
    fit = fit_ode(
        Aquarium(**wrong), tank_data(0), x0, FREE, starts=4, spread=0.2, step=0.25, max_iter=30,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    truth = torch.tensor([0.6, 1.0, 0.5, 1.0, 0.003, 0.0005], dtype=torch.float64)
    z = (fit.estimate / truth).log() / fit.std
    assert z.abs().max() < 4
    torch.testing.assert_close(fit.start_ssr, fit.ssr.expand(4), rtol=1e-4, atol=0)
    assert fit.std.tolist() == pytest.approx([0.024, 0.049, 0.065, 0.108, 0.094, 0.428], rel=0.4)
    correlation = fit.correlation
    assert correlation[0, 1] > 0.6
    assert correlation[0, 4] < -0.6
    assert correlation[2, 5] < -0.9  # seed and growth trade off
    assert 1 < fit.condition < 1e4


def test_seed_and_yield_together_are_refused_by_the_data():
    with pytest.warns(UserWarning, match=r"cannot tell apart .*(y_a.*ammonia_ox|ammonia_ox.*y_a).*condition number"):
        fit = fit_ode(Aquarium(), tank_data(0), Aquarium.start(), ("mu_a", "y_a", "ammonia_oxidisers"), step=0.5)
    assert fit.condition > 1e6
    assert fit.weak.tolist() == [False, True, True]


def test_log_noise_calls_back_a_solution_below_zero():
    tank, x0 = Aquarium(), Aquarium.start() * torch.tensor([1, 1, 1, 300.0, 300.0])
    data = Observations(*(getattr(tank_data(0), n) for n in ("times", "values", "noise", "sigma", "offset", "states")))
    fit = fit_ode(tank, data, x0, ("ammonia_oxidisers", "nitrite_oxidisers"), step=2.0, max_iter=2)
    assert fit.ssr.isfinite()
    low = fit.problem.solve(fit.problem.guess(), torch.zeros(1, dtype=torch.long), fit.problem.moments)
    assert low[..., :2].min() < -0.05
