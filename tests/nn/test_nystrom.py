"""Nyström attention: equations written out, exact where it must be, each sequence as if alone, factors, a peer."""

import pytest
import torch
import torch.nn.functional as F

from danlu.math.pseudo_inverse import pinv_step_bound
from danlu.nn import nystrom_attention, nystrom_factors
from danlu.nn.nystrom import MODES


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


Q, K, V = drawn(3, 3, 2, 24, 6)  # (B, H, T, K) each
KEEP = torch.stack([
    torch.arange(24) < 17,  # right padding
    torch.arange(24) >= 9,  # left padding
    torch.arange(24) % 5 != 2,  # interior padding
])  # fmt: skip


def pooled(x, m):
    """Landmarks of (n, K) by a loop."""
    n = len(x)
    m = min(m, n)
    return torch.stack([torch.stack([x[r] for r in range(n) if r * m // n == j]).mean(0) for j in range(m)])


def by_hand(q, k, v, m, mode):
    """One head of one sequence, eqs. (1) to (3) with full matrices and an exact pseudo-inverse."""
    s = q.shape[1] ** -0.5
    if mode == "double_softmax":
        return q.softmax(1) @ (k.T.softmax(1) @ v)
    if mode == "nystrom" and min(len(q), len(k)) <= m:
        return (s * q @ k.T).softmax(1) @ v
    m = min(m, len(q), len(k))
    ql, kl = pooled(q, m), pooled(k, m)
    f, a, g = (s * q @ kl.T).softmax(1), (s * ql @ kl.T).softmax(1), (s * ql @ k.T).softmax(1)
    return f @ (torch.linalg.pinv(a) if mode == "nystrom" else torch.eye(m).double()) @ g @ v


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("m", [1, 4, 5, 8, 23, 24, 30])
def test_equals_the_equations(mode, m):
    found = nystrom_attention(Q, K, V, m, mode=mode, pinv="exact")
    expected = [[by_hand(Q[b, h], K[b, h], V[b, h], m, mode) for h in range(2)] for b in range(3)]
    torch.testing.assert_close(found, torch.stack([torch.stack(row) for row in expected]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("queries", "keys"), [(24, 11), (9, 24), (3, 24), (24, 3)])
def test_cross_attention(mode, queries, keys):
    found = nystrom_attention(Q[:, :, :queries], K[:, :, :keys], V[:, :, :keys], 5, mode=mode, pinv="exact")
    expected = by_hand(Q[1, 1, :queries], K[1, 1, :keys], V[1, 1, :keys], 5, mode)
    torch.testing.assert_close(found[1, 1], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("m", [4, 7, 15, 16, 18, 22])
def test_padding_and_neighbours_change_nothing(mode, m):
    """Some sequences have fewer tokens than landmarks and some have more."""
    together = nystrom_attention(Q, K, V, m, mask=KEEP, mode=mode)
    for b, keep in enumerate(KEEP):
        q, k, v = (x[b : b + 1, :, keep] for x in (Q, K, V))
        alone = nystrom_attention(q, k, v, m, mode=mode)
        torch.testing.assert_close(together[b : b + 1, :, keep], alone, rtol=1e-9, atol=1e-9)
    assert not together.transpose(1, 2)[~KEEP].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("m", "few"), [(4, 3), (4, 9), (8, 6)])
def test_cross_attention_with_both_masks(mode, m, few):
    """Queries and keys with unlike padding; `few` tokens on one side of one sequence."""
    query_mask = KEEP.flip(0).clone()
    query_mask[0] = torch.arange(24) % 24 < few
    key_mask = KEEP.clone()
    key_mask[1] = torch.arange(24) >= 24 - few
    together = nystrom_attention(Q, K, V, m, mask=key_mask, query_mask=query_mask, mode=mode, pinv="exact")
    for b in range(3):
        q, k, v = Q[b, :, query_mask[b]], K[b, :, key_mask[b]], V[b, :, key_mask[b]]
        expected = torch.stack([by_hand(q[h], k[h], v[h], m, mode) for h in range(2)])
        torch.testing.assert_close(together[b, :, query_mask[b]], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_the_content_of_padding_is_not_read(mode):
    hidden = ~KEEP[:, None, :, None]
    inputs = [x.masked_fill(hidden, torch.nan).requires_grad_() for x in (Q, K, V)]
    found = nystrom_attention(*inputs, 5, mask=KEEP, mode=mode)
    torch.testing.assert_close(found, nystrom_attention(Q, K, V, 5, mask=KEEP, mode=mode), rtol=0, atol=0)
    found.square().sum().backward()
    for x in inputs:
        assert x.grad.isfinite().all()
        assert not x.grad.masked_fill(~hidden, 0).any()


@pytest.mark.parametrize("mode", MODES)
def test_nothing_but_padding_gives_zeros(mode):
    keep = KEEP.clone()
    keep[1] = False
    inputs = [x.clone().requires_grad_() for x in (Q, K, V)]
    found = nystrom_attention(*inputs, 5, mask=keep, mode=mode)
    assert not found[1].any()
    torch.testing.assert_close(found[0], nystrom_attention(Q, K, V, 5, mask=KEEP, mode=mode)[0])
    found.sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)
    crossed = nystrom_attention(Q[:, :, :20], K, V, 5, mask=keep, mode=mode)
    assert crossed.isfinite().all()
    assert not crossed[1].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("m", [5, 16, 30])
def test_factors_multiply_to_the_output(mode, m):
    for mask in (None, KEEP):
        left, middle, right = nystrom_factors(Q, K, m, mask=mask, mode=mode)
        assert left.shape[2] == right.shape[3] == 24
        found = nystrom_attention(Q, K, V, m, mask=mask, mode=mode)
        torch.testing.assert_close(left @ middle @ right @ V, found, rtol=1e-6, atol=1e-6)
    queries = KEEP.roll(1, 0)
    left, middle, right = nystrom_factors(Q, K, m, mask=KEEP, query_mask=queries, mode=mode)
    found = nystrom_attention(Q, K, V, m, mask=KEEP, query_mask=queries, mode=mode)
    torch.testing.assert_close(left @ middle @ right @ V, found, rtol=1e-6, atol=1e-6)


def test_as_many_landmarks_as_tokens_is_softmax_attention():
    q, k, v = drawn(3, 1, 1, 64, 16, seed=1)
    exact = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(nystrom_attention(q, k, v, 64), exact)
    a = (q[0, 0] @ k[0, 0].T / 4).softmax(1)
    assert torch.linalg.cond(a) > 1e3
    torch.testing.assert_close(a @ torch.linalg.pinv(a) @ a @ v[0, 0], exact[0, 0])  # the derivation of (5)


def test_exact_on_sequences_that_are_constant_in_segments():
    q, k = (x.repeat_interleave(6, 2) for x in (3 * Q[:, :, :4], 3 * K[:, :, :4]))
    exact = F.scaled_dot_product_attention(q, k, V)
    torch.testing.assert_close(nystrom_attention(q, k, V, 4, pinv=1e-12), exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(nystrom_attention(q, k, V, 4), exact, rtol=0.05, atol=0.05)
    assert (nystrom_attention(q, k, V, 4, mode="landmark") - exact).abs().max() > 0.1


def test_rows_sum_to_one():
    left, middle, right = nystrom_factors(Q, K, 6, pinv=1e-12)
    signed = left @ middle @ right
    torch.testing.assert_close(signed.sum(-1), torch.ones(3, 2, 24).double(), rtol=1e-6, atol=1e-6)
    assert signed.min() < 0  # no distribution
    left, middle, right = nystrom_factors(Q, K, 6, mode="landmark", mask=KEEP)
    weights = left @ middle @ right
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(-1), KEEP[:, None].expand(-1, 2, -1).double())


def test_rotations_of_keys_and_queries_change_nothing_and_values_act_linearly():
    u, _ = torch.linalg.qr(drawn(6, 6, seed=2))
    w = drawn(6, 6, seed=3)
    plain = nystrom_attention(Q, K, V, 5)
    torch.testing.assert_close(nystrom_attention(Q @ u, K @ u, V, 5), plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(nystrom_attention(Q, K, V @ w, 5), plain @ w)


def test_scale_is_that_of_softmax_attention():
    torch.testing.assert_close(nystrom_attention(Q, K, V, 5, scale=0.7), nystrom_attention(0.7 * 6**0.5 * Q, K, V, 5))
    wide = nystrom_attention(Q, K, V, 40, scale=0.7)
    torch.testing.assert_close(wide, F.scaled_dot_product_attention(Q, K, V, scale=0.7))


def test_as_many_tokens_as_landmarks_is_softmax_behind_a_mask_too():
    six, whole = (torch.arange(24) < 6).expand(3, -1), torch.ones(3, 24, dtype=torch.bool)
    found = nystrom_attention(Q, K, V, 6, mask=six, query_mask=whole)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(Q, K[:, :, :6], V[:, :, :6]))
    found = nystrom_attention(Q, K, V, 6, mask=whole, query_mask=six)[:, :, :6]
    torch.testing.assert_close(found, F.scaled_dot_product_attention(Q[:, :, :6], K, V))


def test_pinv_by_name_and_number():
    assert torch.equal(nystrom_attention(Q, K, V, 6, pinv="paper"), nystrom_attention(Q, K, V, 6, pinv=6))
    exact = nystrom_attention(Q, K, V, 6, pinv="exact")
    torch.testing.assert_close(nystrom_attention(Q, K, V, 6, pinv=1e-14), exact, rtol=1e-6, atol=1e-6)
    assert (nystrom_attention(Q, K, V, 6) - exact).abs().max() > 1e-3  # small singular values stay out
    assert torch.equal(nystrom_attention(Q, K, V, 6), nystrom_attention(Q, K, V, 6, pinv=3e-3))
    assert pinv_step_bound(3e-3) == 8  # the steps that the docstring tells of "auto"
    assert (nystrom_attention(Q, K, V, 6, pinv=1) - exact).abs().max() > 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mask", [None, torch.arange(12)[None] % 6 != 1])
def test_gradcheck(mode, mask):
    inputs = [x[:1, :1, :12, :3].clone().requires_grad_() for x in (Q, K, V)]

    def call(q, k, v):
        return nystrom_attention(q, k, v, 4, mask=mask, mode=mode)

    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision(mode, dtype):
    inputs = [x.to(dtype).requires_grad_() for x in (Q, K, V)]
    found = nystrom_attention(*inputs, 5, mask=KEEP, mode=mode, pinv="paper")
    assert found.dtype == dtype
    exact = nystrom_attention(*(x.double() for x in inputs), 5, mask=KEEP, mode=mode, pinv="paper")
    assert (found.double() - exact).abs().max() < 0.05 * exact.abs().max()
    found.sum().backward()
    assert all(x.grad.dtype == dtype and x.grad.isfinite().all() for x in inputs)


@pytest.mark.parametrize("mode", MODES)
def test_autocast_keeps_the_inverse_in_float32(mode):
    inputs = [x.float().requires_grad_() for x in (Q, K, V)]
    with torch.autocast("cpu", torch.bfloat16):
        found = nystrom_attention(*inputs, 5, mode=mode)
    exact = nystrom_attention(*inputs, 5, mode=mode)
    assert (found.float() - exact).abs().max() < 0.1 * exact.abs().max()
    found.float().sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)


def test_tokens_all_alike_and_huge_scores():
    same = torch.ones(1, 1, 40, 4)
    value = drawn(1, 1, 40, 3).float()
    mean = value.mean(2, keepdim=True).expand_as(value)
    torch.testing.assert_close(nystrom_attention(same, same, value, 8), mean, rtol=1e-3, atol=1e-3)
    for scale in (1e3, 1e6):
        found = nystrom_attention(scale * Q.float(), scale * K.float(), V.float(), 6)
        assert found.isfinite().all()


def test_views_and_inputs():
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (Q, K, V))
    before = q.clone()
    plain = nystrom_attention(Q, K, V, 7, mask=KEEP)
    torch.testing.assert_close(nystrom_attention(q, k, v, 7, mask=KEEP), plain)
    assert torch.equal(q, before)
    everything = torch.ones(3, 24, dtype=torch.bool)
    torch.testing.assert_close(nystrom_attention(Q, K, V, 7, mask=everything), nystrom_attention(Q, K, V, 7))


@pytest.mark.slow
def test_compiled_without_looking_at_the_mask():
    compiled = torch.compile(lambda q, k, v: nystrom_attention(q, k, v, 16, mask=KEEP, pinv=2), backend="eager")
    expected = nystrom_attention(Q, K, V, 16, mask=KEEP, pinv=2)  # some sequences have fewer tokens, some more
    torch.testing.assert_close(compiled(Q, K, V), expected, rtol=1e-9, atol=1e-9)


def test_an_empty_batch():
    assert nystrom_attention(Q[:0], K[:0], V[:0], 5).shape == (0, 2, 24, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"causal": True}, "cannot be causal: a landmark is a mean over tokens, later ones among them"),
        ({"num_landmarks": 0}, "num_landmarks must be at least 1, got 0"),
        ({"mode": "softmax"}, "mode must be one of nystrom, landmark, double_softmax; got 'softmax'"),
        (
            {"pinv": "svd"},
            r"pinv must be 'auto', 'exact', 'paper', a number of steps >= 0 or a noise in \(0, 1\), got 'svd'",
        ),
        ({"pinv": 1.0}, "got 1.0"),
        ({"pinv": -1}, "got -1"),
        ({"mask": KEEP.float()}, r"mask must be bool \(3, 24\), True for tokens; got torch.float32"),
        ({"mask": KEEP[:, :20]}, r"got torch.bool \(3, 20\)"),
        ({"query_mask": KEEP[:, :20]}, "query_mask must be bool"),
        ({"query": Q[:, :, :0]}, r"query has no tokens, shape \(3, 2, 0, 6\)"),
        ({"key": K[:, :, :0], "value": V[:, :, :0]}, "key has no tokens"),
        ({"value": V[:, :, :20]}, r"value \(B, H, S, V\); got"),
        ({"query": Q[0]}, "needs query"),
        ({"mode": "double_softmax", "scale": 1.0}, "scale has no meaning"),
    ],
)
def test_messages(change, message):
    with pytest.raises(ValueError, match=message):
        nystrom_attention(**{"query": Q, "key": K, "value": V, **change})


