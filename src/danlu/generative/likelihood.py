r"""Decoder likelihoods: what the numbers that a decoder puts out say about data.

    log p(x | params) = sum over the dimensions of x                                                          (1)

A reconstruction loss is a likelihood: cross-entropy says Bernoulli, squared error a Gaussian of some fixed width, and
the width is what weighs reconstruction against the KL term. Every likelihood here is a small module with

    param_shape(shape)    what a decoder must put out for one item of that shape
    inputs(x)             x as a float tensor for an encoder
    log_prob(params, x)   nats, eq. (1); params may have sample axes in front: (M, N, ...) gives (M, N)
    mean(params), sample(params, generator)
    log_pmf(params, x)    for discrete data: the log-probability of every level of every dimension, for a coder

Features stand along the first axis of an item: an image (C, H, W) has params (F, H, W), a vector (D,) has params
(F D,), grouped by kind (all means, then all scales). Log-densities of continuous data can be compared with each other,
and with probabilities of levels only where the data were made continuous by noise (`danlu.math.bits_per_dim`).

Source: kexue.fm/archives/5343.
Shapes: N items, ... sample axes, F features for C channels, L levels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from danlu.math.precision import wide

__all__ = ["Likelihood"]


class Likelihood(nn.Module):
    """What all likelihoods share: the shape of the parameters, the check, the sum; `levels` is 0 for continuous data.

    Args:
        validate: whether log_prob looks at x and raises for what the likelihood gives no probability.
    """

    levels: int = 0

    def __init__(self, validate: bool = True) -> None:
        super().__init__()
        self.validate = validate

    @property
    def discrete(self) -> bool:
        """Whether log_prob is of probabilities, not densities."""
        return self.levels > 0

    def param_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the decoder's output for one item; twice the channels of an image for a mean and a scale."""
        return (self._features(shape[0]), *shape[1:])

    def inputs(self, x: Tensor) -> Tensor:
        """The data as a float tensor of about unit size, for an encoder."""
        return wide(x)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log-likelihood of each item, eq. (1).

        Args:
            params: (..., N, *param_shape(item)).
            x: (N, *item).

        Returns:
            (..., N) nats, float32 or better.

        Raises:
            ValueError: shapes that do not fit, or x outside of what the likelihood describes.
        """
        events = x.ndim - 1
        expected = (len(x), *self.param_shape(x.shape[1:])) if events else ()
        if not events or params.shape[-events - 1 :] != expected:
            raise ValueError(
                f"{type(self).__name__}.log_prob needs x (N, ...) and params (..., N, ...) of its param_shape: "
                f"{expected or '(N, D)'} for x {tuple(x.shape)}; got {tuple(params.shape)}"
            )
        if self.validate and not torch.compiler.is_compiling():
            self._check(x)
        return self._log_prob(wide(params), x).flatten(-events).sum(-1)  # eq. (1)

    def mean(self, params: Tensor) -> Tensor:
        """Expected x of each item.

        Args:
            params: (N, *param_shape(item)).

        Returns:
            (N, *item), float32 or better; in levels for discrete data.
        """
        raise NotImplementedError

    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws of x.

        Args:
            params: (N, *param_shape(item)).
            generator: source of the draws, on the device of params.

        Returns:
            (N, *item): float for continuous data, uint8 for up to 256 levels.
        """
        raise NotImplementedError

    def log_pmf(self, params: Tensor, x: Tensor | None = None) -> Tensor:
        """Log-probability of every level of every dimension.

        Args:
            params: (N, *param_shape(item)).
            x: (N, *item) levels, where a channel depends on those before it; what stands in a channel and after it
                does not matter to it. None where dimensions are independent.

        Returns:
            (N, *item, L) nats.

        Raises:
            ValueError: data are continuous, or x is missing.
        """
        raise ValueError(
            f"{type(self).__name__} is a density of continuous data and has no table of probabilities; a coder needs "
            "bernoulli, discretized_logistic or logistic_mixture"
        )

    def _features(self, channels: int) -> int:
        return channels

    def _check(self, x: Tensor) -> None:
        """Raise for data without a probability."""

    def _log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """(..., N, *item or its pixels), not summed."""
        raise NotImplementedError
