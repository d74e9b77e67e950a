"""Discretised logistics: against differences of the CDF, sums over all levels at any scale, draws, edges, messages."""

import math

import pytest
import torch
from torch import Tensor

from danlu.math import discretized_logistic_log_prob, discretized_logistic_sample

D = torch.float64


def sigma(t: float) -> float:
    return 1 / (1 + math.exp(-t)) if t > -700 else 0.0


def by_hand(level: int, mean: float, log_scale: float, bits: int) -> float:
    """log of the logistic's mass between the neighbours' midpoints, in the units of the value, end bins to infinity."""
    top, scale = 2**bits - 1, math.exp(log_scale)
    value, half = 2 * level / top - 1, 1 / top
    above = 1.0 if level == top else sigma((value + half - mean) / scale)
    below = 0.0 if level == 0 else sigma((value - half - mean) / scale)
    return math.log(above - below)


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize(("mean", "log_scale"), [(0.3, -1.0), (-1.4, -0.5), (0.9, 1.0), (0.01, -3.0), (0.5, 4.0)])
def test_equals_the_difference_of_the_distribution_function(bits, mean, log_scale):
    levels = torch.arange(2**bits)
    got = discretized_logistic_log_prob(levels, torch.tensor(mean, dtype=D), torch.tensor(log_scale, dtype=D), bits)
    pairs = [(g, by_hand(k, mean, log_scale, bits)) for k, g in enumerate(got.tolist())]
    kept = [(g, h) for g, h in pairs if h > -12]  # farther out the difference by hand has no digits left
    assert len(kept) >= 2
    for g, h in kept:
        assert g == pytest.approx(h, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 12, 16])
def test_all_levels_sum_to_one_in_float32_at_any_scale_and_mean(bits):
    log_scale = torch.tensor([-300.0, -60, -20, -12, -7, -3, -1, 0, 2, 7, 20, 85, 300])[:, None, None]
    mean = torch.tensor([-3e38, -1e6, -1.3, -1, -0.3004, 0, 1 / 255, 0.5, 1, 1.7, 60, 3e38])[:, None]
    log_prob = discretized_logistic_log_prob(torch.arange(2**bits), mean, log_scale, bits)
    assert log_prob.isfinite().all() and (log_prob <= 0).all()
    total = log_prob.double().exp().sum(-1)
    assert (total - 1).abs().max() < 1e-6


def test_the_level_before_the_last_gets_no_tail():  # the slip of code that looks for values above 0.99
    log_prob = discretized_logistic_log_prob(torch.tensor([254, 255]), torch.tensor(3.0), torch.tensor(-3.0))
    assert log_prob[1].exp() == pytest.approx(1.0, abs=1e-6)
    assert log_prob[0] < -38  # (3 - (1 - h)) e^3 = 40 scales away, in a bin of 0.16 scales


def test_far_tails_keep_their_slope():
    mean = torch.tensor(30.0)
    log_prob = discretized_logistic_log_prob(torch.tensor([99, 100, 101]), mean, torch.tensor(-4.0))
    step = (2 / 255) * math.exp(4)
    assert log_prob[0] < -1000
    torch.testing.assert_close(log_prob.diff(), torch.full((2,), step), rtol=1e-3, atol=0)


def test_a_narrow_logistic_is_not_widened():
    for log_scale in (-12.0, -20.0):
        log_prob = discretized_logistic_log_prob(torch.tensor([127, 130]), torch.tensor(-1e-3), torch.tensor(log_scale))
        steps = 130 - 0.5 - 0.999 * 127.5  # levels from the mean to the near edge of 130
        assert log_prob[0] > -1e-6
        assert log_prob[1].item() == pytest.approx(-steps / (127.5 * math.exp(log_scale)), rel=1e-4)


def test_float32_agrees_with_float64_where_the_bins_are_thin():
    mean, levels = torch.tensor([0.37, -0.8, 1.1]), torch.tensor([3, 128, 254])[:, None]
    for log_scale in (-6.0, 0.0, 8.0, 30.0):
        scale = torch.tensor(log_scale)
        single = discretized_logistic_log_prob(levels, mean, scale)
        double = discretized_logistic_log_prob(levels, mean.double(), scale.double())
        torch.testing.assert_close(single.double(), double, rtol=2e-6, atol=2e-6)


def test_a_wide_logistic_leaves_half_to_each_end():
    log_prob = discretized_logistic_log_prob(torch.arange(4), torch.tensor(0.0), torch.tensor(200.0), bits=2)
    torch.testing.assert_close(log_prob[[0, 3]].exp(), torch.tensor([0.5, 0.5]))
    expected = math.log(0.25) - 200 - math.log(1.5)  # sigma'(0) / s
    torch.testing.assert_close(log_prob[1:3], torch.full((2,), expected))


