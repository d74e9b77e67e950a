r"""Training on the soft metric after cross-entropy raises it; for F1, so does moving the threshold.

Claim  kexue.fm/archives/6620: accuracy and F1 made smooth serve as objective for fine-tuning after cross-entropy (the
       size of the effect is not known to us, so no figure is compared).
Test   a linear classifier of "8 or not" on 20 random pixels: cross-entropy; the same with the threshold that is best
       on the training half (the free alternative); cross-entropy, then soft F1; soft F1 from scratch. F1 on each half.
       A linear classifier of all digits on 24 pixels: cross-entropy; the same for as many steps more; cross-entropy,
       then soft accuracy; soft accuracy from scratch. Accuracy on each half.
Data   digits of scikit-learn, split in halves by the seed
Run    danlu run smoothing --scale smoke|full --seed 0 --set pixels=30
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import load_digits
from danlu.gallery.record import Result
from danlu.losses import soft_accuracy_loss, soft_f1_loss

__all__ = ["SCALES", "Config", "run", "train"]


@dataclass(frozen=True)
class Config:
    """Full batches, because F1 is a ratio of sums over the batch."""

    digit: int = 8
    pixels: int = 20
    accuracy_pixels: int = 24  # of the classifier of all digits
    lr: float = 0.05
    fine_tune_lr: float = 0.02
    steps: int = 1_000  # of cross-entropy, and of the soft F1 from scratch
    fine_tune_steps: int = 1_000


SCALES = {"smoke": Config(steps=100, fine_tune_steps=100), "full": Config()}


def f1(scores: Tensor, target: Tensor, threshold: float = 0.0) -> float:
    hits = ((scores > threshold) & (target == 1)).sum()
    return (2 * hits / ((scores > threshold).sum() + target.sum()).clamp_min(1)).item()


def best_threshold(scores: Tensor, target: Tensor) -> float:
    """The threshold between two neighbouring scores with the best F1."""
    ordered, rows = scores.sort(descending=True)
    hits = target[rows].cumsum(0)
    best = int((2 * hits / (torch.arange(1, len(hits) + 1) + target.sum())).argmax())
    return float(ordered[best : best + 2].mean())


def fit(model: nn.Module, x: Tensor, y: Tensor, loss: str, lr: float, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        z = model(x)[:, 0]  # (N,)
        value = soft_f1_loss(z, y, "binary") if loss == "f1" else F.binary_cross_entropy_with_logits(z, y.float())
        value.backward()
        optimizer.step()


def train(config: Config, seed: int) -> dict[str, tuple[float, float]]:
    """F1 of each arm on the training half and on the other."""
    torch.manual_seed(seed)
    parts = load_digits()
    x = torch.cat([p[0] for p in (parts.train, parts.dev, parts.test)]).flatten(1)  # (1797, 64)
    y = (torch.cat([p[1] for p in (parts.train, parts.dev, parts.test)]) == config.digit).long()
    seen = torch.randperm(64)[: config.pixels]
    order = torch.randperm(len(y))
    x, y = x[order][:, seen], y[order]
    half = len(y) // 2
    (x1, x2), (y1, y2) = x.split([half, len(y) - half]), y.split([half, len(y) - half])

    def scores(model: nn.Module, threshold: float = 0.0) -> tuple[float, float]:
        with torch.no_grad():
            return f1(model(x1)[:, 0], y1, threshold), f1(model(x2)[:, 0], y2, threshold)

    scratch = nn.Linear(config.pixels, 1)
    model = nn.Linear(config.pixels, 1)
    model.load_state_dict(scratch.state_dict())
    fit(model, x1, y1, "cross-entropy", config.lr, config.steps)
    found = {"cross-entropy": scores(model)}
    with torch.no_grad():
        found["threshold tuned"] = scores(model, best_threshold(model(x1)[:, 0], y1))
    fit(model, x1, y1, "f1", config.fine_tune_lr, config.fine_tune_steps)
    found["then soft F1"] = scores(model)
    fit(scratch, x1, y1, "f1", config.lr, config.steps)
    found["soft F1 from scratch"] = scores(scratch)
    return found


def train_accuracy(config: Config, seed: int) -> dict[str, tuple[float, float]]:
    """Accuracy of each arm on the training half and on the other, ten classes."""
    torch.manual_seed(seed)
    parts = load_digits()
    x = torch.cat([p[0] for p in (parts.train, parts.dev, parts.test)]).flatten(1)  # (1797, 64)
    y = torch.cat([p[1] for p in (parts.train, parts.dev, parts.test)])
    order, half = torch.randperm(len(y)), len(y) // 2
    x, y = x[order][:, torch.randperm(64)[: config.accuracy_pixels]], y[order]
    scratch = nn.Linear(config.accuracy_pixels, 10)

    def arm(*phases: tuple[Callable[[Tensor, Tensor], Tensor], float, int]) -> tuple[float, float]:
        model = nn.Linear(config.accuracy_pixels, 10)
        model.load_state_dict(scratch.state_dict())
        for loss_fn, lr, steps in phases:
            optimizer = torch.optim.Adam(model.parameters(), lr=lr)
            for _ in range(steps):
                optimizer.zero_grad()
                loss_fn(model(x[:half]), y[:half]).backward()
                optimizer.step()
        with torch.no_grad():
            right = (model(x).argmax(1) == y).float()
        return right[:half].mean().item(), right[half:].mean().item()

    first = (F.cross_entropy, config.lr, config.steps)
    return {
        "cross-entropy": arm(first),
        "cross-entropy, longer": arm(first, (F.cross_entropy, config.fine_tune_lr, config.fine_tune_steps)),
        "then soft accuracy": arm(first, (soft_accuracy_loss, config.fine_tune_lr, config.fine_tune_steps)),
        "soft accuracy from scratch": arm((soft_accuracy_loss, config.lr, config.steps)),
    }


def run(config: Config, seed: int) -> Result:
    """All arms of one split, and the gains over cross-entropy on the other half."""
    found, accuracies = train(config, seed), train_accuracy(config, seed)
    measured = {f"{arm}, test": value[1] for arm, value in found.items()}
    measured |= {f"{arm}, train": value[0] for arm, value in found.items()}
    base = found["cross-entropy"][1]
    measured["gain of soft F1"] = found["then soft F1"][1] - base
    measured["gain of the threshold"] = found["threshold tuned"][1] - base
    for arm, value in accuracies.items():
        measured |= {f"accuracy, {arm}, train": value[0], f"accuracy, {arm}, test": value[1]}
    (longer, longer_test), (soft, soft_test) = accuracies["cross-entropy, longer"], accuracies["then soft accuracy"]
    measured["gain of soft accuracy, train"], measured["gain of soft accuracy"] = soft - longer, soft_test - longer_test
    figures = {"arm": list(found), "train": [v[0] for v in found.values()], "test": [v[1] for v in found.values()]}
    return Result(measured=measured, figures=figures)
