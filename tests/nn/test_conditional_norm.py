"""Norm: against eq. (1) to (4) in loops, torch, bert4keras; its start, invariances, gradients, precision, messages."""

import copy
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.nn.conditional_norm import Norm

KINDS = ["layer", "rms", "plain_rms"]
needs_data = pytest.mark.skipif("DANLU_DATA" not in os.environ, reason="DANLU_DATA is unset; oracles/layers lie there")


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def trained(norm, seed=0):
    """The norm with every parameter away from its start, in float64."""
    generator = torch.Generator().manual_seed(seed)
    norm.double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return norm


def by_hand(norm, x, c=()):  # eq. (1) to (4) for one vector and one condition, Python floats
    weights = {name: value.tolist() for name, value in norm.state_dict().items()}

    def times(name, vector):
        return [sum(w * v for w, v in zip(row, vector, strict=True)) for row in weights[name]]

    n = len(x)
    mean = sum(x) / n if norm.kind == "layer" else 0.0
    root = math.sqrt(sum((v - mean) ** 2 for v in x) / n + norm.eps)
    if "cond_hidden.weight" in weights:
        c = [math.tanh(v) for v in times("cond_hidden.weight", c)]
    gain, shift = weights.get("weight", [1.0] * n), weights.get("bias", [0.0] * n)
    if "cond_gamma.weight" in weights:
        gain = [g + v for g, v in zip(gain, times("cond_gamma.weight", c), strict=True)]
    if "cond_beta.weight" in weights:
        shift = [s + v for s, v in zip(shift, times("cond_beta.weight", c), strict=True)]
    return [(v - mean) / root * g + s for v, g, s in zip(x, gain, shift, strict=True)]


# values


@pytest.mark.parametrize("kind", KINDS)
def test_plain_equals_the_formula(kind):
    norm, x = trained(Norm(6, kind=kind, eps=0.1)), normal(2, 3, 6) + 1
    expected = [[by_hand(norm, v) for v in row] for row in x.tolist()]
    torch.testing.assert_close(norm(x), torch.tensor(expected, dtype=x.dtype), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [None, 4])
def test_conditioned_equals_the_formula(kind, hidden):
    sizes = {"condition_dim": 3, "condition_hidden": hidden, "condition_activation": "tanh"}
    norm, x, c = trained(Norm(6, kind=kind, eps=0.1, **sizes)), normal(2, 3, 6) + 1, normal(2, 3, seed=1)
    expected = [[by_hand(norm, v, vector) for v in row] for row, vector in zip(x.tolist(), c.tolist(), strict=True)]
    torch.testing.assert_close(norm(x, c), torch.tensor(expected, dtype=x.dtype), rtol=0, atol=1e-13)


def test_one_case_by_head():  # x_hat = [-1, 1], gain [2, .5], shift [.2, .4]
    norm = Norm(2, condition_dim=1).double()
    with torch.no_grad():
        norm.cond_gamma.weight.copy_(torch.tensor([[0.5], [-0.25]]))
        norm.cond_beta.weight.copy_(torch.tensor([[0.1], [0.2]]))
    y = norm(torch.tensor([[[1.0, 3.0]]], dtype=torch.float64), torch.tensor([[2.0]]))
    torch.testing.assert_close(y, torch.tensor([[[-1.8, 0.9]]], dtype=torch.float64), rtol=0, atol=1e-8)


ORACLES = {  # bert4keras' case: kind, epsilon, sizes, names of the weights in its order
    "ln": ("layer", 1e-7, {}, ["bias", "weight"]),
    "ln_eps1e-12": ("layer", 1e-12, {}, ["bias", "weight"]),
    "norm_only": ("layer", 1e-7, {}, []),
    "rms": ("rms", 1e-7, {}, ["weight"]),
    "cln": ("layer", 1e-7, {"condition_dim": 5}, ["bias", "weight", "cond_beta.weight", "cond_gamma.weight"]),
    "cln_hidden": (
        "layer", 1e-7, {"condition_dim": 5, "condition_hidden": 4, "condition_activation": "relu"},
        ["bias", "weight", "cond_hidden.weight", "cond_beta.weight", "cond_gamma.weight"],
    ),
}  # fmt: skip


