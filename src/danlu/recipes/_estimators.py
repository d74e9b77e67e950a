"""What the recipes on metrics without a gradient share: arms that go on from one start, and what each gains over it."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn

from danlu.gallery.record import Result

__all__ = ["go_on", "told"]

Model = TypeVar("Model", bound=nn.Module)
START = "cross-entropy"  # the arm that the others go on from


def go_on(model: Model, backward: Callable[[], object], lr: float, steps: int) -> Model:
    """Train a model in place by what `backward` leaves in .grad."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        backward()
        optimizer.step()
    return model


def told(found: Mapping[str, tuple[float, float]], seen: str, unseen: str) -> Result:
    """Scores of all arms on examples they saw and on others, as named, and the gains over the start."""
    start = found[START]
    measured = {f"{arm}, {unseen}": value[1] for arm, value in found.items()}
    measured |= {f"{arm}, {seen}": value[0] for arm, value in found.items()}
    for arm, value in found.items():
        if arm != START:
            gains = {f"gain of {arm}, {seen}": value[0] - start[0], f"gain of {arm}, {unseen}": value[1] - start[1]}
            measured |= gains
    measured[f"policy gradient minus zeroth order, {seen}"] = found["policy gradient"][0] - found["zeroth order"][0]
    figures = {"arm": list(found), seen: [v[0] for v in found.values()], unseen: [v[1] for v in found.values()]}
    return Result(measured=measured, figures=figures)
