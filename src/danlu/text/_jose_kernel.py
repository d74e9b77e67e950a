"""`danlu.text._jose_loop.run_documents` as machine code (numba), dealt to threads that share the tables.

The documents of a call are cut into one run of like many words for each thread. With one thread the result is that of
the plain loop up to the order of sums; more threads write into the same rows without locks (Hogwild), where an update
may be lost or mixed, so no two runs are the same.

Source: Recht et al., 2011, arXiv:1106.5730 (updates without locks).
Shapes: those of `run_documents`.
"""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

from danlu.math._machine_code import with_own_files
from danlu.text._jose_loop import run_documents

__all__ = ["compiled", "in_threads"]

_known: dict[Any, Callable[..., None]] = {}  # by type of the rows


def compiled(kind: Any) -> Callable[..., None]:
    """The loop for rows of one type; its machine code is kept on disk where there is a folder for it.

    Args:
        kind: numpy type, float32 or float64.
    """
    kind = np.dtype(kind)
    if kind not in _known:
        row, rows = numba.types.Array(numba.from_dtype(kind), 1, "C"), numba.types.Array(numba.from_dtype(kind), 2, "C")
        i4, i8, f8 = (numba.types.Array(t, 1, "C") for t in (numba.int32, numba.int64, numba.float64))
        u8, whole, flag = numba.types.Array(numba.uint64, 1, "C"), numba.int64, numba.boolean
        signature = numba.void(i8, u8, row, i8, i4, f8, f8, i4, rows, rows, i8, f8, row, *[whole] * 5, flag, flag)
        options: dict[str, Any] = {
            "nogil": True, "fastmath": {"contract", "reassoc", "nsz"}, "error_model": "numpy"
        }  # fmt: skip
        try:
            _known[kind] = numba.njit(signature, cache=True, **options)(with_own_files(run_documents, kind))
        except (RuntimeError, OSError, EOFError, pickle.PickleError):  # no folder, a full disk or a damaged cache
            _known[kind] = numba.njit(signature, **options)(run_documents)
    return _known[kind]


def in_threads(workers: int, sizes: np.ndarray, order: np.ndarray, seeds: np.ndarray, rates: np.ndarray,
               before: tuple[Any, ...], stats: np.ndarray, after: tuple[Any, ...]) -> None:  # fmt: skip
    """Run the loop over the documents of `order` on some threads.

    Args:
        workers: number of threads.
        sizes: (K,) words of each document, for even shares.
        order: (K,) documents.
        seeds: (K,) uint64.
        rates: (K,) step sizes.
        before: arguments of the loop between the rates and the statistics.
        stats: (6,) grows.
        after: arguments of the loop behind the statistics.
    """
    loop = compiled(rates.dtype)
    if workers == 1 or len(order) == 1:
        loop(order, seeds, rates, *before, stats, *after)
        return
    ends = np.searchsorted(np.cumsum(sizes), sizes.sum() * np.arange(1, workers) / workers) + 1
    parts = [part for part in np.split(np.arange(len(order)), ends) if len(part)]
    counts = [np.zeros_like(stats) for _ in parts]
    with ThreadPoolExecutor(len(parts), thread_name_prefix="danlu-jose") as pool:
        jobs = [
            pool.submit(loop, order[part], seeds[part], rates[part], *before, count, *after)
            for part, count in zip(parts, counts, strict=True)
        ]
        for job in jobs:
            job.result()
    stats += np.sum(counts, axis=0)
