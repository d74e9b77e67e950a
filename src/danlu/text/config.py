r"""What distinguishes one transformer family from another: a short declaration each, and the sizes of one model.

A `Family` says where the norms stand, how positions enter, which biases exist and which heads follow; a
`TransformerConfig` holds the sizes and options of one model of that family. Both are plain frozen records: the
composed model of `danlu.text.transformer` reads them, and so do the name tables of checkpoints.

    post       x = norm(x + attention(x));             x = norm(x + ffn(x))                                   (1)
    pre        x = x + attention(norm(x));             x = x + ffn(norm(x));           last: norm(x)          (2)
    gpt2_ml    x = x + attention(x);                   x = norm_1(x + ffn(norm_0(x)))                         (3)
    gau        x = norm(x + gau(x))                                                                           (4)

Upstream values are the default; `compat="bert4keras"` takes bert4keras' where they differ (epsilons, T5's position
bias in cross attention and the scale of its logits).

Source: Su, kexue.fm/archives/7292 (one base class, families by a few differences); Devlin et al., 2018,
arXiv:1810.04805; Lan et al., 2019, arXiv:1909.11942; Clark et al., 2020, arXiv:2003.10555; Wei et al., 2019,
arXiv:1909.00204; Su et al., 2021, arXiv:2104.09864; Raffel et al., 2019, arXiv:1910.10683; Xue et al., 2020,
arXiv:2010.11934.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from danlu.nn.attention_kinds import check_attention, unfit_attention

__all__ = ["FAMILIES", "Family", "TransformerConfig", "family_of"]

APPLICATIONS = ("encoder", "lm", "unilm")
COMPATS = ("upstream", "bert4keras")


@dataclass(frozen=True)
class Family:
    """Structural traits of one family; `defaults` and `bert4keras` are values of `TransformerConfig` fields."""

    name: str
    block: str = "post"  # "post" | "pre" | "gpt2_ml" | "gau": eqs. (1) to (4)
    norm: str = "layer"  # "layer" | "rms" (gain, no shift) | "plain_rms" (neither)
    bias: bool = True  # the linear layers have biases
    positions: str = "learned"  # "learned" | "clipped" | "rotary" | "buckets"
    segments: bool = True
    embedding_norm: bool = True
    gated: bool = False  # the feed-forward layer is act(gate x) * (input x)
    share_layers: bool = False
    scaled_scores: bool = True  # scores are divided by sqrt(key size)
    head: str = "mlm"  # "mlm": transform, norm, tied output, bias | "tied" | "untied"
    encoder_decoder: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)
    bert4keras: dict[str, Any] = field(default_factory=dict)

    @property
    def final_norm(self) -> bool:
        """Pre-norm stacks end with a norm."""
        return self.block == "pre"


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and options of one model.

    Args:
        family: a key of `FAMILIES`.
        vocab_size: rows of the token table.
        hidden_size: features of a hidden state.
        num_layers: blocks (of the encoder, for an encoder-decoder).
        num_heads: attention heads.
        intermediate_size: features inside the feed-forward layer (inside the gated unit for gau_alpha).
        embedding_size: features of the tables; None: hidden_size.
        head_size: features of one head's values; None: hidden_size / num_heads.
        key_size: features of one head's queries and keys; None: head_size. gau_alpha: its only head, None: 128.
        num_decoder_layers: blocks of the decoder; None: num_layers.
        max_positions: rows of the position table.
        segment_vocab_size: rows of the segment table; 0: none.
        pad_token_id: this id marks padding where no mask is given; None: every position is a token.
        position_offset: first row of the position table in use (2 in HuggingFace's RoBERTa layout).
        activation: of the feed-forward layer and the MLM transform, a name of `danlu.math.activations`.
        norm_eps: inside the blocks.
        embedding_norm_eps: of the embedding norm; None: norm_eps.
        head_norm_eps: of the MLM transform's norm; None: norm_eps.
        hidden_dropout: after embeddings, attention and feed-forward, in [0, 1).
        attention_dropout: on attention probabilities, in [0, 1).
        initializer_range: standard deviation of the truncated normal that fresh weights are drawn from.
        application: "encoder" (all see all), "lm" (causal) or "unilm" (segment 0 in both directions, then causal).
        tie_embeddings: the output matrix is the token table (T5 1.1 and mT5: False).
        scale_logits: T5: hidden states are multiplied by hidden_size ** -0.5 before the output matrix.
        cross_position_bias: T5: the decoder's position bias is added to the cross-attention scores too.
        shared_segment_embeddings: segments are rows of the token table.
        hierarchical_position: alpha of the decomposed position table, which reaches max_positions ** 2; None: off.
        residual_attention_scores: RealFormer, each layer adds the scores of the one before.
        attention: one of `danlu.nn.ATTENTIONS`; those that compute no scores of pairs do not fit every family.
        attention_size: its landmarks, random features or rank; None: those of `danlu.nn.build_attention`.
        relative_clip: NEZHA: distances beyond it share a vector.
        num_buckets: T5: buckets of relative positions.
        max_distance: T5: beyond it distances share the last bucket.
        condition_size: features of a condition vector that shifts every norm; None: none.
        condition_hidden_size: bottleneck of the condition; None: none.
        condition_activation: inside the bottleneck.
        pooler_activation: of the pooled first token.
        first_token_kept: the first position is never masked, whatever its id (bert4keras, and T5's start token 0).
        compat: "upstream" or "bert4keras".

    Raises:
        ValueError: an unknown family, application, compat or attention, a size below 1, heads that do not divide
            hidden_size, or an attention that the family cannot have.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    embedding_size: int | None = None
    head_size: int | None = None
    key_size: int | None = None
    num_decoder_layers: int | None = None
    max_positions: int = 512
    segment_vocab_size: int = 2
    pad_token_id: int | None = 0
    position_offset: int = 0
    activation: str = "gelu"
    norm_eps: float = 1e-12
    embedding_norm_eps: float | None = None
    head_norm_eps: float | None = None
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02
    application: str = "encoder"
    tie_embeddings: bool = True
    scale_logits: bool = False
    cross_position_bias: bool = False
    shared_segment_embeddings: bool = False
    hierarchical_position: float | None = None
    residual_attention_scores: bool = False
    attention: str = "softmax"
    attention_size: int | None = None
    relative_clip: int = 64
    num_buckets: int = 32
    max_distance: int = 128
    condition_size: int | None = None
    condition_hidden_size: int | None = None
    condition_activation: str = "linear"
    pooler_activation: str = "tanh"
    first_token_kept: bool = True
    compat: str = "upstream"

    def __post_init__(self) -> None:
        family = family_of(self.family)
        if self.application not in APPLICATIONS:
            raise ValueError(f"application must be one of {', '.join(APPLICATIONS)}; got {self.application!r}")
        if self.application != "encoder" and family.encoder_decoder:
            raise ValueError(
                f"application={self.application!r} has no meaning for {self.family}, which has a decoder of its own; "
                "leave application at 'encoder'"
            )
        if self.compat not in COMPATS:
            raise ValueError(f"compat must be one of {', '.join(COMPATS)}; got {self.compat!r}")
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.head_size is None and family.block != "gau" and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}; "
                "give head_size, or other sizes"
            )
        if self.hierarchical_position is not None and not 0 < self.hierarchical_position < 1:
            raise ValueError(f"hierarchical_position must lie in (0, 1), e.g. 0.4; got {self.hierarchical_position}")
        if self.attention != "softmax" or self.attention_size is not None:
            self._check_attention(family)

    def _check_attention(self, family: Family) -> None:
        """Refuse a kind of attention that this model cannot have."""
        check_attention(self.attention, self.attention_size)
        why = unfit_attention(
            self.attention,
            positions=family.positions,
            application=self.application,
            realformer=self.residual_attention_scores,
            gated_unit=family.block == "gau",
        )
        if why is not None:
            raise ValueError(f"attention {self.attention!r} {why}; {self.family} needs 'softmax' here")

    @classmethod
    def of(cls, family: str, *, compat: str = "upstream", **sizes: Any) -> TransformerConfig:
        """A configuration with the family's defaults (and, under compat="bert4keras", that library's) below `sizes`."""
        traits = family_of(family)
        values = {**traits.defaults, **(traits.bert4keras if compat == "bert4keras" else {})}
        return cls(**{**values, **sizes, "family": traits.name, "compat": compat})

    @property
    def traits(self) -> Family:
        """The structural traits of the family."""
        return family_of(self.family)

    @property
    def embedding_dim(self) -> int:
        """Features of the token table."""
        return self.embedding_size or self.hidden_size

    @property
    def value_dim(self) -> int:
        """Features of one head's values."""
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def key_dim(self) -> int:
        """Features of one head's queries and keys."""
        if self.traits.block == "gau":
            return self.key_size or 128
        return self.key_size or self.value_dim

    @property
    def decoder_layers(self) -> int:
        """Blocks of the decoder of an encoder-decoder."""
        return self.num_decoder_layers or self.num_layers

    def replace(self, **changes: Any) -> TransformerConfig:
        """The same configuration with `changes`."""
        return dataclasses.replace(self, **changes)


