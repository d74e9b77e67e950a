"""Streams: every row once for any workers and ranks, random numbers, tails, resuming, errors with their row, ends."""

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from danlu.data import Stream, StreamError, StreamLoader


def numbers(n):
    return lambda: iter(range(n))


def plain(batch):
    return batch


def gone(seconds=10.0):
    """Whether all worker processes have ended."""
    end = time.monotonic() + seconds
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.01)
    return not multiprocessing.active_children()


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 40), workers=st.integers(1, 4), ranks=st.integers(1, 3), buffer=st.integers(0, 9))
def test_every_row_is_in_exactly_one_shard(n, workers, ranks, buffer):
    shards = workers * ranks
    stream = Stream(numbers(n), seed=3, shuffle_buffer=buffer)
    parts = [list(stream.shard(s, shards, epoch=1)) for s in range(shards)]
    assert sorted(row for part in parts for row in part) == list(range(n))
    for s, part in enumerate(parts):
        assert sorted(part) == list(range(s, n, shards))
        assert part == sorted(part) or buffer > 1


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 40), shards=st.integers(1, 7))
def test_tails_give_every_shard_as_many_rows(n, shards):
    whole = n - n % shards
    dropped = [list(Stream(numbers(n), tail="drop").shard(s, shards)) for s in range(shards)]
    assert sorted(itertools.chain(*dropped)) == list(range(whole))
    repeated = [list(Stream(numbers(n), tail="repeat").shard(s, shards)) for s in range(shards)]
    assert {len(part) for part in repeated} == {-(-n // shards)}
    assert set(itertools.chain(*repeated)) == set(range(n))
    for s, part in enumerate(repeated):
        assert part[: len(range(s, n, shards))] == list(range(s, n, shards))  # own rows first, one other at the end


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 30), shards=st.integers(1, 4), buffer=st.integers(0, 6), skip=st.integers(0, 12))
def test_skipping_leaves_the_rest_as_it_is(n, shards, buffer, skip):
    stream = Stream(
        numbers(n), shuffle_buffer=buffer, transform=lambda row, g: (row, torch.randint(99, (), generator=g))
    )
    assert list(stream.shard(0, shards, 2, skip)) == list(stream.shard(0, shards, 2))[skip:]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_torchs_own_loader_gives_every_row_once(workers):
    for ranks in (1, 2):
        found = []
        for rank in range(ranks):
            stream = Stream(numbers(11), rank=rank, world_size=ranks)
            found += DataLoader(stream, None, num_workers=workers)
        assert sorted(found) == list(range(11))


def test_a_plain_iterable_dataset_gives_every_row_to_every_worker():
    """What the stream is against."""

    class Plain(IterableDataset):
        def __iter__(self):
            return iter(range(4))

    assert sorted(DataLoader(Plain(), None, num_workers=2)) == [0, 0, 1, 1, 2, 2, 3, 3]


def draws(row, generator):
    """A transform that asks every stream of random numbers there is."""
    mine = int(torch.randint(2**40, (), generator=generator))
    return row, mine, random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_random_numbers_differ_between_rows_workers_epochs_and_ranks_and_come_again():
    def one(epoch, seed=5, workers=2, rank=0):
        loader = StreamLoader(Stream(numbers(8), seed, transform=draws, rank=rank, world_size=2), 1, workers, plain)
        loader.set_epoch(epoch)
        torch.manual_seed(0)  # the main process's stream decides on nothing
        return sorted(row for batch in loader for row in batch)

    passes = [one(0), one(1), one(0, rank=1)]
    assert passes[0] == one(0)
    for column in range(1, 5):
        assert len({row[column] for part in passes for row in part}) == 12
    alone = sorted(row[:2] for rank in (0, 1) for row in one(0, workers=0, rank=rank))
    assert alone == sorted(row[:2] for row in passes[0] + passes[2])  # eq. (2): for any number of workers
    assert one(0, seed=6)[0][1] != passes[0][0][1]


def test_workers_that_live_on_see_the_new_epoch():
    stream = Stream(numbers(30), shuffle_buffer=30)
    loader = DataLoader(stream, None, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        orders.append(list(loader))
    assert orders[0] == orders[2] != orders[1]
    del loader
    assert gone()


def test_the_main_process_keeps_its_random_numbers():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    for workers in (0, 2):
        list(StreamLoader(Stream(numbers(9), shuffle_buffer=4, transform=lambda row, g: row), 2, workers, plain))
    assert before[0] == random.getstate() and before[1] == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(before[2], torch.get_rng_state())


def test_the_shuffle_is_uniform_when_the_buffer_holds_all():
    """Place of row 0 over 2,000 passes of 5 rows: each of the five within four standard errors of 400."""
    places = [list(Stream(numbers(5), seed=s, shuffle_buffer=5).shard(0, 1)).index(0) for s in range(2000)]
    counts = [places.count(i) for i in range(5)]
    assert max(abs(c - 400) for c in counts) < 4 * (2000 * 0.2 * 0.8) ** 0.5
    small = list(Stream(numbers(100), shuffle_buffer=10).shard(0, 1))
    assert all(place >= row - 9 for place, row in enumerate(small))  # no row before it could be in the buffer
    assert small != sorted(small)


def batches_of(loader):
    return [list(batch) for batch in loader]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "drop_last"), [(0, False), (0, True), (2, False), (3, True)])
