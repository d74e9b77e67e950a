"""capture: against models edited by hand and HuggingFace's own weights, gradients, locals, what it leaves behind."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from danlu.nn import MultiHeadAttention
from danlu.train import capture, capture_call
from danlu.train._capture_watch import open_attention


class Inner(nn.Module):
    """A layer with a hidden variable; `reveal` is the edit by hand that capture makes needless."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3)
        self.revealed = None

    def forward(self, x, scale=1.0):
        hidden = torch.tanh(self.first(x))
        if self.revealed is not None:
            self.revealed.append(hidden)
        return self.second(hidden) * scale


class Outer(nn.Module):
    def __init__(self, reveal=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Inner(), Inner()])
        self.head = nn.Linear(3, 2)
        for layer in self.layers:
            layer.revealed = [] if reveal else None

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, scale=0.5)
        return self.head(x)


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
EVERY = ["layers.*", "layers.*:in", "layers.*:in.scale", "layers.*:locals.hidden", "head:in", ":out"]


def is_clean(model):
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return not hooks and sys.getprofile() is None and torch._C._len_torch_function_stack() == 0


def test_values_are_those_of_a_model_edited_by_hand_and_the_output_is_the_same_to_the_bit():
    plain, edited = Outer(), Outer(reveal=True)
    expected = edited(X)
    with capture(plain, EVERY) as caught:
        assert torch.equal(plain(X), expected)
    for i in range(2):
        assert torch.equal(caught[f"layers.{i}:locals.hidden"], edited.layers[i].revealed[0])
        assert torch.equal(caught[f"layers.{i}:out"], edited.layers[i].second(edited.layers[i].revealed[0]) * 0.5)
        assert caught[f"layers.{i}:in.scale"] == 0.5
    assert torch.equal(caught["layers.0:in"]["x"], X) and caught["layers.1:in"]["scale"] == 0.5
    assert torch.equal(caught["layers.1:in"]["x"], caught["layers.0:out"])
    assert torch.equal(caught["head:in"], caught["layers.1:out"]) and torch.equal(caught[":out"], expected)
    assert not any(caught[key].requires_grad for key in (":out", "layers.0:locals.hidden"))
    assert len(caught) == 10 and "head:in  (5, 3) torch.float32" in caught.table()
    assert is_clean(plain)


def test_gradients_are_those_of_the_edited_model():
    plain, edited = Outer(), Outer(reveal=True)
    loss = edited(X).square().sum()
    hidden = edited.layers[0].revealed[0]
    expected = torch.autograd.grad(loss, [hidden, *edited.parameters()])
    with capture(plain, ["layers.0:locals.hidden", "layers.*:out"], grad=True) as caught:
        plain(X).square().sum().backward()
    torch.testing.assert_close(caught["layers.0:locals.hidden"].grad, expected[0], rtol=0, atol=0)
    for p, g in zip(plain.parameters(), expected[1:], strict=True):
        torch.testing.assert_close(p.grad, g, rtol=0, atol=0)
    inner = caught["layers.0:out"]
    start = inner.detach().requires_grad_()
    (again,) = torch.autograd.grad(plain.head(plain.layers[1](start, 0.5)).square().sum(), start)
    torch.testing.assert_close(inner.grad, again)


