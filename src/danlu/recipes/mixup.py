r"""mixup makes a classifier of digits more linear between examples; whether that helps it depends on how many it has.

Claim  kexue.fm/archives/5693 (an argument, no table): SamplePairing and mixup are regularisers that choose, among
       models of like quality, the one nearest to a linear function. arXiv:1801.02929: SamplePairing lifts accuracy,
       the more the smaller the training set (its figures are for photographs: CIFAR-10 error 8.22 to 6.93 %).
Test   no mixing; label smoothing as strong as mixup's own (the control: what the shrunken labels do without mixed
       images); mixup with the small and the large alpha; mixup at a layer drawn from input and hidden ones;
       SamplePairing with its schedule. Same start and steps; on held-out digits accuracy, negative log-likelihood,
       calibration error, and the gap from a straight line between probabilities. Few and many examples a class.
Data   digits of scikit-learn (drawn by the seed from the training part, 540 held out)
Run    danlu run mixup --scale smoke|full --seed 0 --set alpha=0.4
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import Splits, load_digits
from danlu.gallery.record import Result
from danlu.math import expected_calibration_error
from danlu.train import (
    ManifoldMixup,
    linearity_gap,
    mix_targets,
    mixup,
    mixup_loss,
    sample_pairing,
    sample_pairing_on,
    smoothing_strength,
)

__all__ = ["ARMS", "SCALES", "Config", "run", "train"]

ARMS = ("plain", "label smoothing", "mixup", "strong mixup", "hidden mixup", "sample pairing")
SCORES = ("accuracy", "nll", "calibration error", "linearity gap")


@dataclass(frozen=True)
class Config:
    """Full batches, so a step is an epoch; the schedule of SamplePairing is counted in steps."""

    few: int = 5  # examples a class
    many: int = 50
    hidden: int = 128
    alpha: float = 0.2
    strong_alpha: float = 1.0
    lr: float = 1e-3
    steps: int = 600
    warmup: int = 60  # steps without pairs at the beginning
    cooldown: int = 120  # and at the end
    gap_pairs: int = 2_000


SCALES = {"smoke": Config(steps=40, many=20, warmup=4, cooldown=8, gap_pairs=300), "full": Config()}


def draw(x: Tensor, y: Tensor, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """So many examples of each class."""
    order = torch.randperm(len(y), generator=generator)
    rows = torch.cat([order[y[order] == c][:per_class] for c in range(10)])
    return x[rows], y[rows]


Parts = Splits[tuple[Tensor, Tensor]]


def train(config: Config, arm: str, per_class: int, seed: int, digits: Parts) -> dict[str, float]:
    """The scores of one arm on the held-out digits."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x, y = draw(digits.train[0].flatten(1), digits.train[1], per_class, generator)
    test_x = torch.cat([digits.dev[0], digits.test[0]]).flatten(1)  # (540, 64)
    test_y = torch.cat([digits.dev[1], digits.test[1]])
    pixels, first, second = nn.Identity(), nn.Linear(64, config.hidden), nn.Linear(config.hidden, config.hidden)
    model = nn.Sequential(pixels, first, nn.ReLU(), second, nn.ReLU(), nn.Linear(config.hidden, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    manifold = ManifoldMixup([pixels, model[2], model[4]], config.alpha, generator=generator, layer_seed=seed)
    softer = smoothing_strength(config.alpha) if arm == "label smoothing" else 0.0
    for step in range(config.steps):
        optimizer.zero_grad()
        if arm in ("mixup", "strong mixup"):
            alpha = config.alpha if arm == "mixup" else config.strong_alpha
            mixed, target = mixup(x, y, alpha, generator=generator)
            loss = mixup_loss(model(mixed), target)
        elif arm == "hidden mixup":
            with manifold.mixing(y) as mix:
                logits = model(x)
            loss = mixup_loss(logits, mix_targets(y, mix))
        else:
            paired = arm == "sample pairing"
            paired = paired and sample_pairing_on(step, config.steps, config.warmup, config.cooldown)
            loss = F.cross_entropy(model(sample_pairing(x, generator) if paired else x), y, label_smoothing=softer)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        log_prob = model(test_x).log_softmax(1)  # (540, 10)
    confidence, answer = log_prob.exp().max(1)
    right = answer == test_y
    values = (
        right.float().mean().item(),
        F.nll_loss(log_prob, test_y).item(),
        expected_calibration_error(confidence, right),
        linearity_gap(lambda v: model(v).softmax(1), test_x, config.gap_pairs, torch.Generator().manual_seed(0)),
    )
    return dict(zip(SCORES, values, strict=True))


def run(config: Config, seed: int) -> Result:
    """Every arm with few and with many examples, and what mixing changes against none and against the control."""
    sizes = (config.few, config.many)
    digits = load_digits()
    found = {(arm, n): train(config, arm, n, seed, digits) for n in sizes for arm in ARMS}
    measured = {}
    for n in sizes:
        for name in SCORES:
            shown = ARMS if name in ("accuracy", "linearity gap") else ("plain", "label smoothing", "mixup")
            measured |= {f"{name}, {arm}, {n} a class": found[arm, n][name] for arm in shown}
        plain, control = found["plain", n], found["label smoothing", n]
        for arm in ("mixup", "sample pairing"):
            measured[f"gain of {arm}, {n} a class"] = found[arm, n]["accuracy"] - plain["accuracy"]
        measured[f"gain of mixup over label smoothing, {n} a class"] = (
            found["mixup", n]["accuracy"] - control["accuracy"]
        )
        measured[f"gap of mixup over plain, {n} a class"] = found["mixup", n]["linearity gap"] / max(
            plain["linearity gap"], 1e-9
        )
    figures = {"arm": list(ARMS), "per_class": list(sizes)}
    figures |= {name: [[found[arm, n][name] for arm in ARMS] for n in sizes] for name in SCORES}
    return Result(measured=measured, figures=figures)
