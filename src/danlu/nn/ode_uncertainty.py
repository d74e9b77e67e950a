r"""How sure a fitted equation is: bootstrap, profiles, and bands around forecasts.

    bootstrap    refit solution + noise of the fitted size, many times; the spread of the refits             (1)
    profile      q_j held on a grid, all others refitted; inside the interval while
                 ssr(q_j) <= ssr_min + s^2 t^2                                                               (2)
    band         solutions of parameter sets drawn from the normal of the fit; quantiles at each time        (3)

The intervals of Fisher's matrix are quick, and exact for straight models; (1) and (2) see the bend. All refits
of (1) and all points of (2) are solved as one batch. (3) answers questions that nobody has measured: `change` alters
the drawn parameters or states before they are solved.

Source: Efron and Tibshirani, 1993, An Introduction to the Bootstrap (1); Raue et al., 2009,
doi:10.1093/bioinformatics/btp358 (2).
Shapes: F unknowns, N draws, T times, d states.
"""

import dataclasses
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from danlu.math.ode_solve import solve_ode
from danlu.math.student_t import student_t_quantile
from danlu.nn._ode_problem import Problem
from danlu.nn.ode_fit import ODEFit, minimise

__all__ = ["bootstrap_ode", "ode_band", "profile_ode", "sample_ode"]

Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
KINDS = ("parametric", "residual")


def bootstrap_ode(
    fit: ODEFit,
    samples: int = 200,
    kind: str = "parametric",
    max_iter: int = 50,
    generator: torch.Generator | None = None,
) -> ODEFit:
    """Fits of data sets made from the fit, eq. (1): their spread is the uncertainty of the estimate.

    Args:
        fit: of one data set.
        samples: how many data sets.
        kind: "parametric": normal noise of the size estimated (or given); "residual": the residuals found, drawn with
            replacement, centred and widened for the unknowns they have paid for.
        max_iter: most steps of each refit; they begin at the fit.
        generator: source of the noise.

    Returns:
        An `ODEFit` of `samples` data sets; `.estimate.quantile(q, dim=0)` are the ends of the intervals.

    Raises:
        ValueError: a fit of several data sets, an unknown kind, or samples < 1.

    >>> from danlu.nn import Logistic, Observations, fit_ode
    >>> system, times = Logistic(r=0.1, capacity=10.0), torch.arange(1.0, 30.0)
    >>> seen = Logistic.solution(times, 1.0, 0.1, 10.0)[:, None] + 0.1 * torch.sin(9.0 * times)[:, None]
    >>> fit = fit_ode(system, Observations(times, seen), torch.tensor([1.0]), step=1.0)
    >>> bootstrap_ode(fit, 3, generator=torch.Generator().manual_seed(0)).estimate.shape
    torch.Size([3, 2])
    """
    problem = one(fit, "bootstrap_ode")
    if kind not in KINDS or samples < 1:
        raise ValueError(f"needs kind in {', '.join(KINDS)} and samples >= 1; got {kind!r} and {samples}")
    rows = torch.zeros(1, dtype=torch.long, device=fit.raw.device)
    with torch.no_grad():
        exact = problem.predict(fit.raw[None], rows)[0]  # (T, D)
        if kind == "residual":
            left = problem.residuals(fit.raw[None], rows)[0][problem.keep[0].flatten()]
            left = -(left - left.mean()) * (len(left) / max(float(fit.dof), 1.0)) ** 0.5
            picks = torch.randint(len(left), (samples, exact.numel()), generator=generator).to(left.device)
            noise = left[picks].view(samples, *exact.shape)
        else:
            noise = torch.randn(samples, *exact.shape, dtype=exact.dtype, generator=generator).to(exact.device)
            noise = noise * fit.variance.sqrt()
    noise = noise / problem.scale
    offset = problem.data.offset
    values = (exact + offset) * noise.exp() - offset if problem.data.noise == "log" else exact + noise
    values = torch.where(problem.keep, values, torch.nan)  # (N, T, D)
    data = dataclasses.replace(problem.data, values=values, mask=None)
    again = Problem(
        problem.system, data, problem.x0, problem.names, problem.step, problem.solver, values=problem.natural[0]
    )
    return minimise(again, fit.raw.expand(samples, 1, -1), "lm", max_iter)


