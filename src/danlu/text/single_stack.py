r"""A transformer of any family that has one stack: BERT and its relatives, RoFormer, GAU-alpha, the GPTs.

The family's declaration (`danlu.text.config`) decides what is built; the forward pass is the same for all. Padding
costs
nothing: on the CPU a right-padded batch is packed, so that only real tokens are computed (`danlu.nn.layout`).
Positions that were padding come back as zeros then, and as meaningless numbers otherwise.

    logits = norm(act(W h)) E^T + b          heads "mlm" of the BERT family                                   (1)
    logits = h E^T                           families whose head is "tied"                                    (2)

Source: Su, kexue.fm/archives/7292; Devlin et al., 2018, arXiv:1810.04805.
Shapes: B sequences, T tokens of the longest, D features, V rows of the token table, N tokens kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.math.activations import activation as activation_of
from danlu.nn.attention import AttentionContext, some_key
from danlu.nn.conditional_norm import Norm
from danlu.nn.kv_cache import KVCache
from danlu.nn.layout import Layout, is_prefix, packed_layout, padded_layout
from danlu.text.blocks import Stack, norm_of
from danlu.text.config import TransformerConfig
from danlu.text.embeddings import Embeddings, check_batch, check_ids

__all__ = ["HEADS", "Transformer", "TransformerOutput"]

HEADS = ("pooler", "nsp", "mlm", "discriminator")


@dataclass
class TransformerOutput:
    """What a model gives back; parts without a head are None.

    Args:
        hidden_states: (B, T, D) after the last layer.
        pooled: (B, D) transformed first token.
        logits: (B, T, V), or (B, V) and (M, V) where only some positions were asked for.
        nsp_logits: (B, 2).
        discriminator_logits: (B, T), positive for replaced tokens.
        layers: with output_layers, (B, T, D) before the first and after each layer.
        encoder_hidden_states: (B, S, D) of an encoder-decoder's encoder.
    """

    hidden_states: Tensor
    pooled: Tensor | None = None
    logits: Tensor | None = None
    nsp_logits: Tensor | None = None
    discriminator_logits: Tensor | None = None
    layers: tuple[Tensor, ...] | None = None
    encoder_hidden_states: Tensor | None = None


class MLMHead(nn.Module):
    """The transform before the token table, eq. (1), and its bias. Source: see the module. Shapes: see the module."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_dim)
        self.norm = norm_of(config, config.embedding_dim, config.head_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.activation = activation_of(config.activation)

    def forward(self, x: Tensor, condition: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """What the token table and the bias make scores of."""
        return self.norm(self.activation(self.dense(x)), condition, rows)


class DiscriminatorHead(nn.Module):
    """ELECTRA's score of a token, positive if replaced. Source: arXiv:2003.10555. Shapes: (..., D) to (...)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, 1)
        self.activation = activation_of(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.activation(self.dense(x))).squeeze(-1)


class Transformer(Stack):
    r"""One stack with its embeddings and the heads asked for.

    Args of the constructor: config, and heads from `HEADS`: "pooler", "nsp" (brings the pooler), "mlm" (scores of the
    vocabulary; always there for application "lm" and "unilm"), "discriminator". Fresh weights are random;
    `danlu.text.load` fills them from a checkpoint.

    Source: see the module. Shapes: see the module.
    """

    def __init__(self, config: TransformerConfig, heads: Sequence[str] = ()) -> None:
        if config.traits.encoder_decoder:
            raise ValueError(f"{config.family} has an encoder and a decoder: build an EncoderDecoder")
        for head in heads:
            if head not in HEADS:
                raise ValueError(f"no head {head!r}; there are {', '.join(HEADS)}")
        if config.application == "unilm" and config.residual_attention_scores and config.compat == "bert4keras":
            raise ValueError("bert4keras cannot add residual attention scores under unilm; leave compat at 'upstream'")
        super().__init__(config, config.num_layers)
        wanted = set(heads) | ({"pooler"} if "nsp" in heads else set())
        if config.application != "encoder":
            wanted.add("mlm")
        self.heads = tuple(head for head in HEADS if head in wanted)
        self.embeddings = Embeddings(config)
        self.inference_only = False
        self.vocabulary: nn.Module | None = None  # the output product, laid out by danlu.text.inference
        if "pooler" in self.heads:
            self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
            self.pooler_activation = activation_of(config.pooler_activation)
        if "nsp" in self.heads:
            self.nsp = nn.Linear(config.hidden_size, 2)
        if "mlm" in self.heads and config.traits.head == "mlm":
            self.mlm = MLMHead(config)
        if "discriminator" in self.heads:
            self.discriminator = DiscriminatorHead(config)
        if "mlm" in self.heads and config.traits.head == "tied" and config.embedding_dim != config.hidden_size:
            raise ValueError(
                f"{config.family} ties its output to a table of {config.embedding_dim} features, hidden states have "
                f"{config.hidden_size}; give equal sizes"
            )
        initialize(self, config)

    def forward(
        self,
        ids: Tensor,
        segment_ids: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        condition: Tensor | None = None,
        cache: KVCache | None = None,
        logits_at: str | Tensor = "all",
        output_layers: bool = False,
        pack: bool | None = None,
    ) -> TransformerOutput:
        """Hidden states and the outputs of the heads.

        Args:
            ids: (B, T) int64 token ids.
            segment_ids: (B, T) int64; None: zeros. Under application "unilm" 0 marks the source, 1 the target.
            mask: (B, T) bool, True for tokens, False for padding; None: where ids are not the padding id.
            position_ids: (B, T) int64 places of the tokens; None: counted from the left.
            condition: (B, C) vectors of a model with condition_size.
            cache: from `new_cache`; ids are then the tokens after those it holds, and it is moved on.
            logits_at: "all", "last" (the last column) or a (B, T) bool mask of the positions whose logits are wanted.
            output_layers: also return the hidden states of every layer.
            pack: compute only real tokens; None: on the CPU, where the mask allows it.

        Returns:
            The outputs; hidden states (and logits) of padded positions have no meaning.

        Raises:
            ValueError: ids, segments or positions beyond their table, shapes that do not fit, a condition where none
                belongs, a missing one, a cache with an encoder.
        """
        config = self.config
        keep = self._check(ids, segment_ids, mask, position_ids, condition, cache)
        layout = self._layout(ids, keep, cache, pack)
        positions = layout.positions if position_ids is None else layout.gather(position_ids)
        if cache is not None and position_ids is None:
            positions = positions + cache.length
        layout = Layout(layout.groups, positions, layout.rows, layout.index, layout.keep, layout.shape)
        last = self._last(ids, position_ids, cache)
        segments = None if segment_ids is None else layout.gather(segment_ids)
        rows = layout.rows if condition is not None else None
        x = self.embeddings(layout.gather(ids), segments, positions, last, condition, rows)  # (N, D)
        context = AttentionContext(
            layout,
            causal=config.application == "lm",
            unilm=segments if config.application == "unilm" else None,
            dropout=config.attention_dropout if self.training else 0.0,
            realformer="off" if not config.residual_attention_scores else
            "last" if config.compat == "bert4keras" else "sum",
            cache=cache,
        )  # fmt: skip
        seen: list[Tensor] | None = [] if output_layers else None
        x = self.run(x, context, condition=condition, seen=seen)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self._outputs(x, layout, condition, logits_at, seen)

    def _outputs(
        self, x: Tensor, layout: Layout, condition: Tensor | None, logits_at: str | Tensor, seen: list[Tensor] | None
    ) -> TransformerOutput:
        hidden = layout.scatter(x)
        out = TransformerOutput(hidden)
        if seen is not None:
            out.layers = tuple(layout.scatter(part) for part in seen)
        if "pooler" in self.heads:
            out.pooled = self.pooler_activation(self.pooler(hidden[:, 0]))
        if "nsp" in self.heads:
            out.nsp_logits = self.nsp(out.pooled)
        if "discriminator" in self.heads:
            out.discriminator_logits = layout.scatter(self.discriminator(x))
        if "mlm" in self.heads:
            if isinstance(logits_at, Tensor):
                rows = logits_at.nonzero()[:, 0] if condition is not None else None
                out.logits = self.score(hidden[logits_at], condition, rows)
            elif logits_at == "last":
                rows = torch.arange(len(hidden), device=x.device) if condition is not None else None
                out.logits = self.score(hidden[:, -1], condition, rows)
            else:
                out.logits = layout.scatter(self.score(x, condition, layout.rows if condition is not None else None))
        return out

    def score(self, x: Tensor, condition: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Scores (N, V) of the vocabulary for hidden states (N, D), eqs. (1) and (2)."""
        has_transform = self.config.traits.head == "mlm"
        if has_transform:
            x = self.mlm(x, condition, rows)
        if self.vocabulary is not None:
            return self.vocabulary(x)
        return F.linear(x, self.embeddings.token.weight, self.mlm.bias if has_transform else None)  # eqs. (1), (2)

    def new_cache(self, rows: int, capacity: int, keep: Tensor | None = None) -> KVCache:
        """An empty cache for `rows` sequences of `capacity` tokens; `keep` (rows, prompt) is False at left padding."""
        if self.config.application == "encoder":
            raise ValueError("a cache needs a model that reads from left to right: application='lm' or 'unilm'")
        config, table = self.config, self.embeddings.token.weight
        heads, value_dim = (
            (1, config.intermediate_size) if config.traits.block == "gau" else (config.num_heads, config.value_dim)
        )
        cache = KVCache(self.num_layers, rows, heads, config.key_dim, value_dim, capacity, table.dtype, table.device)
        if keep is not None:
            full = torch.ones(rows, capacity, dtype=torch.bool, device=table.device)
            full[:, : keep.shape[1]] = keep
            cache.keep = full
        return cache

    def train(self, mode: bool = True) -> Transformer:
        """As of every module, but a copy of `for_inference` stays in evaluation mode."""
        super().train(mode and not self.inference_only)
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table, the weight that adversarial training perturbs."""
        return self.embeddings.token

    def _layout(self, ids: Tensor, keep: Tensor | None, cache: KVCache | None, pack: bool | None) -> Layout:
        batch, length = ids.shape
        exporting = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
        if cache is not None or keep is None or exporting:
            if cache is not None and cache.length:
                keep = None  # the cache knows which of its keys count
            return padded_layout(batch, length, keep, ids.device)
        if pack is None:
            pack = ids.device.type == "cpu" and is_prefix(keep)
        if bool(keep.all()):
            return padded_layout(batch, length, None, ids.device)
        return packed_layout(keep) if pack else padded_layout(batch, length, some_key(keep), ids.device)

    def _check(
        self,
        ids: Tensor,
        segment_ids: Tensor | None,
        mask: Tensor | None,
        position_ids: Tensor | None,
        condition: Tensor | None,
        cache: KVCache | None,
    ) -> Tensor | None:
        """The mask in use, after all inputs were looked at."""
        config = self.config
        check_batch(ids, mask)
        for name, other in (("segment_ids", segment_ids), ("mask", mask), ("position_ids", position_ids)):
            if other is not None and other.shape != ids.shape:
                raise ValueError(f"{name} has shape {tuple(other.shape)}, ids {tuple(ids.shape)}; they must be equal")
        check_ids(ids, config.vocab_size, "ids")
        if segment_ids is not None and config.traits.segments and config.segment_vocab_size:
            rows = config.vocab_size if config.shared_segment_embeddings else config.segment_vocab_size
            check_ids(segment_ids, rows, "segment_ids")
        if position_ids is not None and config.traits.positions in ("clipped", "buckets"):
            raise ValueError(f"{config.family} knows distances only; position_ids have no meaning for it")
        if condition is not None and config.condition_size is None:
            raise ValueError("this model takes no condition; build or load it with condition_size=C")
        if config.condition_size is not None and (
            condition is None or condition.shape != (ids.shape[0], config.condition_size)
        ):
            given = "none" if condition is None else f"shape {tuple(condition.shape)}"
            raise ValueError(
                f"condition must be ({ids.shape[0]}, {config.condition_size}), one vector a sequence; got {given}"
            )
        if cache is not None and config.application == "encoder":
            raise ValueError("a cache needs a model that reads from left to right: application='lm' or 'unilm'")
        if mask is None and config.pad_token_id is not None:
            mask = ids != config.pad_token_id
            if config.shared_segment_embeddings and config.compat == "bert4keras" and segment_ids is not None:
                mask = mask & (segment_ids != config.pad_token_id)  # one Keras layer, so its mask holds for both
            if config.first_token_kept:
                mask = mask | (torch.arange(ids.shape[1], device=ids.device) == 0)
        if mask is not None and cache is not None and cache.keep is None and not cache.length and not bool(mask.all()):
            raise ValueError("a padded prompt needs the cache to know it: new_cache(rows, capacity, keep=mask)")
        return None if mask is None else mask.bool()

    def _last(self, ids: Tensor, position_ids: Tensor | None, cache: KVCache | None) -> int:
        """The largest position, for the table."""
        if self.config.traits.positions != "learned":
            return 0
        if position_ids is None:
            return ids.shape[1] - 1 + (cache.length if cache is not None else 0)
        if torch.compiler.is_compiling() or not position_ids.numel():
            return 0
        if int(position_ids.min()) < 0:
            raise ValueError(f"position_ids must not be negative, got {int(position_ids.min())}")
        return int(position_ids.max())


def initialize(model: nn.Module, config: TransformerConfig) -> None:
    """Fresh weights: truncated normal for matrices and tables, zero biases; norms keep their ones and zeros.

    Args:
        model: any part of a transformer.
        config: says the standard deviation; RoFormerV2 and GAU-alpha have a rule of their own.
    """
    own = config.traits.name in ("roformer_v2", "gau_alpha")
    of_norms = {part for norm in model.modules() if isinstance(norm, Norm) for part in norm.modules()}
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Embedding) or module.weight.is_meta or module in of_norms:
            continue
        std = config.initializer_range
        if own:  # std = 1.1368 / sqrt(fan in) / sqrt(layers), the fan of a table being its width
            rows, columns = module.weight.shape if isinstance(module, nn.Embedding) else module.weight.shape[::-1]
            fan = columns if rows > 10000 or rows < 10 else rows
            std = 1.13684723 * fan**-0.5 * config.num_layers**-0.5
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
