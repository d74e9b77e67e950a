"""StyleGenerator: layers by hand, mapping on the sphere, truncation, mixing, noise, averages, messages."""

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.generative import StyleConfig, StyleGenerator

CONFIG = StyleConfig((2, 7, 5), latent_dim=3, style_dim=6, channels=4, max_channels=6, mapping_layers=2)
Z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def net(config=CONFIG, scatter=True):
    """A generator whose learned sizes are not those of the start."""
    torch.manual_seed(0)
    found = StyleGenerator(config)
    for name, p in found.named_parameters():
        if scatter and (name.endswith(("noise_size", "bias")) or name == "constant"):
            nn.init.normal_(p, 1.0, 0.5)
    return found


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def test_is_its_layers():
    g = net().eval()
    assert g.sides == [(4, 3), (7, 5)]
    w = Z / Z.square().mean(1, keepdim=True).sqrt()
    for layer in g.mapping:
        w = F.leaky_relu(w @ layer.weight.T + layer.bias, 0.2)
    torch.testing.assert_close(g.styles(Z), w[:, None].expand(4, 4, 6))
    noise, h = draws(), g.constant.expand(4, -1, -1, -1)
    for i, layer in enumerate(g.layers):
        if i == 2:
            h = nn.Upsample(scale_factor=2, mode="bilinear")(h)[:, :, :7, :5]
        if i:
            h = F.conv2d(h, layer.conv.weight, padding=1)
        h = h + layer.bias[None, :, None, None]
        h = h + torch.randn(4, 1, *h.shape[2:], generator=noise) * layer.noise_size[None, :, None, None]
        h = F.leaky_relu(h, 0.2)
        x_hat = F.instance_norm(h)
        gain, shift = (F.linear(w, head.weight, head.bias) for head in (layer.norm.to_gain, layer.norm.to_shift))
        h = x_hat * gain[:, :, None, None] + shift[:, :, None, None]
    torch.testing.assert_close(g(Z, draws()), g.end(h).tanh())


def test_channels_and_mapping_rate():
    g = net(scatter=False)
    assert [layer.norm.channels for layer in g.layers] == [6, 6, 4, 4]
    assert g.layers[2].conv.weight.shape == (4, 6, 3, 3)
    for layer in g.mapping:  # stored weights of size 100, moved by a hundredth
        torch.testing.assert_close(
            layer.weight, layer.parametrizations.weight.original * 0.01 * (2 / layer.in_features) ** 0.5
        )
    assert all((layer.norm.to_gain.bias == 1).all() for layer in g.layers)
    assert all((layer.norm.to_shift.bias == 0).all() for layer in g.layers)
    assert all((layer.noise_size == 0).all() for layer in g.layers)
    x = g(Z)
    assert (x[0] - x[1]).abs().max() > 1e-3  # styles count from the start


def test_only_the_direction_of_z_counts():
    g = net().eval()
    torch.testing.assert_close(g.styles(Z), g.styles(100 * Z))
    assert g.styles(torch.zeros(1, 3)).isfinite().all()
    assert net(replace(CONFIG, mapping_layers=0, style_dim=3)).styles(Z).square().mean().item() == pytest.approx(1)


def test_truncation_and_the_average_style():
    g = net()
    a, b = g.styles(Z)[:, 0], g.styles(2 * Z[:2])[:, 0]
    torch.testing.assert_close(g.mean_style, 0.995 * 0.005 * a.mean(0) + 0.005 * b.mean(0))
    g.eval()
    before = g.mean_style.clone()
    styles = g.styles(Z)
    assert torch.equal(g.mean_style, before)
    torch.testing.assert_close(g.truncated(styles, 1.0), styles)
    torch.testing.assert_close(g.truncated(styles, 0.0), before.expand(4, 4, 6))
    torch.testing.assert_close(g.truncated(styles, 0.25), 0.75 * before + 0.25 * styles)
    plain = net(replace(CONFIG, noise=False)).eval()
    plain.mean_style.fill_(0.1)
    z = torch.randn(1, 3, 3, generator=draws())[0]
    torch.testing.assert_close(plain.sample(3, draws()), plain(z))
    torch.testing.assert_close(plain.sample(3, draws(), 0.5), plain.synthesize(plain.truncated(plain.styles(z), 0.5)))


