"""Whitening: the author's formula, scikit-learn, affine invariance, beta and gamma, rank, precision, messages."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from danlu.math import moments
from danlu.text import participation_ratio, principal_axes, whiten, whitening
from danlu.text.whitening import kernel_of


def draw(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    x = torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mix
    return x + 5 * torch.randn(dim, generator=generator, dtype=torch.float64)


def fitted(x: torch.Tensor, **options):
    m = moments(x)
    return whitening(m.mean, m.covariance, **options)


def cosines(x: torch.Tensor) -> torch.Tensor:
    x = F.normalize(x, dim=-1)
    return x @ x.mT


X = draw(200, 8)


def test_covariance_of_what_it_was_fitted_on_is_one():
    kernel, bias = fitted(X)
    y = X @ kernel + bias
    np.testing.assert_allclose(np.cov(y.numpy(), rowvar=False, bias=True), np.eye(8), atol=1e-10)
    assert y.mean(0).abs().max() < 1e-12


def test_the_author_in_five_lines():
    mu = X.numpy().mean(axis=0, keepdims=True)
    cov = np.cov(X.numpy().T)
    u, s, _ = np.linalg.svd(cov)
    w = u @ np.diag(s**-0.5)
    theirs = torch.from_numpy((X.numpy() - mu) @ w) * math.sqrt(len(X) / (len(X) - 1))  # they divide by N - 1
    kernel, bias = fitted(X)
    torch.testing.assert_close((X @ kernel + bias).abs(), theirs.abs(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dim", [8, 3])
def test_scikit_learn(dim):
    pca = pytest.importorskip("sklearn.decomposition").PCA(dim, whiten=True, svd_solver="full")
    theirs = torch.from_numpy(pca.fit_transform(X.numpy())) * math.sqrt(len(X) / (len(X) - 1))
    kernel, bias = fitted(X, dim=dim)
    torch.testing.assert_close((X @ kernel + bias).abs(), theirs.abs(), rtol=1e-9, atol=1e-9)


def test_affine_invariance():
    """The whole pipeline at once: whatever basis and origin, the same cosines."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2000, 100, generator=generator, dtype=torch.float64) * torch.linspace(1, 3, 100) + 2
    basis = torch.randn(100, 100, generator=generator, dtype=torch.float64)
    u, _, v = torch.linalg.svd(basis)
    basis = u @ torch.diag(torch.logspace(0, -3, 100, dtype=torch.float64)) @ v  # condition 1e3
    moved = x @ basis + 10 * torch.randn(100, generator=generator, dtype=torch.float64)
    answers = []
    for vectors in (x, moved):
        kernel, bias = fitted(vectors)
        answers.append(cosines((vectors @ kernel + bias)[:300]))
    assert (answers[0] - answers[1]).abs().max() < 1e-10
    assert (cosines(x[:300]) - cosines(moved[:300])).abs().max() > 0.1  # raw cosines do depend on it


def test_beta_and_gamma_zero_keep_the_cosines():
    kernel, bias = fitted(X, beta=0.0, gamma=0.0)
    torch.testing.assert_close(cosines(X @ kernel + bias), cosines(X), rtol=0, atol=1e-12)
    torch.testing.assert_close(kernel.mT @ kernel, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 1.5])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_beta_and_gamma_by_definition(beta, gamma):
    """Second moments about beta mu, taken from the vectors, have lambda^(1 - gamma) on the diagonal afterwards."""
    kernel, bias = fitted(X, beta=beta, gamma=gamma)
    y = X @ kernel + bias
    about = X - beta * X.mean(0)
    values = torch.linalg.eigvalsh(about.mT @ about / len(X)).flip(0)
    torch.testing.assert_close(y.mT @ y / len(X), torch.diag(values ** (1 - gamma)), rtol=1e-9, atol=1e-9 * values[0])


def test_average_cosine_goes_to_zero():
    kernel, bias = fitted(X)
    off = ~torch.eye(200, dtype=torch.bool)
    assert cosines(X)[off].mean() > 0.3
    assert abs(cosines(X @ kernel + bias)[off].mean()) < 0.02


