r"""What the best constant answer loses: a unit for each task's loss that is known before training.

    K classes:   H = -sum_k p_k log p_k,        p_k the share of class k                                (1)
    regression:  V = mean over examples and dimensions of (y - mean y)^2                                (2)

(1) is the cross-entropy of a model that always answers the class shares, (2) the mean squared error of one that always
answers the mean. A loss divided by it says which share of the task is still open: 1 is "nothing learned from the
input". Give them to `loss_ratio` as reference: unlike the loss of the first batch they do not depend on how the model
was initialised.

Source: kexue.fm/archives/8870 (2022).
Shapes: N examples, D dimensions of the target.
"""

import torch
from torch import Tensor

from danlu.math.precision import wide_dtype

__all__ = ["class_prior_loss", "regression_prior_loss"]


def class_prior_loss(target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Entropy of the shares of the classes in nats, eq. (1).

    Args:
        target: labels, any shape, integers >= 0 or bool.
        mask: bool, the shape of target, True = keep; drops padding and unlabelled places.

    Returns:
        Scalar float32; 0 where one class is all there is.

    Raises:
        ValueError: no label is left, labels that are no integers >= 0, a mask that does not fit.

    >>> class_prior_loss(torch.tensor([0, 1, 1, 0]))  # log 2
    tensor(0.6931)
    """
    if target.is_floating_point() or (mask is not None and (mask.shape != target.shape or mask.dtype != torch.bool)):
        raise ValueError(
            f"class_prior_loss needs integer labels and a bool mask of their shape; got {target.dtype} "
            f"{tuple(target.shape)} and {None if mask is None else (mask.dtype, tuple(mask.shape))}"
        )
    labels = (target if mask is None else target[mask]).reshape(-1).long()
    if not len(labels) or bool((labels < 0).any()):
        raise ValueError(
            "class_prior_loss needs at least one label and none below 0; drop ignored ones: mask=target >= 0"
        )
    shares = torch.bincount(labels).double() / len(labels)
    return torch.special.entr(shares).sum().float()  # eq. (1)


def regression_prior_loss(target: Tensor) -> Tensor:
    """Mean squared distance of the targets from their mean, eq. (2): the F.mse_loss of the best constant.

    Args:
        target: (N,) or (N, ...), any float dtype. For a loss that sums over D dimensions take D times the result.

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: no example, or targets that are no floats.

    >>> regression_prior_loss(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    tensor(0.5000)
    """
    if not target.is_floating_point() or not target.ndim or not target.numel():
        raise ValueError(
            f"regression_prior_loss needs float targets (N, ...), got {target.dtype} {tuple(target.shape)}"
        )
    wide = target.detach().to(wide_dtype(target))
    return (wide - wide.mean(0)).square().mean()  # eq. (2)
