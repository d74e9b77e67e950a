r"""The log-likelihood of a hierarchy of latents by importance sampling, in blocks, with error bars.

    log w = log p(x | z) + sum_l [ log prior_l(z_l | z_<l) - log posterior_l(z_l | z_<l, x) ]                 (1)
    log p(x) ~ L_M = log (1/M) sum_i w_i,    z ~ posterior                                                    (2)

(1) is the log-weight of `danlu.generative.vae_bound`, added up on the way from coarse to fine. The image is read once;
only what makes images runs M times. Evaluation mode: with batch statistics a likelihood would depend on the company of
an image, and would not be one.

Source: Vahdat and Kautz, 2020, arXiv:2007.03898; Burda, Grosse and Salakhutdinov, 2015, arXiv:1509.00519 (2).
Shapes: N images, M samples.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.generative.evaluation_mode import evaluation_mode
from danlu.generative.latent_hierarchy import LatentHierarchy
from danlu.math import ImportanceEstimate, importance_estimate

__all__ = ["nvae_log_prob", "nvae_log_weights"]

ON_PROCESSOR, ON_ACCELERATOR = 64, 1024  # images made at a time


def nvae_log_weights(
    model: LatentHierarchy,
    x: Tensor,
    num_samples: int = 100,
    chunk: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Log-weights of eq. (1) of all samples of all images.

    Args:
        model: used in evaluation mode and left as it was.
        x: (N, C, H, W), N >= 0.
        num_samples: M >= 1.
        chunk: images made at a time, >= 1; None chooses. The draws depend on it, their distribution does not.
        generator: source of the noise, on any device.

    Returns:
        (N, M) nats, float32 or better, without a graph.

    Raises:
        ValueError: num_samples or chunk below 1, or x of another shape.
    """
    if chunk is None:
        chunk = ON_PROCESSOR if x.device.type == "cpu" else ON_ACCELERATOR
    if num_samples < 1 or chunk < 1:
        raise ValueError(f"num_samples and chunk must be >= 1, got {num_samples} and {chunk}")
    if not len(x):
        return torch.zeros(0, num_samples, device=x.device)
    rows = max(1, chunk // num_samples)
    samples = math.ceil(num_samples / math.ceil(num_samples / chunk))  # blocks of one size
    whole = []
    with evaluation_mode(model):
        for part in x.split(rows):
            taps = model.read(part)
            counts = [min(samples, num_samples - j) for j in range(0, num_samples, samples)]
            whole.append(torch.cat([_block(model, part, taps, count, generator) for count in counts]))
    return torch.cat(whole, 1).T


def nvae_log_prob(
    model: LatentHierarchy,
    x: Tensor,
    num_samples: int = 100,
    chunk: int | None = None,
    generator: torch.Generator | None = None,
) -> ImportanceEstimate:
    """Log-likelihood of each image, eq. (2), with its errors; `mean_log_prob` sums it up.

    Args:
        model: used in evaluation mode and left as it was.
        x: (N, C, H, W), N >= 0.
        num_samples: M >= 1.
        chunk: images made at a time, >= 1; None chooses. The draws depend on it, their distribution does not.
        generator: source of the noise, on any device.

    Returns:
        An ImportanceEstimate of tensors (N,), nats.

    Raises:
        ValueError: num_samples or chunk below 1, or x of another shape.
    """
    return importance_estimate(nvae_log_weights(model, x, num_samples, chunk, generator), dim=1)  # eq. (2)


def _block(
    model: LatentHierarchy, x: Tensor, taps: Sequence[Tensor], samples: int, generator: torch.Generator | None
) -> Tensor:
    """Log-weights (samples, N) of some samples of all of x."""
    many = [tap.repeat(samples, 1, 1, 1) for tap in taps]
    params, parts = model.descend(many, generator)
    log_ratio = sum((part.log_ratio for part in parts), torch.zeros((), device=x.device))
    log_likelihood = model.likelihood.log_prob(params.unflatten(0, (samples, len(x))), x)
    return log_likelihood + log_ratio.unflatten(0, (samples, len(x)))  # eq. (1)
