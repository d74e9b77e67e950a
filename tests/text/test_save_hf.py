"""Writing HuggingFace folders: all or nothing, nothing of the user's lost, vocabularies that fit, messages."""

import json
import os
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from danlu.data.errors import InputError
from danlu.text.config import TransformerConfig
from danlu.text.inference import for_inference
from danlu.text.load_hf import load_hf
from danlu.text.save_hf import save_hf
from danlu.text.transformer import build_transformer

SIZES = {
    "vocab_size": 6,
    "hidden_size": 8,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_size": 12,
    "max_positions": 4,
}
VOCAB = {"[PAD]": 0, "a": 1, "b": 2}


def model(family="bert", heads=(), **changes):
    return build_transformer(TransformerConfig.of(family, **{**SIZES, **changes}), heads)


def test_joined_matrices_lie_in_the_order_query_key_value(tmp_path):
    """GPT-2's c_attn is (in, 3 out): eq. of Conv1D is x W + b, by hand on one input."""
    net = model("gpt2")
    save_hf(net, tmp_path / "m")
    held = load_file(tmp_path / "m" / "model.safetensors")
    x = torch.randn(8, generator=torch.Generator().manual_seed(0))
    joined = x @ held["transformer.h.0.attn.c_attn.weight"] + held["transformer.h.0.attn.c_attn.bias"]
    attention = net.layers[0].attention
    torch.testing.assert_close(joined, torch.cat([attention.query(x), attention.key(x), attention.value(x)]))


def test_sines_of_roformer(tmp_path):
    """sin(m 10000^(-2i/k)) for all i, then the cosines; k = 4, m = 1: angles 1 and 0.01."""
    save_hf(model("roformer"), tmp_path / "m")
    table = load_file(tmp_path / "m" / "model.safetensors")["encoder.embed_positions.weight"]
    assert table.shape == (4, 4)
    expected = torch.tensor([0.8414709848, 0.0099998333, 0.5403023059, 0.9999500004])
    torch.testing.assert_close(table[1], expected)


def test_a_bert_without_segments_gets_one_that_adds_nothing(tmp_path):
    net = model(segment_vocab_size=0)
    save_hf(net, tmp_path / "m")
    assert torch.equal(
        load_file(tmp_path / "m" / "model.safetensors")["embeddings.token_type_embeddings.weight"], torch.zeros(1, 8)
    )
    assert json.loads((tmp_path / "m" / "config.json").read_text())["type_vocab_size"] == 1
    again = load_hf(tmp_path / "m")
    assert again.embeddings.segment is None and again.config == net.config
    save_hf(model("electra", segment_vocab_size=0, embedding_size=4), tmp_path / "narrow")
    held = load_file(tmp_path / "narrow" / "model.safetensors")
    assert [t.shape for name, t in held.items() if "token_type" in name] == [(1, 4)]


def test_another_type_is_stored_and_described(tmp_path):
    net = model("roformer")
    save_hf(net, tmp_path / "m", dtype=torch.bfloat16)
    held = load_file(tmp_path / "m" / "model.safetensors")
    kinds = {name: tensor.dtype for name, tensor in held.items()}
    sines = [name for name in kinds if "embed_positions" in name]
    assert [kinds.pop(name) for name in sines] == [torch.float32]  # angles are not rounded
    assert set(kinds.values()) == {torch.bfloat16}
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "bfloat16"
    assert torch.equal(load_hf(tmp_path / "m").embeddings.token.weight, net.embeddings.token.weight.bfloat16().float())


