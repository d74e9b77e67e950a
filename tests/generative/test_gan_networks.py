"""GAN networks: sizes, layers by hand, plain norms at the start, labels, checkerboards, a plain loop, resuming."""

import copy
import json
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.generative import (
    CriticConfig,
    GeneratorConfig,
    ImageCritic,
    ImageGenerator,
    critic_step,
    generator_step,
    stage_sides,
    to_signed,
)
from danlu.generative.gan_generator import doubled
from danlu.generative.training_state import load_state, save_state
from danlu.nn import ModulatedNorm
from danlu.optim import EMA

SMALL = GeneratorConfig((1, 7, 6), latent_dim=3, channels=4)
Z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def size(module):
    return sum(p.numel() for p in module.parameters())


def test_sides():
    assert stage_sides((1, 32, 32)) == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert stage_sides((1, 28, 28))[-2:] == [(7, 7), (4, 4)]
    assert stage_sides((1, 33, 2)) == [(33, 2), (17, 1), (9, 1), (5, 1), (3, 1)]
    assert stage_sides((1, 3, 1)) == [(3, 1), (2, 1)]
    assert stage_sides((3, 32, 32), 8)[-1] == (8, 8)


def test_parameters_of_the_32_pixel_resnets_by_hand():
    conv, point = 256 * 256 * 9 + 256, 256 * 256 + 256
    expected = 128 * 4096 + 4096 + 3 * (2 * conv + point + 2 * 2 * 256) + 2 * 256 + 256 * 3 * 9 + 3
    with torch.device("meta"):
        net = ImageGenerator(GeneratorConfig((3, 32, 32), 128, "resnet", 256))
        critic = ImageCritic(CriticConfig((3, 32, 32), "resnet", 128))
    assert size(net) == expected
    conv = 128 * 128 * 9 + 128
    first = 3 * 128 * 9 + 128 + conv + 3 * 128 + 128
    assert size(critic) == first + (2 * conv + 128 * 128 + 128) + 2 * 2 * conv + 128 + 1
    assert [stage.halves for stage in critic.stages] == [True, True, False, False]


def test_parameters_of_dcgan_and_of_self_modulation_by_hand():
    base = GeneratorConfig((3, 64, 64), 128, channels=64)
    with torch.device("meta"):
        plain, modulated = ImageGenerator(base), ImageGenerator(replace(base, norm="self_mod"))
        critic = ImageCritic(CriticConfig((3, 64, 64), channels=64))
    widths = [512, 256, 128, 64, 3]
    expected = 128 * 512 * 16 + 512 * 16 + sum(2 * w for w in widths[:-1])
    expected += sum(a * b * 16 + b for a, b in pairwise(widths))
    assert size(plain) == expected
    extra = sum(128 * 32 + 32 + 2 * (32 * w + w) - 2 * w for w in widths[:-1])
    assert size(modulated) - size(plain) == extra
    back = widths[::-1]
    assert size(critic) == sum(a * b * 16 + b for a, b in pairwise(back)) + 512 * 16 + 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 5, 11), (1, 1, 1), (1, 3, 2)])
@pytest.mark.parametrize("network", ["dcgan", "resnet"])
def test_any_size(network, shape):
    net = ImageGenerator(GeneratorConfig(shape, 3, network, 2))
    critic = ImageCritic(CriticConfig(shape, network, 2))
    x = net(Z)
    assert x.shape == (5, *shape)
    assert x.abs().max() < 1
    assert critic(x).shape == (5,)
    net.eval(), critic.eval()
    assert critic(net(Z[:0])).shape == (0,)
    torch.testing.assert_close(critic(net(Z))[2:3], critic(net(Z[2:3])), rtol=1e-4, atol=1e-6)


def test_dcgan_generator_is_its_layers():
    net = ImageGenerator(replace(SMALL, norm="none"))
    h = (Z @ net.start.weight.T + net.start.bias).reshape(5, 4, 4, 3)
    h = F.conv_transpose2d(h.relu(), net.stages[0].conv.weight, net.stages[0].conv.bias, 2, 1)
    torch.testing.assert_close(net(Z), h[:, :, :7, :6].tanh())


def test_resnet_generator_is_its_layers():
    net = ImageGenerator(replace(SMALL, network="resnet", residual_scale=0.1))
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    b = net.stages[0]
    h = net.start(Z).reshape(5, 4, 4, 3)

    def norm(x, layer):
        return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True)

    up = nn.UpsamplingNearest2d(scale_factor=2)
    branch = up(norm(h, b.norm1).relu())[:, :, :7]
    branch = b.conv2(norm(b.conv1(branch), b.norm2).relu())
    y = b.shortcut(up(h)[:, :, :7]) + 0.1 * branch  # the map after up, as the source has it
    torch.testing.assert_close(net(Z), net.end(norm(y, net.end_norm).relu()).tanh())


