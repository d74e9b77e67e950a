r"""Langevin dynamics: chains that follow the gradient of an energy U and noise towards samples of exp(-U / T).

    x' = x - (e/2) g(x) + s n,   n ~ N(0, 1),   g = dU/dx                                                  (1)
    T = s^2 / e                                                                                             (2)
    U(z) = U(G(z)) + w |z|^2 / 2                                                                            (3)

e is the step and s the deviation of the noise; s = sqrt(e) is the proper scheme, T = 1. (1) alone is not exact: on a
Gaussian of variance v it settles at v / (1 - e / (4 v)) if e < 4 v and diverges above; the bias goes with e. The exact
chain is `danlu.generative.mala`. s = 0 is gradient descent.

What training programs call Langevin is mostly (1) with a large e and a small s: multiplying the gradient by 10 and
adding noise of 0.005 is e = 20 and T = 1.25e-6, a descent with a little noise that ends near where it began. It makes
pictures and is no sample of exp(-U). That is why the temperature is stated here. (The released program adds the noise
before the gradient: the same chain, looked at half a step later.)

Bounds make the chain one on a box. "reflect" keeps the density; "clamp", the programs' way, piles mass up on the walls.
An element-wise clipped gradient is that of another energy, or of none. Both are for training.

(3) samples the codes of a trained generator G by what its critic or energy thinks of the outcome: an empirical use, for
exp(-U(z)) is the density of z, which pushed through G is not exp(-U(x)) unless |det dG/dz| is constant; the prior's
term (w = 1) keeps it a density where U is flat.

Source: kexue.fm/archives/6331 (the scheme, and (3) without the prior's term), 6612; Du and Mordatch, 2019,
    arXiv:1903.08689, whose program has the values quoted; the stationary variance is worked out here.
Shapes: N chains; x (N, ...), an energy (N,).
"""

import math

import torch
from torch import Tensor

from danlu.generative._energy_gradient import (
    Bounds,
    Energy,
    check_bounds,
    check_chains,
    energy_and_gradient,
    first_fault,
    fold,
    held_still,
)
from danlu.math.precision import wide

__all__ = ["Langevin", "langevin", "langevin_temperature", "latent_energy"]


