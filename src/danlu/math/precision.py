"""Numbers in float32 or better: what sums, exponentials and thresholds are computed in, whatever comes in.

Source: own definitions.
Shapes: any.
"""

import torch
from torch import Tensor

__all__ = ["wide", "wide_dtype"]


def wide(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is float32 or float64 already.

    Args:
        x: any dtype; whole numbers and bool become float32.

    Returns:
        The shape of x.

    >>> wide(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x.to(wide_dtype(x))


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of `wide(x)`.

    Args:
        x: any tensor.

    Returns:
        float64 for float64, else float32; complex numbers stay complex.

    >>> wide_dtype(torch.ones(1, dtype=torch.float64))
    torch.float64
    """
    return torch.promote_types(x.dtype, torch.float32)
