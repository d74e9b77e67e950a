r"""Correlation of two lists of numbers: Pearson's of the numbers, Spearman's of their ranks.

    r   = sum_i (x_i - mean x)(y_i - mean y) / sqrt(sum_i (x_i - mean x)^2 sum_i (y_i - mean y)^2)      (1)
    rho = r of the ranks, equal numbers sharing the mean of theirs                                      (2)

Where one side is constant neither is defined; 0 is returned: such an answer orders nothing.

Source: Pearson, 1895; Spearman, 1904.
Shapes: N numbers.
"""

import torch
from torch import Tensor

__all__ = ["pearson", "spearman"]


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation, eq. (1).

    Args:
        x: (N,) any dtype, N >= 2.
        y: (N,).

    Returns:
        Scalar float64 in [-1, 1]; 0 where x or y is constant.

    Raises:
        ValueError: the shapes differ, or there are fewer than two numbers.

    >>> pearson(torch.tensor([1, 2, 3]), torch.tensor([2, 4, 6]))
    tensor(1., dtype=torch.float64)
    """
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(
            f"a correlation needs two lists of as many numbers, at least 2; got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    x, y = x.double(), y.double()
    if bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return torch.zeros((), dtype=torch.float64, device=x.device)
    x, y = x - x.mean(), y - y.mean()
    x, y = x / x.abs().max(), y / y.abs().max()  # so that no square under- or overflows
    return ((x @ y) / ((x @ x) * (y @ y)).sqrt()).clamp(-1, 1)  # eq. (1)


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's rank correlation, eq. (2).

    Args:
        x: (N,) any dtype, N >= 2.
        y: (N,).

    Returns:
        Scalar float64 in [-1, 1]; 0 where x or y is constant.

    Raises:
        ValueError: the shapes differ, or there are fewer than two numbers.

    >>> spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 10.0, 100.0]))
    tensor(1., dtype=torch.float64)
    """
    return pearson(_ranks(x), _ranks(y)) if x.ndim == y.ndim == 1 else pearson(x, y)


def _ranks(x: Tensor) -> Tensor:
    """Mean rank (N,) of every number among equal ones."""
    _, group, size = x.unique(sorted=True, return_inverse=True, return_counts=True)
    last = size.cumsum(0).double()  # rank of the last of each group, counted from 1
    return (last - (size - 1) / 2)[group]
