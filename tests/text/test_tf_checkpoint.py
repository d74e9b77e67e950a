"""Reading TensorFlow checkpoints: files that TensorFlow wrote, tables encoded by hand, damage, limits, messages."""

import base64
import hashlib
import json
import os
import re
import shutil
import struct
import tracemalloc
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch

from danlu.data.errors import InputError
from danlu.text import open_checkpoint, save_checkpoint
from danlu.text._tf_entry import slice_key

FROZEN = json.loads((Path(__file__).parents[1] / "oracles" / "tf_checkpoints.json").read_text())
NUMBERS = {"float32": "<f4", "float64": "<f8", "float16": "<f2", "int64": "<i8", "int32": "<i4", "bool": "?"}


def unpack(name: str, folder: Path) -> Path:
    for file, content in FROZEN[name]["files"].items():
        (folder / file).write_bytes(base64.b64decode(content))
    return folder / "model.ckpt"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def check_against(path, tensors: dict) -> None:
    """Every variable has the type, shape and bytes that the list of the writer says."""
    with open_checkpoint(path) as checkpoint:
        assert sorted(checkpoint.names()) == sorted(tensors)
        for name, said in tensors.items():
            assert (checkpoint.dtype(name), list(checkpoint.shape(name))) == (said["dtype"], said["shape"])
            array = checkpoint[name]
            assert list(array.shape) == said["shape"]
            assert not array.flags.writeable
            if said["dtype"] == "string":
                assert [sha(item) for item in array.reshape(-1).tolist()] == said["sha256_each"]
                continue
            tensor = checkpoint.tensor(name)
            assert (str(tensor.dtype), list(tensor.shape)) == (f"torch.{said['dtype']}", said["shape"])
            assert sha(bits(tensor)) == said["sha256"]
            if said["dtype"] == "bfloat16":
                assert array.dtype == np.float32
                assert np.array_equal(array, tensor.float().numpy())
            else:
                assert sha(array.tobytes()) == said["sha256"]


# --- a second writer, sharing nothing with the package, for what TensorFlow's small files do not hold


def number(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)


def field(tag: int, value) -> bytes:
    if isinstance(value, bytes):
        return number(8 * tag + 2) + number(len(value)) + value
    return number(8 * tag) + number(value)


def crc(data: bytes) -> int:
    value = google_crc32c.value(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) % 2**32


def entry(code, shape, content=b"", offset=0, shard=0, slices=(), **changes) -> bytes:
    """A variable's entry; `slices` are lists of (start, length) or None for the whole axis."""
    said = {"size": len(content), "crc": crc(content), **changes}
    out = field(1, code) + field(2, b"".join(field(2, field(1, n)) for n in shape))
    out += field(3, shard) + field(4, offset) + field(5, said["size"]) + b"\x35" + struct.pack("<I", said["crc"])
    for extents in slices:
        parts = [b"" if e is None else field(1, e[0]) + field(2, e[1]) for e in extents]
        out += field(7, b"".join(field(1, part) for part in parts))
    return out


def block(entries: list[tuple[bytes, bytes]], shared: int = 0) -> bytes:
    """A block without, or with `shared` bytes of, shared beginnings."""
    out, last = bytearray(), b""
    for key, value in entries:
        k = min(shared, len(last)) if last else 0
        assert key[:k] == last[:k]
        out += number(k) + number(len(key) - k) + number(len(value)) + key[k:] + value
        last = key
    return bytes(out) + struct.pack("<II", 0, 1)


def index_of(entries, shards=1, header=None, blocks=None, kind=0) -> bytes:
    """A table; `blocks` gives the data blocks ready made, kind their type byte."""
    head = (b"", header if header is not None else field(1, shards) + field(3, field(1, 1)))
    out, places = b"", []
    for content in blocks if blocks is not None else [block([head, *sorted(entries)])]:
        places.append((b"\xff" * (len(places) + 1), number(len(out)) + number(len(content))))
        out += sealed(content, kind)
    return finished(out, block(places))


def sealed(content: bytes, kind: int = 0) -> bytes:
    return content + bytes([kind]) + struct.pack("<I", crc(content + bytes([kind])))