def test_resuming_goes_on_with_the_very_next_batch(workers, drop_last):
    """State after every number of batches, also uneven ones, through JSON into a new loader."""

    def loader():
        stream = Stream(
            numbers(23),
            seed=2,
            shuffle_buffer=4,
            transform=lambda row, g: (row, int(torch.randint(99, (), generator=g))),
        )
        return StreamLoader(stream, 2, workers, plain, drop_last)

    first = loader()
    first.set_epoch(1)
    expected = batches_of(first)
    stops = range(len(expected) + 1) if not workers else (1, 2, len(expected) - 1)
    for stop in stops:
        one = loader()
        one.set_epoch(1)
        seen = []
        for batch in one if stop else ():
            seen.append(list(batch))
            if len(seen) == stop:
                break
        state = json.loads(json.dumps(one.state_dict()))
        assert state["epoch"] == 1
        two = loader()
        two.load_state_dict(state)
        two.set_epoch(1)  # the number of the epoch that is going on changes nothing
        assert seen + batches_of(two) == expected, (stop, state)
        assert two.state_dict()["epoch"] == 2 and not any(two.state_dict()["delivered"])
    assert gone()


def test_a_pass_that_was_left_begins_anew_and_the_next_pass_has_the_next_number():
    loader = StreamLoader(Stream(numbers(6), shuffle_buffer=6), 2, 0, plain)
    whole = batches_of(loader)
    second = batches_of(loader)
    assert whole != second and loader.stream.epoch == 2
    loader.set_epoch(0)
    assert next(iter(loader)) == whole[0]
    assert batches_of(loader) == whole


def test_batches_are_tensors_by_default():
    assert torch.equal(next(iter(StreamLoader(Stream(numbers(4)), 3))), torch.tensor([0, 1, 2]))


def fails_at_five():
    yield from range(5)
    raise ZeroDivisionError("the fifth")


def bad_row(row, generator):
    return 1 // (row - 3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["source", "transform", "call"])
def test_an_error_names_its_row_and_shows_the_traceback(workers, kind):
    source = {"source": fails_at_five, "transform": numbers(9), "call": lambda: 1 // 0}[kind]
    stream = Stream(source, transform=bad_row if kind == "transform" else None)
    with pytest.raises(StreamError) as caught:
        for _ in StreamLoader(stream, 1, workers, plain):
            pass
    text = str(caught.value)
    place = {"source": "row 5 of the source", "transform": "transform of row 3", "call": "row 0 of the source"}[kind]
    assert place in text and "ZeroDivisionError" in text and "epoch 0" in text
    if workers:
        line = {"source": "in fails_at_five", "transform": "in bad_row", "call": "1 // 0"}[kind]
        assert "Traceback" in text and line in text and "Caught StreamError in DataLoader worker process" in text
    else:
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert gone()


@pytest.mark.parametrize("leave", ["break", "error", "interrupt", "close", "forget"])
def test_leaving_the_loop_stops_the_workers(leave):
    def endless():
        i = 0
        while True:
            yield i
            i += 1

    loader = StreamLoader(Stream(endless), 2, 2, plain)
    if leave in ("close", "forget"):
        batches = iter(loader)
        next(batches)
        loader.close() if leave == "close" else None
        del batches
    with contextlib.suppress(KeyError, KeyboardInterrupt):
        for _ in loader if leave in ("break", "error", "interrupt") else ():
            assert multiprocessing.active_children()
            if leave == "break":
                break
            raise KeyError if leave == "error" else KeyboardInterrupt
    assert gone()


def test_the_source_is_closed_when_the_loop_is_left():
    ends = []

    def source():
        try:
            yield from range(100)
        finally:
            ends.append(1)

    for buffer in (0, 5):
        for _ in StreamLoader(Stream(source, shuffle_buffer=buffer), 2, 0, plain):
            break
    assert ends == [1, 1]


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error_and_not_a_wait():
    def dies():
        yield 0
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(StreamLoader(Stream(dies), 1, 1, plain))
    assert gone()


@pytest.mark.slow
def test_a_worker_that_hangs_runs_into_the_time_limit():
    def hangs():
        yield 0
        time.sleep(60)

    with pytest.raises(RuntimeError, match="timed out"):
        list(StreamLoader(Stream(hangs), 1, 1, plain, timeout=1.0))
    assert gone()


@pytest.mark.slow
def test_spawned_workers_give_the_same_batches():
    stream = Stream(range_of_nine, seed=1, shuffle_buffer=3)
    spawned = StreamLoader(stream, 2, 2, plain, start_method="spawn")
    assert batches_of(spawned) == batches_of(StreamLoader(Stream(range_of_nine, seed=1, shuffle_buffer=3), 2, 2, plain))
    assert gone()


def range_of_nine():
    return iter(range(9))


def of_rank(rank, file, queue):
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    loader = StreamLoader(Stream(numbers(11), tail="repeat"), 2, 1, plain)
    queue.put((rank, batches_of(loader)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_rows_and_have_as_many_batches(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    processes = [context.Process(target=of_rank, args=(r, tmp_path / "store", queue)) for r in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get() for _ in processes)
    for process in processes:
        process.join(30)
    assert found == {0: [[0, 2], [4, 6], [8, 10]], 1: [[1, 3], [5, 7], [9, 1]]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Stream(numbers(1), tail="wrap"), "tail must be one of keep, drop, repeat; got 'wrap'"),
        (lambda: Stream(numbers(1), shuffle_buffer=-1), "shuffle_buffer counts rows and must be >= 0, got -1; 0 keeps"),
        (lambda: Stream(numbers(1), rank=2, world_size=2), r"rank must lie in \[0, world_size\), got rank 2 of 2"),
        (lambda: StreamLoader(Stream(numbers(1)), 0), "batch_size >= 1 and num_workers >= 0; got 0 and 0"),
        (
            lambda: StreamLoader(Stream(numbers(1)), 2).load_state_dict(
                StreamLoader(Stream(numbers(1)), 3).state_dict()
            ),
            "the state was taken with batch_size=3, this loader has batch_size=2; the place in the data",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
