"""Sentences, pairs and triples: every way to write them, what decides, what is refused by file, line and field."""

import gzip

import pytest

from danlu.data import Corpus, Labelled, LabelledPair, TextGroup, read_sentences, text_groups
from danlu.data.errors import InputError
from danlu.data.tagged import Tagged


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text", "scheme", "texts", "score", "line"),
    [
        ("a.txt", "\n 甲\tx \n{乙}\n", "sentences", ("甲\tx",), None, 2),
        ("a.txt", '{"text": "甲"}\n', "sentences", ('{"text": "甲"}',), None, 1),
        ("corpus", "甲,乙\n", "sentences", ("甲,乙",), None, 1),
        ("a.jsonl", '{"text": "甲", "label": "z"}\n', "sentences", ("甲",), None, 1),
        ("a.csv", "id,text\n7,甲\n", "sentences", ("甲",), None, 2),
        ("a.jsonl", '{"text_a": "甲", "text_b": "乙", "score": 2.5, "label": "z"}\n', "pairs", ("甲", "乙"), 2.5, 1),
        ("a.jsonl", '{"text1": "甲", "text2": "乙", "label": 1}\n', "pairs", ("甲", "乙"), 1.0, 1),
        ("a.tsv", "label\tquery\ttitle\n0\t甲\t乙\n", "pairs", ("甲", "乙"), 0.0, 2),
        ("pairs", "sentence1\tsentence2\tscore\n甲\t乙\t3\n", "pairs", ("甲", "乙"), 3.0, 2),
        ("a.jsonl", '{"anchor": "甲", "positive": "乙", "negative": "丙"}\n', "triples", ("甲", "乙", "丙"), None, 1),
        ("a.csv", "anchor,positive\n甲,乙\n", "triples", ("甲", "乙"), None, 2),
    ],
)
def test_all_forms(name, text, scheme, texts, score, line, tmp_path):
    corpus = read_sentences(write(tmp_path, name, text))
    assert (corpus.scheme, corpus.examples[0]) == (scheme, TextGroup(texts, score, line))
    assert corpus.examples[0].text == "\n".join(texts)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert read_sentences(packed).examples == corpus.examples


def test_bad_rows_are_counted_and_listed(tmp_path):
    rows = [
        '{"text_a": "甲", "text_b": "乙", "score": 1}',
        '{"text_a": "甲", "score": 1}',
        '{"text_a": "甲", "text_b": " ", "score": 1}',
        '{"text_a": "甲", "text_b": "乙", "score": "x"}',
        '{"text_a": "甲", "text_b": "乙", "score": NaN}',
        '{"text_a": "甲", "text_b": "乙", "score": null}',
        '{"text_a": "甲", "text_b": "乙", "label": 1}',
        '{"text_a": "甲", "text_b": "乙", "score": true}',
        '{"text_a": "甲", "text_b": "乙", "score": 1' + "0" * 400 + "}",
        "[]",
        '{"text_a": "甲", "text_b": "丙", "score": -1e3}',
    ]
    path = write(tmp_path, "a.jsonl", "\n".join(rows) + "\n")
    corpus = read_sentences(path, on_bad_rows="skip")
    assert [e.score for e in corpus.examples] == [1.0, -1000.0]
    assert [(row.line, row.field) for row in corpus.skipped] == [
        (2, "text_b"), (3, "text_b"), *[(i, "score") for i in (4, 5, 6, 7, 8, 9)], (10, ""),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"a\.jsonl, line 2, text_b: missing.* \(8 more bad rows\)"):
        read_sentences(path)


def test_lines_that_are_no_utf8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("甲\n".encode() + b"\xff\n" + "乙\n".encode())
    corpus = read_sentences(path, on_bad_rows="skip")
    assert [e.texts for e in corpus.examples] == [("甲",), ("乙",)] and corpus.skipped[0].line == 2
    with pytest.raises(InputError, match="line 2: invalid UTF-8"):
        read_sentences(path)


def test_triples_keep_to_one_form(tmp_path):
    rows = '{"anchor": "甲", "positive": "乙", "negative": "丙"}\n{"anchor": "甲", "positive": "乙"}\n'
    with pytest.raises(InputError, match="line 2, negative: missing"):
        read_sentences(write(tmp_path, "a.jsonl", rows))


@pytest.mark.parametrize(
    ("name", "text", "scheme", "message"),
    [
        ("a.txt", "甲\n", "pairs", r"it holds sentences .*; wanted are pairs \(text_a and text_b with score"),
        ("a.jsonl", '{"anchor": "a", "positive": "b"}\n', "pairs", "it holds triples"),
        ("a.csv", "x,y\n1,2\n", "", r"line 2 has 'x', 'y'; line 1 must name the columns, a file holds sentences"),
        ("a.jsonl", '{"text_a": "a", "text_b": "b"}\n', "", "line 1 has 'text_a', 'text_b'; a file holds sentences"),
        ("a.jsonl", '{"text_a": "a"\n', "", "line 1, column 15: not JSON"),
        ("a.txt", "\n \n", "", "the set is empty"),
        ("a.csv", "text\n", "", "the set is empty"),
    ],
)
def test_refusals(name, text, scheme, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_sentences(write(tmp_path, name, text), scheme=scheme)


def test_options():
    with pytest.raises(InputError, match="format must be one of auto, txt, jsonl, tsv, csv, got 'conll'"):
        read_sentences("x", format="conll")
    with pytest.raises(InputError, match="scheme must be one of"):
        read_sentences("x", scheme="words")


def test_other_examples_as_groups():
    texts = text_groups(Corpus([Labelled("甲", "z", 3)], "f", "jsonl"))
    assert (texts.scheme, texts.examples) == ("sentences", [TextGroup(("甲",), None, 3)])
    pairs = text_groups(
        Corpus([LabelledPair("甲", "乙", "", 2.5, 1), LabelledPair("甲", "乙", "0", None, 2)], "f", "x")
    )
    assert (pairs.scheme, [e.score for e in pairs.examples]) == ("pairs", [2.5, 0.0])
    with pytest.raises(InputError, match="ocnli:dev, line 4: the class 'neutral' does not say how alike"):
        text_groups(Corpus([LabelledPair("甲", "乙", "neutral", None, 4)], "ocnli:dev", "jsonl"))
    with pytest.raises(InputError, match="neither texts nor pairs"):
        text_groups(Corpus([Tagged(("甲",), ("O",), "甲", 1)], "f", "conll"))