def finished(out: bytes, places: bytes) -> bytes:
    """Data blocks and the block of their places as a table."""
    last = b""
    for content in (block([]), places):
        last += number(len(out)) + number(len(content))
        out += sealed(content)
    return out + last.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def put(folder: Path, entries, *data: bytes, **keywords) -> Path:
    (folder / "m.index").write_bytes(index_of(entries, shards=len(data), **keywords))
    for i, content in enumerate(data):
        (folder / f"m.data-{i:05d}-of-{len(data):05d}").write_bytes(content)
    return folder / "m"


def refusal(path, name=None) -> str:
    with pytest.raises(InputError) as caught:
        checkpoint = open_checkpoint(path)
        assert name is not None, "opening should have failed"
        checkpoint[name]
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what TensorFlow wrote


@pytest.mark.parametrize("name", ["dtypes", "sliced", "object", "plain"])
def test_reads_what_tensorflow_wrote(name, tmp_path):
    check_against(unpack(name, tmp_path), FROZEN[name]["tensors"])


@pytest.mark.data
def test_reads_every_checkpoint_of_the_oracles(shared):
    listed = json.loads((shared / "oracles/checkpoints/index.json").read_text())["checkpoints"]
    for name, said in listed.items():
        if name != "legacy_v1" and (name == "damaged_ok" or not name.startswith("damaged")):
            check_against(shared / "oracles/checkpoints" / name, said["tensors"])
    for case in sorted((shared / "oracles/models").glob("*/case.json")):
        said = json.loads(case.read_text())
        tensors = said.get("tensors") or said["checkpoint"]
        tensors = {t["name"]: t for t in tensors} if isinstance(tensors, list) else tensors
        check_against(case.parent / "model.ckpt", tensors)


@pytest.mark.data
def test_damage_is_refused_where_tensorflow_refuses_it(shared):
    cases = json.loads((shared / "oracles/checkpoints/index.json").read_text())["damaged"]["cases"]
    assert len(cases) == 7
    for name, said in cases.items():
        folder = shared / "oracles/checkpoints" / f"damaged_{name}"
        if "open" in said:
            refusal(folder)
            continue
        for variable, outcome in said.items():
            if outcome.startswith("ok "):
                assert sha(open_checkpoint(folder)[variable].tobytes()) == outcome[3:]
            else:
                assert variable in refusal(folder, variable) or "is missing" in refusal(folder, variable)


def test_values_by_eye(tmp_path):
    path = put(tmp_path, [(b"w", entry(1, (2, 2), struct.pack("<4f", 1, 2, 3, 4)))], struct.pack("<4f", 1, 2, 3, 4))
    checkpoint = open_checkpoint(path)
    assert checkpoint["w"].tolist() == [[1, 2], [3, 4]]
    assert checkpoint.tensor("w", torch.float64).tolist() == [[1, 2], [3, 4]]
    assert checkpoint.tensor("w", torch.float64).dtype == torch.float64
    assert (len(checkpoint), list(checkpoint), "w" in checkpoint, "v" in checkpoint) == (1, ["w"], True, False)
    assert repr(checkpoint) == f"<TensorFlow checkpoint '{path}', 1 variables>"


def test_the_example_of_the_format(tmp_path):
    """The header and the first entry as TensorFlow 2.15 writes them, 12 zero bytes with masked checksum 0x0d3d4199."""
    value = bytes.fromhex("08011204120208 03280c3599413d0d".replace(" ", ""))
    path = put(tmp_path, [(b"b", value)], bytes(12), header=bytes.fromhex("08011a020801"))
    assert open_checkpoint(path)["b"].tolist() == [0, 0, 0]


# --- names


def test_names_of_the_model_only(tmp_path):
    model = ["bert/pooler/dense/kernel", "a/adam_mlp/kernel", "Adam/kernel", "global_stepper", "e/slot_vector"]
    other = ["bert/pooler/dense/kernel/adam_m", "bert/pooler/dense/kernel/adam_v", "global_step", "w/Adam", "w/Adam_1"]
    other += ["loss_scale", "x/current_loss_scale", "good_steps", "beta1_power"]
    other += ["enc/kernel_slot_vr", "enc/kernel_slot_v", "save_counter/.ATTRIBUTES/VARIABLE_VALUE"]
    other += ["w/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE", "optimizer/iter/.ATTRIBUTES/VARIABLE_VALUE"]
    save_checkpoint(tmp_path / "m", {name: torch.zeros(1) for name in model + other})
    checkpoint = open_checkpoint(tmp_path / "m")
    assert sorted(checkpoint.names()) == sorted(model + other)
    assert sorted(checkpoint.names(model_only=True)) == sorted(model)


