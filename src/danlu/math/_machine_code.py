"""Names for the machine code that compiled functions keep on disk, so that processes do not take each other's.

numba keeps an index for a function and numbers the codes of its argument types in it. Two processes that compile the
same function for different types at the same time give both the same number, and from then on one of the types runs
the code of the other. With an own name for each type and processor, each index has one entry, the same for everyone.
"""

import hashlib
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

__all__ = ["with_own_files"]


def with_own_files(function: Callable[..., None], kind: Any) -> Callable[..., None]:
    """A copy of a function that numba compiles for one kind of number, with a name of its own for its files.

    Args:
        function: what will be compiled.
        kind: numpy type of the numbers.
    """
    import llvmlite.binding as llvm  # a part of numba, extra [fast]

    assert isinstance(function, FunctionType)
    machine = f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    mark = hashlib.sha256(machine.encode()).hexdigest()[:8]
    copy.__qualname__ = f"{function.__qualname__}_{np.dtype(kind).name}_{mark}"
    copy.__module__ = function.__module__
    return copy
