"""What a fit of an equation minimises: observations, what is free, and the residuals of many rows of unknowns."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.math.ode_solve import solve_ode
from danlu.nn.ode_systems import ODESystem

NOISES = ("normal", "log")
EDGE = 0.01  # of the least reading: where the logarithm of a solution gives way to its tangent


@dataclass(frozen=True)
class Observations:
    """What was measured, when, and what is known of the noise.

    Args:
        times: (T,) finite times, in any order, a time may stand twice; none before `start`.
        values: (T, D), or (B, T, D) for B data sets that are fitted at once; nan is missing.
        noise: "normal": value = state + noise; "log": log(value + offset) = log(state + offset) + noise.
        sigma: standard deviation of that noise, a number or (D,); None: estimated, one for all.
        offset: >= 0, keeps the logarithm away from 0, in the unit of the values.
        states: names of the D states that were measured; None: all, in their order.
        mask: (T, D) or (B, T, D) bool, True where a value counts; None: wherever it is not nan.
        start: time of the initial state.
    """

    times: Tensor
    values: Tensor
    noise: str = "normal"
    sigma: float | Tensor | None = None
    offset: float = 0.0
    states: tuple[str, ...] | None = None
    mask: Tensor | None = None
    start: float = 0.0


class Problem:
    """Residuals of an equation against observations as a function of rows of unknowns.

    Unknowns are logarithms of positive quantities and signed ones as they are; B data sets, F unknowns.
    """

    def __init__(
        self,
        system: ODESystem,
        data: Observations,
        x0: Tensor,
        free: Sequence[str] | None,
        step: float | None,
        solver: str,
        values: Tensor | None = None,
    ) -> None:
        self.system, self.data, self.solver = system, data, solver
        observed, keep = checked_observations(system, data)
        self.batched = observed.ndim == 3
        self.observed = observed if self.batched else observed[None]  # (B, T, D)
        self.keep = (keep if keep.ndim == 3 else keep[None]).expand_as(self.observed)
        size, device = len(self.observed), self.observed.device
        self.names = tuple(system.parameter_names if free is None else free)
        known = (*system.parameter_names, *system.states)
        if not self.names or len(set(self.names)) < len(self.names) or not set(self.names) <= set(known):
            raise ValueError(f"free must name parameters or states, each once, of {', '.join(known)}; got {self.names}")
        natural = system.values().detach() if values is None else values
        self.natural = natural.to(device, torch.float64).expand(size, -1)  # (B, P)
        if x0.shape[-1:] != (len(system.states),) or x0.ndim > 2 or (x0.ndim == 2 and len(x0) not in (1, size)):
            raise ValueError(
                f"x0 must be ({len(system.states)},) or ({size}, {len(system.states)}), one number for each of "
                f"{', '.join(system.states)}; got {tuple(x0.shape)}"
            )
        self.x0 = x0.detach().to(device, torch.float64).expand(size, -1)  # (B, d)
        if not bool(self.x0.isfinite().all()):
            raise ValueError("x0 must be finite; free a state that was not measured and give a guess here")
        self.signed = torch.tensor([name in system.signed for name in self.names], device=device)
        columns = system.states if data.states is None else data.states
        self.columns = [system.states.index(name) for name in columns]
        moments = data.times.to(device, torch.float64)
        self.moments, self.order = torch.unique(moments, return_inverse=True)  # sorted, each once
        span = float(self.moments[-1]) - data.start
        self.step = step if step is not None else (span / 100 if span > 0 else None)
        sigma = torch.as_tensor(1.0 if data.sigma is None else data.sigma, dtype=torch.float64, device=device)
        if sigma.ndim > 1 or (sigma.ndim == 1 and len(sigma) not in (1, len(columns))) or not bool((sigma > 0).all()):
            raise ValueError(f"sigma must be > 0, a number or ({len(columns)},); got {data.sigma}")
        self.scale = 1.0 / sigma
        target = self.observed
        if data.noise == "log":
            target = target + data.offset
            low = self.keep & ~(target > 0)
            if bool(low.any()):
                _, row, column = low.nonzero()[0].tolist()
                raise ValueError(
                    f"log noise needs values + offset > 0; {columns[column]} at time {float(moments[row]):g} is "
                    f"{float(self.observed[low][0]):g} with offset={data.offset}. Take an offset of about the least "
                    "amount that can be measured"
                )
            least = torch.where(self.keep, target, torch.inf).flatten(1).amin(1)  # (B,)
            self.edge = (EDGE * least)[:, None, None]
            target = torch.where(self.keep, target, 1.0).log()
        self.target = torch.where(self.keep, target, 0.0)
        self.counts = self.keep.flatten(1).sum(1)  # (B,)

    def guess(self) -> Tensor:
        """(B, F) unknowns of the values given."""
        found = torch.empty(len(self.observed), len(self.names), dtype=torch.float64, device=self.observed.device)
        for j, name in enumerate(self.names):
            parameters = self.system.parameter_names
            values = (
                self.natural[:, parameters.index(name)]
                if name in parameters
                else self.x0[:, self.system.states.index(name)]
            )
            if name not in self.system.signed and not bool((values > 0).all()):
                raise ValueError(f"{name} is free and positive, so it must start above 0; got {values.min().item():g}")
            found[:, j] = values if name in self.system.signed else values.log()
        return found

    def to_natural(self, raw: Tensor) -> Tensor:
        """(..., F) unknowns in natural units."""
        return torch.where(self.signed, raw, raw.masked_fill(self.signed, 0.0).exp())

    def unpack(self, raw: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All parameters (..., R, P) and initial states (..., R, d) of unknowns (..., R, F) of the data sets `rows`."""
        natural = self.to_natural(raw)

        def fill(names: tuple[str, ...], fixed: Tensor) -> Tensor:
            if not set(names) & set(self.names):
                return fixed[rows].expand(*raw.shape[:-1], -1)
            places = [self.names.index(name) if name in self.names else None for name in names]
            columns = [
                fixed[rows, i].expand(raw.shape[:-1]) if place is None else natural[..., place]
                for i, place in enumerate(places)
            ]
            return torch.stack(columns, dim=-1)

        return fill(self.system.parameter_names, self.natural), fill(self.system.states, self.x0)

    def solve(self, raw: Tensor, rows: Tensor, times: Tensor) -> Tensor:
        """States (T, ..., R, d) at rising times, none before the start."""
        p, x0 = self.unpack(raw, rows)
        moments = [self.data.start, *times.tolist()]
        return solve_ode(lambda t, x: self.system.field(t, x, p), x0, moments, self.solver, self.step)[1:]

    def predict(self, raw: Tensor, rows: Tensor) -> Tensor:
        """What would have been measured without noise, (..., R, T, D)."""
        states = self.solve(raw, rows, self.moments)[..., self.columns]  # (T', ..., R, D)
        return states[self.order].movedim(0, -2)

    def residuals(self, raw: Tensor, rows: Tensor) -> Tensor:
        """(..., R, T * D) in units of sigma, 0 where nothing was measured."""
        keep = self.keep[rows]
        expected = torch.where(keep, self.predict(raw, rows), 1.0)
        if self.data.noise == "log":
            expected = extended_log(expected + self.data.offset, self.edge[rows])
        difference = torch.where(keep, expected - self.target[rows], 0.0)
        return (difference * self.scale).flatten(-2)


