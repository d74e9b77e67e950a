"""The energy model: training in a plain loop, its penalty, filling in, resume, autocast, log Z against a grid."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn

from danlu.generative.energy import EnergyConfig, EnergyModel
from danlu.generative.energy_loss import energy_loss
from danlu.generative.energy_net import EnergyNet
from danlu.generative.training_state import load_state, save_state

SMALL = EnergyConfig(width=8, num_steps=3, step=0.05, buffer_size=64, bounds=(-3.0, 3.0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Quadratic(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return ((x @ self.weight) * x).sum(1)  # x^T A x


def test_a_plain_loop_finds_the_gaussian():
    """U = x^T A x on Gaussian data: A goes to half the inverse covariance."""
    data = torch.randn(4000, 2, generator=seeded()) * torch.tensor([0.5, 1.0])
    # no fresh chains: at 5 % those under way would widen the negatives and narrow what is learned
    config = EnergyConfig(bounds=(-6.0, 6.0), step=0.1, num_steps=5, buffer_size=1000, reinit=0.0)
    model = EnergyModel(config, Quadratic(torch.eye(2)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    g = seeded(1)
    tail = []
    for i in range(200):
        optimizer.zero_grad()
        model.loss(data[torch.randint(4000, (256,), generator=g)], generator=g).backward()
        optimizer.step()
        if i >= 100:
            tail.append(model.net.weight.detach().clone())
    got = torch.stack(tail).mean(0)
    torch.testing.assert_close(got, torch.diag(0.5 / data.var(0)), rtol=0.15, atol=0.1)


def test_loss_is_the_loss_of_its_parts():
    model = EnergyModel(EnergyConfig(**{**asdict(SMALL), "alpha": 0.3, "r1": 0.7}))
    other = EnergyModel(model.config)
    other.load_state_dict(model.state_dict())
    x = torch.randn(5, 2, generator=seeded())
    got = model.loss(x, generator=seeded(3))
    negative = other.negatives(5, seeded(3))
    data = x.clone().requires_grad_()
    up = other.energy(data)
    (gradient,) = torch.autograd.grad(up.sum(), data, create_graph=True)
    expected = energy_loss(up, other.energy(negative), 0.3) + 0.7 * gradient.square().sum(1).mean()
    torch.testing.assert_close(got, expected)
    got.backward()
    expected.backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    torch.testing.assert_close(model.buffer.data, other.buffer.data)


def test_penalty_of_a_quadratic_is_its_gradient_squared():
    a = torch.tensor([[1.0, 0.2], [0.2, 2.0]], dtype=torch.float64)
    x = torch.randn(6, 2, dtype=torch.float64, generator=seeded()).clamp(-3, 3)
    with_penalty = EnergyModel(EnergyConfig(**{**asdict(SMALL), "r1": 0.5}), Quadratic(a)).double()
    without = EnergyModel(SMALL, Quadratic(a.clone())).double()
    gap = with_penalty.loss(x, seeded(1)) - without.loss(x, seeded(1))
    torch.testing.assert_close(gap, 0.5 * (2 * x @ a).square().sum(1).mean())


def test_negatives_are_stored_and_carry_no_graph():
    model = EnergyModel(SMALL)
    x = model.negatives(6, seeded())
    assert not x.requires_grad
    torch.testing.assert_close(model.buffer.data[:6], x)
    assert x.abs().max() <= 3
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_log_partition_and_density_against_a_grid():
    model = EnergyModel(EnergyConfig(width=8, bounds=(-2.0, 2.0)))
    with torch.no_grad():
        model.net.to_energy.weight.mul_(8)
        side = torch.linspace(-2, 2, 401)
        grid = torch.cartesian_prod(side, side)
        log_z = float((-model.energy(grid)).double().logsumexp(0)) + 2 * math.log(4 / 400)
    result = model.log_partition(200, 20, generator=seeded())
    assert result.estimate.value.item() == pytest.approx(log_z, abs=4 * result.estimate.standard_error.item() + 0.01)
    density = model.log_prob(grid, result.estimate.value).exp()
    assert float(density.sum() * (4 / 400) ** 2) == pytest.approx(1.0, abs=0.05)
    assert model.log_prob(torch.tensor([[0.0, 2.5]]), 0.0).item() == -math.inf


def test_samples_and_temperature():
    model = EnergyModel(SMALL, Quadratic(2 * torch.eye(2)))
    assert model.temperature == 1.0
    before = model.buffer.data.clone()
    wide, narrow = (model.sample(4000, seeded(), t, num_steps=60, fresh=True) for t in (1.0, 0.1))
    assert wide.var().item() == pytest.approx(0.25 / (1 - 0.05), rel=0.1)  # the bias of the step is known
    assert narrow.var().item() == pytest.approx(0.025 / (1 - 0.05), rel=0.1)
    assert torch.equal(model.buffer.data, before)
    cold = EnergyModel(EnergyConfig(step=20.0, noise=0.005, shape=(2,)))
    assert cold.temperature == pytest.approx(1.25e-6)


def test_filling_in_is_conditional_sampling():
    """x^T A x with a known first element: the second is normal with mean -a_12 x_1 / a_22."""
    a = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    model = EnergyModel(SMALL, Quadratic(a))
    x = torch.tensor([[1.0, 0.0]]).repeat(4000, 1)
    mask = torch.tensor([True, False])
    got = model.reconstruct(x, mask, num_steps=100, generator=seeded())
    assert torch.equal(got[:, 0], x[:, 0])
    assert got[:, 1].mean().item() == pytest.approx(-0.5, abs=0.05)
    assert got[:, 1].var().item() == pytest.approx(0.25 / 0.95, rel=0.1)
    assert model.reconstruct(x, num_steps=0).equal(x)
    with pytest.raises(ValueError, match="mask must be bool, True = known"):
        model.reconstruct(x, mask.float())


def test_resume_is_exact(tmp_path):
    def make() -> tuple[EnergyModel, torch.optim.Optimizer, torch.Generator]:
        torch.manual_seed(0)
        model = EnergyModel(EnergyConfig(**{**asdict(SMALL), "spectral_norm": 1.0, "alpha": 0.1}))
        return model, torch.optim.Adam(model.parameters(), lr=0.01), seeded(4)

    def train(model, optimizer, g, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model.loss(torch.randn(8, 2, generator=g).clamp(-3, 3), generator=g).backward()
            optimizer.step()

    whole = make()
    train(*whole, 6)
    model, optimizer, g = make()
    train(model, optimizer, g, 3)
    save_state(tmp_path / "state", 3, {"model": model}, {"adam": optimizer}, {"g": g})
    again, other, h = make()
    load_state(tmp_path / "state", {"model": again}, {"adam": other}, {"g": h})
    train(again, other, h, 3)
    for key, value in whole[0].state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_the_configuration_is_json_and_rebuilds():
    model = EnergyModel(EnergyConfig((1, 8, 8), (0.0, 1.0), width=4, spectral_norm=1.0, buffer_dtype="uint8"))
    again = EnergyModel(EnergyConfig(**json.loads(json.dumps(asdict(model.config)))))
    again.load_state_dict(model.state_dict())
    x = torch.rand(3, 1, 8, 8, generator=seeded())
    torch.testing.assert_close(model.eval()(x), again.eval()(x))
    assert model(x).shape == (3,)
    assert model.buffer.data.dtype == torch.uint8


def test_spectral_norm_bounds_every_layer_but_the_last():
    net = EnergyNet((1, 8, 8), 4, 2, coeff=0.7).eval()
    x, y = torch.rand(2, 16, 1, 8, 8, generator=seeded())
    gap_in = (x - y).flatten(1).norm(dim=1)
    h, k = net.features[0](x), net.features[0](y)
    assert ((h - k).flatten(1).norm(dim=1) <= 0.7 * gap_in * 1.001).all()
    flat = EnergyNet((3,), 6, 2, coeff=0.7).eval()
    weight = flat.features[0].weight.detach()
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(0.7, rel=1e-4)
    assert not hasattr(flat.to_energy, "parametrizations")


def test_chains_do_not_see_each_other():
    net = EnergyNet((1, 8, 8), 4, 1)
    x = torch.rand(4, 1, 8, 8, generator=seeded())
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))


def test_autocast_gives_energies_in_float32():
    model = EnergyModel(EnergyConfig(**{**asdict(SMALL), "shape": (1, 8, 8), "bounds": (0.0, 1.0)}))
    x = torch.rand(4, 1, 8, 8, generator=seeded())
    expected = model.energy(x)
    with torch.autocast("cpu", torch.bfloat16):
        energy = model.energy(x)
        loss = model.loss(x, seeded())
    assert energy.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(energy, expected, rtol=0.05, atol=0.02)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_two_halves_of_a_batch_accumulate_to_the_whole():
    model = EnergyModel(SMALL)
    up, down = torch.randn(2, 8, 2, generator=seeded()).clamp(-3, 3)
    (whole,) = torch.autograd.grad(energy_loss(model(up), model(down), 0.2), model.net.to_energy.weight)
    halves = [energy_loss(model(up[i::2]), model(down[i::2]), 0.2) / 2 for i in (0, 1)]
    (sum_of_halves,) = torch.autograd.grad(halves[0] + halves[1], model.net.to_energy.weight)
    torch.testing.assert_close(sum_of_halves, whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EnergyNet((2, 3)), r"points \(D,\) or images \(C, H, W\).*got shape \(2, 3\)"),
        (lambda: EnergyNet((1, 6, 8), depth=2), "halves an image 2 times, which 6 x 8 does not allow"),
        (lambda: EnergyModel(EnergyConfig(buffer_dtype="int4")), "one of uint8, float32.*got 'int4'"),
        (lambda: EnergyModel(EnergyConfig(r1=-1.0)), "r1 >= 0"),
        (lambda: EnergyModel(SMALL).loss(torch.zeros(2, 3)), r"takes x \(N, \*\(2,\)\), got \(2, 3\)"),
        (lambda: EnergyModel(SMALL).sample(1, temperature=-1.0), "temperature must be >= 0, got -1"),
    ],
)
def test_messages(make, message):
    with pytest.raises(ValueError, match=message):
        make()
