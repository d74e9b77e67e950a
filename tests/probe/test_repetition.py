"""Repetition index: against walks one by one, simulation, closed forms, identities; large sparse matrices."""

import itertools
import math

import pytest
import torch

from danlu.math import loop_counts
from danlu.probe import (
    decoder_matrix,
    deterministic_cycles,
    repetition_bound,
    repetition_index,
    repetition_index_sparse,
    repetition_radius,
    row_collision,
    sampled_repetition_index,
    top_cycles,
    transition_matrix,
)

P = torch.tensor([[0.5, 0.3, 0.1], [0.2, 0.6, 0.1], [0.1, 0.3, 0.5]], dtype=torch.float64)


def random_matrix(n=6, seed=0, sharp=1.0):
    full = torch.randn(n, n + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return full.mul(sharp).softmax(1)[:, :n]


def walks_by_hand(P, longest):
    """Oracle: probability of going round every closed walk twice, walk by walk, by starting token."""
    p, total = P.tolist(), [0.0] * len(P)
    for k in range(1, longest + 1):
        for walk in itertools.product(range(len(p)), repeat=k):
            total[walk[0]] += math.prod(p[a][b] ** 2 for a, b in zip(walk, (*walk[1:], walk[0]), strict=True))
    return total


def scaled(P, share):  # a lighter chain, so that long walks do not matter
    return P * share


def test_known_chain():
    assert repetition_index(P) == pytest.approx(1.2575929271, abs=1e-10)
    assert repetition_index(P, per_token=True).tolist() == pytest.approx([0.343839, 0.577489, 0.336265], abs=1e-6)
    assert repetition_radius(P) == pytest.approx(0.393666, abs=1e-6)
    assert repetition_bound(P) == pytest.approx(1.947768, abs=1e-6)
    assert row_collision(P).tolist() == pytest.approx([0.35, 0.41, 0.35])
    two = torch.tensor([[0.0, 1.0], [0.5, 0.0]])
    assert repetition_index(two) == pytest.approx(2 / 3)  # eigenvalues 1/2 and -1/2: 1 - 1/3
    assert repetition_bound(two) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("options", "index", "radius"),
    [
        ({"temperature": 0.5}, 4.657288, 0.737065),
        ({"temperature": 1.0}, 1.257593, 0.393666),
        ({"temperature": 2.0}, 0.566602, 0.257258),
        ({"top_k": 2}, 2.701632, 0.603741),
    ],
)
def test_known_decoders(options, index, radius):
    assert repetition_index(decoder_matrix(P, **options)) == pytest.approx(index, abs=1e-6)
    assert repetition_radius(decoder_matrix(P, **options)) == pytest.approx(radius, abs=1e-6)


def test_equals_the_walks_one_by_one():
    other = torch.cat([P[:2], torch.tensor([[0.1, 0.2, 0.5]], dtype=torch.float64)])
    assert sum(walks_by_hand(other, 8)) == pytest.approx(1.2539334804, abs=1e-10)
    light = scaled(random_matrix(3), 0.4)  # the ninth power is below 1e-8
    assert repetition_index(light, per_token=True).tolist() == pytest.approx(walks_by_hand(light, 8), rel=1e-6)


def test_equals_the_eigenvalues_sum():
    for seed in range(4):
        full = random_matrix(seed=seed, sharp=3.0)
        values = torch.linalg.eigvals(full * full)
        assert repetition_index(full) == pytest.approx((values / (1 - values)).sum().real.item())


def test_equals_what_simulated_chains_do():
    chains, steps = 4_000, 24
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat([torch.cat([P, 1 - P.sum(1, keepdim=True)], 1), torch.eye(4, dtype=torch.float64)[3:]])
    for start, exact in enumerate(repetition_index(P, per_token=True).tolist()):
        walk = [torch.full((chains,), start)]
        for _ in range(steps):
            walk.append(torch.multinomial(rows[walk[-1]], 1, generator=generator)[:, 0])
        loops = [loop_counts([t for t in row if t < 3])[0] for row in torch.stack(walk, 1).tolist()]
        counts = torch.tensor(loops, dtype=torch.float64)
        assert counts.mean().item() == pytest.approx(exact, abs=4 * counts.std().item() / chains**0.5)


