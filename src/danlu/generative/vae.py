r"""The variational autoencoder: a density of data with a latent, trained through an encoder that proposes it.

    p(x) = integral of  N(z; 0, I)  likelihood(x; decoder(z))                                                 (1)
    encoder(x) = mean, v;   std = exp(clamp(v) / 2)                                                           (2)

The loss is an upper bound of -log p(x) (`danlu.generative.vae_objective`); no argument about posteriors is needed for
it: it is the divergence of two joint distributions, data times encoder and prior times decoder, which bounds that of
the marginals, and for discrete data it has a positive floor, the entropy of the data: one number that measures the
model, which a GAN lacks. log p(x) itself comes from importance sampling (`danlu.generative.vae_bound`).

The sources of the posts call the decoder's side q and the encoder's p, papers the reverse; here they have names.

Source: Kingma and Welling, 2013, arXiv:1312.6114; kexue.fm/archives/5343; kexue.fm/archives/8791.
Shapes: N items of `config.shape`, K latent dimensions, M samples.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from danlu.generative.evaluation_mode import evaluation_mode
from danlu.generative.latent import draw_normal, soft_clamp, standard_normal_kl
from danlu.generative.likelihood import Likelihood
from danlu.generative.likelihoods import make_likelihood
from danlu.generative.vae_bound import LatentModel, vae_log_prob
from danlu.generative.vae_config import VAEConfig
from danlu.generative.vae_networks import ConvDecoder, conv_encoder, mlp_decoder, mlp_encoder
from danlu.generative.vae_objective import latent_log_weights, variational_loss
from danlu.math import bits_per_dim
from danlu.math.precision import wide

__all__ = ["VAE", "VAEOutput"]


class VAEOutput(NamedTuple):
    """One training step's numbers, nats.

    loss: scalar. reconstruction: (N,) mean of -log p(x | z) over the samples. kl: (N,) in closed form, the sum of
    per_dim_kl (N, K). z: (M, N, K). log_weights: (M, N), with beta = 1.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor
    per_dim_kl: Tensor
    z: Tensor
    log_weights: Tensor


