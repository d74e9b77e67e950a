r"""Steps on the unit sphere: the tangential part of a gradient, and ways to go along it and stay on the sphere.

A row x = t / |t| of a free t has, for f with gradient G = df/dx,

    grad_t f = g / |t|,   g = (I - x x^T) G                                                               (1)
    k = 1 + x.G / |G| = 1 - cos(x, -G),   in [0, 2]; 1 where G = 0                                        (2)
    "project"   x <- (x - r g) / |x - r g|                                                                (3)
    "exp"       x <- cos(r |g|) x - sin(r |g|) g / |g|                                                    (4)

(3) is gradient descent in t with the step r |t|^2, (4) follows the great circle. The factor (2) is a heuristic: g alone
descends already. For f = -a.x with |a| = 1 and t the angle between x and a, |g| = sin t and k = 1 - cos t, so that

    (3): t <- t - atan(r k sin t),   (4): t <- t - r k sin t,   without the factor k = 1                  (5)

A plain step moves an almost opposite row as little as an almost aligned one; with (2) the opposite one goes further.

Source: kexue.fm/archives/7063; (2) Meng et al., 2019, arXiv:1911.01196.
Shapes: ... any leading axes, D features (the last axis).
"""

import torch
from torch import Tensor

__all__ = ["RETRACTIONS", "angle_factor", "retract", "tangent"]

RETRACTIONS = ("project", "exp")


def tangent(x: Tensor, grad: Tensor) -> Tensor:
    """The part of a gradient that lies in the sphere's tangent space, eq. (1).

    Args:
        x: (..., D) rows of length 1.
        grad: (..., D) gradients at x.

    Returns:
        (..., D), orthogonal to x.

    Raises:
        ValueError: the shapes differ.

    >>> tangent(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 2.0]))
    tensor([0., 2.])
    """
    _same("tangent", x, grad)
    return grad - (x * grad).sum(-1, keepdim=True) * x  # eq. (1)


def angle_factor(x: Tensor, grad: Tensor) -> Tensor:
    """One minus the cosine between a row and where its gradient pulls it, eq. (2).

    Args:
        x: (..., D) rows of length 1.
        grad: (..., D) gradients at x, of any size.

    Returns:
        (..., 1) in [0, 2]; 1 where the gradient is zero.

    Raises:
        ValueError: the shapes differ.

    >>> angle_factor(torch.tensor([1.0, 0.0]), torch.tensor([4.0, 0.0]))
    tensor([2.])
    """
    _same("angle_factor", x, grad)
    top = grad.abs().amax(-1, keepdim=True)
    scaled = grad / top.masked_fill(top == 0, 1)
    length = scaled.norm(dim=-1, keepdim=True)
    cosine = (x * scaled).sum(-1, keepdim=True) / length.masked_fill(length == 0, 1)
    return (1 + cosine).clamp(0, 2)  # eq. (2)


def retract(x: Tensor, step: Tensor, retraction: str = "project") -> Tensor:
    """Where a tangential step leads on the sphere, eq. (3) or (4).

    Args:
        x: (..., D) rows of length 1.
        step: (..., D) orthogonal to x, -r g.
        retraction: "project" or "exp".

    Returns:
        (..., D) rows of length 1; x itself where the step is zero.

    Raises:
        ValueError: the shapes differ, or the retraction is unknown.

    >>> retract(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.75]))
    tensor([0.8000, 0.6000])
    """
    _same("retract", x, step)
    if retraction not in RETRACTIONS:
        raise ValueError(f"retraction must be one of {', '.join(RETRACTIONS)}, got {retraction!r}")
    if retraction == "exp":
        angle = step.norm(dim=-1, keepdim=True)
        moved = angle.cos() * x + torch.sinc(angle / torch.pi) * step  # eq. (4)
    else:
        moved = x + step  # eq. (3)
    length = moved.norm(dim=-1, keepdim=True)
    return torch.where(step.abs().amax(-1, keepdim=True) == 0, x, moved / length)


def _same(name: str, x: Tensor, other: Tensor) -> None:
    if x.shape != other.shape or not x.ndim:
        raise ValueError(
            f"{name} needs two tensors (..., D) of one shape; got {tuple(x.shape)} and {tuple(other.shape)}"
        )
