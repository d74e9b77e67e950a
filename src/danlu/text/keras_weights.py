r"""Fine-tuned models of bert4keras, opened from the weights that `model.save_weights` has written.

    weights of the layers of `danlu.text.keras_names`    -> the model's parameters                            (1)
    other weights of that model's part of the file       -> refused, unless they are heads nobody asked for      (2)
    what lies on top: a Dense layer, a CRF ...           -> `model.load_report.extra`, it is the user's program  (3)

A weight file does not know its configuration, but its list of layers, those without weights included, tells the mask
(Attention-LM-Mask, Attention-UniLM-Mask) and RoFormer from NEZHA; both are compared with what was asked for.

Source: Su, bert4keras 0.11.5; `save_weights` and `load_weights` of Keras 2.
Shapes: as the model's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from danlu.data.errors import InputError
from danlu.nn.positions import sinusoidal_positions
from danlu.text.config import FAMILIES, TransformerConfig, family_of
from danlu.text.google_config import from_google, read_google
from danlu.text.keras_file import KerasFile, open_keras_weights
from danlu.text.keras_names import keras_slots
from danlu.text.load_report import fill, weights_dtype
from danlu.text.transformer import EncoderDecoder, Transformer, build_transformer
from danlu.text.without_memory import without_memory

__all__ = ["load_keras_weights"]

_TRUNK = re.compile(r"Embedding-(Token|Segment|Position|Norm|Mapping)|(Encoder|Decoder)-.+|Output-Norm|Transformer-.+")
_HEADS = {
    "pooler": "Pooler-Dense",
    "nsp": "NSP-Proba",
    "mlm": "MLM-Dense",
    "discriminator": "Discriminator-Dense",
}
_OWN = re.compile(_TRUNK.pattern + r"|Embedding-.+|Pooler-Dense|NSP-Proba|MLM-.+|Discriminator-.+")
_BLOCK = re.compile(r"(?:Encoder-|Decoder-)?Transformer-(\d{1,6})-.+")
_MASKS = {"Attention-LM-Mask": "lm", "Attention-UniLM-Mask": "unilm"}
_POSITIONS = {
    "Embedding-Position": "learned",
    "Embedding-Relative-Position": "clipped",
    "Embedding-Rotary-Position": "rotary",
    "Encoder-Embedding-Relative-Position": "buckets",
}


def load_keras_weights(
    path: str | Path,
    *,
    family: str,
    config: str | Path | Mapping[str, Any] | TransformerConfig,
    application: str | None = None,
    heads: str | Sequence[str] = "auto",
    compat: str = "bert4keras",
    num_layers: int | None = None,
    prefix: str | None = None,
    dtype: torch.dtype | str | None = None,
    allow_missing: bool = False,
    **overrides: Any,
) -> Transformer | EncoderDecoder:
    """A model filled from the weights of a fine-tuned bert4keras model.

    Args:
        path: what `model.save_weights` wrote, HDF5 or a checkpoint of tf.keras.
        family: a key of `FAMILIES`; the file does not say it.
        config: the bert_config.json of the pretrained model, its path, its keys or a configuration; with keep_tokens
            give vocab_size= as well.
        application: "encoder", "lm" or "unilm"; None: what the file's layers say.
        heads: of "pooler", "nsp", "mlm", "discriminator", or "auto": those that the file has.
        compat: "bert4keras" computes what the model was trained with, "upstream" what the family's own code does.
        num_layers: first layers to read, where fewer are wanted than the file has.
        prefix: what stands before the layers' names, such as "Copy-", or "model_1/" for a model inside a model; None:
            told from the file.
        dtype: of the parameters, such as torch.bfloat16 or "bfloat16"; None: float32.
        allow_missing: parameters that the file lacks keep random values.
        **overrides: fields of `TransformerConfig` that count instead of the configuration's.

    Returns:
        The model in evaluation mode; `load_report` is its table, `load_report.extra` holds the weights of the layers on
        top by "layer/weight".

    Raises:
        InputError: the file or the configuration cannot be used.
        LoadError: weights are missing, of another shape, or have no place; `report` holds the table.
        ImportError: h5py is not installed.
    """
    dtype = weights_dtype(dtype)
    with open_keras_weights(path) as file:
        layers = _nested(file)
        prefix = _prefix(layers, path) if prefix is None else prefix
        found = {layer.removeprefix(prefix) for layer in layers if layer.startswith(prefix)}
        told = _told(layers, found, prefix)
        if application is None and not family_of(family).encoder_decoder:
            application = told
        if num_layers is not None:
            overrides["num_layers"] = num_layers
        settings, notes = _settings(config, family, application, compat, overrides)
        kind = next((_POSITIONS[layer] for layer in _POSITIONS if layer in found), settings.traits.positions)
        if kind != settings.traits.positions:
            raise InputError(
                f"{path} has {kind} positions, {settings.family} has {settings.traits.positions} ones; give the family "
                f"it was trained as: {', '.join(name for name in FAMILIES if FAMILIES[name].positions == kind)}"
            )
        if not settings.traits.encoder_decoder and told != settings.application:
            trained = "the file does not tell the application" if told is None else f"trained with application={told!r}"
            notes.append(f"{trained}, opened with {settings.application!r}")
        _check_sinusoids(file, layers.get(prefix + "Embedding-Relative-Position", ()), settings)
        chosen = _heads(settings, found) if heads == "auto" else (heads,) if isinstance(heads, str) else tuple(heads)
        drawn = allow_missing or settings.condition_size is not None
        with nullcontext() if drawn else without_memory():
            model = build_transformer(settings, chosen)
        model.to(dtype)
        own = {
            key
            for layer, keys in layers.items()
            if layer.startswith(prefix) and _OWN.fullmatch(layer.removeprefix(prefix))
            for key in keys
        }
        report = fill(
            model,
            keras_slots(model, layers, {key: len(shape) for key, shape in file.shapes.items()}, prefix),
            file.read,
            {key: shape for key, shape in file.shapes.items() if key in own},
            source=str(path),
            fresh=_is_conditional,
            essential=lambda key: _is_essential(key.removeprefix(prefix), num_layers),
            allow_missing=allow_missing,
            hint=_hint(settings, layers, file, prefix),
        )
        report.notes += notes
        report.extra = {key: file.read(key) for key in file.shapes if key not in own}
    return model.eval()


def _nested(file: KerasFile) -> dict[str, list[str]]:
    """The layers, and those inside of a model that is itself a layer, as "model_1/Embedding-Token"."""
    layers = {layer: list(keys) for layer, keys in file.layers.items()}
    for layer, keys in file.layers.items():
        inner = [key.removeprefix(layer + "/") for key in keys]
        if any("Embedding-Token/" in name for name in inner):
            for key, name in zip(keys, inner, strict=True):
                layers.setdefault(f"{layer}/{name.partition('/')[0]}", []).append(key)
    return layers


def _prefix(layers: Mapping[str, Sequence[str]], path: str | Path) -> str:
    """What stands before Embedding-Token, if one thing does."""
    token = "Embedding-Token"
    found = [layer.removesuffix(token) for layer in layers if layer.endswith(token) and layers[layer]]
    if len(found) == 1:
        return found[0]
    if not found:
        some = ", ".join(layer for layer in list(layers)[:5])
        raise InputError(
            f"{path} has no layer {token}, so bert4keras did not make its model; its layers are {some or 'none'} ...; "
            "read_keras_weights reads all weights"
        )
    raise InputError(f"{path} holds {len(found)} models; pass prefix= one of {', '.join(map(repr, found))}")


def _told(layers: Mapping[str, Sequence[str]], found: set[str], prefix: str) -> str | None:
    """The application, where layers without weights are listed and so the one that makes the mask would be."""
    if all(keys for layer, keys in layers.items() if layer.startswith(prefix)):
        return None
    return next((_MASKS[layer] for layer in _MASKS if layer in found), "encoder")


def _check_sinusoids(file: KerasFile, keys: Sequence[str], config: TransformerConfig) -> None:
    """NEZHA's vectors of distances are computed here; a file that holds others is of another model."""
    for key in keys:
        shape = (2 * config.relative_clip + 1, config.key_dim)
        same = file.shapes[key] == shape and torch.allclose(
            file.read(key).float(), sinusoidal_positions(torch.arange(shape[0]), shape[1]), atol=1e-4
        )
        if not same:
            raise InputError(
                f"{key} {file.shapes[key]} is not the table of sinusoids {shape} that NEZHA has; give the heads and "
                "relative_clip it was trained with, no other table can be used"
            )


