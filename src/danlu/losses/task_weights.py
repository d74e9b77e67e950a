r"""Losses of several tasks as one, so that their units do not decide which task is learned.

    weighted by a reference:  L = sum_i L_i / r_i                                                       (1)
    r_i = the first batch's L_i (initial), the loss of the best constant answer (prior), or L_i itself, detached (real
    time): then L is the number of tasks and its gradient that of sum_i log L_i, so one may as well minimise
    geometric mean:           log G = 1/n sum_i log L_i                                                 (2)
    power mean:               M_g = (1/n sum_i L_i^g)^(1/g),   weights proportional to L_i^(g - 1)      (3)

g = 1 is the plain mean, g -> 0 the geometric mean G, g -> inf the largest, g -> -inf the smallest. (1) with any of the
three references and (2) ignore the unit of every loss (L_i -> c_i L_i); (3) only a unit common to all, unless g = 0.
None ignores a shift L_i -> L_i + b: no weight made from values can, those made from gradients do
(danlu.train.multitask_backward). What to know of (2) and real time: the weight 1 / L_i keeps gradients large as a loss
goes to 0, so let the learning rate fall; and the log of a mean is no mean of logs, so micro-batches and processes that
each take their own logs do not add up to the whole batch, while (1) with given references does.

Source: kexue.fm/archives/8870 (2022); Chennupati et al., 2019, arXiv:1904.08492, for (2).
Shapes: K tasks.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from danlu.math.precision import wide

__all__ = ["LossRatio", "geometric_mean_loss", "loss_ratio", "power_mean_loss"]


def loss_ratio(
    losses: Tensor | Sequence[Tensor], reference: Tensor | Sequence[float] | None = None, mask: Tensor | None = None
) -> Tensor:
    """Sum of the losses, each in units of its reference, eq. (1).

    Args:
        losses: (K,), or K scalars; >= 0.
        reference: (K,) > 0, constants; None takes the losses themselves (real time).
        mask: (K,) bool, True = keep; drops tasks that this batch does not hold, whatever stands there.

    Returns:
        Scalar, float32 or better; without reference its value is the number of tasks kept whose loss is not 0.

    Raises:
        ValueError: no vector of losses, a negative loss, a reference that is not (K,) and > 0, a wrong mask.

    >>> loss_ratio(torch.tensor([2.0, 30.0]), [4.0, 10.0])
    tensor(3.5000)
    """
    losses, keep = loss_vector(losses, mask, "loss_ratio")
    if reference is None:
        scale = losses.detach().clamp_min(torch.finfo(losses.dtype).tiny)
        scale = scale.where(losses.detach() != 0, math.inf)  # a loss of 0 gets the weight 0
    else:
        scale = torch.as_tensor(reference, dtype=losses.dtype, device=losses.device).detach()
        if scale.shape != losses.shape or (not torch.compiler.is_compiling() and not bool((scale[keep] > 0).all())):
            raise ValueError(
                f"loss_ratio needs a reference > 0 for each of the {len(losses)} losses, got {scale.tolist()}; for a "
                "task whose first loss is 0 give the loss of the best constant answer (class_prior_loss)"
            )
    return (losses / scale.where(keep, 1.0)).where(keep, 0.0).sum()  # eq. (1)


def geometric_mean_loss(losses: Tensor | Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Logarithm of the geometric mean of the losses, eq. (2).

    Args:
        losses: (K,), or K scalars; >= 0. A loss of exactly 0 has weight 0 and enters as the smallest float.
        mask: (K,) bool, True = keep; the mean is over the tasks kept.

    Returns:
        Scalar, float32 or better; its gradient is sum_i (gradient of L_i) / (n L_i).

    Raises:
        ValueError: no vector of losses, a negative loss (a density's log-likelihood: add a bound first), a wrong mask.

    >>> geometric_mean_loss(torch.tensor([2.0, 8.0]))  # log 4
    tensor(1.3863)
    """
    losses, keep = loss_vector(losses, mask, "geometric_mean_loss")
    return log_of(losses, keep).sum() / keep.sum().clamp_min(1)  # eq. (2)


