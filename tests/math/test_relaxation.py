"""Discrete choices with gradients: exact draws, relaxed ones against torch and the true gradient, hard ones."""

import pytest
import torch
from torch import Tensor

from danlu.math import (
    gumbel_max,
    gumbel_softmax,
    relaxed_bernoulli,
    straight_through_bernoulli,
    straight_through_onehot,
)

D = torch.float64
Z = torch.tensor([0.2, -0.3, 0.5], dtype=D)
R = torch.tensor([1.0, 3.0, 2.0], dtype=D)
P = torch.tensor([0.3383, 0.2052, 0.4566], dtype=D)  # softmax(Z), worked out by hand
EXACT = torch.tensor([-0.2932, 0.2325, 0.0608], dtype=D)  # P * (R - E R)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(count: int, f=lambda y: y @ R, **options) -> Tensor:  # type: ignore[no-untyped-def]
    """(count, 3) gradients of f(y) with respect to the logits, one draw each."""
    z = Z.expand(count, 3).clone().requires_grad_()
    f(gumbel_softmax(z, generator=seeded(), **options)).sum().backward()
    return z.grad


def test_gumbel_max_draws_from_the_softmax():
    counts = gumbel_max(Z, 20_000, generator=seeded()).bincount(minlength=3)
    chi2 = ((counts - 20_000 * Z.softmax(0)) ** 2 / (20_000 * Z.softmax(0))).sum()
    assert chi2 < 18.4  # 1 in 10,000 at 2 degrees of freedom
    torch.testing.assert_close(counts / 20_000, P.float(), rtol=0, atol=0.015)


def test_gumbel_max_along_any_dimension_and_under_a_mask():
    logits = torch.zeros(2, 3, 4)
    assert gumbel_max(logits, dim=1).shape == (2, 4)
    assert gumbel_max(logits, 5, dim=1).shape == (5, 2, 4)
    far = logits.clone()
    far[:, 2] = 100
    assert (gumbel_max(far, 5, dim=1) == 2).all() and (gumbel_max(far, 5, dim=-2) == 2).all()
    mask = torch.tensor([[True, False, True], [False, False, False]])
    drawn = gumbel_max(torch.zeros(2, 3), 500, mask=mask, generator=seeded())
    assert set(drawn[:, 0].tolist()) == {0, 2} and (drawn[:, 1] == -1).all()
    assert (drawn[:, 0] == 2).float().mean().item() == pytest.approx(0.5, abs=0.09)


@pytest.mark.parametrize(
    ("tau", "bias", "variance"), [(0.1, 0.007, 1.50), (0.5, 0.030, 0.167), (1, 0.081, 0.0368), (2, 0.154, 0.0047)]
)
def test_bias_falls_and_variance_rises_with_the_temperature_as_frozen(tau, bias, variance):
    """The figures are from 200,000 draws in float64, by other code."""
    g = gradients(40_000, temperature=tau)
    error = (g.mean(0) - EXACT).abs().max().item()
    assert error == pytest.approx(bias, abs=4 * (variance / 40_000) ** 0.5 + 5e-4)
    assert g.var(0).sum().item() == pytest.approx(variance, rel=0.06)


def test_the_relaxed_draw_has_torchs_distribution():
    y = gumbel_softmax(Z.expand(20_000, 3), 0.7, generator=seeded())
    torch.manual_seed(0)
    other = torch.distributions.RelaxedOneHotCategorical(torch.tensor(0.7, dtype=D), logits=Z).sample((20_000,))
    for power in (1, 2):
        a, b = y**power, other**power
        assert ((a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / 20_000).sqrt()).abs().max() < 4
    torch.testing.assert_close(y.sum(1), torch.ones(20_000, dtype=D))


def test_gradcheck_with_fixed_noise():
    mask = torch.tensor([True, False, True, True])
    z = torch.randn(2, 4, generator=seeded(), dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: gumbel_softmax(z, 0.8, generator=seeded(1)), z)
    assert torch.autograd.gradcheck(lambda z: gumbel_softmax(z, 0.8, mask=mask, generator=seeded(1)), z)
    assert torch.autograd.gradcheck(lambda z: relaxed_bernoulli(z, 0.8, generator=seeded(1)), z)


