"""Log-likelihoods by importance sampling: closed forms, principal components, quadrature, blocks, modes, messages."""

import math

import pytest
import torch
from torch import Tensor, nn

from danlu.generative import (
    VAE,
    GaussianLikelihood,
    VAEConfig,
    evaluation_mode,
    mean_log_prob,
    vae_log_prob,
    vae_log_weights,
)
from danlu.math import ImportanceEstimate, jackknife_bound, log_mean_exp

D = torch.float64
LOG_P, ELBO, CHI2 = -1.920977231593, -2.265512123485, 0.29173


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Constant(nn.Module):
    """An encoder that proposes one Gaussian for every x, through the inverse of the soft clamp."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        v = [10 * math.atanh(2 * math.log(s) / 10) for s in std]
        self.out = nn.Parameter(torch.tensor([*mean, *v], dtype=D))

    def forward(self, x: Tensor) -> Tensor:
        return self.out.expand(len(x), -1)


def linear_gaussian(mean: float, std: float) -> VAE:
    """z ~ N(0, 1), x | z ~ N(2 z, 1/2)."""
    decoder = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        decoder.weight.fill_(2.0)
    likelihood = GaussianLikelihood(math.sqrt(0.5))
    return VAE(VAEConfig((1,), 1), Constant([mean], [std]), decoder, likelihood)


X = torch.tensor([[1.5]], dtype=D)


@pytest.mark.parametrize(("proposal", "widen"), [("encoder", 1.0), ("encoder", 1.5), ("prior", 1.0)])
def test_linear_gaussian_likelihood(proposal, widen):
    estimate = vae_log_prob(linear_gaussian(0.5, 0.5), X, 40_000, proposal, widen, generator=seeded())
    assert abs(estimate.value.item() - LOG_P) < 4 * estimate.standard_error.item() < 0.03
    assert estimate.trusted.item()


def test_proposals_are_what_they_say():
    """chi2 of the posterior against N(1/2, 1/4) as worked by hand; the prior's is that of its weights."""
    log_w = vae_log_weights(linear_gaussian(0.5, 0.5), X, 200_000, generator=seeded())[0]
    w = (log_w - log_w.logsumexp(0) + math.log(200_000)).exp()
    assert w.var().item() == pytest.approx(CHI2, rel=0.03)
    assert log_w.mean().item() == pytest.approx(ELBO, abs=0.01)
    z = torch.randn(200_000, 1, dtype=D, generator=seeded(1))
    by_hand = torch.distributions.Normal(2 * z[:, 0], math.sqrt(0.5)).log_prob(X[0])
    prior = vae_log_weights(linear_gaussian(0.5, 0.5), X, 200_000, "prior", generator=seeded())[0]
    assert prior.mean().item() == pytest.approx(by_hand.mean().item(), abs=0.1)
    assert prior.max().item() == pytest.approx(-0.5 * math.log(math.pi), abs=1e-3)  # the likelihood's top


@pytest.mark.parametrize("count", [1, 7, 50])
def test_the_posterior_as_proposal_is_exact_for_every_draw(count):
    estimate = vae_log_prob(linear_gaussian(2 / 3, 1 / 3), X.expand(4, 1), count, chunk=8, generator=seeded())
    torch.testing.assert_close(estimate.value, torch.full((4,), LOG_P, dtype=D), rtol=0, atol=1e-10)


def test_widening_makes_half_the_posterior_the_posterior():
    estimate = vae_log_prob(linear_gaussian(2 / 3, 1 / 6), X, 50, widen=2.0, generator=seeded())
    assert estimate.value.item() == pytest.approx(LOG_P, abs=1e-10)


def test_the_bound_rises_and_the_jackknife_removes_bias():
    log_w = vae_log_weights(linear_gaussian(0.5, 0.5), X.expand(3_000, 1), 20, chunk=20_000, generator=seeded())
    bounds = [log_mean_exp(log_w[:, :m]).mean().item() for m in (1, 2, 5, 20)]
    assert bounds == sorted(bounds)
    assert bounds[2] == pytest.approx(-1.9547, abs=0.02)
    assert jackknife_bound(log_w).mean().item() == pytest.approx(LOG_P, abs=0.01)


def test_principal_components_of_digits():
    """Orthogonal factors make the posterior diagonal, so that the estimate is exact: N(mu, W W^T + s^2 I)."""
    from danlu.data import load_digits

    pytest.importorskip("sklearn")
    x = load_digits().train[0].flatten(1).double()  # (1257, 64)
    k, mu = 5, x.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    s2 = values[:-k].mean()
    w = vectors[:, -k:] * (values[-k:] - s2).sqrt()  # (64, K), maximum likelihood
    model = VAE(
        VAEConfig((64,), k, hidden=(), log_var_limit=None), likelihood=GaussianLikelihood(math.sqrt(s2.item()))
    ).double()
    precision = torch.eye(k, dtype=D) + w.T @ w / s2  # diagonal
    read = torch.linalg.solve(precision, w.T) / s2  # (K, 64)
    with torch.no_grad():
        model.encoder[1].weight.copy_(torch.cat([read, torch.zeros_like(read)]))
        model.encoder[1].bias.copy_(torch.cat([-read @ mu, -precision.diagonal().log()]))
        model.decoder[0].weight.copy_(w)
        model.decoder[0].bias.copy_(mu)
    exact = torch.distributions.MultivariateNormal(mu, w @ w.T + s2 * torch.eye(64, dtype=D)).log_prob(x[:50])
    got = model.log_prob(x[:50], num_samples=3, generator=seeded())
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-6)


