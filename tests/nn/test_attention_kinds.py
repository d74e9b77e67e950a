"""Kinds of attention by one word: the functions behind them, layouts, rotations, caches, what is refused."""

import pytest
import torch

from danlu.nn import (
    ATTENTIONS,
    AttentionContext,
    KVCache,
    MultiHeadAttention,
    apply_rotary,
    build_attention,
    elu_log_features,
    favor_log_features,
    linear_attention,
    nystrom_attention,
    rotary_angles,
)
from danlu.nn.attention_kinds import LINEAR, NYSTROM, SYNTHETIC, check_attention, unfit_attention
from danlu.nn.layout import packed_layout, padded_layout

X = torch.randn(3, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
KEEP = torch.arange(7) < torch.tensor([[7], [4], [7]])
SIZED = {"nystrom": 3, "nystrom_landmark": 3, "performer": 6}


def made(kind, size=None, **options):
    torch.manual_seed(0)
    size = SIZED.get(kind) if size is None else size
    layer = build_attention(kind, 8, 2, 4, 4, size=size, max_len=8, **options).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def heads(layer, x):
    """Queries, keys and values (B, H, T, K)."""
    return [part.unflatten(0, x.shape[:2]).transpose(1, 2) for part in layer.project(x.flatten(0, 1))]


@pytest.mark.parametrize("kind", [*NYSTROM, *LINEAR])
def test_each_word_names_its_function(kind):
    layer = made(kind)
    q, k, v = heads(layer, X)
    if kind in NYSTROM:
        output = nystrom_attention(q, k, v, 3, mask=KEEP, mode=NYSTROM[kind])
    elif kind == "performer":
        output = linear_attention(*(favor_log_features(x, layer.projection) for x in (q, k)), v, mask=KEEP)
    else:
        output = linear_attention(elu_log_features(q), elu_log_features(k), v, mask=KEEP)
    expected = layer.output(output.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(X, KEEP), expected)


@pytest.mark.parametrize("kind", [*NYSTROM, *LINEAR])
def test_softmax_weights_fit(kind):
    layer, softmax = made(kind), made("softmax")
    missing, unexpected = layer.load_state_dict(softmax.state_dict(), strict=False)
    assert not unexpected
    assert missing == (["projection"] if kind == "performer" else [])


@pytest.mark.parametrize("kind", ["nystrom", "performer"])
def test_large_sizes_come_near_softmax(kind):
    """As many landmarks as tokens is exact, many random features nearly so: each kind stands for what it says."""
    layer, softmax = made(kind, 7 if kind == "nystrom" else 50_000), made("softmax")
    softmax.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "projection"})
    close = 1e-9 if kind == "nystrom" else 0.05
    torch.testing.assert_close(layer(0.5 * X, KEEP)[KEEP], softmax(0.5 * X, KEEP)[KEEP], rtol=close, atol=close)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_packed_padded_and_alone_are_one(kind):
    layer = made(kind)
    padded = layer(X.masked_fill(~KEEP[..., None], 9.0), KEEP)
    layout = packed_layout(KEEP)
    packed = layout.scatter(layer(layout.gather(X), AttentionContext(layout)))
    for b, keep in enumerate(KEEP):
        alone = layer(X[b : b + 1, keep])[0]
        torch.testing.assert_close(padded[b, keep], alone, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(packed[b, keep], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["nystrom", "nystrom_landmark", "performer"])
def test_rotations_come_before_everything(kind):
    layer = made(kind)
    layout = padded_layout(3, 7)
    cos, sin = rotary_angles(layout.positions.double(), 4)
    found = layout.scatter(layer(layout.gather(X), AttentionContext(layout, rotary=(cos, sin))))
    q, k, v = heads(layer, X)
    q, k = (apply_rotary(x, cos.view(3, 1, 7, 4), sin.view(3, 1, 7, 4)) for x in (q, k))
    if kind == "performer":
        output = linear_attention(*(favor_log_features(x, layer.projection) for x in (q, k)), v)
    else:
        output = nystrom_attention(q, k, v, 3, mode=NYSTROM[kind])
    torch.testing.assert_close(found, layout.scatter(layer.output(output.transpose(1, 2).flatten(2).flatten(0, 1))))


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("keep", [None, torch.tensor([[True] * 7, [False] * 2 + [True] * 5])])
def test_cached_steps_are_the_causal_whole(kind, keep):
    layer, x = made(kind), X[:2]
    layout = padded_layout(2, 7, keep)
    whole = layout.scatter(layer(layout.gather(x), AttentionContext(layout, causal=True)))
    cache = KVCache(1, 2, 2, 4, 4, 7, torch.float64)
    cache.keep = keep
    found = []
    for first, last in ((0, 3), (3, 4), (4, 6), (6, 7)):
        step = padded_layout(2, last - first)
        new = layer(step.gather(x[:, first:last]), AttentionContext(step, causal=True, cache=cache))
        cache.advance(last - first)
        found.append(step.scatter(new))
    torch.testing.assert_close(torch.cat(found, 1), whole)


@pytest.mark.parametrize("kind", [*LINEAR, *SYNTHETIC])
def test_causal_layers_do_not_look_ahead(kind):
    layer, layout = made(kind), padded_layout(3, 7)
    other = X.clone()
    other[:, 4:] += 3
    first, second = (layout.scatter(layer(layout.gather(x), AttentionContext(layout, causal=True))) for x in (X, other))
    torch.testing.assert_close(first[:, :4], second[:, :4], rtol=0, atol=0)
    assert (first[:, 4:] - second[:, 4:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("kind", SYNTHETIC)
def test_synthesizers_follow_the_mask_of_pairs(kind):
    layer, layout = made(kind), padded_layout(1, 7)
    causal = layer(layout.gather(X[:1]), AttentionContext(layout, causal=True))
    ones = torch.ones(7, dtype=torch.long)
    torch.testing.assert_close(layer(layout.gather(X[:1]), AttentionContext(layout, unilm=ones)), causal)
    zeros = layer(layout.gather(X[:1]), AttentionContext(layout, unilm=0 * ones))
    torch.testing.assert_close(zeros, layer(X[:1])[0])


def test_the_projection_is_kept_but_not_trained():
    layer = made("performer")
    assert layer.projection.shape == (6, 4)
    assert not layer.projection.requires_grad
    assert "projection" in dict(layer.named_parameters())
    layer(X).sum().backward()
    assert layer.projection.grad is None
    assert all(p.grad is not None for p in layer.parameters() if p.requires_grad)


def test_dropout_reaches_the_synthesizer():
    layer = made("synthesizer_random", dropout=0.5).train()
    torch.manual_seed(1)
    first = layer(X)
    assert (first - layer(X)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_bfloat16_autocast_runs_backward(kind):
    layer = made(kind).float().train()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(X.float(), KEEP)
    assert output.isfinite().all()
    output.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)


def test_softmax_is_the_layer_it_was():
    assert type(made("softmax")) is MultiHeadAttention


def context(**options):
    layout = padded_layout(3, 7)
    return AttentionContext(layout, **options)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("nystrom", {"causal": True}, "nystrom attention cannot be causal, as its landmarks hold later tokens"),
        ("double_softmax", {"causal": True}, "as its means over keys hold later tokens"),
        ("performer", {"unilm": torch.zeros(21, dtype=torch.long)}, "cannot follow a mask of pairs"),
        ("linear", {"bias": torch.zeros(1, 2, 7, 7)}, "adds its relative positions to such comparisons"),
        ("linear", {"relative": (torch.zeros(3, 4), torch.zeros(7, 7))}, "compares no pairs of tokens"),
        ("nystrom", {"realformer": "sum"}, "nothing to hand on"),
        ("synthesizer_dense", {"realformer": "sum"}, "positions and scores cannot be added"),
        ("synthesizer_dense", {"cache": KVCache(1, 3, 2, 4, 4, 7)}, "no keys that a cache could keep"),
    ],
)
def test_what_would_be_left_out_is_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        made(kind)(X.flatten(0, 1), context(**options))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_attention("nistrom"), "attention must be one of softmax, nystrom, .*; got 'nistrom'"),
        (lambda: check_attention("nystrom", 0), "attention_size must be at least 1.*got 0 for 'nystrom'"),
        (
            lambda: check_attention("linear", 8),
            "only nystrom, nystrom_landmark, performer, .* have one; got 8 for 'linear'",
        ),
        (lambda: build_attention("synthesizer_dense", 8, 2, 3, 4), "has heads that make up hidden_size"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_softmax_fits_everywhere():
    assert (
        unfit_attention("softmax", positions="buckets", application="unilm", realformer=True, gated_unit=True) is None
    )
