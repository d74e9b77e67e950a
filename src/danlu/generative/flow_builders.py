r"""NICE, RealNVP and Glow by name, with the settings of their sources where those fit a laptop.

    nice      additive couplings of dense networks on even and odd entries, a scale for each dimension        (1)
    realnvp   per level three checkerboard and three channel couplings, standard prior, logit with 0.05       (2)
    glow      per level K x (actnorm, 1x1 convolution, coupling), conditional priors                          (3)

Published sizes: NICE 4 couplings of 5 x 1000 units; Glow on CIFAR-10 levels=3, steps=32, width=512, Adam 1e-3 with
warm-up, batch 64; the post's author levels=3, steps=6, Adam 1e-4.

Source: Dinh et al., 2014, arXiv:1410.8516 (1); Dinh et al., 2016, arXiv:1605.08803 (2); Kingma and Dhariwal, 2018,
    arXiv:1807.03039 (3); kexue.fm/archives/5776 and 5807.
Shapes: (D,) for vectors, (C, H, W) for images.
"""

from collections.abc import Sequence

import torch

from danlu.generative.flow import Flow
from danlu.generative.flow_config import FlowConfig

__all__ = ["glow", "nice", "realnvp"]


def nice(
    shape: Sequence[int],
    steps: int = 4,
    width: int = 1000,
    hidden_layers: int = 5,
    num_bins: int | None = None,
    generator: torch.Generator | None = None,
) -> Flow:
    """NICE, eq. (1).

    Args:
        shape: of one item, (D,) or (C, H, W).
        steps: couplings.
        width: units inside their networks.
        hidden_layers: inside their networks.
        num_bins: grey levels; None for continuous data.
        generator: source of the weights.

    Returns:
        A Flow.

    >>> nice((2,), width=4).sample(3).shape
    torch.Size([3, 2])
    """
    config = FlowConfig(
        tuple(shape),
        "nice",
        steps=steps,
        width=width,
        hidden_layers=hidden_layers,
        additive=True,
        prior="standard",
        num_bins=num_bins,
    )
    return Flow(config, generator)


def realnvp(
    shape: Sequence[int],
    levels: int = 1,
    steps: int = 3,
    width: int = 64,
    num_bins: int | None = None,
    alpha: float | None = None,
    generator: torch.Generator | None = None,
) -> Flow:
    """RealNVP, eq. (2); on vectors `steps` couplings of even and odd entries.

    Args:
        shape: of one item, (D,) or (C, H, W).
        levels: 1 for vectors.
        steps: couplings of each kind in a level.
        width: channels or units inside their networks.
        num_bins: grey levels; None for continuous data.
        alpha: of the logit; None: 0.05 where there are grey levels and 0 where there are none.
        generator: source of the weights.

    Returns:
        A Flow.

    >>> realnvp((1, 4, 4), num_bins=17).sample(2).dtype
    torch.uint8
    """
    if alpha is None:
        alpha = 0.05 if num_bins is not None else 0.0
    config = FlowConfig(
        tuple(shape),
        "realnvp",
        levels=levels,
        steps=steps,
        width=width,
        prior="standard",
        num_bins=num_bins,
        alpha=alpha,
    )
    return Flow(config, generator)


def glow(
    shape: Sequence[int],
    levels: int = 1,
    steps: int = 8,
    width: int = 64,
    additive: bool = False,
    mixing: str = "conv1x1",
    num_bins: int | None = None,
    generator: torch.Generator | None = None,
) -> Flow:
    """Glow, eq. (3); everything else of it is set through `Flow(FlowConfig(...))`.

    Args:
        shape: of one item, (D,) or (C, H, W).
        levels: 1 for vectors.
        steps: K of a level.
        width: channels or units inside the coupling networks.
        additive: couplings without a scale, half the cost of their last layer.
        mixing: "conv1x1", "shuffle" or "reverse".
        num_bins: grey levels; None for continuous data.
        generator: source of the weights.

    Returns:
        A Flow.

    >>> glow((1, 8, 8), levels=2, steps=1, width=4, num_bins=17).sample(2).shape
    torch.Size([2, 1, 8, 8])
    """
    config = FlowConfig(
        tuple(shape),
        "glow",
        levels=levels,
        steps=steps,
        width=width,
        additive=additive,
        mixing=mixing,
        num_bins=num_bins,
    )
    return Flow(config, generator)
