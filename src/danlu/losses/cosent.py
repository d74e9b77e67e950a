r"""CoSENT: pairs of texts that are more alike shall have the larger cosine; only the order of the scores counts.

    L = log(1 + sum over y_i > y_j of exp(lambda (s_j - s_i)))                                (1)
    dL/ds_i = lambda (sum_j p_ji - sum_j p_ij),   p_ij = exp(lambda (s_j - s_i) - L) for y_i > y_j, else 0   (2)

s_i is the cosine of pair i and y_i how alike its texts are: a score on any scale, or a class 0 or 1. Every two pairs of
the batch with unlike scores are compared, so a batch of N gives up to N (N - 1) / 2 constraints, and sentence vectors
are trained on what they are used for, the cosine, where a classifier over [u; v; |u - v|] trains something else. With
one pair above all others (1) is InfoNCE at the temperature 1 / lambda. A batch whose scores are all equal says nothing:
the loss is 0 and so is its gradient.

Source: kexue.fm/archives/8847 (lambda = 20).
Shapes: N pairs, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math.precision import wide

__all__ = ["CoSENTLoss", "cosent_loss"]


def cosent_loss(similarities: Tensor, target: Tensor, scale: float = 20.0, mask: Tensor | None = None) -> Tensor:
    """How far the order of the similarities is from that of the targets, eq. (1).

    Args:
        similarities: (N,) cosines of the pairs, any float dtype.
        target: (N,) how alike each is, numbers on any scale or bool; nan is no score, such a pair is not compared.
        scale: lambda, > 0; the inverse of a temperature.
        mask: (N,) bool, True = keep; what stands elsewhere has no influence. None keeps all.

    Returns:
        Scalar >= 0, float32, or float64 for float64 similarities; 0 where no two pairs have unlike targets.

    Raises:
        ValueError: shapes or dtypes do not fit, or scale is not above 0.

    >>> cosent_loss(torch.tensor([0.3, 0.3]), torch.tensor([1.0, 0.0]))  # as likely wrong as right: log 2
    tensor(0.6931)
    """
    if similarities.ndim != 1 or not similarities.is_floating_point() or target.shape != similarities.shape:
        raise ValueError(
            f"cosent_loss needs float similarities (N,) and target (N,); got {similarities.dtype} "
            f"{tuple(similarities.shape)} and {tuple(target.shape)}. For two batches of vectors use CoSENTLoss()(u, v, "
            "target)"
        )
    if not scale > 0:
        raise ValueError(f"scale must be > 0, got {scale}; 20 is the source's, the inverse of a temperature of 0.05")
    above = target[:, None] > target  # (N, N), pair i shall stand above pair j
    s = scale * wide(similarities)  # (N,)
    if mask is not None:
        if mask.shape != similarities.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be bool {tuple(similarities.shape)}, True = keep; got {mask.dtype} {tuple(mask.shape)}"
            )
        above = above & mask[:, None] & mask
        s = s.masked_fill(~mask, 0.0)  # a fill, because nan - nan is nan
    gaps = (s - s[:, None]).masked_fill(~above, -torch.inf)  # (N, N), s_j - s_i
    return F.pad(gaps.flatten(), (1, 0)).logsumexp(0)  # the 0 in front is the 1 of eq. (1)


class CoSENTLoss(nn.Module):
    """`cosent_loss` of the cosines of two batches of vectors, row i of each a pair; the product is made in float32."""

    def __init__(self, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, u: Tensor, v: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:  # (B, D) twice, (B,)
        return cosent_loss(F.cosine_similarity(wide(u), wide(v), dim=-1), target, self.scale, mask)
