"""The influence of a pair on Spearman's correlation: a slope by finite differences, the jackknife, the true spread."""

import math

import pytest
import torch

from danlu.math import spearman, spearman_influence

G = torch.Generator().manual_seed(0)


def weighted_rho(x, y, weight):  # eq. (3) with a weight on every pair, by loops
    def below(a, b):
        return 1.0 if a < b else 0.5 if a == b else 0.0

    n = range(len(x))
    u = [sum(weight[j] * below(x[j], x[i]) for j in n) - 0.5 for i in n]
    v = [sum(weight[j] * below(y[j], y[i]) for j in n) - 0.5 for i in n]
    uu, uv, vv = (sum(w * a * b for w, a, b in zip(weight, p, q, strict=True)) for p, q in ((u, u), (u, v), (v, v)))
    return uv / math.sqrt(uu * vv)


@pytest.mark.parametrize("levels", [3, 1000])  # many ties, and none
def test_it_is_the_slope_as_a_pair_gains_weight(levels):
    x = torch.randint(0, levels, (12,), generator=G).double()
    y = torch.randint(0, levels, (12,), generator=G).double() + x
    even = [1 / 12] * 12
    assert weighted_rho(x.tolist(), y.tolist(), even) == pytest.approx(float(spearman(x, y)), abs=1e-12)
    influence = spearman_influence(x, y)
    for e in range(12):
        t = 1e-5
        ends = [
            weighted_rho(x.tolist(), y.tolist(), [(1 - s) * w + s * (i == e) for i, w in enumerate(even)])
            for s in (t, -t)
        ]
        assert influence[e].item() == pytest.approx((ends[0] - ends[1]) / (2 * t), abs=1e-6)
    assert abs(influence.sum().item()) < 1e-12


def test_near_the_jackknife():
    x = torch.randn(120, generator=G)
    y = (x + torch.randn(120, generator=G) > 0).long()  # two classes, as of pairs with labels
    rest = [torch.arange(120) != e for e in range(120)]
    left_out = torch.stack([spearman(x[keep], y[keep]) for keep in rest])
    jackknife = 119 * (spearman(x, y) - left_out)  # the empirical influence up to 1 / N
    torch.testing.assert_close(spearman_influence(x, y), jackknife - jackknife.mean(), atol=0.06, rtol=0.05)


def test_its_size_is_the_spread_of_rho():
    found, told = [], []
    for _ in range(400):
        x = torch.randn(150, generator=G)
        y = 0.8 * x + torch.randn(150, generator=G)
        found.append(spearman(x, y))
        told.append(spearman_influence(x, y).square().mean() / 150)
    spread = torch.stack(found).std().item()
    assert torch.stack(told).mean().sqrt().item() == pytest.approx(spread, rel=4 / math.sqrt(2 * 400))


def test_order_alone_counts_and_both_sides_alike():
    x, y = torch.randn(9, generator=G), torch.randn(9, generator=G)
    torch.testing.assert_close(spearman_influence(x.exp(), y), spearman_influence(x, y))
    torch.testing.assert_close(spearman_influence(y, x), spearman_influence(x, y))
    torch.testing.assert_close(spearman_influence(x, -y), -spearman_influence(x, y))
    assert spearman_influence(x.half(), y).dtype == torch.float64


def test_constants_and_perfect_order_have_none():
    x = torch.randn(7, generator=G)
    assert torch.equal(spearman_influence(x, torch.ones(7)), torch.zeros(7, dtype=torch.float64))
    assert spearman_influence(x, 3 * x).abs().max() < 1e-12
    with pytest.raises(ValueError, match="as many numbers, at least 2; got"):
        spearman_influence(x, torch.ones(6))
