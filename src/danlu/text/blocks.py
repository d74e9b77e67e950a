r"""One composed block for every transformer family, and the stack that repeats it.

    post       x = norm(x + attention(x));             x = norm(x + ffn(x))                                   (1)
    pre        x = x + attention(norm(x));             x = x + ffn(norm(x));           last: norm(x)          (2)
    gpt2_ml    x = x + attention(x);                   x = norm_1(x + ffn(norm_0(x)))                         (3)
    gau        x = norm(x + gau(x))                                                                           (4)

A decoder's block has attention over the encoder's output between the two sublayers. The stack makes once what its
layers
share: rotations, NEZHA's vectors, T5's bias.

Source: Su, kexue.fm/archives/7292; the families' papers stand in `danlu.text.config`.
Shapes: N tokens in all, D features; everything else is in the layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from danlu.nn.attention import AttentionContext, MultiHeadAttention
from danlu.nn.attention_kinds import SyntheticAttention, build_attention
from danlu.nn.conditional_norm import Norm
from danlu.nn.decode_layers import DecodeLayers
from danlu.nn.dropout import dropout
from danlu.nn.feed_forward import FeedForward
from danlu.nn.gated_attention_unit import GatedAttentionUnit
from danlu.nn.positions import clipped_distances, rotary_angles, sinusoidal_positions, t5_buckets
from danlu.text.config import TransformerConfig

__all__ = ["Block", "Stack", "norm_of"]

Cross = Callable[[MultiHeadAttention, Tensor, int], Tensor]


def norm_of(config: TransformerConfig, dim: int, eps: float | None = None) -> Norm:
    """The norm of a model's family over `dim` features.

    Args:
        config: the model; says which kind, its epsilon and whether a condition shifts it.
        dim: features.
        eps: another epsilon than that of the blocks; None: that one.

    Returns:
        A fresh norm.
    """
    return Norm(
        dim,
        kind=config.traits.norm,
        eps=config.norm_eps if eps is None else eps,
        condition_dim=config.condition_size,
        condition_hidden=config.condition_hidden_size,
        condition_activation=config.condition_activation,
    )


class Block(nn.Module):
    """One layer: attention and feed-forward with their norms where the family puts them, eqs. (1) to (4).

    Source: see the module. Shapes: see the module.
    """

    def __init__(self, config: TransformerConfig, cross: bool = False) -> None:
        super().__init__()
        family, dim = config.traits, config.hidden_size
        self.order = family.block
        self.dropout = config.hidden_dropout
        self.cross_attention: MultiHeadAttention | None = None
        self.input_norm: Norm | None = None
        if family.block == "gau":
            self.gau = GatedAttentionUnit(
                dim, config.intermediate_size, config.key_dim, activation=config.activation, bias=family.bias
            )
            self.attention_norm = norm_of(config, dim)
            return
        self.attention = self._attention(config)
        if family.block != "gpt2_ml":
            self.attention_norm = norm_of(config, dim)
        else:
            self.input_norm = norm_of(config, dim)
        if cross:
            self.cross_attention = cast(MultiHeadAttention, self._attention(config))
            self.cross_attention_norm = norm_of(config, dim)
        self.feed_forward = FeedForward(
            dim, config.intermediate_size, config.activation, gated=family.gated, bias=family.bias
        )
        self.feed_forward_norm = norm_of(config, dim)

    @staticmethod
    def _attention(config: TransformerConfig) -> MultiHeadAttention | SyntheticAttention:
        family = config.traits
        return build_attention(
            config.attention, config.hidden_size, config.num_heads, config.key_dim, config.value_dim,
            bias=family.bias, scaled=family.scaled_scores, size=config.attention_size, max_len=config.max_positions,
            dropout=config.attention_dropout,
        )  # fmt: skip

    def forward(
        self,
        x: Tensor,  # (N, D)
        context: AttentionContext,
        layer: int,
        condition: Tensor | None = None,
        cross: Cross | None = None,
    ) -> Tensor:
        rows = context.layout.rows if condition is not None else None

        def norm(module: Norm, hidden: Tensor) -> Tensor:
            return module(hidden, condition, rows)

        if self.order == "gau":
            return norm(self.attention_norm, x + self._drop(self.gau(x, context, layer)))  # eq. (4)
        if self.order == "post":
            x = norm(self.attention_norm, x + self._drop(self.attention(x, context, layer)))
            return norm(self.feed_forward_norm, x + self._drop(self.feed_forward(x)))  # eq. (1)
        if self.order == "gpt2_ml":
            x = x + self._drop(self.attention(x, context, layer))
            assert self.input_norm is not None
            inner = self.feed_forward(norm(self.input_norm, x))
            return norm(self.feed_forward_norm, x + self._drop(inner))  # eq. (3)
        x = x + self._drop(self.attention(norm(self.attention_norm, x), context, layer))
        if self.cross_attention is not None:
            assert cross is not None
            x = x + self._drop(cross(self.cross_attention, norm(self.cross_attention_norm, x), layer))
        return x + self._drop(self.feed_forward(norm(self.feed_forward_norm, x)))  # eq. (2)

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class Stack(nn.Module):
    """The layers of an encoder or a decoder, and what they share.

    Source: see the module. Shapes: see the module.
    """

    def __init__(self, config: TransformerConfig, num_layers: int, cross: bool = False) -> None:
        super().__init__()
        family = config.traits
        self.config, self.num_layers, self.is_decoder = config, num_layers, cross
        self.layers = nn.ModuleList(Block(config, cross) for _ in range(1 if family.share_layers else num_layers))
        if family.positions == "buckets":
            self.position_bias = nn.Embedding(config.num_buckets, config.num_heads)
        self.final_norm = norm_of(config, config.hidden_size) if family.final_norm else None
        self.gradient_checkpointing = False
        self.decode_layers: DecodeLayers | None = None  # a token through all layers in one call, of for_inference

    def run(
        self,
        x: Tensor,  # (N, D)
        context: AttentionContext,
        *,
        condition: Tensor | None = None,
        cross: Cross | None = None,
        seen: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states (N, D) after all layers; `seen`, if given, gets those before the first and after each layer."""
        plain = condition is None and cross is None and seen is None
        cache = context.cache if plain and context.cache is not None and context.cache.length else None
        if self.decode_layers is not None and cache is not None and self.decode_layers.takes(x, cache):
            x = self.decode_layers(x, cache)
            return x if self.final_norm is None else self.final_norm(x)
        self.share(context, x)
        for i in range(self.num_layers):
            if seen is not None:
                seen.append(x)
            block = self.layers[0 if self.config.traits.share_layers else i]
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, context, i, condition, cross, use_reentrant=False)
            else:
                x = block(x, context, i, condition, cross)
        if self.final_norm is not None:
            x = self.final_norm(x, condition, context.layout.rows if condition is not None else None)
        if seen is not None:
            seen.append(x)
        return x

    def share(self, context: AttentionContext, x: Tensor) -> None:
        """Fill in the rotations, relative vectors or bias that the family's layers need."""
        config, kind = self.config, self.config.traits.positions
        if kind == "rotary":
            cos, sin = rotary_angles(context.layout.positions, config.key_dim)
            context.rotary = (cos.to(x.dtype), sin.to(x.dtype))
        elif kind in ("clipped", "buckets"):
            length = context.layout.longest + (context.cache.length if context.cache is not None else 0)
            places = torch.arange(length, device=x.device)
            if kind == "clipped":
                pairs = clipped_distances(places, places, config.relative_clip)
                vectors = torch.arange(2 * config.relative_clip + 1, device=x.device)
                context.relative = (sinusoidal_positions(vectors, config.key_dim).to(x.dtype), pairs)
            else:
                context.bias = self.bias(places, places)

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor:
        """T5's bias (1, H, T, S) of keys at places (S,) for queries at places (T,)."""
        config = self.config
        buckets = t5_buckets(
            keys[None, :] - queries[:, None], not self.is_decoder, config.num_buckets, config.max_distance
        )
        return self.position_bias(buckets).permute(2, 0, 1)[None]