def test_a_latent_plane_against_quadrature():
    config = VAEConfig((4,), 2, hidden=(6,))
    torch.manual_seed(0)
    model = VAE(config).double()
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.mul_(3)
    x = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0]])
    line = torch.linspace(-8, 8, 401, dtype=D)
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        joint = model.likelihood.log_prob(model.decode(grid)[:, None].expand(-1, 2, -1), x)
    joint = joint + torch.distributions.Normal(0.0, 1.0).log_prob(grid).sum(1, keepdim=True)
    exact = joint.logsumexp(0) + 2 * math.log(16 / 400)
    estimate = vae_log_prob(model, x, 20_000, chunk=5_000, generator=seeded())
    assert (estimate.value - exact).abs().max() < 0.02
    assert ((estimate.value - exact).abs() < 4 * estimate.standard_error).all()


@pytest.mark.parametrize("chunk", [1, 3, 7, 40, 1000])
def test_blocks_of_any_size_put_every_sample_in_its_place(chunk):
    """Weights without noise (a std that vanishes) are known for every row."""
    model = linear_gaussian(0.5, 0.5)
    model.encoder.out.data[1] = -1e9  # std e^-5
    x = torch.linspace(-2, 2, 5, dtype=D)[:, None]
    log_w = vae_log_weights(model, x, 8, chunk=chunk, generator=seeded())
    assert log_w.shape == (5, 8)
    expected = torch.distributions.Normal(1.0, math.sqrt(0.5)).log_prob(x) - 0.125 - 5
    noise_part = log_w - expected  # noise^2 / 2 and what a step of e^-5 moves the rest
    assert (noise_part > -0.3).all() and (noise_part.mean() - 0.5).abs() < 0.4
    assert len(log_w.unique()) == 40  # all draws differ


def test_images_levels_and_empty_data():
    torch.manual_seed(0)
    model = VAE(VAEConfig((1, 5, 4), 2, "discretized_logistic", bits=3, network="conv", hidden=(3,)))
    x = torch.randint(8, (3, 1, 5, 4), dtype=torch.uint8, generator=seeded())
    estimate = vae_log_prob(model, x, 30, chunk=20, generator=seeded())
    assert estimate.value.shape == (3,) and estimate.value.isfinite().all()
    assert model.log_prob(x[:0], 5).shape == (0,) and vae_log_weights(model, x[:0], 5).shape == (0, 5)


def test_parts_keep_their_mode_and_nothing_global_moves():
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    model = VAE(VAEConfig((4,), 2, hidden=(3,)), decoder=decoder)
    decoder[2].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, state = torch.ones(2, 4), torch.get_rng_state()
    first = model.log_prob(x, 10, generator=seeded())
    assert torch.equal(first, model.log_prob(x, 10, generator=seeded()))  # dropout is off
    assert decoder[1].training and not decoder[2].training and model.training
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not first.requires_grad


def test_evaluation_mode_puts_back_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(RuntimeError), evaluation_mode(model):
        assert not model[0].training and not torch.is_grad_enabled()
        raise RuntimeError
    assert model.training and model[0].training and not model[1].training and torch.is_grad_enabled()


def test_bfloat16_networks_keep_float32_weights():
    torch.manual_seed(0)
    model = VAE(VAEConfig((16,), 3, hidden=(32,)))
    x = torch.bernoulli(torch.full((20, 16), 0.5), generator=seeded())
    exact = model.log_prob(x, 200, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        got = vae_log_weights(model, x, 200, generator=seeded())
    assert got.dtype == torch.float32
    assert (log_mean_exp(got) - exact).abs().mean() < 0.02


def test_mean_over_a_data_set():
    one = torch.tensor([1.0, 2.0, 6.0])
    estimate = ImportanceEstimate(-one, one / 10, -one / 100, one, torch.tensor([0.2, 0.9, 0.3]), 5000)
    got = mean_log_prob(estimate)
    assert got.value == pytest.approx(-3) and got.bias == pytest.approx(-0.03) and got.median_ess == 2
    assert got.monte_carlo_error == pytest.approx(math.sqrt(0.01 + 0.04 + 0.36) / 3)
    assert got.sampling_error == pytest.approx(math.sqrt(7) / math.sqrt(3))
    assert got.trusted == pytest.approx(2 / 3)
    assert math.isnan(mean_log_prob(ImportanceEstimate(*(t[:1] for t in estimate[:5]), 5000)).sampling_error)


def test_messages():
    model = linear_gaussian(0.5, 0.5)
    with pytest.raises(ValueError, match="proposal must be 'encoder' or 'prior', got 'posterior'"):
        vae_log_prob(model, X, proposal="posterior")
    for name, value in (("num_samples", 0), ("chunk", 0), ("widen", 0.0), ("widen", math.nan)):
        with pytest.raises(ValueError, match=rf"num_samples and chunk must be >= 1 and widen > 0.*{value}"):
            vae_log_weights(model, X, **{name: value})
    with pytest.raises(ValueError, match=r"N >= 1 items, got values of shape \(0,\)"):
        mean_log_prob(ImportanceEstimate(*[torch.zeros(0)] * 5, 3))
