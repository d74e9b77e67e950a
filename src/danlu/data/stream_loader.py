"""Batches of a `Stream` from worker processes, with an exact place to resume from and a clean end.

    loader = StreamLoader(Stream(rows, seed=1, shuffle_buffer=10_000), batch_size=32, num_workers=2)
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader: ...
    state = loader.state_dict()      # between two batches; load_state_dict(state) goes on with the next one

Workers read ahead, so only the main process knows what was handed out: each batch is signed by its worker, and a
resumed run starts with the worker whose turn it is, skipping what each has delivered. The source is read again up to
there; transforms are not run. Leaving the loop, by break or by an exception, stops the workers and closes the source.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from danlu.data.streaming import Stream, this_worker

__all__ = ["StreamLoader"]


class StreamLoader:
    """Batches of a `Stream` from worker processes, with an exact place to resume from.

    One `for` is one pass. A pass that came to its end moves the epoch on; one that was left begins anew, unless
    `load_state_dict` says where to go on. Workers live as long as the pass.
    """

    def __init__(
        self,
        stream: Stream,
        batch_size: int,
        num_workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = False,
        prefetch: int = 2,
        timeout: float = 0.0,
        start_method: str | None = None,
    ) -> None:
        """Describe the loader; workers start with the first batch.

        Args:
            stream: what to read.
            batch_size: examples in a batch, >= 1; the last batch of each worker may have fewer.
            num_workers: processes that read; 0 reads in this one.
            collate: makes a batch of a list of examples; None stacks tensors and numbers as torch does.
            drop_last: leave out smaller batches.
            prefetch: batches that each worker keeps ready.
            timeout: seconds to wait for a batch before an error; 0 waits for ever.
            start_method: "fork", "spawn" or "forkserver"; None is Python's own, but "spawn" once CUDA is in use, which
                a fork would break.

        Raises:
            ValueError: batch_size below 1 or num_workers below 0.
        """
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"StreamLoader needs batch_size >= 1 and num_workers >= 0; got {batch_size} and "
                             f"{num_workers}")  # fmt: skip
        self.stream, self.batch_size, self.num_workers = stream, batch_size, num_workers
        self.collate, self.drop_last, self.prefetch, self.timeout = collate, drop_last, prefetch, timeout
        self.start_method = start_method
        self._delivered = [0] * max(num_workers, 1)  # batches handed out, for each worker
        self._next = 0  # the worker whose turn it is
        self._resumed = False
        self._running: weakref.ref[Any] | None = None  # weak, so that a break closes it

    def set_epoch(self, epoch: int) -> None:
        """Number the next pass; a place that was loaded for this very epoch stays.

        Args:
            epoch: >= 0.
        """
        if epoch != self.stream.epoch:
            self._begin(epoch)

    def __iter__(self) -> Iterator[Any]:
        """The batches of one pass, or what is left of it."""
        self.close()
        if not self._resumed:
            self._begin(self.stream.epoch)
        self._resumed = False
        batches = self._batches()
        self._running = weakref.ref(batches)
        return batches

    def close(self) -> None:
        """Stop the workers of a pass that was left; break, exceptions and the end of a pass do so by themselves."""
        running = None if self._running is None else self._running()
        if running is not None:
            running.close()
        self._running = None

    def state_dict(self) -> dict[str, Any]:
        """The place behind the last batch that was handed out, as plain numbers: JSON takes it as it is."""
        return {"epoch": self.stream.epoch, "delivered": list(self._delivered), "next": self._next} | self._settings()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass begin where `state_dict` was taken.

        Args:
            state: what `state_dict()` returned, from a loader of the same settings.

        Raises:
            ValueError: a setting that decides on the order differs; the message names it.
        """
        for name, mine in self._settings().items():
            if state.get(name) != mine:
                raise ValueError(
                    f"the state was taken with {name}={state.get(name)!r}, this loader has {name}={mine!r}; the place "
                    "in the data would not be the same"
                )
        self.close()
        self._begin(int(state["epoch"]))
        self._delivered, self._next, self._resumed = [int(n) for n in state["delivered"]], int(state["next"]), True

    def _settings(self) -> dict[str, Any]:
        stream = self.stream
        return {
            "seed": stream.seed, "shuffle_buffer": stream.shuffle_buffer, "tail": stream.tail, "rank": stream.rank,
            "world_size": stream.world_size, "batch_size": self.batch_size, "num_workers": self.num_workers,
            "drop_last": self.drop_last,
        }  # fmt: skip

    def _begin(self, epoch: int) -> None:
        self.stream.set_epoch(epoch)
        self._delivered, self._next, self._resumed = [0] * max(self.num_workers, 1), 0, False

    def _seeds(self) -> torch.Generator:
        """What torch seeds the global streams of its workers with, instead of a number from the main process's own."""
        key = [self.stream.seed % 2**63, self.stream.epoch, self.stream.rank]
        return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def _batches(self) -> Iterator[Any]:
        method = self.start_method or ("spawn" if torch.cuda.is_initialized() else None)
        more: dict[str, Any] = {"prefetch_factor": self.prefetch, "multiprocessing_context": method}
        part = _Part(self.stream, self.stream.epoch, self.batch_size, tuple(self._delivered), self._next)
        batches = iter(
            DataLoader(
                part, self.batch_size, num_workers=self.num_workers, collate_fn=_Signed(part, self.collate),
                drop_last=self.drop_last, timeout=self.timeout, **(more if self.num_workers else {}),
                generator=self._seeds(),
            )
        )  # fmt: skip
        try:
            for worker, batch in batches:
                self._delivered[worker] += 1
                self._next = (worker + 1) % len(self._delivered)
                yield batch
        finally:
            stop = getattr(batches, "_shutdown_workers", None)  # what its __del__ calls; an error may keep it alive
            if stop is not None:
                stop()
        self._begin(self.stream.epoch + 1)


class _Part(IterableDataset[Any]):
    """What is left of a pass; worker w stands in for the one whose turn it is w batches from now."""

    def __init__(self, stream: Stream, epoch: int, batch_size: int, delivered: tuple[int, ...], turn: int) -> None:
        self.stream, self.epoch, self.batch_size, self.delivered, self.turn = stream, epoch, batch_size, delivered, turn

    def stands_in_for(self) -> int:
        return (this_worker()[0] + self.turn) % len(self.delivered)

    def __iter__(self) -> Iterator[Any]:
        stream, workers, worker = self.stream, len(self.delivered), self.stands_in_for()
        shard = stream.rank * workers + worker
        skip = self.delivered[worker] * self.batch_size
        return stream.shard(shard, stream.world_size * workers, self.epoch, skip)


class _Signed:
    """A collate function whose batches say whose they are."""

    def __init__(self, part: _Part, collate: Callable[[list[Any]], Any] | None) -> None:
        self.part, self.collate = part, collate or default_collate

    def __call__(self, examples: list[Any]) -> tuple[int, Any]:
        return self.part.stands_in_for(), self.collate(examples)
