r"""Importance-weighted bounds of a log-likelihood: the bound, its error bars, its bias, and whether to trust it.

    L_M = log (1/M) sum_i w_i,    log w_i = log p(x, z_i) - log q(z_i | x),    z_i ~ q(z | x)                 (1)
    E L_1 <= E L_M <= E L_{M+1} <= log p(x),    log p(x) - E L_M = chi2 / (2 M) + O(M^-2)                     (2)
    ESS = (sum_i w_i)^2 / sum_i w_i^2,    chi2 / M ~ (M / ESS - 1) / (M - 1) = se^2                           (3)
    J = M L_M - (M - 1) mean_i L_{M-1} without sample i                                                       (4)
    dL_M/dphi = sum_i w~_i^2 (d log w_i / d z_i) (d z_i / dphi),    w~ = softmax(log w)                       (5)

p(x, z) = p(z) p(x | z) is prior and decoder; q(z | x) is the encoder and only a proposal: nothing asks that it be the
posterior, but chi2, of the posterior against it, is the price. se is the standard deviation of L_M by the delta method;
-se^2 / 2 is then its bias. Both are estimated from the very weights whose tail may not have been seen yet, so they are
worth what Pareto k allows (`danlu.math.pareto_k`). The jackknife (4) removes the bias of order 1/M and is no bound.
Over N data the mean of L_M has the Monte Carlo error sqrt(sum se^2) / N; average logarithms, never weights, over data.

(5) is the doubly reparameterised gradient of the encoder's parameters phi: the plain gradient of (1) holds a term
d log q / dphi at fixed z whose signal vanishes beside its noise as M grows; (5) has the same mean and no such term.

Source: Burda, Grosse and Salakhutdinov, 2015, arXiv:1509.00519 (1), (2); Nowozin, 2018, Debiasing evidence
    approximations (4); Tucker et al., 2018, arXiv:1810.04152 (5); kexue.fm/archives/8791.
Shapes: ... any, M samples along `dim`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from danlu.math.pareto_k import check_log_weights, pareto_k, pareto_k_limit
from danlu.math.precision import wide
from danlu.math.semiring import logsumexp

__all__ = [
    "BootstrapInterval",
    "ImportanceEstimate",
    "bootstrap_interval",
    "dreg_hook",
    "effective_sample_size",
    "importance_estimate",
    "jackknife_bound",
    "log_mean_exp",
]


class ImportanceEstimate(NamedTuple):
    """A log-likelihood by importance sampling and what is known about its error; every tensor without a graph.

    value: L_M, nats. standard_error: of L_M over fresh samples, eq. (3). bias: about E L_M - log p(x), never above 0.
    ess: in [1, M]. pareto_k: of the weights. num_samples: M.
    """

    value: Tensor
    standard_error: Tensor
    bias: Tensor
    ess: Tensor
    pareto_k: Tensor
    num_samples: int

    @property
    def trusted(self) -> Tensor:
        """Bool: whether Pareto k is below the limit for so many samples; False where it could not be told."""
        return self.pareto_k < pareto_k_limit(self.num_samples)


class BootstrapInterval(NamedTuple):
    """Spread of L_M over resampled weights: its standard deviation and the ends of the percentile interval, nats."""

    standard_error: Tensor
    low: Tensor
    high: Tensor


def log_mean_exp(log_weights: Tensor, dim: int = -1) -> Tensor:
    """L_M of eq. (1), the importance-weighted bound; its negative mean over data is the IWAE loss.

    Args:
        log_weights: any shape, M samples along dim; -inf is a weight of 0.
        dim: the dimension of the samples.

    Returns:
        The shape without dim, nats, float32 or better; -inf with gradient 0 where all weights are 0.

    Raises:
        ValueError: log_weights is not float, or dim is none of its dimensions or is empty.

    >>> log_mean_exp(torch.tensor([0.0, -torch.inf]))  # log(1/2)
    tensor(-0.6931)
    """
    check_log_weights("log_mean_exp", log_weights, dim)
    return logsumexp(wide(log_weights), dim) - math.log(log_weights.shape[dim])  # eq. (1)


def effective_sample_size(log_weights: Tensor, dim: int = -1) -> Tensor:
    """ESS of eq. (3): the number of equal weights that would average as well.

    Args:
        log_weights: any shape, M samples along dim; -inf is a weight of 0.
        dim: the dimension of the samples.

    Returns:
        The shape without dim, in [1, M]; 0 where all weights are 0.

    Raises:
        ValueError: log_weights is not float, or dim is none of its dimensions or is empty.

    >>> effective_sample_size(torch.tensor([0.0, 0.0, -torch.inf]))
    tensor(2.)
    """
    check_log_weights("effective_sample_size", log_weights, dim)
    x = wide(log_weights)
    most = x.detach().amax(dim, keepdim=True)
    x = x - torch.where(most == -torch.inf, 0.0, most)  # the scale of the weights costs no digits
    ess = (2 * logsumexp(x, dim) - logsumexp(2 * x, dim)).exp()  # eq. (3)
    return torch.where(most.squeeze(dim) == -torch.inf, 0.0, ess.clamp(1.0, log_weights.shape[dim]))


@torch.no_grad()
def importance_estimate(log_weights: Tensor, dim: int = -1) -> ImportanceEstimate:
    """The bound of eq. (1) with standard error, bias, effective sample size and Pareto k.

    Args:
        log_weights: any shape, M samples along dim; -inf is a weight of 0.
        dim: the dimension of the samples.

    Returns:
        An ImportanceEstimate of tensors with the shape without dim; error and bias are nan for M = 1.

    Raises:
        ValueError: log_weights is not float, or dim is none of its dimensions or is empty.

    >>> estimate = importance_estimate(torch.zeros(100))
    >>> estimate.value, estimate.standard_error, estimate.ess, estimate.trusted
    (tensor(0.), tensor(0.), tensor(100.), tensor(True))
    """
    value = log_mean_exp(log_weights, dim)
    ess = effective_sample_size(log_weights, dim)
    count = log_weights.shape[dim]
    variance = (count / ess - 1).clamp_min(0.0) / (count - 1) if count > 1 else torch.full_like(ess, torch.nan)  # (3)
    return ImportanceEstimate(value, variance.sqrt(), -variance / 2, ess, pareto_k(log_weights, dim), count)


def jackknife_bound(log_weights: Tensor, dim: int = -1) -> Tensor:
    """J of eq. (4): L_M without its bias of order 1/M, and no longer a bound.

    Args:
        log_weights: any shape, M >= 2 samples along dim; -inf is a weight of 0.
        dim: the dimension of the samples.

    Returns:
        The shape without dim, nats, float32 or better; inf where all weights but one are 0, -inf where all are.

    Raises:
        ValueError: log_weights is not float, or dim is none of its dimensions or holds fewer than two samples.

    >>> jackknife_bound(torch.tensor([3.0, 3.0, 3.0]))
    tensor(3.)
    """
    check_log_weights("jackknife_bound", log_weights, dim)
    x = wide(log_weights).movedim(dim, -1)  # (..., M)
    count = x.shape[-1]
    if count < 2:
        raise ValueError(f"jackknife_bound leaves samples out and needs at least 2 along dim={dim}, got {count}")
    total = logsumexp(x, -1)[..., None]
    nothing = total == -torch.inf
    largest = torch.nn.functional.one_hot(x.detach().argmax(-1), count).bool()
    others = logsumexp(x.masked_fill(largest, -torch.inf), -1)[..., None]  # without the largest: nothing cancels
    share = (x - total.masked_fill(nothing, 0.0)).exp()  # at most 1/2 off the largest
    left = torch.where(largest, others - total, torch.log1p(-share.masked_fill(largest, 0.0)))
    # left + log(M / (M - 1)) is L_{M-1} without i, less L_M; no large number is multiplied by M
    bound = log_mean_exp(x) - (count - 1) * (left.mean(-1) + math.log1p(1 / (count - 1)))  # eq. (4)
    return torch.where(nothing[..., 0], -torch.inf, bound)


@torch.no_grad()
def bootstrap_interval(
    log_weights: Tensor,
    dim: int = -1,
    level: float = 0.95,
    num_replicates: int = 1000,
    generator: torch.Generator | None = None,
) -> BootstrapInterval:
    """Standard error and percentile interval of L_M by drawing the weights again with replacement.

    Args:
        log_weights: any shape, M samples along dim; -inf is a weight of 0.
        dim: the dimension of the samples.
        level: of the interval, in (0, 1).
        num_replicates: draws of M weights, >= 2.
        generator: source of the draws, on the device of log_weights.

    Returns:
        A BootstrapInterval of tensors with the shape without dim, each item with draws of its own.

    Raises:
        ValueError: no samples along dim, a level outside (0, 1), fewer than two replicates.

    >>> bootstrap_interval(torch.zeros(5), num_replicates=3).high
    tensor(0.)
    """
    check_log_weights("bootstrap_interval", log_weights, dim)
    if not 0 < level < 1 or num_replicates < 2:
        raise ValueError(
            f"bootstrap_interval needs a level in (0, 1) and num_replicates >= 2, got {level} and {num_replicates}"
        )
    x = wide(log_weights).movedim(dim, -1)
    drawn = []
    for _ in range(num_replicates):
        index = torch.randint(x.shape[-1], x.shape, generator=generator, device=x.device)
        drawn.append(log_mean_exp(x.gather(-1, index)))
    ranked = torch.stack(drawn).sort(0).values  # (R, ...)
    below = round((1 - level) / 2 * (num_replicates - 1))
    return BootstrapInterval(ranked.std(0), ranked[below], ranked[num_replicates - 1 - below])


def dreg_hook(z: Tensor, log_weights: Tensor, dim: int = 0) -> RemovableHandle:
    """Make the backward pass of `log_mean_exp(log_weights, dim)` give the encoder the gradient of eq. (5).

    The decoder and the prior keep their usual gradient. Compute log q(z | x) in log_weights from detached parameters
    (mean.detach(), sigma.detach()), so that the encoder is reached through z alone; call this before backward.

    Args:
        z: (..., D) or more dimensions, the samples that carry the encoder's gradient; log_weights' shape comes first.
        log_weights: shape of z without its last dimensions, M samples along dim.
        dim: the dimension of the samples in log_weights.

    Returns:
        A handle whose remove() takes the change back.

    Raises:
        ValueError: z has no gradient, or its shape does not begin with that of log_weights.

    >>> z = torch.zeros(2, 1, requires_grad=True)
    >>> log_weights = z[:, 0]
    >>> handle = dreg_hook(z, log_weights)
    >>> torch.autograd.grad(log_mean_exp(log_weights, 0), z)[0][:, 0]  # 1/2 squared
    tensor([0.2500, 0.2500])
    """
    check_log_weights("dreg_hook", log_weights, dim)
    if not z.requires_grad or z.shape[: log_weights.ndim] != log_weights.shape:
        raise ValueError(
            "dreg_hook needs z with a gradient and a shape that begins with that of the log weights "
            f"{tuple(log_weights.shape)}; got {tuple(z.shape)}, requires_grad={z.requires_grad}"
        )
    share = wide(log_weights).detach().softmax(dim)  # w~
    share = share.reshape(*share.shape, *[1] * (z.ndim - share.ndim))
    return z.register_hook(lambda grad: grad * share.to(grad.dtype))  # a second factor w~  eq. (5)
