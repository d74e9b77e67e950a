"""Flows: Jacobians, inverses, densities that integrate to one, bounds of levels by enumeration, temperature."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from danlu.generative.dequantization import dequantize, quantize
from danlu.generative.flow import Flow
from danlu.generative.flow_config import FlowConfig

IMAGE = (1, 4, 4)
CONFIGS = {
    "nice": FlowConfig(IMAGE, "nice", width=6, additive=True),
    "realnvp": FlowConfig(IMAGE, "realnvp", levels=2, steps=2, width=4, prior="standard"),
    "realnvp logit": FlowConfig(IMAGE, "realnvp", levels=1, steps=1, width=4, prior="standard", alpha=0.05),
    "glow": FlowConfig(IMAGE, levels=2, steps=2, width=4),
    "glow additive": FlowConfig(IMAGE, levels=2, steps=2, width=4, additive=True, prior="learned"),
    "glow shuffle": FlowConfig(IMAGE, levels=2, steps=1, width=4, mixing="shuffle", scale="sigmoid"),
    "glow reverse": FlowConfig(IMAGE, levels=2, steps=1, width=4, mixing="reverse", scale="exp", actnorm="zeros"),
    "glow vectors": FlowConfig((5,), steps=3, width=6),
    "realnvp vectors": FlowConfig((5,), "realnvp", steps=3, width=6),
}
PLANE = [n for n in CONFIGS if n.endswith("vectors")]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inside(config: FlowConfig, n: int, seed: int = 1) -> Tensor:
    """Data in [-1/2, 1/2]."""
    return torch.rand(n, *config.shape, dtype=torch.float64, generator=seeded(seed)) - 0.5


def stirred(config: FlowConfig, size: float = 0.05, seed: int = 0) -> Flow:
    """A flow away from its start, as after training: started by a batch, then every parameter moved."""
    flow, generator = Flow(config, seeded(seed)).double(), seeded(seed + 7)
    flow(inside(config, 16))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return flow.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_log_det_is_the_jacobians(name):
    flow, x = stirred(CONFIGS[name]), inside(CONFIGS[name], 2, 3)
    size = CONFIGS[name].num_dims
    z, log_det = flow(x)
    assert (z.shape, log_det.shape) == ((2, size), (2,))
    for item, found in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None])[0][0], item).reshape(size, size)
        torch.testing.assert_close(found, torch.linalg.slogdet(jacobian)[1], atol=1e-10, rtol=0)
    density = -0.5 * z.square().sum(1) - size / 2 * math.log(2 * math.pi) + log_det
    torch.testing.assert_close(flow.log_prob(x), density)


@pytest.mark.parametrize("name", CONFIGS)
def test_inverses(name):
    flow, x = stirred(CONFIGS[name]), inside(CONFIGS[name], 5, 4)
    z, log_det = flow(x)
    back, negative = flow.inverse(z)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=0)
    torch.testing.assert_close(negative, -log_det, atol=1e-9, rtol=0)
    flow = stirred(CONFIGS[name], size=0.02).float()
    assert (flow.decode(flow.encode(x.float())) - x).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["glow", "realnvp", "nice"])
def test_a_density_of_the_plane_integrates_to_one(kind):
    flow = stirred(FlowConfig((2,), kind, steps=3, width=5), size=0.2)
    axis = torch.linspace(-8, 8, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = flow.log_prob(grid).exp().sum() * (16 / 800) ** 2
    assert total.item() == pytest.approx(1, abs=1e-3)


def test_a_density_after_the_logit_lives_on_the_square_and_integrates_to_one():
    flow = stirred(FlowConfig((2,), "realnvp", steps=2, width=5, alpha=0.05), size=0.2)
    middle = (torch.arange(800, dtype=torch.float64) + 0.5) / 800 - 0.5
    with torch.no_grad():
        mass = flow.log_prob(torch.cartesian_prod(middle, middle)).exp().mean()
        z = torch.randn(200_000, 2, dtype=torch.float64, generator=seeded())
        share = (flow.decode(z).abs() <= 0.5).all(1).double().mean()  # the transform reaches past the ends, a > 0
    assert abs(mass - share) < 4 * (share * (1 - share) / 200_000) ** 0.5 + 1e-4


@pytest.mark.parametrize("name", ["glow", "glow additive", "glow vectors"])
def test_own_samples_have_the_entropy_they_must(name):
    flow = stirred(CONFIGS[name])
    x = flow.sample(2000, seeded(5))
    with torch.no_grad():
        z, log_det = flow(x)
        gap = flow.log_prob(x) - log_det + flow.config.num_dims / 2 * math.log(2 * math.pi * math.e)
    assert abs(gap.mean()) < 4 * gap.std() / 2000**0.5
    assert z.std() == pytest.approx(1, abs=0.05)


def test_one_linear_step_fits_the_gaussian_exactly():
    """Actnorm and 1x1 map alone, by maximum likelihood, reach the closed form N(mean, covariance)."""
    generator = seeded()
    x = torch.randn(200, 3, dtype=torch.float64, generator=generator)
    x = x @ torch.randn(3, 3, dtype=torch.float64, generator=generator) + 2
    flow = Flow(FlowConfig((3,), steps=1, width=2, prior="standard"), generator).double()
    linear = flow.bijection.layers[1]
    optimizer = torch.optim.LBFGS(
        [*linear.actnorm.parameters(), *linear.mixing.parameters()],
        max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = flow.loss(x)
        loss.backward()
        return loss

    optimizer.step(closure)
    covariance = torch.cov(x.T, correction=0)
    best = 0.5 * (3 * math.log(2 * math.pi * math.e) + torch.logdet(covariance))
    assert flow.loss(x).item() == pytest.approx(best.item(), abs=1e-8)


@pytest.mark.parametrize("name", CONFIGS)
def test_additive_flows_have_a_constant_log_det_and_only_they(name):
    log_det = stirred(CONFIGS[name])(inside(CONFIGS[name], 6))[1]
    assert (log_det.std() < 1e-10) == (name in ("nice", "glow additive"))


def test_temperature_of_an_additive_flow_is_a_power_of_its_density():
    """q^(1/T^2) has E log q = const - T^2 D/2; for T^2 in the exponent it would be D / (2 T^2)."""
    flow = stirred(CONFIGS["glow additive"])
    x = flow.sample(4000, seeded(2), temperature=0.7)
    with torch.no_grad():
        got = flow.log_prob(x) - flow(x)[1] + 8 * math.log(2 * math.pi)
    assert abs(got.mean() + 0.49 * 8) < 4 * got.std() / 4000**0.5
    assert flow.sample(3, temperature=0.0).std(0).abs().max() < 1e-12


def cells(flow: Flow, bins: int) -> tuple[Tensor, Tensor]:
    """All pairs of levels, and the exact log-probability of each: the density summed over its cell."""
    fine = 60
    levels = torch.tensor(list(itertools.product(range(bins), repeat=2)))
    inner = (torch.arange(fine, dtype=torch.float64) + 0.5) / fine
    corner = torch.cartesian_prod(inner, inner)
    with torch.no_grad():
        points = dequantize(levels[:, None], bins, corner)
        density = flow.log_prob(points.flatten(0, 1)).reshape(len(levels), -1)
    return levels, density.logsumexp(1) - 2 * math.log(fine * bins)


@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
def test_levels_are_bounded_by_their_probability(dequantization):
    config = FlowConfig((2,), steps=2, width=5, num_bins=3, dequantization=dequantization)
    flow = stirred(config, size=0.2)
    levels, exact = cells(flow, 3)
    with torch.no_grad():
        one = flow.log_prob(levels.repeat(4000, 1), seeded()).reshape(4000, -1)
        mean, tight = (flow.log_prob(levels, seeded(), samples=4000, importance=i) for i in (False, True))
    assert (one.mean(0) < exact - 1e-3).all()
    ratio = (one - exact).exp()  # an unbiased estimate of 1 for every pair
    assert ((ratio.mean(0) - 1).abs() < 4.5 * ratio.std(0) / 4000**0.5).all()
    torch.testing.assert_close(mean, one.mean(0))
    torch.testing.assert_close(tight, one.logsumexp(0) - math.log(4000))


def test_variational_noise_can_learn_to_tighten_the_bound():
    config = FlowConfig((2,), steps=1, width=5, num_bins=3, dequantization="variational")
    flow = stirred(config, size=0.5)
    levels, _ = cells(flow, 3)
    optimizer = torch.optim.Adam(flow.noise.parameters(), 0.03)
    before = -flow.log_prob(levels, seeded(), samples=400).mean()
    for step in range(40):
        loss = -flow.log_prob(levels, seeded(step), samples=50).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert -flow.log_prob(levels, seeded(), samples=400).mean() < before - 0.01


def test_bits():
    flow = stirred(FlowConfig(IMAGE, levels=1, steps=1, width=4, num_bins=17))
    levels = torch.randint(0, 17, (3, *IMAGE), generator=seeded())
    u = torch.rand(levels.shape, generator=seeded(8), dtype=torch.float64)
    v = (levels + u) / 17 - 0.5
    with torch.no_grad():
        bits = flow.bits_per_dim(levels, seeded(8))
        torch.testing.assert_close(bits, flow.bits_per_dim(v))
        torch.testing.assert_close(flow.log_prob(levels, seeded(8)), flow.log_prob(v) - 16 * math.log(17))
    torch.testing.assert_close(bits, -flow.log_prob(levels, seeded(8)) / (16 * math.log(2)))
    density = flow.log_prob(v)
    uniform = (bits + density / (16 * math.log(2))).detach()  # what is left where the density is 1: log2 17
    torch.testing.assert_close(uniform, torch.full_like(uniform, 4.087463), atol=1e-6, rtol=0)
    torch.testing.assert_close(flow.loss(levels, seeded(8)), -flow.log_prob(levels, seeded(8)).mean())


def test_methods_on_levels():
    flow = stirred(FlowConfig(IMAGE, levels=2, steps=1, width=4, num_bins=17)).float()
    a, b = torch.randint(0, 17, (2, 3, *IMAGE), dtype=torch.uint8, generator=seeded())
    assert torch.equal(flow.reconstruct(a), a)
    path = flow.interpolate(a, b, 5)
    assert (path.shape, path.dtype) == ((5, 3, *IMAGE), torch.uint8)
    assert torch.equal(path[0], a)
    assert torch.equal(path[-1], b)
    middle = flow.decode((flow.encode(a) + flow.encode(b)) / 2)
    assert torch.equal(path[2], quantize(middle, 17))
    assert flow.latent_sizes() == [8, 8]
    drawn = flow.sample(4, seeded(3))
    assert (drawn.shape, drawn.dtype, drawn.requires_grad) == ((4, *IMAGE), torch.uint8, False)
    assert int(drawn.max()) < 17
    assert torch.equal(drawn, flow.sample(4, seeded(3)))
    assert flow.sample(0).shape == (0, *IMAGE)
    assert flow.log_prob(a[:0]).shape == (0,)


def test_only_generators_draw():
    state = torch.get_rng_state()
    flow = Flow(FlowConfig((4,), steps=2, width=4, num_bins=4, mixing="shuffle"), seeded())
    flow.loss(torch.zeros(3, 4, dtype=torch.long), seeded())
    flow.sample(2, seeded())
    assert torch.equal(torch.get_rng_state(), state)


def test_latents_that_leave_stand_in_front():
    """Changing the first latents changes no coarse number: the next level was decoded without them."""
    flow = stirred(FlowConfig(IMAGE, levels=2, steps=1, width=4))
    z = torch.randn(2, 16, dtype=torch.float64, generator=seeded())
    other = z.clone()
    other[:, :8] += 1.0
    assert (flow.encode(flow.decode(other))[:, 8:] - z[:, 8:]).abs().max() < 1e-9
    assert (flow.decode(other) - flow.decode(z)).abs().max() > 1e-2


def test_messages():
    flow = Flow(FlowConfig((2,), width=4))
    with pytest.raises(ValueError, match=r"built without num_bins and knows no grey levels"):
        flow.log_prob(torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"takes \(N, 2\), got \(3, 4\)"):
        flow.log_prob(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"all latents, \(N, 2\), got \(2, 3\)"):
        flow.decode(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="temperature must be a finite number >= 0, got -1"):
        flow.sample(1, temperature=-1)
    with pytest.raises(ValueError, match="samples must be >= 1, got 0"):
        flow.log_prob(torch.zeros(1, 2), samples=0)
    with pytest.raises(ValueError, match=r"steps >= 2 and two batches of one size, got 1, \(1, 2\)"):
        flow.interpolate(torch.zeros(1, 2), torch.zeros(1, 2), 1)
    with pytest.raises(ValueError, match=r"v must lie in \[-1/2, 1/2\], got .*; pass grey levels as integers"):
        Flow(FlowConfig((2,), width=4, alpha=0.05)).log_prob(torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"levels must lie in 0 \.\. 3, got 0 \.\. 4; is num_bins right"):
        Flow(FlowConfig((2,), width=4, num_bins=4)).log_prob(torch.tensor([[0, 4]]))
