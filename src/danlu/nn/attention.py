r"""Multi-head attention over padded, packed or cached sequences, with the position biases of all our families.

    scores_jl = (q_j . k_l + q_j . R_{jl}) / sqrt(k) + b_{jl} + previous_jl                                   (1)
    output_j  = sum_l softmax_l(scores_jl) (v_l + R_{jl})                                                      (2)

R are NEZHA's fixed relative vectors, b an additive bias (T5's buckets), previous RealFormer's scores of the layer
before; each is absent in most models. Where neither R nor previous is asked for, the fused kernel
`scaled_dot_product_attention` computes (1) and (2), or, under dropout on the CPU, `danlu.nn.packed_attention`. A query
that may see no key sees itself: rows of padding stay finite and nobody reads them.

Source: Vaswani et al., 2017, arXiv:1706.03762; Wei et al., 2019, arXiv:1909.00204 (NEZHA); Raffel et al., 2019,
arXiv:1910.10683 (T5, no scale); He et al., 2020, arXiv:2012.11747 (RealFormer); Dong et al., 2019, arXiv:1905.03197
(UniLM).
Shapes: B sequences, T queries, S keys, H heads, K features of a key, V of a value, N tokens, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math.precision import wide_dtype
from danlu.nn.layout import Layout, padded_layout
from danlu.nn.packed_attention import packed_attention
from danlu.nn.positions import apply_rotary

if TYPE_CHECKING:
    from danlu.nn.kv_cache import KVCache

__all__ = ["AttentionContext", "MultiHeadAttention", "attend", "causal_mask", "over_batch", "some_key", "unilm_mask"]


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """True where a query may see a key; the last query sees all keys.

    Args:
        queries: number of queries, T.
        keys: number of keys, S >= T: the S - T first ones lie before all queries.
        device: where the mask is made.

    Returns:
        (T, S) bool.

    >>> causal_mask(2, 3)
    tensor([[ True,  True, False],
            [ True,  True,  True]])
    """
    first = torch.arange(keys - queries, keys, device=device)
    return torch.arange(keys, device=device) <= first[:, None]


def unilm_mask(segment_ids: Tensor) -> Tensor:
    """True where a query may see a key: all of the source, segment 0, and of the target what stands before it.

    Args:
        segment_ids: (B, T) int64, 0 for the source and 1 for the target.

    Returns:
        (B, T, T) bool, queries by keys.

    >>> unilm_mask(torch.tensor([[0, 0, 1]]))[0]
    tensor([[ True,  True, False],
            [ True,  True, False],
            [ True,  True,  True]])
    """
    steps = segment_ids.cumsum(1)
    return steps[:, None, :] <= steps[:, :, None]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float = 1.0,
    dropout: float = 0.0,
    relative: tuple[Tensor, Tensor] | None = None,
    previous: Tensor | None = None,
    return_scores: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention outputs, eqs. (1) and (2), by the fused kernel where nothing forbids it.

    Args:
        query: (B, H, T, K), any float dtype.
        key: (B, H, S, K).
        value: (B, H, S, V).
        mask: bool, broadcastable to (B, H, T, S), True where a query may see a key; None: everywhere.
        bias: float, broadcastable to (B, H, T, S), added to the scores; None: nothing.
        causal: also hide the keys after a query (the last query is at the last key).
        scale: the factor of the scores, 1 / sqrt(K) or 1.
        dropout: probability of dropping an attention weight, in [0, 1).
        relative: NEZHA's vectors (P, K) and the row of each pair (T, S) int64, shared by heads; None: none.
        previous: (B, H, T, S) scores of an earlier layer; None: nothing.
        return_scores: also return what the next layer adds, scores before bias and mask.

    Returns:
        (B, H, T, V) outputs, and the scaled scores (B, H, T, S) or None.

    >>> attend(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0], [1.0]]]]))[0]
    tensor([[[[0.5000]]]])
    """
    if relative is None and previous is None and not return_scores:
        if mask is None and bias is None and not causal and not dropout and _trains_in_bfloat16(query, key, value):
            with torch.autocast("cpu", enabled=False):  # the fused kernel's backward pass takes several times as long
                return (query * scale @ key.mT).softmax(-1) @ value, None  # eqs. (1) and (2)
        if causal and (mask is not None or bias is not None or query.shape[2] != key.shape[2]):
            below = causal_mask(query.shape[2], key.shape[2], query.device)
            mask, causal = (below if mask is None else mask & below), False
        fused = mask
        if bias is not None:
            fused = bias.to(query.dtype)
            if mask is not None:
                fused = fused.masked_fill(~mask, -torch.inf)
        output = F.scaled_dot_product_attention(query, key, value, fused, dropout, is_causal=causal, scale=scale)
        return output, None
    scores = query @ key.mT  # (B, H, T, S)
    if relative is not None:
        table, pairs = relative  # (P, K), (T, S)
        table = table.to(query.dtype)
        by_row = query @ table.mT  # (B, H, T, P): 2 clip + 1 products a query instead of S
        scores = scores + by_row.gather(3, pairs.expand(*scores.shape))  # eq. (1)
    scores = scores * scale
    handed_on = scores
    if bias is not None:
        scores = scores + bias
    if previous is not None:
        scores = scores + previous
    if causal:
        below = causal_mask(query.shape[2], key.shape[2], query.device)
        mask = below if mask is None else mask & below
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    exact = wide_dtype(scores)
    weights = F.dropout(scores.softmax(-1, dtype=exact).to(value.dtype), dropout, dropout > 0)
    output = weights @ value
    if relative is not None:
        table, pairs = relative
        mass = weights.new_zeros(*weights.shape[:3], len(table))
        mass = mass.scatter_add(3, pairs.expand(*weights.shape), weights)  # weight of each relative vector
        output = output + mass @ table.to(value.dtype)  # eq. (2)
    return output, handed_on if return_scores else None


