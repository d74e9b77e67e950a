"""States of optimizers and averages as named tensors, so that a file without pickles can hold them.

Source: own definition.
Shapes: those of the states.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["flat_state", "nested_state"]
_KINDS = {"bool": bool, "int": int, "float": float}


def flat_state(state: Mapping[Any, Any], prefix: str = "") -> dict[str, Tensor]:
    """Nested mappings of tensors and numbers as named tensors; the name's end tells what a number was.

    Args:
        state: tensors, bools, ints and floats under any keys without "/" and "|"; anything else is left out.
        prefix: put before every name.

    Returns:
        Names such as "3/exp_avg|tensor" to tensors; numbers are float64, whole ones exact up to 2^53.

    >>> sorted(flat_state({0: {"step": 7, "mean": torch.zeros(2)}}))
    ['0/mean|tensor', '0/step|int']
    """
    flat: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            flat |= flat_state(value, f"{prefix}{name}/")
        elif isinstance(value, Tensor):
            flat[f"{prefix}{name}|tensor"] = value
        elif isinstance(value, bool | int | float):
            flat[f"{prefix}{name}|{type(value).__name__}"] = torch.tensor(value, dtype=torch.float64)
    return flat


def nested_state(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `flat_state`, all keys as text.

    Args:
        tensors: as `flat_state` gave them.

    Returns:
        The nested mappings.

    >>> nested_state(flat_state({0: {"step": 7, "warm": False}}))
    {'0': {'step': 7, 'warm': False}}
    """
    state: dict[str, Any] = {}
    for key, value in tensors.items():
        path, _, kind = key.rpartition("|")
        *parents, name = path.split("/")
        inner = state
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value if kind == "tensor" else _KINDS[kind](value.item())
    return state
