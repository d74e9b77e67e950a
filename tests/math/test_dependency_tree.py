"""Dependency decoders: against all trees, networkx, their counts; masks, batches, forbidden arcs, ties, messages."""

import itertools
from functools import cache

import pytest
import torch

from danlu.math import chu_liu_edmonds, eisner, is_projective, is_tree, tree_score

DECODERS = {"eisner": eisner, "mst": chu_liu_edmonds}
each_decoder = pytest.mark.parametrize("name", DECODERS)


@cache
def all_trees(n, projective, single_root):
    """Oracle: every way to give n words heads, kept where all reach the root; projective: subtrees without gaps."""
    found = []
    for heads in itertools.product(range(n + 1), repeat=n):
        if single_root and heads.count(0) != 1:
            continue
        above = []
        for d in range(1, n + 1):
            chain, at = [d], heads[d - 1]
            while at and len(chain) <= n:
                chain.append(at)
                at = heads[at - 1]
            above.append(chain)
        if any(len(chain) > n for chain in above):
            continue
        subtrees = [[d for d in range(1, n + 1) if top in above[d - 1]] for top in range(1, n + 1)]
        if projective and any(max(s) - min(s) + 1 != len(s) for s in subtrees):
            continue
        found.append(heads)
    return found


def total(scores, heads):
    return sum(scores[d][d if h == 0 else h - 1] for d, h in enumerate(heads))


def best_by_hand(scores, projective, single_root):
    rows = scores.tolist()
    return max(total(rows, heads) for heads in all_trees(len(rows), projective, single_root))


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("projective", "single_root", "counts"),
    [
        (True, False, [1, 3, 12, 55, 273]),
        (True, True, [1, 2, 7, 30, 143]),
        (False, False, [1, 3, 16, 125, 1296]),
        (False, True, [1, 2, 9, 64, 625]),
    ],
)
def test_the_oracle_counts_as_it_should(projective, single_root, counts):
    assert [len(all_trees(n, projective, single_root)) for n in range(1, 6)] == counts


@each_decoder
@pytest.mark.parametrize("single_root", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_equals_the_best_of_all_trees(name, single_root, n):
    scores = draw(20, n, n, seed=n)
    scores[:5] += 4 * torch.eye(n)  # wants many roots
    scores[5:10] -= 4 * torch.eye(n)
    heads = DECODERS[name](scores, single_root=single_root)
    trees = set(all_trees(n, name == "eisner", single_root))
    assert all(tuple(h) in trees for h in heads.tolist())
    expected = [best_by_hand(s, name == "eisner", single_root) for s in scores]
    torch.testing.assert_close(tree_score(scores, heads), torch.tensor(expected, dtype=torch.float64))


@each_decoder
def test_equals_the_best_of_all_trees_of_six_words(name):
    scores = draw(6, 6, 6, seed=66)
    heads = DECODERS[name](scores)
    expected = [best_by_hand(s, name == "eisner", True) for s in scores]
    torch.testing.assert_close(tree_score(scores, heads), torch.tensor(expected, dtype=torch.float64))


def test_mst_equals_networkx():
    nx = pytest.importorskip("networkx")
    generator = torch.Generator().manual_seed(3)
    for draw_number in range(60):
        n = int(torch.randint(2, 13, (), generator=generator))
        scores = torch.randint(0, 9, (n, n), generator=generator).double()  # many ties: compare scores only
        got = tree_score(scores[None], chu_liu_edmonds(scores[None], single_root=False)).item()
        graph = nx.DiGraph()
        for d, h in itertools.product(range(n), range(n)):
            graph.add_edge(0 if d == h else h + 1, d + 1, weight=scores[d, h].item())
        tree = nx.maximum_spanning_arborescence(graph)
        assert got == pytest.approx(sum(w for _, _, w in tree.edges(data="weight"))), draw_number


def test_one_root_of_mst_equals_the_best_over_roots():
    for seed in range(20):
        scores = draw(9, 9, seed=seed) + 3 * torch.eye(9)
        best = -torch.inf
        for root in range(9):
            only = scores.clone()
            only.diagonal().fill_(-torch.inf)
            only[root, root] = scores[root, root]
            heads = chu_liu_edmonds(only[None], single_root=False)
            best = max(best, tree_score(scores[None], heads).item())
        heads = chu_liu_edmonds(scores[None])
        assert (heads == 0).sum() == 1
        assert tree_score(scores[None], heads).item() == pytest.approx(best)


@each_decoder
def test_one_root_loses_no_digits_to_a_big_constant(name):
    scores = torch.zeros(1, 3, 3, dtype=torch.float64)
    scores[0, 0, 1] = scores[0, 2, 1] = 1e-17  # word 2 is the better head, by very little
    assert DECODERS[name](scores).tolist() == [[2, 0, 2]]


@each_decoder
@pytest.mark.parametrize("single_root", [True, False])
def test_masked_words_are_as_if_they_were_not_there(name, single_root):
    scores = draw(4, 6, 6, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]).bool()
    scores[~mask[:, :, None] | ~mask[:, None, :]] = torch.nan  # never read
    heads = DECODERS[name](scores, mask, single_root)
    assert (heads[~mask] == -1).all()
    assert heads[3].tolist() == [-1, 0, -1, -1, -1, -1]
    kept = mask[1].nonzero()[:, 0]
    alone = DECODERS[name](scores[1][kept][:, kept][None], single_root=single_root)[0].tolist()
    assert heads[1][kept].tolist() == [0 if h == 0 else int(kept[h - 1]) + 1 for h in alone]


