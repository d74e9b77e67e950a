r"""Attention layers for a transformer block, told apart by one word, over padded, packed or cached sequences.

    softmax                                       `danlu.nn.attention`                                         (1)
    nystrom, nystrom_landmark, double_softmax     `danlu.nn.nystrom`, parameters of (1)                        (2)
    performer, linear                             `danlu.nn.linear_attention`, parameters of (1)               (3)
    synthesizer_...                               `danlu.nn.synthesizer`, parameters of its own                (4)

(2) and (3) read the weights of a softmax model as they are; performer adds its random projection, which is stored with
the weights and not trained. In a padded layout the mask goes in, in a packed one sequences of one length are computed
together, so that a sequence gets what it would get alone. (3) serves language models too: causal, with a cache of keys.
(4) can be causal or read the pair masks of UniLM, but every step of decoding needs all of the text.

What a kind cannot honour is refused when it is built: additive position biases and relative vectors (NEZHA, T5) and
RealFormer need scores of pairs, a causal model cannot pool (2), rotated positions mean nothing where no product of
a query and a key is taken. Rotations reach queries and keys before landmarks or random features are made of them.

Attention dropout acts on the weights of (1) and (4); (2) and (3) have no weights of single pairs.

Source: the files above; kexue.fm/archives/8180, kexue.fm/archives/7921, kexue.fm/archives/7546, kexue.fm/archives/7430.
Shapes: N tokens in all, B sequences, T tokens, H heads, K and V features of a key and a value, D features.
"""

from __future__ import annotations

from torch import Tensor, nn

from danlu.nn.attention import AttentionContext, MultiHeadAttention, over_batch
from danlu.nn.linear_attention import (
    elu_log_features,
    favor_log_features,
    linear_attention,
    orthogonal_projection,
)
from danlu.nn.nystrom import nystrom_attention
from danlu.nn.positions import apply_rotary
from danlu.nn.synthesizer import SynthesizerAttention

__all__ = [
    "ATTENTIONS",
    "LowCostAttention",
    "SyntheticAttention",
    "build_attention",
    "check_attention",
    "unfit_attention",
]

NYSTROM = {"nystrom": "nystrom", "nystrom_landmark": "landmark", "double_softmax": "double_softmax"}
LINEAR = ("performer", "linear")
SYNTHETIC = {
    "synthesizer_dense": "dense",
    "synthesizer_random": "random",
    "synthesizer_factorized_dense": "factorized_dense",
    "synthesizer_factorized_random": "factorized_random",
    "synthesizer_mixture": "random+vanilla",
}
ATTENTIONS = ("softmax", *NYSTROM, *LINEAR, *SYNTHETIC)
SIZES = {"nystrom": 64, "nystrom_landmark": 64, "performer": 128, "synthesizer_factorized_random": 8}


def unfit_attention(
    kind: str, *, positions: str, application: str = "encoder", realformer: bool = False, gated_unit: bool = False
) -> str | None:
    """Why a kind of attention cannot serve a model, or None where it can.

    Args:
        kind: one of `ATTENTIONS`.
        positions: "learned", "rotary", "clipped" (relative vectors) or "buckets" (a bias of the scores).
        application: "encoder", "lm" (causal) or "unilm" (a mask of pairs).
        realformer: each layer adds the scores of the one before.
        gated_unit: attention is part of a gated attention unit.

    Returns:
        Half a sentence, or None.

    >>> unfit_attention("nystrom", positions="learned", application="lm")
    'cannot be causal, as its landmarks hold later tokens'
    """
    if kind == "softmax":
        return None
    if gated_unit:
        return "has no place in a gated attention unit, which attends by itself"
    if positions in ("clipped", "buckets"):
        return "compares no pairs of tokens, and this family adds its relative positions to such comparisons"
    if realformer:
        return "compares no pairs of tokens, so residual_attention_scores would have nothing to hand on"
    if positions == "rotary" and kind not in ("nystrom", "nystrom_landmark", "performer"):
        return "takes no products of queries and keys, in which alone this family's rotated positions become distances"
    if application != "encoder" and kind in NYSTROM:
        what = "means over keys" if kind == "double_softmax" else "landmarks"
        return f"cannot be causal, as its {what} hold later tokens"
    if application == "unilm" and kind in LINEAR:
        return "sums the keys before it knows the query, so it cannot follow a mask of pairs"
    return None


def check_attention(kind: str, size: int | None = None) -> None:
    """Refuse an unknown kind, or a size that it cannot have.

    Args:
        kind: of `ATTENTIONS`.
        size: as of `build_attention`.

    Raises:
        ValueError: an unknown kind, a size below 1 or where there is none.

    >>> check_attention("nystrom", 32)
    """
    if kind not in ATTENTIONS:
        raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}; got {kind!r}")
    if size is not None and (kind not in SIZES or size < 1):
        raise ValueError(
            f"attention_size must be at least 1, and only {', '.join(SIZES)} have one; got {size} for {kind!r}"
        )


