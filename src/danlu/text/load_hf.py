r"""Models out of HuggingFace folders: config.json and safetensors (whole or sharded) or pytorch_model.bin.

    config.json  ->  TransformerConfig  ->  names of the weights  ->  a filled model, and a report              (1)

Bare and headed folders, and the names of older versions, are read alike. What other weights imply must agree with them:
a stored output matrix that differs from the token table it should be tied to is refused, since our model would answer
with the table (T5 apart, which may untie it). An encoder weight that nothing reads stops the loading, a head that was
not asked for does not. No file is executed or unpickled beyond plain tensors, nothing is downloaded.

Source: transformers' `from_pretrained`; refusals after bert4keras' silent ones.
Shapes: as in `danlu.text.transformer`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.data.errors import InputError
from danlu.text._hf_checks import check_names, check_projection, check_sines
from danlu.text._hf_files import Weights, open_weights, read_json
from danlu.text.config import TransformerConfig
from danlu.text.hf_config import from_hf, hf_type
from danlu.text.hf_names import bare_name, computed_name, head_names, hf_names, layer_number, tied_names
from danlu.text.load_report import fill, weights_dtype
from danlu.text.slots import Slot
from danlu.text.transformer import EncoderDecoder, Transformer, build_transformer
from danlu.text.vocabulary_surgery import VOCABULARY_NAMES, Compound, compound, prune, resized_config

__all__ = ["load_hf"]

_BACKBONE = (
    "embeddings.", "embeddings_project.", "encoder.", "decoder.", "shared.", "h.", "wte.", "wpe.", "ln_f.",
    "tokens_embed.", "positions_embed.",
)  # fmt: skip

_GELU_HEADS = ("roberta", "xlm-roberta", "camembert", "electra")


def load_hf(
    folder: str | Path,
    *,
    family: str | None = None,
    application: str | None = None,
    heads: str | Sequence[str] = "auto",
    num_layers: int | None = None,
    keep_tokens: Sequence[int] | None = None,
    compound_tokens: Sequence[Compound] | None = None,
    dtype: torch.dtype | str | None = None,
    allow_missing: bool = False,
    **overrides: Any,
) -> Transformer | EncoderDecoder:
    """A model with the weights of a HuggingFace folder, in evaluation mode; its load_report tells what came from where.

    Args:
        folder: holds config.json and the weights; of transformers or of `save_hf`.
        family: what the weights are, where config.json says it wrongly or not at all; None: as it says.
        application: "encoder", "lm" or "unilm"; None: as config.json says.
        heads: "auto": those in the file; or of "pooler", "nsp", "mlm", "discriminator".
        num_layers: keep only the first so many; None: all.
        keep_tokens: old ids of the rows of the vocabulary to keep, as `load_vocab(simplified=True)` returns them.
        compound_tokens: further rows, each a mean of the rows with these ids, counted after keep_tokens.
        dtype: of the parameters, such as torch.bfloat16 or "bfloat16"; None: float32, whatever the file has.
        allow_missing: weights that the file lacks keep random values, encoder weights without a place are left out.
        **overrides: other fields of `TransformerConfig`, such as attention_dropout or condition_size.

    Returns:
        The model.

    Raises:
        InputError: no such folder, a damaged file, a kind of model or an option that is not computed here.
        LoadError: weights are missing, have another shape or find no place; its `report` holds the table.

    >>> import tempfile
    >>> from danlu.text.save_hf import save_hf
    >>> with tempfile.TemporaryDirectory() as place:
    ...     save_hf(build_transformer(TransformerConfig("bert", 9, 4, 1, 2, 8), ["mlm"]), f"{place}/model")
    ...     model = load_hf(f"{place}/model")
    >>> model.heads, model.load_report.counts()
    (('mlm',), {'matched': 26})
    """
    folder, dtype = Path(folder), weights_dtype(dtype)
    described, stored = _configuration(folder, family)
    model_type = hf_type(described, family)
    weights = open_weights(folder)
    check_names(str(folder), model_type, weights.shapes)
    names = _bare_names(folder, weights)
    check_projection(str(folder), stored, model_type, names)
    check_sines(str(folder), stored, weights, names)
    stored = stored.replace(tie_embeddings=_is_tied(stored, weights, names))
    try:
        config = _asked(stored, application, num_layers, keep_tokens, compound_tokens, overrides)
        if not allow_missing:
            _check_layers(config, names)
        with torch.device("meta"):
            model = build_transformer(config, _heads(described, stored, heads, names, model_type))
    except (ValueError, RuntimeError) as error:  # RuntimeError: sizes that no tensor can have
        raise InputError(f"{folder}: {str(error).splitlines()[0]}") from None
    like = stored if num_layers is None else stored.replace(num_layers=num_layers)
    slots = _slots(hf_names(like, model.heads, model_type), names)
    copies = _copies(folder, stored, model.heads, slots, weights, names, model_type)
    computed = {real for bare, real in names.items() if computed_name(bare)}
    segments = names.get("embeddings.token_type_embeddings.weight")
    if stored.segment_vocab_size == 0 and segments is not None and not weights.read(segments).any():
        computed.add(segments)  # what `save_hf` writes for a BERT without segments
    bare = {real: name for name, real in names.items()}
    cut = None if num_layers is None else {"encoder": config.num_layers, "decoder": config.decoder_layers}
    filling: dict[str, Any] = {
        "available": {name: shape for name, shape in weights.shapes.items() if name not in copies | computed},
        "source": str(folder),
        "edits": _edits(model, keep_tokens, compound_tokens),
        "fresh": lambda name: ".cond_" in name or name.endswith(".attention.projection"),
        "essential": lambda name: _essential(bare[name], cut),
        "allow_missing": allow_missing,
        "hint": "give family=, heads= or sizes that fit the file, or allow_missing=True if that is meant",
    }
    report = fill(model.to(dtype), slots, weights.read, **filling)
    if any(parameter.is_meta for parameter in model.parameters()):
        model = build_transformer(config, model.heads)  # some weights keep the values they are born with
        report = fill(model.to(dtype), slots, weights.read, **filling)
    if copies:
        report.notes.append(f"equal to the weights they are tied to: {', '.join(sorted(copies))}")
    if computed:
        report.notes.append(f"{len(computed)} variables follow from the sizes and are not read, {min(computed)} first")
    return model.eval()


def _configuration(folder: Path, family: str | None) -> tuple[dict[str, Any], TransformerConfig]:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}; load_hf opens a folder with config.json and weights, and downloads nothing")
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} has no config.json; load_tf and load_keras_weights read other libraries' files")
    described = read_json(path)
    try:
        return described, from_hf(described, family)
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from None


def _bare_names(folder: Path, weights: Weights) -> dict[str, str]:
    """Name to compare by -> name in the file."""
    names: dict[str, str] = {}
    for real in weights.shapes:
        bare = bare_name(real)
        if bare in names:
            raise InputError(f"{folder} holds {names[bare]} and {real}, which mean the same weight; remove one of them")
        names[bare] = real
    return names


def _is_tied(stored: TransformerConfig, weights: Weights, names: dict[str, str]) -> bool:
    """Whether T5's output matrix is the token table; transformers 5 writes true in any case."""
    head, table = names.get("lm_head.weight"), names.get("shared.weight")
    if not stored.traits.encoder_decoder or not stored.tie_embeddings or head is None or table is None:
        return stored.tie_embeddings
    return weights.shapes[head] == weights.shapes[table] and torch.equal(weights.read(head), weights.read(table))