def test_integrated_gradients_of_a_hidden_variable():
    """The change of the output is the sum of the parts that the hidden units have in it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, steps = X[:1].double(), 50
    total = torch.zeros(1, 4, dtype=torch.float64)
    for i in range(steps):
        with capture(model, "1:in", grad=True) as caught:
            model((i + 0.5) / steps * x).backward()
        total += caught["1:in"].grad * (model[0](x) - model[0](0 * x)).detach() / steps
    assert total.sum().item() == pytest.approx((model(x) - model(0 * x)).item(), abs=1e-3)


def test_calls_are_listed_and_a_second_one_is_no_surprise():
    model = Outer()
    with capture(model, "head") as caught:
        model(X)
        model(2 * X)
    with pytest.raises(ValueError, match=r"'head:out' was met 2 times in the block; calls\('head:out'\) gives all"):
        caught["head:out"]
    assert torch.equal(caught.calls("head:out")[1], model(2 * X))


def test_one_module_under_two_names_answers_to_both():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    _, caught = capture_call(model, ["0", "2"], X)
    assert len(caught.calls("0:out")) == len(caught.calls("2:out")) == 2
    tied = nn.MultiheadAttention(4, 2)
    both = nn.ModuleDict({"a": tied, "b": tied})
    with capture(both, "*:attention") as caught:
        both["a"](*[torch.ones(2, 1, 4)] * 3)
    assert torch.equal(caught["a:attention"], caught["b:attention"])


def test_memory_is_shared_unless_cloned():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    shared, copied = (capture_call(model, "0", X, clone=clone)[1]["0:out"] for clone in (False, True))
    assert (shared >= 0).all() and torch.equal(copied, model[0](X))


@pytest.mark.parametrize("kind", ["out", "in", "attention", "locals.x"])
def test_nothing_stays_behind_whatever_ends_the_block(kind):
    class Fails(nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt if x.sum() > 0 else ValueError

    model = nn.Sequential(Fails())
    for x, error in ((-X.abs(), ValueError), (X.abs(), KeyboardInterrupt)):
        with pytest.raises(error), capture(model, [f"0:{kind}", f":{kind}" if kind != "locals.x" else ":out"]):
            model(x)
        assert is_clean(model)
    with pytest.raises(ValueError), capture(model, f"0:{kind}"):  # an exception that the block survives
        with pytest.raises(ValueError):
            model(-X.abs())
        raise ValueError
    assert is_clean(model)


@pytest.mark.parametrize("kind", ["attention", "locals.y"])
def test_an_exception_inside_the_block_ends_the_watch_of_its_module(kind):
    class Fails(nn.Module):
        def forward(self, x):
            y = x.softmax(-1)
            if x.sum() < 0:
                raise ValueError
            return y

    model = nn.Sequential(Fails())
    with capture(model, f"0:{kind}") as caught:
        with pytest.raises(ValueError):
            model(-X.abs())
        assert sys.getprofile() is None
        X.softmax(-1)  # of nobody
        model(X.abs())
    assert torch.equal(caught.calls(f"0:{kind}")[-1], X.abs().softmax(-1))
    assert len(caught.calls(f"0:{kind}")) == 2  # that of the failed call, and that of the last


def weights_by_hand(module, x, mask=None):
    """softmax(q k^T / sqrt(d)) from the packed projection of torch's module, x (B, T, D)."""
    q, k, _ = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
    q, k = (part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in (q, k))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None], -torch.inf)  # torch's own masks: True = drop
    return scores.softmax(-1)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_attention_of_torchs_module(need_weights, training, grad):
    torch.manual_seed(2)
    module = nn.MultiheadAttention(8, 2, batch_first=True).train(training)
    x, padded = torch.randn(3, 5, 8), torch.arange(5) >= torch.tensor([[5], [3], [4]])
    call = {"key_padding_mask": padded, "need_weights": need_weights}
    expected = module(x, x, x, **call)
    with capture(module, ":attention", grad=grad) as caught:
        output = module(x, x, x, **call)
        output[0].sum().backward()
    torch.testing.assert_close(output, expected)
    weights = caught[":attention"]
    torch.testing.assert_close(weights.reshape(3, 2, 5, 5), weights_by_hand(module, x, padded))
    if grad:
        assert weights.grad.any()
        (again,) = torch.autograd.grad(expected[0].sum(), module.in_proj_weight)
        torch.testing.assert_close(module.in_proj_weight.grad, again)


def test_the_fast_path_of_an_encoder_layer_is_opened():
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), torch.randn(2, 4, 8)
    with torch.no_grad():
        expected = model(x)
        output, caught = capture_call(model, ["layers.*.self_attn:attention", "layers.*:in.src"], x)
    torch.testing.assert_close(output, expected)
    for i in range(2):
        attention = model.layers[i].self_attn
        torch.testing.assert_close(
            caught[f"layers.{i}.self_attn:attention"], weights_by_hand(attention, caught[f"layers.{i}:in.src"])
        )


@pytest.mark.parametrize("case", ["plain", "bool", "float", "causal", "gqa", "scale", "no key"])
def test_fused_attention_is_recomputed(case):
    """The weights reconstruct the output of the kernel, and carry its gradients."""
    g = torch.Generator().manual_seed(4)
    q = torch.randn(2, 4, 3, 5, generator=g)
    k, v = (torch.randn(2, 2 if case == "gqa" else 4, 6, n, generator=g) for n in (5, 7))
    keep = torch.rand(2, 1, 3, 6, generator=g) < 0.6
    keep[..., 0] = True
    options = {
        "plain": {}, "bool": {"attn_mask": keep}, "float": {"attn_mask": torch.randn(2, 1, 3, 6, generator=g)},
        "causal": {"is_causal": True}, "gqa": {"enable_gqa": True}, "scale": {"scale": 0.3},
        "no key": {"attn_mask": keep & (torch.arange(3)[:, None] > 0)},
    }[case]  # fmt: skip
    for part in (q, k, v):
        part.requires_grad_()
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    weights, output = open_attention(q, k, v, **options)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(output.square().sum(), (q, k, v)),
        torch.autograd.grad(expected.square().sum(), (q, k, v)), rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    sums = weights.sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums) if case != "no key" else (sums > 0).float())


