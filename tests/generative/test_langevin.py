"""Langevin: gradient descent without noise, the closed form of its bias, temperature, walls, what it leaves alone."""

import math

import pytest
import torch
from torch import Tensor, nn

from danlu.generative.langevin import Langevin, langevin, langevin_temperature, latent_energy
from danlu.nn import spectral_norm


def normal(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1) / 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_noise_it_is_gradient_descent():
    weight = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    x = torch.randn(4, 2, dtype=torch.float64, generator=seeded())
    expected = x.clone()
    for _ in range(7):
        expected = expected - 0.05 * expected @ weight  # half of step 0.1
    got = langevin(lambda v: ((v @ weight) * v).sum(1) / 2, x, 0.1, 7, noise=0.0)
    torch.testing.assert_close(got, expected)


def test_one_step_is_the_equation():
    x = torch.randn(3, 2, dtype=torch.float64, generator=seeded())
    noise = torch.randn(3, 2, dtype=torch.float64, generator=seeded(1))
    got = langevin(normal, x, 0.3, 1, generator=seeded(1))
    torch.testing.assert_close(got, x - 0.15 * x + math.sqrt(0.3) * noise)


@pytest.mark.parametrize(("step", "expected"), [(0.1, 1.0256), (0.5, 1.1429), (1.0, 1.3333), (2.0, 2.0)])
def test_variance_on_a_standard_normal_is_the_closed_form(step, expected):
    assert 1 / (1 - step / 4) == pytest.approx(expected, abs=1e-4)
    x = langevin(normal, torch.randn(100_000, 1, generator=seeded()), step, max(4, int(6 / step)), generator=seeded(1))
    assert x.var().item() == pytest.approx(expected, rel=4 * 0.0045)  # four standard errors of a variance


def test_variance_of_each_axis_of_a_wide_gaussian():
    variance = torch.tensor([0.5, 4.0])
    x = langevin(lambda v: (v.square() / variance).sum(1) / 2, torch.zeros(40_000, 2), 0.8, 60, generator=seeded())
    expected = variance / (1 - 0.8 / (4 * variance))
    assert ((x.var(0) / expected - 1).abs() < 4 * math.sqrt(2 / 40_000)).all()


def test_noise_sets_the_temperature():
    assert langevin_temperature(0.1) == 1.0
    assert langevin_temperature(20.0, 0.005) == pytest.approx(1.25e-6)  # the released program: gradient times 10
    step, temperature = 0.1, 0.25
    x = langevin(normal, torch.zeros(40_000, 1), step, 100, noise=math.sqrt(step * temperature), generator=seeded())
    assert x.var().item() == pytest.approx(temperature / (1 - step / 4), rel=4 * math.sqrt(2 / 40_000))
    assert Langevin(step, 3, noise=math.sqrt(step * temperature)).temperature == pytest.approx(temperature)


def test_too_large_a_step_diverges_and_says_where():
    with pytest.raises(RuntimeError, match=r"step \d+ of 2000 \(step=5.0\).*smaller step"):
        langevin(normal, torch.ones(2, 1), 5.0, 2000, generator=seeded())


def test_nan_is_reported_with_its_step():
    calls = []

    def energy(x: Tensor) -> Tensor:
        calls.append(0)
        return x.sum(1) * (math.nan if len(calls) == 4 else 1.0)

    with pytest.raises(RuntimeError, match="at step 3 of 6"):
        langevin(energy, torch.ones(2, 1), 0.1, 6, generator=seeded())


def test_reflection_keeps_the_uniform_density_and_clamping_does_not():
    x = torch.rand(40_000, 1, generator=seeded())
    flat = lambda v: 0 * v.sum(1)  # noqa: E731
    folded = langevin(flat, x, 0.5, 3, bounds=(0, 1), generator=seeded(1))
    assert folded.min() >= 0 and folded.max() <= 1
    for low in (0.0, 0.25, 0.5, 0.75):
        share = ((folded >= low) & (folded < low + 0.25)).float().mean().item()
        assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 40_000))
    clamped = langevin(flat, x, 0.5, 3, bounds=(0, 1), boundary="clamp", generator=seeded(1))
    assert (clamped == 0).float().mean() > 0.1


def test_reflection_folds_as_often_as_needed():
    energy = lambda v: -v.sum(1)  # noqa: E731
    got = langevin(energy, torch.tensor([[0.5], [0.25]]), 6.0, 1, noise=0.0, bounds=(0, 1))  # 3.5 and 3.25
    torch.testing.assert_close(got, torch.tensor([[0.5], [0.75]]))


