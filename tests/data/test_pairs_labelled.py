"""Pairs with a class or a score: every way to write them, and what is refused, by file, line and field."""

import pytest

from danlu.data import read_labelled_pairs
from danlu.data.errors import InputError
from danlu.data.pairs_labelled import PAIR_NAMES


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("names", PAIR_NAMES)
@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv"])
def test_all_names_in_all_formats(names, ending, tmp_path):
    a, b = names
    sign = {"csv": ",", "tsv": "\t"}.get(ending)
    text = (
        f'{{"{a}": "甲", "{b}": "乙", "label": 1}}\n'
        if sign is None
        else f"{b}{sign}label{sign}{a}\n乙{sign}1{sign}甲\n"
    )
    corpus = read_labelled_pairs(write(tmp_path / f"x.{ending}", text))
    (pair,) = corpus.examples
    assert (pair.text_a, pair.text_b, pair.label, pair.score, pair.text) == ("甲", "乙", "1", None, "甲\n乙")
    assert (pair.line, corpus.scheme) == (1 if sign is None else 2, "label")


def test_scores(tmp_path):
    path = write(
        tmp_path / "x.jsonl", '{"text1": "甲", "text2": "乙", "score": 2.5}\n{"text1": "a", "text2": "b", "score": 0}\n'
    )
    corpus = read_labelled_pairs(path)
    assert ([e.score for e in corpus.examples], corpus.scheme, corpus.examples[0].label) == ([2.5, 0.0], "score", "")
    table = write(tmp_path / "x.csv", "query,title,score\n甲,乙,1e0\n")
    assert read_labelled_pairs(table).examples[0].score == 1.0


def test_the_target_decides_where_a_row_has_both(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"text_a": "甲", "text_b": "乙", "score": 2.5, "label": "y"}\n')
    assert read_labelled_pairs(path).examples[0].label == "y"
    assert read_labelled_pairs(path, target="score").examples[0].score == 2.5


def test_one_of_two_names_is_no_pair(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"query": "id 7", "premise": "甲", "hypothesis": "乙", "label": "y"}\n')
    assert read_labelled_pairs(path).examples[0].text == "甲\n乙"


def test_rows_without_a_class_are_bad_rows(tmp_path):
    rows = '{"text_a": "甲", "text_b": "乙", "label": "-"}\n{"text_a": "甲", "text_b": "丙", "label": "yes"}\n'
    path = write(tmp_path / "x.jsonl", rows)
    corpus = read_labelled_pairs(path, unlabelled=["-"], on_bad_rows="skip")
    assert (len(corpus), corpus.skipped[0].line, corpus.skipped[0].field) == (1, 1, "label")
    with pytest.raises(InputError, match="'-' says that there is no class"):
        read_labelled_pairs(path, unlabelled=["-"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "x.csv",
            "a,b,label\n甲,乙,1\n",
            r"no columns for the two texts, text_a and text_b \(or text1 and text2.*found 'a'",
        ),
        ("x.csv", "text_a,text_b,class\n甲,乙,1\n", "no column label or score; found 'text_a'"),
        ("x.jsonl", '{"text_a": "甲", "label": 1}\n', "line 1, text_b: missing"),
        ("x.jsonl", '{"text_a": "甲", "text_b": " ", "label": 1}\n', "line 1, text_b: the text is empty"),
        ("x.jsonl", '{"text_a": "甲", "text_b": "乙", "label": true}\n', "line 1, label: expected a text or a whole"),
        ("x.jsonl", '{"text_a": "甲", "text_b": "乙", "score": NaN}\n', "line 1, score: expected a finite number"),
        (
            "x.jsonl",
            '{"text_a": "甲", "text_b": "乙", "score": true}\n',
            "line 1, score: expected a finite number, got True",
        ),
        ("x.csv", "text_a,text_b,score\n甲,乙,viel\n", "line 2, score: expected a number, got 'viel'"),
        ("x.csv", "text_a,text_b,score\n", "the set is empty"),
    ],
)
def test_messages(name, text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_labelled_pairs(write(tmp_path / name, text))


def test_options(tmp_path):
    path = write(tmp_path / "x.csv", "text_a,text_b,label\n甲,乙,1\n")
    with pytest.raises(InputError, match="target must be one of auto, label, score, got 'sum'"):
        read_labelled_pairs(path, target="sum")
    with pytest.raises(InputError, match="format must be one of auto, jsonl, tsv, csv"):
        read_labelled_pairs(path, format="xml")


@pytest.mark.data
def test_sets_of_the_data_folder(shared):
    from danlu.tasks.datasets import load

    assert [len(load("ocnli", part)) for part in ("train", "dev")] == [10_000 - 15, 3_000 - 50]
    assert load("stsb-zh", "dev").scheme == "score"
    assert load("fewclue-bustm", "train").labels == ["0", "1"]
