"""VAT: worst directions known in closed form, the Hessian's top eigenvector, masks, dropout, rows without labels."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.train import VAT, entropy_loss, kl_bernoulli, kl_categorical, vat_loss, vat_output_loss

X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[1, 2, 2], [4, 1, 0], [5, 5, 6], [3, 0, 0]])


class Tagger(nn.Module):
    """Logits for each token; a token sees its row's mean, so that padding would be felt."""

    def __init__(self, dropout=0.0, norm=False, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(7, 4, dtype=dtype)
        self.hidden = nn.Linear(4, 4, dtype=dtype)
        self.norm = nn.BatchNorm1d(4, dtype=dtype) if norm else nn.Identity()
        self.head = nn.Linear(4, 3, dtype=dtype)
        self.drop = nn.Dropout(dropout)

    def forward(self, ids):
        keep = (ids != 0)[..., None]
        x = self.drop(self.embed(ids))
        mean = (x * keep).sum(1, keepdim=True) / keep.sum(1, keepdim=True)
        h = torch.tanh(self.hidden(x + mean))
        return self.head(self.norm(h.transpose(1, 2)).transpose(1, 2) if isinstance(self.norm, nn.BatchNorm1d) else h)


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def kl(p, q):  # eq. (1) of one item with Python floats
    def probabilities(z):
        top = max(z)
        e = [math.exp(v - top) for v in z]
        return [v / sum(e) for v in e]

    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(probabilities(p), probabilities(q), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_logistic_regression_moves_along_w_from_any_start(seed):
    w = torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64)
    seen = []

    def logits_fn(delta):
        seen.append(delta.detach().clone())
        z = (X + delta) @ w
        return torch.stack([z, torch.zeros_like(z)], -1)

    loss = vat_loss(logits_fn, X, 0.4, generator=seeded(seed))
    along = seen[-1] @ w / torch.linalg.vector_norm(w)
    torch.testing.assert_close(along.abs(), torch.full((5,), 0.4, dtype=torch.float64))
    base = (X @ w).tolist()
    step = 0.4 * math.sqrt(0.09 + 4 + 1)
    expected = [kl([z, 0.0], [z + math.copysign(step, a), 0.0]) for z, a in zip(base, along.tolist(), strict=True)]
    assert loss.item() == pytest.approx(sum(expected) / 5, rel=1e-12)


def test_power_iteration_finds_the_top_eigenvector_of_every_examples_hessian():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    seen = []

    def logits_fn(delta):
        seen.append(delta.detach().clone())
        return net(X + delta)

    epsilon = 1e-3
    loss = vat_loss(logits_fn, X, epsilon, xi=1e-5, steps=60, generator=seeded())
    assert len(seen) == 62
    total = 0.0
    for x, u in zip(X, seen[-1] / epsilon, strict=True):
        target = net(x).detach()
        hessian = torch.autograd.functional.hessian(
            lambda d, x=x, target=target: (
                target.softmax(-1) * (target.log_softmax(-1) - net(x + d).log_softmax(-1))
            ).sum(),
            torch.zeros(3, dtype=torch.float64),
        )
        values, vectors = torch.linalg.eigh(hessian)
        assert abs(float(u @ vectors[:, -1])) == pytest.approx(1, abs=1e-4)
        total += 0.5 * epsilon**2 * float(values[-1])
    assert loss.item() == pytest.approx(total / 5, rel=1e-2)  # d'Hd / 2 up to the third order


def test_a_divergence_of_ones_own_finds_the_top_singular_vector():
    """Regression: half the squared distance, a linear map; the worst move of length 1 is sigma_1^2 / 2."""
    generator = torch.Generator().manual_seed(4)
    matrix = torch.randn(3, 6, dtype=torch.float64, generator=generator)
    loss = vat_loss(
        lambda d: (X + d) @ matrix, X, 0.5, steps=200, divergence=lambda p, q: (p - q).square().sum(-1) / 2,
        generator=generator,
    )  # fmt: skip
    assert loss.item() == pytest.approx(0.5 * (0.5 * float(torch.linalg.svdvals(matrix)[0])) ** 2, rel=1e-9)


def test_one_step_by_hand():
    """The slope at the trial move by central differences; the target without a gradient."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    xi, epsilon, h = 0.3, 0.7, 1e-6
    u = torch.randn(X.shape, generator=seeded(), dtype=torch.float64)
    with torch.no_grad():
        target = [net(x).tolist() for x in X]
        moves = []
        for x, p, v in zip(X, target, u, strict=True):
            d = xi * v / math.sqrt(sum(float(a) ** 2 for a in v))
            slope = []
            for k in range(3):
                e = torch.zeros(3, dtype=torch.float64)
                e[k] = h
                slope.append((kl(p, net(x + d + e).tolist()) - kl(p, net(x + d - e).tolist())) / (2 * h))
            length = math.sqrt(sum(s**2 for s in slope))
            moves.append([epsilon * s / length for s in slope])
    moved = X + torch.tensor(moves, dtype=torch.float64)
    loss = vat_loss(lambda d: net(X + d), X, epsilon, xi, generator=seeded())
    assert loss.item() == pytest.approx(
        sum(kl(p, net(x).tolist()) for p, x in zip(target, moved, strict=True)) / 5, rel=1e-6
    )
    fixed = torch.tensor(target, dtype=torch.float64).softmax(-1)
    expected = torch.autograd.grad(-(fixed * net(moved).log_softmax(-1)).sum(-1).mean(), net.parameters())
    for a, b in zip(torch.autograd.grad(loss, net.parameters()), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_module_and_closure_agree():
    model, embedded = Tagger(), Tagger()
    x = embedded.embed(IDS).detach()

    def logits_fn(delta):
        keep = (IDS != 0)[..., None]
        moved = embedded.embed(IDS) + delta
        return embedded.head(
            torch.tanh(embedded.hidden(moved + (moved * keep).sum(1, keepdim=True) / keep.sum(1, keepdim=True)))
        )

    mask = IDS != 0
    one = vat_output_loss(lambda: model(IDS), model.embed, 0.5, mask=mask, delta_mask=mask, generator=seeded())
    two = vat_loss(logits_fn, x, 0.5, mask=mask, delta_mask=mask, generator=seeded())
    assert one.item() == pytest.approx(two.item(), rel=1e-12)
    one.backward()
    two.backward()
    for a, b in zip(model.parameters(), embedded.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert not model.embed._forward_hooks


def test_masks_of_predictions_and_of_moves():
    model, seen = Tagger(), []
    bare = model.embed(IDS).detach()
    spy = model.drop
    spy.register_forward_hook(lambda m, i, o: seen.append(o.detach() - bare))
    mask = IDS != 0
    loss = vat_output_loss(lambda: model(IDS), model.embed, 0.5, mask=mask, delta_mask=mask, generator=seeded())
    for delta in seen[1:]:
        assert not delta[~mask].any()
        torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((4,), 0.5, dtype=torch.float64))
    base, moved = model(IDS).tolist(), None
    with torch.no_grad():
        handle = model.embed.register_forward_hook(lambda m, i, o: o + seen[2])
        moved = model(IDS).tolist()
        handle.remove()
    items = [kl(base[i][t], moved[i][t]) for i in range(4) for t in range(3) if mask[i, t]]
    assert loss.item() == pytest.approx(sum(items) / len(items), rel=1e-9)
    # what lies behind the mask of predictions has no say
    one = torch.zeros(4, 3, 3, dtype=torch.float64)
    one[~mask] = 1e3
    again = vat_output_loss(
        lambda: model(IDS) * (1 + one), model.embed, 0.5, mask=mask, delta_mask=mask, generator=seeded()
    )
    assert again.item() == pytest.approx(loss.item(), rel=1e-12)


def test_padding_stays_without_a_mask_because_no_prediction_sees_it():
    model, seen = Tagger(), []
    bare = model.embed(IDS).detach()
    model.drop.register_forward_hook(lambda m, i, o: seen.append(o.detach() - bare))
    vat_output_loss(lambda: model(IDS), model.embed, 0.5, mask=IDS != 0, generator=seeded())
    assert seen[1][IDS == 0].any()  # the start
    assert not seen[2][IDS == 0].any()


def test_the_posts_form_moves_the_matrix():
    """xi = 10, epsilon = 1 and one Frobenius norm, by functional_call: rows of the batch only, tied by token."""
    model, seen = Tagger(), []
    table = model.embed.weight

    def logits_fn(delta):
        seen.append(delta.detach()[0])
        return torch.func.functional_call(model, {"embed.weight": table + delta[0]}, (IDS,))

    loss = vat_loss(logits_fn, table[None], 1.0, xi=10.0, mask=IDS != 0, generator=seeded())
    assert seen[1].norm().item() == pytest.approx(10, rel=1e-12)
    assert seen[2].norm().item() == pytest.approx(1, rel=1e-12)
    assert seen[2].any(1).nonzero()[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    loss.backward()
    assert table.grad is not None and table.grad.any()


@pytest.mark.parametrize("same", [True, False])
def test_one_dropout_mask_for_all_passes(same):
    model = Tagger(dropout=0.5)
    torch.manual_seed(5)
    loss = vat_output_loss(lambda: model(IDS), model.embed, 1e-4, same_dropout=same, generator=seeded())
    assert (loss.item() < 1e-6) is same  # with masks of their own, what is measured is the masks
    after = torch.get_rng_state()
    torch.manual_seed(5)
    model(IDS)
    assert torch.equal(torch.get_rng_state(), after) is same


def test_small_moves_cost_their_square():
    """D is 0 and flat at d = 0: the loss falls with epsilon squared."""
    model = Tagger()
    losses = [
        vat_output_loss(lambda: model(IDS), model.embed, e, xi=1e-3, generator=seeded()).item() for e in (1e-2, 1e-3)
    ]
    assert math.log10(losses[0] / losses[1]) == pytest.approx(2, abs=0.05)


def test_generator_repeats_and_without_one_the_global_stream_seeds():
    model = Tagger()

    def once(generator=None):
        return vat_output_loss(lambda: model(IDS), model.embed, 2.0, generator=generator).item()

    state = torch.get_rng_state()
    assert once(seeded()) == once(seeded()) != once(seeded(4))
    assert torch.equal(torch.get_rng_state(), state)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(once())
    assert losses[0] == losses[1] != losses[2]


def test_the_worst_move_is_worse_than_a_random_one():
    model, ratio = Tagger(), []
    for seed in range(10):
        worst = vat_output_loss(lambda: model(IDS), model.embed, 0.3, steps=3, generator=seeded(seed))
        z = torch.randn(model.embed(IDS).shape, generator=seeded(seed), dtype=torch.float64)
        z = 0.3 * z / z.flatten(1).norm(dim=1)[:, None, None]
        base = model(IDS)
        handle = model.embed.register_forward_hook(lambda m, i, o, z=z: o + z)
        ratio.append(worst.item() / kl_categorical(base, model(IDS)).mean().item())
        handle.remove()
    assert min(ratio) > 1.2


def test_gradient_for_yes_or_no_labels():
    model, w = nn.Identity(), torch.tensor([[0.3], [-2.0], [1.0]], dtype=torch.float64)
    one = vat_output_loss(lambda: model(X) @ w, model, 0.4, divergence=kl_bernoulli, generator=seeded())
    two = vat_output_loss(
        lambda: torch.cat([model(X) @ w, torch.zeros(5, 1, dtype=torch.float64)], 1), model, 0.4, generator=seeded()
    )
    assert one.item() == pytest.approx(two.item(), rel=1e-12)  # one label is two classes, one of them at 0


def test_a_layer_called_twice_and_a_call_that_plays_no_part():
    layer, w = nn.Identity(), torch.tensor([[1.0], [2.0], [2.0]], dtype=torch.float64)
    zero = torch.zeros(5, 1, dtype=torch.float64)

    def loss(unused):
        def logits_fn():
            a, b = layer(X), layer(X)
            return torch.cat([(a if unused else a - b) @ w, zero], 1)

        return vat_output_loss(logits_fn, layer, 0.1, generator=seeded()).item()

    both = [kl([0.0, 0.0], [s * 0.1 * 3 * 2, 0.0]) for s in (1, -1)]
    assert loss(False) == pytest.approx(both[0], rel=1e-9)
    assert loss(True) == pytest.approx(
        vat_loss(lambda d: torch.cat([(X + d) @ w, zero], 1), X, 0.1, generator=seeded()).item(), rel=1e-9
    )


def test_batch_norm_counts_once_and_the_object_does_what_the_function_does():
    model = Tagger(norm=True)
    counting = []
    model.norm.register_forward_pre_hook(lambda m, i: counting.append(m.track_running_stats))
    VAT(model, steps=3).loss(lambda: model(IDS)).backward()
    assert counting == [False] * 4 + [True]  # the pass that is trained on
    assert int(model.norm.num_batches_tracked) == 1
    assert model.norm.track_running_stats
    one = Tagger()
    made = VAT(one, "embed", 0.6, 0.2, 2, generator=seeded())
    mask = IDS != 0
    got = made.loss(lambda: one(IDS), mask, mask)
    expected = vat_output_loss(lambda: one(IDS), one.embed, 0.6, 0.2, 2, mask, mask, generator=seeded())
    assert got.item() == expected.item()


def test_frozen_embeddings_half_precision_and_autocast():
    model = Tagger()
    model.embed.requires_grad_(False)
    vat_output_loss(lambda: model(IDS), model.embed).backward()
    assert model.embed.weight.grad is None
    assert model.hidden.weight.grad.any()
    exact, half, small = Tagger(dtype=torch.float32), Tagger(dtype=torch.float32), Tagger().to(torch.bfloat16)
    expected = vat_output_loss(lambda: exact(IDS), exact.embed, 2.0, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = vat_output_loss(lambda: half(IDS), half.embed, 2.0, generator=seeded())
    got.backward()
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(expected.item(), rel=0.05)
    assert half.hidden.weight.grad.any()  # the weights cast in the first pass still learn in the last
    assert vat_output_loss(lambda: small(IDS), small.embed, 2.0, generator=seeded()).dtype == torch.float32


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_compiled_models_move_too(backend):
    model = Tagger()
    expected = vat_output_loss(lambda: model(IDS), model.embed, generator=seeded())
    expected.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    model.zero_grad()
    got = vat_output_loss(lambda: compiled(IDS), model.embed, generator=seeded())
    got.backward()
    torch.testing.assert_close(got, expected)
    for p, g in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_entropy_of_predictions():
    logits = torch.tensor([[0.0, 0.0, -math.inf], [0.0, math.log(3), -math.inf]], dtype=torch.float64)
    by_hand = [math.log(2), 0.25 * math.log(4) + 0.75 * math.log(4 / 3)]
    logits.requires_grad_()
    torch.testing.assert_close(entropy_loss(logits, reduction="none").tolist(), by_hand)
    assert entropy_loss(logits, torch.tensor([False, True])).item() == pytest.approx(by_hand[1])
    entropy_loss(logits).backward()
    assert logits.grad.isfinite().all()
    z = torch.randn(4, 3, dtype=torch.float64, generator=seeded(), requires_grad=True)
    torch.testing.assert_close(entropy_loss(z, reduction="none"), torch.distributions.Categorical(logits=z).entropy())
    assert torch.autograd.gradcheck(entropy_loss, z)
    assert entropy_loss(z.to(torch.bfloat16)).dtype == torch.float32


def test_unlabelled_rows_pull_the_border_out_of_the_data():
    """The property: two strips, one label each, placed so that the labels alone cut the strips across."""
    generator = seeded(0)
    along = torch.rand(200, generator=generator) * 4 - 2
    side = (torch.arange(200) % 2).float() * 2 - 1
    x = torch.stack([along, side + 0.1 * torch.randn(200, generator=generator)], 1)
    labelled, label = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), torch.tensor([0, 1])
    accuracy = {}
    for use in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(200):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(labelled), label)
            if use:
                loss = loss + vat_loss(lambda d, net=net: net(x + d), x, 0.5, generator=generator)
            loss.backward()
            optimizer.step()
        accuracy[use] = ((net(x)[:, 1] > net(x)[:, 0]) == (side > 0)).float().mean().item()
    assert accuracy[False] < 0.9
    assert accuracy[True] > 0.98


@pytest.mark.slow
def test_in_accelerate_and_a_hugging_face_trainer_one_line_changes(tmp_path):
    accelerate, transformers = pytest.importorskip("accelerate"), pytest.importorskip("transformers")
    label = torch.tensor([0, 1, 2, 0])
    model, expected = Tagger(), Tagger()
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(model)
    accelerator.backward(vat_output_loss(lambda: model(IDS), model.embed, generator=seeded()))
    vat_output_loss(lambda: expected(IDS), expected.embed, generator=seeded()).backward()
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)

    class Trainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = F.cross_entropy(model(inputs["ids"])[:, 0], inputs["labels"])
            return loss + vat_output_loss(lambda: model(inputs["ids"])[:, 0], model.embed, generator=seeded())

    trained = Tagger()
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, max_steps=3, report_to=[], use_cpu=True, save_strategy="no",
        learning_rate=0.05, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    rows = [{"ids": i, "labels": y} for i, y in zip(IDS, label, strict=True)]
    result = Trainer(trained, arguments, train_dataset=rows).train()
    assert math.isfinite(result.training_loss)
    assert F.cross_entropy(trained(IDS)[:, 0], label) < F.cross_entropy(Tagger()(IDS)[:, 0], label)


def test_messages():
    model = Tagger()
    with pytest.raises(ValueError, match=r"epsilon must be > 0, got 0; .* instead of vat_output_loss"):
        vat_output_loss(lambda: model(IDS), model.embed, 0)
    with pytest.raises(ValueError, match=r"vat_loss needs xi > 0 .* got xi=0, steps=1"):
        vat_loss(lambda d: X + d, X, xi=0)
    with pytest.raises(ValueError, match=r"VAT needs xi > 0 .* steps >= 1, got xi=None, steps=0"):
        VAT(model, steps=0)
    with pytest.raises(ValueError, match=r"mask must be bool with the shape of the loss \(4, 3\)"):
        vat_output_loss(lambda: model(IDS), model.embed, mask=(IDS != 0).T)
    with pytest.raises(ValueError, match=r"delta_mask must be bool .*\(4, 3, 4\)"):
        vat_output_loss(lambda: model(IDS), model.embed, delta_mask=IDS)
    with pytest.raises(ValueError, match="never called the Identity"):
        vat_output_loss(lambda: model(IDS), nn.Identity())
    with pytest.raises(ValueError, match="logits do not depend on delta"):
        vat_loss(lambda d: X, X)
    with pytest.raises(ValueError, match="logits do not depend on delta"), torch.no_grad():
        vat_loss(lambda d: X + d, X)