def _asked(
    stored: TransformerConfig,
    application: str | None,
    num_layers: int | None,
    keep_tokens: Sequence[int] | None,
    compound_tokens: Sequence[Compound] | None,
    overrides: dict[str, Any],
) -> TransformerConfig:
    """The configuration of the model to be built."""
    allowed = [field.name for field in fields(TransformerConfig) if field.name != "family"]
    for name in overrides:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=2)
            hint = f"; close to it: {', '.join(near)}" if near else f"; there are {', '.join(allowed)}"
            raise ValueError(f"load_hf has no option {name!r}, and no model has such a field{hint}")
    if num_layers is not None and not 1 <= num_layers <= stored.num_layers:
        raise InputError(f"num_layers={num_layers}: config.json has {stored.num_layers} layers; ask for 1 to that many")
    changes = {"application": application, "num_layers": num_layers}
    config = stored.replace(**{name: value for name, value in changes.items() if value is not None}, **overrides)
    return resized_config(config, keep_tokens, compound_tokens)


def _heads(
    described: dict[str, Any],
    stored: TransformerConfig,
    heads: str | Sequence[str],
    names: dict[str, str],
    model_type: str,
) -> Sequence[str]:
    if heads != "auto":
        if isinstance(heads, str):
            raise ValueError(f"heads must be 'auto' or a sequence such as ('pooler', 'mlm'), got {heads!r}")
        asked = heads
    elif isinstance(described.get("danlu_heads"), list):
        asked = described["danlu_heads"]
    else:
        asked = [head for head, own in head_names(stored, model_type).items() if any(name in names for name in own)]
    if "mlm" in asked and model_type in _GELU_HEADS and stored.activation != "gelu":
        raise ValueError(
            f"the MLM head of {model_type} has gelu built in, this model {stored.activation}; load it without, heads=()"
        )
    return asked


