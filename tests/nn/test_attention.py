"""Attention: eqs. (1) and (2) by loops, both code paths against each other, masks, packing, gradients."""

import math

import pytest
import torch

from danlu.nn.attention import AttentionContext, MultiHeadAttention, attend, causal_mask, unilm_mask
from danlu.nn.layout import packed_layout, padded_layout

G = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=G)


def by_loops(q, k, v, mask, bias, scale, relative, previous):
    """Eqs. (1) and (2) one pair at a time, with Python floats."""
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for j in range(q.shape[2]):
                scores, values = [], []
                for s in range(k.shape[2]):
                    if mask is not None and not mask[b, 0, j, s]:
                        continue
                    r = relative[0][relative[1][j, s]] if relative is not None else torch.zeros(k.shape[3]).double()
                    score = (q[b, h, j] @ (k[b, h, s] + r)).item() * scale
                    score += float(bias[0, h, j, s]) if bias is not None else 0.0
                    score += float(previous[b, h, j, s]) if previous is not None else 0.0
                    scores.append(score)
                    values.append(v[b, h, s] + r if relative is not None else v[b, h, s])
                top = max(scores)
                weights = [math.exp(score - top) for score in scores]
                out[b, h, j] = sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
    return out


Q, K, V = normal(2, 3, 4, 5), normal(2, 3, 4, 5), normal(2, 3, 4, 5)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)[:, None, None, :].expand(2, 1, 4, 4)
BIAS, PREVIOUS = normal(1, 3, 4, 4), normal(2, 3, 4, 4)
RELATIVE = (normal(7, 5), torch.tensor([[3, 4, 5, 6], [2, 3, 4, 5], [1, 2, 3, 4], [0, 1, 2, 3]]))


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("bias", [None, BIAS])
@pytest.mark.parametrize("relative", [None, RELATIVE])
@pytest.mark.parametrize("previous", [None, PREVIOUS])
def test_equals_the_formula(mask, bias, relative, previous):
    got, _ = attend(Q, K, V, mask=mask, bias=bias, scale=0.4, relative=relative, previous=previous)
    torch.testing.assert_close(got, by_loops(Q, K, V, mask, bias, 0.4, relative, previous))


@pytest.mark.parametrize("bias", [None, BIAS])
@pytest.mark.parametrize("mask", [None, MASK])
def test_fused_and_written_out_agree(mask, bias):
    for causal in (False, True):
        seen = causal_mask(4, 4)[None, None] & (torch.ones(1, 1, 4, 4, dtype=torch.bool) if mask is None else mask)
        fused, none = attend(Q, K, V, mask=mask, bias=bias, causal=causal, scale=0.3)
        plain, scores = attend(Q, K, V, mask=mask, bias=bias, causal=causal, scale=0.3, return_scores=True)
        assert none is None
        torch.testing.assert_close(fused, plain)
        torch.testing.assert_close(scores, Q @ K.mT * 0.3)  # before bias and mask
        torch.testing.assert_close(
            fused, by_loops(Q, K, V, seen.expand(2, 1, 4, 4) if causal else mask, bias, 0.3, None, None)
        )


def test_a_causal_query_block_ends_at_the_last_key():
    got, _ = attend(Q[:, :, 2:], K, V, causal=True)
    whole, _ = attend(Q, K, V, causal=True)
    torch.testing.assert_close(got, whole[:, :, 2:])


def test_unilm_reads_the_source_both_ways():
    allowed = unilm_mask(torch.tensor([[0, 0, 1, 1]]))[0]
    assert allowed.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert unilm_mask(torch.ones(1, 3, dtype=torch.long))[0].tolist() == causal_mask(3, 3).tolist()
    assert unilm_mask(torch.zeros(1, 3, dtype=torch.long)).all()


