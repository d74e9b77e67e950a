"""The coder: images come back bit for bit, at the length that the model says, from latents and from flows."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from danlu.generative.ans import BitStack
from danlu.generative.bits_back import FlowCoder, LatentCoder, pop_normal, push_normal
from danlu.generative.compressed import compress, decompress
from danlu.math import discretized_logistic_log_prob

LEVELS = 16


def fed(seed=0):
    rng = np.random.default_rng(seed)
    return BitStack([*rng.integers(0, 2**32, 20_000).tolist(), 5, 5, 5])


@pytest.mark.parametrize("sd", [1.0, 7.3, 1024.0, 5e6])
def test_numbers_on_a_grid_take_the_bits_of_their_normal_law(sd):
    rng = np.random.default_rng(1)
    stack = BitStack()
    means = rng.integers(-(10**9), 10**9, 3_000).tolist()
    values = [m + round(rng.normal() * sd) for m in means]
    for value, mean in zip(values, means, strict=True):
        push_normal(stack, value, mean, sd)
    away = np.array(values) - np.array(means)
    edges = torch.special.ndtr(torch.from_numpy(np.stack([away - 0.5, away + 0.5]) / sd))
    exact = -np.log2((edges[1] - edges[0]).clamp_min(1e-30).numpy())
    assert stack.bits - 64 == pytest.approx(exact.sum(), rel=2e-4)
    assert [pop_normal(stack, mean, sd) for mean in reversed(means)] == values[::-1]
    assert (stack.state, stack.stack) == (1 << 64, [])


def test_popped_numbers_follow_the_law():
    stack, sd = fed(), 300.0
    drawn = np.array([pop_normal(stack, 10, sd) for _ in range(20_000)])
    assert abs(drawn.mean() - 10) < 4 * sd / math.sqrt(20_000)
    assert abs(drawn.std() / sd - 1) < 4 / math.sqrt(40_000)
    with pytest.raises(ValueError, match="a number 40 deviations away"):
        push_normal(stack, 40 * 300, 0, sd)


class Linear(nn.Module):
    """Two normal latents, discretised logistics around a linear map of them; a wide and a narrow posterior."""

    def __init__(self, channels=1):
        super().__init__()
        g = torch.Generator().manual_seed(2)
        self.map = torch.randn(2, channels * 6, dtype=torch.float64, generator=g) * 0.4
        self.shape = (channels, 2, 3)
        self.back = torch.linalg.pinv(self.map)

    def encode(self, x):
        mean = ((x.flatten(1).double() * 2 / (LEVELS - 1)) - 1) @ self.back
        return mean, torch.tensor([-1.0, -5.0], dtype=torch.float64).expand_as(mean)

    def decode(self, z):
        return (z @ self.map).view(-1, *self.shape)

    def log_pmf(self, params, x):
        scale = torch.full_like(params, -2.0)[..., None]
        return discretized_logistic_log_prob(torch.arange(LEVELS), params[..., None], scale, 4, validate=False)

    def draw(self, n, seed=3):
        g = torch.Generator().manual_seed(seed)
        pmf = self.log_pmf(self.decode(torch.randn(n, 2, dtype=torch.float64, generator=g)), None).exp()
        return torch.multinomial(pmf.view(-1, LEVELS), 1, generator=g).view(n, *self.shape).to(torch.uint8)

    def elbo_bits(self, x, draws=200):
        """The negative bound of all images in bits, its mean and deviation over draws of one latent for each image."""
        mean, log_variance = self.encode(x)
        g = torch.Generator().manual_seed(4)
        noise = torch.randn(draws, *mean.shape, dtype=torch.float64, generator=g)
        z = mean + noise * (0.5 * log_variance).exp()
        log_z = (-0.5 * z**2 + 0.5 * noise**2 + 0.5 * log_variance).sum(-1)
        tables = self.log_pmf(self.decode(z.flatten(0, 1)), None).view(draws, *x.shape, LEVELS)
        taken = tables.gather(-1, x.long().expand(draws, *x.shape)[..., None])[..., 0].flatten(2).sum(-1)
        bits = -(taken + log_z) / math.log(2)  # (draws, N)
        return bits.mean(0).sum().item(), bits.var(0).sum().sqrt().item()


@pytest.mark.parametrize("channels", [1, 2])
def test_an_autoencoder_codes_at_its_bound_and_gives_the_images_back(channels):
    model = Linear(channels)
    coder = LatentCoder(model.encode, model.decode, model.log_pmf, model.shape, channelwise=channels > 1)
    x = model.draw(400)
    stack = fed()
    before = stack.bits, stack.state, list(stack.stack)
    coder.push(stack, x[:200])
    coder.push(stack, x[200:])
    expected, sd = model.elbo_bits(x)
    assert sd < 0.015 * expected
    assert abs(stack.bits - before[0] - expected) < 3.5 * sd + 1
    assert torch.equal(coder.pop(stack, 200), x[200:])
    assert torch.equal(coder.pop(stack, 200), x[:200])
    assert (stack.state, stack.stack) == before[1:]


class Curved(nn.Module):
    """x = A (z + 0.3 tanh z) + b in levels: a flow of four dimensions that bends."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(5)
        mixed = torch.randn(4, 4, dtype=torch.float64, generator=g)
        self.a = torch.diag(torch.tensor([0.5, 1.5, 2.5, 3.0], dtype=torch.float64)) + 0.8 * mixed
        self.b = 8.0

    def inverse(self, z):
        return ((z + 0.3 * torch.tanh(z)) @ self.a.T + self.b).view(-1, 1, 2, 2)

    def forward(self, x):
        v = (x.flatten(1) - self.b) @ torch.linalg.inv(self.a).T
        z = v
        for _ in range(60):
            z = z - (z + 0.3 * torch.tanh(z) - v) / (1 + 0.3 / torch.cosh(z) ** 2)
        return z

    def log_prob(self, x):
        z = self.forward(x)
        slope = (1 + 0.3 / torch.cosh(z) ** 2).log().sum(1) + torch.linalg.slogdet(self.a)[1]
        return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(1) - slope


