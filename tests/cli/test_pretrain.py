"""danlu pretrain: from text to a folder, what it prints, and what it refuses in one line."""

import json

import pytest

from danlu.cli import main

SMALL = ["--model", "bert:1x16", "--vocab-size", "90", "--threads", "1", "--precision", "fp32", "--device", "cpu"]
SMALL += ["--set", "steps=6", "--set", "length=8", "--set", "long_length=16", "--set", "batch_tokens=64"]


@pytest.fixture
def text(tmp_path):
    (tmp_path / "a.txt").write_text("天地玄黄宇宙洪荒\n" * 30, encoding="utf-8")
    return tmp_path


def test_a_folder_is_written_and_told(text, capsys):
    words = ["pretrain", "mlm", "--text", f"{text}/a.txt", "--dev", f"{text}/a.txt", "--out", f"{text}/m", *SMALL]
    assert main([*words, "--store", "bf16"]) == 0
    told = capsys.readouterr()
    assert "steps       6" in told.out and f"wrote {text}/m" in told.out and "held out    accuracy" in told.out
    assert "train: 30 documents, 240 tokens, 240 words" in told.err
    assert json.loads((text / "m" / "config.json").read_text())["dtype"] == "bfloat16"
    assert main([*words, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", "no-such.txt"], "--text no-such.txt: no such file; give text files (plain or .gz), - or mini-zh"),
        (["--text", "{a}", "--dev", "none.txt"], "--dev none.txt: no such file"),
        (["--text", "{a}", "--set", "stesp=3"], "no setting 'stesp'; did you mean steps"),
        (["--text", "{a}", "--set", "mask_share=15"], "setting mask_share is a share and lies between 0 and 1, got 15"),
        (["--text", "{a}", "--model", "dgcnn:2x16"], "is nothing to pretrain by mlm"),
        (["--text", "{a}", "--resume", "--overwrite"], "give --resume (go on) or --overwrite (start again), not both"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(text, capsys, words, message):
    words = [word.format(a=f"{text}/a.txt") for word in words]
    assert main(["pretrain", "mlm", *words, "--out", f"{text}/m"]) == 2
    told = capsys.readouterr().err.strip()
    assert message in told and "\n" not in told
    assert not (text / "m").exists() and not (text / "m.partial").exists()
