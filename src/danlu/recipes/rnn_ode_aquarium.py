r"""The nitrogen cycle of a new aquarium from test kits: which rates of its bacteria can be known, and which cannot.

Claim  kexue.fm/archives/5643: the parameters of an equation can be found by gradient through its solver. The post of
       2020-12-07 on a planted tank aims at long intervals between water changes. Neither gives numbers: 0.95 is what
       a 95 % interval promises.
Test   tanks with known rates, each different, with readings of ammonia, nitrite and nitrate every second day for six
       weeks, noise of 8 %: coverage and width of 95 % intervals of four rates and two seed populations; the same
       tanks with nitrate alone, and read every eighth day; bootstrap beside Fisher's matrix; a yield set free together
       with its seed population (never identifiable); the day of 50 mg/L nitrate had the load been half, and had the
       filter been seeded tenfold: error and coverage, beside a tank that makes nitrate at once
Data   simulated tanks, by the model that is fitted: how far real water departs from it is not measured here
Run    danlu run rnn_ode_aquarium --scale smoke|full --seed 0 --set tanks=200
"""

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from danlu.gallery.record import Result
from danlu.math import solve_ode
from danlu.nn import (
    Aquarium,
    Observations,
    ODEFit,
    as_nitrogen,
    bootstrap_ode,
    first_crossing,
    fit_ode,
    ode_band,
    sample_ode,
)

__all__ = ["SCALES", "Config", "run", "train"]

FREE = ("mu_a", "k_a", "mu_n", "k_n", "ammonia_oxidisers", "nitrite_oxidisers")
KITS = Aquarium.states[:3]
HORIZON = 120.0  # days; what has not come by then counts as that day
SCENES = {"half the load": (0.5, 1.0), "ten times the seed": (1.0, 10.0)}  # factors of load and of both populations


@dataclass(frozen=True)
class Config:
    """Rates of the tanks scatter around those of the example."""

    tanks: int = 100
    scatter: float = 0.15  # of their rates and seeds, in logarithms
    noise: float = 0.08  # of a reading, in logarithms
    offset: float = 0.05  # mg N / L, about the least a kit tells from nothing
    days: int = 42
    step: float = 0.25  # days
    starts: int = 2
    spread: float = 0.25  # of the starts around a guess that is as far off itself
    max_iter: int = 40
    bootstrap_tanks: int = 5
    bootstraps: int = 100
    forecast_tanks: int = 10
    draws: int = 200


SCALES = {
    "smoke": Config(
        tanks=2, days=32, step=0.5, starts=1, max_iter=3, bootstrap_tanks=1, bootstraps=2, forecast_tanks=1, draws=4
    ),
    "full": Config(),
}


@dataclass(frozen=True)
class Tanks:
    """True parameters (B, 10), states of the first day (B, 5), and readings (B, T, 3) at days (T,)."""

    parameters: Tensor
    x0: Tensor
    days: Tensor
    readings: Tensor

    def free(self) -> Tensor:
        """(B, 6) the true values of what is fitted."""
        names = (*Aquarium.parameter_names, *Aquarium.states)
        both = torch.cat((self.parameters, self.x0), 1)
        return both[:, [names.index(name) for name in FREE]]


def draw(config: Config, generator: torch.Generator) -> Tanks:
    """Tanks whose rates differ, and what their keepers read off."""
    parameters = torch.tensor([*Aquarium.defaults.values()], dtype=torch.float64).repeat(config.tanks, 1)
    x0 = Aquarium.start().repeat(config.tanks, 1)
    z = config.scatter * torch.randn(config.tanks, len(FREE), dtype=torch.float64, generator=generator)
    for j, name in enumerate(FREE):
        place = Aquarium.parameter_names.index(name) if name in Aquarium.parameter_names else None
        column = x0[:, Aquarium.states.index(name)] if place is None else parameters[:, place]
        column *= z[:, j].exp()
    days = torch.arange(2.0, config.days + 1, 2.0, dtype=torch.float64)
    exact = states(parameters, x0, days, config.step)[..., :3].movedim(0, 1)  # (B, T, 3)
    noise = torch.randn(exact.shape, dtype=torch.float64, generator=generator)
    return Tanks(parameters, x0, days, (exact + config.offset) * torch.exp(config.noise * noise) - config.offset)


