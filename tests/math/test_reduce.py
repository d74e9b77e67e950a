"""reduce_loss: sums and means by hand, the empty mean, its messages."""

import pytest
import torch

from danlu.math.reduce import reduce_loss

LOSS = torch.tensor([[1.0, 2.0], [3.0, 10.0]])
MASK = torch.tensor([[True, False], [True, True]])


@pytest.mark.parametrize(("reduction", "plain", "masked"), [("mean", 4.0, 14 / 3), ("sum", 16.0, 14.0)])
def test_by_hand(reduction, plain, masked):
    assert reduce_loss(LOSS, reduction).item() == plain
    assert reduce_loss(LOSS, reduction, MASK).item() == pytest.approx(masked)


def test_none_puts_zero_where_nothing_counts():
    assert torch.equal(reduce_loss(LOSS, "none"), LOSS)
    assert reduce_loss(LOSS, "none", MASK).tolist() == [[1.0, 0.0], [3.0, 10.0]]


def test_masked_nan_does_not_spread():
    loss = torch.tensor([1.0, float("nan")], requires_grad=True)
    out = reduce_loss(loss, "mean", torch.tensor([True, False]))
    out.backward()
    assert out.item() == 1.0
    assert loss.grad.tolist() == [1.0, 0.0]


def test_the_empty_mean_is_zero_and_trains_nothing():
    loss = LOSS.clone().requires_grad_()
    out = reduce_loss(loss, "mean", torch.zeros(2, 2, dtype=torch.bool))
    out.backward()
    assert out.item() == 0.0
    assert not loss.grad.any()
    assert reduce_loss(torch.zeros(0)).item() == 0.0


def test_messages():
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'avg'"):
        reduce_loss(LOSS, "avg")
    with pytest.raises(ValueError, match=r"mask must be bool .*\(2, 2\).*got torch.int64 \(2, 2\); write mask.bool"):
        reduce_loss(LOSS, mask=MASK.long())
    with pytest.raises(ValueError, match=r"got torch.bool \(2,\)"):
        reduce_loss(LOSS, mask=MASK[0])
