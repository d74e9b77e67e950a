"""Shortest weighted mean: by hand, enumeration of faces, the inequality it is made for, Frank-Wolfe, messages."""

from itertools import combinations

import pytest
import torch

from danlu.math import min_norm_weights

HAND = torch.tensor([[1.0, 0.0, 0.0], [-2.0, 1.0, 0.0]], dtype=torch.float64)


def seeded(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_enumeration(g):
    """Oracle: the shortest point of every face that lies inside it, by Lagrange's equations on the vectors."""
    best, best_norm = torch.zeros(len(g), dtype=g.dtype), torch.inf
    for size in range(1, len(g) + 1):
        for face in combinations(range(len(g)), size):
            q = g[list(face)] @ g[list(face)].T
            system = torch.ones(size + 1, size + 1, dtype=g.dtype)
            system[:size, :size], system[size, size] = q, 0
            right = torch.zeros(size + 1, dtype=g.dtype)
            right[size] = 1
            a = torch.linalg.solve(system, right)[:size]
            norm = (a @ q @ a).item()
            if (a >= 0).all() and norm < best_norm:
                best = torch.zeros_like(best)
                best[list(face)], best_norm = a, norm
    return best


def test_by_hand():
    weights = min_norm_weights(HAND @ HAND.T)
    torch.testing.assert_close(weights, torch.tensor([0.7, 0.3], dtype=torch.float64))
    u = weights @ HAND
    torch.testing.assert_close(u, torch.tensor([0.1, 0.3, 0.0], dtype=torch.float64))
    torch.testing.assert_close(HAND @ u, (u @ u).expand(2))  # both 0.1


@pytest.mark.parametrize("g", [[[1.0, 0.0], [3.0, 1.0]], [[3.0, 1.0], [1.0, 0.0]]])
def test_of_two_that_agree_the_shorter_one_is_taken(g):
    g = torch.tensor(g)
    assert (min_norm_weights(g @ g.T) @ g).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_best_of_all_faces(size, seed):
    g = seeded(size, 8, seed=10 * size + seed) * (1 + 5 * seeded(size, 1, seed=seed).abs())
    weights = min_norm_weights(g @ g.T)
    torch.testing.assert_close(weights, by_enumeration(g), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("seed", range(5))
def test_no_task_gets_worse_and_the_active_ones_gain_alike(seed):
    g = seeded(7, 12, seed=seed) * 10.0 ** torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    weights = min_norm_weights(g @ g.T)
    u = weights @ g
    assert weights.sum().item() == pytest.approx(1)
    assert (weights >= 0).all() and (weights > 0).sum() >= 2
    assert (g @ u >= u @ u * (1 - 1e-9)).all()
    torch.testing.assert_close((g @ u)[weights > 0], (u @ u).expand(int((weights > 0).sum())), rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [2, 5])
def test_frank_wolfe_comes_to_the_same_point_slowly(size):
    g = seeded(size, 20, seed=4)
    q = g @ g.T
    exact = min_norm_weights(q)
    best = exact @ q @ exact
    gaps = []
    for steps in (1, 10, 100, 3000):
        a = min_norm_weights(q, "frank_wolfe", steps)
        assert a.sum().item() == pytest.approx(1) and (a >= 0).all()
        gaps.append(((a @ q @ a - best) / best).item())
    assert gaps == sorted(gaps, reverse=True) and min(gaps) > -1e-12
    assert gaps[-1] < 2e-3
    if size == 2:
        assert gaps[0] < 1e-12  # one line search is the whole problem


def test_opposite_gradients_have_no_common_direction():
    g = torch.tensor([[1.0, 2.0], [-2.0, -4.0], [0.0, 3.0]], dtype=torch.float64)
    weights = min_norm_weights(g @ g.T)
    assert (weights @ g).norm() < 1e-7  # the square root of rounding: the Gram matrix knows squares only
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 1 / 3, 0], dtype=torch.float64), rtol=1e-7, atol=1e-7)


def test_equal_and_zero_gradients():
    assert min_norm_weights(torch.ones(2, 2)).tolist() == [0.5, 0.5]
    assert min_norm_weights(torch.ones(3, 3)).sum().item() == pytest.approx(1)
    assert min_norm_weights(torch.diag(torch.tensor([1.0, 0.0, 2.0]))).tolist() == [0.0, 1.0, 0.0]
    assert min_norm_weights(torch.tensor([[3.0]])).tolist() == [1.0]


def test_messages():
    with pytest.raises(ValueError, match=r"inner products \(K, K\).*got \(2, 3\).*give G @ G.T"):
        min_norm_weights(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="finite inner products; leave out the task"):
        min_norm_weights(torch.tensor([[torch.nan]]))
    with pytest.raises(ValueError, match="method must be 'exact' or 'frank_wolfe' and steps >= 1, got 'qp' and 1000"):
        min_norm_weights(torch.eye(2), "qp")
