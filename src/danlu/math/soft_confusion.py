r"""The confusion matrix with probabilities in it: accuracy, F1 and their kin as smooth functions of one matrix.

    M_ck = sum_i w_i [t_i = c] p_ik                                                  (1)

t_i is the class of item i, p_i its predicted distribution, w_i is 1 where the item counts. With hard predictions M is
the usual confusion matrix (rows true, columns predicted). Accuracy is tr(M) / sum(M); for class c the true positives
are M_cc, the row sum counts the class, the column sum the predictions of it, so F1_c = 2 M_cc / (row_c + column_c).

Source: kexue.fm/archives/6620 (2019), which makes accuracy and F1 smooth through inner products of one-hot vectors.
Shapes: ... any shape of items, C classes.
"""

import torch
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["soft_confusion"]


def soft_confusion(prob: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """The matrix M of eq. (1); linear in the probabilities, so sums over batches and processes simply add.

    Args:
        prob: (..., C) probabilities or 0/1 decisions.
        target: (...) int64 in [0, C); entries that the mask drops may hold anything.
        mask: (...) bool, True = keep; None keeps all.

    Returns:
        (C, C) in float32, or float64 for float64 probabilities.

    Raises:
        ValueError: shapes do not fit, or a kept target lies outside [0, C).

    >>> soft_confusion(torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([0, 1]))
    tensor([[0.7500, 0.2500],
            [0.5000, 0.5000]])
    """
    if prob.ndim < 1 or prob.shape[:-1] != target.shape or (mask is not None and mask.shape != target.shape):
        given = f"{tuple(prob.shape)}, {tuple(target.shape)}" + ("" if mask is None else f" and {tuple(mask.shape)}")
        raise ValueError(f"soft_confusion needs prob (..., C), target (...) and mask (...); got {given}")
    classes = prob.shape[-1]
    keep = torch.ones_like(target, dtype=torch.bool) if mask is None else mask
    safe = torch.where(keep, target, 0)
    if not torch.compiler.is_compiling() and safe.numel() and (safe.min() < 0 or safe.max() >= classes):
        raise ValueError(
            f"targets must lie in [0, {classes}) for {classes} classes, got {int(safe.min())} to {int(safe.max())}; "
            "drop items without a class by mask"
        )
    p = wide(prob).reshape(-1, classes)  # (N, C)
    p = torch.where(keep.reshape(-1, 1), p, 0.0)  # a padded item may hold nan
    onehot = torch.nn.functional.one_hot(safe.reshape(-1), classes).to(p.dtype)  # (N, C)
    with torch.autocast(p.device.type, enabled=False):
        return onehot.T @ p  # (C, C)  eq. (1)
