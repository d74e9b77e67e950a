"""Focal loss: the formula by hand, binary cross-entropy as its limit, gradients, extremes, messages."""

import math

import pytest
import torch
import torch.nn.functional as F

from danlu.losses import focal_loss

Z = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
KEEP = torch.tensor([[True, True, False, True], [True] * 4, [False] * 4])


def logs(z):
    return F.logsigmoid(z), F.logsigmoid(-z)


def by_hand(z, y, alpha, gamma):
    q = 1 / (1 + math.exp(-z))
    return -alpha * y * (1 - q) ** gamma * math.log(q) - (1 - alpha) * (1 - y) * q**gamma * math.log(1 - q)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.7, 0.5), (0.5, 0.0)])
def test_equals_the_formula(alpha, gamma):
    rows = zip(Z.tolist(), Y.tolist(), strict=True)
    expected = [[by_hand(z, y, alpha, gamma) for z, y in zip(a, b, strict=True)] for a, b in rows]
    got = focal_loss(*logs(Z), Y, alpha=alpha, gamma=gamma, reduction="none")
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_without_focus_it_is_half_the_cross_entropy():
    expected = F.binary_cross_entropy_with_logits(Z, Y.double()) / 2
    torch.testing.assert_close(focal_loss(*logs(Z), Y, alpha=0.5, gamma=0), expected)


def test_settled_items_weigh_little():
    easy, hard = torch.tensor([4.0]), torch.tensor([-4.0])
    ratio = focal_loss(*logs(hard), torch.ones(1)) / focal_loss(*logs(easy), torch.ones(1))
    plain = F.softplus(-hard) / F.softplus(-easy)
    assert ratio > 1000 * plain


def test_masked_items_have_no_influence():
    wild = Z.masked_fill(~KEEP, 1e4)
    torch.testing.assert_close(focal_loss(*logs(wild), Y, KEEP), focal_loss(*logs(Z), Y, KEEP))
    kept = focal_loss(*logs(Z), Y, reduction="none")[KEEP]
    torch.testing.assert_close(focal_loss(*logs(Z), Y, KEEP), kept.mean())
    torch.testing.assert_close(focal_loss(*logs(Z), Y, KEEP, reduction="sum"), kept.sum())


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda z: focal_loss(*logs(z), Y, KEEP), Z.clone().requires_grad_())


def test_extremes_are_finite():
    z = torch.tensor([-200.0, 200.0, -200.0, 200.0], requires_grad=True)
    loss = focal_loss(*logs(z), torch.tensor([1, 1, 0, 0]), reduction="none")
    torch.testing.assert_close(loss, torch.tensor([50.0, 0.0, 0.0, 150.0]))
    loss.sum().backward()
    assert torch.isfinite(z.grad).all()
    certain = torch.tensor([0.0, -torch.inf])
    assert focal_loss(certain, certain.flip(0), torch.tensor([1, 0]), gamma=0).item() == 0


def test_messages():
    with pytest.raises(ValueError, match=r"got \(2,\), \(2,\) and \(3,\).*F\.logsigmoid\(-z\)"):
        focal_loss(torch.zeros(2), torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\] and gamma be at least 0, got 2 and 1"):
        focal_loss(torch.zeros(2), torch.zeros(2), torch.zeros(2), alpha=2, gamma=1)
