"""match: learns with both kinds of model, scores and classes, tells what it cut, reads what users give."""

import json
import random
from dataclasses import replace
from itertools import islice

import pytest
import torch

from danlu.cli import main
from danlu.data.errors import InputError
from danlu.tasks import get_task
from danlu.tasks.spec import Spec
from danlu.tasks.trained import Trained
from danlu.tasks.training import read_parts, train_folder, train_model
from danlu.tasks.trial import run_trial

FIRST, SECOND = ["北京", "上海", "我们"], ["大学", "喜欢", "很好"]  # words of the two texts
SETTINGS = {"epochs": 8.0, "batch_size": 8, "max_len": 24, "lr": 5e-3}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs whose class, or score, depends on the second text."""
    folder = tmp_path_factory.mktemp("pairs")
    stream = random.Random(1)
    for name, size in (("train", 160), ("dev", 40)):
        lines, scored = [], []
        for _ in range(size):
            a, b = stream.choice(FIRST), stream.choice(SECOND)
            lines.append(f"{a}\t{b}\t{int(b == '喜欢')}")
            scored.append(json.dumps({"text1": a, "text2": b, "score": 5.0 * (b == "喜欢")}, ensure_ascii=False))
        (folder / f"{name}.tsv").write_text("text_a\ttext_b\tlabel\n" + "\n".join(lines) + "\n", encoding="utf-8")
        (folder / f"{name}.jsonl").write_text("\n".join(scored) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def spec(pairs):
    files = {"train": str(pairs / "train.tsv"), "dev": str(pairs / "dev.tsv")}
    return Spec(task="match", model="dgcnn:1x16", set={**SETTINGS, "bigram_dim": 4}, threads=1, precision="fp32",
                device="cpu", **files)  # fmt: skip


def scored(spec, pairs):
    return replace(spec, train=str(pairs / "train.jsonl"), dev=str(pairs / "dev.jsonl"))


@pytest.mark.parametrize("kind", ["cross", pytest.param("siamese", marks=pytest.mark.slow)])
def test_it_learns_and_its_folder_says_the_same(spec, with_encoder, tmp_path, kind):
    spec = spec if kind == "siamese" else with_encoder(spec, epochs=12.0)
    record = train_folder(spec, tmp_path / "out")
    metrics = record["metrics"]["dev"]
    assert metrics["accuracy"] > 0.9 and metrics["f1"] == metrics["by_type"]["1"]["f1"]
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32")
    assert trained.evaluate(spec.dev)["metrics"]["f1"] == metrics["f1"]
    results = list(trained.predict([{"text_a": "北京", "text_b": "喜欢"}, {"text_a": "北京", "text_b": ""}]))
    assert [r["label"] for r in results] == ["1", None]


@pytest.mark.parametrize("kind", ["siamese", pytest.param("cross", marks=pytest.mark.slow)])
def test_scores_are_learned_on_their_own_scale(spec, pairs, with_encoder, tmp_path, kind):
    spec = scored(spec if kind == "siamese" else with_encoder(spec, epochs=12.0), pairs)
    record = train_folder(spec, tmp_path / "out")
    metrics = record["metrics"]["dev"]
    assert metrics["spearman"] > 0.7 and metrics["pearson"] > 0.8 and metrics["rmse"] < 2.0
    assert set(record["log"][-1]["dev"]) == {"spearman", "pearson", "rmse"}
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32")
    high, low = trained.predict([{"text_a": "北京", "text_b": "喜欢"}, {"text_a": "北京", "text_b": "大学"}])
    assert high["score"] > 3.0 > low["score"]
    assert trained.evaluate(spec.dev)["metrics"] == metrics


def test_both_texts_are_seen_with_their_segments(spec, with_encoder):
    run = train_model(s := with_encoder(spec, epochs=0.1), read_parts(s))
    batch = run.model.pairs(["北京"], ["大学"]).collate([0])
    t = run.model.encoder.tokenizer
    assert batch["ids"].tolist() == [[2, *t.tokens_to_ids("北京"), 3, *t.tokens_to_ids("大学"), 3]]
    assert batch["segments"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]


def test_the_siamese_features_by_hand(spec):
    model = train_model(spec := replace(spec, set={**spec.set, "epochs": 0.1}), read_parts(spec)).model
    with torch.no_grad():
        ab, ba, aa = (
            model.logits(model.pairs([x], [y]).collate([0]))
            for x, y in (("北京", "大学"), ("大学", "北京"), ("北京",) * 2)
        )
        weight, bias = model.output.weight, model.output.bias
        size = weight.shape[1] // 4
        from danlu.tasks.char_model import char_vector

        batch = model.pairs(["北京"], ["大学"]).collate([0])
        u, v = (char_vector(model.encoder, model.pool, batch, side)[0] for side in ("_a", "_b"))
        w = weight.split(size, 1)
        torch.testing.assert_close(ab[0], w[0] @ u + w[1] @ v + w[2] @ (u - v).abs() + w[3] @ (u * v) + bias)
        torch.testing.assert_close(aa[0], (w[0] + w[1]) @ u + w[3] @ u.square() + bias)
        assert not torch.allclose(ab, ba)


@pytest.mark.parametrize("kind", ["siamese", "cross"])
def test_long_pairs_are_cut_and_told(spec, pairs, with_encoder, tmp_path, kind):
    rows = (pairs / "train.tsv").read_text(encoding="utf-8") + "北京" * 30 + "\t上海\t0\n"
    (tmp_path / "long.tsv").write_text(rows, encoding="utf-8")
    spec = replace(spec if kind == "siamese" else with_encoder(spec), train=str(tmp_path / "long.tsv"))
    record = train_folder(replace(spec, dev=spec.train, set={**spec.set, "epochs": 0.3}), tmp_path / "out")
    assert record["notes"][0].startswith("1 of 161 training pairs were cut at the end of the longer text")
    assert record["metrics"]["dev"]["truncated"] == 1
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32")
    items = [{"text_a": "北京" * 40, "text_b": "大学"}, {"text_a": "北京", "text_b": "大学"}]
    assert [r.get("truncated") for r in trained.predict(items)] == [True, None]
    if kind == "cross":
        data = trained.model.pairs(["北京" * 40], ["大学"])
        assert data.cut == [True] and data.lengths == [24]
        tokens = trained.model.encoder.tokenizer.ids_to_tokens(data.rows[0].ids)
        assert tokens[-4:] == ["[SEP]", "大", "学", "[SEP]"]


def test_the_order_of_the_items_is_kept(spec, tmp_path):
    train_folder(replace(spec, set={**spec.set, "epochs": 0.3}), tmp_path / "out")
    trained = Trained.load(tmp_path / "out", device="cpu", precision="fp32")
    items = [{"text_a": "北京" * (i % 7 + 1), "text_b": SECOND[i % 3]} for i in range(40)]
    together = list(trained.predict(iter(items)))
    alone = [next(trained.predict([item])) for item in islice(items, 10)]
    for a, b in zip(together, alone, strict=False):
        assert (a["text_a"], a["label"]) == (b["text_a"], b["label"])
        assert a["confidence"] == pytest.approx(b["confidence"], abs=1e-5)


def test_the_command_line_reads_pairs(spec, tmp_path, capsys, monkeypatch):
    train_folder(replace(spec, set={**spec.set, "epochs": 4.0}), tmp_path / "out")
    options = ["--device", "cpu", "--precision", "fp32", "--threads", "1"]
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "out", "北京", "北京", "上海", "喜欢", *options]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[2:] for line in lines] == [["北京", "北京"], ["上海", "喜欢"]]
    (tmp_path / "in.jsonl").write_text('{"query": "北京", "title": "北京"}\n', encoding="utf-8")
    assert main(["predict", "out", "--input", "in.jsonl", "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["text_b"] == "北京"
    assert main(["predict", "out", "北京", *options]) == 2
    assert "an item of this model has 2 texts (text_a, text_b), 1 were given" in capsys.readouterr().err


def test_what_makes_no_sense_is_refused(spec, pairs, tmp_path):
    one = tmp_path / "one.csv"
    one.write_text("text_a,text_b,label\na,b,1\nc,d,1\n", encoding="utf-8")
    with pytest.raises(InputError, match="the training data has one class only"):
        train_folder(replace(spec, train=str(one), dev=None), tmp_path / "out")
    flat = tmp_path / "flat.csv"
    flat.write_text("text_a,text_b,score\na,b,1\nc,d,1\n", encoding="utf-8")
    with pytest.raises(InputError, match="all scores of the training data are 1; there is nothing to learn"):
        train_folder(replace(spec, train=str(flat), dev=None), tmp_path / "out")
    with pytest.raises(InputError, match="soft_f1 is for classes; these pairs have scores"):
        train_folder(replace(scored(spec, pairs), tricks=("soft_f1",)), tmp_path / "out")
    with pytest.raises(InputError, match="label: missing"):  # train has classes, dev scores
        train_folder(replace(spec, dev=str(pairs / "dev.jsonl")), tmp_path / "out")
    with pytest.raises(InputError, match="an ablation compares accuracy example by example"):
        run_trial(scored(spec, pairs).to_json() | {"test": str(pairs / "dev.jsonl")})


def test_task_card():
    task = get_task("match")
    assert task.fields == ("text_a", "text_b")
    assert task.show({"text_a": "a\nb", "text_b": "c", "score": 1.25}) == "1.2500\ta b\tc"
    assert task.show({"text_a": "", "text_b": "c", "label": None, "confidence": None}) == ""
