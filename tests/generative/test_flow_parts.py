"""Noise inside levels, networks, logit, multi-scale wiring and the settings: by hand, by integration, by message."""

import math

import pytest
import torch
from torch import nn

from danlu.generative.dequantization import VariationalNoise, dequantize, quantize
from danlu.generative.flow_config import FlowConfig
from danlu.generative.flow_layers import LogitTransform, MultiScale
from danlu.generative.flow_networks import ConvNet, DenseNet, ScaledConv2d
from danlu.generative.flow_stack import build_bijection
from danlu.nn import Coupling, InvertibleSequential, Squeeze


def test_levels_there_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    for noise in (0.0, 0.5, torch.full((256,), 0.999)):
        assert torch.equal(quantize(dequantize(levels, 256, noise), 256), levels)
    v = dequantize(levels, 256, 0.0)
    assert (v[0].item(), v[128].item(), v[255].item()) == (-0.5, 0, 127 / 256)
    assert quantize(torch.tensor([torch.nan, -9.0, 9.0, torch.inf]), 4).tolist() == [0, 0, 3, 3]
    assert quantize(torch.tensor([0.49]), 1000).dtype == torch.int32
    assert dequantize(levels[:0], 256).shape == (0,)


def test_variational_noise_is_a_density_of_the_interval():
    """Its log-density at u against the derivative of its distribution function, found by another route."""
    net = DenseNet(1, 2, 4)
    nn.init.normal_(net.layers[-1].weight)
    noise = VariationalNoise(net).double()
    middle = torch.tensor([[0.2]], dtype=torch.float64).expand(20_000, 1)
    with torch.no_grad():
        u, log_density = noise(middle, torch.Generator().manual_seed(0))
        mean, raw = net(middle[:1]).chunk(2, 1)
    assert ((u > 0) & (u < 1)).all()
    std = (math.log(1.6) + 3 * torch.tanh(raw / 3)).exp()
    normal = torch.distributions.Normal(mean[0], std[0])
    expected = torch.distributions.TransformedDistribution(normal, torch.distributions.SigmoidTransform())
    torch.testing.assert_close(log_density, expected.log_prob(u)[:, 0])
    weight = (-log_density).exp()  # E 1/r = 1, the length of the interval
    assert abs(weight.mean() - 1) < 4 * weight.std() / len(u) ** 0.5


def test_logit_is_the_jacobians():
    layer, v = LogitTransform(0.05), torch.rand(3, 2, 2, dtype=torch.float64) - 0.5
    y, log_det = layer(v)
    torch.testing.assert_close(y, torch.logit(0.05 + 0.9 * (v + 0.5)))
    for item, found in zip(v, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda a: layer(a[None])[0][0], item).reshape(4, 4)
        torch.testing.assert_close(found, torch.linalg.slogdet(jacobian)[1], atol=1e-10, rtol=0)
    back, negative = layer.inverse(y)
    torch.testing.assert_close(back, v, atol=1e-12, rtol=0)
    torch.testing.assert_close(negative, -log_det)
    assert layer(torch.tensor([[-0.5, 0.5]]))[0].isfinite().all()


@pytest.mark.parametrize("net", [ConvNet(3, 5, 4), DenseNet(3, 5, 4)])
def test_networks_start_at_zero_and_give_gradients(net):
    x = torch.randn(6, 3, 4, 4) if isinstance(net, ConvNet) else torch.randn(6, 3)
    out = net(x)
    assert out.shape == (6, 5, *x.shape[2:])
    assert not out.any()
    out.sum().backward()
    last = list(net.children())[-1] if isinstance(net, ConvNet) else net.layers[-1]
    assert last.weight.grad.abs().max() > 0


def test_scaled_convolution_starts_standard_and_folds_its_scale():
    conv, x = ScaledConv2d(2, 3, 3).double(), 5 * torch.randn(8, 2, 4, 4, dtype=torch.float64) + 1
    y = conv(x)
    rows = y.transpose(0, 1).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(3).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(rows.std(1, correction=0), torch.ones(3).double())
    raw = nn.functional.conv2d(x, conv.weight, padding=1)
    torch.testing.assert_close(y, conv.log_scale.exp()[:, None, None] * (raw + conv.bias[:, None, None]))
    torch.testing.assert_close(conv(3 * x), conv.eval()(3 * x))
    last = ScaledConv2d(2, 3, 1, zero=True)
    nn.init.ones_(last.weight)
    nn.init.constant_(last.log_scale, math.log(2))
    assert last(torch.ones(1, 2, 1, 1)).flatten().tolist() == pytest.approx([16, 16, 16])  # e^(3 log 2) (1 + 1)


