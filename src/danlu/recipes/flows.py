r"""Flows of digits: what the 1x1 convolution, the scale, the conditional prior and the data-dependent start are worth.

Claim  kexue.fm/archives/5807: the loss falls from reversing to shuffling to 1x1 convolutions between couplings; with
       actnorm present affine couplings give little over additive ones; the conditional multi-scale prior matters.
       arXiv:1807.03039: Glow beats RealNVP in bits per dimension (CIFAR-10: 3.35 against 3.49; not digits).
Test   Glow, and Glow with one part exchanged at a time; RealNVP; NICE. Same data, batches, steps and optimiser; the
       weights of the step that is best on the dev part. Bits per dimension of held-out images, 16 draws of noise inside
       a level, against models that need no network: uniform, and Gaussians with a diagonal and a full covariance, by
       maximum likelihood. The full Gaussian is the control that a flow has to beat before anything else counts.
Data   digits of scikit-learn (8 x 8, 17 grey levels); with --set data=mnist: $DANLU_DATA/data/mnist padded to 32 x 32
Run    danlu run flows --scale smoke|full --seed 0 --set steps=1500
"""

import copy
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.gallery.record import Result
from danlu.generative.dequantization import dequantize
from danlu.generative.flow import Flow
from danlu.generative.flow_config import FlowConfig
from danlu.math import bits_per_dim
from danlu.tasks.images import image_levels, load_images

__all__ = ["ARMS", "SCALES", "Config", "gaussian_bits", "run", "train"]

ARMS = ("glow", "shuffle", "reverse", "additive", "standard prior", "zero start", "realnvp", "nice")


@dataclass(frozen=True)
class Config:
    """`glow_steps` is K of a level; RealNVP has two thirds as many couplings of each kind, NICE 4 dense ones."""

    data: str = "digits"
    train_size: int = 60_000  # at most
    test_size: int = 1_000  # at most
    levels: int = 2
    glow_steps: int = 8
    width: int = 64
    nice_width: int = 512
    lr: float = 1e-3
    batch_size: int = 128
    steps: int = 1_500
    look_every: int = 100  # steps between looks at the dev part
    draws: int = 16  # of the noise, at the end
    bf16: bool = False  # networks of the couplings
    arms: tuple[str, ...] = ARMS


SCALES = {
    "smoke": Config(
        train_size=256, test_size=60, glow_steps=1, width=8, nice_width=16, steps=6, look_every=3, draws=2
    ),
    "full": Config(),
    "large": Config(
        data="mnist", levels=3, width=128, lr=5e-4, steps=10_000, look_every=500, bf16=True, draws=4
    ),
}  # fmt: skip


