r"""Paths between latents: along the arc, where draws of a normal distribution lie, in place of the chord.

    z(t) = sin((1 - t) w) / sin w  a  +  sin(t w) / sin w  b,    cos w = a.b / (|a| |b|)                   (1)

The chord's middle is shorter than draws of N(0, I) in many dimensions ever are; the arc keeps their length. For w = 0
(1) is the straight line, and so it is here for opposite latents and for zero, which have no arc of their own.

Source: Shoemake, 1985, doi:10.1145/325165.325242; White, 2016, arXiv:1609.04468 (for latents).
Shapes: N pairs, K latent dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["spherical_path"]

FLAT = 1e-4  # a sine below it: one latent, or opposite ones


def spherical_path(a: Tensor, b: Tensor, steps: int = 8) -> Tensor:
    """Latents on the arcs from a to b, eq. (1), equal angles apart.

    Args:
        a: (N, K).
        b: (N, K).
        steps: T >= 2, both ends among them.

    Returns:
        (T, N, K), float32 or better.

    Raises:
        ValueError: fewer than two steps, or shapes that differ.

    >>> spherical_path(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 3)[1]  # 45 degrees
    tensor([[0.7071, 0.7071]])
    """
    if steps < 2 or a.ndim != 2 or a.shape != b.shape:
        raise ValueError(
            f"spherical_path needs steps >= 2 and two (N, K) of one shape, got {steps}, {tuple(a.shape)} and "
            f"{tuple(b.shape)}"
        )
    a, b = wide(a), wide(b)
    unit_a, unit_b = (F.normalize(x, dim=-1) for x in (a, b))
    # the angle from chords: exact where cos w is flat
    chord, sum_ = (unit_a - unit_b).norm(dim=-1, keepdim=True), (unit_a + unit_b).norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(chord, sum_)  # (N, 1)
    t = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)[:, None, None]
    sine = angle.sin()
    flat = (sine < FLAT) | (a.norm(dim=-1, keepdim=True) == 0) | (b.norm(dim=-1, keepdim=True) == 0)
    sine = torch.where(flat, torch.ones_like(sine), sine)
    first = torch.where(flat, 1 - t, ((1 - t) * angle).sin() / sine)  # (T, N, 1)
    last = torch.where(flat, t, (t * angle).sin() / sine)
    return first * a + last * b  # eq. (1)
