r"""NVAE: an autoencoder with a deep hierarchy of latents, each group conditioned on all coarser ones.

    L = E[-log p(x | z)] + beta sum_l gamma_l KL(posterior_l || prior_l)                                      (1)

With beta = gamma_l = 1 that bounds -log p(x) from above. A Gaussian whose mean and width depend on the latents before
it is, over many groups, no Gaussian: as the post puts it, autoregression over continuous latents does what discrete
codes with a PixelCNN did. The latents may well be more numbers than the image has. With groups=(1,) this is a plain
autoencoder with these networks.

    for step in range(steps):
        loss = model.loss(x, generator, beta=kl_warmup(step, steps), balance=True)
        loss = loss + 1e-2 * (spectral() + norm_gain_sum(model))        # spectral = SpectralSum(model)

Training that ends in nan wants a stronger spectral term or a smaller step, not a restart. The flows that the paper puts
on top of its posteriors in some models are left out, as the post advises.

Source: Vahdat and Kautz, 2020, arXiv:2007.03898; kexue.fm/archives/7574.
Shapes: N images (C, H, W), L groups, K latent channels, h x w the sides of a group's scale.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from danlu.generative.evaluation_mode import evaluation_mode
from danlu.generative.latent_hierarchy import LatentHierarchy
from danlu.generative.nvae_bound import nvae_log_prob
from danlu.generative.nvae_config import NVAEConfig
from danlu.generative.nvae_objective import group_alphas, group_balance
from danlu.generative.residual_normal import channel_kl
from danlu.math import bits_per_dim

__all__ = ["NVAE", "NVAEOutput"]


class NVAEOutput(NamedTuple):
    """One training step's numbers, nats.

    loss: scalar. reconstruction: (N,) -log p(x | z). kl: (N,), the sum of group_kl (L, N), each that of channel_kl
    (L, N, K) over channels. latents: L tensors (N, K, h, w), coarse to fine. log_weights: (N,), with beta = gamma = 1.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor
    group_kl: Tensor
    channel_kl: Tensor
    latents: list[Tensor]
    log_weights: Tensor