@needs_data
@pytest.mark.parametrize("name", ORACLES)
def test_bert4keras_agrees(name):
    kind, eps, sizes, keys = ORACLES[name]
    with np.load(Path(os.environ["DANLU_DATA"]) / "oracles/layers/single_layers.npz") as numbers:
        x, c, expected = (torch.from_numpy(numbers[key]) for key in ("x", "cond", f"{name}/out"))
        weights = [torch.from_numpy(numbers[key]) for key in numbers.files if key.startswith(f"{name}/weights/")]
    norm = Norm(12, kind=kind, eps=eps, **sizes)
    given = {key: w.T if "cond" in key else w for key, w in zip(keys, weights, strict=True)}
    norm.load_state_dict(given, strict=bool(given))
    got = norm(x, c) if sizes else norm(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    if name == "rms":  # with the gain taken out again
        plain = Norm(12, kind="plain_rms", eps=eps)(x)
        torch.testing.assert_close(plain, expected / given["weight"], rtol=2e-6, atol=2e-6)


# the start


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("hidden", [None, 3])
@pytest.mark.parametrize("dim", [5, 64, 768])
def test_untrained_conditions_change_no_bit(dtype, hidden, dim):
    norm = Norm(dim, condition_dim=4, condition_hidden=hidden)
    with torch.no_grad():
        norm.weight.copy_(normal(dim))
        norm.bias.copy_(normal(dim, seed=1))
    norm.to(dtype)
    x, c = (normal(2, 3, dim, seed=2) * 3 + 1).to(dtype), 1e3 * normal(2, 4, seed=3).to(dtype)
    assert torch.equal(norm(x, c), F.layer_norm(x, (dim,), norm.weight, norm.bias, norm.eps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_untrained_rms_changes_no_bit(dtype):
    for kind in ("rms", "plain_rms"):
        conditioned, plain = Norm(64, kind=kind, condition_dim=4).to(dtype), Norm(64, kind=kind).to(dtype)
        x = normal(2, 3, 64).to(dtype)
        assert torch.equal(conditioned(x, normal(2, 4).to(dtype)), plain(x))


def test_start_of_the_matrices():
    torch.manual_seed(0)
    norm = Norm(768, condition_dim=128, condition_hidden=64)
    assert not norm.cond_gamma.weight.any() and not norm.cond_beta.weight.any()
    bottleneck = norm.cond_hidden.weight
    assert bottleneck.abs().max() <= 0.04  # cut at two standard deviations, which leaves 0.88 of the standard deviation
    assert bottleneck.std().item() == pytest.approx(0.0176, abs=4 * 0.0176 / math.sqrt(2 * bottleneck.numel()))


def test_gradients_at_the_start():
    norm = Norm(4, condition_dim=3, condition_hidden=2).double()
    c = normal(2, 3).requires_grad_()
    (norm(normal(2, 5, 4), c) * normal(2, 5, 4, seed=1)).sum().backward()
    assert not c.grad.any() and not norm.cond_hidden.weight.grad.any()
    assert norm.cond_gamma.weight.grad.abs().min() > 0 and norm.cond_beta.weight.grad.abs().min() > 0
    c.grad, norm.cond_hidden.weight.grad = None, None
    trained(norm)
    (norm(normal(2, 5, 4), c) * normal(2, 5, 4, seed=1)).sum().backward()
    assert c.grad.abs().min() > 0 and norm.cond_hidden.weight.grad.abs().min() > 0


def test_names_are_those_of_checkpoints():
    norm = Norm(4, condition_dim=3, condition_hidden=2)
    assert {name: tuple(value.shape) for name, value in norm.state_dict().items()} == {
        "weight": (4,),
        "bias": (4,),
        "cond_gamma.weight": (4, 2),
        "cond_beta.weight": (4, 2),
        "cond_hidden.weight": (2, 3),
    }
    assert list(Norm(4, kind="rms", condition_dim=3).state_dict()) == ["weight", "cond_gamma.weight"]
    assert list(Norm(4, kind="plain_rms", condition_dim=3).state_dict()) == ["cond_gamma.weight"]
    assert list(Norm(4, kind="plain_rms").state_dict()) == []
    plain = Norm(4)
    plain.load_state_dict(nn.LayerNorm(4).state_dict())


# invariances


def test_scale_and_offset_of_x_do_not_matter():
    c = normal(2, 3)
    for kind, offset in (("layer", 5.0), ("rms", 0.0), ("plain_rms", 0.0)):
        norm, x = trained(Norm(6, kind=kind, condition_dim=3)), normal(2, 4, 6)
        torch.testing.assert_close(norm(7 * x + offset, c), norm(x, c), rtol=0, atol=1e-9)


def test_output_is_affine_in_the_condition():
    norm, x, a, b = trained(Norm(6, condition_dim=3)), normal(2, 4, 6), normal(2, 3), normal(2, 3, seed=1)
    mixed = 0.25 * norm(x, a) + 0.75 * norm(x, b)
    torch.testing.assert_close(norm(x, 0.25 * a + 0.75 * b), mixed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [None, 2])
def test_each_row_follows_its_own_condition(kind, hidden):
    norm = trained(Norm(6, kind=kind, condition_dim=3, condition_hidden=hidden))
    x, c = normal(3, 4, 6), normal(3, 3)
    together = norm(x, c)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], norm(x[i : i + 1], c[i : i + 1]))
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(norm(x[order], c[order]), together[order])
    rows = torch.tensor([0, 2, 2, 1, 0])  # tokens without padding
    positions = torch.tensor([0, 1, 3, 2, 3])
    torch.testing.assert_close(norm(x[rows, positions], c, rows), together[rows, positions])
    per_token = c[:, None].expand(3, 4, 3)
    torch.testing.assert_close(norm(x, per_token), together)
    torch.testing.assert_close(norm(x[:, 0], c), together[:, 0])
    torch.testing.assert_close(norm(x.reshape(3, 2, 2, 6), c).reshape(3, 4, 6), together)


# gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [None, torch.tensor([1, 0, 1])])
def test_gradcheck(kind, rows):
    norm = trained(Norm(4, kind=kind, eps=0.01, condition_dim=3, condition_hidden=2, condition_activation="tanh"))
    names = [name for name, _ in norm.named_parameters()]
    x, c = normal(*((2, 2, 4) if rows is None else (3, 4))), normal(2, 3, seed=1)
    values = [value.detach().clone().requires_grad_() for value in (x, c, *norm.parameters())]

    def run(x, c, *parameters):
        return torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), (x, c, rows))

    assert torch.autograd.gradcheck(run, values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_variance_stay_finite(kind, dtype):
    norm = trained(Norm(6, kind=kind, eps=1e-12, condition_dim=3)).to(dtype)
    x, c = torch.zeros(2, 4, 6, dtype=dtype, requires_grad=True), normal(2, 3).to(dtype).requires_grad_()
    y = norm(x, c)
    y.sum().backward()
    shift = 0 if norm.bias is None else norm.gain_and_shift(c)[1].to(dtype)[:, None]
    assert torch.equal(y, torch.zeros_like(y) + shift)
    assert x.grad.isfinite().all() and c.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in norm.parameters())


