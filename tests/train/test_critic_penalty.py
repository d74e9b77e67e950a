"""Slope penalties of a critic: linear and quadratic critics by hand, finite differences, Dirac-GAN, messages."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.train import critic_penalty, mixed_examples, slope_penalty


def quadratic(a, x):  # s = x'Ax / 2, so g = Ax for a symmetric A
    return (x @ a * x).sum(1) / 2


A = torch.tensor([[2.0, 1.0], [1.0, -3.0]], dtype=torch.float64, requires_grad=True)
X = torch.tensor([[1.0, 0.0], [0.5, -2.0], [0.0, 0.0]], dtype=torch.float64)
Y = torch.tensor([[0.0, 2.0], [1.0, 1.0], [3.0, -1.0]], dtype=torch.float64)
LENGTHS = [math.hypot(2 * x + y, x - 3 * y) for x, y in X.tolist()]


def test_real_penalty_of_a_quadratic_is_half_the_squared_slope():
    r1 = critic_penalty(partial(quadratic, A), X, kind="r1", weight=4.0)
    assert r1.item() == pytest.approx(4 * sum(n * n for n in LENGTHS) / 6)
    r2 = critic_penalty(partial(quadratic, A), Y, X, kind="r2")
    assert r2.item() == pytest.approx(sum(n * n for n in LENGTHS) / 6)


@pytest.mark.parametrize(
    ("target", "power", "one_sided", "cost"),
    [
        (1.0, 2.0, False, lambda n: (n - 1) ** 2),
        (3.0, 2.0, True, lambda n: max(0.0, n - 3) ** 2),
        (0.0, 6.0, False, lambda n: n**6),
        (0.0, 1.0, False, lambda n: n),
        (1.0, 1.5, False, lambda n: abs(n - 1) ** 1.5),
    ],
)
def test_equals_the_formula(target, power, one_sided, cost):
    x = X.clone().requires_grad_()
    got = slope_penalty(quadratic(A, x), x, target, power, one_sided)
    assert got.item() == pytest.approx(sum(cost(n) for n in LENGTHS) / 3, rel=1e-12)


@pytest.mark.parametrize(("kind", "cost"), [("gp", lambda n: (n - 1) ** 2), ("div", lambda n: n**6)])
def test_kinds_at_the_places_that_were_drawn(kind, cost):
    seed = torch.Generator().manual_seed(5)
    places = mixed_examples(X, Y, torch.Generator().manual_seed(5))
    lengths = [math.hypot(2 * x + y, x - 3 * y) for x, y in places.tolist()]
    got = critic_penalty(partial(quadratic, A), X, Y, kind, 10.0, seed)
    assert got.item() == pytest.approx(10 * sum(map(cost, lengths)) / 3)


def test_one_sided_kind_lets_flat_critics_be():
    w = torch.full((2,), 0.1, requires_grad=True)
    x = torch.ones(3, 2)
    assert critic_penalty(lambda x: x @ w, x, x, "lp").item() == 0
    assert critic_penalty(lambda x: x @ w, x, x, "gp").item() > 0.7


def test_places_lie_between_and_move_whole_examples():
    real, fake = torch.zeros(500, 2, 3), torch.ones(500, 2, 3)
    places = mixed_examples(real, fake, torch.Generator().manual_seed(0))
    assert (places == places[:, :1, :1]).all()  # one t an example
    share = places[:, 0, 0]
    assert 0 <= share.min() < 0.05
    assert 0.95 < share.max() <= 1
    assert abs(share.mean() - 0.5) < 4 * (1 / 12 / 500) ** 0.5
    assert mixed_examples(real.bfloat16(), fake.bfloat16()).dtype == torch.bfloat16


def test_gradient_is_the_finite_difference():
    def penalty(a, kind):
        seed = torch.Generator().manual_seed(1)
        return critic_penalty(lambda x: torch.tanh(x @ a).sum(1), X[:2], Y[:2], kind, 3.0, seed)

    for kind in ("gp", "lp", "div", "r1", "r2"):
        assert torch.autograd.gradcheck(partial(penalty, kind=kind), (A.detach().clone().requires_grad_(),))


def test_a_flat_critic_gives_no_nan():
    w = torch.zeros(2, requires_grad=True)
    x = torch.randn(4, 2)
    for kind in ("gp", "lp", "div", "r1"):
        (grad,) = torch.autograd.grad(critic_penalty(lambda x: x @ w, x, x, kind), w)
        assert grad.isfinite().all()


def test_patch_scores_add_up_and_images_flatten():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 2, 3, bias=False)
    x = torch.randn(2, 1, 4, 4)
    total = critic_penalty(conv, x, kind="r1")
    x = x.requires_grad_()
    (g,) = torch.autograd.grad(conv(x).sum(), x)
    assert total.item() == pytest.approx((g.square().sum() / 4).item(), rel=1e-6)


def test_examples_keep_their_graph_and_gradients_to_themselves():
    x = torch.randn(3, 2, requires_grad=True)
    w = torch.randn(2, requires_grad=True)
    critic_penalty(lambda x: torch.tanh(x @ w), x, 2 * x).backward()
    assert x.grad is None
    assert w.grad is not None
    plain = torch.randn(3, 2)
    critic_penalty(lambda x: torch.tanh(x @ w), plain, kind="r1")
    assert not plain.requires_grad
    with torch.no_grad():  # works there, too
        assert critic_penalty(lambda x: x @ w, x, x).requires_grad


def test_autocast_takes_norms_in_float32():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(16, 4)
    plain = critic_penalty(net, x, kind="r1")
    with torch.autocast("cpu", torch.bfloat16):
        low = critic_penalty(net, x, kind="r1")
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(plain.item(), rel=0.05)


def dirac(kind, weight, steps=250, lr=0.1):  # data at 0, model at theta, critic psi x: arXiv:1801.04406
    psi, theta = torch.tensor([0.4], requires_grad=True), torch.tensor([0.5], requires_grad=True)
    radius = []
    seed = torch.Generator().manual_seed(0)
    for _ in range(steps):
        real, fake = torch.zeros(1, 1), theta.detach()[None]
        loss = F.softplus(-(real @ psi)).mean() + F.softplus(fake @ psi).mean()
        if weight:
            loss = loss + critic_penalty(lambda x: x @ psi, real, fake, kind, weight, seed)  # noqa: B023
        (grad,) = torch.autograd.grad(loss, psi)
        (push,) = torch.autograd.grad(-F.softplus(theta[None] @ psi.detach()).mean(), theta)
        with torch.no_grad():
            psi -= lr * grad
            theta -= lr * push
        radius.append(float(psi.detach().square() + theta.detach().square()) ** 0.5)
    return radius


def test_dirac_gan_turns_without_and_settles_with_the_real_penalty():
    assert dirac("r1", 0.0)[-1] > 0.65  # from 0.64: simultaneous steps of the plain game even lead outwards
    assert dirac("r1", 1.0)[-1] < 1e-3
    assert dirac("gp", 1.0)[-1] > 0.1  # a slope of 1 at the data is no fixed point


def test_dirac_eigenvalues():
    gamma = 0.6

    def field(state):
        psi, theta = state[:1], state[1:]
        real, fake = torch.zeros(1, 1, dtype=state.dtype), theta[None]
        x = real.clone().requires_grad_()
        penalty = gamma * slope_penalty(x @ psi, x, 0.0, 2.0) / 2
        critic = F.softplus(-(real @ psi)).mean() + F.softplus(fake @ psi).mean() + penalty
        (a,) = torch.autograd.grad(critic, psi, create_graph=True)
        (b,) = torch.autograd.grad(-F.softplus(theta[None] @ psi).mean(), theta, create_graph=True)
        return -torch.cat([a, b])

    jacobian = torch.autograd.functional.jacobian(field, torch.zeros(2, dtype=torch.float64))
    got = torch.linalg.eigvals(jacobian)
    root = (0.25 - gamma**2 / 4) ** 0.5  # -gamma/2 +- sqrt(gamma^2/4 - f'(0)^2), f' = 1/2
    want = [complex(-gamma / 2, -root), complex(-gamma / 2, root)]
    for a, b in zip(sorted(got.tolist(), key=lambda c: c.imag), want, strict=True):
        assert a == pytest.approx(b, abs=1e-9)


def test_messages():
    w = torch.ones(2, requires_grad=True)
    x = torch.ones(3, 2)
    with pytest.raises(ValueError, match="must be one of gp, lp, div, r1, r2, got 'wgan'"):
        critic_penalty(lambda x: x @ w, x, x, "wgan")
    with pytest.raises(ValueError, match=r"kind='gp'.*only 'r1'"):
        critic_penalty(lambda x: x @ w, x)
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(2, 2\); draw as many"):
        critic_penalty(lambda x: x @ w, x, x[:2])
    with pytest.raises(ValueError, match=r"at least one example, got \(0, 2\)"):
        critic_penalty(lambda x: x @ w, x[:0], kind="r1")
    with pytest.raises(ValueError, match=r"got \(\) and \(3, 2\); a critic must not average"):
        critic_penalty(lambda x: (x @ w).mean(), x, x)
    with pytest.raises(ValueError, match="no parameter moves it"):
        critic_penalty(lambda x: x.sum(1), x, x)
    with pytest.raises(ValueError, match=r"do not depend on x \(3, 2\)"):
        slope_penalty(x @ w, x)
    with pytest.raises(ValueError, match=r"got -1\.0 and 2\.0"):
        slope_penalty(x @ w, x, -1.0)
