r"""F1 itself as the aim: policy gradient and zeroth order against cross-entropy, threshold and soft F1.

Claim  kexue.fm/archives/7737: policy gradient and zeroth-order optimisation lead to the same place, the second being
       apt for modules with few parameters (no figure is known to us, so none is compared).
Test   a linear classifier of "8 or not" on 20 random pixels. Cross-entropy first; then each arm goes on from there on
       the training half: policy gradient on the hard F1 of drawn labels (leave-one-out), zeroth order on the hard F1 of
       the decisions (antithetic), both with the same number of looks at the metric; the same steps of cross-entropy
       more; soft F1, which knows the metric's formula; the threshold that is best on the training half, which is free.
       F1 on each half.
Data   digits of scikit-learn, split in halves by the seed
Run    danlu run gradient_estimators_metric --scale smoke|full --seed 0 --set num_samples=32
"""

import copy
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import load_digits
from danlu.gallery.record import Result
from danlu.losses import soft_f1_loss
from danlu.optim import zeroth_order_backward
from danlu.recipes._estimators import go_on, told
from danlu.train import sampled_reward_loss

__all__ = ["SCALES", "Config", "run", "train"]


@dataclass(frozen=True)
class Config:
    """Full batches, because F1 is a ratio of sums over the batch."""

    digit: int = 8
    pixels: int = 20
    lr: float = 0.05
    steps: int = 1_000  # of cross-entropy at first
    fine_tune_lr: float = 0.02
    fine_tune_steps: int = 1_000  # of every arm after it
    num_samples: int = 16  # looks at the metric in a step, of policy gradient and of zeroth order
    epsilon: float = 0.2  # radius of zeroth order's moves; weights are of order 1


SCALES = {"smoke": Config(steps=100, fine_tune_steps=40), "full": Config()}


def f1(answer: Tensor, target: Tensor) -> Tensor:
    """F1 of class 1, (..., N) 0/1 answers -> (...)."""
    return 2 * (answer * target).sum(-1) / (answer.sum(-1) + target.sum()).clamp_min(1)


def best_threshold(scores: Tensor, target: Tensor) -> float:
    """The threshold between two neighbouring scores with the best F1."""
    ordered, rows = scores.sort(descending=True)
    hits = target[rows].cumsum(0)
    best = int((2 * hits / (torch.arange(1, len(hits) + 1) + target.sum())).argmax())
    return float(ordered[best : best + 2].mean())


def train(config: Config, seed: int) -> dict[str, tuple[float, float]]:
    """F1 of each arm on the training half and on the other."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    parts = load_digits()
    x = torch.cat([p[0] for p in (parts.train, parts.dev, parts.test)]).flatten(1)  # (1797, 64)
    y = (torch.cat([p[1] for p in (parts.train, parts.dev, parts.test)]) == config.digit).long()
    seen, order = torch.randperm(64)[: config.pixels], torch.randperm(len(y))
    x, y = x[order][:, seen], y[order]
    half = len(y) // 2
    (x1, x2), (y1, y2) = x.split([half, len(y) - half]), y.split([half, len(y) - half])

    @torch.no_grad()
    def scores(model: nn.Module, threshold: float = 0.0) -> tuple[float, float]:
        first, second = (f1((model(z)[:, 0] > threshold).long(), t).item() for z, t in ((x1, y1), (x2, y2)))
        return first, second

    def cross_entropy(model: nn.Module) -> None:
        F.binary_cross_entropy_with_logits(model(x1)[:, 0], y1.float()).backward()

    def policy_gradient(model: nn.Module) -> None:
        z = model(x1)[:, 0]  # (N,)
        logits = torch.stack([torch.zeros_like(z), z], dim=1)  # (N, 2)
        sampled_reward_loss(logits, lambda answer: f1(answer, y1), config.num_samples, generator=generator).backward()

    def zeroth_order(model: nn.Module) -> None:
        def lost() -> Tensor:
            return 1 - f1((model(x1)[:, 0] > 0).long(), y1)

        pairs = config.num_samples // 2
        zeroth_order_backward(lost, list(model.parameters()), config.epsilon, pairs, generator=generator)

    def soft_f1(model: nn.Module) -> None:
        soft_f1_loss(model(x1)[:, 0], y1, "binary").backward()

    base = nn.Linear(config.pixels, 1)
    go_on(base, partial(cross_entropy, base), config.lr, config.steps)
    found = {"cross-entropy": scores(base)}
    with torch.no_grad():
        found["threshold tuned"] = scores(base, best_threshold(base(x1)[:, 0], y1))
    arms = {
        "more cross-entropy": cross_entropy,
        "policy gradient": policy_gradient,
        "zeroth order": zeroth_order,
        "soft F1": soft_f1,
    }
    for name, backward in arms.items():
        model = copy.deepcopy(base)
        go_on(model, partial(backward, model), config.fine_tune_lr, config.fine_tune_steps)
        found[name] = scores(model)
    return found


def run(config: Config, seed: int) -> Result:
    """All arms of one split, and what each gains on the other half over cross-entropy."""
    return told(train(config, seed), "train", "test")
