"""Measures of trees: against sets by hand, their order, chains and stars, spans and what is left out, messages."""

import itertools
import random

import pytest

from danlu.math import (
    attachment_counts,
    attachment_scores,
    bracket_f1,
    chain_heads,
    chain_tree,
    is_tree,
    subtree_spans,
    tree_spans,
)

TREES = [h for h in itertools.product(range(5), repeat=4) if is_tree(list(h)) and h.count(0) == 1]


def by_hand(predicted, gold, keep, root):  # oracle: sets of arcs
    words = range(1, len(gold) + 1)
    parent = dict(zip(words, gold, strict=True))
    arcs = {(d, g) for d, g in parent.items() if keep[d - 1] and (g or root)}
    drawn = {(d, h) for d, h in zip(words, predicted, strict=True) if keep[d - 1] and (h or root)}
    uas = len(arcs & drawn)
    uuas = len([a for a in arcs if a in drawn or a[::-1] in drawn])
    ned = len(
        [
            (d, h) for d, h in drawn
            if (d, h) in arcs or (h, d) in arcs or ((d, parent[d]) in arcs and h == parent.get(parent[d], -1))
        ]
    )  # fmt: skip
    return uas, uuas, ned, len(arcs)


@pytest.mark.parametrize("root", [False, True])
def test_counts_equal_sets_of_arcs(root):
    rng = random.Random(0)
    for _ in range(400):
        predicted, gold = rng.choice(TREES), rng.choice(TREES)
        keep = [rng.random() < 0.7 for _ in gold]
        assert attachment_counts(predicted, gold, keep, root) == by_hand(predicted, gold, keep, root)
        assert attachment_counts(predicted, gold, None, root) == by_hand(predicted, gold, [True] * 4, root)


@pytest.mark.parametrize("root", [False, True])
def test_uas_is_at_most_uuas_is_at_most_ned(root):
    for predicted, gold in itertools.product(TREES[::3], TREES[::5]):
        uas, uuas, ned, arcs = attachment_counts(predicted, gold, root=root)
        assert 0 <= uas <= uuas <= ned <= arcs == 3 + root


def test_gold_against_itself_is_perfect():
    assert attachment_scores(TREES, TREES) == (1.0, 1.0, 1.0, 3 * len(TREES))
    assert attachment_scores(TREES, TREES, root=True) == (1.0, 1.0, 1.0, 4 * len(TREES))


def test_a_turned_arc_and_a_grandparent():
    gold = [0, 1, 2]  # 1 -> 2 -> 3
    assert attachment_counts([2, 0, 2], gold) == (1, 2, 2, 2)  # 1 and 2 turned round
    assert attachment_counts([0, 1, 1], gold) == (1, 1, 2, 2)  # 3 hangs on its grandparent
    assert attachment_counts([3, 3, 0], gold) == (0, 1, 1, 2)


def test_heads_that_are_no_tree_count_no_arc_twice():
    assert attachment_counts([2, 1], [0, 1]) == (1, 1, 2, 1)


def test_micro_average_over_sentences():
    got = attachment_scores([[0, 1], [2, 0, 2, 3]], [[0, 1], [0, 1, 1, 1]])
    assert got == pytest.approx((1 / 4, 2 / 4, 2 / 4, 4))


def test_nothing_to_score():
    assert attachment_scores([], []) == (0.0, 0.0, 0.0, 0)
    assert attachment_scores([[0]], [[0]]) == (0.0, 0.0, 0.0, 0)
    assert attachment_counts([-1, 0], [-1, 0], root=True) == (1, 1, 1, 1)


def test_chains():
    assert chain_heads(4, "next", 2) == [2, 0, 4, 2]
    assert chain_heads(4, "previous", 3) == [3, 1, 0, 3]
    assert chain_heads(4, "previous") == [0, 1, 2, 3]
    assert chain_heads(4, "to_root", 3) == [2, 3, 0, 3]
    assert chain_heads(3, "star", 2) == [2, 0, 2]
    assert chain_heads(0) == []
    for kind, root in itertools.product(("next", "previous", "to_root", "star"), range(1, 6)):
        heads = chain_heads(5, kind, root)
        assert is_tree(heads)
        assert heads.index(0) + 1 == root