def states(parameters: Tensor, x0: Tensor, days: Tensor, step: float) -> Tensor:
    """(T, B, 5)."""
    tank = Aquarium()
    return solve_ode(lambda t, x: tank.field(t, x, parameters), x0, [0.0, *days.tolist()], step=step)[1:]


def train(config: Config, tanks: Tanks, seen: Tensor, kits: tuple[str, ...], seed: int) -> ODEFit:
    """Fit all tanks from those readings (T,) that are seen, from a guess that is wrong by `spread`."""
    generator = torch.Generator().manual_seed(seed)
    off = torch.exp(config.spread * torch.randn(len(FREE), dtype=torch.float64, generator=generator))
    factor = dict(zip(FREE, off.tolist(), strict=True))
    system = Aquarium(**{n: v * factor.get(n, 1.0) for n, v in Aquarium.defaults.items()})
    x0 = Aquarium.start() * torch.tensor([factor.get(n, 1.0) for n in Aquarium.states], dtype=torch.float64)
    values = tanks.readings[:, seen][..., [KITS.index(kit) for kit in kits]]
    data = Observations(tanks.days[seen], values, noise="log", offset=config.offset, states=kits)
    return fit_ode(
        system, data, x0, FREE, starts=config.starts, spread=config.spread, step=config.step,
        max_iter=config.max_iter, generator=generator,
    )  # fmt: skip


def judge(config: Config, tanks: Tanks, fit: ODEFit, arm: str) -> dict[str, float]:
    """Coverage, width and how much is weak."""
    truth, (low, high) = tanks.free(), fit.interval()
    inside = ((low <= truth) & (truth <= high)).double().mean(0)
    found = {f"{arm}: coverage": float(inside.mean())}
    found |= {f"{arm}: coverage of {n}": float(v) for n, v in zip(FREE, inside, strict=True)}
    found |= {f"{arm}: standard error of log {n}": float(v) for n, v in zip(FREE, fit.std.median(0)[0], strict=True)}
    weak = fit.weak.double().mean(0)
    found |= {f"{arm}: share of tanks with weak {n}": float(v) for n, v in zip(FREE, weak, strict=True)}
    found[f"{arm}: median condition number"] = float(fit.condition.median())
    found[f"{arm}: share of tanks stuck"] = float((fit.variance > 4 * config.noise**2).double().mean())
    return found


def alone(tanks: Tanks, fit: ODEFit, i: int, config: Config) -> ODEFit:
    """The fit of one tank, from where the fit of all has found it."""
    estimate = dict(zip(FREE, fit.estimate[i].tolist(), strict=True))
    system = Aquarium(**{n: estimate.get(n, v) for n, v in Aquarium.defaults.items()})
    start = Aquarium.start().tolist()
    x0 = torch.tensor([estimate.get(n, v) for n, v in zip(Aquarium.states, start, strict=True)], dtype=torch.float64)
    data = replace(fit.problem.data, values=tanks.readings[i])
    return fit_ode(system, data, x0, FREE, step=config.step, max_iter=config.max_iter)


