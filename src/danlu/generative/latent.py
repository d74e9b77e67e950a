r"""Diagonal Gaussians over a latent: draws that carry gradients, log-densities, the KL to the standard normal.

    z = mean + std * noise,    noise ~ N(0, I)                                                                (1)
    log N(z; mean, std) = sum_k [ -((z_k - mean_k) / std_k)^2 / 2 - log std_k - log(2 pi) / 2 ]               (2)
    KL_k = (mean_k^2 + std_k^2 - log std_k^2 - 1) / 2                                                         (3)
    clamp(v) = limit * tanh(v / limit)                                                                        (4)

(1) is the reparameterisation: z is a differentiable function of mean and std. Antithetic draws take every noise with
both signs: means of odd functions of the noise come out exact. (4) keeps log-variances of an untrained network where
exp neither overflows nor vanishes, with a gradient everywhere; near 0 it is the identity.

Source: Kingma and Welling, 2013, arXiv:1312.6114 (1), (3); kexue.fm/archives/5343; Vahdat and Kautz, 2020,
    arXiv:2007.03898 (4).
Shapes: ... any, K latent dimensions, M samples in front.
"""

import math

import torch
from torch import Tensor

from danlu.math import gaussian_kl_diagonal
from danlu.math.precision import wide

__all__ = ["draw_normal", "normal_log_prob", "soft_clamp", "standard_normal_kl"]


def draw_normal(
    mean: Tensor,
    std: Tensor,
    num_samples: int = 1,
    antithetic: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws of eq. (1), with the graph of mean and std.

    Args:
        mean: (..., K), float.
        std: (..., K), >= 0.
        num_samples: M >= 1.
        antithetic: the second half of the draws has the noise of the first with the other sign; M is even.
        generator: source of the noise, on any device.

    Returns:
        (M, ..., K) in float32 or better.

    Raises:
        ValueError: shapes that differ, M < 1, or antithetic draws of an odd number.

    >>> draw_normal(torch.tensor([2.0]), torch.tensor([0.0]), num_samples=3)[:, 0]
    tensor([2., 2., 2.])
    """
    if mean.shape != std.shape:
        raise ValueError(
            f"draw_normal needs mean and std of one shape, got {tuple(mean.shape)} and {tuple(std.shape)}; expand one"
        )
    if num_samples < 1 or (antithetic and num_samples % 2):
        even = "an even num_samples >= 2 for antithetic draws" if antithetic else "num_samples >= 1"
        raise ValueError(f"draw_normal needs {even}, got {num_samples}")
    mean, std = wide(mean), wide(std)
    count = num_samples // 2 if antithetic else num_samples
    device = mean.device if generator is None else generator.device
    noise = torch.randn(count, *mean.shape, generator=generator, dtype=mean.dtype, device=device).to(mean.device)
    if antithetic:
        noise = torch.cat([noise, -noise])
    return mean + std * noise  # eq. (1)


def normal_log_prob(z: Tensor, mean: Tensor | float = 0.0, std: Tensor | float = 1.0) -> Tensor:
    """Log-density of a diagonal Gaussian, eq. (2).

    Args:
        z: (..., K), float.
        mean: broadcast with z.
        std: > 0, broadcast with z.

    Returns:
        (...) nats, summed over K, float32 or better.

    >>> normal_log_prob(torch.zeros(2))  # -log(2 pi)
    tensor(-1.8379)
    """
    z = wide(z)
    width = torch.as_tensor(std, dtype=z.dtype, device=z.device)
    scaled = (z - mean) / width
    return (-0.5 * scaled.square() - width.log() - 0.5 * math.log(2 * math.pi)).sum(-1)  # eq. (2)


def standard_normal_kl(mean: Tensor, std: Tensor) -> Tensor:
    """KL of a diagonal Gaussian from the standard normal, dimension by dimension, eq. (3).

    Args:
        mean: (..., K), float.
        std: (..., K), >= 0.

    Returns:
        (..., K) nats >= 0, float32 or better; inf where std is 0.

    Raises:
        ValueError: as of `danlu.math.gaussian_kl_diagonal`: nan or infinities, a negative std.

    >>> standard_normal_kl(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0]))
    tensor([2., 0.])
    """
    zero = mean.new_zeros(1)
    return gaussian_kl_diagonal(mean[..., None], std[..., None], zero, zero + 1)  # eq. (3)


def soft_clamp(x: Tensor, limit: float) -> Tensor:
    """Eq. (4): x near 0, never beyond the limit.

    Args:
        x: any shape, float.
        limit: > 0, finite.

    Returns:
        The shape of x, in [-limit, limit], float32 or better.

    Raises:
        ValueError: limit is not a positive finite number.

    >>> soft_clamp(torch.tensor([-1000.0, 0.0, 1000.0]), 5.0)
    tensor([-5.,  0.,  5.])
    """
    if not 0 < limit < math.inf:
        raise ValueError(f"soft_clamp needs a finite limit > 0, got {limit}")
    return limit * torch.tanh(wide(x) / limit)  # eq. (4)
