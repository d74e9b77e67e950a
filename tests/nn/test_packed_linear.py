"""PackedLinear: against float64 sums by hand and nn.Linear, every engine; what it keeps and joins; messages."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.nn import PackedLinear, pack_linears
from danlu.nn import packed_linear as module
from danlu.nn._decode import decode_kernel

ACTIVATIONS = {
    None: lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "relu": F.relu,
    "silu": lambda x: x * torch.sigmoid(x),
    "squared_relu": lambda x: F.relu(x) ** 2,
}


@pytest.fixture(params=["on", "off"])
def kernels(request, monkeypatch):
    monkeypatch.setenv("DANLU_KERNELS", request.param)
    if request.param == "on" and decode_kernel() is None:
        pytest.skip("the kernel needs numba and a torch on GNU OpenMP")
    return request.param


def linear_of(outputs, inputs, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias)


def by_hand(x, linear, dtype):
    """Oracle: sums of Python floats over the weights as rounded to dtype."""
    weight = linear.weight.detach().to(dtype).double().tolist()
    bias = [0.0] * len(weight) if linear.bias is None else linear.bias.detach().to(dtype).double().tolist()
    flat = x.double().reshape(-1, x.shape[-1]).tolist()
    sums = [
        [sum(a * b for a, b in zip(row, w, strict=True)) + c for w, c in zip(weight, bias, strict=True)] for row in flat
    ]
    return torch.tensor(sums, dtype=torch.float64).reshape(*x.shape[:-1], len(weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8, 9, 20])
@pytest.mark.parametrize(("outputs", "inputs"), [(3, 5), (64, 8), (70, 33)])
def test_equals_sums_by_hand(kernels, dtype, bias, rows, outputs, inputs):
    linear = linear_of(outputs, inputs, bias)
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = PackedLinear(linear, dtype)(x)
    assert got.dtype == dtype
    tolerance = {"rtol": 0, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-3}
    torch.testing.assert_close(got.double(), by_hand(x, linear, dtype), **tolerance)


@pytest.mark.parametrize("rows", [2, 30])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_applied_once(kernels, activation, rows):
    linear, x = linear_of(6, 5), torch.randn(rows, 5, generator=torch.Generator().manual_seed(1)) * 4
    got = PackedLinear(linear, activation=activation)(x)
    torch.testing.assert_close(got, ACTIVATIONS[activation](linear(x).detach()), rtol=0, atol=1e-5)


def test_few_rows_against_bfloat16_weights_keep_the_precision_of_the_input(monkeypatch):
    monkeypatch.setenv("DANLU_KERNELS", "on")
    if decode_kernel() is None:
        pytest.skip("the kernel needs numba and a torch on GNU OpenMP")
    linear, x = linear_of(9, 40), torch.randn(2, 40, generator=torch.Generator().manual_seed(1))
    got = PackedLinear(linear, torch.bfloat16)(x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), by_hand(x, linear, torch.bfloat16), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 0, 5), (2, 3, 4, 5)])
def test_any_leading_axes(kernels, shape):
    linear, x = linear_of(4, 5), torch.randn(shape)
    torch.testing.assert_close(PackedLinear(linear)(x), linear(x).detach())


def test_strided_inputs_and_weights(kernels):
    weight, x = torch.randn(6, 4).T, torch.randn(2, 7, 6).transpose(1, 2)[..., 1:]  # (4, 6), (2, 6, 6)
    torch.testing.assert_close(PackedLinear(weight)(x), F.linear(x, weight))
    torch.testing.assert_close(PackedLinear(weight)(x[:1, ::2]), F.linear(x[:1, ::2], weight))


def test_a_large_matrix_and_many_threads(kernels):
    linear, x = linear_of(1100, 1024), torch.randn(3, 1024)  # large enough for large pages
    packed = PackedLinear(linear)
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        expected = linear(x)
        for got in pool.map(packed, [x] * 20):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(packed(x.repeat(20, 1)), expected.repeat(20, 1), rtol=0, atol=1e-5)


def test_joined_layers_give_their_outputs_side_by_side(kernels):
    parts, x = [linear_of(n, 6, seed=n) for n in (3, 8, 5)], torch.randn(2, 6)
    expected = torch.cat([part(x) for part in parts], dim=-1).detach()
    torch.testing.assert_close(PackedLinear.joined(parts)(x), expected)
    assert PackedLinear.joined([linear_of(2, 6, bias=False)] * 2, torch.bfloat16).bias is None


def test_pack_linears_replaces_all_and_keeps_sharing(kernels):
    model = nn.Module()
    model.first, model.middle, model.last = linear_of(6, 5), nn.Sequential(nn.ReLU(), linear_of(6, 6)), linear_of(2, 6)
    model.other = model.first
    x = torch.randn(4, 5)
    expected = model.last(model.middle(model.first(x))).detach()
    names = list(model.state_dict())
    assert pack_linears(model) is model
    assert {type(part) for part in (model.first, model.middle[1], model.last)} == {PackedLinear}
    assert model.other is model.first
    assert not list(model.parameters())
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model.last(model.middle(model.first(x))), expected)
    assert isinstance(pack_linears(linear_of(2, 3)), PackedLinear)


def test_attention_of_torch_is_left_alone():
    attention = nn.MultiheadAttention(4, 2)  # reads the weight of its output layer itself
    assert type(pack_linears(attention).out_proj).__name__ == "NonDynamicallyQuantizableLinear"


@pytest.mark.parametrize("rows", [2, 30])
def test_new_weights_are_used_at_once(kernels, rows):
    first, second, x = linear_of(6, 5, seed=1), linear_of(6, 5, seed=2), torch.randn(rows, 5)
    packed = PackedLinear(first)
    packed(x)
    packed.load_state_dict(second.state_dict())
    torch.testing.assert_close(packed(x), second(x).detach())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("rows", [2, 30])
def test_copies_are_whole_and_independent(kernels, copied, rows):
    packed, x = PackedLinear(linear_of(6, 5), activation="gelu"), torch.randn(rows, 5)
    expected = packed(x)
    other = copied(packed)
    packed.load_state_dict(linear_of(6, 5, seed=9).state_dict())
    assert torch.equal(other(x), expected)
    assert not torch.equal(packed(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [2, 30])
def test_to_another_dtype(kernels, dtype, rows):
    linear, x = linear_of(6, 5), torch.randn(rows, 5)
    packed = PackedLinear(linear)
    packed(x)
    got = packed.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), linear(x).detach(), rtol=2e-2, atol=2e-2)


def test_without_onednn_the_plain_product_serves(kernels, monkeypatch):
    monkeypatch.setattr(module, "_onednn", lambda dtype: False)
    linear, x = linear_of(6, 5), torch.randn(30, 5)
    torch.testing.assert_close(PackedLinear(linear, activation="relu")(x), linear(x).relu().detach())


@pytest.mark.parametrize("rows", [2, 30])
def test_gradients_are_refused(kernels, rows):
    packed, x = PackedLinear(linear_of(6, 5)), torch.randn(rows, 5, requires_grad=True)
    with pytest.raises(
        RuntimeError, match=r"no gradients and its input asks for one: call the model inside torch.no_grad"
    ):
        packed(x)
    with torch.no_grad():
        assert packed(x).shape == (rows, 6)


def test_messages_say_what_was_given_and_what_is_allowed():
    with pytest.raises(TypeError, match=r"an nn.Linear or a weight \(N, K\), got list"):
        PackedLinear([[1.0]])
    with pytest.raises(ValueError, match=r"float32 or bfloat16, got torch.float16"):
        PackedLinear(linear_of(2, 3), torch.float16)
    with pytest.raises(ValueError, match=r"got weight \(2, 3\) and bias \(3,\)"):
        PackedLinear(torch.zeros(2, 3), bias=torch.zeros(3))
    with pytest.raises(ValueError, match=r"got 3 -> 2, bias=True, 4 -> 2, bias=True"):
        PackedLinear.joined([linear_of(2, 3), linear_of(2, 4)])
    with pytest.raises(ValueError, match="got none"):
        PackedLinear.joined([])
    with pytest.raises(ValueError, match="nonsense"):
        PackedLinear(linear_of(2, 3), activation="nonsense")


@pytest.mark.parametrize("rows", [2, 30])
def test_an_input_of_another_size_is_refused(kernels, rows):
    with pytest.raises(ValueError, match=rf"takes 5 features; got x \({rows}, 4\)"):
        PackedLinear(linear_of(6, 5))(torch.zeros(rows, 4))
