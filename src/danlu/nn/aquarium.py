r"""The nitrogen cycle of a filtered aquarium: ammonia to nitrite to nitrate by two populations that grow on them.

    u_A = mu_a S1 / (k_a + S1) X_A,      u_N = mu_n S2 / (k_n + S2) X_N     growth, Monod; 0 for S < 0       (1)
    S1' = load - u_A / y_a               ammonia                                                             (2)
    S2' = u_A / y_a - u_N / y_n          nitrite                                                             (3)
    S3' = u_N / y_n - removal S3         nitrate; removal by water changes, plants, denitrification          (4)
    X_A' = u_A - b_a X_A,   X_N' = u_N - b_n X_N     filter bacteria                                         (5)

A step that is too long may take S below 0. Growth then stops, which brings S back and keeps the balance of nitrogen
exact; cutting S itself off at 0 would make nitrogen out of nothing.

S in mg of nitrogen per litre, X in mg of biomass (COD) per litre of tank water, time in days. Without removal S1 + S2 +
S3 grows by exactly `load` a day, whatever the bacteria do; once the populations keep up, ammonia settles near
k_a b_a / (mu_a - b_a), and nitrite likewise. X is seen only through what it does: multiply X_A(0) and y_a by one
number and every concentration stays (fit one of the two, fix the other). The defaults are a made-up tank, for
examples; take values from your own water or from the literature of nitrification before you believe a forecast.

Test kits print ions: `as_nitrogen` turns them into nitrogen. 50 mg/L of nitrate are 11.3 mg/L of nitrogen.

Source: a tank like that of the kexue.fm post of 2020-12-07 (aims, no equations); Monod kinetics as in Henze et al.,
1987, Activated Sludge Model No. 1, with nitrification in two steps; the balances are worked out here.
Shapes: x (..., 5), p (..., 10).
"""

from typing import ClassVar

import torch
from torch import Tensor

from danlu.nn.ode_systems import ODESystem

__all__ = ["Aquarium", "as_nitrogen", "first_crossing"]

ATOMS = {"N": 14.007, "H": 1.008, "O": 15.999}
IONS = {
    "NH3": ATOMS["N"] + 3 * ATOMS["H"],
    "NH4": ATOMS["N"] + 4 * ATOMS["H"],
    "NO2": ATOMS["N"] + 2 * ATOMS["O"],
    "NO3": ATOMS["N"] + 3 * ATOMS["O"],
}


class Aquarium(ODESystem):
    """Eqs. (1) to (5) as an `ODESystem`; `Aquarium()` is the example tank, `Aquarium.start()` its first day."""

    states = ("ammonia", "nitrite", "nitrate", "ammonia_oxidisers", "nitrite_oxidisers")
    parameter_names = ("mu_a", "mu_n", "k_a", "k_n", "y_a", "y_n", "b_a", "b_n", "load", "removal")
    defaults: ClassVar[dict[str, float]] = {
        "mu_a": 0.6, "mu_n": 0.5, "k_a": 1.0, "k_n": 1.0, "y_a": 0.24, "y_n": 0.08, "b_a": 0.05, "b_n": 0.05,
        "load": 0.4, "removal": 0.0,
    }  # fmt: skip

    def field(self, t: float, x: Tensor, p: Tensor) -> Tensor:
        """dx/dt, (..., 5)."""
        substrate, nitrate, biomass = x[..., 0:2].clamp_min(0.0), x[..., 2:3], x[..., 3:5]
        growth = p[..., 0:2] * substrate / (p[..., 2:4] + substrate) * biomass  # (..., 2)  eq. (1)
        turned = growth / p[..., 4:6]  # mg N / L a day
        first, second = turned[..., 0:1], turned[..., 1:2]
        return torch.cat(
            (
                p[..., 8:9] - first,  # eq. (2)
                first - second,  # eq. (3)
                second - p[..., 9:10] * nitrate,  # eq. (4)
                growth - p[..., 6:8] * biomass,  # eq. (5)
            ),
            dim=-1,
        )

    @staticmethod
    def start() -> Tensor:
        """(5,) float64 states of the example on day 0: tap water, a trace of bacteria."""
        return torch.tensor([0.5, 0.0, 5.0, 0.003, 0.0005], dtype=torch.float64)


def as_nitrogen(concentration: Tensor, ion: str) -> Tensor:
    """The nitrogen in a concentration of an ion, in the same unit of mass.

    Args:
        concentration: any shape, such as mg/L of nitrate; nan stays nan.
        ion: "NH3", "NH4", "NO2" or "NO3", what the test kit counts; kits that print nitrogen need no conversion.

    Returns:
        The shape and dtype of concentration.

    Raises:
        ValueError: an unknown ion.

    >>> as_nitrogen(torch.tensor([62.004]), "NO3")  # one mole of nitrate holds one of nitrogen
    tensor([14.0070])
    """
    if ion not in IONS:
        raise ValueError(f"ion must be one of {', '.join(IONS)}; got {ion!r}. Nitrogen itself needs no conversion")
    return concentration * (ATOMS["N"] / IONS[ion])


def first_crossing(times: Tensor, values: Tensor, level: float, falling: bool = False) -> Tensor:
    """The first time at which values reach a level, on straight lines between the times.

    Args:
        times: (T,) rising.
        values: (T, ...), such as one state of a solution.
        level: what is to be reached.
        falling: True: the first time at or below the level after having been above it; False: at or above it.

    Returns:
        (...), the dtype of values; inf where it never happens.

    Raises:
        ValueError: times and values do not fit.

    >>> first_crossing(torch.tensor([0.0, 2.0, 4.0]), torch.tensor([0.0, 1.0, 5.0]), 3.0)
    tensor(3.)
    """
    if times.ndim != 1 or not len(times) or values.shape[:1] != times.shape:
        raise ValueError(f"needs times (T,) and values (T, ...), got {tuple(times.shape)} and {tuple(values.shape)}")
    times = times.to(values)
    reached = values >= level
    if falling:
        been_above = (values > level).cummax(0).values if values.numel() else reached
        reached = (values <= level) & been_above
    place = reached.to(torch.int8).argmax(0)  # (...), 0 where there is none
    after, before = place[None], (place - 1).clamp_min(0)[None]
    y1, y0 = values.gather(0, after)[0], values.gather(0, before)[0]
    t1, t0 = times[after[0]], times[before[0]]
    share = torch.where(y1 != y0, (level - y0) / torch.where(y1 != y0, y1 - y0, 1.0), 1.0)
    return torch.where(reached.any(0), t0 + share * (t1 - t0), torch.inf)
