"""Forty-odd kinds of bad input: one clear line, the right exit code, earlier results untouched, nothing left behind."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from danlu.cli import main

SMALL = [
    "--model",
    "dgcnn:1x8",
    "--set",
    "epochs=1",
    "--set",
    "bigram_dim=4",
    "--device",
    "cpu",
    "--precision",
    "fp32",
    "--threads",
    "1",
]
GOOD_SEG = "我们 在 北京\n喜欢 数学\n" * 4
GOOD_CSV = "text,label\n很好,好\n不好,坏\n" * 1
CONLL = "张 B-PER\n三 I-PER\n来 O\n\n北 B-LOC\n京 I-LOC\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with good files and a trained model whose bytes must not change."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.seg").write_text(GOOD_SEG, encoding="utf-8")
    (tmp_path / "good.csv").write_text(GOOD_CSV, encoding="utf-8")
    (tmp_path / "good.conll").write_text(CONLL, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A small trained tagger and classifier."""
    place = tmp_path_factory.mktemp("trained")
    (place / "a.seg").write_text(GOOD_SEG, encoding="utf-8")
    (place / "a.csv").write_text(GOOD_CSV, encoding="utf-8")
    assert main(["train", "tag", "--train", str(place / "a.seg"), "--out", str(place / "model"), *SMALL]) == 0
    assert main(["train", "classify", "--train", str(place / "a.csv"), "--out", str(place / "classes"), *SMALL]) == 0
    return place


def one_line(capsys, code, expected_code, message):
    """stderr ends with exactly one `danlu:` line that holds `message`, and no traceback."""
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("danlu: ")]
    assert code == expected_code, captured.err
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    assert message in lines[0], lines[0]
    assert captured.err.rstrip().splitlines()[-1] == lines[0]


def write(name, content):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return name


