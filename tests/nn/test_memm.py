"""MEMM heads: numbers by hand, enumeration, identities, torchcrf, bert4keras' own numbers, gradcheck, messages."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from danlu.nn import MEMM, SoftmaxHead, memm_chain, memm_nll

F3 = torch.tensor([[[0.1, 0.2, 0.3], [0.4, -0.5, 0.6], [0.0, 1.0, -1.0]]], dtype=torch.float64)
G3 = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.5, -0.5], [0.2, 0.2, -0.1]], dtype=torch.float64)
Y3 = torch.tensor([[0, 1, 1]])
HOLES = torch.tensor([[True] * 5, [False, True, False, True, True], [True, True, False, False, False], [False] * 5])


def values(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(num_tags=3, transitions=None, **settings):
    torch.manual_seed(4)
    head = MEMM(num_tags, **settings).double()
    if transitions is not None:
        with torch.no_grad():
            head.transitions.copy_(transitions)
    return head


def log_softmax(scores):
    top = max(scores)
    total = top + math.log(sum(math.exp(s - top) for s in scores))
    return [s - total for s in scores]


def log_p(f, g, y, scale=1.0):  # oracle: eq. (1) with Python floats; eq. (2) is this on the reversed sequence
    total = 0.0
    for t, tag in enumerate(y):
        scores = f[t] if t == 0 else [scale * (a + b) for a, b in zip(f[t], g[y[t - 1]], strict=True)]
        total += log_softmax(scores)[tag]
    return total


def both(f, g, y, scale=1.0):
    return log_p(f, g, y, scale), log_p(f[::-1], [list(c) for c in zip(*g, strict=True)], y[::-1], scale)


def rows(x, mask):
    return [row[keep].tolist() for row, keep in zip(x, mask, strict=True)]


def test_numbers_of_the_fixed_case():  # computed with numpy for the dossier, independently of this code
    assert memm_nll(F3, Y3, G3).item() == pytest.approx(3.670377202164321, abs=1e-12)
    assert memm_nll(F3.flip(1), Y3.flip(1), G3.T).item() == pytest.approx(3.5187477285228073, abs=1e-12)
    bi = memm_nll(F3, Y3, G3, bidirectional=True, reduction="token")
    assert bi.item() == pytest.approx((3.670377202164321 + 3.5187477285228073) / 6, abs=1e-12)
    assert make(transitions=G3, bidirectional=True, compat="bert4keras")(F3, Y3).item() == pytest.approx(
        1.0637431502605341, abs=1e-12
    )
    head = make(transitions=G3)
    assert head.decode(F3).tolist() == [[0, 2, 1]]
    assert head.log_prob(F3, head.decode(F3)).item() == pytest.approx(-2.213061030782233, abs=1e-12)
    assert make(transitions=G3, decode_method="crf").decode(F3).tolist() == [[0, 2, 1]]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_equals_the_formula_with_any_mask(bidirectional, scale):
    f, g = values(4, 5, 3), values(3, 3, seed=1)
    y = torch.randint(0, 3, (4, 5), generator=torch.Generator().manual_seed(2))
    expected = []
    for fr, yr in zip(rows(f, HOLES), rows(y, HOLES), strict=True):
        forward, backward = both(fr, g.tolist(), yr, scale)
        expected.append(-(forward + backward) / 2 if bidirectional else -forward)
    y = y.masked_fill(~HOLES, -100)
    expected = torch.tensor(expected, dtype=torch.float64)
    dirty = f.masked_fill(~HOLES[..., None], math.nan)
    torch.testing.assert_close(memm_nll(dirty, y, g, HOLES, "none", bidirectional, scale), expected)
    torch.testing.assert_close(memm_nll(f, y, g, HOLES, "sum", bidirectional, scale), expected.sum())
    torch.testing.assert_close(memm_nll(f, y, g, HOLES, "mean", bidirectional, scale), expected.mean())
    torch.testing.assert_close(memm_nll(f, y, g, HOLES, "token", bidirectional, scale), expected.sum() / 10)


def test_both_directions_sum_to_one_over_all_taggings():
    paths = torch.tensor(list(itertools.product(range(3), repeat=3)))
    f = F3.expand(27, 3, 3)
    assert (-memm_nll(f, paths, G3, reduction="none")).exp().sum().item() == pytest.approx(1, abs=1e-12)
    backward = memm_nll(f.flip(1), paths.flip(1), G3.T, reduction="none")
    assert (-backward).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_backward_is_forward_on_the_reversed_sequence_with_padding():
    f, g = values(3, 6, 3), values(3, 3, seed=1)
    y = torch.randint(0, 3, (3, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(6) < torch.tensor([[6], [3], [1]])
    forward = memm_nll(f, y, g, mask, "none")
    backward = 2 * memm_nll(f, y, g, mask, "none", bidirectional=True) - forward
    # flipping the whole row puts the padding first: the mask skips it there
    torch.testing.assert_close(backward, memm_nll(f.flip(1), y.flip(1), g.T, mask.flip(1), "none"))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_without_transitions_or_neighbours_it_is_the_softmax(bidirectional):
    f, y = values(2, 5, 3), torch.tensor([[0, 1, 2, 2, 1], [1, 1, 0, 0, 2]])
    softmax = SoftmaxHead(3)(f, y)
    torch.testing.assert_close(memm_nll(f, y, torch.zeros(3, 3), bidirectional=bidirectional), softmax)
    head = make(bidirectional=bidirectional)
    torch.testing.assert_close(head(f[:, :1], y[:, :1]), SoftmaxHead(3)(f[:, :1], y[:, :1]))
    torch.testing.assert_close(head.marginals(f[:, :1]), f[:, :1].softmax(-1))


def test_gauges():
    f, g, y = values(1, 4, 3), values(3, 3, seed=1), torch.tensor([[0, 2, 1, 1]])
    for bidirectional in (False, True):  # a number added to all tags of a step
        torch.testing.assert_close(
            memm_nll(f + values(1, 4, 1, seed=2), y, g, bidirectional=bidirectional),
            memm_nll(f, y, g, bidirectional=bidirectional),
        )
    rows_moved = g + values(3, 1, seed=3)  # label bias: what all successors of a tag share is invisible forward
    torch.testing.assert_close(memm_nll(f, y, rows_moved), memm_nll(f, y, g))
    assert not torch.isclose(memm_nll(f, y, rows_moved, bidirectional=True), memm_nll(f, y, g, bidirectional=True))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_full_rank_factors_equal_the_matrix(bidirectional):
    f, g = values(4, 5, 3), values(3, 3, seed=1)
    y = torch.zeros(4, 5, dtype=torch.int64)
    factors = (g, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(
        memm_nll(f, y, factors, HOLES, "none", bidirectional), memm_nll(f, y, g, HOLES, "none", bidirectional)
    )
    for got, expected in zip(
        memm_chain(f, factors, HOLES, bidirectional), memm_chain(f, g, HOLES, bidirectional), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_low_rank_layer_uses_its_product():
    low, f, y = make(rank=2, bidirectional=True), values(2, 4, 3), torch.tensor([[0, 2, 1, 1], [2, 2, 0, 1]])
    full = make(transitions=low.transition_matrix.detach(), bidirectional=True)
    assert {n: tuple(p.shape) for n, p in low.named_parameters()} == {
        "transition_left": (3, 2),
        "transition_right": (3, 2),
    }
    torch.testing.assert_close(low(f, y), full(f, y))
    assert torch.equal(low.decode(f), full.decode(f))
    torch.testing.assert_close(low.marginals(f), full.marginals(f))


def enumerate_scores(head, f, scale=1.0):
    """Every path of one sequence with its exact log score, by the Python oracle."""
    g = head.transition_matrix.tolist()
    for y in itertools.product(range(f.shape[1]), repeat=f.shape[0]):
        forward, backward = both(f.tolist(), g, list(y), scale)
        yield y, (forward + backward) / 2 if head.bidirectional else forward


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("compat", [None, "bert4keras"])
@pytest.mark.parametrize("seed", range(3))
def test_exact_decode_and_marginals_equal_enumeration(bidirectional, compat, seed):
    head = make(transitions=3 * values(3, 3, seed=seed), bidirectional=bidirectional, compat=compat)
    f = 2 * values(4, 5, 3, seed=seed + 10)
    decoded, marginals = head.decode(f, HOLES), head.marginals(f, HOLES)
    for b in range(4):
        kept = f[b][HOLES[b]]
        if not len(kept):
            assert (decoded[b] == -1).all()
            continue
        paths = dict(enumerate_scores(head, kept, 0.5 if compat else 1.0))
        assert decoded[b][HOLES[b]].tolist() == list(max(paths, key=paths.get))
        total = sum(math.exp(s) for s in paths.values())
        p = torch.zeros_like(kept)
        for y, s in paths.items():
            for t, tag in enumerate(y):
                p[t, tag] += math.exp(s) / total
        torch.testing.assert_close(marginals[b][HOLES[b]], p)
    assert (decoded[~HOLES] == -1).all()
    assert not marginals[~HOLES].any()


def test_forward_marginals_follow_the_chain_of_local_probabilities():
    head, f = make(transitions=values(3, 3, seed=1)), values(1, 5, 3)
    alpha = f[:, 0].softmax(-1)
    expected = [alpha]
    for t in range(1, 5):  # oracle: alpha_t = alpha_{t-1} P_t with the rows of P_t locally normalised
        alpha = torch.einsum("bi,bij->bj", alpha, (f[:, t, None, :] + head.transitions).softmax(-1))
        expected.append(alpha)
    torch.testing.assert_close(head.marginals(f), torch.stack(expected, 1))


def test_crf_decode_equals_torchcrf():
    torchcrf = pytest.importorskip("torchcrf")
    g, f = values(4, 4, seed=1), values(8, 9, 4)
    mask = torch.arange(9) < torch.tensor([9, 1, 4, 9, 7, 2, 3, 8])[:, None]
    peer = torchcrf.CRF(4, batch_first=True).double()
    with torch.no_grad():
        peer.transitions.copy_(g)
        peer.start_transitions.zero_()
        peer.end_transitions.zero_()
    got = make(4, transitions=g, decode_method="crf").decode(f, mask)
    assert [row[keep].tolist() for row, keep in zip(got, mask, strict=True)] == peer.decode(f, mask)


def test_the_two_decodings_differ_where_normalisers_do():
    g = torch.tensor([[0.0, 0.0], [4.0, 4.0]])  # forward, row 1 is a flat distribution like row 0
    f = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert make(2, transitions=g).decode(f)[0, 0] == 0
    assert make(2, transitions=g, decode_method="crf").decode(f)[0, 0] == 1


@pytest.mark.parametrize("decode_method", ["exact", "crf"])
def test_constrained_decode_is_the_best_legal_path(decode_method):
    allowed = torch.tensor([[True, False, True], [True, True, False], [False, True, True]])
    start, end = torch.tensor([False, True, True]), torch.tensor([True, True, False])
    g, f = values(3, 3, seed=1), values(1, 4, 3)
    head = make(transitions=g, decode_method=decode_method, constraints=(allowed, start, end), bidirectional=True)
    scores = dict(enumerate_scores(head, f[0]))
    if decode_method == "crf":
        scores = {
            y: sum(float(f[0, t, k]) for t, k in enumerate(y)) + sum(float(g[i, j]) for i, j in itertools.pairwise(y))
            for y in scores
        }
    legal = [y for y in scores if start[y[0]] and end[y[-1]] and all(allowed[i, j] for i, j in itertools.pairwise(y))]
    assert head.decode(f)[0].tolist() == list(max(legal, key=scores.get))


@pytest.mark.parametrize("spread", [1.0, 40.0, 80.0, 300.0])
def test_chain_is_exact_when_scores_are_far_apart(spread):
    g, f = spread * values(3, 3, seed=1), spread * values(1, 4, 3)
    for bidirectional in (False, True):
        head = make(transitions=g, bidirectional=bidirectional)
        chain, transitions = (x.float() for x in memm_chain(f.float(), g.float(), bidirectional=bidirectional))
        assert chain.isfinite().all()
        constant = None
        for y, score in enumerate_scores(head, f[0]):
            path = sum(float(chain[0, t, k]) for t, k in enumerate(y))
            path += sum(float(transitions[i, j]) for i, j in itertools.pairwise(y))
            constant = path - score if constant is None else constant
            assert path - score == pytest.approx(constant, abs=1e-4 * spread)


@pytest.mark.parametrize(
    "settings", [{}, {"bidirectional": True}, {"rank": 2, "bidirectional": True}, {"compat": "bert4keras"}]
)
def test_gradcheck(settings):
    head = make(**settings)
    f, y = values(4, 5, 3).requires_grad_(), torch.tensor([[0, 2, 1, 1, 0]] * 4)
    names = [n for n, _ in head.named_parameters()]

    def loss(x, *parameters):
        return torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (x, y, HOLES, "none"))

    assert torch.autograd.gradcheck(loss, (f, *(p.detach().clone().requires_grad_() for p in head.parameters())))


def test_transitions_move_in_training():
    head = make(bidirectional=True)
    before = head.transitions.detach().clone()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    head(F3, Y3).backward()
    optimizer.step()
    assert ((head.transitions - before).abs() > 0.005).any()


def test_half_precision_and_autocast_do_not_reach_the_loss():
    f, y = values(2, 4, 3), torch.tensor([[0, 2, 1, 1], [2, 2, 0, 1]])
    for settings in ({}, {"rank": 2}):
        head = make(bidirectional=True, **settings).float()
        expected = head(f.bfloat16().float(), y)
        with torch.autocast("cpu", torch.bfloat16):
            got, marginals = head(f.bfloat16(), y), head.marginals(f.bfloat16())
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(marginals, head.marginals(f.bfloat16().float()))


@pytest.mark.parametrize("settings", [{}, {"bidirectional": True}, {"rank": 1}])
def test_nothing_to_tag_and_one_tag(settings):
    head = make(**settings)
    for shape in ((0, 4), (2, 0)):
        f, y = torch.zeros(*shape, 3).double(), torch.zeros(shape, dtype=torch.int64)
        for reduction in ("mean", "sum", "token"):
            assert head(f, y, reduction=reduction) == 0
        assert head.decode(f).shape == shape
        assert head.marginals(f).shape == (*shape, 3)
    only = MEMM(1, **settings)
    f, y = torch.randn(2, 3, 1), torch.zeros(2, 3, dtype=torch.int64)
    assert only(f, y) == 0
    assert torch.equal(only.decode(f), y)
    empty = torch.zeros(2, 3, dtype=torch.bool)
    loss = only(f.requires_grad_(), y, empty)
    loss.backward()
    assert loss == 0
    assert not f.grad.any()


FILES = [f"memm_{i}_lrmult{m}_{kind}.npz" for i in (0, 1) for m in (1, 50) for kind in ("full", "lowrank")]


@pytest.mark.data
@pytest.mark.parametrize("name", FILES)
def test_equals_bert4keras(shared: Path, name):  # numbers of bert4keras 0.11.5 on TensorFlow 2.15, float32
    path = shared / "oracles" / "layers" / name
    if not path.exists():
        pytest.skip(f"{path.name} is not in this copy of the data folder")
    with np.load(path) as file:
        z = {key: torch.from_numpy(file[key]) for key in file.files}
    f, y, mask = z["emissions"].requires_grad_(), z["labels"].long(), z["mask"]
    if "trans" in z:
        transitions, back = z["trans"], z["trans"].T
    else:
        transitions, back = (z["l_trans"], z["r_trans"]), (z["r_trans"], z["l_trans"])
    head = MEMM(f.shape[2], None if "trans" in z else z["l_trans"].shape[1], bidirectional=True, compat="bert4keras")
    with torch.no_grad():
        for parameter, value in zip(head.parameters(), [transitions] if "trans" in z else transitions, strict=True):
            parameter.copy_(value)
    loss = head(f, y, mask)
    torch.testing.assert_close(loss, z["loss"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        memm_nll(f, y, transitions, mask, "token", scale=0.5), z["loss_forward"], atol=1e-5, rtol=1e-5
    )
    backward = memm_nll(f.flip(1), y.flip(1), back, mask.flip(1), "token", scale=0.5)
    torch.testing.assert_close(backward, z["loss_backward"], atol=1e-5, rtol=1e-5)
    (grad,) = torch.autograd.grad(loss, f)
    torch.testing.assert_close(grad, z["grad_emissions"], atol=1e-6, rtol=1e-5)


def test_messages():
    with pytest.raises(ValueError, match=r"decode_method must be 'exact'.*'crf'.*got 'viterbi'"):
        MEMM(3, decode_method="viterbi")
    with pytest.raises(ValueError, match=r"compat must be None or 'bert4keras', got 'keras'"):
        MEMM(3, compat="keras")
    with pytest.raises(ValueError, match=r"rank must be at least 1, got 0; rank=None"):
        MEMM(3, rank=0)
    with pytest.raises(ValueError, match=r"emissions of 3 tags need transitions \(3, 3\).*got \(2, 2\)"):
        memm_nll(F3, Y3, torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"two factors \(3, rank\); got \(\(3, 2\), \(3, 1\)\)"):
        memm_nll(F3, Y3, (torch.zeros(3, 2), torch.zeros(3, 1)))
    with pytest.raises(ValueError, match=r"MEMM\(4\) needs emissions.*got \(1, 3, 3\).*4 outputs"):
        make(4)(F3, Y3)
    with pytest.raises(ValueError, match=r"tags must lie in \[0, 3\), got 3 in row 0 at step 1"):
        make()(F3, torch.tensor([[0, 3, 1]]))


def test_history_is_read_from_the_row_of_the_tag_before():  # from gold neighbours only: no gradient to other rows
    g = G3.clone().requires_grad_()
    memm_nll(F3, torch.tensor([[2, 1, 1]]), g).backward()
    assert g.grad[[1, 2]].any(dim=1).all()
    assert not g.grad[0].any()
    torch.testing.assert_close(g.grad[2], F.softmax(F3[0, 1] + G3[2], -1) - F.one_hot(torch.tensor(1), 3))