class VAE(LatentModel):
    """A variational autoencoder with a standard normal prior, eq. (1).

    Args:
        config: what to build.
        encoder: (N, *shape) float -> (N, 2 K): means, then log-variances; None builds the one of the configuration.
        decoder: (N, K) -> (N, *likelihood.param_shape(shape)); None builds one.
        likelihood: one of your own; None makes the one of the configuration.

    >>> model = VAE(VAEConfig(shape=(1, 4, 4), latent_dim=2, hidden=(8,)))
    >>> model.sample(3).shape
    torch.Size([3, 1, 4, 4])
    """

    def __init__(
        self,
        config: VAEConfig,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        if likelihood is None:
            likelihood = make_likelihood(config.likelihood, config.bits, config.components)
        self.likelihood = likelihood
        shape, k = config.shape, config.latent_dim
        self.param_shape = self.likelihood.param_shape(shape)
        if config.network == "conv":
            stages = config.hidden or (32, 64)
            self.encoder = conv_encoder(shape, k, stages) if encoder is None else encoder
            self.decoder = ConvDecoder(self.param_shape, k, stages) if decoder is None else decoder
        else:
            widths = (512, 256) if config.hidden is None else config.hidden
            self.encoder = mlp_encoder(shape, k, widths) if encoder is None else encoder
            self.decoder = mlp_decoder(self.param_shape, k, widths) if decoder is None else decoder

    def forward(
        self,
        x: Tensor,
        num_samples: int = 1,
        beta: float = 1.0,
        objective: str = "elbo",
        gradient: str = "plain",
        antithetic: bool = False,
        generator: torch.Generator | None = None,
    ) -> VAEOutput:
        """The loss of a batch and its parts.

        Args:
            x: (N, *shape), what the likelihood takes.
            num_samples: M.
            beta: weight of the KL term.
            objective: "elbo" or "iwae", see `variational_loss`.
            gradient: "plain", "stl" (elbo) or "dreg" (iwae).
            antithetic: see `draw_normal`.
            generator: source of the noise.

        Returns:
            A VAEOutput.

        Raises:
            ValueError: see `variational_loss`, `Likelihood.log_prob`.
        """
        mean, std = self.encode(x)
        z = draw_normal(mean, std, num_samples, antithetic, generator)  # (M, N, K)
        log_likelihood = self.likelihood.log_prob(self.decode(z), x)  # (M, N)
        loss = variational_loss(log_likelihood, z, mean, std, objective, gradient, beta)
        per_dim = standard_normal_kl(mean, std)  # (N, K)
        with torch.no_grad():
            log_w = latent_log_weights(log_likelihood, z, mean, std)
        return VAEOutput(loss, -log_likelihood.mean(0), per_dim.sum(-1), per_dim, z, log_w)

    def loss(self, x: Tensor, generator: torch.Generator | None = None, **settings: float | str | bool) -> Tensor:
        """The loss of a batch.

        Args:
            x: (N, *shape).
            generator: source of the noise.
            **settings: of `forward`.

        Returns:
            Scalar, nats per item.
        """
        return self(x, generator=generator, **settings).loss

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latent, eq. (2).

        Args:
            x: (N, *shape).

        Returns:
            Two (N, K), float32 or better.

        Raises:
            ValueError: x has another shape, or the encoder's output has.
        """
        if x.shape[1:] != self.config.shape:
            raise ValueError(f"this VAE takes x (N, {', '.join(map(str, self.config.shape))}), got {tuple(x.shape)}")
        out = self.encoder(self.likelihood.inputs(x).to(_dtype(self.encoder, x)))
        if out.shape != (len(x), 2 * self.config.latent_dim):
            raise ValueError(
                f"the encoder must put out (N, 2 K) = {(len(x), 2 * self.config.latent_dim)}, means and then "
                f"log-variances; got {tuple(out.shape)}"
            )
        mean, log_var = wide(out).chunk(2, -1)
        if self.config.log_var_limit is not None:
            log_var = soft_clamp(log_var, self.config.log_var_limit)
        return mean, (0.5 * log_var).exp()  # eq. (2)

    def decode(self, z: Tensor) -> Tensor:
        """Parameters of the likelihood.

        Args:
            z: (..., K).

        Returns:
            (..., *param_shape).

        Raises:
            ValueError: the decoder's output has another shape.
        """
        flat = z.reshape(-1, z.shape[-1])
        out = self.decoder(flat.to(_dtype(self.decoder, z)))
        if out.shape != (len(flat), *self.param_shape):
            raise ValueError(
                f"the decoder must put out {(len(flat), *self.param_shape)} for {type(self.likelihood).__name__} of "
                f"items {self.config.shape}; got {tuple(out.shape)}"
            )
        return out.reshape(*z.shape[:-1], *self.param_shape)

    def log_prob(
        self, x: Tensor, num_samples: int = 1000, chunk: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log-likelihood by importance sampling; for errors and diagnostics take `vae_log_prob`.

        Args:
            x: (N, *shape).
            num_samples: M; the value is a lower bound that rises with M.
            chunk: latents decoded at a time; None chooses.
            generator: source of the noise.

        Returns:
            (N,) nats.
        """
        return vae_log_prob(self, x, num_samples, chunk=chunk, generator=generator).value

    def bits_per_dim(
        self,
        x: Tensor,
        num_samples: int = 1000,
        levels_per_unit: float | None = None,
        chunk: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Bits per dimension, from `log_prob`.

        Args:
            x: (N, *shape).
            num_samples: M.
            levels_per_unit: for a density: grey levels in one unit of x, which must hold noise uniform within its level
                (256 for (pixel + noise) / 256).
            chunk: latents decoded at a time; None chooses.
            generator: source of the noise.

        Returns:
            (N,) bits.

        Raises:
            ValueError: a density and no levels_per_unit, or levels and one.
        """
        if self.likelihood.discrete == (levels_per_unit is not None):
            name = type(self.likelihood).__name__
            raise ValueError(
                f"{name} gives probabilities of levels: leave levels_per_unit out"
                if self.likelihood.discrete
                else f"{name} is a density, unbounded on data that are levels: add noise uniform within a level, "
                "(pixel + noise) / 256, and give levels_per_unit=256; or train a discretized_logistic"
            )
        value = self.log_prob(x, num_samples, chunk, generator)
        return bits_per_dim(value, math.prod(self.config.shape), levels_per_unit or 1.0)

    def sample(
        self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0, mean: bool = False
    ) -> Tensor:
        """New items.

        Args:
            n: how many.
            generator: source of the draws, on the device of the model.
            temperature: factor of the latent's noise; 0 gives the decoder's answer to z = 0.
            mean: the expected item for each latent in place of a draw: smoother to look at, and no sample of the model.

        Returns:
            (n, *shape), see `Likelihood.sample`.
        """
        with evaluation_mode(self):
            like = next((p for p in self.parameters()), torch.zeros(()))
            zero = torch.zeros(n, self.config.latent_dim, dtype=wide(like).dtype, device=like.device)
            params = self.decode(draw_normal(zero, zero + temperature, generator=generator)[0])
            return self.likelihood.mean(params) if mean else self.likelihood.sample(params, generator)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Expected items for the encoder's means.

        Args:
            x: (N, *shape).

        Returns:
            (N, *shape), float.
        """
        with evaluation_mode(self):
            return self.likelihood.mean(self.decode(self.encode(x)[0]))

    def interpolate(self, a: Tensor, b: Tensor, steps: int = 8) -> Tensor:
        """Expected items on the straight lines between the latents of two batches.

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
            first, last = self.encode(a)[0], self.encode(b)[0]
            share = torch.linspace(0, 1, steps, dtype=first.dtype, device=first.device)[:, None, None]
            z = torch.lerp(first, last, share)  # (steps, N, K)
            return self.likelihood.mean(self.decode(z.flatten(0, 1))).unflatten(0, (steps, len(a)))


def _dtype(module: nn.Module, x: Tensor) -> torch.dtype:
    """The dtype a network computes in, that of its first float parameter."""
    found = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(found, wide(x).dtype)
