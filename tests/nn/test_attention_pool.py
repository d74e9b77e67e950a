"""Attention pooling: against a loop, its mean, orders of time, empty rows, finite differences, messages."""

import math

import pytest
import torch

from danlu.nn import AttentionPool1d, attention_pool

X = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[True, True, False, True, False], [True, True, True, True, True]])


def make():
    torch.manual_seed(2)
    return AttentionPool1d(3, hidden=4).double()


def by_hand(pool, x, mask):  # oracle: eq. (1) to (3) with Python floats
    inner, outer = pool.hidden.weight.tolist(), pool.score.weight.tolist()[0]
    rows = []
    for row, kept in zip(x.tolist(), mask.tolist(), strict=True):
        e = [
            sum(
                w * math.tanh(sum(a * b for a, b in zip(ws, v, strict=True)))
                for w, ws in zip(outer, inner, strict=True)
            )
            for v in row
        ]
        total = sum(math.exp(s) for s, k in zip(e, kept, strict=True) if k)
        weights = [math.exp(s) / total if k else 0.0 for s, k in zip(e, kept, strict=True)]
        rows.append([sum(a * v[d] for a, v in zip(weights, row, strict=True)) for d in range(len(row[0]))])
    return torch.tensor(rows, dtype=x.dtype)


def test_equals_the_formula():
    pool = make()
    torch.testing.assert_close(pool(X, MASK), by_hand(pool, X, MASK))
    torch.testing.assert_close(pool(X), by_hand(pool, X, torch.ones_like(MASK)))


def test_a_scorer_of_zeros_gives_the_mean_of_the_kept():
    pool = make()
    torch.nn.init.zeros_(pool.score.weight)
    torch.testing.assert_close(pool(X, MASK)[0], X[0, MASK[0]].mean(0))


def test_order_of_time_does_not_matter():
    pool, order = make(), torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(pool(X[:, order], MASK[:, order]), pool(X, MASK))


def test_rows_without_steps_are_zero_and_train_nothing():
    pool, x = make(), X.clone().requires_grad_()
    out = pool(x, torch.zeros_like(MASK))
    assert not out.any()
    out.sum().backward()
    assert not x.grad.any()
    assert pool(X[:, :0], MASK[:, :0]).shape == (2, 3)
    assert not pool(X[:, :0]).any()


def test_what_is_masked_may_be_nan():
    pool = make()
    dirty = X.masked_fill(~MASK[..., None], math.nan)
    out = pool(dirty, MASK)
    torch.testing.assert_close(out, pool(X, MASK))
    out.sum().backward()
    assert pool.hidden.weight.grad.isfinite().all()


def test_given_scores_nothing_masked_gets_through():
    scores = torch.zeros(2, 5, dtype=torch.float64)
    mask = MASK & torch.tensor([[True], [False]])
    out = attention_pool(X.masked_fill(~mask[..., None], math.nan), scores.masked_fill(~mask, math.inf), mask)
    torch.testing.assert_close(out, torch.stack([X[0, MASK[0]].mean(0), torch.zeros(3).double()]))


def test_gradcheck():
    pool = make()
    assert torch.autograd.gradcheck(lambda x: pool(x, MASK), X.clone().requires_grad_())


def test_large_scores_do_not_overflow():
    out = attention_pool(X.bfloat16(), torch.tensor([[1e4, 0, 0, 0, 0]] * 2), MASK)
    torch.testing.assert_close(out, X[:, 0].bfloat16())


def test_messages():
    with pytest.raises(ValueError, match=r"got \(2, 5, 3\) and \(2, 4\).*AttentionPool1d"):
        attention_pool(X, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 5\).*got torch.int64 \(2, 5\).*mask.bool"):
        make()(X, MASK.long())
    with pytest.raises(ValueError, match=r"AttentionPool1d\(3\) needs x \(batch, positions, 3\); got \(2, 5, 4\)"):
        make()(torch.zeros(2, 5, 4).double())
    with pytest.raises(ValueError, match=r"at least 1, got 3 and 0"):
        AttentionPool1d(3, 0)