def test_chain_trees():
    assert chain_tree(0) == ()
    assert chain_tree(1, "left") == 0
    assert tree_spans(chain_tree(4, "left")) == {(0, 2), (0, 3), (0, 4)}
    assert tree_spans(chain_tree(4)) == {(2, 4), (1, 4), (0, 4)}
    assert tree_spans(chain_tree(5, "balanced")) == {(0, 2), (2, 5), (3, 5), (0, 5)}


def test_spans_of_trees_with_more_than_two_children_and_of_deep_ones():
    assert tree_spans(((0, 1, 2), 3, (4, 5))) == {(0, 3), (4, 6), (0, 6)}
    assert tree_spans(()) == set()
    deep = 0
    for word in range(1, 3000):
        deep = (deep, word)
    assert len(tree_spans(deep)) == 2999


def test_subtrees_with_gaps_are_no_spans():
    assert subtree_spans([2, 0, 4, 2]) == {(0, 4), (2, 4)}
    assert subtree_spans([3, 4, 0, 3]) == {(0, 4)}  # word 4 and what is below it, word 2, have a gap
    assert subtree_spans([0]) == set()


def test_bracket_f1_by_hand():
    gold = [{(0, 2), (3, 5), (0, 5)}, {(0, 3)}, set()]
    found = [{(0, 2), (2, 5), (1, 5), (0, 5)}, {(0, 2), (0, 3)}, {(0, 1)}]
    first, second, third = 2 * 1 / (3 + 2), 0.0, 1.0  # the whole, and single words, are left out
    assert bracket_f1(found, gold, [5, 3, 1]) == pytest.approx((first + second + third) / 3)
    assert bracket_f1(gold, gold, [5, 3, 1]) == 1.0
    assert bracket_f1([], [], []) == 0.0


def test_dropped_words_shrink_spans():
    keep = [[True, True, False, True, True]]
    assert bracket_f1([{(0, 3)}], [{(0, 2)}], [5], keep) == 1.0
    assert bracket_f1([{(0, 3)}], [{(0, 2)}], [5]) == 0.0
    assert bracket_f1([{(1, 3)}], [set()], [5], keep) == 1.0  # one word is left of it
    assert bracket_f1([{(0, 4)}], [set()], [5], [[True, True, True, True, False]]) == 1.0  # now the whole sentence


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attachment_counts([0], [0, 1]), r"as many predicted heads.*got 1 and 2"),
        (lambda: attachment_counts([0], [0], [True, False]), r"got 1 \(2\) and 1"),
        (lambda: attachment_counts([3, 0], [0, 1]), r"heads of 2 words must lie in \[-1, 2\]; got \[3, 0\]"),
        (lambda: attachment_scores([[0]], []), r"as many predicted sentences.*got 1 and 0"),
        (lambda: chain_heads(3, "down"), r"one of next, previous, to_root, star.*got 'down', 3 and None"),
        (lambda: chain_heads(3, "star", 4), r"root in \[1, length\]; got 'star', 3 and 4"),
        (lambda: chain_tree(3, "up"), r"right, left or balanced, got 'up'"),
        (lambda: bracket_f1([[]], [], []), r"got 1, 0 and 0"),
        (lambda: bracket_f1([[(1, 4)]], [[]], [3]), r"span \(1, 4\) does not lie in sentence 0 of 3 words"),
        (lambda: bracket_f1([[]], [[]], [3], [[True]]), r"sentence 0 has 3 words, its keep 1 entries"),
        (lambda: subtree_spans([2, 1]), r"the heads turn in a circle at word 1: \[2, 1\]"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
