"""Pairs of source, condition and target: every form of a row, one form a file, every refusal with its place."""

import json

import pytest

from danlu.data.errors import InputError
from danlu.data.pairs import Condition, Pair, read_condition, read_pairs


def written(folder, name, *rows):
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_sources_and_targets(tmp_path):
    path = written(tmp_path, "a.jsonl", {"source": "摘要", "target": "题"}, "", {"source": "b ", "target": "c"})
    corpus = read_pairs(path)
    assert corpus.examples == [Pair("摘要", "题", Condition(), 1), Pair("b ", "c", Condition(), 3)]
    assert [e.text for e in corpus.examples] == ["摘要", "b "] and corpus.format == "jsonl"


@pytest.mark.parametrize(
    ("value", "condition", "shown", "kind"),
    [
        ("好", Condition((("condition", "好"),)), "好", "the label condition"),
        (1, Condition((("condition", "1"),)), "1", "the label condition"),
        (
            {"form": "7-jueju", "author": "李白"},
            Condition((("author", "李白"), ("form", "7-jueju"))),
            "author 李白, form 7-jueju",
            "the labels author, form",
        ),
        ([0, -1.5], Condition(vector=(0.0, -1.5)), "vector of 2 numbers", "a vector of 2 numbers"),
    ],
)
def test_conditions(tmp_path, value, condition, shown, kind):
    example = read_pairs(written(tmp_path, "a.jsonl", {"target": "诗", "condition": value})).examples[0]
    assert example == Pair("", "诗", condition, 1) and example.text == "诗"
    assert (str(condition), condition.kind) == (shown, kind) and condition
    assert read_condition(value) == condition
    both = read_pairs(written(tmp_path, "b.jsonl", {"source": "s", "target": "诗", "condition": value})).examples[0]
    assert both == Pair("s", "诗", condition, 1) and both.text == "s"


def test_tables_and_fields_of_other_names(tmp_path):
    table = written(tmp_path, "a.tsv", "target\tcondition.form\tcondition.author", "诗\tjueju\t李白")
    expected = Condition((("author", "李白"), ("form", "jueju")))
    assert read_pairs(table).examples == [Pair("", "诗", expected, 2)]
    plain = written(tmp_path, "b.csv", "source,target,condition", 'x,"y,z",1')
    assert read_pairs(plain).examples == [Pair("x", "y,z", Condition((("condition", "1"),)), 2)]
    named = written(tmp_path, "c.jsonl", {"text": "诗", "author": "李白", "form": "jueju", "title": "t"})
    found = read_pairs(named, target_field="text", condition_fields=["form", "author"]).examples
    assert found == [Pair("", "诗", expected, 1)]
    other = written(tmp_path, "d.jsonl", {"input": "i", "output": "o"})
    assert read_pairs(other, source_field="input", target_field="output").examples == [Pair("i", "o", Condition(), 1)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"source": "a"}], "line 1, target: missing; the row has 'source'"),
        ([{"target": "a"}], "line 1, source: missing; the row has 'target'"),
        ([{"source": " ", "target": "a"}], "line 1, source: the text is empty"),
        ([{"source": "a", "target": ""}], "line 1, target: the text is empty"),
        ([{"source": 3, "target": "a"}], "line 1, source: expected a text, got a number"),
        ([{"target": "a", "condition": []}], "condition: the vector is empty"),
        ([{"target": "a", "condition": [1, True]}], r"condition\[1\]: expected a finite number, got 'True'"),
        ([{"target": "a", "condition": [1, "x"]}], r"condition\[1\].*labels need names: {name: label}"),
        (['{"target": "a", "condition": [NaN]}'], r"condition\[0\]: expected a finite number, got 'nan'"),
        ([{"target": "a", "condition": {}}], "condition: the condition names no label"),
        ([{"target": "a", "condition": {"form": 1.5}}], "condition.form: expected a label .*1.5"),
        ([{"target": "a", "condition": {"form": " "}}], "condition.form: the text is empty"),
        ([{"target": "a", "condition": "x"}, {"target": "a", "condition": [1]}],
         "line 2, condition: the row has a vector of 1 numbers, line 1 has the label condition; all rows"),
        ([{"target": "a", "condition": [1, 2]}, {"target": "a", "condition": [1]}],
         "a vector of 1 numbers, line 1 has a vector of 2"),
        ([{"target": "a", "condition": {"x": "1"}}, {"target": "a", "condition": {"y": "1"}}],
         "the label y, line 1 has the label x"),
        ([{"source": "s", "target": "a", "condition": 1}, {"target": "a", "condition": 1}],
         "line 2, source: the row has no source, line 1 has one"),
        ([{"target": "a", "condition": 1}, {"source": "s", "target": "a", "condition": 1}],
         "line 2, source: the row has a source, line 1 has none"),
        ([{"source": "s", "target": "a"}, {"source": "s", "target": "a", "condition": 1}],
         "line 2, condition: the row has the label condition, line 1 has no condition"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path, rows, message):
    path = written(tmp_path, "a.jsonl", *rows)
    with pytest.raises(InputError, match=message):
        read_pairs(path)
    good = {"source": "g", "target": "a"} if "source" in str(rows[0]) and len(rows) == 1 else None
    if good:
        corpus = read_pairs(written(tmp_path, "b.jsonl", good, *rows), on_bad_rows="skip")
        assert len(corpus) == 1 and [row.line for row in corpus.skipped] == [2]


def test_other_refusals(tmp_path):
    path = written(tmp_path, "a.jsonl", {"source": "s", "target": "a"})
    with pytest.raises(InputError, match="format must be one of auto, jsonl, tsv, csv"):
        read_pairs(path, format="conll")
    with pytest.raises(InputError, match="no column 'target' in the header"):
        read_pairs(written(tmp_path, "b.csv", "source,title", "x,y"))
    for value, message in (([], "the vector is empty"), ([10**400], "expected a finite number, got '1000")):
        with pytest.raises(InputError, match=message):
            read_condition(value)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "number", "kind"),
    [
        ("csl-titles", 1_000, "no condition"),
        ("tang-poetry", 1_161, "the labels author, form"),
        ("song-ci", 427, "the label rhythmic"),
        ("zh-sentiment-generate", 2_111, "the label label"),
    ],
)
def test_named_sets(shared, name, number, kind):
    from danlu.tasks.datasets import load

    corpus = load(name, "test", task="generate")
    assert len(corpus) + len(corpus.skipped) == number and len(corpus.skipped) < 3
    assert {e.condition.kind for e in corpus.examples} == {kind}
    assert all(bool(e.source) == (name == "csl-titles") for e in corpus.examples)
