"""Scores of answers: by hand, against scalar loops, and the cases in which CMRC's and WebQA's measures differ."""

import itertools
import random

import pytest

from danlu.math import answer_f1, answer_match, answer_scores, answer_segments


def longest_run_by_hand(a, b):  # oracle: every run of a, looked for in b
    runs = [a[i:j] for i in range(len(a)) for j in range(i + 1, len(a) + 1)]
    return max((len(r) for r in runs if any(b[k : k + len(r)] == r for k in range(len(b)))), default=0)


def f1_by_hand(common, p, g):
    return 0.0 if not common else 2 * (common / p) * (common / g) / (common / p + common / g)


def texts(count):
    stream = random.Random(1)
    return ["".join(stream.choices("北京大学,。", k=stream.randint(1, 6))) for _ in range(count)]


def test_f1_is_the_formula_over_all_pairs():
    for p, g in itertools.product(texts(12), texts(12)):
        a, b = answer_segments(p), answer_segments(g)
        assert answer_f1(p, [g]) == pytest.approx(f1_by_hand(longest_run_by_hand(a, b), len(a) or 1, len(b) or 1))
        shared = sum(min(a.count(x), b.count(x)) for x in set(a))
        assert answer_f1(p, [g], "bag") == pytest.approx(f1_by_hand(shared, len(a) or 1, len(b) or 1))


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("北京", ["北", "京"]),
        ("《Win 10》系统", ["win", "10", "系", "统"]),
        ("3.5英寸", ["3.5", "英", "寸"]),
        ("1,000 km", ["1,000", "km"]),
        ("AT&T", ["at", "&", "t"]),
        ("A-B", ["ab"]),  # the scorer of CMRC drops the mark before it cuts words
        ("4s", ["4s"]),
        ("，。", []),
        ("", []),
    ],
)
def test_segments(text, segments):
    assert answer_segments(text) == segments


def test_what_counts_as_the_same():
    assert answer_match("《红楼梦》", ["红楼梦"]) == 1
    assert answer_match("2 米", ["2米"]) == 0  # CMRC keeps inner blanks and full-width forms
    assert answer_match("２米", ["2米"]) == 0
    assert answer_match(" ２ 米！", ["2米"], "webqa") == 1
    assert answer_match("北京(市)", ["北京市"], "webqa") == 1
    assert answer_match("北京", ["上海", "北京"]) == 1
    assert answer_match("BJ", ["bj"]) == 1


def test_no_answer():
    assert (answer_match("", []), answer_f1("", []), answer_match("甲", []), answer_f1("甲", [])) == (1, 1, 0, 0)
    assert (answer_match("", ["甲"]), answer_f1("", ["甲"])) == (0, 0)


def test_the_best_of_several_answers_counts():
    assert answer_f1("北京大学", ["清华", "北京大学", "大学"]) == 1
    assert answer_f1("北京", ["北京大学", "京"]) == pytest.approx(2 / 3)


def test_order_matters_for_runs_only():
    assert answer_f1("学大京北", ["北京大学"]) == pytest.approx(1 / 4)
    assert answer_f1("学大京北", ["北京大学"], "bag") == 1


def test_means():
    found, gold = ["北京", "上海市", ""], [["北京"], ["上海"], ["广州"]]
    got = answer_scores(found, gold)
    assert got == pytest.approx({"em": 1 / 3, "f1": (1 + 4 / 5) / 3, "score": (1 / 3 + 3 / 5) / 2})
    assert answer_scores([], []) == {"em": 0.0, "f1": 0.0, "score": 0.0}


def test_messages():
    with pytest.raises(ValueError, match=r"plain must be one of cmrc, webqa, got 'x'"):
        answer_segments("a", "x")
    with pytest.raises(ValueError, match=r"overlap must be 'run'.*got 'x'"):
        answer_f1("a", ["a"], "x")
    with pytest.raises(ValueError, match=r"got 1 for 2; give '' for none"):
        answer_scores(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match=r"write \[\[answer\], \.\.\.\]"):
        answer_scores(["a"], ["a"])
