"""mixup: both forms of the loss, torch's and closed-form least squares, ignored labels, user's loop, messages."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from danlu.train import (
    Mix,
    MixedTarget,
    Mixup,
    draw_mix,
    mix_inputs,
    mix_targets,
    mixup,
    mixup_loss,
    smoothing_strength,
    soft_targets,
)
from danlu.train.pairing import symmetric_beta

G = torch.Generator().manual_seed(0)
Z = torch.randn(6, 4, dtype=torch.float64, generator=G)
Y = torch.tensor([3, 0, 2, 1, 0, 3])
PER_SAMPLE = pytest.mark.parametrize("per_sample", [True, False])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@PER_SAMPLE
def test_two_losses_equal_cross_entropy_with_soft_targets(per_sample):
    target = mix_targets(Y, draw_mix(6, 1.0, per_sample, generator=generator()))
    soft = soft_targets(target, 4).double()
    torch.testing.assert_close(soft.sum(1), torch.ones(6, dtype=torch.float64), rtol=1e-6, atol=0)
    two, one = Z.clone().requires_grad_(), Z.clone().requires_grad_()
    target = MixedTarget(target.first, target.second, target.weight.double())
    soft = soft_targets(target, 4)
    a, b = mixup_loss(two, target), F.cross_entropy(one, soft)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(v, z)[0] for v, z in ((a, two), (b, one))), rtol=1e-12, atol=1e-12)
    by_hand = [
        sum(-s * (z[c] - math.log(sum(map(math.exp, z)))) for c, s in enumerate(row))
        for z, row in zip(Z.tolist(), soft.tolist(), strict=True)
    ]
    torch.testing.assert_close(mixup_loss(Z, target, reduction="none").tolist(), by_hand)
    torch.testing.assert_close(mixup_loss(Z, target, reduction="sum"), 6 * a)


@PER_SAMPLE
def test_probabilities_as_targets_and_binary_cross_entropy(per_sample):
    mix = draw_mix(6, 1.0, per_sample, generator=generator())
    given = torch.rand(6, 4, dtype=torch.float64, generator=G).softmax(1)
    target = mix_targets(given, mix)
    torch.testing.assert_close(mixup_loss(Z, target), F.cross_entropy(Z, soft_targets(target)), rtol=1e-12, atol=0)
    got = mixup_loss(Z, target, lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="none"))
    expected = F.binary_cross_entropy_with_logits(Z, soft_targets(target))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(soft_targets(mix_targets(F.one_hot(Y, 4).double(), mix)),
                               soft_targets(mix_targets(Y, mix), 4).double())  # fmt: skip


def test_soft_targets_equal_torchvisions():
    """torchvision 0.29.2, v2.MixUp(alpha=0.7, num_classes=3) on labels 2, 0, 1 with the coefficient it drew."""
    lam = 0.14297078549861905
    mix = Mix(torch.tensor([lam], dtype=torch.float64), draw_mix(3, pair="roll").partner)
    rest = 0.8570291996002197 + 1.49011612e-8  # it rounds labels through float32
    expected = torch.tensor([[0.0, rest, lam], [lam, 0.0, rest], [rest, lam, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(soft_targets(mix_targets(torch.tensor([2, 0, 1]), mix), 3), expected, rtol=0, atol=1e-7)


def test_plain_training_for_no_mixture():
    for mix in (Mix(torch.ones(6), torch.randperm(6)), Mix(torch.rand(6), torch.arange(6)), draw_mix(6, 0.0)):
        assert torch.equal(mix_inputs(Z, mix), Z)
        torch.testing.assert_close(mixup_loss(Z, mix_targets(Y, mix)), F.cross_entropy(Z, Y), rtol=1e-15, atol=1e-15)


@PER_SAMPLE
def test_exchanged_roles_give_the_same_loss(per_sample):
    mix = Mix(torch.full((6 if per_sample else 1,), 0.3, dtype=torch.float64), torch.tensor([1, 0, 3, 2, 5, 4]))
    other = Mix(1 - mix.weight, mix.partner)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    losses = [mixup_loss(model(mix_inputs(Z, m)), mix_targets(Y, m)) for m in (mix, other)]
    torch.testing.assert_close(*losses)  # row i of one is row p(i) of the other
    rows = mixup_loss(model(mix_inputs(Z, other)), mix_targets(Y, other), reduction="none")[mix.partner]
    torch.testing.assert_close(rows, mixup_loss(model(mix_inputs(Z, mix)), mix_targets(Y, mix), reduction="none"))


def all_pairs_gradient(x, y, weight, lam):
    """d/dweight of the squared loss over all ordered pairs, by the functions under test."""
    w = weight.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for k in range(len(x)):
        mix = Mix(torch.full((len(x),), lam, dtype=torch.float64), torch.arange(len(x)).roll(k))
        target = mix_targets(y, mix)
        total = total + mixup_loss(mix_inputs(x, mix) @ w, target, lambda a, b: (a - b).square(), reduction="sum")
    return torch.autograd.grad(total, w)[0]


@pytest.mark.parametrize("lam", [0.5, 0.8])
def test_least_squares_over_all_pairs_has_its_closed_form(lam):
    """With an intercept the minimiser is that of the data themselves; without one the normal equations shrink."""
    x = torch.randn(6, 2, dtype=torch.float64, generator=G) + 1
    y = x @ torch.tensor([1.0, -2.0], dtype=torch.float64) + torch.randn(6, dtype=torch.float64, generator=G) + 3
    same, cross = 6 * (lam**2 + (1 - lam) ** 2), 2 * lam * (1 - lam)
    gram = same * x.T @ x + cross * x.sum(0)[:, None] * x.sum(0)
    plain = torch.linalg.solve(gram, same * x.T @ y + cross * x.sum(0) * y.sum())
    assert all_pairs_gradient(x, y, plain, lam).abs().max() < 1e-9
    assert (plain - torch.linalg.lstsq(x, y).solution).abs().max() > 1e-3
    ones = torch.cat([x, torch.ones(6, 1, dtype=torch.float64)], 1)
    ordinary = torch.linalg.lstsq(ones, y).solution
    assert all_pairs_gradient(ones, y, ordinary, lam).abs().max() < 1e-9


def test_squares_have_the_gradient_of_mixed_values_and_a_larger_value():
    values = torch.randn(6, dtype=torch.float64, generator=G)
    target = mix_targets(values, draw_mix(6, 1.0, generator=generator()))
    out = Z[:, 0].clone().requires_grad_()
    two = mixup_loss(out, target, lambda a, b: (a - b).square())
    one = F.mse_loss(out, soft_targets(target))
    torch.testing.assert_close(*(torch.autograd.grad(v, out)[0] for v in (two, one)))
    lam = target.weight.double()
    apart = (lam * (1 - lam) * (target.first - target.second) ** 2).mean()
    torch.testing.assert_close(two - one, apart)


def test_ignored_labels_leave_the_share_of_the_other_row():
    logits = torch.randn(2, 3, 4, dtype=torch.float64, generator=G)
    y = torch.tensor([[1, -100, -100], [2, 3, -100]])
    target = MixedTarget(y, y[[1, 0]], torch.tensor([0.75, 0.25], dtype=torch.float64))
    log = logits.log_softmax(-1)
    terms = [  # share, row, place, label, by hand
        (0.75, 0, 0, 1), (0.25, 0, 0, 2), (0.25, 0, 1, 3), (0.25, 1, 0, 2), (0.75, 1, 0, 1), (0.25, 1, 1, 3),
    ]  # fmt: skip
    total = -sum(w * log[b, t, c] for w, b, t, c in terms)
    torch.testing.assert_close(mixup_loss(logits, target), total / sum(w for w, *_ in terms))
    torch.testing.assert_close(mixup_loss(logits, target, reduction="sum"), total)
    assert mixup_loss(logits, target, reduction="none")[:, 2].tolist() == [0, 0]
    own = mixup_loss(logits, target, lambda z, c: F.cross_entropy(z.movedim(-1, 1), c, reduction="none"))
    torch.testing.assert_close(own, total / sum(w for w, *_ in terms))
    nothing = MixedTarget(torch.full((2, 3), -1), torch.full((2, 3), -1), target.weight)
    logits.requires_grad_()
    loss = mixup_loss(logits, nothing, ignore_index=-1)
    assert loss.item() == 0 and not torch.autograd.grad(loss, logits)[0].any()


def test_a_scalar_loss_with_one_coefficient_keeps_its_own_mean():
    weights = torch.tensor([1.0, 5.0, 0.2, 2.0], dtype=torch.float64)
    target = mix_targets(Y, Mix(torch.tensor([0.3], dtype=torch.float64), torch.tensor([2, 0, 1, 5, 3, 4])))

    def weighted(z, y):
        return F.cross_entropy(z, y, weight=weights)

    expected = 0.3 * weighted(Z, target.first) + 0.7 * weighted(Z, target.second)
    torch.testing.assert_close(mixup_loss(Z, target, weighted), expected)
    with pytest.raises(ValueError, match="one number, but each of the 6 examples has its own coefficient"):
        mixup_loss(Z, mix_targets(Y, draw_mix(6)), weighted)


def test_accumulated_halves_equal_the_batch():
    model = nn.Linear(4, 4).double()
    mix = Mix(torch.rand(6, generator=G), torch.tensor([2, 0, 1, 4, 5, 3]))  # partners within halves
    mixup_loss(model(mix_inputs(Z, mix)), mix_targets(Y, mix)).backward()
    expected = model.weight.grad.clone()
    model.zero_grad()
    for h in (slice(0, 3), slice(3, 6)):
        half = Mix(mix.weight[h], mix.partner[h] - h.start)
        (mixup_loss(model(mix_inputs(Z[h], half)), mix_targets(Y[h], half)) / 2).backward()
    torch.testing.assert_close(model.weight.grad, expected)


def test_a_plain_loop_learns_and_compiled_and_autocast_agree():
    x = torch.randn(64, 4, generator=generator(1))
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer, mix = torch.optim.Adam(model.parameters(), lr=0.1), Mixup(0.4, generator=generator(2))
    for _ in range(60):
        mixed, target = mix(x, y)
        optimizer.zero_grad()
        mixup_loss(model(mixed), target).backward()
        optimizer.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.9
    mixed, target = mixup(x, y, generator=generator(3))
    expected = mixup_loss(model(mixed), target)
    torch._dynamo.reset()
    compiled = torch.compile(lambda v, t: mixup_loss(model(v), t), backend="aot_eager")
    torch.testing.assert_close(compiled(mixed, target), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mixup_loss(model(mixed), target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.02)


def test_the_function_is_its_parts_and_moves_nothing():
    state, x = torch.get_rng_state(), Z.clone()
    for pair in ("random", "same_class", "different_class"):
        mixed, target = mixup(x, Y, 1.0, True, pair, generator(5))
        mix = draw_mix(6, 1.0, True, pair, Y, generator(5))
        assert torch.equal(mixed, mix_inputs(Z, mix)) and torch.equal(target.second, Y[mix.partner])
        assert torch.equal(target.weight, mix.weight)
        again = Mixup(1.0, True, pair, generator(5))(x, Y)[0]
        assert torch.equal(mixed, again)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, Z)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    Mixup(pair="different_class")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0, 300.0])
def test_strength_of_the_control_is_the_mean_of_the_smaller_share(alpha):
    law = stats.beta(alpha, alpha)
    below = law.expect(lambda v: v, ub=0.5) if alpha > 0.1 else None
    if below is not None:
        assert smoothing_strength(alpha) == pytest.approx(2 * below, rel=1e-6)
    lam = symmetric_beta(20_000, alpha, generator())
    smaller = torch.minimum(lam, 1 - lam)
    assert smoothing_strength(alpha) == pytest.approx(smaller.mean().item(), abs=4 * smaller.std().item() / 20_000**0.5)


def test_strength_at_the_ends_and_what_it_means():
    assert smoothing_strength(0.0) == 0 and smoothing_strength(math.inf) == 0.5
    with pytest.raises(ValueError, match="alpha must be >= 0, got nan"):
        smoothing_strength(math.nan)
    # labels in balance: mixup with the roles exchanged gives on average the labels of label smoothing
    labels = torch.arange(4).repeat(5_000)
    target = mix_targets(labels, draw_mix(len(labels), 1.0, dominant=True, generator=generator()))
    mean = soft_targets(target, 4)[labels == 2].mean(0)
    eps = smoothing_strength(1.0)
    expected = torch.tensor([eps / 4, eps / 4, 1 - eps + eps / 4, eps / 4])
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.01)  # 4 standard errors


def test_messages():
    target = mix_targets(Y, draw_mix(6))
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'batch'"):
        mixup_loss(Z, target, reduction="batch")
    with pytest.raises(ValueError, match=r"class indices \(B, ...\).*got \(6,\) and torch.int64 \(6,\).*give loss_fn="):
        mixup_loss(Z[:, 0], target)
    with pytest.raises(ValueError, match=r"got \(6, 4\) and torch.float64 \(6, 3\)"):
        mixup_loss(Z, mix_targets(Z[:, :3], draw_mix(6)))
    with pytest.raises(ValueError, match=r"a loss for each of the 6 examples, or one number; got \(4,\)"):
        mixup_loss(Z, target, lambda z, y: z.sum(0))
    with pytest.raises(ValueError, match=r"targets of torch.int64 are class indices and need num_classes="):
        soft_targets(target)
    with pytest.raises(ValueError, match=r"in \[0, 3\), got 0 to 3; for ignored labels use mixup_loss"):
        soft_targets(target, 3)
    with pytest.raises(ValueError, match="the draw pairs 6 examples"):
        mix_targets(Y[:5], draw_mix(6))
    with pytest.raises(ValueError, match=r"alpha must be >= 0, got -0.1"):
        Mixup(-0.1)
    with pytest.raises(TypeError, match="token ids"):
        mixup(Y, Y)
