r"""Gradients through discrete choices: Gumbel-max, Gumbel-softmax, straight-through, relaxed yes/no decisions.

    argmax_i (z_i + G_i) ~ softmax(z),    G = -ln E,  E ~ Exp(1)                            (1)
    y = softmax((z + G) / tau)                                                              (2)
    hard + (y - stop(y)),    hard = onehot(argmax y)                                        (3)
    b = sigma((z + L) / tau),    L = G - G' ~ Logistic                                      (4)
    G_i + z_i = ln S - ln E_i,   G_j + z_j = -ln(E_j / e^(z_j) + E_i / S),   S = sum e^z    (5)

z are logits, tau the temperature. (1) is exact; (2) becomes (1) as tau -> 0. Small tau: little bias, large variance;
large tau: the reverse (`danlu.probe.estimator_report` measures both). (3) keeps the forward exactly one-hot, since
y - stop(y) is 0 to the bit; its gradient is that of (2) at the hard draw, biased too. (5) draws the noise anew given
that i won: mean gradients over K such draws have the same mean as (3) and less variance (Rao-Blackwell).

The relaxed y of (2) does not have the categorical distribution: a KL term of the categorical on y is another bound (the
density of y is that of torch.distributions.RelaxedOneHotCategorical).

Source: kexue.fm/archives/6705 (2019); Jang, Gu and Poole, 2016, arXiv:1611.01144; Maddison, Mnih and Teh, 2016,
arXiv:1611.00712; Bengio et al., 2013, arXiv:1308.3432 (straight-through); Paulus et al., 2020, arXiv:2010.04838 (5).
Shapes: ... any, C categories along `dim`.
"""

import torch
from torch import Tensor

from danlu.math.precision import wide

__all__ = [
    "gumbel_max",
    "gumbel_softmax",
    "relaxed_bernoulli",
    "straight_through_bernoulli",
    "straight_through_onehot",
]