def test_full_names_come_from_the_object_graph(tmp_path):
    names = open_checkpoint(unpack("object", tmp_path)).full_names()
    assert names["net/a/.ATTRIBUTES/VARIABLE_VALUE"] == "Variable"
    assert len(names) == 4
    attribute = (
        field(1, b"VARIABLE_VALUE") + field(2, b"dense/kernel") + field(3, b"layer/k/.ATTRIBUTES/VARIABLE_VALUE")
    )
    graph = field(1, field(1, field(1, 1)) + field(2, attribute)) + field(1, b"")
    save_checkpoint(tmp_path / "two", {"_CHECKPOINTABLE_OBJECT_GRAPH": graph, "w": torch.ones(2)})
    assert open_checkpoint(tmp_path / "two").full_names() == {"layer/k/.ATTRIBUTES/VARIABLE_VALUE": "dense/kernel"}
    save_checkpoint(tmp_path / "none", {"w": torch.ones(2)})
    assert open_checkpoint(tmp_path / "none").full_names() == {}
    save_checkpoint(tmp_path / "bad", {"_CHECKPOINTABLE_OBJECT_GRAPH": b"\x0a\xff\x01"})
    with pytest.raises(InputError, match="OBJECT_GRAPH cannot be used"):
        open_checkpoint(tmp_path / "bad").full_names()


def test_an_unknown_name_is_answered_with_its_neighbours(tmp_path):
    checkpoint = open_checkpoint(unpack("plain", tmp_path))
    with pytest.raises(InputError, match=r"no variable 'w/9' among its 6; close to it are 'w/"):
        checkpoint["w/9"]
    with pytest.raises(InputError, match=r"no variable 'kernel' among its 6; names\(\) lists"):
        checkpoint.shape("kernel")


# --- views, copies, closing


def test_arrays_show_the_file_and_tensors_are_ones_own(tmp_path):
    path = unpack("plain", tmp_path)
    checkpoint = open_checkpoint(path)
    array, tensor, seen = checkpoint["w/0"], checkpoint.tensor("w/0"), checkpoint.tensor("w/0", copy=False)
    assert not array.flags.owndata
    assert seen.data_ptr() == array.ctypes.data != tensor.data_ptr()
    before = (tmp_path / "model.ckpt.data-00000-of-00001").read_bytes()
    tensor.zero_()
    assert array.any()
    seen.zero_()  # allowed: this process only
    assert not array.any()
    assert (tmp_path / "model.ckpt.data-00000-of-00001").read_bytes() == before
    with pytest.raises(ValueError, match="read-only"):
        checkpoint["w/1"][0, 0] = 1


def test_closing_keeps_what_was_read(tmp_path):
    with open_checkpoint(unpack("plain", tmp_path)) as checkpoint:
        array = checkpoint["w/0"]
        kept = array.copy()
    for file in tmp_path.iterdir():
        file.unlink()
    assert np.array_equal(array, kept)
    with pytest.raises(InputError, match="is closed; read inside the with block"):
        checkpoint["w/0"]


def test_reading_is_lazy(tmp_path):
    """A file of 200 MB (a hole, no disk): opening and reading one small variable touches little."""
    count = 50_000_000
    entries = [(b"big", entry(1, (count,), size=4 * count, crc=0)), (b"small", entry(3, (1,), b"\5\0\0\0", 4 * count))]
    path = put(tmp_path, entries, b"")
    with open(f"{path}.data-00000-of-00001", "wb") as file:
        file.truncate(4 * count)
        file.seek(4 * count)
        file.write(b"\5\0\0\0")
    tracemalloc.start()
    checkpoint = open_checkpoint(path)
    assert checkpoint["small"].tolist() == [5]
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert "checksum" in refusal(path, "big")


def test_a_checksum_can_be_passed_over(tmp_path):
    path = unpack("plain", tmp_path)
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    good = open_checkpoint(path)["w/1"].copy()
    changed = bytearray(data.read_bytes())
    changed[1024] ^= 1
    data.write_bytes(changed)
    assert re.search(r"variable 'w/1' of .* its checksum is wrong.*get model.ckpt again", refusal(path, "w/1"))
    bad = open_checkpoint(path, verify=False)["w/1"]
    assert (bad != good).sum() == 1
    assert np.array_equal(open_checkpoint(path)["w/2"], open_checkpoint(path, verify=False)["w/2"])


