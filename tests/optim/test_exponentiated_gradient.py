"""Exponentiated gradient: against the mirror descent problem it solves, Hedge, descent on logarithms."""

import pytest
import torch
from torch import Tensor, nn

from danlu.optim import ExponentiatedGradient, exponentiated_gradient_step

D = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


THETA = torch.rand(5, generator=seeded(0), dtype=D) + 0.1
GRAD = torch.randn(5, generator=seeded(1), dtype=D)


def mirror(x: Tensor, lr: float) -> Tensor:
    return lr * (GRAD * x).sum() + (x * (x / THETA).log() - x + THETA).sum()


def test_it_solves_the_mirror_descent_problem():
    """Newton on the stated argmin, by autograd alone."""
    x = THETA.clone()
    for _ in range(50):
        x.requires_grad_()
        (slope,) = torch.autograd.grad(mirror(x, 0.7), x)
        x = (x.detach() - 0.5 * x.detach() * slope).clamp_min(1e-6)  # the Hessian is 1 / x
    torch.testing.assert_close(exponentiated_gradient_step(THETA, GRAD, 0.7), x)


def test_on_the_simplex_no_other_point_is_better_and_the_sum_stays():
    new = exponentiated_gradient_step(THETA, GRAD, 0.7, keep_sum=0)
    torch.testing.assert_close(new.sum(), THETA.sum())
    slope = 0.7 * GRAD + (new / THETA).log()  # of the problem; equal everywhere at the optimum under a fixed sum
    torch.testing.assert_close(slope, slope.mean().expand(5))
    generator = seeded(1)
    for _ in range(20):
        move = torch.randn(5, generator=generator, dtype=D)
        other = new + 0.02 * (move - move.mean())
        assert mirror(other, 0.7) > mirror(new, 0.7)


def test_many_steps_are_hedge():
    weight = nn.Parameter(torch.full((4,), 0.25, dtype=D))
    optimizer = ExponentiatedGradient([weight], lr=0.3, keep_sum=0)
    total, generator = torch.zeros(4, dtype=D), seeded()
    for _ in range(20):
        weight.grad = torch.randn(4, generator=generator, dtype=D)
        total += weight.grad
        optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.softmax(-0.3 * total, 0))


def test_the_log_form_is_descent_on_the_logarithm():
    phi = THETA.log().requires_grad_()
    (GRAD * phi.exp()).sum().backward()
    torch.testing.assert_close(
        exponentiated_gradient_step(THETA, GRAD, 0.7, form="log"), (phi.detach() - 0.7 * phi.grad).exp()
    )


def test_sums_over_one_dimension_or_all():
    weight = torch.rand(3, 4, generator=seeded(2), dtype=D)
    grad = torch.randn(3, 4, generator=seeded(3), dtype=D)
    for dim in (0, 1, -1):
        new = exponentiated_gradient_step(weight, grad, 1.0, keep_sum=dim)
        torch.testing.assert_close(new.sum(dim), weight.sum(dim))
    rows = torch.stack([exponentiated_gradient_step(w, g, 1.0, 0) for w, g in zip(weight, grad, strict=True)])
    torch.testing.assert_close(exponentiated_gradient_step(weight, grad, 1.0, 1), rows)
    new = exponentiated_gradient_step(weight, grad, 1.0, "all")
    torch.testing.assert_close(new.sum(), weight.sum())
    assert (new.sum(0) - weight.sum(0)).abs().max() > 1e-3


@pytest.mark.parametrize("keep_sum", [None, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_stay_positive_and_zero_stays_zero(keep_sum, dtype):
    weight = nn.Parameter(torch.tensor([0.0, 0.5, 0.25, 0.25]).to(dtype))
    optimizer = ExponentiatedGradient([weight], lr=1.0, keep_sum=keep_sum)
    generator = seeded()
    for _ in range(500):
        weight.grad = 30 * torch.randn(4, generator=generator).to(dtype)
        optimizer.step()
        assert weight[0] == 0 and (weight[1:] > 0).all() and weight.isfinite().all()
    assert weight.dtype == dtype


def test_enormous_gradients_overflow_nothing():
    weight, grad = torch.tensor([0.5, 0.5]), torch.tensor([-1e30, 1e30])
    assert exponentiated_gradient_step(weight, grad, 1.0).isfinite().all()
    torch.testing.assert_close(exponentiated_gradient_step(weight, grad, 1.0, 0), torch.tensor([1.0, 0.0]))
    assert exponentiated_gradient_step(torch.zeros(3), torch.ones(3), 1.0, 0).tolist() == [0, 0, 0]


def test_a_mixture_finds_the_best_expert_in_a_plain_loop():
    experts = torch.randn(50, 4, generator=seeded())
    target = experts[:, 2]
    mixture = nn.Parameter(torch.full((4,), 0.25))
    optimizer = ExponentiatedGradient([mixture], lr=0.5, keep_sum=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 2))  # begins at rate 0
    for _ in range(60):
        optimizer.zero_grad()
        (experts @ mixture - target).square().mean().backward()
        optimizer.step()
        schedule.step()
    assert mixture[2] > 0.95
    assert mixture.sum().item() == pytest.approx(1, abs=1e-5)


def test_a_compiled_step_is_the_same_step():
    compiled = torch.compile(exponentiated_gradient_step, backend="eager")
    torch.testing.assert_close(compiled(THETA, GRAD, 0.7, 0), exponentiated_gradient_step(THETA, GRAD, 0.7, 0))


def test_messages():
    with pytest.raises(ValueError, match=r"needs them >= 0, got -1.*difference"):
        exponentiated_gradient_step(torch.tensor([-1.0]), torch.ones(1), 0.1)
    with pytest.raises(ValueError, match=r"one shape, got \(1,\) and \(2,\)"):
        exponentiated_gradient_step(torch.ones(1), torch.ones(2), 0.1)
    with pytest.raises(ValueError, match="lr must be > 0, got 0"):
        ExponentiatedGradient([nn.Parameter(torch.ones(1))], lr=0)
    with pytest.raises(ValueError, match=r"'eg'.*'log'.*got 'exp'"):
        ExponentiatedGradient([nn.Parameter(torch.ones(1))], lr=1, form="exp")
