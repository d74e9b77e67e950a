r"""How an optimizer turns gradients into moves, as coefficients of one linear recursion, read off after each step.

    b_k = carry_k b_{k-1} + share_k (s_k g_k + coupled_k theta_k)                                           (1)
    theta_{k+1} = theta_k - gain_k b_k - direct_k (s_k g_k + coupled_k theta_k) - decoupled_k theta_k       (2)

                            carry  share       gain                               direct   coupled   decoupled
    SGD                     0      0           0                                  lr       wd        0
    SGD, momentum mu        mu     1 - damp    lr                                 0        wd        0
      its first step        mu     1           lr                                 0        wd        0
    SGD, Nesterov           mu     1           lr mu                              lr       wd        0
    Adam                    beta1  1 - beta1   lr / (1 - beta1^t) / (sqrt v + eps)  0      wd        0
    AdamW                   beta1  1 - beta1   lr / (1 - beta1^t) / (sqrt v + eps)  0      0         lr wd

s_k is what clipping by the norm of all left of the gradient. The gain of Adam is a number for each parameter and
depends on the gradients itself; here it is a constant (v the corrected second moment, or its maximum with amsgrad).

Source: the update rules of torch.optim.SGD, Adam and AdamW.
Shapes: P parameters in T tensors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danlu.math.precision import wide

COLUMNS = ("carry", "share", "gain", "direct", "coupled", "decoupled", "scale")
KNOWN = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


@dataclass(frozen=True)
class Rule:
    """Coefficients of eq. (1) and (2): one number for each tensor, and what the gain of each parameter is times."""

    table: Tensor  # (T, 7) in the order of COLUMNS
    precondition: Tensor | None  # (P,)

    def column(self, name: str, sizes: Tensor) -> Tensor:
        """One coefficient for each parameter, (P,)."""
        column = self.table[:, COLUMNS.index(name)].repeat_interleave(sizes)
        return column * self.precondition if name == "gain" and self.precondition is not None else column


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raises ValueError where the moves of an optimizer are no such recursion."""
    if type(optimizer) not in KNOWN:
        raise ValueError(
            f"the path of {type(optimizer).__name__} cannot be attributed: its move is to be a linear recursion of the "
            "gradients; known are torch.optim.SGD, Adam and AdamW"
        )
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError("maximize=True climbs the loss; negate loss_fn and descend")
    own = {id(p) for p in model.parameters() if p.requires_grad}
    strange = sum(id(p) not in own for group in optimizer.param_groups for p in group["params"])
    if strange:
        raise ValueError(
            f"the optimizer moves {strange} tensors that are no parameters of the model that require a gradient; put "
            "what the loss learns into the model, and freeze before the optimizer is made"
        )


def needs_history(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a gradient goes on moving the parameters after its own step."""
    return not isinstance(optimizer, torch.optim.SGD) or any(group["momentum"] for group in optimizer.param_groups)


def buffers_exist(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> list[bool]:
    """Which parameters have a momentum already; ask before the step."""
    return [optimizer.state.get(p, {}).get("momentum_buffer") is not None for p in parameters]


def read_rule(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    scale: float,
    had_gradient: Sequence[bool],
    had_buffer: Sequence[bool],
    settings: Sequence[dict],
) -> Rule:
    """The coefficients of the step just made; `settings` are copies of the parameter groups from before it."""
    group_of = {id(p): s for group, s in zip(optimizer.param_groups, settings, strict=True) for p in group["params"]}
    lines: list[list[float]] = []
    factors: list[Tensor] = []
    adaptive = not isinstance(optimizer, torch.optim.SGD)
    for p, alive, buffered in zip(parameters, had_gradient, had_buffer, strict=True):
        setting = group_of.get(id(p))
        if setting is None or not alive:  # torch leaves it alone, with its momentum
            lines.append([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
            factors.append(torch.zeros(p.numel(), device=p.device))
            continue
        lr, decay = float(setting["lr"]), float(setting["weight_decay"])
        if not adaptive:
            lines.append([*_momentum(setting, lr, buffered), decay, 0.0, scale])
            continue
        beta1, beta2 = (float(beta) for beta in setting["betas"])
        state = optimizer.state[p]
        step = float(state["step"])
        second = wide(state["max_exp_avg_sq"] if setting["amsgrad"] else state["exp_avg_sq"])
        factors.append(1 / ((second / (1 - beta2**step)).sqrt() + float(setting["eps"])).flatten())
        apart = bool(setting.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW)))
        gain = lr / (1 - beta1**step)
        lines.append([beta1, 1 - beta1, gain, 0.0, 0.0 if apart else decay, lr * decay if apart else 0.0, scale])
    table = torch.tensor(lines, dtype=torch.float64).to(wide(parameters[0].detach()))
    return Rule(table, torch.cat(factors).to(table.dtype) if adaptive else None)


def clip_scale(given: Sequence[Tensor | None], own: Sequence[Tensor]) -> float:
    """s: what .grad is of the sum of the examples' gradients, where it is a multiple of it; else 1."""
    pairs = [(wide(g.detach()), wide(o)) for g, o in zip(given, own, strict=True) if g is not None]
    if all(torch.equal(g, o) for g, o in pairs):
        return 1.0
    square = sum(float((o * o).sum()) for _, o in pairs)
    scale = sum(float((g * o).sum()) for g, o in pairs) / square if square > 0 else 1.0
    rest = math.sqrt(sum(float((g - scale * o).square().sum()) for g, o in pairs))
    rounding = 8 * max(torch.finfo(g.dtype).eps for g in given if g is not None)
    return scale if rest <= rounding * abs(scale) * math.sqrt(square) else 1.0


def _momentum(setting: dict, lr: float, buffered: bool) -> list[float]:
    """carry, share, gain, direct of SGD."""
    mu = float(setting["momentum"])
    if mu == 0:
        return [0.0, 0.0, 0.0, lr]
    if setting["nesterov"]:
        return [mu, 1.0, lr * mu, lr]
    return [mu, 1 - float(setting["dampening"]) if buffered else 1.0, lr, 0.0]
