"""Constants of GELU's forms: the post's search, 30-digit arithmetic, certificates, series, limits, messages."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from danlu.math import GELU_ODD5, gelu, gelu_fit, gelu_odd, gelu_odd_error, gelu_series, gelu_table, largest_error

SLOPE = math.sqrt(2 / math.pi)
X = torch.linspace(-9, 9, 181, dtype=torch.float64)


def test_the_posts_search():  # scipy on a grid 0, 0.001, ..., 4, as kexue.fm/archives/7309 did
    from scipy.optimize import minimize_scalar
    from scipy.special import erf

    x = np.arange(0, 4, 0.001)
    target = erf(x / math.sqrt(2))
    grid = minimize_scalar(
        lambda b: np.abs(target - np.tanh(SLOPE * x + b * x**3)).max(), bounds=(0.03, 0.04), method="bounded",
        options={"xatol": 1e-13},
    )  # fmt: skip
    _, b = gelu_fit(2, "erf", keep_slope=True).params
    assert b == pytest.approx(grid.x, abs=2e-9)
    assert b == pytest.approx(0.0356773373, abs=1e-9)
    assert b / SLOPE == pytest.approx(0.0447149, abs=5e-8)


@pytest.mark.parametrize(
    ("terms", "measure", "keep_slope", "params", "max_error"),  # by a search on a grid of step 1e-5
    [
        (2, "erf", True, (SLOPE, 0.03567733740), 3.57843e-4),
        (2, "gelu", True, (SLOPE, 0.0443829440 * SLOPE), 3.874e-4),
        (2, "erf", False, (0.79880144, 0.03528205), 2.806e-4),
        (2, "gelu", False, (0.80015708, 0.03470089), 2.707e-4),
        (3, "gelu", False, (0.797507884, 0.0370056460, -3.51516789e-4), 2.519e-5),
        (1, "cdf", False, (1.7017449168 / 2,), 9.4573e-3),
        (1, "gelu", False, (1.7729339528 / 2,), 1.3922e-2),
    ],
)
def test_constants_and_certificates(terms, measure, keep_slope, params, max_error):
    fit = gelu_fit(terms, measure, keep_slope)
    np.testing.assert_allclose(fit.params, params, rtol=0, atol=1.5e-8)
    assert fit.max_error == pytest.approx(max_error, rel=2e-4)
    free = terms - keep_slope
    assert len(fit.points) == free + 1  # equal heights, alternating signs, one more than parameters
    np.testing.assert_allclose(np.abs(fit.errors), fit.max_error, rtol=1e-9)
    assert all(a * b < 0 for a, b in zip(fit.errors, fit.errors[1:], strict=False))
    at = gelu_odd_error(torch.tensor(fit.points), fit.params, measure)
    np.testing.assert_allclose(at, fit.errors, atol=1e-15)
    x = torch.linspace(0, 12, 24_001, dtype=torch.float64)
    assert gelu_odd_error(x, fit.params, measure).abs().max() <= fit.max_error * (1 + 1e-9)


def test_sigmoid_in_thirty_digits():  # the two equal extremes, solved by mpmath from eq. (5) itself
    from mpmath import mp, mpf

    with mp.workdps(30):

        def error(rate, x):
            return 1 / (1 + mp.exp(-rate * x)) - mp.ncdf(x)

        def conditions(rate, a, b):
            slopes = [rate * mp.exp(-rate * x) / (1 + mp.exp(-rate * x)) ** 2 - mp.npdf(x) for x in (a, b)]
            return [error(rate, a) + error(rate, b), *slopes]

        rate, a, b = mp.findroot(conditions, (mpf("1.7"), mpf("0.6"), mpf("2.0")))
        height = abs(error(rate, a))
    fit = gelu_fit(1, "cdf")
    assert 2 * fit.params[0] == pytest.approx(float(rate), abs=1e-11)
    assert fit.max_error == pytest.approx(float(height), abs=1e-13)
    np.testing.assert_allclose(fit.points, [float(a), float(b)], atol=1e-6)


@pytest.mark.parametrize("start", [1.0, 1.4, 1.7, 2.3, 3.0])
def test_any_start_finds_1702(start):
    assert 2 * gelu_fit(1, "cdf", start=(start / 2,)).params[0] == pytest.approx(1.7017449253, abs=1e-10)


def test_series_by_sympy():
    import sympy

    x = sympy.symbols("x")
    expansion = sympy.series(sympy.erf(x / sympy.sqrt(2)), x, 0, 6).removeO()
    inner = sympy.series(sympy.atanh(expansion), x, 0, 6).removeO()
    np.testing.assert_allclose(gelu_series(3), [float(inner.coeff(x, i)) for i in (1, 3, 5)], rtol=0, atol=1e-15)
    a, b = gelu_series()
    assert b / a == pytest.approx(2 / (3 * math.pi) - 1 / 6, abs=1e-16)
    assert gelu_series(1) == (a,)


def test_the_usual_forms_are_members_of_the_family():
    torch.testing.assert_close(gelu_odd(X, (0.851,)), gelu(X, "sigmoid"), rtol=0, atol=1e-14)
    tanh = gelu_odd(X, (SLOPE, 0.044715 * SLOPE))
    torch.testing.assert_close(tanh, F.gelu(X, approximate="tanh"), rtol=0, atol=1e-14)
    assert (gelu_odd(X) - F.gelu(X)).abs().max() < 2.52e-5
    assert (tanh - F.gelu(X)).abs().max() > 4.6e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("coefficients", [(0.851,), gelu_series(2), GELU_ODD5])
def test_far_out_and_not_finite(coefficients, dtype):
    last = torch.finfo(dtype).max
    x = torch.tensor([-torch.inf, torch.inf, -last, last, -40.0, 40.0, 0.0], dtype=dtype, requires_grad=True)
    y = gelu_odd(x, coefficients)
    assert y.dtype == dtype
    assert y.tolist() == [0.0, math.inf, 0.0, last, 0.0, 40.0, 0.0]
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[:6].tolist() == [0, 1, 0, 1, 0, 1]
    assert x.grad[6] == 0.5
    assert gelu_odd(torch.full((3,), torch.nan, dtype=dtype), coefficients).isnan().all()
    assert gelu_odd(torch.zeros(0, 2, dtype=dtype), coefficients).shape == (0, 2)


def test_the_third_term_turns_nowhere():  # without the bend its bracket falls beyond 8.3 and changes sign beyond 11.1
    x = torch.linspace(0, 30, 30_001, dtype=torch.float64)
    assert gelu_odd(x).diff().min() > 0
    torch.testing.assert_close(gelu_odd(x) - gelu_odd(-x), x, rtol=0, atol=4e-15)
    assert gelu_odd(-x[x > 6]).abs().max() < 3e-5


def test_half_precision_computes_wide():
    x = torch.linspace(-5, 5, 101)
    for dtype in (torch.bfloat16, torch.float16):
        half = x.to(dtype)
        assert torch.equal(gelu_odd(half), gelu_odd(half.float()).to(dtype))


def test_gradcheck():
    x = X[::9].clone().requires_grad_()
    for coefficients in ((0.851,), GELU_ODD5):
        assert torch.autograd.gradcheck(lambda v, c=coefficients: gelu_odd(v, c), x)
        assert torch.autograd.gradgradcheck(lambda v, c=coefficients: gelu_odd(v, c), x)


def test_table():
    rows = {(row["form"], row["question"]): row for row in gelu_table()}
    assert len(rows) == 15
    usual, series = rows["tanh", "usual, 0.044715"], rows["tanh", "series around 0"]
    assert usual["erf"] == pytest.approx(3.57865e-4, abs=5e-10)
    assert usual["gelu"] == pytest.approx(4.732e-4, abs=5e-8)
    assert usual["at"] == pytest.approx(2.70, abs=0.005)
    assert series["constant"] == pytest.approx(0.0455399241, abs=5e-11)
    assert series["erf"] == pytest.approx(6.269e-4, abs=5e-8)
    sigmoid = rows["sigmoid", "usual, 1.702"]
    assert sigmoid["cdf"] == pytest.approx(9.4863e-3, abs=5e-8)
    assert sigmoid["gelu"] == pytest.approx(2.0335e-2, abs=5e-7)
    assert sigmoid["at"] == pytest.approx(2.27, abs=0.005)
    assert rows["sigmoid", "least squares cdf"]["constant"] == pytest.approx(1.70099, abs=5e-6)
    assert rows["sigmoid", "least squares gelu"]["constant"] == pytest.approx(1.78008, abs=5e-6)
    assert rows["sigmoid", "least squares gelu, normal x"]["constant"] == pytest.approx(1.71191, abs=5e-6)
    assert rows["sigmoid", "series around 0"]["constant"] == pytest.approx(4 / math.sqrt(2 * math.pi))
    assert rows["sigmoid", "variance of the logistic"]["constant"] == pytest.approx(math.pi / math.sqrt(3))
    assert rows["tanh of three terms", "minimax gelu"]["constant"] is None
    for row in rows.values():
        assert row["erf"] == pytest.approx(2 * row["cdf"], rel=1e-12)
    for form, measure in (("tanh", "gelu"), ("sigmoid", "gelu"), ("sigmoid", "cdf")):
        best = min((row for row in rows.values() if row["form"] == form), key=lambda row: row[measure])
        assert best["question"] == f"minimax {measure}"


@pytest.mark.parametrize(("form", "value", "at"), [("erf", -0.169971, -0.7518), ("tanh", -0.170041, -0.7525),
                                                   ("sigmoid", -0.163610, -0.7512)])  # fmt: skip
def test_minima(form, value, at):
    height, place = largest_error(torch.zeros_like, lambda x: gelu(-x, form), (0.0, 3.0))
    assert (-height, -place) == (pytest.approx(value, abs=5e-7), pytest.approx(at, abs=6e-5))


def test_distance_of_the_slopes():
    x = torch.linspace(-8, 8, 80_001, dtype=torch.float64, requires_grad=True)
    slopes = {form: torch.autograd.grad(gelu(x, form).sum(), x)[0] for form in ("erf", "tanh", "sigmoid")}
    assert (slopes["tanh"] - slopes["erf"]).abs().max().item() == pytest.approx(8.7e-4, abs=1e-5)
    assert (slopes["sigmoid"] - slopes["erf"]).abs().max().item() == pytest.approx(2.9e-2, abs=5e-4)


def test_stored_coefficients_are_the_fitted_ones():
    np.testing.assert_allclose(GELU_ODD5, gelu_fit(3, "gelu").params, atol=1e-9)


def test_messages():
    with pytest.raises(ValueError, match=r"terms must be 1 .*, got 4"):
        gelu_fit(4)
    with pytest.raises(ValueError, match=r"terms must be 1 .*, got 0"):
        gelu_series(0)
    with pytest.raises(ValueError, match="measure must be 'erf', 'cdf' or 'gelu', got 'phi'"):
        gelu_fit(1, "phi")
    with pytest.raises(ValueError, match="got 'phi'"):
        gelu_odd_error(X, GELU_ODD5, "phi")
    with pytest.raises(ValueError, match="slope is all there is to fit; leave keep_slope out"):
        gelu_fit(1, "cdf", keep_slope=True)
    with pytest.raises(ValueError, match="start must have 1 numbers, one for each that is free; got 2"):
        gelu_fit(2, "erf", keep_slope=True, start=(0.8, 0.04))
    with pytest.raises(ValueError, match="got 0 numbers"):
        gelu_odd(X, ())
