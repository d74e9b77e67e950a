"""Linearity gap and interpolation loss: zero for affine functions alone, by hand, gradients, mixup's effect."""

import math

import pytest
import torch
from torch import nn

from danlu.train import Mix, draw_mix, interpolation_loss, linearity_gap, mixup, mixup_loss

X = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_gap_is_zero_for_affine_functions_alone():
    affine = nn.Linear(3, 2).double()
    assert linearity_gap(affine, X, generator=generator()) < 1e-12
    assert linearity_gap(nn.Sequential(affine, nn.ReLU()), X, generator=generator()) > 0.01


def test_gap_of_a_square_by_hand():
    """f = x^2 misses its line by ((a - b) / 2)^2 halfway; over all pairs of different examples that is countable."""
    x = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    squares = [((a - b) / 2) ** 4 for a in (0, 1, 3) for b in (0, 1, 3) if a != b]
    mean = sum(squares) / 6
    spread = math.sqrt(sum((s - mean) ** 2 for s in squares) / 6 / 20_000)
    gap = linearity_gap(torch.square, x, 20_000, generator())
    assert gap**2 == pytest.approx(mean, abs=4 * spread)
    pair = torch.tensor([[0.0, 5.0], [2.0, 5.0]], dtype=torch.float64)
    assert linearity_gap(torch.square, pair) == 1.0  # one pair, in either order
    assert linearity_gap(lambda v: torch.cat([v**2, v**2], 1), pair[:, :1]) == pytest.approx(math.sqrt(2))


def test_interpolation_loss_by_hand_and_its_zero():
    mix = draw_mix(7, 1.0, generator=generator(1))
    lam, other = mix.weight.double()[:, None], X[mix.partner]
    expected = ((lam * X + (1 - lam) * other).square() - (lam * X**2 + (1 - lam) * other**2)).square().sum(1).mean()
    torch.testing.assert_close(interpolation_loss(torch.square, X, mix), expected)
    assert interpolation_loss(nn.Linear(3, 2).double(), X, mix).item() < 1e-20


def test_targets_are_constants_unless_asked():
    mix = Mix(torch.tensor([0.5]), torch.tensor([1, 0]))
    x = torch.tensor([[0.0], [2.0]], dtype=torch.float64)

    def slope(detach):  # f = w x^2: apart = w (1 - 2) with w = 1; one side alone moves by 1 w, both by (1 - 2) w
        w = torch.ones((), dtype=torch.float64, requires_grad=True)
        loss = interpolation_loss(lambda v: w * v**2, x, mix, detach)
        assert loss.item() == 1.0
        return torch.autograd.grad(loss, w)[0].item()

    assert slope(True) == -2.0 and slope(False) == 2.0
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    weights = tuple(model.parameters())
    full = draw_mix(7, 1.0, generator=generator(1))
    assert torch.autograd.gradcheck(lambda *_: interpolation_loss(model, X, full, False), weights)
    with torch.no_grad():
        assert not interpolation_loss(model, X, full, False).requires_grad


def test_mixup_makes_a_network_more_linear():
    """The post's claim in small: the same network, trained with and without."""
    x = torch.randn(60, 4, generator=generator(2))
    y = (x[:, 0] * x[:, 1] > 0).long()
    gaps = []
    for alpha in (0.0, 1.0):
        torch.manual_seed(0)
        model, draws = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2)), generator(3)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(150):
            mixed, target = mixup(x, y, alpha, generator=draws)
            optimizer.zero_grad()
            mixup_loss(model(mixed), target).backward()
            optimizer.step()
        gaps.append(linearity_gap(lambda v, m=model: m(v).softmax(1), x, generator=generator()))
    assert gaps[1] < 0.7 * gaps[0]


def test_messages():
    with pytest.raises(ValueError, match="two examples or more and pairs >= 1, got 1 and 1000"):
        linearity_gap(torch.square, X[:1])
    with pytest.raises(ValueError, match="got 7 and 0"):
        linearity_gap(torch.square, X, 0)
    with pytest.raises(ValueError, match="the draw pairs 6 examples"):
        interpolation_loss(torch.square, X, draw_mix(6))
