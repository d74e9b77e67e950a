"""Uncertainty weighting: the formula, likelihoods of torch.distributions, its geometric mean, the floor, messages."""

import math

import pytest
import torch

from danlu.losses import UncertaintyLoss, geometric_mean_loss, uncertainty_loss

L = torch.tensor([0.3, 2.0, 150.0], dtype=torch.float64)
S = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
F3 = [0.5, 1.0, 0.5]


def test_equals_the_formula():
    expected = sum(f * math.exp(-s) * v + s / 2 for f, s, v in zip(F3, S.tolist(), L.tolist(), strict=True))
    assert uncertainty_loss(L, S, F3).item() == pytest.approx(expected)


def test_a_squared_error_is_a_gaussians_likelihood():
    """With f = 1/2 one task's loss is -log N(y; mean, exp(s)) but for the constant log sqrt(2 pi)."""
    s, error = torch.tensor([0.7]), torch.tensor([1.3])
    normal = torch.distributions.Normal(0.0, (s / 2).exp())
    expected = -normal.log_prob(error).item() - math.log(2 * math.pi) / 2
    assert uncertainty_loss(error.square(), s, 0.5).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("factor", [0.5, 1.0, F3])
def test_at_its_least_it_is_the_geometric_mean(factor):
    """Eq. (2): the gradient by s is 0 at log(2 f L), and there L gets half the gradient of sum log L."""
    f = torch.tensor(factor, dtype=torch.float64).expand(3)
    s = (2 * f * L).log().requires_grad_()
    x = L.clone().requires_grad_()
    loss = uncertainty_loss(x, s, factor)
    by_x, by_s = torch.autograd.grad(loss, (x, s))
    torch.testing.assert_close(by_s, torch.zeros(3, dtype=torch.float64))
    (logs,) = torch.autograd.grad(3 * geometric_mean_loss(x), x)
    torch.testing.assert_close(by_x, logs / 2)
    for step in (-0.1, 0.1):  # a least value, not a greatest
        assert uncertainty_loss(L, s.detach() + step, factor) > loss


def test_gradcheck():
    keep = torch.tensor([True, False, True])
    inputs = L.clone().requires_grad_(), S.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, s: uncertainty_loss(x, s, F3), inputs)
    assert torch.autograd.gradcheck(lambda x, s: uncertainty_loss(x, s, F3, mask=keep), inputs)


def test_a_solved_task_stops_at_the_floor_and_can_return():
    module = UncertaintyLoss(1, floor=1e-3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)

    def follow(value, steps=200):
        for _ in range(steps):
            optimizer.zero_grad()
            module(torch.tensor([value])).backward()
            optimizer.step()
        return module.log_variance.item()

    assert follow(0.0) == pytest.approx(math.log(2e-3), abs=1e-3)
    assert follow(0.01) == pytest.approx(math.log(2e-2), abs=1e-3)


def test_the_floor_leaves_the_gradient_of_the_loss_alone():
    x = torch.tensor([1e-9], requires_grad=True)
    uncertainty_loss(x, torch.tensor([1.0]), floor=1e-3).backward()
    assert x.grad.item() == pytest.approx(math.exp(-1))


def test_a_masked_task_moves_nothing():
    keep = torch.tensor([True, False, True])
    wild = L.clone()
    wild[1] = torch.inf
    s = S.clone().requires_grad_()
    loss = uncertainty_loss(wild, s, F3, mask=keep)
    loss.backward()
    torch.testing.assert_close(loss, uncertainty_loss(L[keep], S[keep], [0.5, 0.5]))
    assert s.grad[1] == 0 and s.grad[0] != 0


def test_precision_follows_the_losses():
    assert uncertainty_loss(L.bfloat16(), S.bfloat16()).dtype == torch.float32
    assert uncertainty_loss(L, S.float()).dtype == torch.float64


def test_messages():
    with pytest.raises(ValueError, match=r"for each of the 3 losses; got \(2,\) and \(\)"):
        uncertainty_loss(L, S[:2])
    with pytest.raises(ValueError, match=r"for each of the 3 losses; got \(3,\) and \(2,\)"):
        uncertainty_loss(L, S, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"factor and floor must be above 0, got 0.0 and 1e-08"):
        uncertainty_loss(L, S, 0.0)
    with pytest.raises(ValueError, match=r"factor and floor must be above 0, got 1.0 and 0"):
        uncertainty_loss(L, S, floor=0)
    with pytest.raises(ValueError, match="no meaning for a negative loss"):
        uncertainty_loss(-L, S)
    with pytest.raises(ValueError, match="num_tasks >= 1, got 0"):
        UncertaintyLoss(0)
