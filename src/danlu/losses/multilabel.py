r"""Multi-label cross-entropy: softmax's loss for "which of these, any number", without a threshold to tune.

    L = log(1 + sum_{i in N} exp(s_i)) + log(1 + sum_{i in P} exp(-s_i))                      (1)
    L = log(1 + sum_i (1 - t_i) exp(s_i)) + log(1 + sum_i t_i exp(-s_i))                      (2)

s are the logits of one item, P its classes, N all others. The 1 is a class that is never shown, of logit 0: (1) pushes
the right classes above it and the others below, so that `logits > 0` is the answer. The largest mistakes draw the
gradient, whatever their number: one right class among thousands needs no weights. (2) is the form for soft labels t in
[0, 1]; for 0 and 1 it is (1).

A logit of -inf takes no part, as class or as mistake: the way to mask, and what GlobalPointer gives to padding and to
ends before starts. Logits are read in float32 or better.

The sparse form is given the indices of P and builds no labels: of 50 relations over 256 x 256 spans in a batch of 8
these would be 26 million numbers. The post takes the sum over N as the difference of the sums over all and over P,
clipped at 1e-7; that loses N as soon as a right class stands 16 nats above the others. Here P is cut out of a copy of
the logits instead, exact at any distance.

For GlobalPointer, logits (B, H, T, T): `multilabel_cross_entropy(logits.flatten(2), target.flatten(2), "none")` is
(B, H); the author sums over the H types and averages over the batch.

Source: kexue.fm/archives/7359 (1), 9064 (2), 8373 (spans) and 8888 (sparse); Su et al., 2022, arXiv:2208.02955.
Shapes: ... any shape of items, C classes, P right classes with their padding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.precision import wide
from danlu.math.reduce import reduce_loss

__all__ = ["multilabel_cross_entropy", "sparse_multilabel_cross_entropy"]


def multilabel_cross_entropy(logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Multi-label cross-entropy with labels for every class, eq. (2).

    Args:
        logits: (..., C), any float dtype; -inf masks a class.
        target: (..., C), 0 or 1, bool, or soft labels in [0, 1]; anything at masked classes. A constant: no gradient
            reaches it.
        reduction: "mean" or "sum" over the items, or "none".

    Returns:
        Scalar, or (...) for "none"; >= 0, float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes differ, a label outside [0, 1] (the first is named), or an unknown reduction.

    >>> multilabel_cross_entropy(torch.zeros(1, 4), torch.tensor([[1, 0, 0, 0]]))  # log(1 + 3) + log(1 + 1)
    tensor(2.0794)
    """
    if logits.ndim < 1 or logits.shape != target.shape:
        raise ValueError(
            f"multilabel_cross_entropy needs a label for every logit; got logits {tuple(logits.shape)} and target "
            f"{tuple(target.shape)}. For lists of class indices use sparse_multilabel_cross_entropy"
        )
    s = wide(logits)
    keep = s != -torch.inf
    t = torch.where(keep, target.detach().to(s.dtype), 0.0)
    if not torch.compiler.is_compiling():
        wrong = ~((t >= 0) & (t <= 1))
        if wrong.any():
            place = tuple(wrong.nonzero()[0].tolist())
            raise ValueError(
                f"labels must lie in [0, 1], got {t[place].item():g} at {place}; mask a class by a logit of -inf"
            )
    s = torch.where(keep, s, 0.0)
    negative = s + torch.where(keep, torch.log1p(-t), -torch.inf)  # (..., C)
    positive = torch.where(keep, t.log(), -torch.inf) - s  # (..., C)
    return reduce_loss(_log1p_sum_exp(negative) + _log1p_sum_exp(positive), reduction)  # eq. (2)


def sparse_multilabel_cross_entropy(
    logits: Tensor, positive_ids: Tensor, mask_zero: bool = False, reduction: str = "mean"
) -> Tensor:
    """Multi-label cross-entropy with the right classes as lists of indices, eq. (1).

    Args:
        logits: (..., C), any float dtype; -inf masks a class.
        positive_ids: (..., P) integers in [0, C), padded with -1; a class named twice counts once.
        mask_zero: class 0 is padding, as bert4keras has it: the lists are padded with 0, and 0 counts neither as right
            nor as wrong.
        reduction: "mean" or "sum" over the items, or "none".

    Returns:
        Scalar, or (...) for "none"; >= 0, float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes do not fit, an index outside [0, C) that is not -1 (the first is named), or an unknown
            reduction.

    >>> sparse_multilabel_cross_entropy(torch.zeros(1, 4), torch.tensor([[2, -1]]))  # log(1 + 3) + log(1 + 1)
    tensor(2.0794)
    """
    integers = not positive_ids.is_floating_point() and positive_ids.dtype != torch.bool
    fits = 1 <= logits.ndim == positive_ids.ndim and positive_ids.shape[:-1] == logits.shape[:-1]
    if not (integers and fits and logits.shape[-1] > mask_zero):
        raise ValueError(
            "sparse_multilabel_cross_entropy needs logits (..., C) and integer positive_ids (..., P), and a class "
            f"besides the padding; got {tuple(logits.shape)} and {positive_ids.dtype} {tuple(positive_ids.shape)}. For "
            "a label for every class use multilabel_cross_entropy"
        )
    classes = logits.shape[-1]
    if not torch.compiler.is_compiling():
        outside = (positive_ids < -1) | (positive_ids >= classes)
        if outside.any():
            place = tuple(outside.nonzero()[0].tolist())
            raise ValueError(
                f"positive_ids must lie in [0, {classes}) for {classes} classes, got {positive_ids[place].item()} at "
                f"{place}; pad with -1"
            )
    s, ids = wide(logits), positive_ids.long()
    if mask_zero:
        s, ids = s[..., 1:], ids - 1  # 0 becomes the padding -1
    ids = F.pad(ids, (0, 1), value=-1).sort(-1).values  # (..., P + 1), now in every list at least one -1
    named = ids >= 0
    named[..., 1:] &= ids[..., 1:] != ids[..., :-1]
    right = s.gather(-1, ids.masked_fill(~named, 0))  # (..., P + 1)
    right = torch.where(named & (right != -torch.inf), -right, -torch.inf)
    wrong = F.pad(s, (0, 2))  # (..., C + 2): the logits, the class of logit 0, a place for the padding
    wrong.scatter_(-1, ids.masked_fill(~named, s.shape[-1] + 1), -torch.inf)
    return reduce_loss(wrong.logsumexp(-1) + _log1p_sum_exp(right), reduction)  # eq. (1)


def _log1p_sum_exp(x: Tensor) -> Tensor:
    """log(1 + sum exp(x)) over the last dimension, which may hold nothing but -inf."""
    return F.pad(x, (0, 1)).logsumexp(-1)
