r"""A recurrent cell is an ODE solver, and gradient through its steps fits the parameters; a good curve is not enough.

Claim  kexue.fm/archives/5643: a cell of Euler steps (h = 0.1) prints the table of two competing species; trained on
       seven snapshots of it (h = 1, Adam 1e-4, 10,000 epochs) its curve runs through them (no parameters are given).
       For pelts of hare and lynx a published Bayesian fit has alpha 0.55, beta 0.028, gamma 0.80, delta 0.024
       (Carpenter, 2018, case study of Stan).
Test   the table digit by digit; the source's training on the table and on tables with 1 % of noise: error of the curve
       and of each parameter; least squares from several starts on the same tables; coverage of 95 % intervals over
       many noisy tables; what an Euler model does to data of the exact equation; predator and prey on the real
       pelts: parameters, intervals by Fisher's matrix and by bootstrap, a forecast of the second half from the first
       beside the mean of the first half
Data   simulated with known truth; yearly pelts of the Hudson's Bay Company 1900 to 1920, in thousands, listed below
Run    danlu run rnn_ode --scale smoke|full --seed 0 --set epochs=2000
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from danlu.gallery.record import Result
from danlu.math import solve_ode
from danlu.nn import Competition, Observations, ODEFit, PredatorPrey, SolverRNN, bootstrap_ode, fit_ode, ode_band

__all__ = ["SCALES", "Config", "run", "train"]

TIMES = (10, 15, 30, 36, 40, 42)  # of the source's table, after t = 0
TABLE = ((165, 283), (197, 290), (280, 276), (305, 269), (318, 266), (324, 264))
TRUTH = {"r1": 0.1, "r2": 0.3, "a1": 1e-4, "a2": 2e-4, "b1": 0.002, "b2": 0.003}
GUESS = {"r1": 0.1, "r2": 0.1, "a1": 1e-3, "a2": 1e-3, "b1": 1e-3, "b2": 1e-3}  # where the source starts
START = (100.0, 150.0)
HARE = (30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4, 27.1)
HARE += (40.3, 57.0, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7)
LYNX = (4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1, 7.4)
LYNX += (8.0, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6)
PUBLISHED = {"alpha": 0.55, "beta": 0.028, "gamma": 0.80, "delta": 0.024}


@dataclass(frozen=True)
class Config:
    """The training is the source's; least squares and its noise are ours."""

    epochs: int = 10_000
    lr: float = 1e-4
    clip: float = 1e5  # of the slope
    noise: float = 0.01  # of a snapshot, in logarithms
    trained_tables: int = 4  # noisy tables beside the source's, trained in one batch
    tables: int = 40  # noisy tables for the coverage
    starts: int = 32  # of least squares, for most of them end on a ridge
    spread: float = 1.0  # of the starts, in logarithms
    max_iter: int = 60
    pelt_starts: int = 4
    bootstraps: int = 200
    draws: int = 400  # for bands


SCALES = {
    "smoke": Config(epochs=15, trained_tables=1, tables=3, starts=1, max_iter=6, pelt_starts=1, bootstraps=3, draws=20),
    "full": Config(),
}


def exact(times: tuple[float, ...], h: float, method: str) -> Tensor:
    """The two species at the times, (T, 2)."""
    system, p = Competition(**TRUTH), torch.tensor(tuple(TRUTH.values()), dtype=torch.float64)
    x0 = torch.tensor(START, dtype=torch.float64)
    return solve_ode(lambda t, x: system.field(t, x, p), x0, (0.0, *times), method, h)[1:]


def train(config: Config, tables: Tensor) -> tuple[Tensor, Tensor]:
    """The source's loop on tables (B, T, 2) at once: parameters (B, 6) and curves (B, steps, 2)."""
    system = Competition(**GUESS)
    p = nn.Parameter(torch.tensor(tuple(GUESS.values()), dtype=torch.float64).repeat(len(tables), 1))
    model = SolverRNN(lambda t, x: system.field(t, x, p), h=1.0, method="euler", clip=config.clip)
    x0 = torch.tensor(START, dtype=torch.float64).expand(len(tables), -1)
    places = torch.tensor(TIMES) - 1  # the cell emits x(h) first
    optimizer = torch.optim.Adam([p], lr=config.lr)  # works on each number alone, so on each table alone
    for _ in range(config.epochs):
        optimizer.zero_grad()
        loss = (model(x0, steps=TIMES[-1])[:, places] - tables).square().sum()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return p.detach(), model(x0, steps=TIMES[-1])


