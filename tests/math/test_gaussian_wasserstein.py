"""Wasserstein-2 of Gaussians, roots of covariances: a table, scipy's root, closed forms, the map, gradients, edges."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from danlu.math import gaussian_transport, gaussian_wasserstein, psd_sqrt
from danlu.math.covariance import checked_covariance, covariance_factor


def t(rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


CASES = {  # mean_p, cov_p, mean_q, cov_q
    "A": (t([1, 2]), t([[2, 0.5], [0.5, 1]]), t([0, 0]), t([[1, -0.3], [-0.3, 1.5]])),
    "B": (t([1, -1, 0.5]), t([[4, 2, 0.6], [2, 3, 0.4], [0.6, 0.4, 1]]), t([0, 0, 0]), torch.eye(3).double()),
    "C": (t([0, 0]), t([[2, 1], [1, 2]]), t([0, 0]), t([[2, -1], [-1, 2]])),
    "D": (t([3]), t([[4]]), t([1]), t([[9]])),
    "E": (t([0, 0]), t([[1, 0], [0, 0]]), t([0, 0]), t([[0, 0], [0, 1]])),
}
EXPECTED = {"A": 5.463471189606, "B": 4.203105874108, "C": 1.071796769724, "D": 5.0, "E": 2.0}  # by 40 digits
EYE = torch.eye(2, dtype=torch.float64)
ZERO = torch.zeros(2, dtype=torch.float64)


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
    args = CASES[case]
    assert gaussian_wasserstein(*args).item() == pytest.approx(EXPECTED[case], rel=1e-11)
    assert gaussian_wasserstein(*args, squared=False).item() == pytest.approx(math.sqrt(EXPECTED[case]), rel=1e-11)


def test_equals_both_forms_with_scipys_root():
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    m_p, s_p, m_q, s_q = (x[0].numpy() for x in random_pair(1, (1,), 5))
    start = ((m_p - m_q) ** 2).sum() + s_p.trace() + s_q.trace()
    root = sqrtm(s_p)
    one, two = (start - 2 * sqrtm(x).real.trace() for x in (root @ s_q @ root, s_p @ s_q))
    got = gaussian_wasserstein(*(torch.from_numpy(x) for x in (m_p, s_p, m_q, s_q))).item()
    assert got == pytest.approx(one, rel=1e-10)
    assert got == pytest.approx(two, rel=1e-10)


def test_equals_the_closed_form_of_two_features():
    _, s_p, _, s_q = random_pair(2, (50,), 2)
    root = ((s_p @ s_q).diagonal(dim1=1, dim2=2).sum(-1) + 2 * (torch.det(s_p) * torch.det(s_q)).sqrt()).sqrt()
    expected = (s_p + s_q).diagonal(dim1=1, dim2=2).sum(-1) - 2 * root
    torch.testing.assert_close(gaussian_wasserstein(ZERO, s_p, ZERO, s_q), expected, rtol=1e-9, atol=1e-12)


def test_commuting_covariances_have_the_distance_of_their_roots():
    q, _ = torch.linalg.qr(random_pair(3, (1,), 5)[1][0])
    a, b = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    s_p, s_q = (q * a) @ q.mT, (q * b) @ q.mT
    zero = torch.zeros(5, dtype=torch.float64)
    got = gaussian_wasserstein(zero, s_p, zero, s_q)
    torch.testing.assert_close(got, (a.sqrt() - b.sqrt()).square().sum(), rtol=1e-10, atol=0)
    torch.testing.assert_close(got, (psd_sqrt(s_p) - psd_sqrt(s_q)).square().sum(), rtol=1e-10, atol=0)


def test_one_dimension_is_the_distance_of_quantiles():
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    p, q = torch.distributions.Normal(t(3.0), t(2.0)), torch.distributions.Normal(t(1.0), t(3.0))
    assert (p.icdf(u) - q.icdf(u)).square().mean().item() == pytest.approx(5.0, abs=1e-3)
    assert gaussian_wasserstein(*CASES["D"]).item() == pytest.approx(5.0)


def test_symmetry_rotation_scale_and_the_triangle():
    args = random_pair(4, (20,), 3)
    here = gaussian_wasserstein(*args)
    torch.testing.assert_close(gaussian_wasserstein(*swap(args)), here)
    q, _ = torch.linalg.qr(random_pair(5, (1,), 3)[1][0])
    m_p, s_p, m_q, s_q = args
    turned = m_p @ q.mT + 1, q @ s_p @ q.mT, m_q @ q.mT + 1, q @ s_q @ q.mT
    torch.testing.assert_close(gaussian_wasserstein(*turned), here)
    torch.testing.assert_close(gaussian_wasserstein(3 * m_p, 9 * s_p, 3 * m_q, 9 * s_q), 9 * here)
    m_r, s_r = m_p.roll(1, 0), s_q.roll(1, 0)
    w = partial(gaussian_wasserstein, squared=False)
    assert (w(*args) <= w(m_p, s_p, m_r, s_r) + w(m_r, s_r, m_q, s_q) + 1e-12).all()


def test_the_map_pushes_p_to_q_and_costs_the_distance():
    m_p, s_p, m_q, s_q = random_pair(6, (4,), 3)
    m = gaussian_transport(s_p, s_q)
    torch.testing.assert_close(m @ s_p @ m, s_q)
    torch.testing.assert_close(m, m.mT)
    assert (torch.linalg.eigvalsh(m) > 0).all()
    step = m - torch.eye(3, dtype=torch.float64)  # E |T(x) - x|^2 = |d|^2 + tr (M - I) S_p (M - I)
    cost = (m_q - m_p).square().sum(-1) + (step @ s_p @ step).diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(cost, gaussian_wasserstein(m_p, s_p, m_q, s_q))
    torch.testing.assert_close(gaussian_transport(s_q, s_p), torch.linalg.inv(m))
    torch.testing.assert_close(gaussian_transport(EYE, torch.diag(t([4, 0]))), torch.diag(t([2, 0])))
    torch.testing.assert_close(gaussian_transport(torch.diag(t([4, 0])), EYE), torch.diag(t([0.5, 0])))


def through_factor(m_p: Tensor, f_p: Tensor, m_q: Tensor, f_q: Tensor, squared: bool = True) -> Tensor:
    return gaussian_wasserstein(m_p, f_p @ f_p.mT, m_q, f_q @ f_q.mT, squared)


@pytest.mark.parametrize("squared", [True, False])
def test_gradcheck(squared):
    m_p, f_p, m_q, f_q = (x.requires_grad_() for x in random_pair(7, (2,), 3))
    assert torch.autograd.gradcheck(partial(through_factor, squared=squared), (m_p, f_p, m_q, f_q))
    shared = partial(through_factor, squared=squared)  # one covariance against two
    assert torch.autograd.gradcheck(shared, (m_p[0], f_p[0], m_q, f_q))


def test_gradient_where_eigenvalues_repeat():
    args = tuple(x.clone().requires_grad_() for x in (ZERO, 2 * EYE, ZERO, 3 * EYE))
    assert torch.autograd.gradcheck(through_factor, args)
    cov = (4 * EYE).requires_grad_()
    gaussian_wasserstein(ZERO, cov, ZERO, 9 * EYE).backward()
    torch.testing.assert_close(cov.grad, -0.5 * EYE)  # 1 - 3 / 2
    _, s, _, _ = random_pair(8)
    zero = torch.zeros(4, dtype=torch.float64)
    cov = s.clone().requires_grad_()
    gaussian_wasserstein(zero, cov, zero, s).sum().backward()
    torch.testing.assert_close(cov.grad, torch.zeros_like(s), rtol=0, atol=1e-8)
    mean = zero.clone().requires_grad_()
    w = gaussian_wasserstein(mean, s[0], zero, s[0], squared=False)
    w.backward()
    assert mean.grad.isfinite().all()


def test_gradient_at_singular_covariances_is_finite():
    flat = torch.diag(t([4, 0]))
    cov_p, cov_q = flat.clone().requires_grad_(), torch.diag(t([9, 0])).requires_grad_()
    gaussian_wasserstein(ZERO, cov_p, ZERO, cov_q).backward()
    torch.testing.assert_close(cov_p.grad, torch.diag(t([-0.5, 1])))  # neither has spread there: each adds its own
    torch.testing.assert_close(cov_q.grad, torch.diag(t([1 / 3, 1])))
    f = t([[1.0, 0.5], [0.3, 0.2], [0.1, -0.7]]).requires_grad_()  # rank 2 of 3
    zero = torch.zeros(3, dtype=torch.float64)
    _, _, _, s_q = random_pair(9, (), 3)
    assert torch.autograd.gradcheck(lambda f: gaussian_wasserstein(zero, f @ f.mT, zero, s_q), f, atol=1e-5)


def test_equal_and_nearly_equal_ones_keep_their_digits():
    _, s, _, _ = random_pair(10)
    zero = torch.zeros(4, dtype=torch.float64)
    own = gaussian_wasserstein(zero, s, zero, s)
    assert (own >= 0).all() and (own < 1e-26).all()  # traces that cancel leave 1e-15
    h = 1e-9
    got = gaussian_wasserstein(zero, s * (1 + h) ** 2, zero, s)
    torch.testing.assert_close(got, h**2 * s.diagonal(dim1=1, dim2=2).sum(-1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_deficient_covariances_never_fail(dtype):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 300, 3, 6, dtype=dtype, generator=g)  # 3 vectors of 6 features
    s_p, s_q = x.mT @ x, y.mT @ y
    t_sum = torch.linalg.svdvals(x.double() @ y.double().mT).sum(-1)  # tr (S_p S_q)^1/2 by the factors themselves
    expected = (x.double().square().sum((1, 2)) + y.double().square().sum((1, 2))) - 2 * t_sum
    zero = torch.zeros(6, dtype=dtype)
    got = gaussian_wasserstein(zero, s_p, zero, s_q)
    assert got.dtype == dtype
    atol = 1e-3 if dtype == torch.float32 else 1e-11  # of traces of about 30
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=atol)


def test_extreme_units_empty_batches_and_half_precision():
    m_p, s_p, m_q, s_q = (x.float() for x in CASES["A"])
    for unit in (1e-12, 1e12):
        got = gaussian_wasserstein(m_p * unit, s_p * unit**2, m_q * unit, s_q * unit**2, squared=False)
        assert got.item() == pytest.approx(unit * math.sqrt(EXPECTED["A"]), rel=1e-5)
    assert gaussian_wasserstein(ZERO, 0 * EYE, ZERO, EYE).item() == pytest.approx(2.0)
    assert gaussian_wasserstein(ZERO, EYE[None][:0], ZERO, EYE).shape == (0,)
    half = tuple(x.bfloat16() for x in (m_p, s_p, m_q, s_q))
    assert gaussian_wasserstein(*half).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gaussian_wasserstein(m_p, s_p, m_q, s_q)
    assert torch.equal(inside, gaussian_wasserstein(m_p, s_p, m_q, s_q))


def test_one_table_of_pairs_equals_the_loop():
    m_p, s_p, m_q, s_q = random_pair(11, (3,), 3)
    table = gaussian_wasserstein(m_p[:, None], s_p[:, None], m_q, s_q)
    loop = [[gaussian_wasserstein(m_p[i], s_p[i], m_q[j], s_q[j]) for j in range(3)] for i in range(3)]
    torch.testing.assert_close(table, torch.tensor(loop, dtype=torch.float64))


def test_psd_sqrt_squares_back_and_equals_scipy():
    _, s, _, _ = random_pair(12)
    r = psd_sqrt(s)
    torch.testing.assert_close(r @ r, s)
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    torch.testing.assert_close(r[0], torch.from_numpy(sqrtm(s[0].numpy()).real), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(psd_sqrt(torch.diag(t([4, 0]))), torch.diag(t([2, 0])), rtol=0, atol=0)
    assert psd_sqrt(s.bfloat16()[0]).dtype == torch.float32


def test_psd_sqrt_gradients():
    f = random_pair(13, (2,), 3)[1]
    weight = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def root(f: Tensor) -> Tensor:
        return psd_sqrt(f @ f.mT) * weight

    assert torch.autograd.gradcheck(root, f.clone().requires_grad_())
    assert torch.autograd.gradcheck(root, 2 * torch.eye(3, dtype=torch.float64).requires_grad_())
    for s in (torch.diag(t([4, 0])), 0 * EYE):
        s = s.clone().requires_grad_()
        psd_sqrt(s).sum().backward()
        assert s.grad.isfinite().all()
    s = torch.diag(t([4, 0])).requires_grad_()
    psd_sqrt(s).sum().backward()
    torch.testing.assert_close(s.grad, t([[0.25, 0.5], [0.5, 0]]))  # 1 / (2 + 2), 1 / (2 + 0), left out


def test_second_derivatives_say_that_there_are_none():
    cov = EYE.clone().requires_grad_()
    (grad,) = torch.autograd.grad(gaussian_wasserstein(ZERO, cov, ZERO, 2 * EYE), cov, create_graph=True)
    with pytest.raises(RuntimeError, match="gaussian_wasserstein is differentiable once"):
        grad.sum().backward()
    (grad,) = torch.autograd.grad(psd_sqrt(cov).sum(), cov, create_graph=True)
    with pytest.raises(RuntimeError, match="psd_sqrt is differentiable once"):
        grad.sum().backward()
    w = torch.ones((), dtype=torch.float64, requires_grad=True)  # what does not pass through the root stays open
    (grad,) = torch.autograd.grad(w**2 * gaussian_wasserstein(ZERO, cov, ZERO, 2 * EYE), w, create_graph=True)
    grad.backward(inputs=w)
    assert w.grad.item() == pytest.approx(2 * 2 * (math.sqrt(2) - 1) ** 2)


def test_a_plain_loop_moves_p_to_q():
    m_q, s_q = CASES["B"][:2]
    mean = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    factor = torch.eye(3, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([mean, factor], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = gaussian_wasserstein(mean, factor @ factor.mT, m_q, s_q)
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3


def test_messages():
    with pytest.raises(ValueError, match=r"cov_q must have no negative eigenvalue, got -1.*F @ F.mT"):
        gaussian_wasserstein(ZERO, EYE, ZERO, t([[1, 2], [2, 1]]))
    with pytest.raises(ValueError, match=r"gaussian_transport needs .* of one D"):
        gaussian_transport(EYE, torch.eye(3))
    with pytest.raises(ValueError, match=r"covariance must be finite"):
        psd_sqrt(t([[math.inf]]))
    with pytest.raises(ValueError, match=r"gaussian_wasserstein needs finite means"):
        gaussian_wasserstein(ZERO * math.nan, EYE, ZERO, EYE)


def test_rounding_of_two_triangles_is_averaged_and_tiny_negatives_are_zero():
    s = t([[1.0, 0.5 + 1e-7], [0.5, 1.0]])
    fixed = checked_covariance("s", s)
    assert torch.equal(fixed, fixed.mT)
    assert fixed[0, 1].item() == pytest.approx(0.5 + 5e-8, abs=1e-12)
    assert covariance_factor("s", torch.diag(t([1, -1e-9])))[1].tolist() == [0.0, 1.0]
