"""The judge: what it tells apart, labels weighed alike, at the minimum it names, one label refused."""

import random

import numpy as np
import pytest

from danlu.data.errors import InputError
from danlu.tasks.generate_judge import BUCKETS, Judge, features

STREAM = random.Random(2)


def texts(pool, size, number, mark="。"):
    return [mark.join("".join(STREAM.choices(pool, k=size)) for _ in range(2)) for _ in range(number)]


def test_it_tells_words_apart():
    judge = Judge(texts("abcd", 6, 40) + texts("cdef", 6, 40), ["x"] * 40 + ["y"] * 40)
    assert judge.predict(texts("ab", 6, 20) + texts("ef", 6, 20)) == ["x"] * 20 + ["y"] * 20
    assert judge.labels == ["x", "y"] and judge.predict([]) == []


def test_it_tells_shapes_apart_that_share_their_words():
    judge = Judge(texts("abcd", 5, 60) + texts("abcd", 7, 60), ["five"] * 60 + ["seven"] * 60)
    found = judge.predict(texts("abcd", 5, 30) + texts("abcd", 7, 30))
    assert sum(a == b for a, b in zip(found, ["five"] * 30 + ["seven"] * 30, strict=True)) >= 57


def test_a_frequent_label_has_no_advantage():
    same = texts("abcd", 6, 400)  # nothing to tell the labels by
    judge = Judge(same, ["often"] * 360 + ["rare"] * 40)
    share = judge.predict(texts("abcd", 6, 200)).count("rare") / 200
    assert 0.25 < share < 0.75


def test_it_stands_at_the_minimum():
    some = texts("abc", 4, 20) + texts("bcd", 4, 20)
    judge = Judge(some, ["x"] * 20 + ["y"] * 20)
    names = {bucket for text in some for bucket in features(text)}

    def loss(weights):  # eq. (2) with loops
        total = 0.0
        for i, text in enumerate(some):
            rows = features(text)
            scores = weights[rows].sum(0) / len(rows) ** 0.5 + weights[BUCKETS]
            total += np.log(np.exp(scores).sum()) - scores[int(i >= 20)]
        return total / len(some) + 3e-5 / 2 * (weights[:-1] ** 2).sum()

    at = loss(judge.weights)
    for bucket in [*sorted(names)[:5], BUCKETS]:
        for step in (-2.0, 2.0):
            moved = judge.weights.copy()
            moved[bucket, 0] += step
            assert loss(moved) > at
    assert not judge.weights[[b for b in range(200) if b not in names]].any()


def test_features_count_presence_not_number():
    assert features("abab") == sorted(set(features("abab")))
    assert set(features("ab。ab")) - set(features("ab")) and features("") != features("a")
    assert features("ab，cd") != features("abc，d")  # lengths of lines


def test_one_label_is_refused():
    with pytest.raises(InputError, match="a judge needs two labels or more, got x"):
        Judge(["a", "b"], ["x", "x"])
