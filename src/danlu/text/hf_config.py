r"""HuggingFace's config.json and our `TransformerConfig`, both ways.

    config.json of a family that transformers has     its own keys, and danlu_<field> for what they cannot say     (1)
    config.json of any other                          model_type danlu-<family>, and every field by its name       (2)

Reading refuses options under which the same weights mean another model (relative positions of BERT, rotated values,
cross attention, quantized weights, code that comes with the folder) instead of leaving them out. Writing takes (1)
where the class in transformers computes the same numbers, else (2), which `AutoModel` refuses by its name: a
RealFormer, T5-PEGASUS or model with conditional norms that it opened as BERT or T5 would be silently wrong. Options
that only matter when used (hierarchical positions beyond the table, unilm's mask) stay beside as danlu_<field>. Either
way `from_hf(to_hf(config)) == config`.

What transformers' own files leave open: T5's version stands in `feed_forward_proj`; T5 scales its logits where
`scale_decoder_outputs` says so (since 5.0) or else where `tie_word_embeddings` is not false, mT5 never; whether the
output matrix is tied is said falsely by 5.x, so `load_hf` looks into the weights. ALBERT with as many groups as layers
is our `albert_unshared`. OpenAI GPT's "gelu" is the tanh form.

Source: the configuration classes of transformers 5.23; RoFormerV2's `use_bias` and `norm_type` in its own port.
Shapes: no tensors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from danlu.math.activations import activation_name
from danlu.text._hf_keys import ACTIVATIONS, GPT_ACTIVATIONS, NEEDED, PLAIN, TYPES, WRITTEN_AS
from danlu.text.config import FAMILIES, TransformerConfig, family_of

__all__ = ["from_hf", "hf_type", "to_hf"]

_FIELDS = {field.name: str(field.type) for field in dataclasses.fields(TransformerConfig)}


def from_hf(config: Mapping[str, Any], family: str | None = None) -> TransformerConfig:
    """The configuration that a config.json describes.

    Args:
        config: the parsed file.
        family: what the weights are, where the file does not say it or says it wrongly; None: by its `model_type`.

    Returns:
        `TransformerConfig`. A gated T5's tie_embeddings is what the file says; `load_hf` corrects it by the weights.

    Raises:
        ValueError: another kind of model, an option that we do not compute, a size that is missing or of another type.

    >>> sizes = dict(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from_hf({"model_type": "roberta", **sizes}).position_offset
    2
    """
    model_type = config.get("model_type")
    chosen = None if family is None else family_of(family).name
    if isinstance(model_type, str) and model_type.startswith("danlu-"):
        return _of_danlu(config, model_type, chosen)  # eq. (2)
    kind = _kind(model_type, chosen)
    found, keys = TYPES[kind]
    values = {ours: _read(config, ours, key, default) for ours, (key, default) in keys.items()}
    if chosen is None:
        _refuse_options(config)
    if kind in ("t5", "mt5"):
        found = _t5(config, kind, values)
    elif kind == "openai-gpt" and values["activation"] == "gelu":
        values["activation"] = "gelu_tanh"
    if kind in ("openai-gpt", "gpt2"):
        values["segment_vocab_size"] = 0
        values["intermediate_size"] = values.get("intermediate_size") or 4 * values["hidden_size"]
    elif found == "roberta":  # its positions count from behind the padding id, and the table has rows for that
        values["position_offset"] = (values["pad_token_id"] or 0) + 1
        values["max_positions"] -= values["position_offset"]
    elif kind == "roformer" and (config.get("use_bias") is False or config.get("norm_type") == "rms_norm"):
        found = "roformer_v2"
    elif kind == "albert":
        found = _albert(config, values["num_layers"])
    if kind not in ("t5", "mt5"):
        values["activation"] = _activation(values["activation"])
        if config.get("is_decoder") is True:
            values["application"] = "lm"
    if values.get("embedding_size") == values["hidden_size"]:
        values["embedding_size"] = None
    beside = {
        name: _typed(f"danlu_{name}", config[f"danlu_{name}"], kind)  # eq. (1)
        for name, kind in _FIELDS.items()
        if f"danlu_{name}" in config
    }
    read = TransformerConfig.of(chosen or found, **values)
    return read.replace(**beside) if beside else read


def hf_type(config: Mapping[str, Any], family: str | None = None) -> str:
    """Whose names the weights beside a config.json have: its `model_type`, or what a given family makes of it.

    Args:
        config: the parsed file.
        family: as of `from_hf`.

    Returns:
        A model_type of transformers, or danlu-<family>.

    Raises:
        ValueError: as of `from_hf`.

    >>> hf_type({"model_type": "roberta"}), hf_type({"model_type": "roberta"}, "bert")
    ('roberta', 'bert')
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type.startswith("danlu-"):
        return model_type
    return _kind(model_type, None if family is None else family_of(family).name)


def to_hf(config: TransformerConfig, heads: Collection[str] = ()) -> dict[str, Any]:
    """The config.json for a model of ours, in transformers' own terms where its class computes the same.

    Args:
        config: of the model.
        heads: the heads that are saved with it; they choose the class under `architectures`.

    Returns:
        A dictionary for JSON; `from_hf` makes the same configuration of it.

    >>> config = TransformerConfig("bert", 9, 4, 1, 2, 8)
    >>> to_hf(config, ["mlm"])["architectures"], to_hf(config.replace(residual_attention_scores=True))["model_type"]
    (['BertForMaskedLM'], 'danlu-bert')
    """
    model_type = WRITTEN_AS.get(config.family)
    if model_type == "roberta" and config.position_offset == 0:
        model_type = "bert"  # the Chinese RoBERTa is a BERT
    if model_type is not None:
        written = _write(config, model_type)
        if written is not None and not (
            model_type in ("roberta", "electra") and "mlm" in heads and config.activation != "gelu"
        ):  # their MLM transforms have gelu built in
            return {"architectures": [_architecture(model_type, heads, config.application)], **written}
    own = {
        "model_type": f"danlu-{config.family}",
        "danlu_heads": list(heads),
    }  # a tied head has no weights to be known by
    return {**own, **dataclasses.asdict(config)}  # eq. (2)


def _kind(model_type: Any, family: str | None) -> str:
    """The row of `TYPES` to read by."""
    if not isinstance(model_type, str | None):
        raise ValueError(f"model_type in config.json must be a string, got {model_type!r}")
    if family is not None and not (model_type in TYPES and TYPES[model_type][0] == family):
        kind = {**WRITTEN_AS, "nezha": "nezha", "roformer_v2": "roformer"}.get(family)
        if kind is None:
            raise ValueError(
                f"{family} has no layout in HuggingFace folders but ours, whose model_type is danlu-{family}; "
                f"got model_type {model_type!r}"
            )
        return "bert" if kind == "roberta" else kind
    if model_type in TYPES:
        return model_type
    if model_type is None:
        raise ValueError(f"config.json has no model_type; say what it is with family=, one of {', '.join(FAMILIES)}")
    raise ValueError(
        f"model_type {model_type!r} is none of {', '.join(TYPES)}; HFEncoder opens other models through transformers, "
        "or give family= if the weights are of a family above"
    )


def _read(config: Mapping[str, Any], ours: str, key: str, default: Any) -> Any:
    value = config.get(key, default)
    if value is NEEDED:
        raise ValueError(f"config.json lacks {key}, the {ours} of the model; add it, it cannot be guessed")
    return _typed(key, value, _FIELDS[ours] + (" | None" if default is None else ""))


def _typed(key: str, value: Any, kind: str) -> Any:
    """The value if it is of the annotated type; JSON knows no other check."""
    names = kind.split(" | ")
    if value is None and "None" in names:
        return None
    ok = {
        "int": isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31,
        "float": isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
    }[names[0]]
    if not ok:
        said = {"int": "a whole number of 32 bits", "float": "a number", "bool": "true or false", "str": "a string"}[
            names[0]
        ]
        raise ValueError(f"{key} in config.json must be {said}{' or null' * ('None' in names)}, got {value!r}")
    return value


def _activation(name: str) -> str:
    ours = activation_name(name)
    if ours not in ACTIVATIONS:
        raise ValueError(f"transformers' {name} has another slope than ours; models with it are not read")
    return ours


def _refuse_options(config: Mapping[str, Any]) -> None:
    for key, plain in PLAIN.items():
        if key in config and config[key] not in plain:
            raise ValueError(
                f"config.json has {key}={config[key]!r}, another model than the plain {config.get('model_type')} we "
                "compute; open it with HFEncoder, or give family= if you know that the option changes nothing"
            )


def _t5(config: Mapping[str, Any], kind: str, values: dict[str, Any]) -> str:
    """Fill in what distinguishes T5's versions; returns the family."""
    feed_forward = _typed(
        "feed_forward_proj", config.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu"), "str"
    )
    gate, _, name = feed_forward.rpartition("-")
    if gate not in ("", "gated"):
        raise ValueError(f"feed_forward_proj must be like 'relu' or 'gated-gelu', got {feed_forward!r}")
    values["activation"] = "gelu_tanh" if feed_forward == "gated-gelu" else _activation(name)
    tied = _typed("tie_word_embeddings", config.get("tie_word_embeddings", True), "bool")
    values["tie_embeddings"] = tied
    scaled = _typed("scale_decoder_outputs", config.get("scale_decoder_outputs", tied), "bool")
    values["scale_logits"] = scaled and kind == "t5"
    if values["head_size"] * values["num_heads"] == values["hidden_size"]:
        values["head_size"] = None
    if values["num_decoder_layers"] == values["num_layers"]:
        values["num_decoder_layers"] = None
    return ("mt5.1.1" if kind == "mt5" else "t5.1.1") if gate else "t5.1.0"


def _albert(config: Mapping[str, Any], num_layers: int) -> str:
    groups = _typed("num_hidden_groups", config.get("num_hidden_groups", 1), "int")
    if groups not in (1, num_layers):
        raise ValueError(
            f"num_hidden_groups is {groups}; ALBERT is read with one group (all layers shared) or with as many as "
            f"layers ({num_layers}, none shared)"
        )
    return "albert" if groups == 1 else "albert_unshared"


def _of_danlu(config: Mapping[str, Any], model_type: str, chosen: str | None) -> TransformerConfig:
    values: dict[str, Any] = {"family": model_type.removeprefix("danlu-")}
    if chosen not in (None, family_of(values["family"]).name):
        raise ValueError(f"config.json says {model_type}, family={chosen!r} was given; leave family out")
    for field in dataclasses.fields(TransformerConfig):
        if field.name != "family" and field.name in config:
            values[field.name] = _typed(field.name, config[field.name], _FIELDS[field.name])
        elif field.default is dataclasses.MISSING and field.name != "family":
            raise ValueError(f"config.json of a {model_type} lacks {field.name}; restore the file that danlu wrote")
    return TransformerConfig(**values)


def _write(config: TransformerConfig, model_type: str) -> dict[str, Any] | None:
    """Eq. (1), or None where transformers' class computes something else."""
    names = GPT_ACTIVATIONS if model_type == "openai-gpt" else ACTIVATIONS
    if config.activation not in names:
        return None
    values = {**dataclasses.asdict(config), "activation": names[config.activation]}
    values["embedding_size"], values["head_size"] = config.embedding_dim, config.value_dim
    values["num_decoder_layers"], values["max_positions"] = (
        config.decoder_layers,
        config.max_positions + config.position_offset,
    )
    written: dict[str, Any] = {"model_type": model_type}
    written |= {key: values[ours] for ours, (key, _) in TYPES[model_type][1].items()}
    if model_type in ("t5", "mt5"):
        gated = "gated-" * config.traits.gated
        form = {"gated-gelu": "gelu_python", "gated-gelu_new": "gelu"}.get(gated + values["activation"])
        written |= {
            "feed_forward_proj": gated + (form or values["activation"]), "is_encoder_decoder": True,
            "decoder_start_token_id": config.pad_token_id, "scale_decoder_outputs": config.scale_logits,
        }  # fmt: skip
    elif model_type == "albert":
        written |= {"num_hidden_groups": 1 if config.traits.share_layers else config.num_layers, "inner_group_num": 1}
    elif model_type == "roformer":
        written["rotary_value"] = False
    elif model_type == "gpt2" and config.vocab_size <= 50256:
        written |= {"bos_token_id": None, "eos_token_id": None}  # transformers' are of another vocabulary
    written["tie_word_embeddings"] = config.tie_embeddings or not config.traits.encoder_decoder
    if "type_vocab_size" in written:
        written["type_vocab_size"] = max(1, config.segment_vocab_size)  # its BERT cannot be without
        if config.application == "lm" and model_type != "albert":
            written["is_decoder"] = True
    if model_type == "t5" and config.scale_logits and not config.tie_embeddings:
        return None  # transformers 4 scales by the tie alone
    if config.condition_size is not None:
        return None  # it would leave the conditions out
    if model_type == "albert" and config.embedding_dim == config.hidden_size:
        return None  # it projects between equal sizes too
    try:
        back = from_hf(written)
    except ValueError:
        return None
    if _computed(back) != _computed(config):
        return None
    written |= {
        f"danlu_{field.name}": getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(back, field.name)
    }
    return written


def _computed(config: TransformerConfig) -> tuple[Any, ...]:
    """What decides a model's numbers in transformers."""
    traits = config.traits
    eps = (config.norm_eps, config.embedding_norm_eps or config.norm_eps, config.head_norm_eps or config.norm_eps)
    segments = max(config.segment_vocab_size, traits.embedding_norm) if traits.segments else 0
    return (
        traits.block, traits.gated, traits.share_layers or config.num_layers == 1, config.vocab_size,
        config.hidden_size, config.num_layers, config.decoder_layers, config.num_heads, config.intermediate_size,
        config.embedding_dim, config.value_dim, config.key_dim, segments, config.position_offset, config.activation,
        config.pooler_activation, config.tie_embeddings or not traits.encoder_decoder, config.scale_logits,
        config.cross_position_bias, config.shared_segment_embeddings, config.residual_attention_scores,
        config.attention, *(round(value * 1e6) for value in eps),  # what is less shows in no float32 output
    )  # fmt: skip


def _architecture(model_type: str, heads: Collection[str], application: str) -> str:
    """The class that has these heads."""
    name = {
        "bert": "Bert", "roberta": "Roberta", "albert": "Albert", "electra": "Electra", "roformer": "RoFormer",
        "openai-gpt": "OpenAIGPTLMHeadModel", "gpt2": "GPT2LMHeadModel", "t5": "T5ForConditionalGeneration",
        "mt5": "MT5ForConditionalGeneration",
    }[model_type]  # fmt: skip
    if model_type in ("openai-gpt", "gpt2", "t5", "mt5"):
        return name
    if (model_type in ("bert", "albert") and {"mlm", "nsp"} <= set(heads)) or "discriminator" in heads:
        return f"{name}ForPreTraining"
    if "mlm" in heads and application == "lm" and model_type != "albert":
        return "BertLMHeadModel" if model_type == "bert" else f"{name}ForCausalLM"
    if "mlm" in heads:
        return f"{name}ForMaskedLM"
    return "BertForNextSentencePrediction" if model_type == "bert" and "nsp" in heads else f"{name}Model"
