"""Power activation: the formula in 220 digits, torch's own entropy, extremes, gradients, masks, messages."""

import math
from decimal import Decimal, getcontext

import pytest
import torch
import torch.nn.functional as F

from danlu.losses import power_binary_cross_entropy, power_sigmoid

getcontext().prec = 220
LOGITS = torch.tensor(
    [-90.0, -30.0, -7.5, -1.0, -1e-3, 0.0, 1e-3, 0.4, 3.0, 19.0, 21.0, 45.0, 90.0], dtype=torch.float64
)


def by_hand(logit, label, power):  # oracle: eq. (2) in decimal arithmetic, no stable forms
    q = (1 / (1 + (-Decimal(logit)).exp())) ** Decimal(power)
    return float(-(q.ln() if label else (1 - q).ln()))


@pytest.mark.parametrize("power", [0.5, 1, 2, 3.5, 4])
@pytest.mark.parametrize("label", [0, 1])
def test_equals_the_formula_everywhere(power, label):
    expected = torch.tensor([by_hand(t, label, power) for t in LOGITS.tolist()], dtype=torch.float64)
    got = power_binary_cross_entropy(LOGITS, torch.full_like(LOGITS, label), power, "none")
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=0)
    single = power_binary_cross_entropy(LOGITS.float(), torch.full_like(LOGITS, label), power, "none")
    torch.testing.assert_close(single.double(), expected, rtol=2e-5, atol=1e-38)


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_equals_torch_on_the_power_itself(power):
    t = 6 * torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.arange(50) % 2
    oracle = F.binary_cross_entropy(torch.sigmoid(t) ** power, y.double())
    torch.testing.assert_close(power_binary_cross_entropy(t, y, power), oracle)
    if power == 1:
        torch.testing.assert_close(power_binary_cross_entropy(t, y), F.binary_cross_entropy_with_logits(t, y.double()))


@pytest.mark.parametrize(
    ("power", "loss", "negative", "positive"), [(1, 0.6931, 0.5, -0.5), (2, 0.2877, 1 / 3, -1), (4, 0.0645, 2 / 15, -2)]
)
def test_a_fresh_model_starts_near_the_labels(power, loss, negative, positive):
    t = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    losses = power_binary_cross_entropy(t, torch.tensor([0, 1]), power, "none")
    losses.sum().backward()
    assert losses[0].item() == pytest.approx(loss, abs=5e-5)
    assert losses[1].item() == pytest.approx(power * math.log(2))
    assert t.grad.tolist() == pytest.approx([negative, positive])


@pytest.mark.parametrize("power", [0.5, 1, 2, 4])
@pytest.mark.parametrize("size", [100.0, 1e4])
def test_finite_with_finite_gradients_at_the_extremes(power, size):
    t = torch.tensor([size, -size, size, -size], requires_grad=True)
    losses = power_binary_cross_entropy(t, torch.tensor([0, 0, 1, 1]), power, "none")
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([size - math.log(power), 0, 0, power * size], rel=1e-6, abs=1e-6)
    assert t.grad.tolist() == pytest.approx([1, 0, 0, -power], abs=1e-6)


def test_half_precision_is_read_in_float32():
    t = torch.tensor([-20.0, 0.5, 12.0], dtype=torch.bfloat16)
    loss = power_binary_cross_entropy(t, torch.zeros(3), 4.0, "none")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, power_binary_cross_entropy(t.float(), torch.zeros(3), 4.0, "none"))


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_gradcheck(power):
    t = LOGITS[2:-2].clone().requires_grad_()
    y = torch.rand(len(t), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda t: power_binary_cross_entropy(t, y, power, "none"), t)


def test_masked_items_may_hold_anything():
    t = torch.tensor([0.3, torch.nan, -torch.inf], requires_grad=True)
    keep = torch.tensor([True, False, False])
    loss = power_binary_cross_entropy(t, torch.tensor([1.0, torch.nan, 1.0]), 2.0, mask=keep)
    loss.backward()
    assert loss.item() == pytest.approx(2 * math.log1p(math.exp(-0.3)))
    assert t.grad[1:].tolist() == [0, 0]


def test_the_probability_is_the_power_of_the_sigmoid():
    torch.testing.assert_close(power_sigmoid(LOGITS, 4.0), torch.sigmoid(LOGITS) ** 4)
    assert power_sigmoid(torch.tensor([800.0, -800.0]), 4.0).tolist() == [1, 0]


def test_messages():
    with pytest.raises(ValueError, match=r"label for every logit; got logits \(3,\) and target \(2,\)"):
        power_binary_cross_entropy(torch.zeros(3), torch.zeros(2))
    for power in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"power must be a number above 0, got .*1 is the plain sigmoid"):
            power_sigmoid(torch.zeros(1), power)
    with pytest.raises(ValueError, match="mask must be bool"):
        power_binary_cross_entropy(torch.zeros(2), torch.zeros(2), mask=torch.ones(2))