def forecast(config: Config, tanks: Tanks, fits: list[ODEFit], seed: int) -> dict[str, float]:
    """The day of 50 mg/L nitrate had the tank been run otherwise: median and interval of draws, against the truth."""
    level = float(as_nitrogen(torch.tensor(50.0), "NO3"))
    ahead = torch.arange(0.5, HORIZON + 0.5, 0.5, dtype=torch.float64)
    load = Aquarium.parameter_names.index("load")
    found: dict[str, list[float]] = {}
    for scene, (feed, seeded) in SCENES.items():
        change, seeds = torch.ones(len(Aquarium.parameter_names)).double(), torch.ones(len(Aquarium.states)).double()
        change[load], seeds[3:] = feed, seeded
        for i, fit in enumerate(fits):
            true = states(tanks.parameters[i] * change, tanks.x0[i] * seeds, ahead, config.step)[..., 2]
            day = float(first_crossing(ahead, true, level).clamp_max(HORIZON))
            parameters, x0 = sample_ode(fit, config.draws, torch.Generator().manual_seed(seed))
            drawn = states(parameters * change, x0 * seeds, ahead, config.step)[..., 2]
            days = first_crossing(ahead, drawn, level).clamp_max(HORIZON)
            low, middle, high = days.quantile(torch.tensor([0.025, 0.5, 0.975], dtype=torch.float64)).tolist()
            at_once = (level - float(tanks.x0[i, :3].sum())) / float(tanks.parameters[i, load] * feed)
            found.setdefault(f"{scene}: error, days", []).append(abs(middle - day))
            found.setdefault(f"{scene}: coverage", []).append(float(low <= day <= high))
            found.setdefault(f"{scene}: width, days", []).append(high - low)
            found.setdefault(f"{scene}: error of nitrate at once, days", []).append(abs(min(at_once, HORIZON) - day))
    return {name: sum(values) / len(values) for name, values in found.items()}


def run(config: Config, seed: int) -> Result:
    """All arms on the tanks of one seed."""
    generator = torch.Generator().manual_seed(seed)
    tanks = draw(config, generator)
    every = torch.ones(len(tanks.days), dtype=torch.bool)
    weekly = tanks.days % 8 == 0  # of the readings every second day, one in four
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cannot be told apart is counted below
        fit = train(config, tanks, every, KITS, seed)
        measured = judge(config, tanks, fit, "three kits")
        measured |= judge(config, tanks, train(config, tanks, every, KITS[2:], seed), "nitrate alone")
        measured |= judge(config, tanks, train(config, tanks, weekly, KITS, seed), "every eighth day")
        yields = replace(fit.problem.data, values=tanks.readings[0])
        free = fit_ode(Aquarium(), yields, Aquarium.start(), (*FREE, "y_a"), step=config.step, max_iter=config.max_iter)
        number = min(max(config.bootstrap_tanks, config.forecast_tanks), config.tanks)
        singles = [alone(tanks, fit, i, config) for i in range(number)]
        ratios, hits = [], []
        for i, one in enumerate(singles[: config.bootstrap_tanks]):
            again = bootstrap_ode(one, config.bootstraps, max_iter=config.max_iter, generator=generator)
            low, high = again.raw.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
            truth = tanks.free()[i].log()
            ratios.append(again.raw.std(0) / one.std)
            hits.append(((low <= truth) & (truth <= high)).double())
        measured |= forecast(config, tanks, singles[: config.forecast_tanks], seed)
    measured["yield set free too: log10 of the condition number"] = min(float(free.condition.log10()), 99.0)
    for j, name in enumerate(FREE):
        measured[f"bootstrap over Fisher, spread of {name}"] = float(torch.stack(ratios)[:, j].mean())
    measured["bootstrap: coverage"] = float(torch.stack(hits).mean())
    claimed = {f"{arm}: coverage": 0.95 for arm in ("three kits", "nitrate alone", "every eighth day")}
    claimed |= {"bootstrap: coverage": 0.95}
    claimed |= {f"{scene}: coverage": 0.95 for scene in SCENES}

    days = torch.linspace(0.5, config.days + 18, 121, dtype=torch.float64)
    band = ode_band(singles[0], days, samples=config.draws, generator=generator)
    figures = {
        "tank": {
            "states": list(KITS),
            "times": days.tolist(),
            **{name: part[:, :3].tolist() for name, part in zip(("low", "median", "high"), band, strict=True)},
            "observed_times": tanks.days.tolist(),
            "observed": tanks.readings[0].tolist(),
        },
        "correlation": {"names": list(FREE), "values": singles[0].correlation.tolist()},
    }
    return Result(measured, claimed, figures)
