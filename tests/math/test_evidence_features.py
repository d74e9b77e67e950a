"""Features of evidence: against scalar loops over windows, in both placings, and at the borders."""

import functools
import random

import pytest
import torch

from danlu.math import (
    evidence_features,
    passage_overlap,
    question_overlap,
    window_edit_similarity,
    window_jaccard,
)

STREAM = random.Random(3)
CASES = [
    ("".join(STREAM.choices("abcd", k=STREAM.randint(1, 5))), "".join(STREAM.choices("abcde", k=STREAM.randint(1, 9))))
    for _ in range(12)
]


def window_of(question, passage, t, window):
    begin = t - (len(question) - 1) // 2 if window == "centre" else t
    return passage[max(0, begin) : max(0, begin + len(question))]


@functools.cache
def distance(a, b):  # oracle: the recursion as it is defined
    if not a or not b:
        return len(a) + len(b)
    replaced = distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(replaced, distance(a[1:], b) + 1, distance(a, b[1:]) + 1)


@pytest.mark.parametrize("window", ["centre", "start"])
def test_jaccard_of_every_window(window):
    for question, passage in CASES:
        expected = []
        for t in range(len(passage)):
            asked, seen = set(question), set(window_of(question, passage, t, window))
            expected.append(len(asked & seen) / len(asked | seen))
        torch.testing.assert_close(window_jaccard(question, passage, window), torch.tensor(expected))


@pytest.mark.parametrize("window", ["centre", "start"])
@pytest.mark.parametrize("relative", ["inverse", "length"])
def test_edits_of_every_window(window, relative):
    for question, passage in CASES:
        expected = []
        for t in range(len(passage)):
            seen = window_of(question, passage, t, window)
            d = distance(question, seen)
            expected.append(1 / (1 + d) if relative == "inverse" else 1 - d / max(len(question), len(seen)))
        torch.testing.assert_close(window_edit_similarity(question, passage, window, relative), torch.tensor(expected))


def test_overlaps():
    assert question_overlap("ab", "bca").tolist() == [1, 0, 1]
    first, second, third = passage_overlap(["aab", "bc", "d"])
    assert (first.tolist(), second.tolist(), third.tolist()) == ([0, 0, 0.5], [0.5, 0], [0])
    assert passage_overlap(["ab"])[0].tolist() == [0, 0]  # nobody else


def test_tokens_may_be_words():
    assert question_overlap(["New", "York"], ["in", "York"]).tolist() == [0, 1]
    assert window_edit_similarity(["New", "York"], ["New", "York"], "start").tolist() == pytest.approx([1, 1 / 2])


def test_all_four_together():
    value = evidence_features("ab", ["ab", "bx", ""])
    assert [tuple(v.shape) for v in value] == [(2, 4), (2, 4), (0, 4)]
    expected = torch.stack(
        [
            question_overlap("ab", "bx"),
            passage_overlap(["ab", "bx", ""])[1],
            window_jaccard("ab", "bx"),
            window_edit_similarity("ab", "bx"),
        ],
        -1,
    )
    torch.testing.assert_close(value[1], expected)


def test_an_empty_question_is_like_nothing():
    assert [v.tolist() for v in evidence_features("", ["ab"])] == [[[0.0] * 4] * 2]


def test_messages():
    with pytest.raises(ValueError, match=r"window must be 'centre' or 'start', got 'end'"):
        window_jaccard("a", "a", "end")
    with pytest.raises(ValueError, match=r"relative must be 'inverse' or 'length', got 'x'"):
        window_edit_similarity("a", "a", relative="x")
