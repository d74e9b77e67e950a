"""Smooth max to round and their bounds: tables by hand, identities, extremes, random search for errors, gradcheck."""

import itertools
import math

import pytest
import torch

from danlu.math import (
    hard_forward,
    sharpness_at,
    smooth_abs,
    smooth_argmax,
    smooth_bound,
    smooth_floor,
    smooth_max,
    smooth_min,
    smooth_onehot,
    smooth_rank,
    smooth_relu,
    smooth_round,
    smooth_sign,
    smooth_step,
)

G = torch.Generator().manual_seed(0)
X = torch.randn(4, 6, dtype=torch.float64, generator=G)
LINE = torch.linspace(-3.3, 3.3, 45, dtype=torch.float64)
ONE_TO_THREE = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

ITEMS = {
    "max": smooth_max,
    "max mean": lambda x, k: smooth_max(x, k, method="mean"),
    "min": smooth_min,
    "onehot": smooth_onehot,
    "argmax": smooth_argmax,
    "rank": smooth_rank,
}
POINTS = {
    "relu": smooth_relu,
    "abs": smooth_abs,
    "abs tanh": lambda x, k: smooth_abs(x, k, "tanh"),
    "abs logcosh": lambda x, k: smooth_abs(x, k, "logcosh"),
    "step": smooth_step,
    "sign": smooth_sign,
    "floor": smooth_floor,
    "round": smooth_round,
}


def test_the_worked_case():
    x = ONE_TO_THREE
    assert smooth_max(x).item() - 3 == pytest.approx(0.40761, abs=5e-6)
    assert smooth_max(x, 10.0).item() - 3 == pytest.approx(4.54e-6, rel=1e-3)
    assert smooth_argmax(x).item() == pytest.approx(1.57521, abs=5e-6)
    assert smooth_argmax(x, 10.0).item() == pytest.approx(1.999955, abs=5e-7)
    assert smooth_max(x, method="mean").item() == pytest.approx(2.57521, abs=5e-6)
    assert smooth_bound("max", 1.0, 3) == pytest.approx(1.0986, abs=5e-5)
    assert smooth_bound("max", 10.0, 3) == pytest.approx(0.1099, abs=5e-5)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 7.0])
def test_items_equal_their_formulas(sharpness):
    """Python floats, one row at a time."""
    for row in X.tolist():
        e = [math.exp(sharpness * v) for v in row]
        p = [v / sum(e) for v in e]
        x = torch.tensor(row, dtype=torch.float64)
        assert smooth_max(x, sharpness).item() == pytest.approx(math.log(sum(e)) / sharpness, rel=1e-12)
        mean = sum(a * b for a, b in zip(row, p, strict=True))
        assert smooth_max(x, sharpness, method="mean").item() == pytest.approx(mean, rel=1e-12)
        low = -math.log(sum(math.exp(-sharpness * v) for v in row)) / sharpness
        assert smooth_min(x, sharpness).item() == pytest.approx(low, rel=1e-12)
        assert smooth_onehot(x, sharpness).tolist() == pytest.approx(p, rel=1e-12)
        assert smooth_argmax(x, sharpness).item() == pytest.approx(sum(i * v for i, v in enumerate(p)), rel=1e-12)
        rank = [0.5 + sum(1 / (1 + math.exp(sharpness * (b - a))) for b in row) for a in row]
        assert smooth_rank(x, sharpness).tolist() == pytest.approx(rank, rel=1e-12)


def test_the_two_forms_of_max_differ_by_the_entropy():
    for sharpness in (0.5, 1.0, 20.0):
        p = smooth_onehot(X, sharpness)
        entropy = torch.special.entr(p).sum(-1)
        gap = smooth_max(X, sharpness) - smooth_max(X, sharpness, method="mean")
        torch.testing.assert_close(gap, entropy / sharpness, rtol=1e-12, atol=1e-14)


def test_the_gradient_of_max_is_the_onehot():
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(smooth_max(x, 3.0).sum(), x)
    torch.testing.assert_close(grad, smooth_onehot(X, 3.0))


