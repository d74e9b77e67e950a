r"""Building a model that is about to be filled: no memory, no random numbers, no time.

A fresh BERT-base takes seconds to draw its weights and 400 MB to hold them, all for nothing where a file follows. On
torch's meta device a tensor is a shape; but drawing random numbers even there brings in torch's compiler, some seconds
and 70 MB. Inside `without_memory` a parameter is born on the meta device and whatever would write to it does not.

Source: none.
Shapes: any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = ["without_memory"]


@contextmanager
def without_memory() -> Iterator[None]:
    """Inside the block modules are built on the meta device and their initialization does nothing.

    Yields:
        Nothing; `danlu.text.load_report.fill` gives the parameters memory afterwards.

    >>> with without_memory():
    ...     layer = nn.Linear(1000, 1000)
    >>> layer.weight.is_meta, layer.weight.shape
    (True, torch.Size([1000, 1000]))
    """
    with torch.device("meta"), _Unwritten():
        yield


class _Unwritten(TorchFunctionMode):
    """In-place operations on parameters give the parameter back as it is."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")  # functions of nn.init name it
        name = getattr(func, "__name__", "")
        writes = name.endswith("_") and not name.startswith("__") and name != "requires_grad_"
        return target if writes and isinstance(target, nn.Parameter) else func(*args, **kwargs)
