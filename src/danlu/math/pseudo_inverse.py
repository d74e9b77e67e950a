r"""The pseudo-inverse of many small matrices at once by products alone, with its residual and its number of steps.

    V_0 = A^T / (||A||_1 ||A||_inf)                                                                            (1)
    V_{k+1} = V_k + V_k R_k (I + R_k + R_k^2 / 4),    R_k = I - A V_k                                          (2)
    R_{k+1} = R_k^3 (3 I + R_k) / 4                                                                            (3)
    d_0 = s^2 / (||A||_1 ||A||_inf),    d_{k+1} = 13/4 d_k while d_k is small                                  (4)
    k <= log(1 / noise) / log(13/4) + 3                                                                        (5)

(2) is V_k (13 I - A V_k (15 I - A V_k (7 I - A V_k))) / 4 written in its residual, which costs the same four products
and rounds in the last digit of V instead of the first. ||A||_1 is the largest sum of a column, ||A||_inf of a row, of
absolute values. (3) is exact: convergence is cubic near the end. Before, by (4), 1 - d is the eigenvalue of R that
belongs to the singular value s of A, and every step only multiplies d by 3.25. So the steps that a matrix needs grow
with the logarithm of its condition: the six of the paper serve conditions up to about 30, softmax matrices of 64 random
landmarks of 16 features, with conditions of thousands, need about twenty. Singular values with d_0 < noise, the square
of their share of the norm, drown in the errors of the entries; (5) is the number of steps that inverts all others, and
what lies below is left out, as a pseudo-inverse leaves out zeros.

"auto" stops each matrix by itself: when ||R||_F <= sqrt(noise), when rounding lets it shrink no further, or at (5).
Nothing of a matrix depends on its neighbours in the batch. (The public implementations start all matrices of a batch
with one common scale in (1), and stop after six steps.)

Source: Xiong et al., 2021, arXiv:2102.03902; kexue.fm/archives/8180. (3) to (5) follow from (2).
Shapes: ... any leading axes, A is (M, N).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from danlu.math.precision import wide, wide_dtype

__all__ = ["PseudoInverse", "iterative_pinv", "pinv_residual", "pinv_step_bound", "pseudo_inverse"]


class PseudoInverse(NamedTuple):
    """An approximate pseudo-inverse and how good it is.

    Args:
        inverse: (..., N, M), float32 or better.
        residual: (...), ||I - A V||_F for M <= N, else ||I - V A||_F, of this very V; at least 1 for a singular A.
        steps: (...) int64, iterations taken.
    """

    inverse: Tensor
    residual: Tensor
    steps: Tensor


def iterative_pinv(a: Tensor, steps: int | str = "auto", noise: float | None = None) -> Tensor:
    """The pseudo-inverse of each matrix by eq. (2), differentiable any number of times.

    Args:
        a: (..., M, N), any float dtype.
        steps: "auto": each matrix as many as it needs, see above; or a number >= 0 for all.
        noise: relative error of the entries, in (0, 1), for "auto"; None: the rounding of the dtype of a.

    Returns:
        (..., N, M), float32 for half precision (an inverse outgrows what it is of), else the dtype of a.

    Raises:
        ValueError: a is no matrix of floats, steps is neither "auto" nor >= 0, or noise is out of range.

    >>> iterative_pinv(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), steps=6)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.2500]])
    """
    return _iterate(a, steps, noise, measure=False)[0]


def pseudo_inverse(a: Tensor, steps: int | str = "auto", noise: float | None = None) -> PseudoInverse:
    """As `iterative_pinv`, with the residual and the steps of every matrix.

    Args:
        a: (..., M, N), any float dtype.
        steps: "auto" or a number >= 0.
        noise: relative error of the entries; None: the rounding of the dtype of a.

    Returns:
        inverse, residual and steps; the residual has no gradient.

    Raises:
        ValueError: as of `iterative_pinv`.

    >>> pseudo_inverse(torch.eye(2)).steps
    tensor(0)
    """
    inverse, steps_taken = _iterate(a, steps, noise, measure=True)
    return PseudoInverse(inverse, pinv_residual(a, inverse.detach()), steps_taken)


def pinv_residual(a: Tensor, inverse: Tensor) -> Tensor:
    """How far a product of a matrix and its inverse is from the identity: ||I - A V||_F, or ||I - V A||_F for tall A.

    For a regular A it bounds the error: ||V - A^{-1}|| <= ||A^{-1}|| ||R||_F.

    Args:
        a: (..., M, N), any float dtype.
        inverse: (..., N, M).

    Returns:
        (...), float32 or better, without a graph.

    >>> pinv_residual(torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 0.5]]))
    tensor(0.5000)
    """
    with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
        a, v = wide(a), wide(inverse)
        product = a @ v if a.shape[-2] <= a.shape[-1] else v @ a
        eye = torch.eye(product.shape[-1], dtype=product.dtype, device=product.device)
        return torch.linalg.matrix_norm(eye - product)


def pinv_step_bound(noise: float) -> int:
    """The number of steps after which eq. (2) has inverted all that stands out of the noise, eq. (5).

    Args:
        noise: relative error of the entries, in (0, 1).

    Returns:
        A whole number.

    Raises:
        ValueError: noise is out of range.

    >>> pinv_step_bound(2.0**-23), pinv_step_bound(2.0**-7)  # of float32 and of bfloat16
    (17, 8)
    """
    if not 0 < noise < 1:
        raise ValueError(f"noise is a relative error in (0, 1), such as 1e-7 for float32; got {noise}")
    return math.ceil(math.log(1 / noise) / math.log(13 / 4)) + 3  # eq. (5)


def _iterate(a: Tensor, steps: int | str, noise: float | None, measure: bool) -> tuple[Tensor, Tensor]:
    """The inverse, and with `measure` the steps of every matrix."""
    if a.ndim < 2 or not a.is_floating_point():
        raise ValueError(f"iterative_pinv needs matrices (..., M, N) of floats; got {tuple(a.shape)} of {a.dtype}")
    automatic = steps == "auto"
    if not automatic and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 0):
        raise ValueError(f"steps must be 'auto' or a number >= 0 such as 6, got {steps!r}")
    if not a.numel():
        return a.mT.to(wide_dtype(a)), torch.zeros(a.shape[:-2], dtype=torch.long, device=a.device)
    noise = torch.finfo(a.dtype).eps if noise is None else noise
    most = pinv_step_bound(noise) if automatic else int(steps)
    if a.shape[-2] > a.shape[-1]:  # pinv(A^T) is pinv(A)^T, and the smaller residual is the one that can vanish
        inverse, taken = _wide_inverse(wide(a).mT, most, noise if automatic else None, measure)
        return inverse.mT, taken
    return _wide_inverse(wide(a), most, noise if automatic else None, measure)


def _wide_inverse(a: Tensor, most: int, noise: float | None, measure: bool) -> tuple[Tensor, Tensor]:
    """Inverses of matrices with M <= N; noise is None for a fixed number of steps."""
    lead = a.shape[:-2]
    with torch.autocast(a.device.type, enabled=False):
        a = a.reshape(-1, *a.shape[-2:])  # (P, M, N)
        tiny = torch.finfo(a.dtype).tiny
        size = a.detach().abs().amax((-2, -1), keepdim=True).clamp_min(tiny)  # keeps the norms within the range
        a = a / size
        magnitude = a.abs()
        norms = magnitude.sum(-2).amax(-1) * magnitude.sum(-1).amax(-1)  # (P,)
        v = a.mT / norms.clamp_min(tiny)[:, None, None]  # eq. (1); of A / size, so that V is size times too large
        eye = torch.eye(a.shape[-2], dtype=a.dtype, device=a.device).expand(len(a), -1, -1)
        taken = torch.zeros(len(a), dtype=torch.long, device=a.device)
        done = torch.zeros(len(a), dtype=torch.bool, device=a.device)
        last = torch.full((len(a),), torch.inf, dtype=a.dtype, device=a.device)
        in_step = a.device.type == "cpu" and not torch.compiler.is_compiling()  # asking a GPU would cost more
        some_done = False
        for _ in range(most):
            r = torch.baddbmm(eye, a, v, alpha=-1)  # (P, M, M)
            if noise is not None:
                gap = r.detach().square().sum((-2, -1)).sqrt()
                stuck = (last < 0.5) & (gap > 0.5 * last)  # by (3) it would have shrunk to a fifth
                done, last = done | (gap <= noise**0.5) | stuck, gap
                some_done = not in_step or bool(done.any())
                if in_step and some_done and bool(done.all()):
                    break
            y = torch.bmm(v, r)
            new = torch.baddbmm(v + y, y, torch.baddbmm(r, r, r, alpha=0.25))  # eq. (2)
            v = torch.where(done[:, None, None], v, new) if noise is not None and some_done else new
            if measure:
                taken = taken + (~done).long()
        return (v / size).reshape(*lead, *v.shape[1:]), taken.reshape(lead)
