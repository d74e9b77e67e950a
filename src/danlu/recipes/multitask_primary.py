r"""A few trusted labels and many wrong ones: the wrong ones as an auxiliary task that must only not get worse.

Claim  kexue.fm/archives/8907: with a primary task, the others enter only where the step would harm them; learning from
       noisy labels is named as a use (no figures are known to us, and which labels are primary there is not either;
       here the trusted ones are).
Test   digits, 100 trusted labels and 1,000 of which 60 % are drawn at random: trusted alone, noisy alone, both added,
       both added with a factor tuned on other digits, and trusted as primary with noisy as auxiliary task. Accuracy on
       held-out digits, and the share of steps in which the auxiliary task had a say. Same start and batches everywhere.
Data   digits of scikit-learn (drawn by the seed)
Run    danlu run multitask_primary --scale smoke|full --seed 0 --set noise=0.8
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import load_digits
from danlu.gallery.record import Result
from danlu.train import multitask_backward

__all__ = ["SCALES", "Config", "run", "train"]


@dataclass(frozen=True)
class Config:
    """All trusted labels in every batch, and as many noisy ones."""

    trusted: int = 100
    noisy: int = 1000
    noise: float = 0.6  # share of the noisy labels that are drawn at random from all ten classes
    hidden: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    steps: int = 600
    factors: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)  # of the noisy loss, that the tuned sum tries


SCALES = {"smoke": Config(steps=10, factors=(0.1, 1.0)), "full": Config()}


@dataclass(frozen=True)
class Data:
    """Pairs of images (N, 64) and labels (N,)."""

    trusted: tuple[Tensor, Tensor]
    noisy: tuple[Tensor, Tensor]
    dev: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def load(config: Config, seed: int) -> Data:
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    x, y = digits.train[0].flatten(1), digits.train[1]
    rows = torch.randperm(len(y), generator=generator)[: config.trusted + config.noisy]
    first, second = rows[: config.trusted], rows[config.trusted :]
    drawn = torch.randint(10, (len(second),), generator=generator)
    wrong = torch.rand(len(second), generator=generator) < config.noise
    noisy = x[second], torch.where(wrong, drawn, y[second])
    held_out = [(part[0].flatten(1), part[1]) for part in (digits.dev, digits.test)]
    return Data((x[first], y[first]), noisy, *held_out)


@torch.no_grad()
def accuracy(model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    return (model(part[0]).argmax(1) == part[1]).float().mean().item()


def train(config: Config, arm: str, factor: float, data: Data, seed: int) -> tuple[nn.Module, float]:
    """The model of one arm ("trusted", "noisy", "sum" or "primary"), and how often the auxiliary task had a say."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum)
    heard = 0
    for _ in range(config.steps):
        rows = torch.randint(config.noisy, (config.trusted,), generator=generator)
        trusted = F.cross_entropy(model(data.trusted[0]), data.trusted[1])
        noisy = factor * F.cross_entropy(model(data.noisy[0][rows]), data.noisy[1][rows])
        optimizer.zero_grad()
        if arm == "primary":
            weights = multitask_backward([trusted, noisy], model.parameters(), "primary")
            heard += int(weights[1] > 0)
        else:
            {"trusted": trusted, "noisy": noisy, "sum": trusted + noisy}[arm].backward()
        optimizer.step()
    return model, heard / config.steps


def run(config: Config, seed: int) -> Result:
    """Every arm with one seed, and what the primary projection gains over trusted labels alone and over the sums."""
    data = load(config, seed)
    measured = {}
    for arm in ("trusted", "noisy", "sum", "primary"):
        model, heard = train(config, arm, 1.0, data, seed)
        measured[arm] = accuracy(model, data.test)
        if arm == "primary":
            measured["share of steps with a say"] = heard
    models = [train(config, "sum", factor, data, seed)[0] for factor in config.factors]
    measured["tuned sum"] = accuracy(max(models, key=lambda m: accuracy(m, data.dev)), data.test)
    for other in ("trusted", "sum", "tuned sum"):
        measured[f"primary over {other}"] = measured["primary"] - measured[other]
    arms = ["trusted", "noisy", "sum", "tuned sum", "primary"]
    return Result(measured=measured, figures={"arm": arms, "accuracy": [measured[a] for a in arms]})
