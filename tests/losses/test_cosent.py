"""CoSENT: the formula by hand, its gradient, InfoNCE as its special case, what must not matter, a second library."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.losses import CoSENTLoss, cosent_loss, info_nce
from danlu.math import spearman

G = torch.Generator().manual_seed(0)
S = 2 * torch.rand(7, dtype=torch.float64, generator=G) - 1
Y = torch.tensor([3.0, 0.5, 3.0, 5.0, 0.5, 2.0, 4.0])


def by_hand(s, y, scale=20.0):  # oracle: eq. (1) with Python floats
    s, y = s.tolist(), y.tolist()
    terms = [math.exp(scale * (s[j] - s[i])) for i in range(len(s)) for j in range(len(s)) if y[i] > y[j]]
    return math.log1p(sum(terms))


@pytest.mark.parametrize("scale", [0.5, 5.0, 20.0])
def test_equals_the_formula(scale):
    assert cosent_loss(S, Y, scale).item() == pytest.approx(by_hand(S, Y, scale), rel=1e-12)
    assert cosent_loss(S, Y > 2, scale).item() == pytest.approx(by_hand(S, (Y > 2).int(), scale), rel=1e-12)
    assert cosent_loss(S, Y.long(), scale).item() == pytest.approx(by_hand(S, Y.long(), scale), rel=1e-12)


def test_gradient_by_formula():
    s = S.clone().requires_grad_()
    loss = cosent_loss(s, Y, 3.0)
    loss.backward()
    p = [[math.exp(3 * (b - a) - loss.item()) if x > y else 0.0 for b, y in zip(S.tolist(), Y.tolist(), strict=True)]
         for a, x in zip(S.tolist(), Y.tolist(), strict=True)]  # fmt: skip
    expected = [3 * (sum(row[i] for row in p) - sum(p[i])) for i in range(len(S))]  # eq. (2)
    torch.testing.assert_close(s.grad, torch.tensor(expected, dtype=torch.float64))
    assert abs(s.grad.sum().item()) < 1e-12  # a shift of all cosines changes nothing
    assert torch.autograd.gradcheck(lambda x: cosent_loss(x, Y), S.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x: cosent_loss(x, Y, 3.0), S.clone().requires_grad_())


def test_one_pair_above_all_is_info_nce():
    target = torch.zeros(7)
    target[4] = 1
    expected = info_nce(20 * S[None], torch.tensor([4]))
    torch.testing.assert_close(cosent_loss(S, target), expected)


def test_two_pairs_are_a_softplus():
    s, y = torch.tensor([0.1, 0.4]), torch.tensor([2.0, 1.0])
    torch.testing.assert_close(cosent_loss(s, y), F.softplus(20 * (s[1] - s[0])))


def test_only_the_order_of_targets_counts_and_no_shift_of_cosines():
    torch.testing.assert_close(cosent_loss(S, Y.exp()), cosent_loss(S, Y))
    torch.testing.assert_close(cosent_loss(S + 7, Y), cosent_loss(S, Y))
    order = torch.randperm(7, generator=G)
    torch.testing.assert_close(cosent_loss(S[order], Y[order]), cosent_loss(S, Y))


def test_equal_targets_say_nothing():
    for y in (torch.full((7,), 2.0), torch.full((7,), math.nan)):
        s = S.clone().requires_grad_()
        loss = cosent_loss(s, y)
        loss.backward()
        assert loss.item() == 0 and torch.equal(s.grad, torch.zeros_like(S))
    for size in (0, 1):
        assert cosent_loss(S[:size], Y[:size]).item() == 0


def test_masked_pairs_have_no_influence_not_even_as_nan():
    keep = torch.tensor([True, True, False, True, False, True, True])
    dirty = S.masked_fill(~keep, math.nan).requires_grad_()
    loss = cosent_loss(dirty, Y, 2.0, keep)  # at a small scale every pair is felt
    torch.testing.assert_close(loss, cosent_loss(S[keep], Y[keep], 2.0))
    loss.backward()
    assert torch.equal(dirty.grad[~keep], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(cosent_loss(S, Y.masked_fill(~keep, math.nan), 2.0), loss.detach())
    assert cosent_loss(S, Y, mask=torch.zeros(7, dtype=torch.bool)).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    s = S.to(dtype)
    loss = cosent_loss(s, Y)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_hand(s.double(), Y), rel=1e-5)
    assert cosent_loss(torch.tensor([-1.0, 1.0], dtype=dtype), torch.tensor([1, 0]), scale=1e5).item() == 2e5


def test_the_module_takes_vectors_and_keeps_float32_under_autocast():
    u, v = torch.randn(6, 5, generator=G), torch.randn(6, 5, generator=G)
    cosine = [(a @ b / a.norm() / b.norm()).item() for a, b in zip(u.double(), v.double(), strict=True)]
    expected = by_hand(torch.tensor(cosine), Y[:6])
    assert CoSENTLoss()(u, v, Y[:6]).item() == pytest.approx(expected, rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert CoSENTLoss()(u, v, Y[:6]).item() == pytest.approx(expected, rel=1e-5)
    assert CoSENTLoss(5.0)(3 * u, 0.1 * v, Y[:6]).item() == pytest.approx(
        by_hand(torch.tensor(cosine), Y[:6], 5.0), rel=1e-5
    )
    assert CoSENTLoss()(torch.zeros(2, 3), torch.ones(2, 3), Y[:2]).isfinite()  # a vector of length 0


def test_a_plain_loop_learns_the_order():
    x, y = torch.randn(12, 2, 6, generator=G), torch.rand(12, generator=G)
    layer = nn.Linear(6, 6)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        CoSENTLoss()(layer(x[:, 0]), layer(x[:, 1]), y).backward()
        optimizer.step()
    with torch.no_grad():
        assert spearman(F.cosine_similarity(layer(x[:, 0]), layer(x[:, 1])), y) > 0.9


def test_messages():
    with pytest.raises(ValueError, match=r"got torch.float32 \(4, 3\) and \(4,\).*use CoSENTLoss"):
        cosent_loss(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"float similarities .*got torch.int64"):
        cosent_loss(torch.zeros(4, dtype=torch.long), torch.zeros(4))
    with pytest.raises(ValueError, match=r"scale must be > 0, got 0"):
        cosent_loss(S, Y, 0.0)
    with pytest.raises(ValueError, match=r"mask must be bool \(7,\), True = keep; got torch.float32"):
        cosent_loss(S, Y, mask=torch.ones(7))


@pytest.mark.slow
def test_sentence_transformers_computes_the_same():
    library = pytest.importorskip("sentence_transformers.losses")
    u, v = torch.randn(7, 5, generator=G), torch.randn(7, 5, generator=G)
    peer = library.CoSENTLoss(None, scale=20.0).compute_loss_from_embeddings([u, v], Y)
    torch.testing.assert_close(CoSENTLoss()(u, v, Y), peer)
