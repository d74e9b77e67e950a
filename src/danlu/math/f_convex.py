r"""A convex function f and all that an f-divergence needs of it, found by automatic differentiation.

    D_f(P || Q) = sum_x q f(p / q),   f convex on u > 0, f(1) = 0                                        (1)
    f*(t) = sup over u > 0 of  t u - f(u)                                                                (2)
    T(v) = f'(e^v)                                                                                       (3)
    f*(T(v)) = e^v f'(e^v) - f(e^v)                                                                      (4)

u = p / q is data over model. f*, the conjugate, is what the fake samples of a GAN are weighed with; a critic must stay
where it is finite, between f'(0) and f'(inf). With (3) as its last step it always does, whatever f is: v = log(p / q)
is the best output, and (4) needs neither f* nor an inverse. Where only t is known, (2) is solved by bisection on
f'(e^v) = t, and its derivative is the maximiser: f*'(t) = u, the density ratio that a critic's value stands for.

f is differentiated in float64. (4) takes a difference of numbers of the size of f(u): where f(u) grows like u but T and
f* do not (Jensen-Shannon), the absolute error is about 1e-16 e^v; the closed forms of `danlu.math.f_table` have none.
Limits of f at 0 and infinity are read off three points each and extrapolated; what grows like log log u is
infinite, a slower growth would be missed. Where they are known, `dataclasses.replace` puts them right.

Source: Nowozin, Cseke and Tomioka, 2016, arXiv:1606.00709; kexue.fm/archives/6016; (3) and (4) for any f are ours.
Shapes: any; everything is elementwise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from danlu.math.precision import wide_dtype

__all__ = ["FDivergence", "divergence_from_f"]

Elementwise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FDivergence:
    """One f-divergence: f, its limits, and the functions of a critic; `formula` says which way round it is."""

    name: str
    formula: str  # the integral over x, p for data and q for model
    f: Elementwise  # of u = p / q > 0
    activation: Elementwise  # v -> T, eq. (3): what stands after the last layer of a critic
    activation_conjugate: Elementwise  # v -> f*(T), eq. (4)
    conjugate: Elementwise  # t -> f*(t), eq. (2); inf where the supremum is
    zero: float  # f(0+); inf where a point with q alone costs infinitely much
    infinity: float  # lim f(u) / u = f'(inf); the same for p alone, and the largest t with a finite f*
    lowest: float  # f'(0+); below it f* is constant


def divergence_from_f(f: Elementwise, name: str = "f", formula: str = "q f(p / q)") -> FDivergence:
    """The divergence of any convex function, everything but f itself by autograd and numerically.

    Args:
        f: elementwise on a float64 tensor of u > 0, of differentiable torch functions, with f(1) = 0.
        name: what errors call it.
        formula: the integrand, for the reader.

    Returns:
        The record; build it once, the check evaluates f on a grid.

    Raises:
        ValueError: f(1) is not 0, f is not finite between e^-12 and e^12, not convex there, linear, or not elementwise.

    >>> kl = divergence_from_f(lambda u: u * u.log())
    >>> kl.activation(torch.tensor([0.0, 2.0])), kl.zero, kl.infinity  # 1 + v
    (tensor([1., 3.]), 0.0, inf)
    >>> kl.conjugate(torch.tensor([1.0]))  # exp(t - 1)
    tensor([1.])
    """
    check_convex(f, name)
    zero = limit(f, -1)
    infinity = limit(lambda u: f(u) / u, 1)
    lowest = limit(lambda u: derivative(f, u)[1], -1)
    if not lowest < derivative(f, torch.ones(1, dtype=torch.float64))[1].item():  # lost to rounding, and hardly missed
        lowest = -math.inf
    activation = partial(_activation, f)
    conjugate = partial(numeric_conjugate, f, activation, zero, infinity, lowest)
    return FDivergence(
        name, formula, f, activation, partial(_activation_conjugate, f), conjugate, zero, infinity, lowest
    )


def derivative(f: Elementwise, u: Tensor) -> tuple[Tensor, Tensor]:
    """f(u) and f'(u), differentiable again."""
    found: Any = torch.func.jvp(f, (u,), (torch.ones_like(u),))
    return found[0], found[1]


