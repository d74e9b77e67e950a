r"""What data say about parameters: the covariance of a least-squares estimate, and the direction they say least about.

    F = J^T J / s^2,      covariance = F^-1,      s^2 = ||r||^2 / (N - P) where the noise is not known       (1)
    J D^-1 = U S V^T,     condition = S_max / S_min,     weakest = the combination V_min / D                 (2)

J is the Jacobian of the residuals at the estimate, D the lengths of its columns. The condition number of (2) does not
depend on units: 1 when the parameters do not disturb one another, infinite when some combination of them leaves every
observation as it is (structurally not identifiable). Intervals from (1) are those of the linearised model: short
intervals tell the truth, long ones only that they are long; see a bootstrap or a profile then.

Source: Seber and Wild, 1989, Nonlinear Regression, chapter 5; own form of (2).
Shapes: J (..., N, P), leading axes are separate problems.
"""

import torch
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["fisher_covariance"]


def fisher_covariance(jacobian: Tensor, variance: Tensor | float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Covariance, condition number and weakest direction of a least-squares estimate, eqs. (1) and (2).

    Args:
        jacobian: (..., N, P) of the residuals, N >= P >= 1.
        variance: s^2, a number or (...); 1 where residuals are in units of their noise.

    Returns:
        (..., P, P) covariance, of the order 1 / eps^2 along what the data do not determine at all; (...) condition,
        inf where a column of J is 0; (..., P) the weakest direction, at length 1 in the units of D. Float32 or float64.

    Raises:
        ValueError: fewer residuals than parameters, or entries that are not finite.

    >>> covariance, condition, weakest = fisher_covariance(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    >>> covariance.diagonal(), condition
    (tensor([0.2500, 1.0000]), tensor(1.))
    """
    if jacobian.ndim < 2 or not 1 <= jacobian.shape[-1] <= jacobian.shape[-2]:
        raise ValueError(
            f"fisher_covariance needs a Jacobian (..., N, P) with N >= P >= 1, got {tuple(jacobian.shape)}; fewer "
            "residuals than parameters determine nothing: observe more or fit fewer"
        )
    if not bool(jacobian.isfinite().all()):
        raise ValueError("fisher_covariance needs a finite Jacobian; the model is not finite at this estimate")
    jacobian = wide(jacobian)
    lengths = torch.linalg.vector_norm(jacobian, dim=-2)  # (..., P)
    unseen = lengths == 0
    scale = torch.where(unseen, 1.0, lengths)
    _, s, vh = torch.linalg.svd(jacobian / scale[..., None, :], full_matrices=False)
    floor = torch.finfo(s.dtype).eps * s[..., :1].clamp_min(torch.finfo(s.dtype).tiny)
    root = vh.mT / torch.maximum(s, floor)[..., None, :] / scale[..., None]  # (..., P, P)
    spread = torch.as_tensor(variance, dtype=s.dtype, device=s.device)
    covariance = spread[..., None, None] * (root @ root.mT)  # eq. (1)
    condition = torch.where(unseen.any(-1), torch.inf, s[..., 0] / s[..., -1])  # eq. (2)
    return covariance, condition, vh[..., -1, :]