FILES = {  # kind: (file name, content, words of the message)
    "missing file": ("none.seg", None, "none.seg"),
    "empty file": ("a.seg", "", "a.seg"),
    "blank lines only": ("a.seg", "\n\n \n", "a.seg"),
    "invalid UTF-8": ("a.seg", b"\xb1\xb1 \xbe\xa9\n", "UTF-8"),
    "wrong column": ("a.csv", "txt,label\nx,y\n", "text"),
    "no label column": ("a.csv", "text,lable\nx,y\n", "label"),
    "header twice": ("a.csv", "text,label,label\nx,y,z\n", "label"),
    "row too short": ("a.csv", "text,label\nonly\n", "line 2"),
    "empty label": ("a.csv", "text,label\nx,\n", "line 2"),
    "broken JSON": ("a.jsonl", '{"text": "x", "label": "y"}\n{"text": \n', "line 2"),
    "JSON of another kind": ("a.jsonl", "[1, 2]\n", "line 1"),
    "label is a list": ("a.jsonl", '{"text": "x", "label": ["y"]}\n', "label"),
    "text is a number": ("a.jsonl", '{"text": 3, "label": "y"}\n', "text"),
    "one column": ("a.conll", "张\n三\n", "line 1"),
    "broken tag": ("a.conll", "张 B-PER\n三 X-PER\n", "X-PER"),
    "broken tag sequence": ("a.jsonl", '{"tokens": ["张", "三"], "tags": ["O", "I-PER", "O"]}\n', "line 1"),
    "tokens and tags differ": ("a.jsonl", '{"tokens": ["张"], "tags": ["O", "O"]}\n', "line 1"),
    "entity out of the text": ("a.jsonl", '{"text": "北京", "entities": [[0, 9, "LOC"]]}\n', "line 1"),
    "entities overlap": ("a.jsonl", '{"text": "北京大学", "entities": [[0, 2, "LOC"], [1, 4, "ORG"]]}\n', "line 1"),
    "entity backwards": ("a.jsonl", '{"text": "北京", "entities": [[2, 0, "LOC"]]}\n', "line 1"),
    "damaged gzip": ("a.seg.gz", gzip.compress(GOOD_SEG.encode() * 50)[:40], "gz"),
    "gzip in name only": ("a.seg.gz", GOOD_SEG, "gz"),
    "one class only": ("a.csv", "text,label\nx,y\nz,y\n", "one class"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files(kind, folder, capsys):
    name, content, message = FILES[kind]
    if content is not None:
        write(name, content)
    classify = (
        name.endswith(".csv")
        or "label" in message
        or kind in ("broken JSON", "JSON of another kind", "text is a number")
    )
    code = main(["train", "classify" if classify else "tag", "--train", name, "--out", "out", *SMALL])
    one_line(capsys, code, 2, message)
    assert not Path("out").exists() and not Path("out.partial").exists()


OPTIONS = {  # kind: (arguments, words of the message)
    "no command": ([], None),
    "unknown command": (["trian"], "Did you mean"),
    "unknown option": (["train", "tag", "--trian", "x"], "--trian"),
    "unknown task": (["train", "tga", "--train", "good.seg"], "no task 'tga'; did you mean tag"),
    "unknown trick": (
        ["train", "tag", "--train", "good.seg", "--with", "fmg"],
        "unknown trick 'fmg'; did you mean fgm",
    ),
    "negative epsilon": (
        ["train", "tag", "--train", "good.seg", "--with", "fgm:-0.5"],
        "epsilon must be > 0 and finite, got -0.5",
    ),
    "trick of another task": (
        ["train", "classify", "--train", "good.csv", "--with", "crf_lr"],
        "crf_lr fits tag, not classify",
    ),
    "rival tricks": (["train", "tag", "--train", "good.seg", "--with", "fgm,pgd"], "both set the attack"),
    "unknown setting": (
        ["train", "tag", "--train", "good.seg", "--set", "epoch=3"],
        "no setting 'epoch'; did you mean epochs",
    ),
    "setting without value": (["train", "tag", "--train", "good.seg", "--set", "epochs"], "takes name=value"),
    "setting of another type": (
        ["train", "tag", "--train", "good.seg", "--set", "epochs=many"],
        "is a number, got 'many'",
    ),
    "setting out of range": (
        ["train", "tag", "--train", "good.seg", "--set", "batch_size=0"],
        "batch_size lies between",
    ),
    "setting not finite": (["train", "tag", "--train", "good.seg", "--set", "lr=nan"], "lr lies between"),
    "unknown model": (["train", "tag", "--train", "good.seg", "--model", "bret"], "no model 'bret'"),
    "absurd model": (["train", "tag", "--train", "good.seg", "--model", "dgcnn:0x8"], "layers lie in 1 to 64"),
    "unknown format": (["train", "tag", "--train", "good.seg", "--format", "xlsx"], "xlsx"),
    "unknown set": (["train", "tag", "--train", "weibo-nre"], "weibo-ner"),
    "unknown device": (["train", "tag", "--train", "good.seg", "--device", "tpu"], "tpu"),
    "seed is text": (["train", "tag", "--train", "good.seg", "--seed", "x"], "--seed"),
    "folder as data": (["train", "tag", "--train", "."], ""),
    "schemes differ": (["train", "tag", "--train", "good.seg", "--dev", "good.conll", "--out", "o"], "tagged in BIO"),
    "resume and overwrite": (["train", "tag", "--train", "good.seg", "--resume", "--overwrite"], "not both"),
    "out is a file": (["train", "tag", "--train", "good.seg", "--out", "good.csv"], "is a file; give a folder"),
    "out holds other files": (
        ["train", "tag", "--train", "good.seg", "--out", "."],
        "holds other files and no danlu result",
    ),
    "no trick to compare": (["ablate", "tag", "--train", "good.seg"], "nothing to compare"),
    "trick twice": (["ablate", "tag", "--train", "good.seg", "--dev", "good.seg", "--with", "fgm,fgm"], "twice"),
    "nothing to judge on": (["ablate", "tag", "--train", "good.seg", "--with", "fgm", "--out", "ab"], "needs --test"),
    "jobs below one": (["ablate", "tag", "--train", "good.seg", "--with", "fgm", "--jobs", "0"], "--jobs"),
    "no model folder": (["predict", "nowhere", "文"], "no folder nowhere"),
    "folder without model": (["predict", ".", "文"], "has no task.json"),
    "unknown name": (["show", "FMG"], "did you mean FGM"),
    "unknown recipe": (["run", "crf_learning"], "no recipe 'crf_learning'; did you mean crf_learning_rate"),
    "copy onto a file": (["copy", "memm", "good.csv"], "exists already"),
    "unknown benchmark": (["benchmark", "crff"], "did you mean crf"),
    "unknown data set": (["data", "get", "weibo"], "weibo"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options(kind, folder, capsys):
    arguments, message = OPTIONS[kind]
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    code = main(arguments)
    if message is None:
        assert code == 2 and "Usage: danlu" in capsys.readouterr().err
    else:
        one_line(capsys, code, 2, message)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"} == before


def test_a_truncated_model_is_named(trained, tmp_path, capsys):
    shutil.copytree(trained / "model", tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    capsys.readouterr()
    one_line(capsys, main(["predict", str(tmp_path / "m"), "北京"]), 2, "model.safetensors is truncated or damaged")


@pytest.mark.parametrize(("name", "content", "message"), [
    ("task.json", "{", "task.json is damaged"),
    ("vocab.txt", "[PAD]\n", "vocab.txt"),
    ("vocab.txt", None, "vocab.txt"),
    ("model.safetensors", None, "has no model.safetensors"),
    ("task.json", '{"format_version": 7}', "install a newer danlu"),
])  # fmt: skip
def test_damaged_model_folders(trained, tmp_path, capsys, name, content, message):
    shutil.copytree(trained / "model", tmp_path / "m")
    if content is None:
        (tmp_path / "m" / name).unlink()
    else:
        (tmp_path / "m" / name).write_text(content)
    capsys.readouterr()
    one_line(capsys, main(["predict", str(tmp_path / "m"), "北京"]), 2, message)


def test_weights_of_another_model_are_refused(trained, tmp_path, capsys):
    shutil.copytree(trained / "model", tmp_path / "m")
    stored = json.loads((tmp_path / "m" / "task.json").read_text())
    stored["config"]["dim"] = 16
    (tmp_path / "m" / "task.json").write_text(json.dumps(stored))
    capsys.readouterr()
    one_line(capsys, main(["predict", str(tmp_path / "m"), "北京"]), 2, "does not fit its task.json")


def test_evaluate_on_labels_the_model_does_not_know(trained, tmp_path, capsys):
    (tmp_path / "x.csv").write_text("text,label\n很好,怪\n", encoding="utf-8")
    capsys.readouterr()
    one_line(
        capsys,
        main(["evaluate", str(trained / "classes"), "--data", str(tmp_path / "x.csv")]),
        2,
        "label '怪' does not occur in the training data",
    )


def test_evaluate_on_another_scheme(trained, tmp_path, capsys):
    (tmp_path / "x.conll").write_text(CONLL, encoding="utf-8")
    capsys.readouterr()
    one_line(
        capsys,
        main(["evaluate", str(trained / "model"), "--data", str(tmp_path / "x.conll")]),
        2,
        "is tagged in BIO, the training data in BMES",
    )


def test_predict_input_that_is_not_text(trained, tmp_path, capsys):
    (tmp_path / "x.txt").write_bytes("北京\n".encode() + b"\xff\xfe\n")
    capsys.readouterr()
    one_line(
        capsys, main(["predict", str(trained / "model"), "--input", str(tmp_path / "x.txt")]), 2, "line 2: not UTF-8"
    )


def test_predict_reads_the_text_column_of_tables(trained, tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text('{"id": 1, "text": "北京"}\n{"id": 2, "text": ""}\n', encoding="utf-8")
    (tmp_path / "x.csv").write_text("id,text\n1,北京\n2,\n", encoding="utf-8")
    (tmp_path / "x.txt").write_text("北京\n\n", encoding="utf-8")
    answers = []
    for name in ("x.txt", "x.jsonl", "x.csv"):
        capsys.readouterr()
        assert main(["predict", str(trained / "model"), "--input", str(tmp_path / name)]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] == answers[2] and len(answers[0].split("\n")) == 3
    (tmp_path / "y.csv").write_text("id,content\n1,北京\n", encoding="utf-8")
    capsys.readouterr()
    code = main(["predict", str(trained / "model"), "--input", str(tmp_path / "y.csv")])
    one_line(capsys, code, 2, "no column 'text' in the header; found 'id', 'content'; did you mean 'content'?")


def test_an_earlier_result_is_not_replaced(trained, capsys):
    before = {p: p.read_bytes() for p in (trained / "model").rglob("*") if p.is_file()}
    capsys.readouterr()
    code = main(["train", "tag", "--train", str(trained / "a.seg"), "--out", str(trained / "model"), *SMALL])
    one_line(capsys, code, 2, "already holds a result; --overwrite replaces it")
    assert {p: p.read_bytes() for p in (trained / "model").rglob("*") if p.is_file()} == before


def danlu(*arguments, cwd, before="", user=None):
    """The command in a process of its own, after some Python lines."""
    code = f"import os, sys\n{before}\nfrom danlu.cli import main\nsys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "HOME": str(cwd)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment,
        user=user,
        timeout=300,
    )


def test_a_full_disk_is_told_and_leaves_the_old_result(trained, tmp_path):
    out = tmp_path / "model"
    shutil.copytree(trained / "model", out)
    before = {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))"
    ended = danlu(
        "train",
        "tag",
        "--train",
        str(trained / "a.seg"),
        "--out",
        str(out),
        "--overwrite",
        *SMALL,
        cwd=tmp_path,
        before=limit,
    )
    assert ended.returncode == 1, ended.stderr
    assert "no room to write" in ended.stderr.splitlines()[-1] and "Traceback" not in ended.stderr
    assert {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs root, to become another user")
def test_a_folder_one_may_not_write_to(folder):
    """As root everything is writable, so the run becomes user nobody after its imports."""
    closed = folder / "closed"
    closed.mkdir(mode=0o755)
    for parent in [folder, *folder.parents][:4]:
        parent.chmod(parent.stat().st_mode | 0o055) if parent != Path("/") else None
    arguments = ["train", "tag", "--train", "good.seg", *SMALL]
    first = [*arguments, "--out", "first"]
    become = f"from danlu.cli import main; assert main({first!r}) == 0; os.setgid(65534); os.setuid(65534)"
    ended = danlu(*arguments, "--out", "closed/out", cwd=folder, before=become)
    assert ended.returncode == 2, ended.stderr
    assert "permission denied" in ended.stderr.splitlines()[-1].lower(), ended.stderr
    assert "Traceback" not in ended.stderr


def test_two_runs_into_one_folder(folder, capsys):
    from danlu.tasks.folder import locked

    with locked(Path("out")):
        code = main(["train", "tag", "--train", "good.seg", "--out", "out", *SMALL])
        one_line(capsys, code, 2, "another run is writing out")


def test_a_loss_that_is_not_finite_is_the_work_failing(folder, capsys):
    code = main(
        [
            "train",
            "tag",
            "--train",
            "good.seg",
            "--out",
            "out",
            *SMALL,
            "--set",
            "lr=999",
            "--set",
            "clip=0",
            "--set",
            "epochs=300",
        ]
    )
    one_line(capsys, code, 1, "lower the rate with --set lr=")
    assert not Path("out").exists()


def test_standard_input_that_is_no_data(folder):
    ended = subprocess.run(
        [sys.executable, "-m", "danlu", "train", "tag", "--train", "-", *SMALL],
        input="",
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert ended.returncode == 2 and ended.stderr.startswith("danlu: ") and len(ended.stderr.splitlines()) == 1, (
        ended.stderr
    )


@pytest.mark.parametrize("words", [[], ["-"], ["--input", "-"]])
def test_predict_reads_standard_input_to_its_end(trained, words):
    for folder, expected in (("model", "北京"), ("classes", "北京")):
        ended = subprocess.run(
            [sys.executable, "-m", "danlu", "predict", str(trained / folder), *words], input="北京\n\n上海\n",
            capture_output=True, text=True,
        )  # fmt: skip
        assert ended.returncode == 0 and ended.stderr == "", ended.stderr
        lines = ended.stdout.split("\n")
        assert len(lines) == 4 and lines[1] == "" and expected in lines[0].replace(" ", "")


def test_a_reader_that_leaves_is_no_failure(trained, tmp_path):
    (tmp_path / "many.txt").write_text("北京\n" * 3000, encoding="utf-8")
    danlu_predict = f"{sys.executable} -m danlu predict {trained / 'classes'} --input {tmp_path / 'many.txt'}"
    command = ["bash", "-o", "pipefail", "-c", f"{danlu_predict} | head -1"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr


def test_repaired_rows_and_repeated_examples_are_told(folder, capsys):
    (folder / "b.conll").write_text("张 B-PER\n三 I-LOC\n来 O\n\n北 B-LOC\n京 I-LOC\n", encoding="utf-8")
    arguments = ["train", "tag", "--train", "b.conll", "--dev", "b.conll", "--out", "o", *SMALL]
    assert main([*arguments, "--on-bad-rows", "repair"]) == 0
    said = capsys.readouterr().err
    assert "1 tag sequences repaired" in said and "repaired b.conll line 2" in said
    assert "2 of these also stand in the training data" in said


def test_a_trick_in_another_spelling(folder):
    assert main(["train", "tag", "--train", "good.seg", "--out", "o", *SMALL, "--with", "FGM, ema : 0.9"]) == 0
    assert json.loads(Path("o/task.json").read_text())["settings"]["tricks"] == ["FGM", "ema : 0.9"]


def test_messages_name_the_option_of_the_command_line(folder, capsys):
    (folder / "b.conll").write_text("张 B-PER\n三 I-LOC\n", encoding="utf-8")
    code = main(["train", "tag", "--train", "b.conll", "--out", "o", *SMALL])
    one_line(capsys, code, 2, "--on-bad-rows repair rewrites")
    one_line(capsys, main(["list", "nosuch"]), 2, "Invalid value for 'what': 'nosuch' is not one of")
