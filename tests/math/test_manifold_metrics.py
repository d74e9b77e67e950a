"""Precision, recall, density, coverage: by loops, exact expectations over draws, known failures of samplers, edges."""

import math

import pytest
import torch

from danlu.math import density_coverage, expected_coverage, manifold_metrics, precision_recall


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(12, 3, generator=seeded(0))
Y = torch.randn(10, 3, generator=seeded(1)) * 1.3


def gaps(a: torch.Tensor, b: torch.Tensor) -> list[list[float]]:
    return [[math.dist(u, v) for v in b.tolist()] for u in a.tolist()]


def radii(a: torch.Tensor, k: int) -> list[float]:
    return [sorted(d for j, d in enumerate(row) if j != i)[k - 1] for i, row in enumerate(gaps(a, a))]


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("at_once", [2**22, 25])
def test_equals_the_loop(monkeypatch, k, at_once):
    monkeypatch.setattr(manifold_metrics, "AT_ONCE", at_once)
    rx, ry, between = radii(X, k), radii(Y, k), gaps(Y, X)
    inside = [[between[j][i] <= rx[i] for i in range(12)] for j in range(10)]
    back = [[between[j][i] <= ry[j] for j in range(10)] for i in range(12)]
    shares, balls = precision_recall(X, Y, k), density_coverage(X, Y, k)
    assert shares.fake_inside.tolist() == [any(row) for row in inside]
    assert shares.real_inside.tolist() == [any(row) for row in back]
    assert balls.num_balls.tolist() == [sum(row) for row in inside]
    assert balls.covered.tolist() == [any(column) for column in zip(*inside, strict=True)]
    assert shares.precision.item() == pytest.approx(sum(map(any, inside)) / 10)
    assert shares.recall.item() == pytest.approx(sum(map(any, back)) / 12)
    assert balls.density.item() == pytest.approx(sum(map(sum, inside)) / (k * 10))
    assert balls.coverage.item() == pytest.approx(sum(map(any, zip(*inside, strict=True))) / 12)


def test_a_copy_and_a_stranger():
    same, far = precision_recall(X, X.clone()), precision_recall(X, X + 1e6)
    assert (same.precision.item(), same.recall.item()) == (1.0, 1.0)
    assert (far.precision.item(), far.recall.item()) == (0.0, 0.0)
    assert density_coverage(X, X.clone()).coverage.item() == 1.0
    far = density_coverage(X, X + 1e6)
    assert (far.density.item(), far.coverage.item()) == (0.0, 0.0)


def test_swapping_the_sets_swaps_the_shares():
    one, other = precision_recall(X, Y), precision_recall(Y, X)
    assert torch.equal(one.fake_inside, other.real_inside)
    assert torch.equal(one.real_inside, other.fake_inside)


@pytest.mark.parametrize("scale", [1e-170, 1e-8, 1e30])
def test_units_places_rotations_and_order_do_not_matter(scale):
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=seeded(2), dtype=torch.float64))[0]
    order = torch.randperm(10, generator=seeded(3))
    x, y = (X.double() @ rotation + 5) * scale, ((Y.double() @ rotation + 5) * scale)[order]
    shares, expected = precision_recall(x, y, 1), precision_recall(X, Y, 1)
    assert 0 < expected.precision < 1  # some inside, some not
    assert torch.equal(shares.fake_inside, expected.fake_inside[order])
    assert torch.equal(shares.real_inside, expected.real_inside)
    assert torch.equal(density_coverage(x, y, 1).covered, density_coverage(X, Y, 1).covered)


def test_expectations_of_equal_laws_are_exact():
    n, m, k, count = 15, 10, 3, 300
    found = [density_coverage(*torch.randn(25, 2, generator=seeded(i)).split([n, m]), k) for i in range(count)]
    density, coverage = torch.stack([f.density for f in found]), torch.stack([f.coverage for f in found])
    assert abs(density.mean() - 1) < 4 * density.std() / count**0.5
    assert abs(coverage.mean() - expected_coverage(n, m, k)) < 4 * coverage.std() / count**0.5
    by_counting = 1 - math.comb(n - 1, k) / math.comb(n + m - 1, k)
    assert expected_coverage(n, m, k) == pytest.approx(by_counting)


