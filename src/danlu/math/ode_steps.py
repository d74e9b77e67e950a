r"""One step of an ordinary differential equation dx/dt = f(t, x): the rules that solvers and recurrent cells share.

    euler            x' = x + h f(t, x)                                                      order 1         (1)
    midpoint, heun, rk4, dopri5:
        k_i = f(t + c_i h, x + h sum_{j < i} a_ij k_j),   x' = x + h sum_i b_i k_i           orders 2 to 5   (2)
        error of dopri5 = h sum_i (b_i - b^_i) k_i                                           b^ of order 4   (3)
    backward_euler   x' = x + h f(t + h, x')                                                 order 1         (4)
    trapezoid        x' = x + h/2 (f(t, x) + f(t + h, x'))                                   order 2         (5)
    Newton           y <- y - J^-1 g(y),   g(y) = y - x - h ((1 - w) f(t, x) + w f(t + h, y))                (6)

h may be negative. (4) and (5), with w = 1 and 1/2, stay bounded on stiff equations whatever h is. All rules are
differentiable in x and in whatever f holds, and what comes out is the gradient of the discrete step itself, not that of
the equation it approximates. For (6) it is the implicit function theorem: one last Newton step with y and J held
constant has the gradient of the root (first derivatives only). A row that Newton cannot solve becomes nan, the other
rows of the batch stay.

Source: Hairer, Norsett and Wanner, 1993, Solving Ordinary Differential Equations I (1 to 3); Dormand and Prince, 1980,
doi:10.1016/0771-050X(80)90013-3; that a step is a recurrent cell: kexue.fm/archives/5643.
Shapes: x (..., d), leading axes are rows that do not see one another.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.math.precision import wide, wide_dtype

__all__ = ["ODE_METHODS", "ode_step"]

RightHandSide = Callable[[float, Tensor], Tensor]


@dataclass(frozen=True)
class Tableau:
    """Coefficients of eq. (2) and, where the rule has one, those of its error, eq. (3)."""

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...] = ()


DOPRI5 = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
DOPRI4 = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
TABLEAUS = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": Tableau((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    "dopri5": Tableau(
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            DOPRI5,
        ),
        DOPRI5,
        tuple(b - d for b, d in zip((*DOPRI5, 0.0), DOPRI4, strict=True)),
    ),
}
IMPLICIT = {"backward_euler": 1.0, "trapezoid": 0.5}  # w of eq. (6)
ODE_METHODS = (*TABLEAUS, *IMPLICIT)
NEWTON_STEPS = 30


def ode_step(rhs: RightHandSide, t: float, x: Tensor, h: float, method: str = "rk4") -> Tensor:
    """The state one step later, eqs. (1) to (6).

    Args:
        rhs: f(t, x) -> dx/dt in the shape of x; a module will do. t is a Python float.
        t: the time of x.
        x: (..., d) floats; float16 and bfloat16 are summed in float32.
        h: length of the step, finite; negative goes back in time.
        method: one of ODE_METHODS: "euler", "midpoint", "heun", "rk4", "dopri5", "backward_euler" or "trapezoid".

    Returns:
        x at t + h, the shape and dtype of x.

    Raises:
        ValueError: an unknown method, x is no float tensor with an axis, h is not finite, or rhs gives another shape.

    >>> ode_step(lambda t, x: -x, 0.0, torch.ones(1), 1.0, "heun")  # 1 - 1 + 1/2
    tensor([0.5000])
    """
    check_method(method)
    check_state(x)
    if not (math.isfinite(t) and math.isfinite(h)):
        raise ValueError(f"ode_step needs a finite time and step, got t={t} and h={h}")
    return advance(widened(rhs, x), t, wide(x), h, method).to(x.dtype)


def advance(rhs: RightHandSide, t: float, x: Tensor, h: float, method: str) -> Tensor:
    """`ode_step` without its checks, for loops; rhs comes from `widened`."""
    if method in IMPLICIT:
        return newton_step(rhs, t, x, h, IMPLICIT[method])
    return weighted(x, h, TABLEAUS[method].weights, stages(rhs, t, x, h, TABLEAUS[method]))


def stages(
    rhs: RightHandSide, t: float, x: Tensor, h: float, tableau: Tableau, first: Tensor | None = None
) -> list[Tensor]:
    """The slopes k_i of eq. (2); `first` is k_1 where it is known already."""
    slopes: list[Tensor] = []
    for node, row in zip(tableau.nodes, tableau.rows, strict=True):
        known = first if not slopes else None
        slopes.append(rhs(t + node * h, weighted(x, h, row, slopes)) if known is None else known)
    return slopes


def weighted(x: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h sum_i weights_i slopes_i; slopes beyond the weights count nothing."""
    for weight, slope in zip(weights, slopes, strict=False):
        if weight:
            x = torch.add(x, slope, alpha=h * weight)  # eq. (2)
    return x


