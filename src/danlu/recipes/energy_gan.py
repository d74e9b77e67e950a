r"""An energy model trained by Langevin sampling alone: what normalisation, squares of energies and a buffer do for it.

Claim  kexue.fm/archives/6612 (after arXiv:1903.08689): an explicit energy trained with Langevin negatives generates,
       given spectral normalisation, a penalty on the squares of the energies and a replay buffer. The paper: AUROC of
       -U for CIFAR-10 against uniform noise 1.0, against other pictures 0.48 to 0.63.
Test   A ring of 8 Gaussians, where the density is known: KL(data || exp(-U) / Z) with Z from a grid, for the proper
       scheme with a buffer, the proper scheme from noise each time, and the usual programs' cold scheme; log Z by
       annealed importance sampling against the grid. Digits: all tricks, and each left out; Frechet distance of samples
       to test images on the features of a classifier trained here, beside that of the training part, classes covered,
       AUROC of -U of test digits against uniform noise, against the same pixels in another order, and against digits
       upside down; the largest energy, and whether it ran off.
Data   the ring is made up; digits of scikit-learn, 8 x 8, made continuous with uniform noise
Run    danlu run energy_gan --scale smoke|full --seed 0 --set steps=2000
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.gallery.record import Result
from danlu.generative import EnergyConfig, EnergyModel, ring
from danlu.math import gaussian_wasserstein
from danlu.math.mode_coverage import mode_coverage
from danlu.tasks.images import load_images

__all__ = ["SCALES", "Config", "run", "train"]


@dataclass(frozen=True)
class Config:
    """The sampler's settings are those of danlu.generative.EnergyConfig; the temperatures are measured values."""

    steps: int = 2_000  # updates on the ring
    digit_steps: int = 600
    batch_size: int = 128
    lr: float = 1e-3
    width: int = 64
    num_steps: int = 20  # of Langevin an update
    digit_width: int = 12
    digit_num_steps: int = 20
    chains: int = 400  # of annealed importance sampling
    temperatures: int = 300
    grid: int = 161


SCALES = {
    "smoke": Config(
        4, 3, 16, width=8, num_steps=2, digit_width=4, digit_num_steps=2, chains=8, temperatures=4, grid=21
    ),
    "full": Config(),
}
DATA = ring(8, 2.0, 0.2)
RING = EnergyConfig(shape=(2,), bounds=(-4.0, 4.0), depth=3, step=0.02)
DIGITS = EnergyConfig(
    (1, 8, 8), (0.0, 1.0), depth=2, spectral_norm=1.5, step=1.0, noise=0.01, alpha=0.1, boundary="clamp"
)
RAN_OFF = 1e3  # of an energy


def train(config: Config, of_model: EnergyConfig, data: Tensor, steps: int, seed: int) -> tuple[EnergyModel, bool]:
    """A model after so many updates, and whether it ran off before."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    model = EnergyModel(of_model)
    optimizer = torch.optim.Adam(model.parameters(), config.lr, betas=(0.0, 0.999))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, 2 * (1 - step / steps))
        x = data[torch.randint(len(data), (config.batch_size,), generator=g)]
        optimizer.zero_grad()
        try:
            loss = model.loss(x, generator=g)
        except RuntimeError:  # the chains left the finite numbers
            return model, True
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        with torch.no_grad():
            if not model.energy(x).abs().max() < RAN_OFF:
                return model, True
    return model.eval(), False


def on_the_ring(config: Config, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """KL to the known density, modes, and log Z two ways."""
    g = torch.Generator().manual_seed(seed)
    data = DATA.sample(10_000, g).float()
    test = DATA.sample(4_000, g).float()
    side = torch.linspace(-4, 4, config.grid)
    points = torch.cartesian_prod(side, side)
    cell = 2 * math.log(8 / (config.grid - 1))
    arms = {
        "proper": RING,
        "proper, no buffer": replace(RING, reinit=1.0),
        "cold": replace(RING, noise=0.1 * math.sqrt(RING.step)),
    }
    measured: dict[str, float] = {}
    pictures: dict[str, Any] = {}
    for name, arm in arms.items():
        arm = replace(arm, width=config.width, num_steps=config.num_steps)
        model, off = train(config, arm, data, config.steps, seed)
        with torch.no_grad():
            heights = (-model.energy(points)).double()
            log_z = heights.logsumexp(0).item() + cell
            kl = (DATA.log_prob(test) - model.log_prob(test, log_z)).mean().item()
        samples = model.sample(1_000, g, num_steps=10 * config.num_steps, fresh=arm.reinit == 1.0)
        cover = mode_coverage(samples, DATA.modes.float(), radius=3 * DATA.deviation, least=10)
        measured |= {
            f"ring, {name}: temperature": model.temperature,
            f"ring, {name}: KL": min(kl, 1e6),
            f"ring, {name}: modes": float(cover.hit),
            f"ring, {name}: good samples": cover.good,
            f"ring, {name}: ran off": float(off),
        }
        if name == "proper":
            annealed = model.log_partition(config.chains, config.temperatures, g).estimate
            measured["ring, proper: log Z, annealed minus grid"] = annealed.value.item() - log_z
            measured["ring, proper: log Z, standard error"] = annealed.standard_error.item()
        every = max(1, (config.grid - 1) // 40)
        density = (heights - heights.logsumexp(0)).exp().view(config.grid, config.grid)[::every, ::every]
        pictures[name] = (density / density.max()).mul(255).round().int().tolist()
    return measured, pictures


def classifier(data: Tensor, label: Tensor, steps: int, g: torch.Generator) -> nn.Sequential:
    """A small network whose hidden layer serves as features."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(steps):
        rows = torch.randint(len(data), (128,), generator=g)
        optimizer.zero_grad()
        F.cross_entropy(net(data[rows]), label[rows]).backward()
        optimizer.step()
    return net.eval()


