"""Spans laid over text: by hand for each kind, random spans against set counting, and the texts of the errors."""

import itertools
import random

import pytest

from danlu.gallery.spans import entity_pieces, word_pieces

TEXT = "张三昨天去了北京大学"


def kinds(gold, pred):
    return [(p.kind, p.text) for p in entity_pieces(TEXT, gold, pred) if p.kind != "plain"]


@pytest.mark.parametrize(
    ("gold", "pred", "expected"),
    [
        ([(0, 2, "PER")], [(0, 2, "PER")], [("correct", "张三")]),
        ([(0, 2, "PER")], [(0, 2, "LOC")], [("wrong", "张三")]),
        ([(0, 2, "PER")], [], [("missed", "张三")]),
        ([], [(0, 2, "PER")], [("spurious", "张三")]),
        ([(6, 10, "ORG")], [(6, 8, "LOC")], [("boundary", "北京大学")]),
        ([(6, 8, "LOC")], [(7, 10, "ORG")], [("boundary", "北京大学")]),
        ([(0, 2, "PER")], [(2, 4, "PER")], [("missed", "张三"), ("spurious", "昨天")]),  # neighbours do not overlap
        ([(6, 10, "ORG"), (6, 8, "LOC")], [(6, 10, "ORG"), (6, 8, "LOC")], [("correct", "北京大学")]),  # nested
        ([(6, 10, "ORG"), (6, 8, "LOC")], [(6, 10, "ORG")], [("boundary", "北京大学")]),
    ],
)
def test_kinds(gold, pred, expected):
    assert kinds(gold, pred) == expected


def test_types_and_rows_of_a_boundary_error():
    piece = entity_pieces(TEXT, [(6, 10, "ORG")], [(6, 8, "LOC"), (7, 10, "ORG")])[-1]
    assert (piece.gold_type, piece.pred_type) == ("ORG", "LOC + ORG")
    assert piece.gold == (("北京大学", "ORG"),)
    assert piece.pred == (("北", "LOC"), ("京", "LOC + ORG"), ("大学", "ORG"))
    outside = entity_pieces(TEXT, [(6, 10, "")], [(7, 9, "")])[-1]
    assert outside.pred == (("北", None), ("京大", ""), ("学", None))  # an untyped span is not "no span"


@pytest.mark.parametrize("seed", range(30))
def test_random_spans_cover_the_text_and_agree_with_set_counting(seed):
    rng = random.Random(seed)
    text = "".join(rng.choice("一二三四五六七八九十") for _ in range(rng.randint(1, 14)))

    def flat():  # spans that do not overlap, as taggers give them
        cuts = sorted(rng.sample(range(len(text) + 1), min(len(text) + 1, 6)))
        return [(a, b, rng.choice("XY")) for a, b in itertools.pairwise(cuts) if rng.random() < 0.6]

    gold, pred = flat(), flat()
    pieces = entity_pieces(text, gold, pred)
    assert "".join(p.text for p in pieces) == text
    for side in ("gold", "pred"):
        assert all("".join(part for part, _ in getattr(p, side)) == p.text for p in pieces if p.kind == "boundary")
    assert sum(p.kind == "correct" for p in pieces) <= len(set(gold) & set(pred))
    alone = [s for s in set(gold) & set(pred)]
    assert sum(p.kind == "correct" for p in pieces) == len(alone)  # flat spans that agree overlap nothing else
    pairs = word_pieces(text, gold, pred)
    assert "".join(w for p in pairs for w in p.gold) == "".join(w for p in pairs for w in p.pred) == text
    gold_cuts, pred_cuts = ({i for s in side for i in s[:2]} | {0, len(text)} for side in (gold, pred))
    assert len(pairs) == len(gold_cuts & pred_cuts) - 1
    assert all(len(p.gold) == 1 for p in pairs if p.agrees)


def test_words_by_hand():
    pairs = word_pieces("研究生命科学", [(0, 3, ""), (3, 4, ""), (4, 6, "")], [(0, 2, ""), (2, 4, ""), (4, 6, "")])
    assert [(p.gold, p.pred, p.agrees) for p in pairs] == [
        (("研究生", "命"), ("研究", "生命"), False),
        (("科学",), ("科学",), True),
    ]


def test_empty_text_has_no_pieces():
    assert entity_pieces("", [], []) == word_pieces("", [], []) == []


@pytest.mark.parametrize("span", [(0, 11, "PER"), (3, 3, "PER"), (5, 2, "PER"), (-1, 2, "PER")])
@pytest.mark.parametrize("cut", [entity_pieces, word_pieces])
def test_a_span_outside_its_text_is_named(span, cut):
    with pytest.raises(
        ValueError, match=r"predicted span \(.*'PER'\) does not lie in its text of 10 characters; .*end exclusive"
    ):
        cut(TEXT, [], [span])
