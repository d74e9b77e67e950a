r"""Google's bert_config.json, bert4keras' config.json and OpenAI's hparams.json, read and written.

    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, vocab_size, max_position_embeddings,
    type_vocab_size, hidden_act, hidden_dropout_prob, attention_probs_dropout_prob, initializer_range    Google
    embedding_size, attention_head_size, attention_key_size, relative_attention_num_buckets, and the
    arguments of build_transformer_model                                                                 bert4keras
    n_vocab, n_ctx, n_embd, n_head, n_layer                                                              OpenAI

These files do not name the family, and a "gelu" in them means the form of the family's own code: the tanh form in GPT-2
and T5 1.1, whatever the file's author compared it with; bert4keras computes the erf form for every "gelu", and so does
compat="bert4keras". What is written here carries the family as "model_type", and options that Google's keys cannot
express as "danlu_..." keys, so that reading it back gives the same configuration.

Source: google-research/bert (modeling.py, BertConfig), bert4keras 0.11.5 (build_transformer_model), openai/gpt-2.
Shapes: none.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.data.errors import InputError
from danlu.math.activations import activation_name
from danlu.text.config import COMPATS, TransformerConfig, family_of

__all__ = ["find_config", "from_google", "read_google", "to_google"]

# our field: their keys; where a file has several the first counts, as in bert4keras
_SIZES = {
    "vocab_size": ("vocab_size", "n_vocab"),
    "hidden_size": ("hidden_size", "n_embd"),
    "num_layers": ("num_hidden_layers", "n_layer"),
    "num_heads": ("num_attention_heads", "n_head"),
    "intermediate_size": ("intermediate_size",),
    "embedding_size": ("embedding_size",),
    "head_size": ("attention_head_size",),
    "key_size": ("attention_key_size",),
    "num_decoder_layers": ("num_decoder_layers",),
    "max_positions": ("max_position", "max_position_embeddings", "n_ctx"),
    "segment_vocab_size": ("segment_vocab_size", "type_vocab_size"),
    "num_buckets": ("relative_attention_num_buckets",),
    "max_distance": ("relative_attention_max_distance",),
    "pad_token_id": ("pad_token_id",),
}
_RATES = {
    "hidden_dropout": ("dropout_rate", "hidden_dropout_prob"),
    "attention_dropout": ("attention_dropout_rate", "attention_probs_dropout_prob"),
    "initializer_range": ("initializer_range",),
    "norm_eps": ("layer_norm_eps", "layer_norm_epsilon"),
}
_SWITCHES = {
    name: (name,) for name in ("residual_attention_scores", "shared_segment_embeddings", "cross_position_bias")
}
_NEVER_NULL = (
    "vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions", "segment_vocab_size",
    "num_buckets", "max_distance",
)  # fmt: skip
_FROM_ZERO = ("segment_vocab_size", "pad_token_id")
_SILENT = {  # understood, and without a consequence here
    "hidden_act", "hierarchical_position", "model_type", "use_relative_position", "initializer_factor",
    "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
    "pooler_type", "net_structure_type", "gap_size", "down_scale_factor", "layers_to_keep", "num_memory_blocks",
    "num_hidden_groups", "inner_group_num", "ln_type", "architectures", "transformers_version", "torch_dtype",
}  # fmt: skip
_ONLY = {
    "num_hidden_groups": 1,
    "inner_group_num": 1,
    "num_memory_blocks": 0,
    "ln_type": "postln",
    "net_structure_type": 0,
}
_FIELDS = {item.name for item in dataclasses.fields(TransformerConfig)} - {"family", "compat"}
_MOST, _MOST_LAYERS = 2**31 - 1, 10_000  # a model of more could not be built, only begun
_LARGEST = 2**20  # bytes of a configuration file


def from_google(
    values: Mapping[str, Any],
    family: str,
    *,
    application: str | None = None,
    compat: str = "upstream",
    source: str = "the configuration",
    defaults: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> tuple[TransformerConfig, list[str]]:
    """The configuration that a file's keys describe, and the keys that were not understood.

    Args:
        values: what the file holds.
        family: a key of `FAMILIES`; the file does not say it.
        application: "encoder", "lm" or "unilm"; None: the family's own.
        compat: "upstream" or "bert4keras".
        source: the file, for messages.
        defaults: fields of `TransformerConfig` that count where the file is silent.
        **overrides: fields of `TransformerConfig` that count instead of the file's.

    Returns:
        (configuration, keys that mean nothing here).

    Raises:
        InputError: a value has the wrong type or range, one that is needed is missing, or the file describes a variant
            that is not built.

    >>> sizes = {"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> config, unknown = from_google({**sizes, "intermediate_size": 8, "colour": "red"}, "bert")
    >>> config.num_heads, unknown
    (2, ['colour'])
    """
    traits = family_of(family)
    wrong = sorted(set(overrides) - _FIELDS)
    if wrong:
        same = [name for table in (_SIZES, _RATES) for name, keys in table.items() if wrong[0] in keys]
        near = same or difflib.get_close_matches(wrong[0], sorted(_FIELDS), n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "TransformerConfig lists them"
        raise InputError(f"a model has no setting {wrong[0]!r}; {hint}")
    fields: dict[str, Any] = dict(defaults or {})
    for table, check in ((_SIZES, _whole), (_RATES, _number), (_SWITCHES, _switch)):
        for name, keys in table.items():
            key = next((key for key in keys if values.get(key) is not None), None)
            null = next((key for key in keys if key in values), None)
            if key is None and null is not None and name in _NEVER_NULL and name not in overrides:
                raise InputError(f"{source}: {null} is null; write the size of the model, or give {name}=")
            if key is not None:
                fields[name] = check(key, values[key], source, 0 if name in _FROM_ZERO else 1)
    _variants(values, source)
    act = values.get("hidden_act")
    if act is not None:
        fields["activation"] = _activation(act, traits.gated, source)
        if fields["activation"] == "gelu" and compat == "upstream":
            own = traits.defaults.get("activation", "gelu")
            fields["activation"] = own if own.startswith("gelu") else "gelu"
    if values.get("hierarchical_position") is not None:
        fields["hierarchical_position"] = _hierarchical(values["hierarchical_position"], source)
    fields |= _own_fields(values, source)
    if not traits.segments:
        fields["segment_vocab_size"] = 0
    if application is not None:
        fields["application"] = application
    fields |= overrides
    if "intermediate_size" not in fields and "n_embd" in values:
        fields["intermediate_size"] = 4 * fields["hidden_size"]  # OpenAI's
    if traits.block == "gau":
        fields["num_heads"] = 1
    needed = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size")
    missing = [_SIZES[name][0] for name in needed if name not in fields]
    if missing:
        raise InputError(f"{source} has no {', '.join(missing)}; add them, or give another configuration")
    try:
        config = TransformerConfig.of(traits.name, compat=compat, **fields)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source} makes no {family} model: {error}") from None
    known = {key for table in (_SIZES, _RATES, _SWITCHES) for keys in table.values() for key in keys} | _SILENT
    return config, sorted(key for key in values if key not in known and not key.startswith("danlu_"))


def to_google(config: TransformerConfig) -> dict[str, Any]:
    """What a file must hold so that Google's code and bert4keras read this configuration.

    Args:
        config: any.

    Returns:
        A dictionary for JSON; `from_google` makes the same configuration of it.

    >>> sizes = {"vocab_size": 9, "hidden_size": 4, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
    >>> to_google(TransformerConfig.of("bert", **sizes))["num_hidden_layers"]
    1
    """
    act = config.activation
    own = config.traits.defaults.get("activation", "gelu")
    name = "gelu" if act == own and act.startswith("gelu") else act
    values: dict[str, Any] = {
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": [name, "linear"] if config.traits.gated else name,
        "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "initializer_range": config.initializer_range,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.segment_vocab_size,
    }
    optional = {
        "embedding_size": config.embedding_size,
        "attention_head_size": config.head_size,
        "attention_key_size": config.key_size,
        "num_decoder_layers": config.num_decoder_layers,
        "relative_attention_num_buckets": config.num_buckets if config.traits.positions == "buckets" else None,
        "hierarchical_position": config.hierarchical_position,
        "residual_attention_scores": config.residual_attention_scores or None,
        "shared_segment_embeddings": config.shared_segment_embeddings or None,
    }
    values |= {key: value for key, value in optional.items() if value is not None}
    readings = [from_google(values, config.family, compat=compat)[0] for compat in COMPATS]
    for item in dataclasses.fields(config):
        kept = getattr(config, item.name)
        if item.name != "compat" and any(getattr(reading, item.name) != kept for reading in readings):
            values[f"danlu_{item.name}"] = kept
    return values


def read_google(path: str | Path) -> dict[str, Any]:
    """The keys of a configuration file.

    Args:
        path: a JSON file.

    Returns:
        The object it holds.

    Raises:
        InputError: there is no such file, it is larger than a configuration can be, or no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no configuration file {path}; give config= the path of bert_config.json")
    if path.stat().st_size > _LARGEST:
        raise InputError(f"{path} has {path.stat().st_size} bytes; a configuration has some hundred")
    try:
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a JSON object like bert_config.json, it holds a {type(values).__name__}")
    return values


def find_config(prefix: Path) -> Path | None:
    """The configuration beside a checkpoint: bert_config.json, config.json, else the only other *config*.json.

    Args:
        prefix: path and beginning of the checkpoint's files.

    Returns:
        Its path, or None; OpenAI's hparams.json counts too.

    Raises:
        InputError: several files may be meant.
    """
    folder = prefix.parent
    for name in ("bert_config.json", "config.json"):
        if (folder / name).is_file():
            return folder / name
    found = [
        path for path in sorted(folder.glob("*config*.json")) if not path.name.startswith(("tokenizer", "generation"))
    ]
    found += [folder / "hparams.json"] if (folder / "hparams.json").is_file() else []
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"beside {prefix} lie several configurations: {names}; say which with config=")
    return found[0] if found else None


def _whole(key: str, value: Any, source: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{source}: {key} must be a whole number of at least {least}, got {value!r}")
    most = _MOST_LAYERS if key.endswith("layers") or key == "n_layer" else _MOST
    if value > most:
        raise InputError(f"{source}: {key} must be a whole number of at most {most}, got {value!r}")
    return value


def _number(key: str, value: Any, source: str, least: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise InputError(f"{source}: {key} must be a number in [0, 1], got {value!r}")
    return float(value)


def _switch(key: str, value: Any, source: str, least: int) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{source}: {key} must be true or false, got {value!r}")
    return value


def _activation(value: Any, gated: bool, source: str) -> str:
    """One name; bert4keras writes gated layers as [activation, "linear"]."""
    if isinstance(value, list) and gated and len(value) == 2 and value[1] == "linear":
        value = value[0]
    if not isinstance(value, str):
        expected = 'a name, or [name, "linear"]' if gated else "a name"
        raise InputError(f"{source}: hidden_act must be {expected} for this family, got {value!r}")
    try:
        return activation_name(value)
    except ValueError as error:
        raise InputError(f"{source}: hidden_act: {error}") from None


def _hierarchical(value: Any, source: str) -> float | None:
    if isinstance(value, bool):
        return 0.4 if value else None  # bert4keras: True is 0.4
    return _number("hierarchical_position", value, source, 0)


def _variants(values: Mapping[str, Any], source: str) -> None:
    for key, only in _ONLY.items():
        if values.get(key, only) != only:
            raise InputError(
                f"{source}: {key} is {values[key]!r}, a variant of the model that is not built here; only {only!r} is"
            )


def _own_fields(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The danlu_... keys, their types compared with those of `TransformerConfig`."""
    own = {key.removeprefix("danlu_"): value for key, value in values.items() if key.startswith("danlu_")}
    wrong = sorted(set(own) - _FIELDS)
    if wrong:
        raise InputError(
            f"{source}: there is no key danlu_{wrong[0]}; there are danlu_ and one of {', '.join(sorted(_FIELDS))}"
        )
    for item in dataclasses.fields(TransformerConfig):
        if item.name in own:
            value, expected = own[item.name], str(item.type)
            kind = "None" if value is None else type(value).__name__
            if kind not in expected.split(" | ") and not (kind == "int" and "float" in expected):
                raise InputError(f"{source}: danlu_{item.name} must be {expected}, got {value!r}")
    return own
