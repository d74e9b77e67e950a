r"""Historical averaging: a player of a GAN is drawn to the average of what it has been.

    R = weight * sum_i |theta_i - m_i|^2                                                                  (1)
    m_n = m_{n-1} + (theta_n - m_{n-1}) / n           all steps count alike                               (2)
    m_n = m_{n-1} + (1 - a) (theta_n - m_{n-1})       the past fades, a the decay                         (3)

theta are the weights, m their average, which is held constant in (1). Two players who only answer each other's last
move turn in circles; circles around the solution have the solution for their average, so (1) pulls inwards. With
d theta/dt = v - 2 weight (theta - m) and dm/dt = c (theta - m), v the field of the plain game, whose eigenvalue is i w,
the eigenvalues solve

    (x + 2 weight) (x + c) - 2 weight c = i w (x + c)                                                     (4)

and have negative real parts for every weight, c, w > 0. That holds near the solution; elsewhere the past may hold a
player back that should move on, and (2) more and more so as n grows.

Source: Salimans et al., 2016, arXiv:1606.03498 (2); (3) and (4) are ours.
Shapes: those of the weights.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from danlu.math.precision import wide, wide_dtype

__all__ = ["WeightHistory", "history_penalty"]


def history_penalty(weights: Iterable[Tensor], averages: Iterable[Tensor], weight: float = 1.0) -> Tensor:
    """The weighted squared distance of weights from their averages, eq. (1).

    Args:
        weights: tensors of any shapes, with their graph.
        averages: as many tensors of the same shapes; constants.
        weight: >= 0.

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: none, unlike numbers or shapes, or a weight below 0.

    >>> history_penalty([torch.tensor([3.0, 1.0])], [torch.tensor([1.0, 1.0])], 0.5)  # half of 2^2
    tensor(2.)
    """
    ours, theirs = list(weights), list(averages)
    if not ours or [w.shape for w in ours] != [m.shape for m in theirs]:
        raise ValueError(
            f"history_penalty needs an average for every weight; got weights {[tuple(w.shape) for w in ours]} and "
            f"averages {[tuple(m.shape) for m in theirs]}"
        )
    if not weight >= 0:
        raise ValueError(f"weight of the history must be >= 0, got {weight}")
    parts = [(wide(w) - m.detach()).square().sum() for w, m in zip(ours, theirs, strict=True)]
    return weight * torch.stack(parts).sum()  # eq. (1)


class WeightHistory(nn.Module):
    """Averages of a module's weights: add `history.penalty()` to the loss, call `history.update()` after the step.

    Args:
        module: whose trainable weights are followed; not a part of this module's state.
        weight: of the penalty, >= 0.
        decay: a of eq. (3) in [0, 1); None for the plain mean (2).
    """

    count: Tensor

    def __init__(self, module: nn.Module, weight: float = 1.0, decay: float | None = None) -> None:
        super().__init__()
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}; None weighs all steps alike")
        weights = [p for p in module.parameters() if p.requires_grad]
        if not weights:
            raise ValueError("WeightHistory needs a module with weights that are trained, got none")
        if not weight >= 0:
            raise ValueError(f"weight of the history must be >= 0, got {weight}")
        self.weight, self.decay = weight, decay
        self._followed = (tuple(weights),)  # in a tuple, so that they are not registered here
        self.register_buffer("count", torch.ones((), dtype=torch.long))
        for i, w in enumerate(weights):
            self.register_buffer(f"average_{i}", w.detach().to(wide_dtype(w), copy=True))

    def averages(self) -> list[Tensor]:
        """m, in the order of the module's weights."""
        return [self.get_buffer(f"average_{i}") for i in range(len(self._followed[0]))]

    def penalty(self) -> Tensor:
        return history_penalty(self._followed[0], self.averages(), self.weight)

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of now into the averages, eq. (2) or (3)."""
        self.count += 1
        share = 1 / float(self.count) if self.decay is None else 1 - self.decay
        for m, w in zip(self.averages(), self._followed[0], strict=True):
            m += share * (w.to(m.dtype) - m)

    def forward(self) -> Tensor:
        return self.penalty()
