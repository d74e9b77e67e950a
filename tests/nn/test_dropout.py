"""Dropout: rate, scale and mean, independent neighbours, seeds, gradients, what is left alone, messages."""

import math

import pytest
import torch

from danlu.nn.dropout import dropout


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_share_scale_and_mean(dtype, p):
    n, coarse = 100_001, dtype == torch.bfloat16  # n is no multiple of the four decisions of a word
    y = dropout(torch.ones(n, dtype=dtype), p, generator=stream())
    assert y.shape == (n,) and y.dtype == dtype
    kept = y != 0
    assert abs(kept.double().mean() - (1 - p)) < 4 * math.sqrt(p * (1 - p) / n)
    expected = torch.full_like(y[kept], 1 / (1 - p))
    torch.testing.assert_close(y[kept], expected, rtol=4e-3 if coarse else 2e-4, atol=0)
    assert abs(y.double().mean() - 1) < 4 * math.sqrt(p / (1 - p) / n) + (4e-3 if coarse else 0)


def test_the_true_share_scales_so_that_the_mean_is_exact():
    p = 3 / 65536  # rounded to this; 2.6 / 65536 is too
    kept = dropout(torch.ones(8, dtype=torch.float64), 2.6 / 65536, generator=stream())[0]
    assert kept.item() == 1 / (1 - p)


def test_all_sixteen_bits_count():
    """A share below one in 256 is met as well: a threshold that saw eight bits alone would drop nothing, or twice."""
    n, p = 1_000_000, 0.002
    dropped = (dropout(torch.ones(n), p, generator=stream()) == 0).double().mean()
    assert abs(dropped - p) < 4 * math.sqrt(p / n)


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 256])
def test_neighbours_are_independent(distance):
    n, p = 200_000, 0.3
    dropped = dropout(torch.ones(n), p, generator=stream()) == 0
    pairs = (dropped[distance:] & dropped[:-distance]).double().mean()
    assert abs(pairs - p * p) < 4 * math.sqrt(p * p * (1 - p * p) / (n - distance) * (1 + 2 * p))


def test_seeds_decide():
    x = torch.ones(64)
    assert torch.equal(dropout(x, 0.5, generator=stream(3)), dropout(x, 0.5, generator=stream(3)))
    assert not torch.equal(dropout(x, 0.5, generator=stream(3)), dropout(x, 0.5, generator=stream(4)))
    torch.manual_seed(3)
    first = dropout(x, 0.5)
    second = dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x, 0.5)) and not torch.equal(first, second)
    state = torch.get_rng_state()
    dropout(x, 0.5, generator=stream())
    assert torch.equal(state, torch.get_rng_state())


def test_gradcheck_in_first_and_second_order():
    x = torch.randn(3, 5, dtype=torch.float64, generator=stream()).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: dropout(v, 0.4, generator=stream(1)) ** 2, x)
    assert torch.autograd.gradgradcheck(lambda v: dropout(v, 0.4, generator=stream(1)) ** 2, x)


def test_what_is_dropped_gets_no_gradient():
    x = torch.randn(50, generator=stream()).requires_grad_()
    y = dropout(x, 0.5, generator=stream(1))
    y.sum().backward()
    torch.testing.assert_close(x.grad, (y != 0) * 2.0)


def test_off_in_evaluation_at_rate_zero_and_everything_at_one():
    x = torch.randn(7, generator=stream())
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x
    assert torch.equal(dropout(x, 1.0), torch.zeros(7))
    assert dropout(torch.ones(0, 3), 0.5).shape == (0, 3)


def test_other_memory_layouts():
    x = torch.ones(30, 40).mT
    y = dropout(x, 0.5, generator=stream())
    assert set(y.unique().tolist()) == {0.0, 2.0} and y.shape == (40, 30)


def test_other_devices_use_their_own():
    x = torch.ones(9, device="meta")
    assert dropout(x, 0.5).shape == dropout(x, 0.5, training=True).shape == (9,)


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_message_names_the_rate_and_the_way_out(p):
    with pytest.raises(ValueError, match=rf"must lie in \[0, 1\], got {p}; 0 switches it off"):
        dropout(torch.ones(2), p)
