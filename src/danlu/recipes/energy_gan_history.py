r"""Eight modes on a ring: what a memory of the past does against a critic that forgets, beside the slope at the data.

Claim  kexue.fm/archives/6316: mode collapse is a generator that leaps past the pits which the critic digs; a penalty on
       the critic's slope at real examples and no momentum in the generator keep it (no figures). arXiv:1606.03498:
       drawing the weights to their historical average helps (no figures for it alone).
Test   a ring of 8 narrow Gaussians, the same perceptrons, noise and steps, momentum 0.9 in all arms but one: plain;
       without momentum; each player drawn to the average of its own past; half of the critic's fakes from the whole
       past; slope penalty at real examples; this and old fakes. Modes hit, share of good samples, KL of the mode
       histogram, each the mean over the last quarter of training, and the fewest modes seen there (turning round shows
       in it).
Data   drawn from the density
Run    danlu run energy_gan_history --scale smoke|full --seed 0 --set momentum=0.5
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from danlu.gallery.record import Result
from danlu.generative import (
    SampleHistory,
    WeightHistory,
    critic_objective,
    generator_objective,
    held,
    ring,
    toy_coverage,
)
from danlu.train import critic_penalty

__all__ = ["SCALES", "Config", "run"]

ARMS = {  # name -> (weights' past, old fakes, slope penalty, momentum)
    "plain": (False, False, False, True),
    "no momentum": (False, False, False, False),
    "weight history": (True, False, False, True),
    "sample history": (False, True, False, True),
    "slope penalty": (False, False, True, True),
    "slope penalty and sample history": (False, True, True, True),
}


@dataclass(frozen=True)
class Config:
    """One ring, two perceptrons of two hidden layers."""

    arms: int = len(ARMS)
    modes: int = 8
    radius: float = 2.0
    deviation: float = 0.02
    momentum: float = 0.9  # first decay of Adam
    width: int = 128
    latent: int = 8
    steps: int = 8_000
    batch_size: int = 128
    lr: float = 1e-3
    history_weight: float = 1e-3
    slope_weight: float = 1.0
    capacity: int = 10_000
    look_every: int = 200


SCALES = {"smoke": Config(steps=20, look_every=5, width=32, arms=4), "full": Config()}


def perceptron(inputs: int, outputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


def train(config: Config, arm: str, seed: int) -> tuple[dict[str, float], dict[str, list[float]], Tensor]:
    """The means over the last quarter, their course, and samples at the end."""
    past, old, slope, momentum = ARMS[arm]
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    data = ring(config.modes, config.radius, config.deviation)
    generator, critic = perceptron(config.latent, 2, config.width), perceptron(2, 1, config.width)
    adam = [
        torch.optim.Adam(net.parameters(), config.lr, (config.momentum if momentum else 0.0, 0.9))
        for net in (critic, generator)
    ]
    weights = [WeightHistory(net, config.history_weight) for net in (critic, generator)]
    memory = SampleHistory(config.capacity, (2,))
    penalty = partial(critic_penalty, kind="r1", weight=config.slope_weight) if slope else None
    course: dict[str, list[float]] = {"step": [], "hit": [], "good": [], "KL": []}

    def fakes(n: int) -> Tensor:
        made: Tensor = generator(torch.randn(n, config.latent, generator=draw))
        return made

    for step in range(1, config.steps + 1):
        fake = fakes(config.batch_size)
        adam[0].zero_grad()
        loss = critic_objective(
            critic, data.sample(config.batch_size, draw), memory.mix(fake, draw) if old else fake, penalty=penalty
        )
        (loss + weights[0].penalty() if past else loss).backward()
        adam[0].step()
        adam[1].zero_grad()
        with held(critic):
            loss = generator_objective(critic, fakes(config.batch_size))
            (loss + weights[1].penalty() if past else loss).backward()
        adam[1].step()
        if past:
            weights[0].update()
            weights[1].update()
        if step % config.look_every == 0:
            with torch.no_grad():
                found = toy_coverage(data, fakes(1_000), deviations=4.0, least=5)
            for key, value in (("step", step), ("hit", found.hit), ("good", found.good)):
                course[key].append(float(value))
            course["KL"].append(found.kl if found.hit else 20.0)  # JSON has no infinity
    late = max(1, len(course["hit"]) // 4)
    means = {key: sum(course[key][-late:]) / late for key in ("hit", "good", "KL")}
    with torch.no_grad():
        return means | {"fewest": min(course["hit"][-late:])}, course, fakes(200)


def run(config: Config, seed: int) -> Result:
    """All arms of one seed."""
    measured: dict[str, float] = {}
    courses, samples = {}, {}
    for arm in list(ARMS)[: config.arms]:
        means, courses[arm], points = train(config, arm, seed)
        measured |= {f"{arm}: {key}": value for key, value in means.items()}
        samples[arm] = [[round(c, 3) for c in point] for point in points.tolist()]
    for arm in list(ARMS)[1 : config.arms]:
        measured[f"{arm}: modes gained"] = measured[f"{arm}: hit"] - measured["plain: hit"]
    return Result(measured=measured, figures={"course": courses, "samples": samples})
