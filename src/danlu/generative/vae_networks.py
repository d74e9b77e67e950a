r"""Encoders and decoders of a variational autoencoder: fully connected, and convolutional for images of any size.

    encoder: item -> 2 K numbers (means, then log-variances),    decoder: K numbers -> parameters of a likelihood
    side of the next stage = ceil(side / 2)                                                                   (1)

No batch normalisation: with it a likelihood would depend on the company of an image, and on the mode of the module.
The convolutional decoder doubles by repeating pixels and convolving, which leaves no checkerboard, and takes the sides
of the encoder's stages in reverse, so that no size is special.

Source: Kingma and Welling, 2013, arXiv:1312.6114; Odena, Dumoulin and Olah, 2016, doi:10.23915/distill.00003 (the
    checkerboard).
Shapes: N items of a shape (D,) or (C, H, W), K latent dimensions.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvDecoder", "conv_encoder", "mlp_decoder", "mlp_encoder"]


def mlp_encoder(shape: Sequence[int], latent_dim: int, hidden: Sequence[int] = (512, 256)) -> nn.Sequential:
    """Fully connected layers from an item to means and log-variances.

    Args:
        shape: of one item.
        latent_dim: K.
        hidden: widths from the data inwards; none: one linear map.

    Returns:
        (N, *shape) -> (N, 2 K).

    >>> import torch
    >>> mlp_encoder((1, 8, 8), 3)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 6])
    """
    return nn.Sequential(nn.Flatten(), *_layers([math.prod(shape), *hidden, 2 * latent_dim]))


def mlp_decoder(param_shape: Sequence[int], latent_dim: int, hidden: Sequence[int] = (512, 256)) -> nn.Sequential:
    """Fully connected layers from a latent to the parameters of a likelihood.

    Args:
        param_shape: of one item, `Likelihood.param_shape(shape)`.
        latent_dim: K.
        hidden: widths from the data inwards, as of the encoder.

    Returns:
        (N, K) -> (N, *param_shape).

    >>> import torch
    >>> mlp_decoder((2, 8, 8), 3)(torch.zeros(5, 3)).shape
    torch.Size([5, 2, 8, 8])
    """
    sizes = [latent_dim, *reversed(hidden), math.prod(param_shape)]
    return nn.Sequential(*_layers(sizes), nn.Unflatten(1, tuple(param_shape)))


def conv_encoder(shape: Sequence[int], latent_dim: int, hidden: Sequence[int] = (32, 64)) -> nn.Sequential:
    """Convolutions of stride 2 from an image to means and log-variances.

    Args:
        shape: (C, H, W).
        latent_dim: K.
        hidden: channels of the stages; each halves the sides by eq. (1).

    Returns:
        (N, C, H, W) -> (N, 2 K).

    Raises:
        ValueError: the shape is not that of an image, or there is no stage.

    >>> import torch
    >>> conv_encoder((1, 7, 5), 3)(torch.zeros(2, 1, 7, 5)).shape
    torch.Size([2, 6])
    """
    sides = _sides(shape, hidden)
    layers: list[nn.Module] = []
    for before, after in zip([shape[0], *hidden], hidden, strict=False):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(hidden[-1] * math.prod(sides[-1]), 2 * latent_dim))


class ConvDecoder(nn.Module):
    """From a latent through stages that double the sides to the parameters of a likelihood, (N, K) -> (N, F, H, W).

    Args:
        param_shape: (F, H, W), `Likelihood.param_shape(shape)`.
        latent_dim: K.
        hidden: channels of the encoder's stages.

    Raises:
        ValueError: the shape is not that of an image, or there is no stage.

    >>> import torch
    >>> ConvDecoder((2, 7, 5), 3)(torch.zeros(4, 3)).shape
    torch.Size([4, 2, 7, 5])
    """

    def __init__(self, param_shape: Sequence[int], latent_dim: int, hidden: Sequence[int] = (32, 64)) -> None:
        super().__init__()
        self.sides = _sides(param_shape, hidden)
        self.start = nn.Linear(latent_dim, hidden[-1] * math.prod(self.sides[-1]))
        outward = [*reversed(hidden), hidden[0]]
        self.stages = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(outward))
        self.end = nn.Conv2d(hidden[0], param_shape[0], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:  # (N, K)
        h = F.relu(self.start(z)).unflatten(1, (-1, *self.sides[-1]))
        for convolution, side in zip(self.stages, reversed(self.sides[:-1]), strict=True):
            h = F.relu(convolution(F.interpolate(h, size=side)))
        return self.end(h)  # (N, F, H, W)


def _layers(sizes: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return layers[:-1]


def _sides(shape: Sequence[int], hidden: Sequence[int]) -> list[tuple[int, int]]:
    """Sides before the first stage and after each, eq. (1)."""
    if len(shape) != 3 or min(shape) < 1 or not hidden:
        raise ValueError(
            f"convolutions need an image (C, H, W) and at least one stage, got {tuple(shape)} and hidden "
            f"{tuple(hidden)}; for vectors take network='mlp'"
        )
    sides = [(shape[1], shape[2])]
    for _ in hidden:
        sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))  # eq. (1)
    return sides
