"""Annealed importance sampling: log Z of Gaussians, a quartic by quadrature, on a box; both sides; its error bars."""

import math

import pytest
import torch
from torch import Tensor

from danlu.generative.annealed_importance import NormalBase, UniformBase, annealed_importance


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def narrow(x: Tensor) -> Tensor:  # deviations 0.5 and 0.25, mean 1
    return ((x - 1).square() * torch.tensor([2.0, 8.0])).sum(1)


LOG_Z_NARROW = math.log(2 * math.pi * 0.5 * 0.25)


def quartic(x: Tensor) -> Tensor:
    return (x**4 - 2 * x.square()).sum(1)


def log_z_quartic() -> float:
    grid = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    return float((-(grid**4) + 2 * grid.square()).logsumexp(0)) + math.log(8 / 8000)


def assert_within(result, expected: float, least: float = 0.0) -> None:
    """Within four standard errors, and the error bar is one worth having."""
    error = result.estimate.standard_error.item()
    assert abs(result.estimate.value.item() - expected) < 4 * error + least
    assert error < 0.15


def test_bases_integrate_to_one():
    grid = torch.linspace(-12, 14, 20_001, dtype=torch.float64)[:, None]
    base = NormalBase((1,), mean=1.0, std=2.0, dtype=torch.float64)
    assert float((-base.energy(grid)).exp().sum() * 26 / 20_000) == pytest.approx(1, abs=1e-9)
    assert base.sample(20_000, seeded()).std().item() == pytest.approx(2.0, rel=4 / math.sqrt(40_000))
    box = UniformBase((2,), (-1.0, 2.0))
    torch.testing.assert_close((-box.energy(torch.zeros(1, 2))).exp(), torch.tensor([1 / 9]))
    drawn = box.sample(1000, seeded())
    assert drawn.min() >= -1 and drawn.max() <= 2 and drawn.mean().item() == pytest.approx(0.5, abs=0.1)


def test_log_z_of_a_gaussian():
    result = annealed_importance(narrow, NormalBase((2,)), 400, 60, generator=seeded())
    assert_within(result, LOG_Z_NARROW)
    assert result.acceptance.shape == (60,)
    assert result.acceptance.mean().item() == pytest.approx(0.574, abs=0.15)
    assert result.x.mean(0).tolist() == pytest.approx([1.0, 1.0], abs=0.2)
    assert bool(result.estimate.trusted)


def test_log_z_of_a_quartic_by_quadrature():
    result = annealed_importance(quartic, NormalBase((3,)), 400, 40, generator=seeded())
    assert_within(result, 3 * log_z_quartic())


def test_log_z_on_a_box():
    grid = torch.linspace(0, 2, 4001, dtype=torch.float64)[:, None]
    inside = float((-quartic(grid)).logsumexp(0)) + math.log(2 / 4000)
    result = annealed_importance(quartic, UniformBase((2,), (0.0, 2.0)), 400, 40, generator=seeded())
    assert_within(result, 2 * inside, 0.005)
    assert result.x.min() >= 0 and result.x.max() <= 2


def test_the_weights_are_unbiased_even_with_useless_steps():
    """Three temperatures and a step far too large: hardly a move is accepted, the mean weight is Z all the same."""
    base = NormalBase((1,), std=1.5)
    result = annealed_importance(quartic, base, 40_000, 3, step=8.0, num_pilot=0, generator=seeded())
    weights = result.log_weights.double().exp()
    error = weights.std().item() / math.sqrt(len(weights))
    assert weights.mean().item() == pytest.approx(math.exp(log_z_quartic()), abs=4 * error)
    assert error < 0.1


def test_one_temperature_is_plain_importance_sampling():
    base = NormalBase((2,), std=1.5)
    result = annealed_importance(narrow, base, 100, 1, num_pilot=0, generator=seeded(3))
    x = base.sample(100, seeded(3))
    torch.testing.assert_close(result.log_weights, base.energy(x) - narrow(x))


def test_forward_and_reverse_enclose_the_truth():
    few = 4  # temperatures, so few that both sides are off
    forward = annealed_importance(narrow, NormalBase((2,)), 4000, few, generator=seeded())
    exact = 1 + torch.randn(4000, 2, generator=seeded(1)) * torch.tensor([0.5, 0.25])
    reverse = annealed_importance(narrow, NormalBase((2,)), 4000, few, start=exact, generator=seeded(2))
    assert forward.log_weights.mean() < LOG_Z_NARROW - 0.02
    assert reverse.log_weights.mean() > LOG_Z_NARROW + 0.02
    assert_within(forward, LOG_Z_NARROW)
    longer = annealed_importance(narrow, NormalBase((2,)), 4000, 40, start=exact[:400], generator=seeded(2))
    assert_within(longer, LOG_Z_NARROW)
    assert reverse.estimate.bias > 0 > forward.estimate.bias
    assert reverse.x.std(0).tolist() == pytest.approx([1.0, 1.0], abs=0.2)  # it ends at the base


def test_reverse_notices_a_missed_mode():
    """A second well that chains from the left base never find: forward is low in silence, reverse is not."""
    far = lambda x: -torch.stack([-(x[:, 0]).square() / 2, -(x[:, 0] - 30).square() / 2]).logsumexp(0)  # noqa: E731
    truth = math.log(2 * math.sqrt(2 * math.pi))
    forward = annealed_importance(far, NormalBase((1,)), 200, 20, generator=seeded())
    exact = torch.randn(200, 1, generator=seeded(1)) + 30.0 * (torch.arange(200)[:, None] % 2)
    reverse = annealed_importance(far, NormalBase((1,)), 200, 20, start=exact, generator=seeded(2))
    assert forward.estimate.value.item() == pytest.approx(truth - math.log(2), abs=0.01)
    assert reverse.log_weights.mean().item() > truth + 1


def test_same_generator_same_numbers_and_dtype():
    base = NormalBase((2,), dtype=torch.float64)
    energy = lambda x: (x**4).sum(1)  # noqa: E731
    first, second = (annealed_importance(energy, base, 20, 4, generator=seeded(7)) for _ in range(2))
    assert torch.equal(first.log_weights, second.log_weights)
    assert first.log_weights.dtype == torch.float64
    assert not first.x.requires_grad


def test_steps_do_not_look_at_the_chains_they_move():
    base = NormalBase((1,))
    few = annealed_importance(quartic, base, 10, 5, generator=seeded(1))
    many = annealed_importance(quartic, base, 300, 5, generator=seeded(1))
    assert few.steps == many.steps
    assert len(set(few.steps)) == 5
    assert annealed_importance(quartic, base, 10, 5, step=0.2, num_pilot=0).steps == [0.2] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_chains": 1}, "num_chains >= 2.*got 1, 3"),
        ({"num_temperatures": 0}, "num_temperatures and num_steps >= 1"),
        ({"power": 0.0}, "power > 0"),
        ({"start": torch.zeros(1, 2)}, r"at least 2 samples \(N, ...\), got \(1, 2\)"),
        ({"base": UniformBase((2,), (1.0, 0.0))}, "low < high"),
        ({"base": None}, "finite std > 0, got 0.0"),
    ],
)
def test_messages(arguments, message):
    given = {"energy": narrow, "base": NormalBase((2,)), "num_chains": 4, "num_temperatures": 3} | arguments
    with pytest.raises(ValueError, match=message):
        annealed_importance(**{**given, "base": given["base"] or NormalBase((2,), std=0.0)})
