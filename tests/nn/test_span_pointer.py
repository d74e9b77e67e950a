"""Pointing at spans: probabilities by hand, all spans by enumeration, windows compared, gradients, messages."""

import itertools
import math

import pytest
import torch

from danlu.nn import SpanPointer, best_spans, span_log_probs, span_nll

G = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 6, 2, dtype=torch.float64, generator=G)
KEEP = torch.tensor([[False, False, True, True, True, False], [False] + [True] * 5, [False] * 6])


def by_hand(scores, keep):  # oracle: softmax over position 0 and the kept ones, with Python floats
    allowed = [t for t in range(len(scores)) if t == 0 or keep[t]]
    total = sum(math.exp(scores[t]) for t in allowed)
    return [math.exp(scores[t]) / total if t in allowed else 0.0 for t in range(len(scores))]


def test_probabilities():
    got = span_log_probs(LOGITS, KEEP).exp()
    for b, side in itertools.product(range(3), range(2)):
        expected = by_hand(LOGITS[b, :, side].tolist(), KEEP[b].tolist())
        torch.testing.assert_close(got[b, :, side], torch.tensor(expected, dtype=torch.float64))
    assert got[2, 0].tolist() == [1, 1]  # nothing to point at: "not here"


def test_nll_is_their_logarithm():
    target = torch.tensor([[2, 4], [5, 5], [0, 0]])
    log_probs = span_log_probs(LOGITS, KEEP)
    expected = [-(log_probs[b, i, 0] + log_probs[b, j, 1]) / 2 for b, (i, j) in enumerate(target.tolist())]
    torch.testing.assert_close(span_nll(LOGITS, target, KEEP, "none"), torch.stack(expected))
    torch.testing.assert_close(span_nll(LOGITS, target, KEEP), torch.stack(expected).mean())


def test_gradcheck():
    target = torch.tensor([[2, 4], [5, 5], [0, 0]])
    assert torch.autograd.gradcheck(lambda x: span_nll(x, target, KEEP, "sum"), LOGITS.clone().requires_grad_())


def spans_by_hand(start, end, keep, max_len):  # oracle: every pair
    size = len(start)
    pairs = [(i, j) for i in range(size) for j in range(i, min(size, i + max_len)) if all(keep[i : j + 1])]
    return sorted(((i, j, start[i] + end[j]) for i, j in pairs), key=lambda s: -s[2])


@pytest.mark.parametrize("max_len", [1, 2, 6, 99])
def test_best_spans_over_all_pairs(max_len):
    start, end = torch.randn(4, 7, generator=G), torch.randn(4, 7, generator=G)
    keep = torch.rand(4, 7, generator=G) > 0.3
    found = best_spans(start, end, keep, max_len, num=40)
    for b in range(4):
        expected = spans_by_hand(start[b].tolist(), end[b].tolist(), keep[b].tolist(), max_len)
        assert [s[:2] for s in found[b]] == [s[:2] for s in expected][:40]
        assert [s[2] for s in found[b]] == pytest.approx([s[2] for s in expected][:40])
        assert best_spans(start, end, keep, max_len)[b] == found[b][:1]


def test_excluded_starts_and_ends():
    start = torch.tensor([[5.0, -torch.inf, 0.0]])
    end = torch.tensor([[-torch.inf, 1.0, 2.0]])
    everything = torch.ones(1, 3).bool()
    assert best_spans(start, end, everything, 3, 9) == [[(0, 2, 7.0), (0, 1, 6.0), (2, 2, 2.0)]]
    assert best_spans(start, torch.full((1, 3), -torch.inf), everything, 3) == [[]]


def test_nothing_to_read():
    assert best_spans(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0).bool(), 3) == [[], []]


def test_a_window_without_answer_gives_way():
    """The reason for position 0: peaks of two windows are alike, but one of them says "not here"."""
    logits = torch.zeros(2, 4, 2)
    logits[0, 0], logits[0, 2] = 9.0, 6.0  # position 0 has won
    logits[1, 0], logits[1, 2] = 0.0, 5.0
    keep = torch.tensor([[False, True, True, True]] * 2)
    log_probs = span_log_probs(logits, keep)
    (first,), (second,) = best_spans(*log_probs.unbind(-1), keep, 2)
    assert first[:2] == second[:2] == (2, 2)
    assert first[2] < -5 < -0.5 < second[2]
    shifted = span_log_probs(logits + torch.tensor([100.0, 0.0])[:, None, None], keep)  # a window of louder logits
    torch.testing.assert_close(shifted, log_probs, atol=1e-5, rtol=1e-5)


def test_module_scores_every_token():
    pointer = SpanPointer(3)
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(pointer(x), x @ pointer.output.weight.T + pointer.output.bias)


def test_messages():
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 3\)"):
        span_log_probs(torch.zeros(2, 3), torch.ones(2, 3).bool())
    with pytest.raises(ValueError, match=r"candidates must be bool, True = keep; got torch\.float32"):
        span_log_probs(torch.zeros(2, 3, 2), torch.ones(2, 3))
    for wrong in ((1, 2), (2, 6), (-1, 0)):
        with pytest.raises(ValueError, match=rf"the answer \({wrong[0]}, {wrong[1]}\) of row 0 is no candidate"):
            span_nll(LOGITS, torch.tensor([wrong, (0, 0), (0, 0)]), KEEP)
    with pytest.raises(ValueError, match=r"target must be \(3, 2\), first and last token; got \(3,\)"):
        span_nll(LOGITS, torch.zeros(3).long(), KEEP)
    with pytest.raises(ValueError, match=r"max_len and num must be at least 1, got 0 and 1"):
        best_spans(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2).bool(), 0)
    with pytest.raises(ValueError, match=r"got \(1, 2\), \(1, 2\) and \(1, 3\)"):
        best_spans(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 3).bool(), 1)
    with pytest.raises(ValueError, match=r"dim must be at least 1, got 0"):
        SpanPointer(0)
