r"""Smooth stand-ins for max, argmax and rank, and the sharpness K that all smooth functions of danlu.math share.

    max      m + (1/K) log sum_i exp(K (x_i - m))   or   sum_i x_i p_i,      m = max x                       (1)
    one-hot  p = softmax(K x), the gradient of the first form of (1)                                         (2)
    argmax   sum_i i p_i                                                                                     (3)
    rank     1/2 + sum_j sigma(K (x_i - x_j))        1 for the smallest                                      (4)
    K(step)  start (end / start)^(step / steps)                                                              (5)

sigma is the logistic function. K goes with 1 / (unit of x): divide x by x.std() where the unit means nothing. How far
each form is from the hard one stands in `danlu.math.smooth_bound`; all become exact as K grows, and lose their
gradient, so let K grow in training, eq. (5). The two forms of max differ by the entropy of p over K, and the hard max
lies between them. -inf is an item that is not there.

Source: kexue.fm/archives/6620 (2019) for max, one-hot and argmax; the others are the same idea.
Shapes: any; n items along `dim`.
"""

import torch
from torch import Tensor

from danlu.math.attention_normalize import attention_normalize
from danlu.math.semiring import logsumexp
from danlu.math.smooth_step import check_sharpness, wide

__all__ = [
    "sharpness_at",
    "smooth_argmax",
    "smooth_max",
    "smooth_min",
    "smooth_onehot",
    "smooth_rank",
]


def smooth_max(x: Tensor, sharpness: float = 1.0, dim: int = -1, method: str = "logsumexp") -> Tensor:
    """The largest item, eq. (1): from above by "logsumexp", from below by "mean".

    Args:
        x: any float dtype; -inf for items that are not there.
        sharpness: K > 0.
        dim: the dimension of the items, not empty.
        method: "logsumexp" or "mean" (weighted with eq. (2)).

    Returns:
        x's shape without `dim`, in its dtype; -inf where no item is there.

    Raises:
        ValueError: sharpness is not > 0, an unknown method, or no items along dim.

    >>> smooth_max(torch.tensor([2.0, 2.0]), sharpness=10.0)  # 2 + log(2) / 10
    tensor(2.0693)
    """
    check_sharpness(sharpness)
    if method not in ("logsumexp", "mean"):
        raise ValueError(f"method must be 'logsumexp' (above the max) or 'mean' (below it), got {method!r}")
    below, top = _below_top(x, dim)  # (..., n, ...), (..., 1, ...)
    if method == "logsumexp":
        error = logsumexp(below * sharpness, dim) / sharpness
    else:
        p = attention_normalize(below * sharpness, dim=dim)
        error = (p * torch.where(below == -torch.inf, 0.0, below)).sum(dim)
    return (top.squeeze(dim) + error).to(x.dtype)  # eq. (1)


def smooth_min(x: Tensor, sharpness: float = 1.0, dim: int = -1, method: str = "logsumexp") -> Tensor:
    """The smallest item, minus eq. (1) of -x: from below by "logsumexp", from above by "mean".

    Args:
        x: any float dtype; inf for items that are not there.
        sharpness: K > 0.
        dim: the dimension of the items, not empty.
        method: "logsumexp" or "mean".

    Returns:
        x's shape without `dim`, in its dtype.

    Raises:
        ValueError: sharpness is not > 0, an unknown method, or no items along dim.

    >>> smooth_min(torch.tensor([2.0, 2.0]), sharpness=10.0)
    tensor(1.9307)
    """
    return -smooth_max(-x, sharpness, dim, method)


def smooth_onehot(x: Tensor, sharpness: float = 1.0, dim: int = -1) -> Tensor:
    """The one-hot vector of the largest item, eq. (2).

    Args:
        x: any float dtype; -inf for items that are not there.
        sharpness: K > 0.
        dim: the dimension of the items, not empty.

    Returns:
        Weights in the shape and dtype of x that sum to 1 (to 0 where no item is there); ties share alike.

    Raises:
        ValueError: sharpness is not > 0, or no items along dim.

    >>> smooth_onehot(torch.tensor([1.0, 0.0]).log())  # as likely as the numbers say
    tensor([1., 0.])
    """
    check_sharpness(sharpness)
    return attention_normalize(_below_top(x, dim)[0] * sharpness, dim=dim).to(x.dtype)  # eq. (2)


def smooth_argmax(x: Tensor, sharpness: float = 1.0, dim: int = -1) -> Tensor:
    """The expected position of the largest item, eq. (3); no index: between two equal peaks it names neither.

    Args:
        x: any float dtype; -inf for items that are not there.
        sharpness: K > 0.
        dim: the dimension of the items, not empty.

    Returns:
        x's shape without `dim`, in its dtype, in [0, n - 1].

    Raises:
        ValueError: sharpness is not > 0, or no items along dim.

    >>> smooth_argmax(torch.tensor([0.0, 9.0, 0.0]))
    tensor(1.)
    """
    check_sharpness(sharpness)
    p = attention_normalize(_below_top(x, dim)[0] * sharpness, dim=dim)
    place = torch.arange(x.shape[dim], dtype=p.dtype, device=x.device)
    return (p.movedim(dim, -1) @ place).to(x.dtype)  # eq. (3)


def smooth_rank(x: Tensor, sharpness: float = 1.0, dim: int = -1) -> Tensor:
    """The rank of every item, 1 for the smallest, eq. (4); all pairs are compared: n^2 memory.

    Args:
        x: any float dtype, finite.
        sharpness: K > 0.
        dim: the dimension of the items.

    Returns:
        The shape and dtype of x; ties have the mean of their ranks, and all ranks sum to n (n + 1) / 2.

    Raises:
        ValueError: sharpness is not > 0, or no items along dim.

    >>> smooth_rank(torch.tensor([5.0, -5.0, 5.0]), sharpness=100.0)
    tensor([2.5000, 1.0000, 2.5000])
    """
    check_sharpness(sharpness)
    y = wide(_below_top(x, dim)[0]).movedim(dim, -1)  # (..., n)
    rank = 0.5 + torch.sigmoid((y[..., :, None] - y[..., None, :]) * sharpness).sum(-1)  # eq. (4)
    return rank.movedim(-1, dim).to(x.dtype)


def sharpness_at(step: int, steps: int, end: float, start: float = 1.0) -> float:
    """The sharpness at a step of a geometric schedule, eq. (5): soft first, hard at last.

    Args:
        step: of training, from 0; beyond `steps` the schedule stands still.
        steps: length of the schedule, >= 1.
        end: K at its end, > 0.
        start: K at step 0, > 0.

    Returns:
        K.

    Raises:
        ValueError: steps < 1, or a sharpness that is not > 0.

    >>> [sharpness_at(step, 2, end=100.0) for step in (0, 1, 2, 3)]
    [1.0, 10.0, 100.0, 100.0]
    """
    check_sharpness(start)
    check_sharpness(end)
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}; for a constant sharpness no schedule is needed")
    return start * (end / start) ** (min(max(step, 0), steps) / steps)  # eq. (5)


def _below_top(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """x minus its largest item, and that item without gradient (-inf where there is none): nothing overflows."""
    if not x.ndim or not x.shape[dim]:
        raise ValueError(f"x needs at least one item along dim={dim}, got shape {tuple(x.shape)}")
    y = wide(x)
    top = y.detach().amax(dim, keepdim=True)
    return y - torch.where(top == -torch.inf, 0.0, top), top
