"""The variational autoencoder: its loss by hand, its methods, a plain loop, precision, resuming, the contract."""

import dataclasses
import json
import math

import pytest
import torch
from contract import CHECKS, Row, check_compile
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from danlu.generative import VAE, ConvDecoder, GaussianLikelihood, VAEConfig, conv_encoder, latent_usage, mlp_decoder
from danlu.generative.training_state import load_state, save_state
from danlu.optim import piecewise_linear


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(likelihood: str = "bernoulli", seed: int = 0, **settings) -> VAE:
    torch.manual_seed(seed)
    return VAE(VAEConfig(**{"shape": (6,), "latent_dim": 2, "hidden": (8,), "likelihood": likelihood} | settings))


BITS = torch.bernoulli(torch.full((5, 6), 0.5), generator=seeded())


def test_loss_and_its_parts_by_hand():
    model = small().double()
    out = model(BITS, num_samples=3, beta=0.7, generator=seeded())
    raw = model.encoder(BITS.double())
    mean, std = raw[:, :2], (5 * torch.tanh(raw[:, 2:] / 10)).exp()
    noise = torch.randn(3, 5, 2, dtype=torch.float64, generator=seeded())
    z = mean + std * noise
    torch.testing.assert_close(out.z, z)
    terms = Bernoulli(logits=model.decoder(z.flatten(0, 1)).unflatten(0, (3, 5))).log_prob(BITS.double())
    kl = kl_divergence(Normal(mean, std), Normal(torch.zeros_like(mean), 1.0))
    torch.testing.assert_close(out.reconstruction, -terms.sum(-1).mean(0))
    torch.testing.assert_close(out.per_dim_kl, kl)
    torch.testing.assert_close(out.kl, kl.sum(1))
    torch.testing.assert_close(out.loss, (out.reconstruction + 0.7 * out.kl).mean())
    weights = terms.sum(-1) + Normal(0, 1).log_prob(z).sum(-1) - Normal(mean, std).log_prob(z).sum(-1)
    torch.testing.assert_close(out.log_weights, weights)
    iwae = model.loss(BITS, num_samples=3, objective="iwae", generator=seeded())
    torch.testing.assert_close(iwae, -(weights.logsumexp(0) - math.log(3)).mean())


def test_the_loss_is_a_sum_over_pixels_and_a_mean_over_items():
    """A decoder that says one half, an encoder that says the prior: D log 2, whatever the batch."""
    model = small(shape=(1, 4, 4))
    for p in model.parameters():
        nn.init.zeros_(p)
    x = torch.zeros(7, 1, 4, 4, dtype=torch.uint8)
    out = model(x, generator=seeded())
    assert out.loss.item() == pytest.approx(16 * math.log(2)) and out.kl.abs().max() < 1e-6
    assert model.log_prob(x, 5, generator=seeded())[0].item() == pytest.approx(-16 * math.log(2))
    torch.testing.assert_close(model.bits_per_dim(x, 5), torch.ones(7))


def test_a_batch_in_parts_has_the_same_gradient():
    whole, parts = small(), small()
    whole.loss(BITS[:4], antithetic=False, generator=seeded()).backward()
    noise = torch.randn(1, 4, 2, generator=seeded())
    for i in (0, 2):
        mean, std = parts.encode(BITS[i : i + 2])
        z = mean + std * noise[:, i : i + 2]
        log_p = parts.likelihood.log_prob(parts.decode(z), BITS[i : i + 2])
        kl = kl_divergence(Normal(mean, std), Normal(torch.zeros_like(mean), 1.0)).sum(1)
        ((kl - log_p[0]).mean() / 2).backward()
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_a_plain_loop_learns_two_clusters():
    model = small(latent_dim=2, hidden=(16,))
    x = torch.cat([torch.tensor([[1.0] * 3 + [0.0] * 3]), torch.tensor([[0.0] * 3 + [1.0] * 3])]).repeat(8, 1)
    optimizer, beta = torch.optim.Adam(model.parameters(), lr=0.04), piecewise_linear({30: 1})
    generator = seeded()
    for step in range(110):
        optimizer.zero_grad()
        model.loss(x, generator=generator, beta=beta(step)).backward()
        optimizer.step()
    value = model.log_prob(x, 200, generator=generator)
    assert value.mean() > -1.1  # log 1/2 is the best; independent bits have -6 log 2 = -4.16
    assert latent_usage(*model.encode(x)).active.any()
    drawn = model.sample(200, generator)
    whole = (drawn == x[0]).all(1) | (drawn == x[1]).all(1)
    assert whole.double().mean() > 0.7
    assert (model.reconstruct(x).round() == x).all()


@pytest.mark.parametrize("settings", [{"objective": "iwae", "gradient": "dreg"}, {"gradient": "stl"}])
def test_other_objectives_train(settings):
    model = small()
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=0.02), seeded()
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(BITS, num_samples=4, generator=generator, **settings)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.5


