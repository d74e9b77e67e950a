"""Least squares: Jacobians by autograd and differences, scipy's fits, rows alone and together, walls; covariance; t."""

import math
from itertools import pairwise

import pytest
import torch

from danlu.math import fisher_covariance, levenberg_marquardt, rowwise_jacobian, student_t_quantile

T = torch.linspace(0, 2, 9, dtype=torch.float64)
Y = torch.stack((2.0 * torch.exp(-1.5 * T) + 0.01 * torch.sin(9 * T), 0.5 * torch.exp(0.3 * T)))


def decay(x, rows):  # x (..., R, 2): amplitude and rate
    return x[..., :1] * torch.exp(-x[..., 1:] * T) - Y[rows]


def test_jacobian_is_that_of_autograd_and_of_differences():
    x = torch.tensor([[1.0, 0.5], [2.0, -0.3]], dtype=torch.float64)
    rows = torch.arange(2)
    value, jacobian = rowwise_jacobian(lambda z: decay(z, rows), x)
    torch.testing.assert_close(value, decay(x, rows))
    for i in range(2):
        whole = torch.autograd.functional.jacobian(lambda z, i=i: decay(z[None], rows[i : i + 1])[0], x[i])
        torch.testing.assert_close(jacobian[i], whole, rtol=0, atol=1e-12)
        for j in range(2):
            h = torch.zeros(2, dtype=torch.float64)
            h[j] = 1e-6
            slope = (decay(x + h, rows)[i] - decay(x - h, rows)[i]) / 2e-6
            torch.testing.assert_close(jacobian[i, :, j], slope, rtol=0, atol=1e-8)
    assert not jacobian.requires_grad
    constant = rowwise_jacobian(lambda z: torch.ones(2, 2, 3), x)[1]
    assert constant.shape == (2, 3, 2)
    assert not constant.any()


def test_fits_as_scipy_does():
    from scipy.optimize import least_squares

    start = torch.tensor([[1.0, 0.5], [1.0, 0.5]], dtype=torch.float64)
    found = levenberg_marquardt(decay, start)
    assert found.converged.all()
    for i in range(2):
        other = least_squares(
            lambda v, i=i: decay(torch.tensor(v)[None], torch.tensor([i]))[0].numpy(),
            [1.0, 0.5],
            xtol=1e-14,
            ftol=1e-14,
        )
        assert found.x[i].tolist() == pytest.approx(list(other.x), rel=1e-6)
        assert found.ssr[i].item() == pytest.approx(2 * other.cost, rel=1e-9)
    torch.testing.assert_close(found.residuals, decay(found.x, torch.arange(2)))
    torch.testing.assert_close(found.jacobian, rowwise_jacobian(lambda z: decay(z, torch.arange(2)), found.x)[1])
    assert (start == torch.tensor([1.0, 0.5])).all()


def test_a_row_ends_where_it_ends_alone():
    start = torch.tensor([[1.0, 0.5], [3.0, 4.0]], dtype=torch.float64)
    both = levenberg_marquardt(decay, start)
    for i in range(2):
        alone = levenberg_marquardt(lambda x, rows, i=i: decay(x, rows + i), start[i : i + 1])
        torch.testing.assert_close(alone.x[0], both.x[i], rtol=1e-12, atol=1e-12)
        assert alone.iterations[0] == both.iterations[i]


def test_a_line_is_found_in_a_few_steps_and_equals_lstsq():
    a = torch.stack((T, torch.ones_like(T)), -1)
    found = levenberg_marquardt(lambda x, rows: x @ a.T - Y[rows], torch.zeros(2, 2, dtype=torch.float64))
    torch.testing.assert_close(found.x, torch.linalg.lstsq(a, Y.T).solution.T)
    assert found.iterations.max() <= 8


def test_units_do_not_matter():
    scale = torch.tensor([1e6, 1e-6], dtype=torch.float64)
    start = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    plain = levenberg_marquardt(decay, start)
    scaled = levenberg_marquardt(lambda x, rows: decay(x * scale, rows), start / scale)
    torch.testing.assert_close(scaled.x * scale, plain.x, rtol=1e-9, atol=1e-9)


def test_walls_of_nan_and_rows_that_start_behind_them():
    def wall(x, rows):  # log of what may be negative
        return torch.log(x) - math.log(0.01)

    found = levenberg_marquardt(wall, torch.tensor([[5.0], [-1.0], [math.nan]], dtype=torch.float64))
    assert found.x[0].item() == pytest.approx(0.01)
    assert found.converged.tolist() == [True, False, False]
    assert found.ssr.tolist()[1:] == [math.inf, math.inf]
    assert found.iterations.tolist()[1:] == [0, 0]


