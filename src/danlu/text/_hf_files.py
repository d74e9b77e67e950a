"""The weight files of a HuggingFace folder, opened without reading: safetensors whole or in shards, torch's .bin.

Nothing in a folder is trusted: of an index only names of files in the same folder are used, a .bin is unpickled by
torch's reader of plain tensors (`weights_only=True`), and what is not a floating-point tensor is not handed out.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from danlu.data.errors import InputError
from danlu.text._tf_files import cure

__all__ = ["Weights", "open_weights", "read_json"]

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_OTHERS = ("tf_model.h5", "flax_model.msgpack", "model.ckpt.index", "bert_model.ckpt.index")
_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Weights:
    """Shapes of all variables of a folder, and `read` for the values; those of mapped files come without a copy."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._readers: dict[str, Callable[[str], Tensor]] = {}

    def add(self, name: str, shape: tuple[int, ...], reader: Callable[[str], Tensor]) -> None:
        """Note a variable and who reads it."""
        self.shapes[name] = shape
        self._readers[name] = reader

    def read(self, name: str) -> Tensor:
        """The values, not to be written to; integers and eight-bit floats, which need scales, are refused."""
        tensor = self._readers[name](name)
        if tensor.dtype not in _TYPES:
            raise InputError(
                f"{name} is stored as {tensor.dtype}: quantized weights are not read; "
                "save the model as float32, float16 or bfloat16"
            )
        return tensor


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a folder; a damaged one is named."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); {cure(path)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(value).__name__}; {cure(path)}")
    return value


def open_weights(folder: Path) -> Weights:
    """The weights of a folder: safetensors first, shards by their index.

    Args:
        folder: holds one of the files that transformers writes.

    Raises:
        InputError: there is none, or one is missing, damaged or holds something else than tensors.
    """
    weights = Weights()
    for name in _WEIGHTS:
        if (folder / name).exists():
            _open(folder / name, weights)
            return weights
        index = folder / f"{name}.index.json"
        if index.exists():
            _open_shards(index, weights)
            return weights
    there = [name for name in _OTHERS if (folder / name).exists()]
    hint = "the folder has none of them"
    if there:
        hint = f"it has {', '.join(there)}; load_tf reads TensorFlow checkpoints, load_keras_weights Keras files"
    raise InputError(f"{folder} has no weights: {', '.join(_WEIGHTS)} or an index of shards; {hint}")


def _open_shards(index: Path, weights: Weights) -> None:
    """Every shard that the index names; it must hold what the index says."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise InputError(f"{index} has no weight_map of file names; {cure(index)}")
    for file in sorted(set(places.values())):
        if file in ("", ".", "..") or any(mark in file for mark in "/\\\0:"):
            raise InputError(f"{index} names the shard {file!r}, which is not a file of this folder; {cure(index)}")
        shard = Weights()
        _open(index.parent / file, shard)
        for name in (name for name, place in places.items() if place == file):
            if name not in shard.shapes:
                raise InputError(f"{index.parent / file} lacks {name}, which {index.name} promises; {cure(index)}")
            weights.add(name, shard.shapes[name], shard.read)


def _open(path: Path, weights: Weights) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing or not a file; {cure(path)}")
    with path.open("rb") as file:
        if file.read(23) == b"version https://git-lfs":
            raise InputError(f"{path} is a pointer of Git LFS, not the data; fetch the file itself (git lfs pull)")
    (_open_safetensors if path.suffix == ".safetensors" else _open_pickled)(path, weights)


def _open_safetensors(path: Path, weights: Weights) -> None:
    try:
        opened = safe_open(path, framework="pt")
        for name in opened.keys():  # noqa: SIM118 - it is no mapping
            weights.add(name, tuple(opened.get_slice(name).get_shape()), opened.get_tensor)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); {cure(path)}") from None


def _open_pickled(path: Path, weights: Weights) -> None:
    try:
        try:
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 cannot be mapped
            held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} holds more than tensors and is not unpickled, since that could run any code; open it where you "
            "trust it and save the state_dict as model.safetensors"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError) as error:
        told = next(iter(str(error).splitlines()), "") or type(error).__name__  # an empty file says nothing
        raise InputError(f"{path} is damaged ({told[:200]}); {cure(path)}") from None
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
        raise InputError(f"{path} is not a state_dict of names and tensors; save model.state_dict()")
    for name, tensor in held.items():
        if isinstance(tensor, Tensor):
            weights.add(name, tuple(tensor.shape), held.__getitem__)
