r"""Discretised logistics: probabilities of grey levels that sum to one at any scale.

    c_k = (k - 1/2 - m) / s,    m = (mean + 1) (n - 1) / 2,    s = e^{log_scale} (n - 1) / 2,    n = 2^bits   (1)
    P(k) = sigma(c_{k+1}) - sigma(c_k),    but c_0 = -inf and c_n = inf: the end levels take the tails        (2)
    log P(k) = log sigma(c_{k+1}) + log sigma(-c_k) + log(1 - e^{-1/s})                                       (3)

k is a level 0 .. n - 1, the value v = 2 k / (n - 1) - 1 in [-1, 1]; mean and log_scale belong to v. (3) is (2) without
the difference: c_{k+1} - c_k = 1/s, and the third factor (absent at the ends) is exact for wide and for narrow ones
alike, so nothing has to switch to the density and no probability is floored. The edges c are whole numbers less 1/2
before they are scaled: neighbours share them to the last bit, and the n probabilities sum to one up to rounding.

Code that tells the last level by v > 0.99 takes 254 for 255 with 8 bits: its sum is 1 + P(255). Here levels are whole
numbers and nothing is guessed. Models of the sources keep log_scale >= -7: that is a clamp before the call.

Source: Salimans et al., 2017, arXiv:1701.05517 (2); (3) is our algebra.
Shapes: any.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["discretized_logistic_log_prob", "discretized_logistic_sample"]

NARROWEST = -60.0  # least log of s in eq. (1); a narrower logistic puts the same levels at 0 and 1
FARTHEST = 1e30  # greatest |m| and |c| of eq. (1), so that float32 stays finite


def discretized_logistic_log_prob(
    levels: Tensor, mean: Tensor, log_scale: Tensor, bits: int = 8, validate: bool = True
) -> Tensor:
    """Log-probabilities of grey levels under one logistic each, eq. (3).

    Args:
        levels: whole numbers 0 .. 2^bits - 1, any dtype.
        mean: of the value in [-1, 1]; may lie outside; broadcast with levels.
        log_scale: log of the scale of that value, any finite number; broadcast with levels.
        bits: 1 to 16.
        validate: False trusts the levels and saves the look at them (it waits for a GPU; torch.compile leaves it out).

    Returns:
        The common shape, nats, float32 or better; finite for finite parameters.

    Raises:
        ValueError: levels that are not whole or not in range, shapes that do not broadcast, another number of bits.

    >>> discretized_logistic_log_prob(torch.tensor([0, 1]), torch.zeros(2), torch.zeros(2), bits=1).exp()
    tensor([0.5000, 0.5000])
    """
    check_levels("discretized_logistic_log_prob", levels, bits, validate)
    if not broadcast(levels.shape, mean.shape, log_scale.shape):
        raise ValueError(
            "discretized_logistic_log_prob needs levels, mean and log_scale that broadcast; got "
            f"{tuple(levels.shape)}, {tuple(mean.shape)} and {tuple(log_scale.shape)}"
        )
    return level_log_prob(levels, wide(mean), wide(log_scale), bits)


@torch.no_grad()
def discretized_logistic_sample(
    mean: Tensor, log_scale: Tensor, bits: int = 8, generator: torch.Generator | None = None
) -> Tensor:
    """Exact draws of grey levels from eq. (2): a logistic number, rounded to the nearest level.

    Args:
        mean: of the value in [-1, 1], broadcast with log_scale.
        log_scale: log of the scale of that value.
        bits: 1 to 16.
        generator: source of the draws, on the device of mean.

    Returns:
        The common shape, int64 levels 0 .. 2^bits - 1.

    Raises:
        ValueError: nan among the parameters, shapes that do not broadcast, another number of bits.

    >>> discretized_logistic_sample(torch.tensor([-1.0, 0.2, 9.0]), torch.full((3,), -20.0))
    tensor([  0, 153, 255])
    """
    check_bits("discretized_logistic_sample", bits)
    if not broadcast(mean.shape, log_scale.shape):
        raise ValueError(
            "discretized_logistic_sample needs mean and log_scale that broadcast; got "
            f"{tuple(mean.shape)} and {tuple(log_scale.shape)}"
        )
    centre, log_s = torch.broadcast_tensors(*_in_levels(wide(mean), wide(log_scale), bits))
    first, second = torch.empty((2, *centre.shape), dtype=centre.dtype, device=centre.device).exponential_(
        generator=generator
    )
    tiny = torch.finfo(centre.dtype).tiny
    logistic = first.clamp_min(tiny).log() - second.clamp_min(tiny).log()  # the logit of a uniform number
    drawn = (centre + log_s.clamp_max(-NARROWEST).exp() * logistic).round()
    if bool(drawn.isnan().any()):
        raise ValueError(
            "discretized_logistic_sample cannot draw where mean or log_scale is nan; look for what made it (a scale "
            "that overflowed in training, as a rule)"
        )
    return drawn.clamp(0, 2**bits - 1).to(torch.int64)


def level_log_prob(levels: Tensor, mean: Tensor, log_scale: Tensor, bits: int) -> Tensor:
    """Eq. (3) for parameters in float32 or better."""
    centre, log_s = _in_levels(mean, log_scale, bits)
    k = levels.to(centre.dtype)
    inverse = (-log_s).exp()  # 1/s
    low = ((k - 0.5 - centre) * inverse).clamp(-FARTHEST, FARTHEST)  # eq. (1)
    high = ((k + 0.5 - centre) * inverse).clamp(-FARTHEST, FARTHEST)
    first, last = k == 0, k == 2**bits - 1
    near = inverse.clamp(max=1e-4)
    series = -log_s - near / 2 + near**2 / 24  # of the logarithm below, where 1/s would underflow
    thickness = torch.where(inverse < 1e-4, series, (-torch.expm1(-inverse.clamp_min(1e-4))).log())
    above = F.logsigmoid(high).masked_fill(last, 0.0)
    below = F.logsigmoid(-low).masked_fill(first, 0.0)
    return above + below + torch.where(first | last, 0.0, thickness)  # eq. (3)


def _in_levels(mean: Tensor, log_scale: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """m and log s of eq. (1)."""
    half = (2**bits - 1) / 2
    centre = ((mean + 1.0) * half).clamp(-FARTHEST, FARTHEST)
    return centre, (log_scale + math.log(half)).clamp_min(NARROWEST)  # eq. (1)


def check_bits(name: str, bits: int) -> None:
    if not isinstance(bits, int) or not 1 <= bits <= 16:
        raise ValueError(f"{name} needs bits between 1 and 16, got {bits!r}; 8 for usual images")


def check_levels(name: str, levels: Tensor, bits: int, validate: bool) -> None:
    check_bits(name, bits)
    if levels.is_complex():
        raise ValueError(f"{name} needs real levels, got {levels.dtype}")
    if validate and not torch.compiler.is_compiling():
        top = 2**bits - 1
        bad = (levels < 0) | (levels > top)
        if levels.is_floating_point():
            bad = bad | (levels != levels.floor())  # true for nan
        if bool(bad.any()):
            raise ValueError(
                f"{name} needs whole levels 0 .. {top} for bits={bits}, got {levels[bad][0].item()}; images in [0, 1] "
                f"become levels by (x * {top}).round(), images in [-1, 1] by ((x + 1) * {top / 2}).round()"
            )


def broadcast(*shapes: torch.Size) -> bool:
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return False
    return True