def power_mean_loss(losses: Tensor | Sequence[Tensor], gamma: float = 0.0, mask: Tensor | None = None) -> Tensor:
    """Power mean of the losses, eq. (3).

    Args:
        losses: (K,), or K scalars; >= 0.
        gamma: any number, or +-inf: 1 plain mean, 0 geometric mean, below 0 for the tasks that are nearly done, above 1
            for those that are far off.
        mask: (K,) bool, True = keep; the mean is over the tasks kept.

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: no vector of losses, a negative loss, gamma is nan, a wrong mask.

    >>> losses = torch.tensor([2.0, 8.0])
    >>> [power_mean_loss(losses, g).item() for g in (-math.inf, 0.0, 1.0, math.inf)]
    [2.0, 4.0, 5.0, 8.0]
    """
    losses, keep = loss_vector(losses, mask, "power_mean_loss")
    if math.isnan(gamma):
        raise ValueError("gamma must be a number, inf or -inf, got nan; 0 is the geometric mean")
    if math.isinf(gamma):
        ends = losses.masked_fill(~keep, -gamma)
        return (ends.amax() if gamma > 0 else ends.amin()).where(keep.any(), 0.0)
    count = keep.sum().clamp_min(1)
    logs = log_of(losses, keep)
    if gamma == 0:
        return (logs.sum() / count).exp().where(keep.any(), 0.0)
    steps = (gamma * logs).masked_fill(~keep, -math.inf)
    pivot = steps.detach().argmax()
    # log1p and expm1, because for a small gamma the mean is 1 but for the digits that count
    excess = torch.expm1(steps - steps[pivot]).masked_fill(~keep, 0.0).sum() / count
    return (logs[pivot] + torch.log1p(excess) / gamma).exp().where(keep.any(), 0.0)  # eq. (3)


class LossRatio(nn.Module):
    """`loss_ratio` whose reference is measured: the first losses seen, or a running mean of them.

    momentum=None keeps the first (initial); 0 <= momentum < 1 follows: r <- momentum r + (1 - momentum) L, from the
    first batch on; 0 is real time. `reference` is a buffer, nan until a task was seen, saved with the model. Only
    training mode measures. `reduce` (such as an all-reduce to the mean) makes several processes agree on it.
    """

    reference: Tensor

    def __init__(
        self, num_tasks: int, momentum: float | None = None, reduce: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        if num_tasks < 1 or not (momentum is None or 0 <= momentum < 1):
            raise ValueError(
                f"LossRatio needs num_tasks >= 1 and momentum None (the first batch) or in [0, 1), got {num_tasks} "
                f"and {momentum}"
            )
        self.momentum, self.reduce = momentum, reduce
        self.register_buffer("reference", torch.full((num_tasks,), math.nan))

    def forward(self, losses: Tensor | Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        losses, keep = loss_vector(losses, mask, "LossRatio")
        if losses.shape != self.reference.shape:
            raise ValueError(f"LossRatio was made for {len(self.reference)} losses, got {len(losses)}")
        if self.training:
            self.measure(losses.detach(), keep)
        known = self.reference.where(~self.reference.isnan(), 1.0)  # a task never seen, or 0 so far
        return loss_ratio(losses, known, keep)

    @torch.no_grad()
    def measure(self, losses: Tensor, keep: Tensor) -> None:
        both = torch.stack([losses.where(keep, 0.0), keep.to(losses.dtype)])  # (2, K) sums and counts
        total, count = both if self.reduce is None else self.reduce(both)
        seen = (total / count).to(self.reference.dtype)  # nan where no process has the task
        if self.momentum is not None:
            followed = self.momentum * self.reference + (1 - self.momentum) * seen
            self.reference.copy_(followed.where(followed.isfinite() & (followed > 0), self.reference))
        new = self.reference.isnan() & seen.isfinite() & (seen > 0)
        self.reference.copy_(seen.where(new, self.reference))


def log_of(losses: Tensor, keep: Tensor) -> Tensor:
    return losses.where(keep, 1.0).clamp_min(torch.finfo(losses.dtype).tiny).log()


def loss_vector(losses: Tensor | Sequence[Tensor], mask: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
    """The losses as one vector, 1 where the mask drops them, and the mask."""
    vector = losses if isinstance(losses, Tensor) else torch.stack(list(losses)) if len(losses) else torch.zeros(0)
    if vector.ndim != 1 or not len(vector):
        raise ValueError(f"{name} needs one loss a task, (K,) or a list of scalars; got {tuple(vector.shape)}")
    vector = wide(vector)
    keep = torch.ones_like(vector, dtype=torch.bool) if mask is None else mask
    if keep.shape != vector.shape or keep.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool with one entry for each of the {len(vector)} losses (True = keep), got {keep.dtype} "
            f"{tuple(keep.shape)}"
        )
    vector = vector.where(keep, 1.0)
    if not torch.compiler.is_compiling() and bool((vector < 0).any()):
        raise ValueError(
            f"{name} has no meaning for a negative loss, got {vector.detach().tolist()}; add a constant that keeps the "
            "loss above 0, or weight by gradients (multitask_backward), which no constant moves"
        )
    return vector, keep