def test_max_is_convex_and_items_move_with_their_order_and_origin():
    a, b = torch.randn(2, 50, 6, dtype=torch.float64, generator=G)
    assert (smooth_max((a + b) / 2, 2.0) <= (smooth_max(a, 2.0) + smooth_max(b, 2.0)) / 2 + 1e-14).all()
    order = torch.randperm(6, generator=G)
    for fn, moves in ((smooth_max, 1), (smooth_min, 1), (smooth_onehot, 0), (smooth_rank, 0), (smooth_argmax, 0)):
        torch.testing.assert_close(fn(X + 100, 2.0), fn(X, 2.0) + 100 * moves, rtol=1e-12, atol=1e-11)
        torch.testing.assert_close(fn(X.T, 2.0, dim=0), fn(X, 2.0) if fn(X).ndim == 1 else fn(X, 2.0).T)
    torch.testing.assert_close(smooth_onehot(X[:, order]), smooth_onehot(X)[:, order])
    torch.testing.assert_close(smooth_rank(X[:, order]), smooth_rank(X)[:, order])
    torch.testing.assert_close(smooth_max(X[:, order]), smooth_max(X))
    assert (smooth_rank(X, 0.7).sum(-1) - 21).abs().max() < 1e-12


def test_all_become_hard():
    torch.testing.assert_close(smooth_max(X, 1e5), X.amax(-1))
    torch.testing.assert_close(smooth_max(X, 1e5, method="mean"), X.amax(-1))
    torch.testing.assert_close(smooth_min(X, 1e5), X.amin(-1))
    assert torch.equal(smooth_argmax(X, 1e5).round().long(), X.argmax(-1))
    assert torch.equal(smooth_onehot(X, 1e5), torch.nn.functional.one_hot(X.argmax(-1), 6).double())
    assert torch.equal(smooth_rank(X, 1e5), X.argsort(-1).argsort(-1) + 1.0)
    for name, hard in (("relu", torch.relu), ("abs", torch.abs), ("abs tanh", torch.abs), ("abs logcosh", torch.abs),
                       ("sign", torch.sign), ("floor", torch.floor), ("round", torch.round)):  # fmt: skip
        torch.testing.assert_close(POINTS[name](LINE + 0.01, 1e4), hard(LINE + 0.01), rtol=0, atol=2e-4)


@pytest.mark.parametrize("sharpness", [0.05, 0.7, 3.0, 4.4, 4.5, 9.0, 60.0])
def test_the_staircase_is_its_long_sum(sharpness):
    """Eq. (4) with thousands of terms, whichever series the code takes; round is floor half a unit on."""
    reach = int(40 / sharpness) + 10
    for x in (-1.3, 0.0, 0.2, 0.5, 0.999, 7.75):
        base = math.floor(x)
        up = sum(0.5 * (1 + math.tanh(sharpness * (x - j) / 2)) for j in range(base + 1, base + reach))
        down = sum(0.5 * (math.tanh(sharpness * (x - j) / 2) - 1) for j in range(base - reach + 1, base + 1))
        got = smooth_floor(torch.tensor(x, dtype=torch.float64), sharpness).item()
        assert got == pytest.approx(base + up + down, abs=1e-12)
        assert smooth_round(torch.tensor(x - 0.5, dtype=torch.float64), sharpness).item() == pytest.approx(
            got, abs=1e-12
        )
    steps = smooth_floor(LINE, sharpness)
    assert (steps.diff() >= 0).all()
    torch.testing.assert_close(smooth_floor(LINE + 1, sharpness), steps + 1, rtol=0, atol=1e-12)


def test_corners():
    zero = torch.zeros((), dtype=torch.float64)
    assert smooth_relu(zero).item() == pytest.approx(0.693147, abs=5e-7)
    shortfall = LINE.new_tensor([i / 1000 for i in range(3000)])
    worst = (shortfall - smooth_abs(shortfall, method="tanh")).max().item()
    assert worst == pytest.approx(0.278465, abs=1e-6)
    assert smooth_abs(zero).item() == 1.0
    assert smooth_abs(zero, method="logcosh").item() == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 6.0, 30.0])
def test_the_bounds_of_points_are_their_largest_errors(sharpness):
    """A fine grid beyond each gap: never above the bound, and within a thousandth of it."""
    x = torch.arange(-40_000, 40_001, dtype=torch.float64) / 20_000 + 1e-9  # [-2, 2]
    jump = {"step": x.abs(), "sign": x.abs(), "floor": (x - x.round()).abs(), "round": (x - x.floor() - 0.5).abs()}
    hard = {"relu": torch.relu, "abs": torch.abs, "step": lambda x: (x > 0).double(), "sign": torch.sign,
            "floor": torch.floor, "round": torch.round}  # fmt: skip
    for name, smooth in POINTS.items():
        kind, method = [*name.split(), None][:2]
        for gap in (0.0, 0.1, 0.4) if kind in jump else (0.0,):
            far = jump.get(kind, x.abs()) >= gap
            error = (smooth(x, sharpness) - hard[kind](x)).abs()[far].max().item()
            bound = smooth_bound(kind, sharpness, gap=gap, method=method)
            assert 0.999 * bound - 1e-8 <= error <= bound + 1e-8, (name, gap)
    assert smooth_bound("floor", sharpness) == pytest.approx(0.5, abs=1e-12)
    assert smooth_bound("step", sharpness, gap=1.0) <= math.exp(-sharpness)  # the looser bound of the notes
    assert smooth_bound("sign", sharpness, gap=1.0) <= 2 * math.exp(-2 * sharpness)