def test_the_configuration_survives_json():
    config = VAEConfig((3, 7, 5), 4, "logistic_mixture", bits=4, components=2, network="conv", hidden=(4, 6))
    again = VAEConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    model, other = VAE(config), VAE(again)
    other.load_state_dict(model.state_dict())
    x = torch.randint(16, (2, 3, 7, 5), generator=seeded())
    assert torch.equal(model.loss(x, seeded()), other.loss(x, seeded()))
    assert model.config is config


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "gaussian:pixel", "discretized_logistic"])
def test_methods_of_every_kind(network, likelihood):
    model = small(likelihood, shape=(1, 5, 6), network=network, bits=2)
    x = torch.randint(2, (3, 1, 5, 6), generator=seeded(), dtype=torch.uint8)
    x = x if model.likelihood.discrete else x.float()
    assert model.log_prob(x, 4).shape == (3,)
    drawn = model.sample(4, seeded())
    assert drawn.shape == (4, 1, 5, 6) and torch.equal(drawn, model.sample(4, seeded()))
    assert drawn.is_floating_point() != model.likelihood.discrete
    cold = model.sample(2, seeded(), temperature=0.0, mean=True)
    torch.testing.assert_close(cold[0], cold[1])
    warm = model.sample(2, seeded(), mean=True)
    assert not torch.allclose(warm[0], warm[1])
    path = model.interpolate(x[:2], x[1:], steps=3)
    assert path.shape == (3, 2, 1, 5, 6)
    torch.testing.assert_close(path[0], model.reconstruct(x[:2]))
    torch.testing.assert_close(path[2], model.reconstruct(x[1:]))
    (a, _), (b, _) = model.encode(x[:2]), model.encode(x[1:])
    torch.testing.assert_close(path[1], model.likelihood.mean(model.decode((a + b) / 2)))
    assert model.training


def test_temperature_scales_the_latent():
    decoder = nn.Linear(2, 6, bias=False)
    model = VAE(VAEConfig((6,), 2), decoder=decoder, likelihood=GaussianLikelihood(1.0))
    torch.testing.assert_close(model.sample(4, seeded(), 0.5, mean=True), model.sample(4, seeded(), mean=True) / 2)
    noise = torch.randn(1, 4, 2, generator=seeded())[0]
    torch.testing.assert_close(model.sample(4, seeded(), mean=True), decoder(noise).detach())


def test_bits_per_dim_of_a_density_need_the_unit():
    model = small("gaussian:1.0")
    for p in model.parameters():
        nn.init.zeros_(p)
    x = torch.zeros(2, 6)
    got = model.bits_per_dim(x, 3, levels_per_unit=256)
    torch.testing.assert_close(got, torch.full((2,), 0.5 * math.log2(2 * math.pi) + 8))
    with pytest.raises(ValueError, match=r"GaussianLikelihood is a density.*give levels_per_unit=256"):
        model.bits_per_dim(x)
    with pytest.raises(ValueError, match="BernoulliLikelihood gives probabilities of levels: leave"):
        small().bits_per_dim(BITS, levels_per_unit=256)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 5), (1, 28, 28), (3, 8, 9)])
