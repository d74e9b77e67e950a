r"""Least value of a convex quadratic over non-negative numbers, exactly: the small problem behind gradient weights.

    x = argmin over x >= 0 of  1/2 x'Ax + b'x                                                            (1)
    optimal iff  x >= 0,   Ax + b >= 0,   x_i (Ax + b)_i = 0 for all i                                   (2)

A is a Gram matrix, so that (1) is non-negative least squares without its long vectors. An active set is grown one
number at a time and solved for, until (2) holds: finitely many small linear systems, no step size, nothing to tune.
Numbers are first measured in units of sqrt(A_ii), for gradients of different tasks differ by factors of thousands.
Computed in float64 on the CPU whatever A is, by numpy: with a handful of tasks this is quicker than one launch.

Source: Lawson and Hanson, 1974, Solving Least Squares Problems, chapter 23; used for kexue.fm/archives/8907.
Shapes: K numbers.
"""

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["nonnegative_minimum"]


def nonnegative_minimum(quadratic: Tensor, linear: Tensor) -> Tensor:
    """The non-negative x at which 1/2 x'Ax + b'x is least, eq. (1); a constant for autograd.

    Args:
        quadratic: (K, K) A, symmetric and positive semidefinite, any float dtype; K up to a few dozen.
        linear: (K,) b. With A = GG' and b = Gh, x gives the point of the cone of -G's rows nearest to h.

    Returns:
        (K,) x, the dtype and device of `quadratic`. Where several x are optimal, one of them.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, or a problem without a least value.

    >>> nonnegative_minimum(torch.eye(2), torch.tensor([-3.0, 1.0]))
    tensor([3., 0.])
    """
    if quadratic.ndim != 2 or quadratic.shape[0] != quadratic.shape[1] or linear.shape != quadratic.shape[:1]:
        raise ValueError(
            f"nonnegative_minimum needs A (K, K) and b (K,); got {tuple(quadratic.shape)} and {tuple(linear.shape)}"
        )
    a, b = (t.detach().cpu().double().numpy() for t in (quadratic, linear))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("nonnegative_minimum needs finite numbers; a gradient with inf or nan has no Gram matrix")
    length = np.sqrt(np.clip(a.diagonal(), 0.0, math.inf))
    if bool((b[length == 0] < 0).any()):
        raise ValueError("1/2 x'Ax + b'x has no least value: A_ii = 0 and b_i < 0 for some i")
    used = np.flatnonzero(length)  # where A_ii = 0 the whole row is, and x_i = 0 is optimal
    unit = length[used]
    x = np.zeros(len(b))
    x[used] = solve(a[np.ix_(used, used)] / np.outer(unit, unit), b[used] / unit) / unit
    return torch.from_numpy(x).to(quadratic.device, quadratic.dtype)


def solve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Eq. (1) for a matrix with ones on its diagonal."""
    size = len(b)
    x, inside, refused = np.zeros(size), np.zeros(size, bool), np.zeros(size, bool)
    noise = 16 * max(size, 1) * np.finfo(float).eps
    for _ in range(20 * size):  # never reached but by rounding; the x of that moment is feasible
        slope = -(a @ x + b)
        slope[inside | refused | (slope <= noise * (np.abs(a) @ x + np.abs(b)))] = 0.0
        if not slope.any():
            break  # eq. (2) holds
        new = int(slope.argmax())
        inside[new] = True
        first = True
        while True:
            rows = np.flatnonzero(inside)
            s = np.zeros(size)
            s[rows] = np.linalg.lstsq(a[np.ix_(rows, rows)], -b[rows], rcond=None)[0]
            if first and s[new] <= 0:  # its slope was rounding alone
                inside[new], refused[new] = False, True
                break
            first = False
            wrong = inside & (s <= 0)
            if not wrong.any():
                x, refused = s, np.zeros(size, bool)
                break
            share = x[wrong] / (x[wrong] - s[wrong])
            x = np.where(inside, x + share.min() * (s - x), 0.0)
            inside[np.flatnonzero(wrong)[share.argmin()]] = False
            x[~inside] = 0.0
    return x
