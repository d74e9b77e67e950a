"""Weights from losses: formulas by hand, invariances, limits of the power mean, measured references, messages."""

import math

import pytest
import torch
import torch.nn.functional as F

from danlu.losses import (
    LossRatio,
    class_prior_loss,
    geometric_mean_loss,
    loss_ratio,
    power_mean_loss,
    regression_prior_loss,
)

L = torch.tensor([0.3, 2.0, 150.0], dtype=torch.float64)
KEEP = torch.tensor([True, False, True])


def gradient(function, losses):
    x = losses.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


def test_formulas_by_hand():
    logs = [math.log(v) for v in L.tolist()]
    assert geometric_mean_loss(L).item() == pytest.approx(sum(logs) / 3)
    assert loss_ratio(L, [0.1, 4.0, 100.0]).item() == pytest.approx(3 + 0.5 + 1.5)
    assert loss_ratio(L).item() == pytest.approx(3)
    for gamma in (-3.0, -0.5, 0.5, 1.0, 2.0, 7.0):
        expected = (sum(v**gamma for v in L.tolist()) / 3) ** (1 / gamma)
        assert power_mean_loss(L, gamma).item() == pytest.approx(expected)


def test_real_time_weights_have_the_gradient_of_the_geometric_mean():
    torch.testing.assert_close(gradient(loss_ratio, L), 1 / L)
    torch.testing.assert_close(gradient(geometric_mean_loss, L), 1 / (3 * L))
    reference = torch.tensor([0.5, 5.0, 50.0], dtype=torch.float64)
    torch.testing.assert_close(gradient(lambda x: loss_ratio(x, reference), L), 1 / reference)


@pytest.mark.parametrize("gamma", [1e-4, -1e-4, 1e-9, -1e-9])
def test_power_mean_tends_to_the_geometric_mean(gamma):
    """At 1e-9 the plain formula has no digit left; expm1 and log1p keep them all."""
    geometric = power_mean_loss(L, 0.0)
    assert geometric.item() == pytest.approx(math.exp(geometric_mean_loss(L)))
    relative = (power_mean_loss(L, gamma) / geometric - 1).item()
    variance = L.log().var(correction=0).item()
    assert relative == pytest.approx(gamma * variance / 2, rel=2e-3)  # its first Taylor term


def test_power_mean_between_its_ends():
    values = [power_mean_loss(L, g).item() for g in (-math.inf, -50.0, -1.0, 0.0, 1.0, 50.0, math.inf)]
    assert values == sorted(values)
    assert values[0] == 0.3 and values[-1] == 150.0
    assert power_mean_loss(L, 1000.0).isfinite() and power_mean_loss(L, -1000.0).isfinite()
    assert gradient(lambda x: power_mean_loss(x, math.inf), L).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("gamma", [-2.0, -1e-3, 0.0, 0.5, 3.0])
def test_gradcheck(gamma):
    assert torch.autograd.gradcheck(lambda x: power_mean_loss(x, gamma), L.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda x: power_mean_loss(x, gamma, KEEP), L.clone().requires_grad_())
    assert torch.autograd.gradcheck(geometric_mean_loss, L.clone().requires_grad_())


def test_weights_of_the_power_mean():
    """Proportional to L^(gamma - 1)."""
    for gamma in (-2.0, 0.0, 0.5, 3.0):
        g = gradient(lambda x, gamma=gamma: power_mean_loss(x, gamma), L)
        torch.testing.assert_close(g / g[0], (L / L[0]) ** (gamma - 1))


@pytest.mark.parametrize("function", [geometric_mean_loss, loss_ratio, power_mean_loss])
def test_masked_tasks_have_no_influence(function):
    wild = L.clone()
    wild[1] = torch.nan
    torch.testing.assert_close(function(wild, mask=KEEP), function(L[KEEP]))
    x = L.clone().requires_grad_()
    (g,) = torch.autograd.grad(function(x, mask=KEEP), x)
    assert g[1] == 0
    torch.testing.assert_close(g[KEEP], gradient(function, L[KEEP]))
    for gamma in (-math.inf, -1.0, 2.0, math.inf):
        torch.testing.assert_close(power_mean_loss(wild, gamma, KEEP), power_mean_loss(L[KEEP], gamma))
    assert function(L, mask=torch.zeros(3, dtype=torch.bool)).item() == 0


