r"""A GAN's generator that is held near its last version does not collapse; the term is part of the loss, not a trick.

Claim  kexue.fm/archives/5716: the joint-KL view gives the generator's loss E[-log D] + KL(q || q_old). With the second
       term, weight |G(z) - G_old(z)|^2, a GAN that collapses without it trains stably (pictures of faces, no figures).
Test   exact players on tables: rounds until the model is the data, and the states left without the term. A ring of 8
       Gaussians, one critic step and 5 generator steps on the same codes a round: weights 0, 5 and 50; a fifth of the
       learning rate without the term; one generator step a round with and without it (must be the same to the bit).
       Modes hit and share of samples within 5 deviations of a mode, averaged over the second half of the training.
Data   made up on the spot: random tables, and a ring of radius 2 with deviation 0.05
Run    danlu run variational_unification_proximity --scale smoke|full --seed 0 --set inner=3
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from danlu.gallery.record import Result
from danlu.generative import ProximalGenerator, ring
from danlu.generative.joint_table import proximal_step
from danlu.losses import gan_critic_loss, gan_generator_loss
from danlu.math.mode_coverage import mode_coverage

__all__ = ["SCALES", "Config", "run", "train"]


@dataclass(frozen=True)
class Config:
    """The stress: several generator steps for one of the critic."""

    weight: float = 5.0  # of the proximity term, mean over the two coordinates
    inner: int = 5  # generator steps a round, one copy for all of them
    width: int = 64
    code_dim: int = 4
    lr: float = 1e-3
    generator_lr: float = 1e-3
    batch_size: int = 128
    rounds: int = 1_500
    checks: int = 30


SCALES = {"smoke": Config(rounds=20, checks=2), "full": Config()}
DATA = ring(8, 2.0, 0.05)


def mlp(inputs: int, outputs: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


def train(config: Config, seed: int) -> tuple[dict[str, float], Tensor]:
    """Modes hit and share of good samples over the second half, and samples of the last generator."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    generator, critic = mlp(config.code_dim, 2, config.width), mlp(2, 1, config.width)
    near = ProximalGenerator(generator, config.weight, max(config.inner, 2))  # refreshed by hand, once a round
    betas = (0.5, 0.999)
    of_critic = torch.optim.Adam(critic.parameters(), config.lr, betas)
    of_generator = torch.optim.Adam(generator.parameters(), config.generator_lr, betas)
    hits, good = [], []
    every = max(1, config.rounds // config.checks)
    for step in range(1, config.rounds + 1):
        z = torch.randn(config.batch_size, config.code_dim, generator=g)
        real = DATA.sample(config.batch_size, g).float()
        of_critic.zero_grad()
        gan_critic_loss(critic(real), critic(generator(z).detach())).backward()
        of_critic.step()
        z = torch.randn(config.batch_size, config.code_dim, generator=g)
        near.refresh()
        for _ in range(config.inner):
            of_generator.zero_grad()
            fake = generator(z)
            (gan_generator_loss(critic(fake)) + near(z, fake)).backward()
            of_generator.step()
        if step % every == 0 and 2 * step > config.rounds:
            cover = coverage(generator, config, seed)
            hits.append(float(cover[0]))
            good.append(cover[1])
    with torch.no_grad():
        samples = generator(torch.randn(200, config.code_dim, generator=torch.Generator().manual_seed(seed + 1)))
    return {"modes": sum(hits) / len(hits), "good": sum(good) / len(good)}, samples


@torch.no_grad()
def coverage(generator: nn.Module, config: Config, seed: int) -> tuple[int, float]:
    z = torch.randn(1_000, config.code_dim, generator=torch.Generator().manual_seed(seed))
    found = mode_coverage(generator(z), DATA.modes.float(), radius=5 * DATA.deviation, least=5)
    return found.hit, found.good


def exact_players(seed: int, states: int = 8) -> tuple[int, int]:
    """Rounds of the exact game until the model is the data within 1e-6, and states left after one without the term."""
    g = torch.Generator().manual_seed(seed)
    data, model = ((torch.rand(states, generator=g, dtype=torch.float64) + 0.05) for _ in range(2))
    data, model = data / data.sum(), model / model.sum()
    score = data / (data + model)
    left = int((score == score.max()).sum())  # all mass goes where D is largest
    rounds = 0
    while float((data - model).abs().sum()) / 2 > 1e-6 and rounds < 1_000:
        model = proximal_step(data, model)
        rounds += 1
    return rounds, left


def run(config: Config, seed: int) -> Result:
    """All arms of one seed."""
    arms = {
        "without": replace(config, weight=0.0),
        "with": config,
        "ten times the weight": replace(config, weight=10 * config.weight),
        "without, a fifth of the step": replace(config, weight=0.0, generator_lr=config.generator_lr / 5),
        "without, one step a round": replace(config, weight=0.0, inner=1),
        "with, one step a round": replace(config, inner=1),
    }
    rounds, left = exact_players(seed)
    measured: dict[str, float] = {"exact players, rounds to the data": rounds, "exact players, states without": left}
    samples: dict[str, Tensor] = {}
    for name, arm in arms.items():
        found, samples[name] = train(arm, seed)
        measured |= {f"{name}: {key}": value for key, value in found.items()}
    measured["gain in modes"] = measured["with: modes"] - measured["without: modes"]
    measured["gain in good samples"] = measured["with: good"] - measured["without: good"]
    alike = torch.equal(samples["without, one step a round"], samples["with, one step a round"])
    measured["inert at one step (1 = to the bit)"] = float(alike)
    figures = {"modes": DATA.modes.tolist(), "samples": {k: v.tolist() for k, v in samples.items()}}
    return Result(measured=measured, figures=figures)
