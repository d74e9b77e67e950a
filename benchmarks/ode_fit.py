"""Fitting the aquarium: least squares with forward sensitivities beside Adam through torchdiffeq; the solvers alone.

The peer gets its own fixed-step RK4 on the same grid, the same residuals and unknowns, and starts where we start; its
best point counts. Needs torchdiffeq (the extra bench).

Run: python benchmarks/ode_fit.py [--iterations 1000] [--starts 8] [--rows 64] [--threads 2] [--json FILE]; prints one
JSON line.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from _machine import milliseconds, record, write
from danlu.math import solve_ode
from danlu.nn import Aquarium, Observations, fit_ode

FREE = ("mu_a", "k_a", "mu_n", "k_n", "ammonia_oxidisers", "nitrite_oxidisers")
STEP, OFFSET = 0.25, 0.05


def seconds(function) -> tuple[float, object]:
    began = time.perf_counter()
    found = function()
    return time.perf_counter() - began, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=1000, help="of Adam")
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--rows", type=int, default=64, help="tanks in the batch of the solvers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise SystemExit("benchmarks/ode_fit.py needs torchdiffeq; pip install 'danlu[bench]'") from error
    torch.set_num_threads(options.threads)
    head = record(("danlu", "torch", "torchdiffeq"), options.threads)

    tank = Aquarium()
    truth = torch.tensor([*Aquarium.defaults.values()], dtype=torch.float64)
    days = torch.arange(2.0, 43.0, 2.0, dtype=torch.float64)
    times = torch.cat((days.new_zeros(1), days))
    start = Aquarium.start()
    exact = solve_ode(lambda t, x: tank.field(t, x, truth), start, times, step=STEP)[1:, :3]
    noise = torch.randn(exact.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = (exact + OFFSET) * torch.exp(0.08 * noise) - OFFSET
    data = Observations(days, values, noise="log", offset=OFFSET, states=Aquarium.states[:3])
    factor = {"mu_a": 1.5, "k_a": 2.0, "mu_n": 0.8, "k_n": 0.6}
    guess = Aquarium(**{name: value * factor.get(name, 1.0) for name, value in Aquarium.defaults.items()})
    x0 = start * torch.tensor([1, 1, 1, 0.5, 3.0], dtype=torch.float64)

    def least_squares(starts: int):
        generator = torch.Generator().manual_seed(0)
        return fit_ode(guess, data, x0, FREE, starts=starts, spread=0.2, step=STEP, generator=generator)

    def adam() -> float:  # the peer: what anybody would write with it
        fixed = guess.values().detach().double()
        q = torch.cat((fixed[[0, 2, 1, 3]], x0[3:])).log().requires_grad_()
        optimizer = torch.optim.Adam([q], lr=0.05)
        best = math.inf
        for _ in range(options.iterations):
            p = torch.cat((q[[0, 2, 1, 3]].exp(), fixed[4:]))
            first = torch.cat((x0[:3], q[4:].exp()))
            states: Tensor = odeint(
                lambda t, x, p=p: tank.field(0.0, x, p), first, times, method="rk4", options={"step_size": STEP}
            )
            expected = (states[1:, :3] + OFFSET).clamp_min(1e-6).log()
            loss = (expected - (values + OFFSET).log()).square().sum()
            best = min(best, loss.item()) if math.isfinite(loss.item()) else best
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return best

    least_squares(1)  # the first call loads what forward mode needs
    many_s, many = seconds(lambda: least_squares(options.starts))
    one_s, one = seconds(lambda: least_squares(1))
    adam_s, loss = seconds(adam)
    batch = start.expand(options.rows, -1)

    def ours(method: str, step: float | None):
        p = truth.clone().requires_grad_()
        solve_ode(lambda t, x: tank.field(t, x, p), batch, times, method, step, 1e-6, 1e-8).square().sum().backward()

    def theirs(method: str, settings: dict[str, float]):
        p = truth.clone().requires_grad_()
        found = odeint(
            lambda t, x: tank.field(0.0, x, p), batch, times, rtol=1e-6, atol=1e-8, method=method, options=settings
        )
        found.square().sum().backward()

    functions = [lambda: ours("rk4", STEP), lambda: theirs("rk4", {"step_size": STEP})]
    functions += [lambda: ours("dopri5", None), lambda: theirs("dopri5", {})]
    rk4, their_rk4, dopri5, their_dopri5 = milliseconds(*functions, rounds=options.rounds)
    row = {
        "starts": options.starts,
        "least_squares_s": many_s,
        "least_squares_ssr": float(many.ssr),
        "least_squares_one_start_s": one_s,
        "least_squares_one_start_ssr": float(one.ssr),
        "adam_iterations": options.iterations,
        "adam_torchdiffeq_s": adam_s,
        "adam_torchdiffeq_ssr": loss,
        "adam_over_least_squares": adam_s / many_s,
        "adam_over_least_squares_one_start": adam_s / one_s,
        "rk4_ms": rk4,
        "rk4_torchdiffeq_ms": their_rk4,
        "rk4_ratio": their_rk4 / rk4,
        "dopri5_ms": dopri5,
        "dopri5_torchdiffeq_ms": their_dopri5,
        "dopri5_ratio": their_dopri5 / dopri5,
    }
    row = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
    print(json.dumps(row))
    write(options.json, head | row)


if __name__ == "__main__":
    main()
