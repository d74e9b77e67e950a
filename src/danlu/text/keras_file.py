r"""Weight files of Keras models, read layer by layer: what `model.save_weights` of a fine-tuned model has written.

    HDF5         root attribute layer_names; a group each, with weight_names and the arrays          (1)
    whole model  the same below the group model_weights                                              (2)
    TensorFlow   a checkpoint with the object graph of TensorFlow 2 (tf.keras, names without .h5)     (3)

A weight is called "layer/weight", as in "MLM-Dense/kernel". Keras itself goes by the order of a layer's weights, for
the names of sublayers depend on its version ("dense_1" here is "dense_37" there), so the order is kept; where a file
has none, in (3), it is that of the names: a layer's own weights first, kernel before bias, "dense_2" before "dense_10".

A file is not trusted: links out of it and arrays outside of it are refused, and so are arrays that announce more bytes
than the file has (Keras compresses nothing). The layout of Keras 3 (.weights.h5), which bert4keras cannot have written,
is refused too.

Source: keras/src/saving/legacy/hdf5_format.py of Keras 2.15; tf.train.Checkpoint of TensorFlow 2.
Shapes: as stored; kernels of dense layers are (in, out).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from danlu.data.errors import InputError
from danlu.text.tf_checkpoint import TFCheckpoint, open_checkpoint

__all__ = ["KerasFile", "open_keras_weights", "read_keras_weights"]

_MANY = 2**16  # layers of a model, weights of a layer
_FAILURES = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError)  # h5py's, on damage


class KerasFile(Protocol):
    """Layers and weights of an opened file.

    `layers` has each layer's weights in order (none for an Add or Dropout), `shapes` the shape of every weight;
    `read` gives the values of one.
    """

    layers: dict[str, list[str]]
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> Tensor:
        """The values of the weight `name`, a tensor of one's own."""


def read_keras_weights(path: str | Path) -> dict[str, Tensor]:
    """All weights of a Keras file, the user's own layers included.

    Args:
        path: an HDF5 file of `save_weights` or `save`, or the prefix of a checkpoint of `save_weights`.

    Returns:
        Tensors by "layer/weight", in the order of the layers and of the weights in them.

    Raises:
        InputError: there is no such file, it is damaged or of another kind.
        ImportError: h5py is not installed (not needed for a checkpoint).

    >>> import h5py, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with h5py.File(f"{folder}/best_model.weights", "w") as file:
    ...         file.attrs["layer_names"] = [b"crf"]
    ...         file.create_group("crf").attrs["weight_names"] = [b"crf/trans:0"]
    ...         file["crf/crf/trans:0"] = [[1.0, 0.0], [0.0, 1.0]]
    ...     read_keras_weights(f"{folder}/best_model.weights")["crf/trans"].shape
    torch.Size([2, 2])
    """
    with open_keras_weights(path) as file:
        return {name: file.read(name) for name in file.shapes}


@contextmanager
def open_keras_weights(path: str | Path) -> Iterator[KerasFile]:
    """A Keras file, opened for reading weight by weight; use it in a `with` block.

    Args:
        path: as in `read_keras_weights`.

    Yields:
        `KerasFile`.

    Raises:
        InputError, ImportError: as in `read_keras_weights`.
    """
    path = Path(path)
    if not path.is_file():
        if path.with_name(path.name + ".index").is_file():
            with open_checkpoint(path) as checkpoint:
                yield _Checkpoint(checkpoint)
            return
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}; give the file that model.save_weights wrote")
    with path.open("rb") as raw:
        head = raw.read(8)
    if head != b"\x89HDF\r\n\x1a\n":
        if path.name.endswith(".index"):
            with open_checkpoint(path) as checkpoint:
                yield _Checkpoint(checkpoint)
            return
        raise InputError(f"{path} is no HDF5 file; Keras weights are, or they are a checkpoint with an .index file")
    try:
        import h5py
    except ImportError:
        raise ImportError(
            f'reading {path.name} needs h5py, which is not installed: pip install "danlu[keras]"'
        ) from None
    try:
        file = h5py.File(path, "r")
    except _FAILURES as error:
        raise InputError(f"{path} cannot be opened: {_first(error)}; {_CURE}") from None
    with file:
        yield _HDF5(path, file)


