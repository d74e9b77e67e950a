"""KVCache: against rows kept as Python lists and torch's own attention, with and without the kernel; messages."""

import math

import pytest
import torch
import torch.nn.functional as F

from danlu.nn import KVCache
from danlu.nn._decode import decode_kernel

HEADS, KEY, VALUE = 3, 8, 5
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}


@pytest.fixture(params=["on", "off"])
def kernels(request, monkeypatch):
    monkeypatch.setenv("DANLU_KERNELS", request.param)
    if request.param == "on" and decode_kernel() is None:
        pytest.skip("the kernel needs numba and a torch on GNU OpenMP")
    return request.param


class ByHand:
    """Oracle: every row a list of (keys (H, K), values (H, V), kept); repeated rows are copied lists."""

    def __init__(self, rows):
        self.rows = [[] for _ in range(rows)]

    def reorder(self, rows):
        self.rows = [list(self.rows[r]) for r in rows]

    def append(self, keys, values, keep=None):
        for r, row in enumerate(self.rows):
            for t in range(keys.shape[1]):
                row.append((keys[r, t].double(), values[r, t].double(), keep is None or bool(keep[r, t])))

    def attend(self, queries, scale, bias=None, causal=True):
        out = torch.zeros(*queries.shape[:3], VALUE, dtype=torch.float64)
        rows, new, heads, _ = queries.shape
        for r in range(rows):
            for t in range(new):
                for h in range(heads):
                    seen = self.rows[r][: len(self.rows[r]) - new + t + 1] if causal else self.rows[r]
                    weights = []
                    for p, (key, _, kept) in enumerate(seen):
                        s = scale * sum(a * b for a, b in zip(queries[r, t, h].tolist(), key[h].tolist(), strict=True))
                        s += 0.0 if bias is None else bias[r % len(bias), h % bias.shape[1], t, p].item()
                        weights.append(math.exp(s) if kept else 0.0)
                    if sum(weights):
                        mean = sum(w * value[h] for w, (_, value, _) in zip(weights, seen, strict=True))
                        out[r, t, h] = mean / sum(weights)
        return out


def draws(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator).to(dtype)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beams_equal_rows_that_are_copied(kernels, dtype, padded):
    normal, cache, oracle = draws(dtype), KVCache(2, 2, HEADS, KEY, VALUE, 12, dtype), [ByHand(2), ByHand(2)]
    keep = torch.tensor([[True, True, True], [False, False, True]])
    if padded:
        cache.keep = torch.ones(2, 12, dtype=torch.bool)
        cache.keep[:, :3] = keep
    steps = [None, [0, 0, 0, 1, 1, 1], [2, 1, 0, 5, 5, 4], [0, 1, 2, 3, 4, 5], [3, 3, 0], [2], [0, 0, 0, 0, 0, 0, 0]]
    rows = 2
    for order in steps:
        new = 3 if order is None else 1
        if order is not None:
            cache.reorder(torch.tensor(order))
            for one in oracle:
                one.reorder(order)
            rows = len(order)
        for layer in range(2):
            keys, values, queries = (normal(rows, new, HEADS, size) for size in (KEY, VALUE, KEY))
            cache.store(layer, keys, values)
            oracle[layer].append(keys, values, keep if order is None and padded else None)
            bias = normal(1, HEADS, new, cache.length + new) if layer else None
            got = cache.attend(layer, queries, 0.3, bias)
            assert got.dtype == dtype
            torch.testing.assert_close(
                got.double(), oracle[layer].attend(queries, 0.3, bias), rtol=0, atol=TOLERANCE[dtype]
            )
            read = torch.stack([torch.stack([key for key, _, _ in row]) for row in oracle[layer].rows])
            torch.testing.assert_close(cache.read(layer, new)[0].double(), read, rtol=0, atol=0)
        cache.advance(new)
    assert (cache.length, cache.rows) == (9, 7)


@pytest.mark.parametrize("bias_shape", [(1, 1), (4, 1), (4, 3), (1, 3)])
def test_bias_is_broadcast_over_rows_and_heads(kernels, bias_shape):
    normal, cache, oracle = draws(), KVCache(1, 4, HEADS, KEY, VALUE, 40), ByHand(4)
    keys, values, queries = normal(4, 33, HEADS, KEY), normal(4, 33, HEADS, VALUE), normal(4, 1, HEADS, KEY)
    cache.store(0, keys, values)
    oracle.append(keys, values)
    bias = normal(*bias_shape, 1, 33) * 3
    torch.testing.assert_close(
        cache.attend(0, queries, 0.5, bias).double(), oracle.attend(queries, 0.5, bias), rtol=0, atol=1e-5
    )


