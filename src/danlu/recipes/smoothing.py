r"""Training on the soft F1 after cross-entropy raises F1, and so does moving the threshold.

Claim  kexue.fm/archives/6620: accuracy and F1 made smooth serve as objective for fine-tuning after cross-entropy (the
       size of the effect is not known to us, so no figure is compared).
Test   a linear classifier of "8 or not" on 20 random pixels: cross-entropy; the same with the threshold that is best
       on the training half (the free alternative); cross-entropy, then soft F1; soft F1 from scratch. F1 on each half.
Data   digits of scikit-learn, split in halves by the seed
Run    danlu run smoothing --scale smoke|full --seed 0 --set pixels=30
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import load_digits
from danlu.gallery.record import Result
from danlu.losses import soft_f1_loss

__all__ = ["SCALES", "Config", "run", "train"]


@dataclass(frozen=True)
class Config:
    """Full batches, because F1 is a ratio of sums over the batch."""

    digit: int = 8
    pixels: int = 20
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


def run(config: Config, seed: int) -> Result:
    """All four arms of one split, and the two gains over cross-entropy on the other half."""
    found = train(config, seed)
    measured = {f"{arm}, test": value[1] for arm, value in found.items()}
    measured |= {f"{arm}, train": value[0] for arm, value in found.items()}
    base = found["cross-entropy"][1]
    measured["gain of soft F1"] = found["then soft F1"][1] - base
    measured["gain of the threshold"] = found["threshold tuned"][1] - base
    figures = {"arm": list(found), "train": [v[0] for v in found.values()], "test": [v[1] for v in found.values()]}
    return Result(measured=measured, figures=figures)
