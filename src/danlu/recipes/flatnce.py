r"""FlatNCE for small batches, beside eight arms that tell float error, the size of the gradient and weights apart.

Claim  kexue.fm/archives/8586: small batches do badly because the gradient of InfoNCE drowns in float error, and
       FlatNCE, whose gradient keeps its size, does better, most at the smallest batches (arXiv:2107.01152, on
       photographs; the post shows that comparison as pictures, so no figure is compared).
Test   an encoder of digits, trained on pairs of noisy views: torch's cross-entropy (what everybody runs), the same in
       float64, InfoNCE with its gradient computed exactly, cross-entropy divided by its own value (scale only),
       FlatNCE, the same in float64; and three of them on scores rounded to bfloat16. If float error is the cause,
       float64 and the exact form reach FlatNCE; if it is the size of the gradient, the divided form does; if it is the
       weight of solved anchors, FlatNCE alone gains. Accuracy of a linear probe and of 5 neighbours on held-out digits;
       the error of the pull on the positive against float64, its median over the run; the share of anchors whose
       probability rounds to 1, and whether FlatNCE gains where that share is large (rank correlation over conditions).
Data   digits of scikit-learn (1,257 to train on, 540 held out)
Run    danlu run flatnce --scale smoke|full --seed 0 --set steps=5000
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import Splits, load_digits
from danlu.gallery.record import Result
from danlu.losses import Scores, contrastive_scores, contrastive_stats, flat_nce, info_nce
from danlu.math import spearman
from danlu.recipes._contrastive import cross_entropy, pull_error, rounded

__all__ = ["ARMS", "SCALES", "Config", "run", "train"]

PROBE = (
    "linear probe",
    "neighbours",
    "error of the pull",
    "share that rounds to 1",
    "median xi",
)


@dataclass(frozen=True)
class Config:
    """Views that differ little, or no anchor is ever solved: pixels lie in [0, 1]. A low temperature solves more."""

    pairs: tuple[int, ...] = (4, 16, 64)  # in a batch
    temperatures: tuple[float, ...] = (0.1, 0.05, 0.02)
    noise: float = 0.05  # standard deviation on every pixel of a view
    hidden: int = 128
    features: int = 64
    head: int = 32
    lr: float = 1e-3
    steps: int = 2_000
    look_every: int = 50  # steps between measurements of the gradient
    ridge: float = 1e-2


SMALL = Config(pairs=(4,), temperatures=(0.1, 0.02), steps=30, hidden=32, features=16, head=8, look_every=10)
SCALES = {"smoke": SMALL, "full": Config()}


def scaled(s: Scores) -> Tensor:
    loss = cross_entropy(s)
    return loss / loss.detach().clamp_min(1e-30)


ARMS: dict[str, Callable[[Scores], Tensor]] = {
    "cross-entropy": cross_entropy,
    "cross-entropy in float64": lambda s: cross_entropy(s._replace(scores=s.scores.double())),
    "exact InfoNCE": lambda s: info_nce(*s),
    "cross-entropy, scaled": scaled,
    "FlatNCE": lambda s: flat_nce(*s),
    "FlatNCE in float64": lambda s: flat_nce(s.scores.double(), *s[1:]),
    "cross-entropy in bfloat16": lambda s: cross_entropy(rounded(s)).float(),
    "exact InfoNCE in bfloat16": lambda s: info_nce(*rounded(s)),
    "FlatNCE in bfloat16": lambda s: flat_nce(*rounded(s)),
}


def error_of(arm: str, s: Scores) -> float:
    """The error of the arm's pull on the positives; the divided form is multiplied by what it was divided by."""
    s = s._replace(scores=s.scores.detach())
    s = s._replace(scores=s.scores.bfloat16().float()) if arm.endswith("bfloat16") else s
    factor = cross_entropy(s).item() if arm == "cross-entropy, scaled" else 1.0
    reference = flat_nce if arm.startswith("FlatNCE") else info_nce
    return pull_error(lambda t: factor * ARMS[arm](t), reference, s)


Parts = Splits[tuple[Tensor, Tensor]]


