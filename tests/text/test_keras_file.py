"""Keras weight files: the real ones, the layouts of several versions, hostile ones; every refusal by its text."""

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from keras_models import values, weights, write, write_tf_format

from danlu.data.errors import InputError
from danlu.text import open_checkpoint, read_keras_weights, save_checkpoint
from danlu.text.keras_file import open_keras_weights

h5py = pytest.importorskip("h5py", reason="Keras weight files need h5py (danlu[keras])")
SMALL = [["dense", [["dense/kernel", values(0, (2, 3))], ["dense/bias", values(1, (3,))]]], ["add", []]]


def expected(layers):
    return {weight: torch.from_numpy(array) for _, arrays in layers for weight, array in arrays}


def same(found, wanted):
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_weights_and_layers_in_order(tmp_path):
    layers = weights("crf")
    path = write(tmp_path / "best_model.weights", layers)  # Keras 2.3 wrote HDF5 whatever the name
    same(read_keras_weights(path), expected(layers))
    with open_keras_weights(path) as file:
        assert list(file.layers) == [layer for layer, _ in layers]
        assert file.layers["conditional_random_field"] == ["conditional_random_field/trans"]
        assert file.shapes["dense_label/kernel"] == (8, 4)


def test_a_whole_model_is_read_too(tmp_path):
    same(read_keras_weights(write(tmp_path / "m.h5", SMALL, root="model_weights")), expected(SMALL))


def test_long_lists_of_names_come_in_pieces(tmp_path):
    path = write(tmp_path / "m.h5", SMALL)
    with h5py.File(path, "a") as file:
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = [b"dense"], [b"add"]
        del file["dense"].attrs["weight_names"]
        for number, name in enumerate(("dense/kernel:0", "dense/bias:0")):
            file["dense"].attrs[f"weight_names{number}"] = [name]  # text instead of bytes, as newer versions write
    same(read_keras_weights(path), expected(SMALL))


def test_weights_without_the_layer_in_their_name_get_it(tmp_path):
    path = write(
        tmp_path / "m.h5", [["rnn", [["cell/kernel", values(0, (2,))]]], ["model_1", [["rnn/b", values(1, (1,))]]]]
    )
    assert list(read_keras_weights(path)) == ["rnn/cell/kernel", "model_1/rnn/b"]


def test_types_are_kept_and_byte_order_is_ours(tmp_path):
    arrays = {
        "half": np.float16([1.5]), "double": np.float64([0.1]), "big": np.array([1, 2], ">f4"), "count": np.int64(7),
        "flag": np.array([True, False]),
    }  # fmt: skip
    found = read_keras_weights(write(tmp_path / "m.h5", [["a", [[f"a/{k}", v] for k, v in arrays.items()]]]))
    assert found["a/half"].dtype == torch.float16 and found["a/double"].item() == 0.1
    assert found["a/big"].tolist() == [1, 2] and found["a/big"].dtype == torch.float32
    assert found["a/count"].shape == () and found["a/count"].item() == 7
    assert found["a/flag"].tolist() == [True, False]


def test_tf_keras_checkpoint_reads_like_hdf5(tmp_path):
    prefix = write_tf_format(tmp_path)
    wanted = expected(weights("crf"))
    for path in (prefix, tmp_path / "best_model.weights.index"):
        found = read_keras_weights(path)
        assert set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
    path = write(tmp_path / "m.h5", weights("crf"))
    with open_keras_weights(prefix) as checkpoint, open_keras_weights(path) as file:
        for layer, keys in checkpoint.layers.items():
            assert keys == file.layers[layer]  # the order of the names is that of the layers' own weights


def field(number, content):
    return bytes([8 * number + 2, len(content)]) + content


def with_graph(prefix, full_names):
    """A checkpoint with TensorFlow's object graph, by hand: nodes (1) with attributes (2) of name (2) and key (3)."""
    keys = [f"layer_with_weights-{i}/.ATTRIBUTES/VARIABLE_VALUE" for i in range(len(full_names))]
    nodes = [
        field(1, field(2, field(2, n.encode()) + field(3, k.encode()))) for n, k in zip(full_names, keys, strict=True)
    ]
    arrays = {key: values(i, (2,)) for i, key in enumerate(keys)}
    save_checkpoint(prefix, {**arrays, "_CHECKPOINTABLE_OBJECT_GRAPH": b"".join(nodes)})
    return prefix


def test_sublayers_are_ordered_by_number(tmp_path):
    names = ["a/dense_10/kernel", "a/dense_2/bias", "a/dense_2/kernel", "a/dense/kernel", "a/gamma", "a/beta"]
    with open_keras_weights(with_graph(tmp_path / "m", names)) as file:
        assert file.layers["a"] == [names[i] for i in (5, 4, 3, 2, 1, 0)]
        assert torch.equal(file.read("a/gamma"), torch.from_numpy(values(4, (2,))))


def test_other_checkpoints_are_sent_on(tmp_path):
    save_checkpoint(tmp_path / "bert_model.ckpt", {"bert/embeddings/word_embeddings": np.zeros(2, "f")})
    with pytest.raises(
        InputError, match=r"a TensorFlow checkpoint, but not one of tf\.keras' save_weights; load_tf reads"
    ):
        read_keras_weights(tmp_path / "bert_model.ckpt")
    with pytest.raises(
        InputError, match=r"two weights of the name a/kernel; save them as model\.save_weights\('x\.h5'\)"
    ):
        read_keras_weights(with_graph(tmp_path / "m", ["a/kernel", "a/kernel"]))


