"""Triples read: every form of a row, names located, entities moved, bad rows named, real sets."""

import json

import pytest

from danlu.data import read_triples
from danlu.data.errors import InputError
from danlu.data.triples import Relation, locate


@pytest.fixture
def read(tmp_path):
    def reads(*rows, **options):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
        return read_triples(path, **options)

    return reads


def named(example):
    return [(example.text[slice(*t.subject)], t.predicate, example.text[slice(*t.object)]) for t in example.triples]


@pytest.mark.parametrize(
    ("row", "located"),
    [
        ({"triples": [["王明", "住在", "北京"]]}, False),
        ({"spo": [["王明", "住在", "北京"]]}, False),
        ({"spo_list": [{"subject": "王明", "predicate": "住在", "object": {"@value": "北京"}}]}, False),
        ({"relations": [{"subject": [0, 2], "predicate": "住在", "object": [4, 6]}]}, True),
        ({"triples": [[[0, 2], " 住在 ", [4, 6]]]}, True),
        ({"triples": [[[0, 2, "PER"], "住在", [4, 6, "LOC"]]]}, True),
        ({"triples": [[0, "住在", 1]], "entities": [[0, 2, "PER"], [4, 6, "LOC"]]}, True),
        ({"triples": [[0, "住在", 1]], "entities": [["PER", 0, 2, "王明"], ["LOC", 4, 6, "北京"]]}, True),
    ],
)
def test_forms(read, row, located):
    example = read({"text": "王明住在北京。", **row}).examples[0]
    assert example.triples == (Relation((0, 2), "住在", (4, 6)),)
    assert (example.located, example.line, named(example)) == (located, 1, [("王明", "住在", "北京")])


def test_tokens_are_joined_and_spans_count_them(read):
    tokens = ["St.", "Albans", ",", "Vt.", "北", "京"]
    row = {"tokens": tokens, "spo": [[[0, 2], "in", [3, 4]], [[0, 1], "of", [4, 6]]]}
    example = read(row).examples[0]
    assert example.text == "St. Albans , Vt.北京"
    assert named(example) == [("St.", "of", "北京"), ("St. Albans", "in", "Vt.")]
    own = read({**row, "text": "St.  Albans, Vt. 北京"}).examples[0]
    assert named(own) == [("St.", "of", "北京"), ("St.  Albans", "in", "Vt.")]


def test_triples_are_sorted_and_stand_once_and_may_be_none(read):
    rows = [[[4, 6], "b", [0, 2]], [[0, 2], "a", [4, 6]], [[4, 6], "b", [0, 2]]]
    corpus = read({"text": "王明住在北京。", "triples": rows}, {"text": "无", "triples": []})
    assert [t.predicate for t in corpus.examples[0].triples] == ["a", "b"]
    assert (corpus.examples[1].triples, corpus.examples[1].located, corpus.examples[1].line) == ((), True, 2)


def test_blanks_at_the_ends_are_left_out(read):
    example = read({"text": "我 去 北京", "triples": [[[0, 2], "r", [3, 6]]]}).examples[0]
    assert example.triples == (Relation((0, 1), "r", (4, 6)),)


@pytest.mark.parametrize(
    ("text", "subject", "object", "expected"),
    [
        ("北京爱北京人", "北京", "人", ((3, 5), (5, 6))),  # the nearer mention
        ("1 . FC has 2714 and 27", "1", "27", ((0, 1), (20, 22))),  # neither 1 nor 27 in 2714
        ("in 2014", "1", "in", ((5, 6), (0, 2))),  # nothing but a part of a word
        ("Peter met Peter Lee", "Peter", "Peter Lee", ((0, 5), (10, 19))),  # apart before nested
        ("Peter Lee", "Peter", "Peter Lee", ((0, 5), (0, 9))),
        ("他是他", "他", "他", ((0, 1), (2, 3))),
        ("他", "他", "他", ((0, 1), (0, 1))),
        ("a-b-a", "b", "a", ((2, 3), (0, 1))),  # equally near: the first
        ("abc", "x", "a", None),
    ],
)
def test_names_are_located(text, subject, object, expected):
    assert locate(text, subject, object) == expected


def test_entities_that_stand_elsewhere(read):
    row = {
        "text": "我和他和我",
        "entities": [["P", 3, 4, "我"], ["P", 2, 3, "他"], ["P", 0, 1, "她"]],
        "spo": [[0, "r", 1], [2, "r", 1]],
    }
    with pytest.raises(InputError, match=r"line 1, entities\[0\]: the text has '和' at \[3, 4\], not '我'; .*'repair'"):
        read(row)
    corpus = read(row, on_bad_rows="repair")
    assert corpus.examples[0].triples == (Relation((4, 5), "r", (2, 3)),)
    assert [(r.field, r.reason.rpartition("; ")[2]) for r in corpus.repaired] == [
        ("entities[0]", "moved to [4, 5]"),
        ("entities[2]", "its triples are left out"),
        ("spo[1].subject", "the triple is left out"),
    ]