def extended_log(values: Tensor, edge: Tensor) -> Tensor:
    """log, and below the edge its tangent: a step too long that falls below 0 is finitely wrong and is called back."""
    inside = values > edge
    return torch.where(inside, values.where(inside, edge).log(), edge.log() + (values - edge) / edge)


def checked_observations(system: ODESystem, data: Observations) -> tuple[Tensor, Tensor]:
    """Values in float64 with 0 where none count, and the mask of those that do."""
    if data.noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}; got {data.noise!r}")
    if not data.offset >= 0 or not abs(data.offset) < float("inf"):
        raise ValueError(f"offset must be finite and >= 0, got {data.offset}")
    columns = system.states if data.states is None else data.states
    if len(set(columns)) < len(columns) or not set(columns) <= set(system.states):
        raise ValueError(f"states must be among {', '.join(system.states)}, each once; got {columns}")
    times, values = data.times, data.values
    if times.ndim != 1 or not len(times) or values.ndim not in (2, 3) or not values.numel():
        raise ValueError(f"needs times (T,) and values (T, D), got {tuple(times.shape)} and {tuple(values.shape)}")
    if values.shape[-2:] != (len(times), len(columns)):
        raise ValueError(
            f"values must end in ({len(times)}, {len(columns)}), times by states ({', '.join(columns)}); got "
            f"{tuple(values.shape)}. Measured fewer states? Name them in states=, or leave columns of nan"
        )
    if not bool(times.isfinite().all()) or bool((times < data.start).any()):
        raise ValueError(f"times must be finite and not before start={data.start}; got {times.min().item():g} at least")
    values = values.detach().to(torch.float64)
    keep = ~values.isnan()
    if data.mask is not None:
        if data.mask.dtype != torch.bool or data.mask.shape not in (values.shape, values.shape[-2:]):
            raise ValueError(
                f"mask must be bool {tuple(values.shape)}, True where a value counts; got {data.mask.dtype} "
                f"{tuple(data.mask.shape)}"
            )
        keep = keep & data.mask
    values = torch.where(keep, values, 0.0)
    if not bool(values.isfinite().all()):
        raise ValueError("values must be finite or nan; mark what is beyond the scale as nan, it is then missing")
    return values, keep
