"""Means over equal shares of tokens: by a loop, whatever the length and the padding."""

import pytest
import torch

from danlu.nn import segment_means

X = torch.randn(2, 3, 13, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_hand(rows: torch.Tensor, m: int) -> torch.Tensor:
    """(n, K) tokens to (m, K): token r belongs to segment floor(r min(m, n) / n)."""
    n, out = len(rows), torch.zeros(m, rows.shape[1], dtype=rows.dtype)
    for j in range(min(m, n)):
        own = [r for r in range(n) if r * min(m, n) // n == j]
        out[j] = sum(rows[r] for r in own) / len(own)
    return out


@pytest.mark.parametrize("m", [1, 2, 5, 7, 12, 13, 14, 20])
@pytest.mark.parametrize("length", [1, 12, 13])
def test_equals_a_loop(m, length):
    x = X[:, :, :length]
    expected = torch.stack([torch.stack([by_hand(head, m) for head in row]) for row in x])
    torch.testing.assert_close(segment_means(x, m), expected)


@pytest.mark.parametrize("m", [1, 3, 6, 9])
def test_padding_anywhere_counts_in_nothing(m):
    keep = torch.rand(2, 13, generator=torch.Generator().manual_seed(1)) > 0.4
    found = segment_means(X.masked_fill(~keep[:, None, :, None], torch.nan), m, keep)
    for b in range(2):
        torch.testing.assert_close(found[b], torch.stack([by_hand(head[keep[b]], m) for head in X[b]]))


def test_nothing_kept_is_zero():
    assert not segment_means(X, 3, torch.zeros(2, 13, dtype=torch.bool)).any()


def test_half_precision_is_summed_in_float32():
    x = torch.full((1, 1, 4099, 1), 1.0, dtype=torch.bfloat16)  # sums in bfloat16 stop growing at 256
    assert segment_means(x, 2).flatten().tolist() == [1.0, 1.0]
    assert segment_means(x, 2, torch.ones(1, 4099, dtype=torch.bool)).flatten().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("m", [3, 4])
def test_gradcheck(m):
    keep = torch.tensor([[True, False, True, True, True, True, True, False]])
    x = X[:1, :1, :8, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: segment_means(x, m), x)
    assert torch.autograd.gradcheck(lambda x: segment_means(x, m, keep), x)


def test_messages():
    with pytest.raises(ValueError, match=r"at least 1 segment and 1 token; got 0 segments of \(2, 3, 13, 4\)"):
        segment_means(X, 0)
    with pytest.raises(ValueError, match="1 token"):
        segment_means(X[:, :, :0], 2)