# --- types


def test_small_floats_are_widened_exactly(tmp_path):
    values = {
        "b16": torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16).reshape(256, 256),
        "e5": torch.arange(256, dtype=torch.uint8).view(torch.float8_e5m2),
        "e4": torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(4, 64),
    }
    save_checkpoint(tmp_path / "m", values)
    checkpoint = open_checkpoint(tmp_path / "m")
    for name, value in values.items():
        assert checkpoint[name].dtype == (np.float32 if name == "b16" else np.float16)
        torch.testing.assert_close(
            torch.tensor(checkpoint[name]).float(), value.float(), rtol=0, atol=0, equal_nan=True
        )
        assert torch.equal(checkpoint.tensor(name).view(torch.uint8), value.view(torch.uint8))


def test_reference_types_and_scalars(tmp_path):
    path = put(tmp_path, [(b"w", entry(103, (), b"\7\0\0\0"))], b"\7\0\0\0")
    checkpoint = open_checkpoint(path)
    assert (checkpoint.dtype("w"), checkpoint["w"].shape, int(checkpoint["w"]), checkpoint.tensor("w")) == (
        "int32",
        (),
        7,
        7,
    )


def test_big_endian_bundles(tmp_path):
    half = np.array([[1, -2], [3, 70000]], ">i4")
    data = half.tobytes() + np.array([0x3F80, 0xC040], ">u2").tobytes() + b"\1\0"
    entries = [(b"a", entry(3, (2, 2), data[:16])), (b"b", entry(14, (2,), data[16:20], 16))]
    entries.append((b"c", entry(10, (2,), data[20:], 20)))
    path = put(tmp_path, entries, data, header=field(1, 1) + field(2, 1) + field(3, field(1, 1)))
    checkpoint = open_checkpoint(path)
    assert checkpoint["a"].tolist() == checkpoint.tensor("a").tolist() == half.tolist()
    assert checkpoint["b"].tolist() == checkpoint.tensor("b").tolist() == [1.0, -3.0]
    assert checkpoint["c"].tolist() == checkpoint.tensor("c").tolist() == [True, False]


def test_strings_have_no_tensors(tmp_path):
    checkpoint = open_checkpoint(unpack("dtypes", tmp_path))
    assert checkpoint["strings"].reshape(-1).tolist()[:2] == [b"a", b""]
    with pytest.raises(InputError, match=r"'strings' holds strings.*checkpoint\[name\] reads them"):
        checkpoint.tensor("strings")


@pytest.mark.parametrize(
    ("place", "message"), [(0, "its strings have|ends|checksum"), (4, "checksum"), (-1, "checksum"), (5, "checksum")]
)
def test_damaged_strings(place, message, tmp_path):
    save_checkpoint(tmp_path / "m", {"s": [b"one", b"two", b"", b"four"]})
    data = tmp_path / "m.data-00000-of-00001"
    changed = bytearray(data.read_bytes())
    changed[place] ^= 1
    data.write_bytes(changed)
    assert re.search(message, refusal(tmp_path / "m", "s"))


# --- partitioned variables


def test_ordered_numbers_of_slice_keys():
    """Frozen samples of TensorFlow's ordered code, and its reason to exist: bytes sort like the numbers."""
    samples = {0: "80", 3: "83", 63: "bf", 64: "c040", 100: "c064", 8191: "dfff", 8192: "e02000"}
    for value, code in samples.items():
        assert slice_key("part", [(value, -1)]).hex() == "0070617274000101" + "01" + code + "7f"
    starts = [0, 1, 63, 64, 65, 8191, 8192, 2**20 - 1, 2**20, 2**27, 2**34, 2**41, 2**48, 2**55, 2**62 - 1, 2**62]
    keys = [slice_key("w", [(start, 1)]) for start in starts]
    assert keys == sorted(keys)
    assert len(slice_key("w", [(2**62, 1)])) == len(slice_key("w", [(0, 1)])) + 9  # from 62 bits on: ten bytes
    assert slice_key("part", [(3, 2), (0, 2)]).hex() == "0070617274000101" + "02" + "83828082"
    assert slice_key("a\0b", []).hex() == "006100ff62" + "000100"


