"""Weights of gradients: by hand, on vectors instead of Gram matrices, KKT conditions, scipy, messages."""

import pytest
import torch
from scipy.optimize import nnls

from danlu.math import (
    direction_weights,
    dual_cone_weights,
    gradient_cosines,
    gram_matrix,
    normalized_weights,
    pcgrad_weights,
    primary_weights,
)

HAND = torch.tensor([[1.0, 0.0, 0.0], [-2.0, 1.0, 0.0]], dtype=torch.float64)


def seeded(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def conflicting(tasks, dim, seed):
    """Random gradients that have lost most of what they have in common."""
    g = seeded(tasks, dim, seed=seed)
    return g - 0.8 * g.mean(0)


def draw(seed):
    return torch.Generator().manual_seed(seed)


def test_pcgrad_by_hand():
    """g_1 - <g_1, g_2> / 5 g_2 = (0.2, 0.4, 0) and g_2 + 2 g_1 = (0, 1, 0)."""
    torch.testing.assert_close(pcgrad_weights(HAND @ HAND.T) @ HAND, torch.tensor([0.2, 1.4, 0.0], dtype=torch.float64))


def pcgrad_on_vectors(g, generator):
    """Oracle: the paper's loop on the vectors themselves, with the same draws of orders."""
    total = torch.zeros_like(g[0])
    for i in range(len(g)):
        v = g[i].clone()
        for j in torch.randperm(len(g), generator=generator).tolist():
            if j != i and torch.dot(v, g[j]) < 0:
                v = v - torch.dot(v, g[j]) / g[j].norm() ** 2 * g[j]
        total += v
    return total


@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_equals_the_loop_on_vectors(seed):
    g = conflicting(5, 4, seed)
    got = pcgrad_weights(g @ g.T, draw(seed)) @ g
    assert (got - g.sum(0)).norm() > 0.1  # there were conflicts
    torch.testing.assert_close(got, pcgrad_on_vectors(g, draw(seed)))


def test_pcgrad_takes_its_orders_from_the_generator_and_none_for_two():
    g = seeded(4, 3, seed=1)
    state = torch.get_rng_state()
    results = [pcgrad_weights(g @ g.T, draw(seed)).tolist() for seed in range(8)]
    assert len({tuple(r) for r in results}) > 1
    assert results[0] == pcgrad_weights(g @ g.T, draw(0)).tolist()
    pcgrad_weights(HAND @ HAND.T)
    assert torch.equal(state, torch.get_rng_state())


def test_without_conflict_pcgrad_dual_cone_and_primary_change_nothing():
    g = seeded(4, 6, seed=2).abs()
    q = g @ g.T
    assert pcgrad_weights(q, draw(0)).tolist() == dual_cone_weights(q).tolist() == [1.0] * 4
    assert primary_weights(q).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_primary_by_hand():
    g = torch.tensor([[1.0, 2.0], [1.0, -1.0]], dtype=torch.float64)
    weights = primary_weights(g @ g.T)
    assert weights.tolist() == pytest.approx([1.0, 0.5])
    u = weights @ g
    assert u.tolist() == pytest.approx([1.5, 1.5]) and (u @ g[1]).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_one_auxiliary_task_has_the_closed_form(seed):
    g = seeded(2, 3, seed=seed)
    expected = torch.relu(-(g[0] @ g[1])) / g[1].norm() ** 2
    torch.testing.assert_close(primary_weights(g @ g.T)[1], expected)


@pytest.mark.parametrize("seed", range(6))
def test_primary_is_the_nearest_harmless_vector(seed):
    """Equal to scipy's nnls; u does no harm, and lambda is 0 where a constraint is not active (KKT)."""
    g = seeded(6, 8, seed=seed) * 10.0 ** torch.linspace(-2, 2, 6, dtype=torch.float64)[:, None]
    weights = primary_weights(g @ g.T)
    expected, _ = nnls(g[1:].T.numpy(), -g[0].numpy())
    torch.testing.assert_close(weights[1:], torch.from_numpy(expected), rtol=1e-8, atol=1e-12)
    u = weights @ g
    unit = g / g.norm(dim=1, keepdim=True)
    assert weights[0] == 1 and (weights[1:] > 0).any() and (unit[1:] @ u > -1e-12).all()
    assert (weights[1:] * (g[1:] @ u)).abs().max() < 1e-12
    torch.testing.assert_close(u @ g[0], u @ u)


@pytest.mark.parametrize("seed", range(4))
def test_the_dual_cone_resolves_what_pcgrad_may_leave(seed):
    g = seeded(5, 4, seed=seed)
    weights = dual_cone_weights(g @ g.T)
    expected = torch.zeros(4, dtype=torch.float64)
    for k in range(5):  # oracle: each gradient as primary task among the others
        order = [k, *(i for i in range(5) if i != k)]
        expected += primary_weights(g[order] @ g[order].T) @ g[order]
    torch.testing.assert_close(weights @ g, expected)
    assert (g @ (weights @ g) > -1e-10).all()


def test_pcgrad_can_harm_a_task_and_the_dual_cone_cannot():
    """Why there are both: with three tasks and more, pair by pair is not all at once."""
    found = 0
    for seed in range(20):
        g = conflicting(4, 3, seed)
        q = g @ g.T
        found += bool((g @ (pcgrad_weights(q, draw(seed)) @ g) < -1e-6).any())
        assert (g @ (dual_cone_weights(q) @ g) > -1e-10).all()
    assert found > 0


def test_normalized_and_cosines():
    g = seeded(3, 5)
    g[1] = 0
    q = g @ g.T
    weights = normalized_weights(q)
    assert weights[1] == 0
    torch.testing.assert_close((weights @ g), g[0] / g[0].norm() + g[2] / g[2].norm())
    cosines = gradient_cosines(q)
    assert cosines[0, 2].item() == pytest.approx(torch.cosine_similarity(g[0], g[2], dim=0).item())
    assert cosines[1].tolist() == [0.0, 0.0, 0.0] and cosines[0, 0].item() == pytest.approx(1)


@pytest.mark.parametrize("weighting", ["sum", "normalized", "mgda", "pcgrad", "dual_cone", "primary"])
def test_normalize_ignores_units_and_a_zero_gradient_is_left_out(weighting):
    g = seeded(4, 6, seed=3)
    units = torch.tensor([1.0, 1e3, 1e-2, 7.0], dtype=torch.float64)[:, None]
    u = [direction_weights(h @ h.T, weighting, True, draw(0)) @ h for h in (g, units * g)]
    torch.testing.assert_close(u[0], u[1], rtol=1e-9, atol=1e-11)
    three = torch.cat([g[:2], torch.zeros(1, 6, dtype=torch.float64), g[2:3]])
    weights = direction_weights(three @ three.T, weighting, generator=draw(0))
    assert weights[2] == 0
    torch.testing.assert_close(weights[[0, 1, 3]], direction_weights(g[:3] @ g[:3].T, weighting, generator=draw(0)))


def test_direction_by_a_function_and_special_cases():
    q = torch.diag(torch.tensor([0.0, 4.0, 9.0]))
    assert direction_weights(q, lambda a: a.diagonal() / 2).tolist() == [0.0, 2.0, 4.5]
    assert direction_weights(q, "primary").tolist() == [0.0, 0.0, 0.0]  # the primary gradient is 0
    assert direction_weights(torch.zeros(2, 2)).tolist() == [0.0, 0.0]
    assert direction_weights(torch.tensor([[1.0, torch.inf], [torch.inf, 1.0]])).tolist() == [1.0, 1.0]


def test_gram_matrix_of_lists():
    a, b = seeded(3, 4, 2), seeded(3, 300_000, seed=1)  # the second takes three blocks
    lists = [[a[i], None if i == 1 else b[i], None] for i in range(3)]
    b[1] = 0
    flat = torch.cat([a.flatten(1), b], 1)
    torch.testing.assert_close(gram_matrix(lists), flat @ flat.T)
    assert gram_matrix([[None], [None]]).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_gram_matrix_keeps_what_half_precision_would_lose():
    g = torch.full((4096,), 1.0, dtype=torch.bfloat16)
    h = g.clone()
    h[::2] = -1.0078125  # one step of bfloat16 above 1
    assert gram_matrix([[g], [h]])[0, 1].item() == 2048 * (1 - 1.0078125)


def test_messages():
    for function in (normalized_weights, pcgrad_weights, primary_weights, dual_cone_weights, gradient_cosines):
        with pytest.raises(ValueError, match=rf"{function.__name__} needs the inner products.*got \(2,\)"):
            function(torch.zeros(2))
        with pytest.raises(ValueError, match=f"{function.__name__} needs finite"):
            function(torch.full((1, 1), torch.nan))
    with pytest.raises(ValueError, match=r"weighting must be one of sum, normalized.*got 'mean'"):
        direction_weights(torch.eye(2), "mean")
    with pytest.raises(ValueError, match=r"direction_weights needs the inner products \(K, K\).*got \(3,\)"):
        direction_weights(torch.zeros(3))
    with pytest.raises(ValueError, match=r"weighting of 2 gradients must give \(2,\), got \(3,\)"):
        direction_weights(torch.eye(2), lambda q: torch.ones(3))
    with pytest.raises(ValueError, match=r"lists of one length.*got lengths \[1, 2\]"):
        gram_matrix([[None], [None, None]])
    with pytest.raises(ValueError, match=r"one shape a parameter; got \[\(2,\), \(3,\)\]"):
        gram_matrix([[torch.zeros(2)], [torch.zeros(3)]])