@each_decoder
def test_batches_do_not_touch_each_other(name):
    scores = draw(7, 8, 8, seed=2)
    together = DECODERS[name](scores)
    apart = torch.cat([DECODERS[name](s[None]) for s in scores])
    assert torch.equal(together, apart)
    assert torch.equal(DECODERS[name](scores.transpose(1, 2).contiguous().transpose(1, 2)), together)


@each_decoder
def test_forbidden_arcs_are_never_taken(name):
    for seed in range(10):
        scores = draw(5, 5, seed=seed)
        hole = torch.rand(5, 5, generator=torch.Generator().manual_seed(seed)) < 0.3
        scores[hole & ~torch.eye(5, dtype=torch.bool)] = -torch.inf
        expected = best_by_hand(scores, name == "eisner", True)
        if expected == -torch.inf:
            with pytest.raises(ValueError, match="tree of sentence 0 is allowed"):
                DECODERS[name](scores[None])
        else:
            heads = DECODERS[name](scores[None])
            assert tree_score(scores[None], heads).item() == pytest.approx(expected)


@each_decoder
def test_a_given_root(name):
    scores = draw(1, 5, 5)
    scores[0].diagonal().fill_(-torch.inf)
    scores[0, 3, 3] = 0.0
    assert DECODERS[name](scores)[0, 3] == 0


@each_decoder
def test_no_words_and_no_sentences(name):
    assert DECODERS[name](torch.zeros(2, 0, 0)).shape == (2, 0)
    assert DECODERS[name](torch.zeros(0, 3, 3)).shape == (0, 3)


@each_decoder
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_every_dtype(name, dtype):
    scores = (draw(3, 5, 5) * 4).round()
    assert torch.equal(DECODERS[name](scores.to(dtype)), DECODERS[name](scores))


@each_decoder
def test_huge_scores_do_not_overflow(name):
    scores = draw(1, 4, 4, seed=5)
    assert torch.equal(DECODERS[name]((scores * 1e37).float()), DECODERS[name](scores.float().double()))


@each_decoder
def test_equal_scores_give_some_tree_and_always_the_same(name):
    heads = DECODERS[name](torch.zeros(2, 7, 7))
    assert torch.equal(heads[0], heads[1])
    assert is_tree(heads[0].tolist())
    assert is_projective(heads[0].tolist()) or name == "mst"


@each_decoder
def test_long_sentences(name):
    heads = DECODERS[name](draw(1, 60, 60))[0].tolist()
    assert is_tree(heads)
    assert heads.count(0) == 1
    assert is_projective(heads) or name == "mst"


def test_mst_is_at_least_as_good_as_eisner():
    scores = draw(10, 9, 9, seed=9)
    assert (tree_score(scores, chu_liu_edmonds(scores)) >= tree_score(scores, eisner(scores)) - 1e-9).all()


def test_tree_score_has_the_tree_for_its_gradient():
    scores = draw(1, 4, 4).requires_grad_()
    heads = eisner(scores)
    tree_score(scores, heads).sum().backward()
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for d, h in enumerate(heads[0].tolist()):
        expected[d, h - 1 if h else d] = 1
    assert torch.equal(scores.grad[0], expected)


def test_is_tree_and_is_projective_agree_with_the_oracle():
    trees = set(all_trees(4, False, False))
    projective = set(all_trees(4, True, False))
    for heads in itertools.product(range(5), repeat=4):
        assert is_tree(list(heads)) == (heads in trees)
        if heads in trees and heads.count(0) == 1:
            assert is_projective(list(heads)) == (heads in projective)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eisner(torch.zeros(3, 3)), r"eisner needs scores \(B, n, n\).*got \(3, 3\).*scores\[None\]"),
        (lambda: chu_liu_edmonds(torch.zeros(1, 2, 3)), r"chu_liu_edmonds needs scores.*got \(1, 2, 3\)"),
        (lambda: eisner(torch.zeros(1, 2, 2), torch.ones(1, 2)), r"bool mask \(1, 2\).*got torch.float32.*mask.bool"),
        (lambda: eisner(torch.zeros(1, 2, 2), torch.ones(1, 3).bool()), r"bool mask \(1, 2\).*\(1, 3\)"),
        (lambda: eisner(torch.tensor([[[torch.nan]]])), r"sentence 0 has a score that is nan or inf"),
        (lambda: eisner(torch.tensor([[[0.0]], [[torch.inf]]])), r"sentence 1 has a score that is nan or inf"),
        (lambda: eisner(torch.full((1, 2, 2), -torch.inf)), r"no single-rooted projective tree of sentence 0"),
        (lambda: chu_liu_edmonds(torch.full((1, 2, 2), -torch.inf), single_root=False), r"no tree of sentence 0"),
        (lambda: tree_score(torch.zeros(1, 2, 2), torch.zeros(1, 3).long()), r"got \(1, 2, 2\) and \(1, 3\)"),
        (lambda: tree_score(torch.zeros(1, 2, 2), torch.tensor([[0, 3]])), r"heads must lie in \[-1, 2\], got 0 to 3"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
