r"""The solution of dx/dt = f(t, x) at given times, by steps of a fixed length or of a length the error decides.

    fixed      n = ceil(|t_{i+1} - t_i| / step) equal steps between two times: every time is met exactly     (1)
    adaptive   error = max over rows of  sqrt(mean_j (e_j / (atol + rtol max(|x_j|, |x'_j|)))^2)             (2)
               a step with error <= 1 is taken;   h <- h min(10, max(0.2, 0.9 error^(-1/5)))                 (3)

e is the difference of the two embedded orders of Dormand and Prince (`danlu.math.ode_steps`). Steps end at the times
asked for; nothing is interpolated, so an adaptive value depends on the other times only within the tolerance. The
gradient is that of the steps taken, their lengths held constant: back-propagation through all of them, memory grows
with their number. One length serves all rows of a batch.

Fixed steps give what they give: a step too long for the equation ends in huge numbers, inf or nan, in the rows it
concerns. The adaptive rule gives up with an error that names time, row and state.

Source: Dormand and Prince, 1980, doi:10.1016/0771-050X(80)90013-3; first length: Hairer, Norsett and Wanner, 1993,
Solving Ordinary Differential Equations I, II.4; kexue.fm/archives/5643 (fixed Euler steps as a recurrent network).
Shapes: T times, x0 (..., d).
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.math.ode_steps import TABLEAUS, RightHandSide, advance, check_method, check_state, stages, weighted, widened
from danlu.math.precision import wide

__all__ = ["solve_ode"]

GROW, SHRINK, SAFETY = 10.0, 0.2, 0.9


def solve_ode(
    rhs: RightHandSide,
    x0: Tensor,
    times: Sequence[float] | Tensor,
    method: str = "rk4",
    step: float | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    max_steps: int = 100_000,
) -> Tensor:
    """The states at the times, the first of which is the time of x0.

    Args:
        rhs: f(t, x) -> dx/dt in the shape of x; t is a Python float.
        x0: (..., d) floats, the state at times[0].
        times: (T,) finite, all rising or all falling; a time may stand twice.
        method: one of `danlu.math.ODE_METHODS`.
        step: longest step, > 0, eq. (1); None: one step between two times, and for "dopri5" steps by error, eq. (2).
        rtol: relative tolerance of the adaptive rule.
        atol: absolute tolerance of the adaptive rule, in the unit of x.
        max_steps: how many steps, tried ones included, may be made in all.

    Returns:
        (T, ..., d), the dtype of x0; the first is x0.

    Raises:
        ValueError: no times, times out of order, an unknown method, a bad step or tolerance, or more than max_steps
            fixed steps.
        RuntimeError: the adaptive rule ran out of steps, or its step out of digits.

    >>> solve_ode(lambda t, x: -x, torch.ones(1), [0.0, 1.0, 2.0], "euler", step=0.5)[:, 0]  # halved at each step
    tensor([1.0000, 0.2500, 0.0625])
    """
    check_method(method)
    check_state(x0)
    moments = [float(t) for t in (times.tolist() if isinstance(times, Tensor) else times)]
    check_times(moments)
    if step is not None and not (math.isfinite(step) and step > 0):
        raise ValueError(f"step must be > 0, got {step}; its sign follows the times")
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0) or max_steps < 1:
        raise ValueError(
            f"needs rtol, atol >= 0 and not both 0, max_steps >= 1; got rtol={rtol}, atol={atol}, max_steps={max_steps}"
        )
    f, x = widened(rhs, x0), wide(x0)
    if method == "dopri5" and step is None and x0.numel():
        found = adaptive(f, x, moments, rtol, atol, max_steps)
    else:
        found = fixed(f, x, moments, method, step, max_steps)
    return torch.stack(found).to(x0.dtype)


def fixed(
    rhs: RightHandSide, x: Tensor, moments: list[float], method: str, step: float | None, max_steps: int
) -> list[Tensor]:
    """The states at the times by eq. (1)."""
    counts = [1 if step is None else math.ceil(abs(b - a) / step - 1e-9) for a, b in itertools.pairwise(moments)]
    if sum(counts) > max_steps:
        raise ValueError(f"{sum(counts)} steps of {step} are more than max_steps={max_steps}; take a longer step")
    found = [x]
    for (start, end), count in zip(itertools.pairwise(moments), counts, strict=True):
        if end != start:
            count = max(count, 1)
            h = (end - start) / count
            for i in range(count):
                x = advance(rhs, start + i * h, x, h, method)
        found.append(x)
    return found


def adaptive(
    rhs: RightHandSide, x: Tensor, moments: list[float], rtol: float, atol: float, max_steps: int
) -> list[Tensor]:
    """The states at the times by eqs. (2) and (3)."""
    tableau, tried = TABLEAUS["dopri5"], 0
    t, found = moments[0], [x]
    slope = rhs(t, x)
    length = first_length(rhs, t, x, slope, moments[-1], rtol, atol)
    for end in moments[1:]:
        while t != end:
            limit = 16 * torch.finfo(x.dtype).eps * max(abs(t), abs(end))
            last = length >= abs(end - t)
            h = end - t if last else math.copysign(length, end - t)
            slopes = stages(rhs, t, x, h, tableau, slope)
            new = weighted(x, h, tableau.weights, slopes)
            size, worst = scaled_error(weighted(torch.zeros_like(x), h, tableau.error, slopes), x, new, rtol, atol)
            tried += 1
            if size <= 1.0:
                x, slope, t = new, slopes[-1], end if last else t + h
                longer = min(GROW, max(SHRINK, SAFETY * size**-0.2)) if size else GROW
                length = max(length, abs(h) * longer) if last else length * longer  # eq. (3)
                if t == end:
                    break
            else:  # nan too
                length = abs(h) * (max(SHRINK, SAFETY * size**-0.2) if math.isfinite(size) else SHRINK)
            if tried >= max_steps or length < limit:
                reason = f"{tried} steps" if tried >= max_steps else f"a step of {length:.1e}"
                raise RuntimeError(
                    f"the equation could not be solved beyond t={t:.6g} within {reason}: row {worst[0]}, state "
                    f"{worst[1]} (of {x.shape[-1]}) has {x.detach().reshape(-1, x.shape[-1])[worst].item():.4g}. It is "
                    "stiff or blows up there: check the parameters, or take method='trapezoid' with a step"
                )
        found.append(x)
    return found


@torch.no_grad()
def scaled_error(error: Tensor, x: Tensor, new: Tensor, rtol: float, atol: float) -> tuple[float, tuple[int, int]]:
    """Eq. (2), nan where anything is not finite, and the row and state that err most."""
    ratio = error.abs() / (atol + rtol * torch.maximum(x.abs(), new.abs())).clamp_min(torch.finfo(x.dtype).tiny)
    ratio = torch.where(new.isfinite(), ratio, torch.nan).reshape(-1, x.shape[-1])
    place = int(ratio.nan_to_num(torch.inf).argmax())
    size = float(ratio.square().mean(-1).sqrt().max())  # eq. (2)
    return size, (place // x.shape[-1], place % x.shape[-1])


@torch.no_grad()
def first_length(rhs: RightHandSide, t: float, x: Tensor, slope: Tensor, end: float, rtol: float, atol: float) -> float:
    """A first step that Euler's rule would make with a small error."""
    if t == end:
        return 0.0
    scale = (atol + rtol * x.abs()).clamp_min(torch.finfo(x.dtype).tiny)

    def norm(values: Tensor) -> float:
        return float((values / scale).square().mean(-1).sqrt().max())

    d0, d1 = norm(x), norm(slope)
    guess = 1e-6 if not (d0 > 1e-5 and d1 > 1e-5) else 0.01 * d0 / d1
    guess = min(guess, abs(end - t)) if math.isfinite(guess) and guess > 0 else 1e-6 * abs(end - t)
    h = math.copysign(guess, end - t)
    d2 = norm(rhs(t + h, x + h * slope) - slope) / guess
    most = max(d1, d2)
    if not math.isfinite(most):
        return guess
    second = max(1e-6, guess * 1e-3) if most <= 1e-15 else (0.01 / most) ** 0.2
    return min(100 * guess, second, abs(end - t))


def check_times(moments: list[float]) -> None:
    """Refuse times that no solution runs through."""
    if not moments or not all(map(math.isfinite, moments)):
        raise ValueError(f"times must be finite and at least one, the first that of x0; got {moments[:8]}")
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    if any(g < 0 for g in gaps) and any(g > 0 for g in gaps):
        place = next(i for i, g in enumerate(gaps) if g * (moments[-1] - moments[0]) < 0 or moments[-1] == moments[0])
        raise ValueError(
            f"times must all rise or all fall; got {moments[place]} and then {moments[place + 1]}. Sort them, and the "
            "observations with them"
        )