@pytest.mark.parametrize("network", ["dcgan", "resnet"])
@pytest.mark.parametrize("norm", ["self_mod", "class"])
def test_modulation_begins_as_the_plain_batch_norm(norm, network):
    config = replace(SMALL, network=network)
    plain = ImageGenerator(config)
    labels = torch.tensor([0, 1, 1, 0, 1]) if norm == "class" else None
    other = ImageGenerator(replace(config, norm=norm, num_classes=2 if norm == "class" else None))
    names = {name for name, _ in plain.named_parameters() if "norm" not in name}
    other.load_state_dict({name: p for name, p in plain.state_dict().items() if name in names}, strict=False)
    torch.testing.assert_close(other(Z, labels), plain(Z))
    norms = [m for m in other.modules() if isinstance(m, ModulatedNorm)]
    assert len(norms) == (3 if network == "resnet" else 1)  # the one on the smallest side is among them
    other(Z, labels).square().sum().backward()
    assert all(m.to_gain.weight.grad.abs().sum() > 0 for m in norms)


def test_labels_enter_the_condition_by_their_two_tables():
    net = ImageGenerator(replace(SMALL, norm="self_mod", num_classes=2))
    labels = torch.tensor([0, 1, 1, 0, 1])
    before = net(Z, labels)
    torch.testing.assert_close(before, net(Z, 1 - labels))
    for p in (*net.to_shift.parameters(), *net.to_scale.parameters(), net.stages[0].norm.to_gain.weight):
        nn.init.normal_(p)
    condition = Z + net.to_shift.weight[labels] + Z * net.to_scale.weight[labels]
    seen = []
    net.stages[0].norm.register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    assert (net(Z, labels) - net(Z, 1 - labels)).abs().max() > 1e-4
    torch.testing.assert_close(seen[0], condition)


def ripple(y):
    """Largest difference between the mean of even and odd places, away from borders."""
    y = y[..., 4:20, 4:20]
    return (y[..., ::2] - y[..., 1::2]).abs().max().item()


def test_checkerboard_of_strided_kernels_and_none_of_repeated_pixels():
    flat = torch.ones(1, 1, 12, 12)
    five = F.conv_transpose2d(flat, torch.ones(1, 1, 5, 5), stride=2, padding=2)
    assert ripple(five) == pytest.approx(9 - 6)  # 3 x 3 windows against 2 x 3
    net = ImageGenerator(SMALL)
    conv = net.stages[0].conv
    nn.init.ones_(conv.weight)
    assert ripple(conv(flat.expand(1, 4, -1, -1))) == 0  # 4 x 4 of stride 2 is even, as long as its weights are
    nn.init.normal_(conv.weight)
    assert ripple(conv(flat.expand(1, 4, -1, -1))) > 0.1
    block = ImageGenerator(replace(SMALL, network="resnet", norm="none")).stages[0]
    block.side = (24, 24)
    assert ripple(block(flat.expand(1, 4, -1, -1), None)) < 1e-5


def test_sample_and_interpolate():
    net = ImageGenerator(replace(SMALL, norm="self_mod"))
    for _ in range(3):
        net(torch.randn(5, 3))
    a = net.sample(4, torch.Generator().manual_seed(0))
    assert net.training
    assert torch.equal(a, net.sample(4, torch.Generator().manual_seed(0)))
    z = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))[0]
    copied = copy.deepcopy(net).eval()
    torch.testing.assert_close(a, copied(z))
    torch.testing.assert_close(net.sample(4, torch.Generator().manual_seed(0), 0.5), copied(z / 2))
    torch.testing.assert_close(net.sample(4, temperature=0.0), copied(torch.zeros(4, 3)))
    path = net.interpolate(Z[:2], Z[2:4], 3)
    assert path.shape == (3, 2, 1, 7, 6)
    torch.testing.assert_close((path[0], path[-1]), (copied(Z[:2]), copied(Z[2:4])))
    labelled = ImageGenerator(replace(SMALL, norm="class", num_classes=2))
    nn.init.normal_(labelled.stages[0].norm.to_shift.weight)
    y = torch.tensor([0, 1])
    path = labelled.interpolate(Z[:2], Z[2:4], 3, y)
    labelled.eval()
    torch.testing.assert_close((path[0], path[-1]), (labelled(Z[:2], y), labelled(Z[2:4], y)))
    assert labelled.sample(2, labels=y).shape == (2, 1, 7, 6)


def test_a_plain_loop_learns_and_the_average_is_remeasured():
    torch.manual_seed(0)
    net, critic = ImageGenerator(replace(SMALL, norm="self_mod")), ImageCritic(CriticConfig((1, 7, 6), channels=4))
    adam = [torch.optim.Adam(m.parameters(), 1e-2, (0.0, 0.9)) for m in (critic, net)]
    average = EMA(net, 0.5, optimizer=adam[1])
    real = to_signed(torch.randint(200, 256, (64, 1, 7, 6), dtype=torch.uint8))
    start = net.sample(50).mean()
    for _ in range(25):
        critic_step(critic, adam[0], real[torch.randint(64, (16,))], net(torch.randn(16, 3)), "hinge")
        generator_step(critic, adam[1], net(torch.randn(16, 3)), "hinge")
    latents = list(torch.randn(4, 16, 3))
    with average.swap():
        torch.optim.swa_utils.update_bn(latents, net)
        found = net.sample(50).mean()
    assert start < 0.2
    assert found > 0.4
    other = ImageGenerator(GeneratorConfig(**json.loads(json.dumps(asdict(net.config)))))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.eval()(Z), net.eval()(Z))
    again = ImageCritic(CriticConfig(**json.loads(json.dumps(asdict(critic.config)))))
    again.load_state_dict(critic.state_dict())
    assert torch.equal(again.eval()(real[:2]), critic.eval()(real[:2]))