@pytest.mark.parametrize(
    ("name", "extents", "key"),
    [
        ("emb", [(63, 1), (0, 3)], "00656d6200010102bf818083"),
        ("emb", [(64, 1), (0, 3)], "00656d6200010102c040818083"),
        ("emb", [(65, 8127), (0, 3)], "00656d6200010102c041dfbf8083"),
        ("emb", [(8192, 11808), (0, 3)], "00656d6200010102e02000e02e208083"),
        ("h", [(0, -1), (2, 1)], "006800010102807f8281"),
    ],
)
def test_keys_of_slices_that_tensorflow_wrote(name, extents, key):
    """From the index that TensorFlow 2.15.1 wrote for a table of (20000, 3) by rows and one of (100, 3) by columns."""
    assert slice_key(name, extents).hex() == key


def sliced(folder, shape, cuts, code=1, kind="<f4", change=None, extents=None):
    """A variable "w" of rising numbers cut into boxes [(start, length), ...]; `change` edits its list of slices."""
    full = np.arange(np.prod(shape)).reshape(shape).astype(kind)
    data, entries = b"", []
    for cut in cuts:
        content = full[tuple(slice(s, s + n) for s, n in cut)].tobytes()
        shape_of = [n for _, n in cut]
        entries.append((slice_key("w", cut), entry(code, shape_of, content, len(data))))
        data += content
    entries = change(entries) if change else entries
    main = (b"w", entry(code, shape, slices=cuts if extents is None else extents))
    return put(folder, [*entries, main], data), full


HALVES = [[(0, 3), (0, 2)], [(3, 2), (0, 2)]]


def test_slices_of_rows_columns_and_both(tmp_path):
    grid = [[(0, 1), (0, 4)], [(1, 4), (0, 1)], [(1, 4), (1, 3)]]
    for i, cuts in enumerate([HALVES, [[(0, 5), (0, 1)], [(0, 5), (1, 1)]], grid, [[(0, 5), (0, 2)]]]):
        folder = tmp_path / str(i)
        folder.mkdir()
        shape = (5, sum(n for (s, _), (_, n) in cuts if s == 0) if i == 1 else 4 if cuts is grid else 2)
        path, full = sliced(folder, shape, cuts)
        assert np.array_equal(open_checkpoint(path)["w"], full)
        assert torch.equal(open_checkpoint(path).tensor("w"), torch.from_numpy(full))
        assert open_checkpoint(path).names() == ["w"]


def test_whole_axes_are_stored_as_minus_one(tmp_path):
    full = np.arange(6, dtype="<f4").reshape(3, 2)
    entries = [
        (slice_key("w", [(s, n), (0, -1)]), entry(1, (n, 2), full[s : s + n].tobytes(), 8 * s))
        for s, n in [(0, 1), (1, 2)]
    ]
    main = (b"w", entry(1, (3, 2), slices=[[(0, 1), None], [(1, 2), None]]))
    assert np.array_equal(open_checkpoint(put(tmp_path, [*entries, main], full.tobytes()))["w"], full)


def test_slices_in_bfloat16(tmp_path):
    path, full = sliced(tmp_path, (5, 2), HALVES, code=14, kind="<u2")
    as_bits = torch.from_numpy(full.astype(np.int16)).view(torch.bfloat16)
    assert torch.equal(open_checkpoint(path).tensor("w"), as_bits)
    assert np.array_equal(open_checkpoint(path)["w"], as_bits.float().numpy())


@pytest.mark.parametrize(
    ("change", "extents", "message"),
    [
        (lambda e: e[:1], None, r"its slice \[\(3, 5\), \(0, 2\)\] is missing"),
        (None, HALVES[:1], "its 1 slices do not fill the shape"),
        (None, [HALVES[0], HALVES[0]], "its 2 slices do not fill the shape"),
        (None, [[(0, 3)], [(3, 2)]], "has not the 2 axes"),
        (lambda e: [e[0], (e[1][0], entry(1, (2, 2), bytes(16), 24))], None, "checksum"),
        (lambda e: [e[0], (e[1][0], entry(3, (2, 2), bytes(16), 24))], None, r"stored as int32 of shape \(2, 2\)"),
        (lambda e: [e[0], (e[1][0], entry(1, (4, 1), bytes(16), 24))], None, r"stored as float32 of shape \(4, 1\)"),
    ],
)
def test_slices_that_do_not_make_the_whole(change, extents, message, tmp_path):
    path, _ = sliced(tmp_path, (5, 2), HALVES, change=change, extents=extents)
    assert re.search(message, refusal(path, "w"))


