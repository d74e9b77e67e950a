"""Pooling: bert4keras' numbers, loops, order of time, empty rows, nan behind the mask, finite differences, messages."""

import math

import numpy as np
import pytest
import torch

from danlu.nn import pool

KINDS = ["mean", "max", "cls", "first_last_mean"]
LAYERS = torch.randn(3, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[True, True, False, True, False], [True] * 5, [False, False, True, True, False]])


def by_hand(layers, mask, kind):  # oracle: eq. (1) to (4) with Python numbers
    out = []
    for b, keep in enumerate(mask.tolist()):
        h = [layers[-1][b][t].tolist() for t, k in enumerate(keep) if k]
        if kind == "first_last_mean":
            f = [layers[0][b][t].tolist() for t, k in enumerate(keep) if k]
            h = [[(x + y) / 2 for x, y in zip(one, two, strict=True)] for one, two in zip(f, h, strict=True)]
        columns = list(zip(*h, strict=True))
        if kind == "cls":
            out.append(h[0])
        elif kind == "max":
            out.append([max(c) for c in columns])
        else:
            out.append([sum(c) / len(c) for c in columns])
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_formula(kind):
    torch.testing.assert_close(pool(list(LAYERS), MASK, kind), by_hand(LAYERS, MASK, kind))
    torch.testing.assert_close(pool(tuple(LAYERS), None, kind), by_hand(LAYERS, torch.ones_like(MASK), kind))


@pytest.mark.parametrize("kind", KINDS[:3])
def test_one_tensor_is_its_own_last_layer(kind):
    torch.testing.assert_close(pool(LAYERS[2], MASK, kind), pool(list(LAYERS), MASK, kind), rtol=0, atol=0)


@pytest.mark.data
def test_equals_bert4keras(shared):
    with np.load(shared / "oracles" / "layers" / "single_layers.npz") as file:
        x, mask, mean, top = (torch.from_numpy(file[k]) for k in ("x", "mask", "gap_masked", "gmp_masked"))
    torch.testing.assert_close(pool(x, mask, "mean"), mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(pool(x, mask, "max"), top, atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_keep_nothing_are_zero_and_train_nothing(kind):
    layers = LAYERS.clone().requires_grad_()
    mask = MASK & torch.tensor([[True], [False], [True]])
    out = pool(list(layers), mask, kind)
    assert not out[1].any()
    out.sum().backward()
    assert layers.grad.isfinite().all()
    assert not layers.grad[:, 1].any()
    assert not pool(list(LAYERS[:, :, :0]), MASK[:, :0], kind).any()
    assert pool(list(LAYERS[:, :, :0]), None, kind).shape == (3, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_masked_may_be_nan(kind):
    dirty = LAYERS.masked_fill(~MASK[..., None], math.nan).requires_grad_()
    out = pool(list(dirty), MASK, kind)
    torch.testing.assert_close(out, pool(list(LAYERS), MASK, kind))
    out.sum().backward()
    assert dirty.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["mean", "max", "first_last_mean"])
def test_order_of_time_does_not_matter(kind):
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(pool(list(LAYERS[:, :, order]), MASK[:, order], kind), pool(list(LAYERS), MASK, kind))


def test_cls_is_the_first_token_also_behind_padding_on_the_left():
    out = pool(LAYERS[0], MASK, "cls")
    assert torch.equal(out, torch.stack([LAYERS[0, 0, 0], LAYERS[0, 1, 0], LAYERS[0, 2, 2]]))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    assert torch.autograd.gradcheck(lambda x: pool(list(x), MASK, kind), LAYERS.clone().requires_grad_())


def test_a_mean_of_many_in_half_precision():  # bfloat16 knows no 257: a sum in it would be 256
    x = torch.ones(1, 257, 2, dtype=torch.bfloat16)
    for kind in KINDS:
        out = pool([x, x], None, kind)
        assert out.dtype == torch.bfloat16
        assert out.tolist() == [[1.0, 1.0]]


def test_messages():
    with pytest.raises(ValueError, match="'mean', 'max', 'cls' or 'first_last_mean', got 'sum'"):
        pool(LAYERS[0], MASK, "sum")
    with pytest.raises(ValueError, match=r"list of layers of that one shape; got \[\(3, 5\)\]"):
        pool(LAYERS[0, ..., 0], MASK)
    with pytest.raises(ValueError, match=r"got \[\(3, 4, 4\), \(3, 5, 4\)\]"):
        pool([LAYERS[0], LAYERS[0, :, :4]], MASK)
    with pytest.raises(ValueError, match=r"got \[\]"):
        pool([], MASK)
    with pytest.raises(ValueError, match=r"at least two layers, got one.*kind='mean'"):
        pool(LAYERS[0], MASK, "first_last_mean")
    with pytest.raises(ValueError, match=r"mask must be bool \(3, 5\).*got torch.int64 \(3, 5\).*mask.bool"):
        pool(LAYERS[0], MASK.long())
    with pytest.raises(ValueError, match=r"mask must be bool \(3, 5\).*got torch.bool \(3, 4\)"):
        pool(LAYERS[0], MASK[:, :4])