def test_gradient_is_clipped_by_element():
    got = langevin(lambda v: (v * torch.tensor([10.0, -0.1])).sum(1), torch.zeros(1, 2), 2.0, 1, 0.0, grad_clip=0.5)
    torch.testing.assert_close(got, torch.tensor([[-0.5, 0.1]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_follows_the_start_and_the_start_stays(dtype):
    x = torch.randn(6, 4, generator=seeded()).to(dtype).T  # not contiguous
    before = x.clone()
    got = langevin(normal, x, 0.1, 2, generator=seeded(1))
    assert got.dtype == dtype
    assert torch.equal(x, before)
    wide = langevin(normal, before.float(), 0.1, 2, generator=seeded(1))
    if dtype != torch.float64:
        torch.testing.assert_close(got.float(), wide, atol=0.02, rtol=0.02)


def test_small_steps_in_bfloat16_are_not_lost():
    x = torch.ones(1, 1, dtype=torch.bfloat16)  # a step of 0.0005 is below what bfloat16 resolves at 1
    got = langevin(lambda v: v.sum(1), x, 0.001, 200, noise=0.0)
    assert got.item() == pytest.approx(0.9, abs=0.005)


def test_no_chain_and_no_step():
    assert langevin(normal, torch.zeros(0, 3), 0.1, 2).shape == (0, 3)
    x = torch.ones(2, 1)
    got = langevin(normal, x, 0.1, 0)
    assert torch.equal(got, x)
    assert got.data_ptr() != x.data_ptr()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(spectral_norm(nn.Linear(3, 5)), nn.SiLU(), nn.Dropout(0.5), nn.Linear(5, 1))

    def energy(self, x: Tensor) -> Tensor:
        return self.body(x)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(x)


@pytest.mark.parametrize("how", ["module", "method"])
def test_the_module_is_left_as_it_was(how):
    net = Net().train()
    net.body[1].eval()  # a mode of its own
    modes = [m.training for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    energy = net if how == "module" else net.energy
    first = langevin(energy, torch.zeros(2, 3), 0.1, 5, generator=seeded())
    assert torch.equal(first, langevin(energy, torch.zeros(2, 3), 0.1, 5, generator=seeded()))  # dropout is off
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())  # power iterations did not move
    assert all(p.grad is None for p in net.parameters())
    assert not first.requires_grad


def test_mode_comes_back_after_an_error():
    net = Net().train()
    with pytest.raises(RuntimeError, match="left the finite numbers"):
        langevin(net, torch.full((1, 3), math.nan), 0.1, 1)
    assert net.body.training


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(context):
    expected = langevin(normal, torch.ones(2, 2), 0.1, 3, generator=seeded())
    with context():
        got = langevin(normal, torch.ones(2, 2), 0.1, 3, generator=seeded())
    assert torch.equal(got, expected)


@pytest.mark.slow
def test_autocast_and_compile():
    net = Net().eval()
    x = torch.zeros(4, 3)
    expected = langevin(net, x, 0.1, 3, generator=seeded())
    compiled = torch.compile(net, backend="aot_eager")
    torch.testing.assert_close(langevin(compiled, x, 0.1, 3, generator=seeded()), expected)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = langevin(net, x, 0.1, 3, generator=seeded())
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, expected, atol=0.02, rtol=0)


def test_sampler_is_the_function_with_settings():
    sampler = Langevin(0.2, 3, noise=0.1, grad_clip=1.0, bounds=(-1, 1), boundary="clamp")
    x = torch.rand(5, 2, generator=seeded())
    expected = langevin(normal, x, 0.2, 3, 0.1, 1.0, (-1, 1), "clamp", seeded(2))
    assert torch.equal(sampler(normal, x, seeded(2)), expected)
    assert repr(sampler) == "Langevin(step=0.2, num_steps=3, temperature=0.05)"


def test_latent_energy_is_that_of_the_outcome_and_the_prior():
    z = torch.randn(4, 2, dtype=torch.float64, generator=seeded())
    weight = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=torch.float64)
    got = latent_energy(normal, lambda v: v @ weight, prior_weight=0.5)(z)
    torch.testing.assert_close(got, (z @ weight).square().sum(1) / 2 + 0.25 * z.square().sum(1))
    torch.testing.assert_close(latent_energy(normal, lambda v: v @ weight, 0.0)(z), normal(z @ weight))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 0.0}, "finite step > 0 and num_steps >= 0, got step=0.0"),
        ({"num_steps": -1}, "num_steps=-1"),
        ({"noise": -1.0}, r"noise must be a finite standard deviation >= 0, or None for sqrt\(step\); got -1"),
        ({"grad_clip": 0.0}, "grad_clip must be > 0 or None"),
        ({"bounds": (1.0, 0.0)}, r"low < high, got \(1.0, 0.0\)"),
        ({"bounds": (2.0, 3.0)}, r"starts inside the bounds \(2.0, 3.0\), but x runs from 1 to 1"),
        ({"boundary": "wrap"}, "'reflect' or 'clamp', got 'wrap'"),
        ({"x": torch.ones(2, 1, dtype=torch.uint8)}, r"float dtype.*got torch.uint8 \(2, 1\).*scale them"),
        ({"energy": lambda x: x.sum()}, r"one number for each chain, \(2,\).*got \(\)"),
        ({"energy": lambda x: 3}, "got int"),
        ({"energy": lambda x: torch.zeros(2)}, "does not depend on x"),
        ({"energy": lambda x: x.sum(1).detach()}, "without detach"),
        ({"energy": lambda x: torch.ones(2, requires_grad=True) * 2}, "constant where the sampler moves"),
    ],
)
def test_messages(arguments, message):
    given = {"energy": normal, "x": torch.ones(2, 1), "step": 0.1, "num_steps": 1} | arguments
    with pytest.raises(ValueError, match=message):
        langevin(**given)


def test_messages_of_the_objects():
    with pytest.raises(ValueError, match="Langevin needs a finite step"):
        Langevin(-1.0, 2)
    with pytest.raises(ValueError, match="'reflect' or 'clamp'"):
        Langevin(1.0, 2, boundary="wrap")
    with pytest.raises(ValueError, match="prior_weight must be >= 0, got -1"):
        latent_energy(normal, normal, -1.0)
    with pytest.raises(ValueError, match="needs a finite step > 0, got 0"):
        langevin_temperature(0)
