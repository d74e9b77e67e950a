r"""Three tasks on one encoder, one loss in other units: which weightings notice, and what balance is worth.

Claim  kexue.fm/archives/8870 and 8896: weights 1/L (initial, prior or current loss, the geometric mean) make training
       blind to the unit of a loss, weights 1/||gradient|| to its unit and zero point; the plain sum is neither. No
       figures are known to us, so what is compared is the spread over units, which is claimed to be 0.
Test   digits by a shared tanh layer: class (cross-entropy), parity (binary cross-entropy), ink and centre of mass (mean
       squared error times 1/128, 1 and 128). Score: mean of both accuracies and R^2 (at least -1) on held-out digits.
       Beside the weightings a sum whose factor was tuned on other digits. Then the same with 10 added to the
       regression's loss: how far the final weights move. Same start and batches everywhere; units are powers of 2, so
       that rounding is the same too and what differs is the weighting.
Data   digits of scikit-learn (600 drawn by the seed to train on)
Run    danlu run multitask --scale smoke|full --seed 0 --set steps=800
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import load_digits
from danlu.gallery.record import Result
from danlu.losses import (
    LossRatio,
    UncertaintyLoss,
    class_prior_loss,
    geometric_mean_loss,
    loss_ratio,
    regression_prior_loss,
)
from danlu.train import multitask_backward

__all__ = ["ARMS", "SCALES", "Config", "run", "train"]

FROM_LOSSES = ("sum", "initial", "prior", "geometric", "uncertainty")
FROM_GRADIENTS = ("normalized", "mgda", "pcgrad", "dual_cone")  # all on gradients divided by their lengths
ARMS = FROM_LOSSES + FROM_GRADIENTS
BLIND_TO_UNITS = ("initial", "prior", "geometric", "normalized")  # what the posts claim


@dataclass(frozen=True)
class Config:
    """SGD, because Adam divides a common factor out by itself; its rate falls to 0, as 1/L weights need it."""

    train_size: int = 600
    hidden: int = 32
    lr: float = 0.05
    log_variance_lr: float = 0.01  # of the uncertainties
    momentum: float = 0.9
    batch_size: int = 100
    steps: int = 600
    units: tuple[float, ...] = (1 / 128, 1.0, 128.0)  # of the regression's loss
    factors: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)  # that the tuned sum tries
    shift: float = 10.0


SCALES = {"smoke": Config(steps=8, train_size=200, factors=(0.1, 1.0)), "full": Config()}


class Net(nn.Module):
    """A shared layer and a linear head for each task."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, hidden), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(hidden, size) for size in (10, 1, 3)])

    def forward(self, x: Tensor) -> list[Tensor]:
        z = self.encoder(x)
        return [head(z) for head in self.heads]


@dataclass(frozen=True)
class Part:
    """Images (N, 64), labels (N,), and (N, 3) ink, row and column of the centre."""

    x: Tensor
    label: Tensor
    shape: Tensor

    def rows(self, rows: Tensor) -> "Part":
        return Part(self.x[rows], self.label[rows], self.shape[rows])


def load(config: Config, seed: int) -> tuple[Part, Part, Part]:
    """Training, tuning and test part; the regression's targets have mean 0 and variance 1 on the training part."""
    digits = load_digits()
    chosen = torch.randperm(len(digits.train[1]), generator=torch.Generator().manual_seed(seed))[: config.train_size]
    axis = torch.arange(8.0)
    parts = []
    for images, label in ((digits.train[0][chosen], digits.train[1][chosen]), digits.dev, digits.test):
        ink = images.sum((1, 2))  # (N,)
        centre = [(images.sum(2) @ axis) / ink, (images.sum(1) @ axis) / ink]
        parts.append(Part(images.flatten(1), label, torch.stack([ink, *centre], 1)))
    mean, std = parts[0].shape.mean(0), parts[0].shape.std(0)
    train, dev, test = (Part(p.x, p.label, (p.shape - mean) / std) for p in parts)
    return train, dev, test


