"""Smooth top-k: enumeration of subsets, the tables of the source, exact sums, closed gradients, bounds, extremes."""

import itertools
import math

import pytest
import torch

from danlu.math import TOPK_METHODS, smooth_bound, smooth_onehot, smooth_topk

X = torch.tensor([3.0, 1.0, 2.0, 0.0], dtype=torch.float64)
SUMMED = ("sigmoid", "laplace", "minexp", "grad")
SHARES = ("sigmoid", "laplace", "minexp")
CDF = {
    "sigmoid": lambda u: 1 / (1 + math.exp(-u)),
    "laplace": lambda u: 1 - math.exp(-u) / 2 if u >= 0 else math.exp(u) / 2,
    "minexp": lambda u: min(1.0, math.exp(u)),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def by_bisection(row, k, method):
    """Eq. (1) with Python floats and 200 halvings."""
    low, high = min(row) - 60, max(row) + 60
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if sum(CDF[method](v - t) for v in row) > k else (low, t)
    return [CDF[method](v - low) for v in row]


def by_enumeration(row, k):
    """Eq. (7): every k-subset weighs exp of its sum."""
    subsets = list(itertools.combinations(range(len(row)), k))
    weights = [math.exp(sum(row[i] for i in s)) for s in subsets]
    return [sum(w for s, w in zip(subsets, weights, strict=True) if i in s) / sum(weights) for i in range(len(row))]


@pytest.mark.parametrize(
    ("method", "sharpness", "expected"),
    [
        ("sigmoid", 5.0, (0.9994, 0.0759, 0.9241, 0.0006)),
        ("sigmoid", 2.0, (0.952574, 0.268941, 0.731059, 0.047426)),
        ("grad", 1.0, (0.880797, 0.305587, 0.694413, 0.119203)),
        ("minexp", 1.0, (1.0, 0.2447, 0.6652, 0.0900)),
        ("laplace", 1.0, (0.8884, 0.3033, 0.6967, 0.1116)),
        ("recursive", 5.0, (0.9933, 0.0072, 0.9994, 0.0001)),
        ("recursive", 20.0, (1.0, 0.0, 1.0, 0.0)),
    ],
)
def test_the_worked_case(method, sharpness, expected):
    digits = 5e-7 if len(str(expected[0])) > 6 else 6e-5
    assert smooth_topk(X, 2, sharpness, method=method).tolist() == pytest.approx(expected, abs=digits)


@pytest.mark.parametrize("method", SHARES)
def test_shares_equal_a_bisection(method):
    for k, scale in ((1, 0.3), (3, 2.0), (2.5, 1.0), (0.2, 1.0), (5, 5.0), (5.75, 0.5)):
        row = (scale * torch.randn(6, dtype=torch.float64, generator=generator(7))).tolist()
        got = smooth_topk(torch.tensor(row, dtype=torch.float64), k, method=method).tolist()
        assert got == pytest.approx(by_bisection(row, k, method), abs=1e-12)


def test_equal_items_share_also_above_one_half():
    """Laplace with every item above the threshold, m = n."""
    for method in SUMMED:
        got = smooth_topk(torch.full((5,), 0.7, dtype=torch.float64), 4, method=method)
        torch.testing.assert_close(got, torch.full_like(got, 0.8), rtol=1e-12, atol=0)


@pytest.mark.parametrize("k", range(1, 6))
def test_grad_equals_the_enumeration_of_subsets(k):
    row = torch.randn(6, dtype=torch.float64, generator=generator(k)) * 2
    assert smooth_topk(row, k, method="grad").tolist() == pytest.approx(by_enumeration(row.tolist(), k), abs=1e-13)


def test_grad_is_the_gradient_of_its_log_partition():
    row = torch.randn(6, dtype=torch.float64, generator=generator()).requires_grad_()
    subsets = torch.tensor(list(itertools.combinations(range(6), 3)))
    (p,) = torch.autograd.grad(row[subsets].sum(1).logsumexp(0), row)
    torch.testing.assert_close(smooth_topk(row.detach(), 3, method="grad"), p)


def test_recursive_by_hand_and_its_faults():
    """The fault that the module names: with k = n - and only there - ties with the smallest item break it."""
    x, p = [3.0 * 20, 20.0, 2.0 * 20, 0.0], [0.0] * 4
    for _ in range(4):
        e = [math.exp((1 - q) * v) for q, v in zip(p, x, strict=True)]
        p = [q + v / sum(e) for q, v in zip(p, e, strict=True)]
    assert p == pytest.approx([1.25, 1.25, 1.25, 0.25], abs=1e-6)
    extended = torch.cat([X, torch.tensor([-torch.inf])])  # k = n is answered apart; one more keeps the recursion
    assert smooth_topk(extended, 4, 20.0, method="recursive").tolist() == [1.0] * 4 + [0.0]
    rows = torch.cat([torch.randn(700, 10, dtype=torch.float64, generator=generator(i)) * s
                      for i, s in enumerate((1, 5, 20))])  # fmt: skip
    found = smooth_topk(rows, 3, method="recursive")
    by_hand = torch.zeros_like(rows)
    for _ in range(3):
        by_hand = by_hand + ((1 - by_hand) * (rows - rows.amin(-1, keepdim=True))).softmax(-1)
    torch.testing.assert_close(found, by_hand)
    assert (found > 1 + 1e-9).any(-1).float().mean() > 0.1  # what the others never do


@pytest.mark.parametrize("method", SUMMED)
def test_weights_lie_in_the_unit_interval_sum_to_k_and_keep_the_order(method):
    for seed in range(60):
        g = generator(seed)
        n = int(torch.randint(2, 24, (1,), generator=g))
        k = int(torch.randint(1, n, (1,), generator=g))
        x = 10 ** (4 * float(torch.rand(1, generator=g)) - 2) * torch.randn(3, n, dtype=torch.float64, generator=g)
        p = smooth_topk(x, k, method=method)
        assert ((p >= 0) & (p <= 1)).all()
        assert (p.sum(-1) - k).abs().max() < (1e-12 * k if method == "sigmoid" else 3e-11)
        assert (p.gather(-1, x.argsort(-1)).diff(dim=-1) >= -1e-12).all()
        torch.testing.assert_close(smooth_topk(x + 50, k, method=method), p, rtol=0, atol=1e-9)
        order = torch.randperm(n, generator=g)
        torch.testing.assert_close(smooth_topk(x[:, order], k, method=method), p[:, order], rtol=0, atol=1e-10)


@pytest.mark.parametrize("std", [1.0, 3.0, 10.0, 30.0])
def test_grad_stays_exact_where_the_recursion_of_the_source_fails(std):
    x = std * torch.randn(20, 100, dtype=torch.float64, generator=generator())
    for k in (1, 10, 50):
        assert (smooth_topk(x, k, method="grad").sum(-1) - k).abs().max() < 4e-11


def test_one_of_n_is_softmax_for_those_that_say_so():
    x = torch.randn(5, 7, dtype=torch.float64, generator=generator())
    for method in ("minexp", "grad"):
        torch.testing.assert_close(smooth_topk(x, 1, 3.0, method=method), smooth_onehot(x, 3.0))
    assert smooth_topk(X, 1, method="laplace")[0].item() == pytest.approx(0.628, abs=5e-4)  # softmax gives .644
    flat = X / 4  # its largest softmax entry is below one half: there laplace is softmax as well
    torch.testing.assert_close(smooth_topk(flat, 1, method="laplace"), smooth_onehot(flat))


@pytest.mark.parametrize("method", SHARES)
def test_the_jacobian_in_closed_form(method):
    """Eq. (6) against finite differences of the bisection, which knows nothing of it."""
    row, k, h = [0.9, -0.4, 0.3, -1.1, 0.1], 2, 1e-6
    columns = []
    for i in range(5):
        ends = [by_bisection([v + s * (j == i) for j, v in enumerate(row)], k, method) for s in (h, -h)]
        columns.append([(a - b) / (2 * h) for a, b in zip(*ends, strict=True)])
    got = torch.autograd.functional.jacobian(lambda x: smooth_topk(x, k, method=method), X.new_tensor(row))
    torch.testing.assert_close(got, X.new_tensor(columns).T, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("method", TOPK_METHODS)
def test_gradcheck(method):
    x = torch.randn(2, 5, dtype=torch.float64, generator=generator(4)).requires_grad_()
    for k in (1, 3, 2.5) if method in SHARES else (1, 3):
        assert torch.autograd.gradcheck(lambda x, k=k: smooth_topk(x, k, 1.7, method=method), x)
        assert torch.autograd.gradcheck(lambda x, k=k: smooth_topk(x.T, k, 1.7, 0, method), x)
    assert torch.autograd.gradgradcheck(lambda x: smooth_topk(x, 2, 1.7, method=method), x)


@pytest.mark.parametrize("method", SUMMED)
def test_the_bound_holds_and_is_reached_by_two_ties(method):
    for n, k, sharpness, gap in itertools.product((2, 5, 9), (1, 3), (0.5, 2.0, 8.0), (0.0, 0.3, 1.0)):
        if k >= n:
            continue
        bound = smooth_bound("topk", sharpness, n, k, gap, method)
        x = 2 * torch.randn(200, n, dtype=torch.float64, generator=generator(n))
        x = torch.cat([x, x / 1e9])  # near ties, too
        chosen = x.argsort(-1, descending=True).argsort(-1) < k
        lowest = torch.where(chosen, x, torch.inf).amin(-1, keepdim=True)
        x = torch.where(chosen, x - lowest + gap, x - torch.where(chosen, -torch.inf, x).amax(-1, keepdim=True))
        wrong = (smooth_topk(x, k, sharpness, method=method) - chosen.double()).abs().sum(-1) / 2
        assert wrong.max() <= bound + 1e-9
        tied = torch.tensor([gap] * k + [0.0] * (n - k), dtype=torch.float64)
        worst = smooth_topk(tied, k, sharpness, method=method)[k:].sum().item()
        assert worst == pytest.approx(bound, rel=1e-9)
    assert smooth_bound("topk", 1e6, 5, 2, 1.0, method) < 1e-300 or method == "laplace"
    assert smooth_bound("topk", n=4, k=4, method=method) == smooth_bound("topk", n=4, k=0, method=method) == 0.0


@pytest.mark.parametrize("method", TOPK_METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_extreme_numbers_stay_numbers(method, dtype):
    missing = -torch.inf
    rows = [[1e4, -1e4, 0.0, 5.0, 5.0], [1e4] * 5, [1.0, missing, 3.0, 2.0, missing], [missing] * 5,
            [1e36, -1e36, 0.0, 1.0, 2.0], [missing, missing, 4.0, missing, missing]]  # fmt: skip
    x = torch.tensor(rows, dtype=dtype)
    if method == "recursive":
        x[4] /= 1e30  # its gradient overflows: it multiplies by x k times
    for k in range(6):
        leaf = x.clone().requires_grad_()
        p = smooth_topk(leaf, k, 3.0, method=method)
        p[:, [0, 2]].sum().backward()
        assert p.dtype == dtype and p.isfinite().all() and leaf.grad.isfinite().all()
        assert not p[x == missing].any()
        there = (x > missing).sum(-1)
        if method != "recursive":
            expected = there.clamp_max(k).to(dtype)
            torch.testing.assert_close(p.sum(-1), expected, rtol=0.02 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    assert smooth_topk(x, 3, 3.0, method=method)[2].tolist() == [1, 0, 1, 1, 0]  # as many as there are


def test_one_item_and_none():
    for method in TOPK_METHODS:
        one = torch.tensor([3.0], requires_grad=True)
        assert smooth_topk(one, 1, method=method).item() == 1.0 and smooth_topk(one, 0, method=method).item() == 0.0
        smooth_topk(one, 1, method=method).sum().backward()
        assert not one.grad.any()
    assert smooth_topk(torch.zeros(2, 0), 0).shape == (2, 0)


def test_half_precision_is_computed_in_float32():
    x = torch.randn(64, generator=generator()).bfloat16()
    p = smooth_topk(x, 20, 2.0)
    torch.testing.assert_close(p, smooth_topk(x.float(), 20, 2.0).bfloat16(), rtol=0, atol=0)


def test_a_loop_learns_which_two_of_many_matter():
    """Scores of 8 features are trained through the gate alone; the two that make the target are found."""
    g = generator(1)
    data = torch.randn(200, 8, generator=g)
    target = data[:, 2] + data[:, 5]
    scores = torch.zeros(8, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        ((data * smooth_topk(scores, 2, 4.0)).sum(1) - target).square().mean().backward()
        optimizer.step()
    assert set(scores.topk(2).indices.tolist()) == {2, 5}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smooth_topk(X, 5), r"k must lie in \[0, 4\] for 4 items along dim=-1, got 5"),
        (lambda: smooth_topk(X, -1), "got -1"),
        (lambda: smooth_topk(X, 1.5, method="grad"), "'grad' counts items: k must be whole, got 1.5; 'sigmoid' takes"),
        (lambda: smooth_topk(X, 1, 0.0), "sharpness must be > 0, got 0.0"),
        (lambda: smooth_topk(X, 1, method="soft"), "method must be one of sigmoid, laplace, minexp, grad, recursive"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
