r"""Reading TensorFlow checkpoints (the V2 format of every release since 2017) without TensorFlow.

    name.index                    types, shapes, places and checksums, a sorted table of some kilobytes          (1)
    name.data-00000-of-00001      the values, one behind the other; with several shards one file each            (2)
    name.meta, checkpoint         the graph, which is not needed, and the name of the newest checkpoint          (3)

Opening reads (1) only. The files of (2) are mapped into memory when a variable of theirs is asked for; what comes back
shows the mapped bytes without a copy, after their CRC-32C was compared. Partitioned variables are put together from
their slices. Checkpoints of TensorFlow 2 (`tf.train.Checkpoint`) are the same files with longer names; `full_names`
reads the names inside the model from the object graph they carry.

Nothing in a file is trusted: no length leads to more memory than the files have bytes (bfloat16 and float8 read as
numpy arrays take twice theirs, for want of such a type), variables may not share bytes, nothing is executed or
unpickled, and of the file `checkpoint` only the last part of a path is used, inside the same folder. A damaged data
file refuses the variables it damages, as TensorFlow does, and reads the others.

Source: the format as TensorFlow 2.15 writes it (tensorflow/core/util/tensor_bundle); `_tf_table` and `_tf_entry` hold
the two layers of the index.
Shapes: as stored; kernels of dense layers are (in, out) there.
"""

import difflib
import re
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from danlu.data.errors import InputError
from danlu.text._tf_entry import (
    DTYPES,
    Entry,
    Header,
    decode_entry,
    decode_header,
    decode_slices,
    full_names,
    slice_key,
)
from danlu.text._tf_files import beside, cure, find_prefix, mapped, regular
from danlu.text._tf_table import Damage, Reader, read_table
from danlu.text.crc32c import crc32c, masked_crc32c

__all__ = ["TFCheckpoint", "open_checkpoint"]

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_TRAINING = re.compile(  # what optimizers and savers add to a model's variables
    r"(?:^|/)(?:global_step|(?:adam|lamb)_[mv]|Adam(?:_\d)?|Adagrad|Momentum|RMSProp(?:_\d)?|beta[12]_power(?:_\d)?"
    r"|(?:current_)?loss_scale|good_steps)$|_slot_(?:v[rc]?|m)$|/\.OPTIMIZER_SLOT/|^(?:save_counter|optimizer)/"
    rf"|^{GRAPH}$"
)
_MAX_STRINGS = 250_000  # of one variable; each costs far more in Python than in the file


def open_checkpoint(path: str | Path, verify: bool = True) -> "TFCheckpoint":
    """A TensorFlow checkpoint, opened for reading; use it in a `with` block.

    Args:
        path: the prefix ("bert_model.ckpt"), one of its files, or a folder with one checkpoint or a file `checkpoint`.
        verify: whether to compare the checksum of every variable that is read; the index is always verified.

    Returns:
        `TFCheckpoint`.

    Raises:
        InputError: there is no checkpoint, it is of the old V1 format, or its index is damaged.

    >>> import tempfile
    >>> from danlu.text.tf_checkpoint_writer import save_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(f"{folder}/model.ckpt", {"dense/bias": torch.tensor([1.0, 2.0])})
    ...     with open_checkpoint(folder) as checkpoint:
    ...         print(checkpoint.names(), checkpoint.shape("dense/bias"), checkpoint["dense/bias"])
    ['dense/bias'] (2,) [1. 2.]
    """
    return TFCheckpoint(path, verify)


