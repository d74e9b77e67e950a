r"""From a `FlowConfig` to the invertible layers of NICE, RealNVP or Glow.

Convolutional couplings are two hidden layers of `ConvNet`, where RealNVP has residual blocks, and its batch norm is
actnorm here, as in Glow: one network for all kinds, so that a comparison compares the flows.

Source: see `danlu.generative.flow_config`.
Shapes: (D,) for vectors, (C, H, W) for images.
"""

import torch
from torch import nn

from danlu.generative.flow_config import FlowConfig
from danlu.generative.flow_layers import FlowStep, LogitTransform, MultiScale
from danlu.generative.flow_networks import ConvNet, DenseNet, ScaledConv2d
from danlu.nn.actnorm import ActNorm
from danlu.nn.coupling import Coupling, coupling_sizes
from danlu.nn.invertible import ChannelPermutation, Flatten, InvertibleSequential, Squeeze
from danlu.nn.invertible_linear import InvertibleLinear

__all__ = ["build_bijection", "build_network"]


def build_bijection(config: FlowConfig, generator: torch.Generator | None = None) -> nn.Module:
    """The map from v to standard normal latents.

    Args:
        config: which one.
        generator: source of weights, rotations and permutations.

    Returns:
        An invertible module from (N, *shape) to (N, D) with log_det (N,).

    >>> build_bijection(FlowConfig((2,), steps=1)).inverse(torch.zeros(3, 2))[0].shape
    torch.Size([3, 2])
    """
    first = [LogitTransform(config.alpha)] if config.alpha else []
    if config.kind == "nice" or len(config.shape) == 1:
        return InvertibleSequential([*first, Flatten(config.shape), *_vector_layers(config, generator)])
    return InvertibleSequential([*first, _multi_scale(config, generator)])


def build_network(
    config: FlowConfig, sizes: tuple[int, int], vector: bool, generator: torch.Generator | None = None
) -> nn.Module:
    """A network that starts at zero, dense or convolutional.

    Args:
        config: for width, depth and start.
        sizes: channels it reads and gives.
        vector: whether it reads (N, D).
        generator: source of the weights.

    Returns:
        A DenseNet or a ConvNet.
    """
    if vector:
        return DenseNet(*sizes, config.width, config.hidden_layers, generator)
    return ConvNet(*sizes, config.width, config.actnorm == "data", generator)


def _coupling(
    config: FlowConfig, channels: int, split: str, swap: bool, generator: torch.Generator | None, vector: bool = False
) -> Coupling:
    additive = config.additive or config.kind == "nice"
    kept, moved = coupling_sizes(channels, split, swap)
    net = build_network(config, (kept, moved if additive else 2 * moved), vector, generator)
    return Coupling(net, split, swap, additive, config.scale, config.limit)


def _mixing(
    config: FlowConfig, channels: int, generator: torch.Generator | None
) -> InvertibleLinear | ChannelPermutation:
    if config.mixing == "conv1x1":
        return InvertibleLinear(channels, generator=generator)
    return ChannelPermutation(channels, config.mixing, generator)


def _step(config: FlowConfig, channels: int, generator: torch.Generator | None, vector: bool = False) -> FlowStep:
    actnorm = ActNorm(channels, config.actnorm)
    mixing = _mixing(config, channels, generator)
    coupling = _coupling(config, channels, "half", False, generator, vector)
    return FlowStep(actnorm, mixing, coupling, config.checkpoint)


def _vector_layers(config: FlowConfig, generator: torch.Generator | None) -> list[nn.Module]:
    size, layers = config.num_dims, list[nn.Module]()
    for i in range(config.steps):
        if config.kind == "glow":
            layers.append(_step(config, size, generator, vector=True))
            continue
        if config.kind == "realnvp":
            layers.append(ActNorm(size, config.actnorm))
        layers.append(_coupling(config, size, "even_odd", i % 2 == 1, generator, vector=True))
    if config.kind == "nice":
        layers.append(ActNorm(size, init="zeros", shift=False))  # its scaling layer
    elif config.prior != "standard":
        layers.append(ActNorm(size, init="zeros"))  # mean and scale of the prior
    return layers


def _multi_scale(config: FlowConfig, generator: torch.Generator | None) -> MultiScale:
    channels, levels, priors = config.shape[0], list[nn.Module](), list[nn.Module | None]()
    for i in range(config.levels):
        levels.append(InvertibleSequential(_level(config, channels, generator)))
        channels *= 4
        if i < config.levels - 1:
            leaving, channels = channels // 2, channels - channels // 2
            prior = None
            if config.prior == "conditional":
                prior = ScaledConv2d(channels, 2 * leaving, 3, zero=True)
            priors.append(prior)
    top = None if config.prior == "standard" else ActNorm(channels, init="zeros")
    return MultiScale(config.shape, levels, priors, top)


def _level(config: FlowConfig, channels: int, generator: torch.Generator | None) -> list[nn.Module]:
    if config.kind == "glow":
        return [Squeeze(), *(_step(config, 4 * channels, generator) for _ in range(config.steps))]
    layers = list[nn.Module]()
    for split, size in (("checkerboard", channels), ("half", 4 * channels)):
        if split == "half":
            layers.append(Squeeze())
        for i in range(config.steps):
            layers.append(ActNorm(size, config.actnorm))
            layers.append(_coupling(config, size, split, i % 2 == 1, generator))
    return layers
