"""`danlu inspect` and `danlu convert`: checkpoints there and back to the bit, ONNX, and every kind of bad input."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from danlu.cli import main
from danlu.text import load_model, load_vocab, open_checkpoint, save_hf, save_tf, save_vocab
from danlu.text.config import TransformerConfig
from danlu.text.transformer import build_transformer

DATA = Path(os.environ.get("DANLU_DATA", "/nowhere")) / "oracles"
MODELS = DATA / "models"
needs_data = pytest.mark.skipif(not MODELS.is_dir(), reason="DANLU_DATA is not set: no oracles")
CASES = [
    "albert", "bert", "bert_fp16", "bert_nosegment", "electra", "gau_alpha", "gpt", "gpt2", "gpt2_ml", "gpt_nosegment",
    "mt5_1_1", "nezha", "roberta", "roformer", "roformer_v2", "t5_1_0", "t5_1_1",
]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENS = [*SPECIAL, "的", "##的", "a", "##b", "。", "1。", "中"]  # ##的 and 1。 are redundant


def danlu(*arguments):
    return main([str(argument) for argument in arguments])


def family(case):
    return ["--family", case] if case in ("nezha", "roformer") else []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder: a BERT with its vocabulary as a TensorFlow checkpoint."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = TransformerConfig("bert", len(TOKENS), 8, 2, 2, 12, max_positions=9)
    Path("bert").mkdir()
    save_tf(build_transformer(config, ["pooler", "mlm"]), "bert/bert_model.ckpt")
    save_vocab("bert/vocab.txt", {token: i for i, token in enumerate(TOKENS)})
    return tmp_path


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def one_line(capsys, code, message):
    """Exit code 2 and exactly one `danlu:` line, the last of stderr, that holds `message`."""
    told = capsys.readouterr().err
    lines = [line for line in told.splitlines() if line.startswith("danlu: ")]
    assert code == 2, told
    assert len(lines) == 1 and "Traceback" not in told, told
    assert message in lines[0], lines[0]
    assert told.rstrip().splitlines()[-1] == lines[0]


@needs_data
@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_equal_to_the_bit(case, tmp_path, capsys):
    source, stored = MODELS / case, ["--dtype", "fp16"] if case == "bert_fp16" else []
    assert danlu("convert", source, tmp_path / "hf", "--to", "hf", *family(case), *stored) == 0
    assert danlu("convert", tmp_path / "hf", tmp_path / "tf", "--to", "tf", *stored) == 0
    written = [line.removeprefix("wrote ") for line in capsys.readouterr().out.splitlines()]
    assert all(os.path.isfile(path) for path in written) and len(written) == 5
    with open_checkpoint(source) as first, open_checkpoint(tmp_path / "tf") as second:
        kept = [
            name for name in first.names(model_only=True) if not (case == "electra" and name.startswith("generator"))
        ]
        assert second.names() == kept
        for name in kept:
            assert first.dtype(name) == second.dtype(name)
            assert np.array_equal(first[name], second[name]), name
    assert sorted(os.listdir(tmp_path)) == ["hf", "tf"]  # nothing half written beside


@needs_data
def test_a_keras_file_becomes_the_same_model(tmp_path):
    pytest.importorskip("h5py")
    place = MODELS / "bert" / "keras_weights.h5"
    assert danlu("convert", place, tmp_path / "hf", "--to", "hf", "--family", "bert") == 0
    keras, tf = load_model(tmp_path / "hf"), load_model(MODELS / "bert")
    theirs = dict(tf.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in keras.named_parameters())


def test_what_is_carried_along(folder, capsys):
    assert danlu("convert", "bert", "hf", "--to", "hf", "--layers", "1", "--heads", "mlm") == 0
    told = capsys.readouterr()
    assert sorted(os.listdir("hf")) == ["config.json", "model.safetensors", "vocab.txt"]
    assert told.out.splitlines()[-1] == f"wrote {folder / 'hf' / 'vocab.txt'}"
    assert "26 matched, 18 unused" in told.err and "not read: bert/encoder/layer_1/" in told.err
    assert (folder / "hf" / "vocab.txt").read_bytes() == (folder / "bert" / "vocab.txt").read_bytes()
    model = load_model("hf")
    assert model.config.num_layers == 1 and model.heads == ("mlm",)
    Path("sp").mkdir()
    shutil.copytree("hf", "sp", dirs_exist_ok=True)
    for name in ("spiece.model", "tokenizer.json"):
        (folder / "sp" / name).write_text(name)
    assert danlu("convert", "sp", "tf", "--to", "tf", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    names = [os.path.basename(path) for path in record["written"]]
    assert {"spiece.model", "tokenizer.json", "vocab.txt", "bert_config.json"} < set(names)
    assert (folder / "tf" / "spiece.model").read_text() == "spiece.model"


def test_a_simplified_vocabulary(folder):
    model = load_model("bert")
    Path("bert/tokenizer.json").write_text("of the whole vocabulary")
    assert danlu("convert", "bert", "small", "--to", "hf", "--simplify-vocab") == 0
    assert sorted(os.listdir("small")) == ["config.json", "model.safetensors", "vocab.txt"]
    vocab, small = load_vocab("small/vocab.txt"), load_model("small")
    assert list(vocab) == [token for token in TOKENS if token not in ("##的", "1。")]
    for token, new in vocab.items():
        old = TOKENS.index(token)
        assert torch.equal(small.embeddings.token.weight[new], model.embeddings.token.weight[old])
        assert torch.equal(small.mlm.bias[new], model.mlm.bias[old])


@pytest.mark.parametrize(("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_types(folder, dtype, kind):
    assert danlu("convert", "bert", "hf", "--to", "hf", "--dtype", dtype) == 0
    assert danlu("convert", "bert", "tf", "--to", "tf", "--dtype", dtype) == 0
    with open_checkpoint("tf") as checkpoint:
        assert {checkpoint.dtype(name) for name in checkpoint} == {str(kind).removeprefix("torch.")}
    exact = load_model("bert").embeddings.token.weight.to(kind).float()
    for place in ("hf", "tf"):
        assert torch.equal(load_model(place).embeddings.token.weight, exact)


def test_onnx_runtime_opens_what_was_converted(folder, capfd):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert danlu("convert", "bert", "out", "--to", "onnx", "--heads", "mlm") == 0
    told = capfd.readouterr()
    assert all(line.startswith(("read ", "not read: ", "note: ")) for line in told.err.splitlines()), told.err
    assert sorted(os.listdir("out")) == ["model.onnx", "vocab.txt"]
    model = load_model("bert", heads=("mlm",))
    ids = torch.tensor([[2, 5, 7, 3], [2, 11, 3, 0]])
    with torch.no_grad():
        ours = model(ids).logits
    session = onnxruntime.InferenceSession("out/model.onnx")
    feed = {"ids": ids.numpy(), "segment_ids": np.zeros((2, 4), np.int64), "mask": (ids != 0).numpy()}
    theirs = torch.from_numpy(session.run(["logits"], feed)[0])
    torch.testing.assert_close(theirs[ids != 0], ours[ids != 0], atol=1e-5, rtol=1e-5)


def test_overwriting_keeps_what_is_not_of_the_model(folder, capsys):
    assert danlu("convert", "bert", "out", "--to", "hf") == 0
    (folder / "out" / "README.md").write_text("mine")
    (folder / "out" / "notes").mkdir()
    (folder / "out" / "notes" / "a").write_text("mine, too")
    before = tree(folder)
    capsys.readouterr()
    one_line(capsys, danlu("convert", "bert", "out", "--to", "tf"), "out exists; --overwrite")
    assert tree(folder) == before
    assert danlu("convert", "bert", "out", "--to", "tf", "--overwrite") == 0
    assert sorted(os.listdir("out")) == [
        "README.md", "bert_config.json", "bert_model.ckpt.data-00000-of-00001", "bert_model.ckpt.index", "notes",
        "vocab.txt",
    ]  # fmt: skip
    assert (folder / "out" / "notes" / "a").read_text() == "mine, too"
    assert sorted(os.listdir(folder)) == ["bert", "out"]


def test_inspect_a_checkpoint(folder, capsys):
    assert danlu("inspect", "bert") == 0
    text = capsys.readouterr().out
    for line in (
        "kind        TensorFlow checkpoint",
        "layout      bert",
        "family      bert",
        "heads       pooler, mlm",
        "vocabulary  vocab.txt: 12 tokens, as many as the table has rows",
        "weights     44 matched",
        "... 36 more, --variables shows them",
    ):
        assert line in text
    assert "vocab_size 12, hidden_size 8, num_layers 2, num_heads 2" in text
    assert danlu("inspect", "bert/bert_model.ckpt.index", "--variables") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("matched") for line in lines) == 44
    assert danlu("inspect", "bert", "--json", "--variables") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["family"] == "bert" and record["heads"] == ["pooler", "mlm"] and record["problems"] == []
    assert record["vocabulary"] == {"file": "vocab.txt", "tokens": 12, "rows": 12}
    assert len(record["variables"]) == 44 and record["variables"][0]["status"] == "matched"


@needs_data
@pytest.mark.parametrize("case", CASES)
def test_inspect_agrees_with_loading(case, capsys):
    assert danlu("inspect", MODELS / case, "--json", *family(case)) == 0
    record = json.loads(capsys.readouterr().out)
    model = load_model(MODELS / case, **({"family": case} if family(case) else {}))
    assert record["family"] == model.config.family and tuple(record["heads"]) in (model.heads, model.heads[:-1])
    assert record["counts"] == model.load_report.counts()
    for name, value in record["sizes"].items():
        ours = getattr(model.config, name)
        assert (model.config.embedding_dim if ours is None else ours) == value, name


@needs_data
def test_inspect_tells_what_is_wrong(capsys, tmp_path):
    assert danlu("inspect", MODELS / "nezha") == 0
    text = capsys.readouterr().out
    assert "nezha or roformer, which must be said" in text
    assert danlu("inspect", MODELS / "roformer_v2", "--family", "roformer", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["counts"]["missing"] and "weights of the model are not in" in record["problems"][0]
    assert any("family='roformer_v2'" in note for note in record["notes"])
    pytest.importorskip("h5py")
    place = tmp_path / "w"
    place.write_bytes((MODELS / "bert" / "keras_weights.h5").read_bytes())
    assert danlu("inspect", place) == 0
    text = capsys.readouterr().out
    assert "Keras weights" in text and "--family" in text and "Embedding-Token" in text


def truncated(folder):
    place = folder / "bert" / "bert_model.ckpt.data-00000-of-00001"
    place.write_bytes(place.read_bytes()[:-40])


def truncated_shard(folder):
    save_hf(load_model("bert"), "hf")
    place = folder / "hf" / "model.safetensors"
    place.write_bytes(place.read_bytes()[:-40])


def longer_vocab(folder):
    (folder / "bert" / "vocab.txt").write_text("\n".join([*TOKENS, "新"]) + "\n", encoding="utf-8")


def shorter_vocab(folder):
    (folder / "bert" / "vocab.txt").write_text("\n".join(TOKENS[:-1]) + "\n", encoding="utf-8")


def nothing(folder):
    pass


C = ["convert", "bert", "out", "--to", "hf"]
BAD = {  # kind: (what happens before, arguments, words of the message)
    "missing path": (nothing, ["convert", "brt", "out", "--to", "hf"], "close to it are bert"),
    "missing path, inspect": (nothing, ["inspect", "brt"], "close to it are bert"),
    "folder without model": (lambda f: (f / "a").mkdir(), ["convert", "a", "out", "--to", "tf"], "a holds no model"),
    "no format": (nothing, ["convert", "bert", "out"], "--to"),
    "unknown format": (nothing, ["convert", "bert", "out", "--to", "gguf"], "gguf"),
    "truncated values": (truncated, C, "bert_model.ckpt.data-00000-of-00001"),
    "truncated safetensors": (truncated_shard, ["convert", "hf", "out", "--to", "tf"], "model.safetensors is damaged"),
    "shard missing": (
        lambda f: (f / "bert" / "bert_model.ckpt.data-00000-of-00001").unlink(), C, "data-00000-of-00001 is missing",
    ),
    "wrong family": (nothing, [*C, "--family", "roformer"], "pass --family bert"),
    "unknown family": (nothing, [*C, "--family", "brt"], "brt"),
    "unknown family, inspect": (nothing, ["inspect", "bert", "--family", "brt"], "brt"),
    "unknown head": (nothing, [*C, "--heads", "mml"], "no head 'mml'"),
    "head that is not there": (nothing, [*C, "--heads", "nsp"], "the file has the heads pooler, mlm"),
    "too many layers": (nothing, [*C, "--layers", "3"], "the file has 2 layers"),
    "no layers": (nothing, [*C, "--layers", "0"], "--layers"),
    "another size": (nothing, [*C, "--set", "hidden_size=16"], "hidden_size is 16"),
    "unknown setting": (nothing, [*C, "--set", "hiden_size=16"], "did you mean hidden_size"),
    "setting without value": (nothing, [*C, "--set", "hidden_size"], "--set takes name=value"),
    "setting of another type": (nothing, [*C, "--set", "hidden_size=many"], "is a whole number, got 'many'"),
    "setting twice": (nothing, [*C, "--layers", "1", "--set", "num_layers=1"], "num_layers is given twice"),
    "vocabulary too long": (longer_vocab, C, "vocab.txt has 13 tokens, the model's table 12 rows"),
    "vocabulary too long, tf": (longer_vocab, ["convert", "bert", "out", "--to", "tf"], "has 13 tokens"),
    "simplified, too short": (shorter_vocab, [*C, "--simplify-vocab"], "has 11 tokens, the model's table 12 rows"),
    "simplified, too long": (longer_vocab, [*C, "--simplify-vocab"], "the vocabulary has ids 0 to 11"),
    "simplified without vocabulary": (
        lambda f: (f / "bert" / "vocab.txt").unlink(), [*C, "--simplify-vocab"], "no vocab.txt beside",
    ),
    "no such vocabulary": (nothing, [*C, "--vocab", "v.txt"], "v.txt is no file"),
    "target exists": (lambda f: (f / "out").mkdir(), C, "out exists; --overwrite"),
    "target is a file": (lambda f: (f / "out").write_text("x"), [*C, "--overwrite"], "out is a file"),
    "target of others": (
        lambda f: [(f / "out").mkdir(), (f / "out" / "thesis").write_text("x")], [*C, "--overwrite"],
        "holds other files and no model",
    ),
    "target inside": (nothing, ["convert", "bert", "bert/out", "--to", "hf"], "inside the model"),
    "target is the source": (nothing, ["convert", "bert", "bert", "--to", "hf", "--overwrite"], "the model itself"),
    "target around": (nothing, ["convert", "bert", ".", "--to", "hf", "--overwrite"], "around the model"),
    "no parent": (nothing, ["convert", "bert", "a/b/out", "--to", "hf"], "is no folder; make it first"),
    "half numbers for onnx": (nothing, ["convert", "bert", "out", "--to", "onnx", "--dtype", "bf16"], "takes fp32"),
    "one file and a vocabulary": (
        nothing, ["convert", "bert", "o.onnx", "--to", "onnx", "--simplify-vocab"], "o.onnx means that file alone",
    ),
    "onnx file exists": (
        lambda f: (f / "o.onnx").write_text("x"), ["convert", "bert", "o.onnx", "--to", "onnx"], "o.onnx exists",
    ),
    "compat of a HuggingFace folder": (
        lambda f: save_hf(load_model("bert"), "hf"), ["convert", "hf", "out", "--to", "tf", "--compat", "bert4keras"],
        "HuggingFace folder, which takes no --compat",
    ),
    "system folder": (nothing, ["convert", "bert", "/proc/danlu", "--to", "hf"], "/proc"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(kind, folder, capsys):
    before, arguments, message = BAD[kind]
    before(folder)
    files = tree(folder)
    capsys.readouterr()
    one_line(capsys, danlu(*arguments), message)
    assert tree(folder) == files
    assert not [path for path in folder.rglob("*") if "partial" in path.name]


def test_a_read_only_folder(folder, capsys):
    Path("locked").mkdir(mode=0o555)
    if os.access("locked", os.W_OK):
        pytest.skip("this user may write everywhere")
    one_line(capsys, danlu("convert", "bert", "locked/out", "--to", "hf"), "not allowed")


def test_a_failure_while_writing_leaves_the_old_model(folder, capsys, monkeypatch):
    assert danlu("convert", "bert", "out", "--to", "hf") == 0
    before, real, calls = tree(folder), os.replace, []

    def failing(*paths):
        calls.append(paths)
        if len(calls) == 3:  # save_hf's own, the old folder aside, the new one in its place
            raise OSError(28, "No space left on device")
        return real(*paths)

    monkeypatch.setattr(os, "replace", failing)
    capsys.readouterr()
    assert danlu("convert", "bert", "out", "--to", "hf", "--overwrite", "--layers", "1") == 1
    assert "no room to write" in capsys.readouterr().err
    assert tree(folder) == before and sorted(os.listdir(folder)) == ["bert", "out"]
