"""Iterative pseudo-inverses: the paper's polynomial, the residual's identity, torch's own, the bound, neighbours."""

import math

import pytest
import torch

from danlu.math import iterative_pinv, pinv_residual, pinv_step_bound, pseudo_inverse

G = torch.Generator().manual_seed(0)
A = torch.randn(3, 5, 5, dtype=torch.float64, generator=G).softmax(-1)


def by_the_paper(a: torch.Tensor, steps: int) -> torch.Tensor:
    """The polynomial in A V as the paper writes it, one matrix."""
    eye = torch.eye(len(a), dtype=a.dtype)
    v = a.T / (a.abs().sum(0).max() * a.abs().sum(1).max())
    for _ in range(steps):
        p = a @ v
        v = v @ (13 * eye - p @ (15 * eye - p @ (7 * eye - p))) / 4
    return v


@pytest.mark.parametrize("steps", [0, 1, 2, 6])
def test_equals_the_polynomial_of_the_paper(steps):
    expected = torch.stack([by_the_paper(a, steps) for a in A])
    torch.testing.assert_close(iterative_pinv(A, steps), expected)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_the_residual_obeys_its_identity(steps):
    eye = torch.eye(5, dtype=torch.float64)
    now, then = (eye - A @ iterative_pinv(A, k) for k in (steps, steps + 1))
    torch.testing.assert_close(then, now @ now @ now @ (3 * eye + now) / 4, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (6, 3), (1, 1), (1, 7)])
