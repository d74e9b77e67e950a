"""attention_normalize: bert4keras' numbers, loops, identities, queries without keys, gradcheck, messages."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from danlu.math import attention_normalize, softmax_plus_scale

KINDS = ["softmax", "squared_relu", "softmax_plus"]
GENERATOR = torch.Generator().manual_seed(0)
A = torch.randn(2, 3, 20, dtype=torch.float64, generator=GENERATOR)
MASK = torch.rand(2, 1, 20, generator=GENERATOR) < 0.9


def by_hand(scores, mask, kind):  # oracle: the equations with Python floats, a row at a time
    out = []
    for row, keep in zip(
        scores.reshape(-1, scores.shape[-1]).tolist(), mask.reshape(-1, scores.shape[-1]), strict=True
    ):
        n = int(keep.sum())
        if kind == "squared_relu":
            out.append([max(a, 0) ** 2 / n if k else 0.0 for a, k in zip(row, keep, strict=True)])
            continue
        c = math.log(max(n, 16)) / math.log(512) if kind == "softmax_plus" else 1.0
        total = sum(math.exp(c * a) for a, k in zip(row, keep, strict=True) if k)
        out.append([math.exp(c * a) / total if k else 0.0 for a, k in zip(row, keep, strict=True)])
    return torch.tensor(out, dtype=scores.dtype).reshape(scores.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_formula(kind):
    assert MASK.sum(-1).min() > 16  # the floor of eq. (4) is not what is tested here
    full = torch.ones_like(A, dtype=torch.bool)
    torch.testing.assert_close(attention_normalize(A, None, kind), by_hand(A, full, kind))
    torch.testing.assert_close(attention_normalize(A, MASK, kind), by_hand(A, full & MASK, kind))
    few = MASK & (torch.arange(20) < 5)
    torch.testing.assert_close(attention_normalize(A, few, kind), by_hand(A, full & few, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_minus_infinity_forbids_as_the_mask_does(kind):
    got = attention_normalize(A.masked_fill(~MASK, -torch.inf), None, kind)
    torch.testing.assert_close(got, attention_normalize(A, MASK, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_another_dimension(kind):
    got = attention_normalize(A.mT, MASK.mT, kind, dim=1)
    torch.testing.assert_close(got.mT, attention_normalize(A, MASK, kind))


@pytest.mark.data
@pytest.mark.parametrize("kind", KINDS)
def test_equals_bert4keras(shared, kind):
    with np.load(shared / "oracles" / "layers" / "functions.npz") as file:
        z = {name: torch.from_numpy(file[f"attn_norm/{name}"]) for name in ["scores", "mask", kind, f"{kind}_causal"]}
    keys = z["mask"][:, None, None, :]
    causal = keys & torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(attention_normalize(z["scores"], keys, kind), z[kind], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        attention_normalize(z["scores"], causal, kind), z[f"{kind}_causal"], atol=1e-6, rtol=1e-5
    )


def test_softmax_is_torchs_own():
    torch.testing.assert_close(attention_normalize(A), A.softmax(-1))


def test_softmax_plus_is_softmax_at_512_keys():
    a = torch.randn(2, 512, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(attention_normalize(a, None, "softmax_plus"), a.softmax(-1))


def test_scaled_queries_give_softmax_plus_to_the_fused_kernel():
    q, k, v = torch.randn(3, 2, 20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    keep = (MASK & torch.ones(20, 20, dtype=torch.bool).tril()) | torch.eye(20, dtype=torch.bool)
    weights = attention_normalize(q @ k.mT / 2, keep, "softmax_plus")
    fused = F.scaled_dot_product_attention(q * softmax_plus_scale(keep.sum(-1, keepdim=True).double()), k, v, keep)
    torch.testing.assert_close(fused, weights @ v)


@pytest.mark.parametrize("kind", KINDS)
def test_a_query_without_keys_sees_nothing_and_trains_nothing(kind):
    mask = MASK & torch.tensor([[[True]], [[False]]])
    a = A.masked_fill(~mask, math.nan).requires_grad_()
    out = attention_normalize(a, mask, kind)
    assert not out[1].any()
    torch.testing.assert_close(out[0], attention_normalize(A, MASK, kind)[0])
    with torch.autograd.set_detect_anomaly(True, check_nan=True):  # not even inside the backward pass
        attention_normalize(a, mask, kind).square().sum().backward()
    assert a.grad.isfinite().all()
    assert not a.grad[~mask.expand_as(a)].any()
    assert not attention_normalize(torch.full((3,), -torch.inf), None, kind).any()


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    a = A[:, :2, :6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: attention_normalize(s, MASK[..., :6], kind), a)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32(kind):
    got = attention_normalize(A.bfloat16(), MASK, kind)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, attention_normalize(A.bfloat16().float(), MASK, kind).bfloat16())


def test_counts_beyond_the_whole_numbers_of_half_precision():
    assert softmax_plus_scale(torch.tensor(512)).item() == 1.0
    assert softmax_plus_scale(torch.tensor(0)) == softmax_plus_scale(torch.tensor(16))
    assert softmax_plus_scale(torch.tensor(511, dtype=torch.float64)).item() == math.log(511) / math.log(512)


def test_messages():
    with pytest.raises(ValueError, match="kind must be 'softmax', 'squared_relu' or 'softmax_plus', got 'sigmoid'"):
        attention_normalize(A, kind="sigmoid")
    for mask in (MASK.long(), MASK[..., :7], torch.ones(5, 2, 3, 20, dtype=torch.bool)):
        with pytest.raises(
            ValueError, match=r"mask must be bool.*\(2, 3, 20\); got torch\.\w+ \(.*mask\[:, None, None"
        ):
            attention_normalize(A, mask)
