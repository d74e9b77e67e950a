r"""Writing TensorFlow checkpoints (V2 format) without TensorFlow, byte for byte as TensorFlow writes them.

    place of variable k = sum of the sizes of those before it in its shard, names in the order of their bytes    (1)
    shard of variable k = floor(shards * bytes before k / bytes of all), at most shards - 1                      (2)

Everything is written and synced under temporary names in the target's folder, then renamed, the data before the
.index, without which there is no checkpoint: a crash leaves the old one, or none, never a mixture that looks whole.

Source: the format as TensorFlow 2.15 writes it; layout of the files in `danlu.text.tf_checkpoint`.
Shapes: any.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from danlu.data.errors import InputError
from danlu.text._tf_entry import DTYPES, Entry, encode_entry
from danlu.text._tf_table import varint, write_table
from danlu.text.crc32c import crc32c, masked_crc32c

__all__ = ["save_checkpoint"]

_CODES = {name: (code, held) for code, (name, _, held) in DTYPES.items()}
_BITS = {torch.bfloat16: torch.uint16, torch.float8_e5m2: torch.uint8, torch.float8_e4m3fn: torch.uint8}


def save_checkpoint(
    prefix: str | Path, tensors: Mapping[str, Tensor | NDArray[Any] | Any], shards: int = 1, overwrite: bool = False
) -> None:
    """Write variables to prefix.index and prefix.data-...; TensorFlow, Keras and `open_checkpoint` read them.

    Args:
        prefix: path and beginning of the files' names, such as "out/bert_model.ckpt"; the folder must exist.
        tensors: by name: tensors or arrays of any type that TensorFlow has, or lists of them; str, bytes and arrays of
            them become strings (str as UTF-8).
        shards: number of data files, about equally large.
        overwrite: replace a checkpoint of the same prefix.

    Raises:
        InputError: the folder is missing, or there is such a checkpoint and `overwrite` is False.
        TypeError: a name is not a string, or a type has no counterpart in TensorFlow.
        ValueError: a name is empty or begins with a zero, or `shards` is not in [1, 99999].
    """
    path = Path(prefix)
    if not 1 <= shards <= 99_999:
        raise ValueError(f"shards must be in [1, 99999], got {shards}")
    if not path.name or not path.parent.is_dir():
        raise InputError(f"cannot write a checkpoint to {prefix}: there is no folder {path.parent}; make it first")
    keys = sorted((_key(name), name) for name in tensors)
    index = path.with_name(path.name + ".index")
    data = re.compile(re.escape(path.name) + r"\.data-\d{5}-of-\d{5}")
    old = [name for name in os.listdir(path.parent) if name == index.name or data.fullmatch(name)]
    if old and not overwrite:
        raise InputError(f"{path.with_name(old[0])} exists; pass overwrite=True to replace it, or another prefix")
    with tempfile.TemporaryDirectory(prefix=".saving.", dir=path.parent) as folder:
        names = _write(Path(folder), path.name, keys, tensors, shards)
        index.unlink(missing_ok=True)
        for name in names:  # the index is the last
            os.replace(Path(folder, name), path.with_name(name))
        _sync(path.parent)
    for name in set(old) - set(names):  # data of the checkpoint that was replaced
        path.with_name(name).unlink(missing_ok=True)


def _write(
    folder: Path, stem: str, keys: list[tuple[bytes, str]], tensors: Mapping[str, Any], shards: int
) -> list[str]:
    """The files of a checkpoint in an empty folder; their names, the index last."""
    sizes = [_size(tensors[name]) for _, name in keys]
    before = np.cumsum([0, *sizes])
    owner = (before[:-1] * shards // max(1, int(before[-1]))).clip(max=shards - 1).tolist()  # eq. (2)
    entries = [(b"", b"\x08" + varint(shards) + b"\x1a\x02\x08\x01")]  # the header: shards, version 1
    names = [f"{stem}.data-{shard:05d}-of-{shards:05d}" for shard in range(shards)]
    done = 0
    for shard, file_name in enumerate(names):
        with open(folder / file_name, "xb") as file:
            while done < len(keys) and owner[done] <= shard:
                key, name = keys[done]
                code, shape, content, crc = _content(name, tensors[name])
                entry = Entry(code, shape, shard, file.tell(), len(content), crc)  # eq. (1)
                file.write(content)
                entries.append((key, encode_entry(entry)))
                done += 1
            _flush(file)
    with open(folder / f"{stem}.index", "xb") as file:
        file.write(write_table(entries))
        _flush(file)
    return [*names, f"{stem}.index"]


def _key(name: str) -> bytes:
    if not isinstance(name, str):
        raise TypeError(f"names of variables must be strings, got {name!r} ({type(name).__name__})")
    if not name or name[0] == "\0":
        raise ValueError(f"names of variables must not be empty or begin with a zero byte, got {name!r}")
    try:
        return name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"names of variables must be text that UTF-8 can write, got {name!r}") from None


def _size(value: Any) -> int:
    """About how many bytes a value takes."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return np.asarray(value).nbytes


def _content(name: str, value: Any) -> tuple[int, tuple[int, ...], memoryview | bytes, int]:
    """Type code, shape, bytes and masked checksum of one variable."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        if kind not in _CODES or value.layout is not torch.strided or value.is_meta:
            raise TypeError(
                f"{name!r}: a tensor of {value.dtype}, {value.layout} on {value.device} has no counterpart in "
                f"TensorFlow; convert it to a dense one of {', '.join(_CODES)}"
            )
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        array = plain.view(_BITS.get(plain.dtype, plain.dtype)).numpy()
    else:
        array = np.asarray(value)
        if array.dtype.kind in "OSU":
            given = isinstance(value, np.ndarray | np.generic)
            return _strings(name, array if given else np.array(value, object))  # numpy's own strings lose zeros behind
        kind = array.dtype.name
        if kind not in _CODES:
            raise TypeError(f"{name!r}: numpy type {array.dtype} has no counterpart in TensorFlow; try float32")
        if array.dtype.kind == "V":  # bfloat16 and float8 of another package
            array = array.view(_CODES[kind][1])
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    content = little.reshape(-1).view(np.uint8).data
    return _CODES[kind][0], tuple(array.shape), content, masked_crc32c(content)


def _strings(name: str, array: NDArray[Any]) -> tuple[int, tuple[int, ...], bytes, int]:
    """The same of strings: varint lengths, their masked checksum, the strings."""
    parts = []
    for item in array.reshape(-1).tolist():
        if not isinstance(item, str | bytes):
            raise TypeError(f"{name!r}: expected strings or bytes, got {item!r} ({type(item).__name__})")
        parts.append(item.encode() if isinstance(item, str) else item)
    crc = crc32c(b"".join(len(part).to_bytes(8 if len(part) >> 32 else 4, "little") for part in parts))
    checked = masked_crc32c(b"", crc).to_bytes(4, "little")
    joined = b"".join(parts)
    content = b"".join(varint(len(part)) for part in parts) + checked + joined
    return _CODES["string"][0], tuple(array.shape), content, masked_crc32c(joined, crc32c(checked, crc))


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make renames last; not every system lets a folder be opened."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
