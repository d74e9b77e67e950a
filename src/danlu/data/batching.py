"""Batches of sequences of like length, the same for the same seed, and windows over those that are too long.

Sorting inside shuffled pools keeps padding small without making the order predictable: a pool holds `pool` batches,
is sorted by length, cut, and the batches of the whole epoch are shuffled again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["Window", "bucketed_batches", "windows"]


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens [start, stop) of example `index`, of which [keep_start, keep_stop) are this window's own to answer for."""

    index: int
    start: int
    stop: int
    keep_start: int
    keep_stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def windows(lengths: Sequence[int], max_len: int, context: int = 0) -> list[Window]:
    """Cover every example with windows of at most `max_len` tokens, so that none is cut off.

    Neighbouring windows overlap by `context` tokens on both sides; each token belongs to exactly one window's kept
    part, the one in which it stands farther from an edge. An example of length 0 has no window.

    Args:
        lengths: tokens in each example.
        max_len: tokens in a window, > 2 * context.
        context: tokens of neighbouring text a window sees on each inner side.

    Returns:
        Windows in order of example and position.

    Raises:
        ValueError: max_len is not above 2 * context, or context is negative.

    >>> [(w.start, w.stop, w.keep_start, w.keep_stop) for w in windows([5], max_len=4, context=1)]
    [(0, 4, 0, 3), (2, 5, 3, 5)]
    """
    if context < 0 or max_len <= 2 * context:
        raise ValueError(f"windows needs max_len > 2 * context >= 0; got max_len={max_len}, context={context}")
    found = []
    for index, length in enumerate(lengths):
        if 0 < length <= max_len:
            found.append(Window(index, 0, length, 0, length))
            continue
        kept = 0
        while kept < length:
            start = max(0, kept - context)
            stop = min(length, start + max_len)
            keep_stop = length if stop == length else stop - context
            found.append(Window(index, start, stop, kept, keep_stop))
            kept = keep_stop
    return found


def bucketed_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int, pool: int = 50) -> list[list[int]]:
    """One epoch of index batches; every index stands in exactly one.

    Args:
        lengths: length of each item; only their order matters.
        batch_size: items in a batch; the last one of a pool may be smaller.
        seed: of the run.
        epoch: number of the pass; another pass has another order.
        pool: batches sorted together; 1 sorts within single batches only, a large number sorts everything.

    Returns:
        Batches of indices into `lengths`.

    Raises:
        ValueError: batch_size or pool is below 1.

    >>> bucketed_batches([3, 1, 2, 9], batch_size=2, seed=0, epoch=0) in ([[1, 2], [0, 3]], [[0, 3], [1, 2]])
    True
    """
    if batch_size < 1 or pool < 1:
        raise ValueError(f"bucketed_batches needs batch_size >= 1 and pool >= 1; got {batch_size} and {pool}")
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order = torch.randperm(len(lengths), generator=generator).numpy()
    sizes = np.asarray(lengths)
    batches: list[list[int]] = []
    for begin in range(0, len(order), batch_size * pool):
        chunk = order[begin : begin + batch_size * pool]
        chunk = chunk[np.argsort(sizes[chunk], kind="stable")]
        batches += [chunk[i : i + batch_size].tolist() for i in range(0, len(chunk), batch_size)]
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i] for i in shuffled]
