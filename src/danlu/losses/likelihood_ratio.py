r"""GAN losses designed from the likelihood ratio: any increasing function and any weight make one.

    a(s) = -int_{s1}^s w(z) dz,   b(s) = int_{s1}^s u(z) w(z) dz,   u(s1) = 1                          (1)
    u(s) = -b'(s) / a'(s)                                                                              (2)
    E_p[q/p] = 1,   E_q[p/q] = 1                                                                       (3)

a and b are the critic's losses on real and generated examples (`danlu.losses.gan`), p the data, q the model. With w > 0
and u strictly increasing the best critic's score is the s with u(s) = p/q, and every pair of losses with such a critic
is (1) for some u and w; the proof and the test are in `danlu.losses.gan_check`. A change of variable in s changes only
how a score is read: with u = e^s the weight alone makes the game, w = 1 / (1 + e^s) the original one.

(2) reads the ratio off a trained critic, which makes it a tool for weighting and rejecting samples, and (3), over
supports that agree, shows how far from the best the critic is; the spread of log p/q shows how far the model is.

Source: kexue.fm/archives/7210; Basioti and Moustakides, 2020, arXiv:2002.00865. Both write r = q/p = 1/u, with fakes
scoring high: omega(r) is the score, rho = u w with respect to it.
Shapes: any.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from danlu.losses.gan import GanGame, as_game, continued, generator_of
from danlu.losses.gan_check import check_game, game_report, slope_of, squash
from danlu.math.precision import wide

__all__ = ["RatioBalance", "game_log_ratio", "ratio_balance", "ratio_game"]

Scalar = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RatioBalance:
    """E_p[q/p] and E_q[p/q], both 1 for a perfect critic on equal supports, and the spread of log p/q."""

    real: Tensor
    fake: Tensor
    spread: Tensor


def ratio_game(
    log_ratio: Scalar,
    weight: Scalar,
    generator: str | Scalar = "minimax",
    domain: tuple[float, float] = (-math.inf, math.inf),
    limit: float = 20.0,
) -> GanGame:
    """The game whose best critic reads log p/q by `log_ratio`, eq. (1), integrated numerically with exact gradients.

    Args:
        log_ratio: log u(t), strictly increasing and 0 somewhere; like `weight` elementwise, in float64 inside.
        weight: w(t) > 0.
        generator: "minimax", "real", "kl" (see `danlu.losses.gan`), or a function of the critic's score.
        domain: where t lives; a finite bound is met through a sigmoid or a softplus, so that scores may be any number.
        limit: > 0, the |score| beyond which the losses run straight on.

    Returns:
        The game; its functions take raw scores, of any size.

    Raises:
        ValueError: a bad domain or limit, or functions that `check_game` refuses.

    >>> game = ratio_game(lambda t: t, lambda t: torch.sigmoid(-t), "real")  # the non-saturating game
    >>> game.generator(torch.tensor([-1.0]))  # log(1 + e) less log 2: a is 0 at p = q
    tensor([0.6201])
    """
    if not (domain[0] < domain[1] and 0 < limit < math.inf):
        raise ValueError(f"ratio_game needs domain = (low, high) with low < high and a finite limit > 0, got domain "
                         f"{domain} and limit {limit}")  # fmt: skip

    def read(s: Tensor) -> Tensor:  # log u of a raw score
        return log_ratio(squash(s.clamp(-limit, limit).double(), domain)[0]).to(s.dtype)

    def slope_real(s: Tensor) -> Tensor:
        t, rate = squash(s.double(), domain)
        return (-weight(t) * rate).to(s.dtype)

    def slope_fake(s: Tensor) -> Tensor:
        t, rate = squash(s.double(), domain)
        return (log_ratio(t).exp() * weight(t) * rate).to(s.dtype)

    def build(start: float) -> GanGame:
        real, fake = (  # eq. (1)
            continued(partial(_integral, slope, start), slope, limit) for slope in (slope_real, slope_fake)
        )
        game = generator_of(generator, real, fake, read)
        return GanGame(real, fake, game.generator, game.generator_real, (-limit, limit), read)

    check_game(build(0.0))
    return build(_bisect(read, -limit, limit))


def game_log_ratio(scores: Tensor, game: str | GanGame) -> Tensor:
    """log p/q of the data over the model as a critic trained to the end tells it, eq. (2).

    Args:
        scores: the critic's raw scores, any shape and float dtype.
        game: a name or a game; one without `log_ratio` is checked and differentiated.

    Returns:
        The shape of scores, float32 or better.

    Raises:
        ValueError: the critic of this game does not know p/q.

    >>> game_log_ratio(torch.tensor([0.5]), "least_squares")  # (0.5 + 1) to (1 - 0.5)
    tensor([1.0986])
    """
    game, x = as_game(game), wide(scores)
    if game.log_ratio is not None:
        return game.log_ratio(x)
    report = game_report(game)
    if not report.critic:
        raise ValueError(
            f"the scores of this game do not tell p/q: {report.faults[0]}; take 'non_saturating' or ratio_game()"
        )
    with torch.enable_grad():
        s = x if x.requires_grad else x.detach().requires_grad_()
        log_u = slope_of(game.fake, s, "fake").abs().log() - slope_of(game.real, s, "real").abs().log()  # eq. (2)
    return log_u if scores.requires_grad and torch.is_grad_enabled() else log_u.detach()


def ratio_balance(real_scores: Tensor, fake_scores: Tensor, game: str | GanGame = "non_saturating") -> RatioBalance:
    """How far a critic is from the likelihood ratio, by two means that must be 1.

    Args:
        real_scores: scores of real examples, any shape, at least one.
        fake_scores: scores of generated examples, any shape, at least one.
        game: a name or a game.

    Returns:
        Scalars without a graph: the mean of q/p over real examples, of p/q over generated ones, and the standard
        deviation of log p/q over both, which falls to 0 as the model becomes the data.

    Raises:
        ValueError: an empty batch, or a game whose critic does not know p/q.

    >>> ratio_balance(torch.zeros(2), torch.zeros(2)).fake
    tensor(1.)
    """
    if not (real_scores.numel() and fake_scores.numel()):
        raise ValueError(f"ratio_balance needs a score in each batch, got {tuple(real_scores.shape)} and "
                         f"{tuple(fake_scores.shape)}")  # fmt: skip
    with torch.no_grad():
        real, fake = game_log_ratio(real_scores, game), game_log_ratio(fake_scores, game)
        both = torch.cat([real.flatten(), fake.flatten()])
        return RatioBalance((-real).exp().mean(), fake.exp().mean(), both.std(correction=0))


def _integral(slope: Scalar, start: float, s: Tensor) -> Tensor:
    """int_start^s of the slope."""
    value: Tensor = _Integral.apply(s, slope, start)
    return value


class _Integral(torch.autograd.Function):
    """int_start^s of a function, by Gauss-Legendre on 8 panels; backward is the function itself."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, slope: Scalar, start: float) -> Tensor:
        ctx.save_for_backward(s)
        ctx.slope = slope
        nodes, weights = np.polynomial.legendre.leggauss(16)
        far = s.double() - start
        total = torch.zeros_like(far)
        for panel in range(8):
            for node, share in zip((nodes + 1) / 2, weights / 16, strict=True):
                total += float(share) * slope(start + far * float((panel + node) / 8))
        return (far * total).to(s.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (s,) = ctx.saved_tensors
        return grad * ctx.slope(s), None, None


def _bisect(fn: Scalar, low: float, high: float) -> float:
    """Where an increasing function is 0."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if fn(torch.tensor(middle, dtype=torch.float64)) < 0 else (low, middle)
    return (low + high) / 2
