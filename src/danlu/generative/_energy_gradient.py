"""An energy and its gradient at points, with the network that gives it held still; shared by all samplers.

Source: own definitions.
Shapes: N chains; x is (N, ...), an energy (N,).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from danlu.generative.evaluation_mode import evaluation_mode
from danlu.math.precision import wide, wide_dtype

__all__ = [
    "Bounds",
    "Energy",
    "check_bounds",
    "check_chains",
    "energy_and_gradient",
    "first_fault",
    "fold",
    "held_still",
]

Energy = Callable[[Tensor], Tensor]  # (N, ...) -> (N,)
Bounds = tuple[float, float]


@contextmanager
def held_still(energy: Energy) -> Iterator[None]:
    """Inside the block the module behind an energy is in evaluation mode: nothing it keeps (power iterations) moves.

    The module is `energy` itself or what it is a method of. Weights under a parametrization are computed once for the
    whole block, and no graph is kept (`energy_and_gradient` makes its own).
    """
    owner = energy if isinstance(energy, nn.Module) else getattr(energy, "__self__", None)
    modules = [owner] if isinstance(owner, nn.Module) else []
    still = any(parametrize.is_parametrized(part) for module in modules for part in module.modules())
    with evaluation_mode(*modules), torch.inference_mode(False), parametrize.cached() if still else nullcontext():
        yield


def energy_and_gradient(
    energy: Energy, x: Tensor, dtype: torch.dtype, grad_clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """U(x) and g(x), cut off from any graph, in the dtype of x; the energy itself is given x in `dtype`."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        value = energy(point.to(dtype))
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"an energy gives one number for each chain, ({len(x)},) for x {tuple(x.shape)}; got {got}: sum over "
                "the data's dimensions, keep the batch"
            )
        if not value.requires_grad:
            raise ValueError("the energy does not depend on x by a graph; compute it from the tensor it is given, "
                             "without detach() or no_grad()")  # fmt: skip
        (gradient,) = torch.autograd.grad(wide(value).sum(), point, allow_unused=True)
    if gradient is None:
        raise ValueError("the energy has a graph, but not to x: it is constant where the sampler moves")
    if grad_clip is not None:
        gradient = gradient.clamp(-grad_clip, grad_clip)
    return value.detach().to(x.dtype), gradient


def check_chains(name: str, x: Tensor, step: float, num_steps: int, grad_clip: float | None) -> torch.dtype:
    """The dtype that chains are computed in."""
    if x.ndim < 1 or not x.is_floating_point():
        raise ValueError(f"{name} needs x (N, ...) of a float dtype, one row a chain; got {x.dtype} {tuple(x.shape)}; "
                         "pixels: scale them to [0, 1] first")  # fmt: skip
    if not (0 < step < math.inf) or num_steps < 0:
        raise ValueError(f"{name} needs a finite step > 0 and num_steps >= 0, got step={step}, num_steps={num_steps}")
    if grad_clip is not None and not grad_clip > 0:
        raise ValueError(f"grad_clip must be > 0 or None for no clipping, got {grad_clip}")
    return wide_dtype(x)


def check_bounds(name: str, bounds: Bounds | None, x: Tensor | None = None) -> None:
    """An error for bounds in the wrong order, or a start outside of them."""
    if bounds is None:
        return
    low, high = bounds
    if not (-math.inf < low < high < math.inf):
        raise ValueError(f"{name} needs finite bounds (low, high) with low < high, got {bounds}; None for no bounds")
    if x is not None and x.numel() and not bool(((x >= low) & (x <= high)).all()):
        raise ValueError(
            f"{name} starts inside the bounds {bounds}, but x runs from {x.min().item():.4g} to {x.max().item():.4g}; "
            "clamp it first"
        )


def fold(x: Tensor, bounds: Bounds) -> Tensor:
    """Points reflected at the walls as often as it takes to be inside."""
    low, high = bounds
    width = high - low
    return (low + (width - ((x - low) % (2 * width) - width).abs())).clamp(low, high)


def first_fault(fault: Tensor, bad: Tensor, step: int) -> Tensor:
    """The first step at which something was bad, -1 so far; stays on the device, so the chain need not wait for it."""
    return torch.where((fault < 0) & bad, torch.full_like(fault, step), fault)
