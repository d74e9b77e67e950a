"""Kernel distance: by loops, by scikit-learn, unbiased over draws, the jackknife by leaving out, blocks, edges."""

import math

import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel

from danlu.math import kernel_distance, kernel_estimate


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(6, 4, dtype=torch.float64, generator=seeded(0))
Y = torch.randn(5, 4, dtype=torch.float64, generator=seeded(1)) + 0.5


def by_hand(x: torch.Tensor, y: torch.Tensor, degree: int = 3) -> float:
    a, b = x.tolist(), y.tolist()

    def k(u: list[float], v: list[float]) -> float:
        return (sum(s * t for s, t in zip(u, v, strict=True)) / len(u) + 1) ** degree

    def own(rows: list[list[float]]) -> float:
        n = len(rows)
        return sum(k(rows[i], rows[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    return own(a) + own(b) - 2 * sum(k(u, v) for u in a for v in b) / (len(a) * len(b))


def test_equals_the_loop_and_scikit_learn():
    assert kernel_distance(X, Y).item() == pytest.approx(by_hand(X, Y), rel=1e-12)
    assert kernel_distance(X, Y, degree=2).item() == pytest.approx(by_hand(X, Y, 2), rel=1e-12)
    kxx, kyy, kxy = (polynomial_kernel(a, b, 3, 0.7, 0.2) for a, b in ((X, X), (Y, Y), (X, Y)))
    expected = (kxx.sum() - kxx.trace()) / 30 + (kyy.sum() - kyy.trace()) / 20 - 2 * kxy.mean()
    assert kernel_distance(X, Y, 3, 0.7, 0.2).item() == pytest.approx(expected, rel=1e-12)


def test_order_of_rows_and_of_sets_and_strips(monkeypatch):
    whole = kernel_distance(X, Y)
    torch.testing.assert_close(kernel_distance(Y.flip(0), X.flip(0)), whole)
    estimate = kernel_estimate(X, Y)
    monkeypatch.setitem(kernel_distance.__globals__, "AT_ONCE", 10)  # two rows of X, one of the cross sums at a time
    torch.testing.assert_close(kernel_distance(X, Y), whole)
    torch.testing.assert_close(kernel_estimate(X, Y).standard_error, estimate.standard_error)


def test_linear_kernel_sees_the_means_alone_without_bias():
    law_x, law_y = torch.tensor([[0.0], [1.0], [3.0]]).double(), torch.tensor([[1.0], [2.0]]).double()
    pairs = [(i, j) for i in range(3) for j in range(3)]  # all samples of two with replacement, equally likely
    total = sum(
        kernel_distance(law_x[list(a)], law_y[list(b)], degree=1, gamma=1.0).item()
        for a in pairs
        for b in [(0, 0), (0, 1), (1, 0), (1, 1)]
    )
    assert total / 36 == pytest.approx((4 / 3 - 3 / 2) ** 2)


def test_cubic_kernel_is_unbiased_over_all_samples():
    law_x, law_y = torch.tensor([[0.0, 1.0], [1.0, -1.0]]).double(), torch.tensor([[1.0, 0.5], [2.0, 0.0]]).double()
    places = [(i, j) for i in range(2) for j in range(2)]
    mean = sum(kernel_distance(law_x[list(a)], law_y[list(b)]).item() for a in places for b in places) / 16

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(((a @ b.mT / 2 + 1) ** 3).mean())

    assert mean == pytest.approx(k(law_x, law_x) + k(law_y, law_y) - 2 * k(law_x, law_y))  # of the laws themselves


def test_halves_of_one_sample_are_at_no_distance():
    values = torch.stack([kernel_distance(*torch.randn(2, 20, 3, generator=seeded(i))) for i in range(100)])
    assert abs(values.mean()) < 4 * values.std() / 10
    assert bool((values < 0).any())


def test_gradient():
    assert torch.autograd.gradcheck(kernel_distance, (X.clone().requires_grad_(), Y.clone().requires_grad_()))


def test_jackknife_by_leaving_out():
    found = kernel_estimate(X, Y)
    assert found.value.item() == pytest.approx(by_hand(X, Y))
    out_x = torch.tensor([by_hand(torch.cat([X[:i], X[i + 1 :]]), Y) for i in range(6)])
    out_y = torch.tensor([by_hand(X, torch.cat([Y[:i], Y[i + 1 :]])) for i in range(5)])
    variance = 5 / 6 * (out_x - out_x.mean()).square().sum() + 4 / 5 * (out_y - out_y.mean()).square().sum()
    assert found.standard_error.item() == pytest.approx(variance.sqrt().item(), rel=1e-5)
    assert found.num_blocks == 1


def test_errors_are_those_of_fresh_draws():
    pairs = [torch.randn(2, 60, 2, generator=seeded(i)) + torch.tensor([0.0, 0.5])[:, None, None] for i in range(80)]
    for size in (None, 10):
        found = [kernel_estimate(x, y, size, generator=seeded(3)) for x, y in pairs]
        values, errors = torch.stack([f.value for f in found]), torch.stack([f.standard_error for f in found])
        assert 0.8 < errors.square().mean().sqrt() / values.std() < 1.4


def test_blocks_by_hand():
    seed = seeded(4)
    order_x, order_y = torch.randperm(6, generator=seed), torch.randperm(5, generator=seed)
    values = [by_hand(X[order_x[2 * b : 2 * b + 2]], Y[order_y[2 * b : 2 * b + 2]]) for b in range(2)]
    found = kernel_estimate(X, Y, block_size=2, generator=seeded(4))
    assert (found.num_blocks, found.value.item()) == (2, pytest.approx(sum(values) / 2))
    assert found.standard_error.item() == pytest.approx(abs(values[0] - values[1]) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    x, y = X.to(dtype), Y.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = kernel_distance(x, y)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(by_hand(x.double(), y.double()), rel=1e-5)


def test_small_difference_of_large_sums():
    x = torch.randn(50, 3, generator=seeded(0)) + 300  # the kernel is about 1e15, the distance 1e9
    y = torch.randn(50, 3, generator=seeded(1)) + 301
    assert kernel_distance(x, y).item() == pytest.approx(by_hand(x.double(), y.double()), rel=1e-5)


def test_messages():
    with pytest.raises(ValueError, match=r"N >= 2 and D >= 1; got real \(1, 4\)"):
        kernel_distance(X[:1], Y)
    with pytest.raises(ValueError, match=r"kernel_estimate needs features .* N >= 3"):
        kernel_estimate(X, Y[:2])
    with pytest.raises(ValueError, match=r"degree=0, gamma=None and coef=1.0"):
        kernel_distance(X, Y, degree=0)
    with pytest.raises(ValueError, match=r"gamma=-1.0"):
        kernel_distance(X, Y, gamma=-1.0)
    with pytest.raises(ValueError, match="got 4 features in real and 3 in fake"):
        kernel_distance(X, Y[:, :3])
    with pytest.raises(ValueError, match="vector 0 of fake holds inf at feature 0"):
        kernel_distance(X, torch.full_like(Y, math.inf))
    with pytest.raises(ValueError, match=r"overflows float64.*Standardise"):
        kernel_distance(X * 1e60, Y * 1e60)
    with pytest.raises(ValueError, match=r"got block_size=4 for 6 and 5 vectors. block_size=None takes all pairs"):
        kernel_estimate(X, Y, block_size=4)
