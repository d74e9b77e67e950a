"""Pareto k: against frozen numbers of another library, an implementation in plain Python, known tails, edge cases."""

import math

import pytest
import torch

from danlu.math import importance_estimate, pareto_k, pareto_k_limit

D = torch.float64
SHAPES = (-0.5, 0.01, 0.3, 0.8, 1.5)
# The generalised Pareto fit of arviz-stats 0.8.0 on the ceil(min(0.2 M, 3 sqrt M)) largest of the M quantiles below
FROZEN = {
    50: [0.063086870775, 0.269657508165, 0.38455542924, 0.579680038809, 0.851252813272],
    100: [-0.096480938514, 0.209130952774, 0.377269868166, 0.663431945039, 1.064675269886],
    1000: [-0.378101246532, 0.071730812057, 0.323560643826, 0.757459832716, 1.365035898703],
    2001: [-0.411188776507, 0.054962120999, 0.31712924231, 0.769033442242, 1.401611583362],
}


def pareto_quantiles(count: int, k: float) -> torch.Tensor:
    """log of the generalised Pareto quantiles at (i + 1/2) / M."""
    u = (torch.arange(count, dtype=D) + 0.5) / count
    return (((1 - u) ** -k - 1) / k).log()


def by_hand(log_weights: list[float]) -> float:
    """Zhang and Stephens' estimate with loops over floats, pulled towards 1/2 by ten excesses."""
    top = max(log_weights)
    w = sorted(math.exp(v - top) for v in log_weights)
    n = math.ceil(min(0.2 * len(w), 3 * math.sqrt(len(w))))
    x = [v - w[-n - 1] for v in w[-n:] if v > w[-n - 1]]
    n = len(x)
    m = 30 + int(math.sqrt(n))
    grid = [1 / x[-1] + (1 - math.sqrt(m / (j - 0.5))) / (3 * x[int(n / 4 + 0.5) - 1]) for j in range(1, m + 1)]
    shapes = [sum(math.log1p(-b * v) for v in x) / n for b in grid]
    fits = [n * (math.log(-b / k) - k - 1) for b, k in zip(grid, shapes, strict=True)]
    weights = [1 / sum(math.exp(other - fit) for other in fits) for fit in fits]
    best = sum(w * b for w, b in zip(weights, grid, strict=True))
    return (sum(math.log1p(-best * v) for v in x) + 5) / (n + 10)


@pytest.mark.parametrize("count", FROZEN)
def test_equals_the_other_library(count):
    log_w = torch.stack([pareto_quantiles(count, k) for k in SHAPES])
    expected = torch.tensor(FROZEN[count], dtype=D)
    torch.testing.assert_close(pareto_k(log_w), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(pareto_k(log_w - 1e4), expected, rtol=0, atol=1e-8)  # the scale does not matter
    shuffled = log_w[:, torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(pareto_k(shuffled.T, dim=0), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("count", [21, 30, 64, 225, 400])
def test_rows_with_ties_and_zeros_equal_loops_over_floats(count):
    g = torch.Generator().manual_seed(count)
    log_w = 2 * torch.randn(5, count, generator=g, dtype=D)
    log_w[1] = (2 * log_w[1]).round() / 4  # ties inside the tail and at its edge
    log_w[2, : count - 12] = -torch.inf
    log_w[3] *= 5
    expected = []
    for row in log_w.tolist():
        n = math.ceil(min(0.2 * count, 3 * math.sqrt(count)))
        expected.append(by_hand(row) if sum(v > sorted(row)[-n - 1] for v in row) >= 5 else math.inf)
    got = pareto_k(log_w)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=D), rtol=1e-7, atol=1e-9)
    assert got.isfinite().sum() >= 4


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_recovers_the_tail_of_pareto_draws(k):
    u = torch.rand(30, 20_000, generator=torch.Generator().manual_seed(0), dtype=D)
    got = pareto_k(-k * u.log())  # weights u^-k
    assert got.mean().item() == pytest.approx(k, abs=0.03)


def test_normal_targets_from_wide_and_narrow_proposals():
    """Target N(0, 1), proposal N(0, v): weights have the tail k = 1 - v, above the limit for v = 0.1 alone."""
    z = torch.randn(50_000, generator=torch.Generator().manual_seed(0), dtype=D)
    found = [importance_estimate((v**0.5 * z) ** 2 * (1 / v - 1) / 2) for v in (1.5, 0.7, 0.1)]
    assert found[0].pareto_k < 0.05 and found[1].pareto_k == pytest.approx(0.3, abs=0.15)
    assert found[2].pareto_k > 0.75
    assert [e.trusted.item() for e in found] == [True, True, False]


def test_many_rows_are_cut_without_a_trace():
    log_w = torch.randn(700, 1000, generator=torch.Generator().manual_seed(0))  # 700 x 39 x 95 above the table's size
    whole = pareto_k(log_w)
    torch.testing.assert_close(whole[[0, 555, 699]], pareto_k(log_w[[0, 555, 699]]), rtol=0, atol=1e-6)
    assert pareto_k(log_w.reshape(7, 100, 1000)).shape == (7, 100)


def test_edge_cases():
    assert pareto_k(torch.randn(2, 20, generator=torch.Generator().manual_seed(0))).isnan().all()  # too few
    assert pareto_k(torch.randn(21, generator=torch.Generator().manual_seed(0))).isfinite()
    lone = torch.full((100,), -900.0)
    lone[:3] = 0.0
    assert pareto_k(lone) == torch.inf  # three weights are everything
    assert pareto_k(torch.full((100,), -1234.5) + 1.22e-4 * (torch.arange(100) % 7)) == -torch.inf  # rounding alone
    ties = torch.cat([torch.zeros(60), torch.linspace(-3, -1, 40)])
    assert pareto_k(ties) == -torch.inf  # nothing stands above the largest tie
    for bad in (torch.nan, torch.inf):
        assert pareto_k(torch.tensor([bad] + [0.0, 1.0] * 50)).isnan()
    assert pareto_k(torch.full((2, 50), -torch.inf)).isnan().all()
    assert pareto_k(torch.zeros(0, 50)).shape == (0,)
    assert pareto_k(torch.linspace(0, 3, 100).to(torch.bfloat16)).dtype == torch.float32


def test_limit():
    assert pareto_k_limit(1) == -math.inf and pareto_k_limit(10) == 0.0 and pareto_k_limit(1000) == pytest.approx(2 / 3)
    assert pareto_k_limit(2154) < 0.7 == pareto_k_limit(2155) == pareto_k_limit(10**9)
    with pytest.raises(ValueError, match="num_samples >= 1, got 0"):
        pareto_k_limit(0)
    with pytest.raises(ValueError, match=r"pareto_k needs float log weights.*along dim=1; got torch\.float32 \(3,\)"):
        pareto_k(torch.zeros(3), dim=1)
