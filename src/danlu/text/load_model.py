r"""One line that opens a model whatever it is stored as: `load_model(path)`.

    a folder with config.json and safetensors or pytorch_model.bin      "hf"       `load_hf`                  (1)
    a TensorFlow checkpoint: prefix, one of its files, or its folder     "tf"       `load_tf`                  (2)
    what Keras' `save_weights` wrote, HDF5 or a checkpoint               "keras"    `load_keras_weights`       (3)

Files are told by their first bytes, not by their names. In a folder that holds (1) beside (2), (1) is meant; the prefix
names the other. What is none of them is named for what it is (GGUF, a SavedModel, ONNX, a pickle).

Source: danlu's own rules.
Shapes: none.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from danlu.data.errors import InputError
from danlu.text._tf_files import find_prefix
from danlu.text.config import TransformerConfig
from danlu.text.google_config import find_config
from danlu.text.keras_weights import load_keras_weights
from danlu.text.load_hf import load_hf
from danlu.text.load_tf import load_tf
from danlu.text.tf_checkpoint import open_checkpoint
from danlu.text.transformer import EncoderDecoder, Transformer

__all__ = ["load_model", "model_kind"]

Model = Transformer | EncoderDecoder
KINDS = {"hf": "a HuggingFace folder", "tf": "a TensorFlow checkpoint", "keras": "a file of Keras weights"}
_LOADERS: dict[str, Callable[..., Model]] = {"hf": load_hf, "tf": load_tf, "keras": load_keras_weights}
_HF = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_HDF5 = b"\x89HDF\r\n\x1a\n"
_FOREIGN = {  # first bytes: what it is, and the way out
    b"GGUF": "a GGUF file of llama.cpp, whose weights are quantized; get the model's safetensors",
    b"PK\x03\x04": "a zip archive such as torch.save or Keras 3 (.keras) write; give the HuggingFace folder it belongs "
    "to, or what model.save_weights of tf.keras 2 wrote",
    b"\x80\x02": "a pickle, which is not opened: it could run any code; save the state_dict as safetensors",
}
_BESIDE = {  # file in a folder: what the folder is then
    "saved_model.pb": "a TensorFlow SavedModel, a program and no checkpoint; where it was made, model.save_weights or "
    "tf.train.Saver writes what is read here",
    "adapter_config.json": "an adapter (LoRA) without its model; merge it into the model first",
}


def load_model(path: str | Path, **options: Any) -> Model:
    """A model with the weights of a file or folder of any kind, in evaluation mode.

    Args:
        path: a HuggingFace folder, a TensorFlow checkpoint (prefix, file or folder) or a file of Keras weights.
        **options: what `load_hf`, `load_tf` or `load_keras_weights` takes, whichever reads the path; a Keras file
            needs family=, and config= where no configuration lies beside it.

    Returns:
        A Transformer, or an EncoderDecoder for T5; its `load_report` tells what came from where.

    Raises:
        InputError: the path is none of these, or its reader has no such option.
        LoadError: file and model do not fit; `report` holds the table.

    >>> import tempfile
    >>> from danlu.text.load_tf import save_tf
    >>> from danlu.text.transformer import build_transformer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tf(build_transformer(TransformerConfig("bert", 9, 4, 1, 2, 8)), f"{folder}/bert_model.ckpt")
    ...     (model_kind(folder), load_model(folder).config.vocab_size)
    ('tf', 9)
    """
    kind = model_kind(path)
    own = _options(kind)
    for name in options:
        if name not in own:
            raise InputError(_unknown(name, kind, str(path), own))
    if kind == "keras":
        if options.get("family") is None:
            raise InputError(
                f"{path} is {KINDS[kind]}, which does not say its family; pass family=, such as family='bert'"
            )
        if options.get("config") is None:
            place = find_config(Path(path))
            if place is None:
                raise InputError(
                    f"{path} is {KINDS[kind]} and no configuration lies beside it; pass config= the path of the "
                    "bert_config.json of the model it was made from"
                )
            options = {**options, "config": place}
    return _LOADERS[kind](path, **options)


def model_kind(path: str | Path) -> str:
    """How a model is stored: "hf", "tf" or "keras".

    Args:
        path: as of `load_model`.

    Returns:
        One of the three; which family it is only loading tells.

    Raises:
        InputError: it is none of them, or there is nothing; the message says what was found.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(8)
        if head == _HDF5:
            return "keras"
        for mark, what in _FOREIGN.items():
            if head.startswith(mark):
                raise InputError(f"{path} is {what}")
        if path.suffix == ".safetensors" or path.name == "config.json":
            raise InputError(f"{path} is one file of a HuggingFace folder; give the folder, {path.parent}")
    elif not path.with_name(path.name + ".index").exists():
        raise InputError(_nothing(path))
    return _checkpoint(find_prefix(path))


