"""Whether the compiled kernels of decoding run here: `danlu.nn._decode_kernel`, or None for plain torch."""

import os
from functools import cache
from types import ModuleType

__all__ = ["decode_kernel"]


@cache
def _load() -> ModuleType | None:
    try:
        from danlu.nn import _decode_kernel
    except ImportError:  # no numba, or a torch whose threads are not GNU OpenMP's
        return None
    return _decode_kernel


def decode_kernel() -> ModuleType | None:
    """The kernel module; None without numba, without torch's OpenMP threads, or with DANLU_KERNELS=off."""
    if os.environ.get("DANLU_KERNELS", "").lower() in ("off", "0", "no"):
        return None
    return _load()