_B4K = {"norm_eps": 1e-7, "head_norm_eps": 1e-12}  # where bert4keras leaves Keras' default epsilon
_T5 = {
    "norm_eps": 1e-6, "activation": "relu", "segment_vocab_size": 0, "scale_logits": True, "max_positions": 512,
}  # fmt: skip
_T5_B4K = {"cross_position_bias": True, "scale_logits": True}
_T5_GATED_B4K = {**_T5_B4K, "activation": "gelu"}
_T5_GATED = {**_T5, "activation": "gelu_tanh", "tie_embeddings": False, "scale_logits": False}
_GPT = {"application": "lm", "norm_eps": 1e-5, "activation": "gelu_tanh", "pad_token_id": None}

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("bert"),
        Family("roberta", bert4keras={}),
        Family("albert", share_layers=True, bert4keras={**_B4K, "embedding_norm_eps": 1e-12}),
        Family("albert_unshared", bert4keras={**_B4K, "embedding_norm_eps": 1e-12}),
        Family("electra"),
        Family("nezha", positions="clipped", bert4keras=_B4K),
        Family("roformer", positions="rotary", bert4keras=_B4K),
        Family(
            "roformer_v2", norm="plain_rms", bias=False, positions="rotary", head="tied", defaults={"norm_eps": 1e-7}
        ),
        Family(
            "gau_alpha", block="gau", norm="plain_rms", bias=False, positions="rotary", head="tied",
            defaults={"norm_eps": 1e-7, "activation": "silu", "num_heads": 1},
        ),
        Family("gpt", segments=True, embedding_norm=False, head="tied", defaults=_GPT,
               bert4keras={"norm_eps": 1e-12, "activation": "gelu", "pad_token_id": 0}),
        Family("gpt2", block="pre", segments=False, embedding_norm=False, head="tied",
               defaults={**_GPT, "max_positions": 1024, "segment_vocab_size": 0},
               bert4keras={"activation": "gelu", "pad_token_id": 0}),
        Family("gpt2_ml", block="gpt2_ml", segments=False, head="tied",
               defaults={**_GPT, "activation": "gelu", "max_positions": 1024, "segment_vocab_size": 0},
               bert4keras={"pad_token_id": 0}),
        Family("t5.1.0", block="pre", norm="rms", bias=False, positions="buckets", segments=False, embedding_norm=False,
               scaled_scores=False, head="tied", encoder_decoder=True, defaults=_T5, bert4keras=_T5_B4K),
        Family("t5.1.1", block="pre", norm="rms", bias=False, positions="buckets", segments=False, embedding_norm=False,
               gated=True, scaled_scores=False, head="untied", encoder_decoder=True, defaults=_T5_GATED,
               bert4keras=_T5_GATED_B4K),
        Family("mt5.1.1", block="pre", norm="rms", bias=False, positions="buckets", segments=False,
               embedding_norm=False,
               gated=True, scaled_scores=False, head="untied", encoder_decoder=True, defaults=_T5_GATED,
               bert4keras=_T5_GATED_B4K),
    )
}  # fmt: skip

_ALIASES = {
    "mt5": "mt5.1.1", "t5": "t5.1.0", "gaualpha": "gau_alpha", "gau": "gau_alpha", "roformerv2": "roformer_v2",
    "gpt2ml": "gpt2_ml", "t5_1_0": "t5.1.0", "t5_1_1": "t5.1.1", "mt5_1_1": "mt5.1.1",
}  # fmt: skip


def family_of(name: str) -> Family:
    """The family called `name`; bert4keras' spellings (`mt5`, `GAUAlpha`, `RoFormerV2`) are understood.

    Args:
        name: a key of `FAMILIES` or another spelling of it, in any case.

    Returns:
        Its declaration.

    Raises:
        ValueError: no such family; the message lists them.

    >>> family_of("RoFormerV2").norm
    'plain_rms'
    """
    key = name.lower().replace("-", "_")
    key = _ALIASES.get(key, key)
    if key not in FAMILIES:
        raise ValueError(f"no transformer family {name!r}; there are {', '.join(FAMILIES)}")
    return FAMILIES[key]