def test_a_hard_draw_is_one_hot_to_the_bit_with_the_relaxed_gradient():
    z = torch.randn(200, 7, generator=seeded(), requires_grad=True)
    soft, hard = (gumbel_softmax(z, 0.3, h, generator=seeded(1)) for h in (False, True))
    assert set(hard.unique().tolist()) == {0.0, 1.0} and (hard.sum(1) == 1).all()
    assert torch.equal(hard.argmax(1), soft.argmax(1))
    weight = torch.randn(200, 7, generator=seeded(2))
    (a,), (b,) = (torch.autograd.grad((y * weight).sum(), z) for y in (soft, hard))
    torch.testing.assert_close(a, b)
    assert torch.equal(gumbel_max(z, generator=seeded(1)), hard.argmax(1))


def test_where_the_loss_bends_its_slope_is_that_at_the_hard_draw():
    z = Z.expand(50, 3).clone().requires_grad_()
    soft, hard = (gumbel_softmax(z, 0.5, h, generator=seeded()) for h in (False, True))
    slope = 2 * (hard.detach() @ R)[:, None] * R  # of (y R)^2 at the hard draw
    (expected,) = torch.autograd.grad(soft, z, slope)
    (got,) = torch.autograd.grad((hard @ R).square().sum(), z)
    torch.testing.assert_close(got, expected)


def test_conditional_draws_keep_the_mean_and_lower_the_variance():
    square = lambda y: (y @ R).square()  # noqa: E731
    plain = gradients(20_000, square, temperature=0.1, hard=True)
    better = gradients(20_000, square, temperature=0.1, hard=True, conditional_samples=10)
    gap = (plain.mean(0) - better.mean(0)) / ((plain.var(0) + better.var(0)) / 20_000).sqrt()
    assert gap.abs().max() < 4
    assert better.var(0).sum() < 0.7 * plain.var(0).sum()
    one = gradients(20_000, square, temperature=0.5, hard=True, conditional_samples=1)  # the same distribution as none
    none = gradients(20_000, square, temperature=0.5, hard=True)
    assert one.var(0).sum().item() == pytest.approx(none.var(0).sum().item(), rel=0.1)
    frequencies = gumbel_softmax(Z.expand(20_000, 3), 0.5, True, conditional_samples=1, generator=seeded()).mean(0)
    torch.testing.assert_close(frequencies, P, rtol=0, atol=0.015)


def test_onehot_without_noise_has_the_softmax_gradient():
    z = Z.clone().requires_grad_()
    y = straight_through_onehot(z, 0.5)
    assert y.tolist() == [0, 0, 1]
    (a,) = torch.autograd.grad(y @ R, z)
    (b,) = torch.autograd.grad((z / 0.5).softmax(0) @ R, z)
    torch.testing.assert_close(a, b)
    masked = straight_through_onehot(Z, mask=torch.tensor([True, True, False]))
    assert masked.tolist() == [1, 0, 0]


def test_a_mask_means_that_the_rest_is_all_there_is():
    mask = torch.tensor([True, False, True])
    z = Z.clone().requires_grad_()
    y = gumbel_softmax(z.expand(4000, 3), 0.5, mask=mask, generator=seeded())
    assert (y[:, 1] == 0).all()
    torch.testing.assert_close(y.sum(1), torch.ones(4000, dtype=D))
    share = (y[:, 0] > y[:, 2]).double().mean().item()
    assert share == pytest.approx((Z[0].exp() / (Z[0].exp() + Z[2].exp())).item(), abs=0.035)
    y.square().sum().backward()
    assert z.grad[1] == 0 and z.grad.isfinite().all()


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("conditional", [0, 3])
def test_rows_without_a_choice_are_zero_with_zero_gradient(hard, conditional):
    z = torch.randn(2, 3, generator=seeded(), requires_grad=True)
    mask = torch.tensor([[False] * 3, [True, False, True]])
    y = gumbel_softmax(z, 0.5, hard or conditional > 0, mask=mask, conditional_samples=conditional)
    y.square().sum().backward()
    assert not y[0].any() and y[1].sum().item() == pytest.approx(1)
    assert not z.grad[0].any() and z.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_tiny_temperatures_stay_finite(dtype):
    z = (torch.randn(2000, 5, generator=seeded()) * 100).to(dtype).requires_grad_()
    y = gumbel_softmax(z, 1e-3, generator=seeded())
    y.float().square().sum().backward()
    assert y.dtype == dtype and y.isfinite().all() and z.grad.isfinite().all()
    assert relaxed_bernoulli(z, 1e-3, generator=seeded()).isfinite().all()


