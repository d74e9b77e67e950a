"""What the recipes on GAN losses share: a small GAN of the digits, and a judge trained on their labels."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.data import load_digits
from danlu.generative import critic_step, generator_step
from danlu.math import gaussian_wasserstein, ratio_calibration
from danlu.nn import spectral_norm

__all__ = ["DigitGAN", "Judge", "picture"]


@dataclass
class Judge:
    """Features of a classifier trained on the training part, held against the test part."""

    net: nn.Sequential
    mean: Tensor
    cov: Tensor

    @classmethod
    def train(cls, steps: int, seed: int) -> "Judge":
        torch.manual_seed(seed)
        parts = load_digits()
        x, y = parts.train[0][:, None], parts.train[1]
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
        adam = torch.optim.Adam(net.parameters(), 2e-3)
        for _ in range(steps):
            rows = torch.randint(len(x), (64,))
            adam.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            adam.step()
        judge = cls(net.eval(), torch.zeros(0), torch.zeros(0))
        judge.mean, judge.cov = judge._moments(parts.test[0])
        return judge

    @torch.no_grad()
    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net[:-1](x.reshape(-1, 1, 8, 8)).double()
        return features.mean(0), features.T.cov()

    @torch.no_grad()
    def score(self, x: Tensor) -> dict[str, float]:
        """Frechet distance to the test part, classes with 2 % of the images or more, KL of their shares to 1/10."""
        share = self.net(x.reshape(-1, 1, 8, 8)).argmax(1).bincount(minlength=10) / len(x)
        distance = gaussian_wasserstein(*self._moments(x), self.mean, self.cov)
        kl = torch.special.xlogy(share, 10 * share).sum()
        return {"distance": distance.item(), "classes": float((share >= 0.02).sum()), "class KL": kl.item()}


class DigitGAN:
    """Two perceptrons; the critic's hidden layers have spectral norm 1, its last one is free to tell any odds."""

    def __init__(self, seed: int, width: int = 128, latent: int = 16, lr: float = 5e-4) -> None:
        torch.manual_seed(seed)
        self.latent, self.draw = latent, torch.Generator().manual_seed(seed)
        self.generator = nn.Sequential(
            nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 64), nn.Sigmoid()
        )
        self.critic = nn.Sequential(
            spectral_norm(nn.Linear(64, width)), nn.LeakyReLU(0.2), spectral_norm(nn.Linear(width, width)),
            nn.LeakyReLU(0.2), nn.Linear(width, 1),
        )  # fmt: skip
        self.adam = [torch.optim.Adam(net.parameters(), lr, (0.0, 0.9)) for net in (self.critic, self.generator)]
        self.x = load_digits().train[0].flatten(1)

    def sample(self, n: int) -> Tensor:
        made: Tensor = self.generator(torch.randn(n, self.latent, generator=self.draw))
        return made

    def train(self, loss: Any, steps: int, batch_size: int = 64) -> None:
        for _ in range(steps):
            real = self.x[torch.randint(len(self.x), (batch_size,), generator=self.draw)]
            real = (real + (torch.rand(real.shape, generator=self.draw) - 0.5) / 16).clamp(0, 1)  # 17 levels
            critic_step(self.critic, self.adam[0], real, self.sample(batch_size), loss)
            generator_step(self.critic, self.adam[1], self.sample(batch_size), loss)

    @torch.no_grad()
    def calibration_error(self, log_ratio: Any) -> float:
        """How far the critic's odds are from the truth on the dev part and new samples."""
        self.critic.eval()
        real = log_ratio(self.critic(load_digits().dev[0].flatten(1))).clamp(-30, 30)
        fake = log_ratio(self.critic(self.sample(1_000))).clamp(-30, 30)
        self.critic.train()
        return ratio_calibration(real, fake).error


def picture(x: Tensor) -> list[list[list[int]]]:
    """Images (N, 64) in [0, 1] as rows of numbers from 0 to 255."""
    found: list[list[list[int]]] = (x.detach().reshape(-1, 8, 8).clamp(0, 1) * 255).round().int().tolist()
    return found