def test_slices_that_overlap_or_reach_out(tmp_path):
    (tmp_path / "a").mkdir()
    path, _ = sliced(tmp_path / "a", (6, 1), [[(0, 3), (0, 1)], [(2, 3), (0, 1)]])  # as many elements as the whole
    assert "do not fill the shape (6, 1) exactly once" in refusal(path, "w")
    key, part = slice_key("w", [(4, 3)]), entry(1, (3,), bytes(12))
    (tmp_path / "b").mkdir()
    path = put(tmp_path / "b", [(key, part), (b"w", entry(1, (6,), slices=[[(4, 3)]]))], bytes(12))
    assert "reaches beyond the shape (6,)" in refusal(path, "w")


# --- what a table may not hold

OK = (b"w", entry(1, (1,), bytes(4)))
HEAD = (b"", field(1, 1) + field(3, field(1, 1)))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"header": field(1, 0)}, "announces 0 data files"),
        ({"header": field(1, 100_000)}, "announces 100000 data files"),
        ({"header": field(1, 1) + field(2, 2)}, "byte order 2"),
        ({"header": field(1, 1) + field(3, field(2, 9))}, "a reader of version 9"),
        ({"header": field(1, b"x")}, "a number is expected"),
        ({"header": b"\x0b"}, "a field of kind 3"),
        ({"header": b"\x08" + b"\xff" * 10}, "more than 64 bits"),
        ({"blocks": [block([OK])]}, "it has no header"),
        ({"blocks": []}, "it has no header"),
        ({"blocks": [block([HEAD, (b"b", OK[1]), (b"a", OK[1])])]}, "stands behind"),
        ({"blocks": [block([HEAD, OK, OK])]}, "stands behind"),
        ({"blocks": [block([HEAD]), block([OK]), block([OK])]}, "stands behind"),
        ({"blocks": [block([HEAD, OK])], "kind": 1}, r"compressed \(kind 1\)"),
        ({"blocks": [block([HEAD, OK])[:-4] + struct.pack("<I", 2**31)]}, "restarts, more than it has room for"),
        ({"blocks": [b"\x05\x01\x00x" + struct.pack("<II", 0, 1)]}, "shares 5 bytes with a key of 0"),
        ({"blocks": [b"\x00\x01" + number(2**40) + b"x" + struct.pack("<II", 0, 1)]}, "bytes are announced"),
        ({"blocks": [b"\x00\x80" + struct.pack("<II", 0, 1)]}, "an integer is cut off"),
    ],
)
def test_tables_that_are_refused(keywords, message, tmp_path):
    assert re.search(message, refusal(put(tmp_path, [OK], bytes(4), **keywords)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (entry(1, (2,), bytes(4)), r"4 bytes do not hold float32 of shape \(2,\)"),
        (entry(1, (2,), bytes(12)), r"12 bytes do not hold float32 of shape \(2,\)"),
        (entry(21, (1,), bytes(4)), "type variant is not read; read are float32"),
        (entry(99, (1,), bytes(4)), "type 99 is not read"),
        (entry(1, (1,), bytes(4), shard=1), "beyond the 1 that the header announces"),
        (entry(1, (1,), bytes(4), shard=2**40), "beyond the 1"),
        (entry(1, (2**62, 2**62), size=4), "beyond every file"),
        (entry(1, (2**63,), size=4), "beyond every file"),
        (entry(1, (1,), bytes(4), offset=2**63), "beyond every file"),
        (entry(1, (0, 1) * 17), "more than 32 axes"),
        (field(1, 1) + field(2, field(3, 1)), "its rank is unknown"),
        (entry(7, (100,), bytes(50)), "50 bytes do not hold string"),
        (field(1, b"w"), "a number is expected"),
        (field(2, 5), "bytes are expected"),
        (b"\x12\x7f", "127 bytes are announced"),
    ],
)
def test_entries_that_are_refused(value, message, tmp_path):
    text = refusal(put(tmp_path, [(b"some/name", value)], bytes(4)))
    assert re.search(message, text)
    assert "some/name" in text or "header announces" in text


