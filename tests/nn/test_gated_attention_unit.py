"""The gated attention unit: its equations by loops, each normalization, packing, causality."""

import math

import pytest
import torch
import torch.nn.functional as F

from danlu.nn import GatedAttentionUnit
from danlu.nn.attention import AttentionContext
from danlu.nn.layout import packed_layout, padded_layout


def by_loops(unit, x, causal):
    """Eqs. (1) to (4) for one sequence (T, D)."""
    u, v, z = F.silu(x @ unit.input.weight.T).split([unit.inner_dim, unit.inner_dim, unit.key_dim], -1)
    q, k = z * unit.query_scale, z * unit.key_scale
    out = torch.zeros_like(v)
    for j in range(len(x)):
        seen = range(j + 1) if causal else range(len(x))
        scores = [float(q[j] @ k[s]) / math.sqrt(unit.key_dim) for s in seen]
        n = len(seen)
        if unit.normalization == "squared_relu":
            weights = [max(score, 0.0) ** 2 / n for score in scores]
        else:
            factor = math.log(max(n, 16)) / math.log(512) if unit.normalization == "softmax_plus" else 1.0
            powers = [math.exp(score * factor) for score in scores]
            weights = [power / sum(powers) for power in powers]
        out[j] = sum(w * v[s] for w, s in zip(weights, seen, strict=True))
    return (u * out) @ unit.output.weight.T


def made(normalization, length=3):
    torch.manual_seed(0)
    unit = GatedAttentionUnit(4, 6, 5, normalization=normalization).double()
    with torch.no_grad():
        unit.query_scale.normal_(1)
        unit.key_scale.normal_(1)
    return unit, torch.randn(length, 4, dtype=torch.float64)


@pytest.mark.parametrize("normalization", ["softmax_plus", "softmax", "squared_relu"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [3, 20])
def test_equals_the_formula(normalization, causal, length):
    unit, x = made(normalization, length)
    got = unit(x, AttentionContext(padded_layout(1, length), causal=causal))
    torch.testing.assert_close(got, by_loops(unit, x, causal))


@pytest.mark.parametrize("normalization", ["softmax_plus", "squared_relu"])
def test_padding_changes_nothing(normalization):
    unit, _ = made(normalization)
    keep = torch.tensor([[True] * 18 + [False] * 2, [True] * 5 + [False] * 15])
    x = torch.randn(2, 20, 4, dtype=torch.float64)
    packed, padded = packed_layout(keep), padded_layout(2, 20, keep)
    a = packed.scatter(unit(packed.gather(x), AttentionContext(packed)))
    b = padded.scatter(unit(padded.gather(x), AttentionContext(padded)))
    torch.testing.assert_close(a, b * keep[..., None])


def test_an_unknown_normalization_is_named():
    with pytest.raises(ValueError, match="softmax_plus, softmax, squared_relu; got 'max'"):
        GatedAttentionUnit(4, 6, normalization="max")