def _folder(folder: Path) -> str:
    names = sorted(item.name for item in folder.iterdir())
    weights = [name for name in _HF if name in names]
    if weights and "config.json" in names:
        return "hf"
    for name, what in _BESIDE.items():
        if name in names:
            raise InputError(f"{folder} is {what}")
    if any(name.endswith(".index") for name in names):
        return _checkpoint(find_prefix(folder))
    if weights:
        raise InputError(f"{folder} has {weights[0]} and no config.json, which says what model it is; get it as well")
    for name in names:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                head = file.read(8)
            if head == _HDF5:
                raise InputError(f"{folder} holds {name}, a file of Keras weights; give that file, {folder / name}")
            if head[:4] == b"GGUF":
                raise InputError(f"{folder / name} is {_FOREIGN[b'GGUF']}")
    found = f"it has {', '.join(names[:5])}{' ...' * (len(names) > 5)}" if names else "it is empty"
    config = " (config.json without weights: they are still to be fetched)" * ("config.json" in names)
    if any(name.endswith(".onnx") for name in names):
        raise InputError(f"{folder} holds an ONNX file, which is only written; give what it was converted from")
    try:
        find_prefix(folder)  # names a checkpoint of the old format
    except InputError as error:
        if "V1" in str(error):
            raise
    raise InputError(
        f"{folder} holds no model: {found}{config}; wanted are config.json with model.safetensors or "
        "pytorch_model.bin, a TensorFlow checkpoint (.index and .data files), or a file of Keras weights"
    )


def _checkpoint(prefix: Path) -> str:
    """Whether a checkpoint is of tf.keras' `save_weights`, which counts layers instead of naming variables."""
    with open_checkpoint(prefix) as checkpoint:
        return "keras" if any(name.startswith("layer_with_weights-") for name in checkpoint.names()) else "tf"


def _nothing(path: Path) -> str:
    """What to say where nothing is."""
    parent = path.parent
    if not parent.is_dir():
        return f"no model {path}: there is no folder {parent}"
    names = sorted({item.name.removesuffix(".index") for item in parent.iterdir()})
    near = difflib.get_close_matches(path.name, names, n=3)
    hint = (
        f"close to it are {', '.join(near)}"
        if near
        else f"there are {', '.join(names[:5])}"
        if names
        else "it is empty"
    )
    return f"no model {path}: {parent} holds no such file, folder or checkpoint; {hint}; nothing is downloaded"


def _options(kind: str) -> list[str]:
    """Options that a reader knows: its own, and fields of the configuration that count instead of the file's."""
    own = [
        name for name, item in inspect.signature(_LOADERS[kind]).parameters.items() if item.kind is item.KEYWORD_ONLY
    ]
    known = [field.name for field in fields(TransformerConfig) if field.name not in ("family", "compat")]
    return list(dict.fromkeys([*own, *known]))


def _unknown(name: str, kind: str, path: str, own: list[str]) -> str:
    elsewhere = [KINDS[other] for other in KINDS if other != kind and name in _options(other)]
    if elsewhere:
        return f"{path} is {KINDS[kind]}, which takes no option {name!r}; it is one of {' and '.join(elsewhere)}"
    near = difflib.get_close_matches(name, own, n=2)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"there are {', '.join(own[:10])} and the fields of TransformerConfig"
    )
    return f"load_model has no option {name!r}; {hint}"
