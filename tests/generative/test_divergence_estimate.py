"""Divergences from samples: bounds by hand, the two Gaussians of the dossier, what is not to be trusted, messages."""

import math

import pytest
import torch
from torch import nn

from danlu.generative import (
    divergence_from_scores,
    donsker_varadhan,
    estimate_divergence,
    fit_log_ratio,
    log_ratio_critic,
)
from danlu.math import f_bound

EXACT = {  # P = N(0, 1), Q = N(1, 1.5^2), by quadrature
    "total_variation": 0.3461230840,
    "kl": 0.3499095526,
    "reverse_kl": 0.7195348919,
    "pearson": 0.6004150753,
    "squared_hellinger": 0.2207307438,
    "jeffreys": 1.0694444444,
    "js": 0.0992900966,
    "gan": 0.1985801932,
    "neyman": math.inf,
}


def true_log_ratio(x):
    return -(x**2) / 2 + (x - 1) ** 2 / 4.5 + math.log(1.5)


def samples(n, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, generator=draw), 1 + 1.5 * torch.randn(n, 1, generator=draw)


@pytest.mark.parametrize("name", EXACT)
def test_the_true_ratio_measures_every_finite_divergence_and_the_infinite_one_is_not_trusted(name):
    x, y = samples(20_000)
    found = divergence_from_scores(true_log_ratio(x)[:, 0], true_log_ratio(y)[:, 0], name)
    if math.isinf(EXACT[name]):
        assert not found.trusted
        assert found.pareto_k > 0.7
        return
    assert found.trusted
    assert abs(found.value - EXACT[name]) < 4 * found.standard_error
    assert found.low < found.value < found.high
    assert found.real_mass == pytest.approx(1, abs=0.1)
    assert found.fake_mass == pytest.approx(1, abs=0.02)


def test_bound_error_and_interval_by_hand():
    v, w = torch.tensor([0.5, 1.0, 0.0]), torch.tensor([-1.0, 0.2])
    found = divergence_from_scores(v, w, "kl", confidence=0.9)
    assert found.value == pytest.approx(f_bound(v.double(), w.double(), "kl").item())
    e = [math.exp(-1.0), math.exp(0.2)]
    variance = 0.25 / 3 + (e[0] - e[1]) ** 2 / 2 / 2
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=1e-6)
    assert found.high - found.value == pytest.approx(1.6448536 * math.sqrt(variance), rel=1e-6)
    weights = [math.exp(-1.0), math.exp(0.2)]
    assert found.ess == pytest.approx(sum(weights) ** 2 / sum(a * a for a in weights) / 2, rel=1e-6)
    assert found.fake_mass == pytest.approx(sum(weights) / 2, rel=1e-6)
    assert found.real_mass == pytest.approx((math.exp(-0.5) + math.exp(-1.0) + 1) / 3, rel=1e-6)


def test_folds_are_averaged_and_their_errors_add():
    v, w = torch.randn(6), torch.randn(8)
    halves = [(torch.arange(3), torch.arange(4)), (torch.arange(3, 6), torch.arange(4, 8))]
    parts = [divergence_from_scores(v[a], w[b], "js") for a, b in halves]
    found = divergence_from_scores(v, w, "js", halves)
    assert found.value == pytest.approx(sum(p.value for p in parts) / 2)
    assert found.standard_error == pytest.approx(math.hypot(*(p.standard_error for p in parts)) / 2)


def test_the_interval_holds_what_it_says():
    v, hits = true_log_ratio, 0
    for seed in range(200):
        x, y = samples(300, seed)
        found = divergence_from_scores(v(x)[:, 0], v(y)[:, 0], "js", confidence=0.9)
        hits += found.low <= EXACT["js"] <= found.high
    assert abs(hits / 200 - 0.9) < 4 * math.sqrt(0.09 / 200)


@pytest.mark.parametrize("objective", ["logistic", pytest.param("own", marks=pytest.mark.slow)])
def test_a_trained_critic_comes_near_from_below(objective):
    x, y = samples(3_000, 1)
    seed = torch.Generator().manual_seed(0)
    found = estimate_divergence(x, y, "squared_hellinger", objective=objective, steps=120, lr=1e-2, generator=seed)
    assert 0.9 * EXACT["squared_hellinger"] < found.value + 2 * found.standard_error
    assert found.low < EXACT["squared_hellinger"]
    assert found.trusted
    grid = torch.linspace(-1.5, 2.5, 9)[:, None]
    assert (found.log_ratio(grid) - true_log_ratio(grid)[:, 0]).abs().mean() < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, value in EXACT.items() if math.isfinite(value)])
def test_every_finite_row_within_five_percent(name):
    values = []
    for seed in range(3):
        x, y = samples(20_000, seed)
        values.append(estimate_divergence(x, y, name, generator=torch.Generator().manual_seed(seed)).value)
    assert sum(values) / 3 == pytest.approx(EXACT[name], rel=0.05)


