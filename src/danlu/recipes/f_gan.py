r"""f-GAN on a line: every divergence fits its own Gaussian, and a critic measures them all from samples.

Claim  kexue.fm/archives/6016: any convex f gives a bound that a critic can train by, and a GAN; arXiv:1606.00709: on a
       mixture of two Gaussians each divergence finds its own mean and width (no figures compared).
Test   0.67 N(-1.5, 0.6^2) + 0.33 N(2, 0.5^2) fitted by N(mu, s^2) with a GAN of each f (saturating, so that it descends
       f itself), against the optima found by quadrature: errors of mu and s at the nearest one (some f have two), the
       divergence of the fit over the least, and the bound over the true divergence of the fit. Then N(0, 1) against
       N(1, 1.5^2) by one held-out critic: every divergence over its exact value, the infinite one (neyman) marked as
       not to be trusted, and Donsker and Varadhan's bound beside f's for KL.
Data   drawn from the densities
Run    danlu run f_gan --scale smoke|full --seed 0 --set steps=1000
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danlu.gallery.record import Result
from danlu.generative import critic_step, divergence_from_scores, donsker_varadhan, estimate_divergence, generator_step
from danlu.losses import FGANLoss
from danlu.math import F_DIVERGENCES, f_divergence

__all__ = ["SCALES", "Config", "run"]

FITTED = ("kl", "reverse_kl", "js", "squared_hellinger", "jeffreys")
FINITE = ("total_variation", "kl", "reverse_kl", "pearson", "squared_hellinger", "jeffreys", "js", "gan")


@dataclass(frozen=True)
class Config:
    """Of the fit and of the estimate."""

    divergences: int = len(FITTED)
    steps: int = 3_000  # of the generator
    critic_steps: int = 3  # for each of them
    batch_size: int = 512
    lr: float = 5e-3
    critic_lr: float = 2e-3
    width: int = 64
    estimate_samples: int = 20_000
    estimate_steps: int = 1_500


SCALES = {
    "smoke": Config(divergences=2, steps=10, estimate_samples=500, estimate_steps=20),
    "full": Config(),
}
LINE = torch.linspace(-12, 12, 4_801, dtype=torch.float64)


def log_data(x: Tensor) -> Tensor:
    return torch.logaddexp(
        math.log(0.67) + log_normal(x, torch.tensor(-1.5), torch.tensor(0.6)),
        math.log(0.33) + log_normal(x, torch.tensor(2.0), torch.tensor(0.5)),
    )


def log_normal(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return -(((x - mean) / deviation) ** 2) / 2 - deviation.log() - math.log(2 * math.pi) / 2


def data(n: int, draw: torch.Generator) -> Tensor:
    left = torch.rand(n, 1, generator=draw) < 0.67
    noise = torch.randn(n, 1, generator=draw)
    return torch.where(left, -1.5 + 0.6 * noise, 2 + 0.5 * noise)


def exact(mean: Tensor, log_deviation: Tensor, name: str) -> Tensor:
    """The divergence of the data from the Gaussian, by quadrature."""
    cell = LINE[1] - LINE[0]
    return f_divergence(log_data(LINE).exp() * cell, log_normal(LINE, mean, log_deviation.exp()).exp() * cell, name)


def optima(name: str) -> list[tuple[float, float, float]]:
    """(divergence, mu, s) where descents by quadrature end, the best first; a divergence may have two valleys."""
    found = []
    for mean, deviation in ((-0.345, 1.75), (-1.5, 0.7), (1.9, 0.7), (-1.0, 1.2)):
        theta = torch.tensor([mean, math.log(deviation)], dtype=torch.float64, requires_grad=True)
        lbfgs = torch.optim.LBFGS([theta], 0.5, 60, line_search_fn="strong_wolfe")

        def closure(theta: Tensor = theta, lbfgs: torch.optim.LBFGS = lbfgs) -> Tensor:
            lbfgs.zero_grad()
            value = exact(theta[0], theta[1], name)
            value.backward()
            return value

        lbfgs.step(closure)
        with torch.no_grad():
            value = exact(theta[0], theta[1], name).item()
        if math.isfinite(value):
            found.append((value, theta[0].item(), theta[1].exp().item()))
    return sorted(found)


class Gaussian(nn.Module):
    """The generator: mu + s z."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_deviation = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.7))

    def forward(self, z: Tensor) -> Tensor:
        return self.mean + self.log_deviation.exp() * z


