"""Mixtures of discretised logistics: sums over all colours, the RGB coupling by hand, exact draws, layout, messages."""

import itertools
import math

import pytest
import torch

from danlu.math import (
    LogisticMixture,
    discretized_logistic_log_prob,
    logistic_mixture_log_prob,
    logistic_mixture_sample,
    split_logistic_mixture,
)

D = torch.float64


def mixture(channels: int, components: int, pixels: int = 3, seed: int = 0, wide: float = 1.0) -> LogisticMixture:
    g = torch.Generator().manual_seed(seed)
    pairs = channels * (channels - 1) // 2
    rows = [torch.randn(pixels, n, components, generator=g, dtype=D) for n in (1, channels, channels, pairs)]
    return LogisticMixture(rows[0][:, 0], rows[1], wide * rows[2] - 1, rows[3] if pairs else None)


def by_hand(pixel: list[int], m: LogisticMixture, i: int, bits: int) -> float:
    """Eq. (1) and (2) with the coupling written out for red, green, blue."""
    red, green, _ = (2 * k / (2**bits - 1) - 1 for k in pixel)
    total = 0.0
    weights = m.logits[i].softmax(-1).tolist()
    for j, weight in enumerate(weights):
        c0, c1, c2 = (math.tanh(t) for t in m.coefficients[i, :, j].tolist())
        r, g, b = m.mean[i, :, j].tolist()
        means = torch.tensor([r, g + c0 * red, b + c1 * red + c2 * green], dtype=D)
        log_p = discretized_logistic_log_prob(torch.tensor(pixel), means, m.log_scale[i, :, j], bits)
        total += weight * math.exp(log_p.sum().item())
    return math.log(total)


@pytest.mark.parametrize("wide", [1.0, 8.0])
def test_all_colours_sum_to_one(wide):
    colours = torch.tensor(list(itertools.product(range(4), repeat=3)))  # (64, 3)
    m = mixture(3, 5, wide=wide)
    log_prob = logistic_mixture_log_prob(colours[:, None], *m, bits=2)  # (64, 3 pixels)
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(3, dtype=D))
    single = LogisticMixture(*(p.float() for p in m))
    torch.testing.assert_close(logistic_mixture_log_prob(colours[:, None], *single, bits=2).exp().sum(0), torch.ones(3))


@pytest.mark.parametrize("bits", [5, 8])
def test_all_greys_sum_to_one_in_float32(bits):
    m = LogisticMixture(*(None if p is None else p.float() for p in mixture(1, 10, wide=6.0)))
    log_prob = logistic_mixture_log_prob(torch.arange(2**bits)[:, None, None], *m, bits=bits)
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(3), rtol=0, atol=2e-6)


def test_equals_the_coupling_by_hand():
    m = mixture(3, 4)
    for pixel in ([0, 0, 0], [7, 3, 1], [5, 7, 0], [2, 4, 7]):
        got = logistic_mixture_log_prob(torch.tensor(pixel).expand(3, 3), *m, bits=3)
        for i in range(3):
            assert got[i].item() == pytest.approx(by_hand(pixel, m, i, 3), rel=1e-9)


def test_no_coefficients_is_coefficients_of_zero():
    m = mixture(3, 4)
    pixel = torch.tensor([[1, 2, 3], [0, 0, 3], [3, 3, 0]])
    free = logistic_mixture_log_prob(pixel, *m[:3], bits=2)
    torch.testing.assert_close(logistic_mixture_log_prob(pixel, *m[:3], torch.zeros_like(m.mean), bits=2), free)
    assert (logistic_mixture_log_prob(pixel, *m, bits=2) - free).abs().max() > 0.05


def test_one_component_is_the_plain_logistic():
    m = mixture(1, 1)
    levels = torch.tensor([[3], [0], [200]])
    expected = discretized_logistic_log_prob(levels[:, 0], m.mean[:, 0, 0], m.log_scale[:, 0, 0])
    torch.testing.assert_close(logistic_mixture_log_prob(levels, *m), expected)


def test_gradcheck():
    m = mixture(3, 2, pixels=2)
    pixel = torch.tensor([[0, 3, 1], [2, 1, 3]])
    inputs = tuple(p.clone().requires_grad_() for p in m)
    assert torch.autograd.gradcheck(lambda *p: logistic_mixture_log_prob(pixel, *p, bits=2), inputs)


