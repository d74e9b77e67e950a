"""Constituency trees: against all trees and sums by hand, blocks cut at their borders, ties, scaling, messages."""

import pytest
import torch

from danlu.math import cky, span_values, spans_tree, top_down_tree, tree_spans

RULES = ("author", "paper", "mean_offdiag")


def draw(n, seed=0, batch=None):
    shape = (n, n) if batch is None else (batch, n, n)
    x = torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x - torch.diag_embed(x.diagonal(dim1=-2, dim2=-1))


def blocks(*sizes, strong=5.0, weak=1.0):
    owner = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
    return torch.where(owner[:, None] == owner, strong, weak).double().fill_diagonal_(0.0)


def all_trees(start, end):
    """Oracle: every binary tree over the words."""
    if end - start == 1:
        return [start]
    return [(a, b) for k in range(start + 1, end) for a in all_trees(start, k) for b in all_trees(k, end)]


def leaves(tree):
    return [tree] if isinstance(tree, int) else [leaf for child in tree for leaf in leaves(child)]


def value_of(tree, values, bias=0.0):
    if isinstance(tree, int):
        return values[tree][tree]
    left, right = (leaves(child) for child in tree)
    own = values[left[0]][right[-1]] + bias * (len(right) - len(left)) / (len(left) + len(right))
    return own + sum(value_of(child, values, bias) for child in tree)


def by_author(F, start, end):  # oracle: the post's recursion, sums taken anew for every cut
    n = end - start
    if n == 1:
        return start
    f = F[start:end, start:end]
    best = 1
    if n > 2:
        gain = [f[:i, :i].mean() + f[i:, i:].mean() - f[:i, i:].mean() - f[i:, :i].mean() for i in range(1, n - 1)]
        best = gain.index(max(gain)) + 1
    return headed(F, start, end, best, by_author)


def headed(F, start, end, k, rule):
    left = rule(F, start, start + k)
    if start + k + 1 == end:
        return (left, end - 1)
    return (left, (start + k, rule(F, start + k + 1, end)))


def by_paper(G, start, end):
    n = end - start
    if n == 1:
        return start
    g = G[start:end, start:end]
    cost = []
    for k in range(1, n):
        across = g[:k, k + 1 :].sum() + g[k + 1 :, :k].sum()
        cost.append(g[:k, :k].sum() / (2 * k) + g[k + 1 :, k + 1 :].sum() / (2 * (n - k)) - across / (k * (n - k)))
    return headed(G, start, end, cost.index(min(cost)) + 1, by_paper)


def by_pairs(F, start, end):  # oracle: means over lists of pairs
    n = end - start
    if n == 1:
        return start
    gain = []
    for k in range(1, n):
        within, across = [], []
        for i in range(n):
            for j in range(n):
                if i != j:
                    (within if (i < k) == (j < k) else across).append(F[start + i, start + j].item())
        gain.append((sum(within) / len(within) if within else 0.0) - sum(across) / len(across))
    k = start + gain.index(max(gain)) + 1
    return (by_pairs(F, start, k), by_pairs(F, k, end))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("rule", RULES)
def test_equals_the_recursion_by_hand(rule, n):
    for seed in range(8):
        F = draw(n, seed) * 3
        got = top_down_tree(F, rule)
        if rule == "paper":
            G = (1 - F.softmax(0)).fill_diagonal_(0.0)
            assert got == by_paper(G, 0, n)
        else:
            assert got == (by_author if rule == "author" else by_pairs)(F, 0, n)


@pytest.mark.parametrize("rule", [*RULES, "cky"])
@pytest.mark.parametrize("sizes", [(2, 3), (3, 3), (4, 2)])
def test_two_blocks_are_cut_at_their_border(rule, sizes):
    F = blocks(*sizes)
    tree = spans_tree(cky(span_values(F[None]))[0]) if rule == "cky" else top_down_tree(F, rule)
    first = len(leaves(tree[0]))
    assert first == sizes[0] or (rule == "paper" and first == sizes[0] - 1)  # the word that eq. (2) leaves out
    if rule in ("mean_offdiag", "cky"):
        assert (sizes[0], sum(sizes)) in tree_spans(tree)  # the post's form parts the first word from the rest


@pytest.mark.parametrize("rule", ["mean_offdiag", "cky"])
def test_nested_blocks_return_their_nesting(rule):
    F = blocks(4, 4, weak=0.0) + blocks(2, 2, 2, 2, strong=4.0, weak=0.0)
    tree = spans_tree(cky(span_values(F[None]))[0]) if rule == "cky" else top_down_tree(F, rule)
    assert tree == (((0, 1), (2, 3)), ((4, 5), (6, 7)))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-30, 1e30])
