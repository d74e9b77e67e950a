"""How Adafactor sweeps over a tensor: as E matrices, in blocks that stay in a core's cache, or by compiled sweeps.

The sweeps are pure torch; where numba is installed (extra [fast]) float32 matrices on the CPU take those of
`_adafactor_kernel` instead, unless DANLU_KERNELS=off.

Source: own arrangement. Shapes: E matrices of m x n; a tensor that is not factored is one matrix of its last side.
"""

import os
from functools import cache, cached_property
from types import ModuleType

import torch
from torch import Tensor

__all__ = ["Sweeps", "check_gradient", "factored_dims", "kernel_for", "matrices", "moved"]

BLOCK = 1 << 17  # numbers; a block of gradients, of weights and of the update stay in a core's own cache
Span = tuple[slice, slice]


def factored_dims(shape: tuple[int, ...], least: int, last_two: bool = False) -> tuple[int, int] | None:
    """The two largest sides in their order (of equals the later), or the last two; None: too small to factor."""
    if len(shape) < 2:
        return None
    if last_two:
        return len(shape) - 2, len(shape) - 1
    a, b = sorted(range(len(shape)), key=lambda i: (shape[i], i))[-2:]
    return (min(a, b), max(a, b)) if min(shape[a], shape[b]) >= least else None


def moved(x: Tensor, dims: tuple[int, int] | None) -> Tensor:
    """The sides that are factored last."""
    return x if dims is None else x.movedim(dims, (-2, -1))


def matrices(x: Tensor, dims: tuple[int, int] | None) -> Tensor:
    """(E, m, n) with the factored sides last: a view where the layout allows, else a copy."""
    if dims is None:
        return x.reshape(1, 1, -1) if x.ndim < 2 else x.reshape(1, -1, x.shape[-1])
    x = moved(x, dims)
    return x.reshape(-1, *x.shape[-2:])


@cache
def _load() -> ModuleType | None:
    try:
        from danlu.optim import _adafactor_kernel
    except ImportError:  # no numba
        return None
    return _adafactor_kernel


def kernel_for(x: Tensor, g: Tensor) -> ModuleType | None:
    """The compiled sweeps if they take such weights and gradients."""
    fits = all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in (x, g))
    if not fits or os.environ.get("DANLU_KERNELS", "").lower() in ("off", "0", "no"):
        return None
    return _load()


class Sweeps:
    """The readings of one tensor's weights x and gradients g, both (E, m, n); sums are in `work`, float32 or better."""

    def __init__(self, x: Tensor, g: Tensor, work: torch.dtype) -> None:
        self.x, self.g, self.work = x, g, work

    @cached_property
    def spans(self) -> list[Span]:
        """Where the blocks are."""
        return blocks(self.x)

    @cached_property
    def buffer(self) -> Tensor:
        """Memory for one block."""
        size = max(self.x[span].numel() for span in self.spans)
        return torch.empty(size, dtype=self.work, device=self.x.device)

    def like(self, span: Span) -> Tensor:
        """The buffer in the shape of a block."""
        block = self.g[span]
        return self.buffer[: block.numel()].view(block.shape)

    def squared(self, span: Span) -> Tensor:
        """G^2 of a block, in the buffer."""
        g, out = self.g[span], self.like(span)
        return torch.mul(g, g, out=out) if g.dtype == self.work else out.copy_(g).square_()

    def square_sums(self) -> tuple[Tensor, Tensor]:
        """Sums of G^2 over rows, (E, m), and over columns, (E, n)."""
        rows = self.x.new_empty(self.x.shape[:2], dtype=self.work)
        cols = self.x.new_zeros((len(self.x), self.x.shape[2]), dtype=self.work)
        for span in self.spans:
            square = self.squared(span)
            torch.sum(square, -1, out=rows[span])
            cols[span[0]] += square.sum(-2)
        return rows, cols

    def weighted_sums(self, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sums over rows of G^2 times weights (E, n), None: not needed; and the sum of squares of x."""
        rows = self.x.new_zeros(self.x.shape[:2], dtype=self.work)
        size = self.x.new_zeros((), dtype=self.work)
        for span in reversed(self.spans):  # back to front: what was read last may still be in the cache
            size += sum_of_squares(self.x[span], self.work)
            if weight is not None:
                rows[span] = (self.squared(span) @ weight[span[0], :, None])[..., 0]
        return rows, size


def blocks(x: Tensor) -> list[Span]:
    """Where to cut (E, m, n): whole matrices while they are small, else rows of one; off the CPU all at once."""
    e, m, n = x.shape
    if x.device.type != "cpu":
        return [(slice(0, e), slice(0, m))]
    if m * n <= BLOCK:
        each = BLOCK // (m * n)
        return [(slice(i, i + each), slice(0, m)) for i in range(0, e, each)]
    rows = max(1, BLOCK // n)
    return [(slice(i, i + 1), slice(j, j + rows)) for i in range(e) for j in range(0, m, rows)]


def sum_of_squares(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In the given precision."""
    if x.dtype == dtype and x.is_contiguous():
        flat = x.view(-1)
        return flat.dot(flat)
    return torch.linalg.vector_norm(x, dtype=dtype).square()


def check_gradient(p: Tensor) -> None:
    """What Adafactor cannot do with a gradient."""
    grad = p.grad
    assert grad is not None
    if grad.layout != torch.strided:
        raise ValueError(
            "Adafactor needs dense gradients, got a sparse one; use sparse=False in the embedding, or danlu.optim.Adam "
            "with lazy= for that table"
        )
    if p.is_complex():
        raise ValueError(f"Adafactor is for real weights, got {p.dtype}; optimise torch.view_as_real of it")
    if hasattr(p, "to_local"):
        raise ValueError(
            "Adafactor needs whole tensors: rows, columns and RMS of a piece are others; got a DTensor. Shard the "
            "model with another optimizer, or give Adafactor the full weights"
        )
