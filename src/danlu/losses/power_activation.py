r"""Power activation: a sigmoid raised to a power, for binary labels of which almost all are 0.

    p = sigmoid(t),   q = p^m                                                                          (1)
    L = -y log q - (1 - y) log(1 - q)                                                                  (2)
    -log q = m softplus(-t)                                                                            (3)
    -log(1 - q) = softplus(t) - log[(1 - p^m) / (1 - p)]                                               (4)

t is a logit, m the power, y the label. A fresh model has t near 0 and says q = 2^-m instead of 1/2: nearly right for
labels that are nearly all 0, so training does not begin with unlearning. A positive's loss is exactly m times the plain
one and a negative's is smaller, at t = 0 with slope m p^m (1 - p) / (1 - p^m): 0.5, 0.333 and 0.133 for m = 1, 2 and 4.
Unlike class weights and the focal loss, q is still the probability that plain cross-entropy fits. Thresholds are on q:
q > 0.6 with m = 4 asks for p > 0.88.

(3) and (4) hold for every logit: (4) is used as it stands for t > 0, where 1 - q would lose its digits, and as
-log1p(-q) below, where q would. The logarithm in (4) lies between 0 and log m. Computed in float32 or better.

Source: kexue.fm/archives/7161 (m = 2 for subjects, 4 for objects; "the n-th power", without an ablation).
Shapes: any.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.precision import wide
from danlu.math.reduce import reduce_loss

__all__ = ["power_binary_cross_entropy", "power_sigmoid"]


def power_sigmoid(logits: Tensor, power: float = 1.0) -> Tensor:
    """The probability q, eq. (1).

    Args:
        logits: any shape, any float dtype.
        power: m > 0; 1 is the plain sigmoid.

    Returns:
        The shape and dtype of logits, in [0, 1].

    Raises:
        ValueError: power is not above 0.

    >>> power_sigmoid(torch.zeros(2), 2.0)  # (1/2)^2
    tensor([0.2500, 0.2500])
    """
    _check_power(power)
    return (power * F.logsigmoid(wide(logits))).exp().to(logits.dtype)  # eq. (1)


def power_binary_cross_entropy(
    logits: Tensor, target: Tensor, power: float = 1.0, reduction: str = "mean", mask: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of the power activation, eq. (2).

    Args:
        logits: any shape, any float dtype.
        target: the shape of logits, labels in [0, 1] of any dtype; a constant.
        power: m > 0; 1 is the plain binary cross-entropy.
        reduction: "mean", "sum" or "none"; "none" puts 0 where the mask drops an item.
        mask: bool, the shape of logits, True = keep; None keeps all. Masked items may hold anything.

    Returns:
        Scalar, or the shape of logits for "none"; float32, or float64 for float64 logits.

    Raises:
        ValueError: the shapes differ, power is not above 0, an unknown reduction, or a mask that does not fit.

    >>> power_binary_cross_entropy(torch.zeros(2), torch.tensor([1, 0]), 2.0, "none")  # -log(1/4), -log(3/4)
    tensor([1.3863, 0.2877])
    """
    if logits.shape != target.shape:
        raise ValueError(
            f"power_binary_cross_entropy needs a label for every logit; got logits {tuple(logits.shape)} and target "
            f"{tuple(target.shape)}"
        )
    _check_power(power)
    t = wide(logits)
    y = target.detach().to(t.dtype)
    if mask is not None and mask.shape == t.shape and mask.dtype == torch.bool:  # else reduce_loss says what is wrong
        t, y = t.masked_fill(~mask, 0.0), y.masked_fill(~mask, 0.0)
    x = -F.logsigmoid(t)  # softplus(-t) = -log p; torch's softplus drops the rest beyond 20
    positive = power * x  # eq. (3)
    loss = y * positive + (1 - y) * _negative(t, x, power)  # eq. (2)
    return reduce_loss(loss, reduction, mask)


def _negative(t: Tensor, x: Tensor, power: float) -> Tensor:
    """-log(1 - exp(-m x)), x = softplus(-t), eq. (4) and its other form; either branch sees only what it can bear."""
    above = t > 0
    tiny = x < 1e-30  # the quotient of (4) has reached its limit m
    x_above = torch.where(above & ~tiny, x, 1.0)
    quotient = torch.log(torch.expm1(-power * x_above) / torch.expm1(-x_above))
    high = -F.logsigmoid(-t) - torch.where(tiny, math.log(power), quotient)  # eq. (4)
    x_below = torch.where(above, 1.0, x)
    low = -torch.log1p(-torch.exp(-power * x_below))
    return torch.where(above, high, low)


def _check_power(power: float) -> None:
    if not 0 < power < math.inf:
        raise ValueError(f"power must be a number above 0, got {power}; 1 is the plain sigmoid")
