r"""The square root of a covariance, with the derivative that is right where eigenvalues repeat or vanish.

    S = U diag(l) U^T,   R = U diag(sqrt(l)) U^T,   R R = S                                                    (1)
    dR R + R dR = dS,    (U^T dR U)_ij = (U^T dS U)_ij / (sqrt(l_i) + sqrt(l_j))                               (2)

The derivative of eigenvectors divides by differences of eigenvalues and is nan for every multiple of the identity; (2)
divides by sums of roots. Where both roots are 0 the slope is infinite; there (2) gives 0, as a pseudo-inverse would.

Source: (2) is the Lyapunov equation of the differential of R R = S; kexue.fm/archives/8512 for its use.
Shapes: ... any leading axes, D features.
"""

from typing import Any

import torch
from torch import Tensor

from danlu.math.covariance import checked_covariance, covariance_factor, covariance_slack, differentiable_once

__all__ = ["psd_sqrt"]


def psd_sqrt(covariance: Tensor) -> Tensor:
    """The symmetric square root without negative eigenvalues, eq. (1), differentiable once by eq. (2).

    Args:
        covariance: (..., D, D) symmetric without negative eigenvalues, any float dtype; may be singular.

    Returns:
        (..., D, D), float32 or better.

    Raises:
        ValueError: it is not square, not finite, not symmetric, or has a negative eigenvalue.

    >>> psd_sqrt(torch.tensor([[4.0, 0.0], [0.0, 9.0]]))
    tensor([[2., 0.],
            [0., 3.]])
    """
    with torch.autocast(covariance.device.type, enabled=False):
        s = checked_covariance("covariance", covariance)
        vectors, roots = covariance_factor("covariance", s.detach(), covariance_slack(covariance))
        return _Root.apply(s, vectors, roots)


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, vectors: Tensor, roots: Tensor) -> Tensor:
        ctx.save_for_backward(s, vectors, roots)
        return (vectors * roots[..., None, :]) @ vectors.mT  # eq. (1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        s, vectors, roots = ctx.saved_tensors
        sums = roots[..., :, None] + roots[..., None, :]  # (..., D, D)
        nothing = sums <= torch.finfo(roots.dtype).eps * roots[..., -1:, None]  # roots ascend
        turned = vectors.mT @ ((grad + grad.mT) / 2) @ vectors
        solved = torch.where(nothing, 0.0, turned / torch.where(nothing, 1.0, sums))  # eq. (2)
        return differentiable_once("psd_sqrt", vectors @ solved @ vectors.mT, s), None, None
