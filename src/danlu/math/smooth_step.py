r"""Smooth stand-ins for relu, abs, step, sign, floor and round, with one sharpness K.

    relu     log(1 + e^{K x}) / K                                                                            (1)
    abs      sqrt(x^2 + 1/K^2),   x tanh(K x)   or   (2/K) log(2 cosh(K x / 2))                              (2)
    step     sigma(K x),          sign tanh(K x)                                                             (3)
    floor    sum_{j >= 1} sigma(K (x - j)) + sum_{j <= 0} (sigma(K (x - j)) - 1)                             (4)
    floor    x - 1/2 + sum_{n >= 1} (2 pi / K) sin(2 pi n x) / sinh(2 pi^2 n / K)                            (5)
    round    floor of x + 1/2                                                                                (6)

sigma is the logistic function. How far each form is from the hard one stands in `danlu.math.smooth_bound`. (5) is (4)
by Poisson summation: (4) needs few terms for large K, (5) for small ones; nine of either are exact in float64. The
second form of (2) falls below |x| and is not convex: prefer the first in losses. On 0 and 1, `a * b`, `a + b - a * b`
and `1 - a` are and, or, not without any error; the larger of two numbers is (a + b + |a - b|) / 2.

Source: the recipe of kexue.fm/archives/6620 (2019), everything from a smooth max; (5) and the bounds are worked out
    here.
Shapes: any; a result has the shape and dtype of its input.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["hard_forward", "smooth_abs", "smooth_floor", "smooth_relu", "smooth_round", "smooth_sign", "smooth_step"]

TERMS = 9  # of eqs. (4) and (5); the first one left out is below e^{-9 sqrt(2) pi} = 4e-18


def smooth_relu(x: Tensor, sharpness: float = 1.0) -> Tensor:
    """max(x, 0), eq. (1), from above.

    Args:
        x: any shape, any float dtype.
        sharpness: K > 0.

    Returns:
        The shape and dtype of x.

    Raises:
        ValueError: sharpness is not > 0.

    >>> smooth_relu(torch.tensor([0.0, 9.0]), sharpness=10.0)  # log(2) / 10 in the corner
    tensor([0.0693, 9.0000])
    """
    check_sharpness(sharpness)
    return F.softplus(x, sharpness, threshold=40.0)  # eq. (1)


def smooth_abs(x: Tensor, sharpness: float = 1.0, method: str = "sqrt") -> Tensor:
    """|x|, eq. (2): "sqrt" and "logcosh" from above and convex, "tanh" from below.

    Args:
        x: any shape, any float dtype.
        sharpness: K > 0.
        method: "sqrt", "tanh" or "logcosh".

    Returns:
        The shape and dtype of x.

    Raises:
        ValueError: sharpness is not > 0, or an unknown method.

    >>> smooth_abs(torch.tensor([3.0, 0.0]), sharpness=0.25)  # the hypotenuse over 3 and 4
    tensor([5., 4.])
    """
    check_sharpness(sharpness)
    if method == "sqrt":
        return torch.hypot(x, x.new_tensor(1.0 / sharpness))  # eq. (2)
    if method == "tanh":
        return x * torch.tanh(sharpness * x)
    if method == "logcosh":
        return smooth_relu(x, sharpness) + smooth_relu(-x, sharpness)
    raise ValueError(f"method must be 'sqrt', 'tanh' or 'logcosh', got {method!r}")


def smooth_step(x: Tensor, sharpness: float = 1.0) -> Tensor:
    """1 for positive numbers and 0 for negative ones, eq. (3).

    Args:
        x: any shape, any float dtype.
        sharpness: K > 0.

    Returns:
        The shape and dtype of x, in [0, 1]; 1/2 at 0.

    Raises:
        ValueError: sharpness is not > 0.

    >>> smooth_step(torch.tensor([0.0, 9.0]), sharpness=10.0)
    tensor([0.5000, 1.0000])
    """
    check_sharpness(sharpness)
    return torch.sigmoid(sharpness * x)  # eq. (3)


def smooth_sign(x: Tensor, sharpness: float = 1.0) -> Tensor:
    """1 for positive numbers and -1 for negative ones, eq. (3).

    Args:
        x: any shape, any float dtype.
        sharpness: K > 0.

    Returns:
        The shape and dtype of x, in [-1, 1]; 0 at 0.

    Raises:
        ValueError: sharpness is not > 0.

    >>> smooth_sign(torch.tensor([-9.0, 0.0, 9.0]), sharpness=10.0)
    tensor([-1.,  0.,  1.])
    """
    check_sharpness(sharpness)
    return torch.tanh(sharpness * x)  # eq. (3)


def smooth_floor(x: Tensor, sharpness: float = 10.0) -> Tensor:
    """The largest integer not above x, eqs. (4) and (5): a rising staircase, half a step up at integers.

    Args:
        x: any shape, any float dtype.
        sharpness: K > 0; towards 0 the staircase flattens to the line x - 1/2.

    Returns:
        The shape and dtype of x.

    Raises:
        ValueError: sharpness is not > 0.

    >>> smooth_floor(torch.tensor([1.5, 2.0]), sharpness=100.0)
    tensor([1.0000, 1.5000])
    """
    check_sharpness(sharpness)
    y = wide(x)
    return _staircase(y, y.detach().floor(), 0.0, sharpness).to(x.dtype)


def smooth_round(x: Tensor, sharpness: float = 10.0) -> Tensor:
    """The nearest integer, eq. (6), halfway between two of them their mean.

    Args:
        x: any shape, any float dtype.
        sharpness: K > 0; towards 0 the staircase flattens to the line x.

    Returns:
        The shape and dtype of x.

    Raises:
        ValueError: sharpness is not > 0.

    >>> smooth_round(torch.tensor([1.4, 2.5, -1.4]), sharpness=100.0)
    tensor([ 1.0000,  2.5000, -1.0000])
    """
    check_sharpness(sharpness)
    y = wide(x)
    return _staircase(y, (y.detach() + 0.5).floor(), 0.5, sharpness).to(x.dtype)  # eq. (6)


def hard_forward(hard: Tensor, soft: Tensor) -> Tensor:
    """The hard value to the bit, with the gradient of the soft one; that gradient is biased, as straight-through is.

    Args:
        hard: what the layers behind compute with, any dtype, for instance `x.round()` or the mask of a top-k.
        soft: what the gradient flows through, the shape of hard, for instance `smooth_round(x)`.

    Returns:
        `hard` in the dtype of `soft`.

    Raises:
        ValueError: the shapes differ.

    >>> x = torch.tensor(0.4, requires_grad=True)
    >>> y = hard_forward(x.round(), smooth_round(x, 10.0))
    >>> y.item(), torch.autograd.grad(y, x)[0].item() > 0
    (0.0, True)
    """
    if hard.shape != soft.shape:
        raise ValueError(
            f"hard and soft are two values of one thing; got shapes {tuple(hard.shape)} and {tuple(soft.shape)}"
        )
    result: Tensor = _HardForward.apply(hard.detach(), soft)
    return result


class _HardForward(torch.autograd.Function):
    """hard + soft - soft without its rounding."""

    @staticmethod
    def forward(hard: Tensor, soft: Tensor) -> Tensor:
        return hard.to(soft.dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return None, grads[0]


def check_sharpness(sharpness: float) -> None:
    """The one message about K."""
    if not sharpness > 0:
        raise ValueError(f"sharpness must be > 0, got {sharpness}; 1 takes the numbers as they are")


def _staircase(y: Tensor, start: Tensor, shift: float, sharpness: float) -> Tensor:
    """`start` plus what the staircase does in its unit [0, 1); infinities stay themselves."""
    unit = torch.where(y.isfinite(), y - start, 0.0) + shift
    if sharpness > math.sqrt(2) * math.pi:  # where the two series fall equally fast
        rise = sum((torch.sigmoid(sharpness * (unit - j)) - torch.sigmoid(sharpness * (1 - j - unit))
                    for j in range(1, TERMS + 1)), torch.zeros_like(unit))  # eq. (4)  # fmt: skip
    else:
        waves = [(n, 2 * math.pi / sharpness / _sinh(2 * math.pi**2 * n / sharpness)) for n in range(1, TERMS + 1)]
        rise = sum((size * torch.sin(2 * math.pi * n * unit) for n, size in waves), unit - 0.5)  # eq. (5)
    return start + rise


def _sinh(x: float) -> float:
    return math.sinh(x) if x < 700 else math.inf
