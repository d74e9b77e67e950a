"""Semiring scans: against enumeration of all paths, the scan against the loop, masks as removal, -inf without nan."""

import itertools
import math

import pytest
import torch

from danlu.math import (
    chain_backward,
    chain_entropy,
    chain_forward,
    chain_inputs,
    chain_marginals,
    logsumexp,
)


def chain(batch=3, steps=4, size=3, seed=0, dtype=torch.float64):
    """Random emissions, transitions, start, end."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(batch, steps, size), (size, size), (size,), (size,)]
    return [torch.randn(shape, dtype=dtype, generator=draw) for shape in shapes]


def enumerate_paths(f, g, s, e):
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


@pytest.mark.parametrize("method", ["loop", "scan"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_totals_equal_the_enumeration(method, steps):
    f, g, s, e = chain(steps=steps)
    for semiring, plus in (("log", log_sum), ("max", max)):
        total = chain_forward(f, g, s, e, semiring=semiring, method=method)[1]
        expected = [plus(list(enumerate_paths(f[b], g, s, e).values())) for b in range(3)]
        torch.testing.assert_close(total, torch.tensor(expected, dtype=torch.float64))


def test_the_fixed_case_of_the_dossier():
    f = torch.tensor([[[0.1, 0.2, 0.3], [0.4, -0.5, 0.6], [0.0, 1.0, -1.0]]], dtype=torch.float64)
    g = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.5, -0.5], [0.2, 0.2, -0.1]], dtype=torch.float64)
    assert chain_forward(f, g)[1].item() == pytest.approx(4.246244823261055, abs=1e-14)
    assert chain_forward(f, g, semiring="max")[1].item() == pytest.approx(2.2, abs=1e-14)


def test_forward_and_backward_meet_at_every_step():
    f, g, s, e = chain()
    for semiring, plus in (("log", torch.logsumexp), ("max", torch.amax)):
        a, total = chain_forward(f, g, s, e, semiring=semiring)
        b = chain_backward(f, g, e, semiring=semiring)
        torch.testing.assert_close(plus(a + b, 2), total[:, None].expand(3, 4))


def test_prefix_values_are_those_of_the_shorter_sequence():
    f, g, s, _ = chain()
    a, _ = chain_forward(f, g, s)
    for t in range(4):
        for b in range(3):
            paths = enumerate_paths(f[b, : t + 1], g, s, torch.zeros(3))
            for j in range(3):
                expected = log_sum([v for path, v in paths.items() if path[-1] == j])
                assert a[b, t, j].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("semiring", ["log", "max"])
@pytest.mark.parametrize("steps", [0, 1, 2, 5, 8, 13])
def test_scan_equals_loop_with_any_mask(semiring, steps):
    f, g, s, e = chain(batch=6, steps=steps, dtype=torch.float32)
    mask = torch.rand(6, steps, generator=torch.Generator().manual_seed(steps)) < 0.6
    a, total = chain_forward(f, g, s, e, mask, semiring)
    a_scan, total_scan = chain_forward(f, g, s, e, mask, semiring, "scan")
    torch.testing.assert_close(a_scan, a, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(total_scan, total, atol=1e-6, rtol=1e-6)


def test_a_masked_step_is_no_step():
    f, g, s, e = chain(batch=1, steps=6)
    for pattern in ([1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1], [1, 0, 0, 1, 0, 1], [0, 0, 0, 1, 0, 0]):
        mask = torch.tensor([pattern]).bool()
        short = f[mask][None]
        whole, part = chain_forward(f, g, s, e, mask), chain_forward(short, g, s, e)
        torch.testing.assert_close(whole[1], part[1])
        torch.testing.assert_close(whole[0][mask], part[0][0])
        torch.testing.assert_close(chain_backward(f, g, e, mask)[mask], chain_backward(short, g, e)[0])
        torch.testing.assert_close(chain_marginals(f, g, s, e, mask)[mask], chain_marginals(short, g, s, e)[0])
        torch.testing.assert_close(chain_entropy(f, g, s, e, mask), chain_entropy(short, g, s, e))
        for value in (whole[0], chain_backward(f, g, e, mask), chain_marginals(f, g, s, e, mask)):
            assert (value[~mask] == 0).all()


def test_a_row_without_steps_has_total_and_entropy_zero():
    f, g, s, e = chain(batch=2)
    mask = torch.tensor([[False] * 4, [True] * 4])
    assert chain_forward(f, g, s, e, mask)[1][0] == 0
    assert chain_entropy(f, g, s, e, mask)[0] == 0
    assert chain_forward(f[:, :0], g, s, e)[1].tolist() == [0.0, 0.0]


def test_marginals_and_entropy_equal_the_enumeration():
    f, g, s, e = chain()
    p, h = chain_marginals(f, g, s, e), chain_entropy(f, g, s, e)
    for b in range(3):
        scores = enumerate_paths(f[b], g, s, e)
        total = log_sum(list(scores.values()))
        prob = {path: math.exp(score - total) for path, score in scores.items()}
        assert h[b].item() == pytest.approx(-sum(v * math.log(v) for v in prob.values()), abs=1e-12)
        for t in range(4):
            for j in range(3):
                assert p[b, t, j].item() == pytest.approx(sum(v for y, v in prob.items() if y[t] == j), abs=1e-12)


def test_gradient_of_the_total_is_the_marginal():
    f, g, s, e = chain()
    f.requires_grad_()
    (grad,) = torch.autograd.grad(chain_forward(f, g, s, e)[1].sum(), f)
    torch.testing.assert_close(grad, chain_marginals(f, g, s, e).detach())


@pytest.mark.parametrize("method", ["loop", "scan"])
def test_gradcheck_once_and_twice(method):
    inputs = [x.requires_grad_() for x in chain(batch=2, steps=3, size=2)]
    mask = torch.tensor([[True, True, True], [True, False, True]])

    def total(f, g, s, e):
        return chain_forward(f, g, s, e, mask, method=method)[1]

    assert torch.autograd.gradcheck(total, inputs)
    assert torch.autograd.gradgradcheck(total, inputs)
    assert torch.autograd.gradcheck(lambda *x: chain_entropy(*x, mask), inputs)
    assert torch.autograd.gradcheck(lambda *x: chain_marginals(*x, mask), inputs)


@pytest.mark.parametrize("method", ["loop", "scan"])
def test_forbidden_entries_never_make_nan(method):
    f, g, s, e = chain(batch=3)
    g[0, 1] = g[1, 1] = g[2, 1] = s[1] = -torch.inf  # tag 1 cannot be reached at all
    f[0, 2] = -torch.inf  # row 0 has no path
    f[1, 1, 0] = -torch.inf
    inputs = [x.requires_grad_() for x in (f, g, s, e)]
    total = chain_forward(*inputs, method=method)[1]
    assert total[0] == -torch.inf
    assert torch.isfinite(total[1:]).all()
    entropy, marginals = chain_entropy(*inputs), chain_marginals(*inputs)
    assert torch.isfinite(entropy).all()
    assert (marginals[0] == 0).all()
    assert (marginals[1:, :, 1] == 0).all()
    torch.testing.assert_close(marginals[1:].sum(2), torch.ones(2, 4, dtype=torch.float64))
    for value in (total[1:].sum(), entropy.sum(), marginals.square().sum()):
        for grad in torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True):
            assert grad is None or torch.isfinite(grad).all()


def test_logsumexp_equals_torch_and_survives_empty_slices():
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(logsumexp(x, 0), torch.logsumexp(x, 0))
    y = torch.tensor([[-torch.inf, -torch.inf], [1.0, -torch.inf]], requires_grad=True)
    out = logsumexp(y, 1)
    assert out.tolist() == [-math.inf, 1.0]
    assert torch.autograd.grad(out.sum(), y)[0].tolist() == [[0, 0], [1, 0]]


def test_half_precision_is_computed_in_float32():
    f, g, s, e = chain(dtype=torch.bfloat16)
    total = chain_forward(f, g, s, e)[1]
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, chain_forward(f.float(), g.float(), s.float(), e.float())[1])


def test_messages():
    f, g, s, e = chain()
    with pytest.raises(ValueError, match=r"got \(4, 3\) and \(3, 3\).*emissions\[None\]"):
        chain_forward(f[0], g)
    with pytest.raises(ValueError, match=r"start of shape \(3,\).*got \(2,\).*None stands for zeros"):
        chain_forward(f, g, s[:2])
    with pytest.raises(ValueError, match=r"bool mask \(3, 4\).*got torch.float32 \(3, 4\).*mask.bool\(\)"):
        chain_forward(f, g, mask=torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"'log' or 'max'.*got 'sum' and 'loop'"):
        chain_forward(f, g, semiring="sum")
    with pytest.raises(ValueError, match="'loop' or 'scan', got 'log' and 'tree'"):
        chain_forward(f, g, method="tree")
    with pytest.raises(ValueError, match="chain_backward has semiring 'log' or 'max', got 'sum'"):
        chain_backward(f, g, semiring="sum")
    with pytest.raises(ValueError, match="demo needs end"):
        chain_inputs("demo", f, g, s, e[None])
