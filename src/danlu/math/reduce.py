r"""The last line of every loss: one number, a sum, or nothing reduced.

    mean = sum_i m_i l_i / max(1, sum_i m_i)                                         (1)

l_i are the losses of the items and m_i is 1 where an item counts. With nothing to count the mean is 0, not nan: a
batch that is all padding then trains nothing instead of ruining the weights.

Source: the convention of torch.nn.functional's losses, with the empty mean defined.
Shapes: any; the mask has the loss's shape.
"""

import torch
from torch import Tensor

__all__ = ["reduce_loss"]


def reduce_loss(loss: Tensor, reduction: str = "mean", mask: Tensor | None = None) -> Tensor:
    """The losses of many items as "mean", "sum" or "none", counting only the items that the mask keeps.

    Args:
        loss: losses of the items, any shape.
        reduction: "mean" (eq. 1), "sum" or "none"; "none" puts 0 where the mask drops an item.
        mask: bool, the shape of loss, True = keep; None keeps all.

    Returns:
        Scalar, or the shape of loss for "none"; dtype of loss.

    Raises:
        ValueError: an unknown reduction, or a mask of another shape or dtype.

    >>> reduce_loss(torch.tensor([1.0, 2.0, 6.0]), mask=torch.tensor([True, True, False]))
    tensor(1.5000)
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    count = loss.numel()
    if mask is not None:
        if mask.shape != loss.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be bool with the shape of the loss {tuple(loss.shape)} (True = keep); got "
                f"{mask.dtype} {tuple(mask.shape)}; write mask.bool() or expand it"
            )
        loss = loss.masked_fill(~mask, 0.0)
        if reduction == "mean":
            return loss.sum() / mask.sum().clamp_min(1)  # eq. (1)
    if reduction == "none":
        return loss
    return loss.sum() / max(count, 1) if reduction == "mean" else loss.sum()
