"""Moments: scalar loops, the recursion one vector at a time, any cuts and orders, large means, ranges, messages."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from two_processes import in_two_processes

from danlu.math import Moments, all_reduce_moments, merge_moments, moments

FILE = sys.modules[moments.__module__]  # the package has a function of this name


def draw(n: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    shift = torch.randn(dim, generator=generator, dtype=torch.float64)
    return (torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mix + 3 * shift).to(dtype)


def by_hand(x: torch.Tensor) -> tuple[list[float], list[list[float]]]:
    rows = x.tolist()
    n, dim = len(rows), len(rows[0])
    mean = [sum(row[i] for row in rows) / n for i in range(dim)]
    m = [[sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) for j in range(dim)] for i in range(dim)]
    return mean, m


def assert_same(a: Moments, b: Moments, tolerance: float = 1e-10) -> None:
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.scatter, b.scatter, rtol=tolerance, atol=tolerance * float(b.scatter.abs().max() + 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int32])
def test_equals_the_definition(dtype):
    x = draw(7, 3).mul(4).to(dtype)
    mean, scatter = by_hand(x)
    m = moments(x, torch.float64)
    assert m.count == 7
    torch.testing.assert_close(m.mean, torch.tensor(mean, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(m.scatter, torch.tensor(scatter, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dim", [3, 250, 500])  # one product, strips that do not divide the features
def test_equals_numpy(dim):
    x = draw(40, dim)
    m = moments(x)
    np.testing.assert_allclose(m.covariance.numpy(), np.cov(x.numpy(), rowvar=False, bias=True), atol=1e-10 * dim)
    assert torch.equal(m.scatter, m.scatter.mT)
    assert m.products == torch.float64


def test_many_pieces_equal_one(monkeypatch):
    x = draw(2000, 4)
    whole = moments(x)
    monkeypatch.setattr(FILE, "PIECE", 4)  # 256 vectors at a time
    assert_same(moments(x), whole)


def test_any_split_and_order_of_merging():
    x = draw(12, 3)
    whole = moments(x)
    for cuts in itertools.combinations(range(1, 12), 3):
        parts = [moments(part) for part in torch.tensor_split(x, cuts)]
        for order in ([0, 1, 2, 3], [3, 0, 2, 1]):
            total = parts[order[0]]
            for i in order[1:]:
                total = merge_moments(total, parts[i])
            assert_same(total, whole)
        assert_same(merge_moments(merge_moments(*parts[:2]), merge_moments(*parts[2:])), whole)


def test_one_vector_at_a_time_is_the_recursion_of_the_post():
    x = draw(9, 3)
    mean, sigma, total = x[0], torch.zeros(3, 3, dtype=torch.float64), moments(x[:1])
    for n, row in enumerate(x[1:], 1):
        new = n / (n + 1) * mean + row / (n + 1)
        sigma = (
            n / (n + 1) * (sigma + torch.outer(mean, mean)) + torch.outer(row, row) / (n + 1) - torch.outer(new, new)
        )
        mean, total = new, merge_moments(total, moments(row[None]))
        torch.testing.assert_close(total.mean, mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(total.covariance, sigma, rtol=1e-10, atol=1e-10)


def test_float32_with_a_mean_of_a_hundred_spreads():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6000, 24, generator=generator) + 100 * (1 + torch.rand(24, generator=generator))
    exact = moments(x.double()).covariance
    got = moments(x)
    assert got.products == torch.float32
    assert (got.covariance - exact).abs().max() < 1e-6
    naive = x.T @ x / len(x) - torch.outer(x.mean(0), x.mean(0))  # what this must not be
    assert (naive - exact).abs().max() > 1e-3
    assert (got.mean - x.double().mean(0)).abs().max() < 1e-6


def test_a_mean_that_float32_rounds_by_more_than_the_spread():
    x = 1e8 + 8 * torch.randint(0, 2, (301, 3), generator=torch.Generator().manual_seed(0)).float()
    exact = moments(x.double())
    for products in (torch.float32, torch.float64):
        got = moments(x, products)
        torch.testing.assert_close(got.covariance, exact.covariance, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.mean, exact.mean, rtol=1e-14, atol=0)


def test_pieces_that_lie_far_apart(monkeypatch):
    monkeypatch.setattr(FILE, "PIECE", 1)
    near, far = draw(256, 3, dtype=torch.float32), draw(256, 3, 1, torch.float32) + 1e4
    x = torch.cat([near, far])
    got, exact = moments(x), moments(x.double())
    torch.testing.assert_close(got.covariance, exact.covariance, rtol=1e-5, atol=1e-5)
    within = moments(far)  # a later piece is centred on itself, not on what came before
    torch.testing.assert_close(within.covariance, moments(far.double()).covariance, rtol=1e-5, atol=1e-5)


def test_nothing_and_one_vector():
    empty, one = moments(torch.zeros(0, 2)), moments(torch.tensor([[3.0, -1.0]]))
    assert (empty.count, one.count) == (0, 1)
    assert not empty.covariance.any()
    assert not one.covariance.any()
    assert one.mean.tolist() == [3.0, -1.0]
    assert merge_moments(empty, one) == one
    assert merge_moments(one, empty) == one
    assert merge_moments(empty, empty).count == 0


def test_numbers_that_overflow_or_vanish_when_squared():
    x = draw(9, 3, dtype=torch.float32)
    for scale in (1e25, 1e-25, 3e37):
        got, exact = moments(x * scale), moments((x * scale).double())
        torch.testing.assert_close(got.covariance / scale**2, exact.covariance / scale**2, rtol=1e-6, atol=1e-9)
        assert exact.covariance.abs().max() > 0
    columns = x * torch.tensor([1.0, 1e-20, 0.0])  # one tiny feature beside others, and one that is constant
    got, exact = moments(columns).covariance, moments(columns.double()).covariance
    assert got[1, 1] == pytest.approx(exact[1, 1].item(), rel=1e-6)
    assert not got[2].any()
    with pytest.raises(ValueError, match="overflow float64; divide"):
        moments(x.double() * 1e200)


def test_strides_views_and_masks_of_rows():
    x = draw(20, 6)
    for view in (x[::2], x[:, ::2], x.T.contiguous().T, x.flip(0)):
        assert_same(moments(view), moments(view.clone().contiguous()), 1e-12)
    none = torch.zeros(20, dtype=torch.bool)
    assert moments(x[none]).count == 0


def test_no_graph_no_autocast_no_reduced_precision():
    x = draw(30, 5, dtype=torch.float32).requires_grad_()
    expected = moments(x)
    assert not expected.scatter.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(moments(x).scatter, expected.scatter)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert moments(x).products == torch.float64
        assert moments(x, torch.float32).products == torch.float32
    finally:
        torch.set_float32_matmul_precision(before)


def test_products_are_remembered():
    a, b = moments(draw(3, 2, dtype=torch.float32)), moments(draw(3, 2))
    assert (a.products, b.products) == (torch.float32, torch.float64)
    assert merge_moments(a, b).products == merge_moments(b, a).products == torch.float32


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3), r"\(N, D\), D >= 1; got torch.float32 \(3,\); one is x\[None\]"),
        (torch.zeros(3, 0), r"got torch.float32 \(3, 0\)"),
        (torch.zeros(2, 2, dtype=torch.complex64), "needs real vectors"),
        (torch.tensor([[1.0, 2.0], [3.0, float("nan")]]), "vector 1 holds nan at feature 1; leave"),
        (torch.tensor([[1.0, 2.0], [3.0, 1.0], [float("-inf"), 0.0]]), "vector 2 holds -inf at feature 0"),
    ],
)
def test_messages(x, message):
    with pytest.raises(ValueError, match=message):
        moments(x)


def test_messages_of_options_and_merging(monkeypatch):
    with pytest.raises(ValueError, match=r"products must be torch.float32, torch.float64 or None, got torch.bfloat16"):
        moments(torch.zeros(2, 2), torch.bfloat16)
    with pytest.raises(ValueError, match="got 2 and 3 features: both parts must"):
        merge_moments(moments(torch.zeros(1, 2)), moments(torch.zeros(1, 3)))
    with pytest.raises(ValueError, match="init_process_group first; within one process use merge_moments"):
        all_reduce_moments(moments(torch.zeros(1, 2)))
    monkeypatch.setattr(FILE, "PIECE", 1)
    x = torch.zeros(600, 2)
    x[511, 1] = torch.nan
    with pytest.raises(ValueError, match="vector 511 holds nan"):  # counted over all pieces
        moments(x)


def process(rank: int) -> dict[str, tuple[torch.Tensor, ...]]:
    x = draw(50, 4) + 1e3
    uneven = all_reduce_moments(moments(x[:13] if rank == 0 else x[13:]))
    lonely = all_reduce_moments(moments(x[:0] if rank == 0 else x))  # one process has nothing
    return {"uneven": tuple(uneven), "lonely": tuple(lonely)}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    expected = moments(draw(50, 4) + 1e3)
    found = in_two_processes(process, tmp_path)
    for name in ("uneven", "lonely"):
        assert_same(Moments(*found[0][name]), expected)
        assert torch.equal(found[0][name][2], found[1][name][2])
        assert torch.equal(found[0][name][1], found[1][name][1])