def test_training_resumes_bit_for_bit(tmp_path):
    def start(seed):
        torch.manual_seed(seed)
        net, critic = ImageGenerator(replace(SMALL, norm="self_mod")), ImageCritic(CriticConfig((1, 7, 6), channels=4))
        adam = {name: torch.optim.Adam(m.parameters(), 1e-3) for name, m in (("critic", critic), ("net", net))}
        return {"net": net, "critic": critic}, adam, {"draw": torch.Generator().manual_seed(seed)}

    def steps(nets, adam, draw):
        for _ in range(2):
            real, z = (torch.randn(4, *shape, generator=draw["draw"]) for shape in ((1, 7, 6), (3,)))
            critic_step(nets["critic"], adam["critic"], real, nets["net"](z), "hinge")
            generator_step(nets["critic"], adam["net"], nets["net"](z), "hinge")

    first, second = start(0), start(1)
    steps(*first)
    save_state(tmp_path / "state", 2, *first)
    assert load_state(tmp_path / "state", *second)[0] == 2
    steps(*first)
    steps(*second)
    for name in ("net", "critic"):  # spectral norms' iterations and running statistics are among it
        states = [nets[name].state_dict() for nets in (first[0], second[0])]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("network", ["dcgan", "resnet"])
def test_autocast_and_float64(network):
    net = ImageGenerator(replace(SMALL, network=network, norm="self_mod"))
    critic = ImageCritic(CriticConfig((1, 7, 6), network, 4))
    full = critic(net(Z))
    with torch.autocast("cpu", torch.bfloat16):
        low = critic(net(Z))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, full, rtol=0.1, atol=0.1)
    assert critic.double()(net.double()(Z.double())).dtype == torch.float64


def test_messages():
    net = ImageGenerator(SMALL)
    with pytest.raises(ValueError, match=r"latents \(N, 3\), got \(5, 3, 1, 1\)"):
        net(Z[:, :, None, None])
    with pytest.raises(ValueError, match=r"norm 'batch' takes statistics.* 1 latent\(s\) have none"):
        net(Z[:1])
    with pytest.raises(ValueError, match=r"takes no labels; got \(5,\) with latents \(5, 3\)"):
        net(Z, torch.zeros(5).long())
    with pytest.raises(ValueError, match=r"takes labels \(N,\) below 2, one for each latent; got none"):
        ImageGenerator(replace(SMALL, norm="class", num_classes=2))(Z)
    with pytest.raises(ValueError, match="norm 'class' follows labels; give num_classes"):
        replace(SMALL, norm="class")
    with pytest.raises(ValueError, match=r"labels reach a generator through.*num_classes=2 and norm 'batch'"):
        replace(SMALL, num_classes=2)
    with pytest.raises(ValueError, match="'dcgan' or 'resnet', got 'stylegan'; StyleGenerator"):
        replace(SMALL, network="stylegan")
    with pytest.raises(ValueError, match="norm must be one of batch, layer, none, self_mod, class; got 'adain'"):
        replace(SMALL, norm="adain")
    with pytest.raises(ValueError, match=r"shape \(C, H, W\) of an image, got \(64,\)"):
        GeneratorConfig((64,))
    with pytest.raises(ValueError, match="at least 1, got channels=0"):
        replace(SMALL, channels=0)
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        replace(SMALL, norm="class", num_classes=0)
    critic = ImageCritic(CriticConfig((1, 7, 6), channels=4))
    with pytest.raises(ValueError, match=r"\(N, 1, 7, 6\) as floats in \[-1, 1\], got \(2, 1, 7, 6\) torch.uint8"):
        critic(torch.zeros(2, 1, 7, 6, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got \(2, 1, 6, 7\)"):
        critic(torch.zeros(2, 1, 6, 7))
    with pytest.raises(ValueError, match="critic takes no labels"):
        critic(torch.zeros(2, 1, 7, 6), torch.zeros(2).long())
    with pytest.raises(ValueError, match="residual critic takes norm 'spectral' or 'none'"):
        CriticConfig((1, 7, 6), "resnet", norm="batch")
    with pytest.raises(ValueError, match="method must be 'true'"):
        ImageCritic(CriticConfig((1, 7, 6), spectral_method="exact"))


def test_doubled_is_two_by_two_and_cut():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert doubled(x, (3, 4))[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]