def test_samples_show_the_index():
    generator = torch.Generator().manual_seed(1)
    sequences = []
    for _ in range(1200):
        tokens = [int(torch.randint(3, (1,), generator=generator))]
        while True:
            row = P[tokens[-1]]
            token = int(torch.multinomial(torch.cat([row, 1 - row.sum()[None]]), 1, generator=generator))
            if token == 3:
                break
            tokens.append(token)
        sequences.append(tokens)
    index, counts = sampled_repetition_index(sequences, 4)
    assert counts.tolist() == [sum(x.count(i) for x in sequences) for i in range(4)]
    assert index[3] == 0
    exact = repetition_index(P, per_token=True)
    assert index[:3].tolist() == pytest.approx(exact.tolist(), abs=0.05)  # 4 standard errors of about 4,000 places


def test_uniform_rows_have_a_closed_form():
    for n in (2, 5, 9):
        assert repetition_index(torch.full((n, n), 1 / n, dtype=torch.float64)) == pytest.approx(1 / (n - 1))


def test_order_of_the_tokens_does_not_matter_and_blocks_add():
    full, order = random_matrix(), torch.tensor([3, 0, 5, 1, 4, 2])
    moved = repetition_index(full[order][:, order], per_token=True)
    torch.testing.assert_close(moved, repetition_index(full, per_token=True)[order])
    both = torch.block_diag(full, P)
    assert repetition_index(both) == pytest.approx(repetition_index(full) + repetition_index(P))


def test_any_larger_entry_raises_it():
    base = scaled(P, 0.9)
    for i, j in itertools.product(range(3), repeat=2):
        more = base.clone()
        more[i, j] += 0.05
        assert repetition_index(more) > repetition_index(base)


def test_bounds_hold():
    for seed in range(20):
        full = random_matrix(seed=seed, sharp=3.0)
        radius, collision = repetition_radius(full), row_collision(full)
        assert collision.min() - 1e-12 <= radius <= collision.max() + 1e-12
        assert repetition_index(full) <= repetition_bound(full) + 1e-12


def test_greedy_search_loops_forever_and_the_cycle_is_named():
    chain = torch.tensor([[0.1, 0.6, 0.2, 0.0], [0.3, 0.0, 0.5, 0.1], [0.1, 0.5, 0.2, 0.1], [0.2, 0.2, 0.1, 0.1]])
    greedy = decoder_matrix(chain, top_k=1)  # 0 -> 1 <-> 2, 3 -> end
    assert deterministic_cycles(greedy) == [(1, 2)]
    assert repetition_index(greedy) == math.inf == repetition_bound(greedy)
    assert repetition_index(greedy, per_token=True).tolist() == [0, math.inf, math.inf, 0]
    assert repetition_radius(greedy) == 1.0
    assert top_cycles(greedy)[0].contribution == math.inf
    assert top_cycles(greedy)[0].tokens == (1, 2)


def test_tokens_beside_a_certain_cycle_keep_their_index():
    both = torch.block_diag(P, torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64))
    both[0] = torch.tensor([0.5, 0.3, 0.1, 0.1, 0.0], dtype=torch.float64)  # what was the end now falls into the cycle
    expected = repetition_index(P, per_token=True).tolist()
    assert repetition_index(both, per_token=True).tolist() == pytest.approx([*expected, math.inf, math.inf])
    assert deterministic_cycles(both) == deterministic_cycles(both.to_sparse()) == [(3, 4)]
    found = repetition_index_sparse(both.to_sparse(), 1e-9)
    assert found.per_token.tolist() == pytest.approx([*expected, math.inf, math.inf], abs=1e-6)


def test_several_certain_cycles_and_long_ones():
    n = 50
    follow = [*range(1, n), 0, n, n]  # a ring of 50, a loop of one, and a token that leads to the loop
    ring = torch.zeros(n + 2, n + 2)
    ring[torch.arange(n + 2), torch.tensor(follow)] = 1
    assert deterministic_cycles(ring) == [tuple(range(n)), (n,)]
    assert deterministic_cycles(P) == []
    nearly = ring * 0.99
    assert deterministic_cycles(nearly) == []
    assert repetition_index(nearly, per_token=True)[n].item() == pytest.approx(0.9801 / (1 - 0.9801), rel=1e-4)


