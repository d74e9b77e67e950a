"""Arcs over a text: kinds, places on the grid, arrows, levels without collisions, lines, harmless text, messages."""

import itertools
import re
import xml.etree.ElementTree as ET

import pytest

from danlu.gallery.arcs import CELL, EDGE, STEP, arcs
from danlu.gallery.page import training_page

TEXT = "张三和Bob去北京"
GOLD, PRED = [[0, 2, "去", 7, 9], [3, 6, "去", 7, 9]], [[0, 2, "去", 7, 9], [0, 2, "友", 3, 6]]


def parsed(svg):
    return ET.fromstring(svg)


def lines(tree, css):
    """(kind, title, path) of every drawn line of a class."""
    found = []
    for node in tree.iter("path"):
        name, _, kind = node.get("class").partition(" ")
        if name == css:
            found.append((kind, node.findtext("title"), node.get("d")))
    return found


def across(path):
    """(left, right, height) of an arc's horizontal part."""
    height = re.search(r"Q[\d.]+ ([\d.]+) |M[\d.]+ ([\d.]+)H", path)
    numbers = [float(x) for x in re.findall(r"(?:M|H|Q|Q[\d.]+ [\d.]+ )([\d.]+)", path)]
    return min(numbers), max(numbers), float(height[1] or height[2])


def test_what_agrees_is_correct_the_rest_is_missed_or_spurious():
    tree = parsed(arcs(TEXT, GOLD, PRED))
    assert sorted((kind, title) for kind, title, _ in lines(tree, "arc")) == [
        ("correct", "张三 → 去 → 北京 (correct)"),
        ("missed", "Bob → 去 → 北京 (missed)"),
        ("spurious", "张三 → 友 → Bob (spurious)"),
    ]
    labels = [(t.get("class"), t.text) for t in tree.iter("text") if t.get("class") != "letters"]
    assert sorted(labels) == [("correct", "去"), ("missed", "去 · missed"), ("spurious", "友 · spurious")]
    assert tree.get("aria-label") == ("Triples: 张三 去 北京: correct; 张三 友 Bob: spurious; Bob 去 北京: missed")


def test_a_span_of_a_right_triple_is_right():
    bars = [kind for kind, *_ in lines(parsed(arcs(TEXT, GOLD, PRED)), "under")]
    assert bars == ["correct", "missed", "correct"]  # Zhang San, Bob, Beijing: in the order of the text


def test_subject_and_object_are_told_apart():
    assert [k for k, *_ in lines(parsed(arcs("甲乙", [[0, 1, "r", 1, 2]], [[1, 2, "r", 0, 1]])), "arc")] == [
        "missed",
        "spurious",
    ]


def test_an_arc_stands_over_the_middles_and_points_at_the_object():
    for triple, arrow in (([0, 2, "r", 3, 6], 8.5), ([3, 6, "r", 0, 2], 2.0)):
        tree = parsed(arcs(TEXT, [triple], []))
        left, right, _ = across(lines(tree, "arc")[0][2])
        assert (left, right) == pytest.approx(
            (EDGE + 2 * CELL, EDGE + 7.5 * CELL), abs=0.06
        )  # 张三: cells 0-4, Bob 6-9
        tip = float(re.match(r"M([\d.]+)", lines(tree, "tip")[0][2])[1]) + 3.5
        assert tip == pytest.approx(left if arrow == 2.0 else right, abs=0.06)


def test_every_letter_stands_at_its_cell():
    tree = parsed(arcs("ab 北c", [[0, 1, "r", 3, 4]], []))
    letters = [(t.text, float(t.get("x"))) for t in tree.iter("tspan")]
    cells = {"a": 0.5, "b": 1.5, "北": 4.0, "c": 5.5}
    assert letters == [(c, pytest.approx(EDGE + cells[c] * CELL, abs=0.06)) for c in "ab北c"]


