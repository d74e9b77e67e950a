r"""Where a parameter of ours lies in somebody else's file: its name there, and how their array is laid out.

A `Slot` is one row of a name table: TensorFlow keeps linear kernels as (in, out), GPT-2 keeps query, key and value
side by side in one matrix, T5 keeps its bias table transposed. `take` cuts our tensor out of theirs, `put` writes ours
into it; put then take is the identity.

Source: the layouts are those of google-research/bert, openai/gpt-2 and mesh-tensorflow, listed in bert4keras' mappings.
Shapes: theirs any; ours as in `danlu.text.transformer`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Slot", "put", "take"]


@dataclass(frozen=True)
class Slot:
    """One parameter in a foreign file.

    Args:
        name: the variable there.
        transpose: their matrix is ours transposed.
        part: which of the equal pieces along their last axis is ours, from 0.
        parts: how many equal pieces their last axis holds; 1: the whole.
        leading: axes of size 1 that stand before theirs (OpenAI's GPT-2 has one).
    """

    name: str
    transpose: bool = False
    part: int = 0
    parts: int = 1
    leading: int = 0


def take(slot: Slot, theirs: Tensor) -> Tensor:
    """Our tensor out of theirs, a view where that is possible.

    Args:
        slot: where it lies.
        theirs: the whole foreign array.

    Returns:
        The piece, in our layout.

    Raises:
        ValueError: the array cannot be cut as the slot says.

    >>> take(Slot("c_attn", transpose=True, part=1, parts=2), torch.tensor([[1, 2, 3, 4]]))
    tensor([[3],
            [4]])
    """
    for _ in range(slot.leading):
        if theirs.ndim < 1 or theirs.shape[0] != 1:
            raise ValueError(f"{slot.name} has shape {tuple(theirs.shape)}; its first axis must have size 1")
        theirs = theirs[0]
    if slot.parts > 1:
        if theirs.ndim < 1 or theirs.shape[-1] % slot.parts:
            raise ValueError(
                f"{slot.name} has shape {tuple(theirs.shape)}; its last axis must hold {slot.parts} equal parts"
            )
        theirs = theirs.chunk(slot.parts, dim=-1)[slot.part]
    if slot.transpose:
        if theirs.ndim != 2:
            raise ValueError(f"{slot.name} has {theirs.ndim} axes, a matrix was expected")
        theirs = theirs.t()
    return theirs


def put(slots: dict[str, Slot], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their arrays from our tensors: pieces are joined, matrices turned, leading axes added.

    Args:
        slots: our name to its slot.
        ours: our name to its tensor; names without a slot are left out.

    Returns:
        Their name to its contiguous tensor.

    Raises:
        ValueError: only some pieces of a joined array are given, the message names those missing; or two tensors that
            differ belong in one place.

    >>> put({"a": Slot("w", part=1, parts=2), "b": Slot("w", parts=2)}, {"a": torch.ones(1), "b": torch.zeros(1)})
    {'w': tensor([0., 1.])}
    """
    pieces: dict[str, dict[int, Tensor]] = {}
    layout: dict[str, Slot] = {}
    for name, slot in slots.items():
        if name in ours:
            tensor = ours[name].t() if slot.transpose else ours[name]
            other = pieces.setdefault(slot.name, {}).setdefault(slot.part, tensor)
            if other is not tensor and not torch.equal(other, tensor):
                first = next(our for our, place in slots.items() if place == slot and our in ours)
                raise ValueError(
                    f"{first} and {name} differ, and such a file has one place for both, {slot.name}; take a layout "
                    "with a place for each"
                )
            layout[slot.name] = slot
    theirs = {}
    for name, found in pieces.items():
        slot = layout[name]
        if len(found) != slot.parts:
            absent = sorted(our for our, other in slots.items() if other.name == name and our not in ours)
            raise ValueError(f"{name} is made of {slot.parts} parts; missing: {', '.join(absent)}")
        whole = found[0] if slot.parts == 1 else torch.cat([found[i] for i in range(slot.parts)], dim=-1)
        theirs[name] = whole.reshape((1,) * slot.leading + tuple(whole.shape)).contiguous()
    return theirs