class NVAE(LatentHierarchy):
    """A hierarchical autoencoder of images.

    Args:
        config: what to build; small and full ones stand in `danlu.generative.NVAE_CONFIGS`.

    >>> model = NVAE(NVAEConfig((1, 6, 6), groups=(1, 1), channels=2, latent_channels=2))
    >>> model.sample(3).shape
    torch.Size([3, 1, 6, 6])
    """

    alphas: Tensor

    def __init__(self, config: NVAEConfig) -> None:
        super().__init__(config)
        self.register_buffer("alphas", group_alphas(config.groups), persistent=False)

    def forward(
        self, x: Tensor, beta: float = 1.0, balance: bool = False, generator: torch.Generator | None = None
    ) -> NVAEOutput:
        """The loss of a batch and its parts, eq. (1).

        Args:
            x: (N, *shape), what the likelihood takes, N >= 1.
            beta: weight of the KL terms, see `kl_warmup`.
            balance: whether `group_balance` weighs the groups while beta < 1.
            generator: source of the noise.

        Returns:
            An NVAEOutput.

        Raises:
            ValueError: a negative beta; see `Likelihood.log_prob`.
        """
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta must be >= 0 and finite, got {beta}; for a warm-up take kl_warmup(step, steps)")
        params, draws = self.descend(self.read(x), generator)
        reconstruction = -self.likelihood.log_prob(params, x)  # (N,)
        per_channel = torch.stack([channel_kl(draw.posterior, draw.prior) for draw in draws])  # (L, N, K)
        per_group = per_channel.sum(-1)  # (L, N)
        weighed = per_group
        if balance and beta < 1:
            weighed = group_balance(per_group.detach(), self.alphas)[:, None] * per_group
        loss = (reconstruction + beta * weighed.sum(0)).mean()  # eq. (1)
        with torch.no_grad():
            log_w = torch.stack([draw.log_ratio for draw in draws]).sum(0) - reconstruction
        latents = [draw.z for draw in draws]
        return NVAEOutput(loss, reconstruction, per_group.sum(0), per_group, per_channel, latents, log_w)

    def loss(
        self, x: Tensor, generator: torch.Generator | None = None, beta: float = 1.0, balance: bool = False
    ) -> Tensor:
        """The loss of a batch.

        Args:
            x: (N, *shape).
            generator: source of the noise.
            beta: weight of the KL terms.
            balance: as in `forward`.

        Returns:
            Scalar, nats per image.
        """
        return self(x, beta, balance, generator).loss

    def log_prob(
        self, x: Tensor, num_samples: int = 100, chunk: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log-likelihood by importance sampling; for errors and diagnostics take `nvae_log_prob`.

        Args:
            x: (N, *shape).
            num_samples: M; the value is a lower bound that rises with M. The paper's figures have M = 1000.
            chunk: images made at a time; None chooses.
            generator: source of the noise.

        Returns:
            (N,) nats.
        """
        return nvae_log_prob(self, x, num_samples, chunk, generator).value

    def bits_per_dim(
        self,
        x: Tensor,
        num_samples: int = 100,
        levels_per_unit: float | None = None,
        chunk: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Bits per dimension, from `log_prob`.

        Args:
            x: (N, *shape).
            num_samples: M.
            levels_per_unit: for a density, as in `VAE.bits_per_dim`.
            chunk: images made at a time; None chooses.
            generator: source of the noise.

        Returns:
            (N,) bits.

        Raises:
            ValueError: a density and no levels_per_unit, or levels and one.
        """
        if self.likelihood.discrete == (levels_per_unit is not None):
            raise ValueError(
                f"levels_per_unit is for densities and is needed there; {type(self.likelihood).__name__} is "
                f"{'none' if self.likelihood.discrete else 'one'}, got {levels_per_unit}"
            )
        value = self.log_prob(x, num_samples, chunk, generator)
        return bits_per_dim(value, math.prod(self.config.shape), levels_per_unit or 1.0)

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        mean: bool = False,
        latents: Sequence[Tensor] = (),
    ) -> Tensor:
        """New images; batch norms that serve them better: `danlu.generative.sampling_statistics`.

        Args:
            n: how many.
            generator: source of the draws, on the device of the model.
            temperature: factor of every group's std; 0.6 to 0.8 looks best, 1 is the model.
            mean: the expected image for each latent in place of a draw.
            latents: of the coarsest groups, (n, K, h, w) each, to be kept while the others are drawn.

        Returns:
            (n, *shape), see `Likelihood.sample`.
        """
        with evaluation_mode(self):
            params = self.prior_params(n, generator, temperature, latents)
            return self.likelihood.mean(params) if mean else self.likelihood.sample(params, generator)

    def reconstruct(self, x: Tensor, groups: int | None = None) -> Tensor:
        """Expected images for the latents of `infer`.

        Args:
            x: (N, *shape).
            groups: how many groups know the image, from the coarsest; None: all.

        Returns:
            (N, *shape), float.
        """
        with evaluation_mode(self):
            return self.likelihood.mean(self.decode(self.infer(x, groups)))

    def interpolate(self, a: Tensor, b: Tensor, steps: int = 8) -> Tensor:
        """Expected images on the straight lines between the latents of two batches, all groups at once.

        Args:
            a: (N, *shape).
            b: (N, *shape).
            steps: >= 2, both ends among them.

        Returns:
            (steps, N, *shape), float.

        Raises:
            ValueError: fewer than two steps, or batches of different sizes.
        """
        if steps < 2 or len(a) != len(b):
            raise ValueError(
                f"interpolate needs steps >= 2 and batches of one size, got {steps}, {len(a)} and {len(b)}"
            )
        with evaluation_mode(self):
            path = []
            for first, last in zip(self.infer(a), self.infer(b), strict=True):
                share = torch.linspace(0, 1, steps, dtype=first.dtype, device=first.device).view(-1, 1, 1, 1, 1)
                path.append(torch.lerp(first, last, share).flatten(0, 1))  # (steps N, K, h, w)
            return self.likelihood.mean(self.decode(path)).unflatten(0, (steps, len(a)))
