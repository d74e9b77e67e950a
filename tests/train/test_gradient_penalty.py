"""Gradient penalty: closed forms, finite differences, the post's equivalence with its 1/2, and what it refuses."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from danlu.train import GradientPenalty, fgm_backward, fgm_output_backward, gradient_penalty, penalized_loss

X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
IDS = torch.tensor([[1, 2, 2], [4, 1, 1], [5, 5, 6], [3, 1, 2]])
LABEL = torch.tensor([0, 1, 1, 0])


class Bag(nn.Module):
    def __init__(self, sparse=False):
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(7, 4, dtype=torch.float64, sparse=sparse)
        self.hidden = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, ids):
        return self.hidden(torch.tanh(self.embed(ids)).mean(1))


class Attention(nn.Module):
    """One head over three tokens, fused or spelled out."""

    def __init__(self, fused):
        super().__init__()
        torch.manual_seed(2)
        self.embed = nn.Embedding(7, 4, dtype=torch.float64)
        self.qkv, self.out = nn.Linear(4, 12, dtype=torch.float64), nn.Linear(4, 2, dtype=torch.float64)
        self.fused = fused

    def forward(self, ids):
        q, k, v = self.qkv(self.embed(ids)).unsqueeze(1).chunk(3, dim=-1)  # (B, 1, T, 4)
        if self.fused:
            h = F.scaled_dot_product_attention(q, k, v)
        else:
            h = (q @ k.mT / 2).softmax(-1) @ v
        return self.out(h.mean((1, 2)))


def loss_of(model, rows=slice(None), reduction="mean"):
    return lambda: F.cross_entropy(model(IDS[rows]), LABEL[rows], reduction=reduction)


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(got, expected, **tolerance):
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], **tolerance)


def logistic(w, layer, reduction):
    each = F.softplus(-Y * (layer(X) @ w))
    return each.mean() if reduction == "mean" else each


@pytest.mark.parametrize("kind", ["square", "norm"])
def test_logistic_regression_has_the_closed_form(kind):
    """dL_i/dx_i = -y s(-y w.x) w: both forms, value and gradient by w."""
    layer, w = nn.Identity(), nn.Parameter(torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64))
    slope = torch.sigmoid(-Y * (X @ w)) * torch.linalg.vector_norm(w)  # ||dL_i/dx_i||
    whole = slope / 5  # of the mean loss
    by_batch = 0.5 * whole.square().sum() if kind == "square" else whole.square().sum().sqrt()
    by_sample = 0.5 * slope.square().mean() if kind == "square" else slope.mean()
    for form, reduction, expected in (("batch", "mean", by_batch), ("sample", "none", by_sample)):
        got = penalized_loss(lambda reduction=reduction: logistic(w, layer, reduction), layer, 0.7, kind, form)
        wanted = logistic(w, layer, "mean") + 0.7 * expected
        assert got.item() == pytest.approx(wanted.item(), rel=1e-14)
        a, b = torch.autograd.grad(got, w)[0], torch.autograd.grad(wanted, w, retain_graph=True)[0]
        torch.testing.assert_close(a, b)


def test_value_against_finite_differences():
    """dL/dx by central differences on a tanh network: nothing shared with autograd."""
    model = Bag()
    x, h = model.embed(IDS).detach(), 1e-6
    total = 0.0
    with torch.no_grad():

        def loss(moved):
            return float(F.cross_entropy(model.hidden(torch.tanh(moved).mean(1)), LABEL))

        for place in range(x.numel()):
            move = torch.zeros(x.numel(), dtype=torch.float64)
            move[place] = h
            move = move.view_as(x)
            total += ((loss(x + move) - loss(x - move)) / (2 * h)) ** 2
    got = penalized_loss(loss_of(model), model.embed, 2.0) - loss_of(model)()
    assert got.item() == pytest.approx(2.0 * 0.5 * total, rel=1e-7)


@pytest.mark.parametrize("kind", ["square", "norm"])
@pytest.mark.parametrize("form", ["batch", "sample"])
def test_gradcheck_through_both_backward_passes(kind, form):
    model = Bag()
    reduction = "mean" if form == "batch" else "none"

    def total(*parameters):
        named = dict(zip(("embed.weight", "hidden.weight", "hidden.bias"), parameters, strict=True))

        def loss_fn():
            return F.cross_entropy(torch.func.functional_call(model, named, (IDS,)), LABEL, reduction=reduction)

        return penalized_loss(loss_fn, model.embed, 1.3, kind, form)

    start = [p.detach().clone().requires_grad_() for p in model.parameters()]
    assert torch.autograd.gradcheck(total, start)


def two_numbers():
    theta = nn.Parameter(torch.tensor([0.7, -0.4], dtype=torch.float64))
    x = torch.tensor([[0.5, 1.5]], dtype=torch.float64)
    return theta, x, lambda at: torch.tanh(at @ theta).sum().square() + (at @ theta).sum().sin()


@pytest.mark.parametrize("kind", ["square", "norm"])
def test_it_is_the_gradient_of_the_attack_to_first_order(kind):
    """The post's equivalence: errors fall with epsilon squared, and without the 1/2 only with epsilon."""
    theta, x, loss = two_numbers()
    layer = nn.Identity()
    errors, without_half = [], []
    for epsilon in (1e-1, 1e-2, 1e-3):
        at = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(at), at)
        delta = epsilon * (g if kind == "square" else g / g.norm())
        (attacked,) = torch.autograd.grad(loss(x + delta), theta)
        (got,) = torch.autograd.grad(penalized_loss(lambda: loss(layer(x)), layer, epsilon, kind), theta)
        (double,) = torch.autograd.grad(penalized_loss(lambda: loss(layer(x)), layer, 2 * epsilon, kind), theta)
        errors.append(float((got - attacked).norm()))
        without_half.append(float((double - attacked).norm()))
    slopes = [math.log10(a / b) for a, b in pairwise(errors)]
    assert slopes[1] == pytest.approx(2, abs=0.05)
    assert slopes[0] == pytest.approx(2, abs=0.3)
    assert math.log10(without_half[1] / without_half[2]) == pytest.approx(1, abs=0.05)


