"""FreeLB: eqs. (1) to (4) by hand, the linear closed form, its start, one dropout mask, loops we did not write."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

from danlu.train import (
    FreeLB,
    RDrop,
    freelb_backward,
    penalized_loss,
    vat_output_loss,
)

X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
IDS = torch.tensor([[1, 2, 2], [4, 1, 0], [5, 5, 6], [3, 0, 0]])
LABEL = torch.tensor([0, 1, 1, 0])


class Bag(nn.Module):
    def __init__(self, dropout=0.0, norm=False):
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(7, 4, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(4, dtype=torch.float64) if norm else nn.Identity()
        self.hidden = nn.Linear(4, 2, dtype=torch.float64)
        self.drop = nn.Dropout(dropout)
        self.masks = []

    def forward(self, ids):
        keep = (ids != 0)[..., None]
        h = self.drop(torch.tanh(self.embed(ids)))
        self.masks.append((h != 0).detach())
        return self.hidden(self.norm((h * keep).sum(1) / keep.sum(1)))


def loss_of(model, rows=slice(None)):
    return lambda: F.cross_entropy(model(IDS[rows]), LABEL[rows])


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(got, expected, **tolerance):
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], **tolerance)


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def by_hand(model, delta, epsilon, alpha, steps):
    """Eqs. (2) to (4) from a given delta_0 with plain backward passes, norms by Python floats."""
    losses = []
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        handle = model.embed.register_forward_hook(lambda m, i, o, delta=delta: o + delta)
        loss = loss_of(model)()
        handle.remove()
        (loss / steps).backward()
        losses.append(loss.item())
        rows = []
        for d, g in zip(delta.detach(), delta.grad * steps, strict=True):
            d = d + alpha * g / math.sqrt(sum(float(v) ** 2 for v in g.flatten()))
            length = math.sqrt(sum(float(v) ** 2 for v in d.flatten()))
            rows.append(d * min(1.0, epsilon / length))
        delta = torch.stack(rows)
    return sum(losses) / steps


@pytest.mark.parametrize(("epsilon", "alpha", "steps"), [(1.0, 0.3, 3), (0.25, 0.2, 4), (0.5, 0.1, 1)])
def test_equals_the_definition(epsilon, alpha, steps):
    model, twin, seen = Bag(), Bag(), []
    bare = model.embed(IDS).detach()

    class Spy(nn.Module):  # stands behind the moved layer and sees what it gives
        def forward(self, x):
            seen.append(x.detach() - bare)
            return x

    spy = Spy()

    def loss_fn():
        keep = (IDS != 0)[..., None]
        h = torch.tanh(spy(model.embed(IDS)))
        return F.cross_entropy(model.hidden((h * keep).sum(1) / keep.sum(1)), LABEL)

    got = freelb_backward(loss_fn, model.embed, epsilon, alpha, steps, generator=seeded())
    assert len(seen) == steps
    assert got.item() == pytest.approx(by_hand(twin, seen[0], epsilon, alpha, steps), rel=1e-12)
    assert_same(gradients(model), gradients(twin))
    assert all(float(d.flatten(1).norm(dim=1).max()) <= epsilon * (1 + 1e-12) for d in seen)


def test_linear_model_has_the_closed_form():
    """softplus(-y w.x): from 0 the deltas are t alpha along -y w, cut at epsilon; the loss is the mean along them."""
    w, layer = nn.Parameter(torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64)), nn.Identity()
    got = freelb_backward(lambda: F.softplus(-Y * (layer(X) @ w)).mean(), layer, 0.5, alpha=0.2, steps=5, start=0.0)
    length = torch.linalg.vector_norm(w).detach()
    path = [F.softplus(-Y * (X @ w) + min(0.2 * t, 0.5) * length).mean() for t in range(5)]
    assert got.item() == pytest.approx(torch.stack(path).mean().item(), rel=1e-14)
    # the gradient holds delta still: w moves under x + delta
    expected = torch.zeros_like(w)
    for t in range(5):
        moved = (X - Y[:, None] * min(0.2 * t, 0.5) * w / length).detach()
        expected = expected + torch.autograd.grad(F.softplus(-Y * (moved @ w)).mean(), w)[0] / 5
    torch.testing.assert_close(w.grad, expected)


def test_one_pass_from_zero_is_plain_training():
    plain, free = Bag(), Bag()
    loss = loss_of(plain)()
    loss.backward()
    assert freelb_backward(loss_of(free), free.embed, steps=1, start=0.0).item() == loss.item()
    assert_same(gradients(free), gradients(plain), rtol=0, atol=0)


def test_start_is_uniform_within_its_cube_and_spares_what_may_not_move():
    layer, seen = nn.Identity(), []
    x, w = torch.zeros(200, 6, 5, dtype=torch.float64), nn.Parameter(torch.ones(5, dtype=torch.float64))
    mask = torch.arange(6) < torch.arange(200)[:, None] % 6 + 1  # 1 to 6 tokens

    def loss_fn():
        seen.append(layer(x))
        return (seen[-1] @ w).sum()

    freelb_backward(loss_fn, layer, 9.0, steps=1, start=0.3, delta_mask=mask, generator=seeded())
    delta = seen[0].detach()
    assert not delta[~mask].any()
    count = 5 * mask.sum(1)
    u = (delta * count.sqrt()[:, None, None] / 0.3)[mask]  # back to (-1, 1)
    assert 0.99 < u.max() < 1
    assert -1 < u.min() < -0.99
    assert abs(u.mean()) < 4 * math.sqrt(1 / 3 / u.numel())
    assert abs(u.square().mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / u.numel())


def test_masked_positions_never_move_though_the_loss_sees_them():
    layer, seen = nn.Identity(), []
    x = torch.randn(2, 3, 4, generator=seeded())
    w = nn.Parameter(torch.ones(4))
    mask = torch.tensor([[True, False, True], [True, True, False]])

    def loss_fn():
        seen.append(layer(x))
        return (seen[-1] @ w).square().sum()

    freelb_backward(loss_fn, layer, 1.0, 0.4, 3, delta_mask=mask, generator=seeded())
    last = seen[-1].detach() - x
    assert not last[~mask].any()
    assert last[mask].any()


def test_two_halves_make_the_whole_batch():
    whole, halves = Bag(), Bag()
    freelb_backward(loss_of(whole), whole.embed, start=0.0)
    for rows in (slice(0, 2), slice(2, 4)):
        freelb_backward(lambda rows=rows: loss_of(halves, rows)() / 2, halves.embed, start=0.0)
    assert_same(gradients(halves), gradients(whole))


@pytest.mark.parametrize("same", [True, False])
def test_all_passes_have_one_dropout_mask(same):
    model, once = Bag(dropout=0.5), Bag(dropout=0.5)
    torch.manual_seed(7)
    freelb_backward(loss_of(model), model.embed, steps=3, same_dropout=same, generator=seeded())
    after = torch.get_rng_state()
    assert torch.equal(model.masks[0], model.masks[1]) is same
    assert torch.equal(model.masks[0], model.masks[2]) is same
    torch.manual_seed(7)
    loss_of(once)()
    assert torch.equal(once.masks[0], model.masks[0])  # the noise has a source of its own
    assert torch.equal(torch.get_rng_state(), after) is same  # one pass's worth of random numbers


def test_without_a_generator_the_seed_comes_from_the_global_stream():
    losses = []
    for seed in (5, 5, 6):
        model = Bag()
        torch.manual_seed(seed)
        losses.append(freelb_backward(loss_of(model), model.embed, start=3.0, epsilon=3.0).item())
    assert losses[0] == losses[1] != losses[2]


def test_batch_norm_counts_the_batch_once_and_the_object_does_what_the_function_does():
    model = Bag(norm=True)
    counting = []
    model.norm.register_forward_pre_hook(lambda m, i: counting.append(m.track_running_stats))
    FreeLB(model, steps=4).backward(loss_of(model))
    assert counting == [False] * 3 + [True]
    assert int(model.norm.num_batches_tracked) == 1
    assert model.norm.track_running_stats
    one, two = Bag(), Bag()
    mask = IDS != 0
    made = FreeLB(one, "embed", 0.7, 0.2, 2, start=0.1, generator=seeded())
    loss = freelb_backward(loss_of(two), two.embed, 0.7, 0.2, 2, 0.1, mask, generator=seeded())
    assert made.backward(loss_of(one), mask).item() == loss.item()
    assert_same(gradients(one), gradients(two), rtol=0, atol=0)


def test_frozen_embeddings_are_fine():
    model = Bag()
    model.embed.requires_grad_(False)
    freelb_backward(loss_of(model), model.embed)
    assert gradients(model).keys() == {"hidden.weight", "hidden.bias"}


@pytest.mark.parametrize("failing", [1, 2])
def test_an_example_without_a_finite_slope_starts_over(failing):
    layer, seen, w = nn.Identity(), [], nn.Parameter(torch.ones(3, dtype=torch.float64))
    weight = torch.tensor([1.0, 0.0, 1.0, math.inf, 1.0], dtype=torch.float64)

    def loss_fn():
        x = layer(X)
        seen.append(x.detach() - X)
        return ((x @ w) * (weight if len(seen) == failing else 1.0)).sum()

    freelb_backward(loss_fn, layer, 1.0, 0.25, steps=failing + 1, start=0.0)
    before = 0.25 * (failing - 1)  # an example without slope stays, one whose slope overflows goes back
    lengths = torch.tensor([0.25, 0, 0.25, 0, 0.25]) + torch.tensor([before, before, before, 0, before])
    torch.testing.assert_close(seen[-1].norm(dim=1), lengths.double())


def test_the_loss_climbs_along_the_path_and_its_mean_comes_back():
    """The property: the later passes meet a higher loss than the first, and the returned loss is their mean."""
    model, losses = Bag(), []

    def loss_fn():
        loss = loss_of(model)()
        losses.append(loss.item())
        return loss

    mean = freelb_backward(loss_fn, model.embed, 2.0, 0.5, 4, generator=seeded())
    assert losses == sorted(losses)
    assert mean.item() == pytest.approx(sum(losses) / 4, rel=1e-12)


def test_messages():
    model = Bag()
    with pytest.raises(ValueError, match=r"epsilon must be > 0, got 0; .* instead of freelb_backward"):
        freelb_backward(loss_of(model), model.embed, 0)
    with pytest.raises(ValueError, match=r"alpha=0\.1, steps=0, start=0\.5"):
        freelb_backward(loss_of(model), model.embed, steps=0)
    with pytest.raises(ValueError, match=r"start >= 0, got alpha=0\.1, steps=3, start=-1"):
        freelb_backward(loss_of(model), model.embed, start=-1)
    with pytest.raises(
        ValueError, match=r"delta_mask must be bool .*\(4, 3, 4\).*torch.int64 \(4, 3\); write mask.bool"
    ):
        freelb_backward(loss_of(model), model.embed, delta_mask=IDS)
    with pytest.raises(ValueError, match=r"delta_mask must be bool .*\(3, 4\)"):
        freelb_backward(loss_of(model), model.embed, delta_mask=(IDS != 0).T)
    with pytest.raises(ValueError, match="never called the Identity"):
        freelb_backward(loss_of(model), nn.Identity())
    with pytest.raises(ValueError, match="scalar tensor with a graph, got shape"):
        freelb_backward(lambda: model(IDS), model.embed)
    sizes = iter((4, 3))
    with pytest.raises(ValueError, match=r"gives \(3, 3, 4\) in pass 2, in the first it was \[\(4, 3, 4\)\]"):
        freelb_backward(lambda: model(IDS[: next(sizes)]).sum(), model.embed)
    assert not model.embed._forward_hooks


def test_layers_are_found_by_name_or_by_the_models_own_word():
    model = Bag()
    assert FreeLB(model).layer is model.embed
    assert FreeLB(model, "hidden").layer is model.hidden
    assert FreeLB(model, model.drop).layer is model.drop
    with pytest.raises(ValueError, match=r"layer='emb' names no module; the names are embed, norm, hidden, drop"):
        FreeLB(model, "emb")
    model.positions = nn.Embedding(3, 4)
    with pytest.raises(
        ValueError, match=r"not exactly one embedding layer \(found: embed, positions\); name the layer"
    ):
        FreeLB(model)
    model.get_input_embeddings = lambda: model.embed
    assert FreeLB(model).layer is model.embed


def test_a_plain_users_loop_learns_with_accumulation():
    model = Bag()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        for rows in (slice(0, 2), slice(2, 4)):
            losses.append(
                freelb_backward(lambda rows=rows: loss_of(model, rows)() / 2, model.embed, generator=seeded())
            )
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.slow
def test_in_accelerate_one_line_changes():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = Bag()
    expected = Bag()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    freelb_backward(loss_of(model), model.embed, generator=seeded())  # in place of accelerator.backward(loss)
    freelb_backward(loss_of(expected), expected.embed, generator=seeded())
    assert_same(gradients(model), gradients(expected))
    optimizer.step()


@pytest.mark.slow
def test_in_a_hugging_face_trainer_one_method_changes(tmp_path):
    transformers = pytest.importorskip("transformers")

    class Model(Bag):
        def forward(self, ids, labels):
            logits = super().forward(ids)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Trainer(transformers.Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            inputs = self._prepare_inputs(inputs)
            return freelb_backward(lambda: self.compute_loss(model, inputs), model.embed, start=0.0)

    rows = [{"ids": i, "labels": y} for i, y in zip(IDS, LABEL, strict=True)]
    settings = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "report_to": [],
        "use_cpu": True,
        "lr_scheduler_type": "constant",
    }
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    model = Model()
    Trainer(model, arguments, train_dataset=rows).train()
    twin = Bag()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        freelb_backward(loss_of(twin), twin.embed, start=0.0)
        optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), Model().parameters(), strict=True))


FAMILY = {  # name -> stand-in for backward of (loss_fn, logits_fn, ids, label, embedding layer)
    "freelb": lambda model, net, ids, y: freelb_backward(
        lambda: F.cross_entropy(model(ids), y), net.embed, generator=seeded()
    ),
    "gradient penalty": lambda model, net, ids, y: penalized_loss(
        lambda: F.cross_entropy(model(ids), y, reduction="none"), net.embed, form="sample"
    ).backward(),
    "vat": lambda model, net, ids, y: (
        F.cross_entropy(model(ids), y) + vat_output_loss(lambda: model(ids), net.embed, generator=seeded())
    ).backward(),
    "r-drop": lambda model, net, ids, y: RDrop().loss(model, ids, y).backward(),
}


def process(rank: int) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for name, backward in FAMILY.items():
        net = Bag()
        model = DistributedDataParallel(net)
        for _ in range(2):  # the second step would meet what the first left behind
            net.zero_grad()
            backward(model, net, IDS[2 * rank : 2 * rank + 2], LABEL[2 * rank : 2 * rank + 2])
        found[name] = gradients(net)
    return found


@pytest.mark.slow
def test_two_processes_train_on_the_mean_of_both(tmp_path: Path) -> None:
    """FreeLB, gradient penalty, VAT and R-Drop under DistributedDataParallel, no word of the user's about it."""
    found = in_two_processes(process, tmp_path)
    for name, backward in FAMILY.items():
        parts = []
        for rank in range(2):
            net = Bag()
            backward(net, net, IDS[2 * rank : 2 * rank + 2], LABEL[2 * rank : 2 * rank + 2])
            parts.append(gradients(net))
        expected = {n: (parts[0][n] + parts[1][n]) / 2 for n in parts[0]}
        for rank in range(2):
            assert_same(found[rank][name], expected, rtol=1e-10, atol=1e-12)
