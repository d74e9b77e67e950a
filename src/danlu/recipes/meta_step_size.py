r"""EGDD trains well from any rate in a range of 100, where momentum needs the right one.

Claim  kexue.fm/archives/8968 and arXiv:2202.00145: learned step sizes do without a tuned schedule and adapt fast when
       the data change during training (no figure is known to us for data like these).
Test   a 64-64-10 tanh network, three rates that span a factor of 100 for each optimizer, around what is usual for it;
       momentum, momentum with a cosine schedule, Adam, EGDD with lingvo's defaults, and EGDD with faster meta rates and
       a scale for each tensor; the same start and batches in every arm. Training loss, and the ratio of the worst loss
       to the best over the range; worst test accuracy over the range. Then the labels are permuted at half time: steps
       until 90 % of the training rows are right again, at the middle rate.
Data   digits of scikit-learn (1,257 to train on, 540 held out)
Run    danlu run meta_step_size --scale smoke|full --seed 0 --set steps=600
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import load_digits
from danlu.gallery.record import Result
from danlu.optim import EGDD

__all__ = ["ARMS", "SCALES", "Config", "run", "train"]

ARMS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    "cosine": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    "adam": lambda p, lr: torch.optim.Adam(p, lr),
    "egdd": lambda p, lr: EGDD(p, lr),
    "egdd fast": lambda p, lr: EGDD(p, lr, gain_lr=0.05, scale_lr=0.05, scale="tensor"),
}


@dataclass(frozen=True)
class Config:
    """The range of momentum's rates holds for EGDD; Adam's is ten times lower, as its rates usually are."""

    hidden: int = 64
    batch_size: int = 64
    steps: int = 300
    lrs: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    adam_lrs: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    shift_steps: int = 600  # with other labels from half time on
    check_every: int = 5  # steps between two looks at the training accuracy after the shift


SCALES = {"smoke": Config(steps=30, shift_steps=20), "full": Config()}


def losses(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Cross-entropy and accuracy."""
    with torch.no_grad():
        logits = model(x)
        return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()


def train(config: Config, arm: str, lr: float, seed: int, shift: bool = False) -> tuple[float, float, int]:
    """Training loss and test accuracy at the end; with shift: steps to recover, or all that were left."""
    torch.manual_seed(seed)
    digits = load_digits()
    x, y = digits.train[0].flatten(1), digits.train[1]
    held_out = torch.cat([digits.dev[0], digits.test[0]]).flatten(1), torch.cat([digits.dev[1], digits.test[1]])
    model = nn.Sequential(nn.Linear(64, config.hidden), nn.Tanh(), nn.Linear(config.hidden, 10))
    optimizer = ARMS[arm](model.parameters(), lr)
    steps = config.shift_steps if shift else config.steps
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if arm == "cosine" else None
    generator = torch.Generator().manual_seed(seed)
    other = torch.randperm(10, generator=generator)
    half, recovered = steps // 2, steps - steps // 2
    for step in range(steps):
        if shift and step == half:
            y = other[y]
        rows = torch.randint(len(y), (config.batch_size,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        since = step + 1 - half
        if shift and since > 0 and since % config.check_every == 0 and losses(model, x, y)[1] >= 0.9:
            recovered = since
            break
    return losses(model, x, y)[0], losses(model, *held_out)[1], recovered


def run(config: Config, seed: int) -> Result:
    """Every arm at every rate of its range, then the shift at the middle rate."""
    measured, curves = {}, {}
    for arm in ARMS:
        rates = config.adam_lrs if arm == "adam" else config.lrs
        ends = [train(config, arm, lr, seed)[:2] for lr in rates]
        loss = [end[0] for end in ends]
        measured |= {f"{arm}, loss at {lr:g}": value for lr, value in zip(rates, loss, strict=True)}
        measured[f"{arm}, worst loss over best"] = max(loss) / max(min(loss), 1e-9)
        measured[f"{arm}, worst test accuracy"] = min(end[1] for end in ends)
        measured[f"{arm}, steps to recover"] = train(config, arm, rates[len(rates) // 2], seed, shift=True)[2]
        curves[arm] = {"lr": list(rates), "loss": loss, "accuracy": [end[1] for end in ends]}
    return Result(measured=measured, figures=curves)
