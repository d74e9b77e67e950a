"""Diagonal Gaussians over a latent: against torch.distributions, moments, antithetic draws, limits, messages."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from danlu.generative import draw_normal, latent_usage, normal_log_prob, soft_clamp, standard_normal_kl

D = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


MEAN = torch.randn(4, 3, dtype=D, generator=seeded(1))
STD = torch.rand(4, 3, dtype=D, generator=seeded(2)) + 0.1


def test_density_and_divergence_against_torch():
    z = torch.randn(5, 4, 3, dtype=D, generator=seeded())
    torch.testing.assert_close(normal_log_prob(z, MEAN, STD), Independent(Normal(MEAN, STD), 1).log_prob(z))
    torch.testing.assert_close(normal_log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(-1))
    prior = Normal(torch.zeros(4, 3, dtype=D), 1.0)
    torch.testing.assert_close(standard_normal_kl(MEAN, STD), kl_divergence(Normal(MEAN, STD), prior))


def test_divergence_by_hand_and_where_it_is_tiny():
    assert standard_normal_kl(torch.tensor([[2.0]]), torch.tensor([[0.5]])).item() == pytest.approx(
        (4 + 0.25 + 2 * math.log(2) - 1) / 2
    )
    near = standard_normal_kl(torch.tensor([0.0]), torch.tensor([1 + 1e-4])).item()  # d^2 for std = 1 + d
    assert near == pytest.approx(1e-8, rel=2e-3)


def test_draws_have_the_moments_and_carry_gradients():
    mean, std = MEAN.clone().requires_grad_(), STD.clone().requires_grad_()
    z = draw_normal(mean, std, 20_000, generator=seeded())
    assert z.shape == (20_000, 4, 3)
    assert ((z.mean(0) - MEAN).abs() < 4 * STD / math.sqrt(20_000)).all()
    assert ((z.std(0) / STD - 1).abs() < 4 / math.sqrt(2 * 20_000)).all()
    to_mean, to_std = torch.autograd.grad(z.sum(), (mean, std))
    assert (to_mean == 20_000).all()
    torch.testing.assert_close(to_std, ((z - mean) / std).sum(0).detach())


def test_antithetic_draws_come_in_pairs():
    z = draw_normal(MEAN, STD, 6, antithetic=True, generator=seeded())
    torch.testing.assert_close(z[:3] + z[3:], 2 * MEAN.expand(3, 4, 3))
    assert (z[:3] != z[3:]).all() and (z[0] != z[1]).all()


def test_draws_take_the_generator_and_half_precision():
    first, again = (draw_normal(MEAN, STD, 2, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert draw_normal(MEAN.bfloat16(), STD.bfloat16()).dtype == torch.float32
    assert normal_log_prob(MEAN.half()).dtype == torch.float32
    assert normal_log_prob(torch.zeros(2, dtype=torch.bfloat16), MEAN[0, :2].float(), 2.0).dtype == torch.float32


def test_gradcheck():
    z, mean, std = (x.clone().requires_grad_() for x in (MEAN + 1, MEAN, STD))
    assert torch.autograd.gradcheck(normal_log_prob, (z, mean, std))
    assert torch.autograd.gradcheck(standard_normal_kl, (mean, std))


def test_soft_clamp_is_the_identity_at_0_and_never_leaves():
    x = torch.tensor([-1e30, -3.0, 0.0, 1e-3, 40.0, torch.inf], requires_grad=True)
    y = soft_clamp(x, 5.0)
    assert y.abs().max() <= 5 and y[3].item() == pytest.approx(1e-3, rel=1e-6)
    assert y[1].item() == pytest.approx(-5 * math.tanh(0.6))
    assert torch.autograd.grad(y[2], x, retain_graph=True)[0][2] == 1


def test_usage_of_a_latent():
    mean = torch.stack([torch.tensor([-2.0, 0.0, 2.0]), torch.zeros(3), torch.tensor([0.05, 0.0, -0.05])], dim=1)
    std = torch.tensor([0.5, 1.0, 1.0]).expand(3, 3)
    usage = latent_usage(mean, std)
    assert usage.active.tolist() == [True, False, False] and not usage.collapsed
    assert usage.activity[0] == 4
    expected = kl_divergence(Normal(mean, std), Normal(torch.zeros(3, 3), 1.0)).mean(0)
    torch.testing.assert_close(usage.kl, expected)
    assert latent_usage(mean, std, threshold=0.001).active.tolist() == [True, False, True]


def test_a_collapsed_latent_warns():
    with pytest.warns(UserWarning, match=r"not used: the KL of each of its 2 dimensions.*Sum the reconstruction"):
        usage = latent_usage(torch.zeros(3, 2), torch.ones(3, 2))
    assert usage.collapsed and not usage.active.any()


def test_messages():
    with pytest.raises(ValueError, match=r"one shape, got \(4, 3\) and \(3,\)"):
        draw_normal(MEAN, STD[0])
    with pytest.raises(ValueError, match="num_samples >= 1, got 0"):
        draw_normal(MEAN, STD, 0)
    with pytest.raises(ValueError, match="an even num_samples >= 2 for antithetic draws, got 3"):
        draw_normal(MEAN, STD, 3, antithetic=True)
    for limit in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"finite limit > 0, got {limit}"):
            soft_clamp(MEAN, limit)
    with pytest.raises(ValueError, match=r"N >= 2 items, got \(1, 3\) and \(1, 3\)"):
        latent_usage(MEAN[:1], STD[:1])
