r"""The log-likelihood of a variational autoencoder by importance sampling, in blocks, with error bars.

    log w_i = log p(x | z_i) + log N(z_i; 0, I) - log N(z_i; mean, (widen std)^2),  z_i = mean + widen std noise_i  (1)
    log p(x) ~ L_M = log (1/M) sum_i w_i,    E L_M <= log p(x)                                                (2)
    over N items   mean L_M,   Monte Carlo error sqrt(sum se^2) / N,   sampling error sd(L_M) / sqrt(N)       (3)

The encoder is only a proposal; a prior in its place (proposal="prior") is the same estimate with far worse error. At
(1) the noise enters as it was drawn, not as (z - mean) / std. A proposal narrower than the posterior has weights of
infinite variance; widen > 1 (1.1 to 1.5) is the cheap remedy, and Pareto k (`danlu.math.pareto_k`) tells whether it is
needed: with k above its limit L_M is too low by more than its error bar says. Use one M for all models compared.

A likelihood is no measure of strangeness: models of natural images give simple images (a flat grey) the highest one.

Source: Burda, Grosse and Salakhutdinov, 2015, arXiv:1509.00519; kexue.fm/archives/8791; Nalisnick et al., 2018,
    arXiv:1810.09136 (the last remark).
Shapes: N items, M samples, K latent dimensions.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from danlu.generative.evaluation_mode import evaluation_mode
from danlu.generative.latent import draw_normal
from danlu.generative.likelihood import Likelihood
from danlu.math import ImportanceEstimate, importance_estimate

__all__ = ["LatentModel", "MeanLogProb", "mean_log_prob", "vae_log_prob", "vae_log_weights"]

ON_PROCESSOR, ON_ACCELERATOR = 256, 16384  # latents decoded at a time


class LatentModel(nn.Module):
    """What an estimate needs: a likelihood, encode(x) -> (mean, std) and decode(z) -> its parameters."""

    likelihood: Likelihood

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of the proposal, (N, K) each, for x (N, *item)."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Parameters (..., *param_shape) for z (..., K)."""
        raise NotImplementedError


class MeanLogProb(NamedTuple):
    """The mean over a data set, eq. (3), nats.

    value. monte_carlo_error: over fresh samples of the latent. sampling_error: over fresh data (nan for one item).
    bias: about mean E L_M - log p, never above 0. median_ess. trusted: share of the items with Pareto k below the
    limit.
    """

    value: float
    monte_carlo_error: float
    sampling_error: float
    bias: float
    median_ess: float
    trusted: float


def vae_log_weights(
    model: LatentModel,
    x: Tensor,
    num_samples: int = 1000,
    proposal: str = "encoder",
    widen: float = 1.0,
    chunk: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Log-weights of eq. (1) of all samples of all items; memory for them, not for their decodings.

    Args:
        model: a VAE; used in evaluation mode and left as it was.
        x: (N, *item), N >= 0.
        num_samples: M >= 1.
        proposal: "encoder" or "prior".
        widen: factor of the encoder's std, > 0.
        chunk: latents decoded at a time, >= 1; None: as many as fit the cache of a processor, or keep a GPU busy. The
            draws depend on it, their distribution does not.
        generator: source of the noise, on any device.

    Returns:
        (N, M) nats, float32 or better, without a graph.

    Raises:
        ValueError: an unknown proposal, or a number out of range.
    """
    if proposal not in ("encoder", "prior"):
        raise ValueError(f"proposal must be 'encoder' or 'prior', got {proposal!r}")
    if chunk is None:
        chunk = ON_PROCESSOR if x.device.type == "cpu" else ON_ACCELERATOR
    if num_samples < 1 or chunk < 1 or not 0 < widen < math.inf:
        raise ValueError(
            f"num_samples and chunk must be >= 1 and widen > 0 and finite, got {num_samples}, {chunk} and {widen}"
        )
    if not len(x):
        return torch.zeros(0, num_samples, device=x.device)
    rows = max(1, chunk // num_samples)
    samples = math.ceil(num_samples / math.ceil(num_samples / chunk))  # blocks of one size
    with evaluation_mode(model):
        encoded = [model.encode(part) for part in x.split(chunk)]
        means, stds = (torch.cat(parts) for parts in zip(*encoded, strict=True))  # (N, K) each
        log_w = means.new_empty(len(x), num_samples)
        for i in range(0, len(x), rows):
            block, mean, std = x[i : i + rows], means[i : i + rows], widen * stds[i : i + rows]
            for j in range(0, num_samples, samples):
                count = min(samples, num_samples - j)
                noise = draw_normal(torch.zeros_like(mean), torch.ones_like(std), count, generator=generator)
                z = noise if proposal == "prior" else mean + std * noise  # (count, rows, K)
                weight = model.likelihood.log_prob(model.decode(z), block)  # (count, rows)
                if proposal == "encoder":
                    weight = weight + (0.5 * (noise.square() - z.square()) + std.log()).sum(-1)  # eq. (1)
                log_w[i : i + rows, j : j + count] = weight.T
    return log_w


def vae_log_prob(
    model: LatentModel,
    x: Tensor,
    num_samples: int = 1000,
    proposal: str = "encoder",
    widen: float = 1.0,
    chunk: int | None = None,
    generator: torch.Generator | None = None,
) -> ImportanceEstimate:
    """Log-likelihood of each item, eq. (2), with standard error, bias, effective sample size and Pareto k.

    Args:
        model: a VAE; used in evaluation mode and left as it was.
        x: (N, *item), N >= 0.
        num_samples: M >= 1.
        proposal: "encoder" or "prior".
        widen: factor of the encoder's std, > 0.
        chunk: latents decoded at a time, >= 1; None: as many as fit the cache of a processor, or keep a GPU busy. The
            draws depend on it, their distribution does not.
        generator: source of the noise, on any device.

    Returns:
        An ImportanceEstimate of tensors (N,), nats; `mean_log_prob` sums it up.

    Raises:
        ValueError: an unknown proposal, or a number out of range.
    """
    log_w = vae_log_weights(model, x, num_samples, proposal, widen, chunk, generator)
    return importance_estimate(log_w, dim=1)  # eq. (2)


def mean_log_prob(estimate: ImportanceEstimate) -> MeanLogProb:
    """The mean log-likelihood of a data set and its errors, eq. (3); averages logarithms, never weights.

    Args:
        estimate: of N >= 1 items.

    Returns:
        A MeanLogProb of Python numbers.

    Raises:
        ValueError: an estimate of no item or of more than one axis.

    >>> one = torch.ones(4)
    >>> mean_log_prob(ImportanceEstimate(-3 * one, one / 4, -0.02 * one, 9 * one, 0 * one, 100)).monte_carlo_error
    0.125
    """
    value = estimate.value.double()
    if value.ndim != 1 or not len(value):
        raise ValueError(
            f"mean_log_prob needs an estimate of N >= 1 items, got values of shape {tuple(estimate.value.shape)}"
        )
    count = len(value)
    error = estimate.standard_error.double().square().sum().sqrt().item() / count  # eq. (3)
    return MeanLogProb(
        value.mean().item(),
        error,
        value.std().item() / math.sqrt(count) if count > 1 else math.nan,
        estimate.bias.double().mean().item(),
        estimate.ess.double().median().item(),
        estimate.trusted.double().mean().item(),
    )