def test_one_feature_has_only_its_shift():
    norm, c = trained(Norm(1, condition_dim=3)), normal(2, 3)
    torch.testing.assert_close(norm(normal(2, 4, 1), c), norm.gain_and_shift(c)[1][:, None].expand(2, 4, 1))


# half precision


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", ["half", "float32"])
def test_half_precision_is_rounded_once(kind, half, parameters):
    x, c = (normal(2, 3, 64) * 5).to(half), normal(2, 4).to(half)
    for sizes in ({}, {"condition_dim": 4, "condition_hidden": 3}):
        norm = trained(Norm(64, kind=kind, **sizes)).to(half).float()
        condition = (c.float(),) if sizes else ()
        exact = norm(x.float(), *condition).to(half)
        got = (norm.to(half) if parameters == "half" else norm)(x, *((c,) if sizes else ()))
        assert got.dtype == half
        assert (got != exact).float().mean() < 0.02  # the kernels add in another order, which rarely turns a rounding
        torch.testing.assert_close(got, exact, rtol=2 * torch.finfo(half).eps, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_reach_the_gain(kind):
    norm, x, c = trained(Norm(64, kind=kind, condition_dim=32)).float(), normal(2, 3, 64).float(), normal(2, 32).float()
    plain = trained(Norm(64, kind=kind)).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x, c), norm(x, c)) and norm(x, c).dtype == torch.float32
        under, under_plain, of_half = norm(x, c), plain(x), plain(x.bfloat16())
    assert torch.equal(under, norm(x, c)) and torch.equal(under_plain, plain(x))
    assert of_half.dtype == torch.bfloat16


