r"""Residual normals: a posterior that says only by how much it leaves the prior, and their KL and log-ratio.

    clamp(v) = 5 tanh(v / 5),    normal(m, v):  mean = clamp(m),  std = exp(clamp(v)) + 0.01                  (1)
    prior = normal(m, v),    posterior = normal(m + dm, v + dv)                                               (2)
    KL = sum [ ((mean - mean_p) / std_p)^2 / 2 + (r^2 - 1) / 2 - log r ],    r = std / std_p                  (3)
    log prior(z) - log posterior(z) = sum [ (noise^2 - ((z - mean_p) / std_p)^2) / 2 + log r ]                (4)

(m, v) is what the network of the prior puts out, (dm, dv) that of the posterior; away from the clamp and the floor
posterior = N(mean_p + dm, (std_p exp(dv))^2), the form of the paper. A posterior that learned nothing, dm = dv = 0, is
the prior, bit for bit, and its KL is 0: a group that is not needed costs nothing, and moving the prior moves the
posterior with it. The clamp keeps both finite whatever the networks say, the floor keeps a ratio of widths from
exploding. At (4) the noise enters as it was drawn.

Source: Vahdat and Kautz, 2020, arXiv:2007.03898; kexue.fm/archives/7574.
Shapes: N items, K latent channels, ... positions (H, W).
"""

from typing import NamedTuple

from torch import Tensor

from danlu.generative.latent import soft_clamp
from danlu.math import gaussian_kl_diagonal
from danlu.math.precision import wide

__all__ = ["DiagonalNormal", "channel_kl", "clamped_normal", "residual_log_ratio", "residual_normal"]

LIMIT, FLOOR = 5.0, 0.01


class DiagonalNormal(NamedTuple):
    """mean and std, (N, K, ...) each, float32 or better."""

    mean: Tensor
    std: Tensor


def clamped_normal(raw: Tensor) -> DiagonalNormal:
    """The normal that a network describes, eq. (1).

    Args:
        raw: (N, 2 K, ...): means, then logarithms of stds.

    Returns:
        Mean in [-5, 5] and std in [0.0167, 148.4], (N, K, ...), float32 or better.

    Raises:
        ValueError: an odd number of channels.

    >>> import torch
    >>> clamped_normal(torch.tensor([[1000.0, 0.0]]))
    DiagonalNormal(mean=tensor([[5.]]), std=tensor([[1.0100]]))
    """
    if raw.ndim < 2 or raw.shape[1] % 2:
        raise ValueError(f"clamped_normal needs (N, 2 K, ...), means and then log-stds; got {tuple(raw.shape)}")
    mean, log_std = wide(raw).chunk(2, 1)
    return DiagonalNormal(soft_clamp(mean, LIMIT), soft_clamp(log_std, LIMIT).exp() + FLOOR)  # eq. (1)


def residual_normal(prior: Tensor, change: Tensor) -> DiagonalNormal:
    """The posterior, eq. (2).

    Args:
        prior: (N, 2 K, ...) what describes the prior, before any clamp.
        change: (N, 2 K, ...) dm, then dv.

    Returns:
        A DiagonalNormal.

    Raises:
        ValueError: two shapes, or an odd number of channels.

    >>> import torch
    >>> residual_normal(torch.tensor([[900.0, 0.0]]), torch.tensor([[-900.0, 0.0]]))  # added first, clamped then
    DiagonalNormal(mean=tensor([[0.]]), std=tensor([[1.0100]]))
    """
    if prior.shape != change.shape:
        raise ValueError(
            f"residual_normal needs prior and change of one shape, got {tuple(prior.shape)} and {tuple(change.shape)}"
        )
    return clamped_normal(wide(prior) + wide(change))  # eq. (2)


def channel_kl(posterior: DiagonalNormal, prior: DiagonalNormal) -> Tensor:
    """KL of the posterior from the prior, eq. (3), summed over positions.

    Args:
        posterior: of tensors (N, K, ...).
        prior: of the same shape.

    Returns:
        (N, K) nats >= 0, float32 or better.

    Raises:
        ValueError: as of `danlu.math.gaussian_kl_diagonal`: shapes that do not fit, nan.

    >>> import torch
    >>> one = torch.ones(1, 1, 2)
    >>> channel_kl(DiagonalNormal(one, one), DiagonalNormal(0 * one, one))  # 1/2 at each of two positions
    tensor([[1.]])
    """
    mean, std, mean_p, std_p = (t.reshape(*t.shape[:2], -1) for t in (*posterior, *prior))
    return gaussian_kl_diagonal(mean, std, mean_p, std_p)  # eq. (3)


def residual_log_ratio(noise: Tensor, z: Tensor, posterior: DiagonalNormal, prior: DiagonalNormal) -> Tensor:
    """How much likelier z is under the prior than under the posterior that it was drawn from, eq. (4).

    Args:
        noise: (N, K, ...), standard normal.
        z: mean + std * noise of the posterior.
        posterior: of tensors (N, K, ...).
        prior: of the same shape.

    Returns:
        (N,) nats, float32 or better.

    Raises:
        ValueError: noise and z of two shapes.

    >>> import torch
    >>> one = torch.ones(1, 1)
    >>> same = DiagonalNormal(one, 2 * one)
    >>> residual_log_ratio(3 * one, 7 * one, same, same)
    tensor([0.])
    """
    if noise.shape != z.shape:
        raise ValueError(f"noise and z must have one shape, got {tuple(noise.shape)} and {tuple(z.shape)}")
    scaled = (z - prior.mean) / prior.std
    terms = 0.5 * (noise.square() - scaled.square()) + (posterior.std / prior.std).log()  # eq. (4)
    return terms.flatten(1).sum(1)
