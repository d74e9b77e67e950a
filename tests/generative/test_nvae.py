"""NVAE: a plain VAE as its special case, its density by quadrature, who depends on whom, its methods, a plain loop."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from contract import CHECKS, Row, check_compile
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from danlu.generative import VAE, VAEConfig, mean_log_prob
from danlu.generative.latent_hierarchy import LatentHierarchy
from danlu.generative.nvae import NVAE
from danlu.generative.nvae_bound import nvae_log_prob, nvae_log_weights
from danlu.generative.nvae_config import NVAEConfig
from danlu.generative.nvae_objective import group_alphas, group_balance, kl_warmup
from danlu.generative.nvae_penalty import SpectralSum, norm_gain_sum
from danlu.generative.sampling_statistics import sampling_statistics
from danlu.generative.training_state import load_state, save_state
from danlu.math import log_mean_exp


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(seed: int = 0, **settings) -> NVAE:
    torch.manual_seed(seed)
    usual = {"shape": (1, 6, 6), "groups": (1, 2), "channels": 2, "latent_channels": 2, "pre_cells": 1, "expansion": 2}
    return NVAE(NVAEConfig(**usual | settings))


def bits(*shape: int, seed: int = 0) -> Tensor:
    return torch.bernoulli(torch.full(shape, 0.5), generator=seeded(seed)).to(torch.uint8)


BITS = bits(4, 1, 6, 6)


class FlatEncoder(nn.Module):
    """The reader and the first group of an NVAE as the encoder of a VAE."""

    def __init__(self, model: NVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        taps = self.model.read(x)
        state = self.model.decoder.start.expand(len(x), *self.model.decoder.start.shape)
        posterior = self.model.decoder.groups[0](state, taps[0])[2]
        return torch.cat([posterior.mean.flatten(1), 2 * posterior.std.log().flatten(1)], 1)


class FlatDecoder(FlatEncoder):
    def forward(self, z: Tensor) -> Tensor:
        return self.model.decode([z.unflatten(1, (2, 3, 3))])


def test_one_group_is_a_plain_vae():
    model = small(groups=(1,)).double()
    config = VAEConfig((1, 6, 6), 18, log_var_limit=None)
    plain = VAE(config, FlatEncoder(model), FlatDecoder(model))
    out, expected = (m(BITS, beta=0.7, generator=seeded()) for m in (model, plain))
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(out.kl, expected.kl)
    torch.testing.assert_close(out.log_weights, expected.log_weights[0])
    model.eval()
    torch.testing.assert_close(model.log_prob(BITS, 4, generator=seeded()), plain.log_prob(BITS, 4, generator=seeded()))
    torch.testing.assert_close(model.reconstruct(BITS), plain.reconstruct(BITS))


def normals(model: NVAE, latents: list[Tensor], x: Tensor | None = None) -> tuple[list[Normal], list[Normal], Tensor]:
    """Priors, posteriors and parameters of a walk along given latents."""
    priors, posteriors = [], []

    def choose(index, prior, posterior):
        priors.append(Normal(*prior))
        if posterior is not None:
            posteriors.append(Normal(*posterior))
        return latents[index]

    params = model.decoder(len(latents[0]), () if x is None else model.read(x), choose)
    return priors, posteriors, params


@pytest.mark.parametrize("residual", [True, False])
def test_loss_and_its_parts_by_hand(residual):
    model = small(residual=residual).double()
    out = model(BITS, beta=0.5, generator=seeded())
    priors, posteriors, params = normals(model, out.latents, BITS)
    log_p = Bernoulli(logits=params[:, :, 1:7, 1:7]).log_prob(BITS.double()).sum((1, 2, 3))  # 6 in the middle of 8
    kl = torch.stack([kl_divergence(q, p).sum((2, 3)) for q, p in zip(posteriors, priors, strict=True)])
    torch.testing.assert_close(out.reconstruction, -log_p)
    torch.testing.assert_close(out.channel_kl, kl)
    torch.testing.assert_close(out.group_kl, kl.sum(2))
    torch.testing.assert_close(out.kl, kl.sum((0, 2)))
    torch.testing.assert_close(out.loss, (out.reconstruction + 0.5 * out.kl).mean())
    log_w = log_p
    for z, q, p in zip(out.latents, posteriors, priors, strict=True):
        log_w = log_w + (p.log_prob(z) - q.log_prob(z)).sum((1, 2, 3))
    torch.testing.assert_close(out.log_weights, log_w.detach())
    assert torch.equal(priors[0].mean, torch.zeros_like(priors[0].mean)) and (priors[0].stddev == 1).all()


def test_balance_weighs_the_groups_while_beta_is_below_one():
    model = small().double()
    out = model(BITS, 0.5, True, seeded())
    weights = group_balance(out.group_kl, group_alphas((1, 2)))
    torch.testing.assert_close(out.loss, (out.reconstruction + 0.5 * (weights[:, None] * out.group_kl).sum(0)).mean())
    assert weights.max() > 1.05 * weights.min()
    plain, full = small().double()(BITS, 1.0, False, seeded()), small().double()(BITS, 1.0, True, seeded())
    assert torch.equal(plain.loss, full.loss)


def test_the_density_by_quadrature():
    """Two latents of one number each: all 16 images of 2 x 2 bits together have probability 1."""
    model = small(shape=(1, 2, 2), groups=(2,), latent_channels=1).double().eval()
    with torch.no_grad():
        for group in model.decoder.groups:
            group.mix.log_length += 1.5  # latents that matter
        model.decoder.image.log_length += 1.5
        axis = torch.linspace(-9, 9, 121, dtype=torch.float64)
        z = torch.cartesian_prod(axis, axis)
        priors, _, params = normals(model, [z[:, i].view(-1, 1, 1, 1) for i in (0, 1)])
        density = sum(p.log_prob(z[:, i].view(-1, 1, 1, 1)).flatten() for i, p in enumerate(priors))
        images = torch.tensor(list(itertools.product([0, 1], repeat=4)), dtype=torch.uint8).view(16, 1, 2, 2)
        log_p = Bernoulli(logits=params).log_prob(images[:, None].double()).flatten(2).sum(2)  # (16, grid)
        exact = (log_p + density + 2 * math.log(axis[1] - axis[0])).logsumexp(1)
    assert exact.exp().sum().item() == pytest.approx(1.0, abs=1e-6)
    assert exact.std() > 0.01
    estimate = nvae_log_prob(model, images, 1500, chunk=3000, generator=seeded())
    assert ((estimate.value - exact).abs() < 4 * estimate.standard_error + 1e-4).all()
    assert estimate.standard_error.median() < 0.1
    drawn = model.sample(4000, seeded()).flatten(1).long() @ torch.tensor([8, 4, 2, 1])
    share = torch.bincount(drawn, minlength=16) / 4000
    error = (exact.exp() * (1 - exact.exp()) / 4000).sqrt()
    assert ((share - exact.exp()).abs() < 4 * error).all()


def test_priors_depend_on_coarser_groups_alone():
    model = small(groups=(2, 2)).eval()
    with torch.no_grad():
        latents = model(BITS, generator=seeded()).latents
    latents = [z.requires_grad_() for z in latents]
    priors, _, params = normals(model, latents)
    for index, prior in enumerate(priors):
        value = prior.mean.square().sum() + prior.stddev.sum()
        grads = torch.autograd.grad(value, latents, retain_graph=True, allow_unused=True) if index else [None] * 4
        touched = [g is not None and bool(g.abs().max() > 0) for g in grads]
        assert touched == [k < index for k in range(4)]
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(params.sum(), latents))


def test_an_image_reaches_the_decoder_through_its_latents_alone():
    model = small(residual=False).eval()  # absolute: the prior does not enter
    latents = [z.requires_grad_() for z in model.infer(BITS)]
    taps = [tap.detach().requires_grad_() for tap in model.read(BITS)]
    posteriors = []

    def choose(index, prior, posterior):
        posteriors.append(posterior.mean)
        return latents[index]

    params = model.decoder(4, taps, choose)
    assert all(g is None for g in torch.autograd.grad(params.sum(), taps, retain_graph=True, allow_unused=True))
    for index, mean in enumerate(posteriors):
        grads = torch.autograd.grad(mean.sum(), taps, retain_graph=True, allow_unused=True)
        assert [g is not None for g in grads] == [k == index for k in range(3)]
        if index:  # its own tap, and all coarser latents
            grads = torch.autograd.grad(mean.sum(), latents, retain_graph=True, allow_unused=True)
            assert [g is not None and bool(g.abs().max() > 0) for g in grads] == [k < index for k in range(3)]


def test_the_margin_counts_nowhere():
    model = small().eval()
    seen = []
    model.decoder.image.register_forward_hook(lambda m, a, out: seen.append(out))
    loss = model.loss(BITS, seeded())
    (grad,) = torch.autograd.grad(loss, seen[0])
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[1:7, 1:7] = True
    assert ((grad[:, 0] != 0) == inside).all()


def test_log_weights_in_blocks():
    model = small().eval()
    out = model(BITS, generator=seeded())
    one = nvae_log_weights(model, BITS, 1, generator=seeded())
    torch.testing.assert_close(one[:, 0], out.log_weights)
    assert nvae_log_weights(model, BITS, 5, chunk=2, generator=seeded()).shape == (4, 5)
    many = nvae_log_weights(model, BITS[:2], 2000, chunk=2000, generator=seeded())
    split = nvae_log_weights(model, BITS[:2], 2000, chunk=150, generator=seeded(1))
    error = (many.var(1) / 2000 + split.var(1) / 2000).sqrt()
    assert ((many.mean(1) - split.mean(1)).abs() < 4 * error).all()
    bounds = [log_mean_exp(many.unflatten(1, (-1, m))).mean().item() for m in (1, 10, 100, 1000)]
    assert bounds == sorted(bounds)
    assert nvae_log_weights(model, BITS[:0], 3).shape == (0, 3)
    assert model.log_prob(BITS[:0]).shape == (0,)
    summed = mean_log_prob(nvae_log_prob(model, BITS, 20, generator=seeded()))
    assert summed.value == pytest.approx(model.log_prob(BITS, 20, generator=seeded()).mean().item())
    with pytest.raises(ValueError, match="must be >= 1, got 0 and 64"):
        model.log_prob(BITS, 0)


def test_a_likelihood_does_not_depend_on_company_or_mode():
    model = small().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    together = nvae_log_weights(model, BITS, 3, chunk=3, generator=seeded())
    alone = nvae_log_weights(model, BITS[:1], 3, chunk=3, generator=seeded())
    torch.testing.assert_close(together[:1], alone)
    seen = []
    hook = model.decoder.groups[0].posterior.register_forward_hook(lambda m, a, out: seen.append(a[0]))
    nvae_log_weights(model, BITS, 3, chunk=12)  # all at once: every sample from the posterior of its own image
    hook.remove()
    tap = model.eval().read(BITS)[0]
    model.train()
    for part in seen[0].unflatten(0, (3, 4)):
        torch.testing.assert_close(part, tap)
    model.sample(2, seeded()), model.reconstruct(BITS), model.interpolate(BITS, BITS, 2), model.infer(BITS)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian:pixel", "discretized_logistic", "logistic_mixture"])
def test_methods_of_every_kind(likelihood):
    shape = (3, 5, 6) if likelihood == "logistic_mixture" else (1, 5, 6)
    model = small(shape=shape, likelihood=likelihood, bits=2, components=2).eval()
    x = bits(3, *shape)
    x = x if model.likelihood.discrete else x.float()
    assert model(x, generator=seeded()).loss.isfinite()
    unit = {} if model.likelihood.discrete else {"levels_per_unit": 4.0}
    value = model.bits_per_dim(x, 3, generator=seeded(), **unit)
    expected = -model.log_prob(x, 3, generator=seeded()) / (math.prod(shape) * math.log(2)) + (2 if unit else 0)
    torch.testing.assert_close(value, expected)
    drawn = model.sample(4, seeded())
    assert drawn.shape == (4, *shape) and torch.equal(drawn, model.sample(4, seeded()))
    cold = model.sample(2, seeded(), temperature=0.0, mean=True)
    torch.testing.assert_close(cold[0], cold[1])
    assert torch.equal(cold, model.sample(2, seeded(1), temperature=0.0, mean=True))
    warm = model.sample(2, seeded(), mean=True)
    assert not torch.allclose(warm[0], warm[1], rtol=0, atol=1e-7)
    path = model.interpolate(x[:2], x[1:], steps=3)
    assert path.shape == (3, 2, *shape)
    torch.testing.assert_close(path[0], model.reconstruct(x[:2]))
    torch.testing.assert_close(path[2], model.reconstruct(x[1:]))
    middle = [(a + b) / 2 for a, b in zip(model.infer(x[:2]), model.infer(x[1:]), strict=True)]
    torch.testing.assert_close(path[1], model.likelihood.mean(model.decode(middle)).detach())


def test_coarse_groups_may_be_held_or_alone_known():
    model = small(groups=(1, 2)).eval()
    held = model.infer(BITS)
    a, b = (model.sample(4, seeded(s), mean=True, latents=held[:1]) for s in (0, 1))
    assert not torch.equal(a, b)
    frozen = model.sample(4, seeded(), mean=True, latents=held)
    torch.testing.assert_close(frozen, model.reconstruct(BITS))
    still = model.sample(4, temperature=0.0, mean=True, latents=held[:1])
    torch.testing.assert_close(still, model.reconstruct(BITS, groups=1))  # prior means behind the first
    assert torch.equal(model.reconstruct(BITS, 0)[0], model.reconstruct(BITS, 0)[1])
    assert torch.equal(model.reconstruct(BITS, 3), model.reconstruct(BITS))


def test_temperature_is_a_factor_of_the_width_of_every_group():
    model = small().eval()
    zs = []
    for temperature in (1.0, 0.5):
        seen: list[Tensor] = []
        hooks = [
            g.mix.register_forward_hook(lambda m, a, o, s=seen: s.append(a[0][:, -2:])) for g in model.decoder.groups
        ]
        model.prior_params(3, seeded(), temperature)
        zs.append(seen)
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(zs[1][0], zs[0][0] / 2)
    priors, _, _ = normals(model, zs[1])
    noise = torch.randn(1, *zs[1][0].shape, generator=(g := seeded())), torch.randn(1, *zs[1][1].shape, generator=g)
    torch.testing.assert_close(zs[1][1], priors[1].mean + 0.5 * priors[1].stddev * noise[1][0])


def test_a_plain_loop_learns_two_pictures():
    model = small(shape=(1, 4, 4), groups=(1, 1))
    x = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
    x[::2, :, :2], x[1::2, :, 2:] = 1, 1
    spectral = SpectralSum(model, steps=1)
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=0.03), seeded()
    for step in range(50):
        optimizer.zero_grad()
        loss = model.loss(x, generator, beta=kl_warmup(step, 50), balance=True)
        (loss + 1e-3 * (spectral() + norm_gain_sum(model))).backward()
        optimizer.step()
    assert (model.reconstruct(x).round() == x).all()
    assert model.log_prob(x, 20, generator=generator).mean() > -9  # independent bits have -16 log 2 = -11.1
    with sampling_statistics(model, lambda: model.prior_params(16, generator), steps=2):
        assert model.sample(4, generator).shape == (4, 1, 4, 4)


def test_precisions():
    model = small().eval()
    exact = model(BITS, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(BITS, generator=seeded())
        weights = nvae_log_weights(model, BITS, 2, generator=seeded())
    assert out.loss.dtype == out.log_weights.dtype == out.kl.dtype == weights.dtype == torch.float32
    assert all(z.dtype == torch.float32 for z in out.latents)
    assert abs(out.loss - exact.loss) < 0.2
    half = small().bfloat16()
    loss = half.loss(BITS, seeded())
    loss.backward()
    assert loss.dtype == torch.float32 and half.encoder.stem.weight.grad.isfinite().all()
    assert small().double().loss(BITS, seeded()).dtype == torch.float64


def test_training_resumes_bit_for_bit(tmp_path):
    def parts():
        model = small()
        return model, SpectralSum(model), torch.optim.Adamax(model.parameters(), lr=0.01), seeded()

    def steps(model, spectral, optimizer, generator):
        for _ in range(2):
            optimizer.zero_grad()
            (model.loss(BITS, generator, 0.5, True) + 0.01 * (spectral() + norm_gain_sum(model))).backward()
            optimizer.step()

    straight = parts()
    steps(*straight)
    steps(*straight)
    model, spectral, optimizer, generator = parts()
    steps(model, spectral, optimizer, generator)
    save_state(tmp_path / "s", 2, {"m": model, "v": spectral}, {"o": optimizer}, {"g": generator})
    model, spectral, optimizer, generator = parts()
    load_state(tmp_path / "s", {"m": model, "v": spectral}, {"o": optimizer}, {"g": generator})
    steps(model, spectral, optimizer, generator)
    for name, value in model.state_dict().items():
        assert torch.equal(value, straight[0].state_dict()[name]), name


@pytest.mark.parametrize("residual", [True, False])
def test_a_silent_posterior_is_the_prior_if_it_is_relative(residual):
    model = small(residual=residual)
    with torch.no_grad():
        for group in model.decoder.groups:
            group.posterior.log_length.fill_(-80.0)
            group.posterior.bias.zero_()
    kl = model(BITS, generator=seeded()).group_kl
    assert bool((kl[1:] == 0).all()) is residual
    torch.testing.assert_close(kl[0], torch.full((4,), 8 * (0.5 * (1.01**2 - 1) - math.log(1.01))))  # std 1.01


def test_the_reader_by_hand():
    encoder = small().eval().encoder
    h = encoder.before(encoder.stem(torch.rand(2, 1, 8, 8, generator=seeded())))
    fine = encoder.towers[0](h)
    second = encoder.towers[1](fine)
    coarse = encoder.towers[2](encoder.downs[1](second))
    got = encoder(torch.rand(2, 1, 8, 8, generator=seeded()))
    for tap, expected in zip(got, [encoder.top(coarse), second, fine], strict=True):
        torch.testing.assert_close(tap, expected)
    assert [tuple(tap.shape[1:]) for tap in got] == [(8, 2, 2), (4, 4, 4), (4, 4, 4)]


def test_the_configuration_survives_json():
    config = NVAEConfig((3, 7, 5), (1, 1), 2, 3, likelihood="logistic_mixture", bits=4, components=2)
    again = NVAEConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    model, other = NVAE(config), NVAE(again)
    other.load_state_dict(model.state_dict())
    x = torch.randint(16, (2, 3, 7, 5), generator=seeded())
    assert torch.equal(model.loss(x, seeded()), other.loss(x, seeded()))
    assert isinstance(model, LatentHierarchy) and model.config is config


def test_one_row_and_strides():
    model = small()
    x = bits(6, 6, 1, 1).permute(2, 3, 0, 1)
    assert not x.is_contiguous() or x.shape == (1, 1, 6, 6)
    torch.testing.assert_close(model.loss(x, seeded()), small().loss(x.contiguous(), seeded()))
    assert small().loss(BITS[:1], seeded()).isfinite()


def test_messages():
    model = small()
    for call, match in (
        (lambda: model(BITS[0]), r"takes x \(N, 1, 6, 6\), got \(1, 6, 6\)"),
        (lambda: model(BITS, beta=-1.0), "beta must be >= 0 and finite, got -1.0"),
        (lambda: model.decode(model.infer(BITS)[:2]), r"latents of all 3 groups, got 2; prior_params"),
        (lambda: model.sample(3, latents=model.infer(BITS)), r"latent of group 0 must be \(3, 2, 2, 2\), got \(4, 2"),
        (lambda: model.sample(2, temperature=math.nan), "temperature must be finite and >= 0.*got nan and 0"),
        (lambda: model.reconstruct(BITS, 4), "between 0 and 3, the number of this model, got 4"),
        (lambda: model.interpolate(BITS, BITS, 1), "steps >= 2 and batches of one size, got 1, 4 and 4"),
        (lambda: model.bits_per_dim(BITS, levels_per_unit=256), "BernoulliLikelihood is none, got 256"),
        (lambda: small(likelihood="gaussian").bits_per_dim(BITS.float()), "GaussianLikelihood is one, got None"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


class Fixed(nn.Module):
    """The loss with noise of its own, as a module that the contract can call."""

    def __init__(self) -> None:
        super().__init__()
        self.model = NVAE(NVAEConfig((1, 4, 4), (1, 1), 2, 2, pre_cells=1, expansion=2, likelihood="gaussian:pixel"))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        out = self.model(x, generator=seeded())
        return out.reconstruction, out.loss


ROW = Row("NVAE", Fixed, lambda dtype: (torch.rand(3, 1, 4, 4, generator=seeded()).to(dtype),), (3,))


@pytest.mark.parametrize("check", [c for c in CHECKS if c is not check_compile], ids=lambda c: c.__name__)
def test_contract(check):
    check(ROW)