def test_constant_impacts_branch_to_the_right(value):
    F = torch.full((9, 9), value, dtype=torch.float64).fill_diagonal_(0.0)
    right = 8
    for word in reversed(range(8)):
        right = (word, right)
    assert top_down_tree(F) == right
    assert spans_tree(cky(span_values(F[None]))[0]) == right
    assert top_down_tree(F, "author") == top_down_tree(F / (value or 1.0), "author")


@pytest.mark.parametrize("rule", ["author", "mean_offdiag"])
def test_scaling_changes_nothing(rule):
    F = draw(10, 3)
    assert top_down_tree(F, rule) == top_down_tree(F * 1e-6, rule) == top_down_tree(F * 1e6, rule)


def test_the_paper_rule_depends_on_the_scale():  # its softmax saturates
    assert any(top_down_tree(draw(8, s), "paper") != top_down_tree(draw(8, s) * 50, "paper") for s in range(9))


def test_span_values_equal_means_over_pairs():
    F = draw(6, 1, batch=2)
    got = span_values(F + torch.eye(6))  # the diagonal does not count
    for b in range(2):
        for i in range(6):
            for j in range(6):
                inside = range(i, j + 1)
                within = [F[b, x, y] for x in inside for y in inside if x != y]
                across = [F[b, x, y] for x in range(6) for y in range(6) if (x in inside) != (y in inside)]
                expected = sum(within) / len(within) - sum(across) / len(across) if within and across else 0.0
                assert got[b, i, j].item() == pytest.approx(float(expected))


@pytest.mark.parametrize("bias", [0.0, 0.3, -0.3])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7])
def test_cky_is_the_best_of_all_trees(n, bias):
    values = torch.randn(5, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    spans = cky(values, right_bias=bias)
    for rows, found in zip(values.tolist(), spans, strict=True):
        tree = spans_tree(found)
        best = max(value_of(t, rows, bias) for t in all_trees(0, n))
        assert value_of(tree, rows, bias) == pytest.approx(best)
        assert leaves(tree) == list(range(n))


def test_cky_of_short_sentences_in_a_batch():
    values = draw(6, 4, batch=4)
    lengths = torch.tensor([6, 3, 1, 0])
    spans = cky(values, lengths)
    for b, n in enumerate(lengths.tolist()):
        alone = cky(values[b : b + 1, :n, :n])[0]
        assert torch.equal(spans[b, :n, :n], alone)
        assert spans[b].sum() == max(2 * n - 1, 0)


def test_a_large_bias_branches_to_the_right():
    F = draw(7, 2)
    right = top_down_tree(torch.ones(7, 7) - torch.eye(7))
    assert top_down_tree(F, right_bias=100.0) == right
    assert spans_tree(cky(span_values(F[None]), right_bias=100.0)[0]) == right
    assert top_down_tree(F) != right


def test_no_words():
    assert top_down_tree(torch.zeros(0, 0)) == ()
    assert spans_tree(cky(span_values(torch.zeros(1, 0, 0)))[0]) == ()


def test_long_sentences():
    tree = top_down_tree(torch.ones(600, 600) - torch.eye(600))
    assert len(tree_spans(tree)) == 599


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype(dtype):
    F = blocks(3, 4)
    assert top_down_tree(F.to(dtype)) == top_down_tree(F)
    assert torch.equal(cky(span_values(F[None].to(dtype))), cky(span_values(F[None])))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: top_down_tree(torch.zeros(2, 3)), r"matrix \(n, n\), one sentence; got \(2, 3\)"),
        (lambda: top_down_tree(torch.zeros(2, 2), "best"), r"one of author, paper, mean_offdiag.*got 'best'"),
        (lambda: top_down_tree(torch.zeros(2, 2), "paper", 0.1), r"right_bias goes with mean_offdiag.*'paper' and 0.1"),
        (lambda: top_down_tree(torch.tensor([[0.0, torch.nan], [0.0, 0.0]])), r"finite numbers; 1 are nan or infinite"),
        (lambda: span_values(torch.zeros(2, 2)), r"span_values needs a matrix \(B, n, n\); got \(2, 2\)"),
        (lambda: cky(torch.zeros(1, 2, 2), torch.tensor([3])), r"lengths \(1,\) in \[0, 2\].*got \[3\]"),
        (lambda: cky(torch.full((1, 2, 2), torch.inf)), r"cky needs finite numbers; 3 are"),
        (lambda: spans_tree(torch.eye(3, dtype=torch.bool)), r"3 spans over 3 words are not those of a binary tree"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
