"""NystromAttention in the place of nn.MultiheadAttention: same weights, both masks, the convolution, a plain loop."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.nn import NystromAttention, nystrom_attention

X = torch.randn(3, 10, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
KEEP = torch.tensor([[True] * 10, [True] * 6 + [False] * 4, [False] * 3 + [True] * 7])


def made(**options):
    torch.manual_seed(0)
    return NystromAttention(8, 2, **{"num_landmarks": 4, "conv_kernel_size": 3, **options}).double()


def test_equals_the_equation():
    layer = made()
    output, weights = layer(X)
    assert weights is None
    projected = X @ layer.in_proj_weight.T + layer.in_proj_bias
    q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in projected.chunk(3, 2))
    skip = torch.zeros_like(v)
    for h in range(2):
        for shift in (-1, 0, 1):
            for t in range(10):
                if 0 <= t + shift < 10:
                    skip[:, h, t] += layer.conv.weight[h, 0, shift + 1, 0] * v[:, h, t + shift]
    heads = nystrom_attention(q, k, v, 4) + skip
    torch.testing.assert_close(output, layer.out_proj(heads.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("conv", [None, 1, 5])
def test_padding_and_neighbours_change_nothing(conv):
    layer = made(conv_kernel_size=conv)
    noisy = X.masked_fill(~KEEP[..., None], 1e6)
    together = layer(noisy, mask=KEEP)[0]
    for b, keep in enumerate(KEEP):
        torch.testing.assert_close(together[b, keep], layer(X[b : b + 1, keep])[0][0], rtol=1e-9, atol=1e-9)


def test_masks_of_torch_mean_the_opposite():
    layer = made()
    expected = layer(X, mask=KEEP)[0]
    assert torch.equal(layer(X, X, X, ~KEEP)[0], expected)
    floats = torch.zeros(3, 10).masked_fill(~KEEP, -torch.inf)
    assert torch.equal(layer(X, X, X, key_padding_mask=floats, need_weights=False)[0], expected)
    assert (layer(X)[0] - expected).abs().max() > 1e-3


@pytest.mark.parametrize("bias", [True, False])
def test_from_attention_is_exact_for_short_sequences(bias):
    attention = nn.MultiheadAttention(8, 2, bias=bias, batch_first=True, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(torch.randn_like(parameter))
    layer = NystromAttention.from_attention(attention, 10, conv_kernel_size=5)
    assert not layer.training
    torch.testing.assert_close(layer(X, X, X, ~KEEP)[0][KEEP], attention(X, X, X, ~KEEP)[0][KEEP])
    layer.load_state_dict(attention.state_dict(), strict=False)
    few = NystromAttention.from_attention(attention, 3)
    assert few.state_dict().keys() == attention.state_dict().keys()
    assert (few(X)[0] - attention(X, X, X)[0]).abs().max() > 1e-3


def test_cross_attention_reads_all_queries():
    layer = made(conv_kernel_size=None)
    other = X.flip(1) + 1
    found = layer(other, X, X, mask=KEEP)[0]
    assert found.all()  # no query is taken for padding, though the lengths are equal
    for b, keep in enumerate(KEEP):
        alone = layer(other[b : b + 1], X[b : b + 1, keep], X[b : b + 1, keep])[0]
        torch.testing.assert_close(found[b : b + 1], alone, rtol=1e-9, atol=1e-9)


def test_inside_torchs_own_encoder_layer():
    """Its fast path would compute softmax attention with our weights and say nothing."""
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64).eval()
    plain = copy.deepcopy(block)
    block.self_attn = NystromAttention.from_attention(block.self_attn, 4)
    expected = block(X, src_key_padding_mask=~KEEP).detach()
    with torch.no_grad():
        torch.testing.assert_close(block(X, src_key_padding_mask=~KEEP)[KEEP], expected[KEEP])
        assert (plain(X, src_key_padding_mask=~KEEP) - expected)[KEEP].abs().max() > 1e-3


def test_a_plain_loop_learns():
    torch.manual_seed(0)
    layer, head = NystromAttention(8, 2, 4, 3), nn.Linear(8, 2)
    parameters = [*layer.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    x = torch.randn(32, 12, 8)
    y = (x[:, 0, 0] > 0).long()
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(head(layer(x)[0].mean(1)), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad.isfinite().all() for parameter in parameters)


def test_parts_of_a_batch_add_up():
    """Gradients of two halves are those of the whole: nothing of a sequence reaches its neighbour."""
    layer = made()
    (whole,) = torch.autograd.grad(layer(X, mask=KEEP)[0].square().sum(), layer.in_proj_weight)
    halves = [layer(X[i : i + 1], mask=KEEP[i : i + 1])[0].square().sum() for i in range(3)]
    parts = [torch.autograd.grad(half, layer.in_proj_weight)[0] for half in halves]
    torch.testing.assert_close(whole, sum(parts))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NystromAttention(8, 3), "multiple of num_heads, got 8 and 3"),
        (lambda: NystromAttention(8, 2, conv_kernel_size=4), "conv_kernel_size must be odd.*got 4"),
        (lambda: NystromAttention(8, 2, 0), "num_landmarks must be at least 1, got 0"),
        (lambda: made()(X, X, X, attn_mask=torch.ones(10, 10)), "no pairs that attn_mask could hide"),
        (lambda: made()(X, X, X, is_causal=True), "cannot be causal"),
        (lambda: made()(X, X, X, ~KEEP, mask=KEEP), "not both"),
        (lambda: made()(X, X, X, KEEP.double()), "True for padding, or floats of 0 and -inf"),
        (lambda: made()(X, X.clone(), X), "the convolution belongs to self-attention"),
        (lambda: made()(X[0]), r"needs query \(B, T, D\).*got \(10, 8\)"),
        (lambda: NystromAttention.from_attention(nn.MultiheadAttention(8, 2)), "batch_first=True"),
        (
            lambda: NystromAttention.from_attention(nn.MultiheadAttention(8, 2, batch_first=True, kdim=4)),
            "keys and values of embed_dim",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