def _settings(
    config: str | Path | Mapping[str, Any] | TransformerConfig,
    family: str,
    application: str | None,
    compat: str,
    overrides: dict[str, Any],
) -> tuple[TransformerConfig, list[str]]:
    if isinstance(config, TransformerConfig):
        if config.family != family_of(family).name:
            raise InputError(f"config is of the family {config.family}, family={family!r} was given; make them one")
        changes = overrides | ({} if application is None else {"application": application})
        try:
            return config.replace(**changes), []
        except TypeError as error:
            raise InputError(f"a model has no such setting: {error}; TransformerConfig lists them") from None
    source = "config" if isinstance(config, Mapping) else str(config)
    values = config if isinstance(config, Mapping) else read_google(config)
    settings, unknown = from_google(values, family, application=application, compat=compat, source=source, **overrides)
    return settings, [f"not understood in {source}: {', '.join(unknown)}"] if unknown else []


def _heads(config: TransformerConfig, found: set[str]) -> tuple[str, ...]:
    """Heads that the layers show; an encoder-decoder has none to choose."""
    if config.traits.encoder_decoder:
        return ()
    heads = [head for head, layer in _HEADS.items() if layer in found]
    tied = config.traits.head == "tied" and "Output-MLM-Activation" in found
    return (*heads, "mlm") if tied else tuple(heads)


def _is_essential(key: str, num_layers: int | None) -> bool:
    """Whether a weight belongs to the trunk, and to a layer that is wanted."""
    layer = next((part for part in key.split("/") if _OWN.fullmatch(part)), "")
    block = _BLOCK.fullmatch(layer)
    if block and num_layers is not None and int(block[1]) >= num_layers:
        return False
    return _TRUNK.fullmatch(layer) is not None


def _is_conditional(name: str) -> bool:
    return ".cond_" in name


def _hint(config: TransformerConfig, layers: Mapping[str, Sequence[str]], file: KerasFile, prefix: str) -> str:
    """How to mend the commonest misfits."""
    table = next(iter(layers.get(prefix + "Embedding-Token", ())), None)
    rows = file.shapes[table][0] if table is not None and file.shapes[table] else config.vocab_size
    if rows != config.vocab_size:
        return (
            f"the file's table has {rows} rows, the configuration says {config.vocab_size}: if the model was built "
            f"with keep_tokens or compound_tokens pass vocab_size={rows}, and the tokenizer that belongs to them"
        )
    norms = [keys for layer, keys in layers.items() if layer.startswith(prefix) and layer.endswith("-Norm")]
    if config.condition_size is None and any(len(keys) > 2 for keys in norms):
        kernel = next(keys for keys in norms if len(keys) > 2)[2]
        return f"its norms follow a condition: pass condition_size={file.shapes[kernel][0]}"
    return "compare family and configuration with those of the program that trained the model"
