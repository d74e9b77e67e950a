r"""Likelihoods of continuous data: Gaussians with four kinds of width, and the continuous Bernoulli on [0, 1].

    Gaussian   log p = -((x - m) / s)^2 / 2 - log s - log(2 pi) / 2                                           (1)
    its best common width   s*^2 = mean (x - m)^2,   mean of -log p = log(2 pi e s*^2) / 2                    (2)
    continuous Bernoulli   log p = x l - log((e^l - 1) / l) = (x - 1/2) l - g(l / 2),  g(y) = log(sinh y / y) (3)
    g(y) = y^2/6 - y^4/180 + y^6/2835 - ...                                                                   (4)
    E x = 1/2 + (coth(l/2) - 2/l) / 2,    x = log(1 + u (e^l - 1)) / l,  u uniform                            (5)

Squared error alone is (1) with s^2 = 1/2, whatever the data: a width that was never chosen. beta in front of the KL
term and a fixed width are one thing: beta = 2 s^2 under a summed squared error. (2) sets the width to its optimum in
closed form and needs no tuning; outside of training the running average of training is used, because a width computed
from the x it judges makes no density.

(3) is cross-entropy on [0, 1] with the constant that makes it a density: (e^l + 1) l / (e^l - 1) in logits; the form
here is one smooth even function g, with its series (4) near 0.

Source: Rybkin, Daniilidis and Levine, 2021, arXiv:2006.13202 (2); Loaiza-Ganem and Cunningham, 2019, arXiv:1907.06845
    (3), (5); kexue.fm/archives/5343; (4) is our algebra.
Shapes: as of `danlu.generative.likelihood`.
"""

import math

import torch
from torch import Tensor, nn

from danlu.generative.latent import soft_clamp
from danlu.generative.likelihood import Likelihood
from danlu.math.precision import wide

__all__ = ["ContinuousBernoulliLikelihood", "GaussianLikelihood"]

LOG_SCALE_LIMIT = 7.0  # widths that are learned stay within e^{+-7}
NARROWEST = 1e-3  # of the width of eq. (2), which a perfect reconstruction would send to 0
MOMENTUM = 0.01  # of the running average of s*^2
SERIES = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250, 2 / 127702575)  # of g, in y^2