def test_gradcheck_with_relative_vectors():
    inputs = [part[:1, :1, :2, :3].clone().requires_grad_() for part in (Q, K, V)]
    table, pairs = normal(3, 3), torch.tensor([[1, 2], [0, 1]])
    assert torch.autograd.gradcheck(lambda *x: attend(*x, scale=0.5, relative=(table, pairs))[0], inputs)


def test_padded_and_packed_agree():
    torch.manual_seed(0)
    layer = MultiHeadAttention(6, 2, 3, 4).double()
    keep = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    x = normal(3, 4, 6)
    for causal in (False, True):
        packed, padded = packed_layout(keep), padded_layout(3, 4, keep)
        a = packed.scatter(layer(packed.gather(x), AttentionContext(packed, causal=causal)))
        b = padded.scatter(layer(padded.gather(x), AttentionContext(padded, causal=causal)))
        torch.testing.assert_close(a, b * keep[..., None])
        assert b.isfinite().all()


def test_left_padding_stays_finite_and_unseen():
    torch.manual_seed(0)
    layer = MultiHeadAttention(6, 2, 3, 3).double()
    x = normal(1, 3, 6)
    keep = torch.tensor([[False, True, True]])
    padded = padded_layout(1, 3, keep)
    got = layer(x[0], AttentionContext(padded, causal=True))
    alone = layer(x[0, 1:], AttentionContext(padded_layout(1, 2), causal=True))
    assert got.isfinite().all()
    torch.testing.assert_close(got[1:], alone)


def test_realformer_sums_and_bert4keras_does_not():
    torch.manual_seed(0)
    layers = [MultiHeadAttention(6, 2, 3, 3).double() for _ in range(3)]
    x = normal(4, 6)

    def run(kind):
        context = AttentionContext(padded_layout(1, 4), realformer=kind)
        outs = []
        for layer in layers:  # the same input to each, so that only the scores differ
            outs.append(layer(x, context))
        return outs, context.scores[0]

    raw = [
        (layer.project(x)[0].transpose(0, 1) @ layer.project(x)[1].permute(1, 2, 0)) * layer.scale for layer in layers
    ]
    summed, handed = run("sum")
    last, own = run("last")
    torch.testing.assert_close(handed[0], raw[0] + raw[1] + raw[2])
    torch.testing.assert_close(own[0], raw[2])
    torch.testing.assert_close(summed[1], last[1])
    assert not torch.allclose(summed[2], last[2])


def test_cross_attention_equals_the_formula():
    torch.manual_seed(0)
    layer = MultiHeadAttention(6, 2, 3, 4, bias=False, scaled=False).double()
    x, source, keep = (
        normal(2, 3, 6),
        normal(2, 5, 6),
        torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool),
    )
    got = layer.cross(x, source, mask=keep, bias=None, dropout=0.0)
    q, k, v = (
        linear(part).unflatten(-1, (2, -1)).transpose(1, 2)
        for linear, part in ((layer.query, x), (layer.key, source), (layer.value, source))
    )
    want = by_loops(q, k, v, keep[:, None, None, :].expand(2, 1, 3, 5), None, 1.0, None, None)
    torch.testing.assert_close(got, layer.output(want.transpose(1, 2).flatten(2)))


def test_training_in_bfloat16_follows_float64():
    parts = [part.bfloat16().requires_grad_() for part in (Q, K, V)]
    exact = [part.detach().double().requires_grad_() for part in parts]
    towards = normal(2, 3, 4, 5)
    outputs = [attend(*some, scale=0.5)[0] for some in (parts, exact)]
    for output in outputs:
        (output * towards.to(output.dtype)).sum().backward()
    torch.testing.assert_close(outputs[0].double(), outputs[1], atol=0.03, rtol=0.03)
    for rough, fine in zip(parts, exact, strict=True):
        torch.testing.assert_close(rough.grad.double(), fine.grad, atol=0.05, rtol=0.05)
    with torch.no_grad():  # without a backward pass to come it is the fused kernel
        torch.testing.assert_close(attend(*parts, scale=0.5)[0], outputs[0].detach(), atol=0.03, rtol=0.03)