def test_line_ends_and_marks_in_an_entity_are_no_difference(read):
    row = {"text": "小楼\n，前", "entities": [["T", 0, 4, "小楼 ;"], ["T", 4, 5, "前"]], "spo": [[0, "r", 1]]}
    assert read(row).examples[0].triples == (Relation((0, 4), "r", (4, 5)),)


def test_a_name_that_does_not_occur(read):
    row = {"text": "王明住在北京。", "triples": [["王明", "住在", "上海"], ["王明", "住在", "北京"]]}
    with pytest.raises(
        InputError, match=r"line 1, triples\[0\].object: '上海' does not stand in the text '王明住.*out"
    ):
        read(row)
    corpus = read(row, on_bad_rows="repair")
    assert len(corpus.examples[0].triples) == len(corpus.repaired) == 1
    good = {"text": "王明", "triples": []}
    assert [len(c.skipped) for c in [read(row, good, on_bad_rows="skip")]] == [1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"triples": []}, "line 1, text: missing; the row has 'triples'"),
        ({"text": "甲"}, r"triples: missing; the row has 'text'; a text without triples has \[\]"),
        ({"text": " ", "triples": []}, "text: the text is empty"),
        ({"text": "甲", "triples": {}}, r"triples: expected a list \[\[subject, predicate, object\]"),
        ({"text": "甲", "triples": [["甲", "r"]]}, r"triples\[0\]: expected \[subject, predicate, object\], got"),
        ({"text": "甲", "spo": [{"subject": "甲", "object": "甲"}]}, r"spo\[0\]: .*predicate is missing"),
        ({"text": "甲", "triples": [["甲", "", "甲"]]}, "predicate must be a text that is not empty, got ''"),
        ({"text": "甲", "triples": [["甲", 3, "甲"]]}, "predicate must be a text that is not empty, got 3"),
        ({"text": "甲乙", "triples": [["甲", "r", [1, 2]]]}, "give both subject and object as texts, or both as spans"),
        ({"text": "甲乙", "triples": [[[0, 1], "r", [1, 3]]]}, r"\[1, 3\] does not lie in the text of 2 characters"),
        ({"text": "甲乙", "triples": [[[0, 1], "r", [1, 1]]]}, r"\[1, 1\] does not lie in"),
        ({"text": "甲乙", "triples": [[[0, 1], "r", [-1, 1]]]}, r"\[-1, 1\] does not lie in"),
        ({"text": "甲 乙", "triples": [[[0, 1], "r", [1, 2]]]}, r"\[1, 2\] holds nothing but blanks"),
        ({"text": "甲", "triples": [[0, "r", 0]]}, "there is no entity 0; the row has 0, counted from 0"),
        (
            {"text": "甲", "triples": [[None, "r", [0, 1]]]},
            "expected a text, .start, end.*or an entity's number, got None",
        ),
        ({"text": "甲", "triples": [[True, "r", [0, 1]]]}, "or an entity's number, got True"),
        ({"text": "甲", "triples": [["甲", "r", " "]]}, r"triples\[0\].object: the text is empty"),
        ({"text": "甲", "triples": [], "entities": 3}, "entities: expected a list"),
        ({"text": "甲", "triples": [], "entities": [["P", 0]]}, r"entities\[0\]: expected \[start, end, type\], got"),
        ({"tokens": [], "triples": []}, "tokens: expected a list of texts with at least one"),
        ({"tokens": ["a", "b"], "text": "ab c", "triples": [[[0, 3], "r", [0, 1]]]}, r"the text of 2 tokens"),
        ({"tokens": ["a", "b"], "text": "a c b", "triples": []}, r"tokens\[1\]: 'b' is not what follows"),
    ],
)
def test_a_bad_row_is_named(read, row, message):
    with pytest.raises(InputError, match=message):
        read(row)


def test_only_json_lines(read):
    with pytest.raises(InputError, match="format must be one of auto, jsonl, got 'csv'; triples are read from JSON"):
        read({}, format="csv")


@pytest.mark.data
def test_real_sets(shared):
    sizes = {}
    for name in ("webnlg/test", "conll04/test", "zh-literature-ie/test"):
        corpus = read_triples(shared / "data" / f"{name}.jsonl.gz", on_bad_rows="repair")
        sizes[name] = len(corpus), sum(len(e.triples) for e in corpus.examples), len(corpus.repaired)
        for example in corpus.examples:
            for t in example.triples:
                for start, end in (t.subject, t.object):
                    assert 0 <= start < end <= len(example.text)

    assert sizes == {
        "webnlg/test": (703, 1607, 0),
        "conll04/test": (288, 422, 0),
        "zh-literature-ie/test": (84, 1670, 6),
    }
