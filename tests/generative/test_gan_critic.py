"""GAN critics: layers by hand, where batch norm stands, spectral norms while weights move, labels by projection."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.generative import CriticConfig, ImageCritic


def test_critics_are_their_layers():
    x = torch.randn(5, 1, 7, 6)
    net = ImageCritic(CriticConfig((1, 7, 6), channels=4, norm="none"))
    h = F.leaky_relu(net.stages[0].conv(torch.cat([x, torch.zeros(5, 1, 1, 6)], 2)), 0.2)
    torch.testing.assert_close(net(x), (h.flatten(1) @ net.to_score.weight.T + net.to_score.bias)[:, 0])
    net = ImageCritic(CriticConfig((1, 7, 6), "resnet", channels=4, norm="none", residual_scale=0.5))
    a, b, c = net.stages

    def pool(x):  # windows of what there is
        return torch.stack([x[:, :, i : i + 2].mean(2) for i in range(0, 7, 2)], 2).unflatten(3, (3, 2)).mean(-1)

    h = pool(a.shortcut(x)) + 0.5 * pool(a.conv2(a.conv1(x).relu()))
    for block in (b, c):
        h = h + 0.5 * block.conv2(block.conv1(h.relu()).relu())
    expected = (h.relu().sum((2, 3)) @ net.to_score.weight.T + net.to_score.bias)[:, 0]
    torch.testing.assert_close(net(x), expected)


def test_batch_norm_in_the_critic_spares_the_first_stage():
    net = ImageCritic(CriticConfig((1, 16, 16), channels=2, norm="batch"))
    assert [stage.norm is None for stage in net.stages] == [True, False]


@pytest.mark.parametrize("method", ["reshaped", "true"])
@pytest.mark.parametrize("network", ["dcgan", "resnet"])
def test_spectral_norms_are_one_while_weights_move(network, method):
    critic = ImageCritic(CriticConfig((1, 9, 6), network, 4, spectral_method=method))
    with torch.no_grad():
        for p in critic.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for _ in range(30):
            critic(torch.zeros(1, 1, 9, 6))
    critic.eval()
    for layer in critic.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        matrix = layer.weight.flatten(1)
        if method == "true" and isinstance(layer, nn.Conv2d):
            h, w = 5, 3  # no larger than what comes in: the norm can only be smaller
            eye = torch.eye(layer.in_channels * h * w).unflatten(1, (layer.in_channels, h, w))
            matrix = F.conv2d(eye, layer.weight, None, layer.stride, layer.padding).flatten(1)
            assert torch.linalg.svdvals(matrix)[0] < 1.01
        else:
            assert torch.linalg.svdvals(matrix)[0].item() == pytest.approx(1, abs=1e-2)


def test_projection_is_an_inner_product_with_the_label():
    critic = ImageCritic(CriticConfig((1, 7, 6), channels=4, norm="none", num_classes=3))
    x, labels = torch.randn(4, 1, 7, 6), torch.tensor([2, 0, 1, 1])
    phi = critic.features(x)
    plain = (phi @ critic.to_score.weight.T + critic.to_score.bias)[:, 0]
    fit = torch.stack([critic.to_fit.weight[y] @ phi[i] for i, y in enumerate(labels)])
    torch.testing.assert_close(critic(x, labels), plain + fit)
    sn = ImageCritic(CriticConfig((1, 7, 6), channels=4, num_classes=3)).eval()
    assert sn.to_fit.weight.norm(dim=1).max().item() == pytest.approx(1, rel=1e-5)
