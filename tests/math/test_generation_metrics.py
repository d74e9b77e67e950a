"""BLEU, ROUGE and their like: against counting by crossing out, enumeration, a second LCS, identities, messages."""

import itertools
import math
import random

import pytest

from danlu.data import longest_common_subsequence
from danlu.math.generation_metrics import bleu, distinct_n, lcs_length, position_accuracy, rouge_l, rouge_n

STREAM = random.Random(3)
TEXTS = [["".join(STREAM.choices("abc", k=STREAM.randint(1, 9))) for _ in range(12)] for _ in range(2)]


def crossed_out(predicted, gold, n):
    """Matches by striking each n-gram of the reference that was found: no counter, nothing shared with the code."""
    left = [tuple(gold[i : i + n]) for i in range(len(gold) - n + 1)]
    matches = 0
    for i in range(len(predicted) - n + 1):
        if (gram := tuple(predicted[i : i + n])) in left:
            left.remove(gram)
            matches += 1
    return matches


def bleu_by_hand(predicted, gold, order, epsilon=0.0):
    product = 1.0
    for n in range(1, order + 1):
        matches = sum(crossed_out(p, g, n) for p, g in zip(predicted, gold, strict=True))
        total = sum(max(0, len(p) - n + 1) for p in predicted)
        product *= (matches if matches else epsilon) / (total if total else 1)
    c, r = sum(map(len, predicted)), sum(map(len, gold))
    return product ** (1 / order) * (1.0 if c > r else math.exp(1 - r / c))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_bleu_of_a_set_equals_counting_by_hand(order):
    value = bleu(*TEXTS, max_order=order)
    assert value == pytest.approx(bleu_by_hand(*TEXTS, order)) and 0 < value < 1


def test_bleu_of_single_texts_takes_epsilon_for_missing_matches():
    for p, g in zip(*TEXTS, strict=True):
        if crossed_out(p, g, 1):
            assert bleu([p], [g], epsilon=0.1) == pytest.approx(bleu_by_hand([p], [g], 4, epsilon=0.1))
    assert bleu(["ab"], ["ab"]) == 0  # two tokens have no n-gram of four
    assert bleu(["ab"], ["ab"], epsilon=0.1) == pytest.approx(0.1**0.5)  # p = 1, 1, 0.1 / 1, 0.1 / 1


def test_bleu_at_its_ends():
    assert bleu(["abcde"], ["abcde"]) == 1
    assert bleu(["abcdefgh"], ["abcd"]) < 1  # words too many cost precision
    assert bleu(["abcd"], ["abcdefgh"]) == pytest.approx(math.exp(1 - 8 / 4))  # words too few cost brevity alone
    assert bleu(["xy"], ["ab"], epsilon=0.1) == 0 and bleu([""], ["ab"], epsilon=0.1) == 0
    assert bleu(["aaaa"], ["ab"], max_order=1) == 0.25  # a reference's word counts once


@pytest.mark.parametrize("n", [1, 2, 3])
def test_rouge_n_counts_shared_n_grams(n):
    for p, g in zip(*TEXTS, strict=True):
        score, shared = rouge_n(p, g, n), crossed_out(p, g, n)
        assert score.precision == pytest.approx(shared / max(1, len(p) - n + 1))
        assert score.recall == pytest.approx(shared / max(1, len(g) - n + 1))
        assert rouge_n(g, p, n).f1 == score.f1


def lcs_by_enumeration(a, b):
    """Longest subsequence of a that b holds, by trying all of them."""
    for size in range(len(a), -1, -1):
        for places in itertools.combinations(range(len(a)), size):
            rest = iter(b)
            if all(a[i] in rest for i in places):  # `in` consumes the iterator: order is kept
                return size
    raise AssertionError


def test_lcs_equals_enumeration_and_the_one_that_says_which():
    for a, b in zip(*TEXTS, strict=True):
        assert lcs_length(a, b) == lcs_by_enumeration(a, b) == longest_common_subsequence(a, b)[0]
    long = ["".join(STREAM.choices("abcd", k=200)) for _ in range(2)]  # beyond one machine word
    assert lcs_length(*long) == longest_common_subsequence(*long)[0]
    assert lcs_length("", "ab") == lcs_length("ab", "") == 0


def test_rouge_l_sees_order_where_rouge_1_does_not():
    assert rouge_n("abcd", "dcba").f1 == 1 and rouge_l("abcd", "dcba").f1 == 0.25
    score = rouge_l("ab", "acbd")
    assert (score.precision, score.recall, score.f1) == (1, 0.5, pytest.approx(2 / 3))
    assert rouge_l("", "").f1 == 0


def test_distinct_falls_with_repetition():
    assert distinct_n(["abcd"]) == 1 and distinct_n(["abab"]) == pytest.approx(2 / 3)
    assert distinct_n(["ab", "ab", "ab"]) == pytest.approx(1 / 3) and distinct_n(["a"], 2) == 0
    assert distinct_n([[1, 2], [2, 1]], 1) == 0.5


def test_position_accuracy_by_hand():
    assert position_accuracy(["abc", "xb", ""], ["abd", "ab", "a"]) == [pytest.approx(1 / 3), 1.0, 0.0]
    assert position_accuracy([], []) == []
    assert position_accuracy(["abcdef"], ["ab"]) == [1, 1]  # what goes beyond the reference is not asked for


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bleu(["a"], []), "bleu needs one reference a text; got 1 texts and 0 references"),
        (lambda: bleu("ab", ["ab"]), r"bleu takes lists of texts, got one text; write \[text\]"),
        (lambda: bleu(["a"], ["a"], max_order=0), "max_order >= 1 and epsilon >= 0; got 0 and 0.0"),
        (lambda: bleu(["a"], ["a"], epsilon=-1), "got 4 and -1"),
        (lambda: rouge_n("a", "a", 0), "n must be at least 1 token, got 0; ROUGE-1"),
        (lambda: distinct_n(["a"], 0), "n must be at least 1 token, got 0; 1 and 2"),
        (lambda: position_accuracy(["a"], []), "position_accuracy needs one reference a text; got 1 texts"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
