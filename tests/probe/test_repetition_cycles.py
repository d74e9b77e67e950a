"""Cycles: their contributions add up to the index, each is met once, the largest come first."""

import itertools
import math

import pytest
import torch

from danlu.probe import repetition_index, top_cycles


def random_matrix(n, seed, share=1.0):
    full = torch.randn(n, n + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return share * full.mul(2).softmax(1)[:, :n]


def by_hand(P, longest):
    """Oracle: all words, one of each class of rotations, none that is a power."""
    found = {}
    for k in range(1, longest + 1):
        for word in itertools.product(range(len(P)), repeat=k):
            turns = {word[i:] + word[:i] for i in range(k)}
            if len(turns) == k and word == min(turns):
                w = math.prod(float(P[a, b]) ** 2 for a, b in zip(word, (*word[1:], word[0]), strict=True))
                found[word] = k * w / (1 - w)
    return found


def test_equal_all_words_one_by_one():
    P = random_matrix(4, 0)
    expected = by_hand(P, 5)
    got = top_cycles(P, 10_000, 5, 1e-30)
    assert {c.tokens: c.contribution for c in got} == pytest.approx(expected)
    assert [c.contribution for c in got] == sorted(expected.values(), reverse=True)
    assert all(len(c.tokens) * c.probability**2 == pytest.approx(c.contribution, rel=0.6) for c in got)


def test_contributions_add_up_to_the_index():
    P = random_matrix(3, 1, share=0.4)
    total = sum(c.contribution for c in top_cycles(P, 10**6, 8, 1e-15))
    assert total == pytest.approx(repetition_index(P), rel=1e-5)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_the_first_are_the_largest(count):
    P = random_matrix(8, 2)
    expected = sorted(by_hand(P, 4).values(), reverse=True)[:count]
    assert [c.contribution for c in top_cycles(P, count, 4)] == pytest.approx(expected)
    assert top_cycles(P, count, 4) == top_cycles(P.to_sparse(), count, 4)


def test_probability_is_that_of_going_round_once():
    P = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.4], [0.3, 0.0, 0.0]])
    (cycle,) = top_cycles(P)
    assert cycle.tokens == (0, 1, 2)
    assert cycle.probability == pytest.approx(0.06)
    assert cycle.contribution == pytest.approx(3 * 0.0036 / (1 - 0.0036))


def test_length_and_least_are_limits():
    P = torch.tensor([[0.0, 0.9, 0.0], [0.0, 0.0, 0.9], [0.9, 0.0, 0.01]])
    assert [c.tokens for c in top_cycles(P, max_length=2)] == [(2,)]
    assert [c.tokens for c in top_cycles(P, max_length=2, least=1e-3)] == []
    assert [c.tokens for c in top_cycles(P, max_length=2, least=5e-4)] == []  # it contributes 1e-4
    assert top_cycles(torch.tensor([[0.0007**0.5]]), least=1e-3) == []
    assert [c.tokens for c in top_cycles(P, count=2, max_length=3)] == [(0, 1, 2), (2,)]


def test_messages():
    with pytest.raises(ValueError, match=r"count >= 1, max_length >= 1 and least > 0; got 0, 6, 1e-06"):
        top_cycles(torch.eye(2), 0)
    for settings in ({"max_length": 0}, {"least": 0.0}, {"least": float("nan")}):
        with pytest.raises(ValueError, match="count >= 1, max_length >= 1 and least > 0; got"):
            top_cycles(torch.eye(2), **settings)
    with pytest.raises(ValueError, match=r"top_cycles needs a square matrix"):
        top_cycles(torch.ones(2))
