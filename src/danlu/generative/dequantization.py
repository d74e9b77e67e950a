r"""Grey levels as continuous numbers and back: noise inside a level makes a density a bound of their probability.

    v = (x + u) / n - 1/2,   u in [0, 1)                                                                      (1)
    log P(x) >= E[log q(v)] - D log n - E[log r(u | x)]                                                       (2)
    uniform:      r = 1                                                                                       (3)
    variational:  u = sigmoid(m(x) + s(x) e),   e ~ N(0, I)                                                   (4)

x are levels 0 .. n - 1 and q is a density of v in [-1/2, 1/2]^D. A density of the levels themselves has no upper bound
and says nothing. Noise of another width than one level (the released Keras code of the post's author adds half of it)
gives numbers that are no bits. In (4) the noise learns where inside a level the density is high, which tightens (2);
the source uses a flow for u, (4) is its simplest case.

Source: Theis, van den Oord and Bethge, 2015, arXiv:1511.01844 (2), (3); Ho et al., 2019, arXiv:1902.00275 (4).
Shapes: N batch, ... the shape of one item, D its numbers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.generative.latent import normal_log_prob
from danlu.math.precision import wide
from danlu.nn.coupling import coupling_log_scale

__all__ = ["VariationalNoise", "dequantize", "quantize"]

START = math.log(1.6)  # log s of eq. (4) at which u is nearest to uniform


def dequantize(levels: Tensor, num_bins: int, noise: Tensor | float = 0.5) -> Tensor:
    """v of eq. (1).

    Args:
        levels: whole numbers 0 .. num_bins - 1, any shape and integer dtype.
        num_bins: n.
        noise: u, broadcast with levels; the default is the middle of a level.

    Returns:
        The shape of levels, dtype of the noise (float32 for a number), in [-1/2, 1/2].

    Raises:
        ValueError: levels of a float dtype, or outside 0 .. num_bins - 1.

    >>> dequantize(torch.tensor([0, 1]), 2)
    tensor([-0.2500,  0.2500])
    """
    if levels.is_floating_point() or levels.is_complex():
        raise ValueError(
            f"levels must be whole numbers of an integer dtype, got {levels.dtype}; (255 * x).round().byte()"
        )
    if levels.numel() and (int(levels.min()) < 0 or int(levels.max()) >= num_bins):
        found = f"{int(levels.min())} .. {int(levels.max())}"
        raise ValueError(f"levels must lie in 0 .. {num_bins - 1}, got {found}; is num_bins right?")
    return (levels + (noise if isinstance(noise, Tensor) else float(noise))) / num_bins - 0.5  # eq. (1)


def quantize(v: Tensor, num_bins: int) -> Tensor:
    """The level that a continuous number lies in; numbers outside [-1/2, 1/2) get the nearest one.

    Args:
        v: any shape, float.
        num_bins: n.

    Returns:
        The shape of v, uint8 up to 256 levels and int32 above; nan gives level 0.

    >>> quantize(torch.tensor([-0.3, 0.3, 7.0]), 2)
    tensor([0, 1, 1], dtype=torch.uint8)
    """
    level = ((wide(v) + 0.5) * num_bins).floor().nan_to_num(0.0).clamp(0, num_bins - 1)
    return level.to(torch.uint8 if num_bins <= 256 else torch.int32)


class VariationalNoise(nn.Module):
    """Noise inside the levels that reads the levels, eq. (4).

    Args:
        net: from (N, C, ...) in [-1/2, 1/2] to (N, 2 C, ...), m and log s less `log 1.6`.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, middle: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Noise and its log-density.

        Args:
            middle: (N, C, ...) the levels as `dequantize` gives them without noise.
            generator: source of e.

        Returns:
            u in [0, 1] in the shape of middle, and log r(u | x) (N,), nats.
        """
        mean, raw = self.net(middle).chunk(2, dim=1)
        log_std = START + coupling_log_scale(raw, "bounded", 3.0)
        device = generator.device if generator else middle.device
        e = torch.randn(middle.shape, generator=generator, device=device, dtype=log_std.dtype).to(middle.device)
        h = wide(mean) + log_std.exp() * e
        # the density of h, over du/dh = sigmoid(h) sigmoid(-h)
        each = F.softplus(h) + F.softplus(-h) - log_std
        return torch.sigmoid(h), normal_log_prob(e.flatten(1)) + each.flatten(1).sum(1)  # eq. (4)
