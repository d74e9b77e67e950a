r"""A learning rate drawn with a ruler: straight lines between the points {step: factor}.

    f(t) = f_i + (f_{i+1} - f_i) (t - t_i) / (t_{i+1} - t_i)      t_i <= t < t_{i+1}     (1)
    f(t) = f_last                                                 t >= t_last            (2)

(t_i, f_i) are the points of the schedule; where step 0 is not among them the line starts at (0, 0), so that
{1000: 1, 20000: 0.1} reads "warm up for 1,000 steps, then fall to a tenth". The first step of such a warm-up has
factor 0 and moves nothing; write {0: 0.001, ...} to avoid it.

Source: bojone/bert4keras, optimizers.py, extend_with_piecewise_linear_lr; kexue.fm/archives/6418.
Shapes: none; numbers in, numbers out.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping

__all__ = ["piecewise_linear"]


def piecewise_linear(schedule: Mapping[int, float]) -> Callable[[int], float]:
    """The function step -> factor through the points of the schedule, for torch.optim.lr_scheduler.LambdaLR.

    LambdaLR(optimizer, piecewise_linear({1000: 1, 20000: 0.1})) multiplies the rate of every parameter group.

    Args:
        schedule: {step: factor}, steps are whole numbers >= 0 counted in optimizer steps, factors are finite and >= 0.

    Returns:
        A function of the step (0 is the first), eqs. (1) and (2).

    Raises:
        ValueError: no points, a step that is negative or no whole number, a factor that is negative or not finite.

    >>> factor = piecewise_linear({10: 1, 20: 0.5})
    >>> factor(0), factor(5), factor(10), factor(15), factor(99)
    (0.0, 0.5, 1.0, 0.75, 0.5)
    """
    if not schedule:
        raise ValueError("piecewise_linear needs at least one {step: factor}, got {}; a constant rate is {0: 1}")
    for step, value in schedule.items():
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"a step of piecewise_linear must be a whole number >= 0, got {step!r}")
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"the factor at step {step} must be finite and >= 0, got {value!r}")
    points = sorted((step, float(value)) for step, value in schedule.items())
    if points[0][0] != 0:
        points.insert(0, (0, 0.0))
    steps = [step for step, _ in points]

    def factor(step: int) -> float:
        i = max(bisect_right(steps, step) - 1, 0)
        if i == len(points) - 1:
            return points[i][1]  # eq. (2)
        (left, low), (right, high) = points[i], points[i + 1]
        return low + (high - low) * (step - left) / (right - left)  # eq. (1)

    return factor
