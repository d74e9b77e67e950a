r"""MALA: Langevin steps with an exact accept-or-stay, so that the chain's density is exp(-U / T) at any step size.

    y = x - (e/2) g(x) + sqrt(e T) n,   n ~ N(0, 1),   g = dU/dx                                           (1)
    x' = y with probability min(1, exp a), else x
    a = (U(x) - U(y)) / T + log k(x | y) - log k(y | x),   log k(b | a) = -|b - a + (e/2) g(a)|^2 / (2 e T)  (2)
      = (U(x) - U(y)) / T + sqrt(e / T) / 2 (g(x) + g(y)) . n - e / (8 T) |g(x) + g(y)|^2                  (3)
    log e <- log e + (1 + r)^(-0.6) (mean over chains of min(1, exp a) - target),   in the warm-up only       (4)

(3) is (2) without the differences of large numbers. The post prints k with e g in place of (e/2) g, which is not the
density of its own proposal: on a standard normal with e = 1/2 that chain has variance 2.66. g may be clipped: any
function will do as long as both directions use it. Points outside `bounds` are never accepted, which samples the
density on the box exactly. All chains share e; r counts how often the difference in (4) has changed its sign, so that a
bad first guess costs few steps. e stands still when the warm-up ends, because a chain that tunes itself for ever has
another density. 0.574 is the best acceptance in many dimensions.

Before its answers are used, look at the acceptance (near 0: stuck; near 1: crawling), `chain_ess` and `split_r_hat`
of `danlu.generative.chain_diagnostics`.

Source: kexue.fm/archives/6331 with k corrected; Roberts and Tweedie, 1996, doi:10.2307/3318418; the target: Roberts and
    Rosenthal, 1998, doi:10.1111/1467-9868.00123.
Shapes: N chains; x (N, ...), an energy (N,); S kept draws.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from danlu.generative._energy_gradient import (
    Bounds,
    Energy,
    check_bounds,
    check_chains,
    energy_and_gradient,
    first_fault,
    held_still,
)

__all__ = ["MALAResult", "mala"]


class MALAResult(NamedTuple):
    """The chains after their last step and how they got there; nothing has a graph.

    x: (N, ...), the dtype of the starts. energy: (N,). acceptance: (N,) mean of min(1, exp a) after the warm-up (nan
    without such steps). step: e as it stood at the end. draws: (S, N, ...), empty unless `keep_every` was given.
    """

    x: Tensor
    energy: Tensor
    acceptance: Tensor
    step: float
    draws: Tensor


@torch.no_grad()
def mala(
    energy: Energy,
    x: Tensor,
    step: float,
    num_steps: int,
    warmup: int = 0,
    temperature: float = 1.0,
    target_acceptance: float = 0.574,
    grad_clip: float | None = None,
    bounds: Bounds | None = None,
    keep_every: int = 0,
    generator: torch.Generator | None = None,
) -> MALAResult:
    """N chains of the exact sampler, eqs. (1) to (4).

    Args:
        energy: U, a module or function from (N, ...) to (N,), float32 or better; +inf forbids a point.
        x: (N, ...) the starts, where U is finite; any float dtype, not changed.
        step: e > 0, in squared units of x; the first one if there is a warm-up.
        num_steps: after the warm-up, each a forward and a backward pass.
        warmup: steps before, in which e is tuned by eq. (4) and nothing is kept.
        temperature: T > 0.
        target_acceptance: in (0, 1).
        grad_clip: bound of every element of g, > 0; None for none. The chain stays exact.
        bounds: (low, high) of every element outside of which the density is 0; None for none.
        keep_every: keep the chains after each so many steps in `draws`; 0 keeps none.
        generator: source of all randomness, on the device of x.

    Returns:
        A MALAResult; computed in float32 or better.

    Raises:
        ValueError: a bad setting or start, or an energy that is none.
        RuntimeError: an energy or gradient that is nan, or an energy of -inf; says at which step.

    >>> result = mala(lambda x: x.square().sum(1) / 2, torch.zeros(3, 2), step=0.5, num_steps=10, keep_every=5)
    >>> result.draws.shape, result.step
    (torch.Size([2, 3, 2]), 0.5)
    """
    dtype = check_chains("mala", x, step, num_steps, grad_clip)
    check_bounds("mala", bounds, x)
    if not (0 < temperature < torch.inf and 0 < target_acceptance < 1 and warmup >= 0 and keep_every >= 0):
        raise ValueError(
            "mala needs temperature > 0, target_acceptance in (0, 1), warmup >= 0 and keep_every >= 0; got "
            f"{temperature}, {target_acceptance}, {warmup} and {keep_every}; without noise use langevin(noise=0)"
        )
    inner = tuple(range(1, x.ndim))
    count, shape = len(x), (-1, *[1] * (x.ndim - 1))
    accepted = torch.zeros(count, dtype=dtype, device=x.device)
    log_step = torch.tensor(math.log(step), dtype=dtype, device=x.device)
    last_error, turns = torch.zeros_like(log_step), torch.zeros_like(log_step)
    fault = torch.full((), -1, device=x.device)
    draws = []

    def total(v: Tensor) -> Tensor:
        return v.sum(inner) if inner else v

    with held_still(energy):
        state = x.detach().to(dtype, copy=True)
        value, gradient = energy_and_gradient(energy, state, x.dtype, grad_clip)
        if not bool(value.isfinite().all() & gradient.isfinite().all()):
            raise ValueError(f"mala starts where energy and gradient are finite; {int((~value.isfinite()).sum())} of "
                             f"{count} starts have an energy that is not")  # fmt: skip
        for t in range(warmup + num_steps):
            e = log_step.exp()
            n = torch.randn(state.shape, generator=generator, dtype=dtype, device=x.device)
            proposal = state - e / 2 * gradient + (e * temperature).sqrt() * n  # eq. (1)
            allowed = torch.ones(count, dtype=torch.bool, device=x.device)
            if bounds is not None:
                inside = (proposal >= bounds[0]) & (proposal <= bounds[1])
                allowed = inside.flatten(1).all(1) if inner else inside
                proposal = proposal.clamp(*bounds)  # an energy need not answer outside; these are not accepted
            there, slope = energy_and_gradient(energy, proposal, x.dtype, grad_clip)
            allowed = allowed & (there != torch.inf)
            slope = torch.where(allowed.view(shape), slope, 0.0)
            both = gradient + slope
            a = (value - there.masked_fill(~allowed, 0.0)) / temperature
            a = a + (e / temperature).sqrt() / 2 * total(both * n) - e / (8 * temperature) * total(both.square())  # (3)
            a = a.masked_fill(~allowed, -torch.inf)
            bad = a.isnan() | (a == torch.inf) | ~total(slope).isfinite()
            fault = first_fault(fault, bad.any(), t)
            chance = a.clamp_max(0.0).exp()
            coin = torch.rand(count, generator=generator, dtype=dtype, device=x.device)
            move = coin < chance  # eq. (2)
            state = torch.where(move.view(shape), proposal, state)
            value = torch.where(move, there, value)
            gradient = torch.where(move.view(shape), slope, gradient)
            if t < warmup:
                if count:
                    error = chance.mean() - target_acceptance
                    turns = turns + (error * last_error < 0)
                    log_step, last_error = log_step + (1 + turns) ** -0.6 * error, error  # eq. (4)
                continue
            accepted = accepted + chance
            if keep_every and (t - warmup + 1) % keep_every == 0:
                draws.append(state.to(x.dtype))
    if int(fault) >= 0:
        raise RuntimeError(
            f"mala met an energy or gradient that is no number at step {int(fault)} of {warmup + num_steps}; +inf is "
            "allowed as an energy (the point is refused), nan and -inf are not"
        )
    kept = torch.stack(draws) if draws else x.new_empty(0, *x.shape)
    rate = accepted / num_steps if num_steps else torch.full_like(accepted, torch.nan)
    last = float(log_step.double().exp()) if warmup else step
    return MALAResult(state.to(x.dtype), value, rate, last, kept)
