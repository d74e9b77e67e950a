r"""What the index of a TensorFlow checkpoint says of one variable: its type, its shape and where its bytes lie.

    message = (varint 8 field + kind, value)*; kind 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes    (1)
    header  = 1 shards, 2 byte order (1: big), 3 {1 written by version, 2 needs version}                         (2)
    entry   = 1 type, 2 {2 {1 size}*, 3 rank unknown}, 3 shard, 4 offset, 5 size, 6 masked CRC-32C, 7 slice*     (3)
    slice   = 1 {1 start, 2 length; without length: all of the axis}*, one for every axis                        (4)
    key of a slice = 0, name, 0 1, rank, (start, length or -1)*, in numbers that sort as bytes                   (5)

Fields that are zero are left out of (2) and (3), so that a scalar in front of a file is little but its checksum. The
header stands under the empty key. A variable cut into slices has no bytes of its own; each slice is an entry under (5).

Source: tensor_bundle.proto, tensor_shape.proto and tensor_slice.proto of TensorFlow 2; protocol buffers' wire format.
Shapes: bytes in, one record out.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from danlu.text._tf_table import Damage, Reader, varint

__all__ = [
    "DTYPES",
    "Entry",
    "Header",
    "decode_entry",
    "decode_header",
    "decode_slices",
    "encode_entry",
    "full_names",
    "slice_key",
]

DTYPES = {  # code: (name, bytes an element, numpy type that holds the bits)
    1: ("float32", 4, "f4"), 2: ("float64", 8, "f8"), 3: ("int32", 4, "i4"), 4: ("uint8", 1, "u1"),
    5: ("int16", 2, "i2"), 6: ("int8", 1, "i1"), 7: ("string", 0, "O"), 8: ("complex64", 8, "c8"),
    9: ("int64", 8, "i8"), 10: ("bool", 1, "u1"), 14: ("bfloat16", 2, "u2"), 17: ("uint16", 2, "u2"),
    18: ("complex128", 16, "c16"), 19: ("float16", 2, "f2"), 22: ("uint32", 4, "u4"), 23: ("uint64", 8, "u8"),
    24: ("float8_e5m2", 1, "u1"), 25: ("float8_e4m3fn", 1, "u1"),
}  # fmt: skip
_OTHERS = {11: "qint8", 12: "quint8", 13: "qint32", 15: "qint16", 16: "quint16", 20: "resource", 21: "variant"}
_MAX_RANK = 32
_MAX_SLICES = 4096


class Header(NamedTuple):
    """Eq. (2)."""

    num_shards: int
    big_endian: bool


class Entry(NamedTuple):
    """Eq. (3); `cut` is the whole message of a variable in slices, for `decode_slices`, and empty otherwise."""

    code: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    cut: bytes = b""

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of the fields of a message, eq. (1)."""
    reader = Reader(data)
    while reader:
        tag = reader.varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, reader.varint()
        elif kind == 2:
            yield tag >> 3, reader.take(reader.varint())
        elif kind in (1, 5):
            yield tag >> 3, reader.fixed(8 if kind == 1 else 4)
        else:
            raise Damage(f"a field of kind {kind} is no part of an index")


def decode_header(data: bytes) -> Header:
    """Eq. (2)."""
    shards, order, needs = 0, 0, 0
    for number, value in fields(data):
        if number == 1:
            shards = _number(value)
        elif number == 2:
            order = _number(value)
        elif number == 3:
            needs = max((_number(v) for n, v in fields(_message(value)) if n == 2), default=0)
    if not 1 <= shards <= 99_999 or order > 1:
        raise Damage(f"its header announces {shards} data files in byte order {order}")
    if needs > 1:
        raise Damage(f"its header asks for a reader of version {needs}; version 1 is the newest there was")
    return Header(shards, order == 1)


def decode_entry(data: bytes) -> Entry:
    """Eq. (3); `Damage` where type and sizes contradict each other or are beyond what is supported."""
    code = shard = offset = size = crc = 0
    shape: tuple[int, ...] = ()
    cut = b""
    for number, value in fields(data):
        if number == 1:
            code = _number(value)
        elif number == 2:
            shape = _shape(_message(value))
        elif number == 3:
            shard = _number(value)
        elif number == 4:
            offset = _number(value)
        elif number == 5:
            size = _number(value)
        elif number == 6:
            crc = _number(value)
        elif number == 7:
            cut = data
    code = code - 100 if code > 100 else code  # a reference to the type
    entry = Entry(code, shape, shard, offset, size, crc, cut)
    if code not in DTYPES:
        known = ", ".join(name for name, _, _ in DTYPES.values())
        raise Damage(f"type {_OTHERS.get(code, code)} is not read; read are {known}")
    if max(offset, size, *shape, 0) >> 63 or entry.numel * max(1, DTYPES[code][1]) >> 63:
        raise Damage(f"shape {shape} with {size} bytes at {offset} is beyond every file")
    if not cut and (size < entry.numel if code == 7 else size != entry.numel * DTYPES[code][1]):
        raise Damage(f"{size} bytes do not hold {DTYPES[code][0]} of shape {shape}")
    return entry


