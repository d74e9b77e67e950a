r"""What N chains are worth: the number of independent draws they amount to, and whether they agree with each other.

    W = mean_j s_j^2,   B = T var_j(mean_j),   V = (T - 1) / T W + B / T                                    (1)
    rho_t = 1 - (W - mean_j c_j(t)) / V                                                                     (2)
    tau = -1 + 2 sum_k P_k,   P_k = rho_2k + rho_{2k+1}, up to the first P_k < 0, each no larger than the last (3)
    ESS = N T / tau,   R = sqrt(V / W)                                                                      (4)

s_j^2 and c_j(t) are variance and autocovariance of chain j, T its length. Each chain is cut into its two halves first,
so that a chain that drifts disagrees with itself. R near 1 (below 1.01) is needed for (4) to mean anything: chains that
all sit in one of several modes agree very well. A constant coordinate has no autocorrelation: nan in both. ESS is at
most N T log10(N T), which anticorrelated chains would pass.

Source: Vehtari et al., 2021, doi:10.1214/20-BA1221, without ranks; Geyer, 1992, doi:10.1214/ss/1177011137 (3).
Shapes: T draws of N chains of any further shape.
"""

import math

import torch
from torch import Tensor

from danlu.math.precision import wide

__all__ = ["chain_ess", "split_r_hat"]


@torch.no_grad()
def chain_ess(draws: Tensor) -> Tensor:
    """The effective sample size of the mean of every coordinate, eq. (4).

    Args:
        draws: (T, N, ...) T >= 8 successive draws of N chains, any float dtype.

    Returns:
        (...) draws, float32 or better; nan for a coordinate that is constant or not finite.

    Raises:
        ValueError: fewer than 8 draws or no chain.

    >>> chain_ess(torch.tensor([1.0, -1.0] * 8)[:, None]) > 16  # opposite neighbours: better than independent
    tensor(True)
    """
    halves, within, mixed = _variances("chain_ess", draws)
    length, count = halves.shape[:2]
    centred = halves - halves.mean(0)
    spectrum = torch.fft.rfft(centred, n=2 * length, dim=0)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * length, dim=0)[:length] / length  # c_j(t)
    rho = 1 - (within - covariance.mean(1)) / mixed  # (T, ...)  eq. (2)
    rho[0] = 1.0
    even = length // 2 * 2
    pairs = rho[0:even:2] + rho[1:even:2]  # P_k
    positive = (pairs > 0).cumprod(0).bool()
    pairs = pairs.cummin(0).values.masked_fill(~positive, 0.0)
    total = length * count
    tau = (2 * pairs.sum(0) - 1).clamp_min(1 / math.log10(total))  # eq. (3)
    return torch.where((within > 0) & mixed.isfinite(), total / tau, torch.nan).to(wide(draws).dtype)  # eq. (4)


@torch.no_grad()
def split_r_hat(draws: Tensor) -> Tensor:
    """R of eq. (4) for every coordinate: 1 where chains and their halves agree.

    Args:
        draws: (T, N, ...) T >= 8 successive draws of N chains, any float dtype.

    Returns:
        (...) about 1 or more, float32 or better; nan for a coordinate that is constant or not finite, inf for chains
        that each stand still at different places.

    Raises:
        ValueError: fewer than 8 draws or no chain.

    >>> split_r_hat(torch.tensor([[0.0, 9.0], [1.0, 8.0]]).repeat(8, 1)) > 5  # two chains at two places
    tensor(True)
    """
    _, within, mixed = _variances("split_r_hat", draws)
    return (mixed / within).sqrt().to(wide(draws).dtype)  # eq. (4)


def _variances(name: str, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The halves (T/2, 2 N, ...) in float64, W and V of eq. (1)."""
    if draws.ndim < 2 or draws.shape[0] < 8 or not draws.shape[1]:
        raise ValueError(f"{name} needs draws (T, N, ...) with T >= 8 and N >= 1, got {tuple(draws.shape)}; one chain "
                         "is draws[:, None]")  # fmt: skip
    length = draws.shape[0] // 2
    exact = wide(draws) if draws.device.type == "mps" else draws.double()
    halves = torch.cat([exact[:length], exact[-length:]], dim=1)
    within = halves.var(0).mean(0)
    between = halves.mean(0).var(0)
    mixed = (length - 1) / length * within + between  # eq. (1), B / T
    return halves, within, mixed
