"""f-divergences: sums by hand, frozen numbers, Gaussian integrals, tight bounds, duality, zeros, extremes, errors."""

import importlib
import math

import pytest
import torch

from danlu.math import (
    F_DIVERGENCES,
    alpha_divergence,
    as_f_divergence,
    divergence_from_f,
    f_activation,
    f_bound,
    f_conjugate,
    f_divergence,
    f_swap,
)

NAMES = list(F_DIVERGENCES)
ALPHAS = [-2.0, -1.0, -0.3, 0.0, 0.5, 1.0, 1.7, 2.0, 3.0]
RECORDS = [*F_DIVERGENCES.values(), *map(alpha_divergence, ALPHAS)]
SMOOTH = [r for r in RECORDS if r.name != "total_variation"]
IDS = [r.name for r in RECORDS]
SMOOTH_IDS = [r.name for r in SMOOTH]
P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
U = torch.tensor([0.05, 0.3, 0.9, 1.0, 1.1, 4.0, 30.0], dtype=torch.float64)

# the integrals of the table of f_table, with Python floats
INTEGRANDS = {
    "kl": lambda p, q: p * math.log(p / q),
    "reverse_kl": lambda p, q: q * math.log(q / p),
    "pearson": lambda p, q: (p - q) ** 2 / q,
    "neyman": lambda p, q: (p - q) ** 2 / p,
    "squared_hellinger": lambda p, q: (math.sqrt(p) - math.sqrt(q)) ** 2,
    "jeffreys": lambda p, q: (p - q) * math.log(p / q),
    "js": lambda p, q: (p * math.log(2 * p / (p + q)) + q * math.log(2 * q / (p + q))) / 2,
    "gan": lambda p, q: p * math.log(2 * p / (p + q)) + q * math.log(2 * q / (p + q)),
    "triangular": lambda p, q: (p - q) ** 2 / (p + q),
    "total_variation": lambda p, q: abs(p - q) / 2,
}
DISCRETE = {
    "total_variation": 0.3,
    "kl": 0.218011910943,
    "reverse_kl": 0.239278181599,
    "neyman": 0.583333333333,
    "pearson": 0.44,
    "squared_hellinger": 0.112715129275,
    "jeffreys": 0.457290092542,
    "js": 0.055582470863,
    "gan": 2 * 0.055582470863,
}
GAUSSIANS = {  # N(0, 1) against N(1, 1.5^2)
    "total_variation": 0.3461230840,
    "kl": 0.3499095526,
    "reverse_kl": 0.7195348919,
    "pearson": 0.6004150753,
    "squared_hellinger": 0.2207307438,
    "jeffreys": 1.0694444444,
    "js": 0.0992900966,
    "gan": 0.1985801932,
}


