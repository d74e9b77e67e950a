r"""Bits per dimension: the log-likelihood of data of any size in the one unit in which models are compared.

    bits = -log_prob / (D log 2) + log2 u                                                                     (1)

D is the number of dimensions (pixels times channels). For probabilities of grey levels u = 1. A density depends on the
unit of the data: if u grey levels make one unit (256 for data in [0, 1), 127.5 for [-1, 1]) its value per level is
density / u^D, and with data made continuous by uniform noise inside their level (1) is an upper bound of the code
length of the levels, by Jensen. On data without such noise a density has no bound at all, and (1) means nothing.

Source: Theis, van den Oord and Bethge, 2015, arXiv:1511.01844 (the bound); own definitions.
Shapes: any.
"""

import math

import torch

from danlu.math.precision import wide

__all__ = ["bits_per_dim"]


def bits_per_dim(log_prob: torch.Tensor, num_dims: int, levels_per_unit: float = 1.0) -> torch.Tensor:
    """Bits per dimension of data with these log-likelihoods, eq. (1).

    Args:
        log_prob: nats per item (summed over its dimensions), any shape.
        num_dims: D >= 1, pixels times channels of one item.
        levels_per_unit: u > 0; 1 for probabilities of levels, 256 for densities of 8-bit data scaled to [0, 1).

    Returns:
        The shape of log_prob, float32 or better.

    Raises:
        ValueError: num_dims < 1 or levels_per_unit is not a positive finite number.

    >>> bits_per_dim(torch.zeros(1), 4, levels_per_unit=256)  # the uniform density on [0, 1): 8 bits
    tensor([8.])
    """
    if num_dims < 1 or not 0 < levels_per_unit < math.inf:
        raise ValueError(
            f"bits_per_dim needs num_dims >= 1 and a finite levels_per_unit > 0, got {num_dims} and {levels_per_unit}"
        )
    return wide(log_prob) / (-num_dims * math.log(2)) + math.log2(levels_per_unit)  # eq. (1)