def test_float64_meets_float32():
    norm, x = trained(Norm(6)).float(), normal(2, 3, 6)
    assert norm(x).dtype == torch.float64
    torch.testing.assert_close(norm(x), copy.deepcopy(norm).double()(x))
    assert norm.double()(x.float()).dtype == torch.float32


# messages


def test_beams_do_not_borrow_conditions():
    norm, c = Norm(6, condition_dim=3), torch.zeros(2, 3)
    for rows in (4, 1, 3):
        with pytest.raises(ValueError, match=rf"\(2, 3\) does not fit x \({rows}, 5, 6\).*repeat_interleave\(k"):
            norm(torch.zeros(rows, 5, 6), c)
    with pytest.raises(ValueError, match=r"condition \(1, 3\) does not fit x \(2, 5, 6\).*expand\(rows, -1\)"):
        norm(torch.zeros(2, 5, 6), c[:1])
    with pytest.raises(ValueError, match=r"condition \(3,\) does not fit"):
        norm(torch.zeros(2, 5, 6), c[0, 0].expand(3))
    with pytest.raises(ValueError, match=r"condition \(2, 5, 1, 3\) does not fit"):
        norm(torch.zeros(2, 5, 6), torch.zeros(2, 5, 1, 3))


def test_messages():
    conditioned = Norm(6, condition_dim=3)
    with pytest.raises(ValueError, match=r"follows a condition of 3 numbers and none was given; pass condition="):
        conditioned(torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"takes conditions of 3 numbers; got condition \(2, 4\)"):
        conditioned(torch.zeros(2, 6), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"this norm takes no condition; build it .*add_condition"):
        Norm(6)(torch.zeros(2, 6), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"this norm takes no condition; build it with condition_dim"):
        Norm(6).gain_and_shift(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"this norm is over 6 features; got x \(2, 5\)"):
        Norm(6)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"rows \(N,\) go with x \(N, 6\) .*got rows \(3,\), x \(2, 6\), cond"):
        conditioned(torch.zeros(2, 6), torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"kind must be one of layer, rms, plain_rms; got 'batch'"):
        Norm(6, kind="batch")
    with pytest.raises(ValueError, match=r"must be at least 1 .*got 6, 0 and None"):
        Norm(6, condition_dim=0)
    with pytest.raises(ValueError, match=r"got 6, 3 and -1"):
        Norm(6, condition_dim=3, condition_hidden=-1)
    with pytest.raises(ValueError, match=r"eps must be above 0, got 0.0"):
        Norm(6, eps=0.0)
    with pytest.raises(ValueError, match=r"condition_hidden is the bottleneck of a condition; give condition_dim too"):
        Norm(6, condition_hidden=2)
    with pytest.raises(ValueError, match=r"no activation 'rele'"):
        Norm(6, condition_dim=3, condition_hidden=2, condition_activation="rele")
