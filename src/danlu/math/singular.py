r"""The largest singular value of a linear map that is known by its products alone.

    v <- A^T A v / ||A^T A v||                            power iteration            (1)
    A V = U B,   B bidiagonal,   sigma <= max_sv(B)       Golub-Kahan-Lanczos        (2)
    sigma(v) = ||A v||,  d sigma / dA = u v^T,  u = A v / ||A v||                    (3)

A is a matrix or a layer, v a unit vector of its inputs. A step of (1) shrinks what is wrong with v by the factor
(sigma_2 / sigma_1)^2: enough where v is kept from one training step to the next, little where the top singular values
lie close (large convolutions). (2) takes the best vector of the whole Krylov space instead, with full
reorthogonalisation and restarts. Both come from below: every sigma(v) is a lower bound. (3) is the gradient with v held
fixed; it is exact where v is the top vector and sigma_1 > sigma_2, and a subgradient where they are equal.

Source: Golub and Kahan, 1965, doi:10.1137/0702016; Miyato et al., 2018, arXiv:1802.05957, (3); kexue.fm/archives/6051.
Shapes: v the inputs of the map, u its outputs, any number of axes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["power_iteration", "stirred", "top_singular", "unit"]

TINY = 1e-30  # below this length a vector has no direction
STIR = 1e-4  # costs sigma 1e-8 of itself at most
LinearMap = Callable[[Tensor], Tensor]


@torch.no_grad()
def power_iteration(forward: LinearMap, adjoint: LinearMap, v: Tensor, steps: int = 1) -> Tensor:
    """The unit vector after some steps of eq. (1); where A v = 0 it stays as it was.

    Args:
        forward: v -> A v.
        adjoint: u -> A^T u.
        v: a vector of the inputs, float32 or better.
        steps: how many, >= 0.

    Returns:
        A new tensor in the shape of v, without a graph.

    Raises:
        ValueError: steps < 0.

    >>> a = torch.tensor([[3.0, 0.0], [4.0, 5.0]])
    >>> v = power_iteration(lambda v: a @ v, lambda u: a.T @ u, torch.tensor([1.0, 0.0]), steps=8)
    >>> (a @ v).norm()  # sqrt(45)
    tensor(6.7082)
    """
    if steps < 0:
        raise ValueError(f"steps must be >= 0, got {steps}")
    v = unit(v)
    for _ in range(steps):
        w = adjoint(unit(forward(v)))
        v = torch.where(torch.linalg.vector_norm(w) > TINY, unit(w), v)  # eq. (1)
    return v


@torch.no_grad()
def top_singular(
    forward: LinearMap, adjoint: LinearMap, start: Tensor, tol: float = 1e-4, width: int = 24, restarts: int = 40
) -> tuple[Tensor, Tensor]:
    """The largest singular value and its vector of the inputs, eq. (2).

    Args:
        forward: v -> A v.
        adjoint: u -> A^T u.
        start: a vector of the inputs with no reason to be orthogonal to the top one, such as a normal one.
        tol: stop when ||A^T u - sigma v|| <= tol sigma. There is a singular value within tol sigma then, and the error
            of sigma is of the order tol^2 sigma where the top one stands apart.
        width: vectors of the Krylov space, each kept twice in memory.
        restarts: how often to begin anew from the best vector before giving the best found so far.

    Returns:
        sigma, a scalar, and v in the shape of start, both without a graph. A map that is 0 has sigma 0.

    Raises:
        ValueError: tol is not > 0, width or restarts < 1.

    >>> a = torch.tensor([[3.0, 0.0], [4.0, 5.0]])
    >>> top_singular(lambda v: a @ v, lambda u: a.T @ u, torch.tensor([1.0, 0.0]))
    (tensor(6.7082), tensor([0.7071, 0.7071]))
    """
    if not tol > 0 or width < 1 or restarts < 1:
        raise ValueError(f"needs tol > 0, width >= 1, restarts >= 1; got tol={tol}, width={width}, restarts={restarts}")
    v = unit(start)
    image = forward(v)
    width = min(width, v.numel(), image.numel())
    guard = 64 * torch.finfo(v.dtype).eps
    for _ in range(restarts):
        rights, lefts = v.new_zeros(width + 1, v.numel()), v.new_zeros(width, image.numel())
        bidiagonal = torch.zeros(width, width, dtype=torch.float64)
        rights[0], scale, beta = v.flatten(), 0.0, 0.0
        for j in range(width):
            u, alpha = orthonormal(forward(rights[j].view(v.shape)).flatten(), lefts[:j], guard * scale)
            lefts[j], scale = u, max(scale, alpha)
            w, beta = orthonormal(adjoint(u.view(image.shape)).flatten(), rights[: j + 1], guard * scale)
            rights[j + 1], scale = w, max(scale, beta)
            bidiagonal[j, j] = alpha
            if j + 1 < width:
                bidiagonal[j, j + 1] = beta
        p, s, q = torch.linalg.svd(bidiagonal)  # eq. (2)
        best = unit(q[0].to(v) @ rights[:width]).view(v.shape)
        v = best if s[0] > TINY else v
        if beta * abs(p[-1, 0].item()) <= tol * s[0].item():
            break
    sigma = torch.linalg.vector_norm(forward(v))
    if v.sum() < 0:
        v = -v  # a singular vector has no sign of its own
    return sigma, v


def orthonormal(x: Tensor, basis: Tensor, smallest: float) -> tuple[Tensor, float]:
    """x without its part along the rows of the basis, at length 1, and the length it had; 0 where that is rounding."""
    for _ in range(2):  # once leaves rounding of the size of what was taken away
        x = x - basis.mT @ (basis @ x)
    length = torch.linalg.vector_norm(x).item()
    return (x / length, length) if length > max(smallest, TINY) else (torch.zeros_like(x), 0.0)


def unit(x: Tensor) -> Tensor:
    """x at length 1; 0 stays 0.

    Args:
        x: any shape, taken as one vector.

    Returns:
        The same shape.

    >>> unit(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    return x / torch.linalg.vector_norm(x).clamp_min(TINY)


def stirred(v: Tensor) -> Tensor:
    """The unit vector of v and a trace of a fixed pattern: an iteration orthogonal to the top vector gets free.

    Args:
        v: any shape, float32 or better.

    Returns:
        The same shape.

    >>> v = stirred(torch.tensor([1.0, 0.0]))
    >>> 0 < abs(v[1].item()) < 1e-4
    True
    """
    places = torch.arange(v.numel(), device=v.device, dtype=torch.float32).view(v.shape)
    return unit(v) + STIR * unit(torch.cos(places * (1.0 + 0.618034 * places) + 1.0)).to(v)
