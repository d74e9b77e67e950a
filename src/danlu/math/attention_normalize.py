r"""What turns attention scores into weights: softmax, squared ReLU, or softmax with a length-aware scale.

    softmax:       A_ij = exp(a_ij) / sum_k exp(a_ik)                                         (1)
    squared_relu:  A_ij = relu(a_ij)^2 / n_i                                                  (2)
    softmax_plus:  A_ij = exp(c_i a_ij) / sum_k exp(c_i a_ik)                                 (3)
                   c_i  = log(max(n_i, 16)) / log 512                                         (4)

a are the scores of one query i against its keys j, already divided by sqrt(head size); n_i counts the keys that query i
may see. Over more keys the entropy of (1) grows and the attention thins out; c_i keeps it level, and is 1 at 512 keys,
the usual length of pretraining. The floor of 16 is the author's: on very short texts the scale did harm. The rows of
(2) do not sum to 1.

A key that the mask drops, or whose score is -inf, has weight 0 and does not count in n_i. A query without any key has
weights 0, not nan, and no gradient. (bert4keras counts by its mask alone, also where a float bias of -inf forbids.)

Source: Vaswani et al., 2017, arXiv:1706.03762 (1); Hua et al., 2022, arXiv:2202.10447 (2); kexue.fm/archives/8823 (3).
Shapes: any shape of queries, keys along one dimension.
"""

import math

import torch
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["attention_normalize", "softmax_plus_scale"]


def attention_normalize(scores: Tensor, mask: Tensor | None = None, kind: str = "softmax", dim: int = -1) -> Tensor:
    """The attention weights of scores, eq. (1), (2) or (3).

    Args:
        scores: any shape, any float dtype; -inf forbids a key.
        mask: bool, broadcastable to the scores, True = keep; None keeps all.
        kind: "softmax", "squared_relu" or "softmax_plus".
        dim: the dimension of the keys.

    Returns:
        Weights >= 0 in the shape and dtype of the scores; computed in float32 or better.

    Raises:
        ValueError: an unknown kind, or a mask that is not bool or does not fit the scores.

    >>> attention_normalize(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]), "squared_relu")
    tensor([0.5000, 4.5000, 0.0000])
    """
    if kind not in ("softmax", "squared_relu", "softmax_plus"):
        raise ValueError(f"kind must be 'softmax', 'squared_relu' or 'softmax_plus', got {kind!r}")
    a = wide(scores)
    keep = a != -torch.inf
    if mask is not None:
        _check_mask(mask, scores)
        keep = keep & mask
    if kind == "squared_relu":
        count = keep.sum(dim, keepdim=True).clamp_min(1)
        return (a.masked_fill(~keep, 0).relu().square() / count).to(scores.dtype)  # eq. (2)
    if kind == "softmax_plus":
        a = a * softmax_plus_scale(keep.sum(dim, keepdim=True)).to(a.dtype)
    lowest = torch.finfo(a.dtype).min  # not -inf, which makes a query without keys nan
    weights = a.masked_fill(~keep, lowest).softmax(dim)  # eq. (1), (3)
    return weights.masked_fill(~keep, 0).to(scores.dtype)


def softmax_plus_scale(count: Tensor) -> Tensor:
    """The factor c of eq. (4); multiplied into the queries it lets any fused softmax attention compute eq. (3).

    Args:
        count: how many keys each query may see, integers >= 0 of any shape.

    Returns:
        The shape of count, float64 where count is float64, else float32.

    >>> softmax_plus_scale(torch.tensor([3, 16, 512]))
    tensor([0.4444, 0.4444, 1.0000])
    """
    n = count if count.dtype == torch.float64 else count.to(torch.float32)
    return n.clamp_min(16).log() / math.log(512)  # eq. (4)


def _check_mask(mask: Tensor, scores: Tensor) -> None:
    try:
        fits = torch.broadcast_shapes(mask.shape, scores.shape) == scores.shape
    except RuntimeError:
        fits = False
    if mask.dtype != torch.bool or not fits:
        raise ValueError(
            f"mask must be bool, True = keep, and broadcast to the scores {tuple(scores.shape)}; got {mask.dtype} "
            f"{tuple(mask.shape)}. For padding of the keys alone write mask[:, None, None, :]"
        )