def compete(config: Config, tables: Tensor, seed: int) -> ODEFit:
    """Least squares on tables (B, T, 2) from several starts around the source's."""
    data = Observations(torch.tensor(TIMES, dtype=torch.float64), tables, noise="log")
    return fit_ode(
        Competition(**GUESS), data, torch.tensor(START), starts=config.starts, spread=config.spread, step=1.0,
        max_iter=config.max_iter, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def pelts(config: Config, seed: int, years: int = 21) -> ODEFit:
    """Predator and prey on the first years of the pelts."""
    values = torch.tensor((HARE, LYNX), dtype=torch.float64).T[:years]
    data = Observations(torch.arange(years, dtype=torch.float64), values, noise="log")
    guess = PredatorPrey(alpha=0.5, beta=0.02, gamma=1.0, delta=0.02)
    free = (*PredatorPrey.parameter_names, *PredatorPrey.states)
    return fit_ode(
        guess, data, values[0], free, starts=config.pelt_starts, spread=0.2, step=0.25, max_iter=config.max_iter,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def run(config: Config, seed: int) -> Result:
    """Table, training, least squares, coverage, and the pelts."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.tensor(tuple(TRUTH.values()), dtype=torch.float64)
    table = torch.tensor(TABLE, dtype=torch.float64)
    printed = exact(TIMES, 0.1, "euler").round()
    measured = {"numbers of the table met": float((printed == table).sum())}
    claimed = {"numbers of the table met": float(table.numel())}

    true = exact(TIMES, 0.1, "rk4")
    noise = torch.randn(config.tables, *true.shape, dtype=torch.float64, generator=generator)
    noisy = true * torch.exp(config.noise * noise)  # (tables, T, 2)
    trained = torch.cat((table[None], noisy[: config.trained_tables]))
    p, curves = train(config, trained)
    squared = compete(config, trained, seed)
    fitted = squared.fitted(torch.arange(1, TIMES[-1] + 1, dtype=torch.float64)).movedim(0, 1)  # (B, steps, 2)
    places = torch.tensor(TIMES) - 1
    for arm, parameters, curve in (("Adam", p, curves), ("least squares", squared.estimate, fitted)):
        error = (parameters / truth - 1).abs()
        measured[f"{arm}, table: rms of the curve"] = float((curve[0, places] - table).square().mean().sqrt())
        measured[f"{arm}, noisy: rms of the curve"] = float((curve[1:, places] - trained[1:]).square().mean().sqrt())
        measured[f"{arm}, table: mean relative error of the parameters"] = float(error[0].mean())
        measured[f"{arm}, noisy: mean relative error of the parameters"] = float(error[1:].mean())
        measured |= {f"{arm}, table: {n}": float(v) for n, v in zip(TRUTH, parameters[0], strict=True)}

    many = compete(config, noisy, seed)
    low, high = many.interval()
    inside = ((low <= truth) & (truth <= high)).double().mean(0)
    measured["coverage of 95 % intervals"] = float(inside.mean())
    claimed["coverage of 95 % intervals"] = 0.95
    measured |= {f"coverage of {n}": float(v) for n, v in zip(TRUTH, inside, strict=True)}
    measured |= {f"standard error of log {n}": float(v) for n, v in zip(TRUTH, many.std.median(0)[0], strict=True)}
    nearby = fit_ode(Competition(**TRUTH), many.problem.data, torch.tensor(START), step=1.0, max_iter=config.max_iter)
    measured["share of tables where some start does as well as one at the truth"] = float(
        (many.ssr <= 1.001 * nearby.ssr).double().mean()
    )
    reached = many.start_ssr <= 1.001 * many.ssr[:, None]
    measured["share of starts that reach the best end"] = float(reached.double().mean())
    euler = fit_ode(
        Competition(**TRUTH), replace(squared.problem.data, values=true), torch.tensor(START), step=0.5, solver="euler"
    )
    measured |= {
        f"bias of {n} by Euler with h = 0.5": float(euler.estimate[list(TRUTH).index(n)] / TRUTH[n] - 1)
        for n in ("r2", "a2")
    }

    real = pelts(config, seed)
    low, high = real.interval()
    again = bootstrap_ode(real, config.bootstraps, max_iter=config.max_iter, generator=generator).raw
    for j, (name, value) in enumerate(PUBLISHED.items()):
        measured |= {f"pelts: {name}": float(real.estimate[j]), f"pelts: {name} low": float(low[j])}
        measured[f"pelts: {name} high"] = float(high[j])
        measured[f"pelts: bootstrap over Fisher, spread of {name}"] = float(again[:, j].std() / real.std[j])
        claimed[f"pelts: {name}"] = value
    measured["pelts: rms of the logarithms"] = float((real.ssr / 42).sqrt())
    measured["pelts: condition number"] = float(real.condition)
    half = pelts(config, seed, years=11)
    later = torch.arange(11, 21, dtype=torch.float64)
    values = torch.tensor((HARE, LYNX), dtype=torch.float64).T
    forecast = half.fitted(later).log() - values[11:].log()
    mean = values[:11].log().mean(0) - values[11:].log()
    measured["pelts: rms of the logarithms, forecast"] = float(forecast.square().mean().sqrt())
    measured["pelts: rms of the logarithms, mean of the past"] = float(mean.square().mean().sqrt())

    years = torch.linspace(0, 25, 101, dtype=torch.float64)
    band = ode_band(real, years, samples=config.draws, generator=generator)
    figures = {
        "pelts": {
            "states": ["hare", "lynx"],
            "times": (1900 + years).tolist(),
            **{name: part.tolist() for name, part in zip(("low", "median", "high"), band, strict=True)},
            "observed_times": list(range(1900, 1921)),
            "observed": values.tolist(),
        },
        "competition": {
            "states": ["x1", "x2"],
            "times": list(range(1, TIMES[-1] + 1)),
            "Adam": curves[0].tolist(),
            "least squares": fitted[0].tolist(),
            "observed_times": list(TIMES),
            "observed": table.tolist(),
        },
        "correlation": {"names": list(real.names), "values": real.correlation.tolist()},
    }
    return Result(measured, claimed, figures)
