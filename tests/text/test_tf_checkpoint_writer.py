"""Writing TensorFlow checkpoints: TensorFlow's own bytes, everything read back, index blocks, crashes, messages."""

import base64
import json
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.errors import InputError
from danlu.text import open_checkpoint, save_checkpoint
from danlu.text._tf_table import write_table

FROZEN = json.loads((Path(__file__).parents[1] / "oracles" / "tf_checkpoints.json").read_text())
DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.complex64, torch.complex128),
]


def read(path) -> dict[str, torch.Tensor | np.ndarray]:
    with open_checkpoint(path) as c:
        return {name: c[name] if c.dtype(name) == "string" else c.tensor(name) for name in c}


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in type, shape and every bit, also those of NaN."""
    as_bytes = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)] if a.numel() else [torch.zeros(0)] * 2
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_bytes)


@pytest.mark.parametrize("name", ["dtypes", "plain"])
def test_writes_the_bytes_of_tensorflow(name, tmp_path):
    """What TensorFlow wrote, read and written again, is the same file bit by bit."""
    (tmp_path / "tf").mkdir()
    (tmp_path / "ours").mkdir()
    for file, content in FROZEN[name]["files"].items():
        (tmp_path / "tf" / file).write_bytes(base64.b64decode(content))
    save_checkpoint(tmp_path / "ours/model.ckpt", read(tmp_path / "tf"))
    assert files(tmp_path / "ours") == files(tmp_path / "tf")


@pytest.mark.data
def test_writes_the_bytes_of_tensorflow_for_every_model(shared, tmp_path):
    folders = [*sorted((shared / "oracles/models").iterdir()), shared / "oracles/checkpoints/many"]
    assert len(folders) == 18
    for folder in folders:
        (tmp_path / folder.name).mkdir()
        save_checkpoint(tmp_path / folder.name / "model.ckpt", read(folder))
        for name, content in files(tmp_path / folder.name).items():
            assert content == (folder / name).read_bytes(), (folder.name, name)


def random_tensor(rng: random.Random, dtype: torch.dtype) -> torch.Tensor:
    shape = [rng.choice([0, 1, 2, 3, 7]) for _ in range(rng.randrange(5))]
    size = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
    content = bytes(rng.randrange(2) for _ in range(size)) if dtype == torch.bool else rng.randbytes(size)
    flat = torch.frombuffer(bytearray(content), dtype=dtype) if size else torch.empty(0, dtype=dtype)
    return flat.reshape(shape)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300), max_size=40, unique=True),
    st.sampled_from([1, 1, 2, 3, 7]),
    st.randoms(use_true_random=False),
)
def test_everything_is_read_back(tmp_path_factory, names, shards, rng):
    names = [name for name in names if name[0] != "\0"]
    tensors = {name: random_tensor(rng, rng.choice(DTYPES)) for name in names}
    folder = tmp_path_factory.mktemp("round")
    save_checkpoint(folder / "m", tensors, shards)
    back = read(folder)
    assert list(back) == sorted(tensors, key=str.encode)
    assert all(same(tensor, back[name]) for name, tensor in tensors.items())
    with open_checkpoint(folder) as checkpoint:
        for name, tensor in tensors.items():
            array, small = checkpoint[name], checkpoint.dtype(name) in ("bfloat16", "float8_e5m2", "float8_e4m3fn")
            assert isinstance(array, np.ndarray)
            assert np.array_equal(
                array, (tensor.float() if small else tensor).numpy(), equal_nan=array.dtype.kind in "fc"
            )
    expected = {"m.index", *(f"m.data-{i:05d}-of-{shards:05d}" for i in range(shards))}
    assert set(files(folder)) == expected


def test_every_type_is_named_as_torch_names_it(tmp_path):
    save_checkpoint(tmp_path / "m", {str(dtype): torch.ones(2).to(dtype) for dtype in DTYPES})
    with open_checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint) == len(DTYPES)
        assert all(f"torch.{checkpoint.dtype(name)}" == name for name in checkpoint)
        assert all(checkpoint.tensor(name).dtype == dtype for name, dtype in zip(map(str, DTYPES), DTYPES, strict=True))


def test_numpy_lists_numbers_and_strings(tmp_path):
    values = {
        "array": np.arange(6, dtype=">i4").reshape(2, 3).T,
        "list": [[1.5, 2.0], [3.0, 4.0]],
        "number": 7,
        "true": True,
        "text": "丹炉",
        "zeros behind": b"a\0\0",
        "nested": [["a", ""], ["b\0", "丹"]],
        "objects": np.array([b"x", "y"], object),
        "none of them": np.array([], object),
        "long": ["x" * 200, "y" * 20_000],
        "view": torch.arange(12).reshape(3, 4)[:, ::2],
        "conj": torch.tensor([1 + 2j]).conj(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    save_checkpoint(tmp_path / "m", values)
    with open_checkpoint(tmp_path) as c:
        assert (c.dtype("array"), c["array"].tolist()) == ("int32", [[0, 3], [1, 4], [2, 5]])
        assert (c.dtype("list"), c["list"].tolist()) == ("float64", [[1.5, 2.0], [3.0, 4.0]])
        assert (c.dtype("number"), c["number"].item(), c.dtype("true"), c["true"].item()) == ("int64", 7, "bool", True)
        assert (c["text"].item().decode(), c["text"].shape, c["zeros behind"].item()) == ("丹炉", (), b"a\0\0")
        assert c["nested"].tolist() == [[b"a", b""], [b"b\0", "丹".encode()]]
        assert (c["objects"].tolist(), c["none of them"].tolist()) == ([b"x", b"y"], [])
        assert [len(x) for x in c["long"]] == [200, 20_000]
        assert c["view"].tolist() == [[0, 2], [4, 6], [8, 10]]
        assert c["conj"].tolist() == [1 - 2j]
        assert c["parameter"].tolist() == [1, 1]


def blocks(data: bytes) -> list[tuple[bytes, list[bytes], int]]:
    """Oracle: (key of the index, keys, entries that a restart points at) of every data block, by a walk of its own."""

    def number(at: int) -> tuple[int, int]:
        value, shift = 0, 0
        while True:
            value |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 128:
                return value, at

    def walk(begin: int, size: int):
        (count,) = struct.unpack_from("<I", data, begin + size - 4)
        starts = struct.unpack_from(f"<{count}I", data, begin + size - 4 - 4 * count)
        at, key, found, first = begin, b"", [], []
        while at < begin + size - 4 - 4 * count:
            here = at - begin
            shared, at = number(at)
            added, at = number(at)
            length, at = number(at)
            key = key[:shared] + data[at : at + added]
            at += added + length
            found.append((key, data[at - length : at]))
            if here in starts:
                assert shared == 0
                first.append(here)
        assert first == list(starts) or not found
        return found, len(starts)

    at = len(data) - 48
    for _ in range(2):
        _, at = number(at)
    begin, at = number(at)
    size, at = number(at)
    result = []
    for key, place in walk(begin, size)[0]:
        offset, size = struct.unpack("<QQ", struct.pack("<QQ", *_pair(place)))
        inside, restarts = walk(offset, size)
        result.append((key, [k for k, _ in inside], restarts))
    return result


def _pair(place: bytes) -> list[int]:
    values, value, shift = [], 0, 0
    for byte in place:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            values.append(value)
            value = shift = 0
    return values


def test_a_large_index_has_several_blocks(tmp_path):
    """Above 256 KiB another block begins; its key in the index lies between its last key and the next one's first."""
    rng = random.Random(0)
    names = {"".join(rng.choices("ab/\xff丹", k=rng.randrange(1, 300))) for _ in range(4_000)}
    tensors = {name: torch.tensor([i]) for i, name in enumerate(sorted(names))}
    save_checkpoint(tmp_path / "m", tensors)
    found = blocks((tmp_path / "m.index").read_bytes())
    assert len(found) >= 3
    keys = [key for _, inside, _ in found for key in inside]
    assert keys == [b"", *sorted(name.encode() for name in names)]
    for i, (key, inside, restarts) in enumerate(found):
        assert restarts == -(-len(inside) // 16)
        assert inside[-1] <= key
        assert i + 1 == len(found) or key < found[i + 1][1][0]
    back = read(tmp_path)
    assert all(int(back[name]) == i for i, name in enumerate(sorted(names)))


def test_keys_between_blocks_are_short():
    """LevelDB's rule: cut behind the first byte that differs, raised by one where this stays below the next key."""
    keys = [b"a", b"b", b"b1", b"b3", b"ba", b"bazz", b"bb\xff\xff", b"bd", b"e\xff", b"f", b"f\xff\1", b"g", b"xyz"]
    found = blocks(write_table([(key, bytes(262_144)) for key in keys]))
    assert [inside for _, inside, _ in found] == [[key] for key in keys]
    between = [key for key, _, _ in found]
    assert between == [*(b"a", b"b", b"b2", b"b4", b"ba", b"bazz", b"bc", b"c", b"e\xff", b"f", b"f\xff\1", b"h", b"y")]
    assert blocks(write_table([(b"\xff\xff", b"")]))[0][0] == b"\xff\xff"
    with pytest.raises(ValueError, match="keys must rise"):
        write_table([(b"b", b""), (b"b", b"")])


@pytest.mark.parametrize("shards", [1, 3, 5])
def test_shards_are_about_equal(shards, tmp_path):
    tensors = {f"w/{i}": torch.zeros(100 + i) for i in range(20)}
    save_checkpoint(tmp_path / "m", tensors, shards)
    sizes = [len(content) for name, content in files(tmp_path).items() if ".data" in name]
    assert len(sizes) == shards
    assert sum(sizes) == sum(4 * t.numel() for t in tensors.values())
    assert max(sizes) - min(sizes) <= 2 * 4 * 120


def test_nothing_to_write_and_more_shards_than_variables(tmp_path):
    save_checkpoint(tmp_path / "none", {})
    assert open_checkpoint(tmp_path / "none").names() == []
    save_checkpoint(tmp_path / "few", {"a": torch.ones(1), "b": torch.zeros(0)}, shards=4)
    assert read(tmp_path / "few")["a"].tolist() == [1]


def test_an_old_checkpoint_is_replaced_only_when_asked(tmp_path):
    save_checkpoint(tmp_path / "m", {"a": torch.ones(9)}, shards=3)
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"exists; pass overwrite=True to replace it, or another prefix"):
        save_checkpoint(tmp_path / "m", {"a": torch.zeros(1)})
    assert files(tmp_path) == before
    (tmp_path / "m.data-1-of-3").write_bytes(b"another's")
    (tmp_path / "m2.data-00000-of-00003").write_bytes(b"another's")
    save_checkpoint(tmp_path / "m", {"b": torch.zeros(1)}, overwrite=True)
    left = {"m.data-00000-of-00001", "m.index", "m.data-1-of-3", "m2.data-00000-of-00003"}
    assert set(files(tmp_path)) == left
    assert read(tmp_path / "m")["b"].tolist() == [0]


