r"""What the functions of a chain share: which engine runs, and batches packed so that padding costs nothing.

A packed batch lies time-major with the longest row first and masked steps closed up, so that step t concerns the first
counts[t] rows and nothing else.

Source: torch.nn.utils.rnn.pack_padded_sequence has the same order of rows.
Shapes: B batch, T steps, K tags, N longest number of kept steps.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, wraps
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["BACKENDS", "LARGEST_FOR_KERNEL", "Packed", "eager", "engine", "full_precision", "pack"]

P = ParamSpec("P")
R = TypeVar("R")
BACKENDS = ("auto", "kernel", "torch", "autograd")
LARGEST_FOR_KERNEL = 512  # tags; beyond, a matrix product over the whole batch is quicker


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """The function as torch.compile shall see it: one call to be left alone, instead of T steps to be unrolled."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():  # asked here, because to decorate with disable would import the compiler
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call


@cache
def _load_kernel() -> ModuleType | None:
    try:
        from danlu.nn import _crf_kernel
    except ImportError:
        return None
    return _crf_kernel


def engine(name: str, backend: str, emissions: Tensor) -> ModuleType | None:
    """The kernel module if it shall run on these emissions, None for plain torch."""
    if backend not in BACKENDS:
        raise ValueError(f"{name} has the backends {', '.join(BACKENDS)}; got {backend!r}")
    if backend == "kernel":
        if emissions.device.type != "cpu":
            raise ValueError(
                f"{name} has backend 'kernel' for CPU tensors only, got {emissions.device}; use backend='auto'"
            )
        kernel = _load_kernel()
        if kernel is None:
            raise ImportError(f'{name} with backend="kernel" needs numba: pip install "danlu[fast]"')
        return kernel
    if (
        backend != "auto"
        or emissions.device.type != "cpu"
        or emissions.shape[2] > LARGEST_FOR_KERNEL
        or os.environ.get("DANLU_KERNELS", "").lower() in ("off", "0", "no")
    ):
        return None
    return _load_kernel()


def full_precision(emissions: Tensor) -> AbstractContextManager[Any]:
    """A region without autocast on the device of the emissions."""
    kind = emissions.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


@dataclass(frozen=True)
class Packed:
    """Emissions f (N, B, K) of rows in `order`; row b has lengths[b] steps, step t has counts[t] rows."""

    f: Tensor
    lengths: Tensor
    counts: Sequence[int]
    order: Tensor
    steps: Tensor  # (B, N) where each packed step stood

    def kept(self) -> Tensor:
        """(N, B) bool, False behind the end of a row."""
        return torch.arange(len(self.counts), device=self.f.device)[:, None] < self.lengths

    def last(self, values: Tensor) -> Tensor:
        """Values (N, B, ...) at the last step of each row; anything for empty rows."""
        return values[(self.lengths - 1).clamp_min(0), torch.arange(len(self.lengths), device=values.device)]

    def unpack(self, values: Tensor, num_steps: int, fill: Any) -> Tensor:
        """Values (N, B, ...) back in their rows and steps, (B, num_steps, ...), `fill` at masked steps."""
        out = values.new_full((values.shape[1], num_steps, *values.shape[2:]), fill)
        kept = self.kept().T  # (B, N)
        rows = self.order[:, None].expand_as(kept)[kept]
        out[rows, self.steps[kept]] = values.transpose(0, 1)[kept]
        return out

    def unsort(self, values: Tensor) -> Tensor:
        """Values (B, ...) back in the order of the batch."""
        out = torch.empty_like(values)
        out[self.order] = values
        return out


def pack(f: Tensor, mask: Tensor) -> Packed:
    """Close up the kept steps of f (B, T, K) and sort the rows, longest first."""
    batch, num_steps, _ = f.shape
    lengths = mask.sum(1)
    lengths, order = lengths.sort(descending=True, stable=True)
    longest = int(lengths[0]) if batch else 0
    if batch and int(lengths[-1]) == num_steps:  # nothing masked, and the sort is stable
        steps = torch.arange(num_steps, device=f.device).expand(batch, num_steps)
        return Packed(f.transpose(0, 1).contiguous(), lengths, [batch] * num_steps, order, steps)
    steps = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[order, :longest]  # kept steps first
    packed = f[order[:, None], steps].transpose(0, 1).contiguous()
    counts = (torch.arange(longest, device=f.device)[:, None] < lengths).sum(1).tolist()
    return Packed(packed, lengths, counts, order, steps)
