"""Reports on estimators: moments against torch, enumeration against autograd, fair ones cleared, biased ones caught."""

import json

import pytest
import torch
from torch import Tensor

from danlu.probe import compare_estimators, enumerated_gradient, estimator_report

D = torch.float64
Z = torch.tensor([0.2, -0.3, 0.5], dtype=D)
R = torch.tensor([1.0, 3.0, 2.0], dtype=D)


def normal(shift: float = 0.0):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    return lambda n: shift + torch.randn(n, 2, 3, generator=generator, dtype=D) * torch.tensor([1.0, 2.0, 3.0], dtype=D)


@pytest.mark.parametrize("chunk", [1, 7, 500, 10_000])
def test_moments_are_those_of_all_draws_together(chunk):
    exact = torch.full((2, 3), 0.05, dtype=D)
    report = estimator_report(normal(), exact, 500, chunk)
    draws = normal()(500) if chunk >= 500 else torch.cat([(f := normal())(0), *split(f, 500, chunk)])
    torch.testing.assert_close(report.mean, draws.mean(0))
    assert report.variance == pytest.approx(draws.var(0).sum().item())
    bias = (draws.mean(0) - exact).square().sum().item()
    assert report.squared_bias == pytest.approx(bias - report.variance / 500)
    assert report.error == pytest.approx(report.squared_bias + report.variance)
    assert report.z == pytest.approx(((draws.mean(0) - exact).abs() / (draws.std(0) / 500**0.5)).max().item())
    assert report.num_samples == 500


def split(f, total: int, chunk: int) -> list[Tensor]:  # type: ignore[no-untyped-def]
    return [f(min(chunk, total - start)) for start in range(0, total, chunk)]


def test_a_fair_estimator_is_cleared_and_a_shifted_one_caught():
    zero = torch.zeros(2, 3, dtype=D)
    fair, biased = estimator_report(normal(), zero, 4000), estimator_report(normal(0.3), zero, 4000)
    assert not fair.biased and biased.biased
    assert abs(fair.squared_bias) < 0.03
    assert biased.squared_bias == pytest.approx(6 * 0.09, rel=0.3)


def test_a_constant_estimator_has_no_variance_and_rounding_is_no_bias():
    report = estimator_report(lambda n: torch.full((n, 1), 0.1), torch.tensor([0.1], dtype=D) + 1e-18, 100)
    assert report.variance == pytest.approx(0, abs=1e-20)
    exact32 = torch.tensor([0.1])
    assert not estimator_report(lambda n: exact32.expand(n, 1), exact32, 100).biased
    assert estimator_report(lambda n: exact32.expand(n, 1), exact32 + 0.01, 100).biased


def test_without_a_reference_only_the_variance_is_told():
    report = estimator_report(normal(), None, 100)
    assert report.biased is None and report.squared_bias is None and report.variance > 0
    assert json.loads(json.dumps(report.as_dict()))["num_samples"] == 100


def test_the_policy_gradients_of_three_choices_as_frozen():
    """p = (.3383, .2052, .4566); variances without, with mean and with the best baseline, from 200,000 draws."""
    value, exact = enumerated_gradient(lambda y: R[y[:, 0]], Z)
    torch.testing.assert_close(exact, torch.tensor([-0.2932, 0.2325, 0.0608], dtype=D), rtol=0, atol=5e-5)
    p = Z.softmax(0)
    assert value.item() == pytest.approx((p @ R).item())
    generator = torch.Generator().manual_seed(0)

    def score_function(baseline: float):  # type: ignore[no-untyped-def]
        def estimate(n: int) -> Tensor:
            y = torch.multinomial(p, n, replacement=True, generator=generator)
            return (R[y] - baseline)[:, None] * (torch.eye(3, dtype=D)[y] - p)

        return estimate

    arms = {"none": score_function(0.0), "mean": score_function(value.item()), "best": score_function(1.9417)}
    reports = compare_estimators(arms, exact, 40_000)
    assert list(reports) == list(arms) and not any(r.biased for r in reports.values())
    for name, frozen in {"none": 2.679, "mean": 0.2866, "best": 0.2830}.items():
        assert reports[name].variance == pytest.approx(frozen, rel=0.03)


def test_enumeration_equals_the_expectation_written_out():
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=D, requires_grad=True)
    table = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=D)
    p = z.softmax(1)
    expected = torch.einsum("i,j,ij->", p[0], p[1], table)
    (gradient,) = torch.autograd.grad(expected, z)
    value, ours = enumerated_gradient(lambda y: table[y[:, 0], y[:, 1]], z)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(ours, gradient)
    assert not ours.requires_grad


def test_messages():
    with pytest.raises(ValueError, match=r"num_samples >= 2 and chunk >= 1, got 1 and 1000"):
        estimator_report(normal(), None, 1)
    with pytest.raises(ValueError, match=r"shifted: estimate\(10\) must return \(10, 4\) estimates, got \(10, 2, 3\)"):
        compare_estimators({"shifted": normal()}, torch.zeros(4), 10)
    with pytest.raises(ValueError, match=r"10\^6 answers are more than limit=100000"):
        enumerated_gradient(lambda y: y.sum(1), torch.zeros(6, 10))
    with pytest.raises(ValueError, match=r"value_fn must return \(9,\) values, got \(9, 2\)"):
        enumerated_gradient(lambda y: y, torch.zeros(2, 3))