def test_solved_tasks_stay_finite_and_weigh_nothing():
    for function in (geometric_mean_loss, loss_ratio, lambda x: power_mean_loss(x, -1.0)):
        g = gradient(function, torch.tensor([0.0, 2.0, 3.0]))
        assert g.isfinite().all() and g[0] == 0


def train(combine, unit, steps=30):
    """Two regressions from one hidden layer, the second loss in another unit; the weights at the end."""
    torch.manual_seed(0)
    trunk, heads = torch.nn.Linear(3, 4).double(), [torch.nn.Linear(4, 1).double() for _ in range(2)]
    parameters = [*trunk.parameters(), *(p for h in heads for p in h.parameters())]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    x = torch.randn(8, 3, dtype=torch.float64)
    y = [x[:, :1] - x[:, 1:2], x.sum(1, keepdim=True)]
    for _ in range(steps):
        z = torch.tanh(trunk(x))
        losses = [c * F.mse_loss(h(z), t) for c, h, t in zip((1.0, unit), heads, y, strict=True)]
        optimizer.zero_grad()
        combine(losses, [1.0 * regression_prior_loss(y[0]), unit * regression_prior_loss(y[1])]).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in parameters])


def test_units_do_not_matter_in_a_plain_loop():
    """The demand of the post: the same path for the second loss times 1,000; the plain sum fails it."""

    def initial():
        measured = LossRatio(2).double()
        return lambda losses, prior: measured(losses)

    arms = {
        "prior": lambda: loss_ratio,
        "real time": lambda: lambda losses, prior: loss_ratio(losses),
        "geometric": lambda: lambda losses, prior: geometric_mean_loss(losses),
        "initial": initial,
    }
    for name, arm in arms.items():
        torch.testing.assert_close(train(arm(), 1.0), train(arm(), 1000.0), rtol=1e-6, atol=1e-8, msg=name)
    plain = [train(lambda losses, prior: losses[0] + losses[1], unit, steps=3) for unit in (1.0, 1000.0)]
    assert not torch.allclose(*plain, rtol=0.1)


def test_initial_reference_is_the_first_loss_of_each_task():
    ratio = LossRatio(3)
    keep = torch.tensor([True, True, False])
    assert ratio(torch.tensor([2.0, 4.0, torch.nan]), keep).item() == 2
    assert ratio.reference[:2].tolist() == [2.0, 4.0] and ratio.reference[2].isnan()
    assert ratio(torch.tensor([1.0, 1.0, 5.0])).item() == pytest.approx(0.5 + 0.25 + 1)
    assert ratio.reference.tolist() == [2.0, 4.0, 5.0]
    other = LossRatio(3).eval()
    other.load_state_dict(ratio.state_dict())
    assert other(torch.tensor([2.0, 4.0, 10.0])).item() == pytest.approx(4)
    assert other.reference.tolist() == [2.0, 4.0, 5.0]
    fresh = LossRatio(1).eval()
    assert fresh(torch.tensor([7.0])).item() == 7 and fresh.reference.isnan().all()  # nothing known, nothing divided


def test_running_reference():
    ratio = LossRatio(1, momentum=0.75)
    assert ratio(torch.tensor([8.0])).item() == 1
    assert ratio(torch.tensor([4.0])).item() == pytest.approx(4 / 7)  # 0.75 * 8 + 0.25 * 4
    real_time = LossRatio(1, momentum=0.0)
    assert [real_time(torch.tensor([v])).item() for v in (8.0, 0.5)] == [1.0, 1.0]
    x = torch.tensor([3.0], requires_grad=True)
    real_time(x).backward()
    assert x.grad.item() == pytest.approx(1 / 3)


