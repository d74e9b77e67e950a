"""Power iteration and Lanczos: the SVD, the sequence by hand, clusters, maps that are 0, orthogonal vectors."""

from itertools import pairwise

import pytest
import torch

from danlu.math import power_iteration, top_singular
from danlu.math.singular import stirred, unit

A = torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=torch.float64)


def seeded(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_sequence_of_the_example():
    v, found = torch.tensor([1.0, 0.0], dtype=torch.float64), []
    for _ in range(4):
        found.append((A.T @ unit(A @ v)).norm().item())  # sigma = u^T A v of the new v
        v = power_iteration(A.mv, A.T.mv, v)
    assert found == pytest.approx([6.40312, 6.70412, 6.70815, 6.70820], abs=5e-6)


def test_the_error_falls_by_the_square_of_the_ratio():
    values = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    v = unit(torch.ones(3, dtype=torch.float64))
    tangent = []
    for _ in range(6):
        v = power_iteration(values.diag().mv, values.diag().mv, v)
        tangent.append((v[1] / v[0]).item())
    assert [b / a for a, b in pairwise(tangent)] == pytest.approx([4 / 9] * 5)


def test_rank_one_is_exact_in_one_step():
    a = torch.outer(seeded(4), seeded(3))
    v = power_iteration(a.mv, a.T.mv, seeded(3).flip(0))
    torch.testing.assert_close((a @ v).norm(), torch.linalg.matrix_norm(a, 2))


def test_the_gradient_is_the_outer_product_of_the_top_vectors():
    a = seeded(5, 4).requires_grad_()
    v = power_iteration(a.detach().mv, a.detach().T.mv, seeded(4), steps=500)
    (a @ v).norm().backward()
    exact = a.detach().clone().requires_grad_()
    torch.linalg.matrix_norm(exact, 2).backward()
    torch.testing.assert_close(a.grad, exact.grad)
    u, _, vh = torch.linalg.svd(a.detach())
    torch.testing.assert_close(a.grad, torch.outer(u[:, 0], vh[0]))


def test_power_iteration_keeps_a_vector_that_the_map_sends_to_zero_and_no_step_is_no_step():
    v = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(power_iteration(lambda x: 0 * x, lambda x: 0 * x, v), v / 5)
    torch.testing.assert_close(power_iteration(A.float().mv, A.float().T.mv, v, steps=0), v / 5)
    with pytest.raises(ValueError, match="steps must be >= 0, got -1"):
        power_iteration(A.mv, A.T.mv, v, steps=-1)


def test_a_stirred_vector_leaves_what_is_orthogonal_to_the_top():
    a = torch.diag(torch.tensor([2.0, 1.0]))
    stuck = power_iteration(a.mv, a.mv, torch.tensor([0.0, 1.0]), steps=100)
    assert (a @ stuck).norm() == 1
    v = power_iteration(a.mv, a.mv, stirred(torch.tensor([0.0, 1.0])), steps=20)
    assert (a @ v).norm() == pytest.approx(2.0)
    assert stirred(torch.zeros(3)).any()


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (1, 7), (7, 1), (3, 3)])
def test_lanczos_equals_the_svd(shape):
    a = seeded(*shape)
    sigma, v = top_singular(a.mv, a.T.mv, seeded(shape[1]), tol=1e-9)
    _, s, vh = torch.linalg.svd(a)
    torch.testing.assert_close(sigma, s[0])
    assert (v @ vh[0]).abs() == pytest.approx(1.0)


def test_lanczos_takes_a_cluster_that_stops_power_iteration():
    values = torch.linspace(0.9, 1, 400, dtype=torch.float64)
    a = values.diag()
    start = seeded(400)
    sigma, _ = top_singular(a.mv, a.mv, start, tol=1e-3)
    slow = (a @ power_iteration(a.mv, a.mv, start, steps=48)).norm()  # as many products
    assert 1 - sigma < 2e-4 < 2e-3 < 1 - slow


def test_lanczos_of_nothing_of_few_directions_and_of_any_shape():
    sigma, v = top_singular(lambda x: 0 * x, lambda x: 0 * x, torch.ones(2, 3))
    assert sigma == 0
    assert v.shape == (2, 3)
    identity = top_singular(lambda x: x, lambda x: x, torch.ones(2, 3))
    assert identity[0] == pytest.approx(1.0)
    low_rank = seeded(30, 2) @ seeded(2, 30)
    torch.testing.assert_close(
        top_singular(low_rank.mv, low_rank.T.mv, seeded(30))[0], torch.linalg.matrix_norm(low_rank, 2)
    )


def test_lanczos_carries_no_graph_and_names_its_numbers():
    a = A.clone().requires_grad_()
    assert not any(x.requires_grad for x in top_singular(a.mv, a.T.mv, torch.ones(2, dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"needs tol > 0.*got tol=0"):
        top_singular(A.mv, A.T.mv, seeded(2), tol=0)
