"""What loading a TensorFlow checkpoint will do, decided from names, shapes and the configuration alone.

`plan` finds the family, fills in what the configuration leaves out from the shapes, and collects what contradicts them;
no weight is read before that. `danlu.text.load_tf` tells the rules.

Source: see `danlu.text.load_tf`.
Shapes: none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.data.errors import InputError
from danlu.text.config import TransformerConfig, family_of
from danlu.text.family_guess import Guess, guess
from danlu.text.google_config import find_config, from_google, read_google
from danlu.text.slots import Slot
from danlu.text.tf_checkpoint import TFCheckpoint
from danlu.text.tf_names import layouts_of, tf_names

__all__ = ["ConfigLike", "Plan", "plan"]

ConfigLike = str | Path | Mapping[str, Any] | TransformerConfig | None
_ALIKE = {"roberta": "bert", "albert_unshared": "albert"}  # families whose files are those of another


@dataclass(frozen=True)
class Plan:
    """What is to be loaded.

    Args:
        source: the checkpoint, as messages name it.
        found: what names and shapes tell.
        shapes: shape by name of all variables.
        training: names of those that are state of an optimizer or a saver.
        config: of the model, before its vocabulary is changed.
        bounded: the same with at most one layer more than the file has, whatever the configuration says.
        heads: of the model.
        slots: where its parameters lie.
        essential: variables that may not lie unread.
        notes: remarks for the report.
        conflicts: sizes of the configuration that the shapes contradict, field and sentence.
        hint: how to mend what does not fit.
    """

    source: str
    found: Guess
    shapes: dict[str, tuple[int, ...]]
    training: frozenset[str]
    config: TransformerConfig
    bounded: TransformerConfig
    heads: tuple[str, ...]
    slots: dict[str, Slot]
    essential: frozenset[str]
    notes: list[str]
    conflicts: dict[str, str]
    hint: str


def plan(
    checkpoint: TFCheckpoint,
    overrides: Mapping[str, Any],
    *,
    family: str | None = None,
    application: str | None = None,
    heads: str | Sequence[str] = "auto",
    compat: str = "upstream",
    config: ConfigLike = None,
    assume: bool = False,
) -> Plan:
    """The plan of loading a checkpoint.

    Args:
        checkpoint: open.
        overrides: fields of `TransformerConfig` that count instead of the configuration's.
        family: as of `load_tf`, like the next four.
        application: see there.
        heads: see there.
        compat: see there.
        config: see there.
        assume: take the usual number of heads where nothing says it.

    Raises:
        InputError: no known model, no configuration that would be needed, or a wrong one.
    """
    source = str(checkpoint.prefix)
    names = checkpoint.names()
    shapes = {name: checkpoint.shape(name) for name in names}
    training = frozenset(names) - set(checkpoint.names(model_only=True))
    wanted = None if heads == "auto" else (heads,) if isinstance(heads, str) else tuple(heads)
    found = guess(shapes)
    if found.layout == "electra" and wanted is not None and "mlm" in wanted:
        found = guess(shapes, "generator")
    if found.layout is None:
        some = ", ".join(name for name in names[:3]) or "none"
        raise InputError(
            f"{source} holds no model that is known here; its {len(names)} variables begin with {some}. "
            "open_checkpoint reads them one by one"
        )
    notes: list[str] = []
    if isinstance(config, TransformerConfig):
        full, where = _given(config, family, application, overrides), "the configuration"
    else:
        values, where = _values(config, checkpoint.prefix)
        name = _family(family, found, values, source)
        if family is None:
            notes.append(f"family {name}: {'; '.join(found.reasons)}")
        defaults = _defaults(found, name, values, overrides, source, assume)
        try:
            full, unknown = from_google(
                values, name, application=application, compat=compat, source=where, defaults=defaults, **overrides
            )
        except InputError as error:
            hint = _hint(name, found, None)
            raise InputError(f"{error}; {hint}" if hint else str(error)) from None
        if "hidden_act" in values and values["hidden_act"] is None and "activation" not in overrides:
            notes.append(f"{where}: hidden_act is null, {full.activation} is taken")
        if unknown:
            notes.append(f"{where}: not understood: {', '.join(unknown)}")
    chosen = found.heads if wanted is None else wanted  # none are ever found of an encoder-decoder
    layout = found.layout if found.layout in layouts_of(full.family) else None
    bounded = _bounded(full, found)
    return Plan(
        source, found, shapes, training, full, bounded, chosen, tf_names(bounded, _with_brought(full, chosen), layout),
        _essential(bounded, found, overrides), notes, _conflicts(full, found, where, overrides),
        _hint(full.family, found, wanted),
    )  # fmt: skip


def _values(config: str | Path | Mapping[str, Any] | None, prefix: Path) -> tuple[Mapping[str, Any], str]:
    """Contents of the configuration, and its name for messages."""
    if isinstance(config, Mapping):
        return config, "the configuration"
    place = find_config(prefix) if config is None else Path(config)
    return ({}, "the settings given") if place is None else (read_google(place), str(place))


def _given(
    config: TransformerConfig, family: str | None, application: str | None, overrides: Mapping[str, Any]
) -> TransformerConfig:
    if family is not None and family_of(family).name != config.family:
        raise InputError(f"config is of {config.family}, not of {family}; leave family out, or give config of {family}")
    return config.replace(**{**overrides, **({} if application is None else {"application": application})})


def _family(family: str | None, found: Guess, values: Mapping[str, Any], source: str) -> str:
    if family is not None:
        return family_of(family).name
    said = values.get("model_type")
    if isinstance(said, str) and (said in found.candidates or (said in _ALIKE and found.layout in layouts_of(said))):
        return said
    if "nezha" in found.candidates and values.get("use_relative_position") is True:  # a key of NEZHA's own code
        return "nezha"
    if found.family is None:
        told = " or ".join(f"family={name!r}" for name in found.candidates) or "family="
        raise InputError(f"{source} does not show its family ({found.reasons[-1]}); pass {told}")
    return found.family


def _defaults(
    found: Guess, family: str, values: Mapping[str, Any], overrides: Mapping[str, Any], source: str, assume: bool
) -> dict[str, Any]:
    """What the shapes tell, for where the configuration is silent; the number of heads must be said."""
    sizes: dict[str, Any] = dict(found.sizes)
    said = [overrides.get("num_heads"), values.get("num_attention_heads"), values.get("n_head"), sizes.get("num_heads")]
    heads = next((number for number in said if number is not None), None)
    if heads is None and family_of(family).block != "gau":
        usual = found.assumed.get("num_heads")
        if not assume:
            raise InputError(
                f"{source} has no configuration that says num_heads, and shapes do not show it; pass config= the path "
                f"of bert_config.json, or num_heads={'' if usual is None else f' ({usual} would be usual)'}"
            )
        sizes["num_heads"] = heads = usual or 1
    if isinstance(heads, int):
        sizes |= found.head_sizes(heads)
    return sizes


def _with_brought(config: TransformerConfig, heads: Sequence[str]) -> tuple[str, ...]:
    """The heads that a built model has: some bring others, and language models score the vocabulary."""
    brought = ("pooler",) if "nsp" in heads else ()
    return (*heads, *brought, *(() if config.application == "encoder" else ("mlm",)))


def _bounded(config: TransformerConfig, found: Guess) -> TransformerConfig:
    held = found.sizes.get("num_layers", config.num_layers)
    decoder = found.sizes.get("num_decoder_layers", held)
    changes = {"num_layers": min(config.num_layers, held + 1)}
    if config.traits.encoder_decoder:
        changes["num_decoder_layers"] = min(config.decoder_layers, decoder + 1)
    return config.replace(**changes)


def _conflicts(config: TransformerConfig, found: Guess, where: str, overrides: Mapping[str, Any]) -> dict[str, str]:
    positions = config.traits.positions
    theirs = {"embedding_size": found.sizes.get("hidden_size"), **found.sizes}
    ours = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "embedding_size": config.embedding_dim,
        "intermediate_size": config.intermediate_size,
        "max_positions": config.max_positions + config.position_offset if positions == "learned" else None,
        "num_buckets": config.num_buckets if positions == "buckets" else None,
    }
    told = {}
    for name, value in ours.items():
        other = theirs.get(name)
        if value is not None and other is not None and other != value:
            told[name] = f"{name} is {value} in {where}, {other} in the file"
    if "vocab_size" in told:
        last = (theirs["vocab_size"] or 1) - 1
        told["vocab_size"] += f", whose ids are 0 to {last}; take the configuration and vocab.txt of this checkpoint"
    layers = found.sizes.get("num_layers")
    counts = {"num_layers": (config.num_layers, layers)}
    if config.traits.encoder_decoder:
        counts["num_decoder_layers"] = (config.decoder_layers, found.sizes.get("num_decoder_layers", layers))
    for name, (count, held) in counts.items():
        if held is not None and count > held:
            told[name] = f"{name} is {count} in {where}, the file has {held} layers"
        elif held is not None and count < held and not {name, "num_layers"} & set(overrides):
            told[name] = (
                f"{name} is {count} in {where}, the file has {held} layers; take the configuration of this "
                f"checkpoint, or give {name}={count} if only the first of them are wanted"
            )
    return told


def _essential(config: TransformerConfig, found: Guess, overrides: Mapping[str, Any]) -> frozenset[str]:
    """Variables of the encoder, up to the model's last layer; what was switched off on purpose is not among them."""
    if not found.candidates:
        return frozenset()
    sizes, switches = found.sizes, ("segment_vocab_size", "shared_segment_embeddings", "tie_embeddings")
    whole = TransformerConfig.of(
        found.candidates[0], vocab_size=1, num_heads=1, intermediate_size=1,
        hidden_size=sizes.get("hidden_size", 1), embedding_size=sizes.get("embedding_size"),
        num_layers=min(config.num_layers, sizes.get("num_layers", config.num_layers)) or 1,
        num_decoder_layers=config.num_decoder_layers,
        **{"segment_vocab_size": sizes.get("segment_vocab_size", 0)}
        | {name: value for name, value in overrides.items() if name in switches},
    )  # fmt: skip
    return frozenset(slot.name for slot in tf_names(whole, (), found.layout).values())


def _hint(family: str, found: Guess, wanted: tuple[str, ...] | None) -> str:
    if not found.candidates:
        return f"no family has these variables: {'; '.join(found.reasons[1:])}"
    if _ALIKE.get(family, family) not in found.candidates and family != "albert_unshared":
        likely = " or ".join(found.candidates)
        told = " or ".join(f"family={name!r}" for name in found.candidates)
        return f"the variables are those of {likely} ({found.reasons[1 if len(found.reasons) > 1 else 0]}); pass {told}"
    if wanted is not None and not set(wanted) <= set(found.heads):
        return f"the file has the heads {', '.join(found.heads) or 'none'}; ask for these, or for heads='auto'"
    return ""