def test_by_sample_it_is_fgm_on_outputs_and_by_weight_fgm_on_the_matrix():
    epsilon = 1e-4
    for attack in ("output", "weight"):
        attacked, plain, penalized = Bag(), Bag(), Bag()
        loss_of(plain)().backward()
        if attack == "output":
            fgm_output_backward(loss_of(attacked), attacked.embed, epsilon)
            loss = penalized_loss(loss_of(penalized, reduction="none"), penalized.embed, epsilon, "norm", "sample")
        else:
            fgm_backward(loss_of(attacked), attacked.embed.weight, epsilon)
            clean = loss_of(penalized)()
            loss = clean + epsilon * gradient_penalty(clean, penalized.embed.weight, "norm")
        loss.backward()
        base = gradients(plain)
        for name, g in gradients(attacked).items():
            first_order = gradients(penalized)[name] - base[name]
            assert (g - base[name] - first_order).norm() < 0.01 * first_order.norm()


def test_occurrences_are_squared_before_they_are_added_up():
    """The author's form against the matrix form: they part where a token comes twice, and only there."""
    layer, w = nn.Embedding(4, 1, dtype=torch.float64), nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    for ids, by_occurrence, by_row in (([1, 1, 3], 3 * 4.0, 16.0 + 4.0), ([1, 2, 3], 12.0, 12.0)):
        ids = torch.tensor(ids)
        loss = (layer(ids) @ w).sum()
        assert (penalized_loss(lambda ids=ids: (layer(ids) @ w).sum(), layer) - loss).item() == by_occurrence / 2
        assert gradient_penalty((layer(ids) @ w).sum(), layer.weight).item() == by_row / 2


def test_samples_do_not_depend_on_the_batch_and_the_batch_form_shrinks_with_it():
    whole, halves = Bag(), Bag()
    penalized_loss(loss_of(whole, reduction="none"), whole.embed, form="sample").backward()
    for rows in (slice(0, 2), slice(2, 4)):
        (penalized_loss(loss_of(halves, rows, "none"), halves.embed, form="sample") / 2).backward()
    assert_same(gradients(halves), gradients(whole))
    model = Bag()
    clean = loss_of(model)()
    batch = penalized_loss(loss_of(model), model.embed) - clean
    sample = penalized_loss(loss_of(model, reduction="none"), model.embed, form="sample") - clean
    torch.testing.assert_close(batch * len(IDS), sample)


def test_fused_attention_takes_its_plain_path():
    fused, plain = Attention(True), Attention(False)
    one, two = (penalized_loss(loss_of(m), m.embed) for m in (fused, plain))
    assert one.item() == pytest.approx(two.item(), rel=1e-12)
    one.backward()
    two.backward()
    assert_same(gradients(fused), gradients(plain))
    assert torch.backends.cuda.flash_sdp_enabled()  # the switch is back


