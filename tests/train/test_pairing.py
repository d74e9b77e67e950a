"""Pairs and mixtures: the law of the coefficients, kinds of pairs, torchvision's numbers, padding, messages."""

import math

import pytest
import torch
from scipy import stats

from danlu.train import Mix, draw_mix, mix_inputs, mix_masks
from danlu.train.pairing import symmetric_beta

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 1])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("alpha", [0.02, 0.2, 0.5, 1.0, 3.0, 40.0])
def test_coefficients_follow_the_beta_law(alpha):
    n = 20_000
    lam = draw_mix(n, alpha, generator=generator()).weight.double()
    variance = 1 / (4 * (2 * alpha + 1))  # 0.1786 for 0.2, 0.0833 for 1
    fourth = stats.beta(alpha, alpha).moment(4) - 4 * 0.5 * stats.beta(alpha, alpha).moment(3) + 6 * 0.25 * (
        variance + 0.25) - 3 * 0.0625  # fmt: skip
    assert lam.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(variance / n))
    assert lam.var().item() == pytest.approx(variance, abs=4 * math.sqrt((fourth - variance**2) / n) + 1e-12)
    inside = ((lam > 0.01) & (lam < 0.99)).double().mean().item()
    share = 1 - 2 * stats.beta(alpha, alpha).cdf(0.01)
    assert inside == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n) + 1e-9)
    if alpha > 0.1:  # below, and in float32, much of the mass rounds to 1
        exact = symmetric_beta(n, alpha, generator(1)).numpy()
        assert stats.kstest(exact, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_ends_of_alpha():
    assert torch.equal(draw_mix(9, 0.0).weight, torch.ones(9))
    assert torch.equal(draw_mix(9, math.inf).weight, torch.full((9,), 0.5))
    lam = draw_mix(2_000, 1e-3, generator=generator()).weight
    assert lam.isfinite().all() and ((lam < 1e-6) | (lam > 1 - 1e-6)).float().mean() > 0.95
    assert lam.round().mean().item() == pytest.approx(0.5, abs=0.05)
    assert draw_mix(6, 1.0, per_sample=False, generator=generator()).weight.shape == (1,)
    both, larger = (draw_mix(500, 1.0, dominant=d, generator=generator()).weight for d in (False, True))
    assert torch.equal(larger, torch.maximum(both, 1 - both)) and (both < 0.5).any()


def test_kinds_of_pairs():
    assert draw_mix(4, pair="roll").partner.tolist() == [3, 0, 1, 2]
    seen: dict[str, set] = {pair: set() for pair in ("random", "same_class", "different_class")}
    for seed in range(60):
        for pair, found in seen.items():
            partner = draw_mix(7, pair=pair, labels=LABELS, generator=generator(seed)).partner
            found |= set(enumerate(partner.tolist()))
            if pair != "different_class":
                assert sorted(partner.tolist()) == list(range(7))  # everybody is somebody's partner once
    everybody = {(i, j) for i in range(7) for j in range(7)}
    assert seen["random"] == everybody
    assert seen["same_class"] == {(i, j) for i, j in everybody if LABELS[i] == LABELS[j]}
    assert seen["different_class"] == {(i, j) for i, j in everybody if LABELS[i] != LABELS[j]}
    alone = draw_mix(3, pair="different_class", labels=torch.tensor([4, 4, 4]), generator=generator())
    assert alone.partner.tolist() == [0, 1, 2]
    for pair in ("random", "roll", "same_class", "different_class"):
        assert draw_mix(0, pair=pair, labels=LABELS[:0]).partner.shape == (0,)
        assert draw_mix(1, pair=pair, labels=LABELS[:1]).partner.tolist() == [0]


def test_pairs_of_the_same_class_are_uniform():
    draws = [
        draw_mix(7, pair="same_class", labels=LABELS, generator=generator(s)).partner[0].item() for s in range(3000)
    ]
    for j in (0, 2, 5):
        assert draws.count(j) / 3000 == pytest.approx(1 / 3, abs=4 * math.sqrt(2 / 9 / 3000))


def test_the_same_generator_gives_the_same_draw_and_leaves_torchs_own_alone():
    state = torch.get_rng_state()
    for pair in ("random", "same_class", "different_class"):
        one, two = (draw_mix(7, pair=pair, labels=LABELS, generator=generator(3)) for _ in range(2))
        assert torch.equal(one.weight, two.weight) and torch.equal(one.partner, two.partner)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    one = draw_mix(7)
    torch.manual_seed(1)
    assert torch.equal(one.partner, draw_mix(7).partner)


def test_inputs_equal_torchvisions():
    """torchvision 0.29.2, v2.MixUp(alpha=0.7, num_classes=3) on these sines; it drew this coefficient."""
    lam = 0.14297078549861905
    x = torch.arange(12, dtype=torch.float64).reshape(3, 1, 2, 2).sin()
    mix = Mix(torch.tensor([lam], dtype=torch.float64), draw_mix(3, pair="roll").partner)
    expected = [
        0.8479089209641004, 0.47350334936052313, -0.3362390179725444, -0.8368447828273324, -0.10820064722148948,
        0.5840670603533326, 0.7393462062025524, 0.21487385973886786, -0.5071525224271574, -0.762905214327341,
        -0.317246370492622, 0.4200873233164173,
    ]  # fmt: skip
    assert mix_inputs(x, mix).flatten().tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("per_sample", [False, True])
def test_mixtures_by_hand(per_sample):
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    mix = draw_mix(4, 1.0, per_sample, generator=generator())
    weights = mix.weight.tolist() * (1 if per_sample else 4)
    expected = [
        [[w * x[i, t, d].item() + (1 - w) * x[p, t, d].item() for d in range(3)] for t in range(2)]
        for i, (w, p) in enumerate(zip(weights, mix.partner.tolist(), strict=True))
    ]
    torch.testing.assert_close(mix_inputs(x, mix), torch.tensor(expected, dtype=torch.float64))


def test_plain_training_to_the_bit():
    x = torch.randn(6, 5) * 1e3
    shuffled = draw_mix(6, generator=generator()).partner
    assert torch.equal(mix_inputs(x, Mix(torch.ones(6), shuffled)), x)
    assert torch.equal(mix_inputs(x, Mix(torch.rand(6), torch.arange(6))), x)
    assert torch.equal(mix_inputs(x, Mix(torch.zeros(1), shuffled)), x[shuffled])
    assert mix_inputs(x[:0], draw_mix(0)).shape == (0, 5)


def test_half_precision_is_mixed_in_float32():
    x, mix = torch.randn(64, 8), draw_mix(64, 1.0, generator=generator())
    for dtype in (torch.bfloat16, torch.float16):
        low = x.to(dtype)
        assert torch.equal(mix_inputs(low, mix), mix_inputs(low.float(), mix).to(dtype))


def test_padding_adds_nothing_and_both_rows_count():
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    mix = Mix(torch.tensor([0.75, 0.5, 0.25]), torch.tensor([1, 2, 0]))
    out = mix_inputs(x.masked_fill(~mask[..., None], math.nan), mix, mask)  # the vectors of padding are never read
    assert mix_masks(mask, mix).tolist() == [[True] * 4, [True] * 4, [True, True, False, False]]
    torch.testing.assert_close(out[0, :2], 0.75 * x[0, :2] + 0.25 * x[1, :2])
    torch.testing.assert_close(out[0, 2:], 0.25 * x[1, 2:])  # only the partner has these
    torch.testing.assert_close(out[1, 1:], 0.5 * x[1, 1:])  # only the row itself
    assert not out[2, 2:].any()
    clean = mix_inputs(x.where(mask[..., None], 0.0), mix)
    torch.testing.assert_close(out, clean, rtol=0, atol=0)
    flat = mix_inputs(x, mix, torch.tensor([True, False, True]))  # whole rows
    torch.testing.assert_close(flat[0], 0.75 * x[0])


def test_gradients_reach_both_and_no_padding():
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    mix = draw_mix(3, 1.0, generator=generator(1))
    assert torch.autograd.gradcheck(lambda v: mix_inputs(v, mix, mask), x)
    (g,) = torch.autograd.grad(mix_inputs(x, mix, mask).sum(), x)
    assert not g[~mask].any()
    share = mix.weight.double().clone()
    share.index_add_(0, mix.partner, 1 - mix.weight.double())  # its own part, and what it gives as a partner
    torch.testing.assert_close(g[:, 0, 0], share)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -1.0}, "alpha must be >= 0, got -1.0; 0 is plain training"),
        ({"alpha": math.nan}, "alpha must be >= 0, got nan"),
        ({"pair": "other"}, "pair must be one of random, roll, same_class, different_class; got 'other'"),
        ({"pair": "same_class"}, r"pair='same_class' needs labels \(7,\) of class indices, got none"),
        ({"pair": "same_class", "labels": torch.zeros(7)}, r"got torch.float32 \(7,\)"),
        ({"pair": "different_class", "labels": LABELS[:3]}, r"got torch.int64 \(3,\)"),
    ],
)
def test_messages_of_draws(change, message):
    with pytest.raises(ValueError, match=message):
        draw_mix(7, **change)


def test_messages():
    mix = draw_mix(2)
    with pytest.raises(TypeError, match=r"a mixture of torch.int64 has no meaning \(token ids.*output_mixed"):
        mix_inputs(torch.zeros(2, 3).long(), mix)
    with pytest.raises(ValueError, match=r"the draw pairs 2 examples along dimension 0, got a tensor \(3, 2\)"):
        mix_inputs(torch.zeros(3, 2), mix)
    for mask in (torch.ones(2, 3), torch.ones(2, 4).bool()):
        with pytest.raises(ValueError, match=r"mask must be bool, True = keep, of leading dimensions of \(2, 3, 1\)"):
            mix_inputs(torch.zeros(2, 3, 1), mix, mask)
    with pytest.raises(ValueError, match=r"got torch.float32; write mask.bool\(\)"):
        mix_masks(torch.ones(2, 3), mix)
    with pytest.raises(ValueError, match="the draw pairs 2 examples"):
        mix_masks(torch.ones(3, 3).bool(), mix)
