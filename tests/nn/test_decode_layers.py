"""DecodeLayers: against the same layers written with torch in float64, with beams and padding; when it says no."""

import copy
import dataclasses
import pickle

import pytest
import torch
import torch.nn.functional as F

from danlu.nn import DecodeLayer, DecodeLayers, KVCache, PackedLinear
from danlu.nn._decode import decode_kernel

LAYERS, DIM, HEADS, KEY, VALUE, INNER = 2, 24, 3, 8, 5, 70
ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_sigmoid": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}


@pytest.fixture(autouse=True)
def _kernels(monkeypatch):
    monkeypatch.setenv("DANLU_KERNELS", "on")
    if decode_kernel() is None:
        pytest.skip("the kernel needs numba and a torch on GNU OpenMP")


def a_layer(dtype, bias=True, inner=INNER, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator) * 0.5

    def packed(outputs, inputs):
        return PackedLinear(normal(outputs, inputs), dtype, bias=normal(outputs) if bias else None)

    norms = [(1 + normal(DIM), normal(DIM)) for _ in range(2)]
    wide = HEADS * (2 * KEY + VALUE)
    return DecodeLayer(packed(wide, DIM), packed(DIM, HEADS * VALUE), packed(inner, DIM), packed(DIM, inner), *norms)


def in_bfloat16(layer):
    norms = {
        name: tuple(v.bfloat16() for v in getattr(layer, name)) for name in ("attention_norm", "feed_forward_norm")
    }
    return dataclasses.replace(layer, **norms)


def by_torch(layers, x, past, keep, activation, post_norm, scale, eps):
    """Oracle in float64: past[layer] holds (R, n, H, K) keys and values, to which the new ones are added."""
    x = x.double()
    for i, layer in enumerate(layers):

        def linear(part, hidden):
            return F.linear(hidden, part.weight.double(), None if part.bias is None else part.bias.double())

        def norm(vectors, hidden):
            return F.layer_norm(hidden, (DIM,), vectors[0].double(), vectors[1].double(), eps)

        def attention(hidden, i=i, layer=layer):
            query, key, value = linear(layer.joined, hidden).split([HEADS * KEY, HEADS * KEY, HEADS * VALUE], dim=-1)
            new = key.view(-1, 1, HEADS, KEY), value.view(-1, 1, HEADS, VALUE)
            past[i] = tuple(torch.cat([old, one], dim=1) for old, one in zip(past[i], new, strict=True))
            scores = torch.einsum("rhk,rnhk->rhn", query.view(-1, HEADS, KEY), past[i][0]) * scale
            if keep is not None:
                scores = scores.masked_fill(~keep[:, None, : scores.shape[2]], -torch.inf)
            return linear(layer.output, torch.einsum("rhn,rnhv->rhv", scores.softmax(-1), past[i][1]).flatten(1))

        def feed_forward(hidden, layer=layer):
            return linear(layer.inner, ACTIVATIONS[activation](linear(layer.input, hidden)))

        if post_norm:
            x = norm(layer.attention_norm, x + attention(x))
            x = norm(layer.feed_forward_norm, x + feed_forward(x))
        else:
            x = x + attention(norm(layer.attention_norm, x))
            x = x + feed_forward(norm(layer.feed_forward_norm, x))
    return x


def started(rows, dtype, length=3, capacity=9, seed=3):
    """A cache with a prompt and the same as plain tensors."""
    generator = torch.Generator().manual_seed(seed)
    cache, past = KVCache(LAYERS, rows, HEADS, KEY, VALUE, capacity, dtype), []
    for layer in range(LAYERS):
        parts = [torch.randn(rows, length, HEADS, size, generator=generator).to(dtype) for size in (KEY, VALUE)]
        cache.store(layer, *parts)
        past.append(tuple(part.double() for part in parts))
    cache.advance(length)
    return cache, past


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_steps_with_beams_and_padding_equal_plain_layers(activation, post_norm):
    layers = [a_layer(torch.float32, seed=i) for i in range(LAYERS)]
    stack = DecodeLayers(layers, HEADS, KEY, eps=1e-3, activation=activation, post_norm=post_norm, scale=0.4)
    cache, past = started(2, torch.float32)
    keep = torch.ones(2, 9, dtype=torch.bool)
    keep[1, :2] = False
    cache.keep = keep
    generator = torch.Generator().manual_seed(5)
    for order in ([0, 1, 1, 1, 0], [4, 4, 0, 2, 3, 1], [5, 0]):
        cache.reorder(torch.tensor(order))
        past, keep = [tuple(part[order] for part in pair) for pair in past], keep[order]
        x = torch.randn(len(order), DIM, generator=generator)
        before = x.clone()
        assert stack.takes(x, cache)
        got = stack(x, cache)
        expected = by_torch(layers, x, past, keep, activation, post_norm, 0.4, 1e-3)
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6 * expected.abs().max().item())
        torch.testing.assert_close(cache.read(1, 1)[1].double(), past[1][1], rtol=0, atol=1e-5)
        assert torch.equal(x, before)
        cache.advance(1)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bfloat16_weights_any_number_of_threads(rows, threads):
    layers = [a_layer(torch.bfloat16, bias=threads == 2, seed=i) for i in range(LAYERS)]
    if threads == 2:  # norms of a model that is bfloat16 as a whole
        layers = [in_bfloat16(layer) for layer in layers]
    stack = DecodeLayers(layers, HEADS, KEY)
    cache, past = started(rows, torch.bfloat16)
    x = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(5))
    number = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = stack(x, cache)
    finally:
        torch.set_num_threads(number)
    expected = by_torch(layers, x, past, None, "gelu_tanh", False, KEY**-0.5, 1e-5)
    torch.testing.assert_close(
        got.double(), expected, rtol=0, atol=1e-2 * expected.abs().max().item()
    )  # new keys are rounded to bfloat16
    new = past[0][0][:, -1]  # what layer 0 stores is this, rounded to the nearest bfloat16, not cut
    assert ((cache.read(0, 1)[0][:, -1].double() - new).abs() <= 2**-8 * new.abs() + 1e-5).all()
    assert stack(x.bfloat16(), started(rows, torch.bfloat16)[0]).dtype == torch.bfloat16


