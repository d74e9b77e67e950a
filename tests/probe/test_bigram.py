"""Transition and decoder matrices: against counting and filtering row by row, HuggingFace's filters, messages."""

import math

import pytest
import torch

from danlu.probe import decoder_matrix, transition_matrix

SEQUENCES = [[0, 1, 2, 1], [2], [], [1, 1, 3, 0], [0]]
P = torch.tensor([[0.5, 0.3, 0.1], [0.2, 0.6, 0.1], [0.1, 0.3, 0.5]], dtype=torch.float64)


def random_matrix(n=7, seed=0):
    full = torch.randn(n, n + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(1)
    return full[:, :n]


def filtered_by_hand(P, top_k, top_p, temperature, consistent):
    """Oracle: one row after the other with Python's sort; the end token is the last of the row."""
    out = []
    for row in P.tolist():
        p = [v ** (1 / temperature) for v in (*row, 1 - sum(row))]
        p = [v / sum(p) for v in p]
        order = sorted(range(len(p)), key=lambda i: -p[i])
        keep = set(order[: top_k or len(order)])
        if consistent:
            keep.add(len(p) - 1)
        p = [v if i in keep else 0.0 for i, v in enumerate(p)]
        p = [v / sum(p) for v in p]
        if top_p is not None:
            total, kept = 0.0, set()
            for i in order:
                if total < top_p - 1e-12:
                    kept.add(i)
                total += p[i]
            if consistent:
                kept.add(len(p) - 1)
            p = [v if i in kept else 0.0 for i, v in enumerate(p)]
            p = [v / sum(p) for v in p]
        out.append(p[:-1])
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 1.0, 0.3])
def test_transitions_equal_counting(smoothing):
    got = transition_matrix(SEQUENCES, 5, smoothing)
    for i in range(5):
        total = sum(x.count(i) for x in SEQUENCES)
        for j in range(5):
            count = sum(x[t] == i and x[t + 1] == j for x in SEQUENCES for t in range(len(x) - 1))
            share = (count + smoothing) / (total + 6 * smoothing) if total + smoothing else 0.0
            assert got[i, j].item() == pytest.approx(share)


def test_sparse_transitions_equal_dense_ones():
    got = transition_matrix(SEQUENCES, sparse=True)
    assert got.is_sparse
    torch.testing.assert_close(got.to_dense(), transition_matrix(SEQUENCES))
    assert got.shape == (4, 4)


def test_what_a_row_lacks_is_the_end():
    assert transition_matrix([[0, 1], [0], [0, 0, 0]]).sum(1).tolist() == pytest.approx([3 / 5, 0.0])


def test_single_tokens_have_no_transitions():
    assert transition_matrix([[1], [0]]).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (1, None), (3, None), (None, 0.6), (4, 0.8), (99, 1.0)])
@pytest.mark.parametrize("consistent", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_decoders_equal_filtering_by_hand(temperature, top_k, top_p, consistent, sparse):
    full = random_matrix()
    got = decoder_matrix(full.to_sparse() if sparse else full, top_k, top_p, temperature, consistent)
    assert got.is_sparse == sparse
    expected = filtered_by_hand(full, top_k, top_p, temperature, consistent)
    torch.testing.assert_close(got.to_dense() if sparse else got, expected)


def test_filters_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    full = random_matrix(9, 1)
    rows = torch.cat([full, 1 - full.sum(1, keepdim=True)], 1)
    for k, p, temperature in [(3, 1.0, 0.7), (9, 0.7, 1.0), (4, 0.8, 1.5)]:
        logits = rows.log() / temperature
        logits = transformers.TopKLogitsWarper(k)(None, logits)
        logits = transformers.TopPLogitsWarper(p)(None, logits)
        torch.testing.assert_close(decoder_matrix(full, k, p, temperature), logits.softmax(1)[:, :-1])


def test_consistent_keeps_the_end_and_only_the_end():
    full = random_matrix()
    plain, kept = decoder_matrix(full, 2), decoder_matrix(full, 2, consistent=True)
    ends = 1 - kept.sum(1)
    assert (ends > 1e-5).all()
    torch.testing.assert_close(kept / (1 - ends)[:, None], plain / plain.sum(1, keepdim=True))


def test_ties_keep_the_lower_token_and_the_end_goes_first():
    even = torch.full((3, 3), 0.25, dtype=torch.float64)
    assert decoder_matrix(even, 2).tolist() == [[0.5, 0.5, 0.0]] * 3
    assert decoder_matrix(even, top_p=0.5).tolist() == [[0.5, 0.5, 0.0]] * 3
    assert decoder_matrix(torch.tensor([[0.5]]), 1).tolist() == [[1.0]]


def test_certain_rows_and_empty_rows_stay_as_they_are():
    rows = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    for temperature in (1e-3, 1.0, 50.0):  # no rounding error becomes an end token
        assert decoder_matrix(rows, temperature=temperature).tolist() == rows.tolist()
    for n in (3, 7, 49):  # sums of n times 1 / n that miss 1 by a rounding error
        even = torch.full((n, n), 1 / n, dtype=torch.float64)
        assert decoder_matrix(even, temperature=50.0).sum(1).tolist() == pytest.approx([1.0] * n)


def test_a_low_temperature_does_not_underflow():
    got = decoder_matrix(torch.tensor([[1e-30, 2e-30, 3e-30]] * 3, dtype=torch.float64), temperature=1e-3)
    assert got.isfinite().all()  # the end has nearly everything
    cold = decoder_matrix(torch.tensor([[0.6, 0.4], [0.4, 0.6]], dtype=torch.float64), temperature=1e-3)
    torch.testing.assert_close(cold, torch.eye(2, dtype=torch.float64))


def test_top_2_of_a_known_chain():
    assert decoder_matrix(P, 2).tolist() == [
        pytest.approx([5 / 8, 3 / 8, 0]),
        pytest.approx([1 / 4, 3 / 4, 0]),
        pytest.approx([0, 3 / 8, 5 / 8]),
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transition_matrix([[]]), r"at least one token, got empty sequences only"),
        (lambda: transition_matrix([[0, 3]], 3), r"ids must lie in \[0, 3\), got 0 to 3; raise vocab_size"),
        (lambda: transition_matrix([[-1]]), r"ids must lie in \[0, 0\), got -1 to -1"),
        (lambda: transition_matrix([[0]], smoothing=-1), r"smoothing must be at least 0.*got -1"),
        (lambda: transition_matrix([[0]], smoothing=1, sparse=True), r"0 with sparse=True.*got 1, sparse=True"),
        (lambda: decoder_matrix(P, 0), r"top_k >= 1.*got 0, None, 1.0. Greedy search is top_k=1"),
        (lambda: decoder_matrix(P, top_p=0.0), r"top_p in \(0, 1\].*got None, 0.0, 1.0"),
        (lambda: decoder_matrix(P, temperature=0.0), r"temperature > 0; got None, None, 0.0"),
        (lambda: decoder_matrix(P[:2]), r"square matrix.*got torch.float64 \(2, 3\). danlu.probe.transition_matrix"),
        (lambda: decoder_matrix(torch.ones(2, 2)), r"rows that sum to at most 1.*row 0 sums to 2. Logits need softmax"),
        (lambda: decoder_matrix(-P), r"probabilities, got an entry -0.6"),
        (lambda: decoder_matrix(P * math.nan), r"got an entry nan"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
