"""One call opens every kind of model; what is none is named for what it is, and no option is swallowed."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import danlu
from danlu.data.errors import InputError
from danlu.text import load_model, model_kind, save_hf, save_tf
from danlu.text.config import TransformerConfig
from danlu.text.transformer import build_transformer

DATA = Path(os.environ.get("DANLU_DATA", "/nowhere")) / "oracles" / "models"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="DANLU_DATA is not set: no oracles")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_transformer(TransformerConfig("bert", 9, 8, 2, 2, 12, max_positions=7), ["mlm"]).eval()


def same(first, second):
    assert first.config == second.config and first.heads == second.heads
    theirs = dict(second.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in first.named_parameters())


def test_every_way_to_name_a_model(model, tmp_path):
    save_hf(model, tmp_path / "hf")
    (tmp_path / "tf").mkdir()
    save_tf(model, tmp_path / "tf" / "bert_model.ckpt")
    assert model_kind(tmp_path / "hf") == "hf"
    same(load_model(tmp_path / "hf"), model)
    files = ["", "/bert_model.ckpt", "/bert_model.ckpt.index", "/bert_model.ckpt.data-00000-of-00001"]
    for name in files:
        assert model_kind(f"{tmp_path}/tf{name}") == "tf"
        same(danlu.load_model(f"{tmp_path}/tf{name}"), model)


@needs_data
def test_a_keras_file_is_told_by_its_bytes(tmp_path):
    pytest.importorskip("h5py")
    source = DATA / "bert"
    place = tmp_path / "best_model.weights"  # a name without .h5, as many have
    place.write_bytes((source / "keras_weights.h5").read_bytes())
    assert model_kind(place) == "keras"
    with pytest.raises(InputError, match="does not say its family; pass family="):
        load_model(place)
    with pytest.raises(InputError, match="no configuration lies beside it; pass config="):
        load_model(place, family="bert")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    keras, tf = load_model(place, family="bert"), load_model(source, compat="bert4keras", heads=("mlm",))
    theirs = dict(tf.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in keras.named_parameters())
    with pytest.raises(InputError, match=r"holds best_model.weights, a file of Keras weights; give that file"):
        load_model(tmp_path)


def test_options_reach_their_reader(model, tmp_path):
    save_hf(model, tmp_path / "m")
    opened = load_model(tmp_path / "m", num_layers=1, dtype=torch.bfloat16, heads=(), keep_tokens=[0, 4])
    assert opened.config.num_layers == 1 and opened.config.vocab_size == 2
    assert opened.embeddings.token.weight.dtype == torch.bfloat16
    torch.testing.assert_close(
        opened.embeddings.token.weight.float(), model.embeddings.token.weight[[0, 4]], atol=1e-2, rtol=0
    )
    with pytest.raises(
        InputError, match=r"HuggingFace folder, which takes no option 'compat'; it is one of a TensorFlow"
    ):
        load_model(tmp_path / "m", compat="bert4keras")
    with pytest.raises(InputError, match=r"load_model has no option 'num_layer'; did you mean num_layers"):
        load_model(tmp_path / "m", num_layer=1)


def zipped(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.pkl", b"")


STRANGE = {  # what lies there: (how it is made, below which name, words of the message)
    "nothing": (lambda p: None, "bert", "holds no such file, folder or checkpoint"),
    "empty folder": (lambda p: (p / "a").mkdir(), "a", "it is empty; wanted are config.json"),
    "notes": (lambda p: (p / "a.txt").write_text("x"), "a.txt", "a.txt is not a TensorFlow checkpoint"),
    "gguf": (lambda p: (p / "a").write_bytes(b"GGUF\3\0\0\0"), "a", "GGUF file of llama.cpp"),
    "gguf in a folder": (lambda p: (p / "m.gguf").write_bytes(b"GGUF\3\0\0\0"), "", "m.gguf is a GGUF file"),
    "torch.save": (lambda p: zipped(p / "a.pt"), "a.pt", "zip archive such as torch.save"),
    "pickle": (lambda p: (p / "a.bin").write_bytes(b"\x80\x02}q\0."), "a.bin", "a pickle, which is not opened"),
    "saved model": (lambda p: (p / "saved_model.pb").write_bytes(b""), "", "is a TensorFlow SavedModel"),
    "adapter": (lambda p: (p / "adapter_config.json").write_text("{}"), "", "an adapter (LoRA) without its model"),
    "weights alone": (lambda p: (p / "model.safetensors").write_bytes(b""), "", "has model.safetensors and no config"),
    "config alone": (lambda p: (p / "config.json").write_text("{}"), "", "config.json without weights"),
    "one file of a folder": (lambda p: (p / "config.json").write_text("{}"), "config.json", "give the folder"),
    "onnx": (lambda p: (p / "model.onnx").write_bytes(b""), "", "holds an ONNX file, which is only written"),
    "no folder": (lambda p: None, "a/b/c", "there is no folder"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_what_is_no_model_is_named(what, tmp_path):
    make, name, message = STRANGE[what]
    make(tmp_path)
    with pytest.raises(InputError) as told:
        load_model(tmp_path / name)
    assert message in str(told.value) and "\n" not in str(told.value)


def test_a_typing_error_gets_the_nearest_names(tmp_path):
    (tmp_path / "bert_model.ckpt.index").write_bytes(b"")
    with pytest.raises(InputError, match=r"close to it are bert_model\.ckpt"):
        load_model(tmp_path / "bert_modl.ckpt")


@needs_data
def test_the_old_format_says_so(tmp_path):
    old = DATA.parent / "checkpoints" / "legacy_v1"
    with pytest.raises(InputError, match="old V1 format"):
        load_model(old)


def test_importing_danlu_stays_free():
    code = "import danlu, sys; assert 'load_model' in dir(danlu); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
