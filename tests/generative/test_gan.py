"""GAN steps: against the loop by hand, what is held, every kind of loss, exact small games, a ring, messages."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.generative import (
    critic_objective,
    critic_step,
    generator_objective,
    generator_step,
    held,
    ring,
    toy_coverage,
)
from danlu.losses import FGANLoss, gan_game, power_game
from danlu.train import critic_penalty


def pair():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), nn.Linear(3, 2)


X, Z = torch.randn(5, 2), torch.randn(4, 3)


def test_steps_are_the_loop_by_hand():
    critic, generator = pair()
    ours, theirs = copy.deepcopy((critic, generator)), (critic, generator)
    sgd = [torch.optim.SGD(net.parameters(), 0.1, momentum=0.9) for net in ours]
    by_hand = [torch.optim.SGD(net.parameters(), 0.1, momentum=0.9) for net in theirs]
    for _ in range(3):
        found = critic_step(ours[0], sgd[0], X, ours[1](Z))
        value = generator_step(ours[0], sgd[1], ours[1](Z))
        by_hand[0].zero_grad()
        bce = F.binary_cross_entropy_with_logits
        real, fake = theirs[0](X), theirs[0](theirs[1](Z).detach())
        loss = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
        loss.backward()
        by_hand[0].step()
        torch.testing.assert_close(found.loss, loss.detach())
        torch.testing.assert_close((found.real_scores, found.fake_scores), (real.detach(), fake.detach()))
        assert found.penalty.item() == 0
        by_hand[1].zero_grad()
        fake = theirs[0](theirs[1](Z))
        loss = bce(fake, torch.ones_like(fake))
        loss.backward()
        by_hand[1].step()
        torch.testing.assert_close(value, loss.detach())
    for a, b in zip(nn.ModuleList(ours).parameters(), nn.ModuleList(theirs).parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_held_keeps_weights_gradients_and_switches():
    critic, generator = pair()
    critic[0].bias.requires_grad_(False)
    critic_step(critic, torch.optim.SGD(critic.parameters(), 0.1), X, generator(Z))
    assert all(p.grad is None for p in generator.parameters())
    weights = [p.detach().clone() for p in critic.parameters()]
    grads = [None if p.grad is None else p.grad.clone() for p in critic.parameters()]
    generator_step(critic, torch.optim.SGD(generator.parameters(), 0.1), generator(Z))
    assert all(torch.equal(a, b) for a, b in zip(weights, critic.parameters(), strict=True))
    for old, p in zip(grads, critic.parameters(), strict=True):
        assert old is None if p.grad is None else torch.equal(old, p.grad)
    assert [p.requires_grad for p in critic.parameters()] == [True, False, True, True]


def test_held_puts_back_after_an_error():
    critic, generator = pair()
    with pytest.raises(RuntimeError, match="on purpose"), held(critic):
        assert not any(p.requires_grad for p in critic.parameters())
        raise RuntimeError("on purpose")
    assert all(p.requires_grad for p in critic.parameters())
    frozen = torch.randn(2, 2)
    with pytest.raises(ValueError, match="no graph"):
        generator_step(critic, torch.optim.SGD(generator.parameters(), 0.1), frozen)
    assert all(p.requires_grad for p in critic.parameters())


class Swapped:
    """Any object will do: the Wasserstein game written out."""

    def __call__(self, real, fake):
        return fake.mean() - real.mean()

    def generator(self, fake):
        return -fake.mean()


@pytest.mark.parametrize(
    ("loss", "critic_value", "generator_value"),
    [
        ("hinge", lambda r, f: F.relu(1 - r).mean() + F.relu(1 + f).mean(), lambda f: -f.mean()),
        (gan_game("least_squares"), lambda r, f: (r - 1).square().mean() + (f + 1).square().mean(), None),
        (power_game(0.0), lambda r, f: torch.expm1(-r).mul(-1).mean().neg() + f.mean(), None),
        (FGANLoss("kl"), lambda r, f: f.exp().mean() - 1 - r.mean(), lambda f: -1 - f.mean()),
        (Swapped(), lambda r, f: f.mean() - r.mean(), lambda f: -f.mean()),
    ],
)
def test_every_kind_of_loss(loss, critic_value, generator_value):
    critic, generator = pair()
    fake = generator(Z)
    real_scores, fake_scores = critic(X), critic(fake)
    torch.testing.assert_close(critic_objective(critic, X, fake, loss), critic_value(real_scores, fake_scores))
    if generator_value:
        torch.testing.assert_close(generator_objective(critic, fake, loss), generator_value(fake_scores))
    else:
        assert generator_objective(critic, fake, loss).requires_grad


def test_penalty_is_added_and_told():
    critic, generator = pair()
    penalty = partial(critic_penalty, kind="r1", weight=3.0)
    plain = critic_objective(critic, X, generator(Z))
    total = critic_objective(critic, X, generator(Z), penalty=penalty)
    torch.testing.assert_close(total - plain, penalty(critic, X))
    found = critic_step(critic, torch.optim.SGD(critic.parameters(), 0.0), X, generator(Z), penalty=penalty)
    torch.testing.assert_close(found.penalty, penalty(critic, X).detach())
    torch.testing.assert_close(found.loss, plain.detach())
    assert not found.penalty.requires_grad


def test_accumulated_halves_are_the_batch():
    critic, generator = pair()
    x, z = torch.randn(4, 2), torch.randn(4, 3)
    whole = torch.autograd.grad(critic_objective(critic, x, generator(z)), critic.parameters())
    for part in (slice(0, 2), slice(2, 4)):
        (critic_objective(critic, x[part], generator(z[part])) / 2).backward()
    torch.testing.assert_close(tuple(p.grad for p in critic.parameters()), whole)


def test_autocast():
    critic, generator = pair()
    plain = critic_objective(critic, X, generator(Z), "hellinger")
    with torch.autocast("cpu", torch.bfloat16):
        low = critic_objective(critic, X, generator(Z), "hellinger")
        value = generator_step(critic, torch.optim.SGD(generator.parameters(), 0.1), generator(Z))
    assert low.dtype == value.dtype == torch.float32
    assert low.item() == pytest.approx(plain.item(), rel=0.05)


class Dirac(nn.Module):
    """The critic psi x."""

    def __init__(self, psi):
        super().__init__()
        self.psi = nn.Parameter(torch.tensor([psi], dtype=torch.float64))

    def forward(self, x):
        return x @ self.psi


@pytest.mark.parametrize(("name", "slope"), [("gan", lambda t: 1 / (1 + math.exp(-t))), ("wasserstein", lambda t: 1.0)])
def test_dirac_game_follows_its_recursion(name, slope):
    critic, theta = Dirac(0.3), nn.Parameter(torch.tensor([[0.8]], dtype=torch.float64))
    sgd = torch.optim.SGD(critic.parameters(), 0.2), torch.optim.SGD([theta], 0.1)
    psi, x = 0.3, 0.8
    for _ in range(20):
        critic_step(critic, sgd[0], torch.zeros(1, 1, dtype=torch.float64), theta + 0, name)
        generator_step(critic, sgd[1], theta + 0, name)
        psi -= 0.2 * slope(psi * x) * x
        x += 0.1 * slope(psi * x) * psi
        assert critic.psi.item() == pytest.approx(psi, abs=1e-12)
        assert theta.item() == pytest.approx(x, abs=1e-12)


def train_ring(loss, penalty=None, steps=400):
    data, seed = ring(4, 1.0, 0.1), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    critic = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    adam = [torch.optim.Adam(net.parameters(), 3e-3, (0.0, 0.9)) for net in (critic, generator)]
    for _ in range(steps):
        critic_step(
            critic, adam[0], data.sample(64, seed), generator(torch.randn(64, 2, generator=seed)), loss, penalty
        )
        generator_step(critic, adam[1], generator(torch.randn(64, 2, generator=seed)), loss)
    return toy_coverage(data, generator(torch.randn(500, 2, generator=seed)).detach())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "penalty"),
    [
        ("non_saturating", partial(critic_penalty, kind="r1", weight=0.5)),
        ("wasserstein", partial(critic_penalty, kind="div", weight=2.0)),
    ],
)
def test_a_plain_loop_covers_a_small_ring(loss, penalty):
    found = train_ring(loss, penalty)
    assert found.hit == 4
    assert found.good > 0.4


def test_messages():
    critic, generator = pair()
    with pytest.raises(TypeError, match=r"FGANLoss\('kl'\); got function"):
        critic_objective(critic, X, generator(Z), lambda real, fake: real.mean())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"at least one real example, got \(0, 2\)"):
        critic_objective(critic, X[:0], generator(Z))
    with pytest.raises(ValueError, match=r"at least one fake example, got \(0, 2\)"):
        generator_objective(critic, generator(Z[:0]))
    with pytest.raises(ValueError, match="no game 'f-gan'"):
        critic_objective(critic, X, generator(Z), "f-gan")
    with pytest.raises(ValueError, match="outside no_grad and without detach"):
        generator_objective(critic, generator(Z).detach())
