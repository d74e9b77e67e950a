"""Trees out of impacts: direction of arcs, roots, the paper's normalisation by hand, rules, words, messages."""

import pytest
import torch

from danlu.math import attachment_scores, chu_liu_edmonds, eisner, is_projective, is_tree, top_down_tree, tree_spans
from danlu.probe import ImpactMatrix, Pieces, impact_heads, impact_matrix, impact_tree


def draw(n, seed=0):
    x = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.fill_diagonal_(0.0)


def of_tree(heads, strong=5.0):
    """Impacts in which every word misses its head most."""
    F = torch.ones(len(heads), len(heads), dtype=torch.float64).fill_diagonal_(0.0)
    for d, h in enumerate(heads):
        if h:
            F[d, h - 1] = strong
    return F


@pytest.mark.parametrize("algorithm", ["eisner", "mst"])
@pytest.mark.parametrize("heads", [[2, 0, 2], [0, 1, 2, 3], [2, 0, 5, 5, 2], [3, 3, 0, 5, 3]])
def test_a_tree_comes_back(algorithm, heads):
    assert impact_heads(of_tree(heads), heads.index(0) + 1, algorithm) == heads
    assert impact_heads(of_tree(heads), algorithm=algorithm) == heads


def test_crossing_arcs_need_mst():
    heads = [3, 4, 0, 3]
    assert impact_heads(of_tree(heads), 3, "mst") == heads
    assert is_projective(impact_heads(of_tree(heads), 3))


@pytest.mark.parametrize("algorithm", ["eisner", "mst"])
def test_roots(algorithm):
    F = draw(6)
    for root in range(1, 7):
        heads = impact_heads(F, root, algorithm)
        assert [i for i, h in enumerate(heads, 1) if h == 0] == [root]
        assert is_tree(heads)
    mass = int((F + torch.eye(6) * 9).fill_diagonal_(0.0).sum(0).argmax()) + 1
    assert impact_heads(F, "mass", algorithm) == impact_heads(F, mass, algorithm)
    decode = eisner if algorithm == "eisner" else chu_liu_edmonds
    assert impact_heads(F, None, algorithm) == decode(F[None])[0].tolist()  # the diagonal is zero


def test_normalising_by_the_head_as_the_paper_does():
    F = draw(5, 3) * 4
    e = (F - F.max()).exp().tolist()
    expected = torch.tensor([[e[d][h] / sum(e[h]) for h in range(5)] for d in range(5)], dtype=torch.float64)
    expected.diagonal().fill_(-torch.inf)
    expected[1, 1] = 0.0
    assert impact_heads(F, 2, normalize="head") == eisner(expected[None])[0].tolist()
    assert any(impact_heads(draw(6, s), 1, normalize="head") != impact_heads(draw(6, s), 1) for s in range(20))


def test_huge_impacts_are_normalised_without_overflow():
    heads = [2, 0, 2]
    assert impact_heads((of_tree(heads) * 1e4).float(), 2, normalize="head") == heads


@pytest.mark.parametrize("rule", ["author", "paper", "mean_offdiag", "cky"])
def test_rules(rule):
    F = torch.ones(6, 6) + 4 * torch.block_diag(torch.ones(2, 2), torch.ones(4, 4))
    assert (0, 2) in tree_spans(impact_tree(F.fill_diagonal_(0.0), rule))
    if rule != "cky":
        assert impact_tree(draw(7), rule) == top_down_tree(draw(7), rule)


def test_bias_is_in_units_of_the_mean_impact():
    for rule in ("mean_offdiag", "cky"):
        trees = [impact_tree(draw(9, 4) * scale, rule, 0.2) for scale in (1.0, 1e3)]
        assert trees[0] == trees[1]
        assert tree_spans(impact_tree(draw(9, 4), rule, 50.0)) == {(i, 9) for i in range(8)}


def test_words_for_numbers_and_the_thin_object():
    impact = ImpactMatrix(of_tree([2, 0, 2]), ("我", "爱", "你"))
    assert impact.heads() == [2, 0, 2]
    assert impact.heads(1, "mst") == impact_heads(impact.values, 1, "mst")
    assert ImpactMatrix(torch.tensor([[0.0, 2, 1], [2, 0, 1], [1, 1, 0]]), ("a", "b", "c")).tree("cky") == (
        ("a", "b"),
        "c",
    )


def test_no_words_and_one():
    assert impact_heads(torch.zeros(0, 0)) == []
    assert impact_heads(torch.zeros(1, 1)) == [0]
    assert (impact_tree(torch.zeros(0, 0), "cky"), impact_tree(torch.zeros(1, 1), "cky")) == ((), 0)
    assert ImpactMatrix(torch.zeros(0, 0), ()).tree() == ()


def test_a_loop_of_ones_own():  # model to score, without any of our containers
    near = torch.exp(-(torch.arange(6)[:, None] - torch.arange(6)).abs().float())

    def model(ids, mask):
        return near @ (ids > 0).float()[:, :, None]

    F = impact_matrix(model, [Pieces((5, 6, 7, 8, 9, 10), tuple((i,) for i in range(6)), tuple("abcdef"))], mask_id=0)[
        0
    ]
    heads = impact_heads(F, root=1)
    assert attachment_scores([heads], [[0, 1, 2, 3, 4, 5]]).uuas == 1.0  # neighbours matter most: a chain


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: impact_heads(torch.zeros(2, 3)), r"one sentence's impacts \(W, W\); got \(2, 3\)"),
        (lambda: impact_heads(torch.zeros(2, 2), 3), r"root must be None, 'mass' or a number in \[1, 2\], got 3"),
        (lambda: impact_heads(torch.zeros(2, 2), True), "got True"),
        (lambda: impact_heads(torch.zeros(2, 2), "cls"), "got 'cls'"),
        (lambda: impact_heads(torch.zeros(2, 2), algorithm="cle"), "eisner or mst.*got 'cle' and None"),
        (lambda: impact_heads(torch.zeros(2, 2), normalize="row"), "got 'eisner' and 'row'"),
        (lambda: impact_heads(torch.full((2, 2), torch.nan)), "nan or inf"),
        (lambda: impact_tree(torch.zeros(2, 2), "best"), "one of author, paper, mean_offdiag, cky, got 'best'"),
        (lambda: impact_tree(torch.zeros(2), "cky"), r"impact_tree needs one sentence's impacts.*got \(2,\)"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
