r"""Compiled sweeps of `danlu.optim.adafactor` over float32 matrices on the CPU, each number read once a sweep.

    rows_i = sum_j G_ij^2,   cols_j = sum_i G_ij^2                                                            (1)
    u_i = sum_j G_ij^2 w_j,   |X|^2                                                                           (2)
    X_ij <- k X_ij - l_i G_ij r_j                                                                             (3)

Rows are summed in float32 by several partial sums, columns in float32 over 64 rows and in float64 beyond. One call is
one thread's work and runs without the GIL; callers give whole tensors to threads, whose number then changes no bit.

Source: the equations are Adafactor's, the arrangement is ours. Shapes: E matrices of m x n.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from danlu.math._machine_code import with_own_files

__all__ = ["move", "square_sums", "weighted_sums"]

ROWS = 64  # that a column sums in float32


def square_sums(g: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. (1): (E, m) and (E, n)."""
    rows, cols = g.new_empty(g.shape[:2]), torch.zeros(len(g), g.shape[2], dtype=torch.float64)
    _square_sums(g.detach().numpy(), rows.numpy(), cols.numpy())
    return rows, cols.to(g.dtype)


def weighted_sums(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. (2): (E, m) for weights (E, n), and the sum of squares of x."""
    rows = g.new_empty(g.shape[:2])
    total = _weighted_sums(g.detach().numpy(), x.detach().numpy(), weight.numpy(), rows.numpy())
    return rows, g.new_tensor(total)


def move(x: Tensor, g: Tensor, left: Tensor, right: Tensor, keep: float) -> None:
    """Eq. (3) in place, for left (E, m) and right (E, n)."""
    _move(x.detach().numpy(), g.detach().numpy(), left.numpy(), right.numpy(), np.float32(keep))
    torch.autograd.graph.increment_version(x)  # autograd notices, as it does when torch writes


def _compile(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile for one type of numbers; the machine code is kept on disk where there is a folder for it."""
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz"}, "error_model": "numpy"}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(signature, cache=True, **options)(with_own_files(function, np.float32))
        except (RuntimeError, OSError, EOFError):  # no folder, a full disk or a damaged cache
            return numba.njit(signature, **options)(function)

    return decorate


MATRICES, ROW, DOUBLE = "float32[:,:,::1]", "float32[:,::1]", "float64[:,::1]"


@_compile(f"void({MATRICES}, {ROW}, {DOUBLE})")
def _square_sums(g, rows, cols):  # type: ignore[no-untyped-def]
    e_size, m, n = g.shape
    part = np.zeros(n, dtype=np.float32)
    for e in range(e_size):
        for i in range(m):
            total = np.float32(0)
            for j in range(n):
                square = g[e, i, j] * g[e, i, j]
                total += square
                part[j] += square
            rows[e, i] = total  # eq. (1)
            if i % ROWS == ROWS - 1 or i == m - 1:
                for j in range(n):
                    cols[e, j] += part[j]  # eq. (1)
                    part[j] = np.float32(0)


@_compile(f"float64({MATRICES}, {MATRICES}, {ROW}, {ROW})")
def _weighted_sums(g, x, weight, rows):  # type: ignore[no-untyped-def]
    e_size, m, n = g.shape
    squares = 0.0
    for e in range(e_size):
        for i in range(m):
            total, size = np.float32(0), np.float32(0)
            for j in range(n):
                total += g[e, i, j] * g[e, i, j] * weight[e, j]  # eq. (2)
                size += x[e, i, j] * x[e, i, j]
            rows[e, i] = total
            squares += np.float64(size)  # eq. (2)
    return squares


@_compile(f"void({MATRICES}, {MATRICES}, {ROW}, {ROW}, float32)")
def _move(x, g, left, right, keep):  # type: ignore[no-untyped-def]
    e_size, m, n = g.shape
    for e in range(e_size):
        for i in range(m):
            factor = left[e, i]
            for j in range(n):
                x[e, i, j] = keep * x[e, i, j] - factor * (g[e, i, j] * right[e, j])  # eq. (3)
