"""The softmax head: against cross-entropy, enumeration of legal paths, masks with holes, gradcheck, messages."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from danlu.nn import SoftmaxHead, softmax_nll

X = torch.randn(3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([[0, 2, 1, 1], [2, -100, 0, 7], [-100, -100, -100, -100]])
MASK = torch.tensor([[True, True, True, True], [True, False, True, False], [False, False, False, False]])
CONSTRAINTS = (
    torch.tensor([[True, False, True], [True, True, False], [False, True, True]]),
    torch.tensor([False, True, True]),
    torch.tensor([True, True, False]),
)


def by_hand(x=X):  # oracle: row by row over the kept steps only
    rows = [
        F.cross_entropy(x[b][keep], Y[b][keep], reduction="sum") if keep.any() else x.new_zeros(())
        for b, keep in enumerate(MASK)
    ]
    return torch.stack(rows)


def test_equals_cross_entropy_of_the_kept_steps():
    torch.testing.assert_close(softmax_nll(X, Y, MASK, "none"), by_hand())
    torch.testing.assert_close(softmax_nll(X, Y, MASK, "sum"), by_hand().sum())
    torch.testing.assert_close(softmax_nll(X, Y, MASK), by_hand().sum() / 3)
    torch.testing.assert_close(softmax_nll(X, Y, MASK, "token"), by_hand().sum() / 6)
    torch.testing.assert_close(SoftmaxHead(3).log_prob(X, Y, MASK), -by_hand())


def test_many_tags_take_the_same_value():  # they are computed in another layout
    x = torch.randn(3, 4, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(softmax_nll(x, Y, MASK, "none"), by_hand(x))


def test_decode_is_the_largest_of_each_step():
    expected = X.argmax(-1).masked_fill(~MASK, -1)
    assert torch.equal(SoftmaxHead(3).decode(X, MASK), expected)
    assert torch.equal(SoftmaxHead(3).decode(X), X.argmax(-1))


def test_constrained_decode_is_the_best_legal_path():  # oracle: enumeration of all K^n paths
    allowed, start, end = CONSTRAINTS
    head = SoftmaxHead(3, CONSTRAINTS)
    decoded = head.decode(X, MASK)
    for b in range(3):
        steps = MASK[b].nonzero()[:, 0].tolist()
        if not steps:
            assert (decoded[b] == -1).all()
            continue
        legal = [
            y
            for y in itertools.product(range(3), repeat=len(steps))
            if start[y[0]] and end[y[-1]] and all(allowed[i, j] for i, j in itertools.pairwise(y))
        ]
        best = max(legal, key=lambda y: sum(float(X[b, t, k]) for t, k in zip(steps, y, strict=True)))
        assert decoded[b][MASK[b]].tolist() == list(best)
        assert (decoded[b][~MASK[b]] == -1).all()


def test_everything_allowed_changes_nothing():
    everything = (torch.ones(3, 3).bool(), torch.ones(3).bool(), torch.ones(3).bool())
    assert torch.equal(SoftmaxHead(3, everything).decode(X, MASK), SoftmaxHead(3).decode(X, MASK))


def test_marginals_are_the_softmax():
    p = SoftmaxHead(3).marginals(X, MASK)
    torch.testing.assert_close(p[MASK], X[MASK].softmax(-1))
    assert not p[~MASK].any()


def test_gradcheck_and_no_gradient_at_masked_steps():
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: softmax_nll(v, Y, MASK, "none"), x)
    softmax_nll(x, Y, MASK, "sum").backward()
    assert not x.grad[~MASK].any()


def test_half_precision_is_summed_in_float32():
    loss = softmax_nll(X.bfloat16(), Y, MASK)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, softmax_nll(X.bfloat16().float(), Y, MASK))


def test_empty_batches_and_sequences():
    head = SoftmaxHead(3, CONSTRAINTS)
    for shape in ((0, 4), (2, 0)):
        x, y = torch.zeros(*shape, 3), torch.zeros(shape, dtype=torch.int64)
        for reduction in ("mean", "sum", "token"):
            assert head(x, y, reduction=reduction) == 0
        assert head.decode(x).shape == shape
        assert head.marginals(x).shape == (*shape, 3)


def test_the_head_has_no_state():
    assert not SoftmaxHead(3, CONSTRAINTS).state_dict()


def test_messages():
    head = SoftmaxHead(3)
    with pytest.raises(ValueError, match=r"tags must lie in \[0, 3\), got 7 in row 1 at step 3.*mask=False"):
        head(X, Y.clamp_min(0))
    with pytest.raises(ValueError, match=r"mask must be bool \(3, 4\).*got torch.int64 \(3, 4\).*mask.bool"):
        head(X, Y, MASK.long())
    with pytest.raises(ValueError, match=r"emissions must be floats.*\(4, 3\).*emissions\[None\]"):
        head.decode(X[0])
    with pytest.raises(ValueError, match=r"tags must be integers \(3, 4\).*got torch.float64"):
        head(X, Y.double(), MASK)
    with pytest.raises(ValueError, match=r"reduction must be 'mean', 'sum', 'none' or 'token', got 'avg'"):
        head(X, Y, MASK, "avg")
    with pytest.raises(ValueError, match=r"SoftmaxHead\(4\) needs emissions.*got \(3, 4, 3\).*4 outputs"):
        SoftmaxHead(4).decode(X)
    with pytest.raises(ValueError, match=r"constraints must be bool tensors.*allowed_transitions"):
        SoftmaxHead(2, CONSTRAINTS)
    with pytest.raises(ValueError, match="num_tags must be at least 1, got 0"):
        SoftmaxHead(0)
