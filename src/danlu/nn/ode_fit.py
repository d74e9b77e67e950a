r"""Parameters of a differential equation from noisy observations, with what the data do not say about them.

    minimise  sum of r^2,   r = (solution - observation) / sigma, in logarithms for multiplicative noise     (1)
    covariance = s^2 (J^T J)^-1,   J = dr/dq,   q = logarithms of positive unknowns                          (2)
    interval   = q +- t_{(1 + level) / 2} sqrt(covariance_jj),  back in natural units                        (3)

Three ways down: Levenberg and Marquardt's steps with exact forward sensitivities ("lm", the default: tens of solutions
instead of thousands), L-BFGS ("lbfgs") and Adam ("adam"), both by back-propagation through the solver. A good curve is
no recovered parameter: look at the condition number and at the correlations. Beyond CONDITION_LIMIT some combination of
the unknowns leaves every observation as it is, and a warning names it. Several starts are batched; `start_ssr` shows
where each of them ended, and an end that one start in eight has reached is worth a second look.

With noise in logarithms a solution that has fallen below 0, by a step too long, is taken on the tangent of the
logarithm: finitely wrong, so that it is called back. A start where the equation is stiffer than the step allows stays
lost; shorten the step rather than add starts.

All is computed in float64. The solver is part of the model: with Euler's rule and long steps the parameters are those
of Euler's rule.

Source: kexue.fm/archives/5643 (fitting by gradient through the steps); (2) and (3): `danlu.math.fisher_covariance`.
Shapes: B data sets (no axis where there is one), F unknowns, S starts.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.math.fisher import fisher_covariance
from danlu.math.least_squares import LeastSquares, levenberg_marquardt, rowwise_jacobian, sum_of_squares
from danlu.math.student_t import student_t_quantile
from danlu.nn._ode_problem import Observations, Problem
from danlu.nn.ode_systems import ODESystem

__all__ = ["FIT_METHODS", "ODEFit", "Observations", "fit_ode"]

FIT_METHODS = ("lm", "lbfgs", "adam")
CONDITION_LIMIT = 1e6
WEAK = 0.5  # standard error in logarithms from which a parameter is known to a factor of e at best
LONGEST_MOVE = 1.0  # of a logarithm in one step


@dataclass(frozen=True)
class ODEFit:
    """An estimate and its uncertainty; tensors are float64, with a leading axis B where several data sets were fitted.

    Args:
        problem: what was fitted.
        raw: (F,) unknowns: logarithms of positive ones, signed ones as they are.
        covariance: (F, F) of raw, eq. (2).
        condition: () condition number of the scaled Jacobian; 1 is best.
        weakest: (F,) the direction of raw, in units of the Jacobian's columns, that the data say least about.
        ssr: () sum of squared residuals.
        dof: () observations less unknowns.
        variance: () s^2; 1 where sigma was given.
        converged: () bool.
        iterations: () steps tried.
        start_ssr: (S,) sum of squares that each start ended at.
    """

    problem: Problem
    raw: Tensor
    covariance: Tensor
    condition: Tensor
    weakest: Tensor
    ssr: Tensor
    dof: Tensor
    variance: Tensor
    converged: Tensor
    iterations: Tensor
    start_ssr: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the F unknowns."""
        return self.problem.names

    @property
    def estimate(self) -> Tensor:
        """(F,) in natural units."""
        return self.problem.to_natural(self.raw)

    @property
    def std(self) -> Tensor:
        """(F,) standard errors of raw: relative ones where they are small and the unknown is positive."""
        return self.covariance.diagonal(dim1=-2, dim2=-1).sqrt()

    @property
    def correlation(self) -> Tensor:
        """(F, F) correlations of the estimates."""
        return self.covariance / (self.std[..., :, None] * self.std[..., None, :])

    @property
    def weak(self) -> Tensor:
        """(F,) bool, True where an unknown is known to a factor of e at best (signed: to half of itself)."""
        size = torch.where(self.problem.signed, self.raw.abs(), 1.0)
        return ~(self.std <= WEAK * size)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Ends (F,) and (F,) of the confidence intervals in natural units, eq. (3)."""
        if not 0 < level < 1:
            raise ValueError(f"level must be in (0, 1), got {level}; 0.95 is usual")
        known = self.problem.data.sigma is not None
        quantiles = [
            student_t_quantile(0.5 + level / 2, float("inf") if known else n) for n in self.dof.view(-1).tolist()
        ]
        half = torch.tensor(quantiles, dtype=self.raw.dtype, device=self.raw.device).view_as(self.dof)[..., None]
        half = half * self.std  # eq. (3)
        return self.problem.to_natural(self.raw - half), self.problem.to_natural(self.raw + half)

    def fitted(self, times: Tensor) -> Tensor:
        """All states (T, d) at rising times; (T, B, d) for several data sets."""
        rows = torch.arange(len(self.problem.observed), device=self.raw.device)
        found = self.problem.solve(self.raw.view(len(rows), -1), rows, times)
        return found if self.problem.batched else found[:, 0]


def fit_ode(
    system: ODESystem,
    data: Observations,
    x0: Tensor,
    free: Sequence[str] | None = None,
    method: str = "lm",
    starts: int = 1,
    spread: float = 1.0,
    step: float | None = None,
    solver: str = "rk4",
    max_iter: int = 100,
    lr: float = 0.05,
    generator: torch.Generator | None = None,
) -> ODEFit:
    """The parameters, and initial states, of a system that fit observations best, eqs. (1) to (3).

    Args:
        system: an `ODESystem`; its values are the first start and stay unchanged.
        data: `Observations`.
        x0: (d,) or (B, d) states at data.start; what is free begins there.
        free: names of parameters and of states (their initial values) to be found; None: all parameters.
        method: "lm", "lbfgs" or "adam".
        starts: how many beginnings of each data set, the first being the values given; the best end is kept.
        spread: standard deviation of the others around it, in logarithms (signed: in units of the value, or of 1).
        step: longest step of the solver; None: a hundredth of the time observed.
        solver: one of `danlu.math.ODE_METHODS`.
        max_iter: most steps of each start.
        lr: rate of "adam", in logarithms.
        generator: source of the starts.

    Returns:
        An `ODEFit`.

    Raises:
        ValueError: an unknown method, name or noise, shapes that do not fit, or no more observations than unknowns.
        RuntimeError: no start of some data set has a finite solution.

    >>> from danlu.nn import Logistic
    >>> system = Logistic(r=0.3, capacity=9.0)
    >>> times = torch.tensor([5.0, 10.0, 20.0, 40.0, 60.0], dtype=torch.float64)
    >>> seen = Logistic.solution(times, 1.0, 0.1, 10.0)[:, None]
    >>> fit_ode(system, Observations(times, seen), torch.tensor([1.0]), step=1.0).estimate
    tensor([ 0.1000, 10.0000], dtype=torch.float64)
    """
    if method not in FIT_METHODS:
        raise ValueError(f"method must be one of {', '.join(FIT_METHODS)}; got {method!r}")
    if starts < 1 or not spread >= 0 or max_iter < 1 or not lr > 0:
        raise ValueError(
            f"needs starts >= 1, spread >= 0, max_iter >= 1 and lr > 0; got starts={starts}, spread={spread}, "
            f"max_iter={max_iter}, lr={lr}"
        )
    problem = Problem(system, data, x0, free, step, solver)
    guess = problem.guess()  # (B, F)
    noise = guess.new_zeros(len(guess), starts, guess.shape[1])
    if starts > 1:
        noise[:, 1:] = torch.randn(*noise[:, 1:].shape, dtype=guess.dtype, generator=generator).to(guess.device)
    size = torch.where(problem.signed, guess.abs().where(guess != 0, 1.0), 1.0)
    return minimise(problem, guess[:, None] + spread * size[:, None] * noise, method, max_iter, lr)


def minimise(problem: Problem, start: Tensor, method: str, max_iter: int, lr: float = 0.05) -> ODEFit:
    """The best end of the starts (B, S, F), and its uncertainty."""
    size, starts, unknowns = start.shape
    short = problem.counts - unknowns
    if bool((short < (1 if problem.data.sigma is None else 0)).any()):
        raise ValueError(
            f"{int(problem.counts.min())} observations cannot fix {unknowns} unknowns "
            f"({', '.join(problem.names)}) and their noise; observe more, or free fewer names"
        )
    owner = torch.arange(size, device=start.device).repeat_interleave(starts)  # data set of each row
    flat = start.reshape(size * starts, unknowns)
    if method == "lm":
        move = float("inf") if bool(problem.signed.any()) else LONGEST_MOVE
        found = levenberg_marquardt(lambda x, r: problem.residuals(x, owner[r]), flat, max_iter, max_move=move)
    else:
        found = (descend if method == "adam" else quasi_newton)(problem, flat, owner, max_iter, lr)
    ssr = found.ssr.view(size, starts)
    best = ssr.argmin(1) + starts * torch.arange(size, device=start.device)  # (B,)
    if not bool(ssr.isfinite().any(1).all()):
        lost = int((~ssr.isfinite().any(1)).nonzero()[0])
        raise RuntimeError(
            f"no start of data set {lost} has a finite solution: check units and x0, shorten step, or try more starts"
        )
    jacobian = found.jacobian[best]
    dof = short.to(torch.float64)
    known = problem.data.sigma is not None
    variance = torch.ones_like(dof) if known else found.ssr[best] / dof.clamp_min(1.0)
    covariance, condition, weakest = fisher_covariance(jacobian, variance)  # eq. (2)
    warn_if_unidentifiable(problem.names, condition, weakest)
    fields = (found.x[best], covariance, condition, weakest, found.ssr[best], dof, variance,
              found.converged[best], found.iterations[best], ssr)  # fmt: skip
    return ODEFit(problem, *(field if problem.batched else field[0] for field in fields))


def descend(problem: Problem, start: Tensor, owner: Tensor, max_iter: int, lr: float) -> LeastSquares:
    """Adam on every row, which it treats alone; the best point of each row."""
    x = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr)
    best, least = start.clone(), torch.full((len(start),), torch.inf, dtype=start.dtype, device=start.device)
    for _ in range(max_iter):
        with torch.enable_grad():
            ssr = problem.residuals(x, owner).square().sum(-1)
            (gradient,) = torch.autograd.grad(ssr.sum(), x)
        value = ssr.detach().nan_to_num(torch.inf)
        better = value < least
        best, least = torch.where(better[:, None], x.detach(), best), torch.where(better, value, least)
        x.grad = torch.where(gradient.isfinite().all(1, keepdim=True), gradient, 0.0)
        optimizer.step()
    last = problem.residuals(x.detach(), owner).square().sum(-1)
    best = torch.where((last < least)[:, None], x.detach(), best)
    return summary(problem, best, owner, torch.full_like(owner, max_iter))


def quasi_newton(problem: Problem, start: Tensor, owner: Tensor, max_iter: int, lr: float) -> LeastSquares:
    """L-BFGS on one row after another, for its line search looks at one value; lr has no part in it."""
    ends, counts = [], []
    for row in range(len(start)):
        x = start[row : row + 1].clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [x], max_iter=max_iter, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-14
        )

        def closure(
            x: Tensor = x, row: int = row, optimizer: torch.optim.LBFGS = optimizer, owner: Tensor = owner
        ) -> Tensor:
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = problem.residuals(x, owner[row : row + 1]).square().sum()
                loss.backward()
            return loss

        first = problem.residuals(x.detach(), owner[row : row + 1])
        if bool(first.isfinite().all()):
            optimizer.step(closure)
        ends.append(x.detach()[0])
        counts.append(int(optimizer.state[x].get("n_iter", 0)))
    moved = torch.stack(ends)
    moved = torch.where(moved.isfinite().all(1, keepdim=True), moved, start)
    return summary(problem, moved, owner, torch.tensor(counts, device=owner.device))


def summary(problem: Problem, x: Tensor, owner: Tensor, iterations: Tensor) -> LeastSquares:
    """What gradient descent reached, in the form of `levenberg_marquardt`; converged where the gradient is small."""
    r, jacobian = rowwise_jacobian(lambda z: problem.residuals(z, owner), x)
    ssr = sum_of_squares(r, jacobian)
    lengths = torch.linalg.vector_norm(jacobian, dim=1) * torch.linalg.vector_norm(r, dim=1, keepdim=True)
    cosines = ((jacobian * r[..., None]).sum(1).abs() / lengths.clamp_min(torch.finfo(x.dtype).tiny)).amax(1)
    return LeastSquares(x, ssr, r, jacobian, iterations, ssr.isfinite() & (cosines < 1e-3))


def warn_if_unidentifiable(names: tuple[str, ...], condition: Tensor, weakest: Tensor) -> None:
    """Say which combination of unknowns the data do not see."""
    bad = condition > CONDITION_LIMIT
    if not bool(bad.any()):
        return
    direction = weakest[bad.nonzero()[0][0]]
    parts = [f"{v:+.2f} {n}" for n, v in zip(names, direction.tolist(), strict=True) if abs(v) > 0.1]
    warnings.warn(
        f"the data cannot tell apart {' '.join(parts)} (scaled logarithms): condition number "
        f"{condition[bad].max().item():.1e} in {int(bad.sum())} of {len(bad)} fits. Fix one of these parameters, or "
        "observe what separates them",
        stacklevel=4,
    )