def test_keys_halfway_between_two_bfloat16_go_to_the_even_one():
    """The first layer of a post-norm stack norms nothing before: identity weights store the input itself, rounded."""
    rows = [*range(DIM), *([0] * (HEADS * (2 * KEY + VALUE) - DIM))]
    layer = a_layer(torch.bfloat16, bias=False)
    layer = dataclasses.replace(layer, joined=PackedLinear(torch.eye(DIM)[rows].roll(DIM, 0), torch.bfloat16))
    cache = KVCache(1, 1, HEADS, KEY, VALUE, 2, torch.bfloat16)
    x = 1 + torch.arange(DIM)[None] * 2.0**-8  # odd ones are ties
    DecodeLayers([layer], HEADS, KEY, post_norm=True)(x, cache)
    cache.advance(1)
    assert torch.equal(cache.read(0, 0)[0].flatten(), x[0].bfloat16())  # rows DIM to 2 DIM are the keys


@pytest.mark.parametrize(
    ("x", "cache"),
    [
        (torch.zeros(9, DIM), started(9, torch.float32)[0]),  # too many rows
        (torch.zeros(2, DIM), started(3, torch.float32)[0]),  # rows the cache does not have
        (torch.zeros(2, DIM + 1), started(2, torch.float32)[0]),
        (torch.zeros(2, DIM), started(2, torch.bfloat16)[0]),
        (torch.zeros(2, DIM), KVCache(LAYERS + 1, 2, HEADS, KEY, VALUE, 9)),
        (torch.zeros(2, DIM), started(2, torch.float32, 3, 3)[0]),  # full
        (torch.zeros(2, DIM, dtype=torch.float64), started(2, torch.float32)[0]),
        (torch.zeros(2, DIM, requires_grad=True), started(2, torch.float32)[0]),
    ],
)
def test_it_says_no_to_what_it_cannot(x, cache):
    stack = DecodeLayers([a_layer(torch.float32, seed=i) for i in range(LAYERS)], HEADS, KEY)
    assert not stack.takes(x, cache)
    with pytest.raises(ValueError, match=r"takes up to 8 rows of 24 features.*Ask takes\(\) first"):
        stack(x, cache)


def test_it_says_no_without_the_kernel(monkeypatch):
    stack = DecodeLayers([a_layer(torch.float32, seed=i) for i in range(LAYERS)], HEADS, KEY)
    cache, x = started(2, torch.float32)[0], torch.zeros(2, DIM)
    assert stack.takes(x, cache)
    monkeypatch.setenv("DANLU_KERNELS", "off")
    assert not stack.takes(x, cache)
    monkeypatch.setenv("DANLU_KERNELS", "on")
    assert not DecodeLayers([a_layer(torch.float32)] * LAYERS, HEADS, KEY, activation="squared_relu").takes(x, cache)
    assert DecodeLayers([a_layer(torch.float32)] * LAYERS, HEADS, KEY, activation=None).takes(x, cache)  # linear
    for off in ("OFF", "0", "no"):
        monkeypatch.setenv("DANLU_KERNELS", off)
        assert decode_kernel() is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda stack: pickle.loads(pickle.dumps(stack))])
def test_a_copy_stands_on_weights_of_its_own(copied):
    stack = DecodeLayers([a_layer(torch.float32, seed=i) for i in range(LAYERS)], HEADS, KEY, post_norm=True)
    x = torch.randn(2, DIM, generator=torch.Generator().manual_seed(5))
    expected, other = stack(x, started(2, torch.float32)[0]), copied(stack)
    for row in stack._tensors:
        row[0].zero_()
    assert torch.equal(other(x, started(2, torch.float32)[0]), expected)
    assert not torch.equal(stack(x, started(2, torch.float32)[0]), expected)


def test_messages_name_the_layer():
    with pytest.raises(ValueError, match="at least one layer"):
        DecodeLayers([], HEADS, KEY)
    with pytest.raises(ValueError, match=r"layer 1 does not fit 3 heads with keys of 8"):
        DecodeLayers([a_layer(torch.float32), a_layer(torch.float32, inner=INNER + 1)], HEADS, KEY)
    with pytest.raises(ValueError, match=r"layer 0 does not fit 2 heads"):
        DecodeLayers([a_layer(torch.float32)], 2, KEY)
    for heads, key in ((HEADS, KEY - 1), (2, 12)):  # 2 x 2 x 12 + 15 is as wide, but 15 are no two heads
        with pytest.raises(ValueError, match=rf"layer 0 does not fit {heads} heads with keys of {key}"):
            DecodeLayers([a_layer(torch.float32)], heads, key)
    short = dataclasses.replace(a_layer(torch.float32), attention_norm=(torch.ones(DIM - 1), torch.zeros(DIM)))
    with pytest.raises(ValueError, match=r"norms \[\(23,\), \(24,\), \(24,\), \(24,\)\]"):
        DecodeLayers([short], HEADS, KEY)
    with pytest.raises(ValueError, match=r"layer 1 does not fit|layer 1 mixes dtypes"):
        DecodeLayers([a_layer(torch.float32), a_layer(torch.bfloat16)], HEADS, KEY)
