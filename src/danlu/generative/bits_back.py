r"""Bits back: images coded at the length that a latent-variable model or a flow gives them.

    autoencoder   take z from the stack by the encoder's q(z | x), put x on by p(x | z), put z on by the prior      (1)
                  length = -log2 [p(x | z) p(z) / q(z | x)], on average the negative ELBO
    latents       2^14 intervals of equal mass under the prior, z its middle quantile                               (2)
    flow          x' = x + u, u uniform on multiples of 2^-k in [0, 1), taken from the stack                        (3)
                  take z' by N(f(x'), s^2 J J^T), put x' on by N(f^-1(z'), s^2 I), put z' on by the prior           (4)
                  length = -log2 p(x') + O(s^2), the dequantised likelihood
    a number on a grid by N(m, d^2): low bits that d does not resolve uniformly, the rest by the normal law         (5)

What (1) and (4) take is there because images before were put on. The first ones find an empty stack: it is fed with
bits of a fixed stream, or the images are put on plainly, whichever is shorter; either way that is a part of the length.
(4) needs the Jacobian J of each image whole, so it is for up to a few hundred dimensions.

Both directions run the same networks in float64 on batches of the same size, and round what comes out before it becomes
a frequency, so that differences in the last digits (threads, order of sums) do not matter.

Source: Townsend, Bird and Barber, 2019, arXiv:1901.04866 (1), (2); Ho, Lohn and Abbeel, 2019, arXiv:1905.08500 (4).
Shapes: B images, D dimensions, K latents, L levels.
"""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from danlu.generative.ans import BitStack, cumulative_frequencies

__all__ = ["Coder", "FlowCoder", "LatentCoder", "pop_normal", "push_normal"]
PRECISION = 32  # r of a normal law
BINS = 1 << 10  # intervals of a normal law on a grid: 8 deviations and more to each side
INTERVAL_BITS = 14  # intervals of eq. (2)
LEVEL_PRECISION = 24  # r of the levels of a pixel
FINE = 2.0**16  # what networks put out is rounded to multiples of 1 / FINE
NOISE_BITS = 12  # k of eq. (3)
SPREAD = 2.0**-7  # s of eq. (4), in levels
LATENT_BITS = 20  # latents of flows lie on multiples of 2^-20
RESOLVED = 5  # bits by which a grid is finer than the deviation, at most


class Coder(Protocol):
    """What puts images on a stack and takes them off."""

    most: int  # images at a time

    def push(self, stack: BitStack, x: Tensor) -> None:
        """Put images (B, *item) on."""

    def pop(self, stack: BitStack, count: int) -> Tensor:
        """Take so many images off."""


