r"""Equalized learning rate: a layer keeps weights of size 1 and scales them when it uses them.

    W = k V,   k = gain lr_scale / sqrt(fan_in),   V ~ N(0, 1) / lr_scale at the start                    (1)
    bias = lr_scale b                                                                                     (2)

The layer starts as with He's initialization (gain sqrt(2), or 1 for a linear one). What differs is the update: Adam
moves each element of V by about lr, so it moves W by k lr, in proportion to the layer's own scale, whatever its width.
lr_scale below 1 makes a layer learn that much slower without a parameter group: 0.01 for StyleGAN's mapping.
The trained parameters are `parametrizations.<name>.original`.

Source: Karras et al., 2017, arXiv:1710.10196 (1); Karras, Laine and Aila, 2018, arXiv:1812.04948 (the factor 0.01).
Shapes: those of the layer.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["equalized"]


def equalized(
    layer: nn.Module, gain: float = 1.0, lr_scale: float = 1.0, generator: torch.Generator | None = None
) -> nn.Module:
    """Give a layer an equalized learning rate, in place, eqs. (1) and (2): a new weight, the bias it had.

    Args:
        layer: Linear or Conv1d to Conv3d.
        gain: of eq. (1), > 0.
        lr_scale: of eqs. (1) and (2), > 0.
        generator: source of the weight.

    Returns:
        The layer.

    Raises:
        ValueError: another kind of layer, one that has it already, or gain or lr_scale not above 0.

    >>> layer = equalized(nn.Linear(100, 1, bias=False), lr_scale=0.5)
    >>> stored = layer.parametrizations.weight.original
    >>> torch.allclose(layer.weight, 0.05 * stored)  # 0.5 / sqrt(100)
    True
    """
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise ValueError(f"equalized takes Linear or Conv1d to Conv3d, got {type(layer).__name__}")
    if parametrize.is_parametrized(layer):
        raise ValueError(f"this {type(layer).__name__} is parametrized already; give equalized a plain layer")
    if not (0 < gain < math.inf and 0 < lr_scale < math.inf):
        raise ValueError(f"equalized needs gain > 0 and lr_scale > 0, got {gain} and {lr_scale}")
    weight = layer.weight
    std = gain / math.sqrt(weight[0].numel())
    device = weight.device if generator is None else generator.device
    with torch.no_grad():
        weight.copy_(std * torch.randn(weight.shape, generator=generator, device=device, dtype=weight.dtype))
    parametrize.register_parametrization(layer, "weight", _Scaled(std * lr_scale))
    if layer.bias is not None and lr_scale != 1.0:
        parametrize.register_parametrization(layer, "bias", _Scaled(lr_scale))
    return layer


class _Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, stored: Tensor) -> Tensor:
        return stored * self.scale  # eqs. (1), (2)

    def right_inverse(self, value: Tensor) -> Tensor:
        return value / self.scale

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"
