r"""A small Lipschitz constant generalises: spectral regularisation against weight decay, and normalisation beside them.

Claim  kexue.fm/archives/6051: a network that moves little when its input moves generalises better; L2 decay is the
       crude form of that constraint, spectral regularisation the exact one (without figures, so none is compared).
Test   no term, lambda sum ||W||_F^2, lambda sum sigma(W)^2, and c W / sigma(W), same start, batches and steps; the
       strength of each is the best of a grid by the loss on a dev part. Clean labels, then a share of wrong ones. On
       the test part: accuracy, gap to training (labels as wrong on both sides), accuracy under noise, FGM and PGD of
       one L2 length per image, bound of the Lipschitz constant by products, largest Jacobian norm that is found.
Data   digits of scikit-learn (600 drawn by the seed to train on, its dev and test parts)
Run    danlu run lipschitz --scale smoke|full --seed 0 --set epsilon=0.3
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import load_digits
from danlu.gallery.record import Result
from danlu.losses import SpectralPenalty
from danlu.nn import spectral_norm
from danlu.probe import lipschitz_report

__all__ = ["ARMS", "SCALES", "Config", "run", "train"]

ARMS = ("plain", "weight decay", "spectral penalty", "spectral norm")


@dataclass(frozen=True)
class Config:
    """Pixels lie in [0, 1]; a grid is searched for each arm and kind of labels."""

    train_size: int = 600
    hidden: int = 64
    epsilon: float = 0.5  # length of the move of one image, by noise, FGM and PGD alike
    wrong_labels: float = 0.2  # share of the training labels in the second round
    decay: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # lambda of ||W||_F^2
    penalty: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # lambda of sigma^2
    norm: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0)  # c of each layer
    lr: float = 2e-3
    batch_size: int = 50
    epochs: int = 60
    attack_steps: int = 10


SCALES = {
    "smoke": Config(train_size=300, epochs=3, decay=(1e-3,), penalty=(1e-2,), norm=(1.0, 2.0), attack_steps=3),
    "full": Config(),
}
Labelled = tuple[Tensor, Tensor]


def build(config: Config, arm: str, strength: float) -> tuple[nn.Sequential, SpectralPenalty | None]:
    """The network of an arm, and its penalty if it has one."""
    sizes = (64, config.hidden, config.hidden, 10)
    linear = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    if arm == "spectral norm":
        linear = [spectral_norm(layer, coeff=strength) for layer in linear]
    model = nn.Sequential(linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2])
    return model, SpectralPenalty(model, strength) if arm == "spectral penalty" else None


def train(config: Config, arm: str, strength: float, data: Labelled, seed: int) -> nn.Sequential:
    """One arm with one strength."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, penalty = build(config, arm, strength)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    x, y = data
    for _ in range(config.epochs):
        for rows in torch.randperm(len(y), generator=generator).split(config.batch_size):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            if penalty is not None:
                loss = loss + penalty()
            elif arm == "weight decay":
                matrices = [p for p in model.parameters() if p.ndim == 2]
                loss = loss + strength * torch.stack([w.square().sum() for w in matrices]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, data: Labelled) -> float:
    with torch.no_grad():
        return (model(data[0]).argmax(1) == data[1]).float().mean().item()


def attacked(model: nn.Module, data: Labelled, epsilon: float, steps: int) -> float:
    """Accuracy where each image went uphill by projected steps within the ball of radius epsilon; FGM is one step."""
    x, y = data
    length = epsilon if steps == 1 else 2.5 * epsilon / steps
    delta = torch.zeros_like(x)
    for _ in range(steps):
        delta.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y, reduction="sum"), delta)
        delta = delta.detach() + length * g / g.norm(dim=1, keepdim=True).clamp_min(1e-12)
        delta = delta * (epsilon / delta.norm(dim=1, keepdim=True).clamp_min(epsilon))
    return accuracy(model, (x + delta, y))


def spoil(target: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The labels with that share of them moved to another class."""
    shifted = (target + torch.randint(1, 10, target.shape, generator=generator)) % 10
    return torch.where(torch.rand(target.shape, generator=generator) < share, shifted, target)


def measure(
    config: Config, model: nn.Module, trained: Labelled, test: Labelled, like: Tensor, seed: int
) -> dict[str, float]:
    """What is reported of a model; `like` are the test labels, as wrong as those of the training part."""
    noise = torch.randn(test[0].shape, generator=torch.Generator().manual_seed(seed))
    noise = config.epsilon * noise / noise.norm(dim=1, keepdim=True)
    report = lipschitz_report(model, test[0])
    return {
        "test": accuracy(model, test),
        "gap": accuracy(model, trained) - accuracy(model, (test[0], like)),
        "noise": accuracy(model, (test[0] + noise, test[1])),
        "FGM": attacked(model, test, config.epsilon, 1),
        "PGD": attacked(model, test, config.epsilon, config.attack_steps),
        "bound": report.upper,
        "Jacobian": report.lower,
    }


def chosen(config: Config, arm: str, data: Labelled, dev: Labelled, seed: int) -> tuple[nn.Sequential, float]:
    """The model of the strength with the least loss on the dev part, and that strength."""
    grids = {"plain": (0.0,), "weight decay": config.decay, "spectral penalty": config.penalty}
    best: tuple[float, nn.Sequential, float] | None = None
    for strength in grids.get(arm, config.norm):
        model = train(config, arm, strength, data, seed)
        with torch.no_grad():
            loss = F.cross_entropy(model(dev[0]), dev[1]).item()
        if best is None or loss < best[0]:
            best = loss, model, strength
    assert best is not None
    return best[1], best[2]


def run(config: Config, seed: int) -> Result:
    """Every arm of one seed, for clean and for partly wrong labels, and what each gains over no term."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    rows = torch.randperm(len(digits.train[1]), generator=generator)[: config.train_size]
    x, y = digits.train[0].flatten(1)[rows], digits.train[1][rows]
    dev, test = ((part[0].flatten(1), part[1]) for part in (digits.dev, digits.test))
    spoilt, spoilt_test = (spoil(labels, config.wrong_labels, generator) for labels in (y, test[1]))
    measured: dict[str, float] = {}
    figures: dict[str, list[float] | list[str]] = {"arm": list(ARMS)}
    for labels, target, like in (("clean labels", y, test[1]), ("wrong labels", spoilt, spoilt_test)):
        found = {}
        for arm in ARMS:
            model, strength = chosen(config, arm, (x, target), dev, seed)
            found[arm] = measure(config, model, (x, target), test, like, seed) | {"strength": strength}
            measured |= {f"{arm}, {labels}, {name}": value for name, value in found[arm].items()}
        for arm in ARMS[1:]:
            for name in ("test", "gap", "PGD"):
                gain = found[arm][name] - found["plain"][name]
                measured[f"{arm} over plain, {labels}, {name}"] = gain
        over = "spectral penalty over weight decay"
        for name in ("test", "gap", "PGD"):
            measured[f"{over}, {labels}, {name}"] = found["spectral penalty"][name] - found["weight decay"][name]
        figures |= {f"{labels}, {name}": [found[arm][name] for arm in ARMS] for name in found["plain"]}
    return Result(measured=measured, figures=figures)
