r"""A recurrent cell that is one step of a differential equation, and a scan that turns any cell into a network.

    y_k = step(u_k, y_{k-1}, k)                       any recurrent network                                  (1)
    y_k = y_{k-1} + h f(t_k, y_{k-1}, u_k)            Euler's rule is such a cell; so is every rule of
                                                      `danlu.math.ode_step`                                  (2)

Run forward, (2) solves the equation; with a loss on the steps that were observed, back-propagation through time fits
the parameters of f. Unlike a free network an equation fixes its nonlinearity: what is left against explosion is the
start, the step, the learning rate and `clip`, which holds each component of f within [-clip, clip]. Explosion ends
training, vanishing only slows it. u_k is constant during its step. Not to be confused with the ODE-RNN of Rubanova et
al., whose free cell jumps at observations between stretches of an equation.

Source: kexue.fm/archives/5643 (2018; its cell emits y_1 first, so time t stands at index t / h - 1, as here).
Shapes: B batch, T steps, d states, U inputs.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from danlu.math.ode_steps import ODE_METHODS, ode_step

__all__ = ["ODECell", "SolverRNN", "scan"]

Step = Callable[[Tensor | None, Tensor, int], Tensor]


def scan(
    step: Step,
    state: Tensor,
    inputs: Tensor | None = None,
    steps: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The states of a recurrent network after each of its steps, eq. (1).

    Args:
        step: (input (B, U) or None, state (B, ...), index) -> the next state in the same shape.
        state: (B, ...) before the first step.
        inputs: (B, T, U); None: the cell runs by itself for `steps` steps.
        steps: T where there are no inputs, >= 0.
        mask: (B, T) bool, True where a step is made; elsewhere the state stays as it was.

    Returns:
        (B, T, ...).

    Raises:
        ValueError: neither or both of inputs and steps, or shapes that do not fit.

    >>> scan(lambda u, y, k: y + u, torch.zeros(1, 1), torch.tensor([[[1.0], [2.0], [3.0]]]))[0, :, 0]
    tensor([1., 3., 6.])
    """
    if (inputs is None) == (steps is None):
        raise ValueError("scan needs either inputs (B, T, U) or steps=T, one of the two")
    if inputs is not None and (inputs.ndim < 2 or inputs.shape[0] != state.shape[0]):
        raise ValueError(f"inputs must be ({state.shape[0]}, T, U) as the state's rows, got {tuple(inputs.shape)}")
    count = inputs.shape[1] if inputs is not None else int(steps or 0)
    if count < 0:
        raise ValueError(f"steps must be >= 0, got {steps}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (state.shape[0], count)):
        raise ValueError(
            f"mask must be bool {(state.shape[0], count)}, True where a step is made; got {mask.dtype} "
            f"{tuple(mask.shape)}"
        )
    found = []
    for k in range(count):
        new = step(None if inputs is None else inputs[:, k], state, k)  # eq. (1)
        if mask is not None:
            new = torch.where(mask[:, k].view(-1, *[1] * (state.ndim - 1)), new, state)
        state = new
        found.append(state)
    return torch.stack(found, dim=1) if found else state.new_zeros(state.shape[0], 0, *state.shape[1:])


class ODECell(nn.Module):
    r"""One step of dx/dt = f as a recurrent cell, eq. (2): cell(input, state, index) -> state.

    Args:
        rhs: f(t, x), or f(t, x, u) where there are inputs; a module's parameters become the cell's.
        h: length of a step, not 0.
        method: one of `danlu.math.ODE_METHODS`.
        clip: bound on each component of f; None: none.
        start: time of the state before step 0.

    Raises:
        ValueError: an unknown method, h or clip out of range.

    >>> cell = ODECell(lambda t, x: -x, h=0.5, method="euler")
    >>> cell(None, torch.ones(1, 1))
    tensor([[0.5000]])
    """

    def __init__(
        self,
        rhs: Callable[..., Tensor],
        h: float = 1.0,
        method: str = "rk4",
        clip: float | None = None,
        start: float = 0.0,
    ) -> None:
        super().__init__()
        if method not in ODE_METHODS:
            raise ValueError(f"method must be one of {', '.join(ODE_METHODS)}; got {method!r}")
        if not math.isfinite(h) or h == 0 or (clip is not None and not clip > 0):
            raise ValueError(f"needs a finite step h, not 0, and clip > 0 or None; got h={h}, clip={clip}")
        self.rhs, self.h, self.method, self.clip, self.start = rhs, h, method, clip, start

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"h={self.h}, method={self.method!r}, clip={self.clip}"

    def forward(self, inputs: Tensor | None, state: Tensor, index: int = 0) -> Tensor:
        """The state (B, d) after step `index` from the state before it; inputs (B, U) are f's third argument."""
        slope = (lambda t, x: self.rhs(t, x)) if inputs is None else (lambda t, x: self.rhs(t, x, inputs))
        if (clip := self.clip) is not None:
            return ode_step(lambda t, x: slope(t, x).clamp(-clip, clip), self._time(index), state, self.h, self.method)
        return ode_step(slope, self._time(index), state, self.h, self.method)  # eq. (2)

    def _time(self, index: int) -> float:
        return self.start + index * self.h


class SolverRNN(nn.Module):
    r"""A solver as a recurrent layer: (B, d) at the start -> (B, T, d), the states after each step.

    State k is that of time start + (k + 1) h. A loss on the observed steps alone fits the parameters of f.

    Args:
        rhs: f(t, x) or f(t, x, u), as in `ODECell`.
        h: length of a step.
        method: one of `danlu.math.ODE_METHODS`.
        clip: bound on each component of f.
        start: time of the first state given.

    >>> SolverRNN(lambda t, x: -x, h=0.5, method="euler")(torch.ones(1, 1), steps=3)[0, :, 0]
    tensor([0.5000, 0.2500, 0.1250])
    """

    def __init__(
        self,
        rhs: Callable[..., Tensor],
        h: float = 1.0,
        method: str = "rk4",
        clip: float | None = None,
        start: float = 0.0,
    ) -> None:
        super().__init__()
        self.cell = ODECell(rhs, h, method, clip, start)

    def forward(
        self, state: Tensor, inputs: Tensor | None = None, steps: int | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(B, T, d) from the state (B, d) and either inputs (B, T, U) or a number of steps; mask as in `scan`."""
        return scan(self.cell, state, inputs, steps, mask)