def test_the_reference_file_equals_the_checkpoint_beside_it():
    if "DANLU_DATA" not in os.environ:
        pytest.skip("bert4keras' file needs DANLU_DATA, the folder with oracles/ in it")
    folder = Path(os.environ["DANLU_DATA"]) / "oracles" / "models" / "bert"
    found = read_keras_weights(folder / "keras_weights.h5")
    names = {
        "Embedding-Token/embeddings": "bert/embeddings/word_embeddings",
        "Embedding-Norm/beta": "bert/embeddings/LayerNorm/beta",
        "Transformer-1-MultiHeadSelfAttention/dense_1/kernel": "bert/encoder/layer_1/attention/self/key/kernel",
        "Transformer-0-FeedForward/dense_1/bias": "bert/encoder/layer_0/output/dense/bias",
        "MLM-Bias/beta": "cls/predictions/output_bias",
    }
    assert len(found) == 42
    with open_checkpoint(folder) as checkpoint:
        for theirs, original in names.items():
            assert torch.equal(found[theirs], checkpoint.tensor(original))


def changed(path, edit):
    write(path, SMALL)
    with h5py.File(path, "a") as file:
        edit(file)
    return path


def external_link(file):
    del file["dense/dense/bias:0"]
    file["dense/dense/bias:0"] = h5py.ExternalLink("other.h5", "/secret")


def soft_link(file):
    del file["dense/dense"]
    file["dense/dense"] = h5py.SoftLink("/add")


def external_values(file):
    del file["dense/dense/bias:0"]
    file["dense"].create_dataset("dense/bias:0", (3,), "f", external=[("passwords", 0, 12)])


def virtual(file):
    del file["dense/dense/bias:0"]
    layout = h5py.VirtualLayout((3,), "f")
    layout[:] = h5py.VirtualSource("other.h5", "secret", (3,))
    file["dense"].create_virtual_dataset("dense/bias:0", layout)


def huge(file):
    del file["dense/dense/bias:0"]
    file["dense"].create_dataset("dense/bias:0", (2**40,), "f", chunks=(1024,))


def text(file):
    del file["dense/dense/bias:0"]
    file["dense/dense/bias:0"] = "abc"


def listed_twice(file):
    file["dense"].attrs["weight_names"] = [b"dense/bias:0"] * 2


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (external_link, r"dense/dense/bias:0 is a link, which Keras never writes; it is not followed"),
        (soft_link, r"is a link, which Keras never writes"),
        (external_values, r"dense/bias lies in another file, which Keras never writes; it is not read"),
        (virtual, r"dense/bias lies in another file"),
        (huge, r"dense/bias \(1099511627776,\) and those before it announce more bytes than the file has"),
        (text, r"dense/bias holds object, not numbers"),
        (listed_twice, r"has the weight dense/bias twice"),
        (lambda f: f.__delitem__("dense/dense/bias:0"), r"has no dense/dense/bias:0, which it lists"),
        (lambda f: f.__delitem__("add"), r"has no add, which it lists"),
        (lambda f: f["dense"].attrs.__setitem__("weight_names", [b"dense"]), r"dense/dense is no array"),
        (lambda f: f["dense"].attrs.__setitem__("weight_names", [b"dense/bias:0/x"]), r"leads through an array"),
        (lambda f: f["dense"].attrs.__setitem__("weight_names", [b""]), r"an empty name among its weight_names"),
        (lambda f: f["dense"].attrs.__setitem__("weight_names", [b"\xff"]), r"cannot be read: .*utf-8"),
        (lambda f: f.attrs.__delitem__("layer_names"), r"no attribute layer_names, .*Keras 3 has another layout"),
    ],
)  # fmt: skip
def test_hostile_and_damaged_files_are_refused(tmp_path, edit, message):
    with pytest.raises(InputError, match=message):
        read_keras_weights(changed(tmp_path / "m.h5", edit))


def test_other_files_are_told(tmp_path):
    (tmp_path / "m.weights").write_bytes(b"PK\x03\x04 something else")
    for path, message in (
        (tmp_path / "m.weights", r"m\.weights is no HDF5 file; Keras weights are, or they are a checkpoint"),
        (tmp_path / "absent.h5", r"absent\.h5 does not exist; give the file that model\.save_weights wrote"),
        (tmp_path, r"is a folder; give the file"),
    ):
        with pytest.raises(InputError, match=message):
            read_keras_weights(path)
    path = write(tmp_path / "short.h5", SMALL)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(InputError, match=r"short\.h5 cannot be opened: .*; write it again with model\.save_weights"):
        read_keras_weights(path)


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "m.h5", SMALL)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'reading m\.h5 needs h5py.*pip install "danlu\[keras\]"'):
        read_keras_weights(path)


def test_changed_bytes_give_weights_or_a_message(tmp_path):
    data = write(tmp_path / "m.h5", SMALL).read_bytes()
    generator = random.Random(0)
    for _ in range(150):
        broken = bytearray(data)
        for _ in range(generator.choice([1, 1, 4, 30])):
            broken[generator.randrange(len(broken))] = generator.choice([0, 1, 255, generator.randrange(256)])
        (tmp_path / "broken.h5").write_bytes(
            broken[: generator.choice([len(broken)] * 3 + [generator.randrange(len(broken))])]
        )
        try:
            found = read_keras_weights(tmp_path / "broken.h5")
        except InputError:
            continue
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