def settings(config: Config, arm: str, shape: tuple[int, ...], num_bins: int) -> FlowConfig:
    """The flow of an arm: Glow with one thing changed, or another kind."""
    glow = FlowConfig(shape, levels=config.levels, steps=config.glow_steps, width=config.width, num_bins=num_bins)
    couplings = max(1, 2 * config.glow_steps // 3)
    return {
        "glow": glow,
        "shuffle": replace(glow, mixing="shuffle"),
        "reverse": replace(glow, mixing="reverse"),
        "additive": replace(glow, additive=True),
        "standard prior": replace(glow, prior="standard"),
        "zero start": replace(glow, actnorm="zeros"),
        "realnvp": replace(glow, kind="realnvp", steps=couplings, prior="standard", alpha=0.05),
        "nice": replace(glow, kind="nice", levels=1, steps=4, width=config.nice_width, prior="standard"),
    }[arm]


def parts(config: Config) -> tuple[dict[str, Tensor], int]:
    """Images of the three parts, padded so that every level can halve them, and the number of grey levels."""
    sizes = {"train": config.train_size, "dev": config.test_size, "test": config.test_size}
    found = {part: load_images(config.data, part, limit)[0] for part, limit in sizes.items()}
    multiple = 2**config.levels
    missing = -found["train"].shape[-1] % multiple
    pad = (missing // 2, missing - missing // 2) * 2
    return {part: F.pad(x, pad) for part, x in found.items()}, image_levels(config.data)


def held_out_bits(flow: Flow, x: Tensor, draws: int, seed: int) -> float:
    """Mean bits per dimension, in small batches."""
    flow.eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        bits = [flow.bits_per_dim(rows, generator, samples=draws) for rows in x.split(64)]
    flow.train()
    return torch.cat(bits).mean().item()


def train(config: Config, arm: str, seed: int, data: dict[str, Tensor], num_bins: int) -> tuple[Flow, list[float]]:
    """The flow of an arm at its best step by the dev part, and what the dev part said on the way."""
    generator = torch.Generator().manual_seed(seed)
    x = data["train"]
    flow = Flow(settings(config, arm, tuple(x.shape[1:]), num_bins), generator)
    optimizer = torch.optim.Adam(flow.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    curve: list[float] = []
    best = copy.deepcopy(flow.state_dict())
    for step in range(config.steps):
        rows = torch.randint(len(x), (min(config.batch_size, len(x)),), generator=generator)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.bf16):
            loss = flow.loss(x[rows], generator=generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 100.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % config.look_every == 0:
            curve.append(held_out_bits(flow, data["dev"], 1, seed))
            if curve[-1] == min(curve):
                best = copy.deepcopy(flow.state_dict())
    flow.load_state_dict(best)
    return flow.eval(), curve


def gaussian_bits(train: Tensor, test: Tensor, num_bins: int, full: bool) -> float:
    """Bits per dimension of a Gaussian fitted to the training images with uniform noise inside their levels.

    The noise is averaged exactly: a uniform of width 1/n adds 1/(12 n^2) to a variance and to a mean square.
    """
    a, b = (dequantize(x, num_bins).flatten(1).double() for x in (train, test))
    inside = 1 / (12 * num_bins**2)
    covariance = torch.cov(a.T, correction=0) + inside * torch.eye(a.shape[1], dtype=a.dtype)
    if not full:
        covariance = torch.diag(covariance.diagonal())
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, (b - a.mean(0)).T, upper=False)  # (D, N)
    trace = torch.linalg.solve_triangular(factor, torch.eye(len(factor), dtype=a.dtype), upper=False).square().sum()
    each = white.square().sum(0) + inside * trace + a.shape[1] * math.log(2 * math.pi)
    log_prob = -0.5 * each - factor.diagonal().log().sum()
    return bits_per_dim(log_prob, a.shape[1], num_bins).mean().item()


def run(config: Config, seed: int) -> Result:
    """Bits of every arm on the test part, what each part is worth, samples and a path between two images."""
    data, num_bins = parts(config)
    uniform, full = math.log2(num_bins), gaussian_bits(data["train"], data["test"], num_bins, True)
    measured = {"uniform": uniform, "full Gaussian": full}
    measured["diagonal Gaussian"] = gaussian_bits(data["train"], data["test"], num_bins, False)
    figures: dict[str, object] = {"look_every": config.look_every, "num_bins": num_bins}
    for arm in config.arms:
        flow, curve = train(config, arm, seed, data, num_bins)
        measured[arm] = held_out_bits(flow, data["test"], config.draws, seed)
        measured[f"{arm}, gap to training"] = measured[arm] - held_out_bits(
            flow, data["train"][: config.test_size], config.draws, seed
        )
        measured[f"{arm} below the full Gaussian"] = full - measured[arm]
        figures[f"{arm}, dev bits"] = curve
        if arm in ("glow", "realnvp", "nice"):
            figures |= pictures(flow, data["test"], arm, seed)
    for arm in config.arms[1:]:
        if "glow" in config.arms:
            measured[f"glow below {arm}"] = measured[arm] - measured["glow"]
    if {"shuffle", "reverse"} <= set(config.arms):
        measured["shuffle below reverse"] = measured["reverse"] - measured["shuffle"]
    return Result(measured=measured, figures=figures)


def pictures(flow: Flow, test: Tensor, arm: str, seed: int) -> dict[str, object]:
    """Samples at two temperatures, and paths between four pairs of images, as grey values 0 .. 255."""
    scale = 255 / ((flow.config.num_bins or 256) - 1)

    def grey(x: Tensor) -> list[object]:
        return (x[:, 0] * scale).round().int().tolist()

    found: dict[str, object] = {}
    for temperature in (0.7, 1.0):
        generator = torch.Generator().manual_seed(seed)
        found[f"{arm}, samples at {temperature}"] = grey(flow.sample(16, generator, temperature))
    found[f"{arm}, paths"] = grey(flow.interpolate(test[:4], test[4:8], 6).flatten(0, 1))
    return found
