"""Training objectives: the linear-Gaussian model in closed form, gradients by hand, and estimators with one mean."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from danlu.generative import draw_normal, latent_log_weights, normal_log_prob, variational_loss

D = torch.float64
# z ~ N(0, 1), x | z ~ N(2 z, 1/2), x = 1.5, proposal N(1/2, 1/4), worked by hand
LOG_P, ELBO = -1.920977231593, -2.265512123485
POSTERIOR = (2 / 3, 1 / 3)  # mean and std


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def setting(rows: int, count: int, proposal: tuple[float, float] = (0.5, 0.5), seed: int = 0) -> tuple[Tensor, ...]:
    """mean, std (rows, 1) and decoder slope (rows,) with gradients, samples, log-likelihood (count, rows)."""
    mean, std = (torch.full((rows, 1), v, dtype=D, requires_grad=True) for v in proposal)
    slope = torch.full((rows,), 2.0, dtype=D, requires_grad=True)
    z = draw_normal(mean, std, count, generator=seeded(seed))
    likelihood = Normal(slope * z[..., 0], math.sqrt(0.5)).log_prob(torch.tensor(1.5, dtype=D))
    return mean, std, slope, z, likelihood


def gradients(objective: str, gradient: str, count: int, rows: int = 20_000, **kwargs) -> Tensor:
    """Per-row gradients of the loss by mean, std and slope: (3, rows)."""
    mean, std, slope, z, likelihood = setting(rows, count, **kwargs)
    loss = variational_loss(likelihood, z, mean, std, objective, gradient) * rows
    return torch.stack([g.flatten() for g in torch.autograd.grad(loss, (mean, std, slope))])


@pytest.mark.parametrize("gradient", ["plain", "stl"])
def test_elbo_of_the_linear_gaussian_model(gradient):
    mean, std, _, z, likelihood = setting(50_000, 2)
    loss = variational_loss(likelihood, z, mean, std, "elbo", gradient).item()
    assert -loss == pytest.approx(ELBO, abs=0.02)
    assert variational_loss(likelihood, z, mean, std, "iwae").item() < loss


def test_losses_by_hand():
    mean, std, _, z, likelihood = setting(3, 4)
    log_w = likelihood + Normal(0, 1).log_prob(z[..., 0]) - Normal(mean, std).log_prob(z)[..., 0]
    torch.testing.assert_close(latent_log_weights(likelihood, z, mean, std), log_w)
    kl = kl_divergence(Normal(mean, std), Normal(torch.zeros(3, 1, dtype=D), 1.0)).sum(1)
    for beta in (1.0, 0.3, 0.0):
        got = variational_loss(likelihood, z, mean, std, beta=beta)
        torch.testing.assert_close(got, (beta * kl - likelihood.mean(0)).mean())
        sampled = variational_loss(likelihood, z, mean, std, gradient="stl", beta=beta)
        torch.testing.assert_close(sampled, -(likelihood + beta * (log_w - likelihood)).mean())
    for gradient in ("plain", "dreg"):
        got = variational_loss(likelihood, z, mean, std, "iwae", gradient)
        torch.testing.assert_close(got, -(log_w.exp().mean(0).log()).mean())


def test_several_latents_are_summed_and_items_averaged():
    mean, std = torch.zeros(2, 3, dtype=D), torch.full((2, 3), 0.5, dtype=D)
    z = draw_normal(mean, std, 5, generator=seeded())
    likelihood = torch.zeros(5, 2, dtype=D)
    one = 0.5 * (0.25 - math.log(0.25) - 1)
    assert variational_loss(likelihood, z, mean, std).item() == pytest.approx(3 * one)
    expected = (normal_log_prob(z) - normal_log_prob(z, mean, std)).exp().mean(0).log().mean()
    torch.testing.assert_close(variational_loss(likelihood, z, mean, std, "iwae"), -expected)


def test_the_iwae_gradient_weighs_samples_by_their_softmax():
    mean, std, slope, z, likelihood = setting(4, 6)
    log_w = latent_log_weights(likelihood, z, mean, std)
    (got,) = torch.autograd.grad(variational_loss(likelihood, z, mean, std, "iwae"), slope, retain_graph=True)
    share = log_w.softmax(0).detach()
    residual = (1.5 - slope * z[..., 0]) * z[..., 0] / 0.5  # d log p(x | z) / d slope
    torch.testing.assert_close(got, -(share * residual).sum(0).detach() / 4)


@pytest.mark.parametrize(
    ("objective", "gradient", "count"), [("elbo", "stl", 1), ("elbo", "stl", 3), ("iwae", "dreg", 4)]
)
def test_quieter_gradients_have_the_mean_of_the_plain_ones(objective, gradient, count):
    plain, other = gradients(objective, "plain", count), gradients(objective, gradient, count)
    gap = plain - other
    error = gap.std(1) / math.sqrt(gap.shape[1])
    assert (gap.mean(1).abs()[:2] <= 4 * error[:2]).all() and (error[:2] > 0).all()
    assert (other.mean(1).abs()[:2] > 4 * error[:2]).all()
    torch.testing.assert_close(plain[2], other[2])  # the decoder's


@pytest.mark.parametrize(("objective", "gradient"), [("elbo", "stl"), ("iwae", "dreg")])
def test_quieter_gradients_are_silent_at_the_posterior(objective, gradient):
    assert gradients(objective, gradient, 4, 50, proposal=POSTERIOR)[:2].abs().max() < 1e-12
    assert gradients(objective, "plain", 4, 50, proposal=POSTERIOR)[:2].abs().max() > 0.1


def test_dreg_and_stl_are_one_for_a_single_sample():
    torch.testing.assert_close(gradients("iwae", "dreg", 1, 20), gradients("elbo", "stl", 1, 20))


def test_the_loss_at_the_posterior_is_the_likelihood_for_every_draw():
    mean, std, _, z, likelihood = setting(5, 3, POSTERIOR)
    for objective, gradient in (("elbo", "stl"), ("iwae", "plain"), ("iwae", "dreg")):
        assert variational_loss(likelihood, z, mean, std, objective, gradient).item() == pytest.approx(-LOG_P, abs=1e-9)


def test_gradcheck():
    mean, std = torch.randn(2, 2, dtype=D, generator=seeded()), torch.rand(2, 2, dtype=D, generator=seeded(1)) + 0.3
    noise, likelihood = torch.randn(3, 2, 2, dtype=D, generator=seeded(2)), torch.randn(3, 2, dtype=D)
    for objective in ("elbo", "iwae"):

        def loss(m: Tensor, s: Tensor, y: Tensor, objective: str = objective) -> Tensor:
            return variational_loss(y, m + s * noise, m, s, objective, beta=1.0)

        assert torch.autograd.gradcheck(loss, tuple(t.clone().requires_grad_() for t in (mean, std, likelihood)))


def test_precision_and_no_graph():
    mean, std, _, z, likelihood = (t.detach().bfloat16() for t in setting(3, 2))
    for objective, gradient in (("elbo", "plain"), ("iwae", "dreg")):  # nothing to hook: no gradient is wanted
        assert variational_loss(likelihood, z, mean, std, objective, gradient).dtype == torch.float32


def test_messages():
    mean, std, _, z, likelihood = setting(3, 2)
    for pair in (("elbo", "dreg"), ("iwae", "stl"), ("vae", "plain")):
        with pytest.raises(ValueError, match=rf"'elbo' with 'plain' or 'stl'.*got '{pair[0]}' with '{pair[1]}'"):
            variational_loss(likelihood, z, mean, std, *pair)
    with pytest.raises(ValueError, match=r"1 for 'dreg', got 0.5 for 'dreg'; warm up"):
        variational_loss(likelihood, z, mean, std, "iwae", "dreg", beta=0.5)
    for beta in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"beta must be >= 0 and finite.*got {beta}"):
            variational_loss(likelihood, z, mean, std, beta=beta)
    with pytest.raises(ValueError, match=r"got \(2, 3\), \(2, 3\), \(3, 1\) and \(3, 1\)"):
        latent_log_weights(likelihood, z[..., 0], mean, std)