def check_convex(f: Elementwise, name: str) -> None:
    """f(1) = 0 and f' does not fall, on a grid of u from e^-12 to e^12; further out rounding hides it."""
    v = torch.linspace(-12, 12, 241, dtype=torch.float64)
    u = v.exp()
    value, slope = derivative(f, u)
    if value.shape != u.shape:
        raise ValueError(f"{name} must be elementwise: for u {tuple(u.shape)} it gave {tuple(value.shape)}")
    bad = ~(value.isfinite() & slope.isfinite())
    if bool(bad.any()):
        raise ValueError(f"{name} and its derivative must be finite for all u > 0; at u = {u[bad][0]:.6g} they are not")
    at_one = f(torch.ones(1, dtype=torch.float64)).item()
    if not abs(at_one) < 1e-6:
        raise ValueError(f"{name} must be 0 at u = 1, got {at_one:.6g}; subtract it: lambda u: f(u) - {at_one:.6g}")
    rise = slope.diff()
    noise = 1e-9 * (1 + slope[1:].abs() + slope[:-1].abs())
    if bool((rise < -noise).any()):
        first = int((rise < -noise).nonzero()[0])
        raise ValueError(
            f"{name} must be convex, but its derivative falls from {slope[first]:.6g} to {slope[first + 1]:.6g} "
            f"between u = {u[first]:.6g} and {u[first + 1]:.6g}; of a concave function take the negative"
        )
    if bool((rise <= noise).all()):
        raise ValueError(f"{name} is linear: every divergence would be 0; f needs a bend at u = 1, as u log u has")


def limit(f: Elementwise, side: int, reach: float = 60.0) -> float:
    """The limit of a monotone function at 0 (side -1) or infinity (side 1), from u = e^reach, e^2reach, e^3reach."""
    a, b, c = f((side * reach * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)).exp()).tolist()
    first, second = b - a, c - b
    if not math.isfinite(c):
        return c if c == -math.inf else math.inf
    if abs(second) <= 1e-12 * max(1.0, abs(c)):
        return float(c) if abs(c) > 1e-12 else 0.0
    if not abs(second) <= 0.5 * abs(first):  # log log u still moves by more
        return math.copysign(math.inf, second)
    return float(c - second * second / (second - first))  # exact for powers of u


def _fine(x: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def _activation(f: Elementwise, v: Tensor) -> Tensor:
    return derivative(f, _fine(v).exp())[1].to(wide_dtype(v))  # eq. (3)


def _activation_conjugate(f: Elementwise, v: Tensor) -> Tensor:
    u = _fine(v).exp()
    value, slope = derivative(f, u)
    return (u * slope - value).to(wide_dtype(v))  # eq. (4)


def numeric_conjugate(
    f: Elementwise, activation: Elementwise, zero: float, infinity: float, lowest: float, t: Tensor
) -> Tensor:
    """f*(t), eq. (2), by bisection; inf from f'(inf) on, and at f'(inf) itself unless f' reaches it."""
    value: Tensor = _Conjugate.apply(t, f, activation, zero, infinity, lowest)
    return value


class _Conjugate(torch.autograd.Function):
    """Eq. (2) with the maximiser as its gradient."""

    @staticmethod
    def forward(
        ctx: Any, t: Tensor, f: Elementwise, activation: Elementwise, zero: float, infinity: float, lowest: float
    ) -> Tensor:
        x = _fine(t)
        u = _maximiser(activation, x)
        value = x * u - f(u)  # eq. (2)
        below, above = x <= lowest, x > infinity
        if not _reached(activation, infinity):
            above = x >= infinity - 1e-12 * abs(infinity)  # itself read off with rounding
        ctx.save_for_backward(u.masked_fill(below, 0.0).masked_fill(above, math.inf).to(wide_dtype(t)))
        return value.masked_fill(below, -zero).masked_fill(above, math.inf).to(wide_dtype(t))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        return grad * ctx.saved_tensors[0], None, None, None, None, None


def _maximiser(activation: Elementwise, t: Tensor) -> Tensor:
    """u with f'(u) = t by bisection in v = log u; no farther out than needed, for there float64 ends."""
    low, high = torch.full_like(t, -30.0), torch.full_like(t, 30.0)
    for near, far in ((30.0, 150.0), (150.0, 700.0)):
        edge = torch.full_like(t, near)
        high = torch.where((high == near) & (activation(edge) < t), far, high)
        low = torch.where((low == -near) & (activation(-edge) > t), -far, low)
    for _ in range(62):  # halvings until neighbours in float64
        middle = (low + high) / 2
        up = activation(middle) < t
        low, high = torch.where(up, middle, low), torch.where(up, high, middle)
    return ((low + high) / 2).exp()


def _reached(activation: Elementwise, infinity: float) -> bool:
    """Whether f' is f'(inf) from some u on, as that of |u - 1| is."""
    return math.isfinite(infinity) and activation(torch.tensor([12.0], dtype=torch.float64)).item() >= infinity