def test_a_flow_codes_at_its_dequantised_likelihood_and_gives_the_images_back():
    model = Curved()
    g = torch.Generator().manual_seed(6)
    x = (
        model.inverse(torch.randn(150, 4, dtype=torch.float64, generator=g))
        .floor()
        .clamp(0, LEVELS - 1)
        .to(torch.uint8)
    )
    coder = FlowCoder(model.forward, model.inverse, (1, 2, 2), LEVELS)
    stack = fed(1)
    before = stack.bits, stack.state, list(stack.stack)
    coder.push(stack, x)
    noise = torch.rand(300, *x.shape, dtype=torch.float64, generator=g)
    expected = -model.log_prob((x + noise).flatten(0, 1)).view(300, -1).mean(0).sum().item() / math.log(2)
    assert stack.bits - before[0] == pytest.approx(expected, rel=0.02)  # 600 draws of noise, seen once each
    assert torch.equal(coder.pop(stack, 150), x)
    assert (stack.state, stack.stack) == before[1:]


def test_files_hold_little_more_than_the_bound(tmp_path):
    model = Linear()
    coder = LatentCoder(model.encode, model.decode, model.log_pmf, model.shape)
    x = model.draw(2_000)
    content = compress(coder, x, LEVELS, b"a model")
    assert torch.equal(decompress(coder, content, b"a model"), x)
    assert 0.99 < 8 * len(content) / model.elbo_bits(x, 50)[0] < 1.01
    for n in (1, 2, 7):
        assert torch.equal(decompress(coder, compress(coder, x[:n], LEVELS)), x[:n])


def test_plain_images_come_first_where_bits_back_would_cost_more():
    model = Curved()
    g = torch.Generator().manual_seed(7)
    x = model.inverse(torch.randn(30, 4, dtype=torch.float64, generator=g)).floor().clamp(0, LEVELS - 1).to(torch.uint8)
    coder = FlowCoder(model.forward, model.inverse, (1, 2, 2), LEVELS)
    content = compress(coder, x, LEVELS)
    plain = content[16] + 256 * content[17]
    assert 1 <= plain < 20
    assert torch.equal(decompress(coder, content), x)


def test_damaged_and_foreign_files_are_refused():
    model = Linear()
    coder = LatentCoder(model.encode, model.decode, model.log_pmf, model.shape)
    x = model.draw(50)
    content = compress(coder, x, LEVELS, b"a")
    with pytest.raises(ValueError, match="compressed by another model"):
        decompress(coder, content, b"b")
    for bad in (b"", content[:20], b"PNG" + content[3:], content[:-1]):
        with pytest.raises(ValueError, match="no file of compressed images, or it is truncated"):
            decompress(coder, bad, b"a")
    rng = np.random.default_rng(8)
    for _ in range(40):
        broken = bytearray(content)
        broken[int(rng.integers(34, len(broken)))] ^= 1 << int(rng.integers(8))
        with pytest.raises(ValueError, match=r"do not come out as they went in|used up"):
            decompress(coder, bytes(broken), b"a")
    with pytest.raises(ValueError, match=r"needs levels below 16, 2 to 256 of them; got 16"):
        compress(coder, torch.full((1, 1, 2, 3), 16, dtype=torch.uint8), LEVELS)
    with pytest.raises(ValueError, match=r"needs images \(N, C, H, W\) uint8, got \(0, 1, 2, 3\)"):
        compress(coder, x[:0], LEVELS)