@pytest.mark.parametrize("level", [0, 1, 7, 14, 15])
def test_gradcheck(level):
    def f(mean: Tensor, log_scale: Tensor) -> Tensor:
        return discretized_logistic_log_prob(torch.tensor(level), mean, log_scale, 4)

    mean = torch.tensor([-1.2, 0.0, 0.4, 2.0], dtype=D, requires_grad=True)
    for scale in (-4.0, -0.5, 3.0, 12.0):
        assert torch.autograd.gradcheck(f, (mean, torch.full((4,), scale, dtype=D, requires_grad=True)))


@pytest.mark.parametrize("scale", [-200.0, -30.0, 0.0, 60.0, 200.0])
@pytest.mark.parametrize("center", [-1e20, 0.0, 1e6])
def test_gradients_are_finite_at_the_extremes(scale, center):
    mean = torch.full((4,), center, requires_grad=True)
    log_scale = torch.full((4,), scale, requires_grad=True)
    discretized_logistic_log_prob(torch.arange(4), mean, log_scale, 2).sum().backward()
    assert mean.grad.isfinite().all() and log_scale.grad.isfinite().all()


def test_half_precision_and_strides():
    levels = torch.randint(0, 256, (3, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean = torch.linspace(-1, 1, 12).reshape(4, 3).T
    for dtype in (torch.float16, torch.bfloat16):
        got = discretized_logistic_log_prob(levels, mean.to(dtype), torch.zeros(4, dtype=dtype))
        assert got.dtype == torch.float32
        expected = discretized_logistic_log_prob(levels.long(), mean.to(dtype).float(), torch.zeros(4))
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert discretized_logistic_log_prob(levels[:0], mean[:0], mean[:0]).shape == (0, 4)
    assert discretized_logistic_log_prob(levels, mean, mean, bits=16).shape == (3, 4)


@pytest.mark.parametrize(
    ("mean", "log_scale", "bits"), [(0.1, -1.0, 2), (1.3, 0.0, 3), (-0.6, -2.5, 3), (0.0, 40.0, 1)]
)
def test_draws_follow_the_probabilities(mean, log_scale, bits):
    count, n = 20_000, 2**bits
    m, s = torch.full((count,), mean), torch.tensor(log_scale)
    drawn = discretized_logistic_sample(m, s, bits, torch.Generator().manual_seed(1))
    assert drawn.dtype == torch.int64
    p = discretized_logistic_log_prob(torch.arange(n), torch.tensor(mean), s, bits).exp()
    error = (drawn.bincount(minlength=n) / count - p).abs()
    assert (error <= 4.5 * (p * (1 - p) / count).sqrt() + 1e-4).all()


def test_draws_take_the_generator_and_stay_in_range():
    mean, scale = torch.tensor([-1e38, -5.0, 0.0, 5.0, 1e38]), torch.tensor([0.0, 300.0, -300.0])[:, None]
    first = discretized_logistic_sample(mean, scale, 8, torch.Generator().manual_seed(3))
    again = discretized_logistic_sample(mean, scale, 8, torch.Generator().manual_seed(3))
    assert torch.equal(first, again) and first.shape == (3, 5) and first.min() >= 0 and first.max() <= 255
    assert first[0, 0] == 0 and first[0, 4] == 255 and first[2].tolist() == [0, 0, 128, 255, 255]  # 127.5 to even
    with pytest.raises(ValueError, match="nan; look for what made it"):
        discretized_logistic_sample(torch.tensor(torch.nan), torch.tensor(0.0))


@pytest.mark.parametrize("bad", [-1.0, 256.0, 0.5, torch.nan, torch.inf])
def test_message_names_the_level_and_the_way_out(bad):
    z = torch.zeros(2)
    with pytest.raises(ValueError, match=rf"levels 0 .. 255 for bits=8, got {bad};.*\(x \* 255\).round\(\)"):
        discretized_logistic_log_prob(torch.tensor([3.0, bad]), z, z)


def test_messages_of_shapes_and_bits():
    z = torch.zeros(2)
    with pytest.raises(ValueError, match=r"that broadcast; got \(3,\), \(2,\) and \(2,\)"):
        discretized_logistic_log_prob(torch.zeros(3), z, z)
    with pytest.raises(ValueError, match=r"that broadcast; got \(2,\) and \(3,\)"):
        discretized_logistic_sample(z, torch.zeros(3))
    for bits in (0, 17, 8.0):
        with pytest.raises(ValueError, match=f"bits between 1 and 16, got {bits}"):
            discretized_logistic_log_prob(z, z, z, bits)
    with pytest.raises(ValueError, match=r"real levels, got torch\.complex64"):
        discretized_logistic_log_prob(torch.zeros(2, dtype=torch.complex64), z, z)


def test_a_network_learns_a_histogram():
    levels = torch.tensor([0] * 6 + [1] * 2 + [2] + [3])
    mean, log_scale = torch.zeros((), requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([mean, log_scale], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss = -discretized_logistic_log_prob(levels, mean, log_scale, bits=2).mean()
        loss.backward()
        optimizer.step()
    entropy = -sum(p * math.log(p) for p in (0.6, 0.2, 0.1, 0.1))
    assert entropy <= loss.item() < entropy + 0.03
