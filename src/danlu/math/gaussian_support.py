r"""Two Gaussians side by side where their densities can be compared: Cholesky factors, on their common support.

    P = projector on the directions in which S_p + S_q vanishes                                                (1)
    S -> (I - P) S (I - P) + P,   m_p - m_q -> (I - P)(m_p - m_q)                                              (2)

Divergences of densities are finite when both covariances are regular, and also when both live on one and the same
subspace and the means differ only within it: (2) gives both the same unit variance in the directions that neither has,
which changes no divergence. If one of the two is still singular after (2), or P (m_p - m_q) is not 0, the two measures
share no support. A pivot of Cholesky's below D eps of its own variance counts as 0; features are brought to one scale
before eigenvalues are compared, so units do not matter.

Source: own derivation of (2).
Shapes: ... any leading axes, broadcast between p and q; D features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from danlu.math.covariance import checked_covariance, covariance_slack
from danlu.math.precision import wide_dtype

__all__ = ["GaussianPair", "gaussian_pair", "mean_gap", "safe_sqrt", "shared_dtype"]


class GaussianPair(NamedTuple):
    """Two Gaussians, comparable.

    gap: (..., D) m_p - m_q. cov_p, cov_q: (..., D, D) regular. factor_p, factor_q: their Cholesky factors.
    apart: (...) bool, no common support; the other fields hold harmless numbers there.
    """

    gap: Tensor
    cov_p: Tensor
    cov_q: Tensor
    factor_p: Tensor
    factor_q: Tensor
    apart: Tensor


def gaussian_pair(name: str, mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor) -> GaussianPair:
    """Both Gaussians checked, factored, and moved to their common support by eq. (2) where one is singular.

    Args:
        name: of the caller, for messages.
        mean_p: (..., D), any float dtype.
        cov_p: (..., D, D).
        mean_q: (..., D).
        cov_q: (..., D, D).

    Returns:
        A GaussianPair in float32 or better; its leading axes broadcast to those of the pair.

    Raises:
        ValueError: shapes do not fit, entries are not finite, or a covariance is not symmetric or has a negative
            eigenvalue.

    >>> gaussian_pair("kl", torch.zeros(1), torch.eye(1), torch.ones(1), torch.zeros(1, 1)).apart
    tensor(True)
    """
    dtype = shared_dtype(mean_p, cov_p, mean_q, cov_q)
    s_p, s_q = checked_covariance("cov_p", cov_p, dtype), checked_covariance("cov_q", cov_q, dtype)
    gap = mean_gap(name, mean_p, s_p, mean_q, s_q, dtype)
    (l_p, bad_p), (l_q, bad_q) = _cholesky(s_p), _cholesky(s_q)
    lead = torch.broadcast_shapes(gap.shape[:-1], s_p.shape[:-2], s_q.shape[:-2])
    singular = (bad_p | bad_q).expand(lead)
    if not bool(singular.any()):
        return GaussianPair(gap, s_p, s_q, l_p, l_q, singular)
    scale = (s_p + s_q).detach().diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()  # (..., D)
    scale = torch.where(scale > 0, scale, 1.0)
    box = scale[..., :, None] * scale[..., None, :]
    c_p, c_q, small_gap = s_p / box, s_q / box, gap / scale  # the same pair in other units
    for which, c, given in (("cov_p", c_p, cov_p), ("cov_q", c_q, cov_q)):
        lowest = torch.linalg.eigvalsh(c.detach())[..., 0].min().item()
        if lowest < -covariance_slack(given):
            raise ValueError(
                f"{name} needs covariances; {which} has a negative eigenvalue ({lowest:.4g} with features at one "
                "scale). No data have such a covariance: look at how it was estimated, or learn a factor F and pass "
                "F @ F.mT"
            )
    eps, dim = torch.finfo(dtype).eps, gap.shape[-1]
    with torch.no_grad():
        values, vectors = torch.linalg.eigh(c_p + c_q)
        flat = vectors * (values <= 4 * dim * eps)[..., None, :]
        fill = flat @ flat.mT  # P of eq. (1), exactly 0 where no direction is flat in both
        eye = torch.eye(dim, dtype=dtype, device=gap.device)
        keep = eye - fill
        outside = (small_gap - (keep @ small_gap[..., None])[..., 0]).abs().amax(-1)
        noise = ((mean_p.abs().to(dtype) + mean_q.abs().to(dtype)) / scale).amax(-1)
        off = outside > 8 * dim * eps * (noise + small_gap.abs().amax(-1))
    c_p, c_q = keep @ c_p @ keep, keep @ c_q @ keep
    thin_p, thin_q = (_cholesky(c.detach() + fill, _largest(c))[1] for c in (c_p, c_q))
    apart = singular & (off | thin_p | thin_q)
    c_p, c_q = c_p + fill, c_q + fill  # eq. (2)
    swap, none = singular[..., None, None], apart[..., None, None]
    s_p = torch.where(none, eye, torch.where(swap, (c_p + c_p.mT) / 2, s_p))
    s_q = torch.where(none, eye, torch.where(swap, (c_q + c_q.mT) / 2, s_q))
    inside = (keep @ small_gap[..., None])[..., 0]
    gap = torch.where(apart[..., None], 0.0, torch.where(singular[..., None], inside, gap))
    return GaussianPair(gap, s_p, s_q, torch.linalg.cholesky(s_p), torch.linalg.cholesky(s_q), apart)


def mean_gap(name: str, mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor, dtype: torch.dtype) -> Tensor:
    """m_p - m_q, once all four shapes fit.

    Args:
        name: of the caller, for messages.
        mean_p: (..., D).
        cov_p: (..., D, D).
        mean_q: (..., D).
        cov_q: (..., D, D).
        dtype: of the result.

    Returns:
        (..., D).

    Raises:
        ValueError: the shapes do not fit, or a mean is not finite.

    >>> mean_gap("kl", torch.ones(1), torch.eye(1), torch.zeros(1), torch.eye(1), torch.float32)
    tensor([1.])
    """
    shapes = [tuple(x.shape) for x in (mean_p, cov_p, mean_q, cov_q)]
    problem = not all(shapes) or len({shape[-1] for shape in shapes}) != 1
    if not problem:
        try:
            torch.broadcast_shapes(shapes[0][:-1], shapes[1][:-2], shapes[2][:-1], shapes[3][:-2])
        except RuntimeError:
            problem = True
    if problem:
        raise ValueError(
            f"{name} needs means (..., D) and covariances (..., D, D) of one D whose leading axes broadcast; got "
            f"{shapes[0]}, {shapes[1]} and {shapes[2]}, {shapes[3]}"
        )
    gap = mean_p.to(dtype) - mean_q.to(dtype)
    if not bool(gap.isfinite().all()):
        raise ValueError(f"{name} needs finite means; one holds nan or an infinity, or their difference overflows")
    return gap


def safe_sqrt(x: Tensor) -> Tensor:
    """The root of numbers >= 0, with gradient 0 instead of infinity where they are 0.

    Args:
        x: any shape, >= 0.

    Returns:
        The shape of x.

    >>> safe_sqrt(torch.tensor([0.0, 4.0]))
    tensor([0., 2.])
    """
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


def shared_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 if one of the tensors is.

    Args:
        *tensors: of any dtype.

    Returns:
        The dtype that holds them all.

    >>> shared_dtype(torch.ones(1, dtype=torch.float16), torch.ones(1, dtype=torch.bfloat16))
    torch.float32
    """
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, wide_dtype(tensor))
    return dtype


def _largest(s: Tensor) -> Tensor:
    """The largest variance (..., 1) of (..., D, D)."""
    return s.detach().diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)


def _cholesky(s: Tensor, variances: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """L and whether S is singular in its dtype, so that L is of no use: a pivot is rounding beside the variances."""
    factor, info = torch.linalg.cholesky_ex(s)
    pivots = factor.detach().diagonal(dim1=-2, dim2=-1)
    variances = s.detach().diagonal(dim1=-2, dim2=-1) if variances is None else variances
    least = s.shape[-1] * torch.finfo(s.dtype).eps
    return factor, (info > 0) | ~(pivots > (least * variances).sqrt()).all(-1)