class _HDF5:
    """Layouts (1) and (2)."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self.layers: dict[str, list[str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[str, ...]] = {}
        self._file = file
        self._room = path.stat().st_size
        try:
            self._list()
        except InputError:
            raise
        except _FAILURES as error:
            raise InputError(f"{path} cannot be read: {_first(error)}; {_CURE}") from None

    def _list(self) -> None:
        root: tuple[str, ...] = ()
        names = _names(self._file, "layer_names")
        if names is None and "model_weights" in self._file:
            root = ("model_weights",)
            names = _names(self._walk(root), "layer_names")
        if names is None:
            raise InputError(
                f"{self.path} has no attribute layer_names, so Keras 2 did not write it (Keras 3 has another layout); "
                "save the weights with the Keras that bert4keras runs on"
            )
        for layer in names:
            place = (*root, *_parts(layer))
            keys = self.layers.setdefault(layer, [])
            for weight in _names(self._walk(place), "weight_names") or ():
                inside = weight.removesuffix(":0")
                key = inside if inside.startswith(layer + "/") else f"{layer}/{inside}"
                if key in self.shapes:
                    raise InputError(f"{self.path} has the weight {key} twice; {_CURE}")
                self._places[key] = (*place, *_parts(weight))
                self.shapes[key] = self._checked(key)
                keys.append(key)

    def _walk(self, place: tuple[str, ...]) -> Any:
        """What lies at a path that may not leave the file."""
        import h5py

        node = self._file
        for part in place:
            if not isinstance(node, h5py.Group):
                raise InputError(f"{self.path}: {'/'.join(place)} leads through an array; {_CURE}")
            link = node.get(part, getlink=True)
            if link is None:
                raise InputError(f"{self.path} has no {'/'.join(place)}, which it lists; {_CURE}")
            if not isinstance(link, h5py.HardLink):
                raise InputError(
                    f"{self.path}: {'/'.join(place)} is a link, which Keras never writes; it is not followed, get the "
                    "file from its author"
                )
            node = node[part]
        return node

    def _checked(self, key: str) -> tuple[int, ...]:
        import h5py

        array = self._walk(self._places[key])
        if not isinstance(array, h5py.Dataset):
            raise InputError(f"{self.path}: {key} is no array; {_CURE}")
        if array.external or array.is_virtual:
            raise InputError(f"{self.path}: {key} lies in another file, which Keras never writes; it is not read")
        if array.shape is None or array.dtype.kind not in "fiub":
            raise InputError(f"{self.path}: {key} holds {array.dtype}, not numbers; {_CURE}")
        self._room -= int(array.nbytes)
        if self._room < 0:
            raise InputError(
                f"{self.path}: {key} {tuple(array.shape)} and those before it announce more bytes than the file has; "
                "it was compressed by another program or is damaged, write it again with model.save_weights"
            )
        return tuple(array.shape)

    def read(self, name: str) -> Tensor:
        try:
            values = self._walk(self._places[name])[()]
        except _FAILURES as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path}: {name} cannot be read: {_first(error)}; {_CURE}") from None
        values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("=")).reshape(self.shapes[name])
        return torch.from_numpy(values)


class _Checkpoint:
    """Layout (3)."""

    def __init__(self, checkpoint: TFCheckpoint) -> None:
        self._checkpoint = checkpoint
        self.layers: dict[str, list[str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._keys: dict[str, str] = {}
        names = checkpoint.full_names()
        model = [key for key in checkpoint.names(model_only=True) if "/" in names.get(key, "")]
        if not model:
            raise InputError(
                f"{checkpoint.prefix} is a TensorFlow checkpoint, but not one of tf.keras' save_weights; load_tf reads "
                "checkpoints of pretrained models"
            )
        for key in sorted(model, key=lambda key: _order(names[key])):
            name = names[key]
            if name in self._keys:
                raise InputError(
                    f"{checkpoint.prefix} has two weights of the name {name}; save them as model.save_weights('x.h5')"
                )
            self._keys[name] = key
            self.shapes[name] = checkpoint.shape(key)
            self.layers.setdefault(name.partition("/")[0], []).append(name)

    def read(self, name: str) -> Tensor:
        return self._checkpoint.tensor(self._keys[name])


_CURE = "write it again with model.save_weights, or get it again from where it came"
_LAST = {"kernel": 0, "bias": 1, "beta": 2, "gamma": 3}


def _order(name: str) -> tuple[Any, ...]:
    """Sort key of a weight: its layer, own weights first, then the sublayers by number."""
    layer, *inner = name.split("/")
    *sublayers, last = inner
    numbered = [re.fullmatch(r"(.*?)(?:_(\d{1,9}))?", part) for part in sublayers]
    places = tuple((found[1], int(found[2] or 0)) for found in numbered if found)
    return layer, len(sublayers), places, _LAST.get(last, 9), last


def _names(group: Any, attribute: str) -> list[str] | None:
    """A list of names that Keras keeps in one attribute or, where it is long, in several; None without it."""
    pieces = [attribute] if attribute in group.attrs else []
    while not pieces or pieces[0] != attribute:
        piece = f"{attribute}{len(pieces)}"
        if piece not in group.attrs or len(pieces) == _MANY:
            break
        pieces.append(piece)
    if not pieces:
        return None
    found = [name for piece in pieces for name in np.ravel(group.attrs[piece])]
    if len(found) > _MANY:
        raise InputError(f"the file lists {len(found)} {attribute}; no model has so many, {_CURE}")
    names = [name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in found]
    if not all(_parts(name) for name in names):
        raise InputError(f"the file lists an empty name among its {attribute}; {_CURE}")
    return names


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part)


def _first(error: BaseException) -> str:
    """The gist of a message of the HDF5 library."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
