r"""What an autoencoder measures and how it looks is decided by the likelihood of its decoder.

Claim  kexue.fm/archives/5343: the reconstruction loss is the decoder's distribution, and with squared error its width
       is the balance with the KL term. arXiv:2006.13202: the width of least loss needs no tuning. No figures; expected
       here: a fixed width of 1 on pixels in [0, 1] costs more than one bit per dimension and half of the units (no
       direction in which the digits vary is as wide as that noise).
Test   one network, data and steps in every arm, the step of the best bound on the dev images kept: Gaussians of width
       1, of a variance of 1/2 (squared error alone), of one learned width, of the optimal width, of a width for every
       pixel; continuous Bernoulli; discretised logistic; mixture of discretised logistics. Controls that need no
       latent: a histogram of every pixel by itself, a Gaussian of full covariance. Bits per dimension of test images
       by importance sampling (densities on images with noise uniform within a level: an upper bound of their code
       length), share of the estimates to be trusted, active units, KL, error of the reconstruction in levels.
Data   digits of scikit-learn, 17 levels
Run    danlu run vae_likelihoods --scale smoke|full --seed 0 --set latent_dim=8
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.gallery.record import Result
from danlu.generative import VAE, VAEConfig, latent_usage, vae_log_prob
from danlu.math import bits_per_dim
from danlu.tasks.images import image_levels, load_images

__all__ = ["SCALES", "Config", "run", "train"]


@dataclass(frozen=True)
class Config:
    """Small images, so that every arm can be trained until it overfits and stopped before."""

    data: str = "digits"
    latent_dim: int = 16
    hidden: int = 128
    steps: int = 12_000
    batch_size: int = 64
    lr: float = 1e-3
    look_every: int = 200  # steps between two looks at the dev images
    components: int = 3
    samples: int = 1_000  # of the latent, in evaluation
    pictures: int = 20


SCALES = {
    "smoke": Config(latent_dim=4, hidden=16, steps=20, look_every=10, samples=10, pictures=2),
    "full": Config(),
}
ARMS = {
    "Gaussian of width 1": "gaussian:1.0",
    "squared error alone": "gaussian:0.7071067811865476",  # as code without a width has it: a variance of 1/2
    "Gaussian, one learned width": "gaussian:global",
    "Gaussian, optimal width": "gaussian",
    "Gaussian, width a pixel": "gaussian:pixel",
    "continuous Bernoulli": "continuous_bernoulli",
    "discretised logistic": "discretized_logistic",
    "mixture of logistics": "logistic_mixture",
}


def noisy(x: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """Levels made continuous, in [0, 1)."""
    return (x + torch.rand(x.shape, generator=generator)) / levels


def train(config: Config, seed: int, likelihood: str, data: Tensor, dev: Tensor, levels: int) -> VAE:
    """A model with the parameters of its best look at the dev images."""
    torch.manual_seed(seed)
    bits = math.ceil(math.log2(levels))
    settings = {"likelihood": likelihood, "bits": bits, "components": config.components}
    model = VAE(VAEConfig(tuple(data.shape[1:]), config.latent_dim, hidden=(config.hidden,), **settings))
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    generator = torch.Generator().manual_seed(seed)
    best, kept = math.inf, copy.deepcopy(model.state_dict())
    for step in range(1, config.steps + 1):
        x = data[torch.randint(len(data), (config.batch_size,), generator=generator)]
        x = x if model.likelihood.discrete else noisy(x, levels, generator)
        optimizer.zero_grad()
        model.loss(x, generator=generator).backward()
        optimizer.step()
        if step % config.look_every == 0:
            look = torch.Generator().manual_seed(0)  # the same noise at every look
            x = dev if model.likelihood.discrete else noisy(dev, levels, look)
            value = -vae_log_prob(model, x, 5, generator=look).value.mean().item()
            if value < best:
                best, kept = value, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return model.eval()


def histogram(data: Tensor, test: Tensor, levels: int) -> float:
    """Bits per dimension of a table for every pixel, one added to every count."""
    x = data.flatten(1).long()
    counts = torch.stack([(x == k).sum(0) for k in range(levels)]).double() + 1  # (levels, D)
    log_p = (counts / counts.sum(0)).log().gather(0, test.flatten(1).long())
    return bits_per_dim(log_p.sum(1), x.shape[1]).mean().item()


def full_covariance(data: Tensor, test: Tensor, levels: int, generator: torch.Generator) -> float:
    """Bits per dimension of a Gaussian of full covariance on images with noise."""
    x, y = (noisy(part, levels, generator).flatten(1).double() for part in (data, test))
    model = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T))
    return bits_per_dim(model.log_prob(y), x.shape[1], levels).mean().item()


def run(config: Config, seed: int) -> Result:
    """All arms with one seed."""
    levels = image_levels(config.data)
    data, dev, test = (load_images(config.data, part)[0] for part in ("train", "dev", "test"))
    size = math.prod(data.shape[1:])
    generator = torch.Generator().manual_seed(seed)
    measured: dict[str, float] = {
        "histograms: bits": histogram(data, test, levels),
        "full covariance: bits": full_covariance(data, test, levels, generator),
    }
    pictures: dict[str, list[list[list[int]]]] = {"data": grey(test[: config.pictures] / (levels - 1))}
    kl: dict[str, list[float]] = {}
    for arm, likelihood in ARMS.items():
        model = train(config, seed, likelihood, data, dev, levels)
        discrete = model.likelihood.discrete
        x = test if discrete else noisy(test, levels, torch.Generator().manual_seed(0))
        estimate = vae_log_prob(model, x, config.samples, generator=generator)
        bits = bits_per_dim(estimate.value, size, 1.0 if discrete else levels)
        usage = latent_usage(*(t.detach() for t in model.encode(x)))
        scale, shift = (1.0, 0.0) if discrete else (levels, 0.5)  # back to levels
        error = model.reconstruct(x) * scale - shift - test
        measured[f"{arm}: bits"] = bits.mean().item()
        measured[f"{arm}: share of images trusted"] = estimate.trusted.double().mean().item()
        measured[f"{arm}: active units"] = int(usage.active.sum())
        measured[f"{arm}: KL"] = usage.kl.sum().item()
        measured[f"{arm}: error in levels"] = error.square().mean().sqrt().item()
        kl[arm] = sorted(usage.kl.tolist(), reverse=True)
        unit = levels - 1 if discrete else 1.0
        shown = model.sample(config.pictures, torch.Generator().manual_seed(seed), mean=True)
        pictures[arm] = grey(shown / unit)
    fixed, optimal = (f"Gaussian{name}" for name in (" of width 1", ", optimal width"))
    measured["bits lost by width 1"] = measured[f"{fixed}: bits"] - measured[f"{optimal}: bits"]
    measured["units of width 1 over optimal"] = measured[f"{fixed}: active units"] / max(
        1, measured[f"{optimal}: active units"]
    )
    best = min(measured[f"{arm}: bits"] for arm in ARMS)
    measured["bits saved against histograms"] = measured["histograms: bits"] - best
    measured["bits saved against full covariance"] = measured["full covariance: bits"] - best
    return Result(measured=measured, figures={"pictures": pictures, "KL of the units": kl})


def grey(x: Tensor) -> list[list[list[int]]]:
    """Images of one channel in [0, 1] as whole numbers."""
    return (x[:, 0].clamp(0, 1) * 255).round().int().tolist()