def test_relaxed_bernoulli_is_the_gumbel_softmax_of_two():
    z = torch.full((20_000,), 0.4, dtype=D)
    a = relaxed_bernoulli(z, 0.6, generator=seeded())
    b = gumbel_softmax(torch.stack([z, torch.zeros_like(z)], 1), 0.6, generator=seeded(1))[:, 0]
    for power in (1, 2):
        x, y = a**power, b**power
        assert ((x.mean() - y.mean()) / ((x.var() + y.var()) / 20_000).sqrt()).abs() < 4
    hard = relaxed_bernoulli(z, 0.6, hard=True, generator=seeded())
    assert torch.equal(hard, (a > 0.5).to(D))
    assert hard.mean().item() == pytest.approx(torch.sigmoid(z[0]).item(), abs=0.014)


def test_straight_through_bernoulli_has_the_gradient_of_the_probability():
    z = torch.full((20_000,), 0.4, dtype=D, requires_grad=True)
    y = straight_through_bernoulli(z, generator=seeded())
    assert set(y.tolist()) == {0.0, 1.0}
    assert y.mean().item() == pytest.approx(torch.sigmoid(z[0]).item(), abs=0.014)
    y.sum().backward()
    p = torch.sigmoid(z.detach())
    torch.testing.assert_close(z.grad, p * (1 - p))


def test_a_relaxed_choice_learns_the_best_option_in_a_plain_loop():
    logits = torch.nn.Parameter(torch.zeros(4))
    cost = torch.tensor([1.0, 0.2, 0.7, 0.9])
    optimizer = torch.optim.Adam([logits], lr=0.1)
    generator = seeded()
    for step in range(80):
        optimizer.zero_grad()
        y = gumbel_softmax(logits.expand(16, 4), 1.0 * 0.97**step, generator=generator)
        (y @ cost).mean().backward()
        optimizer.step()
    assert logits.argmax() == 1 and logits.softmax(0)[1] > 0.8


@pytest.mark.parametrize("hard", [False, True])
def test_compiled_draws_from_the_global_stream_are_the_same(hard):
    def draw(z: Tensor) -> Tensor:
        return gumbel_softmax(z, 0.5, hard, conditional_samples=2 * hard)

    torch.manual_seed(3)
    expected = draw(Z)
    torch.manual_seed(3)
    torch.testing.assert_close(torch.compile(draw, backend="aot_eager", fullgraph=True)(Z), expected)


def test_messages():
    with pytest.raises(ValueError, match=r"temperature must be > 0, got 0.*gumbel_max"):
        gumbel_softmax(Z, 0)
    with pytest.raises(ValueError, match=r"needs hard=True.*got 3 with hard=False"):
        gumbel_softmax(Z, conditional_samples=3)
    with pytest.raises(ValueError, match=r"mask must be bool.*\(3,\).*got torch.float32 \(3,\)"):
        gumbel_max(Z, mask=torch.ones(3))
    with pytest.raises(ValueError, match=r"broadcast to the logits \(3,\).*got torch.bool \(2,\)"):
        gumbel_softmax(Z, mask=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"dim=-1, got torch.int64"):
        gumbel_max(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="num_samples must be >= 1 or None, got 0"):
        gumbel_max(Z, 0)
