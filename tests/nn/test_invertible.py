"""Squeeze, permutation, flattening and the chain: where each number goes, sums of log-determinants, messages."""

import pytest
import torch

from danlu.nn import ActNorm, ChannelPermutation, Flatten, InvertibleLinear, InvertibleSequential, Squeeze


def test_squeeze_puts_blocks_into_channels_by_hand():
    x = torch.randn(2, 3, 4, 6)
    y, log_det = Squeeze()(x)
    expected = torch.stack([x[:, c, i::2, j::2] for c in range(3) for i in range(2) for j in range(2)], 1)
    assert torch.equal(y, expected)
    assert log_det.tolist() == [0, 0]
    assert torch.equal(Squeeze().inverse(y)[0], x)


def test_permutations():
    x = torch.randn(2, 5, 3)
    assert torch.equal(ChannelPermutation(5)(x)[0], x.flip(1))
    generator = torch.Generator().manual_seed(1)
    layer = ChannelPermutation(5, "shuffle", generator)
    y, log_det = layer(x)
    assert not torch.equal(y, x)
    assert torch.equal(layer.inverse(y)[0], x)
    assert torch.equal(log_det, torch.zeros(2))
    assert sorted(layer.order.tolist()) == [0, 1, 2, 3, 4]
    again = ChannelPermutation(5, "shuffle", torch.Generator().manual_seed(1))
    assert torch.equal(again.order, layer.order)


def test_flatten():
    x = torch.randn(2, 1, 2, 3)
    y, _ = Flatten((1, 2, 3))(x)
    assert y.shape == (2, 6)
    assert torch.equal(Flatten((1, 2, 3)).inverse(y)[0], x)
    assert Flatten((1, 2, 3)).inverse(y[:0])[0].shape == (0, 1, 2, 3)


def test_a_chain_has_the_jacobian_of_all_its_layers():
    layers = [Squeeze(), InvertibleLinear(4), ActNorm(4), ChannelPermutation(4, "shuffle"), InvertibleLinear(4)]
    chain = InvertibleSequential(layers).double()
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    y, log_det = chain(x)
    jacobian = torch.autograd.functional.jacobian(lambda v: chain(v[None])[0][0], x[0]).reshape(16, 16)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1].expand(5), atol=1e-10, rtol=0)
    back, negative = chain.inverse(y)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=0)
    torch.testing.assert_close(negative, -log_det)


def test_an_empty_chain_is_the_identity():
    x = torch.randn(2, 3)
    y, log_det = InvertibleSequential([])(x)
    assert torch.equal(y, x)
    assert log_det.tolist() == [0, 0]


def test_messages():
    with pytest.raises(ValueError, match=r"height and width divisible by 2, got \(1, 1, 5, 4\); pad or crop"):
        Squeeze()(torch.zeros(1, 1, 5, 4))
    with pytest.raises(ValueError, match=r"channels divisible by 4, got \(1, 3, 2, 2\)"):
        Squeeze().inverse(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="factor must be >= 1, got 0"):
        Squeeze(0)
    with pytest.raises(ValueError, match="mode must be 'reverse' or 'shuffle', got 'swap'"):
        ChannelPermutation(3, "swap")
    with pytest.raises(ValueError, match=r"this permutation takes \(N, 3, \.\.\.\), got \(1, 4\)"):
        ChannelPermutation(3)(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"items of shape \(2, 2\), got a batch \(1, 4\)"):
        Flatten((2, 2))(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"items of shape \(2, 2\) come from \(N, 4\), got \(1, 5\)"):
        Flatten((2, 2)).inverse(torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"Linear has no inverse\(y\)"):
        InvertibleSequential([torch.nn.Linear(2, 2)])