class LatentCoder:
    """Coder of a model with one layer of normal latents, eq. (1).

    Args:
        encode: (B, *item) levels -> means and log-variances of the latents, (B, K) each.
        decode: (B, K) latents -> parameters of the likelihood.
        log_pmf: (parameters, levels so far) -> (B, *item, L) log-probabilities.
        shape: of an item.
        channelwise: whether the table of a channel depends on the channels before it.
    """

    most = 64

    def __init__(
        self,
        encode: Callable[[Tensor], tuple[Tensor, Tensor]],
        decode: Callable[[Tensor], Tensor],
        log_pmf: Callable[[Tensor, Tensor], Tensor],
        shape: tuple[int, ...],
        channelwise: bool = False,
    ) -> None:
        self.encode, self.decode, self.log_pmf, self.shape = encode, decode, log_pmf, shape
        self.channelwise = channelwise
        self.bins = 1 << INTERVAL_BITS
        self.edges = torch.special.ndtri(torch.linspace(0, 1, self.bins + 1, dtype=torch.float64)).tolist()
        self.middles = torch.special.ndtri((torch.arange(self.bins, dtype=torch.float64) + 0.5) / self.bins)  # eq. (2)

    @torch.no_grad()
    def push(self, stack: BitStack, x: Tensor) -> None:
        """Put images on, eq. (1)."""
        mean, sd = self._posterior(x)
        bins = [
            [_pop_bin(stack, self._law(m, s), self.bins) for m, s in zip(*row, strict=True)]
            for row in zip(mean, sd, strict=True)
        ]
        params = self.decode(self.middles[torch.tensor(bins)])
        for channel in reversed(range(x.shape[1] if self.channelwise else 1)):
            chosen = x[:, channel] if self.channelwise else x
            stack.push_all(chosen.flatten().long().numpy(), self._table(params, x, channel))
        for row in reversed(bins):
            for j in reversed(row):
                stack.push(j, 1, INTERVAL_BITS)  # the intervals have the same mass

    @torch.no_grad()
    def pop(self, stack: BitStack, count: int) -> Tensor:
        """Take images off: (1) backwards."""
        latents = len(self._posterior(torch.zeros(1, *self.shape, dtype=torch.uint8))[0][0])
        bins = [[_pop_uniform(stack, INTERVAL_BITS) for _ in range(latents)] for _ in range(count)]
        params = self.decode(self.middles[torch.tensor(bins)])
        x = torch.zeros(count, *self.shape, dtype=torch.int64)
        for channel in range(x.shape[1] if self.channelwise else 1):
            part = x[:, channel] if self.channelwise else x
            part.copy_(torch.from_numpy(stack.pop_all(self._table(params, x, channel))).view(part.shape))
        mean, sd = self._posterior(x.to(torch.uint8))
        for js, ms, ss in zip(reversed(bins), reversed(mean), reversed(sd), strict=True):
            for j, m, s in zip(reversed(js), reversed(ms), reversed(ss), strict=True):
                law = self._law(m, s)
                stack.push(law(j), law(j + 1) - law(j), PRECISION)
        return x.to(torch.uint8)

    def _posterior(self, x: Tensor) -> tuple[list[list[float]], list[list[float]]]:
        mean, log_variance = (_rounded(part) for part in self.encode(x))
        return mean.tolist(), (0.5 * log_variance).exp().tolist()

    def _law(self, mean: float, sd: float) -> Callable[[int], int]:
        """Sums of frequencies of the intervals of eq. (2) under N(mean, sd^2)."""
        return lambda j: round(_phi((self.edges[j] - mean) / sd) * ((1 << PRECISION) - self.bins)) + j

    def _table(self, params: Tensor, x: Tensor, channel: int) -> np.ndarray:
        """(n, L + 1) sums of frequencies of all dimensions, or of one channel."""
        log_pmf = self.log_pmf(_rounded(params), x)
        chosen = log_pmf[:, channel] if self.channelwise else log_pmf
        pmf = chosen.reshape(-1, chosen.shape[-1]).double().exp().numpy()
        cdf = np.concatenate([np.zeros((len(pmf), 1)), pmf.cumsum(1)], 1)
        return cumulative_frequencies(cdf / cdf[:, -1:], LEVEL_PRECISION)


