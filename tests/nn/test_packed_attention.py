"""Attention over packed sequences: against loops and the fused kernel, dropout, gradients of two orders, messages."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from danlu.nn.attention import AttentionContext, MultiHeadAttention, causal_mask
from danlu.nn.layout import Group, packed_layout, padded_layout
from danlu.nn.packed_attention import COST, _joined, packed_attention

GROUPS = [Group(2, 1), Group(1, 3), Group(2, 4)]  # 13 tokens
MASKS = [None, None, torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)[:, None, None, :]]
SQUARE = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tokens(value_dim=5):
    return normal(13, 2, 3, seed=1), normal(13, 2, 3, seed=2), normal(13, 2, value_dim, seed=3)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def sequences():
    """First token and length of each sequence, and its place in its group."""
    first = 0
    for number, group in enumerate(GROUPS):
        for row in range(group.count):
            yield first, group.length, number, row
            first += group.length


def by_loops(query, key, value, scale, bias=None, masks=None, causal=False):
    """Eqs. (1) and (2) without dropout, one query at a time, with Python floats."""
    out = torch.zeros_like(value)
    for first, length, number, row in sequences():
        allowed = torch.ones(length, length, dtype=torch.bool)
        if masks is not None and masks[number] is not None:
            allowed = masks[number].expand(GROUPS[number].count, 1, length, length)[row, 0]
        elif causal:
            allowed = causal_mask(length, length)
        for head in range(query.shape[1]):
            for j in range(length):
                exps = {}
                for t in range(length):
                    if allowed[j, t]:
                        score = scale * float(query[first + j, head] @ key[first + t, head])
                        exps[t] = math.exp(score + (0.0 if bias is None else float(bias[0, head, j, t])))
                for t, e in exps.items():
                    out[first + j, head] += e / sum(exps.values()) * value[first + t, head]
    return out


def decisions(query, key, dropout, seed, scale=1.0):
    """Which weights were kept, read off the outputs for unit vectors as values: (N, H, longest) of bool."""
    longest = max(group.length for group in GROUPS)
    value = torch.zeros(13, 2, longest, dtype=torch.float64)
    for first, length, _, _ in sequences():
        value[first : first + length, :, :length] = torch.eye(length, dtype=torch.float64)[:, None]
    return packed_attention(query, key, value, GROUPS, dropout=dropout, scale=scale, generator=stream(seed)) != 0


@pytest.mark.parametrize("masks", [None, MASKS, [None, None, SQUARE[None, None]]])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_the_formula(masks, with_bias):
    bias = normal(1, 2, 5, 5, seed=4) if with_bias else None  # wider than the longest
    got = packed_attention(*tokens(), GROUPS, scale=0.7, bias=bias, masks=masks)
    torch.testing.assert_close(got, by_loops(*tokens(), 0.7, bias, masks))


def test_causal_hides_what_comes_after_unless_a_mask_says_more():
    torch.testing.assert_close(
        packed_attention(*tokens(), GROUPS, causal=True), by_loops(*tokens(), 1.0, None, None, True)
    )
    masks = [None, None, SQUARE[None, None]]
    got = packed_attention(*tokens(), GROUPS, causal=True, masks=masks)
    torch.testing.assert_close(got[5:], by_loops(*tokens(), 1.0, None, masks)[5:])
    torch.testing.assert_close(got[:5], by_loops(*tokens(), 1.0, None, None, True)[:5])


MANY = [[Group(2, 1), Group(1, 3), Group(2, 4)], [Group(1, 40), Group(2, 2), Group(3, 3), Group(1, 50), Group(1, 1)]]


@pytest.mark.parametrize("groups", MANY)  # one block for all; and blocks for the short and for each long sequence
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_equal_those_of_the_fused_kernel(groups, causal):
    n = sum(group.count * group.length for group in groups)
    inputs = [normal(n, 2, size, seed=size).requires_grad_() for size in (3, 3, 5)]
    out = packed_attention(*inputs, groups, scale=0.7, causal=causal)
    weight = normal(n, 2, 5, seed=9)
    got = torch.autograd.grad((out * weight).sum(), inputs)
    outs, first = [], 0
    for length in (group.length for group in groups for _ in range(group.count)):
        q, k, v = (x[first : first + length].transpose(0, 1) for x in inputs)
        outs.append(F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.7).transpose(0, 1))
        first += length
    want = torch.autograd.grad((torch.cat(outs) * weight).sum(), inputs)
    torch.testing.assert_close(out, torch.cat(outs))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_the_cheapest_of_all_cuts(seed):
    sizes = torch.randint(1, 60, (6, 2), generator=stream(seed)).tolist()
    groups = tuple(sorted((Group(count % 4 + 1, length) for count, length in sizes), key=lambda group: group.length))

    def cost(runs):  # eq. (6)
        return sum(sum(g.count for g in run) * max(g.length for g in run) ** 2 + COST for run in runs)

    everything = []
    for cuts in itertools.product((False, True), repeat=5):
        ends = [i + 1 for i in range(5) if cuts[i]]
        everything.append([groups[a:b] for a, b in itertools.pairwise([0, *ends, 6])])
    assert [group for run in _joined(groups) for group in run] == list(groups)
    assert cost(_joined(groups)) == min(cost(runs) for runs in everything)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradcheck_in_first_and_second_order(dropout):
    groups, bias = [Group(1, 1), Group(2, 2)], normal(1, 2, 2, 2, seed=4).requires_grad_()
    masks = [None, torch.tensor([[[[True, True]]], [[[False, True]]]])]
    inputs = [*(x[:5].clone().requires_grad_() for x in tokens(2)), bias]

    def run(q, k, v, b):
        return packed_attention(q, k, v, groups, bias=b, masks=masks, scale=0.6, dropout=dropout, generator=stream(5))

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_create_graph_gives_the_same_first_gradient():
    inputs = [x.requires_grad_() for x in tokens()]
    weight = normal(13, 2, 5, seed=9)
    for causal in (False, True):
        run = packed_attention(*inputs, GROUPS, dropout=0.3, scale=0.5, causal=causal, generator=stream(2))
        by_hand = torch.autograd.grad((run * weight).sum(), inputs, retain_graph=True)
        by_autograd = torch.autograd.grad((run * weight).sum(), inputs, create_graph=True)
        torch.testing.assert_close(by_hand, tuple(x.detach() for x in by_autograd))


def test_gradient_only_where_it_is_asked_for():
    query, key, value = tokens()
    value.requires_grad_()
    for create_graph in (False, True):
        out = packed_attention(query, key, value, GROUPS, dropout=0.3, generator=stream())
        (grad,) = torch.autograd.grad(out.sum(), value, create_graph=create_graph)
        assert grad.shape == value.shape
    bias = normal(1, 2, 4, 4).requires_grad_()
    out = packed_attention(query, key, value.detach(), GROUPS, bias=bias)
    (grad,) = torch.autograd.grad(out.square().sum(), bias)
    assert grad.abs().sum() > 0


def test_dropout_takes_single_weights_and_scales_the_rest():
    query, key, value = tokens()
    kept = decisions(query, key, 0.4, seed=7)
    assert 0 < kept.sum() < 13 * 2 * 4
    want = torch.zeros_like(value)
    share = 1 - round(0.4 * 65536) / 65536
    for first, length, _, _ in sequences():
        rows = slice(first, first + length)
        weights = torch.einsum("jhk,lhk->hjl", query[rows], key[rows]).softmax(-1)
        weights = weights * kept[rows, :, :length].transpose(0, 1) / share
        want[rows] = torch.einsum("hjl,lhv->jhv", weights, value[rows])
    torch.testing.assert_close(packed_attention(query, key, value, GROUPS, dropout=0.4, generator=stream(7)), want)


def test_dropout_has_its_rate_and_its_mean():
    n, p = 60, 0.25
    x = torch.zeros(n, 3, 1)
    value = torch.eye(n)[:, None].expand(n, 3, n)  # outputs are the weights
    runs = torch.stack(
        [packed_attention(x, x, value, [Group(1, n)], dropout=p, generator=stream(seed)) for seed in range(10)]
    )
    share = (runs == 0).double().mean()
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / runs.numel())
    assert abs(runs.double().mean() * n - 1) < 4 * math.sqrt(p / (1 - p) / runs.numel())
    pairs = ((runs[..., 1:] == 0) & (runs[..., :-1] == 0)).double().mean()
    assert abs(pairs - p * p) < 6 * math.sqrt(p * p / runs.numel())
    assert not torch.equal(runs[0, :, 0], runs[0, :, 1])  # heads differ


def test_the_seed_decides():
    def run():
        return packed_attention(*tokens(), GROUPS, dropout=0.5)

    torch.manual_seed(1)
    first, second = run(), run()
    torch.manual_seed(1)
    assert torch.equal(first, run())
    assert not torch.equal(first, second)


def test_half_precision_sums_in_float32():
    query, key, value = (x.float() for x in tokens())
    halves = [x.bfloat16().requires_grad_() for x in (query, key, value)]
    singles = [x.detach().float().requires_grad_() for x in halves]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = packed_attention(*halves, GROUPS, dropout=0.2, generator=stream(1))
    want = packed_attention(*singles, GROUPS, dropout=0.2, generator=stream(1))
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want.bfloat16())
    got.sum().backward()
    want.sum().backward()
    for half, single in zip(halves, singles, strict=True):
        assert half.grad.dtype == torch.bfloat16
        torch.testing.assert_close(half.grad.float(), single.grad, rtol=0.02, atol=0.02)


def attention(value_dim=4):
    torch.manual_seed(0)
    return MultiHeadAttention(6, 2, 3, value_dim).double()


def test_a_layer_uses_it_under_dropout_whatever_the_layout():
    layer, x = attention(), normal(3, 4, 6)
    keep = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    for layout in (packed_layout(keep), padded_layout(3, 4, keep)):
        for causal in (False, True):
            for bias in (None, normal(1, 2, 4, 4)):
                context = AttentionContext(layout, causal=causal, bias=bias)
                still = layer(layout.gather(x), context)
                context = AttentionContext(layout, causal=causal, bias=bias, dropout=1e-9)  # rounds to none dropped
                got = layer(layout.gather(x), context)
                assert "_PackedAttentionBackward" in graph_of(got)
                torch.testing.assert_close(got, still)


def graph_of(tensor):
    """Names of the nodes behind a tensor."""
    names, queue = set(), [tensor.grad_fn]
    while queue:
        node = queue.pop()
        names.add(type(node).__name__)
        queue += [parent for parent, _ in node.next_functions if parent is not None]
    return names


def test_what_it_does_not_know_goes_the_other_way():
    layer, x, layout = attention(value_dim=3), normal(4, 6), padded_layout(1, 4)
    relative = (normal(3, 3), torch.ones(4, 4, dtype=torch.long))
    for settings, known in (
        ({"dropout": 0.5}, True),
        ({"dropout": 0.0}, False),
        ({"dropout": 1.0}, False),
        ({"dropout": 0.5, "realformer": "sum"}, False),
        ({"dropout": 0.5, "relative": relative}, False),
    ):
        graph = graph_of(layer(x, AttentionContext(layout, **settings)))
        assert ("_PackedAttentionBackward" in graph) == known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": [Group(2, 3)]}, r"got 13 tokens and groups of 2 x 3; give the layout's groups"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0; 0 switches it off"),
        ({"dropout": -0.1}, r"got -0.1"),
    ],
)
def test_messages(change, message):
    given = {"groups": GROUPS, **change}
    with pytest.raises(ValueError, match=message):
        packed_attention(*tokens(), given.pop("groups"), **given)


def test_causal_mask_is_the_one_of_the_room():
    x = torch.zeros(4, 1, 1)
    got = packed_attention(x, x, torch.eye(4)[:, None], [Group(1, 4)], causal=True)[:, 0] > 0
    assert torch.equal(got, causal_mask(4, 4))


def test_what_inference_mode_has_prepared_serves_training():
    groups = [Group(1, 2), Group(1, 5)]  # in no other test
    x = normal(7, 2, 3).requires_grad_()
    with torch.inference_mode():
        packed_attention(x, x, x, groups, dropout=0.5)
    (grad,) = torch.autograd.grad(packed_attention(x, x, x, groups).square().sum(), x, create_graph=True)
    assert torch.autograd.grad(grad.sum(), x)[0].isfinite().all()
