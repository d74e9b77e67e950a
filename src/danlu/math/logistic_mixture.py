r"""Mixtures of discretised logistics: the likelihood of grey and coloured pixels.

    log P(x) = logsumexp_j [ log pi_j + sum_c log P_j(x_c) ]                                                  (1)
    mean_c + sum_{b<c} tanh(a_cb) v_b   in the place of mean_c,    v = 2 x / (2^bits - 1) - 1                 (2)

x are the levels of the channels c of one pixel, P_j the discretised logistic of component j
(`danlu.math.discretized_logistic`). The component is shared by the channels; (2) lets a channel see those before it
(red, green, blue). A draw goes the same way: component, then channel after channel, each given the levels before it
(the levels, not the unrounded numbers behind them), so that draws follow (1) exactly.

Source: Salimans et al., 2017, arXiv:1701.05517; Vahdat and Kautz, 2020, arXiv:2007.03898 (in a deep VAE);
    kexue.fm/archives/7574.
Shapes: ... any, C channels, J components.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from danlu.math.discretized_logistic import (
    broadcast,
    check_bits,
    check_levels,
    discretized_logistic_sample,
    level_log_prob,
)
from danlu.math.precision import wide
from danlu.math.relaxation import gumbel_max

__all__ = [
    "LogisticMixture",
    "logistic_mixture_log_prob",
    "logistic_mixture_sample",
    "split_logistic_mixture",
]


class LogisticMixture(NamedTuple):
    """Parameters of a mixture of discretised logistics, in the order in which the functions below take them.

    logits: (..., J) of the components. mean, log_scale: (..., C, J). coefficients: (..., C (C - 1) / 2, J), a of
    eq. (2) row by row (green from red, blue from red, blue from green), or None.
    """

    logits: Tensor
    mean: Tensor
    log_scale: Tensor
    coefficients: Tensor | None


def logistic_mixture_log_prob(
    levels: Tensor,
    logits: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    coefficients: Tensor | None = None,
    bits: int = 8,
    validate: bool = True,
) -> Tensor:
    """Log-probabilities of whole pixels under a mixture of discretised logistics, eq. (1).

    Args:
        levels: (..., C) whole numbers 0 .. 2^bits - 1, any dtype; grey pixels have C = 1.
        logits: (..., J) of the components.
        mean: (..., C, J) of the values in [-1, 1].
        log_scale: (..., C, J), any finite numbers.
        coefficients: (..., C (C - 1) / 2, J) before tanh, eq. (2); None: channels independent within a component.
        bits: 1 to 16.
        validate: False trusts the levels and saves the look at them.

    Returns:
        (...), nats, float32 or better.

    Raises:
        ValueError: levels that are not whole or not in range, shapes that do not fit, another number of bits.

    >>> grey = torch.arange(4)[:, None]  # four pixels of one channel, two components that are the same
    >>> logistic_mixture_log_prob(grey, torch.zeros(4, 2), torch.zeros(4, 1, 2), torch.zeros(4, 1, 2), bits=2).exp()
    tensor([0.3392, 0.1608, 0.1608, 0.3392])
    """
    check_levels("logistic_mixture_log_prob", levels, bits, validate)
    _check_mixture("logistic_mixture_log_prob", logits, mean, log_scale, coefficients)
    if levels.ndim == 0 or levels.shape[-1] != mean.shape[-2] or not broadcast(levels.shape[:-1], logits.shape[:-1]):
        raise ValueError(
            f"logistic_mixture_log_prob needs levels (..., {mean.shape[-2]}) for mean {tuple(mean.shape)}, got "
            f"{tuple(levels.shape)}; channels stand last: images (B, C, H, W) become levels.movedim(1, -1)"
        )
    mean = wide(mean)
    if coefficients is not None:
        value = _value(levels, bits, mean.dtype)
        weight = wide(coefficients).tanh()
        channels = [_coupled(mean, weight, value, c) for c in range(mean.shape[-2])]
        mean = torch.stack(channels, dim=-2)  # (..., C, J)
    each = level_log_prob(levels[..., None], mean, wide(log_scale), bits)  # (..., C, J)
    return (wide(logits).log_softmax(-1) + each.sum(-2)).logsumexp(-1)  # eq. (1)


@torch.no_grad()
def logistic_mixture_sample(
    logits: Tensor,
    mean: Tensor,
    log_scale: Tensor,
    coefficients: Tensor | None = None,
    bits: int = 8,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Exact draws of pixels from eq. (1): a component, then channel after channel, each given the levels before it.

    Args:
        logits: (..., J) of the components.
        mean: (..., C, J) of the values in [-1, 1].
        log_scale: (..., C, J).
        coefficients: (..., C (C - 1) / 2, J) before tanh, eq. (2), or None.
        bits: 1 to 16.
        generator: source of the draws, on the device of mean.

    Returns:
        (..., C) int64 levels 0 .. 2^bits - 1.

    Raises:
        ValueError: nan among the parameters, shapes that do not fit, another number of bits.

    >>> mean = torch.tensor([[-1.0, 1.0]])  # one channel, two components far apart
    >>> logistic_mixture_sample(torch.tensor([0.0, 50.0]), mean, torch.full((1, 2), -20.0))
    tensor([255])
    """
    check_bits("logistic_mixture_sample", bits)
    _check_mixture("logistic_mixture_sample", logits, mean, log_scale, coefficients)
    if bool(logits.isnan().any()):
        raise ValueError("logistic_mixture_sample cannot draw from logits that are nan; look for what made them")
    index = gumbel_max(logits, generator=generator)[..., None, None]  # (..., 1, 1)

    def chosen(x: Tensor) -> Tensor:  # (..., R, J) to (..., R, 1)
        return wide(x).gather(-1, index.expand(*x.shape[:-1], 1))

    own_mean, own_scale = chosen(mean), chosen(log_scale)
    weight = None if coefficients is None else chosen(coefficients).tanh()
    levels = torch.zeros(mean.shape[:-1], dtype=torch.int64, device=mean.device)
    for c in range(mean.shape[-2]):
        at = own_mean[..., c, :]
        if weight is not None:
            at = _coupled(own_mean, weight, _value(levels, bits, own_mean.dtype), c)
        levels[..., c] = discretized_logistic_sample(at, own_scale[..., c, :], bits, generator)[..., 0]
    return levels


