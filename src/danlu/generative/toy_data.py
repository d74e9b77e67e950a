r"""Two-dimensional data whose density is known exactly: for pictures, and for tests that nothing else can pass.

    p(x) = sum_k w_k N(x; m_k, s^2 I)                                                                      (1)
    ring          m_k on a circle                      grid         m_k on a square lattice
    moons         m_k along two half circles           spiral       m_k along arms that wind outwards
    p(x) = 2 / (cells side^2) on every other cell                                       checkerboard       (2)

Curves are mixtures, too: of so many Gaussians that their beads melt into a line (distance at most the deviation s), so
that (1) is their density and no approximation of it. `modes` are the centres, for `danlu.math.mode_coverage`; curves
and the checkerboard have none to count.

Source: own definitions; the ring of 8 with radius 2 and deviation 0.02, and the grid of 25 with spacing 2 and deviation
0.05, are the usual ones since Metz et al., 2016, arXiv:1611.02163.
Shapes: N samples (N, 2), K centres.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.math.mode_coverage import ModeCoverage, mode_coverage
from danlu.math.precision import wide

__all__ = ["TOY_DATA", "Checkerboard", "GaussianBeads", "grid", "moons", "ring", "spiral", "toy_coverage"]


@dataclass(frozen=True)
class GaussianBeads:
    """The density (1): equal round Gaussians at `centres` (K, 2), with `deviation` and `weights` (K,) of sum 1."""

    centres: Tensor
    deviation: float
    weights: Tensor
    counted: bool = True  # whether the centres are modes of their own

    def __post_init__(self) -> None:
        if self.centres.ndim != 2 or self.weights.shape != self.centres.shape[:1] or not len(self.centres):
            raise ValueError(
                f"GaussianBeads needs centres (K, D) and weights (K,) with K >= 1, got {tuple(self.centres.shape)} and "
                f"{tuple(self.weights.shape)}"
            )
        total = float(self.weights.sum())
        if not (self.deviation > 0 and bool((self.weights >= 0).all()) and abs(total - 1) < 1e-4):
            raise ValueError(
                f"GaussianBeads needs a deviation > 0 and weights >= 0 of sum 1, got {self.deviation} and a sum of "
                f"{total:g}"
            )

    @property
    def modes(self) -> Tensor:
        """(K, D) centres, or (0, D) where they are a curve."""
        return self.centres if self.counted else self.centres[:0]

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, D) points, in the dtype of the centres."""
        rows = torch.multinomial(self.weights, n, replacement=True, generator=generator) if n else torch.empty(0).long()
        noise = torch.randn(n, self.centres.shape[1], generator=generator, dtype=self.centres.dtype)
        return self.centres[rows] + self.deviation * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """(N,) log-density in nats of points (N, D), float32 or better."""
        _check_points(x, self.centres.shape[1])
        x, dim = wide(x), x.shape[1]
        square = (x[:, None] - self.centres.to(x)).square().sum(2)  # (N, K)
        log_norm = dim * math.log(self.deviation) + dim * math.log(2 * math.pi) / 2
        log_weights = self.weights.to(x).log()
        return (log_weights - square / (2 * self.deviation**2)).logsumexp(1) - log_norm  # eq. (1)


