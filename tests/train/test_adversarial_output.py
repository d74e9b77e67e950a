"""FGM, PGD and noise on a layer's output: closed form of the linear model, batches in halves, hooks gone, messages."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.train import (
    fgm_output_backward,
    noise_output_backward,
    output_perturbed,
    pgd_output_backward,
)

X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
IDS = torch.tensor([[1, 2, 2], [4, 1, 3], [5, 5, 6], [3, 2, 1]])
LABEL = torch.tensor([0, 1, 1, 0])


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(7, 4, dtype=torch.float64)
        self.hidden = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, ids):
        return self.hidden(torch.tanh(self.embed(ids)).mean(1))


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(got, expected, **tolerance):
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], **tolerance)


def test_linear_model_has_the_closed_form_for_every_example():
    """softplus(-y w.x): the worst x in the ball of radius eps gives softplus(-y w.x + eps ||w||)."""
    w, layer = nn.Parameter(torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64)), nn.Identity()
    losses = []

    def loss_fn():
        each = F.softplus(-Y * (layer(X) @ w))
        losses.append(each.detach())
        return each.mean()

    fgm_output_backward(loss_fn, layer, 0.4)
    expected = F.softplus(-Y * (X @ w) + 0.4 * torch.linalg.vector_norm(w))
    torch.testing.assert_close(losses[-1], expected.detach(), rtol=0, atol=5e-16)
    (gradient,) = torch.autograd.grad(expected.mean(), w)
    torch.testing.assert_close(w.grad, gradient)


def test_pgd_on_the_linear_model_ends_on_the_sphere():
    w, layer = nn.Parameter(torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64)), nn.Identity()
    loss = pgd_output_backward(lambda: F.softplus(-Y * (layer(X) @ w)).mean(), layer, 0.5, alpha=0.2, steps=4)
    expected = F.softplus(-Y * (X @ w) + 0.5 * torch.linalg.vector_norm(w)).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-14)
    short = pgd_output_backward(lambda: F.softplus(-Y * (layer(X) @ w)).mean(), layer, 0.5, alpha=0.2, steps=2)
    expected = F.softplus(-Y * (X @ w) + 0.4 * torch.linalg.vector_norm(w)).mean()
    assert short.item() == pytest.approx(expected.item(), rel=1e-14)


def test_pgd_climbs_higher_than_fgm_where_the_loss_bends():
    losses = {}
    for steps in (1, 2, 10):
        model = Bag()
        losses[steps] = pgd_output_backward(
            lambda model=model: F.cross_entropy(model(IDS), LABEL), model.embed, 3.0, alpha=3.0 / steps, steps=steps
        ).item()
    assert losses[1] < losses[2] < losses[10]


def test_two_halves_make_the_whole_batch():
    whole, halves = Bag(), Bag()
    fgm_output_backward(lambda: F.cross_entropy(whole(IDS), LABEL), whole.embed)
    for part in (slice(0, 2), slice(2, 4)):
        fgm_output_backward(lambda part=part: F.cross_entropy(halves(IDS[part]), LABEL[part]) / 2, halves.embed)
    assert_same(gradients(halves), gradients(whole))


def test_delta_by_hand():
    model, twin = Bag(), Bag()
    fgm_output_backward(lambda: F.cross_entropy(model(IDS), LABEL), model.embed, 0.7)
    x = twin.embed(IDS).detach().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(twin.hidden(torch.tanh(x).mean(1)), LABEL), x)
    delta = torch.stack([0.7 * gi / math.sqrt(sum(float(v) ** 2 for v in gi.flatten())) for gi in g])
    F.cross_entropy(twin.hidden(torch.tanh(twin.embed(IDS) + delta).mean(1)), LABEL).backward()
    assert_same(gradients(model), gradients(twin))


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_embeddings_are_fine_and_both_adds_the_clean_gradient(frozen):
    models = [Bag() for _ in range(3)]
    for model in models:
        model.embed.requires_grad_(not frozen)
    clean, adv, both = models
    F.cross_entropy(clean(IDS), LABEL).backward()
    fgm_output_backward(lambda: F.cross_entropy(adv(IDS), LABEL), adv.embed)
    fgm_output_backward(lambda: F.cross_entropy(both(IDS), LABEL), both.embed, mode="both")
    assert_same(gradients(both), {n: g + gradients(clean)[n] for n, g in gradients(adv).items()})
    assert ("embed.weight" in gradients(adv)) is not frozen


def test_noise_has_its_length_in_every_example_and_its_generator():
    layer, seen = nn.Identity(), []
    w = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def loss_fn():
        x = layer(X)
        seen.append(x.detach() - X)
        return (x @ w).sum()

    for seed in (0, 0, 1):
        noise_output_backward(loss_fn, layer, 0.25, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(seen[0].norm(dim=1), torch.full((5,), 0.25, dtype=torch.float64))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_examples_without_direction_stay_where_they_are():
    layer, seen = nn.Identity(), []
    w = nn.Parameter(torch.ones(3, dtype=torch.float64))
    weight = torch.tensor([1.0, 0.0, 1.0, math.inf, 1.0], dtype=torch.float64)

    def loss_fn():
        x = layer(X)
        seen.append(x.detach() - X)
        return ((x @ w) * (weight if len(seen) == 1 else 1.0)).sum()

    fgm_output_backward(loss_fn, layer, 0.25)
    torch.testing.assert_close(seen[-1].norm(dim=1), torch.tensor([0.25, 0, 0.25, 0, 0.25], dtype=torch.float64))
    assert w.grad.isfinite().all()


def test_a_layer_called_twice_gets_a_delta_for_each_call():
    layer, seen = nn.Identity(), []
    w = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def loss_fn():
        a, b = layer(X), layer(2 * X)
        seen.append((a.detach() - X, b.detach() - 2 * X))
        return (a @ w - 3 * (b @ w)).sum()

    fgm_output_backward(loss_fn, layer, 0.5)
    unit = torch.ones(5, 3, dtype=torch.float64) / math.sqrt(3)
    torch.testing.assert_close(seen[-1][0], 0.5 * unit)
    torch.testing.assert_close(seen[-1][1], -0.5 * unit)


def test_next_layer_may_work_in_place():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 1)).double()
    twin = nn.Sequential(model[0], nn.ReLU(), model[2])
    one = fgm_output_backward(lambda: model(X).square().sum(), model[0], 0.3)
    two = fgm_output_backward(lambda: twin(X).square().sum(), model[0], 0.3)
    assert one.item() == pytest.approx(two.item(), rel=1e-14)


def test_bfloat16_layers_are_fine():
    model = Bag().to(torch.bfloat16)
    loss = pgd_output_backward(lambda: F.cross_entropy(model(IDS).float(), LABEL), model.embed, 0.5)
    exact = Bag()
    expected = pgd_output_backward(lambda: F.cross_entropy(exact(IDS), LABEL), exact.embed, 0.5)
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)


def test_hooks_go_also_after_exceptions_and_weights_never_move():
    model = Bag()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for failing in (1, 2):
        calls = []

        def loss_fn(calls=calls, failing=failing):
            calls.append(1)
            loss = F.cross_entropy(model(IDS), LABEL)
            if len(calls) == failing:
                raise KeyError
            return loss

        with pytest.raises(KeyError):
            fgm_output_backward(loss_fn, model.embed)
        assert not model.embed._forward_hooks
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_messages():
    model = Bag()
    with pytest.raises(ValueError, match="epsilon must be > 0, got 0"):
        fgm_output_backward(lambda: model(IDS).sum(), model.embed, 0)
    with pytest.raises(ValueError, match="epsilon must be > 0, got -1"):
        noise_output_backward(lambda: model(IDS).sum(), model.embed, -1)
    with pytest.raises(ValueError, match=r"steps >= 1, got alpha=0\.3, steps=0"):
        pgd_output_backward(lambda: model(IDS).sum(), model.embed, steps=0)
    with pytest.raises(ValueError, match="mode must be 'adv'"):
        fgm_output_backward(lambda: model(IDS).sum(), model.embed, mode="x")
    with pytest.raises(ValueError, match=r"never called the Identity to change; give a layer .*compile the parts"):
        fgm_output_backward(lambda: model(IDS).sum(), nn.Identity())
    with pytest.raises(TypeError, match="must return one tensor, LSTM returned tuple; choose the layer inside"):
        lstm = nn.LSTM(3, 2)
        fgm_output_backward(lambda: lstm(torch.ones(1, 1, 3))[0].sum(), lstm)
    message = r"call 1 .* gives \(4, 3, 4\), the deltas are \[\(2,\)\]"
    with pytest.raises(ValueError, match=message), output_perturbed(model.embed, torch.ones(2)):
        model(IDS)


def test_noise_spends_its_length_on_what_may_move():
    torch.manual_seed(0)
    layer, x = torch.nn.Identity(), torch.zeros(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    seen = []
    w = torch.ones((), requires_grad=True)

    def loss_fn():
        out = layer(x)
        seen.append(out.detach())
        return (w * out).sum()

    noise_output_backward(loss_fn, layer, 0.5, delta_mask=mask, generator=torch.Generator().manual_seed(1))
    moved = seen[-1]
    assert not moved[~mask].any() and moved[mask].any(-1).all()
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.tensor([0.5, 0.5]))
