"""equalized: size at the start, the update it is made for, biases, tools, messages."""

import copy
import math

import pytest
import torch
from torch import nn

from danlu.nn import equalized


@pytest.mark.parametrize("layer", [nn.Linear(400, 50), nn.Conv2d(16, 100, 5), nn.Conv1d(40, 60, 10)])
def test_weight_has_he_size_and_the_bias_is_kept(layer):
    bias = layer.bias.detach().clone()
    equalized(layer, math.sqrt(2), 0.01, torch.Generator().manual_seed(0))
    fan_in = layer.weight[0].numel()
    n = layer.weight.numel()
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=4 / math.sqrt(2 * n))
    stored = layer.parametrizations.weight.original
    assert stored.std().item() == pytest.approx(100.0, rel=4 / math.sqrt(2 * n))
    torch.testing.assert_close(layer.bias, bias)


def test_adam_moves_the_weight_by_its_own_scale():
    for size in (4, 64):
        layer = equalized(nn.Linear(size, 1), lr_scale=0.5)
        before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
        adam = torch.optim.Adam(layer.parameters(), 0.1, eps=0.0)
        layer(torch.ones(1, size)).sum().backward()
        adam.step()
        moved = 0.1 * 0.5 / math.sqrt(size)
        torch.testing.assert_close(before - layer.weight, torch.full_like(before, moved), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(bias - layer.bias, torch.full_like(bias, 0.05), rtol=1e-4, atol=1e-6)


def test_state_copies_and_removal():
    layer = equalized(nn.Linear(3, 2))
    other = equalized(nn.Linear(3, 2))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    nn.utils.parametrize.remove_parametrizations(other, "weight")
    torch.testing.assert_close(other(x), layer(x))
    again = equalized(nn.Linear(3, 2), generator=torch.Generator().manual_seed(3))
    assert torch.equal(again.weight, equalized(nn.Linear(3, 2), generator=torch.Generator().manual_seed(3)).weight)


def test_messages():
    with pytest.raises(ValueError, match="Conv1d to Conv3d, got ConvTranspose2d"):
        equalized(nn.ConvTranspose2d(1, 1, 1))
    with pytest.raises(ValueError, match="Linear is parametrized already"):
        equalized(equalized(nn.Linear(1, 1)))
    with pytest.raises(ValueError, match=r"lr_scale > 0, got 1\.0 and 0"):
        equalized(nn.Linear(1, 1), lr_scale=0.0)
