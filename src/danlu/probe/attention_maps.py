r"""Attention maps: the weights of every layer and head of an encoder, and what a head is like in two numbers.

    entropy of a head   mean over tokens i of  - sum_j a_ij log a_ij      nats; log T where all are alike          (1)
    distance of a head  mean over tokens i of    sum_j a_ij |i - j|       tokens                                  (2)

The weights are read where the model computes them (`danlu.train.capture`), so any encoder will do, with fused attention
too; they are those before dropout, the model runs in evaluation mode. A weight is a share of what flows through one
head in one layer: no measure of what matters to the output, for which see `danlu.probe.impact_matrix`.

Source: kexue.fm/archives/6575 (reading inner tensors); Clark et al., 2019, arXiv:1906.04341 (entropy of heads); Vig &
Belinkov, 2019, arXiv:1906.04284 (distance).
Shapes: L layers, B sentences, H heads, T tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from danlu.math.precision import wide
from danlu.probe._masked_states import evaluating, parameter_names
from danlu.train.capture import capture

__all__ = ["AttentionMaps", "attention_maps", "head_distance", "head_entropy"]


@dataclass(frozen=True)
class AttentionMaps:
    """Weights by layer, the modules they come from, which tokens are real, and their texts."""

    weights: Tensor  # (L, B, H, T, T), queries by keys; 0 at padding
    layers: tuple[str, ...]  # names of the modules
    mask: Tensor  # (B, T) bool
    tokens: tuple[tuple[str, ...], ...] = ()  # of each sentence, its real ones

    @property
    def entropy(self) -> Tensor:
        """(L, H), eq. (1)."""
        return head_entropy(self.weights, self.mask)

    @property
    def distance(self) -> Tensor:
        """(L, H), eq. (2)."""
        return head_distance(self.weights, self.mask)


def attention_maps(model: nn.Module, ids: Tensor, mask: Tensor | None = None, tokenizer: Any = None) -> AttentionMaps:
    """Attention weights of all layers and heads for a batch.

    Args:
        model: an encoder of danlu or HuggingFace, or any module of (ids, mask); run in evaluation mode, then put back.
        ids: (B, T) int64 token ids.
        mask: (B, T) bool, True for tokens; None: all are.
        tokenizer: of danlu or HuggingFace, for the texts of the tokens; None: their ids stand for them.

    Returns:
        The weights on the CPU in float32 (float64 of a float64 model), rows and columns of padding 0.

    Raises:
        ValueError: shapes do not fit, no attention was computed, or layers have different numbers of heads or keys.

    >>> class Model(nn.Module):
    ...     def forward(self, ids, mask):
    ...         x = ids[:, None, :, None].float()  # one head
    ...         return (x @ x.mT).masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1)[:, 0]
    >>> attention_maps(Model(), torch.zeros(1, 2, dtype=torch.long)).weights
    tensor([[[[[0.5000, 0.5000],
               [0.5000, 0.5000]]]]])
    """
    if mask is None:
        mask = torch.ones(ids.shape, dtype=torch.bool, device=ids.device)
    if ids.ndim != 2 or mask.shape != ids.shape or mask.dtype != torch.bool or not ids.numel():
        raise ValueError(
            f"attention_maps needs ids (B, T) with tokens and a bool mask of that shape; got {tuple(ids.shape)} and "
            f"{mask.dtype} {tuple(mask.shape)}. For one sentence pass ids[None]."
        )
    batch, length = ids.shape
    found: list[Tensor] = []
    names: list[str] = []
    with evaluating(model), capture(model, "**:attention") as caught:
        _call(model, ids, mask)
    for address in caught:
        for weights in caught.calls(address):
            if weights.ndim != 4 or weights.shape[0] != batch or weights.shape[2:] != (length, length):
                raise ValueError(
                    f"{address} computed weights {tuple(weights.shape)}, expected ({batch}, heads, {length}, "
                    f"{length}): the model packs or pools tokens; give one sentence at a time, without padding"
                )
            found.append(weights)
            names.append(address.rpartition(":")[0])
    if not found:
        raise ValueError(
            f"no attention weights were met in {type(model).__name__}: it computes no softmax that "
            "`danlu.train.capture` can see"
        )
    if len({weights.shape[1] for weights in found}) > 1:
        heads = ", ".join(f"{name}: {weights.shape[1]}" for name, weights in zip(names, found, strict=True))
        raise ValueError(f"all layers must have as many heads, got {heads}; read them with danlu.train.capture")
    keep = (mask[:, None, :, None] & mask[:, None, None, :]).cpu()  # (B, 1, T, T)
    stacked = torch.stack([torch.where(keep, wide(w).cpu(), 0.0) for w in found])
    named: Any = getattr(tokenizer, "ids_to_tokens", None)
    if not callable(named):  # HuggingFace's; an attribute of that name is a dict there
        named = getattr(tokenizer, "convert_ids_to_tokens", lambda some: [str(i) for i in some])
    tokens = tuple(tuple(named(row[real].tolist())) for row, real in zip(ids, mask, strict=True))
    return AttentionMaps(stacked, tuple(names), mask.cpu(), tokens)


def head_entropy(weights: Tensor, mask: Tensor) -> Tensor:
    """Mean entropy of each head's rows in nats, eq. (1).

    Args:
        weights: (L, B, H, T, T), rows of real tokens sum to 1.
        mask: (B, T) bool, True for tokens.

    Returns:
        (L, H), in float32 or better; nan without any token.

    Raises:
        ValueError: a shape does not fit.

    >>> head_entropy(torch.full((1, 1, 1, 2, 2), 0.5), torch.tensor([[True, True]]))
    tensor([[0.6931]])
    """
    w = _checked("head_entropy", weights, mask)
    return _over_tokens(torch.special.entr(w).sum(-1), mask)  # eq. (1)


def head_distance(weights: Tensor, mask: Tensor) -> Tensor:
    """Mean distance in tokens that each head looks over, eq. (2).

    Args:
        weights: (L, B, H, T, T), rows of real tokens sum to 1.
        mask: (B, T) bool, True for tokens; distances count all positions.

    Returns:
        (L, H), in float32 or better; nan without any token.

    Raises:
        ValueError: a shape does not fit.

    >>> head_distance(torch.full((1, 1, 1, 2, 2), 0.5), torch.tensor([[True, True]]))
    tensor([[0.5000]])
    """
    w = _checked("head_distance", weights, mask)
    place = torch.arange(w.shape[-1], device=w.device)
    apart = (place[:, None] - place).abs().to(w.dtype)  # (T, T)
    return _over_tokens((w * apart).sum(-1), mask)  # eq. (2)


def _over_tokens(rows: Tensor, mask: Tensor) -> Tensor:
    """Mean of (L, B, H, T) over real tokens of all sentences."""
    real = mask[None, :, None, :].to(rows.device)
    return torch.where(real, rows, 0.0).sum((1, 3)) / mask.sum().to(rows.device)


def _checked(name: str, weights: Tensor, mask: Tensor) -> Tensor:
    if weights.ndim != 5 or weights.shape[3] != weights.shape[4] or mask.shape != (weights.shape[1], weights.shape[3]):
        raise ValueError(
            f"{name} needs weights (L, B, H, T, T) and mask (B, T); got {tuple(weights.shape)} and {tuple(mask.shape)}"
        )
    return wide(weights)


def _call(model: nn.Module, ids: Tensor, mask: Tensor) -> Any:
    """Run the model with padding in place: packed sentences have maps of many sizes."""
    names = parameter_names(model)
    if "attention_mask" in names:
        return model(input_ids=ids, attention_mask=mask.long())
    options: dict[str, Any] = {"pack": False} if "pack" in names else {}
    if "logits_at" in names:
        options["logits_at"] = torch.zeros_like(mask)  # no scores of the vocabulary
    return model(ids, mask=mask, **options) if "mask" in names else model(ids, mask)
