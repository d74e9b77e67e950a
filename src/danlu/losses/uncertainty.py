r"""Uncertainty weighting: every task learns its own noise, and with it its weight.

    L = sum_i [ f_i exp(-s_i) L_i + s_i / 2 ],   s_i = log sigma_i^2                                    (1)
    least over s at   s_i = log(2 f_i L_i),      where its gradient is   1/2 sum_i grad log L_i         (2)

f = 1/2 for squared errors (a Gaussian's likelihood), f = 1 for cross-entropies (the paper's approximation). By (2) it
is the geometric mean with a delay: where the s_i have caught up, tasks weigh 1 / (2 L_i) whatever f is. They catch up
at the optimiser's pace: a loss in other units begins with a weight that is wrong by its unit. Without a lower bound s_i
falls for ever as L_i goes to 0; here s_i is moved as if L_i were at least `floor`, so it ends at log(2 f_i floor) and
can return, which a clamped s_i could not. Keep s_i out of weight decay.

Source: Kendall, Gal and Cipolla, 2018, arXiv:1705.07115; set beside the geometric mean of kexue.fm/archives/8870.
Shapes: K tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from danlu.losses.task_weights import loss_vector

__all__ = ["UncertaintyLoss", "uncertainty_loss"]


def uncertainty_loss(
    losses: Tensor | Sequence[Tensor],
    log_variance: Tensor,
    factor: float | Sequence[float] | Tensor = 1.0,
    floor: float = 1e-8,
    mask: Tensor | None = None,
) -> Tensor:
    """Losses weighted by learned uncertainties, eq. (1).

    Args:
        losses: (K,), or K scalars; >= 0.
        log_variance: (K,) s, a parameter that trains along; zeros to begin with.
        factor: f, for all tasks or (K,); 1/2 for squared errors, 1 for cross-entropies.
        floor: the least loss that s_i follows, > 0.
        mask: (K,) bool, True = keep; a dropped task moves neither the model nor its s_i.

    Returns:
        Scalar, float32 or better; may be negative.

    Raises:
        ValueError: shapes that do not fit, a negative loss, factor or floor not above 0.

    >>> uncertainty_loss(torch.tensor([3.0, 5.0]), torch.zeros(2), factor=[0.5, 1.0])
    tensor(6.5000)
    """
    vector, keep = loss_vector(losses, mask, "uncertainty_loss")
    f = torch.as_tensor(factor, dtype=vector.dtype, device=vector.device)
    if log_variance.shape != vector.shape or f.shape not in ((), vector.shape):
        raise ValueError(
            f"uncertainty_loss needs one log variance, and one factor or one for all, for each of the {len(vector)} "
            f"losses; got {tuple(log_variance.shape)} and {tuple(f.shape)}"
        )
    if not floor > 0 or (not torch.compiler.is_compiling() and not bool((f > 0).all())):
        raise ValueError(f"factor and floor must be above 0, got {f.tolist()} and {floor}")
    s = log_variance.to(vector.dtype)
    missing = (floor - vector.detach()).clamp_min(0)  # moves s, not the model
    terms = f * torch.exp(-s) * (vector + missing) + s / 2  # eq. (1)
    return terms.where(keep, 0.0).sum()


class UncertaintyLoss(nn.Module):
    """`uncertainty_loss` with its parameter: give `log_variance` to the optimiser, without weight decay."""

    def __init__(self, num_tasks: int, factor: float | Sequence[float] | Tensor = 1.0, floor: float = 1e-8) -> None:
        super().__init__()
        if num_tasks < 1:
            raise ValueError(f"UncertaintyLoss needs num_tasks >= 1, got {num_tasks}")
        self.factor, self.floor = factor, floor
        self.log_variance = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, losses: Tensor | Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        return uncertainty_loss(losses, self.log_variance, self.factor, self.floor, mask)
