"""Energy loss: its gradient is that of the likelihood where the negatives are exact; tables, quadrature, Gaussians."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from danlu.generative.energy_loss import all_of, any_of, energy_loss, logits_energy
from danlu.generative.mala import mala


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_values_by_hand():
    up, down = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    assert energy_loss(up, down, 0.0).item() == pytest.approx(1.5 + 0.25)
    assert energy_loss(up, down, 0.1).item() == pytest.approx(1.75 + 0.1 * (2.5 + 0.625))
    softplus = (math.log1p(math.exp(0.5)) + math.log1p(math.exp(3.0))) / 2
    assert energy_loss(up, down, 0.0, "softplus").item() == pytest.approx(softplus)
    share = math.exp(1.0) / (math.exp(1.0) + math.exp(-0.5))
    assert energy_loss(up, down, 0.0, "weighted").item() == pytest.approx(1.5 + share - 0.5 * (1 - share))
    weighted = energy_loss(up, down, 0.0, weights=torch.tensor([3.0, 1.0]))
    assert weighted.item() == pytest.approx(1.5 - (0.75 * 0.5 - 0.25))


@pytest.mark.parametrize("kind", ["cd", "softplus"])
def test_gradcheck(kind):
    up = torch.randn(4, dtype=torch.float64, generator=seeded(), requires_grad=True)
    down = torch.randn(4, dtype=torch.float64, generator=seeded(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: energy_loss(a, b, 0.3, kind), (up, down))


def test_exact_negatives_give_the_likelihoods_gradient():
    """U = a x^4 + b x^2, Z by quadrature: the gradient of E[U] + log Z against the two phases."""
    theta = torch.tensor([0.3, -0.5], dtype=torch.float64, requires_grad=True)
    data = torch.randn(50, dtype=torch.float64, generator=seeded())
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)

    def energy(x: Tensor) -> Tensor:
        return theta[0] * x**4 + theta[1] * x**2

    log_z = (-energy(grid)).logsumexp(0) + math.log(12 / 4000)
    (expected,) = torch.autograd.grad(energy(data).mean() + log_z, theta)
    density = (-energy(grid)).softmax(0).detach()
    (got,) = torch.autograd.grad(energy_loss(energy(data), energy(grid), 0.0, weights=density), theta)
    torch.testing.assert_close(got, expected)
    (by_uniform,) = torch.autograd.grad(energy_loss(energy(data), energy(grid), 0.0, "weighted"), theta)
    torch.testing.assert_close(by_uniform, expected)  # a grid is uniform: the weights are the density itself


def test_a_table_of_energies_descends_to_the_histogram():
    counts = torch.randint(1, 9, (200,), generator=seeded()).double()
    data = counts / counts.sum()
    energies = torch.zeros(200, dtype=torch.float64, requires_grad=True)
    values = []
    for _ in range(60):
        values.append((data * energies).sum().item() + (-energies).logsumexp(0).item())
        up = torch.repeat_interleave(energies, counts.long())
        loss = energy_loss(up, energies, 0.0, weights=(-energies).softmax(0).detach())
        (gradient,) = torch.autograd.grad(loss, energies)
        energies = (energies - 100.0 * gradient).detach().requires_grad_()
    assert all(after < before for before, after in pairwise(values))
    entropy = -(data * data.log()).sum().item()
    assert values[-1] - entropy < 0.01 * (values[0] - entropy)


def test_a_gaussian_energy_finds_mean_and_variance():
    data = 1.5 + 0.7 * torch.randn(500, dtype=torch.float64, generator=seeded())
    mean = torch.zeros((), dtype=torch.float64, requires_grad=True)
    log_var = torch.zeros((), dtype=torch.float64, requires_grad=True)
    nodes = torch.linspace(-8, 8, 3201, dtype=torch.float64)
    share = (-nodes.square() / 2).softmax(0)  # exact negatives: a normal by quadrature, moved and scaled
    optimizer = torch.optim.SGD([mean, log_var], lr=0.4)
    for _ in range(150):
        negative = (mean + (log_var / 2).exp() * nodes).detach()
        energy = lambda x: (x - mean).square() / (2 * log_var.exp())  # noqa: E731
        optimizer.zero_grad()
        energy_loss(energy(data), energy(negative), 0.0, weights=share).backward()
        optimizer.step()
    assert mean.item() == pytest.approx(data.mean().item(), abs=1e-3)
    assert log_var.exp().item() == pytest.approx(data.var(correction=0).item(), abs=1e-3)


def test_samples_are_held_fixed_by_the_weights():
    down = torch.tensor([0.5, -1.0], requires_grad=True)
    energy_loss(torch.zeros(1), down, 0.0, "weighted").backward()
    torch.testing.assert_close(down.grad, -(-down.detach()).softmax(0))


def test_composition_by_density():
    x = torch.randn(6, 2, dtype=torch.float64, generator=seeded())
    first = lambda v: v.square().sum(1)  # noqa: E731
    second = lambda v: (v - 1).abs().sum(1)  # noqa: E731
    torch.testing.assert_close((-all_of(first, second)(x)).exp(), (-first(x)).exp() * (-second(x)).exp())
    torch.testing.assert_close((-any_of(first, second)(x)).exp(), (-first(x)).exp() + (-second(x)).exp())
    far = torch.full((1, 2), 1e3)
    assert any_of(first, second)(far).isfinite().all()


def test_any_of_samples_both():
    wells = any_of(lambda v: (v[:, 0] - 1).square() / 0.5, lambda v: (v[:, 0] + 1).square() / 0.5)
    x = mala(wells, torch.zeros(4000, 1), 0.5, 80, generator=seeded()).x
    assert (x > 0).float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))
    assert x.square().mean().item() == pytest.approx(1.25, abs=0.1)


def test_logits_keep_the_classes():
    logits = torch.randn(3, 4, dtype=torch.float64, generator=seeded())
    expected = torch.tensor([-math.log(sum(math.exp(v) for v in row)) for row in logits.tolist()], dtype=torch.float64)
    torch.testing.assert_close(logits_energy(logits), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    up = torch.full((5000,), 30.0, dtype=dtype)
    got = energy_loss(up, torch.zeros(3, dtype=dtype), 1.0)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(930.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 1), torch.zeros(2)), r"\(N,\) and of samples \(M,\).*got \(2, 1\) and \(2,\)"),
        ((torch.zeros(0), torch.zeros(2)), r"at least one of each; got \(0,\)"),
        ((torch.zeros(2), torch.zeros(2), -1.0), "alpha >= 0, got 'cd' and -1.0"),
        ((torch.zeros(2), torch.zeros(2), 0.0, "mse"), "'cd', 'softplus' or 'weighted'.*got 'mse'"),
        ((torch.zeros(2), torch.zeros(3), 0.0, "softplus"), "compares pairs, got 2 data and 3 samples"),
        ((torch.zeros(2), torch.zeros(3), 0.0, "cd", torch.ones(2)), r"shape of the negatives \(3,\)"),
        ((torch.zeros(2), torch.zeros(2), 0.0, "softplus", torch.ones(2)), "weights go with kind='cd'"),
    ],
)
def test_messages(arguments, message):
    with pytest.raises(ValueError, match=message):
        energy_loss(*arguments)


def test_messages_of_the_others():
    with pytest.raises(ValueError, match="all_of combines energies, got none"):
        all_of()
    with pytest.raises(ValueError, match="any_of combines energies, got none"):
        any_of()
    with pytest.raises(ValueError, match=r"logits \(N, K\) with K >= 1, got \(3,\)"):
        logits_energy(torch.zeros(3))
