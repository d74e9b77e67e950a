"""`danlu plot`: every view from a small model or file, results, and bad input in one line with exit code 2."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="needs matplotlib; install the extra plots")
from danlu.cli import main
from danlu.tasks.plots import VIEWS
from danlu.tasks.result_plots import result_parts
from danlu.text import save_hf, save_vocab
from danlu.text.config import TransformerConfig
from danlu.text.transformer import build_transformer

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"我们在北京读书的中国ab"]
RESULT = {
    "kind": "recipe", "recipe": "made_up", "claimed": {"gain": 0.1},
    "measured": {"gain": {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 5}, "plain": {"mean": 0.9, "low": None, "n": 1}},
    "runs": [{"seed": 0, "figures": {
        "tank": {"states": ["a"], "times": [0, 1], "low": [[0], [1]], "median": [[1], [2]], "high": [[2], [3]],
                 "observed_times": [0], "observed": [[None]]},
        "labels": ["B", "E"], "transitions": {"crf": [[1.0, -1.0], [None, 0.5]]},
        "step": [1, 2, 3], "weights": [0.1, 0.2, None], "arm": ["x", "y"], "clean": [0.5, 0.6],
        "pieces": ["p", "q", "r"], "impact": [[0, 1, 2], [1, 0, 2], [1, 2, 0]], "spectrum": [3.0, 1.0],
    }}],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with a small model, vectors and a result."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = TransformerConfig("bert", len(TOKENS), 8, 2, 2, 12, max_positions=24)
    save_hf(build_transformer(config, ["mlm"]), "model")
    save_vocab("model/vocab.txt", {token: i for i, token in enumerate(TOKENS)})
    np.save("v.npy", np.random.default_rng(0).random((9, 4)).astype("float32"))
    np.save("flat.npy", np.ones((3, 4)))
    np.save("words.npy", np.array([["a", "b"]]))
    rows = [{"text_a": "我们", "text_b": t, "score": i} for i, t in enumerate(("我们", "北京", "读书", "中国"))]
    Path("pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    Path("r.json").write_text(json.dumps(RESULT), encoding="utf-8")
    return tmp_path


CALLS = {
    "attention": ["model", "我们在北京读书", "--layer", "1", "--head", "2"],
    "arcs": ["model", "我们在北京读书"],
    "heads": ["model", "我们在北京读书", "--layer", "2"],
    "profile": ["model", "我们在北京读书"],
    "impact": ["model", "我们 在 北京 读书"],
    "dependencies": ["model", "我们 在 北京 读书"],
    "tree": ["model", "我们在北京"],
    "boundaries": ["model", "我们在北京读书"],
    "factors": ["model", "我们在北京读书", "--landmarks", "4"],
    "embedding": ["model", "我们", "北京", "读书"],
    "sphere": ["v.npy"],
    "spectrum": ["model", "--data", "pairs.jsonl"],
    "similarities": ["model", "--data", "pairs.jsonl"],
    "attributions": ["digits", "3"],
    "ode": ["r.json"],
    "result": ["r.json", "measured"],
}


def test_every_view_has_a_call():
    assert set(CALLS) == set(VIEWS)


SECONDS = {"attributions", "spectrum", "heads", "profile", "arcs", "tree", "dependencies", "similarities"}


@pytest.mark.parametrize("view", [pytest.param(v, marks=pytest.mark.slow if v in SECONDS else ()) for v in CALLS])
def test_every_view_writes_its_picture(view, folder, capsys):
    assert main(["plot", view, *CALLS[view], "--out", "a.svg", "--dark"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out == "wrote a.svg\n"
    assert Path("a.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_impacts_of_a_running_text_are_cut(folder, capsys):
    assert main(["plot", "impact", "model", "我们在北京", "--out", "a.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"view": "impact", "written": "a.png"}


def test_a_folder_of_task_embed_gives_its_own_vectors(folder, capsys):
    Path("texts.jsonl").write_text(
        "\n".join(json.dumps({"text": t}) for t in ("我们", "北京", "读书", "中国")), "utf-8"
    )
    small = ["--model", "bert:1x8", "--set", "epochs=1", "--set", "max_len=8", "--device", "cpu", "--threads", "1"]
    assert main(["train", "embed", "--train", "texts.jsonl", "--dev", "pairs.jsonl", "--out", "own", *small]) == 0
    assert main(["plot", "embedding", "own", "我们", "北京", "读书", "--out", "a.svg"]) == 0, capsys.readouterr().err
    from danlu.gallery.figures.layout import plane
    from danlu.tasks.plot_request import Request
    from danlu.tasks.trained import Trained
    from danlu.tasks.vector_plots import vectors_of

    drawn, texts, _ = vectors_of(Request("own", ("我们", "北京")))
    trained = Trained.load("own")
    torch.testing.assert_close(drawn, trained.task.vectors(trained.model, texts))
    assert plane(drawn.numpy())[0].shape == (2, 2)


def test_without_a_view_they_are_listed(capsys):
    assert main(["plot"]) == 0
    told = capsys.readouterr().out
    assert all(f"danlu plot {name} {view.takes}" in told for name, view in VIEWS.items())
    assert main(["plot", "--json"]) == 0
    assert [row["view"] for row in json.loads(capsys.readouterr().out)] == list(VIEWS)


def test_what_a_result_holds_is_found():
    kinds = {name: kind for name, (kind, _) in result_parts(RESULT).items()}
    assert kinds == {
        "tank": "ode", "transitions.crf": "matrix", "curves": "lines", "clean": "bars", "impact": "impact",
        "spectrum": "spectrum", "measured": "measured",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("part", ["tank", "transitions.crf", "curves", "clean", "impact", "spectrum", "measured"])
def test_every_part_of_a_result_is_drawn(part, folder, capsys):
    assert main(["plot", "r.json", part, "--out", "a.png"]) == 0, capsys.readouterr().err
    assert Path("a.png").stat().st_size > 3000


def test_the_name_of_the_file_is_made_up_and_never_replaced_unasked(folder, capsys):
    assert main(["plot", "r.json"]) == 0
    assert capsys.readouterr().out == "wrote result-r.png\n"
    before = Path("result-r.png").read_bytes()
    assert main(["plot", "r.json", "measured"]) == 2
    assert "already" in capsys.readouterr().err and Path("result-r.png").read_bytes() == before
    assert main(["plot", "r.json", "measured", "--overwrite"]) == 0
    assert Path("result-r.png").read_bytes() != before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["attentoin", "model"], "no view 'attentoin'; there are attention,"),
        (["attention"], "danlu plot attention takes MODEL [TEXT]"),
        (["attention", "nowhere"], "no model 'nowhere'"),
        (["attention", "model", "我", "们"], "shows one text, got 2"),
        (["attention", "model", " "], "the text is empty"),
        (["attention", "model", "我们", "--layer", "3"], "--layer must be in [1, 2]"),
        (["factors", "model", "我们", "--head", "3"], "--head in [1, 2]"),
        (["factors", "model", "我们"], "no more than 16 landmarks"),
        (["impact", "model", "我"], "fewer than two words"),
        (["impact", "model", "我们在北京" * 9], "this model reads 24"),
        (["similarities", "model"], "give --data"),
        (["similarities", "model", "--data", "nothing"], "nothing"),
        (["embedding", "model"], "give texts, or --data"),
        (["embedding", "v.npy", "a"], "holds 9 vectors, got 1 texts"),
        (["embedding", "r.json"], "r.json"),
        (["embedding", "words.npy"], "numbers"),
        (["spectrum", "flat.npy"], "no variance"),
        (["attributions", "mnist"], "digits or reviews"),
        (["attributions", "digits", "99999"], "images, got number 99999"),
        (["result", "absent.json"], "no such file"),
        (["v.json"], "no such file"),
        (["r.json", "absent"], "this result has no 'absent'; it has tank,"),
        (["result", "pairs.jsonl"], "pairs.jsonl"),
        (["ode", "r.json", "clean"], "this result has no 'clean'"),
        (["r.json", "--out", "a.gif"], "pictures are .png, .svg or .pdf"),
        (["r.json", "--out", "absent/a.png"], "no folder absent"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(words, message, folder, capsys):
    before = sorted(p.name for p in folder.iterdir())
    code = main(["plot", *words])
    told = capsys.readouterr().err
    lines = [line for line in told.splitlines() if line.startswith("danlu: ")]
    assert code == 2, told
    assert len(lines) == 1 and "Traceback" not in told and message in lines[0], told
    assert sorted(p.name for p in folder.iterdir()) == before
