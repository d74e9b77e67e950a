"""Batches hold every item once, in an order fixed by seed and epoch; windows cover every token exactly once."""

import itertools

import pytest

from danlu.data.batching import bucketed_batches, windows

LENGTHS = [5, 1, 9, 3, 3, 7, 2, 8, 4, 6, 1]


@pytest.mark.parametrize(("size", "pool"), [(1, 1), (2, 2), (3, 50), (100, 1)])
def test_every_item_once(size, pool):
    batches = bucketed_batches(LENGTHS, size, seed=3, epoch=1, pool=pool)
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(len(LENGTHS)))
    assert all(1 <= len(batch) <= size for batch in batches)


def test_same_seed_same_order_other_epoch_other_order():
    lengths = list(range(200))
    assert bucketed_batches(lengths, 4, 0, 0) == bucketed_batches(lengths, 4, 0, 0)
    assert bucketed_batches(lengths, 4, 0, 0) != bucketed_batches(lengths, 4, 0, 1)
    assert bucketed_batches(lengths, 4, 0, 0) != bucketed_batches(lengths, 4, 1, 0)


def test_a_batch_holds_like_lengths():
    lengths = [i % 100 for i in range(1000)]
    padded = sum(len(b) * max(lengths[i] for i in b) for b in bucketed_batches(lengths, 10, 0, 0))
    assert padded < 1.1 * sum(lengths)  # random batches of ten would waste about 80 %


def test_batches_name_the_bad_setting():
    with pytest.raises(ValueError, match=r"batch_size >= 1 .* got 0 and 50"):
        bucketed_batches([1], 0, 0, 0)


@pytest.mark.parametrize("length", range(40))
@pytest.mark.parametrize(("max_len", "context"), [(8, 0), (8, 3), (5, 2), (1, 0)])
def test_each_token_is_answered_for_once_and_seen_with_context(length, max_len, context):
    found = windows([length], max_len, context)
    kept = list(itertools.chain.from_iterable(range(w.keep_start, w.keep_stop) for w in found))
    assert kept == list(range(length))
    for w in found:
        assert w.start <= w.keep_start < w.keep_stop <= w.stop <= w.start + max_len
        assert w.start == 0 or w.keep_start - w.start >= context
        assert w.stop == length or w.stop - w.keep_stop >= context


def test_windows_keep_the_order_of_examples():
    assert [(w.index, w.start) for w in windows([3, 0, 5], 4)] == [(0, 0), (2, 0), (2, 4)]


def test_windows_need_room_for_context():
    with pytest.raises(ValueError, match="max_len=4, context=2"):
        windows([1], 4, 2)