def test_dims_are_nested_and_the_leading_ones():
    whole, _ = fitted(X)
    values = principal_axes(*(moments(X).mean, moments(X).covariance)).values
    assert (values.diff() <= 0).all()
    assert (values >= 0).all()
    for k in (1, 3, 7):
        kernel, bias = fitted(X, dim=k)
        assert torch.equal(kernel, whole[:, :k])
        assert bias.shape == (k,)


def test_signs_are_fixed():
    m = moments(X)
    vectors = principal_axes(m.mean, m.covariance).vectors
    assert (vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) > 0).all()


def test_ridge():
    kernel, _ = fitted(X, ridge=0.1)
    values = principal_axes(torch.zeros(8), moments(X).covariance).values
    torch.testing.assert_close(kernel.norm(dim=0), (values + 0.1 * values[0]) ** -0.5, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("dim", "k"), [(0.5, 1), (0.95, 2), (0.96, 3), (0.999, 4), ("participation", 2), (None, 4)])
def test_dim_by_the_spectrum(dim, k):
    covariance = torch.diag(torch.tensor([70.0, 25.0, 4.5, 0.5], dtype=torch.float64))  # participation 1.81
    assert whitening(torch.zeros(4), covariance, dim=dim)[0].shape == (4, k)


def test_participation_ratio():
    assert participation_ratio(torch.ones(5)) == pytest.approx(5)
    assert participation_ratio(torch.tensor([1e200, 0.0], dtype=torch.float64)) == pytest.approx(1)
    assert participation_ratio(torch.tensor([1e-200, 1e-200], dtype=torch.float64)) == pytest.approx(2)
    assert participation_ratio(torch.zeros(3)) == 0


def test_rank():
    constant = torch.cat([X, torch.full((200, 1), 7.0, dtype=torch.float64), X[:, :1]], 1)  # and a copy of a feature
    kernel, bias = fitted(constant)
    assert kernel.shape == (10, 8)
    np.testing.assert_allclose(
        np.cov((constant @ kernel + bias).numpy(), rowvar=False, bias=True), np.eye(8), atol=1e-9
    )
    with pytest.raises(ValueError, match=r"dim is 9, but only 8 of 10 directions.*dim <= 8 or None.*ridge=1e-3"):
        fitted(constant, dim=9)
    assert fitted(constant, dim=10, ridge=1e-3)[0].isfinite().all()
    assert fitted(constant, gamma=0.0)[0].shape == (10, 10)  # a rotation needs no variance
    few = X[:5]
    assert fitted(few)[0].shape == (8, 4)
    assert fitted(few, dim=0.999999)[0].shape[1] <= 4
    assert fitted(constant.float())[0].shape == (10, 8)


def test_no_variance_at_all():
    for x in (X[:1], X[:1].expand(5, 8)):
        with pytest.raises(ValueError, match="no variance at all; fit on at least two different"):
            fitted(x)
    assert fitted(X[:1], gamma=0.0)[0].isfinite().all()


@pytest.mark.parametrize("scale", [1e-150, 1e-10, 1e100])
def test_scale_of_the_vectors_does_not_matter(scale):
    kernel, bias = fitted(X)
    other, shift = fitted(X * scale)
    torch.testing.assert_close(X * scale @ other + shift, X @ kernel + bias, rtol=1e-8, atol=1e-8)


def test_dtypes():
    m = moments(X)
    kernel, bias = whitening(m.mean.float(), m.covariance.float())
    assert kernel.dtype == bias.dtype == torch.float32
    exact = whitening(m.mean, m.covariance)[0]
    torch.testing.assert_close(kernel.double(), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))
    half = whiten(X.half(), exact, m.mean)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), whiten(X.half().double(), exact, m.mean), rtol=2e-3, atol=2e-3)


def test_whiten_does_not_cancel_where_the_bias_does():
    x = (X * 0.01 + 1000).float()  # mean 1e5 spreads of the smallest directions
    m = moments(x.double())
    kernel, bias = whitening(m.mean, m.covariance)
    exact = (x.double() - m.mean) @ kernel
    ours = (whiten(x, kernel, m.mean) - exact).abs().max()
    folded = (x @ kernel.float() + bias.float() - exact).abs().max()
    assert ours < 1e-4
    assert folded > 100 * ours