def train(config: Config, arm: str, pairs: int, temperature: float, seed: int, digits: Parts) -> dict[str, float]:
    """What one arm learns, and what its gradients were like on the way."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x = digits.train[0].flatten(1)  # (1257, 64)
    encoder = nn.Sequential(nn.Linear(64, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.features))
    head = nn.Sequential(nn.ReLU(), nn.Linear(config.features, config.head))
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=config.lr)

    def view(images: Tensor) -> Tensor:
        return images + config.noise * torch.randn(images.shape, generator=generator)

    errors, certain, xi = [], [], []
    for step in range(config.steps):
        images = x[torch.randperm(len(x), generator=generator)[:pairs]]
        z = head(encoder(torch.cat([view(images), view(images)])))  # (2 B, D)
        s = contrastive_scores(*z.chunk(2), temperature, layout="all")
        optimizer.zero_grad()
        ARMS[arm](s).backward()
        optimizer.step()
        if (step + 1) % config.look_every == 0:
            errors.append(error_of(arm, s))
            stats = contrastive_stats(*(rounded(s) if arm.endswith("bfloat16") else s))
            certain.append(stats["share_underflow"].item())
            xi.append(stats["xi_median"].item())
    held_out = torch.cat([digits.dev[0], digits.test[0]]).flatten(1), torch.cat([digits.dev[1], digits.test[1]])
    with torch.no_grad():
        linear, near = probes(encoder(x), digits.train[1], encoder(held_out[0]), held_out[1], config.ridge)
    median = [torch.tensor(v, dtype=torch.float64).median().item() for v in (errors, certain, xi)]
    return dict(zip(PROBE, (linear, near, *median), strict=True))


def probes(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, ridge: float) -> tuple[float, float]:
    """Accuracy of ridge regression onto the classes, and of the vote of the 5 nearest by cosine."""
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    a, b = (F.pad((v - mean) / std, (0, 1), value=1.0).double() for v in (x, test_x))  # (N, D + 1)
    eye = torch.eye(a.shape[1], dtype=a.dtype)
    weight = torch.linalg.solve(a.T @ a + ridge * len(a) * eye, a.T @ F.one_hot(y, 10).double())
    linear = ((b @ weight).argmax(1) == test_y).double().mean().item()
    nearest = (F.normalize(test_x) @ F.normalize(x).T).topk(5).indices  # (540, 5)
    votes = F.one_hot(y[nearest], 10).sum(1)  # (540, 10)
    return linear, (votes.argmax(1) == test_y).double().mean().item()


def run(config: Config, seed: int) -> Result:
    """All arms at every batch size and temperature, and what is gained over torch's cross-entropy where causes show."""
    digits = load_digits()
    measured: dict[str, float] = {}
    figures: dict[str, Any] = {"arm": list(ARMS), "condition": [], **{name: [] for name in PROBE}}
    for pairs in config.pairs:
        for temperature in config.temperatures:
            where = f"{pairs} pairs at {temperature:g}"
            found = {arm: train(config, arm, pairs, temperature, seed, digits) for arm in ARMS}
            measured |= {f"{arm}, {where}": found[arm]["linear probe"] for arm in ARMS}
            for arm in ARMS:
                base = "cross-entropy in bfloat16" if arm.endswith("bfloat16") else "cross-entropy"
                if arm != base:
                    measured[f"gain of {arm}, {where}"] = found[arm]["linear probe"] - found[base]["linear probe"]
            for arm in ("cross-entropy", "exact InfoNCE", "cross-entropy in bfloat16", "exact InfoNCE in bfloat16"):
                measured[f"error of the pull, {arm}, {where}"] = found[arm]["error of the pull"]
            for arm in ("cross-entropy", "FlatNCE"):
                measured[f"share that rounds to 1, {arm}, {where}"] = found[arm]["share that rounds to 1"]
            figures["condition"].append(where)
            for name in PROBE:
                figures[name].append([found[arm][name] for arm in ARMS])
    plain, flat = list(ARMS).index("cross-entropy"), list(ARMS).index("FlatNCE")
    gains = torch.tensor([row[flat] - row[plain] for row in figures["linear probe"]])
    shares = torch.tensor([row[plain] for row in figures["share that rounds to 1"]])
    measured["rank correlation of FlatNCE's gain and the share that rounds to 1"] = float(spearman(gains, shares))
    return Result(measured=measured, figures=figures)
