r"""Pixels as stored, 0 to L - 1, and as networks with a tanh at the end make them, -1 to 1.

    x = 2 k / (L - 1) - 1,    k = round((L - 1)(x + 1) / 2), held to 0 .. L - 1                            (1)

Source: own definition (the range of Radford et al., 2015, arXiv:1511.06434).
Shapes: any.
"""

import torch
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["to_levels", "to_signed"]


def to_signed(pixels: Tensor, levels: int = 256) -> Tensor:
    """Pixels on the scale from -1 to 1, eq. (1).

    Args:
        pixels: whole numbers in any dtype, 0 to L - 1.
        levels: L, in [2, 256].

    Returns:
        float32 (float64 stays).

    Raises:
        ValueError: levels outside [2, 256], or pixels outside 0 .. L - 1.

    >>> to_signed(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    _check_levels(levels)
    x = wide(pixels)
    if x.numel() and not 0 <= x.amin() <= x.amax() <= levels - 1:
        raise ValueError(
            f"to_signed needs pixels from 0 to {levels - 1}, got {x.amin():g} to {x.amax():g}; give levels="
        )
    return x * (2 / (levels - 1)) - 1  # eq. (1)


def to_levels(x: Tensor, levels: int = 256) -> Tensor:
    """The nearest pixels to images in [-1, 1], eq. (1); what lies outside is held to the range.

    Args:
        x: float.
        levels: L, in [2, 256].

    Returns:
        uint8.

    Raises:
        ValueError: levels outside [2, 256], or NaN.

    >>> to_levels(torch.tensor([-1.0, 0.1, 7.0]), levels=17)
    tensor([ 0,  9, 16], dtype=torch.uint8)
    """
    _check_levels(levels)
    x = wide(x)
    if x.isnan().any():
        raise ValueError(f"to_levels got NaN in {int(x.isnan().sum())} of {x.numel()} values: no pixel is near to it")
    return ((x + 1) * ((levels - 1) / 2)).round().clamp(0, levels - 1).to(torch.uint8)  # eq. (1)


def _check_levels(levels: int) -> None:
    if not 2 <= levels <= 256:
        raise ValueError(f"levels must be from 2 to 256, as uint8 holds them, got {levels}")