def test_who_may_read_the_configuration_may_read_the_weights(tmp_path):
    save_hf(model(), tmp_path / "m")
    assert len({(tmp_path / "m" / name).stat().st_mode for name in ("config.json", "model.safetensors")}) == 1


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [("I/O error: full (os error 28)", OSError, "No space left"), ("header too large", SafetensorError, "header too")],
)
def test_what_the_system_refuses_is_an_error_of_the_system(tmp_path, monkeypatch, told, error, message):
    def failing(*args, **kwargs):
        raise SafetensorError(told)

    monkeypatch.setattr(sys.modules["danlu.text.save_hf"], "save_file", failing)  # the package holds the function
    with pytest.raises(error, match=message):
        save_hf(model(), tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_overwriting(tmp_path):
    folder = tmp_path / "m"
    save_hf(model(), folder, vocab=VOCAB)
    (folder / "README.md").write_text("mine")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine, too")
    (folder / "pytorch_model.bin").write_bytes(b"of the old model")
    for gone in ("model.safetensors.index.json", "model-00001-of-00002.safetensors", "tf_model.h5"):
        (folder / gone).write_text("{}")
    (folder / "model.safetensors.md").write_text("mine")
    (folder / "link").symlink_to("notes")
    (folder / "lost").symlink_to("nowhere")
    (folder / "notes" / "b.txt").symlink_to("a.txt")
    with pytest.raises(InputError, match=r"m exists; overwrite=True replaces its model"):
        save_hf(model(), folder)
    second = model("roformer")
    save_hf(second, folder, overwrite=True)
    assert load_hf(folder).config.family == "roformer"
    assert sorted(os.listdir(folder)) == [
        "README.md", "config.json", "link", "lost", "model.safetensors", "model.safetensors.md", "notes", "vocab.txt"
    ]  # fmt: skip
    assert (folder / "notes" / "a.txt").read_text() == "mine, too"
    assert all((folder / name).is_symlink() for name in ("link", "lost", "notes/b.txt"))
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").mkdir()
    with pytest.raises(InputError, match=r"vocab.txt is a folder, where a file of this name is to be written; rename"):
        save_hf(second, folder, vocab=VOCAB, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    with pytest.raises(InputError, match=r"other holds no config.json, so it is no model folder"):
        save_hf(second, tmp_path / "other", overwrite=True)
    with pytest.raises(InputError, match=r"no is no folder; make it first"):
        save_hf(second, tmp_path / "no" / "m")
    assert sorted(os.listdir(tmp_path)) == ["m", "other"]


@pytest.mark.parametrize("step", ["json.dumps", "os.fsync", "os.replace"])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, step):
    """The disk fills up, or the last rename fails: the old folder stays whole, nothing else is left."""
    folder = tmp_path / "m"
    save_hf(model(), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    module, name = {"json": json, "os": os}[step.partition(".")[0]], step.partition(".")[2]
    real, calls = getattr(module, name), []

    def failing(*args, **kwargs):
        calls.append(args)
        if step != "os.replace" or len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, failing)
    with pytest.raises(OSError, match="No space left"):
        save_hf(model("roformer"), folder, overwrite=True)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["m"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_vocabularies(tmp_path):
    save_hf(model(), tmp_path / "a", vocab=VOCAB)
    assert (tmp_path / "a" / "vocab.txt").read_text() == "[PAD]\na\nb\n"
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    save_hf(model(), tmp_path / "b", vocab=tmp_path / "a")
    assert sorted(os.listdir(tmp_path / "b")) == ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]
    save_hf(model(), tmp_path / "c", vocab=str(tmp_path / "a" / "vocab.txt"))
    assert (tmp_path / "c" / "vocab.txt").read_bytes() == (tmp_path / "a" / "vocab.txt").read_bytes()
    with pytest.raises(ValueError, match=r"the vocabulary has ids up to 6, the token table 6 rows \(0 to 5\)"):
        save_hf(model(), tmp_path / "d", vocab={**VOCAB, "c": 6})
    (tmp_path / "vocab.txt").write_text("".join(f"{i}\n" for i in range(7)))
    with pytest.raises(ValueError, match=r"vocab.txt has ids up to 6, the token table 6 rows"):
        save_hf(model(), tmp_path / "d", vocab=tmp_path / "vocab.txt")
    (tmp_path / "other.txt").write_text("a\n")
    for wrong in ("other.txt", "nothing", "."):
        (tmp_path / "vocab.txt").unlink(missing_ok=True)
        with pytest.raises(InputError, match=r"is none of the tokenizer files vocab.txt, .*, nor a folder with one"):
            save_hf(model(), tmp_path / "d", vocab=tmp_path / wrong)
    assert not (tmp_path / "d").exists()


def test_a_parameter_without_a_place(tmp_path):
    net = model()
    net.classifier = torch.nn.Linear(8, 2)
    with pytest.raises(
        ValueError, match=r"2 parameters have no place .* of bert, classifier.weight first; save the model"
    ):
        save_hf(net, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_copy_for_inference_is_refused(tmp_path):
    """Its matrices are packed away; the folder that is there stays as it was."""
    net = model(heads=["mlm"])
    save_hf(net, tmp_path / "m")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    for target, overwrite in (("new", False), ("m", True)):
        with pytest.raises(ValueError, match="save_hf takes the model itself, not the one that for_inference returned"):
            save_hf(for_inference(net), tmp_path / target, overwrite=overwrite)
    assert os.listdir(tmp_path) == ["m"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before


def test_a_model_that_lost_parameters_is_refused(tmp_path):
    net = model()
    net.layers[0].attention.key = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"2 of the parameters .* not in this one, layers.0.attention.key.w"):
        save_hf(net, tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_angles_of_a_rounded_roformer_are_exact(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = TransformerConfig.of(
        "roformer", vocab_size=20, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_positions=64
    )
    save_hf(build_transformer(config, ["mlm"]), tmp_path / "m", dtype=torch.bfloat16)
    ids = torch.randint(1, 20, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = load_hf(tmp_path / "m")(ids).logits
        theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()(ids)
    torch.testing.assert_close(ours, theirs.logits, atol=1e-5, rtol=1e-5)
