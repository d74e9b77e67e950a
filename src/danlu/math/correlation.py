r"""Correlation of two lists of numbers: Pearson's of the numbers, Spearman's of their ranks, and who brings it about.

    r   = sum_i (x_i - mean x)(y_i - mean y) / sqrt(sum_i (x_i - mean x)^2 sum_i (y_i - mean y)^2)      (1)
    rho = r of the ranks, equal numbers sharing the mean of theirs                                      (2)

Where one side is constant neither is defined; 0 is returned: such an answer orders nothing.

How much a single number has to do with rho is its influence, the slope of rho as that pair gains weight. With places
u_i = (rank_i - 1/2) / N - 1/2 of x and v_i of y, and k(a, b) = 1 for a < b, 1/2 for a = b, else 0,

    T_uv = mean_i u_i v_i,    rho = T_uv / sqrt(T_uu T_vv)                                              (3)
    I_uv(e) = u_e v_e + mean_i k(x_e, x_i) v_i + mean_i k(y_e, y_i) u_i - 3 T_uv                        (4)
    I(e) = I_uv(e) / sqrt(T_uu T_vv) - rho / 2 (I_uu(e) / T_uu + I_vv(e) / T_vv)                        (5)

The influences sum to 0, and sqrt(mean_e I(e)^2 / N) is the standard error of rho, whatever the distribution, ties
included.

Source: Pearson, 1895; Spearman, 1904; influence functions: Hampel, 1974; (4), (5): own derivation.
Shapes: N numbers.
"""

import torch
from torch import Tensor

__all__ = ["pearson", "spearman", "spearman_influence"]


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


def spearman_influence(x: Tensor, y: Tensor) -> Tensor:
    """The influence of every pair of numbers on Spearman's correlation, eq. (5).

    Args:
        x: (N,) any dtype, N >= 2.
        y: (N,).

    Returns:
        (N,) float64 of sum 0; zeros where x or y is constant. sqrt of their mean square over N: the standard error.

    Raises:
        ValueError: the shapes differ, or there are fewer than two numbers.

    >>> spearman_influence(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 5.0, 5.0]))
    tensor([0., 0., 0.], dtype=torch.float64)
    """
    rho = spearman(x, y)
    n = len(x)
    u, v = ((_ranks(z) - 0.5) / n - 0.5 for z in (x, y))  # (N,) each, of mean 0
    uu, uv, vv = (u @ u) / n, (u @ v) / n, (v @ v) / n  # eq. (3)
    if not (uu > 0 and vv > 0):
        return torch.zeros_like(u)
    above_x, above_y = (_sums_above(z, torch.stack([u, v], 1)) / n for z in (x, y))  # (N, 2) each
    i_uu = u * u + 2 * above_x[:, 0] - 3 * uu
    i_vv = v * v + 2 * above_y[:, 1] - 3 * vv
    i_uv = u * v + above_x[:, 1] + above_y[:, 0] - 3 * uv  # (N,)  eq. (4)
    return i_uv / (uu * vv).sqrt() - rho / 2 * (i_uu / uu + i_vv / vv)  # eq. (5)


def _sums_above(x: Tensor, values: Tensor) -> Tensor:
    """For every number the sum of the values (N, C) that stand at greater ones, and half of those at equal ones."""
    _, group, size = x.unique(sorted=True, return_inverse=True, return_counts=True)
    own = values.new_zeros(len(size), values.shape[1]).index_add(0, group, values)  # (groups, C)
    return (own.sum(0) - own.cumsum(0) + own / 2)[group]


def _ranks(x: Tensor) -> Tensor:
    """Mean rank (N,) of every number among equal ones."""
    _, group, size = x.unique(sorted=True, return_inverse=True, return_counts=True)
    last = size.cumsum(0).double()  # rank of the last of each group, counted from 1
    return (last - (size - 1) / 2)[group]