def _check_layers(config: TransformerConfig, names: dict[str, str]) -> None:
    """Refuse more layers than the file has before any is built."""
    for stack, layers in (("encoder", config.num_layers), ("decoder", config.decoder_layers)):
        if config.traits.share_layers or config.family == "albert_unshared":
            continue  # one group may serve them all
        if stack == "decoder" and not config.traits.encoder_decoder:
            continue
        own = [name for name in names if name.startswith("decoder.") == (stack == "decoder")]
        held = 1 + max((number for number in map(layer_number, own) if number is not None), default=-1)
        if layers > held:
            raise InputError(
                f"config.json and options ask for {layers} layers of the {stack}, the weights have {held}; ask for "
                "num_layers that are there, or get the rest of the file"
            )


def _slots(table: dict[str, Slot], names: dict[str, str]) -> dict[str, Slot]:
    """The table under the names of this file."""
    slots = {}
    shared = not any(name.startswith("encoder.albert_layer_groups.1.") for name in names)
    for ours, slot in table.items():
        bare = bare_name(slot.name)
        if shared:  # one group serves every layer of an unshared ALBERT
            bare = re.sub(r"(?<=albert_layer_groups\.)\d+", "0", bare)
        slots[ours] = replace(slot, name=names.get(bare, slot.name))
    return slots


def _copies(
    folder: Path,
    stored: TransformerConfig,
    heads: Sequence[str],
    slots: dict[str, Slot],
    weights: Weights,
    names: dict[str, str],
    model_type: str,
) -> set[str]:
    """Names of tied copies, found equal; a copy whose original is absent takes its place."""
    copies = set()
    for bare, ours in tied_names(stored, model_type).items():
        copy, original = names.get(bare), slots.get(ours)
        if copy is None or original is None:
            continue
        if original.name not in weights.shapes:
            slots[ours] = replace(original, name=copy)
            continue
        used = "mlm" in heads or stored.traits.encoder_decoder
        if used and not (
            weights.shapes[copy] == weights.shapes[original.name]
            and torch.equal(weights.read(copy), weights.read(original.name))
        ):
            raise InputError(
                f"{folder}: {copy} differs from {original.name}, which it should be tied to; an untied output is not "
                "computed here. Load without it, heads=(), or open the folder with HFEncoder"
            )
        copies.add(copy)
    return copies


def _edits(
    model: Transformer | EncoderDecoder,
    keep_tokens: Sequence[int] | None,
    compound_tokens: Sequence[Compound] | None,
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Vocabulary surgery of each table."""
    if keep_tokens is None and compound_tokens is None:
        return {}

    def edit(name: str) -> Callable[[Tensor], Tensor]:
        def changed(values: Tensor) -> Tensor:
            state = {name: values}
            state = state if keep_tokens is None else prune(state, keep_tokens)
            return (state if compound_tokens is None else compound(state, compound_tokens))[name]

        return changed

    parameters = dict(model.named_parameters())
    return {name: edit(name) for name in VOCABULARY_NAMES if name in parameters}


def _essential(bare: str, cut: dict[str, int] | None) -> bool:
    """Whether a variable may not be left unread; layers above those asked for may."""
    layer = layer_number(bare)
    if cut is not None and layer is not None and layer >= cut["decoder" if bare.startswith("decoder.") else "encoder"]:
        return False
    return bare.startswith(_BACKBONE)