class TFCheckpoint:
    """Variables of a TensorFlow checkpoint by name; `open_checkpoint` explains path and verify.

    `checkpoint[name]` is a numpy array that cannot be written to, `tensor(name)` a torch tensor of one's own. Both
    stay valid when the checkpoint is closed. Iteration goes over the names in the order of their bytes. As with every
    mapped file, nobody may shorten the data files while they are in use; replacing them is safe.
    """

    def __init__(self, path: str | Path, verify: bool = True) -> None:
        self.prefix = find_prefix(path)
        self.verify = verify
        self._entries: dict[str, Entry] = {}
        self._slices: dict[bytes, Entry] = {}
        self._shards: dict[int, NDArray[np.uint8]] = {}
        self._verified: set[Entry] = set()
        self._closed = False
        index = beside(self.prefix, ".index")
        try:
            self._header = self._read_index(regular(index).read_bytes())
        except Damage as damage:
            raise InputError(f"{index} cannot be used: {damage}; {cure(index)}") from None

    def _read_index(self, data: bytes) -> Header:
        header = None
        for key, value in read_table(data):
            if header is None:
                if key:
                    raise Damage("it has no header; a table of another program?")
                header = decode_header(value)
                continue
            try:
                if key[0] == 0:
                    self._slices[key] = decode_entry(value)
                else:
                    self._entries[key.decode()] = decode_entry(value)
            except (Damage, UnicodeDecodeError) as error:
                raise Damage(f"variable {key[:200].decode(errors='replace')!r}: {error}") from None
        if header is None:
            raise Damage("it has no header")
        entries = [e for e in (*self._entries.values(), *self._slices.values()) if not e.cut]
        if any(entry.shard >= header.num_shards for entry in entries):
            raise Damage(f"a variable lies in a data file beyond the {header.num_shards} that the header announces")
        places = sorted((e.shard, e.offset, e.size) for e in entries if e.size)
        for (shard, offset, size), (next_shard, next_offset, _) in pairwise(places):
            if shard == next_shard and offset + size > next_offset:
                raise Damage(f"two variables share bytes from {next_offset} of data file {shard}")
        return header

    def __enter__(self) -> "TFCheckpoint":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        return f"<TensorFlow checkpoint {str(self.prefix)!r}, {len(self)} variables>"

    def close(self) -> None:
        """Let go of the data files; what was read stays valid."""
        self._closed = True
        self._shards.clear()  # the mapping goes with its last array

    def names(self, model_only: bool = False) -> list[str]:
        """Names of the variables.

        Args:
            model_only: leave out what optimizers and savers add: slots such as adam_m, step counters, the object graph.

        Returns:
            Names in the order of their bytes.
        """
        return [name for name in self._entries if not (model_only and _TRAINING.search(name))]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a variable.

        Args:
            name: one of `names()`.
        """
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """The type a variable is stored in: "float32", "bfloat16", "string" ...

        Args:
            name: one of `names()`.
        """
        return DTYPES[self._entry(name).code][0]

    def full_names(self) -> dict[str, str]:
        """Names inside the model by name in the checkpoint; {} where no object graph of TensorFlow 2 is stored."""
        if GRAPH not in self:
            return {}
        graph = self[GRAPH]
        if graph.dtype != object or graph.shape != ():
            raise InputError(f"{self.prefix}: {GRAPH} is not one string; {cure(self.prefix)}")
        try:
            return full_names(graph.item())
        except Damage as damage:
            raise InputError(f"{self.prefix}: {GRAPH} cannot be used: {damage}; {cure(self.prefix)}") from None

    def missing_bytes(self) -> list[str]:
        """One sentence for each data file that is missing or shorter than the index says; no value is read."""
        ends: dict[int, int] = {}
        for entry in (*self._entries.values(), *self._slices.values()):
            if entry.size and not entry.cut:
                ends[entry.shard] = max(ends.get(entry.shard, 0), entry.offset + entry.size)
        told = []
        for shard, end in sorted(ends.items()):
            path = beside(self.prefix, f".data-{shard:05d}-of-{self._header.num_shards:05d}")
            size = path.stat().st_size if path.is_file() else 0
            if size < end:
                what = f"has {size} bytes, the index speaks of {end}" if path.is_file() else "is missing"
                told.append(f"{path} {what}: weights cannot be read; {cure(path)}")
        return told

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The values, not to be written to; bfloat16 as float32, float8 as float16, strings as bytes in an array."""
        kind = self.dtype(name)
        array, _ = self._stored(name)
        if kind == "bool":
            array = np.not_equal(array, 0, out=np.empty(array.shape, bool))
        elif kind == "bfloat16":
            array = array.astype(np.uint32)
            array <<= 16
            array = array.view(np.float32)
        elif kind.startswith("float8"):
            array = np.asarray(_float8(kind)[array])  # of no axes it would be a number
        array.flags.writeable = False
        return array

    def tensor(self, name: str, dtype: torch.dtype | None = None, copy: bool = True) -> Tensor:
        """The values as a torch tensor.

        Args:
            name: one of `names()`.
            dtype: type to convert to; None keeps the stored one, bfloat16 and float8 included.
            copy: False shows the mapped file where that is possible; writing to it changes this process only, but
                also what the checkpoint returns the next time.

        Returns:
            Tensor of the shape and, unless asked otherwise, the type stored.

        Raises:
            InputError: no such variable, its bytes are damaged, or it holds strings.
        """
        kind = self.dtype(name)
        if kind == "string":
            raise InputError(f"{name!r} holds strings, of which there are no tensors; checkpoint[name] reads them")
        array, shared = self._stored(name)
        target = getattr(torch, kind)
        if dtype is not None and dtype != target:
            copy = False  # the conversion makes one
        if (shared and copy) or not (array.flags.aligned and array.flags.writeable):
            array = array.copy()
        if kind == "bool":
            return (torch.from_numpy(array) != 0).to(dtype or torch.bool)
        return torch.from_numpy(array).view(target).to(dtype or target)

    def _entry(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            near = difflib.get_close_matches(str(name), islice(self._entries, 2_000), n=3)
            hint = f"; close to it are {', '.join(map(repr, near))}" if near else "; names() lists what there is"
            raise InputError(f"{self.prefix} has no variable {name!r} among its {len(self)}{hint}")
        return entry

    def _stored(self, name: str) -> tuple[NDArray[Any], bool]:
        """Bits of a variable in native byte order, and whether they are those of the mapped file."""
        entry = self._entry(name)
        try:
            if entry.code == 7:
                return self._strings(name, entry), False
            if entry.cut:
                return self._joined(name, entry), False
            array = self._bits(name, entry)
            return (array, True) if array.dtype.isnative else (array.astype(array.dtype.newbyteorder("=")), False)
        except InputError:
            raise
        except (Damage, ValueError) as error:  # ValueError: a shape that numpy cannot have
            reason = f"variable {name!r} of {self.prefix} cannot be read: {error}"
            raise InputError(f"{reason}; {cure(self.prefix)}") from None

    def _bytes(self, entry: Entry) -> NDArray[np.uint8]:
        """What lies in the file for an entry, (size,), not verified."""
        if self._closed:
            raise InputError(f"{self.prefix} is closed; read inside the with block, or open it again")
        if not entry.size:
            return np.zeros(0, np.uint8)
        path = beside(self.prefix, f".data-{entry.shard:05d}-of-{self._header.num_shards:05d}")
        if entry.shard not in self._shards:
            self._shards[entry.shard] = mapped(path)
        held = self._shards[entry.shard]
        if entry.offset + entry.size > held.size:
            raise Damage(f"it ends at byte {entry.offset + entry.size} of {path.name}, which has {held.size}")
        return held[entry.offset : entry.offset + entry.size]

    def _bits(self, name: str, entry: Entry) -> NDArray[Any]:
        """Values of an entry that is whole, in the byte order of the file, its checksum compared once."""
        flat = self._bytes(entry)
        if self.verify and entry not in self._verified:
            if masked_crc32c(flat) != entry.crc:
                raise Damage("its checksum is wrong: these are not the bytes that were written")
            self._verified.add(entry)
        kind = np.dtype(DTYPES[entry.code][2]).newbyteorder(">" if self._header.big_endian else "<")
        return flat.view(kind).reshape(entry.shape)

    def _joined(self, name: str, entry: Entry) -> NDArray[Any]:
        """A partitioned variable; its slices must fill the shape without gap or overlap."""
        parts = []
        for extents in decode_slices(entry):
            ranges = [(s, s + n if n >= 0 else size) for (s, n), size in zip(extents, entry.shape, strict=True)]
            part = self._slices.get(slice_key(name, extents))
            if part is None or part.cut:
                raise Damage(f"its slice {ranges} is missing")
            if part.code != entry.code or part.shape != tuple(end - begin for begin, end in ranges):
                raise Damage(f"its slice {ranges} is stored as {DTYPES[part.code][0]} of shape {part.shape}")
            if any(end > size for (_, end), size in zip(ranges, entry.shape, strict=True)):
                raise Damage(f"its slice {ranges} reaches beyond the shape {entry.shape}")
            parts.append((ranges, part))
        if sum(part.numel for _, part in parts) != entry.numel or _overlap([r for r, p in parts if p.numel]):
            raise Damage(f"its {len(parts)} slices do not fill the shape {entry.shape} exactly once")
        whole = np.empty(entry.shape, DTYPES[entry.code][2])
        for ranges, part in parts:
            whole[tuple(slice(*r) for r in ranges)] = self._bits(name, part)
        return whole

    def _strings(self, name: str, entry: Entry) -> NDArray[Any]:
        """Strings: their lengths as varints, the masked checksum of the lengths as u32 each, their bytes."""
        if entry.cut or entry.numel > _MAX_STRINGS:
            raise Damage(f"strings in slices or more than {_MAX_STRINGS} of them are not read")
        reader = Reader(self._bytes(entry).tobytes())
        lengths = [reader.varint() for _ in range(entry.numel)]
        checksum = reader.take(4)
        if sum(lengths) != reader.end - reader.at:
            raise Damage(f"its strings have {sum(lengths)} bytes, {reader.end - reader.at} are stored")
        if self.verify:
            crc = crc32c(b"".join(n.to_bytes(8 if n >> 32 else 4, "little") for n in lengths))
            whole = masked_crc32c(memoryview(reader.data)[reader.at :], crc32c(checksum, crc))
            if masked_crc32c(b"", crc) != int.from_bytes(checksum, "little") or whole != entry.crc:
                raise Damage("its checksum is wrong: these are not the bytes that were written")
        strings = np.empty(entry.numel, object)
        for i, length in enumerate(lengths):
            strings[i] = reader.take(length)
        return strings.reshape(entry.shape)


def _overlap(boxes: list[list[tuple[int, int]]]) -> bool:
    """Whether two of the boxes, none of them empty, have a point in common."""
    begins = np.array([[begin for begin, _ in box] for box in boxes], np.int64).reshape(len(boxes), -1)  # (boxes, axes)
    ends = np.array([[end for _, end in box] for box in boxes], np.int64).reshape(len(boxes), -1)
    return any(
        ((begins[i] < ends[i + 1 :]) & (begins[i + 1 :] < ends[i])).all(axis=1).any() for i in range(len(boxes) - 1)
    )


def _float8(kind: str) -> NDArray[np.float16]:
    """The 256 numbers of a type of eight bits; float16 has all of them."""
    return torch.arange(256, dtype=torch.uint8).view(getattr(torch, kind)).to(torch.float16).numpy()