def test_scaled_convolution_remembers_its_start():
    conv, x = ScaledConv2d(2, 3, 3), torch.randn(8, 2, 4, 4)
    y = conv(x)
    other = ScaledConv2d(2, 3, 3)
    other.load_state_dict(conv.state_dict())
    torch.testing.assert_close(other(2 * x), conv(2 * x))
    assert ScaledConv2d(2, 3, 3)(x[:0]).shape == (0, 3, 4, 4)
    assert y.shape == (8, 3, 4, 4)


def test_conditional_prior_by_hand():
    """Two levels without couplings: u' is u less a mean and over a scale that the other half sets."""
    prior = ScaledConv2d(2, 4, 3, zero=True).double()
    nn.init.normal_(prior.weight, std=0.3)
    model = MultiScale((1, 4, 4), [InvertibleSequential([Squeeze()]), InvertibleSequential([Squeeze()])], [prior])
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    z, log_det = model(x)
    u, h = nn.functional.pixel_unshuffle(x, 2).chunk(2, 1)
    mean, raw = prior(h).chunk(2, 1)
    log_std = 8 * torch.tanh(raw / 8)
    torch.testing.assert_close(z[:, :8], ((u - mean) / log_std.exp()).flatten(1))
    torch.testing.assert_close(z[:, 8:], nn.functional.pixel_unshuffle(h, 2).flatten(1))
    torch.testing.assert_close(log_det, -log_std.flatten(1).sum(1))
    normal = torch.distributions.Normal(mean, log_std.exp()).log_prob(u).flatten(1).sum(1)
    ours = torch.distributions.Normal(0, 1).log_prob(z[:, :8]).sum(1) + log_det
    torch.testing.assert_close(ours, normal)
    back, negative = model.inverse(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(negative, -log_det)


def test_what_the_kinds_are_made_of():
    def couplings(**settings):
        return [m for m in build_bijection(FlowConfig(**settings)).modules() if isinstance(m, Coupling)]

    found = couplings(shape=(1, 4, 4), kind="realnvp", steps=3)
    assert [c.split for c in found] == ["checkerboard"] * 3 + ["half"] * 3
    assert [c.swap for c in found] == [False, True, False] * 2
    found = couplings(shape=(6,), kind="nice", steps=4, hidden_layers=5)
    assert [(c.split, c.swap, c.additive) for c in found] == [("even_odd", i % 2 == 1, True) for i in range(4)]
    assert len(found[0].net.layers) == 6
    assert len(couplings(shape=(3, 8, 8), levels=3, steps=2)) == 6


def test_messages():
    for settings, message in (
        ({"kind": "maf"}, r"kind must be one of .*got 'maf'"),
        ({"mixing": "swap"}, r"mixing must be one of .*got 'swap'"),
        ({"shape": (4, 4)}, r"shape must be \(D,\) for vectors or \(C, H, W\)"),
        ({"shape": (1,), "levels": 1}, "at least 2 dimensions"),
        ({"shape": (8,), "levels": 2}, "levels must be 1 for vectors and for NICE, got 2"),
        ({"shape": (1, 12, 8), "levels": 3}, "must be multiples of 8, got 12 x 8; pad the images"),
        ({"num_bins": 1}, r"num_bins must be in 2 \.\. 65536, got 1"),
        ({"alpha": 0.5}, r"alpha must be in \[0, 0.5\)"),
        ({"steps": 0}, "must be >= 1, got 1, 0, 64 and 2"),
    ):
        with pytest.raises(ValueError, match=message):
            FlowConfig(**{"shape": (1, 8, 8), **settings})
    with pytest.raises(ValueError, match="levels must be whole numbers of an integer dtype"):
        dequantize(torch.zeros(2), 2)
    with pytest.raises(ValueError, match="2 levels need 1 priors, got 0"):
        MultiScale((1, 4, 4), [Squeeze(), Squeeze()], [])
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 0.5\), got 0"):
        LogitTransform(0.0)