def newton_step(rhs: RightHandSide, t: float, x: Tensor, h: float, implicit_weight: float) -> Tensor:
    """The root of eq. (6), with the gradient of the root."""
    later = t + h
    known = x if implicit_weight == 1.0 else torch.add(x, rhs(t, x), alpha=h * (1.0 - implicit_weight))
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    y, solved = x.detach(), torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)
    size = 64 * torch.finfo(x.dtype).eps
    for _ in range(NEWTON_STEPS):
        matrix = eye - (h * implicit_weight) * row_jacobian(rhs, later, y)
        with torch.no_grad():
            g = torch.sub(y, torch.add(known, rhs(later, y), alpha=h * implicit_weight)).detach()
            move = torch.linalg.solve_ex(matrix, g[..., None])[0][..., 0]
            solved = (move.abs() <= size * (1.0 + y.abs())).all(-1)
            y = y - move  # eq. (6)
        if bool((solved | ~y.isfinite().all(-1)).all()):
            break
    matrix = eye - (h * implicit_weight) * row_jacobian(rhs, later, y)
    g = y - torch.add(known, rhs(later, y), alpha=h * implicit_weight)
    root = y - torch.linalg.solve_ex(matrix, g[..., None])[0][..., 0]
    return torch.where(solved[..., None], root, torch.nan)


def row_jacobian(rhs: RightHandSide, t: float, y: Tensor) -> Tensor:
    """df_i/dy_j of every row, (..., d, d), a constant."""
    with torch.inference_mode(False), torch.enable_grad():
        y = y.detach().clone().requires_grad_()
        slope = rhs(t, y)
        if not slope.requires_grad:  # f does not depend on x
            return torch.zeros(*y.shape, y.shape[-1], dtype=y.dtype, device=y.device)
        rows = [
            torch.autograd.grad(slope[..., i].sum(), y, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for i in range(y.shape[-1])
        ]
    return torch.stack(rows, dim=-2).detach()


def widened(rhs: RightHandSide, x: Tensor) -> RightHandSide:
    """f that is given states in the dtype of x and answers in float32 or better, in their shape."""
    dtype, wider = x.dtype, wide_dtype(x)

    def checked(t: float, state: Tensor) -> Tensor:
        slope = rhs(t, state.to(dtype))
        if slope.shape != state.shape:
            raise ValueError(
                f"rhs(t, x) must answer in the shape of x, {tuple(state.shape)}; got {tuple(slope.shape)}. Parameters "
                "of each row need the axes of x before the last one"
            )
        return slope.to(wider)

    return checked


def check_method(method: str) -> None:
    """Refuse a rule that is not there."""
    if method not in ODE_METHODS:
        raise ValueError(f"method must be one of {', '.join(ODE_METHODS)}; got {method!r}")


def check_state(x: Tensor) -> None:
    """Refuse what is no state."""
    if x.ndim < 1 or not x.is_floating_point():
        raise ValueError(
            f"a state must be a float tensor (..., d), got {x.dtype} {tuple(x.shape)}; one number is torch.tensor([x])"
        )
