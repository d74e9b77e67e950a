r"""TensorFlow checkpoints of the BERT years, opened as models and written from them, without TensorFlow.

    names and shapes        -> layout, sizes, candidates for the family     `danlu.text.family_guess`           (1)
    bert_config.json beside -> what shapes do not show: heads, activation   `danlu.text.google_config`          (2)
    family and sizes        -> a model without memory, and its name table   `danlu.text.tf_names`               (3)
    mapped file             -> the model's own memory, one copy             `danlu.text.load_report.fill`       (4)

(1) to (3) read no weights, so what does not fit is refused at once: a configuration that contradicts the file, missing
weights, weights of the encoder that the model would not use (a position table, biases: another family). Layers beyond
the model's, heads that nobody asked for and the state of an optimizer are listed and left where they are.

Source: the codes named in `danlu.text.tf_names`; bert4keras 0.11.5 (build_transformer_model).
Shapes: as the model's; matrices are turned in (4).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.data.errors import InputError
from danlu.text import vocabulary_surgery as surgery
from danlu.text._tf_plan import ConfigLike, Plan, plan
from danlu.text._whole_model import whole_parameters
from danlu.text.family_guess import Guess, guess
from danlu.text.google_config import to_google
from danlu.text.load_report import LoadError, LoadReport, fill, match, weights_dtype
from danlu.text.slots import put
from danlu.text.tf_checkpoint import TFCheckpoint, open_checkpoint
from danlu.text.tf_checkpoint_writer import save_checkpoint
from danlu.text.tf_names import tf_names
from danlu.text.transformer import EncoderDecoder, Transformer, build_transformer
from danlu.text.without_memory import without_memory

__all__ = ["inspect_tf", "load_tf", "save_tf"]

Model = Transformer | EncoderDecoder
_CONFIG = "bert_config.json"
_NEVER_RESIZED = ("vocab_size", "num_layers", "num_decoder_layers")


def load_tf(
    path: str | Path,
    *,
    family: str | None = None,
    application: str | None = None,
    heads: str | Sequence[str] = "auto",
    compat: str = "upstream",
    config: ConfigLike = None,
    num_layers: int | None = None,
    keep_tokens: Sequence[int] | None = None,
    compound_tokens: Sequence[Any] | None = None,
    autoresize: bool = False,
    dtype: torch.dtype | str | None = None,
    allow_missing: bool = False,
    **overrides: Any,
) -> Model:
    """A model with the weights of a TensorFlow checkpoint, in evaluation mode; `model.load_report` tells what was read.

    Args:
        path: the checkpoint's prefix, one of its files, or its folder.
        family: a key of `FAMILIES`; None: told from the variables, which cannot tell NEZHA from RoFormer.
        application: "encoder", "lm" or "unilm"; None: "lm" for the GPTs, "encoder" for the others.
        heads: "auto": those whose weights are in the file; or some of "pooler", "nsp", "mlm", "discriminator", whose
            weights must be there then. ("mlm",) of an ELECTRA file opens the generator.
        compat: "upstream", or "bert4keras" for its epsilons, its gelu and its T5.
        config: a configuration file, its contents, or a `TransformerConfig`; None: the file beside the checkpoint.
        num_layers: open only the first layers; None: those of the configuration.
        keep_tokens: old ids of the rows of the vocabulary to keep.
        compound_tokens: rows to add, each the mean of others, whose ids count after keep_tokens.
        autoresize: bring weights of another width to the configuration's, as bert4keras' autoresize_weights does.
        dtype: type of the weights, such as torch.bfloat16 or "bfloat16"; None: float32, whatever the file stores.
        allow_missing: let weights that are not in the file start at random, and essential ones there lie unread.
        **overrides: fields of `TransformerConfig` that count instead of the configuration's.

    Returns:
        A Transformer, or an EncoderDecoder for T5.

    Raises:
        LoadError: the file and the model do not fit; its `report` holds the table.
        InputError: no checkpoint, no configuration, a wrong one, or damaged bytes.

    >>> import tempfile
    >>> from danlu.text.config import TransformerConfig
    >>> sizes = {"vocab_size": 9, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 16}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tf(build_transformer(TransformerConfig.of("bert", **sizes)), f"{folder}/bert_model.ckpt")
    ...     model = load_tf(folder, num_layers=1)
    >>> model.config.num_layers, model.load_report.counts()
    (1, {'matched': 21, 'unused': 16})
    """
    dtype = weights_dtype(dtype)
    if num_layers is not None:
        overrides["num_layers"] = num_layers
    with open_checkpoint(path) as checkpoint:
        planned = plan(
            checkpoint, overrides, family=family, application=application, heads=heads, compat=compat, config=config
        )
        conflicts = [told for name, told in planned.conflicts.items() if not autoresize or name in _NEVER_RESIZED]
        if conflicts:
            message = "; ".join([*conflicts, *([planned.hint] if planned.hint else [])])
            raise LoadError(f"{planned.source} does not fit the model: {message}", _table(planned))
        try:
            final = surgery.resized_config(planned.config, keep_tokens, compound_tokens)
        except ValueError as error:
            raise InputError(f"{planned.source}: {error}") from None
        drawn = allow_missing or final.condition_size is not None  # then some weights are not in the file
        with nullcontext() if drawn else without_memory():
            model = build_transformer(final, planned.heads)
        model.to(dtype)
        report = fill(
            model, planned.slots, partial(_read, checkpoint), planned.shapes, source=planned.source,
            edits=_edits(model, planned, keep_tokens, compound_tokens, autoresize), fresh=_is_conditional,
            essential=planned.essential.__contains__, training=planned.training.__contains__,
            allow_missing=allow_missing, hint=planned.hint,
        )  # fmt: skip
    report.notes += planned.notes
    return model.eval()


def inspect_tf(path: str | Path, **settings: Any) -> tuple[Guess, LoadReport]:
    """What a checkpoint is, and what `load_tf` with these settings would read; no weight is read.

    Args:
        path: as of `load_tf`.
        **settings: family, application, heads, compat, config and fields of `TransformerConfig`, as of `load_tf`.

    Returns:
        The guess and the table, whose notes tell what contradicts. Where nothing says the number of heads, the usual
        one stands in the table. A checkpoint of no family, or of several, has its variables in it as unused.

    Raises:
        InputError: no checkpoint, or a configuration that cannot be used.
    """
    named = {
        name: settings.pop(name) for name in ("family", "application", "heads", "compat", "config") if name in settings
    }
    with open_checkpoint(path) as checkpoint:
        shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}
        found = guess(shapes)
        try:
            planned = plan(checkpoint, settings, assume=True, **named)
        except InputError as error:
            if found.layout is not None and found.family is not None:
                raise
            model_only = set(checkpoint.names(model_only=True))
            table = match({}, {}, shapes, source=str(checkpoint.prefix), training=lambda name: name not in model_only)
            table.notes += [*found.reasons, str(error)]
            return found, table
    table = _table(planned)
    table.notes += [*planned.conflicts.values(), *([planned.hint] if planned.hint else [])]
    return planned.found, table


def save_tf(
    model: Model,
    prefix: str | Path,
    *,
    layout: str | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model as a TensorFlow checkpoint with the names of its original code, and bert_config.json beside it.

    Args:
        model: what `build_transformer` or a loader returned.
        prefix: path and beginning of the files' names, such as "out/bert_model.ckpt"; the folder must exist.
        layout: a key of `LAYOUTS`; None: the family's usual one, for unshared ALBERT that of BERT.
        dtype: type to store; None: the model's.
        overwrite: replace files of the same names.

    Raises:
        InputError: there are such files and `overwrite` is False, or the folder is missing.
        ValueError: the model has parameters that such files have no place for, such as conditional norms, or lacks
            some, as a copy of `for_inference` does.
    """
    config, prefix = model.config, Path(prefix)
    if layout is None and config.family == "albert_unshared":
        layout = "bert"  # its layers may differ, and one shared layer cannot hold them
    slots = tf_names(config, model.heads, layout)
    state = whole_parameters(model, "save_tf")
    homeless = [name for name in state if name not in slots]
    if homeless:
        raise ValueError(
            f"a TensorFlow checkpoint of {config.family} has no place for {homeless[0]} ({len(homeless)} such "
            "parameters, first shown); save_hf writes every model"
        )
    if dtype is not None:
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    place = prefix.with_name(_CONFIG)
    text = json.dumps(to_google(config), indent=2, ensure_ascii=False) + "\n"
    if place.exists() and not overwrite and place.read_text(encoding="utf-8") != text:
        raise InputError(f"{place} exists and is another model's; pass overwrite=True, or write to another folder")
    save_checkpoint(prefix, put(slots, state), overwrite=overwrite)
    partial_place = place.with_name(f".saving.{os.getpid()}.{place.name}")  # by open, which follows the umask
    try:
        with partial_place.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial_place, place)
    finally:
        partial_place.unlink(missing_ok=True)