def test_transformers_in_its_sound_regime():
    """Batch 1, no padding, length = segment_means_seq_len, six steps; its scale is 1 / max column sum, as ours is."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    config = transformers.NystromformerConfig(
        hidden_size=16, num_attention_heads=1, num_landmarks=8, segment_means_seq_len=32
    )
    layer = NystromformerSelfAttention(config).double().eval()
    layer.conv_kernel_size = None  # the configuration takes no None
    x = drawn(1, 32, 16, seed=5)
    with torch.no_grad():
        for linear in (layer.query, layer.key):
            linear.weight.mul_(20)
        q, k, v = (linear(x)[:, None] for linear in (layer.query, layer.key, layer.value))
        found = nystrom_attention(q, k, v, 8, pinv="paper")[:, 0]
        torch.testing.assert_close(found, layer(x)[0], rtol=1e-6, atol=1e-6)
        exact = nystrom_attention(q, k, v, 8, pinv="exact")[:, 0]
        assert (exact - found).abs().max() > 1e-4  # six steps did not get there, so the agreement says something


@pytest.mark.parametrize("side", ["queries", "keys"])
def test_few_queries_or_few_keys_are_exact_whatever_the_neighbours(side):
    """Not only up to the steps of the inverse: such a sequence needs none."""
    few = torch.ones(3, 24, dtype=torch.bool)
    few[1] = torch.arange(24) % 7 == 2  # 4 tokens
    all_of_them = torch.ones(3, 24, dtype=torch.bool)
    mask, query_mask = (all_of_them, few) if side == "queries" else (few, all_of_them)
    found = nystrom_attention(Q, K, V, 5, mask=mask, query_mask=query_mask, pinv=1)
    exact = F.scaled_dot_product_attention(Q, K, V, mask[:, None, None, :])
    torch.testing.assert_close(found[1, :, query_mask[1]], exact[1, :, query_mask[1]], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[0], nystrom_attention(Q[:1], K[:1], V[:1], 5, pinv=1)[0], rtol=1e-9, atol=1e-9)


def test_lucidrains_where_one_scale_serves_all():
    """One sequence, one head, no mask, a length that the landmarks divide: its scale is a maximum over the tensor."""
    peer = pytest.importorskip("nystrom_attention", reason="needs nystrom-attention; install the extra bench")
    torch.manual_seed(0)
    layer = peer.NystromAttention(
        dim=16, dim_head=16, heads=1, num_landmarks=8, pinv_iterations=6, residual=False, eps=0.0
    )
    layer = layer.double().eval()
    x = 4 * drawn(1, 32, 16, seed=5)
    with torch.no_grad():
        q, k, v = (part[:, None] for part in layer.to_qkv(x).chunk(3, -1))
        found = layer.to_out(nystrom_attention(q, k, v, 8, pinv="paper")[:, 0])
        torch.testing.assert_close(found, layer(x), rtol=1e-6, atol=1e-6)
        other = layer.to_out(nystrom_attention(q, k, v, 8, pinv=4)[:, 0])
        assert (other - found).abs().max() > 1e-4  # so the steps show
