r"""Focal loss: binary cross-entropy in which what is settled already weighs little.

    L = - a y (1 - q)^g log q - (1 - a) (1 - y) q^g log(1 - q)                                                   (1)

q is the probability, y the label, a (alpha) the weight of the positive ones, g (gamma) how fast a settled item loses
its weight; g = 0 and a = 1/2 is half the binary cross-entropy. The function takes log q and log(1 - q): for a logit z
these are logsigmoid(z) and logsigmoid(-z), and a probability that is a product keeps its small values, where the
post's program clips q to [1e-8, 1 - 1e-8].

Source: Lin et al., 2017, arXiv:1708.02002; for spans of answers kexue.fm/archives/5409 and 6906 (a = 1/4, g = 2).
Shapes: ... any shape of items.
"""

import torch
from torch import Tensor

from danlu.math.reduce import reduce_loss

__all__ = ["focal_loss"]


def focal_loss(
    log_prob: Tensor,
    log_complement: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
) -> Tensor:
    """Focal loss of yes-or-no items, eq. (1).

    Args:
        log_prob: (...) log q, at most 0, any float dtype; what stands at masked items has no influence.
        log_complement: (...) log(1 - q), at most 0.
        target: (...) labels, 0 or 1, or bool.
        mask: (...) bool, True = keep; None keeps all.
        alpha: weight of the positive items, in [0, 1]; negative ones get 1 - alpha.
        gamma: at least 0; 0 weighs all items alike.
        reduction: "mean", "sum" or "none".

    Returns:
        Scalar, or (...) for "none"; >= 0.

    Raises:
        ValueError: shapes differ, or alpha or gamma is out of its range.

    >>> half = torch.tensor([0.5]).log()
    >>> focal_loss(half, half, torch.tensor([1]))  # 1/4 of 1/4 of log 2
    tensor(0.0433)
    """
    if log_prob.shape != log_complement.shape or log_prob.shape != target.shape:
        raise ValueError(
            f"focal_loss needs log q, log(1 - q) and labels of one shape; got {tuple(log_prob.shape)}, "
            f"{tuple(log_complement.shape)} and {tuple(target.shape)}. For logits z give F.logsigmoid(z) and "
            "F.logsigmoid(-z)"
        )
    if not 0 <= alpha <= 1 or gamma < 0:
        raise ValueError(f"alpha must lie in [0, 1] and gamma be at least 0, got {alpha} and {gamma}")
    lowest = torch.finfo(log_prob.dtype).min  # 0 * -inf is nan
    log_prob, log_complement = log_prob.clamp_min(lowest), log_complement.clamp_min(lowest)
    y = target.to(log_prob.dtype)
    positive = alpha * y * (gamma * log_complement).exp() * log_prob
    negative = (1 - alpha) * (1 - y) * (gamma * log_prob).exp() * log_complement
    return reduce_loss(-(positive + negative), reduction, mask)  # eq. (1)