def frechet(a: Tensor, b: Tensor) -> float:
    pairs = [v for t in (a.double(), b.double()) for v in (t.mean(0), torch.cov(t.T))]
    return gaussian_wasserstein(*pairs).item()


def auroc(high: Tensor, low: Tensor) -> float:
    """How often a value of the first is above one of the second, ties half."""
    gap = high[:, None] - low[None]
    return ((gap > 0).double() + (gap == 0).double() / 2).mean().item()


def on_digits(config: Config, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Samples and scores of the model with all tricks and without each."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    (data, label), (test, _) = (
        ((x + torch.rand(x.shape, generator=g)) / 17, y)
        for x, y in (load_images("digits", p) for p in ("train", "test"))
    )
    net = classifier(data, label, min(config.digit_steps, 600), g)
    full = replace(DIGITS, width=config.digit_width, num_steps=config.digit_num_steps)
    others = {
        "uniform noise": torch.rand(test.shape, generator=g),
        "pixels in another order": test.flatten(1)[:, torch.randperm(64, generator=g)].view_as(test),
        "upside down": test.flip(2),
    }
    measured: dict[str, float] = {}
    pictures: dict[str, Any] = {"data": pixels(test[:20])}
    with torch.no_grad():
        real = net[:5](test)
        measured["digits, training part: Frechet"] = frechet(net[:5](data), real)
        measured["digits, uniform noise: Frechet"] = frechet(net[:5](others["uniform noise"]), real)
    for name, arm in {
        "all": full,
        "no spectral norm": replace(full, spectral_norm=0.0),
        "no squares": replace(full, alpha=0.0),
        "no buffer": replace(full, reinit=1.0),
    }.items():
        model, off = train(config, arm, data, config.digit_steps, seed)
        try:
            samples = model.sample(1_000, g, fresh=name == "no buffer")
        except RuntimeError:
            off, samples = True, model.buffer.draw(1_000, g, reinit=0.0)[0]
        with torch.no_grad():
            shares = net(samples).argmax(1).bincount(minlength=10) / len(samples)
            energy = model.energy(test)
            finite = torch.nan_to_num(energy, nan=1e9, posinf=1e9, neginf=-1e9)
            measured |= {
                f"digits, {name}: Frechet": frechet(net[:5](samples), real),
                f"digits, {name}: classes": float((shares >= 0.01).sum()),
                f"digits, {name}: largest energy": finite.abs().max().item(),
                f"digits, {name}: ran off": float(off),
            }
            for kind, x in others.items():
                low = torch.nan_to_num(model.energy(x), nan=1e9, posinf=1e9, neginf=-1e9)
                measured[f"digits, {name}: AUROC, {kind}"] = auroc(-finite, -low)
        pictures[name] = pixels(samples[:20])
    measured["digits: temperature"] = model.temperature
    return measured, pictures


def pixels(x: Tensor) -> list[list[list[int]]]:
    levels: list[list[list[int]]] = (x.clamp(0, 1) * 255).round().int().view(-1, 8, 8).tolist()
    return levels


def run(config: Config, seed: int) -> Result:
    """Ring and digits of one seed."""
    ring_values, densities = on_the_ring(config, seed)
    digit_values, grids = on_digits(config, seed)
    return Result(measured=ring_values | digit_values, figures={"densities": densities, "pictures": grids})
