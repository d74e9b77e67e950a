"""GlobalPointer: bert4keras' numbers, loops over spans, each form against the other, masks, decoding, messages."""

import cmath
import math

import numpy as np
import pytest
import torch

from danlu.losses import sparse_multilabel_cross_entropy
from danlu.nn import EfficientGlobalPointer, GlobalPointer, decode_spans

POINTERS = [GlobalPointer, EfficientGlobalPointer]
X = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[True, True, True, False, True], [False, True, True, False, False]])


def make(kind, **options):
    torch.manual_seed(1)
    pointer = kind(3, num_types=2, head_size=4, **options).double()
    for parameter in pointer.parameters():
        torch.nn.init.normal_(parameter)
    return pointer


def turned(q, k, i, j):
    """q at i times k at j after rotation: the real part of complex products, the pairs as complex numbers."""
    total = 0.0
    for n in range(len(q) // 2):
        a, b = complex(q[2 * n], q[2 * n + 1]), complex(k[2 * n], k[2 * n + 1])
        total += (a * b.conjugate() * cmath.exp(1j * (i - j) * 10000 ** (-2 * n / len(q)))).real
    return total


def by_hand(pointer, x, mask=None):  # oracle: eq. (1) to (4) span by span, with Python numbers
    def linear(layer, v):
        bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
        return [
            sum(a * b for a, b in zip(ws, v, strict=True)) + c
            for ws, c in zip(layer.weight.tolist(), bias, strict=True)
        ]

    size, types = pointer.head_size, pointer.num_types
    out = torch.full((len(x), types, x.shape[1], x.shape[1]), -math.inf, dtype=x.dtype)
    for b, sentence in enumerate(x.tolist()):
        for i, first in enumerate(sentence):
            for j, last in enumerate(sentence):
                if pointer.lower_triangle_masked and j < i:
                    continue
                if mask is not None and not (mask[b, i] and mask[b, j]):
                    continue
                for h in range(types):
                    if isinstance(pointer, GlobalPointer):
                        q = linear(pointer.dense, first)[2 * h * size : (2 * h + 1) * size]
                        k = linear(pointer.dense, last)[(2 * h + 1) * size : (2 * h + 2) * size]
                        extra = 0.0
                    else:
                        z, y = linear(pointer.p_dense, first), linear(pointer.p_dense, last)
                        q, k = z[::2], y[1::2]
                        extra = (linear(pointer.q_dense, y)[2 * h] + linear(pointer.q_dense, z)[2 * h + 1]) / 2
                    angle = (i, j) if pointer.rotary else (0, 0)
                    out[b, h, i, j] = turned(q, k, *angle) / math.sqrt(size) + extra
    return out


@pytest.mark.parametrize("kind", POINTERS)
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("triangle", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_formula(kind, rotary, triangle, bias):
    pointer = make(kind, rotary=rotary, lower_triangle_masked=triangle, bias=bias)
    torch.testing.assert_close(pointer(X), by_hand(pointer, X))
    torch.testing.assert_close(pointer(X, MASK), by_hand(pointer, X, MASK))


@pytest.mark.data
@pytest.mark.parametrize("kind", POINTERS)
@pytest.mark.parametrize("case", [f"{i}_rope{r}_tril{t}" for i in (0, 1) for r in (0, 1) for t in (0, 1)])
def test_equals_bert4keras(shared, kind, case):  # numbers of bert4keras 0.11.5 on TensorFlow 2.15, float32
    with np.load(shared / "oracles" / "layers" / f"{kind.__name__}_{case}.npz") as file:
        z = {key: torch.from_numpy(file[key]) for key in file.files}
    pointer = kind(z["inputs"].shape[2], int(z["heads"]), int(z["head_size"]), "rope1" in case, "tril1" in case)
    weights = [value for key, value in sorted(z.items()) if key.startswith("weights/")]  # in the order of creation
    with torch.no_grad():
        for parameter, value in zip(pointer.parameters(), weights, strict=True):
            parameter.copy_(value.t())
    torch.testing.assert_close(pointer(z["inputs"], z["mask"]), z["logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pointer(z["inputs"]), z["logits_no_mask"], atol=1e-5, rtol=1e-5)


def test_efficient_is_the_full_one_with_shared_heads_and_rank_one_biases():
    efficient = make(EfficientGlobalPointer, rotary=False)
    full = make(GlobalPointer, rotary=False)
    weight, bias = efficient.p_dense.weight, efficient.p_dense.bias
    with torch.no_grad():
        for h in range(2):
            full.dense.weight[8 * h : 8 * h + 8] = torch.cat([weight[::2], weight[1::2]])
            full.dense.bias[8 * h : 8 * h + 8] = torch.cat([bias[::2], bias[1::2]])
    uv = efficient.q_dense(efficient.p_dense(X)) / 2  # (B, T, 2H)
    expected = full(X) + uv[..., 0::2].mT[:, :, None, :] + uv[..., 1::2].mT[:, :, :, None]
    torch.testing.assert_close(efficient(X), expected)


@pytest.mark.parametrize("kind", POINTERS)
def test_a_shift_of_the_sentence_shifts_the_scores(kind):
    pointer = make(kind)
    shifted = torch.cat([torch.zeros(2, 3, 3, dtype=X.dtype), X], dim=1)
    torch.testing.assert_close(pointer(shifted)[..., 3:, 3:], pointer(X))


@pytest.mark.parametrize("kind", POINTERS)
def test_with_rotation_equal_tokens_tell_lengths_apart(kind):
    same = X[:, :1].expand(-1, 5, -1)
    lengths = make(kind)(same)[0, 0, 0]
    assert (lengths[1:] - lengths[:-1]).abs().min() > 1e-3
    lengths = make(kind, rotary=False)(same)[0, 0, 0]
    torch.testing.assert_close(lengths, lengths[:1].expand(5))


@pytest.mark.parametrize("kind", POINTERS)
def test_what_is_masked_may_be_nan(kind):
    pointer = make(kind)
    dirty = X.masked_fill(~MASK[..., None], math.nan)
    logits = pointer(dirty, MASK)
    torch.testing.assert_close(logits, pointer(X, MASK))
    sparse_multilabel_cross_entropy(logits.flatten(2), torch.tensor([[[6], [-1]], [[7], [-1]]])).backward()
    assert all(parameter.grad.isfinite().all() for parameter in pointer.parameters())


@pytest.mark.parametrize("kind", POINTERS)
def test_gradcheck(kind):
    pointer = make(kind, lower_triangle_masked=False)
    assert torch.autograd.gradcheck(lambda x: pointer(x), X.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda *_: pointer(X).tanh(), tuple(pointer.parameters()))


@pytest.mark.parametrize("kind", POINTERS)
def test_it_learns_nested_spans(kind):
    """The reason for the method: a span inside another of its type, and one that crosses both, all in one pass."""
    gold = {(0, 5, 0), (1, 3, 0), (2, 4, 1), (0, 1, 1)}
    torch.manual_seed(0)
    pointer, x = kind(8, 2, 8), torch.randn(1, 5, 8)
    target = torch.tensor([[[0 * 5 + 4, 1 * 5 + 2], [2 * 5 + 3, 0]]])
    optimizer = torch.optim.Adam(pointer.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        sparse_multilabel_cross_entropy(pointer(x).flatten(2), target).backward()
        optimizer.step()
    (found,) = decode_spans(pointer(x))
    assert {span[:3] for span in found} == gold


def test_weights_start_with_the_variance_of_lecun():
    torch.manual_seed(0)
    for pointer in (GlobalPointer(100, 5), EfficientGlobalPointer(100, 5)):
        weight = next(pointer.parameters())
        count = weight.numel()
        assert abs(weight.var().item() * 100 - 1) < 4 * math.sqrt(2 / count)
        assert weight.abs().max() <= 2 * 0.1 / 0.8796
        assert not any(p.any() for name, p in pointer.named_parameters() if name.endswith("bias"))


# --- decoding ----------------------------------------------------------------------------------------------------


def test_decoding_equals_a_loop():
    logits = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(3))
    mask = torch.rand(3, 6, generator=torch.Generator().manual_seed(4)) < 0.7
    for threshold in (0.0, 0.5, -100.0):
        expected = [
            [
                (i, j + 1, h, logits[b, h, i, j].item())
                for i in range(6)
                for j in range(i, 6)
                for h in range(2)
                if logits[b, h, i, j] > threshold and mask[b, i] and mask[b, j]
            ]
            for b in range(3)
        ]
        assert decode_spans(logits, mask, threshold) == expected
    everything = decode_spans(logits, threshold=-100.0)
    assert [len(row) for row in everything] == [2 * 21] * 3


def test_decoding_takes_what_the_pointer_gives():
    pointer = make(GlobalPointer)
    logits = pointer(X, MASK)
    assert decode_spans(logits) == decode_spans(logits, MASK)
    assert decode_spans(logits.bfloat16(), threshold=1e6) == [[], []]
    assert decode_spans(logits[:0]) == []
    assert decode_spans(logits[..., :0, :0]) == [[], []]
    before = logits.detach().clone()
    decode_spans(logits, ~MASK)
    assert torch.equal(logits, before)


def test_zero_is_not_above_the_threshold():
    assert decode_spans(torch.zeros(1, 1, 2, 2)) == [[]]
    assert decode_spans(torch.full((1, 1, 2, 2), math.nan)) == [[]]


def test_messages():
    with pytest.raises(ValueError, match="head_size even where rotary is on; got 3, 2 and 5"):
        GlobalPointer(3, 2, head_size=5)
    with pytest.raises(ValueError, match=r"at least 1.*got 3, 0 and 64"):
        EfficientGlobalPointer(3, 0)
    GlobalPointer(3, 2, head_size=5, rotary=False)
    for pointer in (make(GlobalPointer), make(EfficientGlobalPointer)):
        with pytest.raises(ValueError, match=r"needs x \(batch, tokens, 3\); got \(2, 5, 2\)"):
            pointer(X[..., :2])
        with pytest.raises(ValueError, match=r"mask must be bool \(2, 5\).*got torch.int64 \(2, 5\).*mask.bool"):
            pointer(X, MASK.long())
    with pytest.raises(ValueError, match=r"logits \(batch, types, tokens, tokens\); got \(2, 5, 3\)"):
        decode_spans(X)
    with pytest.raises(ValueError, match=r"mask must be bool \(1, 2\).*got torch.bool \(2, 5\)"):
        decode_spans(torch.zeros(1, 1, 2, 2), MASK)