def test_the_gradient_of_fused_weights_is_that_of_attention_in_the_open():
    class Fused(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v)

    q, k, v = (torch.randn(1, 2, 3, 4, dtype=torch.float64) for _ in range(3))
    q.requires_grad_()
    model = Fused()
    with capture(model, ":attention", grad=True) as caught:
        model(q, k, v).square().sum().backward()
    weights = (q.detach() @ k.mT / 2).softmax(-1).requires_grad_()
    (expected,) = torch.autograd.grad((weights @ v).square().sum(), weights)
    torch.testing.assert_close(caught[":attention"].grad, expected)


def test_bfloat16_autocast():
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 4, 8)
    for grad in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = module(x, x, x, need_weights=False)[0]
            with capture(module, ":attention", grad=grad) as caught:
                output = module(x, x, x, need_weights=False)[0]
        assert output.dtype == expected.dtype
        torch.testing.assert_close(output, expected, rtol=0.05, atol=0.02)
        sums = caught[":attention"].float().sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=0.02)


def test_our_own_attention():
    torch.manual_seed(5)
    module, x = MultiHeadAttention(6, 2, 3, 3), torch.randn(2, 4, 6)
    keep = torch.tensor([[True] * 4, [True, True, True, False]])
    with capture(module, ":attention", grad=True) as caught:
        module(x, keep).sum().backward()
    (weights,) = caught.calls(":attention")
    q, k = (layer(x).unflatten(-1, (2, 3)).transpose(1, 2) for layer in (module.query, module.key))
    expected = (q @ k.mT / math.sqrt(3)).masked_fill(~keep[:, None, None], -torch.inf).softmax(-1)
    torch.testing.assert_close(weights[1, :, :3], expected[1, :, :3])
    torch.testing.assert_close(weights[0], expected[0])
    assert weights.grad.any()


def test_attention_and_dropout_in_one_node():
    from danlu.nn.attention import AttentionContext
    from danlu.nn.layout import padded_layout

    module, x = MultiHeadAttention(6, 2, 3, 3), torch.randn(2, 4, 6)
    layout = padded_layout(2, 4, None, x.device)

    def call():
        return module(layout.gather(x), AttentionContext(layout, dropout=0.5))

    with capture(module, ":attention") as caught:
        call()
    with capture(module, ":attention") as exact:
        module(x)
    torch.testing.assert_close(caught[":attention"].reshape(2, 2, 4, 4), exact[":attention"])  # before dropout
    message = r"':attention' computes dropout, softmax .* in one node.*switch dropout off"
    with pytest.raises(RuntimeError, match=message), capture(module, ":attention", grad=True):
        call()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_huggingface_bert(implementation):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=16, attn_implementation=implementation)  # fmt: skip
    torch.manual_seed(6)
    model = transformers.BertModel(config).eval()
    batch = {"input_ids": torch.randint(30, (2, 5)), "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])}
    with capture(model, "encoder.layer.*.attention.self:attention", grad=True) as caught:
        model(**batch).last_hidden_state[:, 0, 0].sum().backward()
    model.set_attn_implementation("eager")
    expected = model(**batch, output_attentions=True).attentions
    for i in range(2):
        weights = caught[f"encoder.layer.{i}.attention.self:attention"]
        torch.testing.assert_close(weights, expected[i], rtol=1e-5, atol=1e-5)
        assert weights.grad.any()
    with capture(model, ":out") as caught:
        model(**batch)
    assert caught[":out"]["last_hidden_state"].shape == (2, 5, 8)


def test_recomputation_by_checkpointing_is_not_a_second_call():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return checkpoint(lambda x: self.inner(x, x, x)[0], x, use_reentrant=False)

    model = Checkpointed()
    with capture(model, ["inner:attention", "inner:in", "inner:out"]) as caught:
        model(torch.randn(2, 3, 4)).sum().backward()
    assert [len(caught.calls(f"inner:{kind}")) for kind in ("attention", "in", "out")] == [1, 1, 1]


@pytest.mark.parametrize("form", ["wrapper", "in place", "caller"])
def test_compiled_models_run_eager_inside_the_block(form):
    torch._dynamo.reset()
    model = Outer()
    expected = model(X)
    compiled = torch.compile(model, backend="aot_eager")
    call = compiled
    if form == "in place":
        model.compile(backend="aot_eager")
        call = compiled = model
    elif form == "caller":
        call, compiled = torch.compile(lambda x: model(x), backend="aot_eager"), model
    torch.testing.assert_close(call(X), expected)
    with capture(compiled, ["head:in", "layers.*:locals.hidden"], grad=True) as caught:
        call(X).sum().backward()
    assert caught["head:in"].grad.any() and caught["layers.1:locals.hidden"].shape == (5, 4)
    torch.testing.assert_close(call(X), expected)
    assert is_clean(model)


def test_a_loop_with_accumulation_trains_as_without():
    results = []
    for watched in (False, True):
        model, norms = Outer(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            for part in X.split(3):
                if watched:
                    with capture(model, "head:in", grad=True) as caught:
                        model(part).square().mean().backward()
                    norms.append(caught["head:in"].grad.norm().item())
                else:
                    model(part).square().mean().backward()
            optimizer.step()
        results.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)) and len(norms) == 6