def fit(config: Config, name: str, seed: int) -> tuple[float, float, float]:
    """(mu, s, bound) of a GAN, each a mean over the last quarter."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    generator, loss = Gaussian(), FGANLoss(name, "saturating")
    critic = nn.Sequential(
        nn.Linear(1, config.width), nn.SiLU(), nn.Linear(config.width, config.width), nn.SiLU(),
        nn.Linear(config.width, 1),
    )  # fmt: skip
    adam = [torch.optim.Adam(m.parameters(), lr) for m, lr in ((critic, config.critic_lr), (generator, config.lr))]
    schedules = [
        torch.optim.lr_scheduler.CosineAnnealingLR(a, config.steps, a.param_groups[0]["lr"] / 20) for a in adam
    ]
    late = torch.zeros(3, dtype=torch.float64)
    count = 0
    for step in range(config.steps):
        for _ in range(config.critic_steps):
            fake = generator(torch.randn(config.batch_size, 1, generator=draw))
            found = critic_step(critic, adam[0], data(config.batch_size, draw), fake, loss)
        generator_step(critic, adam[1], generator(torch.randn(config.batch_size, 1, generator=draw)), loss)
        for schedule in schedules:
            schedule.step()
        if step >= config.steps * 3 // 4:
            state = [generator.mean.item(), generator.log_deviation.exp().item(), -found.loss.item()]
            late += torch.tensor(state, dtype=torch.float64)
            count += 1
    mean, deviation, bound = (late / count).tolist()
    return mean, deviation, bound


def estimates(config: Config, seed: int) -> dict[str, float]:
    """One held-out critic on two Gaussians, read as every divergence."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(config.estimate_samples, 1, generator=draw)
    y = 1 + 1.5 * torch.randn(config.estimate_samples, 1, generator=draw)
    base = estimate_divergence(x, y, "js", steps=config.estimate_steps, generator=draw)
    grid = torch.linspace(-24, 26, 100_001, dtype=torch.float64)
    cell = grid[1] - grid[0]
    p, q = (log_normal(grid, torch.tensor(m), torch.tensor(s)).exp() * cell for m, s in ((0.0, 1.0), (1.0, 1.5)))
    found = {}
    for name in FINITE:
        estimate = divergence_from_scores(base.real, base.fake, name)
        found[f"estimate, {name}: over exact"] = estimate.value / f_divergence(p, q, name).item()
        found[f"estimate, {name}: trusted"] = float(estimate.trusted)
    found["estimate, neyman (infinite): trusted"] = float(
        divergence_from_scores(base.real, base.fake, "neyman").trusted
    )
    kl = f_divergence(p, q, "kl").item()
    found["estimate, kl by Donsker-Varadhan: over exact"] = donsker_varadhan(base.real, base.fake).item() / kl
    return found


def run(config: Config, seed: int) -> Result:
    """Every fit beside its optimum, and the estimates."""
    measured: dict[str, float] = {}
    curves: dict[str, list[float]] = {
        "x": LINE[1200:3601:40].tolist(),
        "data": log_data(LINE)[1200:3601:40].exp().tolist(),
    }
    for name in FITTED[: config.divergences]:
        assert name in F_DIVERGENCES
        mu, s, bound = fit(config, name, seed)
        places = optima(name)
        _, mean, deviation = min(places, key=lambda place: math.hypot(mu - place[1], s - place[2]))
        true = exact(torch.tensor(mu).double(), torch.tensor(math.log(s)).double(), name).item()
        measured |= {
            f"{name}: mu": mu,
            f"{name}: s": s,
            f"{name}: error of mu": abs(mu - mean),
            f"{name}: error of s": abs(s - deviation),
            f"{name}: divergence over the least": true / places[0][0],
            f"{name}: bound over divergence": bound / true,
        }
        curves[name] = log_normal(LINE, torch.tensor(mu), torch.tensor(s))[1200:3601:40].exp().tolist()
    measured["largest error of mu or s"] = max(v for k, v in measured.items() if "error of" in k)
    return Result(measured=measured | estimates(config, seed), figures={"densities": curves})
