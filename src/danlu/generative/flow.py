r"""Flows: densities of images and vectors by an invertible map to standard normal latents, exact in both directions.

    log q(v) = -D/2 log 2 pi - |f(v)|^2 / 2 + log|det df/dv|                                                  (1)
    v = f^-1(T z),   z ~ N(0, I),   T the temperature                                                         (2)
    log P(x) >= E_u[log q((x + u)/n - 1/2) - log r(u | x)] - D log n     for grey levels x                    (3)

The loss of (1) has the SUM of squares of f(v), against no target: f may not shrink everything to 0 because the
log-determinant forbids it. All of z is standard normal, also what leaves early in a multi-scale model (the conditional
priors are layers of f, `danlu.generative.flow_layers`), and `decode` takes all of it, so decode(encode(v)) is v.

T < 1 samples q^(1/T^2), normalised, only where the log-determinant is a constant: additive couplings, actnorm, 1x1
convolutions, prior "standard" or "learned" (the Glow paper prints T^2 for the exponent). Elsewhere it is a habit.
Customary are 0.7 (paper) to 0.9.

Couplings may run their networks in bfloat16 under autocast; x, scales, log-determinants and the 1x1 products are
float32 or better. Encode and decode in the same precision, or the round trip breaks.

Source: Dinh et al., 2014, arXiv:1410.8516; Dinh et al., 2016, arXiv:1605.08803; Kingma and Dhariwal, 2018,
    arXiv:1807.03039; Ho et al., 2019, arXiv:1902.00275 (3); kexue.fm/archives/5776 and 5807.
Shapes: N batch, D numbers of one item, K interpolation steps.
"""

import math

import torch
from torch import Tensor, nn

from danlu.generative.dequantization import VariationalNoise, dequantize, quantize
from danlu.generative.flow_config import FlowConfig
from danlu.generative.flow_layers import MultiScale
from danlu.generative.flow_stack import build_bijection, build_network
from danlu.generative.latent import normal_log_prob
from danlu.math.bits_per_dim import bits_per_dim
from danlu.math.importance import log_mean_exp
from danlu.math.precision import wide_dtype

__all__ = ["Flow"]