def test_data_without_an_index_is_not_written_over(tmp_path):
    (tmp_path / "m.data-00000-of-00001").write_bytes(b"half a download")
    with pytest.raises(InputError, match=r"m\.data-00000-of-00001 exists"):
        save_checkpoint(tmp_path / "m", {})


def test_a_failure_while_writing_leaves_the_old_one(tmp_path):
    save_checkpoint(tmp_path / "m", {"a": torch.ones(9)})
    before = files(tmp_path)
    with pytest.raises(TypeError, match="'z': expected strings or bytes, got 5"):
        save_checkpoint(tmp_path / "m", {"a": torch.zeros(9), "z": ["x", 5, None]}, overwrite=True)
    assert files(tmp_path) == before


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_a_crash_while_renaming_never_leaves_a_mixture(moment, monkeypatch, tmp_path):
    save_checkpoint(tmp_path / "m", {"a": torch.ones(9)}, shards=2)
    replace, calls = os.replace, []

    def failing(source, target):
        if len(calls) == moment:
            raise OSError("the machine stopped")
        calls.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="stopped"):
        save_checkpoint(tmp_path / "m", {"a": torch.zeros(9)}, shards=2, overwrite=True)
    with pytest.raises(InputError, match=r"m.index is missing|no file there ends in .index"):
        open_checkpoint(tmp_path / "m")
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("m", {}, 0), ValueError, r"shards must be in \[1, 99999\], got 0"),
        (("gone/m", {}), InputError, "there is no folder .*gone; make it first"),
        (("m", {"": 1}), ValueError, "must not be empty or begin with a zero byte, got ''"),
        (("m", {"\0a": 1}), ValueError, "must not be empty"),
        (("m", {"\ud800": 1}), ValueError, "text that UTF-8 can write"),
        (("m", {3: 1}), TypeError, r"names of variables must be strings, got 3 \(int\)"),
        (("m", {"w": np.zeros(2, "M8[s]")}), TypeError, r"'w': numpy type datetime64\[s\] has no counterpart"),
        (("m", {"w": torch.zeros(2).to_sparse()}), TypeError, "'w': a tensor of torch.float32, torch.sparse_coo"),
        (("m", {"w": torch.zeros(2, device="meta")}), TypeError, "on meta has no counterpart in TensorFlow"),
        (("m", {"w": object()}), TypeError, "'w': expected strings or bytes, got <object"),
    ],
)
def test_messages(arguments, kind, message, tmp_path):
    prefix, *rest = arguments
    with pytest.raises(kind, match=message):
        save_checkpoint(tmp_path / prefix, *rest)
    assert files(tmp_path) == {}


def test_a_long_name_of_a_file_is_told_by_the_system(tmp_path):
    with pytest.raises(OSError, match="too long"):
        save_checkpoint(tmp_path / ("x" * 300), {})


def test_tensors_of_a_model_come_home(tmp_path):
    torch.manual_seed(0)
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    save_checkpoint(tmp_path / "m", model.state_dict())
    with open_checkpoint(tmp_path) as checkpoint:
        other.load_state_dict({name: checkpoint.tensor(name) for name in checkpoint}, assign=True)
    other.weight.detach().add_(0)  # its own memory, to be written to
    assert torch.equal(model(torch.ones(3)), other(torch.ones(3)))