def test_whiten_normalizes_and_lets_nan_stay_where_it_is():
    kernel, _ = fitted(X)
    center = moments(X).mean
    y = whiten(X, kernel, center, normalize=True)
    torch.testing.assert_close(y.norm(dim=1), torch.ones(200, dtype=torch.float64))
    assert not whiten(center[None], kernel, center, normalize=True).any()  # 0 stays 0
    spoilt = X.clone()
    spoilt[3, 2] = torch.nan
    z = whiten(spoilt, kernel, center)
    assert z[3].isnan().all()
    assert z[[0, 1, 2, 4]].isfinite().all()
    assert whiten(X[0], kernel, center).shape == (8,)
    assert whiten(X[:0], kernel, center).shape == (0, 8)


def test_gradients_reach_the_vectors():
    kernel, _ = fitted(X, dim=3)
    center = moments(X).mean
    x = X[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: whiten(x, kernel, center, normalize=True), x)


def test_whiten_under_autocast():
    kernel, _ = fitted(X, dim=3)
    center, x = moments(X).mean, X.float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = whiten(x, kernel, center)
    torch.testing.assert_close(inside, whiten(x, kernel, center), rtol=0, atol=0)


@pytest.mark.slow  # the compiler takes seconds to load
def test_whiten_compiled():
    kernel, _ = fitted(X, dim=3)
    center, x = moments(X).mean, X.float()
    compiled = torch.compile(whiten, backend="eager")
    torch.testing.assert_close(compiled(x, kernel, center), whiten(x, kernel, center))


MEAN, COVARIANCE = torch.zeros(2), torch.eye(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be a whole number of at least 1, a share"),
        ({"dim": True}, "got True"),
        ({"dim": 1.5}, "got 1.5"),
        ({"dim": "all"}, "'participation' or None, got 'all'"),
        ({"dim": 3}, "dim is 3, the vectors have 2 features"),
        ({"gamma": -0.1}, "gamma must be a finite number >= 0, got -0.1"),
        ({"ridge": math.inf}, "ridge must be a finite number >= 0, got inf"),
        ({"eps": math.nan}, "eps must be a finite number >= 0, got nan"),
        ({"beta": math.nan}, "beta must be a finite number, got nan"),
    ],
)
def test_messages_of_options(options, message):
    with pytest.raises(ValueError, match=message):
        whitening(MEAN, COVARIANCE, **options)


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (torch.zeros(3), COVARIANCE, r"mean \(D,\) and a covariance \(D, D\); got \(3,\) and \(2, 2\)"),
        (torch.zeros(0), torch.zeros(0, 0), r"got \(0,\)"),
        (MEAN, torch.tensor([[1.0, math.nan], [0.0, 1.0]]), "must be finite; danlu.math.moments names the vector"),
        (torch.tensor([math.inf, 0.0]), COVARIANCE, "must be finite"),
        (MEAN, torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "no covariance: eigenvalues reach from -1 to 3; compute it"),
    ],
)
def test_messages_of_statistics(mean, covariance, message):
    with pytest.raises(ValueError, match=message):
        whitening(mean, covariance)


def test_messages_of_whiten():
    with pytest.raises(ValueError, match=r"got \(1, 3\), \(2, 2\) and \(2,\)"):
        whiten(torch.zeros(1, 3), COVARIANCE, MEAN)
    with pytest.raises(ValueError, match=r"needs floats, got torch.int64; write x.float\(\)"):
        whiten(torch.zeros(1, 2, dtype=torch.long), COVARIANCE, MEAN)


def test_covariance_is_made_symmetric_and_left_alone():
    lopsided = torch.tensor([[2.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    before = lopsided.clone()
    kernel = kernel_of(principal_axes(torch.zeros(2), lopsided))
    torch.testing.assert_close(kernel.norm(dim=0), torch.tensor([2.5, 1.5], dtype=torch.float64) ** -0.5)
    assert torch.equal(lopsided, before)
