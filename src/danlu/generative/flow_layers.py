r"""What stands above single layers in a flow: Glow's step as one product, and the chain of conditional priors.

    step:   y = W diag(exp l) (x + b), then a coupling                                                        (1)
    level:  f(x) = (u, h);   u' = (u - m(h)) / s(h),   log|det| = -sum log s(h);   h goes to the next level   (2)
    z = (u'_1, u'_2, ..., h_last) is standard normal                                                          (3)
    logit:  y = logit(a + (1 - 2 a)(v + 1/2)),   log|det| = D log(1 - 2 a) + sum softplus(y) + softplus(-y)   (4)

(1) is actnorm and 1x1 convolution in one matrix, so that an image is read once for both. In (2) the released code of
Glow does not give the leaving half u a standard normal but a Gaussian whose mean and scale are read off what goes on;
normalising u by them is the same model, with every latent standard normal in the end and the priors inside the
log-determinant. Where s(h) falls towards 0 a dimension is given up: that is what a plain normal cannot do. s is kept
in [e^-8, e^8].

Source: Kingma and Dhariwal, 2018, arXiv:1807.03039 (1), (2); Dinh et al., 2016, arXiv:1605.08803 (4);
    kexue.fm/archives/5807 (2), read out of the released code, and (3).
Shapes: N batch, C channels, H and W pixels, D dimensions.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from danlu.math.precision import wide
from danlu.nn.actnorm import ActNorm
from danlu.nn.coupling import Coupling, affine_coupling, coupling_log_scale
from danlu.nn.invertible import ChannelPermutation, InvertibleSequential, channel_log_det
from danlu.nn.invertible_linear import InvertibleLinear, channel_linear

__all__ = ["FlowStep", "LogitTransform", "MultiScale"]

PRIOR_LIMIT = 8.0  # of |log s| in eq. (2)


class FlowStep(nn.Module):
    """Actnorm, mixing and coupling, the first two fused, eq. (1); `forward` gives (y, log_det (N,)).

    Args:
        actnorm: with a shift.
        mixing: InvertibleLinear or ChannelPermutation.
        coupling: of the mixed channels.
        recompute: keep only the input for the backward pass.
    """

    def __init__(
        self,
        actnorm: ActNorm,
        mixing: InvertibleLinear | ChannelPermutation,
        coupling: Coupling,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.actnorm, self.mixing, self.coupling = actnorm, mixing, coupling
        self.recompute = recompute

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, C, ...) -> the same, (N,)
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(self._forward, x, use_reentrant=False, preserve_rng_state=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(self.mixing, InvertibleLinear) or self.actnorm.shift is None:
            y, log_det = self.actnorm(x)
            y, _ = self.mixing(y)
        else:
            self.actnorm.prepare(x)
            log_scale, shift = wide(self.actnorm.log_scale), wide(self.actnorm.shift)
            weight = self.mixing.weight() * log_scale.exp()  # (C, C), a column a channel
            with torch.autocast(x.device.type, enabled=False):
                bias = weight @ shift
            y = channel_linear(x, weight, bias)  # eq. (1)
            log_det = channel_log_det(x, log_scale + self.mixing.log_scale())
        y, added = self.coupling(y)
        return y, log_det + added

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x from y, with the log-determinant of this inverse.

        Args:
            y: (N, C, ...).

        Returns:
            (N, C, ...) and (N,).
        """
        y, log_det = self.coupling.inverse(y)
        y, mixed = self.mixing.inverse(y)
        x, scaled = self.actnorm.inverse(y)
        return x, log_det + mixed + scaled


