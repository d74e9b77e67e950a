r"""The table file under a TensorFlow checkpoint's index: sorted keys and values in blocks with checksums.

    file    = block*, block of metadata, block of places, footer; a block is followed by          (1)
              its kind (one byte, 0: stored as is) and the masked CRC-32C of both
    block   = entry*, place of every 16th entry as u32, their number as u32                       (2)
    entry   = varint shared, varint added, varint size, added bytes of the key, value             (3)
    key     = the first `shared` bytes of the key before it, then the added ones                  (4)
    footer  = varint offset, size of metadata and of places, zeros up to 40 bytes, magic          (5)

A place is a varint offset and size; the size leaves the five bytes of (1) out. Integers are little-endian. Whatever
is counted or pointed at is compared with the bytes that are there before anything is made of it: a file of n bytes
costs O(n) time, and memory for its entries, of which there may be MAX_ENTRIES with MAX_KEY_BYTES of names; blocks lie
one behind the other and keys rise, so nothing is read twice.

Source: the table format of LevelDB (doc/table_format.md) as TensorFlow writes it.
Shapes: bytes in, bytes out.
"""

from collections.abc import Iterable, Iterator

from danlu.text.crc32c import masked_crc32c

__all__ = ["MAGIC", "Damage", "Reader", "read_table", "varint", "write_table"]

MAGIC = bytes.fromhex("57fb808b247547db")
MAX_ENTRIES = 50_000  # of a file; 250 times what BERT has
MAX_KEY_BYTES = 1 << 23  # of all keys together, since shared beginnings cost a file nothing
_FOOTER = 48
_INTERVAL = 16  # entries between two restarts
_BLOCK = 262_144  # bytes after which a block is closed


class Damage(Exception):
    """Bytes that are no table or no entry of one; the reader of the checkpoint turns it into an InputError."""