def split_logistic_mixture(output: Tensor, channels: int, coupled: bool = True, dim: int = 1) -> LogisticMixture:
    """The output of a network cut into the parameters of a mixture of discretised logistics.

    Args:
        output: K features along dim, K = J (1 + 2 C) and for coupled channels J C (C - 1) / 2 more: 10 J for RGB.
        channels: C.
        coupled: whether coefficients of eq. (2) are among the features.
        dim: where the features stand; 1 for images (B, K, H, W).

    Returns:
        A LogisticMixture of views, pixels in front: (B, H, W, ...) for images.

    Raises:
        ValueError: K is no multiple of the number of features that one component needs.

    >>> mixture = split_logistic_mixture(torch.zeros(2, 50, 7, 7), channels=3)
    >>> mixture.logits.shape, mixture.mean.shape
    (torch.Size([2, 7, 7, 5]), torch.Size([2, 7, 7, 3, 5]))
    """
    pairs = channels * (channels - 1) // 2 if coupled else 0
    one = 1 + 2 * channels + pairs
    if channels < 1 or not -output.ndim <= dim < output.ndim or output.shape[dim] == 0 or output.shape[dim] % one:
        raise ValueError(
            f"split_logistic_mixture needs along dim={dim} a multiple of {one} features ({channels} channels, "
            f"coupled={coupled}); got {tuple(output.shape)}"
        )
    rows = output.movedim(dim, -1).unflatten(-1, (one, -1))  # (..., 1 + 2 C + pairs, J)
    logits, mean, log_scale, rest = rows.split([1, channels, channels, pairs], dim=-2)
    return LogisticMixture(logits.squeeze(-2), mean, log_scale, rest if pairs else None)


def _value(levels: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """v of eq. (2)."""
    return levels.to(dtype) * (2 / (2**bits - 1)) - 1.0


def _coupled(mean: Tensor, weight: Tensor, value: Tensor, channel: int) -> Tensor:
    """(..., J): the mean of a channel moved by the channels before it, eq. (2)."""
    start = channel * (channel - 1) // 2
    row = weight[..., start : start + channel, :]  # (..., channel, J)
    return mean[..., channel, :] + (row * value[..., :channel, None]).sum(-2)


def _check_mixture(name: str, logits: Tensor, mean: Tensor, log_scale: Tensor, coefficients: Tensor | None) -> None:
    fits = mean.ndim >= 2 and mean.shape == log_scale.shape and logits.shape == mean.shape[:-2] + mean.shape[-1:]
    if not fits or not mean.shape[-1] or not mean.shape[-2]:
        raise ValueError(
            f"{name} needs logits (..., J), mean and log_scale (..., C, J) with J, C >= 1; got {tuple(logits.shape)}, "
            f"{tuple(mean.shape)} and {tuple(log_scale.shape)}; grey pixels have C = 1: mean[..., None, :]"
        )
    pairs = mean.shape[-2] * (mean.shape[-2] - 1) // 2
    expected = (*mean.shape[:-2], pairs, mean.shape[-1])
    if coefficients is not None and tuple(coefficients.shape) != expected:
        raise ValueError(
            f"{name} needs coefficients {expected}, one for each pair of {mean.shape[-2]} channels, or None; got "
            f"{tuple(coefficients.shape)}"
        )