class Flow(nn.Module):
    """A flow; integer tensors are grey levels 0 .. num_bins - 1, float tensors are v of eq. (1), in [-1/2, 1/2].

    Train with `flow.loss(x, generator=g).backward()` in any loop. The first training batch starts the actnorms: make an
    average of the weights after it, and with several processes run it, the same in each, before wrapping the model.

    Args:
        config: what to build.
        generator: source of the weights; None: torch's global one.
    """

    def __init__(self, config: FlowConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.bijection = build_bijection(config, generator)
        self.noise: VariationalNoise | None = None
        if config.dequantization == "variational":
            vector = len(config.shape) == 1
            sizes = (config.shape[0], 2 * config.shape[0])
            self.noise = VariationalNoise(build_network(config, sizes, vector, generator))

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:  # (N, *shape) -> (N, D), (N,)
        return self.bijection(self._continuous(v))

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """v from all latents, with the log-determinant of this inverse.

        Args:
            z: (N, D).

        Returns:
            (N, *shape) and (N,).
        """
        if z.ndim != 2 or z.shape[1] != self.config.num_dims:
            raise ValueError(f"decoding needs all latents, (N, {self.config.num_dims}), got {tuple(z.shape)}")
        return self.bijection.inverse(z.to(self._dtype()))  # type: ignore[operator]

    def encode(self, x: Tensor) -> Tensor:
        """The latents of an item; levels stand for their middles.

        Args:
            x: (N, *shape), levels or v.

        Returns:
            (N, D), standard normal under the model.
        """
        return self(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """v of latents, in [-1/2, 1/2] as far as the model has learned that.

        Args:
            z: (N, D).

        Returns:
            (N, *shape) float; `danlu.generative.quantize` makes levels of it.
        """
        return self.inverse(z)[0]

    def log_prob(
        self, x: Tensor, generator: torch.Generator | None = None, samples: int = 1, importance: bool = False
    ) -> Tensor:
        """Log-density of v, eq. (1), or the bound of the log-probability of levels, eq. (3).

        Args:
            x: (N, *shape), levels or v.
            generator: source of u.
            samples: draws of u, >= 1, all of them in one batch; for v nothing is drawn.
            importance: False averages the bound over the draws; True takes the log of the mean of their exponentials,
                a tighter bound, as one does for importance weights.

        Returns:
            (N,) nats, float32 or better.

        Raises:
            ValueError: samples < 1, levels without num_bins or out of range, another shape.
        """
        if samples < 1:
            raise ValueError(f"samples must be >= 1, got {samples}")
        if x.is_floating_point():
            return self._log_density(self._continuous(x))
        self._check(x)
        drawn = self._level_bound(x.expand(samples, *x.shape).flatten(0, 1), generator).unflatten(0, (samples, len(x)))
        return log_mean_exp(drawn, 0) if importance else drawn.mean(0)

    def loss(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What to minimise: minus the mean over the batch of `log_prob`.

        Args:
            x: (N, *shape), levels or v.
            generator: source of u.

        Returns:
            Scalar, nats an item.
        """
        return -self.log_prob(x, generator).mean()

    def bits_per_dim(
        self, x: Tensor, generator: torch.Generator | None = None, samples: int = 1, importance: bool = False
    ) -> Tensor:
        """Bits for each number of an item; for levels an upper bound of their code length, log2 n if uniform.

        Args:
            x: (N, *shape); levels, or v, which counts as if noise had been added already.
            generator: source of u.
            samples: draws of u.
            importance: as in `log_prob`.

        Returns:
            (N,) bits.
        """
        unit = float(self.config.num_bins or 1) if x.is_floating_point() else 1.0
        return bits_per_dim(self.log_prob(x, generator, samples, importance), self.config.num_dims, unit)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """New items, eq. (2).

        Args:
            n: how many.
            generator: source of z.
            temperature: T >= 0.

        Returns:
            (n, *shape): levels where the model has num_bins, else v. Nothing of it has a gradient.

        Raises:
            ValueError: a negative temperature.
        """
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be a finite number >= 0, got {temperature}; 1 is the model itself")
        return self._shown(self.decode(temperature * self._normal(n, generator)))

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        """Items on the straight lines between the latents of two batches; both ends are among them.

        Args:
            a: (N, *shape), levels or v.
            b: like a.
            steps: K >= 2.

        Returns:
            (K, N, *shape): levels where the model has num_bins, else v.

        Raises:
            ValueError: steps < 2, batches of different sizes.
        """
        if steps < 2 or a.shape != b.shape:
            raise ValueError(
                f"interpolate needs steps >= 2 and two batches of one size, got {steps}, {tuple(a.shape)} and "
                f"{tuple(b.shape)}"
            )
        start, end = self.encode(a), self.encode(b)
        share = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)[:, None, None]  # (K, 1, 1)
        between = torch.lerp(start, end, share)  # (K, N, D)
        return self._shown(self.decode(between.flatten(0, 1))).unflatten(0, (steps, len(a)))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """decode(encode(x)): x again, up to rounding; how far off is a test of the flow.

        Args:
            x: (N, *shape), levels or v.

        Returns:
            (N, *shape): levels for levels, v for v.
        """
        v = self.decode(self.encode(x))
        return v if x.is_floating_point() else quantize(v, self._bins()).to(x.dtype)

    def latent_sizes(self) -> list[int]:
        """How many numbers of z leave at each level, those of the finest detail first.

        Returns:
            A number a level; they add up to D.
        """
        for module in self.bijection.modules():
            if isinstance(module, MultiScale):
                return module.latent_sizes()
        return [self.config.num_dims]

    def _level_bound(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """One draw of eq. (3) for each item."""
        dtype, bins = self._dtype(), self._bins()
        log_noise: Tensor | float = 0.0
        if self.noise is not None:
            u, log_noise = self.noise(dequantize(x, bins).to(dtype), generator)
        else:
            device = generator.device if generator else x.device
            u = torch.rand(x.shape, generator=generator, device=device, dtype=dtype).to(x.device)
        log_density = self._log_density(dequantize(x, bins, u))
        return log_density - log_noise - self.config.num_dims * math.log(bins)  # eq. (3)

    def _log_density(self, v: Tensor) -> Tensor:
        z, log_det = self.bijection(v)
        return normal_log_prob(z) + log_det  # eq. (1)

    def _continuous(self, x: Tensor) -> Tensor:
        self._check(x)
        if not x.is_floating_point():
            return dequantize(x, self._bins()).to(self._dtype())
        x = x.to(self._dtype())
        if self.config.alpha and x.numel() and float(x.detach().abs().max()) > 0.5:
            raise ValueError(
                f"with alpha={self.config.alpha} v must lie in [-1/2, 1/2], got {float(x.min()):.4g} .. "
                f"{float(x.max()):.4g}; pass grey levels as integers, or images of [0, 1] less 1/2"
            )
        return x

    def _normal(self, n: int, generator: torch.Generator | None) -> Tensor:
        home = next(self.parameters()).device
        device = generator.device if generator else home
        z = torch.randn(n, self.config.num_dims, generator=generator, device=device, dtype=self._dtype())
        return z.to(home)

    def _shown(self, v: Tensor) -> Tensor:
        return v if self.config.num_bins is None else quantize(v, self.config.num_bins)

    def _bins(self) -> int:
        if self.config.num_bins is None:
            raise ValueError(
                "this flow was built without num_bins and knows no grey levels; build it with num_bins=256 (or as "
                "many as the data have), or pass continuous data as floats"
            )
        return self.config.num_bins

    def _dtype(self) -> torch.dtype:
        return wide_dtype(next(self.parameters()))

    def _check(self, x: Tensor) -> None:
        if x.shape[1:] != self.config.shape or x.ndim < 2:
            raise ValueError(f"this flow takes {('N', *self.config.shape)}, got {tuple(x.shape)}".replace("'N'", "N"))
