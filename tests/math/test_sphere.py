"""Steps on the sphere: the gradient of a normalised row by autograd, exact angles of one step, limits, messages."""

import math

import pytest
import torch
import torch.nn.functional as F

from danlu.math import angle_factor, retract, tangent


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_tangent_is_the_gradient_in_the_free_row():
    t = draw(4, 5).requires_grad_()
    a, b = draw(4, 5, seed=1), draw(5, 5, seed=2)

    def f(x):
        return (a * x).sum() + (x @ b).sin().sum()

    (by_autograd,) = torch.autograd.grad(f(F.normalize(t, dim=-1)), t)
    x = F.normalize(t.detach(), dim=-1).requires_grad_()
    (grad,) = torch.autograd.grad(f(x), x)
    length = t.detach().norm(dim=-1, keepdim=True)
    torch.testing.assert_close(tangent(x.detach(), grad) / length, by_autograd, atol=1e-14, rtol=1e-13)


@pytest.mark.parametrize("angle", [0.0, 0.1, 1.0, math.pi / 2, 2.5, 3.1])
@pytest.mark.parametrize("factor", [False, True])
@pytest.mark.parametrize("retraction", ["project", "exp"])
def test_one_step_turns_by_the_closed_form(angle, factor, retraction):
    """f = -a.x in 6 dimensions."""
    a, other = torch.linalg.qr(draw(6, 2))[0].T
    x = math.cos(angle) * a + math.sin(angle) * other
    rate = 0.7
    k = float(angle_factor(x, -a)) if factor else 1.0
    if factor:
        assert k == pytest.approx(1 - math.cos(angle), abs=1e-14)
    turn = rate * k * math.sin(angle)
    expected = angle - (math.atan(turn) if retraction == "project" else turn)
    moved = retract(x, -rate * k * tangent(x, -a), retraction)
    found = math.atan2(float(moved @ other), float(moved @ a))
    assert found == pytest.approx(expected, abs=1e-13)
    assert moved.norm().item() == pytest.approx(1, abs=1e-14)


def test_the_factor_counts_directions_only():
    x, g = F.normalize(draw(3, 4), dim=-1), draw(3, 4, seed=1)
    expected = 1 - F.cosine_similarity(x, -g, dim=-1)[:, None]
    for scale in (1e-200, 1.0, 1e200):
        torch.testing.assert_close(angle_factor(x, scale * g), expected)
    assert angle_factor(x, torch.zeros_like(g)).tolist() == [[1.0]] * 3


def test_no_step_changes_no_bit():
    x = F.normalize(draw(3, 5, dtype=torch.float32), dim=-1)
    for retraction in ("project", "exp"):
        assert torch.equal(retract(x, torch.zeros_like(x), retraction), x)


def test_the_two_retractions_agree_to_third_order():
    x = F.normalize(draw(8), dim=-1)
    g = tangent(x, draw(8, seed=1))
    errors = [(retract(x, r * g) - retract(x, r * g, "exp")).norm().item() for r in (1e-1, 1e-2)]
    assert errors[0] / errors[1] == pytest.approx(1000, rel=0.2)


@pytest.mark.parametrize("function", [tangent, angle_factor, retract])
def test_gradcheck(function):
    x, g = F.normalize(draw(2, 3), dim=-1), draw(2, 3, seed=1)
    assert torch.autograd.gradcheck(function, (x.requires_grad_(), g.requires_grad_()))


def test_messages():
    with pytest.raises(ValueError, match=r"tangent needs two tensors .* got \(2,\) and \(3,\)"):
        tangent(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"one of project, exp, got 'log'"):
        retract(torch.zeros(2), torch.zeros(2), "log")