def random_pair(k, seed=0):
    logits = torch.randn(2, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return logits.softmax(-1).unbind()


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_integral(name):
    for p, q in ((P, Q), random_pair(6), random_pair(2, 1)):
        expected = sum(INTEGRANDS[name](a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
        assert f_divergence(p, q, name).item() == pytest.approx(expected, rel=1e-12)
        by_f = f_divergence(p, q, F_DIVERGENCES[name].f)
        assert by_f.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", DISCRETE)
def test_frozen_numbers(name):
    assert f_divergence(P, Q, name).item() == pytest.approx(DISCRETE[name], abs=1e-11)


@pytest.mark.parametrize("alpha", [a for a in ALPHAS if a not in (0.0, 1.0)])
def test_alpha_is_its_formula(alpha):
    power = sum(p**alpha * q ** (1 - alpha) for p, q in zip(P.tolist(), Q.tolist(), strict=True))
    assert f_divergence(P, Q, alpha_divergence(alpha)).item() == pytest.approx((power - 1) / (alpha * (alpha - 1)))


def test_alpha_runs_through_the_others():
    for alpha, name, factor in [(1, "kl", 1), (0, "reverse_kl", 1), (2, "pearson", 0.5), (-1, "neyman", 0.5),
                                (0.5, "squared_hellinger", 2)]:  # fmt: skip
        expected = factor * f_divergence(P, Q, name)
        torch.testing.assert_close(f_divergence(P, Q, alpha_divergence(alpha)), expected, rtol=1e-12, atol=0)
        near = f_divergence(P, Q, alpha_divergence(alpha + 1e-9))
        torch.testing.assert_close(near, expected, rtol=1e-8, atol=0)
    with pytest.raises(ValueError, match="alpha must be finite, got nan"):
        alpha_divergence(math.nan)


def test_a_critic_that_is_sure_keeps_its_slope_in_float32():  # T' = e^{(a - 1) v}, and of f*(T) e^{a v}
    record = alpha_divergence(0.5)
    for function, sign in ((record.activation, -0.5), (record.activation_conjugate, 0.5)):
        v = torch.tensor([-48.0, -3.0, -1e-3, 1e-3, 3.0, 48.0], requires_grad=True)
        (slope,) = torch.autograd.grad(function(v).sum(), v)
        torch.testing.assert_close(slope, (sign * v.detach()).exp(), rtol=1e-5, atol=0)
    far = torch.tensor(60.0, requires_grad=True)
    alpha_divergence(2.0).activation_conjugate(far).backward()  # e^120 is beyond float32
    assert far.grad.item() == math.inf


@pytest.mark.parametrize("name", GAUSSIANS)
def test_gaussians_by_quadrature(name):
    x = torch.linspace(-16, 18, 34_001, dtype=torch.float64)
    log_p, log_q = -x.square() / 2, -((x - 1) / 1.5).square() / 2 - math.log(1.5)
    p, q = (log.exp() * 1e-3 / math.sqrt(2 * math.pi) for log in (log_p, log_q))
    assert f_divergence(p, q, name).item() == pytest.approx(
        GAUSSIANS[name], abs=1e-9 if name != "total_variation" else 1e-6
    )
    v = log_p - log_q
    record = F_DIVERGENCES[name]
    if name != "total_variation":  # the best critic meets it
        bound = (p * record.activation(v)).sum() - (q * record.activation_conjugate(v)).sum()
        assert bound.item() == pytest.approx(GAUSSIANS[name], abs=1e-9)


@pytest.mark.parametrize("record", SMOOTH, ids=SMOOTH_IDS)
def test_fenchel_equality(record):
    v = U.log()
    slope = record.activation(v)
    torch.testing.assert_close(record.f(U) + record.activation_conjugate(v), U * slope, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(record.conjugate(slope), record.activation_conjugate(v), rtol=1e-9, atol=1e-11)
    _, by_autograd = torch.func.jvp(record.f, (U,), (torch.ones_like(U),))
    torch.testing.assert_close(slope, by_autograd, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("record", RECORDS, ids=IDS)
def test_fenchel_inequality(record):  # f(u) + f*(t) >= t u for all t and u, equality being the test above
    low, high = max(record.lowest, -4.0) - 1, min(record.infinity, 4.0) + 1
    t = torch.linspace(low, high, 41, dtype=torch.float64)[:, None]
    slack = record.f(U) + record.conjugate(t) - t * U
    assert slack.min() >= -1e-9
    assert slack[t.squeeze(1) > record.infinity].isinf().all()
    if math.isfinite(record.lowest):
        below = t[t < record.lowest]
        torch.testing.assert_close(record.conjugate(below), torch.full_like(below, -record.zero))


@pytest.mark.parametrize("record", RECORDS, ids=IDS)
def test_activations_stay_in_range_rise_and_take_gradients(record):
    v = torch.linspace(-9, 9, 31, dtype=torch.float64)
    t = record.activation(v)
    assert (t.diff() > 0).all() and record.lowest <= t.min() and t.max() <= record.infinity
    x = torch.linspace(-3, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(record.activation, x) and torch.autograd.gradgradcheck(record.activation, x)
    assert torch.autograd.gradcheck(record.activation_conjugate, x)
    if record.name != "total_variation":
        assert torch.autograd.gradcheck(record.conjugate, record.activation(x).detach().requires_grad_())


@pytest.mark.parametrize("record", RECORDS, ids=IDS)
def test_the_bound_holds_for_all_critics_and_is_met_by_the_best(record):
    p = torch.tensor([3, 1, 2, 2]) / 8  # samples in exact proportion, so that means are expectations
    q = torch.tensor([1, 2, 4, 1]) / 8
    v = (p / q).double().log() if record.name != "total_variation" else 50 * (p - q).sign().double()
    real, fake = (torch.arange(4).repeat_interleave((8 * w).long()) for w in (p, q))
    exact = f_divergence(p.double(), q.double(), record)
    torch.testing.assert_close(f_bound(v[real], v[fake], record), exact, rtol=1e-11, atol=1e-12)
    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 0.3, 3.0):
        other = v + scale * torch.randn(4, dtype=torch.float64, generator=generator)
        assert f_bound(other[real], other[fake], record) <= exact + 1e-12


@pytest.mark.parametrize("record", SMOOTH, ids=SMOOTH_IDS)
def test_ascent_on_the_bound_finds_the_log_ratio(record):
    v = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([v], lr=0.5, max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15)

    def closure():
        optimizer.zero_grad()
        loss = -((P * record.activation(v)).sum() - (Q * record.activation_conjugate(v)).sum())
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(v.detach(), (P / Q).log(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("record", RECORDS, ids=IDS)
def test_exchange(record):
    swapped = f_swap(record)
    torch.testing.assert_close(f_divergence(Q, P, record), f_divergence(P, Q, swapped), rtol=1e-11, atol=1e-13)
    v = U.log()
    if record.name != "total_variation":
        torch.testing.assert_close(
            swapped.activation(v), divergence_from_f(swapped.f).activation(v), rtol=1e-9, atol=1e-9
        )
        torch.testing.assert_close(
            swapped.conjugate(swapped.activation(v)), swapped.activation_conjugate(v), rtol=1e-7, atol=1e-8
        )
    twice = f_swap(swapped)
    torch.testing.assert_close(twice.activation_conjugate(v), record.activation_conjugate(v))


PAIRS = [("kl", "reverse_kl"), ("pearson", "neyman"), *((n, n) for n in NAMES[4:])]


@pytest.mark.parametrize("pair", PAIRS)
def test_who_is_whose_exchange(pair):
    torch.testing.assert_close(f_divergence(P, Q, pair[0]), f_divergence(Q, P, pair[1]), rtol=1e-12, atol=0)
    assert [f_swap(name).lowest for name in ("kl", "pearson", "js")] == [-math.inf] * 3
    assert f_swap("neyman").lowest == pytest.approx(-2.0, abs=1e-9)
    assert f_swap("triangular").lowest == pytest.approx(-3.0, abs=1e-9)


def test_probabilities_of_zero():
    p, q = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.25, 0.0, 0.75, 0.0])
    expected = {  # by hand: one common outcome, 0.5 with p alone, 0.75 with q alone
        "kl": math.inf,
        "reverse_kl": math.inf,
        "pearson": math.inf,
        "neyman": math.inf,
        "jeffreys": math.inf,
        "squared_hellinger": (math.sqrt(0.5) - 0.5) ** 2 + 0.5 + 0.75,
        "triangular": 0.25**2 / 0.75 + 0.5 + 0.75,
        "total_variation": 0.75,
        "js": (0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 1.25 * math.log(2)) / 2,
        "gan": 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 1.25 * math.log(2),
    }
    for name in NAMES:
        assert f_divergence(p, q, name).item() == pytest.approx(expected[name], rel=1e-6)
    sub = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    assert f_divergence(*sub, "kl").item() == pytest.approx(math.log(2))
    assert f_divergence(*sub, "pearson").item() == pytest.approx(1.0)
    assert f_divergence(*sub[::-1], "reverse_kl").item() == pytest.approx(math.log(2))
    assert f_divergence(*sub[::-1], "neyman").item() == pytest.approx(1.0)
    assert f_divergence(*sub, lambda u: u * u.log()).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("record", RECORDS, ids=IDS)
def test_disjoint_supports(record):
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert f_divergence(p, q, record).item() == pytest.approx(record.zero + record.infinity)


@pytest.mark.parametrize("record", RECORDS, ids=IDS)
def test_equal_is_zero_and_near_is_not_negative(record):
    p, _ = random_pair(50, 3)
    assert f_divergence(p, p.clone(), record).item() == 0
    near = (p + 1e-7 * torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).float()
    value = f_divergence(p.float(), near, record)  # their sums differ by rounding
    assert 0 <= value.item() < 1e-5


def test_gradients_of_the_exact_divergence():
    for record in RECORDS:
        p, q = (x.clone().requires_grad_() for x in random_pair(4, 2))
        assert torch.autograd.gradcheck(lambda p, q, r=record: f_divergence(p, q, r), (p, q))
    logits = torch.tensor([0.0, 200.0, 900.0], requires_grad=True)  # one underflows to 0
    f_divergence(logits.softmax(0), torch.tensor([0.2, 0.3, 0.5]), "kl").backward()
    assert logits.grad.isfinite().all()
    p = torch.tensor([0.5, 0.5, 0.0], requires_grad=True)
    q = torch.tensor([0.5, 0.0, 0.5], requires_grad=True)
    f_divergence(p, q, "js").backward()
    assert p.grad.isfinite().all() and q.grad.isfinite().all()


def test_shapes_dtypes_and_layouts():
    p, q = torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)).softmax(1).unbind()
    got = f_divergence(p, q, "js", dim=0)
    assert got.shape == (3, 4)
    torch.testing.assert_close(got[1, 2], f_divergence(p[:, 1, 2], q[:, 1, 2], "js"))
    torch.testing.assert_close(f_divergence(p.movedim(0, -1), q.movedim(0, -1), "js"), got)
    for dtype in (torch.float16, torch.bfloat16):
        value = f_divergence(p.to(dtype), q.to(dtype), "kl", 0)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, f_divergence(p.to(dtype).double(), q.to(dtype).double(), "kl", 0).float())
        assert f_bound(p.to(dtype), q.to(dtype)).dtype == f_activation(p.to(dtype)).dtype == torch.float32
        assert f_conjugate(p.to(dtype), "js").dtype == torch.float32
    assert f_divergence(P, Q.float()).dtype == torch.float64
    assert f_divergence(torch.ones(2, 1), torch.ones(2, 1)).tolist() == [0.0, 0.0]
    assert f_divergence(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)
    assert f_divergence(torch.tensor([math.nan, 1.0]), torch.tensor([0.5, 0.5])).isnan()


def test_tiny_and_huge_ratios():
    p, q = torch.tensor([1e-300, 1.0]).double(), torch.tensor([1.0, 1e-300]).double()
    p[0], q[1] = 1e-300, 1e-300
    assert f_divergence(p, q, "kl").item() == pytest.approx(300 * math.log(10))
    assert f_divergence(p, q, "js").item() == pytest.approx(math.log(2))
    assert f_divergence(p, q, "total_variation").item() == pytest.approx(1.0)
    v = torch.tensor([-80.0, 80.0])
    for name in ("js", "gan", "triangular", "total_variation", "kl", "reverse_kl", "squared_hellinger"):
        record = F_DIVERGENCES[name]
        assert record.activation(v).isfinite().all() and record.activation_conjugate(v).isfinite().all()
    v = torch.tensor([90.0], requires_grad=True)
    f_bound(v, -v, "js").backward()
    assert v.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_closed_conjugates_outside_have_no_nan(name):
    t = torch.tensor([-5.0, -3.0, -2.0, -0.5, 0.0, 0.34657359, 0.5, 1.0, 2.0], requires_grad=True)
    value = f_conjugate(t, name)
    assert not value.isnan().any()
    torch.where(value.isinf(), 0.0, value).sum().backward()
    assert not t.grad[value.isfinite()].isnan().any()
    assert f_conjugate(torch.tensor([math.nan]), name).isnan().all()


def test_messages():
    with pytest.raises(ValueError, match=r"no f-divergence 'KL'; there are kl, reverse_kl, .*any convex function"):
        f_divergence(P, Q, "KL")
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\); write q.expand_as"):
        f_divergence(P, Q[:2])
    with pytest.raises(ValueError, match=r"at least one outcome along dim=-1; got \(2, 0\)"):
        f_divergence(torch.zeros(2, 0), torch.zeros(2, 0))
    with pytest.raises(ValueError, match=r"at least one real and one fake sample; got \(0,\) and \(3,\)"):
        f_bound(P[:0], P)
    assert as_f_divergence("js") is F_DIVERGENCES["js"]
    assert importlib.import_module("danlu.math.f_table").F_DIVERGENCES is F_DIVERGENCES
