r"""Log Z of an energy by annealed importance sampling, with error bars, and from the other side as a check.

    U_b = (1 - b) U_0 + b U,   0 = b_0 < b_1 < ... < b_K = 1,   exp(-U_0) a density one can draw from         (1)
    log w = sum_k (b_k - b_{k-1}) (U_0 - U)(x_{k-1}),   x_0 ~ exp(-U_0),  x_k by MALA steps under U_{b_k}      (2)
    E w = Z,   E log w <= log Z                                                                             (3)
    reverse, from exact samples of exp(-U) / Z down to 0:   E 1/w' = 1/Z,   E log w' >= log Z                  (4)

(3) holds for any number of steps and however badly the chains mix, since MALA leaves its density alone exactly; what
mixing buys is a small spread of w. The error bar of log Z is only as good as the weights that were seen: read Pareto k.
Chains that never find a mode underestimate Z in silence; (4) notices, but needs exact samples, which a trained model
does not come with. Started from its long chains it is a check and no bound.

Steps: MALA's step at each b is tuned on pilot chains of their own, which are thrown away, so that the others run with
steps that do not look at them. b_k = (k / K)^power; 1 is even, 2 takes more of its steps near the base.

Source: Neal, 2001, Annealed importance sampling, arXiv:physics/9803008; the two-sided check: Grosse et al., 2015,
    arXiv:1511.02543.
Shapes: N chains, x (N, ...), energies (N,).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from danlu.generative._energy_gradient import Bounds, Energy, check_bounds, held_still
from danlu.generative.mala import mala
from danlu.math.importance import ImportanceEstimate, importance_estimate
from danlu.math.precision import wide

__all__ = ["AnnealedEstimate", "NormalBase", "UniformBase", "annealed_importance"]


class Base(Protocol):
    """A density with samples to start from: exp(-energy(x)) integrates to 1."""

    @property
    def bounds(self) -> Bounds | None: ...

    def energy(self, x: Tensor) -> Tensor: ...

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor: ...


@dataclass(frozen=True)
class NormalBase:
    """Independent normals of one mean and deviation; `shape` is that of one x.

    Args:
        shape: of one x.
        mean: of every element.
        std: > 0.
        dtype: of the samples.
        device: of the samples.
    """

    shape: tuple[int, ...]
    mean: float = 0.0
    std: float = 1.0
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise ValueError(f"NormalBase needs a finite std > 0, got {self.std}")

    @property
    def bounds(self) -> None:
        """None: it is everywhere."""
        return None

    def energy(self, x: Tensor) -> Tensor:
        constant = math.prod(self.shape) * math.log(self.std * math.sqrt(2 * math.pi))
        return ((wide(x) - self.mean) / self.std).square().flatten(1).sum(1) / 2 + constant

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(n, *self.shape, generator=generator, dtype=self.dtype, device=self.device)
        return self.mean + self.std * noise


@dataclass(frozen=True)
class UniformBase:
    """Uniform on a box; U then counts inside the box only.

    Args:
        shape: of one x.
        bounds: (low, high) of every element.
        dtype: of the samples.
        device: of the samples.
    """

    shape: tuple[int, ...]
    bounds: Bounds = (0.0, 1.0)
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def energy(self, x: Tensor) -> Tensor:
        low, high = self.bounds
        # 0 * x keeps a graph: a sampler asks for the gradient
        return (0 * wide(x)).flatten(1).sum(1) + math.prod(self.shape) * math.log(high - low)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        low, high = self.bounds
        u = torch.rand(n, *self.shape, generator=generator, dtype=self.dtype, device=self.device)
        return low + (high - low) * u


class AnnealedEstimate(NamedTuple):
    """Log Z and how it was found.

    estimate: an ImportanceEstimate; `estimate.value` is log Z in nats, `estimate.standard_error` its error bar, and
    `estimate.trusted` what Pareto k says. For the reverse run it is that of log 1/Z with the sign turned: `value` is
    log Z, `bias` >= 0. log_weights: (N,), of eq. (2) or (4). x: (N, ...) the chains at their end. acceptance: (K,)
    means of the MALA moves at each b. steps: MALA's step at each b.
    """

    estimate: ImportanceEstimate
    log_weights: Tensor
    x: Tensor
    acceptance: Tensor
    steps: list[float]


@torch.no_grad()
def annealed_importance(
    energy: Energy,
    base: Base,
    num_chains: int = 500,
    num_temperatures: int = 100,
    num_steps: int = 1,
    step: float = 0.1,
    num_pilot: int = 50,
    power: float = 1.0,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> AnnealedEstimate:
    """Log Z = log of the integral of exp(-U), eqs. (1) to (3); from samples of the model, eq. (4).

    Args:
        energy: U, a module or function from (N, ...) to (N,); on the base's box where that has bounds.
        base: NormalBase, UniformBase or your own with energy, sample and bounds; as wide as the model or wider.
        num_chains: N >= 2; those of `start` if it is given.
        num_temperatures: K >= 1.
        num_steps: of MALA at each b, >= 1.
        step: first step of MALA, > 0.
        num_pilot: chains that tune the step at each b; 0 leaves it at `step`.
        power: of the schedule of b, > 0.
        start: (N, ...) exact samples of exp(-U) / Z for the reverse run; None for the forward one.
        generator: source of all randomness.

    Returns:
        An AnnealedEstimate.

    Raises:
        ValueError: a number out of its range, or an energy that is none.
        RuntimeError: an energy or gradient that is no number.

    >>> base = NormalBase((2,))
    >>> result = annealed_importance(lambda x: base.energy(x) - 3, base, num_chains=4, num_temperatures=2)  # Z = e^3
    >>> result.estimate.value, result.estimate.standard_error
    (tensor(3.), tensor(0.))
    """
    check_bounds("annealed_importance", base.bounds)
    if num_chains < 2 or num_temperatures < 1 or num_steps < 1 or num_pilot < 0 or not 0 < power < math.inf:
        raise ValueError(
            "annealed_importance needs num_chains >= 2, num_temperatures and num_steps >= 1, num_pilot >= 0 and power "
            f"> 0; got {num_chains}, {num_temperatures}, {num_steps}, {num_pilot} and {power}"
        )
    if start is not None and (start.ndim < 1 or len(start) < 2):
        raise ValueError(f"start needs at least 2 samples (N, ...), got {tuple(start.shape)}")
    ladder = [(k / num_temperatures) ** power for k in range(num_temperatures + 1)]  # b_k
    if start is not None:
        ladder.reverse()
    with held_still(energy):
        steps = [step] * num_temperatures
        if num_pilot:
            pilot = base.sample(num_pilot, generator) if start is None else start[:num_pilot]
            steps = _anneal(energy, base, pilot, ladder, num_steps, steps, True, generator)[2]
        x = base.sample(num_chains, generator) if start is None else start
        log_weights, x, _, acceptance = _anneal(energy, base, x, ladder, num_steps, steps, False, generator)
    estimate = importance_estimate(log_weights)
    if start is not None:  # the weights are those of 1/Z
        estimate = estimate._replace(value=-estimate.value, bias=-estimate.bias)
        log_weights = -log_weights
    return AnnealedEstimate(estimate, log_weights, x, acceptance, steps)


def _anneal(
    energy: Energy,
    base: Base,
    x: Tensor,
    ladder: list[float],
    num_steps: int,
    steps: list[float],
    tune: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, list[float], Tensor]:
    """Log weights, ends, the steps (tuned from one b to the next) and the mean acceptance at each b."""
    total, found, rates, step = wide(x).new_zeros(len(x)), [], [], steps[0]
    for k in range(1, len(ladder)):
        b, change = ladder[k], ladder[k] - ladder[k - 1]
        total = total + change * (wide(base.energy(x)) - wide(energy(x)))  # eq. (2)

        def mixed(y: Tensor, b: float = b) -> Tensor:
            return (1 - b) * wide(base.energy(y)) + b * wide(energy(y))  # eq. (1)

        if tune:
            result = mala(mixed, x, step, 0, max(num_steps, 3), bounds=base.bounds, generator=generator)
            step = result.step
        else:
            result = mala(mixed, x, steps[k - 1], num_steps, bounds=base.bounds, generator=generator)
        x = result.x
        found.append(step)
        rates.append(result.acceptance.mean())
    return total, x, found, torch.stack(rates)