def test_names_that_are_no_text_are_refused(tmp_path):
    assert "'a\ufffd': 'utf-8' codec" in refusal(put(tmp_path, [(b"a\xff", OK[1])], bytes(4)))


def test_variables_may_not_share_bytes(tmp_path):
    parts = [(b"a", entry(1, (2,), bytes(8))), (b"b", entry(1, (2,), bytes(8), offset=4))]
    assert "two variables share bytes from 4 of data file 0" in refusal(put(tmp_path, parts, bytes(12)))
    parts = [
        (b"a", entry(1, (2,), bytes(8))),
        (b"b", entry(1, (0,), offset=4)),
        (b"c", entry(1, (2,), bytes(8), shard=1)),
    ]
    assert open_checkpoint(put(tmp_path, parts, bytes(8), bytes(8)))["b"].shape == (0,)


def test_a_shape_that_numpy_cannot_have(tmp_path):
    text = refusal(put(tmp_path, [(b"w", entry(1, (0, 2**62, 2**62)))], b""), "w")
    assert "variable 'w'" in text


def peak_of(action) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_names_that_share_megabytes(tmp_path):
    """200 MB of names in 60 kB: their sum is bounded before they are made, also that of the blocks' names."""
    long = b"k" * 100_000
    shared = [(long + b"%04d" % i, OK[1]) for i in range(2_000)]
    path = put(tmp_path, [], bytes(4), blocks=[block([HEAD]), block(shared, len(long))])
    message = []
    assert peak_of(lambda: message.append(refusal(path))) < 32 << 20
    out = sealed(block([HEAD])) + sealed(block([])) * 1_999
    assert len(block([HEAD])) == 17
    places = [
        (key, number(22 + 13 * (i - 1) if i else 0) + number(8 if i else 17)) for i, (key, _) in enumerate(shared)
    ]
    (tmp_path / "m.index").write_bytes(finished(out, block(places, len(long))))
    assert peak_of(lambda: message.append(refusal(path))) < 32 << 20
    assert all("names of more than 8 MiB" in text for text in message)


def test_endless_entries(tmp_path):
    one = entry(1, (), bytes(4))
    many = [(f"{i:06d}".encode(), one) for i in range(51_000)]
    path = put(tmp_path, [], bytes(4), blocks=[block([HEAD, *many])])
    size = Path(f"{path}.index").stat().st_size
    message = []
    assert peak_of(lambda: message.append(refusal(path))) < (64 << 20) + 2 * size
    assert "more than 50000 names" in message[0]


def test_a_block_listed_again_and_again(tmp_path):
    good = block([HEAD, OK])
    places = block([(b"%04d" % i, number(0) + number(len(good))) for i in range(1_000)])
    (tmp_path / "m.index").write_bytes(finished(sealed(good), places))
    assert "block at byte 0 does not lie behind the one before it" in refusal(tmp_path / "m")


def test_slices_that_repeat_a_region(tmp_path):
    cuts = [[(i, 1)] for i in range(3_000)]
    parts = [(slice_key("w", cut), entry(1, (1,), bytes(4))) for cut in cuts]
    path = put(tmp_path, [*parts, (b"w", entry(1, (3_000,), slices=cuts))], bytes(4))
    assert "share bytes" in refusal(path)
    cuts = [[(0, 1)]] * 5_000
    path = put(tmp_path, [(b"w", entry(1, (5_000,), slices=cuts))], bytes(4))
    assert "cut into 5000 slices, more than 4096" in refusal(path, "w")


def test_huge_lengths_allocate_nothing(tmp_path):
    parts = [(b"w", entry(1, (2**40,), size=2**42, crc=0)), (b"x", entry(7, (2**40,), size=2**50, offset=2**43))]
    path = put(tmp_path, parts, bytes(64))
    for name in ("w", "x"):
        message = []
        assert peak_of(lambda name=name, message=message: message.append(refusal(path, name))) < 1 << 20
        assert re.search("has 64;|more than 250000", message[0])


# --- finding the files


def test_any_file_of_it_or_its_folder_will_do(tmp_path):
    folder = tmp_path / "with space [a-z]*"
    folder.mkdir()
    prefix = unpack("plain", folder)
    (folder / "model.ckpt.meta").write_bytes(b"")
    for path in (folder, prefix, *(f"{prefix}{e}" for e in (".index", ".meta", ".data-00000-of-00001"))):
        assert open_checkpoint(path).prefix == prefix
    assert open_checkpoint(str(prefix)).names() == [f"w/{i}" for i in range(6)]


