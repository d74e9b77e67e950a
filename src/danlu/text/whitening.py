r"""BERT-whitening: the linear map that makes a set of vectors isotropic, so that their cosines mean something.

    Sigma = mean_i (x_i - beta mu)^T (x_i - beta mu) = covariance + (1 - beta)^2 mu^T mu                      (1)
    Sigma = U Lambda U^T,   Lambda descending                                                                 (2)
    K = U (Lambda + r lambda_1)^{-gamma / 2}, its first k columns                                             (3)
    y = (x - beta mu) K = x K + b,   b = -beta mu K                                                           (4)

beta = gamma = 1 is BERT-whitening: the vectors it was fitted on get covariance 1, and cosines no longer depend on the
coordinates the encoder happened to use (any x T + t gives the same ones, if k is all). beta = gamma = 0 only rotates:
cosines stay, and k < D is a cheap reduction for encoders that were trained for similarity, which whitening hurts. What
lies between is for a development set to say (`choose_whitening`). r lifts small eigenvalues where N is less than about
10 D. (4) is computed as (x - c) K + (c - beta mu) K with c = beta mu rounded to the dtype of x: x K + b subtracts two
large numbers where the mean is large. The divisor of the covariance, N or N - 1, changes no cosine.

The original divides by the root of every eigenvalue, 0 too. Here only directions with lambda_i > eps lambda_1 count as
rank, and asking for more is an error. A column of U is known up to its sign: its largest entry is made positive.

Source: Su et al., 2021, arXiv:2103.15316; kexue.fm/archives/8069; beta and gamma: kexue.fm/archives/9079.
Shapes: D features, k kept dimensions.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.precision import wide_dtype

__all__ = ["Axes", "participation_ratio", "principal_axes", "whiten", "whitening"]


class Axes(NamedTuple):
    """Eigenvalues (D,) in descending order, none negative, and eigenvectors (D, D) in columns, float64, eq. (2)."""

    values: Tensor
    vectors: Tensor


def whitening(
    mean: Tensor,
    covariance: Tensor,
    dim: int | float | str | None = None,
    beta: float = 1.0,
    gamma: float = 1.0,
    ridge: float = 0.0,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the map x K + b, eqs. (1) to (4).

    Args:
        mean: (D,) of the vectors, such as `danlu.math.moments(x).mean`.
        covariance: (D, D) about that mean.
        dim: k; a float in (0, 1): as few as hold that share of the variance; "participation": the participation ratio
            of the eigenvalues, rounded up; None: all that have variance (all D where gamma is 0 or ridge > eps).
        beta: share of the mean that is subtracted.
        gamma: how much of the scales is evened out, >= 0.
        ridge: r, in units of the largest eigenvalue, >= 0.
        eps: eigenvalues up to eps times the largest count as 0; None: 1e-9, or 1e-6 for a covariance that is not
            float64.

    Returns:
        kernel (D, k) and bias (k,), computed in float64 and returned in the dtype of the covariance, without a graph.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite or no covariance, an option out of its range, a
            dim above the rank.

    >>> kernel, bias = whitening(torch.tensor([1.0, 2.0]), torch.diag(torch.tensor([4.0, 0.25])))
    >>> kernel, bias  # (x - 1) / 2 and (y - 2) / 0.5
    (tensor([[0.5000, 0.0000],
            [0.0000, 2.0000]]), tensor([-0.5000, -4.0000]))
    """
    axes = principal_axes(mean, covariance, beta)
    kernel = kernel_of(axes, dim, gamma, ridge, default_eps(covariance.dtype) if eps is None else eps)
    bias = -beta * mean.detach().double() @ kernel  # eq. (4)
    return kernel.to(covariance.dtype), bias.to(covariance.dtype)


@torch.no_grad()
def principal_axes(mean: Tensor, covariance: Tensor, beta: float = 1.0) -> Axes:
    """Eigenvalues and eigenvectors of eq. (1), the sign of each fixed.

    Args:
        mean: (D,) of the vectors.
        covariance: (D, D) about it; the half-sum with its transpose is used.
        beta: share of the mean that will be subtracted.

    Returns:
        Axes.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, a clearly negative eigenvalue.

    >>> principal_axes(torch.zeros(2), torch.tensor([[1.0, 0.0], [0.0, 9.0]])).values
    tensor([9., 1.], dtype=torch.float64)
    """
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"whitening needs a mean (D,) and a covariance (D, D); got {tuple(mean.shape)} and "
            f"{tuple(covariance.shape)}"
        )
    if not math.isfinite(beta):
        raise ValueError(f"beta must be a finite number, got {beta}; 1 subtracts the mean, 0 leaves it")
    mean, sigma = mean.double(), covariance.double()
    sigma = (sigma + sigma.mT) / 2 + (1 - beta) ** 2 * torch.outer(mean, mean)  # eq. (1)
    if not bool(sigma.isfinite().all() & mean.isfinite().all()):
        raise ValueError("mean and covariance must be finite; danlu.math.moments names the vector that is not")
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(sigma))  # eq. (2)
    if values[-1] < -1e-5 * values.abs().max():
        raise ValueError(
            f"this is no covariance: eigenvalues reach from {values[-1].item():.3g} to {values[0].item():.3g}; compute "
            "it with danlu.math.moments, which stays clear of cancellation"
        )
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))  # (1, D)
    return Axes(values.clamp_min(0), vectors * largest.sign())