def test_arcs_of_one_level_do_not_meet_and_short_ones_lie_low():
    text = "".join(chr(0x4E00 + i) for i in range(30))
    triples = [
        [a, a + 1, "很长的关系", b, b + 1]
        for a, b in [(0, 29), (1, 3), (2, 9), (4, 6), (12, 20), (14, 16), (21, 28), (24, 29)]
    ]
    tree = parsed(arcs(text, triples, triples))
    drawn = sorted((across(path)[2], *across(path)[:2]) for _, _, path in lines(tree, "arc"))
    assert len(drawn) == len(triples)
    assert len({round(y) for y, *_ in drawn}) > 1
    for (y, _, end), (other, start, _) in itertools.pairwise(drawn):
        assert round(y) != round(other) or end < start
    assert drawn[0][2] - drawn[0][1] == max(right - left for _, left, right in drawn)  # the longest on top
    assert all(abs((y - drawn[-1][0]) / STEP - round((y - drawn[-1][0]) / STEP)) < 0.02 for y, *_ in drawn)


def test_between_lines_an_arc_leaves_right_and_comes_back_left():
    text = "北京" * 10  # 40 cells in lines of 16: 8 characters each
    tree = parsed(arcs(text, [[1, 3, "r", 18, 19]], [], columns=16))
    parts = [across(path)[:2] for _, _, path in lines(tree, "arc")]
    edge = EDGE + 16 * CELL
    assert [right > edge for _, right in parts] == [True, True, False]
    assert [left < EDGE for left, _ in parts] == [False, True, True]
    assert len(lines(tree, "tip")) == 1  # one arrow, on the last line
    rows = [t for t in tree.iter("text") if t.get("class") == "letters"]
    assert [len(list(row)) for row in rows] == [8, 8, 4]


def test_words_stay_whole_and_line_ends_break():
    rows = [t for t in parsed(arcs("go to Paris now\n北", [[0, 2, "r", 3, 5]], [], columns=8)).iter("text")
            if t.get("class") == "letters"]  # fmt: skip
    assert ["".join(t.text for t in row) for row in rows] == ["goto", "Paris", "now", "北"]
    first = [float(row[0].get("x")) for row in rows]
    assert first[:3] == pytest.approx([EDGE + CELL / 2] * 3, abs=0.06)  # no blank at a line's start


def test_foreign_text_is_harmless():
    attack = '<script>&"\u202e'
    svg = arcs(attack + "甲", [[0, 8, attack, 11, 12]], [])
    tree = parsed(svg)
    assert "<script" not in svg
    assert "\u202e" not in "".join(tree.itertext())
    assert parsed(arcs("", [], [])).get("aria-label") == "Triples: none"


@pytest.mark.parametrize("side", ["gold", "predicted"])
def test_messages(side):
    bad = [[0, 2, "r", 1, 3]]
    with pytest.raises(ValueError, match=rf"the {side} triple \[0, 2, 'r', 1, 3\] does not lie in the text of 2 char"):
        arcs("甲乙", *((bad, []) if side == "gold" else ([], bad)))
    with pytest.raises(ValueError, match="at least 8 columns, got 7"):
        arcs("甲", [], [], columns=7)


def test_the_section_stands_on_the_page():
    record = {
        "kind": "train",
        "title": "Triples",
        "triples": {
            "breakdown": [["pair", 0.25, 0.5, 0.3333, 7], ["1 triple", 0.1, 0.2, 0.1333, 9]],
            "examples": [{"text": TEXT, "line": 3, "gold": GOLD, "pred": PRED}],
        },
    }
    page = training_page(record)
    assert page.count('class="arc correct"') == 2  # the legend and the arc
    for text in ("share subject and object", "0.2500", "0.3333", "number 1<"):
        assert text in page
    assert 'id="triples"' not in training_page({"kind": "train", "title": "none"})
    assert 'id="triples"' not in training_page({"kind": "train", "title": "none", "triples": {"examples": []}})
