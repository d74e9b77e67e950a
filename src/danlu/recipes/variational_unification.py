r"""VAE, AAE, ALI and EM on digits, judged by the one joint KL that all of them are cases of.

Claim  kexue.fm/archives/5716: VAE, EM, AAE, ALI and GAN follow from minimising a KL divergence between joint
       distributions of data and codes; the post's ALI loss ("kl") was equal to the usual one or slightly better there
       (no figures).
Test   one encoder and one decoder architecture, both Gaussian: trained by the joint KL (VAE), as AAE and as ALI in its
       three versions; mixtures of Gaussians by EM, and one Gaussian as the floor. On test images: the joint KL plus the
       entropy of the data (an upper bound of minus the log-likelihood; the decoder's deviation is fitted to the
       training part afterwards for all), its two parts, the importance-weighted bound of 64 samples, the squared error
       of reconstructions, and the Frechet distance of samples to test images, in pixels.
Data   digits of scikit-learn, 8 x 8, made continuous with uniform noise
Run    danlu run variational_unification --scale smoke|full --seed 0 --set code_dim=4
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from danlu.gallery.record import Result
from danlu.generative import AAE, ALI, draw_normal, gaussian_mixture_fit, joint_kl, normal_log_prob
from danlu.math import gaussian_wasserstein, log_mean_exp
from danlu.tasks.images import load_images

__all__ = ["SCALES", "Config", "run", "train"]
Codes = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Config:
    """Sizes are those of a laptop; all arms take the same number of encoder steps."""

    code_dim: int = 8
    width: int = 128
    components: int = 20
    steps: int = 6_000
    batch_size: int = 128
    lr: float = 1e-3
    reconstruction_weight: float = 20.0  # of the AAE's squared error, 1 / (2 s^2) of a decoder with s = 0.16
    em_floor: float = 1e-3
    num_samples: int = 64


SCALES = {"smoke": Config(steps=12, components=2, width=16, num_samples=4), "full": Config()}


class Encoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(64, config.width), nn.SiLU(), nn.Linear(config.width, config.width), nn.SiLU()
        )
        self.out = nn.Linear(config.width, 2 * config.code_dim)

    def forward(self, x: Tensor) -> Codes:
        mean, log_std = self.out(self.body(x)).chunk(2, 1)
        return mean, log_std.clamp(-6, 3).exp()


class Decoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(config.code_dim, config.width),
            nn.SiLU(),
            nn.Linear(config.width, config.width),
            nn.SiLU(),
            nn.Linear(config.width, 64),
        )
        self.log_std = nn.Parameter(torch.tensor(-1.5))

    def forward(self, z: Tensor) -> Codes:
        mean = self.body(z)
        return mean, self.log_std.exp().expand_as(mean)


class Critic(nn.Module):
    """Scores of codes, or of pairs."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(inputs, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
        )

    def forward(self, *parts: Tensor) -> Tensor:
        scores: Tensor = self.body(torch.cat(parts, 1))[:, 0]
        return scores


class Mean(nn.Module):
    """A Gaussian decoder's mean, for the AAE, which knows no deviation."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z)[0]


def bound(encoder: Encoder, decoder: Decoder, x: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The joint KL's three log-densities at one draw of the encoder."""
    mean, std = encoder(x)
    z = draw_normal(mean, std, generator=g)[0]
    return normal_log_prob(z, mean, std), normal_log_prob(z), normal_log_prob(x, *decoder(z))