def test_a_prompt_is_causal_attention(kernels):
    normal, cache = draws(), KVCache(1, 2, HEADS, KEY, VALUE, 6)
    keys, values, queries = normal(2, 6, HEADS, KEY), normal(2, 6, HEADS, VALUE), normal(2, 6, HEADS, KEY)
    cache.store(0, keys, values)
    own = F.scaled_dot_product_attention(
        queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), is_causal=True, scale=0.5
    )
    torch.testing.assert_close(cache.attend(0, queries, 0.5), own.transpose(1, 2))


def test_a_token_at_a_time_equals_all_at_once(kernels):
    normal, whole, single = draws(), KVCache(1, 2, HEADS, KEY, VALUE, 6), KVCache(1, 2, HEADS, KEY, VALUE, 6)
    keys, values, queries = normal(2, 6, HEADS, KEY), normal(2, 6, HEADS, VALUE), normal(2, 6, HEADS, KEY)
    whole.store(0, keys, values)
    parts = []
    for t in range(6):
        single.store(0, keys[:, t : t + 1], values[:, t : t + 1])
        parts.append(single.attend(0, queries[:, t : t + 1], 0.5))
        single.advance(1)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole.attend(0, queries, 0.5))


@pytest.mark.parametrize("new", [1, 2, 7])
def test_without_causality_any_queries_see_all(kernels, new):
    normal, cache, oracle = draws(), KVCache(1, 2, HEADS, KEY, VALUE, 6), ByHand(2)
    keys, values, queries = normal(2, 4, HEADS, KEY), normal(2, 4, HEADS, VALUE), normal(2, new, HEADS, KEY)
    cache.store(0, keys, values)
    cache.advance(4)
    oracle.append(keys, values)
    got = cache.attend(0, queries, 0.5, causal=False)
    torch.testing.assert_close(got.double(), oracle.attend(queries, 0.5, causal=False), rtol=0, atol=1e-5)


@pytest.mark.parametrize("new", [1, 3])
def test_a_query_without_any_key_gets_zeros(kernels, new):
    cache = KVCache(1, 2, HEADS, KEY, VALUE, 6)
    cache.keep = torch.tensor([[False] * 6, [True] * 6])
    cache.store(0, torch.ones(2, 3, HEADS, KEY), torch.ones(2, 3, HEADS, VALUE))
    out = cache.attend(0, torch.ones(2, new, HEADS, KEY), 1.0)
    assert (out[0] == 0).all()
    torch.testing.assert_close(out[1], torch.ones(new, HEADS, VALUE))