class Reader:
    """Walks over bytes; every step beyond their end is `Damage`."""

    def __init__(self, data: bytes, begin: int = 0, end: int | None = None) -> None:
        self.data = data
        self.at = begin
        self.end = len(data) if end is None else end

    def __bool__(self) -> bool:
        return self.at < self.end

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if not 0 <= count <= self.end - self.at:
            raise Damage(f"{count} bytes are announced at byte {self.at}, {self.end - self.at} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        """The next integer in groups of seven bits, below 2^64."""
        value = 0
        for shift in range(0, 70, 7):
            if self.at >= self.end:
                raise Damage(f"an integer is cut off at byte {self.at}")
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                if value >> 64:
                    break
                return value
        raise Damage(f"an integer of more than 64 bits ends at byte {self.at}")

    def fixed(self, count: int) -> int:
        """The next `count` bytes as an unsigned integer."""
        return int.from_bytes(self.take(count), "little")


def varint(value: int) -> bytes:
    """A non-negative integer in groups of seven bits, the lowest first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a whole table file in rising order; `Damage` where it is none or a checksum is wrong."""
    if len(data) < _FOOTER or data[-len(MAGIC) :] != MAGIC:
        raise Damage("it does not end like a table file")
    footer = Reader(data, len(data) - _FOOTER, len(data) - len(MAGIC))
    places = [(footer.varint(), footer.varint()) for _ in range(2)]  # metadata, places  eq. (5)
    if any(footer.data[footer.at : footer.end]):
        raise Damage("its last 48 bytes hold more than two places")
    _block(data, *places[0])
    last, behind, budget = None, 0, _Budget()
    for _, value in _entries(*_block(data, *places[1]), budget):
        place = Reader(value)
        offset, size = place.varint(), place.varint()
        if place or offset < behind:
            raise Damage(f"block at byte {offset} does not lie behind the one before it")
        behind = offset + size + 5
        for key, held in _entries(*_block(data, offset, size), budget):
            if last is not None and key <= last:
                raise Damage(f"key {key[:80]!r} stands behind {last[:80]!r}, which is not smaller")
            last = key
            yield key, held


def write_table(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The table file of keys, rising and without repetition, and their values; the bytes TensorFlow writes."""
    out, places = bytearray(), []
    block, last = _Block(_INTERVAL), None

    def put(content: bytes) -> bytes:
        offset = len(out)
        out.extend(content)
        out.append(0)
        out.extend(masked_crc32c(content + b"\0").to_bytes(4, "little"))  # eq. (1)
        return varint(offset) + varint(len(content))

    for key, value in entries:
        if last is not None and key <= last:
            raise ValueError(f"keys must rise, got {key!r} behind {last!r}")
        if block.size >= _BLOCK:
            assert last is not None
            places.append((_between(last, key), put(block.close())))
            block = _Block(_INTERVAL)
        block.add(key, value)
        last = key
    if last is not None:
        places.append((_between(last, None), put(block.close())))
    metadata = put(_Block(_INTERVAL).close())
    directory = _Block(1)
    for key, place in places:
        directory.add(key, place)
    out += (metadata + put(directory.close())).ljust(_FOOTER - len(MAGIC), b"\0") + MAGIC  # eq. (5)
    return bytes(out)


def _block(data: bytes, offset: int, size: int) -> tuple[bytes, int, int]:
    """The file, and begin and end of the entries of the block at `offset`, its checksum compared."""
    end = offset + size
    if size < 4 or end + 5 > len(data) - _FOOTER:
        raise Damage(f"a block of {size} bytes at byte {offset} does not fit into the file")
    if masked_crc32c(memoryview(data)[offset : end + 1]) != int.from_bytes(data[end + 1 : end + 5], "little"):
        raise Damage(f"the checksum of the block at byte {offset} is wrong: its bytes are not those that were written")
    if data[end] != 0:
        raise Damage(f"the block at byte {offset} is compressed (kind {data[end]}), which TensorFlow never does here")
    restarts = int.from_bytes(data[end - 4 : end], "little")
    if 4 * (restarts + 1) > size:
        raise Damage(f"the block at byte {offset} announces {restarts} restarts, more than it has room for")
    return data, offset, end - 4 * (restarts + 1)


class _Budget:
    """How much of a file may still become keys."""

    def __init__(self) -> None:
        self.entries = MAX_ENTRIES
        self.key_bytes = MAX_KEY_BYTES

    def spend(self, key_bytes: int) -> None:
        self.entries -= 1
        self.key_bytes -= key_bytes
        if self.entries < 0 or self.key_bytes < 0:
            raise Damage(f"it lists more than {MAX_ENTRIES} names, or names of more than {MAX_KEY_BYTES >> 20} MiB")


def _entries(data: bytes, begin: int, end: int, budget: _Budget) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block, eq. (3) and (4)."""
    reader, key = Reader(data, begin, end), b""
    while reader:
        shared, added, size = reader.varint(), reader.varint(), reader.varint()
        if shared > len(key):
            raise Damage(f"an entry before byte {reader.at} shares {shared} bytes with a key of {len(key)}")
        budget.spend(shared + added)
        key = key[:shared] + reader.take(added)
        yield key, reader.take(size)


class _Block:
    """A block under construction, eq. (2)."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.content = bytearray()
        self.restarts = [0]
        self.since = 0  # entries behind the last restart
        self.last = b""

    @property
    def size(self) -> int:
        return len(self.content) + 4 * (len(self.restarts) + 1)

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self.since == self.interval:
            self.restarts.append(len(self.content))
            self.since = 0
        elif self.content:
            shared = _common(self.last, key)
        self.content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        self.last = key
        self.since += 1

    def close(self) -> bytes:
        numbers = [*self.restarts, len(self.restarts)]
        return bytes(self.content) + b"".join(number.to_bytes(4, "little") for number in numbers)


def _common(left: bytes, right: bytes) -> int:
    """How many bytes two keys begin with together."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))


def _between(last: bytes, following: bytes | None) -> bytes:
    """A short key, at least `last` and below the following one if there is one."""
    if following is None:
        for i, byte in enumerate(last):
            if byte != 255:
                return last[:i] + bytes([byte + 1])
        return last
    i = _common(last, following)
    if i < min(len(last), len(following)) and last[i] < 255 and last[i] + 1 < following[i]:
        return last[:i] + bytes([last[i] + 1])
    return last