def test_what_has_no_second_derivative_is_refused_by_name():
    model = Attention(True)
    x = model.embed(IDS)
    model.embed = nn.Identity()
    loss = F.cross_entropy(model(x), LABEL)  # the fused kernel, outside of penalized_loss
    with pytest.raises(RuntimeError, match=r"no second derivative .*Attention.*sdpa_kernel\(SDPBackend.MATH\)"):
        gradient_penalty(loss, x)
    with sdpa_kernel(SDPBackend.MATH):
        assert gradient_penalty(F.cross_entropy(model(x), LABEL), x) > 0

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

    bag = Bag()
    with pytest.raises(RuntimeError, match=r"no second derivative \(most likely a custom function\)"):
        penalized_loss(lambda: Once.apply(bag(IDS)).square().sum(), bag.embed)
    with pytest.raises(ValueError, match="is a constant: no parameter moves it"):
        penalized_loss(lambda: Once.apply(bag.embed(IDS)).sum(), bag.embed)


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_compiled_models_agree_or_are_refused(backend):
    model = Bag()
    expected = penalized_loss(loss_of(model), model.embed).item()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)

    def loss_fn():
        return F.cross_entropy(compiled(IDS), LABEL)

    if backend == "eager":
        assert penalized_loss(loss_fn, model.embed).item() == pytest.approx(expected, rel=1e-12)
    else:
        with pytest.raises(RuntimeError, match=r"CompiledFunctionBackward.*not compiled \(backend='eager' is fine\)"):
            penalized_loss(loss_fn, model.embed)
    assert not model.embed._forward_hooks


def test_generation_has_its_penalty_too():
    """A seq2seq loss with recurrent layers: mean over real target tokens, gradcheck on the embedding."""
    torch.manual_seed(0)
    embed, encoder = nn.Embedding(6, 3).double(), nn.GRU(3, 4, batch_first=True).double()
    decoder, head = nn.GRU(3, 4, batch_first=True).double(), nn.Linear(4, 6).double()
    source, inputs = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 5, 2], [1, 3, 0]])
    target, real = torch.tensor([[5, 2, 4], [3, 4, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()

    def total(weight):
        layer = nn.Identity()

        def loss_fn():
            x = layer(F.embedding(torch.cat([source, inputs], 1), weight))
            logits = head(decoder(x[:, 2:], encoder(x[:, :2])[1])[0])
            return F.cross_entropy(logits[real], target[real])

        return penalized_loss(loss_fn, layer)

    assert torch.autograd.gradcheck(total, embed.weight.detach().clone().requires_grad_())


def test_frozen_and_sparse_embeddings_and_in_place_layers():
    plain, frozen, sparse = Bag(), Bag(), Bag(sparse=True)
    frozen.embed.requires_grad_(False)
    for model in (plain, frozen, sparse):
        penalized_loss(loss_of(model), model.embed).backward()
    expected = gradients(plain)
    torch.testing.assert_close(sparse.embed.weight.grad.to_dense(), expected.pop("embed.weight"))
    assert_same(gradients(frozen), expected)
    with pytest.raises(ValueError, match="sparse=True; take the layer's output"):
        gradient_penalty(loss_of(sparse)(), sparse.embed.weight)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 1)).double()
    twin = nn.Sequential(model[0], nn.ReLU(), model[2])
    one = penalized_loss(lambda: model(X).square().mean(), model[0])
    assert one.item() == penalized_loss(lambda: twin(X).square().mean(), model[0]).item()


def test_several_calls_of_the_layer_share_one_norm():
    layer, w = nn.Identity(), nn.Parameter(torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64))
    got = penalized_loss(lambda: (layer(X) @ w).sum() - 2 * (layer(X) @ w).sum(), layer)
    assert (got + (X @ w).sum()).item() == pytest.approx(0.5 * 5 * (9.0 + 4 * 9.0), rel=1e-12)


def test_a_zero_gradient_has_no_norm_to_break():
    w, layer = nn.Parameter(torch.zeros(3, dtype=torch.float64)), nn.Identity()
    penalized_loss(lambda: logistic(w, layer, "none"), layer, kind="norm", form="sample").backward()
    assert w.grad.isfinite().all()


def test_autocast_keeps_the_norm_in_float32_and_bfloat16_models_work():
    exact, half = Bag().float(), Bag().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = penalized_loss(loss_of(half), half.embed)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(penalized_loss(loss_of(exact), exact.embed).item(), rel=0.03)
    loss.backward()
    assert all(g.isfinite().all() for g in gradients(half).values())
    small = Bag().to(torch.bfloat16)
    assert penalized_loss(lambda: F.cross_entropy(small(IDS), LABEL), small.embed).dtype == torch.float32