class GaussianLikelihood(Likelihood):
    """Independent Gaussians around the decoder's output, eq. (1).

    Args:
        scale: a number: that width. "optimal": eq. (2), of the batch in training (also over its samples of z), of the
            running average otherwise. "global": one learned number. "pixel": the decoder puts out log-widths as well.
        validate: whether nan and infinities in x raise.

    Raises:
        ValueError: a width that is not a positive finite number, or another word.

    >>> GaussianLikelihood(1.0).log_prob(torch.zeros(1, 2), torch.tensor([[0.0, 2.0]]))  # -log(2 pi) - 2
    tensor([-3.8379])
    """

    variance: Tensor
    updates: Tensor

    def __init__(self, scale: float | str = "optimal", validate: bool = True) -> None:
        super().__init__(validate)
        known = scale in ("optimal", "global", "pixel") if isinstance(scale, str) else 0 < scale < math.inf
        if not known:
            raise ValueError(
                f"scale must be a finite number > 0, 'optimal', 'global' or 'pixel', got {scale!r}; 'optimal' needs no "
                "tuning"
            )
        self.scale = scale
        if scale == "global":
            self.log_scale = nn.Parameter(torch.zeros(()))
        if scale == "optimal":
            self.register_buffer("variance", torch.ones(()))
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def width(self, params: Tensor) -> Tensor:
        """s of eq. (1) outside of training, broadcast with the means; params (N, *param_shape(item))."""
        return self._width(wide(params), 1)

    def mean(self, params: Tensor) -> Tensor:
        """The means."""
        return self._split(wide(params), 1)[0]

    @torch.no_grad()
    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Means plus noise of the width."""
        mean = self.mean(params)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + self.width(params) * noise

    def _features(self, channels: int) -> int:
        return 2 * channels if self.scale == "pixel" else channels

    def _check(self, x: Tensor) -> None:
        if not bool(x.isfinite().all()):
            raise ValueError("GaussianLikelihood needs finite x; one holds nan or an infinity: look at the data")

    def _split(self, params: Tensor, dim: int) -> tuple[Tensor, Tensor | None]:
        if self.scale != "pixel":
            return params, None
        mean, raw = params.chunk(2, dim)
        return mean, raw

    def _width(self, params: Tensor, dim: int) -> Tensor:
        if self.scale == "optimal":
            return wide(self.variance).clamp_min(NARROWEST**2).sqrt().to(params.dtype)
        if self.scale == "global":
            return soft_clamp(self.log_scale, LOG_SCALE_LIMIT).exp().to(params.dtype)
        raw = self._split(params, dim)[1]
        if raw is None:
            return params.new_tensor(self.scale)
        return soft_clamp(raw, LOG_SCALE_LIMIT).exp()

    def _log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        dim = 1 - x.ndim
        error = x.to(params.dtype) - self._split(params, dim)[0]
        if self.training and self.scale == "optimal":
            width = self._update(error.detach())
        else:
            width = self._width(params, dim)
        return -0.5 * (error / width).square() - width.log() - 0.5 * math.log(2 * math.pi)  # eq. (1)

    @torch.no_grad()
    def _update(self, error: Tensor) -> Tensor:
        """s* of this batch, eq. (2), and its share in the running average."""
        best = error.square().mean() if error.numel() else wide(self.variance)  # eq. (2)
        weight = torch.clamp(1.0 / (self.updates + 1), min=MOMENTUM)
        moved = torch.lerp(wide(self.variance).to(best.dtype), best, weight.to(best.dtype))
        good = best.isfinite()
        self.variance.copy_(torch.where(good, moved, wide(self.variance)))
        self.updates.add_(good)
        return best.clamp_min(NARROWEST**2).sqrt()


class ContinuousBernoulliLikelihood(Likelihood):
    """Densities on [0, 1] with the logits that the decoder puts out, eq. (3).

    Args:
        validate: whether values outside of [0, 1] raise.

    >>> ContinuousBernoulliLikelihood().log_prob(torch.zeros(1, 3), torch.rand(1, 3))  # logit 0: uniform
    tensor([0.])
    """

    def mean(self, params: Tensor) -> Tensor:
        """E x of eq. (5)."""
        y = wide(params) / 2
        small = y.abs() < 0.5
        near, far = torch.where(small, y, 0.0), torch.where(small, 1.0, y)
        total = torch.zeros_like(y)
        for n in range(len(SERIES), 0, -1):
            total = total * near.square() + 2 * n * SERIES[n - 1]
        return 0.5 + torch.where(small, total * near, 1 / far.tanh() - 1 / far) / 2  # eq. (5)

    @torch.no_grad()
    def sample(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws by the inverse of the distribution function, eq. (5)."""
        logits = wide(params)
        u = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
        down = -logits.abs()  # x of logit l is 1 - x of logit -l
        flat = down > -1e-6
        steep = torch.where(flat, -1.0, down)
        x = torch.where(flat, u, torch.log1p(u * torch.expm1(steep)) / steep).clamp(0, 1)  # eq. (5)
        return torch.where(logits > 0, 1 - x, x)

    def _check(self, x: Tensor) -> None:
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise ValueError(
                f"ContinuousBernoulliLikelihood needs x in [0, 1], got values from {x.min().item()} to "
                f"{x.max().item()}; levels 0 .. 255 become (x + noise) / 256 with noise uniform in [0, 1)"
            )

    def _log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        return (x.to(params.dtype) - 0.5) * params - _log_sinhc(params / 2)  # eq. (3)


def _log_sinhc(y: Tensor) -> Tensor:
    """g of eq. (3)."""
    small = y.abs() < 0.5
    near, far = torch.where(small, y, 0.0).square(), torch.where(small, 1.0, y).abs()
    series = torch.zeros_like(y)
    for coefficient in reversed(SERIES):
        series = (series + coefficient) * near  # eq. (4)
    return torch.where(small, series, far + torch.log1p(-torch.exp(-2 * far)) - far.log() - math.log(2))
