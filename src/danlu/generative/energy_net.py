r"""A small network for energies: a perceptron for points, strided convolutions summed over places for images.

    U(x) = w . phi(x) + b,   phi a perceptron                                                              (1)
    U(x) = w . sum over places of phi(x) + b,   phi convolutional                                           (2)

SiLU, because the sampler follows the gradient and one with jumps is a poor guide; no norm layers, because a chain must
not see its neighbours. With `coeff` every layer but the last lengthens no difference by more than that.

Source: after Du and Mordatch, 2019, arXiv:1903.08689 (a residual network there), smaller.
Shapes: N examples (N, D) or (N, C, H, W); energies (N,).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from danlu.nn.spectral_norm import spectral_norm

__all__ = ["EnergyNet"]


class EnergyNet(nn.Module):
    """U for points (N, D), or for images (N, C, H, W).

    Args:
        shape: (D,), or (C, H, W) with height and width divisible by 2^depth.
        width: of the hidden layers; images begin with it and double it whenever they halve the picture.
        depth: hidden layers, >= 1; for images the number of halvings.
        coeff: of the spectral normalisation of all layers but the last; 0 for none.
    """

    def __init__(self, shape: tuple[int, ...], width: int = 64, depth: int = 2, coeff: float = 0.0) -> None:
        super().__init__()
        if len(shape) not in (1, 3) or depth < 1 or width < 1 or not coeff >= 0:
            raise ValueError(
                "EnergyNet takes points (D,) or images (C, H, W), depth and width >= 1 and coeff >= 0; got shape "
                f"{tuple(shape)}, depth={depth}, width={width}, coeff={coeff}"
            )
        if len(shape) == 3 and (shape[1] % 2**depth or shape[2] % 2**depth):
            raise ValueError(
                f"depth={depth} halves an image {depth} times, which {shape[1]} x {shape[2]} does not allow"
            )
        layers: list[nn.Module] = []
        if len(shape) == 1:
            sizes = [shape[0], *[width] * depth]
            for size, following in pairwise(sizes):
                layers += [normalized(nn.Linear(size, following), coeff), nn.SiLU()]
        else:
            height, breadth = shape[1:]
            sizes = [width * 2**i for i in range(depth + 1)]
            layers += [normalized(nn.Conv2d(shape[0], width, 3, padding=1), coeff, (height, breadth)), nn.SiLU()]
            for i, (size, following) in enumerate(pairwise(sizes)):
                conv = nn.Conv2d(size, following, 4, stride=2, padding=1)
                layers += [normalized(conv, coeff, (height // 2**i, breadth // 2**i)), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.to_energy = nn.Linear(sizes[-1], 1)

    def forward(self, x: Tensor) -> Tensor:  # (N, *shape)
        h = self.features(x)
        with torch.autocast(x.device.type, enabled=False):  # energies are compared: float32 from here on
            h = h.to(self.to_energy.weight.dtype)
            h = h.sum((2, 3)) if h.ndim == 4 else h  # (N, width)  eq. (2)
            energy: Tensor = self.to_energy(h)
            return energy[:, 0]  # (N,)  eq. (1)


def normalized(layer: nn.Module, coeff: float, input_size: tuple[int, int] | None = None) -> nn.Module:
    """The layer with its largest gain set to `coeff`, or as it is for 0."""
    return spectral_norm(layer, coeff=coeff, input_size=input_size) if coeff else layer
