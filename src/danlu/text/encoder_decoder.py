r"""T5 and mT5: an encoder, and a decoder that attends to it.

    logits = s h E^T    tied (T5 1.0), s = D^{-1/2}                                                            (1)
    logits = s h W^T    untied (T5 1.1, mT5), s = 1 upstream, D^{-1/2} in bert4keras                            (2)

The position bias is added to the scores of self-attention alone. bert4keras adds the decoder's to cross attention too,
with distances between target and source places; models trained with it, T5-PEGASUS among them, need
`cross_position_bias`.

Source: Raffel et al., 2019, arXiv:1910.10683; Xue et al., 2020, arXiv:2010.11934; kexue.fm/archives/7867 (mT5 in
Chinese).
Shapes: B sequences, S source tokens, T target tokens, D features, V rows of the token table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.nn.attention import AttentionContext, MultiHeadAttention
from danlu.nn.dropout import dropout
from danlu.nn.kv_cache import KVCache
from danlu.nn.layout import Layout, is_prefix, packed_layout, padded_layout
from danlu.text.blocks import Stack
from danlu.text.config import TransformerConfig
from danlu.text.embeddings import Embeddings, check_batch, check_ids
from danlu.text.single_stack import TransformerOutput, initialize

__all__ = ["EncoderDecoder", "Seq2SeqCache"]


@dataclass
class Seq2SeqCache:
    """What decoding step by step keeps: the decoder's own keys, and those of the source, computed once.

    Args:
        own: keys and values of the target so far.
        keys: one (R, S, H, K) a layer.
        values: one (R, S, H, V) a layer.
        keep: (R, S) bool, True for source tokens; None: all.
    """

    own: KVCache
    keys: list[Tensor]
    values: list[Tensor]
    keep: Tensor | None

    @property
    def length(self) -> int:
        """Target tokens so far."""
        return self.own.length

    def reorder(self, rows: Tensor) -> None:
        """Keep, repeat or drop rows (R',)."""
        self.own.reorder(rows)
        self.keys = [part.index_select(0, rows) for part in self.keys]
        self.values = [part.index_select(0, rows) for part in self.values]
        self.keep = None if self.keep is None else self.keep.index_select(0, rows)


class EncoderDecoder(nn.Module):
    """A T5 of any version. Source: see the module. Shapes: see the module."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if not config.traits.encoder_decoder:
            raise ValueError(f"{config.family} has one stack: build a Transformer")
        self.config = config
        self.heads: tuple[str, ...] = ()
        self.embeddings = Embeddings(config)
        self.encoder = Stack(config, config.num_layers)
        self.decoder = Stack(config, config.decoder_layers, cross=True)
        self.lm_head: nn.Module | None = None
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.inference_only = False
        self.vocabulary: nn.Module | None = None  # the tied output product, laid out by danlu.text.inference
        initialize(self, config)

    def forward(
        self,
        ids: Tensor,
        decoder_ids: Tensor,
        *,
        mask: Tensor | None = None,
        decoder_mask: Tensor | None = None,
        condition: Tensor | None = None,
        pack: bool | None = None,
    ) -> TransformerOutput:
        """Scores of every next target token.

        Args:
            ids: (B, S) int64 source tokens.
            decoder_ids: (B, T) int64 target tokens, the start token first.
            mask: (B, S) bool, True for tokens; None: where ids are not the padding id.
            decoder_mask: (B, T) bool; None: likewise, the first position always kept.
            condition: (B, C) vectors of a model with condition_size.
            pack: compute only real source tokens; None: on the CPU, where the mask allows it.

        Returns:
            logits (B, T, V), hidden_states (B, T, D) of the decoder, encoder_hidden_states (B, S, D).

        Raises:
            ValueError: ids beyond the table, shapes that do not fit.
        """
        encoded, keep = self.encode(ids, mask=mask, condition=condition, pack=pack)
        out = self.decode(decoder_ids, encoded, keep, decoder_mask=decoder_mask, condition=condition)
        out.encoder_hidden_states = encoded
        return out

    def encode(
        self, ids: Tensor, *, mask: Tensor | None = None, condition: Tensor | None = None, pack: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The encoder's output (B, S, D) and the mask in use (B, S) or None.

        Args:
            ids: (B, S) int64 source tokens.
            mask: (B, S) bool; None: where ids are not the padding id.
            condition: (B, C) of a model with condition_size.
            pack: compute only real tokens; None: on the CPU, where the mask allows it.
        """
        keep = self._keep(ids, mask)
        exporting = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
        if keep is not None and not exporting and bool(keep.all()):
            keep = None
        if keep is not None and not exporting and pack is not False and ids.device.type == "cpu" and is_prefix(keep):
            layout = packed_layout(keep)
        else:
            layout = padded_layout(ids.shape[0], ids.shape[1], keep, ids.device)
        return layout.scatter(self._run(self.encoder, ids, layout, condition)), keep

    def decode(
        self,
        decoder_ids: Tensor,
        encoded: Tensor | None,
        keep: Tensor | None = None,
        *,
        decoder_mask: Tensor | None = None,
        condition: Tensor | None = None,
        cache: Seq2SeqCache | None = None,
        logits_at: str = "all",
    ) -> TransformerOutput:
        """Decoder states and scores over a given encoding, or over the one a cache remembers.

        Args:
            decoder_ids: (B, T) int64 target tokens; with a cache those after the ones it holds.
            encoded: (B, S, D) from `encode`; None with a cache.
            keep: (B, S) bool, True for source tokens; None: all.
            decoder_mask: (B, T) bool; None: where ids are not the padding id, the first position always kept.
            condition: (B, C) of a model with condition_size.
            cache: from `new_cache`; it is moved on.
            logits_at: "all" or "last".

        Returns:
            logits (B, T, V) or (B, V), hidden_states (B, T, D).

        Raises:
            ValueError: neither encoded nor cache is given; ids beyond the table.
        """
        if encoded is None and cache is None:
            raise ValueError("decode needs the encoder's output or a cache from new_cache")
        mask = None if cache is not None else self._keep(decoder_ids, decoder_mask)
        check_ids(decoder_ids, self.config.vocab_size, "decoder_ids")
        layout = padded_layout(decoder_ids.shape[0], decoder_ids.shape[1], mask, decoder_ids.device)
        past = 0 if cache is None else cache.length
        bias = self._cross_bias(past, decoder_ids.shape[1], encoded, cache)
        batch, length = decoder_ids.shape

        def cross(attention: MultiHeadAttention, x: Tensor, layer: int) -> Tensor:
            dropout = self.config.attention_dropout if self.training else 0.0
            x = x.unflatten(0, (batch, length))
            if cache is not None:
                out = attention.over(
                    x, cache.keys[layer], cache.values[layer], mask=cache.keep, bias=bias, dropout=dropout
                )
            else:
                assert encoded is not None
                out = attention.cross(x, encoded, mask=keep, bias=bias, dropout=dropout)
            return out.flatten(0, 1)

        x = self._run(
            self.decoder, decoder_ids, layout, condition, cross=cross, cache=None if cache is None else cache.own
        )
        if cache is not None:
            cache.own.advance(length)
        hidden = layout.scatter(x)
        return TransformerOutput(hidden, logits=self.score(hidden[:, -1] if logits_at == "last" else hidden))

    def score(self, x: Tensor) -> Tensor:
        """Scores (..., V) of decoder states (..., D), eqs. (1) and (2)."""
        if self.config.scale_logits:
            x = x * self.config.hidden_size**-0.5
        if self.lm_head is not None:
            return self.lm_head(x)  # eq. (2)
        return F.linear(x, self.embeddings.token.weight) if self.vocabulary is None else self.vocabulary(x)  # eq. (1)

    def new_cache(self, encoded: Tensor, keep: Tensor | None, capacity: int) -> Seq2SeqCache:
        """A cache for up to `capacity` target tokens over the encoder's output (B, S, D) and its mask (B, S)."""
        config, heads = self.config, self.config.num_heads
        own = KVCache(config.decoder_layers, len(encoded), heads, config.key_dim, config.value_dim, capacity,
                      encoded.dtype, encoded.device)  # fmt: skip
        crosses: list[Any] = [block.cross_attention for block in self.decoder.layers]
        keys = [part.key(encoded).unflatten(-1, (heads, config.key_dim)) for part in crosses]
        values = [part.value(encoded).unflatten(-1, (heads, config.value_dim)) for part in crosses]
        return Seq2SeqCache(own, keys, values, keep)

    def train(self, mode: bool = True) -> EncoderDecoder:
        """As of every module, but a copy of `for_inference` stays in evaluation mode."""
        super().train(mode and not self.inference_only)
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table, shared by both stacks."""
        return self.embeddings.token

    @property
    def gradient_checkpointing(self) -> bool:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        return self.encoder.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.encoder.gradient_checkpointing = self.decoder.gradient_checkpointing = value

    def _run(self, stack, ids, layout: Layout, condition, cross=None, cache: KVCache | None = None) -> Tensor:  # type: ignore[no-untyped-def]
        rows = layout.rows if condition is not None else None
        x = self.embeddings(layout.gather(ids), None, layout.positions, 0, condition, rows)
        context = AttentionContext(
            layout,
            causal=stack.is_decoder,
            cache=cache,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )
        x = stack.run(x, context, condition=condition, cross=cross)
        return dropout(x, self.config.hidden_dropout, self.training)

    def _keep(self, ids: Tensor, mask: Tensor | None) -> Tensor | None:
        check_batch(ids, mask)
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(f"mask has shape {tuple(mask.shape)}, ids {tuple(ids.shape)}; they must be equal")
        check_ids(ids, self.config.vocab_size, "ids")
        if mask is not None or self.config.pad_token_id is None:
            return None if mask is None else mask.bool()
        first = torch.arange(ids.shape[1], device=ids.device) == 0
        return (ids != self.config.pad_token_id) | first

    def _cross_bias(self, past: int, length: int, encoded: Tensor | None, cache: Seq2SeqCache | None) -> Tensor | None:
        if not self.config.cross_position_bias:
            return None
        source = cache.keys[0].shape[1] if cache is not None else encoded.shape[1]  # type: ignore[union-attr]
        device = self.embeddings.token.weight.device
        return self.decoder.bias(torch.arange(past, past + length, device=device), torch.arange(source, device=device))
