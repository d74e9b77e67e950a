r"""R-Drop: two dropout masks must predict alike.

    L = (CE(a, y) + CE(b, y)) / 2 + (alpha / 2) S(a, b)                                  (1)
    S(a, b) = (KL(a, b) + KL(b, a)) / 2                                                  (2)
    KL(p, q) = sum_c p_c (log p_c - log q_c)              one class of C               (3)
    KL(p, q) = sum_c of eq. (3) for (p_c, 1 - p_c)        C labels, each yes or no     (4)

a and b are what the model predicts for the same rows with two draws of dropout. Eq. (1) is half the paper's loss: the
paper sums the two cross entropies, the post takes their mean and divides the two divergences by 4, which leaves the
length of the gradient that of plain training. Both sides of S get gradients; no target is held fixed. A model without
active dropout makes S zero, and nothing warns of it.

One pass over the doubled rows (`doubled`, `RDrop`) does what two passes do, and batch norm sees the doubled batch. It
does not work where one dropout mask is drawn for the whole batch: then call the model twice and use `r_drop_loss`.
Without labels S alone is a loss for unlabelled rows; `kl_categorical` is also the divergence of virtual adversarial
training.

Source: Liang et al., 2021, arXiv:2106.14448; the factor of eq. (1) and alpha = 4 from kexue.fm/archives/8496.
Shapes: logits (..., C), target and mask (...), in front the B rows.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.precision import wide
from danlu.math.reduce import reduce_loss

__all__ = ["RDrop", "doubled", "kl_bernoulli", "kl_categorical", "r_drop_loss", "symmetric_divergence"]

Divergence = Callable[[Tensor, Tensor], Tensor]  # (..., C), (..., C) -> (...)


def r_drop_loss(
    first: Tensor, second: Tensor, target: Tensor, alpha: float = 4.0, mask: Tensor | None = None
) -> Tensor:
    """Mean cross entropy of two predictions of the same rows and what parts them, eq. (1).

    Args:
        first: (..., C) logits under one draw of dropout, any float dtype.
        second: (..., C) logits of the same rows under another.
        target: (...) int64 classes in [0, C); where it is -100 the item does not count.
        alpha: weight of the divergence, >= 0; the post's is 4.
        mask: (...) bool, True = keep; such as the real tokens of a tagger.

    Returns:
        Scalar, the mean over the kept items, float32 or better.

    Raises:
        ValueError: shapes that do not fit, or alpha < 0.

    >>> a = torch.tensor([[0.0, 0.0]])
    >>> r_drop_loss(a, a, torch.tensor([1]))  # no difference: the cross entropy alone, log 2
    tensor(0.6931)
    """
    if not alpha >= 0:
        raise ValueError(f"alpha must be >= 0, got {alpha}; 0 leaves the cross entropy of both predictions")
    if first.shape != second.shape or first.shape[:-1] != target.shape:
        raise ValueError(
            f"r_drop_loss needs two logits (..., C) of the same rows and target (...); got {tuple(first.shape)}, "
            f"{tuple(second.shape)} and {tuple(target.shape)}; labels are those of the rows before doubling"
        )
    counted = target != -100
    counted = counted if mask is None else counted & check_mask(mask, target.shape)
    safe = target.masked_fill(~counted, 0)
    items = [
        F.cross_entropy(wide(x).flatten(0, -2), safe.flatten(), reduction="none").view(target.shape)
        for x in (first, second)
    ]  # (...) each
    supervised = (items[0] + items[1]) / 2
    parted = symmetric_divergence(first, second, counted)  # eq. (2)
    return reduce_loss(supervised, "mean", counted) + alpha / 2 * parted  # eq. (1)


def symmetric_divergence(
    first: Tensor,
    second: Tensor,
    mask: Tensor | None = None,
    reduction: str = "mean",
    divergence: Divergence | None = None,
) -> Tensor:
    """How far two predictions of the same rows lie apart, eq. (2): R-Drop's loss for rows without labels.

    Args:
        first: (..., C) logits.
        second: (..., C) logits of the same rows.
        mask: (...) bool, True = keep.
        reduction: "mean" over the kept items, "sum" or "none".
        divergence: of two logits, one value an item; None: `kl_categorical`.

    Returns:
        Scalar, or (...) for "none", nats, >= 0; gradients flow to both.

    Raises:
        ValueError: the shapes differ, a mask that does not fit.

    >>> a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986123]])  # 1/2, 1/2 against 1/4, 3/4
    >>> symmetric_divergence(a, b)  # log(3) / 8
    tensor(0.1373)
    """
    if first.shape != second.shape:
        raise ValueError(
            f"two predictions of the same rows must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    kl = divergence or kl_categorical
    items = (kl(first, second) + kl(second, first)) / 2  # eq. (2)
    return reduce_loss(items, reduction, mask)


def kl_categorical(target: Tensor, logits: Tensor) -> Tensor:
    """The divergence KL(softmax(target), softmax(logits)) of each item, eq. (3).

    Args:
        target: (..., C) logits of p; -inf rules a class out.
        logits: (..., C) logits of q.

    Returns:
        (...), nats, float32 or better; gradients flow to both, so detach the side that is to stand still.

    >>> kl_categorical(torch.zeros(1, 2), torch.tensor([[0.0, 1.0986123]]))  # log(2) - log(3) / 2
    tensor([0.1438])
    """
    log_p, log_q = wide(target).log_softmax(dim=-1), wide(logits).log_softmax(dim=-1)
    difference = (log_p - log_q).masked_fill(log_p == -torch.inf, 0.0)  # 0 log 0 = 0
    return (log_p.exp() * difference).sum(dim=-1)  # eq. (3)


def kl_bernoulli(target: Tensor, logits: Tensor) -> Tensor:
    """The divergence of C independent yes-or-no predictions, summed over the last dimension, eq. (4).

    Args:
        target: (..., C) logits of p, before the sigmoid.
        logits: (..., C) logits of q.

    Returns:
        (...), nats, float32 or better; gradients flow to both.

    >>> kl_bernoulli(torch.zeros(1, 1), torch.tensor([[1.0986123]]))  # as two classes with logits 0 and log 3
    tensor([0.1438])
    """
    p, q = wide(target), wide(logits)
    yes = p.sigmoid() * (F.logsigmoid(p) - F.logsigmoid(q))
    no = (-p).sigmoid() * (F.logsigmoid(-p) - F.logsigmoid(-q))
    return (yes + no).sum(dim=-1)  # eq. (4)


def doubled(batch: Any) -> Any:
    """A batch with all its rows a second time behind the first, so that one pass makes both predictions.

    Args:
        batch: a tensor with the rows along dimension 0, or dicts, lists and tuples of such; None, numbers and tensors
            without dimensions stay as they are.

    Returns:
        The same structure, a dict for any mapping; `logits.chunk(2)` then gives the two predictions.

    Raises:
        TypeError: something in it that cannot be doubled, such as a string.

    >>> doubled({"ids": torch.tensor([[1], [2]]), "cache": None})
    {'ids': tensor([[1],
            [2],
            [1],
            [2]]), 'cache': None}
    """
    if isinstance(batch, Tensor):
        return torch.cat([batch, batch]) if batch.ndim else batch
    if batch is None or isinstance(batch, bool | int | float):
        return batch
    if isinstance(batch, Mapping):
        return {key: doubled(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(doubled, batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map(doubled, batch))
    raise TypeError(
        f"doubled can repeat the rows of tensors in dicts, lists and tuples, got {type(batch).__name__}; call the "
        "model twice and use r_drop_loss instead"
    )


class RDrop:
    """`r_drop_loss` from one pass over the doubled batch: `RDrop(4.0).loss(model, ids, label)`."""

    def __init__(self, alpha: float = 4.0) -> None:
        self.alpha = alpha

    def loss(
        self, logits_fn: Callable[[Any], Tensor], batch: Any, target: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The loss with its graph; logits_fn gets the doubled batch, target and mask are those of the single rows."""
        first, second = self.predictions(logits_fn, batch)
        return r_drop_loss(first, second, target, self.alpha, mask)

    def unlabelled(self, logits_fn: Callable[[Any], Tensor], batch: Any, mask: Tensor | None = None) -> Tensor:
        """The part of the loss that needs no labels, (alpha / 2) S."""
        first, second = self.predictions(logits_fn, batch)
        return self.alpha / 2 * symmetric_divergence(first, second, mask)

    def predictions(self, logits_fn: Callable[[Any], Tensor], batch: Any) -> tuple[Tensor, Tensor]:
        """Both predictions of the rows, each with its own draw of dropout."""
        logits = logits_fn(doubled(batch))
        if len(logits) % 2:
            raise ValueError(f"the logits of a doubled batch must have an even number of rows, got {len(logits)}")
        first, second = logits.chunk(2)
        return first, second


def check_mask(mask: Tensor, shape: torch.Size) -> Tensor:
    if mask.dtype != torch.bool or mask.shape != shape:
        raise ValueError(
            f"mask must be bool with the shape of target {tuple(shape)} (True = keep); got {mask.dtype} "
            f"{tuple(mask.shape)}; write mask.bool()"
        )
    return mask