def spread(x, gap):
    """Rows moved apart so that the largest item leads by at least `gap`."""
    top = x.amax(-1, keepdim=True)
    return torch.where(x == top, x + gap, x)


def errors(name, x, sharpness):
    """The error of each row."""
    if name == "rank":
        return (smooth_rank(x, sharpness) - (x.argsort(-1).argsort(-1) + 1)).abs().amax(-1)
    if name == "onehot":
        hard = torch.nn.functional.one_hot(x.argmax(-1), x.shape[-1])
        return (smooth_onehot(x, sharpness) - hard).abs().amax(-1)
    if name == "argmax":
        return (smooth_argmax(x, sharpness) - x.argmax(-1)).abs()
    hard = x.amin(-1) if name == "min" else x.amax(-1)
    return (ITEMS[name](x, sharpness) - hard).abs()


@pytest.mark.parametrize("name", list(ITEMS))
def test_the_bounds_of_items_hold_and_a_search_comes_near(name):
    """Random rows never cross the bound; climbing from the best of them reaches 95 % of it."""
    generator = torch.Generator().manual_seed(3)
    kind, method = [*name.split(), None][:2]
    for n, sharpness, gap in itertools.product((2, 5), (0.7, 3.0), (0.0, 0.4)):
        bound = smooth_bound(kind, sharpness, n, gap=gap, method=method)

        def legal(x, n=n, gap=gap):  # rows of the kind the bound speaks of
            if kind == "rank":
                order = x.argsort(-1).argsort(-1)
                rising = x.sort(-1).values
                apart = torch.cat([rising[:, :1], rising.diff(dim=-1).clamp_min(gap + 1e-9)], -1).cumsum(-1)
                return apart.gather(-1, order)
            return spread(x, gap) if kind in ("onehot", "argmax") else x

        scale = 10 ** (2 * torch.rand(3000, 1, generator=generator, dtype=torch.float64) - 1.5)
        x = scale * torch.randn(3000, n, generator=generator, dtype=torch.float64)
        best, worst = None, 0.0
        for width in [None, *(0.6**i for i in range(1, 24))]:
            if width is not None:
                x = best + width * torch.randn(300, n, generator=generator, dtype=torch.float64)
            error = errors(name, legal(x), sharpness)
            assert error.max() <= bound + 1e-9, (n, sharpness, gap)
            if error.max() > worst:
                worst, best = error.max().item(), x[error.argmax()]
        assert worst >= 0.95 * bound, (n, sharpness, gap, worst, bound)
        assert bound <= {"max": math.log(n) / sharpness, "argmax": (n - 1) ** 2 * math.exp(-sharpness * gap)}.get(
            kind, math.inf
        ) + 1e-12  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_numbers_stay_numbers(dtype):
    rows = [[1e4, -1e4, 0.0], [1e4, 1e4, 1e4], [-1e4, -1e4, -1e4], [0.0, 0.0, 0.0], [3e37, -3e37, 1.0]]
    x = torch.tensor(rows, dtype=dtype)
    for name, fn in {**ITEMS, **POINTS}.items():
        for sharpness in (1e-3, 1.0, 1e4):
            leaf = x.clone().requires_grad_()
            out = fn(leaf, sharpness)
            out.float().sum().backward()
            assert out.dtype == dtype
            assert out.isfinite().all() and leaf.grad.isfinite().all(), (name, sharpness)
    torch.testing.assert_close(smooth_max(x, 1e4), x.amax(-1), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(smooth_round(x, 1e4), x, rtol=0, atol=0)


def test_infinities():
    missing = torch.tensor([[1.0, -torch.inf, 2.0], [-torch.inf] * 3], requires_grad=True)
    short = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(smooth_max(missing, 2.0)[0], smooth_max(short, 2.0))
    torch.testing.assert_close(smooth_max(missing, 2.0, method="mean")[0], smooth_max(short, 2.0, method="mean"))
    torch.testing.assert_close(smooth_onehot(missing)[0, [0, 2]], smooth_onehot(short))
    assert smooth_max(missing)[1] == -torch.inf and not smooth_onehot(missing)[1].any()
    total = smooth_max(missing)[0] + smooth_max(missing, method="mean")[0] + smooth_argmax(missing).sum()
    total.backward()
    assert missing.grad.isfinite().all() and not missing.grad[1].any()
    ends = torch.tensor([-torch.inf, torch.inf])
    assert smooth_floor(ends).tolist() == smooth_round(ends).tolist() == ends.tolist()
    assert smooth_relu(ends).tolist() == [0.0, torch.inf] and smooth_abs(ends).tolist() == [torch.inf] * 2
    assert smooth_step(ends).tolist() == [0.0, 1.0] and smooth_sign(ends).tolist() == [-1.0, 1.0]
    assert smooth_floor(torch.tensor(torch.nan)).isnan()


def test_one_item():
    x = torch.tensor([[7.0]])
    assert smooth_max(x).item() == smooth_min(x).item() == 7.0
    assert smooth_onehot(x).item() == smooth_rank(x).item() == 1.0 and smooth_argmax(x).item() == 0.0
    assert smooth_bound("max", n=1) == smooth_bound("onehot", n=1) == smooth_bound("rank", n=1) == 0.0
    assert smooth_bound("max", n=1, method="mean") == smooth_bound("argmax", n=1) == 0.0


@pytest.mark.parametrize("name", [*ITEMS, *POINTS])
def test_gradcheck(name):
    x = (X if name in ITEMS else LINE[::3]).clone().requires_grad_()
    for sharpness in (0.8, 6.0):
        assert torch.autograd.gradcheck(lambda x, k=sharpness: (ITEMS | POINTS)[name](x, k), x)
    assert torch.autograd.gradgradcheck(lambda x: (ITEMS | POINTS)[name](x, 2.0), x)


def test_a_plain_loop_climbs_a_soft_rank():
    """An item is pushed to the top of a list through the rank alone."""
    x = torch.tensor([0.0, 1.0, 2.0, 3.0], requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.5)
    for step in range(60):
        optimizer.zero_grad()
        (-smooth_rank(x, sharpness_at(step, 60, end=4.0))[0]).backward()
        optimizer.step()
    assert x.argmax() == 0


def test_hard_forward_is_exact_and_has_the_soft_gradient():
    x = (1e3 * X).requires_grad_()
    hard = hard_forward(x.round(), smooth_round(x, 3.0))
    assert torch.equal(hard, x.detach().round())  # hard + soft - soft would round
    upstream = torch.randn(X.shape, dtype=torch.float64, generator=G)
    (got,) = torch.autograd.grad(hard, x, upstream)
    (expected,) = torch.autograd.grad(smooth_round(x, 3.0), x, upstream)
    assert torch.equal(got, expected)
    assert hard_forward(X > 0, smooth_step(X)).dtype == torch.float64


def test_the_schedule_is_geometric():
    ks = [sharpness_at(step, 10, end=50.0, start=2.0) for step in range(-1, 13)]
    assert ks[0] == ks[1] == 2.0 and ks[-1] == ks[-2] == 50.0
    ratios = [b / a for a, b in itertools.pairwise(ks[1:12])]
    assert ratios == pytest.approx([25**0.1] * 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smooth_max(X, 0), "sharpness must be > 0, got 0; 1 takes the numbers as they are"),
        (lambda: smooth_relu(X, -1.0), "sharpness must be > 0, got -1.0"),
        (lambda: smooth_floor(X, math.nan), "sharpness must be > 0, got nan"),
        (lambda: smooth_max(X, method="lse"), r"'logsumexp' \(above the max\) or 'mean' \(below it\), got 'lse'"),
        (lambda: smooth_abs(X, method="soft"), "method must be 'sqrt', 'tanh' or 'logcosh', got 'soft'"),
        (lambda: smooth_onehot(torch.zeros(2, 0)), r"at least one item along dim=-1, got shape \(2, 0\)"),
        (lambda: hard_forward(X, X[0]), r"two values of one thing; got shapes \(4, 6\) and \(6,\)"),
        (lambda: sharpness_at(0, 0, 1.0), "steps must be >= 1, got 0; for a constant sharpness"),
        (lambda: smooth_bound("ceil"), "no bound for 'ceil'; there are max, min, abs"),
        (lambda: smooth_bound("abs", method="mean"), "'abs' has the methods sqrt, tanh, logcosh; got 'mean'"),
        (lambda: smooth_bound("relu", method="mean"), "'relu' has no methods; got 'mean'"),
        (lambda: smooth_bound("topk", n=3, k=4), r"0 <= k <= n and gap >= 0 .*got n=3, k=4, gap=0.0"),
        (lambda: smooth_bound("round", gap=0.6), r"at most 0.5 for floor and round\); got n=2, k=1, gap=0.6"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
