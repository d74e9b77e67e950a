"""Activations: against mpmath, torch and bert4keras, transformers' names, symmetry, limits, derivatives, messages."""

import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from danlu.math.activations import activation, activation_name, gelu

FORMS = ["erf", "tanh", "sigmoid"]
X = torch.linspace(-9, 9, 181, dtype=torch.float64)


def by_hand(x, form):  # oracle: eq. (1) to (3) with Python floats
    if form == "erf":
        return x * math.erfc(-x / math.sqrt(2)) / 2
    if form == "tanh":
        return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / (1 + math.exp(-1.702 * x))


def slope_by_hand(x, form):  # the derivatives of the three forms, written out
    if form == "erf":
        return math.erfc(-x / math.sqrt(2)) / 2 + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    if form == "tanh":
        a, c = math.sqrt(2 / math.pi), 0.044715
        t = math.tanh(a * (x + c * x**3))
        return (1 + t) / 2 + x / 2 * (1 - t * t) * a * (1 + 3 * c * x * x)
    s = 1 / (1 + math.exp(-1.702 * x))
    return s + 1.702 * x * s * (1 - s)


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_formula_and_its_derivative(form):
    x = X.clone().requires_grad_()
    y = gelu(x, form)
    expected = torch.tensor([by_hand(v, form) for v in X.tolist()], dtype=X.dtype)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-15)
    (slope,) = torch.autograd.grad(y.sum(), x)
    expected = torch.tensor([slope_by_hand(v, form) for v in X.tolist()], dtype=X.dtype)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-14)


# values at -3, -1, -0.5, 0.5, 1, 2, 3 from 50-digit arithmetic, rounded
KNOWN = {
    "erf": [-0.00404969, -0.15865525, -0.15426877, 0.34573123, 0.84134475, 1.95449974, 2.99595031],
    "tanh": [-0.00363739, -0.15880801, -0.15428599, 0.34571401, 0.84119199, 1.95459769, 2.99636261],
    "sigmoid": [-0.01807131, -0.15420423, -0.14961156, 0.35038844, 0.84579577, 1.93565862, 2.98192869],
}


@pytest.mark.parametrize("form", FORMS)
def test_known_values(form):
    x = torch.tensor([-3, -1, -0.5, 0.5, 1, 2, 3], dtype=torch.float64)
    torch.testing.assert_close(gelu(x, form), torch.tensor(KNOWN[form], dtype=x.dtype), rtol=0, atol=5.1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_symmetry(form):  # x Phi(x) + x Phi(-x) = x
    torch.testing.assert_close(gelu(X, form) - gelu(-X, form), X, rtol=0, atol=2e-15)


def test_distances_between_the_forms():
    x = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    assert (gelu(x) - gelu(x, "tanh")).abs().max().item() == pytest.approx(4.732e-4, abs=1e-7)
    assert (gelu(x) - gelu(x, "sigmoid")).abs().max().item() == pytest.approx(2.0335e-2, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [3, 64])  # torch's vectorised kernels differ from the ones for the rest
def test_limits(form, dtype, size):
    last = torch.finfo(dtype).max
    x = torch.tensor([-torch.inf, torch.inf, -last, last] + [0.0] * size, dtype=dtype, requires_grad=True)
    y = gelu(x, form)
    assert y.tolist() == [0.0, math.inf, 0.0, last] + [0.0] * size
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 0.0, 1.0] + [0.5] * size
    assert gelu(torch.tensor([torch.nan] * size, dtype=dtype), form).isnan().all()


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form):
    x = X[::9].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: gelu(v, form), x)
    assert torch.autograd.gradgradcheck(lambda v: gelu(v, form), x)


def test_torch_agrees_bit_for_bit_on_finite_numbers():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 4
    assert torch.equal(gelu(x), F.gelu(x))
    assert torch.equal(gelu(x, "tanh"), F.gelu(x, approximate="tanh"))
    assert torch.equal(activation("gelu")(x), gelu(x))
    assert torch.equal(activation("gelu_new")(x), gelu(x, "tanh"))
    assert torch.equal(activation("quick_gelu")(x), gelu(x, "sigmoid"))


@pytest.mark.skipif("DANLU_DATA" not in os.environ, reason="DANLU_DATA is unset; oracles/layers lie there")
@pytest.mark.parametrize("name", ["gelu_erf", "gelu_tanh", "swish", "leaky_relu"])
def test_bert4keras_agrees(name):
    with np.load(Path(os.environ["DANLU_DATA"]) / "oracles/layers/functions.npz") as numbers:
        x, expected = torch.from_numpy(numbers["act/x"]), torch.from_numpy(numbers[f"act/{name}"])
    torch.testing.assert_close(activation(name)(x), expected, rtol=2e-6, atol=2e-6)


def test_transformers_agrees_on_every_name_we_share():
    act2fn = pytest.importorskip("transformers.activations").ACT2FN
    shared = []
    for name in act2fn:
        try:
            ours = activation(name)
        except ValueError:
            continue
        if name != "leaky_relu":  # bert4keras' slope there is 0.2, torch's 0.01
            shared.append(name)
            torch.testing.assert_close(ours(X), act2fn[name](X), rtol=0, atol=2e-8)  # gelu_fast writes 0.7978845608
    wanted = {"gelu", "gelu_fast", "gelu_new", "gelu_python", "quick_gelu", "relu", "relu2", "silu", "linear"}
    assert wanted <= set(shared)


def test_names_that_mean_one_function_give_one_object():
    canonical = [
        "gelu", "gelu_tanh", "gelu_sigmoid", "relu", "squared_relu", "silu", "tanh", "sigmoid", "linear", "leaky_relu",
    ]  # fmt: skip
    assert [activation_name(name) for name in canonical] == canonical
    assert len({activation(name) for name in canonical}) == len(canonical)
    assert activation("Swish") is activation("silu")
    assert activation(None) is activation("linear")
    assert activation("gelu_erf") is activation("gelu_python") is activation("gelu")


def test_functions_travel_between_processes():
    x = torch.tensor([-1.0, 2.0])
    for name in ("gelu_tanh", "quick_gelu", "relu2", "linear", "leaky_relu"):
        assert torch.equal(pickle.loads(pickle.dumps(activation(name)))(x), activation(name)(x))


def test_the_plain_ones():
    x = torch.tensor([-2.0, 0.0, 3.0])
    assert activation("relu")(x).tolist() == [0.0, 0.0, 3.0]
    assert activation("squared_relu")(x).tolist() == [0.0, 0.0, 9.0]
    assert activation("linear")(x).tolist() == [-2.0, 0.0, 3.0]
    torch.testing.assert_close(activation("leaky_relu")(x), torch.tensor([-0.4, 0.0, 3.0]))
    torch.testing.assert_close(activation("tanh")(x), torch.tensor([-0.9640276, 0.0, 0.9950548]))
    torch.testing.assert_close(activation("sigmoid")(x), torch.tensor([0.1192029, 0.5, 0.9525741]))
    torch.testing.assert_close(activation("silu")(x), torch.tensor([-0.2384058, 0.0, 2.8577224]))


def test_messages():
    with pytest.raises(ValueError, match=r"no activation 'gleu'; there are gelu, gelu_tanh, .*quick_gelu"):
        activation("gleu")
    with pytest.raises(ValueError, match=r"form must be 'erf', 'tanh' or 'sigmoid', got 'gelu_new'; .*use activation"):
        gelu(X, "gelu_new")
