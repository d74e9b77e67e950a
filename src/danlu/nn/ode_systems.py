r"""Systems of ordinary differential equations with named states and parameters, ready to be solved, trained or fitted.

    logistic       x' = r x (1 - x / K)                                                                      (1)
    competition    x1' = r1 x1 (1 - b1 x1) - a1 x1 x2,   x2' = r2 x2 (1 - b2 x2) - a2 x1 x2                   (2)
    predator-prey  u' = (alpha - beta v) u,   v' = (delta u - gamma) v                                       (3)
    pendulum       angle' = velocity,   velocity' = -stiffness sin(angle) - damping velocity                 (4)

A system says its equation once, as `field(t, x, p)` with the parameters as a tensor, so that a thousand parameter sets
are solved as one batch; as a module, `system(t, x)`, it uses its own. Its only nn.Parameter is `raw`: the logarithms of
positive parameters, the others as they are; whatever an optimiser does to it, the rates stay positive. A parameter of 0
is held at 0. In (2) b = 1/N is what the source writes 1/N.

Source: (1) Verhulst, 1838; (2) with the letters of kexue.fm/archives/5643; (3) Lotka, 1925, and Volterra, 1926.
Shapes: x (..., d) states, p (..., P) parameters, leading axes alike.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

__all__ = ["Competition", "Logistic", "ODESystem", "Pendulum", "PredatorPrey"]


class ODESystem(nn.Module):
    r"""dx/dt = field(t, x, p). A subclass names its states and parameters and says `field`; values come by name.

    Class attributes: `states` and `parameter_names`; `signed`, those of either that may be negative; `defaults`, values
    for parameters that are not given.

    Args:
        values: parameters by name, in natural units; >= 0 unless they are signed.

    Raises:
        ValueError: an unknown name, a missing one, or a value out of range.

    >>> Logistic(r=1.0, capacity=2.0)(0.0, torch.tensor([1.0])).detach()  # 1 * (1 - 1/2)
    tensor([0.5000])
    """

    states: ClassVar[tuple[str, ...]] = ()
    parameter_names: ClassVar[tuple[str, ...]] = ()
    signed: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[dict[str, float]] = {}

    def __init__(self, **values: float) -> None:
        super().__init__()
        known, kind = self.parameter_names, type(self).__name__
        given = {**self.defaults, **values}
        if set(given) != set(known):
            raise ValueError(
                f"{kind} has the parameters {', '.join(known)}; missing: {sorted(set(known) - set(given))}, unknown: "
                f"{sorted(set(given) - set(known))}"
            )
        for name, value in given.items():
            if not math.isfinite(value) or (value < 0 and name not in self.signed):
                raise ValueError(f"{name} of {kind} must be finite and >= 0, got {value}")
        self.raw = nn.Parameter(self.to_raw(torch.tensor([given[name] for name in known], dtype=torch.float64)).float())

    def field(self, t: float, x: Tensor, p: Tensor) -> Tensor:
        """dx/dt, (..., d), for states (..., d) and parameters (..., P) in natural units."""
        raise NotImplementedError(f"{type(self).__name__} says no field(t, x, p)")

    def forward(self, t: float, x: Tensor) -> Tensor:
        """dx/dt with the system's own parameters."""
        return self.field(t, x, self.values())

    def values(self) -> Tensor:
        """(P,) parameters in natural units, differentiable in `raw`."""
        return self.from_raw(self.raw)

    def from_raw(self, raw: Tensor) -> Tensor:
        """Natural units of (..., P) raw parameters."""
        if not self._any_signed():
            return raw.exp()
        free = self._is_signed(raw.device)
        return torch.where(free, raw, raw.masked_fill(free, 0.0).exp())  # exp of a signed one may overflow

    def to_raw(self, values: Tensor) -> Tensor:
        """The inverse of `from_raw`."""
        free = self._is_signed(values.device)
        return torch.where(free, values, values.masked_fill(free, 1.0).log())

    def extra_repr(self) -> str:
        """What print(system) shows."""
        return ", ".join(f"{n}={v:.4g}" for n, v in zip(self.parameter_names, self.values().tolist(), strict=True))

    def _is_signed(self, device: torch.device) -> Tensor:
        return torch.tensor([name in self.signed for name in self.parameter_names], dtype=torch.bool, device=device)

    def _any_signed(self) -> bool:
        return any(name in self.signed for name in self.parameter_names)


class Logistic(ODESystem):
    """Growth to a capacity, eq. (1)."""

    states = ("x",)
    parameter_names = ("r", "capacity")

    def field(self, t: float, x: Tensor, p: Tensor) -> Tensor:
        """dx/dt, (..., 1)."""
        return p[..., :1] * x * (1.0 - x / p[..., 1:])  # eq. (1)

    @staticmethod
    def solution(t: Tensor, x0: float, r: float, capacity: float) -> Tensor:
        """The closed form at the times t, any shape."""
        return capacity / (1.0 + (capacity / x0 - 1.0) * torch.exp(-r * t))


class Competition(ODESystem):
    """Two species that live on one another's food, eq. (2)."""

    states = ("x1", "x2")
    parameter_names = ("r1", "r2", "a1", "a2", "b1", "b2")

    def field(self, t: float, x: Tensor, p: Tensor) -> Tensor:
        """dx/dt, (..., 2)."""
        r, a, b = p[..., 0:2], p[..., 2:4], p[..., 4:6]
        return x * (r * (1.0 - b * x) - a * x.flip(-1))  # eq. (2)


class PredatorPrey(ODESystem):
    """Lotka and Volterra's cycle, eq. (3); delta u - gamma ln u + beta v - alpha ln v stays as it is."""

    states = ("prey", "predator")
    parameter_names = ("alpha", "beta", "gamma", "delta")

    def field(self, t: float, x: Tensor, p: Tensor) -> Tensor:
        """dx/dt, (..., 2)."""
        alpha, beta, gamma, delta = p.unbind(-1)
        prey, predator = x.unbind(-1)
        return torch.stack(((alpha - beta * predator) * prey, (delta * prey - gamma) * predator), -1)  # eq. (3)


class Pendulum(ODESystem):
    """A pendulum with friction, eq. (4); stiffness is g / length, its energy velocity^2 / 2 - stiffness cos(angle)."""

    states = ("angle", "velocity")
    parameter_names = ("stiffness", "damping")
    signed = ("angle", "velocity")

    def field(self, t: float, x: Tensor, p: Tensor) -> Tensor:
        """dx/dt, (..., 2)."""
        stiffness, damping = p.unbind(-1)
        angle, velocity = x.unbind(-1)
        push = -stiffness * angle.sin() - damping * velocity
        return torch.stack((velocity.expand_as(push), push), -1)  # eq. (4)
