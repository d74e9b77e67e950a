r"""Two sets of feature vectors that are to be compared: checked, and in float64.

Distances between sets are small differences of large sums, so their sums are float64 whatever the features come in.

Source: own definition.
Shapes: N and M vectors of D features.
"""

import torch
from torch import Tensor

__all__ = ["checked_features", "feature_pair"]

LARGEST = 1e100  # of a feature: squares and their sums stay far from overflow


def checked_features(name: str, which: str, x: Tensor, least: int = 1) -> Tensor:
    """One set of features in float64.

    Args:
        name: of the caller, for messages.
        which: the caller's name of the set.
        x: (N, D), any float dtype.
        least: the smallest N that will do.

    Returns:
        (N, D) float64, with the graph of x.

    Raises:
        ValueError: it is not (N, D) of floats with N >= least and D >= 1, or a feature is not finite or beyond 1e100.

    >>> checked_features("frechet_distance", "x", torch.ones(2, 1)).dtype
    torch.float64
    """
    if x.ndim != 2 or not x.shape[1] or not x.is_floating_point() or len(x) < least:
        raise ValueError(
            f"{name} needs features (N, D) of floats with N >= {least} and D >= 1; got {which} {tuple(x.shape)} of "
            f"{x.dtype}. Images go through a network first, such as danlu.generative.FeatureNet"
        )
    wide = x.to(torch.float64)
    with torch.no_grad():
        bad = ~(wide.abs() <= LARGEST)  # true for nan
        if bool(bad.any()):
            row, column = bad.nonzero()[0].tolist()
            raise ValueError(
                f"{name} needs finite features of at most {LARGEST:g}; vector {row} of {which} holds "
                f"{x[row, column].item()} at feature {column}. Look for what made it"
            )
    return wide


def feature_pair(name: str, x: Tensor, y: Tensor, least_x: int = 1, least_y: int = 1) -> tuple[Tensor, Tensor]:
    """Two sets of features in float64.

    Args:
        name: of the caller, for messages.
        x: (N, D), any float dtype; called real in messages.
        y: (M, D); called fake in messages.
        least_x: the smallest N that will do.
        least_y: the smallest M that will do.

    Returns:
        Both as `checked_features` gives them.

    Raises:
        ValueError: as there, or the sets have different numbers of features.

    >>> feature_pair("kernel_distance", torch.ones(2, 1), torch.ones(3, 1))[1].shape
    torch.Size([3, 1])
    """
    real, fake = checked_features(name, "real", x, least_x), checked_features(name, "fake", y, least_y)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"{name} compares features of one network; got {real.shape[1]} features in real and {fake.shape[1]} in fake"
        )
    return real, fake
