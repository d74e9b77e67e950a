"""The bit stack: what was pushed comes back, at the length of its probability, and pops draw from the distribution."""

import math

import numpy as np
import pytest

from danlu.generative.ans import BitStack, cumulative_frequencies


def cdf_of(pmf):
    cdf = np.concatenate([np.zeros((*pmf.shape[:-1], 1)), pmf.cumsum(-1)], -1)
    return cdf / cdf[..., -1:]


def random_tables(rng, n, levels, precision):
    pmf = rng.dirichlet(np.full(levels, 0.3), n)
    return pmf, cumulative_frequencies(cdf_of(pmf), precision)


def test_symbols_come_back_in_order_and_take_their_information():
    rng = np.random.default_rng(0)
    pmf, tables = random_tables(rng, 20_000, 17, 24)
    levels = np.array([rng.choice(17, p=row) for row in pmf[:2000]])
    levels = np.concatenate([levels, rng.integers(0, 17, 18_000)])  # unlikely ones as well
    stack = BitStack()
    stack.push_all(levels, tables)
    rows = np.arange(len(levels))
    freqs = tables[rows, levels + 1] - tables[rows, levels]
    information = 24 * len(levels) - np.log2(freqs).sum()
    assert stack.bits - 64 == pytest.approx(information, rel=1e-8)
    assert abs(-np.log2(pmf[rows[:2000], levels[:2000]]).sum() / (24 * 2000 - np.log2(freqs[:2000]).sum()) - 1) < 1e-3
    again = BitStack(stack.words())  # through a file
    assert np.array_equal(again.pop_all(tables), levels)
    assert (again.state, again.stack) == (1 << 64, [])


def test_every_precision_up_to_a_word_and_the_rarest_symbol():
    stack = BitStack()
    rng = np.random.default_rng(1)
    pushed = []
    for _ in range(3_000):
        precision = int(rng.integers(1, 33))
        start = int(rng.integers(0, 1 << precision))
        freq = 1 if rng.random() < 0.3 else int(rng.integers(1, (1 << precision) - start + 1))
        pushed.append((start, freq, precision))
        stack.push(*pushed[-1])
        assert 1 << 64 <= stack.state < 1 << 96
    for start, freq, precision in reversed(pushed):
        assert start <= stack.peek(precision) < start + freq
        stack.drop(start, freq, precision)
    assert (stack.state, stack.stack) == (1 << 64, [])


def test_pops_draw_from_the_distribution_and_are_undone():
    rng = np.random.default_rng(2)
    stack = BitStack(np.concatenate([rng.integers(0, 2**32, 5_000), [7, 9, 5]]))
    before = (stack.state, list(stack.stack))
    pmf = np.array([0.5, 0.3, 0.15, 0.05])
    table = np.repeat(cumulative_frequencies(cdf_of(pmf), 16)[None], 40_000, 0)
    drawn = stack.pop_all(table)
    share = np.bincount(drawn, minlength=4) / len(drawn)
    assert np.all(abs(share - pmf) < 4 * np.sqrt(pmf * (1 - pmf) / len(drawn)))
    stack.push_all(drawn, table)
    assert (stack.state, stack.stack) == before


def test_impossible_levels_can_be_stored():
    table = cumulative_frequencies(cdf_of(np.array([[0.0, 1.0, 0.0]])), 12)
    assert (np.diff(table) >= 1).all() and table[0, -1] == 1 << 12
    stack = BitStack()
    stack.push_all(np.array([2]), table)
    assert stack.bits - 64 == pytest.approx(12, abs=1e-8)
    assert stack.pop_all(table).tolist() == [2]


def test_messages():
    with pytest.raises(ValueError, match=r"used up: truncated data, or bits back before there were enough"):
        BitStack().drop(0, 1, 16)
    with pytest.raises(ValueError, match=r"no bit stack: its state is below 2\^64"):
        BitStack([1, 9, 0])
    with pytest.raises(ValueError, match=r"16 levels do not fit into frequencies that sum to 2\^4"):
        cumulative_frequencies(np.linspace(0, 1, 17), 4)
    for bad in ([0.0, math.nan, 1.0], [0.0, 0.6, 0.5, 1.0], [0.1, 1.0], [0.0, 0.9]):
        with pytest.raises(ValueError, match="must rise from 0 to 1, without NaN"):
            cumulative_frequencies(np.array(bad), 8)
