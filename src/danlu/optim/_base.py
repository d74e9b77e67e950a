"""What the optimizers of this folder share: state that stays in float32, choice by name, rounding to bfloat16.

torch casts the state it loads to the precision of the weights; averages in bfloat16 would stand still, so ours are
loaded as they were saved. Name patterns need names: give the optimizer `model.named_parameters()`.
Rounding at random keeps the mean of a bfloat16 weight: with u uniform in [0, 1) a float32 becomes

    floor(x / ulp + u) ulp,     whose expectation is x                                                      (1)

Source: the layout of bfloat16, the upper half of a float32. Shapes: any.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["ExactStateOptimizer", "chosen", "loss_of", "round_at_random"]


class ExactStateOptimizer(Optimizer):
    """An optimizer whose state is loaded in the precision in which it was saved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a `state_dict()`.

        Args:
            state_dict: what `state_dict()` returned, on any device; its tensors are copied.

        Raises:
            ValueError: the groups have other lengths.
        """
        super().load_state_dict(state_dict)
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        mine = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(saved, mine, strict=True):
            for key, value in state_dict["state"].get(i, {}).items():
                if isinstance(value, Tensor):
                    device = torch.device("cpu") if key == "step" else p.device
                    self.state[p][key] = value.detach().to(device, copy=True)


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """What the closure returns, computed with gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def check_patterns(optimizer: Optimizer, patterns: Mapping[str, bool | Sequence[str]], names: bool = True) -> None:
    """Patterns cannot be looked up without `names`, and one string is no list of patterns."""
    for option, given in patterns.items():
        if isinstance(given, str):
            raise ValueError(f"{option} takes a list of patterns, got {given!r}; write ({given!r},)")
        unnamed = any("param_names" not in group for group in optimizer.param_groups)
        if names and unnamed and not isinstance(given, bool) and given:
            raise ValueError(
                f"{option}={tuple(given)} are name patterns, but the parameters came without names; give the optimizer "
                "model.named_parameters()"
            )


def chosen(group: Mapping[str, Any], index: int, patterns: bool | Sequence[str]) -> bool:
    """Whether the patterns, searched in upper and lower case alike, mean this parameter of a group."""
    if isinstance(patterns, bool) or not patterns:
        return bool(patterns)
    return any(re.search(pattern, group["param_names"][index], re.IGNORECASE) for pattern in patterns)


def round_at_random(x: Tensor, generator: torch.Generator) -> Tensor:
    """A float32 tensor in bfloat16, each number up or down at random so that the mean is kept, eq. (1)."""
    noise = torch.randint(1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    bits = x.contiguous().view(torch.int32)
    rounded = ((bits + noise) & -(1 << 16)).view(torch.float32)  # the sign stands apart: away from zero or towards it
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)