def whiten(x: Tensor, kernel: Tensor, center: Tensor, normalize: bool = False) -> Tensor:
    """(x - center) K, eq. (4), without cancellation in the dtype of x; differentiable in x.

    Args:
        x: (..., D) floats; what is below float32 is computed in float32. A vector with nan gives nan alone.
        kernel: (D, k), best in float64.
        center: (D,) beta mu, best in float64.
        normalize: bring every result to length 1 (0 stays 0).

    Returns:
        (..., k) in the dtype of x.

    Raises:
        ValueError: x is not of floats, or shapes that do not fit.

    >>> whiten(torch.tensor([[3.0, 2.0]]), torch.tensor([[0.5], [0.0]]), torch.tensor([1.0, 2.0]))
    tensor([[1.]])
    """
    if kernel.ndim != 2 or center.shape != kernel.shape[:1] or x.shape[-1:] != kernel.shape[:1]:
        raise ValueError(
            f"whiten needs x (..., D), kernel (D, k) and center (D,); got {tuple(x.shape)}, {tuple(kernel.shape)} and "
            f"{tuple(center.shape)}"
        )
    if not x.is_floating_point():
        raise ValueError(f"whiten needs floats, got {x.dtype}; write x.float()")
    wide = wide_dtype(x)
    near = center.to(wide)
    with torch.autocast(x.device.type, enabled=False):
        rest = (near.double() - center.double()) @ kernel.double()  # (k,)
        y = (x.to(wide) - near) @ kernel.to(wide) + rest.to(wide)  # (..., k)  eq. (4)
        return (F.normalize(y, dim=-1, eps=torch.finfo(wide).tiny) if normalize else y).to(x.dtype)


def participation_ratio(eigenvalues: Tensor) -> float:
    """How many directions carry the variance: (sum lambda)^2 / sum lambda^2.

    Args:
        eigenvalues: (D,) none negative.

    Returns:
        Between 1 (one direction) and D (isotropic); 0 where all are 0.

    >>> participation_ratio(torch.tensor([2.0, 2.0, 0.0]))
    2.0
    """
    if not bool((eigenvalues > 0).any()):
        return 0.0
    share = eigenvalues.double() / eigenvalues.double().max()  # so that no square under- or overflows
    return (share.sum() ** 2 / share.square().sum()).item()


def kernel_of(
    axes: Axes, dim: int | float | str | None = None, gamma: float = 1.0, ridge: float = 0.0, eps: float = 1e-9
) -> Tensor:
    """K of eq. (3), (D, k) float64.

    Args:
        axes: from `principal_axes`.
        dim: as of `whitening`.
        gamma: as of `whitening`.
        ridge: as of `whitening`.
        eps: as of `whitening`.

    Raises:
        ValueError: an option out of its range, a dim above the rank, no variance at all.
    """
    for name, value in (("gamma", gamma), ("ridge", ridge), ("eps", eps)):
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a finite number >= 0, got {value}")
    values = axes.values + ridge * axes.values[0]  # (D,)
    rank = len(values) if gamma == 0 else int((values > eps * values[0]).sum())
    if not rank:
        raise ValueError(
            "whitening needs vectors that differ, these have no variance at all; fit on at least two different ones"
        )
    k = dimensions(axes.values, dim, rank, eps)
    return axes.vectors[:, :k] * values[:k] ** (-gamma / 2)  # eq. (3)


def dimensions(values: Tensor, dim: int | float | str | None, rank: int, eps: float) -> int:
    """The k that `dim` of `whitening` means for eigenvalues (D,) of which `rank` may be used."""
    if dim is None:
        return rank
    if dim == "participation":
        return min(rank, max(1, math.ceil(participation_ratio(values) - 1e-9)))
    if isinstance(dim, float) and 0 < dim < 1:
        held = values.cumsum(0)
        return min(rank, int((held < dim * held[-1]).sum()) + 1)
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise ValueError(
            "dim must be a whole number of at least 1, a share of the variance in (0, 1), 'participation' or None, "
            f"got {dim!r}"
        )
    if dim > len(values):
        raise ValueError(f"dim is {dim}, the vectors have {len(values)} features; whitening cannot add any")
    if dim > rank:
        raise ValueError(
            f"dim is {dim}, but only {rank} of {len(values)} directions have an eigenvalue above {eps:g} of the "
            f"largest; give dim <= {rank} or None, more vectors, or ridge=1e-3, which keeps the others without "
            "blowing them up"
        )
    return dim


def default_eps(products: torch.dtype) -> float:
    """What counts as 0 beside the largest eigenvalue of a covariance that was computed in this dtype."""
    return 1e-9 if products == torch.float64 else 1e-6
