"""What `danlu convert` leaves of the user's folders: other files, links, modes, interruptions, full disks."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from danlu.cli import main
from danlu.cli.models import spoken
from danlu.text import inspect_model, load_model, save_hf, save_tf, save_vocab
from danlu.text.config import TransformerConfig
from danlu.text.transformer import build_transformer

DATA = Path(os.environ.get("DANLU_DATA", "/nowhere")) / "oracles" / "checkpoints"
C = ["convert", "bert", "out", "--to", "hf"]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]


def danlu(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder: a BERT with its vocabulary as a TensorFlow checkpoint."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    Path("bert").mkdir()
    config = TransformerConfig("bert", len(TOKENS), 64, 2, 2, 64, max_positions=9)
    save_tf(build_transformer(config, ["pooler", "mlm"]), "bert/bert_model.ckpt")
    save_vocab("bert/vocab.txt", {token: i for i, token in enumerate(TOKENS)})
    return tmp_path


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(capsys, folder, arguments, *words, code=2):
    """Exit code, one line with these words, and nothing changed."""
    before = tree(folder)
    capsys.readouterr()
    assert danlu(*arguments) == code
    told = capsys.readouterr().err
    lines = [line for line in told.splitlines() if line.startswith("danlu: ")]
    assert len(lines) == 1 and "Traceback" not in told, told
    for word in words:
        assert word in lines[0], lines[0]
    assert tree(folder) == before
    return lines[0]


@pytest.mark.parametrize("to", ["hf", "tf"])
def test_files_of_the_user_stay_when_a_model_is_replaced(folder, to):
    assert danlu("convert", "bert", "out", "--to", "hf") == 0
    mine = ["vectors.index", "model_notes.json", "model_card.json", "my.data-00000-of-00001", "best.meta", "modelA.bin"]
    for name in mine:
        Path("out", name).write_text(name)
    theirs = ["model-00001-of-00002.safetensors", "pytorch_model.bin", "bert_model.ckpt.index", "tokenizer.json"]
    for name in theirs:
        Path("out", name).write_text("of the old model")
    Path("out/checkpoint").mkdir()
    Path("out/checkpoint/a").write_text("a folder of this name is the user's")
    Path("out/link").symlink_to("/nowhere/else")
    assert danlu("convert", "bert", "out", "--to", to, "--overwrite") == 0
    for name in mine:
        assert Path("out", name).read_text() == name
    assert Path("out/checkpoint/a").exists() and os.readlink("out/link") == "/nowhere/else"
    written = {
        "hf": {"config.json", "model.safetensors"},
        "tf": {"bert_config.json", "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"},
    }[to]
    assert set(os.listdir("out")) == {*mine, "checkpoint", "link", "vocab.txt", *written}
    if to == "hf":
        load_model("out")


def test_save_hf_keeps_the_files_of_the_user(folder):
    model = load_model("bert")
    save_hf(model, "out")
    for name in ("model_card.json", "modelA.bin", "model-00001-of-00002.safetensors"):
        Path("out", name).write_text("x")
    save_hf(model, "out", overwrite=True)
    assert sorted(os.listdir("out")) == ["config.json", "model.safetensors", "modelA.bin", "model_card.json"]


def test_a_folder_without_weights_is_no_model(folder, capsys):
    for name in ("vectors.index", "model_notes.json", "config.json"):
        shutil.rmtree("out", ignore_errors=True)
        Path("out").mkdir()
        Path("out", name).write_text("mine")
        refused(capsys, folder, [*C, "--overwrite"], "holds other files and no model")


def test_a_folder_in_the_place_of_a_file(folder, capsys):
    assert danlu(*C) == 0
    Path("out/bert_config.json").mkdir()
    Path("out/bert_config.json/a").write_text("mine")
    refused(capsys, folder, ["convert", "bert", "out", "--to", "tf", "--overwrite"], "is a folder, where a file")
    assert sorted(os.listdir(folder)) == ["bert", "out"]


@pytest.mark.parametrize("target", [".", "..", "../out"])
def test_the_current_folder_is_not_replaced(folder, capsys, monkeypatch, target):
    Path("out/deep").mkdir(parents=True)
    Path("out/config.json").write_text("{}")
    Path("out/model.safetensors").write_text("x")
    monkeypatch.chdir("out/deep" if target == ".." else "out")
    source = folder / "bert"
    refused(capsys, folder, ["convert", source, target, "--to", "tf", "--overwrite"], "current folder")


def test_a_link_is_followed(folder, capsys):
    assert danlu(*C) == 0
    Path("lnk").symlink_to("out")
    refused(capsys, folder, ["convert", "bert", "lnk", "--to", "tf"], "lnk exists")
    assert danlu("convert", "bert", "lnk", "--to", "tf", "--overwrite") == 0
    assert os.readlink("lnk") == "out" and Path("out/bert_config.json").exists()
    assert not Path("out/config.json").exists()
    assert sorted(os.listdir(folder)) == ["bert", "lnk", "out"]


def test_a_link_to_nothing(folder, capsys):
    Path("lnk").symlink_to("new")
    refused(capsys, folder, ["convert", "bert", "lnk", "--to", "tf"], "lnk is a link to", "new, which does not exist")
    assert danlu("convert", "bert", "lnk", "--to", "tf", "--overwrite") == 0
    assert Path("new/bert_config.json").is_file() and Path("lnk").is_symlink()
    Path("far").symlink_to("a/b")
    refused(capsys, folder, ["convert", "bert", "far", "--to", "tf", "--overwrite"], "there is no folder", "make it")


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
@pytest.mark.parametrize("to", ["hf", "tf", "onnx"])
def test_modes_follow_the_umask(folder, to, mask):
    if to == "onnx":
        pytest.importorskip("onnxscript")
        if mask != 0o022:
            pytest.skip("one mask is enough for the slow writer")
    before = os.umask(mask)
    try:
        assert danlu("convert", "bert", "out", "--to", to) == 0
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in Path("out").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~mask) and len(modes) >= 2
    assert Path("out").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("keep_tokens=[0,1]", "--simplify-vocab"),
        ("compound_tokens=[[1]]", "--set knows no 'compound_tokens'"),
        ("dtype=float16", "its option is --dtype"),
        ("autoresize=true", "--set knows no 'autoresize'"),
        ("family=bert", "its option is --family"),
        ("heads=mlm", "its option is --heads"),
        ("hiden_sise=8", "did you mean hidden_size"),
        ("nonsense=1", "it takes vocab_size"),
        ("norm_eps=small", "is a number, got 'small'"),
        ("tie_embeddings=1", "is true or false, got '1'"),
        ("num_heads=2.5", "is a whole number, got '2.5'"),
        ("activation=3", "is a word, got '3'"),
        ("embedding_size=[1]", "is a whole number or null, got '[1]'"),
    ],
)
def test_settings_are_fields_of_the_configuration(folder, capsys, setting, words):
    refused(capsys, folder, [*C, "--set", setting], words)


def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20480, 20480))


def test_no_room_for_the_weights(folder, capsys):
    """The limit of a process on file sizes stands for the full disk; the kernel answers both writes alike."""
    Path("other").mkdir()
    assert danlu(*C, "--layers", "1") == 0
    before = tree(folder)
    for to in ("hf", "tf"):
        for target in ("out", "new"):
            words = [sys.executable, "-m", "danlu", "convert", "bert", target, "--to", to, "--overwrite"]
            done = subprocess.run(
                words,
                capture_output=True,
                text=True,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20480,) * 2),
            )
            assert done.returncode == 1, done.stderr
            assert "Traceback" not in done.stderr and "resume" not in done.stderr
            left = "what stood there is as it was" if target == "out" else "nothing was written"
            assert f"no room to write ({os.strerror(errno.EFBIG)})" in done.stderr and left in done.stderr
    assert tree(folder) == before and sorted(os.listdir(folder)) == ["bert", "other", "out"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_end_from_outside_leaves_nothing(folder, number, code):
    pytest.importorskip("onnxscript")
    words = [sys.executable, "-m", "danlu", "convert", "bert", "out", "--to", "onnx"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            if [name for name in os.listdir(folder) if name.endswith(".partial")]:
                break
            time.sleep(0.05)
        process.send_signal(number)
        told = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == code, told
    assert "nothing was written, and what stood at out is as it was" in told and "resume" not in told
    assert os.listdir(folder) == ["bert"]


def test_messages_name_options_of_the_command():
    for python, option in (
        ("ask for these, or for heads='auto'", "ask for these, or leave --heads out"),
        ("pass config= the path of it, or num_heads= (12 would be usual)",
         "pass --config the path of it, or --set num_heads= (12 would be usual)"),
        ("pass family='nezha' or family='t5.1.1'", "pass --family nezha or --family t5.1.1"),
        ("give family=, heads= or sizes, or allow_missing=True", "give --family, --heads or sizes, or --allow-missing"),
        ("--overwrite (overwrite=True) replaces it", "--overwrite replaces it"),
        ("which takes no option 'compat'", "which takes no --compat"),
        ("Load without it, heads=()", 'Load without it, --heads ""'),
    ):  # fmt: skip
        assert spoken(python) == option


def test_refusals_name_options_of_the_command(folder, capsys):
    line = refused(capsys, folder, [*C, "--heads", "nsp"], "leave --heads out")
    assert "heads=" not in line
    Path("bert/bert_config.json").unlink()
    line = refused(capsys, folder, C, "pass --config the path", "--set num_heads=")
    assert "config=" not in line
    refused(capsys, folder, ["convert", "bert", "bert", "--to", "hf", "--overwrite"], "bert is the model itself;")


@pytest.mark.skipif(not DATA.is_dir(), reason="DANLU_DATA is not set: no oracles")
@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("damaged_missing_data", "data-00000-of-00001 is missing"),
        ("damaged_truncated_data", "data-00000-of-00001 has 3072 bytes, the index speaks of 6144"),
    ],
)
def test_inspect_tells_missing_bytes(case, words, capsys):
    assert danlu("inspect", DATA / case) == 2
    told = capsys.readouterr()
    assert words in told.out and "TensorFlow checkpoint" in told.out and "Traceback" not in told.err
    assert danlu("inspect", DATA / case, "--json") == 2
    assert words in inspect_model(DATA / case).record()["problems"][0]
    assert inspect_model(DATA / "damaged_ok").damage == ()
    assert danlu("inspect", DATA / "damaged_ok") == 0


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b'{"hidden_size": 4}', 'is no tokenizer.json, a JSON object with a "model"'),
        ("tokenizer.json", b"[PAD]", "is no tokenizer.json"),
        ("vocab.json", b'{"a": "b"}', "is no vocab.json"),
        ("tokens.txt", b'{"model": {}}', "is no vocab.txt"),
        ("blob.txt", b"a\0b", "is no vocab.txt"),
        ("text.model", b"[PAD]", "is no model of SentencePiece"),
    ],
)
def test_the_vocabulary_is_looked_into(folder, capsys, name, content, words):
    Path(name).write_bytes(content)
    refused(capsys, folder, [*C, "--vocab", name], words)


def test_a_tokenizer_file_is_taken(folder):
    Path("t.json").write_text('{"model": {"type": "WordPiece"}}')
    assert danlu(*C, "--vocab", "t.json") == 0
    assert sorted(os.listdir("out")) == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    "arguments", [["inspect", ""], ["convert", "", "o", "--to", "hf"], ["convert", "bert", "", "--to", "hf"]]
)
def test_the_empty_name(folder, capsys, arguments):
    refused(capsys, folder, [*arguments, *["--to", "hf"] * (arguments[0] == "convert")], "is empty; give a path")