def losses_of(outputs: list[Tensor], part: Part, unit: float, shift: float) -> list[Tensor]:
    return [
        F.cross_entropy(outputs[0], part.label),
        F.binary_cross_entropy_with_logits(outputs[1][:, 0], (part.label % 2).float()),
        unit * F.mse_loss(outputs[2], part.shape) + shift,
    ]


@torch.no_grad()
def score(net: nn.Module, part: Part) -> list[float]:
    """Accuracy of the class, of the parity, and R^2."""
    digit, odd, shape = net(part.x)
    left = F.mse_loss(shape, part.shape) / regression_prior_loss(part.shape)
    r2 = (1 - left).nan_to_num(-1.0, neginf=-1.0).clamp_min(-1.0)
    hits = (digit.argmax(1) == part.label).float().mean(), ((odd[:, 0] > 0) == (part.label % 2 == 1)).float().mean()
    return [*(h.item() for h in hits), r2.item()]


def train(config: Config, arm: str, unit: float, shift: float, parts: tuple[Part, Part, Part], seed: int) -> Net:
    """One network, trained by one weighting; `sum` takes the unit as its factor."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data = parts[0]
    net, first, uncertainty = Net(config.hidden), LossRatio(3), UncertaintyLoss(3, factor=[1.0, 1.0, 0.5])
    groups = [{"params": net.parameters()}, {"params": uncertainty.parameters(), "lr": config.log_variance_lr}]
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, config.steps)
    prior = [class_prior_loss(data.label), class_prior_loss(data.label % 2), unit * regression_prior_loss(data.shape)]
    for _ in range(config.steps):
        batch = data.rows(torch.randint(len(data.label), (config.batch_size,), generator=generator))
        losses = losses_of(net(batch.x), batch, unit, shift)
        optimizer.zero_grad()
        if arm in FROM_GRADIENTS:
            shared = net.encoder.parameters()
            normalize = arm != "normalized"
            multitask_backward(losses, shared, arm, normalize, heads="weighted", generator=generator)
        elif arm == "initial":
            first(losses).backward()
        elif arm == "prior":
            loss_ratio(losses, [p.item() for p in prior]).backward()
        elif arm == "geometric":
            geometric_mean_loss(losses).backward()
        elif arm == "uncertainty":
            uncertainty(losses).backward()
        else:
            torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
    return net


def run(config: Config, seed: int) -> Result:
    """Every arm with every unit, the tuned sum, and the shift, with one seed."""
    parts = load(config, seed)
    measured: dict[str, float] = {}
    rows = []
    for arm in ARMS:
        by_unit = []
        for unit in config.units:
            scores = score(train(config, arm, unit, 0.0, parts, seed), parts[2])
            rows.append([arm, unit, *scores])
            by_unit.append(sum(scores) / 3)
        measured[f"{arm}, worst unit"] = min(by_unit)
        measured[f"{arm}, spread over units"] = max(by_unit) - min(by_unit)
    tuned = [train(config, "sum", factor, 0.0, parts, seed) for factor in config.factors]
    best = max(tuned, key=lambda net: sum(score(net, parts[1])))
    measured["tuned sum"] = sum(score(best, parts[2])) / 3
    for arm in ("geometric", "prior", "normalized", "mgda"):
        plain, moved = (train(config, arm, 1.0, shift, parts, seed) for shift in (0.0, config.shift))
        pairs = zip(plain.parameters(), moved.parameters(), strict=True)
        measured[f"{arm}, moved by a shift"] = max((a - b).abs().max().item() for a, b in pairs)
    claimed = {f"{arm}, spread over units": 0.0 for arm in BLIND_TO_UNITS} | {"normalized, moved by a shift": 0.0}
    columns = ("arm", "unit", "class", "parity", "regression")
    figures = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
    return Result(measured=measured, claimed=claimed, figures=figures)
