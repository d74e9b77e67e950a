r"""Pooling without parameters: a text becomes one vector, the mean, the maximum or the first of its tokens.

    mean:            v = sum_t m_t h_t / sum_t m_t                                            (1)
    max:             v_d = max over kept t of h_td                                            (2)
    cls:             v = h_t at the first kept t                                              (3)
    first_last_mean: v = sum_t m_t (f_t + l_t) / 2 / sum_t m_t                                (4)

h are the hidden states of the last layer, m is 1 where a token is kept, f and l are the first and the last of the
layers given. The post on whitening takes the output of the first block as f; where a list begins with the embeddings,
as `hidden_states` of transformers does, `hidden_states[1:]` gives its form. Masked steps may hold anything, nan too. A
row that keeps nothing gives 0 (bert4keras: nan for the mean, -inf for the maximum) and no gradient.

Source: kexue.fm/archives/8069 (4); bert4keras' GlobalAveragePooling1D and GlobalMaxPooling1D.
Shapes: B batch, T tokens, D features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from danlu.math.precision import wide_dtype

__all__ = ["pool"]


def pool(hidden_states: Tensor | Sequence[Tensor], mask: Tensor | None = None, kind: str = "mean") -> Tensor:
    """One vector for each row of hidden states.

    Args:
        hidden_states: (B, T, D), or the outputs of several layers, each (B, T, D): "first_last_mean" takes the first
            and the last of them, the other kinds the last.
        mask: (B, T) bool, True = keep, any pattern; None keeps all.
        kind: "mean", "max", "cls" or "first_last_mean", eq. (1) to (4).

    Returns:
        (B, D) in the dtype of the hidden states; zeros for rows that keep nothing.

    Raises:
        ValueError: an unknown kind, shapes that do not fit, a mask that is not bool, or a single layer for
            "first_last_mean".

    >>> x = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> pool(x, torch.tensor([[True, True, False]])), pool(x, torch.tensor([[True, True, False]]), "max")
    (tensor([[2.]]), tensor([[3.]]))
    """
    if kind not in ("mean", "max", "cls", "first_last_mean"):
        raise ValueError(f"kind must be 'mean', 'max', 'cls' or 'first_last_mean', got {kind!r}")
    first, x = _layers(hidden_states, kind)
    keep = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
    if keep.dtype != torch.bool or keep.shape != x.shape[:2]:
        raise ValueError(
            f"mask must be bool {tuple(x.shape[:2])}, True = keep; got {keep.dtype} {tuple(keep.shape)}. "
            "Turn a 0/1 mask into one with mask.bool()"
        )
    if not x.shape[1]:
        return x.sum(1)  # no steps, nothing kept
    keep = keep[..., None]  # (B, T, 1)
    if kind == "max":
        return x.masked_fill(~keep, -torch.inf).amax(1).masked_fill(~keep.any(1), 0)  # (B, D)  eq. (2)
    if kind == "cls":
        start = keep.int().argmax(1, keepdim=True)  # (B, 1, 1)
        return x.masked_fill(~keep, 0).take_along_dim(start, 1)[:, 0]  # (B, D)  eq. (3)
    wide = wide_dtype(x)
    total = x.masked_fill(~keep, 0).sum(1, dtype=wide)  # (B, D); a fill, because 0 * nan is nan
    if kind == "first_last_mean":
        total = (total + first.masked_fill(~keep, 0).sum(1, dtype=wide)) / 2
    return (total / keep.sum(1).clamp_min(1)).to(x.dtype)  # (B, D)  eq. (1), (4)


def _layers(hidden_states: Tensor | Sequence[Tensor], kind: str) -> tuple[Tensor, Tensor]:
    """The first and the last layer."""
    layers = [hidden_states] if isinstance(hidden_states, Tensor) else list(hidden_states)
    shapes = sorted({tuple(layer.shape) for layer in layers})
    if len(shapes) != 1 or len(shapes[0]) != 3:
        raise ValueError(
            f"pool needs hidden states (batch, tokens, features), or a list of layers of that one shape; got {shapes}"
        )
    if kind == "first_last_mean" and len(layers) < 2:
        raise ValueError(
            "'first_last_mean' needs the outputs of at least two layers, got one; let the encoder return all its "
            "hidden states, or take kind='mean'"
        )
    return layers[0], layers[-1]
