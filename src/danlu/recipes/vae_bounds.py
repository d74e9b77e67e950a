r"""More samples of the latent tighten the bound of a likelihood, in evaluation and as a training objective.

Claim  arXiv:1509.00519: E L_M rises with M towards log p(x), and models trained on L_M for M > 1 have higher
       likelihoods. kexue.fm/archives/8791: with an encoder as proposal few samples do what the prior cannot.
Test   one network, data, steps and draws of the data in every arm: the ELBO with one sample; the ELBO with M samples
       (the control: the same cost as IWAE); IWAE with M samples, plain and with the doubly reparameterised gradient.
       L_1 to L_2000 of held-out images from one set of weights; the same from the prior; a line through L_M over 1/M;
       the jackknife; effective sample size and the share of images with a trustworthy Pareto k. Gains with their
       standard errors over images.
Data   mnist (a folder of $DANLU_DATA/data), binarised at random at every visit; the held-out images once, with the
       same bits in every run
Run    danlu run vae_bounds --scale smoke|full --seed 0 --set samples=50
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.gallery.record import Result
from danlu.generative import VAE, VAEConfig, latent_usage, vae_log_weights
from danlu.math import importance_estimate, jackknife_bound, log_mean_exp
from danlu.tasks.images import image_levels, load_images

__all__ = ["SCALES", "Config", "run", "train"]


@dataclass(frozen=True)
class Config:
    """One hidden layer on either side; two seconds of the full scale are one epoch of one arm."""

    data: str = "mnist"
    train_size: int = 20_000
    test_size: int = 500
    hidden: int = 256
    latent_dim: int = 20
    samples: int = 5  # M of training
    steps: int = 4_000
    batch_size: int = 100
    lr: float = 1e-3
    evaluation_samples: int = 2_000  # M of evaluation
    pictures: int = 10


SCALES = {
    "smoke": Config(
        train_size=500,
        test_size=20,
        hidden=16,
        latent_dim=4,
        steps=12,
        batch_size=50,
        evaluation_samples=100,
        pictures=2,
    ),
    "full": Config(),
}
ARMS: dict[str, dict[str, str | bool]] = {
    "vae": {},
    "vae, as many samples": {"several": True},
    "iwae": {"several": True, "objective": "iwae"},
    "iwae, dreg": {"several": True, "objective": "iwae", "gradient": "dreg"},
}


def bits(shares: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels of 0 and 1 that are 1 as often as the image is bright."""
    return torch.bernoulli(shares, generator=generator)


def train(config: Config, seed: int, shares: Tensor, arm: str) -> VAE:
    """A model of one arm; all arms start alike and see the same bits in the same order."""
    torch.manual_seed(seed)
    shape = tuple(shares.shape[1:])
    model = VAE(VAEConfig(shape, config.latent_dim, hidden=(config.hidden,)))
    settings = dict(ARMS[arm])
    count = config.samples if settings.pop("several", False) else 1
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    of_data, of_latent = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 10_000)
    for _ in range(config.steps):
        rows = torch.randint(len(shares), (config.batch_size,), generator=of_data)
        x = bits(shares[rows], of_data)
        optimizer.zero_grad()
        model.loss(x, generator=of_latent, num_samples=count, **settings).backward()
        optimizer.step()
    return model


def curve(log_w: Tensor) -> dict[int, float]:
    """Mean L_m for m = 1, 10, 100, ..., M, each from all M weights in groups of m."""
    total = log_w.shape[1]
    sizes = [m for m in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, total) if m <= total and total % m == 0]
    return {m: log_mean_exp(log_w.unflatten(1, (-1, m))).mean().item() for m in sorted(set(sizes))}


def limit(bounds: dict[int, float]) -> float:
    """Where a line through the last four L_m over 1/m meets 1/m = 0."""
    points = list(bounds.items())[-4:]
    a = torch.tensor([[1.0, 1 / m] for m, _ in points], dtype=torch.float64)
    b = torch.tensor([[value] for _, value in points], dtype=torch.float64)
    return torch.linalg.lstsq(a, b).solution[0].item()


def grey(x: Tensor) -> list[list[list[int]]]:
    """Images of one channel in [0, 1] as whole numbers."""
    return (x[:, 0] * 255).round().int().tolist()


def run(config: Config, seed: int) -> Result:
    """All arms with one seed."""
    top = image_levels(config.data) - 1
    shares = load_images(config.data, "train", config.train_size)[0] / top  # (N, 1, H, W)
    held = bits(load_images(config.data, "test", config.test_size)[0] / top, torch.Generator().manual_seed(0))
    measured: dict[str, float] = {}
    curves: dict[str, list[list[float]]] = {}
    pictures: dict[str, list[list[list[int]]]] = {"data": grey(held[: config.pictures])}
    values: dict[str, Tensor] = {}
    for arm in ARMS:
        model = train(config, seed, shares, arm)
        log_w = vae_log_weights(model, held, config.evaluation_samples, generator=torch.Generator().manual_seed(seed))
        estimate, bounds = importance_estimate(log_w, dim=1), curve(log_w)
        values[arm] = estimate.value
        curves[arm] = [[float(m), bound] for m, bound in bounds.items()]
        measured[f"{arm}: L_1"] = bounds[1]
        measured |= {f"{arm}: L_{m}": bounds[m] for m in (10, 100) if m in bounds}
        measured[f"{arm}: L_M"] = estimate.value.mean().item()
        measured[f"{arm}: limit of the line"] = limit(bounds)
        measured[f"{arm}: jackknife"] = jackknife_bound(log_w).mean().item()
        measured[f"{arm}: median effective sample size"] = estimate.ess.median().item()
        measured[f"{arm}: share of images trusted"] = estimate.trusted.double().mean().item()
        usage = latent_usage(*(t.detach() for t in model.encode(held)))
        measured[f"{arm}: KL"] = usage.kl.sum().item()
        measured[f"{arm}: active units"] = int(usage.active.sum())
        if arm == "vae":
            prior = vae_log_weights(
                model, held, config.evaluation_samples, "prior", generator=torch.Generator().manual_seed(seed)
            )
            by_prior = log_mean_exp(prior)
            measured["vae: L_M from the prior"] = by_prior.mean().item()
            measured |= gain("gain of the encoder over the prior", values["vae"] - by_prior)
            measured["gain of M samples in evaluation"] = measured["vae: L_M"] - bounds[1]
        shown = torch.Generator().manual_seed(seed)
        pictures[arm] = grey(model.sample(config.pictures, shown, mean=True))
        pictures[f"{arm}, reconstruction"] = grey(model.reconstruct(held[: config.pictures]))
    measured |= gain("gain of iwae over the vae", values["iwae"] - values["vae"])
    measured |= gain("gain of iwae over as many samples", values["iwae"] - values["vae, as many samples"])
    measured |= gain("gain of as many samples over one", values["vae, as many samples"] - values["vae"])
    measured |= gain("gain of dreg over plain iwae", values["iwae, dreg"] - values["iwae"])
    return Result(measured=measured, figures={"bound over samples": curves, "pictures": pictures})


def gain(name: str, difference: Tensor) -> dict[str, float]:
    """A mean difference over images in nats, and how many of its standard errors it is."""
    mean = difference.mean().item()
    error = difference.std().item() / math.sqrt(len(difference))
    return {name: mean, f"{name}, in standard errors": mean / error if error else 0.0}