def test_a_component_of_weight_zero_counts_for_nothing():
    m = mixture(3, 2)
    logits = torch.tensor([0.0, -torch.inf], dtype=D).expand(3, 2).clone().requires_grad_()
    pixel = torch.ones(3, 3)
    got = logistic_mixture_log_prob(pixel, logits, *m[1:], bits=2)
    alone = logistic_mixture_log_prob(pixel, logits[:, :1].detach(), *(p[..., :1] for p in m[1:]), bits=2)
    torch.testing.assert_close(got, alone)
    got.sum().backward()
    assert logits.grad.isfinite().all()


def test_draws_follow_the_probabilities_of_whole_pixels():
    m, count = mixture(3, 2, pixels=1, seed=2), 20_000
    drawn = logistic_mixture_sample(
        *(p.expand(count, *p.shape[1:]) for p in m), bits=1, generator=torch.Generator().manual_seed(0)
    )
    assert drawn.shape == (count, 3) and drawn.dtype == torch.int64
    colours = torch.tensor(list(itertools.product(range(2), repeat=3)))
    p = logistic_mixture_log_prob(colours, *m, bits=1).exp()  # (8,)
    share = (drawn @ torch.tensor([4, 2, 1])).bincount(minlength=8) / count
    assert ((share - p).abs() <= 4.5 * (p * (1 - p) / count).sqrt()).all()
    assert (p - 1 / 8).abs().max() > 0.05  # the draws could have been wrong


def test_draws_take_the_generator():
    m = mixture(3, 3)
    draws = [logistic_mixture_sample(*m, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    with pytest.raises(ValueError, match="logits that are nan"):
        logistic_mixture_sample(m.logits * torch.nan, *m[1:])


def test_split_lays_the_features_out():
    output = torch.arange(2 * 20 * 3 * 4.0).reshape(2, 20, 3, 4)
    m = split_logistic_mixture(output, 3)  # J = 2
    assert m.logits.shape == (2, 3, 4, 2) and m.coefficients.shape == (2, 3, 4, 3, 2)
    torch.testing.assert_close(m.logits[1, 2, 3], output[1, 0:2, 2, 3])
    torch.testing.assert_close(m.mean[1, 2, 3], output[1, 2:8, 2, 3].reshape(3, 2))
    torch.testing.assert_close(m.log_scale[1, 2, 3], output[1, 8:14, 2, 3].reshape(3, 2))
    torch.testing.assert_close(m.coefficients[1, 2, 3], output[1, 14:, 2, 3].reshape(3, 2))
    grey = split_logistic_mixture(torch.zeros(5, 12), 1)
    assert grey.mean.shape == (5, 1, 4) and grey.coefficients is None
    assert split_logistic_mixture(torch.zeros(5, 14), 3, coupled=False).coefficients is None


def test_images_train_in_a_plain_loop_under_autocast():
    levels = torch.randint(0, 32, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 20, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            m = split_logistic_mixture(network(levels.float() / 15.5 - 1), 3)
            log_prob = logistic_mixture_log_prob(levels.movedim(1, -1), *m, bits=5)
        assert log_prob.dtype == torch.float32 and log_prob.shape == (2, 4, 4)
        (-log_prob.mean()).backward()
        optimizer.step()
        losses.append(-log_prob.mean().item())
    assert losses[-1] < losses[0] - 0.5


def test_messages():
    m = mixture(3, 2)
    pixel = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"J, C >= 1; got \(3, 2\), \(3, 2\) and \(3, 3, 2\).*mean\[..., None, :\]"):
        logistic_mixture_log_prob(pixel, m.logits, m.mean[:, 0], *m[2:])
    with pytest.raises(ValueError, match=r"levels \(..., 3\) for mean \(3, 3, 2\), got \(3, 4\).*movedim"):
        logistic_mixture_log_prob(torch.zeros(3, 4), *m)
    with pytest.raises(ValueError, match=r"coefficients \(3, 3, 2\).*3 channels, or None; got \(3, 2, 2\)"):
        logistic_mixture_log_prob(pixel, *m[:3], m.coefficients[:, :2])
    with pytest.raises(ValueError, match=r"whole levels 0 .. 255.*got 0.5"):
        logistic_mixture_log_prob(pixel + 0.5, *m)
    with pytest.raises(ValueError, match=r"multiple of 10 features \(3 channels, coupled=True\); got \(2, 21\)"):
        split_logistic_mixture(torch.zeros(2, 21), 3)