def decode_slices(entry: Entry) -> list[tuple[tuple[int, int], ...]]:
    """Extents (start, length, or -1 for all) of the slices of a variable, eq. (4)."""
    slices = [_extents(_message(value), len(entry.shape)) for number, value in fields(entry.cut) if number == 7]
    if len(slices) > _MAX_SLICES:
        raise Damage(f"it is cut into {len(slices)} slices, more than {_MAX_SLICES}")
    return slices


def encode_entry(entry: Entry) -> bytes:
    """The bytes of a whole variable's entry, eq. (3), fields that are zero left out."""
    sizes = b"".join(_field(2, _integer(1, size)) for size in entry.shape)
    return (
        _integer(1, entry.code) + _field(2, sizes) + _integer(3, entry.shard) + _integer(4, entry.offset)
        + _integer(5, entry.size) + (b"\x35" + entry.crc.to_bytes(4, "little") if entry.crc else b"")
    )  # fmt: skip


def slice_key(name: str, extents: Sequence[tuple[int, int]]) -> bytes:
    """The key of one slice, eq. (5)."""
    escaped = name.encode().replace(b"\0", b"\0\xff")  # 255, the other byte that is escaped, is not in UTF-8
    rank = len(extents).to_bytes(1, "big") if extents else b""
    numbers = b"".join(_ordered(start) + _ordered(length) for start, length in extents)
    return b"\0" + escaped + b"\0\1" + len(rank).to_bytes(1, "big") + rank + numbers


def full_names(graph: bytes) -> dict[str, str]:
    """Names of variables inside their model by key, from the object graph that TensorFlow 2 stores."""
    names = {}
    for number, node in fields(graph):
        for part, value in fields(_message(node)) if number == 1 else ():
            if part == 2:
                attribute = dict(fields(_message(value)))
                name, key = (attribute.get(field, b"") for field in (2, 3))
                try:
                    names[_message(key).decode()] = _message(name).decode()
                except UnicodeDecodeError:
                    raise Damage("the object graph holds a name that is not UTF-8") from None
    names.pop("", None)
    return names


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise Damage("a number is expected in the index where bytes stand")
    return value


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise Damage("bytes are expected in the index where a number stands")
    return value


def _shape(data: bytes) -> tuple[int, ...]:
    shape = []
    for number, value in fields(data):
        if number == 2:
            size = 0
            for part, held in fields(_message(value)):
                size = _number(held) if part == 1 else size
            shape.append(size)
        elif number == 3 and value:
            raise Damage("its rank is unknown")
        if len(shape) > _MAX_RANK:
            raise Damage(f"it has more than {_MAX_RANK} axes")
    return tuple(shape)


def _extents(data: bytes, rank: int) -> tuple[tuple[int, int], ...]:
    """Eq. (4)."""
    extents = []
    for number, value in fields(data):
        if number == 1:
            extent = {1: 0, 2: -1}
            extent.update((part, _number(held)) for part, held in fields(_message(value)) if part in (1, 2))
            extents.append((extent[1], extent[2]))
        if len(extents) > rank:
            break
    if len(extents) != rank:
        raise Damage(f"a slice has not the {rank} axes of the variable")
    return tuple(extents)


def _field(number: int, content: bytes) -> bytes:
    return varint(8 * number + 2) + varint(len(content)) + content


def _integer(number: int, value: int) -> bytes:
    return varint(8 * number) + varint(value) if value else b""


def _ordered(value: int) -> bytes:
    """A signed integer so that bytes sort like numbers: as many ones in front as there are bytes, then the number."""
    x = value if value >= 0 else ~value
    if x < 64:
        return bytes([(value & 255) ^ 128])
    length = 2
    while x >> 7 * length - 1:
        length += 1
    header = ((1 << length) - 1) << 8 * length - length  # so many ones, of 8 L bits
    return ((value & (1 << 8 * length) - 1) ^ header).to_bytes(length, "big")
