"""Micro-batches: items of all waiting requests go through the model together, in one thread of its own.

The thread takes up to `max_batch` items in the order of their arrival. A batch that is not full waits until its oldest
item is `max_wait` seconds old; what arrives while the model runs has waited long enough when it returns, so a busy
service batches without waiting. A request longer than a batch is read in several.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Batcher", "Stopped"]

Item = str | Mapping[str, str]
Prediction = dict[str, Any]


class Stopped(RuntimeError):
    """The batcher stopped before this request was answered."""


@dataclass(eq=False)
class _Job:
    """The items of a request and how far they are."""

    items: Sequence[Item]
    answer: Future[list[Prediction]]
    arrived: float
    taken: int = 0
    results: list[Prediction] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """The items of a job that go into one batch."""

    job: _Job
    items: Sequence[Item]


class Batcher:
    """Collects items, runs the model, hands the predictions back.

    Args:
        predict: a prediction for every item, in order; called in one thread only.
        max_batch: items of a call.
        max_wait: seconds that an item may wait for company.
    """

    def __init__(
        self, predict: Callable[[list[Item]], list[Prediction]], max_batch: int = 32, max_wait: float = 0.002
    ) -> None:
        self.predict, self.max_batch, self.max_wait = predict, max_batch, max_wait
        self.batches = self.items = 0  # calls of the model and items in them, so far
        self._queue: deque[_Job] = deque()
        self._open: set[_Job] = set()  # jobs without an answer, in the queue or in the model
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="danlu-model", daemon=True)
        self._thread.start()

    def submit(self, items: Sequence[Item]) -> Future[list[Prediction]]:
        """Queue the items of a request.

        Args:
            items: any number; none is answered at once.

        Returns:
            Their predictions, in order. Cancelling it takes what is left of the request out of the queue.

        Raises:
            Stopped: nothing is taken any more.
        """
        job = _Job(items, Future(), time.monotonic())
        if not items:
            job.answer.set_result([])
            return job.answer
        with self._changed:
            if self._stopping:
                raise Stopped("the service is stopping")
            self._queue.append(job)
            self._open.add(job)
            self._changed.notify()
        job.answer.add_done_callback(lambda _: self._forget(job))
        return job.answer

    def waiting(self) -> int:
        """Items that the model has not begun."""
        with self._changed:
            return self._count()

    def stop(self) -> None:
        """Take nothing more and answer everything open with `Stopped`; a batch in the model is not waited for."""
        with self._changed:
            self._stopping = True
            jobs = list(self._open)
            self._changed.notify()
        for job in jobs:
            _settle(job, error=Stopped("the service stopped before this was read"))

    def join(self, seconds: float) -> bool:
        """Wait for the thread after `stop`; whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _count(self) -> int:
        return sum(len(job.items) - job.taken for job in self._queue)

    def _forget(self, job: _Job) -> None:
        """A job that is answered, given up or failed leaves the queue."""
        with self._changed:
            self._open.discard(job)
            with suppress(ValueError):
                self._queue.remove(job)

    def _work(self) -> None:
        while parts := self._collect():
            self._run(parts)

    def _collect(self) -> list[_Part]:
        """The parts of the next batch; none when it is time to stop."""
        with self._changed:
            while not self._stopping:
                if not self._queue:
                    self._changed.wait()
                    continue
                left = self._queue[0].arrived + self.max_wait - time.monotonic()
                if left > 0 and self._count() < self.max_batch:
                    self._changed.wait(left)
                    continue
                return self._take()
        return []

    def _take(self) -> list[_Part]:
        parts, room = [], self.max_batch
        while self._queue and room:
            job = self._queue[0]
            chosen = job.items[job.taken : job.taken + room]
            job.taken += len(chosen)
            room -= len(chosen)
            parts.append(_Part(job, chosen))
            if job.taken == len(job.items):
                self._queue.popleft()
        return parts

    def _run(self, parts: Sequence[_Part]) -> None:
        """One call of the model. Where it fails, each request is tried alone, so that one cannot spoil the others."""
        items = [item for part in parts for item in part.items]
        self.batches += 1
        self.items += len(items)
        try:
            results = self.predict(items)
            if len(results) != len(items):
                raise RuntimeError(f"the model gave {len(results)} predictions for {len(items)} items")
        except Exception as error:
            if len(parts) == 1:
                _settle(parts[0].job, error=error)
                return
            for part in parts:
                if not part.job.answer.done():
                    self._run([part])
            return
        begin = 0
        for part in parts:
            part.job.results += results[begin : begin + len(part.items)]
            begin += len(part.items)
            if len(part.job.results) == len(part.job.items):
                _settle(part.job)


def _settle(job: _Job, error: Exception | None = None) -> None:
    """Answer a job unless it was given up meanwhile."""
    with suppress(InvalidStateError):
        if error is None:
            job.answer.set_result(job.results)
        else:
            job.answer.set_exception(error)