def test_auto_reaches_the_pseudo_inverse(shape):
    a = torch.randn(2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = pseudo_inverse(a)
    torch.testing.assert_close(found.inverse, torch.linalg.pinv(a), rtol=1e-7, atol=1e-7)
    assert (found.residual <= 2**-26).all()  # the root of float64's rounding
    assert found.residual.shape == found.steps.shape == (2, 3)


def test_the_residual_stated_is_that_of_the_inverse_returned():
    found = pseudo_inverse(A, steps=4)
    expected = [torch.linalg.matrix_norm(torch.eye(5).double() - a @ v) for a, v in zip(A, found.inverse, strict=True)]
    torch.testing.assert_close(found.residual, torch.stack(expected))
    assert found.steps.tolist() == [4, 4, 4]
    tall = torch.ones(3, 1, dtype=torch.float64)
    assert pinv_residual(tall, torch.full((1, 3), 0.5, dtype=torch.float64)).item() == pytest.approx(0.5)


def test_steps_follow_the_condition():
    """delta grows by 13/4 a step: log(1 / delta_0) / log(13/4) steps, and about three for the rest."""
    for condition in (3.0, 30.0, 300.0, 3000.0):
        q, _ = torch.linalg.qr(torch.randn(2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
        s = torch.logspace(0, -math.log10(condition), 6, dtype=torch.float64)
        a = q[0] * s @ q[1]
        delta = s[-1] ** 2 / (a.abs().sum(0).max() * a.abs().sum(1).max())
        needed = math.log(1 / delta) / math.log(3.25) + 3
        assert abs(pseudo_inverse(a).steps.item() - needed) <= 2


def test_six_steps_are_not_enough_where_auto_is():
    q, k = torch.randn(2, 64, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = (q @ k.T / 4).softmax(-1)
    assert 1e3 < torch.linalg.cond(a) < 1e5
    assert pseudo_inverse(a, 6).residual > 1
    found = pseudo_inverse(a)
    assert found.residual < 1e-7
    assert 15 <= found.steps <= 25


def test_auto_never_stops_before_it_is_there():
    """Residuals that shrink slowly around one half are no sign of rounding."""
    a = torch.randn(200, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).softmax(-1)
    regular = torch.linalg.cond(a) < 1e6
    assert (pseudo_inverse(a).residual[regular] < 1e-7).all()


def test_rounding_ends_the_steps_of_float32():
    q, k = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0))
    a = (q @ k.T / 4).softmax(-1)
    found = pseudo_inverse(a)
    assert found.steps <= pinv_step_bound(2**-23) == 17
    assert pseudo_inverse(a, 40).inverse.isfinite().all()


def test_noise_limits_the_steps_and_the_inverse():
    a = torch.diag(torch.tensor([1.0, 1e-4], dtype=torch.float64))
    fine, coarse = pseudo_inverse(a), pseudo_inverse(a, noise=2**-7)
    assert fine.inverse[1, 1] == pytest.approx(1e4)
    assert coarse.inverse[1, 1] < 10  # not to be told from noise: left out
    assert coarse.inverse[0, 0] == pytest.approx(1.0, rel=0.01)
    assert coarse.steps == pinv_step_bound(2**-7) == 8


def test_a_matrix_knows_nothing_of_its_neighbours():
    mixed = torch.stack([A[0], 1e6 * A[1], torch.eye(5).double(), torch.zeros(5, 5).double(), A[2]])
    together = pseudo_inverse(mixed)
    for i, a in enumerate(mixed):
        alone = pseudo_inverse(a)
        torch.testing.assert_close(together.inverse[i], alone.inverse, rtol=1e-12, atol=1e-12)
        assert together.steps[i] == alone.steps


def test_singular_matrices_stay_finite():
    rank_one = torch.ones(2, 4, 4, dtype=torch.float64)
    found = pseudo_inverse(rank_one)
    torch.testing.assert_close(found.inverse, rank_one / 16)
    assert (found.residual >= 1).all()
    assert pseudo_inverse(torch.zeros(3, 3)).inverse.abs().max() == 0
    near = torch.ones(32, 32) / 32 + 1e-6 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    assert iterative_pinv(near).isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_sizes_at_the_ends_of_float32(scale):
    a = A.float() * scale
    torch.testing.assert_close(iterative_pinv(a) * scale, iterative_pinv(A.float()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_inverted_in_float32(dtype):
    a = torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = iterative_pinv(a)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.linalg.inv(a.float()), rtol=1e-3, atol=1e-3)


def test_empty_batches_and_matrices():
    assert iterative_pinv(torch.zeros(0, 3, 3)).shape == (0, 3, 3)
    assert iterative_pinv(torch.zeros(2, 3, 0)).shape == (2, 0, 3)


def test_views_and_inputs_are_left_alone():
    a = A.mT[..., :4]
    before = A.clone()
    torch.testing.assert_close(iterative_pinv(a), iterative_pinv(a.contiguous()))
    assert torch.equal(A, before)


@pytest.mark.parametrize("steps", [3, "auto"])
def test_gradcheck(steps):
    a = A[:2] * torch.linspace(1, 2, 5)[:, None]  # rows of unequal sums: the norms of (1) have no gradient at ties
    assert torch.autograd.gradcheck(lambda a: iterative_pinv(a, steps), a.requires_grad_())


def test_gradient_of_auto_is_that_of_the_inverse():
    a, b = A.clone().requires_grad_(), A.clone().requires_grad_()
    weights = torch.randn(3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    (iterative_pinv(a) * weights).sum().backward()
    (torch.linalg.inv(b) * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_second_derivatives():
    a = torch.tensor([[1.0, 0.5], [0.2, 2.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda a: iterative_pinv(a, 3), a)


@pytest.mark.parametrize(
    ("a", "steps", "noise", "message"),
    [
        (torch.zeros(3), "auto", None, r"matrices \(\.\.\., M, N\).*got \(3,\)"),
        (torch.zeros(3, 3, dtype=torch.long), "auto", None, "of torch.int64"),
        (torch.zeros(3, 3), "six", None, "'auto' or a number >= 0 such as 6, got 'six'"),
        (torch.zeros(3, 3), -1, None, "got -1"),
        (torch.zeros(3, 3), True, None, "got True"),
        (torch.zeros(3, 3), "auto", 1.0, r"noise is a relative error in \(0, 1\).*got 1.0"),
    ],
)
def test_messages(a, steps, noise, message):
    with pytest.raises(ValueError, match=message):
        iterative_pinv(a, steps, noise)


def test_bound_by_hand():
    assert pinv_step_bound(0.25) == 5  # log 4 / log 3.25 = 1.18