def _trains_in_bfloat16(*parts: Tensor) -> bool:
    """Whether a backward pass in bfloat16 on the CPU will follow."""
    plain = all(part.device.type == "cpu" and part.dtype == torch.bfloat16 for part in parts)
    return plain and any(part.requires_grad for part in parts) and torch.is_grad_enabled()


@dataclass
class AttentionContext:
    """What the attention layers of one forward pass share.

    Args:
        layout: which tokens form sequences.
        causal: no token sees a later one.
        unilm: (N,) int64 segments of the tokens, where the source is read in both directions; None: not asked for.
        rotary: cos and sin (N, K) of the tokens' places; None: no rotation.
        relative: NEZHA's vectors (P, K) and rows (longest, longest); None: none.
        bias: (1, H, longest, longest) bias of the scores; None: none.
        dropout: of the attention weights.
        realformer: "off", "sum" (every earlier layer's scores) or "last" (bert4keras: only those of the layer before).
        cache: keys and values of earlier calls; None: this call is all there is.
        scores: RealFormer's scores handed on, one a group; filled while the layers run.
        mask_cache: what `masks` has made.
    """

    layout: Layout
    causal: bool = False
    unilm: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    relative: tuple[Tensor, Tensor] | None = None
    bias: Tensor | None = None
    dropout: float = 0.0
    realformer: str = "off"
    cache: KVCache | None = None
    scores: list[Tensor] = field(default_factory=list)
    mask_cache: list[Tensor | None] | None = None

    def is_plain(self) -> bool:
        """Whether eqs. (1) and (2) have no part but the products, so that one fused call a group does it all."""
        absent = (self.rotary, self.relative, self.bias, self.cache)
        return self.realformer == "off" and all(part is None for part in absent)

    def drops_in_one_node(self, x: Tensor) -> bool:
        """Whether `packed_attention` knows all that is asked for and serves better than a call a group."""
        knows = self.realformer == "off" and self.relative is None and self.cache is None and 0 < self.dropout < 1
        return knows and x.device.type == "cpu" and not torch.compiler.is_compiling()

    def masks(self) -> list[Tensor | None]:
        """One bool mask (count, 1, T or 1, T) a group, or None where every key is seen (up to causality)."""
        if self.mask_cache is None:
            segments = [None] * len(self.layout.groups) if self.unilm is None else self.layout.split(self.unilm)
            self.mask_cache = [self._mask(part) for part in segments]
        return self.mask_cache

    def remember(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store keys (N, H, K) and values of new tokens; returns all keys and values (R, S, H, ...) and their mask."""
        assert self.cache is not None
        cache, shape = self.cache, self.layout.shape
        cache.store(layer, key.unflatten(0, shape), value.unflatten(0, shape))
        if not cache.length:  # the prompt: the cache holds nothing else
            mask = self.masks()[0]
            if mask is None and self.causal:
                mask = causal_mask(shape[1], shape[1], key.device)[None, None]
            return key.unflatten(0, shape), value.unflatten(0, shape), mask
        keys, values = cache.read(layer, shape[1])
        mask = causal_mask(shape[1], keys.shape[1], key.device)[None, None]
        if cache.keep is not None:
            mask = mask & cache.keep[:, None, None, : keys.shape[1]]
        return keys, values, mask

    def _mask(self, segments: Tensor | None) -> Tensor | None:
        keep = self.layout.keep
        mask = None if segments is None else unilm_mask(segments)[:, None]  # (B, 1, T, T)
        if keep is None:
            return mask
        if mask is None and not self.causal:
            return keep[:, None, None, :]
        if mask is None:
            mask = causal_mask(keep.shape[1], keep.shape[1], keep.device)[None, None]
        itself = torch.eye(keep.shape[1], dtype=torch.bool, device=keep.device)
        return (mask & keep[:, None, None, :]) | itself


def over_batch(layer: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """A layer that works on flattened tokens applied to a padded batch.

    Args:
        layer: takes tokens (N, D) and an AttentionContext.
        x: (B, T, D).
        mask: (B, T) bool, True for tokens; None: all.

    Returns:
        (B, T, D); rows of padding have no meaning.

    Raises:
        ValueError: x is not (B, T, D), or the mask not (B, T).
    """
    if x.ndim != 3 or (mask is not None and mask.shape != x.shape[:2]):
        given = "no mask" if mask is None else f"mask {tuple(mask.shape)}"
        raise ValueError(
            f"without an AttentionContext x must be (B, T, D) and mask (B, T); got {tuple(x.shape)} and {given}"
        )
    layout = padded_layout(x.shape[0], x.shape[1], None if mask is None else some_key(mask.bool()), x.device)
    return layout.scatter(layer(layout.gather(x), AttentionContext(layout)))


def some_key(keep: Tensor) -> Tensor:
    """The mask with one key for rows that have none, whose outputs nobody reads but which must stay finite.

    Args:
        keep: (B, T) bool, True where a key may be seen.

    Returns:
        (B, T) bool without empty rows.
    """
    first = torch.arange(keep.shape[1], device=keep.device) == 0
    return keep | (first & ~keep.any(1, keepdim=True))


class MultiHeadAttention(nn.Module):
    """Attention of N tokens over the sequences they form, or over a given context.

    Parameter names are `query`, `key`, `value` (HK or HV, D) and `output` (D, HV), as `nn.Linear` stores them.
    Source: see the module. Shapes: see the module.
    """

    def __init__(
        self, dim: int, num_heads: int, key_dim: int, value_dim: int, *, bias: bool = True, scaled: bool = True
    ) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.value_dim = num_heads, key_dim, value_dim
        self.scale = key_dim**-0.5 if scaled else 1.0
        self.query = nn.Linear(dim, num_heads * key_dim, bias=bias)
        self.key = nn.Linear(dim, num_heads * key_dim, bias=bias)
        self.value = nn.Linear(dim, num_heads * value_dim, bias=bias)
        self.output = nn.Linear(num_heads * value_dim, dim, bias=bias)
        self.joined: nn.Module | None = None  # one product for all three, put here by danlu.text.inference

    def forward(self, x: Tensor, context: AttentionContext | Tensor | None = None, layer: int = 0) -> Tensor:
        """Outputs for tokens (N, D) in a context, or for a batch (B, T, D) with a mask (B, T), True for tokens."""
        if not isinstance(context, AttentionContext):
            return over_batch(self, x, context)
        if self.joined is not None and context.is_plain() and self.key_dim == self.value_dim:
            return self.output(self._side_by_side(self.joined(x), context))
        query, key, value = self.project(x)  # (N, H, K or V)
        if context.rotary is not None:
            cos, sin = (part[:, None] for part in context.rotary)  # (N, 1, K)
            query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)
        if context.cache is not None:
            return self.output(self._cached(query, key, value, context, layer).flatten(1))
        if context.drops_in_one_node(x):
            output = packed_attention(
                query, key, value, context.layout.groups, masks=context.masks(), bias=context.bias,
                causal=context.causal, scale=self.scale, dropout=context.dropout,
            )  # fmt: skip
            return self.output(output.flatten(1))
        groups = zip(*(context.layout.split(part) for part in (query, key, value)), context.masks(), strict=True)
        outputs, handed = [], []
        for i, (q, k, v, mask) in enumerate(groups):
            length = q.shape[1]
            output, scores = attend(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
                mask=mask, causal=context.causal and mask is None, scale=self.scale, dropout=context.dropout,
                bias=None if context.bias is None else context.bias[:, :, :length, :length],
                relative=None if context.relative is None
                else (context.relative[0], context.relative[1][:length, :length]),
                previous=context.scores[i] if context.scores else None,
                return_scores=context.realformer != "off",
            )  # fmt: skip
            outputs.append(output.transpose(1, 2).flatten(2))
            if scores is not None:
                handed.append(
                    scores if context.realformer == "last" or not context.scores else scores + context.scores[i]
                )
        context.scores = handed
        return self.output(context.layout.join(outputs))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (N, H, K or V) of hidden states (N, D)."""
        if self.joined is not None:
            keys, values = self.num_heads * self.key_dim, self.num_heads * self.value_dim
            query, key, value = self.joined(x).split([keys, keys, values], dim=-1)
        else:
            query, key, value = self.query(x), self.key(x), self.value(x)
        return (
            query.unflatten(1, (self.num_heads, self.key_dim)),
            key.unflatten(1, (self.num_heads, self.key_dim)),
            value.unflatten(1, (self.num_heads, self.value_dim)),
        )

    def _side_by_side(self, joined: Tensor, context: AttentionContext) -> Tensor:
        """What enters the last product, (N, HV), from queries, keys and values side by side (N, 3HK)."""
        outputs = []
        for part, mask in zip(context.layout.split(joined), context.masks(), strict=True):
            query, key, value = part.unflatten(2, (3, self.num_heads, self.key_dim)).permute(2, 0, 3, 1, 4)
            output = F.scaled_dot_product_attention(
                query, key, value, mask, context.dropout, is_causal=context.causal and mask is None, scale=self.scale
            )
            outputs.append(output.transpose(1, 2).flatten(2))
        return context.layout.join(outputs)

    def _cached(self, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext, layer: int) -> Tensor:
        cache, plain = context.cache, context.relative is None and context.realformer == "off"
        assert cache is not None
        new = query.unflatten(0, context.layout.shape)  # (R, t, H, K)
        if plain and cache.length:
            cache.store(layer, key.unflatten(0, context.layout.shape), value.unflatten(0, context.layout.shape))
            bias = None if context.bias is None else context.bias[:, :, cache.length : cache.length + new.shape[1]]
            return cache.attend(layer, new, self.scale, bias=bias).flatten(0, 1)
        keys, values, mask = context.remember(layer, key, value)  # (R, S, H, K or V)
        length, first = keys.shape[1], keys.shape[1] - new.shape[1]
        output, scores = attend(
            new.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), mask=mask, scale=self.scale,
            bias=None if context.bias is None else context.bias[:, :, first:length, :length],
            relative=None if context.relative is None
            else (context.relative[0], context.relative[1][first:length, :length]),
            previous=context.scores[0] if context.scores else None, return_scores=context.realformer != "off",
        )  # fmt: skip
        if scores is not None:
            context.scores = [
                scores if context.realformer == "last" or not context.scores else scores + context.scores[0]
            ]
        return output.transpose(1, 2).flatten(0, 1)

    def cross(self, x: Tensor, context: Tensor, *, mask: Tensor | None, bias: Tensor | None, dropout: float) -> Tensor:
        """Attention of (B, T, D) over a context (B, S, D); mask (B, S) bool, bias (1, H, T, S)."""
        key = self.key(context).unflatten(-1, (self.num_heads, self.key_dim))
        value = self.value(context).unflatten(-1, (self.num_heads, self.value_dim))
        return self.over(x, key, value, mask=mask, bias=bias, dropout=dropout)

    def over(
        self, x: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, bias: Tensor | None, dropout: float = 0.0
    ) -> Tensor:
        """Attention of (B, T, D) over keys (B, S, H, K) and values (B, S, H, V) made before."""
        query = self.query(x).unflatten(-1, (self.num_heads, self.key_dim))
        output, _ = attend(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
            mask=None if mask is None else mask[:, None, None, :], bias=bias, scale=self.scale, dropout=dropout,
        )  # fmt: skip
        return self.output(output.transpose(1, 2).flatten(2))