def profile_ode(
    fit: ODEFit, name: str, points: int = 15, width: float = 4.0, level: float = 0.95, max_iter: int = 50
) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """The sum of squares as a function of one unknown, all others refitted, and the interval it cuts out, eq. (2).

    Args:
        fit: of one data set with at least two unknowns.
        name: which unknown.
        points: of the grid, odd, so that the estimate is one; >= 3.
        width: reach of the grid to either side, in standard errors.
        level: of the interval.
        max_iter: most steps of each refit.

    Returns:
        (points,) grid in natural units, (points,) sums of squares, and the ends of the interval; an end is 0 or inf
        (-inf, inf for a signed unknown) where the grid does not reach it.

    Raises:
        ValueError: an unknown name, a fit of several data sets or of one unknown, or settings out of range.
    """
    problem = one(fit, "profile_ode")
    if name not in fit.names or len(fit.names) < 2:
        raise ValueError(f"name must be one of at least two unknowns, {', '.join(fit.names)}; got {name!r}")
    if points < 3 or points % 2 == 0 or not width > 0 or not 0 < level < 1:
        raise ValueError(
            f"needs an odd number of points >= 3, width > 0 and level in (0, 1); got {points}, {width}, {level}"
        )
    j = fit.names.index(name)
    others = [i for i in range(len(fit.names)) if i != j]
    along = torch.linspace(-width, width, points, dtype=fit.raw.dtype, device=fit.raw.device) * fit.std[j]
    moved = fit.raw + along[:, None] * fit.covariance[j] / fit.covariance[j, j]  # best guess of the others
    grid = problem.to_natural(moved)[:, j]
    rows = torch.zeros(points, dtype=torch.long, device=fit.raw.device)
    parameters, x0 = problem.unpack(moved, rows)
    data = dataclasses.replace(problem.data, values=problem.observed.expand(points, -1, -1), mask=problem.keep[0])
    held = Problem(
        problem.system,
        data,
        x0,
        [fit.names[i] for i in others],
        problem.step,
        problem.solver,
        values=parameters,
    )
    refit = minimise(held, moved[:, None][..., others], "lm", max_iter)
    known = problem.data.sigma is not None
    t = student_t_quantile(0.5 + level / 2, float("inf") if known else float(fit.dof))
    limit = float(fit.ssr + fit.variance * t**2)  # eq. (2)
    return grid, refit.ssr, crossing(problem, moved[:, j], refit.ssr, limit, bool(problem.signed[j]))


def sample_ode(fit: ODEFit, samples: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Parameter sets and initial states drawn from the normal distribution of the fit.

    Args:
        fit: of one data set.
        samples: how many, >= 1.
        generator: source of the draws.

    Returns:
        (N, P) all parameters of the system and (N, d) initial states, natural units.

    Raises:
        ValueError: a fit of several data sets, or samples < 1.
    """
    problem = one(fit, "sample_ode")
    if samples < 1:
        raise ValueError(f"samples must be >= 1, got {samples}")
    values, vectors = torch.linalg.eigh(fit.covariance)
    root = vectors * values.clamp_min(0.0).sqrt()  # (F, F)
    z = torch.randn(samples, len(fit.names), dtype=fit.raw.dtype, generator=generator).to(fit.raw.device)
    rows = torch.zeros(samples, dtype=torch.long, device=fit.raw.device)
    return problem.unpack(fit.raw + z @ root.mT, rows)


def ode_band(
    fit: ODEFit,
    times: Tensor,
    level: float = 0.95,
    samples: int = 400,
    change: Change | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lower end, median and upper end of the states at the times, eq. (3); the noise of a measurement is not in it.

    Args:
        fit: of one data set.
        times: (T,) rising, none before the start of the data.
        level: share of the draws between the ends.
        samples: draws.
        change: (parameters (N, P), initial states (N, d)) -> the same, altered: what if?
        generator: source of the draws.

    Returns:
        Three times (T, d). Draws that explode are left out.

    Raises:
        ValueError: a fit of several data sets, level out of range, or times out of order.
        RuntimeError: every draw explodes.
    """
    problem = one(fit, "ode_band")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    if times.ndim != 1 or not len(times) or bool((times < problem.data.start).any()):
        raise ValueError(f"times must be (T,), none before {problem.data.start}; got {times.tolist()[:4]}")
    parameters, x0 = sample_ode(fit, samples, generator)
    if change is not None:
        parameters, x0 = change(parameters, x0)
    field = problem.system.field
    with torch.no_grad():
        moments = [problem.data.start, *times.tolist()]
        states = solve_ode(lambda t, x: field(t, x, parameters), x0, moments, problem.solver, problem.step)[1:]
    good = states.isfinite().all(0).all(-1)
    if not bool(good.any()):
        raise RuntimeError(
            f"none of {samples} draws has a finite solution; the fit says too little for a forecast "
            f"(condition number {float(fit.condition):.1e}), or the step is too long"
        )
    low, middle, high = (states[:, good].quantile(q, dim=1) for q in (0.5 - level / 2, 0.5, 0.5 + level / 2))
    return low, middle, high


def one(fit: ODEFit, asked: str) -> Problem:
    """The problem of a fit of one data set."""
    if fit.problem.batched:
        raise ValueError(f"{asked} takes the fit of one data set, values (T, D); this one has {len(fit.raw)}")
    return fit.problem


def crossing(problem: Problem, raw: Tensor, ssr: Tensor, limit: float, signed: bool) -> tuple[float, float]:
    """Where the profile leaves the limit to either side of its middle, on straight lines."""
    middle = len(raw) // 2

    def end(order: list[int], never: float) -> float:
        for inner, outer in itertools.pairwise(order):
            if float(ssr[outer]) > limit:
                share = (limit - float(ssr[inner])) / (float(ssr[outer]) - float(ssr[inner]))
                place = float(raw[inner]) + max(share, 0.0) * float(raw[outer] - raw[inner])
                return place if signed else float(torch.tensor(place, dtype=torch.float64).exp())
        return never

    low = end(list(range(middle, -1, -1)), -torch.inf if signed else 0.0)
    return low, end(list(range(middle, len(raw))), torch.inf)
