"""Frechet distance: against SciPy's matrix root and closed forms, its floor by simulation, the extrapolation, edges."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from danlu.math import frechet_distance, frechet_estimate, frechet_floor, merge_moments, moments


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(30, 3, dtype=torch.float64, generator=seeded(0)) * torch.tensor([1.0, 2.0, 0.5]) + 3
Y = (
    torch.randn(25, 3, dtype=torch.float64, generator=seeded(1))
    @ torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 2]]).double()
)


def textbook(x: torch.Tensor, y: torch.Tensor) -> float:
    a, b = x.numpy(), y.numpy()
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root))


def test_equals_the_matrix_root_of_scipy():
    assert frechet_distance(X, Y).item() == pytest.approx(textbook(X, Y), rel=1e-9)
    assert frechet_distance(X.clone().requires_grad_(), Y).item() == pytest.approx(textbook(X, Y), rel=1e-9)


def test_one_feature_is_means_and_deviations():
    x, y = X[:, :1], Y[:, :1]
    by_hand = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    torch.testing.assert_close(frechet_distance(x, y), by_hand)


def test_same_set_shift_scale_rotation_and_order():
    assert frechet_distance(X, X.flip(0)).item() == pytest.approx(0.0, abs=1e-20)
    shifted = frechet_distance(X, X + torch.tensor([3.0, 4.0, 0.0]))
    assert shifted.item() == pytest.approx(25.0)
    whole = frechet_distance(X, Y)
    torch.testing.assert_close(frechet_distance(Y, X), whole)
    torch.testing.assert_close(frechet_distance(X * 1e-30, Y * 1e-30) * 1e60, whole)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=seeded(2)))[0]
    torch.testing.assert_close(frechet_distance(X @ rotation, Y @ rotation), whole)


def test_moments_of_a_stream_give_the_same():
    parts = merge_moments(moments(X[:7]), moments(X[7:]))
    torch.testing.assert_close(frechet_distance(parts, moments(Y)), frechet_distance(X, Y))
    torch.testing.assert_close(frechet_distance(parts, Y.float()).double(), frechet_distance(X, Y), rtol=1e-6, atol=0)


def test_fewer_vectors_than_features():
    few_x, few_y = X.mT[:, :20].contiguous(), Y.mT[:, :20]  # 3 vectors of 20 features, the second not contiguous
    gap, a, b = few_x.mean(0) - few_y.mean(0), few_x - few_x.mean(0), few_y - few_y.mean(0)
    by_hand = gap.square().sum() + (a.square().sum() + b.square().sum()) / 2 - torch.linalg.svdvals(a @ b.mT).sum()
    torch.testing.assert_close(frechet_distance(few_x, few_y), by_hand)  # the cross trace is a nuclear norm


def test_gradient():
    assert torch.autograd.gradcheck(frechet_distance, (X[:6].clone().requires_grad_(), Y[:5].clone().requires_grad_()))
    singular = X.mT[:, :5].clone().requires_grad_(), Y.mT[:, :5].clone().requires_grad_()
    assert torch.autograd.gradcheck(frechet_distance, singular)


def test_descent_moves_samples_onto_the_real_ones():
    start = X.float() * 3 + 5
    fake = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([fake], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        frechet_distance(Y.float(), fake).backward()
        optimizer.step()
    assert frechet_distance(Y.float(), fake).item() < 0.02 * frechet_distance(Y.float(), start).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    x, y = X.to(dtype), Y.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = frechet_distance(x, y)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.item() == pytest.approx(textbook(x.double(), y.double()), rel=1e-5)


def test_large_offset_keeps_its_digits():
    far = torch.tensor([1e6, -1e6, 1e6], dtype=torch.float64)
    torch.testing.assert_close(frechet_distance(X + far, Y + far), frechet_distance(X, Y), rtol=1e-7, atol=0)


def test_floor_of_one_feature_in_closed_form():
    def c4(n: int) -> float:  # E of the deviation of n normal numbers
        return math.sqrt(2 / (n - 1)) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))

    exact = 4.0 * (1 / 40 + 1 / 60 + 2 - 2 * c4(40) * c4(60))
    assert frechet_floor(torch.tensor([[4.0]]), 40, 60).item() == pytest.approx(exact, rel=2e-3)  # O(n^-2) is left out


def draws(n: int, m: int, count: int, dim: int, gap: float = 0.0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    seed = seeded(7)
    width = torch.linspace(0.5, 1.5, dim, dtype=torch.float64)
    kinds = ((n, 0.0), (m, gap))
    return [
        tuple(torch.randn(size, dim, dtype=torch.float64, generator=seed) * width + shift for size, shift in kinds)  # type: ignore[misc]
        for _ in range(count)
    ]


def test_floor_by_simulation():
    values = torch.stack([frechet_distance(x, y) for x, y in draws(300, 200, 60, 4)])
    floor = frechet_floor(torch.diag(torch.linspace(0.5, 1.5, 4, dtype=torch.float64) ** 2), 300, 200)
    assert abs(values.mean() - floor) < 4 * values.std() / 60**0.5 + 0.02 * floor


def test_floor_in_the_isotropic_case_and_of_nothing():
    n, dim = 1000, 6
    expected = 2 / n * dim + 2 / (n - 1) * (dim * dim + dim) / 4
    assert frechet_floor(torch.eye(dim), n, n).item() == pytest.approx(expected)
    assert frechet_floor(torch.zeros(2, 2), 5, 5).item() == 0.0
    only = torch.diag(torch.tensor([1.0, 0.0]))  # a direction without spread adds nothing
    torch.testing.assert_close(frechet_floor(only, 9, 8), frechet_floor(torch.ones(1, 1), 9, 8))


def test_limit_is_unbiased_where_the_distance_is_not_and_its_error_is_true():
    truth = 4 * 0.5**2  # same covariance, every mean moved by 0.5
    found = [frechet_estimate(x, y, 8, seeded(3)) for x, y in draws(80, 80, 60, 4, gap=0.5)]
    values, limits, errors = (torch.stack(list(column)) for column in zip(*found, strict=True))
    spread = limits.std() / 60**0.5
    assert abs(limits.mean() - truth) < 4 * spread
    assert values.mean() - truth > 4 * values.std() / 60**0.5  # what the limit takes off
    assert 0.75 < errors.square().mean().sqrt() / limits.std() < 1.4


def test_estimate_by_hand():
    x, y = X[:12], Y[:9]  # 3 groups of 4 and of 3
    seed = seeded(5)
    order_x, order_y = torch.randperm(12, generator=seed), torch.randperm(9, generator=seed)
    without = [
        frechet_distance(
            x[[i for k, i in enumerate(order_x.tolist()) if k // 4 != g]],
            y[[i for k, i in enumerate(order_y.tolist()) if k // 3 != g]],
        )
        for g in range(3)
    ]
    found, mean = frechet_estimate(x, y, 3, seeded(5)), sum(without) / 3
    torch.testing.assert_close(found.value, frechet_distance(x, y))
    torch.testing.assert_close(found.limit, 3 * found.value - 2 * mean)  # n / n_-g is 3 / 2
    variance = 2 / 3 * sum((d - mean) ** 2 for d in without)
    torch.testing.assert_close(found.standard_error, torch.as_tensor(variance).sqrt())


def test_messages():
    with pytest.raises(ValueError, match=r"N >= 2 and D >= 1; got fake \(1, 3\)"):
        frechet_distance(X, Y[:1])
    with pytest.raises(ValueError, match="got 3 features in real and 2 in fake"):
        frechet_distance(X, Y[:, :2])
    with pytest.raises(ValueError, match="vector 2 of real holds nan at feature 1"):
        frechet_distance(X.clone().index_put_((torch.tensor(2), torch.tensor(1)), torch.tensor(math.nan).double()), Y)
    with pytest.raises(ValueError, match=r"torch.int64. Images go through a network first"):
        frechet_distance(X.long(), Y)
    with pytest.raises(ValueError, match="2 or more vectors, got real of 1"):
        frechet_distance(moments(X[:1]), Y)
    with pytest.raises(
        ValueError, match="needs 5 vectors of 3 features in the others; got 5 and 25 vectors and groups=5"
    ):
        frechet_estimate(X[:5], Y, 5)
    with pytest.raises(ValueError, match=r"got \(3,\), n=5 and m=1"):
        frechet_floor(torch.ones(3), 5, 1)
