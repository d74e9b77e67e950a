"""Memory that a training process has freed stays its own, so that the next step does not ask the system for it again.

A step of a transformer allocates and frees the same gigabyte as the step before. glibc hands large blocks back to the
system at once and takes fresh ones, whose pages the system has to find and clear while they are first written: a
fifth of a step of a BERT-base on two cores. Told to use no separate mappings and to trim nothing, it gives the next
step the blocks of the last one. The process keeps the most that it ever needed; other C libraries are left alone.

Source: mallopt(3) of the GNU C library.
"""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # names of malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, from now to its end; for programs that train, not for libraries.

    Returns:
        Whether the C library took it; False where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl, macOS, Windows
        return False
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 1 << 26))
    return all([mallopt(name, value) for name, value in settings])
