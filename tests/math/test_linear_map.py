"""Maps of layers: forward against torch's layer, adjoint against autograd, messages."""

import pytest
import torch
from torch import nn

from danlu.math.linear_map import ConvMap, MatrixMap, conv_map, layer_map

D = torch.float64


def layers():
    yield nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 7)
    yield nn.Conv1d(2, 3, 4, padding="same"), (2, 7)
    yield nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (2, 5)
    yield nn.Conv2d(2, 4, (3, 2), stride=(2, 3), padding=(1, 0), dilation=(1, 2), groups=2), (2, 6, 9)
    yield nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="circular"), (4, 4, 5)
    yield nn.Conv2d(2, 3, 3, padding="valid"), (2, 4, 5)
    yield nn.Conv2d(2, 3, 3, stride=2, padding=3, dilation=2, padding_mode="circular"), (2, 4, 5)
    yield nn.Conv3d(2, 2, 2, stride=2), (2, 3, 4, 5)
    yield nn.ConvTranspose1d(3, 2, 3, stride=2, padding=1, output_padding=1), (3, 4)
    yield nn.ConvTranspose2d(4, 2, (3, 2), stride=(2, 1), dilation=(1, 2), groups=2), (4, 3, 4)
    yield nn.ConvTranspose3d(2, 2, 2, stride=2, output_padding=1), (2, 2, 2, 2)


LAYERS = list(layers())
each = pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[repr(layer)[:60] for layer, _ in LAYERS])


@each
def test_forward_is_the_layer_and_adjoint_its_transpose(layer, shape):
    layer = layer.double()
    layer.bias = None
    w = layer.weight.detach()
    x = torch.randn(shape, dtype=D, requires_grad=True)
    y = layer(x[None])[0]
    u = torch.randn(y.shape, dtype=D)
    (back,) = torch.autograd.grad(y, x, u)
    found = layer_map(layer, w, shape[1:])
    forward, adjoint = found.forward, found.adjoint
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        forward, adjoint = adjoint, forward  # it is the transpose of the convolution that is described
    torch.testing.assert_close(forward(w, x.detach()), y.detach())
    torch.testing.assert_close(adjoint(w, u), back)


def test_matrices_and_kernels_without_input_size():
    w = torch.randn(6, 2, 3, dtype=D)
    found = layer_map(nn.Conv1d(4, 6, 3, groups=2), w)
    assert found == MatrixMap((2, 6))
    v, u = torch.randn(2, 6, dtype=D), torch.randn(2, 3, dtype=D)
    block = torch.block_diag(w[:3].flatten(1), w[3:].flatten(1))
    torch.testing.assert_close(found.forward(w, v).flatten(), block @ v.flatten())
    torch.testing.assert_close(found.adjoint(w, u).flatten(), block.T @ u.flatten())
    assert layer_map(nn.Linear(3, 2), torch.ones(2, 3), 8) == MatrixMap((1, 3))


def test_one_number_stands_for_all_axes():
    w = torch.ones(2, 2, 3, 3)
    assert (
        conv_map(w, 5, 1, 1)
        == conv_map(w, (5, 5), (1, 1), (1, 1), (1, 1))
        == ConvMap((2, 5, 5), (1, 1), ((1, 1), (1, 1)), (1, 1))
    )
    assert conv_map(w, 5, padding="same").output_size((3, 3)) == (5, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv_map(torch.ones(2, 3), 5), r"a kernel is.*got \(2, 3\); for a matrix use"),
        (lambda: conv_map(torch.ones(2, 3, 3), (5, 5)), r"input_size must be a number >= 1 or 1 of them, got \(5, 5\)"),
        (lambda: conv_map(torch.ones(2, 3, 3), 5, stride=0), "stride must be a number >= 1"),
        (lambda: conv_map(torch.ones(2, 3, 3), 5, padding=-1), "padding must be a number >= 0"),
        (lambda: conv_map(torch.ones(2, 3, 3), 5, padding="full"), "'same' or 'valid', got 'full'"),
        (lambda: conv_map(torch.ones(2, 3, 3), 2), r"does not fit inputs of size \(2,\)"),
        (lambda: conv_map(torch.ones(3, 3, 1), 2, groups=2), "groups=2"),
        (lambda: conv_map(torch.ones(2, 3, 3), 5, padding_mode="reflect"), "'zeros' or 'circular', got 'reflect'"),
        (lambda: conv_map(torch.ones(2, 3, 3), 2, padding=3, padding_mode="circular"), "more than once"),
        (lambda: layer_map(nn.LayerNorm(3), torch.ones(3)), r"two axes or more, got \(3,\)"),
    ],
)  # fmt: skip
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
