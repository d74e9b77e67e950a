r"""Likelihoods of levels 0 .. L - 1: Bernoulli, discretised logistics, mixtures of them with coupled colours.

    Bernoulli   log P(1) = log sigma(l),  log P(0) = log sigma(-l)                                            (1)
    discretised logistic, mixture: `danlu.math.discretized_logistic`, `danlu.math.logistic_mixture`
    log P(x_c = k | x_<c) = log P(x_<c, k) - log P(x_<c)                                                      (2)
    E x = sum_k k P(k)                                                                                        (3)

These are the ones whose bits a coder can realise: log_pmf gives it the table. Channels of one pixel of a mixture share
their component, so their table depends on the channels before them, (2): a decoder asks once for every channel, with
those that it has. Log-scales are clamped softly to [-7, 7] (`soft_clamp`); e^-7 of the range [-1, 1] is narrower than
one of 256 levels.

Source: Salimans et al., 2017, arXiv:1701.05517; kexue.fm/archives/5343 (1).
Shapes: as of `danlu.generative.likelihood`; J components.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.generative.latent import soft_clamp
from danlu.generative.likelihood import Likelihood
from danlu.math import (
    LogisticMixture,
    discretized_logistic_log_prob,
    discretized_logistic_sample,
    logistic_mixture_log_prob,
    logistic_mixture_sample,
    split_logistic_mixture,
)
from danlu.math.precision import wide

__all__ = ["BernoulliLikelihood", "LogisticLikelihood", "LogisticMixtureLikelihood"]

LOG_SCALE_LIMIT = 7.0
AT_ONCE = 2**23  # numbers of a table of probabilities held at a time by mean


class BernoulliLikelihood(Likelihood):
    """Independent bits with the logits that the decoder puts out, eq. (1).

    Args:
        validate: whether anything but 0 and 1 raises. False lets greys in [0, 1] pass as cross-entropy, which is no
            likelihood: their density is `ContinuousBernoulliLikelihood`.

    >>> BernoulliLikelihood().log_prob(torch.zeros(1, 3), torch.tensor([[0, 1, 1]]))  # -3 log 2
    tensor([-2.0794])
    """

    levels = 2

    def mean(self, params: Tensor) -> Tensor:
        """Probabilities of 1."""
        return wide(params).sigmoid()

    @torch.no_grad()
    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Bits, uint8."""
        return torch.bernoulli(self.mean(params), generator=generator).to(torch.uint8)

    def log_pmf(self, params: Tensor, x: Tensor | None = None) -> Tensor:
        """Log-probabilities of 0 and 1."""
        logits = wide(params)
        return torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=-1)  # eq. (1)

    def _check(self, x: Tensor) -> None:
        bad = (x != 0) & (x != 1)
        if bool(bad.any()):
            raise ValueError(
                f"BernoulliLikelihood needs x of 0 and 1, got {x[bad][0].item()}; draw bits with torch.bernoulli(x), "
                "or take continuous_bernoulli for greys in [0, 1], discretized_logistic for levels"
            )

    def _log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        x = x.to(params.dtype)
        if self.validate:  # one pass
            return F.logsigmoid((2 * x - 1) * params)  # eq. (1)
        return x * F.logsigmoid(params) + (1 - x) * F.logsigmoid(-params)


