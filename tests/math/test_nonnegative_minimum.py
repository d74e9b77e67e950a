"""Least quadratic over non-negative numbers: enumeration of active sets, scipy's nnls, optimality, scales, messages."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from danlu.math import nonnegative_minimum


def seeded(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_enumeration(a, b):
    """Oracle: the best of all active sets, each solved as a plain linear system."""
    best, best_value = np.zeros(len(b)), 0.0
    for choice in product([False, True], repeat=len(b)):
        rows = np.flatnonzero(choice)
        if not len(rows):
            continue
        x = np.zeros(len(b))
        x[rows] = np.linalg.solve(a[np.ix_(rows, rows)], -b[rows])
        value = x @ a @ x / 2 + b @ x
        if (x >= 0).all() and value < best_value:
            best, best_value = x, value
    return best


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_best_of_all_active_sets(seed):
    size = 1 + seed % 5
    g = seeded(size, 7, seed=seed)
    b = seeded(size, seed=100 + seed)
    expected = by_enumeration((g @ g.T).numpy(), b.numpy())
    torch.testing.assert_close(nonnegative_minimum(g @ g.T, b), torch.from_numpy(expected), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("seed", range(6))
def test_equals_scipys_nnls(seed):
    g, h = seeded(8, 20, seed=seed), seeded(20, seed=50 + seed)
    expected, _ = nnls(g.T.numpy(), -h.numpy())
    x = nonnegative_minimum(g @ g.T, g @ h)
    assert 0 < (x > 0).sum() < 8  # some of them are at the bound, some are not
    torch.testing.assert_close(x, torch.from_numpy(expected), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("seed", range(6))
def test_conditions_of_optimality_at_scales_a_million_apart(seed):
    """Eq. (2), each condition in the unit of its own row."""
    g = seeded(6, 9, seed=seed) * 10.0 ** torch.arange(-3, 3)[:, None]
    h = seeded(9, seed=70 + seed)
    x = nonnegative_minimum(g @ g.T, g @ h)
    slope = g @ (h + x @ g) / g.norm(dim=1)
    assert (x >= 0).all() and (slope > -1e-12).all()
    assert (x * g.norm(dim=1) * slope).abs().max() < 1e-12


def test_dependent_rows_are_solved():
    """Three copies of one gradient and its opposite: the system is singular, the combined vector is not in doubt."""
    g = torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, 2.0], [-1.0, -1.0]], dtype=torch.float64)
    h = torch.tensor([-3.0, 1.0], dtype=torch.float64)
    x = nonnegative_minimum(g @ g.T, g @ h)
    assert (x >= 0).all()
    torch.testing.assert_close(h + x @ g, torch.tensor([-2.0, 2.0], dtype=torch.float64))


def test_zero_rows_and_nothing_at_all():
    a = torch.diag(torch.tensor([0.0, 4.0]))
    assert nonnegative_minimum(a, torch.tensor([0.0, -2.0])).tolist() == [0.0, 0.5]
    assert nonnegative_minimum(torch.zeros(0, 0), torch.zeros(0)).tolist() == []


def test_dtype_follows_and_nothing_requires_a_gradient():
    a = torch.eye(2, dtype=torch.bfloat16).requires_grad_()
    x = nonnegative_minimum(a, torch.tensor([-3.0, 1.0]))
    assert x.dtype == torch.bfloat16 and not x.requires_grad


def test_messages():
    with pytest.raises(ValueError, match=r"needs A \(K, K\) and b \(K,\); got \(2, 3\) and \(2,\)"):
        nonnegative_minimum(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="needs finite numbers"):
        nonnegative_minimum(torch.eye(2), torch.tensor([1.0, torch.inf]))
    with pytest.raises(ValueError, match="no least value: A_ii = 0 and b_i < 0"):
        nonnegative_minimum(torch.zeros(1, 1), torch.tensor([-1.0]))
