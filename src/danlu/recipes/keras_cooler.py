r"""An average of the weights evaluates better and more steadily than the weights themselves.

Claim  kexue.fm/archives/6575: weight averaging stabilises training and sometimes improves it (no table, so no figure to
       compare with; the post averages with 0.999 and 0.9999, over far longer runs than this one).
Test   one run of a network on digits, at a rate that keeps it jumping; every 20 steps the accuracy on held-out digits
       of the weights as they are and of their average: means, and standard deviations within the run.
Data   digits of scikit-learn (1,257 to train on, 540 held out)
Run    danlu run keras_cooler --scale smoke|full --seed 0 --set decay=0.95
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import load_digits
from danlu.gallery.record import Result
from danlu.optim import EMA

__all__ = ["SCALES", "Config", "run", "train"]


@dataclass(frozen=True)
class Config:
    """A small network, a large rate, small batches: the noise that averaging is for."""

    hidden: int = 32
    lr: float = 0.5
    batch_size: int = 8
    decay: float = 0.98  # half of the past is forgotten in 34 steps
    steps: int = 400
    evaluate_from: int = 200
    evaluate_every: int = 20


SCALES = {"smoke": Config(steps=120, evaluate_from=60), "full": Config()}


def batches(x: Tensor, y: Tensor, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(y), (size,), generator=generator)
        yield x[rows], y[rows]


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return (model(x).argmax(1) == y).float().mean().item()


def train(config: Config, seed: int) -> list[tuple[int, float, float]]:
    """(step, accuracy of the weights, accuracy of their average), every so many steps."""
    torch.manual_seed(seed)
    digits = load_digits()
    x, y = digits.train
    held_out = torch.cat([digits.dev[0], digits.test[0]]).flatten(1), torch.cat([digits.dev[1], digits.test[1]])
    model = nn.Sequential(nn.Linear(64, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
    ema = EMA(model, decay=config.decay, optimizer=optimizer)
    curve = []
    for step, (images, labels) in enumerate(batches(x.flatten(1), y, config.batch_size, config.steps, seed), 1):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if step >= config.evaluate_from and step % config.evaluate_every == 0:
            raw = accuracy(model, *held_out)
            with ema.swap():
                curve.append((step, raw, accuracy(model, *held_out)))
    return curve


def run(config: Config, seed: int) -> Result:
    """Mean and spread of both curves of one run."""
    curve = train(config, seed)
    steps, raw, averaged = ([row[i] for row in curve] for i in range(3))
    numbers = torch.tensor([raw, averaged], dtype=torch.float64)  # (2, evaluations)
    (mean, ema_mean), (std, ema_std) = numbers.mean(1).tolist(), numbers.std(1).tolist()
    measured = {
        "accuracy": mean,
        "accuracy of the average": ema_mean,
        "gain": ema_mean - mean,
        "spread": std,
        "spread of the average": ema_std,
        "spread ratio": std / max(ema_std, 1e-6),
    }
    return Result(measured=measured, figures={"step": steps, "weights": raw, "average": averaged})