def test_a_scaler_scales_the_result():
    """The penalty is quadratic: scaling the loss inside would square the scale."""
    model = Bag()
    inside = penalized_loss(lambda: 8 * loss_of(model)(), model.embed) / 8
    outside = penalized_loss(loss_of(model), model.embed)
    clean = loss_of(model)()
    torch.testing.assert_close(inside - clean, 8 * (outside - clean))


def test_object_and_a_plain_users_loop():
    one, two = Bag(), Bag()
    made = GradientPenalty(one, "embed", 0.5, "norm", "sample")
    made.loss(loss_of(one, reduction="none")).backward()
    penalized_loss(loss_of(two, reduction="none"), two.embed, 0.5, "norm", "sample").backward()
    assert_same(gradients(one), gradients(two), rtol=0, atol=0)
    slopes = {}
    for epsilon in (0.0, 5.0):
        model = Bag()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(60):
            optimizer.zero_grad()
            loss = GradientPenalty(model, epsilon=epsilon).loss(loss_of(model)) if epsilon else loss_of(model)()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        clean = loss_of(model)()
        assert clean < 0.5
        slopes[epsilon] = (penalized_loss(loss_of(model), model.embed) - clean).item()
    assert slopes[5.0] < slopes[0.0]


@pytest.mark.slow
def test_in_accelerate_and_a_hugging_face_trainer_one_line_changes(tmp_path):
    accelerate, transformers = pytest.importorskip("accelerate"), pytest.importorskip("transformers")
    model, expected = Bag(), Bag()
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(model)
    accelerator.backward(penalized_loss(loss_of(model), model.embed))
    penalized_loss(loss_of(expected), expected.embed).backward()
    assert_same(gradients(model), gradients(expected))

    class Trainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return penalized_loss(lambda: F.cross_entropy(model(inputs["ids"]), inputs["labels"]), model.embed)

    trained, twin = Bag(), Bag()
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, max_steps=3, report_to=[], use_cpu=True, optim="sgd",
        lr_scheduler_type="constant", learning_rate=0.1, max_grad_norm=0.0, save_strategy="no", disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    rows = [{"ids": i, "labels": y} for i, y in zip(IDS, LABEL, strict=True)]
    Trainer(trained, arguments, train_dataset=rows).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        penalized_loss(loss_of(twin), twin.embed).backward()
        optimizer.step()
    for a, b in zip(trained.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_a_hugging_face_encoder_with_its_usual_attention():
    transformers = pytest.importorskip("transformers")
    found = {}
    for attention in ("sdpa", "eager"):
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation=attention,
        )  # fmt: skip
        model = transformers.BertForSequenceClassification(config).double()
        mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]])
        loss = GradientPenalty(model).loss(lambda m=model, k=mask: m(IDS, attention_mask=k, labels=LABEL).loss)
        loss.backward()
        found[attention] = loss.item(), model.bert.encoder.layer[0].attention.self.query.weight.grad
    assert found["sdpa"][0] == pytest.approx(found["eager"][0], rel=1e-9)
    torch.testing.assert_close(found["sdpa"][1], found["eager"][1])


def test_messages():
    model = Bag()
    with pytest.raises(ValueError, match=r"epsilon must be > 0, got 0; .* instead of penalized_loss"):
        penalized_loss(loss_of(model), model.embed, 0)
    with pytest.raises(ValueError, match=r"kind must be 'square' or 'norm' .*got kind='l1' and form='batch'"):
        penalized_loss(loss_of(model), model.embed, kind="l1")
    with pytest.raises(ValueError, match=r"form='batch' needs a scalar loss, .*got shape \(4,\); call .mean"):
        penalized_loss(loss_of(model, reduction="none"), model.embed)
    with pytest.raises(
        ValueError, match=r"form='sample' needs one loss for each example.*loss \(\) and x \[\(4, 3, 4\)\]"
    ):
        penalized_loss(loss_of(model), model.embed, form="sample")
    with pytest.raises(ValueError, match="never called the Identity"):
        penalized_loss(loss_of(model), nn.Identity())
    with pytest.raises(ValueError, match=r"does not depend on x \[\(3,\)\]"):
        gradient_penalty(loss_of(model)(), torch.ones(3, requires_grad=True))
    with pytest.raises(ValueError, match="loss with a graph, got a detached one"), torch.no_grad():
        penalized_loss(loss_of(model), model.embed)
    with pytest.raises(ValueError, match="loss with a graph, got float"):
        gradient_penalty(1.0, X)
    with pytest.raises(ValueError, match="epsilon must be > 0, got -1"):
        GradientPenalty(model, epsilon=-1)
