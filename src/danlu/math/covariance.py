r"""Covariance matrices as they come: checked, made symmetric, and factored where they may be singular.

    S = U diag(l) U^T,   F = U diag(sqrt(l)),   F F^T = S                                                      (1)

Two triangles that differ by rounding are averaged; more than that is a mistake of the caller and raises, and so is an
eigenvalue below zero by more than rounding. (1) exists for every covariance, Cholesky's factor for regular ones only.
Eigenvalues below D eps of the largest are rounding and count as 0: their roots would be as large as sqrt(eps).

Source: own definitions.
Shapes: ... any leading axes, D features.
"""

from typing import Any

import torch
from torch import Tensor

from danlu.math.precision import wide_dtype

__all__ = ["checked_covariance", "covariance_factor", "covariance_slack", "differentiable_once"]

ASYMMETRY = 1e-5  # of the largest entry, what two orders of summation leave in float32
NEGATIVE = 1e-6  # of the largest eigenvalue


def checked_covariance(name: str, covariance: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The covariance in float32 or better with two equal triangles.

    Args:
        name: of the caller's argument, for the message.
        covariance: (..., D, D), any float dtype.
        dtype: of the result; None: float32 or better.

    Returns:
        (..., D, D) symmetric, with the gradient spread evenly over both triangles.

    Raises:
        ValueError: it is not (..., D, D) of floats with D >= 1, not finite or not symmetric.

    >>> checked_covariance("covariance", torch.eye(1))
    tensor([[1.]])
    """
    shape = tuple(covariance.shape)
    if covariance.ndim < 2 or shape[-1] != shape[-2] or not shape[-1] or not covariance.is_floating_point():
        raise ValueError(
            f"{name} must be a covariance (..., D, D) of floats, D >= 1; got {shape} of {covariance.dtype}. Variances "
            "(..., D) alone: the functions that end in _diagonal, or torch.diag_embed"
        )
    s = covariance.to(dtype or wide_dtype(covariance))
    with torch.no_grad():
        gap, size = (s - s.mT).abs().amax((-2, -1)), s.abs().amax((-2, -1))  # (...)
        allowed = max(ASYMMETRY, 4 * torch.finfo(covariance.dtype).eps)
        if not bool((gap <= allowed * size).all()):  # false for nan too
            if not bool(s.isfinite().all()):
                raise ValueError(f"{name} must be finite; it holds nan or an infinity")
            raise ValueError(
                f"{name} must be symmetric; two mirrored entries differ by {gap.max().item():.3g} where rounding "
                f"allows {allowed:.1g} of the largest entry. A triangular factor L is passed as L @ L.mT"
            )
    return (s + s.mT) / 2 if s.requires_grad or bool(gap.any()) else s


def covariance_slack(covariance: Tensor) -> float:
    """How far below zero an eigenvalue may lie for rounding's sake, as a share of the largest.

    Args:
        covariance: (..., D, D) in the dtype its entries were rounded to.

    Returns:
        A number > 0.

    >>> covariance_slack(torch.eye(2, dtype=torch.float64))
    1e-06
    """
    return max(NEGATIVE, 4 * covariance.shape[-1] * torch.finfo(covariance.dtype).eps)


@torch.no_grad()
def covariance_factor(name: str, covariance: Tensor, slack: float = NEGATIVE) -> tuple[Tensor, Tensor]:
    """The eigenvectors and the roots of the eigenvalues, eq. (1); F is the product of the two.

    Args:
        name: of the caller's argument, for the message.
        covariance: (..., D, D) symmetric, float32 or better.
        slack: share of the largest eigenvalue up to which a negative one counts as 0.

    Returns:
        U (..., D, D) and sqrt(l) (..., D), ascending, 0 where l is rounding, without a graph.

    Raises:
        ValueError: an eigenvalue is negative.

    >>> covariance_factor("covariance", torch.tensor([[4.0]]))[1]
    tensor([2.])
    """
    values, vectors = torch.linalg.eigh(covariance)
    size = values.abs().amax(-1)
    bad = values[..., 0] < -slack * size
    if bool(bad.any()):
        worst = values[..., 0].min().item()
        raise ValueError(
            f"{name} must have no negative eigenvalue, got {worst:.4g}; no data have such a covariance: look at how it "
            "was estimated, or learn a factor F and pass F @ F.mT"
        )
    rounding = values <= values.shape[-1] * torch.finfo(values.dtype).eps * size[..., None]
    return vectors, values.masked_fill(rounding, 0.0).sqrt()  # eq. (1)


def differentiable_once(name: str, grad: Tensor, *sources: Tensor) -> Tensor:
    """A gradient that says so when it is differentiated again, instead of passing for a constant.

    Args:
        name: of the function it is the gradient of, for the message.
        grad: any shape, the gradient.
        *sources: the tensors it was computed from.

    Returns:
        The same numbers.

    >>> differentiable_once("psd_sqrt", torch.ones(1), torch.ones(1))
    tensor([1.])
    """
    return _Once.apply(name, grad, *sources)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, grad: Tensor, *sources: Tensor) -> Tensor:
        ctx.name = name
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            f"{ctx.name} is differentiable once, and its gradient was differentiated; leave create_graph=True out, or "
            "detach the covariance in what needs second derivatives"
        )