class _Levels(Likelihood):
    """What likelihoods of 2^bits levels share.

    Args:
        bits: 1 to 16.
        validate: whether anything but whole numbers 0 .. 2^bits - 1 raises.
    """

    def __init__(self, bits: int = 8, validate: bool = True) -> None:
        super().__init__(validate)
        if not isinstance(bits, int) or not 1 <= bits <= 16:
            raise ValueError(f"{type(self).__name__} needs bits between 1 and 16, got {bits!r}; 8 for usual images")
        self.bits = bits
        self.levels = 2**bits

    def inputs(self, x: Tensor) -> Tensor:
        """Levels scaled to [-1, 1]."""
        return wide(x) * (2 / (self.levels - 1)) - 1

    def mean(self, params: Tensor) -> Tensor:
        """Expected level, eq. (3); of a channel given the expected levels, rounded, of the channels before it."""
        size = max(1, AT_ONCE * max(1, len(params)) // max(1, params.numel() * self.levels))
        return torch.cat([self._mean(part) for part in params.split(size)])

    def _mean(self, params: Tensor) -> Tensor:
        return self._counted(self.log_pmf(params))

    def _counted(self, log_pmf: Tensor) -> Tensor:
        return log_pmf.exp() @ torch.arange(self.levels, dtype=log_pmf.dtype, device=log_pmf.device)  # eq. (3)

    def _stored(self, drawn: Tensor) -> Tensor:
        return drawn.to(torch.uint8) if self.bits <= 8 else drawn


class LogisticLikelihood(_Levels):
    """Independent discretised logistics: the decoder puts out means (in [-1, 1]) and log-scales.

    Args:
        bits: levels are 0 .. 2^bits - 1.
        validate: whether anything else raises.

    >>> LogisticLikelihood(bits=1).log_prob(torch.zeros(1, 2), torch.tensor([[1]]))  # the middle: either side 1/2
    tensor([-0.6931])
    """

    @torch.no_grad()
    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Levels."""
        mean, log_scale = self._split(wide(params), 1)
        return self._stored(discretized_logistic_sample(mean, log_scale, self.bits, generator))

    def log_pmf(self, params: Tensor, x: Tensor | None = None) -> Tensor:
        """Log-probability of every level."""
        mean, log_scale = self._split(wide(params), 1)
        grid = torch.arange(self.levels, device=params.device)
        return discretized_logistic_log_prob(grid, mean[..., None], log_scale[..., None], self.bits, validate=False)

    def _features(self, channels: int) -> int:
        return 2 * channels

    def _split(self, params: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        mean, raw = params.chunk(2, dim)
        return mean, soft_clamp(raw, LOG_SCALE_LIMIT)

    def _log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        mean, log_scale = self._split(params, 1 - x.ndim)
        return discretized_logistic_log_prob(x, mean, log_scale, self.bits, self.validate)


class LogisticMixtureLikelihood(_Levels):
    """A mixture of discretised logistics for every pixel; green sees red, blue sees both, eq. (2).

    The dimensions of a vector (D,) are D grey pixels.

    Args:
        components: J >= 1.
        bits: levels are 0 .. 2^bits - 1.
        coupled: False: channels are independent within a component.
        validate: whether anything but levels raises.

    Raises:
        ValueError: fewer than one component, another number of bits.

    >>> LogisticMixtureLikelihood(2, bits=1).log_prob(torch.zeros(1, 6), torch.tensor([[1]]))
    tensor([-0.6931])
    """

    def __init__(self, components: int = 5, bits: int = 8, coupled: bool = True, validate: bool = True) -> None:
        super().__init__(bits, validate)
        if components < 1:
            raise ValueError(f"LogisticMixtureLikelihood needs components >= 1, got {components}")
        self.components = components
        self.coupled = coupled

    def param_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the decoder's output for one item: J (1 + 2 C) channels, coupled J C (C - 1) / 2 more."""
        if len(shape) == 1:
            return (3 * self.components * shape[0],)
        channels = shape[0]
        pairs = channels * (channels - 1) // 2 if self.coupled else 0
        return (self.components * (1 + 2 * channels + pairs), *shape[1:])

    @torch.no_grad()
    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Levels, channel after channel."""
        mixture = self._split(wide(params), params.ndim - 1, self._item(params)[0])
        drawn = logistic_mixture_sample(*mixture, bits=self.bits, generator=generator)  # (N, ..., C)
        return self._stored(drawn[..., 0] if params.ndim == 2 else drawn.movedim(-1, 1))

    def log_pmf(self, params: Tensor, x: Tensor | None = None) -> Tensor:
        """Log-probability of every level of every channel, given the channels before it in x, eq. (2)."""
        channels = self._item(params)[0]
        if channels > 1 and x is None:
            raise ValueError(
                f"channels of one pixel depend on each other: log_pmf needs x, the levels of the {channels} channels "
                "as far as they are known (zeros elsewhere)"
            )
        mixture = self._split(wide(params), params.ndim - 1, channels)
        grid = torch.arange(self.levels, device=params.device)
        tables, before = [], mixture.mean.new_zeros(())
        for c in range(channels):
            part = self._first(mixture, c + 1)
            lead = (*part.logits.shape[:-1], self.levels)  # (N, ..., L)
            known = [] if x is None else [x[:, b, ..., None].expand(lead) for b in range(c)]
            levels = torch.stack([*(k.long() for k in known), grid.expand(lead)], dim=-1)  # (N, ..., L, c + 1)
            coefficients = None if part.coefficients is None else part.coefficients.unsqueeze(-3)
            joint = logistic_mixture_log_prob(
                levels,
                part.logits.unsqueeze(-2),
                part.mean.unsqueeze(-3),
                part.log_scale.unsqueeze(-3),
                coefficients,
                bits=self.bits,
                validate=False,
            )  # (N, ..., L)
            tables.append(joint - before)  # eq. (2)
            if x is not None and c + 1 < channels:
                before = joint.gather(-1, x[:, c, ..., None].long())
        return tables[0] if params.ndim == 2 else torch.stack(tables, dim=1)

    def _mean(self, params: Tensor) -> Tensor:
        channels, item = self._item(params)
        x = torch.zeros(len(params), *item, dtype=torch.int64, device=params.device)
        mean = self._counted(self.log_pmf(params, x))
        for c in range(1, channels):
            x[:, c - 1] = mean[:, c - 1].round().long()
            mean = torch.cat([mean[:, :c], self._counted(self.log_pmf(params, x)[:, c:])], dim=1)
        return mean

    def _item(self, params: Tensor) -> tuple[int, tuple[int, ...]]:
        """Number of channels and shape of an item that has such params."""
        if params.ndim == 2:
            return 1, (params.shape[1] // (3 * self.components),)
        one, channels = params.shape[1] // self.components, 1
        while self.param_shape((channels, 1))[0] < one * self.components:
            channels += 1
        return channels, (channels, *params.shape[2:])

    def _first(self, mixture: LogisticMixture, channels: int) -> LogisticMixture:
        """The mixture of the first channels alone."""
        coefficients = mixture.coefficients
        if coefficients is not None:
            pairs = channels * (channels - 1) // 2
            coefficients = coefficients[..., :pairs, :] if pairs else None
        return LogisticMixture(
            mixture.logits, mixture.mean[..., :channels, :], mixture.log_scale[..., :channels, :], coefficients
        )

    def _split(self, params: Tensor, events: int, channels: int) -> LogisticMixture:
        """Parameters with pixels in front, (..., N, H, W, ...); for vectors (..., N, D, ...)."""
        if events == 1:
            params, events = params.unflatten(-1, (3 * self.components, -1)), 2
        mixture = split_logistic_mixture(params, channels, self.coupled and channels > 1, dim=-events)
        return mixture._replace(log_scale=soft_clamp(mixture.log_scale, LOG_SCALE_LIMIT))

    def _log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        vectors = x.ndim == 2
        mixture = self._split(params, x.ndim - 1, 1 if vectors else x.shape[1])
        levels = x[..., None] if vectors else x.movedim(1, -1)
        value = logistic_mixture_log_prob(levels, *mixture, bits=self.bits, validate=self.validate)
        return value if vectors else value.unsqueeze(1 - x.ndim)
