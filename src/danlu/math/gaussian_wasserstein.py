r"""The Wasserstein-2 distance of two Gaussians, singular ones included, with its gradient and its optimal map.

    W^2 = |m_p - m_q|^2 + tr S_p + tr S_q - 2 tr (S_p^1/2 S_q S_p^1/2)^1/2                                     (1)
    F_p^T F_q = Y diag(s) Z^T   (S = F F^T),   W^2 = |m_p - m_q|^2 + |F_p Y - F_q Z|_F^2                       (2)
    dW^2 / dS_p = I - M,   M = F_q Z diag(1/s) Z^T F_q^T,   M S_p M = S_q                                      (3)
    x -> m_q + M (x - m_p)  carries p to q at the least mean square way                                        (4)
    S_p S_q = S_q S_p:   W^2 = |m_p - m_q|^2 + |S_p^1/2 - S_q^1/2|_F^2                                         (5)

p = N(m_p, S_p), q = N(m_q, S_q). The trace of (1) is the sum of the s, so (2) is (1) without its difference of large
numbers: it cannot turn negative, and of two nearly equal Gaussians it keeps the digits. (3) needs no derivative of
eigenvectors, so equal covariances and multiples of the identity have their gradient. Where s = 0 the term of M is left
out: right where q has no spread there either. Where q has and p has none the slope is minus infinity, and I - M says 1:
learn a factor F of S_p = F F^T then, whose gradient exists. This is the Frechet distance of generative models; with
covariances of divisor N - 1 or N as the caller likes.

Source: Dowson and Landau, 1982; Olkin and Pukelsheim, 1982; kexue.fm/archives/8512.
(2) follows from (1): its right side is the least over all rotations of the factors.
Shapes: ... any leading axes, broadcast between p and q; D features.
"""

from typing import Any

import torch
from torch import Tensor

from danlu.math.covariance import checked_covariance, covariance_factor, covariance_slack, differentiable_once
from danlu.math.gaussian_support import mean_gap, safe_sqrt, shared_dtype

__all__ = ["gaussian_transport", "gaussian_wasserstein"]


def gaussian_wasserstein(mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor, squared: bool = True) -> Tensor:
    """The squared Wasserstein-2 distance, eq. (2), differentiable once by eq. (3).

    Args:
        mean_p: (..., D), any float dtype.
        cov_p: (..., D, D), symmetric; may be singular, even 0.
        mean_q: (..., D).
        cov_q: (..., D, D).
        squared: False: the distance itself, whose gradient at 0 is given as 0.

    Returns:
        (...), float32 or better, >= 0, in squared units of the features.

    Raises:
        ValueError: shapes do not fit, entries are not finite, or a covariance is not symmetric or has a negative
            eigenvalue.

    >>> gaussian_wasserstein(torch.tensor([3.0]), torch.tensor([[4.0]]), torch.tensor([1.0]), torch.tensor([[9.0]]))
    tensor(5.)
    """
    with torch.autocast(cov_p.device.type, enabled=False):
        dtype = shared_dtype(mean_p, cov_p, mean_q, cov_q)
        s_p, s_q = checked_covariance("cov_p", cov_p, dtype), checked_covariance("cov_q", cov_q, dtype)
        gap = mean_gap("gaussian_wasserstein", mean_p, s_p, mean_q, s_q, dtype)
        f_p, f_q = _factor("cov_p", cov_p, s_p), _factor("cov_q", cov_q, s_q)
        spread = _Bures.apply(s_p, s_q, f_p, f_q)
        value: Tensor = gap.square().sum(-1) + spread
        return value if squared else safe_sqrt(value)


@torch.no_grad()
def gaussian_transport(cov_p: Tensor, cov_q: Tensor) -> Tensor:
    """The matrix M of the optimal map from N(., cov_p) to N(., cov_q), eqs. (3) and (4).

    Args:
        cov_p: (..., D, D), symmetric; where it is singular the map reaches only what lies over its own directions.
        cov_q: (..., D, D).

    Returns:
        (..., D, D) symmetric without negative eigenvalues, float32 or better, without a graph.

    Raises:
        ValueError: a covariance is not finite, not symmetric or has a negative eigenvalue, or the sizes differ.

    >>> gaussian_transport(torch.tensor([[4.0]]), torch.tensor([[9.0]]))  # widths 2 and 3
    tensor([[1.5000]])
    """
    with torch.autocast(cov_p.device.type, enabled=False):
        dtype = shared_dtype(cov_p, cov_q)
        s_p, s_q = checked_covariance("cov_p", cov_p, dtype), checked_covariance("cov_q", cov_q, dtype)
        mean_gap("gaussian_transport", s_p[..., 0], s_p, s_q[..., 0], s_q, dtype)  # sizes
        f_p, f_q = _factor("cov_p", cov_p, s_p), _factor("cov_q", cov_q, s_q)
        _, s, zh = torch.linalg.svd(f_p.mT @ f_q)
        return _map(f_q @ zh.mT, s)


def _factor(name: str, given: Tensor, symmetric: Tensor) -> Tensor:
    vectors, roots = covariance_factor(name, symmetric.detach(), covariance_slack(given))
    return vectors * roots[..., None, :]  # (..., D, D)


def _map(turned: Tensor, s: Tensor) -> Tensor:
    """M of eq. (3) from F_q Z and s."""
    nothing = s <= s.shape[-1] * torch.finfo(s.dtype).eps * s[..., :1]
    inverse = torch.where(nothing, 0.0, 1 / torch.where(nothing, 1.0, s))
    return (turned * inverse[..., None, :]) @ turned.mT  # eq. (3)


class _Bures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s_p: Tensor, s_q: Tensor, f_p: Tensor, f_q: Tensor) -> Tensor:
        y, s, zh = torch.linalg.svd(f_p.mT @ f_q)
        turned_p, turned_q = f_p @ y, f_q @ zh.mT  # (..., D, D)
        ctx.save_for_backward(s_p, s_q, turned_p, turned_q, s)
        return (turned_p - turned_q).square().sum((-2, -1))  # eq. (2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        s_p, s_q, turned_p, turned_q, s = ctx.saved_tensors
        eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
        slopes = [
            differentiable_once("gaussian_wasserstein", eye - _map(turned, s), s_p, s_q)  # eq. (3)
            for turned in (turned_q, turned_p)
        ]
        to_p, to_q = (
            (grad[..., None, None] * slope).sum_to_size(own.shape)
            for slope, own in zip(slopes, (s_p, s_q), strict=True)
        )
        return to_p, to_q, None, None