def test_convolutions_take_any_size(shape):
    encoder = conv_encoder(shape, 3, (4, 5))
    decoder = ConvDecoder((7, *shape[1:]), 3, (4, 5))
    assert encoder(torch.zeros(2, *shape)).shape == (2, 6)
    assert decoder(torch.zeros(2, 3)).shape == (2, 7, *shape[1:])
    assert all(p.grad is None for p in decoder.parameters())
    decoder(torch.randn(2, 3)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_networks_of_ones_own():
    model = VAE(VAEConfig((6,), 2), nn.Linear(6, 4), mlp_decoder((12,), 2, ()), GaussianLikelihood("pixel"))
    assert model.loss(torch.randn(3, 6), seeded()).isfinite()
    assert sum(p.numel() for p in model.parameters()) == 6 * 4 + 4 + 2 * 12 + 12
    bare = VAE(VAEConfig((4,), 2), nn.Sequential(), nn.Linear(2, 4))  # an empty module is one, too
    torch.testing.assert_close(bare.encode(BITS[:, :4])[0], BITS[:, :2])
    wrong = VAE(VAEConfig((6,), 2), nn.Linear(6, 5), nn.Linear(2, 5))
    with pytest.raises(ValueError, match=r"put out \(N, 2 K\) = \(3, 4\).*got \(3, 5\)"):
        wrong.encode(BITS[:3])
    with pytest.raises(ValueError, match=r"put out \(3, 6\) for BernoulliLikelihood of items \(6,\); got \(3, 5\)"):
        wrong.decode(torch.zeros(3, 2))


def test_an_encoder_that_blows_up_gives_a_finite_loss():
    model = small()
    with torch.no_grad():
        model.encoder[-1].bias[2:] = torch.tensor([1e6, -1e6])
    out = model(BITS, generator=seeded())
    assert out.loss.isfinite()
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    std = model.encode(BITS)[1]
    torch.testing.assert_close(std[0], torch.tensor([math.exp(5), math.exp(-5)]))


def test_precisions():
    model = small()
    exact = model(BITS, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(BITS, num_samples=1, generator=seeded())
    assert out.loss.dtype == out.log_weights.dtype == out.z.dtype == torch.float32
    assert abs(out.loss - exact.loss) < 0.03
    half = small().bfloat16()
    assert half.loss(BITS, seeded()).dtype == torch.float32
    half.loss(BITS, seeded()).backward()
    assert half.encoder[1].weight.grad.isfinite().all()
    assert small().double().loss(BITS, seeded()).dtype == torch.float64


def test_training_resumes_bit_for_bit(tmp_path):
    def parts() -> tuple[VAE, torch.optim.Optimizer, torch.Generator]:
        model = small("gaussian")
        return model, torch.optim.Adam(model.parameters(), lr=0.01), seeded()

    def steps(model: VAE, optimizer: torch.optim.Optimizer, generator: torch.Generator, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            model.loss(BITS, generator).backward()
            optimizer.step()

    straight = parts()
    steps(*straight, 6)
    model, optimizer, generator = parts()
    steps(model, optimizer, generator, 3)
    save_state(tmp_path / "state", 3, {"vae": model}, {"adam": optimizer}, {"noise": generator})
    model, optimizer, generator = parts()
    generator.manual_seed(99)
    assert load_state(tmp_path / "state", {"vae": model}, {"adam": optimizer}, {"noise": generator})
    steps(model, optimizer, generator, 3)
    for key, value in model.state_dict().items():
        assert torch.equal(value, straight[0].state_dict()[key]), key


def test_nothing_global_moves_and_inputs_stay():
    model, x, state = small(), BITS.clone(), torch.get_rng_state()
    model(x, generator=seeded())
    model.sample(2, seeded())
    model.log_prob(x, 3, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, BITS)


def test_antithetic_noise_makes_a_linear_reconstruction_exact():
    model = VAE(VAEConfig((6,), 2), nn.Linear(6, 4), nn.Linear(2, 6), GaussianLikelihood(1.0))
    with torch.no_grad():
        z = model(BITS, num_samples=2, antithetic=True, generator=seeded()).z
        torch.testing.assert_close(z.mean(0), model.encode(BITS)[0])


def test_messages():
    with pytest.raises(ValueError, match=r"latent_dim >= 1, got \(6,\) and 0"):
        VAEConfig((6,), 0)
    with pytest.raises(ValueError, match=r"shape of one item.*got \(\) and 2"):
        VAEConfig((), 2)
    with pytest.raises(ValueError, match="'mlp' or 'conv', got 'transformer'; modules of your own"):
        VAEConfig((6,), network="transformer")
    with pytest.raises(ValueError, match=r"image \(C, H, W\) and at least one stage, got \(6,\)"):
        VAE(VAEConfig((6,), network="conv"))
    with pytest.raises(ValueError, match=r"takes x \(N, 6\), got \(5, 1, 6\)"):
        small()(BITS[:, None])
    with pytest.raises(ValueError, match=r"steps >= 2 and batches of one size, got 1, 5 and 5"):
        small().interpolate(BITS, BITS, 1)


class Fixed(nn.Module):
    """The loss with noise of its own, as a module that the contract can call."""

    def __init__(self, settings: dict[str, object]) -> None:
        super().__init__()
        self.vae = VAE(VAEConfig((1, 4, 4), 3, "gaussian:pixel", hidden=(6,)))
        self.settings = settings

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        out = self.vae(x, generator=seeded(), **self.settings)
        return out.reconstruction, out.loss


class Encoded(Fixed):
    """What is the same at every call: encoder and decoder."""

    def forward(self, x: Tensor) -> Tensor:
        return self.vae.decode(self.vae.encode(x)[0])


def _images(dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (torch.rand(2, 1, 4, 4, generator=seeded()).to(dtype),)


ROWS = [
    Row("VAE", lambda: Fixed({}), _images, (2,)),
    Row("VAE[iwae]", lambda: Fixed({"num_samples": 3, "objective": "iwae"}), _images, (2,)),
    Row("VAE.encode", lambda: Encoded({}), _images, (2, 2, 4, 4)),
]


@pytest.mark.parametrize("check", [c for c in CHECKS if c is not check_compile], ids=lambda c: c.__name__)
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_contract(row, check):
    check(row)


@pytest.mark.slow
def test_encoder_and_decoder_compile():
    check_compile(ROWS[-1])


@pytest.mark.slow
def test_the_loss_compiles():
    model = small()
    torch._dynamo.reset()
    out = torch.compile(model, backend="eager")(BITS, generator=seeded())
    torch.testing.assert_close(out.loss, model(BITS, generator=seeded()).loss)