class FlowCoder:
    """Coder of a flow over images of few dimensions, eqs. (3) and (4).

    Args:
        forward: (B, *item) levels plus noise, float64 -> (B, D) standard normal latents.
        inverse: the other way.
        shape: of an item.
        levels: L.
    """

    most = 1

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        inverse: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        levels: int,
    ) -> None:
        self.forward, self.inverse, self.shape, self.levels = forward, inverse, shape, levels
        self.grid_x, self.grid_z = 2.0**NOISE_BITS, 2.0**LATENT_BITS

    def push(self, stack: BitStack, x: Tensor) -> None:
        """Put images on one by one, eqs. (3) and (4)."""
        for image in x:
            noise = [_pop_uniform(stack, NOISE_BITS) for _ in range(image.numel())]  # eq. (3)
            fine = [(level << NOISE_BITS) + u for level, u in zip(image.flatten().tolist(), noise, strict=True)]
            z, _ = self._local(fine, stack)
            for value, mean in zip(reversed(fine), reversed(self._back(z)), strict=True):
                push_normal(stack, value, mean, SPREAD * self.grid_x)  # eq. (4)
            for value in reversed(z):
                push_normal(stack, value, 0, self.grid_z)

    def pop(self, stack: BitStack, count: int) -> Tensor:
        """Take images off one by one."""
        images = []
        for _ in range(count):
            dims = math.prod(self.shape)
            z = [pop_normal(stack, 0, self.grid_z) for _ in range(dims)]
            fine = [pop_normal(stack, mean, SPREAD * self.grid_x) for mean in self._back(z)]
            _, laws = self._local(fine, z)
            for value, (mean, sd) in zip(reversed(z), reversed(laws), strict=True):
                push_normal(stack, value, mean, sd)
            for value in reversed(fine):
                stack.push(value & ((1 << NOISE_BITS) - 1), 1, NOISE_BITS)
            levels = torch.tensor([value >> NOISE_BITS for value in fine]).view(self.shape)
            if bool((levels < 0).any()) or bool((levels >= self.levels).any()):
                raise ValueError("levels outside of the range: damaged data, or another model or kind of machine")
            images.append(levels.to(torch.uint8))
        return torch.stack(images[::-1])

    def _local(self, fine: list[int], source: BitStack | list[int]) -> tuple[list[int], list[tuple[int, float]]]:
        """Latents by N(f(x'), s^2 J J^T), each given those before it, taken from the stack or known; and their laws."""
        x = torch.tensor(fine, dtype=torch.float64) / self.grid_x

        def flat(v: Tensor) -> Tensor:
            return self.forward(v.view(1, *self.shape))[0]

        center = flat(x).detach()
        jacobian = torch.autograd.functional.jacobian(flat, x, vectorize=True)  # (D, D)
        factor = torch.linalg.cholesky(jacobian @ jacobian.T) * SPREAD  # eq. (4): J J^T = F F^T
        noise = torch.zeros_like(center)
        values, laws = [], []
        for i in range(len(center)):
            mean = float(center[i] + factor[i, :i] @ noise[:i]) * self.grid_z
            sd = float(factor[i, i]) * self.grid_z
            laws.append((round(mean), 2.0 ** (round(math.log2(sd) * 32) / 32)))
            values.append(pop_normal(source, *laws[-1]) if isinstance(source, BitStack) else source[i])
            noise[i] = (values[-1] - mean) / sd
        return values, laws

    @torch.no_grad()
    def _back(self, z: list[int]) -> list[int]:
        latents = torch.tensor(z, dtype=torch.float64)[None] / self.grid_z
        return [round(v) for v in (self.inverse(latents).flatten() * self.grid_x).tolist()]


def push_normal(stack: BitStack, value: int, mean: int, sd: float) -> None:
    """Put a whole number on by N(mean, sd^2), eq. (5).

    Args:
        stack: the bits.
        value: within 8 sd of the mean.
        mean: of the law.
        sd: of the law; 1 or more.

    Raises:
        ValueError: the value lies further away.
    """
    fine, law = _grid_law(sd)
    away = value - mean + (1 << fine >> 1)
    low, j = away & ((1 << fine) - 1), (away >> fine) + BINS // 2
    if not 0 <= j < BINS:
        raise ValueError(f"a number {abs(value - mean) / sd:.0f} deviations away from what the model expects")
    stack.push(law(j), law(j + 1) - law(j), PRECISION)
    if fine:
        stack.push(low, 1, fine)


def pop_normal(stack: BitStack, mean: int, sd: float) -> int:
    """Take a whole number off by N(mean, sd^2), eq. (5).

    Args:
        stack: the bits.
        mean: of the law.
        sd: of the law; 1 or more.

    Returns:
        The number.
    """
    fine, law = _grid_law(sd)
    low = _pop_uniform(stack, fine) if fine else 0
    j = _pop_bin(stack, law, BINS)
    return (j - BINS // 2 << fine) + low + mean - (1 << fine >> 1)


def _grid_law(sd: float) -> tuple[int, Callable[[int], int]]:
    """Bits below what the deviation resolves, and sums of frequencies of the intervals above them."""
    fine = max(0, math.floor(math.log2(sd)) - RESOLVED)
    width, room = 2.0**fine / sd, (1 << PRECISION) - BINS
    return fine, lambda j: round(_phi((j - BINS // 2 - 0.5) * width) * room) + j


def _pop_bin(stack: BitStack, law: Callable[[int], int], bins: int) -> int:
    """Take an interval off, found by halving."""
    place, low, high = stack.peek(PRECISION), 0, bins
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if law(middle) <= place else (low, middle)
    stack.drop(law(low), law(low + 1) - law(low), PRECISION)
    return low


def _pop_uniform(stack: BitStack, bits: int) -> int:
    value = stack.peek(bits)
    stack.drop(value, 1, bits)
    return value


def _phi(x: float) -> float:
    """Normal distribution function."""
    return 0.5 * math.erfc(-x * math.sqrt(0.5))


def _rounded(values: Tensor) -> Tensor:
    return (values * FINE).round() / FINE
