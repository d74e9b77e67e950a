"""Segmentation by impacts: cuts by hand, thresholds against searching all of them, the lexicon, messages."""

import math

import pytest
import torch

from danlu.probe import build_lexicon, cut_threshold, cut_words


def draw(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(n, generator=generator, dtype=torch.float64) * 10 for n in sizes]


def test_cuts_are_strictly_below_the_threshold():
    assert cut_words("abcd", [1.0, 2.0, 3.0], 2.0) == ["a", "bcd"]
    assert cut_words("abcd", torch.tensor([1.0, 2.0, 3.0]), math.inf) == list("abcd")
    assert cut_words("abcd", [1.0, 2.0, 3.0], -math.inf) == ["abcd"]
    assert cut_words(["科 ", "学"], [0.0], 1.0) == ["科 ", "学"]
    assert (cut_words("", [], 1.0), cut_words("a", [], 1.0)) == ([], ["a"])
    assert cut_words("ab", [math.nan], 1.0) == ["ab"]


@pytest.mark.parametrize("mean_length", [1.0, 1.3, 1.6, 2.5, 4.0, 100.0])
def test_mean_length_is_met(mean_length):
    scores = draw(9, 0, 30, 14)
    pieces, texts = sum(len(s) + 1 for s in scores), len(scores)
    threshold = cut_threshold(scores, "length", mean_length)
    words = texts + sum(int((s < threshold).sum()) for s in scores)
    assert words == max(texts, min(pieces, round(pieces / mean_length)))
    assert cut_threshold([s * 7 for s in scores], "length", mean_length) == pytest.approx(7 * threshold)


def test_otsu_is_the_best_of_all_thresholds():
    for seed in range(10):
        scores = draw(12, 5, seed=seed)
        values = sorted(torch.cat(scores).tolist())

        def between(cut, values=values):
            low, high = values[:cut], values[cut:]
            return len(low) * len(high) * (sum(low) / len(low) - sum(high) / len(high)) ** 2

        best = max(range(1, len(values)), key=between)
        assert cut_threshold(scores, "otsu") == pytest.approx((values[best - 1] + values[best]) / 2)


def test_otsu_parts_two_clouds():
    scores = [torch.tensor([1.0, 1.2, 0.9, 8.0, 8.5, 7.9, 8.1])]
    assert 1.2 < cut_threshold(scores, "otsu") < 7.9


def test_scores_in_any_precision_and_equal_ones():
    assert cut_threshold([torch.tensor([1.0, 3.0], dtype=torch.bfloat16)], "otsu") == 2.0
    assert cut_threshold([torch.tensor([2, 4])], "otsu") == 3.0
    assert cut_threshold([torch.full((6,), 5.0)], "length", 2.0) == 5.0  # equal scores cannot be parted
    assert cut_threshold([torch.tensor([5.0])], "otsu") == math.inf


def test_lexicon():
    corpus = [["大肠", "杆菌 ", "的"], ["大肠", "杆菌", "的"], ["细菌"]]
    assert build_lexicon(corpus) == {"大肠": 2, "杆菌": 2}
    assert list(build_lexicon(corpus, 1, 1).items()) == [("大肠", 2), ("杆菌", 2), ("的", 2), ("细菌", 1)]
    assert build_lexicon([]) == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cut_words("abc", [1.0], 1.0), "3 pieces have 2 places to cut, got 1 scores"),
        (lambda: cut_threshold([torch.zeros(2)], "mean"), "one of length, otsu.*got 'mean' and 1.6"),
        (lambda: cut_threshold([torch.zeros(2)], mean_length=0.5), "mean_length at least 1; got 'length' and 0.5"),
        (lambda: cut_threshold([torch.zeros(2)], mean_length=math.nan), "at least 1; got 'length' and nan"),
        (lambda: cut_threshold([]), "needs scores that are numbers; got 0 of 0 texts"),
        (lambda: cut_threshold([torch.zeros(0)]), "got 0 of 1 texts"),
        (lambda: cut_threshold([torch.tensor([math.nan])]), "got 1 of 1 texts, some of them nan"),
        (lambda: build_lexicon([], 0), "must be at least 1, got 0 and 2"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
