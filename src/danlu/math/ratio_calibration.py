r"""Is a critic's log-ratio true? It is, if among examples it gives v the odds of real against generated are e^v.

    P(real | v) = sigmoid(v),      real and generated equally frequent                                     (1)
    error   sum_b share_b | mean_b sigmoid(v) - P_b(real) |,      b: bins of equally many examples         (2)
    log-likelihood  sum_i t_i log sigmoid(a v_i + c) + (1 - t_i) log sigmoid(-(a v_i + c))  -> max         (3)

v = log p / q of the data over the model. Each of the two samples has weight 1/2 whatever its size. (2) is the expected
calibration error; it is 0 in the limit for the true ratio, and also for a dull critic that says less than could be
said: of two calibrated critics the one with the smaller cross-entropy (the negative mean of (3) at a = 1, c = 0) knows
more; log 2 is knowing nothing. (3) repairs a critic that is right up to a temperature and a shift, by two numbers
fitted on examples that it was not trained on: a v + c. The targets t are (n + 1) / (n + 2) and 1 / (m + 2) instead of 1
and 0, so that a critic that parts the two samples gets a finite a.

Source: Guo et al., 2017, arXiv:1706.04599 (2); Platt, 1999, with these targets (3); both of classifiers, for which v is
the logit. The mean of the ratio is a cheaper test: `danlu.losses.ratio_balance`.
Shapes: n real, m generated examples; any shapes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["RatioCalibration", "ratio_calibration"]


@dataclass(frozen=True)
class RatioCalibration:
    """Error (2), cross-entropy in nats, a and c of (3), and per bin what was said and what was so (B,)."""

    error: float
    cross_entropy: float
    slope: float
    shift: float
    predicted: Tensor
    observed: Tensor

    def apply(self, log_ratio: Tensor) -> Tensor:
        """The repaired log-ratio a v + c."""
        return self.slope * wide(log_ratio) + self.shift


@torch.no_grad()
def ratio_calibration(real: Tensor, fake: Tensor, bins: int = 10) -> RatioCalibration:
    """How far a critic's log-ratio is from the odds, eqs. (1) to (3), on examples it was not trained on.

    Args:
        real: log p / q of real examples as the critic tells it, any shape, at least one, finite.
        fake: the same of generated ones.
        bins: for (2), >= 1; of equal total weight, ties stay together.

    Returns:
        The record, in float64.

    Raises:
        ValueError: an empty batch, numbers that are not finite, or bins < 1.

    >>> v = torch.tensor([1.0986])  # says 3 to 1, which is so
    >>> found = ratio_calibration(v.expand(3), torch.cat([v, -v, -v]))
    >>> round(found.predicted[1].item(), 3), round(found.observed[1].item(), 3)
    (0.75, 0.75)
    """
    if not (real.numel() and fake.numel()) or bins < 1:
        raise ValueError(
            f"ratio_calibration needs log-ratios of both kinds and bins >= 1, got {tuple(real.shape)}, "
            f"{tuple(fake.shape)} and {bins}"
        )
    v = torch.cat([wide(real).double().flatten(), wide(fake).double().flatten()])
    if not bool(v.isfinite().all()):
        raise ValueError("ratio_calibration needs finite log-ratios; clamp them, or look for nan in the critic")
    n, m = real.numel(), fake.numel()
    is_real = torch.arange(n + m, device=v.device) < n
    weight = torch.where(is_real, v.new_tensor(0.5 / n), v.new_tensor(0.5 / m))
    entropy = -(weight * F.logsigmoid(torch.where(is_real, v, -v))).sum()
    said, so, share = _bins(v, is_real, weight, bins)
    error = (share * (said - so).abs()).sum()  # eq. (2)
    target = torch.where(is_real, v.new_tensor((n + 1) / (n + 2)), v.new_tensor(1 / (m + 2)))
    slope, shift = _platt(v, target, weight)
    return RatioCalibration(float(error), float(entropy), slope, shift, said, so)


def _bins(v: Tensor, is_real: Tensor, weight: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each bin that is not empty: the mean of sigmoid(v), the share of real ones, its weight."""
    levels, level = v.unique(return_inverse=True)  # ties are one
    mass = torch.zeros_like(levels).index_add_(0, level, weight)
    middle = mass.cumsum(0) - mass / 2
    number = (middle * bins).long().clamp(max=bins - 1)[level]
    share = torch.zeros(bins, dtype=v.dtype, device=v.device).index_add_(0, number, weight)
    said = torch.zeros_like(share).index_add_(0, number, weight * v.sigmoid())
    so = torch.zeros_like(share).index_add_(0, number, weight * is_real)
    some = share > 0
    return said[some] / share[some], so[some] / share[some], share[some]


def _platt(v: Tensor, target: Tensor, weight: Tensor) -> tuple[float, float]:
    """a and c of eq. (3), by Newton's steps with halving; the sum is concave."""
    scale = v.abs().max().clamp_min(1e-12)
    x = torch.stack([v / scale, torch.ones_like(v)], 1)
    theta = v.new_zeros(2)

    def cost(theta: Tensor) -> Tensor:
        z = x @ theta
        return -(weight * (target * F.logsigmoid(z) + (1 - target) * F.logsigmoid(-z))).sum()

    value = cost(theta)
    for _ in range(100):
        p = (x @ theta).sigmoid()
        gradient = x.mT @ (weight * (p - target))
        curvature = (x.mT * (weight * p * (1 - p))) @ x + 1e-12 * torch.eye(2, dtype=v.dtype, device=v.device)
        step = torch.linalg.solve(curvature, gradient)
        while cost(theta - step) > value and float(step.abs().max()) > 1e-12:
            step = step / 2
        theta = theta - step
        value = cost(theta)
        if float(step.abs().max()) < 1e-10:
            break
    return float(theta[0] / scale), float(theta[1])