def _table(planned: Plan) -> LoadReport:
    """The report without reading, for a refusal or an inspection."""
    try:
        with without_memory():
            model = build_transformer(planned.bounded, planned.heads)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    except RuntimeError:  # sizes that no tensor can have
        shapes = {}
    report = match(
        shapes, planned.slots, planned.shapes, source=planned.source, fresh=_is_conditional,
        essential=planned.essential.__contains__, training=planned.training.__contains__,
    )  # fmt: skip
    report.notes += planned.notes
    return report


def _edits(
    model: Model,
    planned: Plan,
    keep_tokens: Sequence[int] | None,
    compound_tokens: Sequence[Any] | None,
    autoresize: bool,
) -> dict[str, Callable[[Tensor], Tensor]]:
    """By parameter, what is done to it after reading: rows of the vocabulary first, then the width."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    changed = set(surgery.VOCABULARY_NAMES) if keep_tokens is not None or compound_tokens is not None else set()
    if autoresize:
        others = match(shapes, planned.slots, planned.shapes, source=planned.source).of("mismatched")
        changed |= {row.ours for row in others if row.ours is not None}

    def edit(tensor: Tensor, name: str) -> Tensor:
        state = {name: tensor}
        try:
            if name in surgery.VOCABULARY_NAMES:
                state = state if keep_tokens is None else surgery.prune(state, keep_tokens)
                state = state if compound_tokens is None else surgery.compound(state, compound_tokens)
            return surgery.autoresize(state, shapes, model.config)[name] if autoresize else state[name]
        except ValueError as error:
            raise InputError(f"{planned.source}: {error}") from None

    return {name: partial(edit, name=name) for name in shapes if name in changed}


def _read(checkpoint: TFCheckpoint, name: str) -> Tensor:
    """The mapped values of a variable."""
    kind = checkpoint.dtype(name)
    if not kind.startswith(("float", "bfloat")):
        raise InputError(f"{name} of {checkpoint.prefix} is stored as {kind}; weights are floating-point numbers")
    return checkpoint.tensor(name, copy=False)


def _is_conditional(name: str) -> bool:
    """Weights of conditional norms, which start fresh."""
    return name.rpartition(".")[0].endswith((".cond_gamma", ".cond_beta", ".cond_hidden"))
