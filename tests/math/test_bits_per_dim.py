"""Bits per dimension: known code lengths, the unit of densities, agreement of both routes, messages."""

import math

import pytest
import torch

from danlu.math import bits_per_dim, discretized_logistic_log_prob


def test_uniform_levels_cost_their_bits():
    for bits in (1, 5, 8):
        log_prob = torch.full((3,), -12 * bits * math.log(2))  # 12 dimensions
        torch.testing.assert_close(bits_per_dim(log_prob, 12), torch.full((3,), float(bits)))


def test_a_density_in_any_unit_says_the_same():
    log_density = torch.tensor([-3.0, 10.0], dtype=torch.float64)  # of 6 dimensions, one level a unit
    plain = bits_per_dim(log_density, 6)
    for unit in (256.0, 127.5):  # x / unit has the density times unit^6
        torch.testing.assert_close(bits_per_dim(log_density + 6 * math.log(unit), 6, unit), plain)


def test_a_wide_density_times_the_bin_is_the_probability():
    mean, log_scale = torch.tensor(0.1, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    exact = bits_per_dim(discretized_logistic_log_prob(torch.tensor(100), mean, log_scale)[None], 1)
    u = (2 * 100 / 255 - 1 - 0.1) / math.e
    density = -u - 1 - 2 * math.log1p(math.exp(-u))  # of the value in [-1, 1]: 127.5 levels a unit
    torch.testing.assert_close(
        bits_per_dim(torch.tensor([density], dtype=torch.float64), 1, 127.5), exact, rtol=1e-6, atol=0
    )


def test_dtype_gradient_and_messages():
    log_prob = torch.tensor([-8.0], dtype=torch.bfloat16, requires_grad=True)
    out = bits_per_dim(log_prob, 2)
    out.sum().backward()
    assert out.dtype == torch.float32 and log_prob.grad.item() == pytest.approx(-1 / (2 * math.log(2)), rel=0.01)
    for dims, unit in ((0, 1.0), (3, 0.0), (3, math.inf), (3, math.nan)):
        with pytest.raises(ValueError, match=rf"num_dims >= 1 and a finite levels_per_unit > 0, got {dims} and {unit}"):
            bits_per_dim(log_prob, dims, unit)
