"""SelfModulated: the old generator at first, then another for each latent; shared norms, messages."""

import copy

import pytest
import torch
from torch import nn

from danlu.nn import ModulatedNorm, SelfModulated


def dcgan():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.ConvTranspose2d(3, 4, 4, bias=False), nn.BatchNorm2d(4, eps=0.01), nn.ReLU(),
        nn.Sequential(nn.ConvTranspose2d(4, 2, 4, 2, 1), nn.BatchNorm2d(2)), nn.Tanh(),
    )  # fmt: skip
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 1.0, 0.3)
            nn.init.normal_(m.bias, 0.0, 0.3)
    net(torch.randn(5, 3, 1, 1))
    return net


Z = torch.randn(6, 3, 1, 1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [True, False])
def test_images_are_those_of_the_old_generator(training):
    old = dcgan().train(training)
    new = SelfModulated(copy.deepcopy(old), 3)
    torch.testing.assert_close(new(Z), old(Z))
    assert new.training == training == new.generator[1].training
    assert new.generator[1].eps == new.generator[1].norm.eps == 0.01
    torch.testing.assert_close(new.generator[1].norm.running_var, old[1].running_var)
    assert sum(isinstance(m, ModulatedNorm) for m in new.modules()) == 2


def test_training_makes_the_norms_follow_the_latent():
    new = SelfModulated(dcgan(), 3, hidden=5)
    seen = []

    def look(module, args, kwargs, out):
        seen.append(kwargs["condition"])

    new.generator[1].register_forward_hook(look, with_kwargs=True)
    before = {name: p.detach().clone() for name, p in new.named_parameters()}
    sgd = torch.optim.SGD(new.parameters(), 0.5)
    for _ in range(2):
        sgd.zero_grad()
        (new(Z) - torch.linspace(-1, 1, 6)[:, None, None, None]).square().sum().backward()
        sgd.step()
    assert torch.equal(seen[0], Z.flatten(1))
    assert all(not torch.equal(p, before[name]) for name, p in new.named_parameters() if "to_" in name)
    gain, _ = new.generator[1].gain_and_shift(Z.flatten(1))
    assert gain.std(0).min() > 0


def test_a_norm_in_two_places_stays_one():
    norm = nn.BatchNorm2d(2)
    new = SelfModulated(nn.Sequential(nn.Conv2d(3, 2, 1), norm, nn.ReLU(), norm), 3)
    assert new.generator[1] is new.generator[3]


def test_messages():
    with pytest.raises(ValueError, match="Conv2d has none"):
        SelfModulated(nn.Conv2d(1, 1, 1), 3)
    with pytest.raises(ValueError, match="BatchNorm2d is one itself, wrap it"):
        SelfModulated(nn.BatchNorm2d(1), 3)
    with pytest.raises(ValueError, match=r"latents of 4 numbers, got \(6, 3, 1, 1\)"):
        SelfModulated(dcgan(), 4)(Z)
    with pytest.raises(ValueError, match="got none"):
        SelfModulated(dcgan(), 3).generator(Z)