def sparse_matrix(n, degree, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(n).repeat_interleave(degree)
    columns = (torch.rand(n * degree, generator=generator) ** 3 * n).long()  # a few tokens are frequent
    columns[:60:degree] = rows[:60:degree]
    counts = torch.zeros(n, n, dtype=torch.float64)
    counts[rows, columns] = torch.rand(n * degree, dtype=torch.float64, generator=generator)
    return counts / (counts.sum(1, keepdim=True) * 1.05)


@pytest.mark.parametrize("threshold", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize(("n", "degree"), [(300, 3), (40, 20), (1500, 2)])
def test_sparse_index_lies_within_its_stated_error(threshold, n, degree):
    full = sparse_matrix(n, degree, n)
    exact = repetition_index(full, per_token=True)
    found = repetition_index_sparse(full.to_sparse(), threshold)
    slack = exact - found.per_token
    assert (slack >= -1e-12).all()
    assert (slack <= found.error + 1e-12).all()
    assert found.index <= exact.sum().item() + 1e-9 <= found.index + found.index_error + 1e-8
    assert found.index_error < 100 * threshold * n
    assert slack.sum() > 0 or threshold < 1e-3  # otherwise nothing was dropped and nothing tested


def test_sparse_index_on_slowly_decaying_loops():
    chain = torch.zeros(5, 5, dtype=torch.float64)
    chain[torch.arange(4), torch.arange(1, 5)] = 0.99
    chain[4, 0] = 0.99
    chain[2, 2] = 0.001
    found = repetition_index_sparse(chain.to_sparse(), 1e-9)
    exact = repetition_index(chain)
    assert found.index <= exact <= found.index + found.index_error
    assert found.index == pytest.approx(exact, rel=1e-4)


def test_chains_without_any_loop():
    line = torch.zeros(6, 6)
    line[torch.arange(5), torch.arange(1, 6)] = 1.0
    found = repetition_index_sparse(line.to_sparse())
    assert repetition_index(line) == found.index == found.index_error == repetition_radius(line) == 0
    assert top_cycles(line) == []


def test_radius_of_a_large_matrix_equals_that_of_its_dense_eigenvalues():
    full = sparse_matrix(1200, 4, 7)
    expected = torch.linalg.eigvals(full * full).abs().max().item()
    assert repetition_radius(full.to_sparse()) == pytest.approx(expected, rel=1e-9)
    line = torch.diag(torch.ones(1100), 1)
    assert repetition_radius(line) == 0
    line[5, 3] = 0.36
    line[5, 6] = 0.5
    assert repetition_radius(line) == pytest.approx(0.36 ** (2 / 3))  # one cycle of three steps


def test_all_kinds_of_input_agree():
    for given in (P, P.float(), P.to_sparse(), P.to_sparse_csr()):
        assert repetition_index(given) == pytest.approx(1.2575929271, abs=1e-6)
        torch.testing.assert_close(row_collision(given), (P * P).sum(1), rtol=1e-6, atol=0)
        assert repetition_radius(given) == pytest.approx(0.393666, abs=1e-6)
        assert top_cycles(given)[0].tokens == (1,)
    assert P[0, 0] == 0.5


def test_counted_text_and_its_sparse_matrix_agree():
    text = [[0, 1, 0, 1, 2], [2, 2, 1], [0, 1, 1]]
    assert repetition_index(transition_matrix(text, sparse=True)) == pytest.approx(
        repetition_index(transition_matrix(text))
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: repetition_index(torch.ones(2, 3)), r"repetition_index needs a square matrix.*\(2, 3\)"),
        (lambda: repetition_index(torch.ones(2, 2)), r"rows that sum to at most 1.*row 0 sums to 2"),
        (lambda: repetition_index(torch.zeros(5001, 5001)), r"up to 5000 tokens, got 5001; repetition_index_sparse"),
        (lambda: repetition_index_sparse(P.to_sparse(), 0.0), r"threshold must be > 0, got 0.0"),
        (lambda: sampled_repetition_index([[0, 4]], 3), r"ids must lie in \[0, 3\), got 0 to 4; raise vocab_size"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
