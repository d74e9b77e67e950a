"""Mutated checkpoints: an error message or what was written, in bounded time and memory, whatever is changed."""

import base64
import json
import random
import resource
import struct
import time
import tracemalloc
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from danlu.data.errors import InputError
from danlu.text import open_checkpoint

FROZEN = json.loads((Path(__file__).parents[1] / "oracles" / "tf_checkpoints.json").read_text())
NAMES = ["dtypes", "sliced", "object", "plain"]
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
NASTY = [b"", b"\0", b"\xff", b"\x80" * 9, b"\xff" * 9 + b"\1", b"\xff\xff\xff\xff\x0f", b"\x7f", b"/../", b"\0" * 40]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits, bytes, cuts, copies, nasty numbers."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        kind = rng.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        elif kind == 2:
            del data[at : at + rng.choice([1, 1, 4, 100])]
        elif kind == 3:
            del data[end:]
        elif kind == 4:
            data[at:at] = rng.choice(NASTY)
        elif kind == 5:
            data[at : at + rng.choice([1, 4, 8])] = rng.choice(NASTY)
        elif kind == 6:
            data[at:at] = data[at : min(end, at + 50)]
        else:
            data[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2**31, 2**32 - 1, len(data)]))
    return bytes(data)


def sealed(content: bytes) -> bytes:
    """A table around a mutated data block whose checksums are right, so that the parser behind them is reached."""

    def number(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)

    def seal(block: bytes) -> bytes:
        value = google_crc32c.value(block + b"\0")
        return block + b"\0" + struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) % 2**32)

    out, empty = seal(content), struct.pack("<II", 0, 1)
    handle = number(0) + number(len(content))
    directory = b"\0\1" + bytes([len(handle)]) + b"\xff" + handle + empty
    places = number(len(out)) + number(len(empty))
    out += seal(empty)
    places += number(len(out)) + number(len(directory))
    return out + seal(directory) + places.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def first_block(index: bytes) -> bytes:
    """The data block of an index that has one: up to the trailer in front of the metadata block."""
    end = index.rindex(b"\0\0\0\0\1\0\0\0\0\xc0\xf2\xa1\xb0")  # metadata, its kind and checksum
    return index[: end - 5]


def values(folder: Path) -> dict[str, bytes]:
    with open_checkpoint(folder / "model.ckpt") as checkpoint:
        checkpoint.full_names()
        out = {}
        for name in checkpoint:
            array = checkpoint[name]
            content = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
            out[name] = repr((array.dtype, array.shape)).encode() + content
        return out


def fuzz(folder: Path, count: int, seed: int) -> dict[str, int]:
    """So many mutations of each kind in turn; what became of them."""
    rng = random.Random(seed)
    good, contents = {}, {}
    for name in NAMES:
        contents[name] = {f: base64.b64decode(c) for f, c in FROZEN[name]["files"].items()}
        for file, content in contents[name].items():
            (folder / file).write_bytes(content)
        good[name] = values(folder)
    outcome = {"refused": 0, "same": 0, "partly": 0, "sealed": 0}
    for i in range(count):
        name = rng.choice(NAMES)
        now = dict(contents[name])
        kind = ("index", "data", "sealed", "sealed")[i % 4]
        if kind == "sealed":
            now[INDEX] = sealed(mutate(first_block(now[INDEX]), rng))
        else:
            target = INDEX if kind == "index" else DATA
            now[target] = mutate(now[target], rng)
        for file, content in now.items():
            (folder / file).write_bytes(content)
        size = sum(map(len, now.values()))
        tracemalloc.reset_peak()
        before, began = tracemalloc.get_traced_memory()[0], time.process_time()
        try:
            found = values(folder)
        except InputError as error:
            found = None
            assert 40 < len(str(error)) < 2_000
        assert time.process_time() - began < 5, (seed, i)
        assert tracemalloc.get_traced_memory()[1] - before < (64 << 20) + 2 * size, (seed, i)
        if kind == "sealed":  # whoever mends the checksums may rename variables, but not change values unseen
            outcome["sealed"] += 1
        elif found is not None:
            assert found == good[name], (seed, i)
            outcome["same"] += 1
        else:
            outcome["refused"] += 1
            outcome["partly"] += kind == "data" and one_by_one(folder, good[name])
    return outcome


def one_by_one(folder: Path, good: dict[str, bytes]) -> int:
    """Whether damaged data still gives some variables; those it gives are right."""
    alive = 0
    with open_checkpoint(folder / "model.ckpt") as checkpoint:
        for name in checkpoint:
            try:
                array = checkpoint[name]
            except InputError:
                continue
            content = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
            assert good[name].endswith(content)
            alive += 1
    return int(alive > 0)


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_three_hundred_mutations(tmp_path, traced):
    outcome = fuzz(tmp_path, 300, seed=0)
    assert outcome["sealed"] == 150
    assert outcome["refused"] > 100
    assert outcome["partly"] > 10


@pytest.mark.slow
def test_ten_thousand_mutations(tmp_path, traced):
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = fuzz(tmp_path, 10_000, seed=1)
    assert outcome["refused"] > 4_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 64 << 10  # KiB


def test_the_untouched_table_passes_the_sealing(tmp_path):
    """The fuzzer's own tools: an unmutated block, sealed again, reads as before."""
    for name in NAMES:
        for file, content in FROZEN[name]["files"].items():
            (tmp_path / file).write_bytes(base64.b64decode(content))
        before = values(tmp_path)
        index = (tmp_path / INDEX).read_bytes()
        (tmp_path / INDEX).write_bytes(sealed(first_block(index)))
        assert values(tmp_path) == before
        assert np.all([mutate(index, random.Random(i)) is not None for i in range(50)])