def langevin(
    energy: Energy,
    x: Tensor,
    step: float,
    num_steps: int,
    noise: float | None = None,
    grad_clip: float | None = None,
    bounds: Bounds | None = None,
    boundary: str = "reflect",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Where N chains are after so many steps of eq. (1).

    A module (or a method of one) is put into eval mode meanwhile and gathers no gradient.

    Args:
        energy: U, a module or function from (N, ...) to (N,).
        x: (N, ...) the starts, any float dtype; not changed.
        step: e > 0, in squared units of x.
        num_steps: T >= 0; each costs a forward and a backward pass.
        noise: s >= 0; None for sqrt(step), the proper scheme.
        grad_clip: bound of every element of the gradient, > 0; None for none.
        bounds: (low, high) of every element, None for none.
        boundary: "reflect" or "clamp", what happens to those who leave the bounds.
        generator: source of the noise, on the device of x.

    Returns:
        The shape and dtype of x, without a graph; computed in float32 or better.

    Raises:
        ValueError: a bad step, noise, bound or start, or an energy that is none.
        RuntimeError: the energy or its gradient became infinite or nan; says at which step.

    >>> langevin(lambda x: x.square().sum(1) / 2, torch.ones(1, 2), step=1.0, num_steps=2, noise=0.0)  # x/2, twice
    tensor([[0.2500, 0.2500]])
    """
    dtype = check_chains("langevin", x, step, num_steps, grad_clip)
    scale = check_noise(step, noise)
    check_bounds("langevin", bounds, x)
    if boundary not in ("reflect", "clamp"):
        raise ValueError(f"boundary must be 'reflect' or 'clamp', got {boundary!r}")
    with held_still(energy):
        state = x.detach().to(dtype, copy=True)  # here, because a copy made in inference mode could have no gradient
        fault = torch.full((), -1, device=x.device)
        for t in range(num_steps):
            value, gradient = energy_and_gradient(energy, state, x.dtype, grad_clip)
            fault = first_fault(fault, ~(value.isfinite().all() & gradient.isfinite().all()), t)
            state = state - step / 2 * gradient
            if scale:
                state = state + scale * torch.randn(
                    state.shape, generator=generator, dtype=dtype, device=x.device
                )  # eq. (1)
            if bounds is not None:
                state = fold(state, bounds) if boundary == "reflect" else state.clamp(*bounds)
        fault = first_fault(fault, ~state.isfinite().all(), num_steps)
    if int(fault) >= 0:
        raise RuntimeError(
            f"langevin left the finite numbers at step {int(fault)} of {num_steps} (step={step}); the scheme diverges "
            "where step exceeds 4 / the largest curvature of the energy: take a smaller step, bounds, grad_clip or mala"
        )
    return state.to(x.dtype)


def langevin_temperature(step: float, noise: float | None = None) -> float:
    """The temperature T of eq. (2): the density that small steps of this scheme sample is exp(-U / T).

    Args:
        step: e > 0; a program that multiplies the gradient by lam has e = 2 lam.
        noise: s >= 0; None for sqrt(step).

    Returns:
        T; 1 for the proper scheme, 0 for gradient descent.

    Raises:
        ValueError: a step that is not > 0 or a negative noise.

    >>> langevin_temperature(2.0), langevin_temperature(20.0, 0.005)
    (1.0, 1.25e-06)
    """
    if not 0 < step < math.inf:
        raise ValueError(f"langevin_temperature needs a finite step > 0, got {step}")
    return 1.0 if noise is None else check_noise(step, noise) ** 2 / step  # eq. (2)


def latent_energy(energy: Energy, decoder: Energy, prior_weight: float = 1.0) -> Energy:
    """The energy of codes z, eq. (3), for `langevin` or `mala` in front of a trained generator.

    Args:
        energy: U, from what the decoder gives to (N,); of a critic that scores real data high, its negative.
        decoder: G, from codes (N, K) to data.
        prior_weight: w >= 0 of the standard normal prior's energy.

    Returns:
        A function from (N, ...) codes to (N,) energies.

    Raises:
        ValueError: a negative weight.

    >>> latent_energy(lambda x: x.sum(1), lambda z: 3 * z)(torch.tensor([[1.0, 1.0]]))  # 6 and 2 / 2
    tensor([7.])
    """
    if not 0 <= prior_weight < math.inf:
        raise ValueError(f"prior_weight must be >= 0, got {prior_weight}; 0 leaves the prior out")

    def of_code(z: Tensor) -> Tensor:
        value = wide(energy(decoder(z)))
        return value + prior_weight / 2 * wide(z).square().flatten(1).sum(1) if prior_weight else value  # eq. (3)

    return of_code


class Langevin:
    """`langevin` with its settings: `sampler = Langevin(0.01, 60)`, then `sampler(energy, x)`."""

    def __init__(
        self,
        step: float,
        num_steps: int,
        noise: float | None = None,
        grad_clip: float | None = None,
        bounds: Bounds | None = None,
        boundary: str = "reflect",
    ) -> None:
        """Keep the settings.

        Args:
            step: e > 0.
            num_steps: of each call.
            noise: s, None for sqrt(step).
            grad_clip: bound of every element of the gradient, None for none.
            bounds: (low, high), None for none.
            boundary: "reflect" or "clamp".

        Raises:
            ValueError: as of `langevin`.
        """
        check_chains("Langevin", torch.zeros(0, 1), step, num_steps, grad_clip)
        check_noise(step, noise)
        check_bounds("Langevin", bounds)
        if boundary not in ("reflect", "clamp"):
            raise ValueError(f"boundary must be 'reflect' or 'clamp', got {boundary!r}")
        self.step, self.num_steps, self.noise = step, num_steps, noise
        self.grad_clip, self.bounds, self.boundary = grad_clip, bounds, boundary

    @property
    def temperature(self) -> float:
        """T of eq. (2)."""
        return langevin_temperature(self.step, self.noise)

    def __call__(self, energy: Energy, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The chains that start at x, `num_steps` later."""
        s = self
        return langevin(energy, x, s.step, s.num_steps, s.noise, s.grad_clip, s.bounds, s.boundary, generator)

    def __repr__(self) -> str:
        return f"Langevin(step={self.step}, num_steps={self.num_steps}, temperature={self.temperature:.3g})"


def check_noise(step: float, noise: float | None) -> float:
    """The deviation of the noise of one step."""
    if noise is None:
        return math.sqrt(step)
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise must be a finite standard deviation >= 0, or None for sqrt(step); got {noise}")
    return noise
