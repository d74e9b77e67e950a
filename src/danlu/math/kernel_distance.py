r"""The kernel distance of two sets of features: the squared maximum mean discrepancy, unbiased, with its error.

    k(x, y) = (gamma x . y + coef)^degree                                                                      (1)
    d = mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 mean over i, j of k(x_i, y_j)    (2)
    d_-i - d = -2 (r_i - mean r) / ((n-1)(n-2)) + 2 (c_i - mean c) / ((n-1) m),
               r_i = sum over j != i of k(x_i, x_j),   c_i = sum over j of k(x_i, y_j)                         (3)
    se^2 = (n-1)/n sum over i of (d_-i - d)^2 + the same of y                                                  (4)
    blocks:  d = mean_b d_b,   se^2 = var d_b / B                                                              (5)

E d = |mean of phi(x) - mean of phi(y)|^2 for the feature map phi of k, whatever n and m: no floor, unlike the Frechet
distance, and therefore also negative values where the laws are alike. The cubic kernel with gamma = 1/D, coef = 1 sees
the first three moments and nothing else. The scale of the features enters to the sixth power: standardise them first.

(3) gives the jackknife's error (4) from sums that (2) needs anyway; it errs on the large side. (5), on disjoint blocks,
costs n rather than n^2 and gives an honest error even for equal laws, for a wider one. The deviation over overlapping
subsets, often printed beside this distance, is no error of it.

Source: Gretton et al., 2012, A kernel two-sample test (2); Binkowski et al., 2018, arXiv:1801.01401, the cubic kernel;
Zaremba, Gretton and Blaschko, 2013, arXiv:1307.1954 (5); (3) follows from (2).
Shapes: n, m vectors of D features; B blocks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from danlu.math.feature_sets import feature_pair
from danlu.math.gaussian_support import shared_dtype

__all__ = ["KernelEstimate", "kernel_distance", "kernel_estimate"]

AT_ONCE = 2**22  # values of the kernel held at a time


class KernelEstimate(NamedTuple):
    """A kernel distance and its standard error, scalars without a graph; of how many blocks, 1 for all at once."""

    value: Tensor
    standard_error: Tensor
    num_blocks: int


def kernel_distance(
    real: Tensor, fake: Tensor, degree: int = 3, gamma: float | None = None, coef: float = 1.0
) -> Tensor:
    """The unbiased squared maximum mean discrepancy under a polynomial kernel, eq. (2), with gradient.

    Without a graph a strip of the kernel is held at a time; with one, all of it stays until the backward pass.

    Args:
        real: (N, D), any float dtype, N >= 2.
        fake: (M, D), M >= 2.
        degree: of eq. (1), >= 1.
        gamma: of eq. (1), > 0; None for 1 / D.
        coef: of eq. (1), >= 0.

    Returns:
        Scalar, float32 or better; may be negative.

    Raises:
        ValueError: fewer than two vectors, different numbers of features, numbers out of range, features that are not
            finite or whose kernel overflows.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> kernel_distance(x, x + 1, degree=1)  # the mean of products x x' is 0, y y' 2, x y 3/4: 0 + 2 - 3/2, the 1s off
    tensor(0.5000)
    """
    x, y = _checked("kernel_distance", real, fake, 2, degree, gamma, coef)
    return _value(*_sums(x, y, degree, gamma, coef)).to(shared_dtype(real, fake))


@torch.no_grad()
def kernel_estimate(
    real: Tensor,
    fake: Tensor,
    block_size: int | None = None,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
    generator: torch.Generator | None = None,
) -> KernelEstimate:
    """The kernel distance with its standard error, of all pairs by eq. (4) or of disjoint blocks by eq. (5).

    Args:
        real: (N, D), any float dtype, N >= 3; rows must be independent of each other.
        fake: (M, D), M >= 3.
        block_size: vectors of either set in a block, >= 2; what does not fill a block is left out. None for all pairs.
        degree: of eq. (1), >= 1.
        gamma: of eq. (1), > 0; None for 1 / D.
        coef: of eq. (1), >= 0.
        generator: for the blocks, on the CPU; all pairs need none.

    Returns:
        The estimate, float32 or better.

    Raises:
        ValueError: fewer than two blocks, or what `kernel_distance` refuses.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> kernel_estimate(x, x, degree=1).value  # x x' is 2/3 on average, x y is 1: 2/3 + 2/3 - 2
    tensor(-0.6667)
    """
    x, y = _checked("kernel_estimate", real, fake, 3, degree, gamma, coef)
    dtype = shared_dtype(real, fake)
    if block_size is None:
        own_x, own_y, cross_x, cross_y = _sums(x, y, degree, gamma, coef)
        value = _value(own_x, own_y, cross_x, cross_y)
        variance = _variance(own_x, cross_x, len(y)) + _variance(own_y, cross_y, len(x))  # eq. (4)
        return KernelEstimate(value.to(dtype), variance.sqrt().to(dtype), 1)
    blocks = min(len(x), len(y)) // max(block_size, 1)
    if block_size < 2 or blocks < 2:
        raise ValueError(
            f"kernel_estimate needs block_size >= 2 and at least two blocks; got block_size={block_size} for {len(x)} "
            f"and {len(y)} vectors. block_size=None takes all pairs"
        )
    order_x, order_y = (torch.randperm(len(s), generator=generator).to(s.device) for s in (x, y))
    values = torch.stack(
        [
            _value(*_sums(x[a], y[b], degree, gamma, coef))
            for a, b in zip(order_x.split(block_size)[:blocks], order_y.split(block_size)[:blocks], strict=True)
        ]
    )
    return KernelEstimate(values.mean().to(dtype), (values.std() / blocks**0.5).to(dtype), blocks)  # eq. (5)


def _checked(
    name: str, real: Tensor, fake: Tensor, least: int, degree: int, gamma: float | None, coef: float
) -> tuple[Tensor, Tensor]:
    if degree < 1 or (gamma is not None and not gamma > 0) or not coef >= 0:
        raise ValueError(
            f"{name} needs degree >= 1, gamma > 0 (None for 1 / D) and coef >= 0, or (1) is no kernel; got "
            f"degree={degree}, gamma={gamma} and coef={coef}"
        )
    return feature_pair(name, real, fake, least, least)


def _sums(x: Tensor, y: Tensor, degree: int, gamma: float | None, coef: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """r of x (N,), r of y (M,), c of x (N,) and c of y (M,), eq. (3)."""
    gamma = 1 / x.shape[1] if gamma is None else gamma

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (gamma * (a @ b.mT) + coef) ** degree  # eq. (1)

    def own(s: Tensor) -> Tensor:
        rows, start = [], 0
        places = torch.arange(len(s), device=s.device)
        for part in s.split(max(1, AT_ONCE // len(s))):
            itself = places[start : start + len(part), None] == places  # (n, N)
            rows.append(kernel(part, s).masked_fill(itself, 0.0).sum(1))
            start += len(part)
        return torch.cat(rows)

    cross_x, cross_y = [], torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for part in x.split(max(1, AT_ONCE // len(y))):
        values = kernel(part, y)
        cross_x.append(values.sum(1))
        cross_y = cross_y + values.sum(0)
    return own(x), own(y), torch.cat(cross_x), cross_y


def _value(own_x: Tensor, own_y: Tensor, cross_x: Tensor, cross_y: Tensor) -> Tensor:
    n, m = len(own_x), len(own_y)
    value = own_x.sum() / (n * (n - 1)) + own_y.sum() / (m * (m - 1)) - 2 * cross_x.sum() / (n * m)  # eq. (2)
    if not bool(value.isfinite()):
        raise ValueError(
            "the kernel of these features overflows float64: their scale enters it to twice the degree. Standardise "
            "them, for instance by mean and deviation of the real ones"
        )
    return value


def _variance(own: Tensor, cross: Tensor, others: int) -> Tensor:
    n = len(own)
    moved = -2 * (own - own.mean()) / ((n - 1) * (n - 2)) + 2 * (cross - cross.mean()) / ((n - 1) * others)  # eq. (3)
    return (n - 1) / n * moved.square().sum()
