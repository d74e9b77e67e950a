"""What an encoder said, as codes: a tensor as it is, or a draw of the Gaussian whose mean and deviation it gave.

Source: own definition.
Shapes: N codes (N, K).
"""

import torch
from torch import Tensor

from danlu.generative.latent import draw_normal

__all__ = ["draw_code"]


def draw_code(encoded: Tensor | tuple[Tensor, Tensor], generator: torch.Generator | None = None) -> Tensor:
    """Codes with the encoder's graph.

    Args:
        encoded: codes (N, K), or (mean, std) of them, each (N, K).
        generator: source of the draw.

    Returns:
        (N, K).

    Raises:
        ValueError: something else than one tensor or two of one shape.

    >>> draw_code((torch.ones(1, 2), torch.zeros(1, 2)))
    tensor([[1., 1.]])
    """
    if isinstance(encoded, Tensor):
        return encoded
    if len(encoded) != 2:
        raise ValueError(f"an encoder gives codes or (mean, std), got {len(encoded)} things")
    return draw_normal(encoded[0], encoded[1], generator=generator)[0]
