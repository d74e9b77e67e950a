r"""Soft accuracy and soft F1: the reported metric itself as the loss, for the last steps of training.

    p = softmax(K z) or sigmoid(K z),      M_ck = sum_i [t_i = c] p_ik               (1)
    L_accuracy = 1 - tr(M) / sum(M)                                                  (2)
    F_c        = (1 + b^2) M_cc / (b^2 row_c + column_c),     L_F = 1 - F            (3)
    |F(p) - F(h)| <= 3 sum_i |p_i - h_i| / (sum t + sum p)    for b = 1              (4)

z are the logits, K their sharpness, b is beta; row_c counts class c among the targets, column_c the probability given
to it. F is one class's ("binary"), the mean over classes ("macro"), or taken of the sums over classes ("micro").
Eq. (4) bounds the distance to the hard F1 of 0/1 decisions h.

Train with cross-entropy first: the gradient of eq. (2), p_t ([k = t] - p_k) for logit k, fades where the model is sure
and wrong, so from scratch these losses crawl. Compare with moving the threshold, which is free and often as good.
F is a ratio of sums over the batch, not a mean of ratios: small batches bias it, so take large ones.

Source: kexue.fm/archives/6620 (2019); for F1 also Benedict et al., 2021, arXiv:2108.10566.
Shapes: ... any shape of items, C classes, L labels.
"""

import torch
from torch import Tensor

from danlu.math.precision import wide
from danlu.math.soft_confusion import soft_confusion

__all__ = ["soft_accuracy_loss", "soft_f1_loss"]


def soft_accuracy_loss(
    logits: Tensor, target: Tensor, mask: Tensor | None = None, ignore_index: int = -100, sharpness: float = 1.0
) -> Tensor:
    """One minus the mean probability of the right class, eq. (2).

    Args:
        logits: (..., C), any float dtype.
        target: (...) int64, the class.
        mask: (...) bool, True = keep.
        ignore_index: items with this target do not count.
        sharpness: K > 0; larger comes closer to the accuracy and has less gradient.

    Returns:
        Scalar in [0, 1], dtype of the logits; 0 if no item counts.

    Raises:
        ValueError: shapes do not fit, sharpness is not > 0.

    >>> logits = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    >>> soft_accuracy_loss(logits, torch.tensor([0, 1]))  # 1 - (0.75 + 0.5) / 2
    tensor(0.3750)
    """
    check_sharpness(sharpness)
    if logits.ndim < 1 or logits.shape[:-1] != target.shape:
        raise ValueError(
            f"soft_accuracy_loss needs logits (..., C) and target (...); got {tuple(logits.shape)} and "
            f"{tuple(target.shape)}"
        )
    keep = kept(target, mask, ignore_index)
    z = torch.where(keep[..., None], wide(logits), 0.0)  # a padded item may hold nan
    confusion = soft_confusion(torch.softmax(z * sharpness, dim=-1), target, keep)  # (C, C)  eq. (1)
    count = keep.sum()
    return ((count - confusion.trace()) / count.clamp_min(1)).to(logits.dtype)  # eq. (2)


def soft_f1_loss(
    logits: Tensor,
    target: Tensor,
    average: str = "macro",
    beta: float = 1.0,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    sharpness: float = 1.0,
    zero_division: float = 0.0,
) -> Tensor:
    """One minus the F measure of probabilities, eq. (3).

    Args:
        logits: (..., C) for one class out of C; or the shape of the target for yes/no decisions (sigmoid), whose last
            dimension then lists the labels.
        target: (...) int64 class; or 0/1 in the shape of the logits.
        average: "binary": F of class 1 of two, or of all yes/no decisions together; "macro": mean over classes or
            labels; "micro": of the sums over classes or labels.
        beta: weight of recall, > 0; 1 gives F1.
        mask: (...) bool, True = keep.
        ignore_index: entries with this target do not count.
        sharpness: K > 0; larger comes closer to the hard F1 and has less gradient.
        zero_division: F of a class that is neither there nor predicted.

    Returns:
        Scalar in [0, 1], dtype of the logits.

    Raises:
        ValueError: shapes do not fit, an unknown average, "binary" without two classes, beta or sharpness not > 0.

    >>> logits = torch.tensor([0.5, 0.5, 0.25]).logit()
    >>> soft_f1_loss(logits, torch.tensor([1, 1, 0]), average="binary")  # 1 - 2 * 1.0 / (2 + 1.25)
    tensor(0.3846)
    """
    check_sharpness(sharpness)
    if average not in ("binary", "macro", "micro"):
        raise ValueError(f"average must be 'binary', 'macro' or 'micro', got {average!r}")
    if not beta > 0:
        raise ValueError(f"beta must be > 0, got {beta}; 1 weighs precision and recall alike")
    keep = kept(target, mask, ignore_index)
    if logits.shape == target.shape:  # yes/no decisions
        t = torch.where(keep, target, 0).to(wide(logits).dtype)
        z = torch.where(keep, wide(logits), 0.0)  # a padded item may hold nan
        p = torch.where(keep, torch.sigmoid(z * sharpness), 0.0)
        each = (t * p, t, p)
        items = tuple(range(t.ndim)) if average == "binary" or t.ndim < 2 else tuple(range(t.ndim - 1))
        hits, row, column = (x.sum(dim=items) for x in each)  # (L,), or () for "binary"
    elif logits.ndim and logits.shape[:-1] == target.shape:
        z = torch.where(keep[..., None], wide(logits), 0.0)
        confusion = soft_confusion(torch.softmax(z * sharpness, dim=-1), target, keep)  # (C, C)  eq. (1)
        hits, row, column = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)  # (C,) each
        if average == "binary":
            if len(hits) != 2:
                raise ValueError(f"average='binary' needs two classes, got {len(hits)}; use 'macro' or 'micro'")
            hits, row, column = hits[1], row[1], column[1]
    else:
        raise ValueError(
            "soft_f1_loss needs logits (..., C) with target (...), or both of one shape; got "
            f"{tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if average == "micro":
        hits, row, column = hits.sum(), row.sum(), column.sum()
    size = beta**2 * row + column
    empty = size == 0
    f = torch.where(empty, zero_division, (1 + beta**2) * hits / torch.where(empty, 1.0, size))  # eq. (3)
    return (1.0 - f.mean()).to(logits.dtype)


def check_sharpness(sharpness: float) -> None:
    if not sharpness > 0:
        raise ValueError(f"sharpness must be > 0, got {sharpness}; 1 takes the logits as they are")


def kept(target: Tensor, mask: Tensor | None, ignore_index: int) -> Tensor:
    """The entries that count."""
    keep = target != ignore_index
    if mask is None:
        return keep
    if mask.shape != target.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool in the target's shape {tuple(target.shape)} (True = keep); got {mask.dtype} "
            f"{tuple(mask.shape)}"
        )
    return keep & mask
