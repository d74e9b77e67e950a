"""GPLinker: its loss by hand and on dense labels, decoding by enumeration, crossing ties, memory, messages."""

import itertools
import math
import subprocess
import sys

import pytest
import torch

from danlu.losses import multilabel_cross_entropy
from danlu.text import GPLinker, gplinker_loss, link_triples

B, K, T = 2, 3, 4
TRIPLES = torch.tensor([[0, 0, 2, 1, 3, 4], [0, 0, 2, 1, 1, 2], [0, 0, 2, 2, 3, 4], [1, 1, 4, 0, 1, 4]])


def maps(seed=0, types=K, batch=B, tokens=T):
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(batch, h, tokens, tokens, dtype=torch.float64, generator=generator) for h in (2, types, types)]
    draw[0] = draw[0].masked_fill(torch.ones(tokens, tokens).tril(-1).bool(), -math.inf)
    return draw


def right_cells(triples):  # the three sets of right cells, spelled out
    entities = {(b, 0, s, t - 1) for b, s, t, _, _, _ in triples} | {(b, 1, o, u - 1) for b, _, _, _, o, u in triples}
    heads = {(b, p, s, o) for b, s, _, p, o, _ in triples}
    tails = {(b, p, t - 1, u - 1) for b, _, t, p, _, u in triples}
    return entities, heads, tails


def by_hand(logits, triples):  # oracle: eq. (3) with Python floats, cell by cell
    total = [0.0] * len(logits[0])
    for scores, cells in zip(logits, right_cells(triples.tolist()), strict=True):
        for b, h in itertools.product(range(scores.shape[0]), range(scores.shape[1])):
            wrong, right = 1.0, 1.0
            for i, j in itertools.product(range(scores.shape[2]), repeat=2):
                s = scores[b, h, i, j].item()
                if (b, h, i, j) in cells:
                    right += math.exp(-s)
                else:
                    wrong += math.exp(s)
            total[b] += math.log(wrong) + math.log(right)
    return torch.tensor(total, dtype=torch.float64)


def test_the_loss_equals_the_formula():
    logits = maps()
    torch.testing.assert_close(gplinker_loss(*logits, TRIPLES), by_hand(logits, TRIPLES))
    nothing = TRIPLES[:0]
    torch.testing.assert_close(gplinker_loss(*logits, nothing), by_hand(logits, nothing))


def test_the_loss_equals_dense_labels():
    logits, dense = maps(1), 0.0
    for scores, cells in zip(logits, right_cells(TRIPLES.tolist()), strict=True):
        target = torch.zeros_like(scores)
        target[tuple(torch.tensor(sorted(cells)).T)] = 1.0
        dense = dense + multilabel_cross_entropy(scores.flatten(2), target.flatten(2), "none").sum(1)
    torch.testing.assert_close(gplinker_loss(*logits, TRIPLES), dense)


def test_gradcheck():
    logits = [m.nan_to_num(neginf=-3.0).requires_grad_() for m in maps(2, types=1, batch=1, tokens=2)]
    triples = torch.tensor([[0, 0, 1, 0, 0, 2], [0, 0, 2, 0, 1, 2]])
    assert torch.autograd.gradcheck(lambda *m: gplinker_loss(*m, triples), logits)


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_decoding_equals_enumeration(threshold):
    for seed in range(20):
        entities, heads, tails = maps(seed)
        expected = [
            [
                (s, t, p, o, u)
                for s, t, p, o, u in itertools.product(range(T), range(1, T + 1), range(K), range(T), range(1, T + 1))
                if s < t and o < u
                and entities[b, 0, s, t - 1] > threshold and entities[b, 1, o, u - 1] > threshold
                and heads[b, p, s, o] > threshold and tails[b, p, t - 1, u - 1] > threshold
            ]
            for b in range(B)
        ]  # fmt: skip
        assert link_triples(entities, heads, tails, threshold) == expected
        assert any(expected)


def gold_maps(triples, tokens):
    found = [torch.full((1, h, tokens, tokens), -1.0) for h in (2, 1, 1)]
    for scores, cells in zip(found, right_cells(triples), strict=True):
        for cell in cells:
            scores[cell] = 1.0
    return found


def test_gold_maps_give_the_gold_triples_unless_ties_cross():
    """Every two triples of one predicate over 3 tokens: a third one appears exactly where heads and tails cross."""
    spans = [(a, b) for a in range(3) for b in range(a + 1, 4)]
    every = [(0, *s, 0, *o) for s in spans for o in spans]
    crossed = 0
    for pair in itertools.combinations(every, 2):
        found = {(0, *triple) for triple in link_triples(*gold_maps(pair, 3))[0]}
        subjects, objects = {t[1:3] for t in pair}, {t[4:] for t in pair}
        heads, tails = {(t[1], t[4]) for t in pair}, {(t[2], t[5]) for t in pair}
        meant = {
            (0, *s, 0, *o)
            for s in subjects for o in objects
            if (s[0], o[0]) in heads and (s[1], o[1]) in tails
        }  # fmt: skip
        assert found == meant
        assert set(pair) <= found
        crossed += len(found) > 2
    assert 0 < crossed < 100  # of 630


