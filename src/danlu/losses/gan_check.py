r"""Is this a GAN loss whose critic learns p/q, and may the generator follow that critic? Numerical answers.

    s*(u) = argmin over s of  u a(s) + b(s),   u = p/q                                                 (1)
    a'(s) < 0,   u(s) = -b'(s) / a'(s) strictly increasing                                             (2)
    E_q[f(p/q)],   f(u) = u alpha(s*(u)) + c(s*(u)),   strictly convex                                 (3)
    c'(s) < 0                                                                                          (4)

a and b are the critic's losses on real and generated examples, c the generator's, as in `danlu.losses.gan`; p is the
data, q the model. Under (2) the sum in (1) falls before the score at which u(s) = u and rises after it: this score is
its only minimum, and the best critic tells p/q.

(3) is what the generator meets if the critic answers at once, and alpha its loss on real examples there. In a zero-sum
game (c = -b, alpha = -a) it follows from (2). Generators are not trained so: each step holds s fixed, and E_q[c(s)] has
the slope c(s*(p/q)) in q(x), up to a constant. This is the slope of int p D(q/p) with D'(r) = c(s*(1/r)), whose minimum
is p if D is strictly convex: (4). The two agree in zero-sum games only. The post asks for (3) alone. Least squares with
the midpoint for a target fulfils it, f = (u - 1)^2 / (u + 1) for labels 1 and -1, but not (4), and does leave the data.

The test is a grid with derivatives by autograd in float64: a fault it finds is one, but what happens between the points
or beyond the span is not seen. With flipped labels all signs turn round, which is accepted. Not of this family: critics
that know only the sign of p - q (hinge, total variation) or nothing of p/q (Wasserstein).

Source: kexue.fm/archives/7210; Basioti and Moustakides, 2020, arXiv:2002.00865 (both with r = q/p = 1/u). (4) is worked
out here.
Shapes: one dimension of scores.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.losses.gan import GanGame, as_game

__all__ = ["GameReport", "check_game", "game_report"]

Scalar = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GameReport:
    """Whether the critic finds p/q (2), the generator may follow a fixed critic (4) and a perfect one (3); why not."""

    critic: bool
    fixed_critic: bool
    minimax: bool
    ratio_range: tuple[float, float]
    faults: tuple[str, ...]


def check_game(game: str | GanGame, span: float = 12.0, points: int = 1001) -> GameReport:
    """The report of a game that fulfils (2) and (4); an error that says where and how another breaks them.

    Args:
        game: a name or a game.
        span: > 0, scores from -span to span are tried, drawn into the domain if that is bounded.
        points: of the grid, at least 3.

    Returns:
        The report of `game_report`.

    Raises:
        ValueError: the game breaks (2) or (4), or a bad span or number of points.

    >>> check_game("hellinger").minimax
    True
    """
    report = game_report(game, span, points)
    if not (report.critic and report.fixed_critic):
        raise ValueError(f"not a likelihood-ratio game: {'; '.join(report.faults)}. game_report() tells it without an "
                         "error, and a plain GanGame trains all the same")  # fmt: skip
    return report


def game_report(game: str | GanGame, span: float = 12.0, points: int = 1001) -> GameReport:
    """Which of the conditions (2), (3) and (4) a game fulfils on a grid of scores.

    Args:
        game: a name or a game.
        span: > 0, scores from -span to span are tried, drawn into the domain if that is bounded.
        points: of the grid, at least 3.

    Returns:
        The report; `ratio_range` holds the smallest and largest p/q that the grid's scores tell. Without (2) it is nan,
        there is no s*, and the other two are False.

    Raises:
        ValueError: a bad span or number of points, or functions that do not work item by item.

    >>> game_report("wasserstein").faults[0]
    "p/q = -fake'(s) / real'(s) must rise strictly with the score, but stays at 1 near s = -12"
    """
    if not (0 < span < math.inf and points >= 3):
        raise ValueError(f"game_report needs a finite span > 0 and points >= 3, got {span} and {points}")
    game = as_game(game)
    grid = torch.linspace(-span, span, points, dtype=torch.float64)
    with torch.enable_grad():
        s = squash(grid, game.domain)[0].requires_grad_()
        real, fake = slope_of(game.real, s, "real"), slope_of(game.fake, s, "fake")
        fault = _critic_fault(s, real, fake)
        if fault:
            return GameReport(False, False, False, (math.nan, math.nan), (fault,))
        log_u = fake.abs().log() - real.abs().log()  # eq. (2)
        (rate,) = torch.autograd.grad(log_u.sum(), s)
        alpha = game.generator_real or torch.zeros_like
        values = alpha(s).detach()
        sign = float(real[0].detach().sign())
        push = sign * slope_of(game.generator, s, "generator").detach()  # eq. (4): > 0
        u = log_u.detach().exp()
        f_slope = values + (slope_of(alpha, s, "generator_real").detach() + sign * push / u) / rate.detach()  # of (3)
    faults = []
    bad = ~(push > 0)
    if bad.any():
        at = int(torch.where(bad, push, torch.inf).nan_to_num(-torch.inf).argmin())  # the worst
        faults.append(
            f"the generator must want what is scored as real, but generator'(s) = {sign * push[at].item():.3g} at s = "
            f"{s[at].item():.3g}, where p/q = {u[at].item():.3g}: with the critic held fixed it leaves such places"
        )
    convex = _rises(f_slope if sign < 0 else f_slope.flip(0), log_u.detach() if sign < 0 else log_u.detach().flip(0))
    if not convex:
        faults.append("u alpha(s) + c(s) is not strictly convex in u = p/q at the best score")
    ratio_range = (u.min().item(), u.max().item())
    return GameReport(True, not bad.any(), convex, ratio_range, tuple(faults))


def squash(s: Tensor, domain: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """A point of the domain for any number, and its derivative."""
    low, high = domain
    if low > -math.inf and high < math.inf:
        p = torch.sigmoid(s)
        return low + (high - low) * p, (high - low) * p * torch.sigmoid(-s)
    if low > -math.inf:
        return low - F.logsigmoid(-s), torch.sigmoid(s)
    if high < math.inf:
        return high + F.logsigmoid(s), torch.sigmoid(-s)
    return s.clone(), torch.ones_like(s)


def slope_of(fn: Scalar, s: Tensor, name: str) -> Tensor:
    """Derivative of an elementwise function, with its graph; 0 for a constant."""
    y = fn(s)
    if not isinstance(y, Tensor) or y.shape != s.shape:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{name} of a game must work item by item: for scores {tuple(s.shape)} it gives {got}; leave "
                         "means to gan_critic_loss and gan_generator_loss")  # fmt: skip
    if not y.requires_grad:
        return torch.zeros_like(s)
    (slope,) = torch.autograd.grad(y.sum(), s, create_graph=True, allow_unused=True)
    return torch.zeros_like(s) if slope is None else slope


def _critic_fault(s: Tensor, real: Tensor, fake: Tensor) -> str:
    """What breaks condition (2), or nothing."""
    s, real, fake = s.detach(), real.detach(), fake.detach()
    sign = real[0].sign()
    for name, slope, side in (("real", real, sign), ("fake", fake, -sign)):
        bad = ~(slope * side > 0) | ~slope.isfinite()
        if bad.any():
            at = int(bad.nonzero()[0])
            return (f"real'(s) and fake'(s) must keep opposite signs and never be 0, but {name}'(s) = "
                    f"{slope[at].item():.3g} at s = {s[at].item():.3g}")  # fmt: skip
    log_u = fake.abs().log() - real.abs().log()
    step = -sign * log_u.diff()  # a' < 0: rising
    bad = ~(step > 1e-9)  # rounding of the slopes is below
    if bad.any():
        at = int(bad.nonzero()[0])
        wanted, other = ("rise", "falls") if sign < 0 else ("fall", "rises")
        does = other if step[at] < -1e-9 else "stays"
        return (
            f"p/q = -fake'(s) / real'(s) must {wanted} strictly with the score, but {does} at "
            f"{log_u[at].exp().item():.3g} near s = {s[at].item():.3g}"
        )
    if not log_u.min() < 0 < log_u.max():
        return (f"no score says p = q: p/q runs from {log_u.min().exp().item():.3g} to {log_u.max().exp().item():.3g} "
                "only; multiply a loss or widen the domain")  # fmt: skip
    return ""


def _rises(slope: Tensor, log_u: Tensor) -> bool:
    """Whether a slope never falls beyond rounding, and rises where u = 1."""
    step = slope.diff()
    size = torch.maximum(slope[1:].abs(), slope[:-1].abs()) + 1e-3
    middle = int((log_u < 0).sum()) - 1  # the last point below u = 1
    return bool((step > -1e-9 * size).all() and step[middle] > 1e-9 * size[middle])
