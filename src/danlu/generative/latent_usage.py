r"""Which dimensions of a latent a model uses: spread of the encoder's means, and KL, dimension by dimension.

    activity_k = Var_x(mean_k(x)) > threshold                                                                 (1)
    KL_k = E_x KL( N(mean_k(x), std_k(x)) || N(0, 1) )                                                        (2)

A dimension with KL 0 carries nothing about x: the decoder reads noise from it. All of them at 0 is a collapsed model,
usually a reduction that weighs the KL by the number of pixels (`danlu.generative.vae_objective`).

Source: Burda, Grosse and Salakhutdinov, 2015, arXiv:1509.00519 (1).
Shapes: N items, K latent dimensions.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from danlu.generative.latent import standard_normal_kl
from danlu.math.precision import wide

__all__ = ["LatentUsage", "latent_usage"]

NOTHING = 1e-3  # nats; a KL below it is none


class LatentUsage(NamedTuple):
    """active: (K,) bool, eq. (1). activity: (K,) variances. kl: (K,) nats, eq. (2). collapsed: no KL above 0.001."""

    active: Tensor
    activity: Tensor
    kl: Tensor
    collapsed: bool


@torch.no_grad()
def latent_usage(mean: Tensor, std: Tensor, threshold: float = 0.01) -> LatentUsage:
    """Activity and KL of every latent dimension; warns if the latent is not used at all.

    Args:
        mean: (N, K) of the encoder over N >= 2 items.
        std: (N, K) of the encoder.
        threshold: of eq. (1).

    Returns:
        A LatentUsage.

    Raises:
        ValueError: shapes that do not fit, or fewer than two items.

    >>> usage = latent_usage(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.ones(2, 2))
    >>> usage.active, usage.kl
    (tensor([ True, False]), tensor([0.5000, 0.0000]))
    """
    if mean.ndim != 2 or mean.shape != std.shape or len(mean) < 2:
        raise ValueError(
            f"latent_usage needs mean and std (N, K) of N >= 2 items, got {tuple(mean.shape)} and {tuple(std.shape)}"
        )
    activity = wide(mean).var(0)
    kl = standard_normal_kl(mean, std).mean(0)  # eq. (2)
    collapsed = bool((kl < NOTHING).all())
    if collapsed:
        warnings.warn(
            f"the latent is not used: the KL of each of its {len(kl)} dimensions is below {NOTHING} nats. Sum the "
            "reconstruction over pixels (never a mean beside a summed KL), and let beta rise from 0",
            stacklevel=3,
        )
    return LatentUsage(activity > threshold, activity, kl, collapsed)  # eq. (1)