def test_rosenbrock_a_flat_direction_and_a_longest_move():
    def bent(x, rows):
        return torch.stack((10 * (x[..., 1] - x[..., 0] ** 2), 1 - x[..., 0]), -1)

    start = torch.tensor([[-1.2, 1.0]], dtype=torch.float64)
    assert levenberg_marquardt(bent, start).x[0].tolist() == pytest.approx([1.0, 1.0])
    path = []

    def watched(x, rows):
        path.append(x.flatten(0, -2)[0].clone())
        return bent(x, rows)

    levenberg_marquardt(watched, start, max_move=0.05)
    assert max((b - a).abs().max().item() for a, b in pairwise(path)) <= 0.1 + 1e-12
    assert path[-1].tolist() == pytest.approx([1.0, 1.0])
    flat = levenberg_marquardt(lambda x, rows: x[..., :1] + x[..., 1:] - 3, torch.zeros(1, 2, dtype=torch.float64))
    assert flat.x[0].tolist() == pytest.approx([1.5, 1.5])  # fewer residuals than unknowns: the shortest step
    assert flat.converged.all()


def test_a_step_that_makes_it_worse_is_not_taken():
    start = torch.tensor([[1.45]], dtype=torch.float64)  # Gauss and Newton's step lands at -1.54, a little further off
    first = levenberg_marquardt(lambda x, rows: torch.atan(x), start, max_iter=1)
    assert first.x.item() == 1.45
    assert first.ssr.item() == pytest.approx(math.atan(1.45) ** 2)
    assert abs(levenberg_marquardt(lambda x, rows: torch.atan(x), start).x.item()) < 1e-9


def test_no_rows_and_the_end_of_patience():
    assert levenberg_marquardt(decay, torch.zeros(0, 2, dtype=torch.float64)).x.shape == (0, 2)
    short = levenberg_marquardt(decay, torch.tensor([[9.0, 9.0]], dtype=torch.float64), max_iter=1)
    assert not short.converged.any()
    assert short.iterations.tolist() == [1]


def test_messages_of_the_fit():
    with pytest.raises(ValueError, match=r"start must be floats \(rows, unknowns\), got torch.float32 \(2,\)"):
        levenberg_marquardt(decay, torch.zeros(2))
    with pytest.raises(ValueError, match="max_iter=0"):
        levenberg_marquardt(decay, torch.zeros(1, 2), max_iter=0)
    with pytest.raises(ValueError, match=r"floats \(rows, unknowns\), got torch.float32 \(2, 0\)"):
        rowwise_jacobian(lambda x: x, torch.zeros(2, 0))


def test_covariance_is_the_inverse_of_fishers_matrix():
    j = torch.randn(3, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    j[:, :, 2] *= 1e4
    covariance, condition, weakest = fisher_covariance(j, torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    expected = torch.linalg.inv(j.mT @ j) * torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(covariance, expected, rtol=1e-7, atol=1e-18)
    scaled = j / j.norm(dim=1, keepdim=True)
    torch.testing.assert_close(condition, torch.linalg.cond(scaled))
    torch.testing.assert_close((scaled @ weakest[..., None]).norm(dim=(1, 2)), torch.linalg.svdvals(scaled)[:, -1])
    many = torch.randn(200_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    estimates = many @ torch.linalg.cholesky(expected[0, :2, :2]).mT  # its meaning: the spread of estimates
    torch.testing.assert_close(estimates.mT.cov(), covariance[0, :2, :2], rtol=0.03, atol=1e-9)


def test_what_the_data_do_not_see():
    twins = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]], dtype=torch.float64)
    covariance, condition, weakest = fisher_covariance(twins)
    assert condition > 1e12
    assert covariance.diagonal().min() > 1e20
    assert weakest.abs().tolist() == pytest.approx([math.sqrt(0.5)] * 2)
    assert weakest.prod() < 0
    unseen = fisher_covariance(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert unseen[1] == math.inf
    assert unseen[2].abs().tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert unseen[0].isfinite().all()
    with pytest.raises(ValueError, match=r"N >= P >= 1, got \(1, 2\); fewer residuals"):
        fisher_covariance(torch.ones(1, 2))
    with pytest.raises(ValueError, match="finite Jacobian"):
        fisher_covariance(torch.tensor([[math.nan]]))


@pytest.mark.parametrize("dof", [1, 2, 3.5, 10, 57, 1000, math.inf])
def test_t_is_that_of_scipy(dof):
    from scipy.special import ndtri, stdtrit

    for p in (0.001, 0.05, 0.5, 0.9, 0.975, 0.9995):
        expected = ndtri(p) if dof == math.inf else stdtrit(dof, p)
        assert student_t_quantile(p, dof) == pytest.approx(float(expected), rel=1e-6, abs=1e-9)


def test_messages_of_t():
    with pytest.raises(ValueError, match=r"probability in \(0, 1\) and dof >= 1, got 1\.0 and 3"):
        student_t_quantile(1.0, 3)
    with pytest.raises(ValueError, match=r"got 0\.5 and nan"):
        student_t_quantile(0.5, math.nan)