def test_equal_samples_have_no_divergence_and_learning_by_heart_shows():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 20, generator=draw), torch.randn(60, 20, generator=draw)
    found = estimate_divergence(x, y, "js", steps=80, batch_size=32, lr=1e-2, generator=draw)
    assert found.training_value > 0.4  # of log 2: 30 examples in 20 dimensions
    assert found.value < 2 * found.standard_error
    assert found.low <= 0


def test_parted_supports_are_told_only_where_they_are_infinite():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=draw)
    for name, trusted in (("js", True), ("kl", False)):
        found = estimate_divergence(x, x + 60, name, steps=60, batch_size=32, lr=1e-2, generator=draw)
        assert found.trusted == trusted
    half = torch.cat([torch.randn(400), torch.full((400,), 1.0)])  # Q lacks half of P: E_Q[p/q] = 1/2
    v = torch.where(half == 1.0, 12.0, -math.log(2))
    found = divergence_from_scores(v, torch.full((400,), -math.log(2)), "kl")
    assert found.fake_mass == pytest.approx(0.5)
    assert not found.trusted
    assert divergence_from_scores(v, torch.full((400,), -math.log(2)), "total_variation").trusted


def test_donsker_varadhan_is_the_better_bound_of_kl():
    x, y = samples(5_000)
    for shift in (0.0, 0.7):
        v, w = true_log_ratio(x) + shift, true_log_ratio(y) + shift
        tight = donsker_varadhan(v, w)
        assert tight >= f_bound(v, w, "kl") - 1e-6
        assert tight.item() == pytest.approx(EXACT["kl"], abs=0.05)
    v, w = torch.randn(3, dtype=torch.float64, requires_grad=True), torch.randn(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: donsker_varadhan(v, w), v)


def test_fit_finds_finite_odds():
    x = torch.tensor([0, 0, 0, 1, 1, 2]).repeat(50)
    y = torch.tensor([0, 1, 1, 2, 2, 2]).repeat(50)
    eye = torch.eye(3)
    critic = fit_log_ratio(
        nn.Linear(3, 1), eye[x], eye[y], steps=150, lr=0.1, generator=torch.Generator().manual_seed(0)
    )
    want = torch.tensor([3.0, 1.0, 1 / 3]).log()
    assert (critic(eye)[:, 0].detach() - want).abs().max() < 0.15
    assert not critic.training


def test_own_critics_shapes_and_randomness():
    x, y = samples(40)
    before = torch.get_rng_state()
    a, b = (
        estimate_divergence(x, y, "js", steps=5, folds=4, generator=torch.Generator().manual_seed(2)) for _ in range(2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert (a.value, a.standard_error) == (b.value, b.standard_error)
    assert torch.equal(a.real, b.real)
    assert a.real.shape == a.fake.shape == (40,)
    images = torch.rand(12, 1, 4, 4)
    found = estimate_divergence(
        images, images + 1, lambda u: u * u.log(), lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 1)), steps=3
    )
    assert math.isfinite(found.value)
    assert log_ratio_critic(x.double())(x.double()).dtype == torch.float64
    assert estimate_divergence(x.bfloat16(), y.bfloat16(), "js", steps=2).log_ratio(x).shape == (40,)
    constant = torch.cat([x, torch.ones(40, 1)], 1)  # a feature without spread
    assert log_ratio_critic(constant)(constant).isfinite().all()


def test_messages():
    x, y = samples(10)
    with pytest.raises(ValueError, match=r"got \(3, 1\) and \(10, 1\) in 2 folds"):
        estimate_divergence(x[:3], y)
    with pytest.raises(ValueError, match=r"one kind; got \(10, 1\) and \(10, 2\)"):
        estimate_divergence(x, torch.zeros(10, 2))
    with pytest.raises(ValueError, match="nan or inf among them"):
        estimate_divergence(x / 0, y)
    with pytest.raises(ValueError, match=r"objective must be 'own'.*got 'dv'"):
        estimate_divergence(x, y, objective="dv")
    with pytest.raises(ValueError, match=r"0 < confidence < 1; got 1000, 256, 0\.002 and 1"):
        estimate_divergence(x, y, confidence=1)
    with pytest.raises(ValueError, match="no f-divergence 'wasserstein'"):
        estimate_divergence(x, y, "wasserstein")
    with pytest.raises(ValueError, match=r"at least 2 examples.*got 1 and 10 in 1 folds"):
        divergence_from_scores(x[:1, 0], y[:, 0])
    with pytest.raises(ValueError, match=r"got \(0,\) and \(10,\)"):
        donsker_varadhan(x[:0, 0], y[:, 0])
    with pytest.raises(ValueError, match=r"examples of both, got \(0, 1\)"):
        fit_log_ratio(nn.Linear(1, 1), x[:0], y)
    with pytest.raises(ValueError, match="got 0, 256"):
        fit_log_ratio(nn.Linear(1, 1), x, y, steps=0)
    with pytest.raises(ValueError, match="width and layers >= 1"):
        log_ratio_critic(x, width=0)
