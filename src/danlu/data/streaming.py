r"""Streams: any generator function as a source of batches for several worker processes and machines.

    stream = Stream(rows, seed=1, shuffle_buffer=10_000)        # rows: a function that yields
    loader = torch.utils.data.DataLoader(stream, batch_size=32, num_workers=2)

A `torch.utils.data.IterableDataset` as it comes gives every row to every worker, and generators that it holds draw the
same numbers in each. Here every worker of every process runs the source and keeps its own rows:

    row i  belongs to shard  i mod N,    N = processes x workers,   shard = rank x workers + worker          (1)
    random numbers of a row's transform come from (seed, epoch, i): the same whatever N is                   (2)
    the shuffle buffer of a shard draws from (seed, epoch, shard)                                            (3)

Global streams of random numbers are left alone; in worker processes torch's DataLoader seeds them (`StreamLoader` lets
it do so from (seed, epoch, rank)), but an `np.random.default_rng` that a source holds is copied: use transforms. The
source must give the same rows in the same order every time it is called. A row that fails
is named: its number, shard and epoch, with the traceback of the worker. `danlu.data.stream_loader` adds the place to
resume from and a clean end.

Source: kexue.fm/archives/6575 (2019), whose generators froze in several processes; the duplicates: torch's
    documentation of IterableDataset.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

__all__ = ["Stream", "StreamError"]

TAILS = ("keep", "drop", "repeat")


class StreamError(RuntimeError):
    """A row of a stream could not be made: which one, where, and why."""


class Stream(IterableDataset[Any]):
    """Rows of a generator function, each given to exactly one worker of one process, eq. (1).

    It is an IterableDataset: torch's DataLoader takes it as it is, `StreamLoader` adds the place to resume from.
    """

    def __init__(
        self,
        source: Callable[[], Iterable[Any]],
        seed: int = 0,
        shuffle_buffer: int = 0,
        transform: Callable[[Any, torch.Generator], Any] | None = None,
        tail: str = "keep",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """Describe the stream; nothing is read yet.

        Args:
            source: called without arguments for each pass; returns rows, the same ones in the same order every time.
            seed: of all that is random here.
            shuffle_buffer: rows among which the next one is drawn, in each worker; 0 and 1 keep the order.
            transform: makes an example of a row and a generator of random numbers, eq. (2); rows that others get and
                rows that a resumed run skips are not transformed.
            tail: what becomes of the last rows when shards would get unlike numbers: "keep" them, "drop" them, or
                "repeat" earlier ones, so that every process has as many.
            rank: of this process; None asks torch.distributed, and is 0 without it.
            world_size: number of processes; None asks torch.distributed, and is 1 without it.

        Raises:
            ValueError: an unknown tail, a negative buffer, or rank outside [0, world_size).
        """
        joined = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = rank if rank is not None else torch.distributed.get_rank() if joined else 0
        self.world_size = world_size or (torch.distributed.get_world_size() if joined else 1)
        if tail not in TAILS:
            raise ValueError(f"tail must be one of {', '.join(TAILS)}; got {tail!r}")
        if shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer counts rows and must be >= 0, got {shuffle_buffer}; 0 keeps the order")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must lie in [0, world_size), got rank {self.rank} of {self.world_size}")
        self.source, self.seed, self.shuffle_buffer = source, seed, shuffle_buffer
        self.transform, self.tail = transform, tail
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see the new number

    @property
    def epoch(self) -> int:
        """The number of the pass, which decides on its order."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Number the passes that begin from now on.

        Args:
            epoch: >= 0.
        """
        self._epoch.fill_(epoch)

    def shard(self, shard: int, num_shards: int, epoch: int = 0, skip: int = 0) -> Iterator[Any]:
        """The examples of one shard of one pass.

        Args:
            shard: its number, in [0, num_shards).
            num_shards: N of eq. (1).
            epoch: number of the pass.
            skip: examples to leave out at the beginning; the others are the same as without.

        Returns:
            An iterator; closing it closes the source.

        Raises:
            StreamError: the source, or the transform of a row, raised an exception.

        >>> list(Stream(lambda: range(7)).shard(1, 3))
        [1, 4]
        """
        rows = self._mixed(self._own(shard, num_shards, epoch), shard, epoch)
        for number, (i, row) in enumerate(rows):
            if number >= skip:
                yield self._made(i, row, shard, epoch)

    def __iter__(self) -> Iterator[Any]:
        """The rows of this worker of this process."""
        worker, workers = this_worker()
        shard, epoch = self.rank * workers + worker, self.epoch
        return self.shard(shard, self.world_size * workers, epoch)

    def _own(self, shard: int, num_shards: int, epoch: int) -> Iterator[tuple[int, Any]]:
        """Numbers and rows of eq. (1), with the tail as it was asked for."""
        first: list[tuple[int, Any]] = []  # what "repeat" falls back on: this shard's first row, or the very first ones
        held: tuple[int, Any] | None = None  # a row whose round is not complete yet
        i, rows = -1, None
        try:
            rows = iter(self.source())
            for i, row in enumerate(rows):
                mine = i % num_shards == shard
                if self.tail == "repeat" and i < num_shards and (mine or i < shard):
                    first = [(i, row)] if mine else [*first, (i, row)]
                if mine and self.tail != "drop":
                    yield i, row
                elif mine:
                    held = i, row
                if held is not None and (i + 1) % num_shards == 0:
                    yield held
                    held = None
        except Exception as error:
            raise StreamError(f"{self._place(i + 1, shard, num_shards, epoch)}: {_reason(error)}") from error
        finally:
            close = getattr(rows, "close", None)
            if close is not None:
                close()
        if self.tail == "repeat" and first and (i + 1) % num_shards and shard >= (i + 1) % num_shards:
            yield first[shard % len(first)] if i < shard else first[-1]

    def _mixed(self, rows: Iterator[tuple[int, Any]], shard: int, epoch: int) -> Iterator[tuple[int, Any]]:
        """Rows through a buffer from which the next one is drawn, eq. (3)."""
        if self.shuffle_buffer <= 1:
            yield from rows
            return
        draw = np.random.default_rng([self.seed % 2**63, epoch, shard])
        buffer: list[tuple[int, Any]] = []
        try:
            for item in rows:
                if len(buffer) < self.shuffle_buffer:
                    buffer.append(item)
                    continue
                place = int(draw.integers(len(buffer)))
                item, buffer[place] = buffer[place], item
                yield item
        finally:
            rows.close()  # type: ignore[attr-defined]
        for place in draw.permutation(len(buffer)):
            yield buffer[place]

    def _made(self, i: int, row: Any, shard: int, epoch: int) -> Any:
        if self.transform is None:
            return row
        state = np.random.SeedSequence([self.seed % 2**63, epoch, i]).generate_state(1, np.uint64)  # eq. (2)
        generator = torch.Generator().manual_seed(int(state[0]) % 2**63)
        try:
            return self.transform(row, generator)
        except Exception as error:
            raise StreamError(f"transform of row {i} (shard {shard}, epoch {epoch}): {_reason(error)}") from error

    def _place(self, i: int, shard: int, num_shards: int, epoch: int) -> str:
        return f"row {i} of the source (read by shard {shard} of {num_shards}, epoch {epoch})"


def this_worker() -> tuple[int, int]:
    """Number of this worker process and how many there are; (0, 1) in the main process."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