def test_a_folder_with_several(tmp_path):
    prefix = unpack("plain", tmp_path)
    for file in list(tmp_path.iterdir()):
        shutil.copy(file, tmp_path / file.name.replace("model.ckpt", "model.ckpt-2"))
    assert "holds 2 checkpoints: model.ckpt, model.ckpt-2; name one" in refusal(tmp_path)
    state = tmp_path / "checkpoint"
    for named in ("model.ckpt-2", "/home/somebody/run/model.ckpt-2", r"C:\run\model.ckpt-2"):
        state.write_text(f'model_checkpoint_path: "{named}"\nall_model_checkpoint_paths: "model.ckpt"\n')
        assert open_checkpoint(tmp_path).prefix == tmp_path / "model.ckpt-2"
    for named in ("gone", "", "..", "../elsewhere/gone", "/"):
        state.write_text(f'model_checkpoint_path: "{named}"\n')
        assert "holds 2 checkpoints" in refusal(tmp_path)
    state.write_bytes(b"\xff" * 50)
    assert "holds 2 checkpoints" in refusal(tmp_path)
    assert prefix.with_name("model.ckpt.index").exists()


def test_the_state_file_leads_nowhere_else(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    target = unpack("plain", outside)
    (inside / "checkpoint").write_text(f'model_checkpoint_path: "{target}"\n')
    assert "no file there ends in .index" in refusal(inside)


def test_messages_say_what_is_missing(tmp_path):
    assert re.search(
        r"no TensorFlow checkpoint .*nothing: nothing.index is missing; that folder holds no",
        refusal(tmp_path / "nothing"),
    )
    assert "no file there ends in .index" in refusal(tmp_path)
    prefix = unpack("plain", tmp_path)
    assert "bert.ckpt.index is missing; that folder has model.ckpt" in refusal(
        tmp_path / "bert.ckpt.data-00000-of-00001"
    )
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:1500])
    assert "it ends at byte 2048 of model.ckpt.data-00000-of-00001, which has 1500" in refusal(prefix, "w/1")
    data.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 6144\n")
    assert "is a pointer of Git LFS" in refusal(prefix, "w/1")
    data.write_bytes(b"")
    assert "which has 0" in refusal(prefix, "w/1")
    data.unlink()
    assert re.search(r"data-00000-of-00001 is missing: the values are in it", refusal(prefix, "w/1"))
    data.mkdir()
    assert "is not a file of its own" in refusal(prefix, "w/1")
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    assert "is not a TensorFlow checkpoint: there is no model.safetensors.index" in refusal(
        tmp_path / "model.safetensors"
    )
    for content in (b"", b"x", bytes(100)):
        (tmp_path / "model.ckpt.index").write_bytes(content)
        assert re.search("model.ckpt.index cannot be used: it does not end like a table file; get", refusal(prefix))


def test_the_old_format_is_named(tmp_path):
    prefix = unpack("legacy_v1", tmp_path)
    for path in (prefix, tmp_path):
        assert re.search(r"model.ckpt is a checkpoint of the old V1 format.*write_version=2", refusal(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_not_waited_for(tmp_path):
    prefix = unpack("plain", tmp_path)
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    data.unlink()
    os.mkfifo(data)
    assert "folder, pipe or device" in refusal(prefix, "w/0")
    index = tmp_path / "model.ckpt.index"
    index.unlink()
    os.mkfifo(index)
    assert "folder, pipe or device" in refusal(prefix)


def test_flipped_bits_of_an_index_are_noticed(tmp_path):
    """Two bits of each byte in turn; one of them makes a longer form of the same number, which is read as such."""
    prefix = unpack("plain", tmp_path)
    index = tmp_path / "model.ckpt.index"
    good = index.read_bytes()
    harmless = 0
    for place in range(len(good)):
        for bit in (place % 7, 7):
            changed = bytearray(good)
            changed[place] ^= 1 << bit
            index.write_bytes(changed)
            try:
                open_checkpoint(prefix)
            except InputError:
                continue
            check_against(prefix, FROZEN["plain"]["tensors"])
            harmless += 1
    assert harmless == 1
