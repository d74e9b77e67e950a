"""One row of a model as a function of its parameters, and the parameters as one vector.

Source: own definitions.
Shapes: P parameters in all, m rows to explain, c outputs of a row.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from danlu.math.precision import wide

Inputs = Tensor | tuple[Tensor, ...]
LossFn = Callable[[Any, Any], Tensor]
Values = dict[str, Tensor]  # name of a parameter -> tensor


def explained(outputs: Any, wanted: Any, loss_fn: LossFn | None) -> Tensor:
    """What is explained of a row, (c,): its outputs, or its loss where a target is given."""
    value = outputs if wanted is None or loss_fn is None else loss_fn(outputs, tree_map(lambda t: t[None], wanted))
    if not isinstance(value, Tensor):
        raise ValueError(
            f"the model returned {type(value).__name__}, not a tensor; wrap it in a module that returns the logits"
        )
    return wide(value.reshape(-1))


def called(model: nn.Module, values: dict[str, Tensor], row: Inputs) -> Any:
    """The model on one row, as a batch of one, with these parameters."""
    arguments = row if isinstance(row, tuple) else (row,)
    return functional_call(model, values, tuple(a[None] for a in arguments))


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that require a gradient; at least one."""
    found = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not found:
        raise ValueError("no parameter of the model requires a gradient; there is no path to attribute")
    return iter(found)


def flat(tensors: dict[str, Tensor], lead: int) -> Tensor:
    """Tensors laid end to end behind their first `lead` dimensions, in float32 or better."""
    return torch.cat([wide(t).reshape(*t.shape[:lead], -1) for t in tensors.values()], dim=lead)


def unflat(model: nn.Module, parameters: Tensor) -> dict[str, Tensor]:
    """name -> tensor of its shape and dtype, from a flat vector."""
    named = list(trainable(model))
    pieces = parameters.detach().split([p.numel() for _, p in named])
    return {name: piece.view(p.shape).to(p.dtype) for (name, p), piece in zip(named, pieces, strict=True)}


def rows(x: Inputs) -> int:
    """How many rows there are."""
    return len(x[0] if isinstance(x, tuple) else x)


def some_rows(x: Any, start: int, stop: int) -> Any:
    """Rows of a tensor or of a tuple of them; None stays None."""
    return tree_map(lambda t: t[start:stop], x) if x is not None else None


def exact_dtype(x: Tensor) -> torch.dtype:
    """float64, or float32 on a device that has no better."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def outside_autocast(x: Tensor) -> torch.autocast:
    """A block without autocast on the tensor's device."""
    return torch.autocast(x.device.type, enabled=False)
