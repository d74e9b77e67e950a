"""CRF: enumeration, fixed numbers, pytorch-crf, bert4keras, finite differences, masks as removal, extremes, messages.

Every test of the loss and of the best path runs on all engines: compiled, plain torch, autograd.
"""

import copy
import importlib
import itertools
import math
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch._dynamo.testing

from danlu.nn import CRF, crf_log_partition, crf_marginals, crf_nll, sample_paths, viterbi, viterbi_nbest

HAS_NUMBA = importlib.util.find_spec("numba") is not None
KERNEL = pytest.param("kernel", marks=pytest.mark.skipif(not HAS_NUMBA, reason="needs numba"))
LOSS = pytest.mark.parametrize("backend", [KERNEL, "torch", "autograd"])
PATH = pytest.mark.parametrize("backend", [KERNEL, "torch"])
FIXED_F = torch.tensor([[[0.1, 0.2, 0.3], [0.4, -0.5, 0.6], [0.0, 1.0, -1.0]]], dtype=torch.float64)
FIXED_G = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.5, -0.5], [0.2, 0.2, -0.1]], dtype=torch.float64)
PATTERNS = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 0, 1], [1, 0, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]


def chain(batch=4, steps=5, size=3, seed=0, dtype=torch.float64, scale=1.0):
    """Random emissions, transitions, start, end, tags."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(batch, steps, size), (size, size), (size,), (size,)]
    scores = [scale * torch.randn(shape, dtype=dtype, generator=draw) for shape in shapes]
    return *scores, torch.randint(size, (batch, steps), generator=draw)


def all_paths(f, g, s, e):
    """Oracle: {path: score} of one sequence (T, K), with Python floats."""
    f, g, s, e = f.tolist(), g.tolist(), s.tolist(), e.tolist()
    scores = {}
    for path in itertools.product(range(len(s)), repeat=len(f)):
        score = sum(f[t][j] for t, j in enumerate(path)) + sum(g[i][j] for i, j in itertools.pairwise(path))
        scores[path] = score + s[path[0]] + e[path[-1]] if path else 0.0
    return scores


def log_sum(values):
    top = max(values)
    return top if top == -math.inf else top + math.log(sum(math.exp(v - top) for v in values))


def patterns_mask():
    return torch.tensor(PATTERNS).bool()


# --- values ------------------------------------------------------------------------------------------------------


@LOSS
@pytest.mark.parametrize(("steps", "size"), [(1, 1), (1, 4), (4, 1), (2, 2), (5, 3), (4, 4), (3, 5)])
def test_nll_equals_the_enumeration(backend, steps, size):
    f, g, s, e, y = chain(steps=steps, size=size)
    expected = []
    for b in range(len(f)):
        scores = all_paths(f[b], g, s, e)
        expected.append(log_sum(list(scores.values())) - scores[tuple(y[b].tolist())])
    nll = crf_nll(f, y, g, s, e, reduction="none", backend=backend)
    torch.testing.assert_close(nll, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (nll > -1e-12).all()


@LOSS
def test_the_fixed_case_of_the_dossier(backend):
    log_z = crf_log_partition(FIXED_F, FIXED_G, backend=backend)
    nll = crf_nll(FIXED_F, torch.tensor([[0, 1, 1]]), FIXED_G, backend=backend)
    assert log_z.item() == pytest.approx(4.246244823261055, abs=1e-13)
    assert nll.item() == pytest.approx(3.346244823261055, abs=1e-13)


@PATH
def test_the_best_path_of_the_fixed_case(backend):
    path, score = viterbi(FIXED_F, FIXED_G, backend=backend)
    assert path.tolist() == [[0, 2, 1]]
    assert score.item() == pytest.approx(2.2, abs=1e-14)


@LOSS
def test_marginals_equal_the_enumeration_and_sum_to_one(backend):
    f, g, s, e, _ = chain()
    p = crf_marginals(f, g, s, e, backend=backend)
    for b in range(len(f)):
        scores = all_paths(f[b], g, s, e)
        total = log_sum(list(scores.values()))
        for t, j in itertools.product(range(5), range(3)):
            expected = sum(math.exp(v - total) for path, v in scores.items() if path[t] == j)
            assert p[b, t, j].item() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(p.sum(2), torch.ones(4, 5, dtype=torch.float64))


@LOSS
def test_without_transitions_it_is_the_softmax(backend):
    f, _, _, _, y = chain()
    expected = torch.nn.functional.cross_entropy(f.flatten(0, 1), y.flatten(), reduction="none").view(4, 5).sum(1)
    torch.testing.assert_close(crf_nll(f, y, torch.zeros(3, 3), reduction="none", backend=backend), expected)


@LOSS
def test_gauge_freedom(backend):
    f, g, s, e, y = chain()
    shift = torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64)
    per_step = torch.randn(4, 5, 1, dtype=torch.float64)
    same = crf_nll(f + per_step, y, g + shift[:, None] - shift, s - shift, e + shift, backend=backend)
    torch.testing.assert_close(same, crf_nll(f, y, g, s, e, backend=backend))


@LOSS
def test_reductions(backend):
    f, g, s, e, y = chain(batch=6)
    mask = patterns_mask()
    rows = crf_nll(f, y, g, s, e, mask, "none", backend)
    for reduction, expected in {"mean": rows.mean(), "sum": rows.sum(), "token": rows.sum() / mask.sum()}.items():
        torch.testing.assert_close(crf_nll(f, y, g, s, e, mask, reduction, backend), expected)


# --- gradients ---------------------------------------------------------------------------------------------------


@LOSS
def test_gradcheck_with_holes_in_the_mask(backend):
    f, g, s, e, y = chain(batch=6, size=2)
    inputs = [x.requires_grad_() for x in (f, g, s, e)]
    mask = patterns_mask()
    assert torch.autograd.gradcheck(lambda f, g, s, e: crf_nll(f, y, g, s, e, mask, "none", backend), inputs)
    assert torch.autograd.gradcheck(lambda *x: crf_log_partition(*x, mask, backend), inputs)
    assert torch.autograd.gradcheck(lambda *x: crf_marginals(*x, mask, backend), inputs)


@LOSS
def test_a_penalty_on_the_gradient_can_be_trained(backend):
    f, g, s, e, y = chain(batch=2, steps=3, size=2)
    inputs = [x.requires_grad_() for x in (f, g, s, e)]
    mask = torch.tensor([[True, True, True], [True, False, True]])
    assert torch.autograd.gradgradcheck(lambda f, g, s, e: crf_nll(f, y, g, s, e, mask, "sum", backend), inputs)
    assert torch.autograd.gradgradcheck(lambda f: crf_log_partition(f, g, s, e, mask, backend), inputs[:1])


@LOSS
def test_emission_gradient_is_marginal_minus_truth(backend):
    f, g, s, e, y = chain(batch=6)
    mask = patterns_mask()
    f.requires_grad_()
    (grad,) = torch.autograd.grad(crf_nll(f, y, g, s, e, mask, "sum", backend), f)
    truth = torch.nn.functional.one_hot(y, 3) * mask[:, :, None]
    torch.testing.assert_close(grad, crf_marginals(f, g, s, e, mask, "autograd").detach() - truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 4, 7, 21])
@PATH
def test_engines_agree_with_autograd(backend, size, dtype):
    f, g, s, e, y = chain(batch=19, steps=11, size=size, dtype=dtype, scale=2.0, seed=size)
    inputs = [x.requires_grad_() for x in (f, g, s, e)]
    mask = torch.rand(19, 11) < 0.8
    weight = torch.rand(19, dtype=dtype)
    results = []
    for name in (backend, "autograd"):
        nll = crf_nll(f, y, g, s, e, mask, "none", name)
        results.append([nll, *torch.autograd.grad(nll @ weight, inputs), crf_marginals(*inputs, mask, name)])
    tolerance = 5e-5 if dtype == torch.float32 else 1e-12  # float32: sums of 19 * 10 pairs, eps 6e-8
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
def test_the_result_does_not_depend_on_the_number_of_threads():
    f, g, s, e, y = chain(batch=37, steps=100, size=21, dtype=torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            inputs = [x.clone().requires_grad_() for x in (f, g, s, e)]
            nll = crf_nll(inputs[0], y, *inputs[1:], reduction="none", backend="kernel")
            results.append([nll.detach(), *torch.autograd.grad(nll.sum(), inputs), viterbi(f, g, s, e)[0]])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# --- masks -------------------------------------------------------------------------------------------------------


@LOSS
@pytest.mark.parametrize("pattern", PATTERNS[:-1])
def test_a_masked_step_is_no_step(backend, pattern):
    f, g, s, e, y = chain(batch=1)
    mask = torch.tensor([pattern]).bool()
    dirty, tags = f.clone(), y.masked_fill(~mask, -100)
    dirty[~mask] = torch.nan if backend == "kernel" else 1e30
    short, short_tags = f[mask][None], y[mask][None]
    torch.testing.assert_close(
        crf_nll(dirty, tags, g, s, e, mask, backend=backend), crf_nll(short, short_tags, g, s, e, backend=backend)
    )
    p = crf_marginals(dirty, g, s, e, mask, backend)
    torch.testing.assert_close(p[mask], crf_marginals(short, g, s, e, backend=backend)[0])
    assert (p[~mask] == 0).all()


@PATH
@pytest.mark.parametrize("pattern", PATTERNS)
def test_decoding_skips_masked_steps(backend, pattern):
    f, g, s, e, _ = chain(batch=1)
    mask = torch.tensor([pattern]).bool()
    path, score = viterbi(f, g, s, e, mask, backend)
    assert (path[~mask] == -1).all()
    best = max(all_paths(f[mask], g, s, e).items(), key=lambda item: item[1])
    assert path[mask].tolist() == list(best[0])
    assert score.item() == pytest.approx(best[1], abs=1e-12)


@LOSS
def test_a_row_without_steps_costs_nothing_and_decodes_to_nothing(backend):
    f, g, s, e, y = chain(batch=2, dtype=torch.float32)
    mask = torch.tensor([[False] * 5, [True] * 5])
    f.requires_grad_()
    nll = crf_nll(f, y.fill_(0), g, s, e, mask, "none", backend)
    assert nll[0] == 0
    nll.sum().backward()
    assert (f.grad[0] == 0).all()
    assert viterbi(f, g, s, e, mask)[0][0].tolist() == [-1] * 5


@LOSS
def test_padded_batch_equals_single_sentences(backend):
    f, g, s, e, y = chain(batch=4, steps=6)
    lengths = [6, 2, 4, 1]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    together = crf_nll(f, y, g, s, e, mask, "none", backend)
    alone = [crf_nll(f[b : b + 1, :n], y[b : b + 1, :n], g, s, e, backend=backend) for b, n in enumerate(lengths)]
    torch.testing.assert_close(together, torch.stack(alone))


@LOSS
@pytest.mark.parametrize(("batch", "steps"), [(0, 4), (2, 0), (0, 0)])
def test_empty_batches(backend, batch, steps):
    f = torch.zeros(batch, steps, 3, requires_grad=True)
    crf = CRF(3)
    loss = crf_nll(f, torch.zeros(batch, steps, dtype=torch.long), *crf.scores(), backend=backend)
    loss.backward()
    assert loss.item() == 0
    assert crf.marginals(f).shape == (batch, steps, 3)
    assert crf.decode(f).shape == (batch, steps)
    assert crf.decode_nbest(f, n=2)[0].shape == (batch, 2, steps)
    assert crf.sample(f, num_samples=3).shape == (batch, 3, steps)
    assert crf.entropy(f).shape == (batch,)


# --- extremes ----------------------------------------------------------------------------------------------------


@LOSS
@pytest.mark.parametrize("scale", [30.0, 200.0, 2000.0])
def test_huge_scores_stay_right_in_float32(backend, scale):
    f, g, s, e, y = chain(batch=8, steps=12, size=4, dtype=torch.float32, scale=scale)
    inputs = [x.requires_grad_() for x in (f, g, s, e)]
    nll = crf_nll(f, y, g, s, e, reduction="none", backend=backend)
    grads = torch.autograd.grad(nll.sum(), inputs)
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    expected = crf_nll(doubles[0], y, *doubles[1:], reduction="none", backend="autograd")
    expected_grads = torch.autograd.grad(expected.sum(), doubles)
    torch.testing.assert_close(nll.double(), expected, rtol=1e-5, atol=1e-5 * scale)
    for grad, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.double(), other, rtol=0, atol=2e-5 * scale)


@LOSS
@pytest.mark.parametrize("steps", [2, 6])
@pytest.mark.parametrize("slope", [-40.0, -80.0])
def test_a_tag_that_only_pays_later_is_not_lost(backend, steps, slope):
    """Tag 1 starts at e^-120, which float32 loses outside the log, while tag 0 sinks step by step, and none crosses."""
    f = torch.zeros(2, steps, 2)
    f[0, 0, 1] = -120.0
    f[0, 1:, 0] = slope
    g = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]).requires_grad_()
    log_z = crf_log_partition(f, g, backend=backend)
    best = max(-120.0, slope * (steps - 1))
    assert log_z.tolist() == pytest.approx([best, math.log(2)], abs=1e-4)
    p = crf_marginals(f, g, backend=backend)
    winner = int(best == -120.0)
    assert p[0, :, winner].tolist() == pytest.approx([1.0] * steps, abs=1e-6)
    (grad,) = torch.autograd.grad(log_z[0], g)
    assert grad[winner, winner].item() == pytest.approx(steps - 1, abs=1e-5)


@LOSS
def test_transitions_of_200_either_way(backend):
    draw = torch.Generator().manual_seed(0)
    g = 200.0 * (2.0 * torch.randint(2, (5, 5), generator=draw) - 1.0)
    f, _, s, e, y = chain(batch=6, steps=9, size=5, dtype=torch.float32)
    g.requires_grad_()
    nll = crf_nll(f, y, g, s, e, reduction="none", backend=backend)
    (grad,) = torch.autograd.grad(nll.sum(), g)
    h = g.detach().double().requires_grad_()
    expected = crf_nll(f.double(), y, h, s.double(), e.double(), reduction="none", backend="autograd")
    torch.testing.assert_close(nll.double(), expected, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(grad.double(), torch.autograd.grad(expected.sum(), h)[0], rtol=0, atol=2e-4)


@LOSS
@pytest.mark.parametrize("never", [-1e4, -torch.inf])
def test_forbidden_scores_leave_finite_gradients(backend, never):
    f, g, s, e, _ = chain(batch=3, dtype=torch.float32)
    g[0, 1] = g[1, 1] = s[1] = e[0] = never
    f[1, 2, 2] = never
    y = torch.tensor([[0, 0, 2, 1, 2], [2, 2, 1, 2, 1], [0, 2, 2, 2, 2]])
    inputs = [x.requires_grad_() for x in (f, g, s, e)]
    nll = crf_nll(f, y, g, s, e, backend=backend)
    grads = torch.autograd.grad(nll, inputs)
    assert all(torch.isfinite(x).all() for x in (nll, *grads))
    assert grads[1][0, 1] == 0
    assert grads[2][1] == 0
    expected = crf_nll(f.double(), y, g.double(), s.double(), e.double(), backend="autograd")
    torch.testing.assert_close(nll.double(), expected, atol=1e-5, rtol=1e-6)


@LOSS
def test_a_row_without_any_path_has_log_partition_minus_infinity(backend):
    f, g, s, e, _ = chain(batch=2, dtype=torch.float32)
    f[0, 2] = -torch.inf
    f.requires_grad_()
    log_z = crf_log_partition(f, g, s, e, backend=backend)
    assert log_z[0] == -torch.inf
    assert torch.isfinite(log_z[1])
    assert torch.isfinite(torch.autograd.grad(log_z[1], f)[0]).all()
    assert (crf_marginals(f, g, s, e, backend=backend)[0] == 0).all()


@LOSS
def test_nan_goes_through_the_loss_and_stays_in_its_row(backend):
    f, g, s, e, y = chain(batch=2, dtype=torch.float32)
    f[0, 2, 1] = torch.nan
    nll = crf_nll(f, y, g, s, e, reduction="none", backend=backend)
    assert torch.isnan(nll[0])
    assert torch.isfinite(nll[1])


@LOSS
def test_half_precision_and_autocast_do_not_reach_the_recursion(backend):
    f, g, s, e, y = chain(batch=3, steps=60, dtype=torch.bfloat16)
    full = [x.float() for x in (f, g, s, e)]
    expected = crf_nll(full[0], y, *full[1:], backend="autograd")
    f.requires_grad_()
    nll = crf_nll(f, y, g, s, e, backend=backend)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, expected)
    nll.backward()
    assert f.grad.dtype == torch.bfloat16
    leaf = full[0].clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = crf_nll(leaf, y, *full[1:], backend=backend)
        inside.backward()
    torch.testing.assert_close(inside, expected)
    plain = full[0].clone().requires_grad_()
    crf_nll(plain, y, *full[1:], backend="autograd").backward()
    torch.testing.assert_close(leaf.grad, plain.grad, atol=1e-6, rtol=1e-5)


# --- other libraries ---------------------------------------------------------------------------------------------


@LOSS
@pytest.mark.parametrize("lengths", ["full", "ragged"])
def test_pytorch_crf_has_the_same_numbers(backend, lengths):
    peer_module = pytest.importorskip("torchcrf")
    f, _, _, _, y = chain(batch=6, steps=9, size=5)
    mask = torch.ones(6, 9, dtype=torch.bool)
    if lengths == "ragged":
        mask = torch.arange(9) < torch.tensor([[9], [3], [1], [7], [2], [8]])
    peer = peer_module.CRF(5, batch_first=True).double()
    ours = CRF(5).double()
    ours.load_state_dict(
        {"transitions": peer.transitions, "start": peer.start_transitions, "end": peer.end_transitions}
    )
    f_peer, f_ours = f.clone().requires_grad_(), f.clone().requires_grad_()
    (-peer(f_peer, y, mask, reduction="sum")).backward()
    crf_nll(f_ours, y, *ours.scores(), mask, "sum", backend).backward()
    torch.testing.assert_close(f_ours.grad, f_peer.grad)
    for a, b in ((ours.transitions, peer.transitions), (ours.start, peer.start_transitions)):
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.end.grad, peer.end_transitions.grad)
    torch.testing.assert_close(ours.log_prob(f, y, mask), peer(f, y, mask, reduction="none"))
    assert [row[row >= 0].tolist() for row in ours.decode(f, mask)] == peer.decode(f, mask)


@pytest.mark.data
@pytest.mark.parametrize("name", ["crf_0_lrmult1", "crf_0_lrmult50", "crf_1_lrmult1", "crf_1_lrmult50"])
@LOSS
def test_bert4keras_has_the_same_numbers(shared, name, backend):
    stored = np.load(shared / "oracles" / "layers" / f"{name}.npz")
    f = torch.from_numpy(stored["emissions"]).requires_grad_()
    y, mask = torch.from_numpy(stored["labels"]).long(), torch.from_numpy(stored["mask"])
    crf = CRF(f.shape[2], start_end=False)
    multiplier = 50.0 if name.endswith("50") else 1.0
    crf.load_state_dict({"transitions": torch.from_numpy(stored["trans_stored"]) * multiplier})
    nll = crf_nll(f, y, *crf.scores(), mask, "none", backend)
    torch.testing.assert_close(nll, torch.from_numpy(stored["loss"]), rtol=1e-5, atol=1e-5)
    nll.sum().backward()
    torch.testing.assert_close(f.grad, torch.from_numpy(stored["grad_emissions_of_sum"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        crf.transitions.grad * multiplier, torch.from_numpy(stored["grad_trans_stored_of_sum"]), rtol=1e-4, atol=5e-4
    )
    assert torch.equal(crf.decode(f, mask), torch.from_numpy(stored["viterbi"]))
    size = f.shape[2]
    start, end = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    start[[0, 1]] = end[[0, 2]] = True
    tied = CRF(size, (torch.ones(size, size, dtype=torch.bool), start, end), start_end=False)
    tied.load_state_dict(crf.state_dict())
    assert torch.equal(tied.decode(f, mask), torch.from_numpy(stored["viterbi_starts_ends"]))


# --- paths -------------------------------------------------------------------------------------------------------


@PATH
def test_engines_find_the_same_path(backend):
    for seed in range(5):
        f, g, s, e, _ = chain(batch=21, steps=13, size=[1, 2, 5, 6, 19][seed], seed=seed, dtype=torch.float32)
        mask = torch.rand(21, 13) < 0.7
        path, score = viterbi(f, g, s, e, mask, backend)
        nll = crf_nll(f, path, g, s, e, mask, "none", "autograd")
        torch.testing.assert_close(crf_log_partition(f, g, s, e, mask) - nll, score, atol=1e-4, rtol=1e-5)
        best, best_score = viterbi_nbest(f, g, s, e, mask, 1)
        assert torch.equal(best[:, 0], path)
        torch.testing.assert_close(best_score[:, 0], score)


@pytest.mark.parametrize("pattern", PATTERNS[:-1])
def test_nbest_is_the_sorted_enumeration(pattern):
    f, g, s, e, _ = chain(batch=2, size=2)
    mask = torch.tensor([pattern, [1] * 5]).bool()
    paths, scores = viterbi_nbest(f, g, s, e, mask, 40)
    for b in range(2):
        ranked = sorted(all_paths(f[b][mask[b]], g, s, e).items(), key=lambda item: -item[1])
        for rank in range(40):
            if rank < len(ranked):
                assert paths[b, rank][mask[b]].tolist() == list(ranked[rank][0])
                assert scores[b, rank].item() == pytest.approx(ranked[rank][1], abs=1e-12)
            else:
                assert scores[b, rank] == -torch.inf
                assert (paths[b, rank] == -1).all()
        assert (paths[b][:, ~mask[b]] == -1).all()


def test_nbest_of_a_row_without_steps_is_one_empty_path():
    f, g, s, e, _ = chain(batch=2)
    paths, scores = viterbi_nbest(f, g, s, e, torch.tensor([[False] * 5, [True] * 5]), 3)
    assert scores[0].tolist() == [0.0, -math.inf, -math.inf]
    assert (paths[0] == -1).all()


def test_nbest_lists_only_allowed_paths():
    f, g, s, e, _ = chain(batch=1, steps=3, size=2)
    g[0, 1] = -torch.inf
    paths, scores = viterbi_nbest(f, g, s, e, n=8)
    assert torch.isfinite(scores).sum() == 4  # 000, 100, 110, 111
    assert {tuple(p) for p in paths[0, :4].tolist()} == {(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1)}


def test_samples_have_the_marginals_and_the_pairs():
    f, g, s, e, _ = chain(batch=2, steps=5)
    mask = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1]]).bool()
    number = 20_000
    paths = sample_paths(f, g, s, e, mask, number, torch.Generator().manual_seed(1))
    assert paths.shape == (2, number, 5)
    assert (paths.transpose(1, 2)[~mask] == -1).all()
    p = crf_marginals(f, g, s, e, mask)
    seen = torch.nn.functional.one_hot(paths.clamp_min(0), 3).double().mean(1)
    error = 4 * (p * (1 - p) / number).sqrt()  # 4 standard errors
    assert ((seen - p).abs()[mask] <= error[mask]).all()
    kept = paths[0][:, mask[0]]
    scores = all_paths(f[0][mask[0]], g, s, e)
    total = log_sum(list(scores.values()))
    for path, score in scores.items():
        q = math.exp(score - total)
        share = (kept == torch.tensor(path)).all(1).double().mean().item()
        assert abs(share - q) <= 4.5 * math.sqrt(q * (1 - q) / number)


def test_samples_repeat_with_the_generator_and_leave_the_global_one_alone():
    f, g, s, e, _ = chain()
    before = torch.get_rng_state()
    first = sample_paths(f, g, s, e, num_samples=3, generator=torch.Generator().manual_seed(5))
    again = sample_paths(f, g, s, e, num_samples=3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())


def test_entropy_is_that_of_the_enumeration():
    f, g, s, e, _ = chain(batch=2)
    crf = CRF(3).double()
    crf.load_state_dict({"transitions": g, "start": s, "end": e})
    for b in range(2):
        scores = list(all_paths(f[b], g, s, e).values())
        total = log_sum(scores)
        expected = sum(math.exp(v - total) * (total - v) for v in scores)
        assert crf.entropy(f)[b].item() == pytest.approx(expected, abs=1e-12)


# --- the layer ---------------------------------------------------------------------------------------------------


BMES = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 1]]).bool()  # B, M, E, S
RULES = (BMES, torch.tensor([True, False, False, True]), torch.tensor([False, False, True, True]))


@pytest.mark.parametrize("start_end", [True, False])
def test_constraints_hold_in_decoding_sampling_and_marginals(start_end):
    f = torch.randn(5, 6, 4)
    crf = CRF(4, RULES, start_end, "glorot")
    mask = torch.arange(6) < torch.tensor([[6], [1], [2], [3], [5]])
    paths = [crf.decode(f, mask)[:, None], crf.sample(f, mask, 20), crf.decode_nbest(f, mask, 2)[0][:, :1]]
    for b, n in enumerate(mask.sum(1).tolist()):
        for path in torch.cat(paths, 1)[b, :, :n].tolist():
            assert RULES[1][path[0]]
            assert RULES[2][path[-1]]
            assert all(BMES[i, j] for i, j in itertools.pairwise(path))
    p = crf.marginals(f, mask)
    assert (p[:, 0, 1:3] == 0).all()
    torch.testing.assert_close(p.sum(2), mask.float())


@pytest.mark.parametrize("switch", ["on", "off"])
def test_constrained_training_learns_and_keeps_forbidden_scores_still(monkeypatch, switch):
    monkeypatch.setenv("DANLU_KERNELS", switch)
    f = torch.zeros(2, 4, 4)
    y = torch.tensor([[0, 2, 3, 3], [3, 0, 1, 2]])
    crf = CRF(4, RULES)
    optimizer = torch.optim.SGD(crf.parameters(), lr=0.5)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(crf(f, y))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.3
    assert (crf.transitions[~BMES] == 0).all()
    assert torch.isfinite(crf.transitions).all()


def test_constraints_from_a_tag_scheme():
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    crf = CRF(5, importlib.import_module("danlu.math").allowed_transitions(labels, "BIO"))
    f = torch.zeros(1, 3, 5)
    f[0, 0, 0], f[0, 1, 4], f[0, 2, 2] = 1.0, 3.0, 3.0  # argmax: O I-LOC I-PER
    names = [labels[i] for i in crf.decode(f)[0].tolist()]
    assert names in (["B-LOC", "I-LOC", "O"], ["B-LOC", "I-LOC", "B-PER"], ["B-LOC", "I-LOC", "I-LOC"],
                     ["B-LOC", "I-LOC", "B-LOC"], ["O", "B-PER", "I-PER"], ["B-PER", "I-PER", "I-PER"],
                     ["B-LOC", "B-PER", "I-PER"], ["I-LOC", "B-PER", "I-PER"])  # fmt: skip
    with pytest.raises(ValueError, match="tag 2 may not follow tag 0"):
        crf(f, torch.tensor([[0, 2, 2]]))


def test_state_dict_names_and_init():
    assert set(CRF(3).state_dict()) == {"transitions", "start", "end"}
    assert set(CRF(3, start_end=False).state_dict()) == {"transitions"}
    assert set(CRF(4, RULES).state_dict()) == {"transitions", "start", "end"}
    assert all((p == 0).all() for p in CRF(3).parameters())
    glorot = CRF(50, init="glorot", generator=torch.Generator().manual_seed(0)).transitions
    assert glorot.abs().max() <= math.sqrt(6 / 100)
    assert glorot.std().item() == pytest.approx(math.sqrt(6 / 100 / 3), rel=0.05)
    assert CRF(50, init="uniform").transitions.abs().max() <= 0.1
    assert repr(CRF(4, RULES)) == "CRF(4, constraints=True, start_end=True)"
    clone = copy.deepcopy(CRF(4, RULES)).to(torch.float64)
    assert clone.allowed.dtype == torch.bool


def test_integer_tags_of_any_width():
    f, g, s, e, y = chain()
    assert crf_nll(f, y.to(torch.int32), g, s, e) == crf_nll(f, y, g, s, e)


def test_inputs_may_lie_in_memory_as_they_like():
    f, g, s, e, y = chain(batch=4, dtype=torch.float32)
    wide = torch.zeros(5, 4, 6)
    wide[:, :, ::2] = f.transpose(0, 1)
    strange = wide[:, :, ::2].transpose(0, 1)
    tags = y.T.contiguous().T
    torch.testing.assert_close(crf_nll(strange, tags, g.T.contiguous().T, s, e), crf_nll(f, y, g, s, e))
    assert torch.equal(viterbi(strange, g, s, e)[0], viterbi(f, g, s, e)[0])


# --- messages ----------------------------------------------------------------------------------------------------


@LOSS
def test_messages_name_row_and_step(backend):
    f, g, s, e, y = chain(batch=3, dtype=torch.float32)
    wrong = y.clone()
    wrong[1, 2] = 3
    with pytest.raises(ValueError, match=r"tag 3 at row 1, step 2 is not in \[0, 3\).*mask\[row, step\] = False"):
        crf_nll(f, wrong, g, s, e, backend=backend)
    wrong[1, 2] = -100
    with pytest.raises(ValueError, match="tag -100 at row 1, step 2"):
        crf_nll(f, wrong, g, s, e, backend=backend)
    y[:] = 0
    y[2, 1:3] = torch.tensor([1, 2])
    mask = torch.ones(3, 5, dtype=torch.bool)
    g[1, 2] = -torch.inf
    with pytest.raises(ValueError, match=r"gold path of row 2 is forbidden at step 2: tag 2 may not follow tag 1"):
        crf_nll(f, y, g, s, e, mask, backend=backend)
    mask[2, 1] = False  # now 0 -> 2
    assert torch.isfinite(crf_nll(f, y, g, s, e, mask, backend=backend))
    s[0] = -torch.inf
    with pytest.raises(ValueError, match="row 0 is forbidden at step 0: tag 0 may not open"):
        crf_nll(f, y, g, s, e, backend=backend)
    s[0], e[0] = 0.0, -torch.inf
    with pytest.raises(ValueError, match="row 0 is forbidden at step 4: tag 0 may not end"):
        crf_nll(f, y, g, s, e, backend=backend)
    e[0], f[1, 3, 0] = 0.0, -torch.inf
    with pytest.raises(ValueError, match="row 1 is forbidden at step 3: the emission of tag 0 is -inf"):
        crf_nll(f[:2], y[:2], g, s, e, backend=backend)


def test_messages_of_the_loss():
    f, g, _, _, y = chain()
    with pytest.raises(ValueError, match="'mean', 'sum', 'none' and 'token', got 'avg'"):
        crf_nll(f, y, g, reduction="avg")
    with pytest.raises(ValueError, match=r"integer tags of shape \(4, 5\).*torch.float32 \(4, 5\)"):
        crf_nll(f, y.float(), g)
    with pytest.raises(ValueError, match=r"integer tags of shape \(4, 5\).*torch.int64 \(4, 4\)"):
        crf_nll(f, y[:, :4], g)
    with pytest.raises(ValueError, match="auto, kernel, torch, autograd; got 'numba'"):
        crf_nll(f, y, g, backend="numba")
    with pytest.raises(ValueError, match=r"bool mask \(4, 5\)"):
        crf_nll(f, y, g, mask=torch.ones(4, 5))
    with pytest.raises(ValueError, match="'kernel' for CPU tensors only, got meta"):
        crf_log_partition(torch.zeros(1, 1, 3, device="meta"), torch.zeros(3, 3, device="meta"), backend="kernel")


@PATH
def test_messages_of_decoding(backend):
    f, g, s, e, _ = chain(batch=3)
    f[1, 2] = -torch.inf
    with pytest.raises(ValueError, match=r"viterbi: row 1 has no allowed path over its 5 kept steps.*mask the row"):
        viterbi(f, g, s, e, backend=backend)
    with pytest.raises(ValueError, match="sample_paths: row 1 has no allowed path"):
        sample_paths(f, g, s, e)
    f[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"viterbi: .*row 1.*nan"):
        viterbi(f, g, s, e, backend=backend)
    with pytest.raises(ValueError, match=r"viterbi_nbest: .*row 1.*nan"):
        viterbi_nbest(f, g, s, e, n=2)
    with pytest.raises(ValueError, match="n >= 1, got 0; for the best path alone use viterbi"):
        viterbi_nbest(f, g, n=0)
    with pytest.raises(ValueError, match="num_samples >= 1, got 0"):
        sample_paths(f, g, num_samples=0)


def test_messages_of_the_layer():
    with pytest.raises(ValueError, match="num_tags must be at least 1, got 0"):
        CRF(0)
    with pytest.raises(ValueError, match="one of zeros, glorot, uniform; got 'bigram'"):
        CRF(3, init="bigram")
    with pytest.raises(
        ValueError, match=r"three bool tensors of shapes \[\(3, 3\), \(3,\), \(3,\)\].*allowed_transitions"
    ):
        CRF(3, RULES)
    with pytest.raises(ValueError, match=r"crf_nll needs emissions.*got \(2, 5, 4\) and \(3, 3\)"):
        CRF(3)(torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.long))


# --- the kernel's surroundings -----------------------------------------------------------------------------------


def test_the_switch_and_its_absence(monkeypatch):
    chain_module = importlib.import_module("danlu.nn._chain")
    f = torch.zeros(1, 2, 3)
    monkeypatch.setenv("DANLU_KERNELS", "off")
    assert chain_module.engine("test", "auto", f) is None
    monkeypatch.delenv("DANLU_KERNELS")
    assert (chain_module.engine("test", "auto", f) is not None) == HAS_NUMBA
    assert chain_module.engine("test", "auto", torch.zeros(1, 1, 513)) is None
    monkeypatch.setattr(chain_module, "_load_kernel", lambda: None)
    assert chain_module.engine("test", "auto", f) is None
    with pytest.raises(ImportError, match=r'needs numba: pip install "danlu\[fast\]"'):
        crf_nll(f, torch.zeros(1, 2, dtype=torch.long), torch.zeros(3, 3), backend="kernel")


def _in_a_child(queue):
    torch.set_num_threads(1)  # torch's own threads do not survive a fork, as its data loader knows
    left = len(importlib.import_module("danlu.nn._crf_kernel")._pool)
    f, g, s, e, y = chain(batch=37, steps=100, size=21, dtype=torch.float32)
    queue.put((left, crf_nll(f, y, g, s, e).item()))


@pytest.mark.skipif(not HAS_NUMBA or not hasattr(os, "fork"), reason="needs numba and fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_use_the_kernel_after_the_parent_did():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        f, g, s, e, y = chain(batch=37, steps=100, size=21, dtype=torch.float32)
        expected = crf_nll(f, y, g, s, e).item()
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=_in_a_child, args=(queue,))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert queue.get() == (0, expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
@pytest.mark.parametrize("trouble", ["no folder", "full disk"])
def test_the_kernel_works_where_its_cache_cannot_be_kept(tmp_path, trouble):
    limit = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n" if trouble == "full disk" else ""
    )
    if trouble == "no folder":
        (tmp_path / "file").write_text("not a folder")
    code = (
        f"{limit}import torch\nfrom danlu.nn import viterbi\n"
        "print(viterbi(torch.tensor([[[0., 1.]]]), torch.zeros(2, 2), backend='kernel')[0].tolist())"
    )
    folder = tmp_path / "file" / "cache" if trouble == "no folder" else tmp_path / "cache"
    env = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.stdout.strip() == "[[1]]", done.stderr


@pytest.mark.skipif(not HAS_NUMBA, reason="needs numba")
def test_processes_cannot_take_the_machine_code_of_another_type(tmp_path):
    # numba numbers the codes of one index; two that compile at once would give two types the same number
    code = (
        "import torch\nfrom danlu.nn import crf_nll, viterbi\n"
        "for dtype in (torch.float32, torch.float64):\n"
        "    f, g = torch.ones(2, 3, 4, dtype=dtype, requires_grad=True), torch.ones(4, 4, dtype=dtype)\n"
        "    crf_nll(f, torch.zeros(2, 3, dtype=torch.int64), g, backend='kernel').sum().backward()\n"
        "    viterbi(f.detach(), g, backend='kernel')\n"
        "from danlu.nn._decode import decode_kernel\n"
        "for dtype in (torch.float32, torch.bfloat16):\n"
        "    decode_kernel().linear(torch.ones(2, 8), torch.ones(4, 8, dtype=dtype), None)\n"
    )
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    codes = [file.name for file in tmp_path.rglob("*.nbc")]
    assert len(codes) == len(list(tmp_path.rglob("*.nbi"))) == 8, codes
    assert all(name.endswith(".1.nbc") for name in codes)
    for kind, count in (("float32", 4), ("float64", 3), ("uint16", 1)):
        assert sum(kind in name for name in codes) == count


def test_compiled_training_steps_do_not_recompile_for_other_lengths():
    crf, counter = CRF(3), torch._dynamo.testing.CompileCounter()

    @torch.compile(backend=counter)
    def step(f, y, mask):
        return crf(f * 2, y, mask)

    frames = []
    for length in (2, 5, 9, 11, 7):
        f, _, _, _, y = chain(batch=4, steps=12, dtype=torch.float32)
        mask = (torch.arange(12) < length).expand(4, 12)
        torch.testing.assert_close(step(f, y, mask), crf(f * 2, y, mask))
        frames.append(counter.frame_count)
    assert frames[1] == frames[-1] <= 10
