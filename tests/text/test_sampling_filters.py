"""Filters and draws: scalar loops, bert4keras' kept probabilities, transformers' processors, frequencies, edges."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from danlu.text.sampling_filters import (
    draw,
    forbid,
    no_repeat_ngram,
    repetition_penalty,
    top_k_filter,
    top_p_filter,
)

G = torch.Generator().manual_seed(0)
LOGITS = 2 * torch.randn(6, 11, dtype=torch.float64, generator=G)
INF = math.inf


def kept(logits):
    return [[v for v, x in enumerate(row) if x > -INF] for row in logits.tolist()]


def top_k_by_hand(row, k):
    least = sorted(row)[-k] if k < len(row) else -INF
    return [v for v, x in enumerate(row) if x >= least]


def nucleus_by_hand(row, p):
    """Oracle: walk down the sorted probabilities until their sum reaches p."""
    weights = [math.exp(x) for x in row]
    total, out = 0.0, []
    for v in sorted(range(len(row)), key=lambda v: (-row[v], v)):
        out.append(v)
        total += weights[v] / sum(weights)
        if total >= p:
            break
    return sorted(out)


@pytest.mark.parametrize("k", [1, 2, 5, 11, 40])
def test_top_k_by_hand(k):
    found = top_k_filter(LOGITS, k)
    assert kept(found) == [top_k_by_hand(row, k) for row in LOGITS.tolist()]
    torch.testing.assert_close(found[found > -INF], LOGITS[found > -INF], rtol=0, atol=0)


@pytest.mark.parametrize("p", [1e-9, 0.3, 0.77, 0.99])
def test_nucleus_by_hand(p):
    found = top_p_filter(LOGITS, p)
    assert kept(found) == [nucleus_by_hand(row, p) for row in LOGITS.tolist()]
    assert kept(top_p_filter(LOGITS.float(), p)) == kept(found)
    torch.testing.assert_close(found[found > -INF], LOGITS[found > -INF], rtol=0, atol=0)


def test_ties_and_zero_probabilities():
    row = torch.tensor([[1.0, 1.0, 1.0, 0.0, -INF]])
    assert kept(top_k_filter(row, 2)) == [[0, 1, 2]]  # what ties with the second stays
    assert kept(top_p_filter(row[:, :3], 0.5)) == [[0, 1]]  # lower ids first
    assert kept(top_p_filter(row, 1.0)) == [[0, 1, 2, 3]]
    assert kept(top_k_filter(row, 5)) == kept(top_p_filter(top_k_filter(row, 5), 0.9999999)) == [[0, 1, 2, 3]]
    assert kept(top_p_filter(top_k_filter(row, 1), 0.4)) == [[0, 1]]  # of three thirds two reach 0.4


def test_keep_is_never_removed_but_stays_forbidden():
    end = torch.tensor([3, 7])
    for found in (top_k_filter(LOGITS, 1, end), top_p_filter(LOGITS, 0.01, end)):
        assert kept(found) == [sorted({3, 7, int(row.argmax())}) for row in LOGITS]
    assert kept(top_k_filter(forbid(LOGITS, end), 1, end)) == [[int(row.argmax())] for row in forbid(LOGITS, end)]


def test_consistent_top_k_is_that_of_transformers_but_for_the_end():
    transformers = pytest.importorskip("transformers")
    for k in (1, 3, 11):
        theirs = transformers.TopKLogitsWarper(k)(None, LOGITS)
        torch.testing.assert_close(top_k_filter(LOGITS, k), theirs, rtol=0, atol=0)
        ours = top_k_filter(LOGITS, k, torch.tensor([4]))
        columns = [v for v in range(11) if v != 4]
        torch.testing.assert_close(ours[:, columns], theirs[:, columns], rtol=0, atol=0)
        assert bool((ours[:, 4] == LOGITS[:, 4]).all())


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_nucleus_is_that_of_transformers(p):
    transformers = pytest.importorskip("transformers")
    assert kept(top_p_filter(LOGITS, p)) == kept(transformers.TopPLogitsWarper(p)(None, LOGITS))


def test_penalty_and_ngrams_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    tokens = torch.randint(0, 4, (6, 15), generator=G)
    torch.testing.assert_close(
        repetition_penalty(tokens, LOGITS, 1.3),
        transformers.RepetitionPenaltyLogitsProcessor(1.3)(tokens, LOGITS.clone()),
    )
    for size in (1, 2, 3, 5, 16):
        theirs = transformers.NoRepeatNGramLogitsProcessor(size)(tokens, LOGITS.clone())
        torch.testing.assert_close(no_repeat_ngram(tokens, LOGITS, size), theirs, rtol=0, atol=0)


def test_penalty_by_hand():
    tokens = torch.tensor([[0, 2, 2], [1, 1, 1]])
    found = repetition_penalty(tokens, torch.tensor([[4.0, 4.0, -4.0], [-3.0, 0.0, 3.0]]), 2.0)
    assert found.tolist() == [[2.0, 4.0, -8.0], [-3.0, 0.0, 3.0]]


def test_ngrams_by_hand():
    tokens = torch.tensor([[1, 2, 3, 1, 2], [1, 2, 1, 2, 2]])
    found = no_repeat_ngram(tokens, torch.zeros(2, 4), 3)
    assert kept(found) == [[0, 1, 2], [0, 1, 2, 3]]
    assert kept(no_repeat_ngram(tokens, torch.zeros(2, 4), 1)) == [[0], [0, 3]]
    assert kept(no_repeat_ngram(tokens[:, :0], torch.zeros(2, 4), 2)) == [[0, 1, 2, 3]] * 2


@pytest.mark.skipif("DANLU_DATA" not in os.environ, reason="DANLU_DATA is not set: the frozen decodes lie there")
def test_filters_of_bert4keras():
    folder = Path(os.environ["DANLU_DATA"]) / "oracles" / "decoding"
    tables = np.load(folder / "tables.npz")
    for case in json.loads((folder / "decodes.json").read_text()):
        if case["kind"] != "filtered_argmax":
            continue
        start = [] if case["start"] is None else [case["start"]]
        table, ids = tables[f"table_{case['table']}"], [*[case["vocab"] - 1] * 2, *start]
        for token, expected in zip(case["ids"][len(start) :], case["kept_probabilities"], strict=True):
            logits = torch.from_numpy(table[case["source"], ids[-2], ids[-1]]) / case["temperature"]
            if case["topk"] is not None:
                logits = top_k_filter(logits, case["topk"])
            if case["topp"] is not None:
                logits = top_p_filter(logits, case["topp"])
            p = logits.softmax(0)
            np.testing.assert_allclose(p[p > 0].sort(descending=True).values, expected, atol=1e-8)
            assert int(p.argmax()) == token
            ids.append(token)


def draw_by_hand(row, u):
    weights = [math.exp(x) for x in row]
    total = 0.0
    for v, w in enumerate(weights):
        total += w / sum(weights)
        if total > u:
            return v
    raise AssertionError


def test_draws_by_hand():
    uniform = torch.rand(6, dtype=torch.float64, generator=G)
    assert draw(LOGITS, uniform).tolist() == [
        draw_by_hand(row, u) for row, u in zip(LOGITS.tolist(), uniform.tolist(), strict=True)
    ]


def test_draws_come_as_often_as_they_should():
    count = 20_000
    p = LOGITS[0].softmax(0)
    tokens = draw(LOGITS[:1].expand(count, -1), torch.rand(count, dtype=torch.float64, generator=G))
    share = torch.bincount(tokens, minlength=11) / count
    assert bool(((share - p).abs() < 4 * (p * (1 - p) / count).sqrt()).all())


def test_what_has_probability_zero_is_never_drawn():
    logits = torch.tensor([[-INF, 0.0, -INF, 0.0, -INF]]).expand(4, -1)
    almost = 1 - 2.0**-53
    assert draw(logits, torch.tensor([0.0, 0.5, almost, 1.0], dtype=torch.float64)).tolist() == [1, 3, 3, 3]


def test_nothing_given_is_changed():
    before, tokens = LOGITS.clone(), torch.tensor([[1, 1]] * 6)
    forbid(LOGITS, torch.tensor([0]))
    top_k_filter(LOGITS, 20).zero_()
    top_p_filter(LOGITS, 1.0).zero_()
    no_repeat_ngram(tokens, LOGITS, 9).zero_()
    repetition_penalty(tokens, LOGITS, 2.0)
    torch.testing.assert_close(LOGITS, before, rtol=0, atol=0)


def test_messages():
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0; for no limit leave it None"):
        top_k_filter(LOGITS, 0)
    for p in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"top_p must lie in \(0, 1\], got"):
            top_p_filter(LOGITS, p)
    with pytest.raises(ValueError, match="penalty must be > 0, got 0"):
        repetition_penalty(torch.zeros(6, 1, dtype=torch.long), LOGITS, 0)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        no_repeat_ngram(torch.zeros(6, 1, dtype=torch.long), LOGITS, 0)
