"""Diagonal Gaussians: the full-covariance forms, torch.distributions, flat features, tiny deviations, messages."""

import math
from functools import partial

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from danlu import math as dm

PAIRS = [
    (dm.gaussian_kl_diagonal, dm.gaussian_kl),
    (dm.gaussian_bhattacharyya_diagonal, dm.gaussian_bhattacharyya),
    (dm.gaussian_hellinger_diagonal, dm.gaussian_hellinger),
    (dm.gaussian_wasserstein_diagonal, dm.gaussian_wasserstein),
    (partial(dm.gaussian_hellinger_diagonal, squared=False), partial(dm.gaussian_hellinger, squared=False)),
    (partial(dm.gaussian_wasserstein_diagonal, squared=False), partial(dm.gaussian_wasserstein, squared=False)),
]
G = torch.Generator().manual_seed(0)
MEANS = torch.randn(2, 6, 4, dtype=torch.float64, generator=G)
STDS = torch.rand(2, 6, 4, dtype=torch.float64, generator=G) + 0.1
ARGS = (MEANS[0], STDS[0], MEANS[1], STDS[1])


@pytest.mark.parametrize(("fast", "full"), PAIRS)
def test_equals_the_full_covariance(fast, full):
    m_p, s_p, m_q, s_q = ARGS
    expected = full(m_p, torch.diag_embed(s_p**2), m_q, torch.diag_embed(s_q**2))
    torch.testing.assert_close(fast(*ARGS), expected, rtol=1e-9, atol=1e-12)


def test_kl_equals_torch_distributions():
    m_p, s_p, m_q, s_q = ARGS
    expected = kl_divergence(Normal(m_p, s_p), Normal(m_q, s_q)).sum(-1)
    torch.testing.assert_close(dm.gaussian_kl_diagonal(*ARGS), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("fast", [fast for fast, _ in PAIRS])
def test_gradcheck(fast):
    assert torch.autograd.gradcheck(fast, tuple(x[:2].clone().requires_grad_() for x in ARGS))


@pytest.mark.parametrize(("fast", "full"), PAIRS[:3])
def test_flat_features(fast, full):
    top = 1.0 if fast is dm.gaussian_hellinger_diagonal else math.inf
    one = torch.tensor([1.0, 0.0])
    mean = torch.tensor([2.0, 5.0])
    std = one.clone().requires_grad_()
    got = fast(mean, std, torch.tensor([0.0, 5.0]), one)  # the second never varies and is equal
    expected = fast(mean[:1], one[:1], torch.zeros(1), one[:1])
    torch.testing.assert_close(got, expected)
    got.backward()
    assert std.grad.isfinite().all()
    for args in ((mean, one, torch.zeros(2), one), (mean, one, mean, one + 1), (mean, one + 1, mean, one)):
        assert fast(*args) == top
        assert full(args[0], torch.diag(args[1] ** 2), args[2], torch.diag(args[3] ** 2)) == top
    std = one.clone().requires_grad_()
    fast(mean, std, torch.zeros(2), one).backward()
    assert (std.grad == 0).all()


def test_tiny_and_huge_deviations_of_float32():
    for unit in (1e-30, 1e30):
        m = torch.tensor([unit])
        for fast, _ in PAIRS[:3]:
            got = fast(m, m, 0 * m, 2 * m)
            torch.testing.assert_close(got, fast(m / unit, m / unit, 0 * m, 2 * m / unit), rtol=1e-5, atol=0)
    small = 1 + 2.0**-20
    one = torch.ones(1)
    assert dm.gaussian_kl_diagonal(0 * one, small * one, 0 * one, one).item() == pytest.approx(2.0**-40, rel=1e-4)
    assert dm.gaussian_bhattacharyya_diagonal(0 * one, small * one, 0 * one, one).item() == pytest.approx(
        2.0**-42, rel=1e-4
    )


def test_shapes_and_dtypes():
    m_p, s_p, m_q, s_q = ARGS
    assert dm.gaussian_kl_diagonal(m_p[:, None], s_p[:, None], m_q, s_q).shape == (6, 6)
    assert dm.gaussian_kl_diagonal(m_p[:0], s_p[:0], m_q[:0], s_q[:0]).shape == (0,)
    half = tuple(x.half() for x in ARGS)
    assert dm.gaussian_wasserstein_diagonal(*half).dtype == torch.float32
    assert dm.gaussian_kl_diagonal(m_p.mT, s_p.mT, m_q.mT, s_q.mT).shape == (4,)  # not contiguous


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((MEANS[0], -STDS[0], *ARGS[2:]), r"standard deviations >= 0, got -.*log_var"),
        ((MEANS[0], STDS[0] * math.nan, *ARGS[2:]), r"finite standard deviations"),
        ((MEANS[0] * math.inf, *ARGS[1:]), r"finite means"),
        ((MEANS[0][:, :3], *ARGS[1:]), r"of one D that broadcast; got \(6, 3\).*Full covariances: gaussian_kl"),
        ((MEANS[0][:5], *ARGS[1:]), r"got \(5, 4\)"),
    ],
)
def test_messages(args, message):
    with pytest.raises(ValueError, match=message):
        dm.gaussian_kl_diagonal(*args)


@pytest.mark.parametrize("fast", [fast for fast, _ in PAIRS[4:]])
def test_roots_have_the_gradient_zero_at_zero(fast):
    args = [torch.ones(2).requires_grad_() for _ in range(4)]
    fast(*args).backward()
    assert all((x.grad == 0).all() for x in args)