def test_mixing_takes_layers_before_the_cut_from_the_first():
    g = net().eval()
    a, b = g.styles(Z[:2]), g.styles(Z[2:])
    mixed = g.mixed(a, b, torch.tensor([1, 3]))
    expected = torch.stack([torch.cat([a[0, :1], b[0, 1:]]), torch.cat([a[1, :3], b[1, 3:]])])
    assert torch.equal(mixed, expected)
    assert torch.equal(g.mixed(a, b, 4), a)
    assert torch.equal(g.mixed(a, b, 0), b)


def test_random_mixing_mixes_the_share_asked_for():
    g = net(replace(CONFIG, noise=False)).eval()
    seen = []
    g.synthesize = lambda styles, generator: seen.append(styles) or styles  # look at what would be drawn
    z = Z[:1].expand(2000, -1)
    g(z, draws(), mixing=0.6)
    own = (seen[0] - g.styles(Z[:1])).abs().amax(-1) < 1e-5  # (N, L)
    assert own[:, 0].all()
    share = (~own[:, -1]).float().mean().item()
    assert share == pytest.approx(0.6, abs=4 * (0.24 / 2000) ** 0.5)
    cuts = own.sum(1)[~own[:, -1]]
    for cut in (1, 2, 3):
        assert (cuts == cut).float().mean().item() == pytest.approx(1 / 3, abs=4 * (2 / 9 / 1200) ** 0.5)
    assert ((~own).int().diff(dim=1) >= 0).all()  # one cut: never back to the first


def test_noise_follows_the_generator_and_can_be_left_out():
    g = net().eval()
    assert torch.equal(g(Z, draws()), g(Z, draws()))
    assert not torch.equal(g(Z, draws()), g(Z, draws(1)))
    styles = g.styles(Z)
    assert torch.equal(g.synthesize(styles, noise=False), g.synthesize(styles, draws(), noise=False))
    path = g.interpolate(Z[:2], Z[2:], 3)
    assert path.shape == (3, 2, 2, 7, 5)
    torch.testing.assert_close(path[0], g.synthesize(styles[:2], noise=False))
    torch.testing.assert_close(path[1], g.synthesize((styles[:2] + styles[2:]) / 2, noise=False))


def test_everything_learns_and_a_state_comes_back():
    g = net(replace(CONFIG, mapping_lr=1.0))
    g(Z, draws(), mixing=0.5).square().sum().backward()
    without = {name for name, p in g.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert not without
    other = StyleGenerator(StyleConfig(**json.loads(json.dumps(asdict(g.config)))))
    other.load_state_dict(g.state_dict())
    assert torch.equal(other.eval()(Z, draws()), g.eval()(Z, draws()))
    assert torch.equal(copy.deepcopy(g)(Z, draws()), g(Z, draws()))


def test_autocast_and_empty():
    g = net()
    with torch.autocast("cpu", torch.bfloat16):
        low = g(Z, draws())
        assert g.styles(Z).dtype == torch.float32
    torch.testing.assert_close(low.float(), g(Z, draws()), rtol=0.1, atol=0.1)
    before = g.mean_style.clone()
    assert g(Z[:0]).shape == (0, 2, 7, 5)
    assert torch.equal(g.mean_style, before)


def test_messages():
    g = net()
    with pytest.raises(ValueError, match=r"latents \(N, 3\), got \(4, 1, 3\)"):
        g(Z[:, None])
    with pytest.raises(ValueError, match=r"styles \(N, 4, 6\), as styles\(z\) gives them, got \(4, 6\)"):
        g.synthesize(torch.zeros(4, 6))
    with pytest.raises(ValueError, match=r"from 0 to 1, got 1\.5"):
        g(Z, mixing=1.5)
    with pytest.raises(ValueError, match=r"steps >= 2.*got 1"):
        g.interpolate(Z, Z, 1)
    with pytest.raises(ValueError, match=r"latent_dim 3 must be style_dim 6"):
        replace(CONFIG, mapping_layers=0)
    with pytest.raises(ValueError, match=r"mapping_lr > 0, got -1 and 0\.01"):
        replace(CONFIG, mapping_layers=-1)