@dataclass(frozen=True)
class Checkerboard:
    """The density (2): uniform on the black cells of a board of `cells` x `cells`, each `side` long, around 0."""

    cells: int = 4
    side: float = 1.0

    def __post_init__(self) -> None:
        if self.cells < 2 or self.cells % 2 or not self.side > 0:
            raise ValueError(
                f"Checkerboard needs an even number of cells >= 2 and side > 0, got {self.cells} and {self.side}"
            )

    @property
    def modes(self) -> Tensor:
        """(0, 2): there are none to count."""
        return torch.zeros(0, 2)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, 2) points, float32."""
        row = torch.randint(self.cells, (n,), generator=generator)
        column = 2 * torch.randint(self.cells // 2, (n,), generator=generator) + row % 2
        corner = torch.stack([column, row], 1) - self.cells / 2
        return self.side * (corner + torch.rand(n, 2, generator=generator))

    def log_prob(self, x: Tensor) -> Tensor:
        """(N,) log-density in nats of points (N, 2), float32 or better; -inf off the black cells."""
        _check_points(x, 2)
        cell = (wide(x) / self.side + self.cells / 2).floor()
        black = ((cell >= 0) & (cell < self.cells)).all(1) & (cell.sum(1) % 2 == 0)
        height = -math.log(self.cells**2 / 2 * self.side**2)
        return torch.where(black, height, -torch.inf).to(wide(x).dtype)  # eq. (2)


def ring(modes: int = 8, radius: float = 2.0, deviation: float = 0.02) -> GaussianBeads:
    """Equal Gaussians at equal distances on a circle.

    Args:
        modes: how many, >= 1.
        radius: of the circle.
        deviation: of each.

    Returns:
        The density.

    Raises:
        ValueError: no mode, or a deviation that is not above 0.

    >>> ring(4, 1.0).modes[1].round(decimals=3).tolist()
    [0.0, 1.0]
    """
    _check_count("ring", "modes", modes)
    angle = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    return _beads(radius * torch.stack([angle.cos(), angle.sin()], 1), deviation)


def grid(side: int = 5, spacing: float = 2.0, deviation: float = 0.05) -> GaussianBeads:
    """Equal Gaussians on a square lattice around 0.

    Args:
        side: Gaussians along each axis, >= 1.
        spacing: of neighbours.
        deviation: of each.

    Returns:
        The density.

    Raises:
        ValueError: no mode, or a deviation that is not above 0.

    >>> grid(2).modes.tolist()
    [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    """
    _check_count("grid", "side", side)
    line = spacing * (torch.arange(side, dtype=torch.float64) - (side - 1) / 2)
    return _beads(torch.cartesian_prod(line, line), deviation)


def moons(deviation: float = 0.1) -> GaussianBeads:
    """Two interlocking half circles of radius 1 around (0.5, 0.25), blurred.

    Args:
        deviation: of the blur.

    Returns:
        The density.

    Raises:
        ValueError: deviation is not above 0.

    >>> moons().modes.shape
    torch.Size([0, 2])
    """
    _check_deviation("moons", deviation)
    angle = torch.linspace(0, math.pi, max(2, math.ceil(math.pi / deviation) + 1), dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    return _beads(torch.cat([upper, torch.tensor([1.0, 0.5]) - upper]), deviation, counted=False)


def spiral(arms: int = 2, turns: float = 1.5, radius: float = 3.0, deviation: float = 0.1) -> GaussianBeads:
    """Arms that wind outwards, the distance from the centre growing with the angle, blurred.

    Args:
        arms: how many, >= 1.
        turns: of each, > 0.
        radius: where they end, > 0.
        deviation: of the blur.

    Returns:
        The density, equal weight for equal length.

    Raises:
        ValueError: no arm, or turns, radius or deviation not above 0.

    >>> spiral().log_prob(torch.zeros(1, 2)).item() > spiral().log_prob(torch.full((1, 2), 3.0)).item()
    True
    """
    _check_count("spiral", "arms", arms)
    _check_deviation("spiral", deviation)
    if not (turns > 0 and radius > 0):
        raise ValueError(f"spiral needs turns > 0 and radius > 0, got {turns} and {radius}")
    end = 2 * math.pi * turns
    fine = torch.linspace(0, end, 2001, dtype=torch.float64)
    length = radius / end * (fine * (1 + fine**2).sqrt() + fine.asinh()) / 2  # of the arm up to this angle
    want = torch.linspace(0, float(length[-1]), math.ceil(float(length[-1]) / deviation) + 1, dtype=torch.float64)
    right = torch.searchsorted(length, want).clamp(1, len(fine) - 1)
    part = (want - length[right - 1]) / (length[right] - length[right - 1])
    angle = fine[right - 1] + part * (fine[right] - fine[right - 1])
    turn = angle[None] + 2 * math.pi * torch.arange(arms, dtype=torch.float64)[:, None] / arms
    points = radius * angle[None, :, None] / end * torch.stack([turn.cos(), turn.sin()], 2)
    return _beads(points.flatten(0, 1), deviation, counted=False)


def toy_coverage(data: GaussianBeads, samples: Tensor, deviations: float = 3.0, least: int = 1) -> ModeCoverage:
    """`danlu.math.mode_coverage` of samples on the modes of a toy set.

    Args:
        data: with modes to count.
        samples: (N, 2).
        deviations: how far from its mode a good sample may lie, in deviations of the mode.
        least: good samples that make a mode hit.

    Returns:
        The record.

    Raises:
        ValueError: a set without modes, or what mode_coverage says.

    >>> toy_coverage(grid(2), torch.tensor([[1.0, 1.0], [0.0, 0.0]])).counts.tolist()
    [0, 0, 0, 1]
    """
    if not len(data.modes):
        raise ValueError("toy_coverage needs a set with modes, a ring or a grid; this one has no modes to count")
    return mode_coverage(samples, data.modes, deviations * data.deviation, data.weights, least)


TOY_DATA: dict[str, Callable[[], GaussianBeads | Checkerboard]] = {
    "ring": ring,
    "grid": grid,
    "moons": moons,
    "spiral": spiral,
    "checkerboard": Checkerboard,
}


def _beads(centres: Tensor, deviation: float, counted: bool = True) -> GaussianBeads:
    return GaussianBeads(centres.float(), deviation, torch.full((len(centres),), 1 / len(centres)), counted)


def _check_points(x: Tensor, dim: int) -> None:
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"log_prob needs points (N, {dim}), got {tuple(x.shape)}")


def _check_count(shape: str, name: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"{shape} needs {name} >= 1, got {number}")


def _check_deviation(shape: str, deviation: float) -> None:
    if not deviation > 0:
        raise ValueError(f"{shape} needs deviation > 0, got {deviation}")