def test_a_profiler_is_refused_and_kept():
    calls = []

    def profiler(*event):
        calls.append(event[1])

    sys.setprofile(profiler)
    try:
        with pytest.raises(RuntimeError, match=r"locals need Python's profiling hook, which .*profiler.* holds"):
            capture(Outer(), "layers.0:locals.hidden").__enter__()
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layer.0", r"no module is called 'layer.0'; near it: 'layers.0', .*of 9 names"),
        ("head:inn", "'head:inn' asks for 'inn'; after the colon there may stand out, in, in.ARGUMENT, attention, loc"),
        ("head:out.x", "'head:out.x' asks for 'out.x'"),
        ("head:locals", "'head:locals' names no variable; write locals.VARIABLE"),
        ("head:in.x", r"'head:in.x': forward has no argument 'x'; it takes input"),
        ("layers*", r"no module is called 'layers\*.*"),
    ],
)
def test_messages_for_addresses(pattern, message):
    if pattern == "layers*":
        assert list(capture_call(Outer(), pattern, X)[1]) == []  # the list itself is never called
        return
    with pytest.raises(ValueError, match=message):
        capture_call(Outer(), pattern, X)


def test_stars_stop_at_dots_and_two_do_not():
    model = Outer()
    assert list(capture_call(model, "layers.*", X)[1]) == ["layers.0:out", "layers.1:out"]
    assert len(capture_call(model, "**", X)[1]) == 9 - 1  # all but the list of layers
    assert len(capture_call(model, "layers.?.first", X)[1]) == 2


def test_messages_for_values():
    model = Outer()
    with capture(model, ["head:attention", "layers.0:locals.hiden", "head"]) as caught:
        pass
    with pytest.raises(KeyError, match="'head:out' was not met: this module was not called inside the block"):
        caught["head:out"]
    with capture(model, ["head:attention", "layers.0:locals.hiden", "head"]) as caught:
        model(X)
    with pytest.raises(KeyError, match="no softmax and no scaled_dot_product_attention ran inside this module"):
        caught["head:attention"]
    with pytest.raises(KeyError, match="forward has no variable 'hiden' when it returns; near it: hidden"):
        caught["layers.0:locals.hiden"]
    with pytest.raises(KeyError, match="'heed:out' was not asked for; near it: head:out"):
        caught["heed:out"]
    with pytest.raises(RuntimeError, match=r"'head:out' has no gradient: .*computed under no_grad"), torch.no_grad():
        capture_call(model, "head", X, grad=True)
    assert is_clean(model)
    with pytest.raises(ValueError, match="grad=True keeps the very tensors that the model uses, clone=True copies"):
        capture_call(model, "head", X, grad=True, clone=True)
    scripted = nn.Sequential(torch.jit.trace(nn.Linear(3, 3), X))
    with pytest.raises(RuntimeError, match="'0:out' is a scripted module"):
        capture_call(scripted, "0", X)
    with pytest.raises(RuntimeError, match="forward of this module is no Python function"):
        builtin = type("Builtin", (nn.Module,), {"forward": math.sqrt})()
        capture_call(builtin, ":locals.x", 1.0)