def build_attention(
    kind: str,
    dim: int,
    num_heads: int,
    key_dim: int,
    value_dim: int,
    *,
    bias: bool = True,
    scaled: bool = True,
    size: int | None = None,
    max_len: int = 512,
    dropout: float = 0.0,
) -> MultiHeadAttention | SyntheticAttention:
    """The attention layer of a transformer block.

    Args:
        kind: one of `ATTENTIONS`.
        dim: features D of a token.
        num_heads: heads H.
        key_dim: features K of a head's queries and keys.
        value_dim: features V of a head's values.
        bias: the linear layers have biases.
        scaled: products are divided by sqrt(K).
        size: landmarks of the two Nyström kinds (None: 64), random features of the performer (None: 128), rank of the
            factorised random synthesizer (None: 8); the others have none.
        max_len: tokens of the longest sequence, for synthesizers.
        dropout: of attention weights, for synthesizers; the others take it from the context.

    Returns:
        A layer that is called as `MultiHeadAttention` is.

    Raises:
        ValueError: an unknown kind, a size below 1 or where there is none, heads that do not make up D.

    >>> build_attention("nystrom", 8, 2, 4, 4).size
    64
    """
    check_attention(kind, size)
    size = SIZES.get(kind, 1) if size is None else size
    if kind in SYNTHETIC:
        if not key_dim == value_dim == dim / num_heads:
            raise ValueError(
                f"{kind} has heads that make up hidden_size; got {num_heads} of {key_dim} and {value_dim} features for "
                f"{dim}; leave head_size and key_size out"
            )
        return SyntheticAttention(dim, num_heads, SYNTHETIC[kind], max_len, rank=size, dropout=dropout, bias=bias)
    if kind == "softmax":
        return MultiHeadAttention(dim, num_heads, key_dim, value_dim, bias=bias, scaled=scaled)
    return LowCostAttention(dim, num_heads, key_dim, value_dim, kind, size, bias=bias, scaled=scaled)


class LowCostAttention(MultiHeadAttention):
    """Multi-head attention of a kind of (2) or (3), with the parameters of softmax attention.

    `projection` (M, K), shared by the heads, is there for the performer alone and has no gradient.
    Source: see the module. Shapes: see the module.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        kind: str = "nystrom",
        size: int = 64,
        *,
        bias: bool = True,
        scaled: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, key_dim, value_dim, bias=bias, scaled=scaled)
        if kind not in NYSTROM and kind not in LINEAR:
            raise ValueError(f"kind must be one of {', '.join((*NYSTROM, *LINEAR))}; got {kind!r}")
        self.kind, self.size = kind, size
        self.projection: nn.Parameter | None = None
        if kind == "performer":
            self.projection = nn.Parameter(orthogonal_projection(size, key_dim), requires_grad=False)

    def forward(self, x: Tensor, context: AttentionContext | Tensor | None = None, layer: int = 0) -> Tensor:
        """As of `MultiHeadAttention`."""
        if not isinstance(context, AttentionContext):
            return over_batch(self, x, context)
        self._check(context)
        query, key, value = self.project(x)  # (N, H, K or V)
        if context.rotary is not None:
            cos, sin = (part[:, None] for part in context.rotary)  # (N, 1, K)
            query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)
        layout, cache = context.layout, context.cache
        if cache is not None:
            new = [part.unflatten(0, layout.shape) for part in (query, key, value)]  # (R, t, H, K or V)
            cache.store(layer, new[1], new[2])
            keys, values = cache.read(layer, layout.shape[1])  # (R, S, H, K or V)
            keep = layout.keep if cache.keep is None else cache.keep[:, : keys.shape[1]]
            return self.output(self._heads(new[0], keys, values, keep, True).flatten(0, 1))
        parts = zip(*(layout.split(part) for part in (query, key, value)), strict=True)
        return self.output(layout.join([self._heads(q, k, v, layout.keep, context.causal) for q, k, v in parts]))

    def _heads(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None, causal: bool) -> Tensor:
        """Heads side by side (B, T, HV) of queries (B, T, H, K) over keys and values (B, S, H, K or V)."""
        q, k, v = (part.transpose(1, 2) for part in (query, key, value))
        if self.kind in NYSTROM:
            mode = NYSTROM[self.kind]
            scale = None if mode == "double_softmax" else self.scale
            output = nystrom_attention(q, k, v, self.size, mask=keep, mode=mode, scale=scale, causal=causal)
        elif self.projection is not None:
            log_q, log_k = (favor_log_features(part, self.projection, self.scale) for part in (q, k))
            output = linear_attention(log_q, log_k, v, mask=keep, causal=causal)
        else:
            output = linear_attention(elu_log_features(q), elu_log_features(k), v, mask=keep, causal=causal)
        return output.transpose(1, 2).flatten(2)

    def _check(self, context: AttentionContext) -> None:
        """Refuse what would be left out without a word."""
        positions = "clipped" if context.relative is not None else "buckets" if context.bias is not None else "learned"
        why = unfit_attention(
            self.kind,
            positions=positions,
            application="unilm" if context.unilm is not None else "lm" if context.causal else "encoder",
            realformer=context.realformer != "off",
        )
        if why is not None:
            raise ValueError(f"{self.kind} attention {why}; use softmax attention")


class SyntheticAttention(SynthesizerAttention):
    """A synthesizer that is called as `MultiHeadAttention` is. Source: see the module. Shapes: see the module."""

    def forward(  # type: ignore[override]
        self, x: Tensor, context: AttentionContext | Tensor | None = None, layer: int = 0
    ) -> Tensor:
        """Outputs for tokens (N, D) in a context, or for a batch (B, T, D) with a mask (B, T), True for tokens."""
        if not isinstance(context, AttentionContext):
            return super().forward(x, context)
        if context.cache is not None:
            raise ValueError("a synthesizer has no keys that a cache could keep; call the model on the whole text")
        if any(part is not None for part in (context.rotary, context.relative, context.bias)) or (
            context.realformer != "off"
        ):
            raise ValueError("a synthesizer compares no query with a key; positions and scores cannot be added to it")
        layout = context.layout
        outputs: list[Tensor] = []
        pairs: list[Tensor | None] = [None] * len(layout.groups) if context.unilm is None else context.masks()
        for part, mask in zip(layout.split(x), pairs, strict=True):  # (B, T, D)
            outputs.append(super().forward(part, layout.keep, causal=context.causal, mask=mask))
        return layout.join(outputs)
