"""Toy data: densities integrate to 1, samples follow them, centres by hand, far points, messages."""

import math

import pytest
import torch

from danlu.generative import TOY_DATA, Checkerboard, GaussianBeads, grid, moons, ring, spiral, toy_coverage


@pytest.mark.parametrize(
    "data", [ring(5, 1.0, 0.2), grid(3, 1.0, 0.2), moons(0.2), spiral(3, 0.7, 2.0, 0.2), Checkerboard(4, 0.8)]
)
def test_the_density_integrates_to_one_and_gives_the_moments_of_the_sample(data):
    line = torch.linspace(-4, 4, 201, dtype=torch.float64)[:-1] + 0.02
    points = torch.cartesian_prod(line, line)
    density = data.log_prob(points).exp()
    cell = 0.04**2
    assert density.sum().item() * cell == pytest.approx(1, abs=2e-3)
    x = data.sample(5_000, torch.Generator().manual_seed(0)).double()
    for power in (1, 2):
        want = (density[:, None] * points**power).sum(0) * cell
        error = (x**power).std(0) / len(x) ** 0.5
        assert ((x**power).mean(0) - want).abs().le(4.5 * error + 2e-3).all()


def test_beads_equal_the_formula():
    data = GaussianBeads(torch.tensor([[0.0, 0.0], [1.0, 2.0]]), 0.5, torch.tensor([0.25, 0.75]))
    x, y = 0.3, -0.4
    want = sum(
        w * math.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.5) / (2 * math.pi * 0.25)
        for w, a, b in [(0.25, 0, 0), (0.75, 1, 2)]
    )
    got = data.log_prob(torch.tensor([[x, y]], dtype=torch.float64))
    assert got.item() == pytest.approx(math.log(want), rel=1e-9)


def test_weights_are_the_shares():
    data = GaussianBeads(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), 0.1, torch.tensor([0.2, 0.8]))
    share = (data.sample(5_000, torch.Generator().manual_seed(0))[:, 0] > 4).double().mean().item()
    assert abs(share - 0.8) < 4 * (0.16 / 5_000) ** 0.5


def test_curves_have_no_bead_left_to_see():
    for data in (moons(0.1), spiral(1, 1.0, 2.0, 0.1)):
        ends = data.centres.double()
        middle = (ends[:-1] + ends[1:]) / 2
        near = (ends[1:] - ends[:-1]).norm(dim=1) < 0.3  # not from one moon to the other
        gap = (data.log_prob(middle) - data.log_prob(ends[:-1]))[near]
        assert gap.abs().quantile(0.75) < 0.01  # the ends fade
        assert (ends[1:] - ends[:-1]).norm(dim=1)[near].max() <= 0.1 * 1.001


def test_a_perfect_sampler_covers_and_a_collapsed_one_does_not():
    data = ring()
    full = toy_coverage(data, data.sample(4_000, torch.Generator().manual_seed(0)))
    assert full.hit == 8
    assert full.good == pytest.approx(1 - math.exp(-4.5), abs=4 * (0.0111 / 4_000) ** 0.5)  # within 3 deviations
    assert full.kl < 4 * full.floor
    one = toy_coverage(data, data.modes[:1] + torch.zeros(10, 2))
    assert (one.hit, one.good) == (1, 1.0)
    assert one.kl == pytest.approx(math.log(8))
    with pytest.raises(ValueError, match="no modes to count"):
        toy_coverage(moons(), torch.zeros(1, 2))


def test_far_points_have_finite_densities_and_slopes():
    x = torch.tensor([[1e4, 0.0]], requires_grad=True)
    value = ring().log_prob(x)
    value.sum().backward()
    assert value.isfinite().all()
    assert x.grad[0, 0] < 0
    assert Checkerboard().log_prob(torch.tensor([[9.0, 0.0]])).item() == -math.inf


def test_same_generator_same_sample_and_other_leaves_global_alone():
    for build in TOY_DATA.values():
        data, before = build(), torch.get_rng_state()
        a, b = (data.sample(7, torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(a, b)
        assert a.dtype == torch.float32
        assert torch.equal(before, torch.get_rng_state())
        assert data.sample(0).shape == (0, 2)
        assert data.log_prob(a.double()).dtype == torch.float64
        assert data.log_prob(a.bfloat16()).dtype == torch.float32


def test_messages():
    with pytest.raises(ValueError, match="ring needs modes >= 1, got 0"):
        ring(0)
    with pytest.raises(ValueError, match=r"deviation > 0 and weights.*got 0\.0 and a sum of 1"):
        ring(2, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"sum of 1\.5"):
        GaussianBeads(torch.zeros(1, 2), 1.0, torch.tensor([1.5]))
    with pytest.raises(ValueError, match=r"even number of cells >= 2.*got 3"):
        Checkerboard(3)
    with pytest.raises(ValueError, match=r"points \(N, 2\), got \(2,\)"):
        ring().log_prob(torch.zeros(2))
    with pytest.raises(ValueError, match="moons needs deviation > 0, got -1"):
        moons(-1)
    with pytest.raises(ValueError, match="turns > 0 and radius > 0, got 0 and 3"):
        spiral(turns=0)
