"""Importance-weighted bounds: a linear-Gaussian model whose likelihood is known, enumeration, DReG, error bars."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from danlu.math import (
    bootstrap_interval,
    dreg_hook,
    effective_sample_size,
    importance_estimate,
    jackknife_bound,
    log_mean_exp,
)

D = torch.float64
# z ~ N(0, 1), x | z ~ N(2 z, 1/2), x = 1.5: log p(x), and of the proposal N(1/2, 1/4) the ELBO and chi2, worked by hand
LOG_P, ELBO, CHI2 = -1.920977231593, -2.265512123485, 0.29173


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(x: Tensor, mean: float | Tensor, variance: float | Tensor) -> Tensor:
    variance = torch.as_tensor(variance, dtype=D)
    return -0.5 * ((x - mean) ** 2 / variance + (2 * math.pi * variance).log())


def gaussian_log_weights(rows: int, count: int, mean: float = 0.5, variance: float = 0.25, seed: int = 0) -> Tensor:
    z = mean + math.sqrt(variance) * torch.randn(rows, count, dtype=D, generator=seeded(seed))
    x = torch.tensor(1.5, dtype=D)
    return normal(z, 0.0, 1.0) + normal(x, 2 * z, 0.5) - normal(z, mean, variance)


def mean_and_error(x: Tensor) -> tuple[float, float]:
    return x.mean().item(), (x.std() / math.sqrt(len(x))).item()


def test_one_sample_is_the_elbo():
    mean, error = mean_and_error(log_mean_exp(gaussian_log_weights(40_000, 1)))
    assert mean == pytest.approx(ELBO, abs=4 * error) and 8 * error < LOG_P - ELBO


@pytest.mark.parametrize(
    ("count", "expected", "error"), [(2, -2.0308, 9e-4), (5, -1.9547, 4e-4), (10, -1.9364, 3e-4), (100, LOG_P, 0.0)]
)
def test_the_bound_rises_to_the_likelihood_as_frozen(count, expected, error):
    """Means of 2, 5 and 10 samples from other code, with their standard errors; 100: the bias of eq. (2)."""
    if count == 100:
        expected -= CHI2 / (2 * count)
    mean, own = mean_and_error(log_mean_exp(gaussian_log_weights(20_000, count, seed=count)))
    assert mean == pytest.approx(expected, abs=4 * math.hypot(own, error) + (1e-4 if count == 100 else 0.0))


def test_bias_and_standard_error_are_those_of_the_delta_method():
    log_w = gaussian_log_weights(4_000, 200)
    estimate = importance_estimate(log_w)
    assert estimate.standard_error.square().mean().item() == pytest.approx(CHI2 / 200, rel=0.03)
    assert estimate.value.std().item() == pytest.approx(math.sqrt(CHI2 / 200), rel=0.05)
    assert estimate.bias.mean().item() == pytest.approx(-CHI2 / 400, rel=0.03)
    inside = ((estimate.value - estimate.bias - LOG_P).abs() < 1.96 * estimate.standard_error).double().mean()
    assert 0.93 < inside < 0.97
    assert estimate.trusted.double().mean() > 0.95  # light tails: the proposal is wider than the posterior


def test_the_standard_error_is_that_of_a_mean():  # eq. (3) against the textbook's s.d. of w / (mean sqrt(M))
    log_w = torch.randn(5, 30, generator=seeded(), dtype=D) - 800
    w = (log_w + 800).exp()
    estimate = importance_estimate(log_w)
    torch.testing.assert_close(estimate.standard_error, w.std(1) / w.mean(1) / math.sqrt(30))
    torch.testing.assert_close(estimate.bias, -(estimate.standard_error**2) / 2)
    torch.testing.assert_close(estimate.ess, w.sum(1) ** 2 / (w**2).sum(1))
    torch.testing.assert_close(estimate.value, w.mean(1).log() - 800)
    assert torch.equal(estimate.ess, effective_sample_size(log_w)) and estimate.num_samples == 30


def test_samples_along_any_dimension():
    log_w = torch.randn(3, 25, generator=seeded(), dtype=D)
    for one, other in zip(importance_estimate(log_w)[:5], importance_estimate(log_w.T, 0)[:5], strict=True):
        torch.testing.assert_close(one, other)


def test_the_posterior_as_proposal_is_exact_for_every_draw():
    for count in (1, 3, 50):
        value = log_mean_exp(gaussian_log_weights(10, count, 2 / 3, 1 / 9))
        torch.testing.assert_close(value, torch.full((10,), LOG_P, dtype=D), rtol=0, atol=1e-11)
    estimate = importance_estimate(gaussian_log_weights(10, 50, 2 / 3, 1 / 9))
    assert (estimate.standard_error < 1e-6).all() and estimate.trusted.all() and (estimate.ess > 50 - 1e-6).all()


def test_a_latent_plane_against_quadrature():
    """Bernoulli pixels of a nonlinear decoder; the integral by a grid over [-7, 7]^2."""
    weight = torch.tensor([[1.0, -2.0], [0.5, 1.5], [2.0, 0.3]], dtype=D)
    x = torch.tensor([1.0, 0.0, 1.0], dtype=D)

    def log_joint(z: Tensor) -> Tensor:
        logits = 3 * torch.tanh(z @ weight.T)
        return -torch.nn.functional.softplus((1 - 2 * x) * logits).sum(-1) + normal(z, 0.0, 1.0).sum(-1)

    line = torch.linspace(-7, 7, 401, dtype=D)
    exact = log_joint(torch.cartesian_prod(line, line)).logsumexp(0) + 2 * math.log(14 / 400)
    mean, sigma = torch.tensor([0.6, -0.4], dtype=D), 0.9
    z = mean + sigma * torch.randn(20_000, 2, generator=seeded(), dtype=D)
    estimate = importance_estimate(log_joint(z) - normal(z, mean, sigma**2).sum(-1))
    assert abs(estimate.value - exact) < 4 * estimate.standard_error and estimate.standard_error < 0.02
    assert abs(estimate.value - exact) < 0.02


def test_discrete_latents_by_enumeration():
    """E L_M over all draws of M = 1, 2, 3 of four states: rises with M, gap E log of the mean, never above log p."""
    proposal = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=D)
    joint = torch.tensor([0.05, 0.3, 0.02, 0.13], dtype=D)
    log_w = (joint / proposal).log()
    bounds = []
    for count in (1, 2, 3):
        draws = torch.tensor(list(itertools.product(range(4), repeat=count)))
        bounds.append((proposal[draws].prod(1) * log_mean_exp(log_w[draws])).sum().item())
    assert bounds[0] < bounds[1] < bounds[2] < math.log(0.5)
    by_hand = sum(p * math.log(w) for p, w in zip(proposal.tolist(), log_w.exp().tolist(), strict=True))
    assert bounds[0] == pytest.approx(by_hand)


def test_the_jackknife_against_leaving_out_one_by_one():
    log_w = 5 * torch.randn(3, 6, generator=seeded(), dtype=D)
    parts = [log_mean_exp(torch.cat([log_w[:, :i], log_w[:, i + 1 :]], 1)) for i in range(6)]
    expected = 6 * log_mean_exp(log_w) - 5 * torch.stack(parts).mean(0)
    torch.testing.assert_close(jackknife_bound(log_w), expected)
    torch.testing.assert_close(jackknife_bound(log_w.T, dim=0), expected)


def test_the_jackknife_removes_the_bias():
    log_w = gaussian_log_weights(40_000, 10)
    plain, corrected = log_mean_exp(log_w), jackknife_bound(log_w)
    mean, error = mean_and_error(corrected)
    assert LOG_P - plain.mean().item() > 0.012
    assert mean == pytest.approx(LOG_P, abs=4 * error + 0.003)


def test_the_jackknife_keeps_its_digits_under_one_huge_weight():
    log_w = torch.tensor([0.0, 40.0, 1.0], dtype=D, requires_grad=True)
    rest = [math.log((math.exp(40) + math.e) / 2), math.log((1 + math.e) / 2), math.log((math.exp(40) + 1) / 2)]
    expected = 3 * math.log((1 + math.e + math.exp(40)) / 3) - 2 * sum(rest) / 3
    assert jackknife_bound(log_w).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(jackknife_bound, (log_w,))
    lone = torch.tensor([[0.0, -torch.inf], [-torch.inf, -torch.inf]])
    assert jackknife_bound(lone).tolist() == [torch.inf, -torch.inf]


def test_bootstrap_of_two_weights_against_its_three_outcomes():
    """Two of two with replacement: both, or one of them twice, with probabilities 1/2, 1/4, 1/4."""
    log_w = torch.tensor([0.0, 1.0], dtype=D)
    values = torch.tensor([0.0, math.log((1 + math.e) / 2), 1.0], dtype=D)
    p = torch.tensor([0.25, 0.5, 0.25], dtype=D)
    deviation = (p @ values**2 - (p @ values) ** 2).sqrt().item()
    got = bootstrap_interval(log_w, num_replicates=2000, generator=seeded())
    assert got.standard_error.item() == pytest.approx(deviation, rel=0.05)
    assert (got.low.item(), got.high.item()) == (0.0, 1.0)
    inner = bootstrap_interval(log_w, level=0.6, num_replicates=2000, generator=seeded())  # from 1/5 to 4/5
    assert (inner.low.item(), inner.high.item()) == (0.0, 1.0)
    middle = bootstrap_interval(log_w, level=0.3, num_replicates=2000, generator=seeded())
    assert middle.low.item() == middle.high.item() == pytest.approx(values[1].item())


def test_bootstrap_agrees_with_the_delta_method_and_covers():
    log_w = gaussian_log_weights(150, 200)
    got = bootstrap_interval(log_w, num_replicates=300, generator=seeded())
    delta = importance_estimate(log_w).standard_error
    assert (got.standard_error / delta).mean().item() == pytest.approx(1.0, abs=0.05)
    assert ((got.low < LOG_P) & (got.high > LOG_P)).double().mean() > 0.88
    again = bootstrap_interval(log_w.T, 0, num_replicates=300, generator=seeded())
    assert again.low.shape == (150,) and torch.equal(again.low, got.low)


def encoder_draws(count: int, rows: int, proposal: tuple[float, float], stop: bool) -> tuple[Tensor, ...]:
    """a and b of q = N(a, e^2b), c of the decoder mean c z (one copy a row), samples, log weights (count, rows)."""
    a, b = (torch.full((rows,), v, dtype=D, requires_grad=True) for v in proposal)
    c = torch.full((rows,), 2.0, dtype=D, requires_grad=True)
    z = a + b.exp() * torch.randn(count, rows, dtype=D, generator=seeded(7))
    own_a, own_b = (a.detach(), b.detach()) if stop else (a, b)
    likelihood = normal(torch.tensor(1.5, dtype=D), c * z, 0.5)
    return a, b, c, z, normal(z, 0.0, 1.0) + likelihood - normal(z, own_a, (2 * own_b).exp())


def gradients(dreg: bool, proposal: tuple[float, float] = (0.5, -0.7), count: int = 5, rows: int = 40_000) -> Tensor:
    a, b, c, z, log_w = encoder_draws(count, rows, proposal, stop=dreg)
    if dreg:
        dreg_hook(z, log_w)
    return torch.stack(torch.autograd.grad(log_mean_exp(log_w, 0).sum(), (a, b, c)))  # (3, rows)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_dreg_has_the_mean_of_the_plain_gradient_and_less_noise(count):
    plain, dreg = gradients(False, count=count), gradients(True, count=count)
    gap = plain - dreg  # the same draws
    error = gap.std(1) / math.sqrt(gap.shape[1])
    assert (gap.mean(1)[:2].abs() <= 4 * error[:2]).all()
    assert (dreg.mean(1)[:2].abs() > 4 * error[:2]).all()  # the test can tell it from nothing
    assert torch.equal(plain[2], dreg[2])  # the decoder's gradient stays
    assert (dreg.var(1)[:2] < plain.var(1)[:2]).all()


def test_dreg_is_zero_for_every_draw_at_the_posterior():
    posterior = (2 / 3, math.log(1 / 3))
    assert gradients(True, posterior, rows=50)[:2].abs().max() < 1e-12
    assert gradients(False, posterior, rows=50)[:2].abs().max() > 0.1


def test_dreg_by_hand_and_its_handle():
    a, _, _, z, log_w = encoder_draws(4, 3, (0.3, -0.2), stop=True)
    (slope,) = torch.autograd.grad(log_w.sum(), z, retain_graph=True)
    expected = (log_w.softmax(0) ** 2 * slope).sum(0)
    handle = dreg_hook(z, log_w)
    (got,) = torch.autograd.grad(log_mean_exp(log_w, 0).sum(), a, retain_graph=True)
    torch.testing.assert_close(got, expected)
    handle.remove()
    (got,) = torch.autograd.grad(log_mean_exp(log_w, 0).sum(), a)
    torch.testing.assert_close(got, (log_w.softmax(0) * slope).sum(0))


def test_dreg_of_vectors_in_a_plain_loop():
    torch.manual_seed(0)
    encoder, decoder = torch.nn.Linear(5, 4), torch.nn.Linear(2, 5)
    x = torch.randn(16, 5)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.05)
    bounds = []
    for _ in range(25):
        mean, log_sigma = encoder(x).chunk(2, -1)
        q = torch.distributions.Normal(mean.detach(), log_sigma.detach().exp())
        z = mean + log_sigma.exp() * torch.randn(6, 16, 2)
        log_w = (
            torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
            + torch.distributions.Normal(decoder(z), 1.0).log_prob(x).sum(-1)
            - q.log_prob(z).sum(-1)
        )
        dreg_hook(z, log_w)
        optimizer.zero_grad()
        bound = log_mean_exp(log_w, 0).mean()
        (-bound).backward()
        optimizer.step()
        bounds.append(bound.item())
    assert sum(bounds[-5:]) / 5 > sum(bounds[:5]) / 5 + 0.3


def test_gradcheck_and_softmax_weights():
    log_w = 3 * torch.randn(2, 5, generator=seeded(), dtype=D)
    log_w[0, 1] = -60.0
    log_w.requires_grad_()
    assert torch.autograd.gradcheck(log_mean_exp, (log_w,))
    assert torch.autograd.gradcheck(lambda w: effective_sample_size(w, 0), (log_w[:, :1].detach().requires_grad_(),))
    (grad,) = torch.autograd.grad(log_mean_exp(log_w).sum(), log_w)
    torch.testing.assert_close(grad, log_w.softmax(1))


def test_extremes():
    none = torch.full((2, 4), -torch.inf, requires_grad=True)
    value = log_mean_exp(none)
    value.sum().backward()
    assert (value == -torch.inf).all() and (none.grad == 0).all()
    estimate = importance_estimate(none)
    assert (estimate.ess == 0).all() and (estimate.standard_error == torch.inf).all() and not estimate.trusted.any()
    one = importance_estimate(torch.zeros(3, 1))
    assert one.standard_error.isnan().all() and (one.ess == 1).all() and not one.trusted.any()
    broken = importance_estimate(torch.tensor([0.0, torch.nan] * 50))
    assert broken.value.isnan() and broken.ess.isnan() and not broken.trusted
    far = torch.tensor([1e30, 1e30, 1e30, 1e30])
    assert importance_estimate(far).ess == 4 and importance_estimate(far).value == 1e30
    equal = importance_estimate(torch.full((100,), -1000.1))
    assert equal.standard_error == 0 and equal.ess == 100 and equal.trusted
    assert log_mean_exp(torch.zeros(0, 4)).shape == (0,) and importance_estimate(torch.zeros(0, 40)).ess.shape == (0,)


def test_half_precision_is_summed_in_float32():
    log_w = torch.zeros(1000, dtype=torch.bfloat16)
    assert log_mean_exp(log_w).dtype == torch.float32 and effective_sample_size(log_w) == 1000
    assert importance_estimate(log_w).value == 0
    assert log_mean_exp(torch.tensor([11.0, 11.0], dtype=torch.float16)).item() == pytest.approx(11.0)


def test_messages():
    for f in (log_mean_exp, effective_sample_size, importance_estimate, jackknife_bound, bootstrap_interval):
        with pytest.raises(
            ValueError, match=rf"{f.__name__ if f is not importance_estimate else ''}.*at least one sample"
        ):
            f(torch.zeros(3, 0))
        with pytest.raises(ValueError, match=r"along dim=2; got torch.float32 \(3, 2\)"):
            f(torch.zeros(3, 2), dim=2)
        with pytest.raises(ValueError, match=r"needs float log weights.*torch.int64 \(3,\)"):
            f(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 2 along dim=-1, got 1"):
        jackknife_bound(torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"level in \(0, 1\) and num_replicates >= 2, got 1.0 and 1000"):
        bootstrap_interval(torch.zeros(3), level=1.0)
    with pytest.raises(ValueError, match=r"log weights \(3, 2\); got \(2, 3, 5\), requires_grad=True"):
        dreg_hook(torch.zeros(2, 3, 5, requires_grad=True), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="requires_grad=False"):
        dreg_hook(torch.zeros(3, 2, 5), torch.zeros(3, 2))
