"""Divergences of any f by autograd: against the closed rows, suprema by search, duality, Lambert's W, limits."""

import math
from dataclasses import replace

import pytest
import torch

from danlu.math import F_DIVERGENCES, as_f_divergence, divergence_from_f, f_conjugate
from danlu.math.f_convex import limit

V = torch.linspace(-4, 4, 17, dtype=torch.float64)
SMOOTH = [name for name in F_DIVERGENCES if name != "total_variation"]
NAMES = list(F_DIVERGENCES)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def searched(f, t, most=40.0):  # oracle: eq. (2) on a fine grid of u, refined twice around the best; no derivative
    low, high = -most, most
    for _ in range(6):
        v = torch.linspace(low, high, 2_001, dtype=torch.float64)
        values = t * v.exp() - f(v.exp())
        best, step = int(values.argmax()), (high - low) / 2_000
        low, high = v[best].item() - step, v[best].item() + step
    return values.max().item()


@pytest.mark.parametrize("name", SMOOTH)
def test_the_automatic_record_is_the_closed_one(name):
    closed = F_DIVERGENCES[name]
    auto = divergence_from_f(closed.f)
    torch.testing.assert_close(auto.activation(V), closed.activation(V), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(auto.activation_conjugate(V), closed.activation_conjugate(V), rtol=1e-11, atol=1e-13)
    t = closed.activation(V)
    torch.testing.assert_close(auto.conjugate(t), closed.conjugate(t), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_the_automatic_limits_are_the_closed_ones(name):
    closed = F_DIVERGENCES[name]
    auto = divergence_from_f(closed.f)
    assert auto.zero == pytest.approx(closed.zero, abs=1e-12)
    assert auto.infinity == pytest.approx(closed.infinity, abs=1e-12)
    assert auto.lowest == pytest.approx(closed.lowest, abs=1e-12)


def test_gradients_of_the_automatic_forms():
    for f in (lambda u: u * u.log(), F_DIVERGENCES["js"].f):
        record = divergence_from_f(f)
        v = V[::4].clone().requires_grad_()
        assert torch.autograd.gradcheck(record.activation, v)
        assert torch.autograd.gradcheck(record.activation_conjugate, v)
        assert torch.autograd.gradgradcheck(record.activation_conjugate, v)
    t = tensor(-3.0, -0.5, 0.5, 2.0).requires_grad_()
    assert torch.autograd.gradcheck(divergence_from_f(lambda u: u * u.log()).conjugate, t)


@pytest.mark.parametrize("name", NAMES)
def test_the_numeric_conjugate_is_the_supremum(name):
    record = F_DIVERGENCES[name]
    low, high = max(record.lowest, -3.0) - 0.5, min(record.infinity, 3.0) - 0.05
    t = torch.linspace(low, high, 7, dtype=torch.float64)
    expected = [searched(record.f, x) for x in t.tolist()]
    got = divergence_from_f(record.f).conjugate(t)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-7)


def test_the_gradient_of_the_conjugate_is_the_ratio():
    u = tensor(0.05, 0.5, 1.0, 3.0, 30.0)
    for name in SMOOTH:
        for record in (F_DIVERGENCES[name], divergence_from_f(F_DIVERGENCES[name].f)):
            t = record.activation(u.log()).requires_grad_()
            record.conjugate(t).sum().backward()
            torch.testing.assert_close(t.grad, u, rtol=1e-8, atol=0)


def test_jeffreys_against_lambert_w():
    special = pytest.importorskip("scipy.special")
    t = torch.linspace(-20, 20, 41, dtype=torch.float64)
    w = torch.from_numpy(special.lambertw((1 - t).exp().numpy()).real)
    torch.testing.assert_close(f_conjugate(t, "jeffreys"), w + 1 / w + t - 2, rtol=1e-10, atol=1e-9)
    far = f_conjugate(tensor(-1e4, 300.0), "jeffreys")  # where e^(1 - t) has overflown, and where u is beyond e^150
    assert far[0].item() == pytest.approx(-1 - math.log(9991.79), abs=1e-3)  # w + log w = 10001
    assert far[1].item() == pytest.approx(math.exp(299) + 298, rel=1e-9)


def test_outside_of_the_range_of_the_derivative():
    tv = divergence_from_f(lambda u: (u - 1).abs() / 2)
    t = tensor(-7.0, -0.5, 0.2, 0.5, 0.6).requires_grad_()
    value = tv.conjugate(t)
    torch.testing.assert_close(value.detach(), tensor(-0.5, -0.5, 0.2, 0.5, math.inf))
    value[:3].sum().backward()
    torch.testing.assert_close(t.grad[:3], tensor(0.0, 0.0, 1.0))
    hellinger = divergence_from_f(F_DIVERGENCES["squared_hellinger"].f)
    assert hellinger.conjugate(tensor(1.0, 2.0)).tolist() == [math.inf, math.inf]
    pearson = divergence_from_f(F_DIVERGENCES["pearson"].f)
    assert pearson.conjugate(tensor(-2.0, -50.0)).tolist() == pytest.approx([-1.0, -1.0])
    assert divergence_from_f(lambda u: u * u.log()).conjugate(tensor(math.nan)).isnan().all()


def test_a_second_derivative_of_the_numeric_conjugate_is_refused_not_wrong():
    t = tensor(0.3).requires_grad_()
    (slope,) = torch.autograd.grad(f_conjugate(t, "jeffreys").sum(), t, create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_the_conjugate_of_the_conjugate_is_f(name):  # f(u) = sup_t t u - f*(t), by search over t
    record = F_DIVERGENCES[name]
    v = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    t = record.activation(v)
    conjugate = record.conjugate(t) if name != "jeffreys" else record.activation_conjugate(v)  # bisection is slow
    for u in (0.1, 0.7, 1.0, 2.5, 8.0):
        assert (t * u - conjugate).max().item() == pytest.approx(record.f(tensor(u)).item(), abs=2e-4 * (1 + u))


def test_a_shift_of_the_slope_changes_no_bound():
    plain = divergence_from_f(lambda u: u * u.log())
    shifted = divergence_from_f(lambda u: u * u.log() - 3 * (u - 1))
    torch.testing.assert_close(shifted.activation(V), plain.activation(V) - 3)
    torch.testing.assert_close(shifted.activation_conjugate(V), plain.activation_conjugate(V) - 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_goes_through_float64(dtype):
    record = divergence_from_f(F_DIVERGENCES["js"].f)
    v = tensor(-12.0, 0.5, 12.0).to(dtype)
    for got, expected in (
        (record.activation(v), F_DIVERGENCES["js"].activation(v.double())),
        (record.activation_conjugate(v), F_DIVERGENCES["js"].activation_conjugate(v.double())),
    ):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-7)


def test_no_grad_inference_mode_and_compile():
    record = divergence_from_f(lambda u: u * u.log())
    v = torch.randn(5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(record.activation(v), 1 + v)
    with torch.inference_mode():
        torch.testing.assert_close(record.activation_conjugate(v + 0), v.exp())
        torch.testing.assert_close(record.conjugate(v + 0), (v - 1).exp())
    assert not record.activation(v).requires_grad
    got = torch.compile(record.activation_conjugate, backend="eager")(v)
    torch.testing.assert_close(got, v.exp())


def test_limits():
    assert limit(lambda u: u**0.05, -1) == pytest.approx(0.0, abs=1e-9)
    assert limit(lambda u: 2 - u**-0.5, 1) == pytest.approx(2.0, abs=1e-12)
    assert limit(lambda u: u.log().log(), 1) == math.inf
    assert limit(lambda u: -u.log(), 1) == -math.inf
    assert limit(lambda u: u.exp(), 1) == math.inf


def test_what_is_no_divergence_is_refused():
    with pytest.raises(ValueError, match=r"h must be convex.*falls from .* between u = .* take the negative"):
        divergence_from_f(lambda u: -u * u.log(), "h")
    with pytest.raises(ValueError, match=r"must be convex.*between u = 4"):  # convex up to u = 4 only
        divergence_from_f(lambda u: torch.where(u < 4, (u - 1).square(), 9 + 6 * (u - 4) - 0.01 * (u - 4).square()))
    with pytest.raises(ValueError, match=r"f must be 0 at u = 1, got 1; subtract it: lambda u: f\(u\) - 1"):
        divergence_from_f(lambda u: u * u)
    with pytest.raises(ValueError, match=r"finite for all u > 0; at u = .* they are not"):
        divergence_from_f(lambda u: (u - 0.5).log() * -1)
    with pytest.raises(ValueError, match=r"is linear: every divergence would be 0"):
        divergence_from_f(lambda u: 3 * (u - 1))
    with pytest.raises(ValueError, match=r"elementwise: for u \(241,\) it gave \(\)"):
        divergence_from_f(lambda u: (u - 1).square().sum())


def test_a_record_can_be_put_right():
    record = replace(divergence_from_f(lambda u: (u - 1).square()), infinity=7.0)
    assert record.infinity == 7.0 and as_f_divergence(record) is record