def gumbel_max(
    logits: Tensor,
    num_samples: int | None = None,
    mask: Tensor | None = None,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Exact draws from softmax(logits), eq. (1).

    Args:
        logits: any shape, any float dtype, C categories along dim; not probabilities.
        num_samples: None draws one without a dimension for it; S puts S independent draws in front.
        mask: bool, broadcastable to logits, True = may be drawn.
        dim: the dimension of the categories.
        generator: source of the noise, on the device of logits.

    Returns:
        int64, the shape of logits without dim, behind (S,) if num_samples is given; -1 where the mask leaves nothing.

    Raises:
        ValueError: logits without dimensions, a mask that does not fit, num_samples < 1.

    >>> gumbel_max(torch.tensor([0.0, 5.0, 0.0]), mask=torch.tensor([True, False, False]))
    tensor(0)
    """
    z, keep = prepare(logits, mask, dim)
    if num_samples is not None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be >= 1 or None, got {num_samples}")
        dim = dim if dim < 0 else dim + 1
        z = z.expand(num_samples, *z.shape)
        keep = None if keep is None else keep.expand(z.shape)
    drawn = (z.detach() + gumbel_like(z, generator)).argmax(dim=dim)  # eq. (1)
    return drawn if keep is None else torch.where(keep.any(dim=dim), drawn, -1)


def gumbel_softmax(
    logits: Tensor,
    temperature: float = 1.0,
    hard: bool = False,
    mask: Tensor | None = None,
    dim: int = -1,
    conditional_samples: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A relaxed draw from softmax(logits) that gradients pass through, eq. (2), or a hard one, eq. (3).

    Args:
        logits: any shape, any float dtype, C categories along dim; not probabilities.
        temperature: tau > 0.
        hard: one-hot forward, gradient of the relaxed draw.
        mask: bool, broadcastable to logits, True = may be drawn.
        dim: the dimension of the categories.
        conditional_samples: K > 0 averages the gradient over K draws of eq. (5); with hard=True alone.
        generator: source of the noise, on the device of logits.

    Returns:
        Shape and dtype of logits, sums 1 along dim (0 where the mask leaves nothing); computed in float32 or better.

    Raises:
        ValueError: temperature not > 0, conditional_samples without hard, a mask that does not fit.

    >>> y = gumbel_softmax(torch.tensor([0.0, 1.0, 2.0]), temperature=0.5, hard=True)
    >>> y.sum(), sorted(y.tolist())
    (tensor(1.), [0.0, 0.0, 1.0])
    """
    check_temperature(temperature)
    if conditional_samples < 0 or (conditional_samples and not hard):
        raise ValueError(
            "conditional_samples must be >= 0 and needs hard=True (it serves the hard draw's gradient); "
            f"got {conditional_samples} with hard={hard}"
        )
    z, keep = prepare(logits, mask, dim)
    scores = z + gumbel_like(z, generator)  # eq. (1)
    if not conditional_samples:
        y = masked_softmax(scores / temperature, keep, dim)  # eq. (2)
        return (onehot_of(scores, keep, dim, y) if hard else y).to(logits.dtype)
    hard_draw = onehot_of(scores, keep, dim, None)
    draws = [conditional_scores(z, hard_draw, dim, generator) for _ in range(conditional_samples)]
    y = torch.stack([masked_softmax(s / temperature, keep, dim) for s in draws]).mean(dim=0)
    return (hard_draw + (y - y.detach())).to(logits.dtype)  # eq. (3)


def straight_through_onehot(
    logits: Tensor, temperature: float = 1.0, mask: Tensor | None = None, dim: int = -1
) -> Tensor:
    """One-hot of the greatest logit, with the gradient of softmax(logits / temperature); eq. (3) without noise.

    Args:
        logits: any shape, any float dtype, C categories along dim.
        temperature: tau > 0.
        mask: bool, broadcastable to logits, True = may be chosen.
        dim: the dimension of the categories.

    Returns:
        Shape and dtype of logits, exactly 0 and 1.

    Raises:
        ValueError: temperature not > 0, a mask that does not fit.

    >>> straight_through_onehot(torch.tensor([0.5, 2.0, 1.0]))
    tensor([0., 1., 0.])
    """
    check_temperature(temperature)
    z, keep = prepare(logits, mask, dim)
    return onehot_of(z, keep, dim, masked_softmax(z / temperature, keep, dim)).to(logits.dtype)


def relaxed_bernoulli(
    logits: Tensor, temperature: float = 1.0, hard: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """Relaxed yes/no draws with probability sigma(logits), eq. (4); the Gumbel-softmax of two categories.

    Args:
        logits: any shape, any float dtype.
        temperature: tau > 0.
        hard: exactly 0 or 1 forward, with P(1) = sigma(logits), gradient of the relaxed draw.
        generator: source of the noise, on the device of logits.

    Returns:
        Shape and dtype of logits, in [0, 1].

    Raises:
        ValueError: temperature not > 0.

    >>> relaxed_bernoulli(torch.tensor([-100.0, 100.0]), hard=True)
    tensor([0., 1.])
    """
    check_temperature(temperature)
    z = wide(logits)
    score = z + gumbel_like(z, generator) - gumbel_like(z, generator)
    y = torch.sigmoid(score / temperature)  # eq. (4)
    if hard:
        y = (score > 0).to(y.dtype) + (y - y.detach())  # eq. (3)
    return y.to(logits.dtype)


def straight_through_bernoulli(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Yes/no draws with probability sigma(logits), with the gradient of the probability itself.

    Args:
        logits: any shape, any float dtype.
        generator: source of the draws, on the device of logits.

    Returns:
        Shape and dtype of logits, exactly 0 and 1. For losses linear in the draws the gradient is unbiased.

    >>> straight_through_bernoulli(torch.tensor([-100.0, 100.0]))
    tensor([0., 1.])
    """
    p = torch.sigmoid(wide(logits))
    drawn = torch.rand(p.shape, generator=generator, device=p.device, dtype=p.dtype) < p.detach()
    return (drawn.to(p.dtype) + (p - p.detach())).to(logits.dtype)


def gumbel_like(z: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gumbel noise -ln E, finite also where E came out as 0."""
    return -exponential_like(z, generator).log()


def exponential_like(z: Tensor, generator: torch.Generator | None) -> Tensor:
    e = torch.empty(z.shape, dtype=z.dtype, device=z.device).exponential_(generator=generator)
    return e.clamp_min(torch.finfo(z.dtype).tiny)


def conditional_scores(z: Tensor, hard: Tensor, dim: int, generator: torch.Generator | None) -> Tensor:
    """z + G given that the category of `hard` won, eq. (5); gradients see the noise as fixed."""
    e = exponential_like(z, generator)
    fixed = z.detach()
    log_sum = fixed.logsumexp(dim=dim, keepdim=True)  # ln S
    won = (hard * e).sum(dim=dim, keepdim=True)  # E_i; 0 where the mask leaves nothing
    top = log_sum - won.clamp_min(torch.finfo(z.dtype).tiny).log()
    rest = -torch.logaddexp(e.log() - fixed, -top)
    noise = torch.where(fixed == -torch.inf, 0.0, torch.where(hard > 0, top, rest) - fixed)  # eq. (5)
    return z + noise


def onehot_of(scores: Tensor, keep: Tensor | None, dim: int, soft: Tensor | None) -> Tensor:
    """One-hot of the greatest score; with `soft` its gradient comes along, eq. (3)."""
    index = scores.detach().argmax(dim=dim, keepdim=True)
    hard = torch.zeros_like(scores.detach()).scatter(dim, index, 1.0)
    if keep is not None:
        hard = torch.where(keep, hard, 0.0)
    return hard if soft is None else hard + (soft - soft.detach())  # eq. (3), exact: the bracket is 0


def masked_softmax(scores: Tensor, keep: Tensor | None, dim: int) -> Tensor:
    """Softmax over what the mask keeps; 0 everywhere where it keeps nothing."""
    if keep is None:
        return scores.softmax(dim=dim)
    finite = torch.where(keep, scores, torch.finfo(scores.dtype).min)
    return torch.where(keep, finite.softmax(dim=dim), 0.0)


def prepare(logits: Tensor, mask: Tensor | None, dim: int) -> tuple[Tensor, Tensor | None]:
    """Logits in float32 or better, -inf where the mask drops a category, and the mask in their shape."""
    if not logits.is_floating_point() or not -logits.ndim <= dim < logits.ndim:
        raise ValueError(
            f"a choice needs float logits with the categories along dim={dim}, got {logits.dtype} {tuple(logits.shape)}"
        )
    z = wide(logits)
    if mask is None:
        return z, None
    sizes = zip(reversed(mask.shape), reversed(logits.shape), strict=False)
    if mask.dtype != torch.bool or mask.ndim > logits.ndim or any(m not in (1, n) for m, n in sizes):
        raise ValueError(
            f"mask must be bool and broadcast to the logits {tuple(logits.shape)} (True = may be chosen); got "
            f"{mask.dtype} {tuple(mask.shape)}"
        )
    keep = mask.expand(logits.shape)
    return torch.where(keep, z, -torch.inf), keep


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(
            f"temperature must be > 0, got {temperature}; for exact draws use gumbel_max, for one-hot ones hard=True"
        )