def train(config: Config, method: str, data: Tensor, seed: int) -> tuple[Encoder, Decoder]:
    """Encoder and decoder after training by "vae", "aae", or "ali" with a kind behind a colon."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    encoder, decoder = Encoder(config), Decoder(config)
    both = [*encoder.parameters(), *decoder.parameters()]
    adversarial: AAE | ALI | None = None
    if method == "aae":
        critic = Critic(config.code_dim, config.width)
        adversarial = AAE(encoder, Mean(decoder), critic, config.code_dim, config.reconstruction_weight)
    elif method != "vae":
        critic = Critic(64 + config.code_dim, config.width)
        adversarial = ALI(encoder, decoder, critic, config.code_dim, method.partition(":")[2])
    betas = (0.9, 0.999) if adversarial is None else (0.5, 0.999)
    optimizer = torch.optim.Adam(both, config.lr, betas)
    of_critic = None if adversarial is None else torch.optim.Adam(adversarial.critic.parameters(), config.lr, betas)
    for _ in range(config.steps):
        x = data[torch.randint(len(data), (config.batch_size,), generator=g)]
        if adversarial is not None and of_critic is not None:
            of_critic.zero_grad()
            adversarial.critic_loss(x, generator=g).backward()
            of_critic.step()
        optimizer.zero_grad()
        if adversarial is None:
            loss = joint_kl(*bound(encoder, decoder, x, g)).loss
        else:
            loss = adversarial.loss(x, generator=g)
        loss.backward()
        nn.utils.clip_grad_norm_(both, 10.0)
        optimizer.step()
    return encoder, decoder


@torch.no_grad()
def judge(
    encoder: Encoder, decoder: Decoder, train_x: Tensor, x: Tensor, config: Config, seed: int
) -> tuple[dict[str, float], Tensor]:
    g = torch.Generator().manual_seed(seed)
    mean, std = encoder(train_x)
    residual = decoder(draw_normal(mean, std, generator=g)[0])[0] - train_x
    decoder.log_std.fill_(residual.square().mean().sqrt().clamp_min(1e-3).log())  # the best one, for all arms alike
    mean, std = encoder(x)
    z = draw_normal(mean, std, config.num_samples, generator=g)  # (M, N, K)
    found = joint_kl(normal_log_prob(z, mean, std), normal_log_prob(z), normal_log_prob(x, *decoder(z)))
    weighted = -log_mean_exp(-(found.distortion + found.rate), 0).mean()
    made = decoder(torch.randn(2_000, config.code_dim, generator=g))
    samples = draw_normal(*made, generator=g)[0]
    values = {
        "joint KL": found.loss.item() / 64,
        "distortion": found.distortion.mean().item() / 64,
        "rate": found.rate.mean().item() / 64,
        "weighted bound": weighted.item() / 64,
        "squared error": (decoder(mean)[0] - x).square().mean().item(),
        "Frechet": frechet(samples, x),
    }
    return values, made[0][:20]


def frechet(a: Tensor, b: Tensor) -> float:
    pairs = [v for t in (a.double(), b.double()) for v in (t.mean(0), torch.cov(t.T))]
    return gaussian_wasserstein(*pairs).item()


def run(config: Config, seed: int) -> Result:
    """All arms of one seed; nats per pixel."""
    g = torch.Generator().manual_seed(seed)
    levels = [load_images("digits", part)[0].flatten(1) for part in ("train", "test")]
    data, test = (((x + torch.rand(x.shape, generator=g)) / 17) for x in levels)
    measured: dict[str, float] = {}
    grids: dict[str, Any] = {"data": pictures(test[:20])}
    for name, method in {
        "VAE": "vae",
        "AAE": "aae",
        "ALI": "ali:non_saturating",
        "ALI, minimax": "ali:minimax",
        "ALI, the post's": "ali:kl",
    }.items():
        values, made = judge(*train(config, method, data, seed), data, test, config, seed)
        measured |= {f"{name}: {key}": value for key, value in values.items()}
        grids[name] = pictures(made)
    curves = {}
    for name, count in (("EM", config.components), ("one Gaussian", 1)):
        fitted = gaussian_mixture_fit(data, count, min(config.steps, 200), config.em_floor, generator=g)
        made = fitted.model.sample(2_000, g).float()
        measured[f"{name}: joint KL"] = -fitted.model.log_prob(test).mean().item() / 64
        measured[f"{name}: Frechet"] = frechet(made, test)
        grids[name], curves[name] = pictures(made[:20]), [v / 64 for v in fitted.history]
    rises = max([b - a for a, b in zip(curves["EM"], curves["EM"][1:], strict=False)], default=-math.inf)
    measured["EM: largest rise of a half step"] = max(rises, 0.0)
    gap = measured["ALI: joint KL"] - measured["ALI, the post's: joint KL"]
    measured["gain of the post's ALI in joint KL"] = gap
    return Result(measured=measured, figures={"pictures": grids, "EM": curves})


def pictures(x: Tensor) -> list[list[list[int]]]:
    levels: list[list[list[int]]] = (x.clamp(0, 1) * 255).round().int().view(-1, 8, 8).tolist()
    return levels
