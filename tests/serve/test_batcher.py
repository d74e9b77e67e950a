"""Micro-batches: what goes together, in which order, what a failure or a cancelled request leaves behind."""

import threading
import time
from concurrent.futures import CancelledError

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
from danlu.serve.batcher import Batcher, Stopped


class Model:
    """Doubles numbers; can be held, fails on negative ones, remembers its calls."""

    def __init__(self, held: bool = False) -> None:
        self.calls: list[list[int]] = []
        self.began, self.gate = threading.Event(), threading.Event()
        self.threads: set[int] = set()
        if not held:
            self.gate.set()

    def __call__(self, items):
        self.calls.append(list(items))
        self.threads.add(threading.get_ident())
        self.began.set()
        assert self.gate.wait(20)
        if min(items) < 0:
            raise ValueError(f"negative: {min(items)}")
        return [2 * item for item in items]


@pytest.fixture
def batcher():
    """A maker of batchers that end with the test."""
    made = []

    def make(model, **options):
        made.append((model, Batcher(model, **options)))
        return made[-1][1]

    yield make
    for model, batcher in made:
        model.gate.set()
        batcher.stop()
        assert batcher.join(20)


def hold(model, batcher):
    """Occupy the model with one item, so that what follows has to wait."""
    first = batcher.submit([0])
    assert model.began.wait(20)
    return first


def test_what_waits_goes_together_in_order(batcher):
    model = Model(held=True)
    made = batcher(model, max_batch=8, max_wait=0)
    hold(model, made)
    answers = [made.submit([i, i + 1]) for i in range(1, 6)]  # 10 items: a batch of 8, one of 2
    assert made.waiting() == 10
    model.gate.set()
    assert [a.result(20) for a in answers] == [[2 * i, 2 * i + 2] for i in range(1, 6)]
    assert model.calls == [[0], [1, 2, 2, 3, 3, 4, 4, 5], [5, 6]]
    assert (made.batches, made.items, made.waiting()) == (3, 11, 0)
    assert len(model.threads) == 1 and model.threads != {threading.get_ident()}


def test_a_request_longer_than_a_batch_is_read_in_several(batcher):
    model = Model()
    made = batcher(model, max_batch=3, max_wait=0)
    assert made.submit(list(range(8))).result(20) == [2 * i for i in range(8)]
    assert model.calls == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_an_item_waits_for_company_no_longer_than_allowed(batcher):
    model = Model()
    made = batcher(model, max_batch=2, max_wait=0.3)
    begin = time.monotonic()
    first = made.submit([1])
    time.sleep(0.05)
    assert not model.calls
    second = made.submit([2])  # the batch is full now
    assert first.result(20) + second.result(20) == [2, 4] and model.calls == [[1, 2]]
    assert time.monotonic() - begin < 0.3
    waited = []
    for _ in range(3):
        begin = time.monotonic()
        assert made.submit([3]).result(20) == [6]  # nobody comes
        waited.append(time.monotonic() - begin)
    assert 0.29 <= min(waited) < 0.55  # the least: a busy machine only adds to it


def test_no_item_is_answered_at_once(batcher):
    model = Model(held=True)
    made = batcher(model)
    assert made.submit([]).result(0) == []
    assert not model.calls


def test_a_cancelled_request_leaves_the_queue(batcher):
    model = Model(held=True)
    made = batcher(model, max_batch=8, max_wait=0)
    hold(model, made)
    dropped, kept = made.submit([5, 6, 7]), made.submit([8])
    assert dropped.cancel() and made.waiting() == 1
    model.gate.set()
    assert kept.result(20) == [16]
    with pytest.raises(CancelledError):
        dropped.result(0)
    assert model.calls == [[0], [8]]


def test_a_request_cancelled_in_the_model_loses_its_rest_and_harms_nobody(batcher):
    model = Model(held=True)
    made = batcher(model, max_batch=2, max_wait=0)
    long = made.submit([1, 2, 3, 4])
    assert model.began.wait(20)
    other = made.submit([9])
    assert long.cancel() and made.waiting() == 1
    model.gate.set()
    assert other.result(20) == [18]
    assert model.calls == [[1, 2], [9]]


def test_a_failure_is_told_to_its_own_request_only(batcher):
    model = Model(held=True)
    made = batcher(model, max_batch=8, max_wait=0)
    hold(model, made)
    before, bad, after = made.submit([1]), made.submit([2, -3]), made.submit([4])
    model.gate.set()
    assert (before.result(20), after.result(20)) == ([2], [8])
    with pytest.raises(ValueError, match="negative: -3"):
        bad.result(20)
    assert made.submit([5]).result(20) == [10]  # the thread lives


def test_too_few_predictions_are_a_failure(batcher):
    class Forgetful(Model):
        def __call__(self, items):
            return super().__call__(items)[1:]

    made = batcher(Forgetful())
    with pytest.raises(RuntimeError, match="gave 1 predictions for 2 items"):
        made.submit([1, 2]).result(20)


def test_stopping_answers_everything_open_and_takes_nothing_more(batcher):
    model = Model(held=True)
    made = batcher(model, max_batch=1, max_wait=0)
    running = hold(model, made)
    queued = made.submit([1])
    made.stop()
    for answer in (running, queued):
        with pytest.raises(Stopped, match="stopped before this was read"):
            answer.result(0)
    with pytest.raises(Stopped, match="stopping"):
        made.submit([2])
    assert not made.join(0.01)  # the model is still at it
    model.gate.set()
    assert made.join(20) and model.calls == [[0]]


def test_many_threads_get_their_own_answers(batcher):
    model = Model()
    made = batcher(model, max_batch=4, max_wait=0.001)
    wrong = []

    def client(number):
        for i in range(20):
            asked = [100 * number + i] * (i % 3 + 1)
            if made.submit(asked).result(20) != [2 * a for a in asked]:
                wrong.append(asked)

    clients = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(30)
    assert not wrong and max(map(len, model.calls)) <= 4
    assert len(model.calls) < sum(map(len, model.calls))  # some went together