def test_scores_of_hundreds_neither_overflow_nor_vanish(kernels):
    cache = KVCache(1, 1, 1, 1, 1, 3)
    cache.store(
        0, torch.tensor([500.0, 499.0, -500.0]).view(1, 3, 1, 1), torch.tensor([1.0, 2.0, 9.0]).view(1, 3, 1, 1)
    )
    expected = (math.e * 1 + 2) / (math.e + 1)
    assert cache.attend(0, torch.ones(1, 1, 1, 1), 1.0).item() == pytest.approx(expected, rel=1e-6)
    low = KVCache(1, 1, 1, 1, 1, 2)
    low.store(0, torch.tensor([-500.0, -501.0]).view(1, 2, 1, 1), torch.tensor([1.0, 2.0]).view(1, 2, 1, 1))
    assert low.attend(0, torch.ones(1, 1, 1, 1), 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_queries_masks_and_biases_of_any_strides(kernels):
    normal, cache, oracle = draws(), KVCache(1, 2, HEADS, KEY, VALUE, 6), ByHand(2)
    keys, values = normal(2, 5, HEADS, KEY), normal(2, 5, HEADS, VALUE)
    keep = torch.tensor([[True, False], [False, True], [True, True], [True, True], [True, True], [True, True]]).T
    cache.keep = keep
    cache.store(0, keys, values)
    oracle.append(keys, values, keep[:, :5])
    queries = normal(2, KEY, HEADS).transpose(1, 2)[:, None]  # (R, 1, H, K)
    bias = normal(5, HEADS, 1, 2).permute(3, 1, 2, 0)  # (R, H, 1, n)
    expected = oracle.attend(queries, 0.5, bias)
    torch.testing.assert_close(cache.attend(0, queries, 0.5, bias).double(), expected, rtol=0, atol=1e-5)


def test_reorder_moves_no_key(monkeypatch):
    monkeypatch.setenv("DANLU_KERNELS", "on")
    if decode_kernel() is None:
        pytest.skip("the kernel needs numba and a torch on GNU OpenMP")
    cache = KVCache(1, 4, HEADS, KEY, VALUE, 6)
    cache.store(0, torch.randn(4, 2, HEADS, KEY), torch.randn(4, 2, HEADS, VALUE))
    cache.advance(2)
    place, before = cache._keys[0].data_ptr(), cache._keys[0][:, :, :2].clone()
    cache.reorder(torch.tensor([3, 3, 1, 0]))
    cache.reorder(torch.tensor([1, 2]))
    assert cache._keys[0].data_ptr() == place
    assert torch.equal(cache._keys[0][:, :, :2], before)
    torch.testing.assert_close(cache.read(0, 0)[0], before[[3, 1]].transpose(1, 2))


def test_switching_the_kernel_off_halfway_changes_nothing(monkeypatch):
    normal, results = draws(), []
    keys, values, queries = normal(3, 1, HEADS, KEY), normal(3, 1, HEADS, VALUE), normal(3, 1, HEADS, KEY)
    for first, second in (("on", "off"), ("off", "on"), ("off", "off")):
        cache = KVCache(1, 2, HEADS, KEY, VALUE, 6)
        cache.store(0, keys[:2], values[:2])
        cache.advance(1)
        monkeypatch.setenv("DANLU_KERNELS", first)
        cache.reorder(torch.tensor([1, 0, 1]))
        monkeypatch.setenv("DANLU_KERNELS", second)
        cache.store(0, keys, values)
        results.append(cache.attend(0, queries, 1.0))
        cache.advance(1)
        cache.reorder(torch.tensor([2]))
        cache.store(0, keys[:1], values[:1])
        results[-1] = torch.cat([results[-1].flatten(), cache.attend(0, queries[:1], 1.0).flatten()])
    torch.testing.assert_close(results[0], results[2])
    torch.testing.assert_close(results[1], results[2])


def test_float64_is_attended_by_torch(kernels):
    cache, oracle = KVCache(1, 2, HEADS, KEY, VALUE, 4, torch.float64), ByHand(2)
    normal = draws(torch.float64)
    keys, values, queries = normal(2, 1, HEADS, KEY), normal(2, 1, HEADS, VALUE), normal(2, 1, HEADS, KEY)
    cache.store(0, keys, values)
    cache.advance(1)
    oracle.append(keys, values)
    cache.reorder(torch.tensor([1, 1]))
    oracle.reorder([1, 1])
    cache.store(0, keys, values)
    oracle.append(keys, values)
    torch.testing.assert_close(cache.attend(0, queries, 1.0), oracle.attend(queries, 1.0), rtol=0, atol=1e-12)


def test_messages_say_what_was_given_and_what_to_do():
    cache = KVCache(2, 2, HEADS, KEY, VALUE, 4)
    keys, values = torch.zeros(2, 3, HEADS, KEY), torch.zeros(2, 3, HEADS, VALUE)
    with pytest.raises(ValueError, match=r"at least 1 and a float dtype; got 1, 1, 1, 0, 1, 1 and"):
        KVCache(1, 1, 1, 0, 1, 1)
    with pytest.raises(ValueError, match=r"with R = 2; got \(3, 3, 3, 8\)"):
        cache.store(0, torch.zeros(3, 3, HEADS, KEY), values)
    with pytest.raises(ValueError, match=r"got \(2, 3, 3, 8\) and \(2, 3, 3, 8\)"):
        cache.store(0, keys, keys)
    with pytest.raises(ValueError, match="store the keys and values of a layer before it attends"):
        cache.attend(0, torch.zeros(2, 1, HEADS, KEY), 1.0)
    cache.store(0, keys, values)
    with pytest.raises(ValueError, match=r"layer 1 has stored 0 new positions, advance\(3\) counts more"):
        cache.advance(3)
    cache.store(1, keys, values)
    cache.advance(3)
    with pytest.raises(
        ValueError, match=r"holds 4 positions; 3 are taken and 3 more do not fit. Make it with a greater capacity"
    ):
        cache.store(0, keys, values)
    with pytest.raises(ValueError, match=r"queries \(R, t, H, K\) = \(2, t, 3, 8\); got \(1, 1, 3, 8\)"):
        cache.attend(0, torch.zeros(1, 1, HEADS, KEY), 1.0)
    with pytest.raises(ValueError, match=r"rows in \[0, 2\); got 0 to 2"):
        cache.reorder(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"rows \(R',\) int64"):
        cache.reorder(torch.tensor([0.0]))