class MultiScale(nn.Module):
    """Levels of an image flow, eqs. (2) and (3); `forward` gives (z (N, D), log_det (N,)).

    Args:
        shape: (C, H, W) of the input.
        levels: invertible modules, each of which quarters the pixels by a squeeze.
        priors: for every level but the last a network from h to (m, log s) of twice u's channels; None: u stays.
        top: an invertible module for what is left.
    """

    def __init__(
        self,
        shape: Sequence[int],
        levels: Sequence[nn.Module],
        priors: Sequence[nn.Module | None],
        top: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if len(priors) != len(levels) - 1:
            raise ValueError(f"{len(levels)} levels need {len(levels) - 1} priors, got {len(priors)}")
        self.levels = nn.ModuleList(levels)
        self.priors = nn.ModuleList(nn.Identity() if prior is None else prior for prior in priors)
        self.top = InvertibleSequential([] if top is None else [top])
        self.latent_shapes: list[tuple[int, int, int]] = []
        channels, height, width = shape
        for i in range(len(levels)):
            channels, height, width = 4 * channels, height // 2, width // 2
            leaving = channels if i == len(levels) - 1 else channels // 2
            self.latent_shapes.append((leaving, height, width))
            channels -= leaving

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, C, H, W) -> (N, D), (N,)
        leaving: list[Tensor] = []
        log_det = torch.zeros(len(x), dtype=wide(x).dtype, device=x.device)
        for level, prior, shape in zip(self.levels, [*self.priors, None], self.latent_shapes, strict=True):
            x, added = level(x.contiguous(memory_format=torch.channels_last))
            log_det = log_det + added
            if prior is not None:
                u, x = x.split((shape[0], x.shape[1] - shape[0]), dim=1)
                u, added = _normalize(u, x, prior, inverse=True)  # eq. (2)
                log_det = log_det + added
                leaving.append(u.flatten(1))
        x, added = self.top(x)
        return torch.cat([*leaving, x.flatten(1)], dim=1), log_det + added  # eq. (3)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x from all latents, with the log-determinant of this inverse.

        Args:
            y: (N, D) the latents, those that left first in front.

        Returns:
            (N, C, H, W) and (N,).
        """
        parts = [z.unflatten(1, s) for z, s in zip(y.split(self.latent_sizes(), 1), self.latent_shapes, strict=True)]
        x, log_det = self.top.inverse(parts.pop().contiguous(memory_format=torch.channels_last))
        for level, prior in zip([*self.levels][::-1], [None, *[*self.priors][::-1]], strict=True):
            if prior is not None:
                u, added = _normalize(parts.pop(), x, prior, inverse=False)
                log_det = log_det + added
                x = torch.cat((u, x), dim=1).contiguous(memory_format=torch.channels_last)
            x, added = level.inverse(x)
            log_det = log_det + added
        return x, log_det

    def latent_sizes(self) -> list[int]:
        """How many numbers of z leave at each level.

        Returns:
            A number a level; they add up to D.
        """
        return [math.prod(shape) for shape in self.latent_shapes]


def _normalize(u: Tensor, h: Tensor, prior: nn.Module, inverse: bool) -> tuple[Tensor, Tensor]:
    """u' of eq. (2) from u (inverse=True, for it undoes u = s u' + m), or u from u'."""
    if isinstance(prior, nn.Identity):
        return u, torch.zeros(len(u), dtype=wide(u).dtype, device=u.device)
    mean, raw = prior(h).chunk(2, dim=1)
    return affine_coupling(u, mean, coupling_log_scale(raw, "bounded", PRIOR_LIMIT), inverse)


class LogitTransform(nn.Module):
    """Eq. (4), from v in [-1/2, 1/2] to the whole line.

    Args:
        alpha: a in (0, 0.5), what keeps the ends of the interval finite.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha must be in (0, 0.5), got {alpha}; without the transform leave the layer out")
        self.alpha = alpha

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, ...) -> the same, (N,)
        y = torch.logit(self.alpha + (1 - 2 * self.alpha) * (wide(x) + 0.5))
        each = F.softplus(y) + F.softplus(-y) + math.log(1 - 2 * self.alpha)  # eq. (4)
        return y.to(x.dtype), each.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """v from y, with the log-determinant of this inverse.

        Args:
            y: (N, ...).

        Returns:
            (N, ...) and (N,).
        """
        y = wide(y)
        each = F.softplus(y) + F.softplus(-y) + math.log(1 - 2 * self.alpha)
        return (torch.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha) - 0.5, -each.flatten(1).sum(1)
