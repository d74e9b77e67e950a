"""Divergences of Gaussians: 40-digit table, torch.distributions, quadrature, invariances, singular pairs, gradients."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from danlu.math import (
    gaussian_bhattacharyya,
    gaussian_chernoff,
    gaussian_hellinger,
    gaussian_jeffreys,
    gaussian_kl,
)
from danlu.math.gaussian_divergence import width_cost

ALL = [gaussian_kl, gaussian_jeffreys, gaussian_chernoff, gaussian_bhattacharyya, gaussian_hellinger]
SYMMETRIC = [gaussian_jeffreys, gaussian_bhattacharyya, gaussian_hellinger]


def t(*rows: object) -> Tensor:
    return torch.tensor(rows[0] if len(rows) == 1 else rows, dtype=torch.float64)


CASES = {  # mean_p, cov_p, mean_q, cov_q; KL(p||q), KL(q||p), B, H^2 by 40-digit arithmetic
    "A": (
        (t([1, 2]), t([[2, 0.5], [0.5, 1]]), t([0, 0]), t([[1, -0.3], [-0.3, 1.5]])),
        (2.792696178085, 2.336584470344, 0.544944434968, 0.420125996838),
    ),
    "B": (
        (t([1, -1, 0.5]), t([[4, 2, 0.6], [2, 3, 0.4], [0.6, 0.4, 1]]), t([0, 0, 0]), torch.eye(3).double()),
        (2.635189396801, 1.277103420878, 0.407323069200, 0.334570824101),
    ),
    "C": (
        (t([0, 0]), t([[2, 1], [1, 2]]), t([0, 0]), t([[2, -1], [-1, 2]])),
        (0.666666666667, 0.666666666667, 0.143841036226, 0.133974596216),
    ),
    "D": ((t([3]), t([[4]]), t([1]), t([[9]])), (0.349909552553, 0.719534891892, 0.116944430760, 0.110365371890)),
    "E": ((t([0, 0]), t([[1, 0], [0, 0]]), t([0, 0]), t([[0, 0], [0, 1]])), (math.inf, math.inf, math.inf, 1.0)),
}


def random_pair(seed: int = 0, batch: tuple[int, ...] = (5,), dim: int = 4) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    f = torch.randn(2, *batch, dim, dim, dtype=torch.float64, generator=g)
    m = torch.randn(2, *batch, dim, dtype=torch.float64, generator=g)
    s = f @ f.mT + 0.1 * torch.eye(dim, dtype=torch.float64)
    return m[0], s[0], m[1], s[1]


def swap(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return args[2], args[3], args[0], args[1]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_table_of_high_precision(case):
    args, (forward, backward, b, h2) = CASES[case]
    got = [gaussian_kl(*args), gaussian_kl(*swap(args)), gaussian_bhattacharyya(*args), gaussian_hellinger(*args)]
    assert torch.stack(got).tolist() == pytest.approx([forward, backward, b, h2], rel=1e-11)
    assert gaussian_jeffreys(*args).item() == pytest.approx(forward + backward, rel=1e-11)
    assert gaussian_hellinger(*args, squared=False).item() == pytest.approx(math.sqrt(h2), rel=1e-11)


def test_kl_equals_torch_distributions():
    m_p, s_p, m_q, s_q = random_pair()
    expected = kl_divergence(MultivariateNormal(m_p, s_p), MultivariateNormal(m_q, s_q))
    torch.testing.assert_close(gaussian_kl(m_p, s_p, m_q, s_q), expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.8])
def test_chernoff_equals_quadrature_in_one_dimension(alpha):
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    log_p = torch.distributions.Normal(t(3.0), t(2.0)).log_prob(x)
    log_q = torch.distributions.Normal(t(1.0), t(3.0)).log_prob(x)
    integral = torch.trapezoid((alpha * log_p + (1 - alpha) * log_q).exp(), x)
    assert gaussian_chernoff(*CASES["D"][0], alpha=alpha).item() == pytest.approx(-integral.log().item(), rel=1e-9)


def test_hellinger_is_the_integral_of_squared_roots():
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    p = torch.distributions.Normal(t(3.0), t(2.0)).log_prob(x).exp()
    q = torch.distributions.Normal(t(1.0), t(3.0)).log_prob(x).exp()
    expected = torch.trapezoid((p.sqrt() - q.sqrt()).square(), x) / 2
    assert gaussian_hellinger(*CASES["D"][0]).item() == pytest.approx(expected.item(), rel=1e-9)


def test_kl_is_the_mean_of_log_density_differences():
    m_p, s_p, m_q, s_q = CASES["A"][0]
    factor = torch.linalg.cholesky(s_p)
    x = m_p + torch.randn(100_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) @ factor.mT
    gaps = MultivariateNormal(m_p, s_p).log_prob(x) - MultivariateNormal(m_q, s_q).log_prob(x)
    error = gaps.std().item() / math.sqrt(len(gaps))
    assert abs(gaps.mean().item() - gaussian_kl(m_p, s_p, m_q, s_q).item()) < 4 * error


@pytest.mark.parametrize("fn", ALL)
def test_an_affine_change_of_features_changes_nothing(fn):
    m_p, s_p, m_q, s_q = random_pair(1)
    b = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    moved = m_p @ b.mT + 3, b @ s_p @ b.mT, m_q @ b.mT + 3, b @ s_q @ b.mT
    torch.testing.assert_close(fn(*moved), fn(m_p, s_p, m_q, s_q), rtol=1e-9, atol=0)


@pytest.mark.parametrize("fn", SYMMETRIC)
def test_symmetric_ones_are_symmetric(fn):
    torch.testing.assert_close(fn(*random_pair(3)), fn(*swap(random_pair(3))), rtol=1e-12, atol=0)


def test_chernoff_turns_with_its_exponent():
    args = random_pair(3)
    torch.testing.assert_close(gaussian_chernoff(*args, alpha=0.3), gaussian_chernoff(*swap(args), alpha=0.7))


def test_renyi_tends_to_kl():
    args = random_pair(4)
    torch.testing.assert_close(gaussian_chernoff(*args, alpha=1 - 1e-6) / 1e-6, gaussian_kl(*args), rtol=1e-3, atol=0)


def test_inequalities():
    args = random_pair(5, (200,), 2)
    b, least = gaussian_bhattacharyya(*args), torch.minimum(gaussian_kl(*args), gaussian_kl(*swap(args)))
    assert (b <= least / 2 + 1e-12).all()  # Jensen
    x = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    p, q = (torch.distributions.Normal(*z).log_prob(x).exp() for z in ((t(0.3), t(1.0)), (t(0.0), t(1.7))))
    tv = torch.trapezoid((p - q).abs(), x) / 2
    h2 = gaussian_hellinger(t([0.3]), t([[1.0]]), t([0.0]), t([[1.7**2]]))
    assert h2 <= tv <= (2 * h2).sqrt()


def test_scaled_copies_have_the_closed_form():
    s = random_pair()[1][0]
    zero = torch.zeros(4, dtype=torch.float64)
    for k in (1e-20, 0.5, 1 + 1e-9, 3.0, 1e20):
        e = k - 1
        exact = 4 / 2 * (e * e / 2 - e**3 / 3 if abs(e) < 1e-6 else k - 1 - math.log(k))
        assert gaussian_kl(zero, k * s, zero, s).item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearly_equal_ones_stay_exact_and_never_negative(dtype):
    _, s, _, _ = random_pair(6)
    s, zero = s.to(dtype), torch.zeros(4, dtype=dtype)
    for fn in ALL:
        assert (fn(zero, s, zero, s) <= 1000 * torch.finfo(dtype).eps ** 2).all()  # eq. (1) would leave 1 eps
        assert (fn(zero, s * (1 + 3 * torch.finfo(dtype).eps), zero, s) >= 0).all()
    h = 64 * torch.finfo(dtype).eps
    one = torch.eye(3, dtype=dtype)
    got = gaussian_kl(zero[:3], one * (1 + h), zero[:3], one).item()
    assert got == pytest.approx(3 * h * h / 4, rel=0.1)  # D h^2 / 4; eq. (1) as it stands gives rounding here


def test_width_cost_keeps_its_digits():
    r = torch.tensor([1 + 2.0**-20, 1 - 2.0**-20, 1.02, 0.9, 1.05, 4.0, 1e-9], dtype=torch.float64)
    from mpmath import log, mp, mpf

    mp.dps = 50
    exact = [float(mpf(x) ** 2 - 1 - 2 * log(mpf(x))) for x in r.tolist()]
    assert width_cost(r).tolist() == pytest.approx(exact, rel=1e-13, abs=0)
    assert width_cost(torch.tensor([1.0, 0.0])).tolist() == [0.0, math.inf]
    assert torch.autograd.gradcheck(width_cost, r[:6].clone().requires_grad_())


def test_512_features_and_extreme_units():
    one, zero = torch.eye(512, dtype=torch.float64), torch.zeros(512, dtype=torch.float64)
    assert torch.linalg.det(0.1 * one) == 0  # what a formula with determinants would divide by
    assert gaussian_kl(zero, 0.1 * one, zero, one).item() == pytest.approx(256 * (0.1 - 1 - math.log(0.1)))
    m_p, s_p, m_q, s_q = (x.float() for x in CASES["B"][0])
    unit = torch.tensor([1e-12, 1.0, 1e12])
    box = unit[:, None] * unit
    for fn in ALL:
        got = fn(m_p * unit, s_p * box, m_q * unit, s_q * box)
        torch.testing.assert_close(got, fn(m_p, s_p, m_q, s_q), rtol=1e-4, atol=0)


@pytest.mark.parametrize("fn", ALL)
def test_a_shared_subspace_gives_the_divergence_within_it(fn):
    m_p, s_p, m_q, s_q = random_pair(7, (3,), 2)
    lift = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    lifted = m_p @ lift.mT + 1, lift @ s_p @ lift.mT, m_q @ lift.mT + 1, lift @ s_q @ lift.mT
    torch.testing.assert_close(fn(*lifted), fn(m_p, s_p, m_q, s_q), rtol=1e-7, atol=0)
    constant = torch.nn.functional.pad  # a feature that never varies, beside one of another scale
    args = constant(m_p, (0, 1)), constant(s_p, (0, 1, 0, 1)), constant(m_q, (0, 1)), constant(s_q, (0, 1, 0, 1))
    torch.testing.assert_close(fn(*args), fn(m_p, s_p, m_q, s_q), rtol=1e-9, atol=0)
    top = 1.0 if fn is gaussian_hellinger else math.inf
    moved = args[0] + t([0, 0, 1e-3])
    assert (fn(moved, *args[1:]) == top).all()  # off the common subspace
    assert (fn(*args[:3], args[3] + 0.01 * torch.eye(3)) == top).all()  # only p is flat
    assert (fn(args[0], args[1] + 0.01 * torch.eye(3), *args[2:]) == top).all()


def test_a_singular_neighbour_changes_nothing_and_gets_no_gradient():
    m_p, s_p, m_q, s_q = random_pair(9, (3,))
    flat = s_p.clone()
    flat[1] = torch.diag(t([1, 1, 1, 0]))
    for fn in ALL:
        alone, mean = fn(m_p, s_p, m_q, s_q), m_p.clone().requires_grad_()
        cov = flat.clone().requires_grad_()
        got = fn(mean, cov, m_q, s_q)
        assert torch.equal(got[[0, 2]], alone[[0, 2]])
        assert got[1] == (1.0 if fn is gaussian_hellinger else math.inf)
        got[[0, 2]].sum().backward()
        assert cov.grad.isfinite().all() and mean.grad.isfinite().all()
        assert cov.grad[0].abs().max() > 0
        cov.grad = None
        fn(m_p, cov, m_q, s_q).sum().backward()
        assert (cov.grad[1] == 0).all()


def through_factor(fn, m_p, f_p, m_q, f_q):
    eye = torch.eye(f_p.shape[-1], dtype=f_p.dtype)
    return fn(m_p, f_p @ f_p.mT + 0.2 * eye, m_q, f_q @ f_q.mT + 0.2 * eye)


@pytest.mark.parametrize("fn", [*ALL, partial(gaussian_chernoff, alpha=0.3)])
def test_gradcheck(fn):
    args = tuple(x.requires_grad_() for x in random_pair(10, (2,), 2))
    assert torch.autograd.gradcheck(partial(through_factor, fn), args)
    assert torch.autograd.gradgradcheck(partial(through_factor, fn), args)


def test_gradient_is_symmetric_and_zero_at_equality():
    _, s, _, _ = random_pair(11)
    zero = torch.zeros(4, dtype=torch.float64)
    for fn in ALL:
        cov = s.clone().requires_grad_()
        fn(zero, cov, zero, s).sum().backward()
        torch.testing.assert_close(cov.grad, torch.zeros_like(s), rtol=0, atol=1e-9)
    cov = torch.eye(2, dtype=torch.float64).requires_grad_()
    gaussian_kl(zero[:2], cov, t([1, 2]), torch.eye(2).double() * 2).backward()
    torch.testing.assert_close(cov.grad, cov.grad.mT, rtol=0, atol=0)
    h = gaussian_hellinger(zero, s[0].clone().requires_grad_(), zero, s[0], squared=False)
    h.backward()  # the root at 0


def test_batches_broadcast_and_loops_agree():
    m_p, s_p, m_q, s_q = random_pair(12, (3,), 3)
    table = gaussian_kl(m_p[:, None], s_p[:, None], m_q, s_q)
    assert table.shape == (3, 3)
    for i in range(3):
        for j in range(3):
            torch.testing.assert_close(table[i, j], gaussian_kl(m_p[i], s_p[i], m_q[j], s_q[j]))
    assert gaussian_kl(m_p[:0], s_p[:0], m_q[:0], s_q[:0]).shape == (0,)
    assert gaussian_bhattacharyya(m_p, s_p[0], m_q[0], s_q[0].mT).shape == (3,)


def test_half_precision_is_computed_in_float32():
    args = tuple(x.bfloat16() for x in CASES["A"][0])
    got = gaussian_kl(*args)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, gaussian_kl(*(x.float() for x in args)), rtol=0, atol=0)
    wide = tuple(x.float() for x in CASES["A"][0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for fn in ALL:
            inside = fn(*wide)
    torch.testing.assert_close(inside, gaussian_hellinger(*wide), rtol=0, atol=0)


def test_a_plain_loop_fits_a_gaussian():
    m_q, s_q = CASES["B"][0][:2]
    mean = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    factor = torch.eye(3, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([mean, factor], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = gaussian_kl(mean, factor @ factor.mT, m_q, s_q)
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((t([0.0]), t([1.0]), t([0.0]), t([[1.0]])), r"cov_p must be a covariance .*got \(1,\).*_diagonal"),
        ((t([0.0]), t([[1.0]]), t([0, 0]), torch.eye(2).double()), r"of one D .*got \(1,\), \(1, 1\) and \(2,\)"),
        ((t([0, 0]), t([[1.0, 0.5], [0, 1]]), t([0, 0]), torch.eye(2).double()), r"symmetric.*differ by 0.5.*L @ L.mT"),
        ((t([0, 0]), t([[1.0, 2], [2, 1]]), t([0, 0]), torch.eye(2).double()), r"cov_p has a negative eigenvalue"),
        ((t([0.0]), t([[math.nan]]), t([0.0]), t([[1.0]])), r"cov_p must be finite"),
        ((t([math.nan]), t([[1.0]]), t([0.0]), t([[1.0]])), r"needs finite means"),
        ((torch.zeros(2, 1), torch.eye(1), torch.zeros(3, 1), torch.eye(1)), r"leading axes broadcast; got \(2, 1\)"),
        ((t([0]), torch.eye(1).long(), t([0]), torch.eye(1)), r"of floats.*int64"),
    ],
)
def test_messages(args, message):
    with pytest.raises(ValueError, match=message):
        gaussian_kl(*args)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, math.nan])
def test_message_of_alpha(alpha):
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\), got"):
        gaussian_chernoff(*CASES["A"][0], alpha=alpha)