def test_missing_modes_lower_recall_and_coverage_and_not_precision():
    modes = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    x, y = (modes.repeat(100, 1) + torch.randn(200, 2, generator=seeded(i)) for i in (0, 1))
    half = y[y[:, 0] < 5].repeat(2, 1) + 0.3 * torch.randn(200, 2, generator=seeded(2))
    whole, lost = precision_recall(x, y), precision_recall(x, half)
    assert lost.precision > whole.precision - 0.1
    assert whole.recall > 0.8
    assert lost.recall < 0.55
    assert density_coverage(x, half).coverage < 0.55 < density_coverage(x, y).coverage


def test_noise_lowers_precision_and_density_and_not_recall():
    x, y = (torch.randn(200, 2, generator=seeded(i)) for i in (0, 1))
    noisy = y + 3 * torch.randn(200, 2, generator=seeded(2))
    clean, bad = precision_recall(x, y), precision_recall(x, noisy)
    assert bad.precision < clean.precision - 0.3
    assert bad.recall > clean.recall - 0.1
    assert density_coverage(x, noisy).density < 0.7


def test_one_outlier_vouches_in_precision_and_hardly_in_density():
    x = torch.cat([torch.randn(100, 2, generator=seeded(0)), torch.tensor([[60.0, 0.0]])])
    y = torch.randn(100, 2, generator=seeded(1)) + torch.tensor([30.0, 0.0])  # nothing real is near
    assert precision_recall(x, y).precision > 0.3
    assert density_coverage(x, y).density < 0.3


def test_copies_count_as_neighbours_and_ties_as_inside():
    x = torch.tensor([[0.1, 0.7]]).repeat(5, 1) * 1e3  # all radii 0, though products of such numbers round
    found = precision_recall(x, torch.cat([x[:4], x[:1] + 1]), k=3)
    assert found.fake_inside.tolist() == [True] * 4 + [False]
    assert bool(precision_recall(torch.ones(4, 2), torch.ones(4, 2)).fake_inside.all())


@pytest.mark.parametrize("scale", [1.0, 0.3, 1e5 / 3])
def test_lattices_full_of_ties_equal_whole_numbers(scale):
    x, y = (torch.randint(4, (count, 3), generator=seeded(count)) for count in (14, 11))
    own = (x[:, None] - x).square().sum(2)  # (14, 14) whole numbers
    radius = torch.tensor([sorted(own[i, [j for j in range(14) if j != i]].tolist())[1] for i in range(14)])
    inside = (y[:, None] - x).square().sum(2) <= radius
    moved_x, moved_y = (s.double() * scale + 7 for s in (x, y))
    assert torch.equal(density_coverage(moved_x, moved_y, k=2).num_balls, inside.sum(1))
    assert torch.equal(precision_recall(moved_x, moved_y, k=2).fake_inside, inside.any(1))


def test_a_set_far_off_keeps_its_own_radii():
    far = Y.double() + 1e7
    near = precision_recall(Y.double(), far)
    assert near.recall.item() == 0.0
    both = precision_recall(X.double() + 1e7, far)
    assert torch.equal(both.fake_inside, precision_recall(X, Y).fake_inside)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_that_of_its_values(dtype):
    x, y = X.to(dtype), Y.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found, balls = precision_recall(x, y), density_coverage(x, y)
    assert torch.equal(found.fake_inside, precision_recall(x.double(), y.double()).fake_inside)
    assert torch.equal(balls.num_balls, density_coverage(x.double(), y.double()).num_balls)
    assert found.precision.dtype == balls.density.dtype == torch.float32


def test_strips_keep_memory_small():
    x = torch.randn(3000, 2, generator=seeded(0))
    assert 3000 * 3000 > 2**22  # more distances than are held at a time
    found = density_coverage(x[:2900], x[2900:])
    assert found.num_balls.shape == (100,)
    assert abs(found.density.item() - 1) < 0.3


def test_messages():
    with pytest.raises(ValueError, match=r"N >= 4 and D >= 1; got real \(3, 3\)"):
        precision_recall(X[:3], Y)
    with pytest.raises(ValueError, match=r"N >= 4 and D >= 1; got fake \(3, 3\)"):
        precision_recall(X, Y[:3])
    with pytest.raises(ValueError, match="density_coverage needs k >= 1 neighbours, got 0"):
        density_coverage(X, Y, k=0)
    with pytest.raises(ValueError, match="got 3 features in real and 2 in fake"):
        density_coverage(X, Y[:, :2])
    with pytest.raises(ValueError, match="vector 1 of fake holds nan at feature 0"):
        density_coverage(X, torch.tensor([[0.0] * 3, [math.nan] * 3]))
    with pytest.raises(ValueError, match="n > k and m >= 1; got n=5, m=3 and k=5"):
        expected_coverage(5, 3)
