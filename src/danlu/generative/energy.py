r"""An energy-based model: a network U(x) with the density exp(-U(x)) / Z on a box, trained by Langevin negatives.

    q(x) = exp(-U(x)) / Z  for x in [low, high]^D,  0 outside                                               (1)
    loss = energy_loss(U(x+), U(x-)) + r1 E_data |dU/dx|^2                                                  (2)

x- are chains from a replay buffer, `num_steps` of Langevin further on, written back afterwards. What the parts do: the
buffer makes short chains long; spectral normalisation keeps the landscape as smooth as the sampler's step needs; the
squares of the energies (alpha) hold U near 0; the penalty on the gradient at real data (r1), zero-centred, makes them
the bottoms of pits. No batch norm: it would let one chain see another.

Divergence is the usual failure: watch mean U(x+) - mean U(x-), which hovers about 0 while all is well, and go back to a
stored state when it runs off. A sampler with a stated temperature near 0 (`model.temperature`) trains a maker of
pictures whose exp(-U) is nobody's density; then log Z and log_prob are of a thing that was not trained for.

Source: Du and Mordatch, 2019, arXiv:1903.08689; kexue.fm/archives/6612, 6316 (r1); sum pooling, a smooth activation and
    normalisation of all layers but the last as in the program of the former, with SiLU for leaky ReLU.
Shapes: N examples (N, *shape), floats inside the bounds; energies (N,).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danlu.generative._energy_gradient import Bounds, Energy, held_still
from danlu.generative.annealed_importance import AnnealedEstimate, UniformBase, annealed_importance
from danlu.generative.energy_loss import energy_loss
from danlu.generative.energy_net import EnergyNet
from danlu.generative.langevin import Langevin, langevin
from danlu.generative.replay_buffer import ReplayBuffer
from danlu.math.precision import wide
from danlu.train.gradient_penalty import gradient_penalty

__all__ = ["EnergyConfig", "EnergyModel"]


@dataclass(frozen=True)
class EnergyConfig:
    """All that rebuilds a model; numbers and strings only. The defaults are for sets of points in a small box.

    Args:
        shape: of one example, (D,) or (C, H, W).
        bounds: (low, high) of every element.
        width: of the hidden layers; channels of the first layer for images.
        depth: hidden layers; for images each halves height and width.
        spectral_norm: largest gain of each layer but the last, 0 for no constraint.
        step: e of the sampler, `langevin`.
        num_steps: of the sampler for each update.
        noise: deviation of the sampler's noise, None for the proper sqrt(step).
        grad_clip: bound of every element of the sampler's gradient, None for none.
        boundary: "reflect" or "clamp".
        buffer_size: chains kept.
        reinit: share of chains that start anew.
        buffer_dtype: "float32" or "uint8".
        alpha: weight of the squared energies.
        r1: weight of the squared gradient at data.
        loss: "cd", "softplus" or "weighted".
    """

    shape: tuple[int, ...] = (2,)
    bounds: Bounds = (-4.0, 4.0)
    width: int = 64
    depth: int = 2
    spectral_norm: float = 0.0
    step: float = 0.02
    num_steps: int = 20
    noise: float | None = None
    grad_clip: float | None = None
    boundary: str = "reflect"
    buffer_size: int = 10_000
    reinit: float = 0.05
    buffer_dtype: str = "float32"
    alpha: float = 0.0
    r1: float = 0.0
    loss: str = "cd"


class EnergyModel(nn.Module):
    """The energy, its sampler and its buffer: `model.loss(x, generator=g).backward()` in your loop.

    Args:
        config: an EnergyConfig.
        net: your own network from (N, *shape) to (N,); None for an EnergyNet of the configuration.
    """

    def __init__(self, config: EnergyConfig, net: nn.Module | None = None) -> None:
        super().__init__()
        c = config
        self.config = config
        self.net = EnergyNet(tuple(c.shape), c.width, c.depth, c.spectral_norm) if net is None else net
        dtypes = {"uint8": torch.uint8, "float32": torch.float32}
        if c.buffer_dtype not in dtypes or not c.r1 >= 0:
            raise ValueError(
                f"buffer_dtype must be one of {', '.join(dtypes)} and r1 >= 0; got {c.buffer_dtype!r}, {c.r1}"
            )
        bounds = (float(c.bounds[0]), float(c.bounds[1]))
        self.sampler = Langevin(c.step, c.num_steps, c.noise, c.grad_clip, bounds, c.boundary)
        self.buffer = ReplayBuffer(c.buffer_size, tuple(c.shape), bounds, c.reinit, dtypes[c.buffer_dtype])

    @property
    def temperature(self) -> float:
        """The temperature of the sampler: 1 for the density exp(-U), near 0 for the usual programs' settings."""
        return self.sampler.temperature

    def energy(self, x: Tensor) -> Tensor:
        """U(x).

        Args:
            x: (N, *shape).

        Returns:
            (N,).
        """
        value: Tensor = self.net(x)
        return value

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(x)

    def negatives(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n chains from the buffer, one call of the sampler further on, and back into the buffer.

        Args:
            n: chains.
            generator: source of all randomness.

        Returns:
            (n, *shape) without a graph.
        """
        start, age = self.buffer.draw(n, generator)
        x = self.sampler(self.energy, start, generator)
        self.buffer.add(x, age)
        return x

    def loss(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The loss of eq. (2) on a batch; moves the chains of the buffer.

        Args:
            x: (N, *shape) data inside the bounds.
            generator: source of all randomness.

        Returns:
            Scalar, float32 or better; no likelihood.

        Raises:
            ValueError: x has another shape.
            RuntimeError: the chains diverged.
        """
        if x.shape[1:] != tuple(self.config.shape):
            raise ValueError(f"this model takes x (N, *{tuple(self.config.shape)}), got {tuple(x.shape)}")
        negative = self.negatives(len(x), generator).to(x.dtype)
        c = self.config
        data = x.detach().requires_grad_() if c.r1 else x
        up, down = self.energy(torch.cat([data, negative])).split([len(x), len(negative)])
        value = energy_loss(up, down, c.alpha, c.loss)
        return value + 2 * c.r1 * gradient_penalty(up, data, form="sample") if c.r1 else value  # eq. (2)

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        num_steps: int | None = None,
        fresh: bool = False,
    ) -> Tensor:
        """n chains of the training's sampler, all from the buffer or all from noise; the buffer stays as it is.

        Args:
            n: chains.
            generator: source of all randomness.
            temperature: factor of the sampler's own temperature, >= 0.
            num_steps: None for that of training.
            fresh: start from uniform noise, as one does to see whether the energy alone makes samples.

        Returns:
            (n, *shape) inside the bounds, without a graph.

        Raises:
            ValueError: a negative temperature.
            RuntimeError: the chains diverged.
        """
        if not temperature >= 0:
            raise ValueError(f"temperature must be >= 0, got {temperature}; 0 runs down to the bottoms")
        start = self.buffer.draw(n, generator, reinit=float(fresh))[0]
        return self._run(self.energy, start, num_steps, generator, temperature)

    def reconstruct(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """x after the sampler, the known elements held: denoising, and with a mask filling in.

        Args:
            x: (N, *shape) starts inside the bounds.
            mask: bool, broadcast to x, True = known, keep; None for nothing known.
            num_steps: None for that of training.
            generator: source of the noise.

        Returns:
            The shape of x, without a graph.

        Raises:
            ValueError: a mask that is not bool.
            RuntimeError: the chains diverged.
        """
        if mask is None:
            return self._run(self.energy, x, num_steps, generator)
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool, True = known; got {mask.dtype}, write mask.bool()")
        known = x.detach()
        with held_still(self):  # the sampler sees a function, not the module behind it
            moved = self._run(lambda y: self.energy(torch.where(mask, known, y)), x, num_steps, generator)
        return torch.where(mask, known, moved)

    def log_partition(
        self, num_chains: int = 500, num_temperatures: int = 200, generator: torch.Generator | None = None
    ) -> AnnealedEstimate:
        """Log Z on the box by annealed importance sampling from uniform noise, with error bar and Pareto k.

        Args:
            num_chains: >= 2.
            num_temperatures: >= 1; more, and log Z is less underestimated.
            generator: source of all randomness.

        Returns:
            An AnnealedEstimate.
        """
        base = UniformBase(tuple(self.config.shape), self.buffer.bounds, device=self.buffer.data.device)
        return annealed_importance(
            self.energy, base, num_chains, num_temperatures, step=self.config.step, generator=generator
        )

    @torch.no_grad()
    def log_prob(self, x: Tensor, log_partition: float | Tensor) -> Tensor:
        """log q(x), eq. (1), in nats; as right as log Z is.

        Args:
            x: (N, *shape).
            log_partition: log Z, as of `log_partition().estimate.value`.

        Returns:
            (N,), float32 or better; -inf outside the bounds.
        """
        low, high = self.buffer.bounds
        inside = ((x >= low) & (x <= high)).flatten(1).all(1)
        return torch.where(inside, -wide(self.energy(x)) - log_partition, -torch.inf)  # eq. (1)

    def _run(
        self,
        energy: Energy,
        x: Tensor,
        num_steps: int | None,
        generator: torch.Generator | None,
        temperature: float = 1.0,
    ) -> Tensor:
        s = self.sampler
        steps = s.num_steps if num_steps is None else num_steps
        noise = math.sqrt(temperature) * (math.sqrt(s.step) if s.noise is None else s.noise)
        return langevin(energy, x, s.step, steps, noise, s.grad_clip, s.bounds, s.boundary, generator)
