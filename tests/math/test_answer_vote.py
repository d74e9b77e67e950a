"""Voting over passages: the post's numbers, invariances, and what takes no part."""

import itertools

import pytest

from danlu.math import vote


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([0.9], 0.426316), ([0.3] * 3, 0.142105), ([0.5, 0.5], 0.25), ([0.9, 0.1], 0.41)],
)
def test_the_squared_vote(scores, expected):
    assert vote([{"甲": s} for s in scores])["甲"] == pytest.approx(expected, abs=1e-6)


def test_the_other_rules():
    passages = [{"甲": 0.5, "乙": 0.6}, {"甲": 0.4}]
    assert vote(passages, "sum") == pytest.approx({"甲": 0.9, "乙": 0.6})
    assert list(vote(passages, "max")) == ["乙", "甲"]
    assert vote(passages, "max") == {"乙": 0.6, "甲": 0.5}


def test_sure_voices_beat_many_weak_ones():
    passages = [{"sure": 0.9}] + [{"weak": 0.3}] * 3  # the sums are equal
    assert next(iter(vote(passages))) == "sure"
    assert vote(passages, "sum")["weak"] == pytest.approx(vote(passages, "sum")["sure"])


def test_the_order_of_passages_has_no_influence():
    passages = [{"甲": 0.5, "乙": 0.2}, {"乙": 0.7}, {}, {"丙": 0.1}]
    results = [vote(order) for order in itertools.permutations(passages)]
    assert all(result == pytest.approx(results[0]) for result in results)
    assert all(list(result) == list(results[0]) for result in results)


def test_no_passage_and_no_text():
    assert vote([]) == {}
    assert vote([{}, {"": 0.9}]) == {}


def test_messages():
    with pytest.raises(ValueError, match=r"rule must be one of squared, sum, max, got 'mean'"):
        vote([{"甲": 0.5}], "mean")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1\.5 for '甲'; give probabilities"):
        vote([{"甲": 1.5}])