def test_reduce_means_over_the_processes_that_have_the_task():
    """Another process saw losses 6 and 10, the first of its own two tasks only here."""
    others = torch.tensor([[6.0, 10.0], [1.0, 1.0]])
    ratio = LossRatio(2, reduce=lambda both: both + others)
    ratio(torch.tensor([2.0, 1e9]), torch.tensor([True, False]))
    assert ratio.reference.tolist() == [4.0, 10.0]


def test_prior_losses_are_those_of_the_best_constant():
    labels = torch.tensor([0, 0, 1, 3, 3, 3, -100])
    logits = torch.tensor([2 / 6, 1 / 6, 0.0, 3 / 6]).log().expand(7, 4)
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(class_prior_loss(labels, labels >= 0), expected)
    assert class_prior_loss(torch.tensor([True, True])).item() == 0
    y = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)) + 5
    torch.testing.assert_close(regression_prior_loss(y), F.mse_loss(y.mean(0).expand(9, 3), y))


def test_accumulated_micro_batches():
    """Given references add up to the whole batch; the logs do not, as the docstring says."""
    x = torch.tensor([1.0, 5.0], dtype=torch.float64, requires_grad=True)

    def losses(rows):  # two tasks, means over the examples
        return torch.stack([x[rows].square().mean(), (x[rows] - 3).square().mean()])

    for function, equal in ((lambda v: loss_ratio(v, [2.0, 7.0]), True), (geometric_mean_loss, False)):
        whole = torch.autograd.grad(function(losses([0, 1])), x)[0]
        parts = sum(torch.autograd.grad(function(losses([i])) / 2, x)[0] for i in range(2))
        assert torch.allclose(whole, parts) == equal


def test_lists_precision_and_autocast():
    mixed = [torch.tensor(2.0, dtype=torch.bfloat16), torch.tensor(8.0)]
    assert geometric_mean_loss(mixed).dtype == torch.float32
    assert power_mean_loss(L.bfloat16(), 2.0).dtype == torch.float32
    assert loss_ratio(L).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert geometric_mean_loss(L.float()).item() == pytest.approx(geometric_mean_loss(L).item(), rel=1e-6)


def test_messages():
    with pytest.raises(ValueError, match=r"no meaning for a negative loss, got \[1.0, -2.0\].*multitask_backward"):
        geometric_mean_loss(torch.tensor([1.0, -2.0]))
    with pytest.raises(ValueError, match=r"power_mean_loss needs one loss a task.*got \(\)"):
        power_mean_loss(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"loss_ratio needs one loss a task.*got \(0,\)"):
        loss_ratio([])
    with pytest.raises(ValueError, match=r"reference > 0 for each of the 2 losses, got \[1.0, 0.0\]"):
        loss_ratio(torch.ones(2), [1.0, 0.0])
    with pytest.raises(ValueError, match=r"reference > 0 for each of the 2 losses, got \[1.0\]"):
        loss_ratio(torch.ones(2), [1.0])
    with pytest.raises(ValueError, match=r"one entry for each of the 3 losses \(True = keep\), got torch.int64 \(3,\)"):
        geometric_mean_loss(L, torch.ones(3, dtype=torch.long))
    with pytest.raises(ValueError, match="gamma must be a number, inf or -inf, got nan"):
        power_mean_loss(L, math.nan)
    with pytest.raises(ValueError, match=r"momentum None \(the first batch\) or in \[0, 1\), got 2 and 1.0"):
        LossRatio(2, 1.0)
    with pytest.raises(ValueError, match="made for 2 losses, got 3"):
        LossRatio(2)(L)
    with pytest.raises(ValueError, match="at least one label and none below 0"):
        class_prior_loss(torch.tensor([1, -100]))
    with pytest.raises(ValueError, match="integer labels and a bool mask"):
        class_prior_loss(torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r"float targets \(N, ...\), got torch.int64"):
        regression_prior_loss(torch.tensor([1]))