def test_nested_spans_and_shared_starts_are_found():
    triples = [(0, 0, 1, 0, 3, 4), (0, 0, 2, 0, 3, 5), (0, 3, 5, 0, 3, 4)]
    found = {(0, *t) for t in link_triples(*gold_maps(triples, 5))[0]}
    assert set(triples) <= found


def test_of_too_many_entities_the_surest_are_kept():
    entities, heads, tails = (torch.ones(1, h, 3, 3) for h in (2, 1, 1))
    entities[0, 0, 1, 2] = entities[0, 1, 0, 1] = 9.0
    assert len(link_triples(entities, heads, tails)[0]) == 36
    assert link_triples(entities, heads, tails, max_entities=1) == [[(1, 3, 0, 0, 2)]]


def test_nothing_is_found_where_nothing_is():
    low = [torch.full((2, h, 3, 3), -1.0) for h in (2, 4, 4)]
    assert link_triples(*low) == [[], []]
    low[0][0, 0] = 1.0  # subjects, but no object
    assert link_triples(*low) == [[], []]


@pytest.mark.parametrize("efficient", [True, False])
def test_groups_of_sentences_change_nothing(efficient):
    whole = GPLinker(6, K, head_size=4, efficient=efficient).double()
    parts = GPLinker(6, K, head_size=4, efficient=efficient, max_cells=K * T * T).double()
    parts.load_state_dict(whole.state_dict())
    x = torch.randn(5, T, 6, dtype=torch.float64)
    mask = torch.rand(5, T) > 0.3
    triples = torch.cat([TRIPLES, torch.tensor([[3, 0, 1, 0, 2, 3], [4, 2, 4, 2, 0, 1]])])
    sides = []
    for linker in (whole, parts):
        own = x.clone().requires_grad_()
        loss = linker.loss(own, triples, mask)
        loss.backward()
        sides.append((loss, own.grad, [p.grad for p in linker.parameters()], linker.extract(x, mask, -0.1)))
    torch.testing.assert_close(sides[0][:3], sides[1][:3])
    assert sides[0][3] == sides[1][3]
    torch.testing.assert_close(sides[0][0], gplinker_loss(*whole(x, mask), triples).sum())


def test_masked_tokens_may_hold_anything():
    linker = GPLinker(6, K, head_size=4)
    x = torch.randn(1, T, 6)
    x[0, 0] = torch.nan
    mask = torch.tensor([[False, True, True, True]])
    loss = linker.loss(x.requires_grad_(), torch.tensor([[0, 1, 2, 0, 2, 4]]), mask)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in linker.parameters())
    assert all(s > 0 and o > 0 for s, _, _, o, _ in linker.extract(x, mask, threshold=-9.0)[0])


def test_the_efficient_form_is_small():
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in GPLinker(768, 49, efficient=e).parameters()) for e in (True, False)]
    assert 0.3e6 < sizes[0] < 0.35e6
    assert 9e6 < sizes[1] < 10.5e6  # the post's 0.3 and 10 million


def test_messages():
    with pytest.raises(ValueError, match=r"entities \(B, 2, T, T\).*got \(1, 3, 2, 2\), \(1, 1, 2, 2\)"):
        link_triples(torch.zeros(1, 3, 2, 2), *[torch.zeros(1, 1, 2, 2)] * 2)
    with pytest.raises(ValueError, match=r"heads and tails \(B, K, T, T\); got"):
        gplinker_loss(torch.zeros(1, 2, 2, 2), torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2), TRIPLES)
    with pytest.raises(ValueError, match="does not lie in a batch of 2 sentences of 4 tokens with 1 pred"):
        gplinker_loss(*maps(types=1), TRIPLES)
    with pytest.raises(ValueError, match="max_entities must be at least 1, got 0"):
        link_triples(*maps(), max_entities=0)
    with pytest.raises(ValueError, match="max_cells must be at least 1, got 0"):
        GPLinker(4, 1, max_cells=0)


SCRIPT = """
import resource, sys, torch
from danlu.losses import multilabel_cross_entropy
from danlu.text import GPLinker
torch.manual_seed(0); torch.set_num_threads(1)
linker, x = GPLinker(64, 50), torch.randn(2, 512, 64, requires_grad=True)
triples = torch.tensor([[b, i, i + 2, i % 50, i + 7, i + 9] for b in (0, 1) for i in range(0, 400, 20)])
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
before = peak()
if sys.argv[1] == "sparse":
    loss = linker.loss(x, triples)
else:
    loss = 0.0
    for scores in linker(x):
        target = torch.zeros_like(scores)
        target[:, :, 3, 5] = 1.0
        loss = loss + multilabel_cross_entropy(scores.flatten(2), target.flatten(2), "sum")
loss.backward()
print(peak() - before)
"""


@pytest.mark.slow
def test_512_tokens_and_50_predicates_stay_under_a_gigabyte_where_dense_labels_do_not():
    pytest.importorskip("resource", reason="needs getrusage")
    used = {
        kind: float(subprocess.run([sys.executable, "-c", SCRIPT, kind], capture_output=True, check=True).stdout)
        for kind in ("sparse", "dense")
    }
    assert used["sparse"] < 1_000 < used["dense"], used  # MB above what was there before
