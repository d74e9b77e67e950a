r"""GAN losses as games: what the critic pays on real and on generated examples, and what the generator pays.

    critic     min over s   E_p[a(s)] + E_q[b(s)]                                                      (1)
    generator  min over q   E_q[c(s)],  s held fixed                                                   (2)

p is the data, q the model, s = s(x) the critic's score, high for real. a, b, c of the games known by name:

    gan              softplus(-s)      softplus(s)      -softplus(s)
    non_saturating   softplus(-s)      softplus(s)      softplus(-s)
    kl_generator     softplus(-s)      softplus(s)      -s
    least_squares    (s - 1)^2         (s + 1)^2        (s - 1)^2                                      (3)
    hellinger, kliep, chi2, forward_kl  eq. (4) with k = -1/2, 0, 1, -1
    hinge            max(0, 1 - s)     max(0, 1 + s)    -s
    total_variation  -tanh(s)          tanh(s)          -tanh(s)
    wasserstein      -s                s                -s

    a = (e^{-(k+1)s} - 1) / (k + 1),  b = (1 - e^{-ks}) / k,  c = -b;   limits at k = 0 and -1         (4)

The best critic of the logistic games and of (4) is s = log p/q; that of (3), with labels A and B for real and fake, is
(A p + B q) / (p + q); `likelihood_ratio` derives such games, `gan_check` tests whether yours is one. The last
three have no such critic: the hinge's is sign(p - q), and "wasserstein" needs a Lipschitz bound, which the caller adds.
The power and the exponential families of the post are both (4), up to a factor and the scale of s: with f = -(u a + b)
at u = p/q the game's value is -E_q[f(u)], and f(u) = u^{-k} / (k (k + 1)) + u / (k + 1) - 1 / k, an alpha-divergence.

The generator may be "minimax" (c = -b, zero-sum), "real" (c = a: take fakes for real, the non-saturating form) or "kl"
(c = -log p/q, minimising KL(q || p)). Exponentials run straight on beyond |s| = limit, as if the ratio were clipped to
e^{+-limit}: no overflow, and a gradient that leads back. Computed in float32 or better.

Source: kexue.fm/archives/7210, where fakes score high; Basioti and Moustakides, 2020, arXiv:2002.00865. Least squares:
Mao et al., 2016, arXiv:1611.04076 (its other choice, target 0, is refuted in `gan_check`).
Shapes: any; the two batches may differ.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.f_alpha import growth
from danlu.math.precision import wide
from danlu.math.reduce import reduce_loss

__all__ = ["GanGame", "gan_critic_loss", "gan_game", "gan_generator_loss", "least_squares_game", "power_game"]

Scalar = Callable[[Tensor], Tensor]  # elementwise, differentiable


@dataclass(frozen=True)
class GanGame:
    """The three losses of a game, functions of the score that work item by item, and what is known of its best critic.

    `generator_real` is what the generator's objective adds on real examples (alpha of the post): it has no gradient and
    matters only for the analysis. `domain` is where scores belong; `log_ratio` gives log p/q from a best score.
    """

    real: Scalar
    fake: Scalar
    generator: Scalar
    generator_real: Scalar | None = None
    domain: tuple[float, float] = (-math.inf, math.inf)
    log_ratio: Scalar | None = None


def gan_critic_loss(
    real_scores: Tensor, fake_scores: Tensor, game: str | GanGame = "non_saturating", reduction: str = "mean"
) -> Tensor:
    """What the critic minimises, eq. (1); give it generated examples cut off by detach().

    Args:
        real_scores: scores of real examples, any shape and float dtype.
        fake_scores: scores of generated examples, any shape.
        game: a name of the table or a game.
        reduction: "mean" or "sum", of each batch; an empty batch counts 0.

    Returns:
        Scalar, float32 or better.

    Raises:
        ValueError: an unknown game, or a reduction that leaves more than a number.

    >>> gan_critic_loss(torch.zeros(2), torch.zeros(3))  # the critic knows nothing: 2 log 2
    tensor(1.3863)
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"gan_critic_loss adds two batches, so reduction must be 'mean' or 'sum', got {reduction!r}")
    game = as_game(game)
    real, fake = game.real(wide(real_scores)), game.fake(wide(fake_scores))
    return reduce_loss(real, reduction) + reduce_loss(fake, reduction)  # eq. (1)


def gan_generator_loss(
    fake_scores: Tensor, game: str | GanGame = "non_saturating", reduction: str = "mean", mask: Tensor | None = None
) -> Tensor:
    """What the generator minimises, eq. (2).

    Args:
        fake_scores: scores of generated examples with their graph, any shape and float dtype.
        game: a name of the table or a game; the one of the critic.
        reduction: "mean", "sum" or "none"; "none" puts 0 where the mask drops an item.
        mask: bool, the shape of fake_scores, True = keep; None keeps all.

    Returns:
        Scalar, or the shape of fake_scores for "none"; float32 or better.

    Raises:
        ValueError: an unknown game or reduction, or a mask that does not fit.

    >>> gan_generator_loss(torch.tensor([3.0, 1.0]), "wasserstein")
    tensor(-2.)
    """
    scores = wide(fake_scores)
    if mask is not None and mask.shape == scores.shape and mask.dtype == torch.bool:  # else reduce_loss says what is
        scores = scores.masked_fill(~mask, 0.0)  # wrong
    return reduce_loss(as_game(game).generator(scores), reduction, mask)  # eq. (2)


def gan_game(name: str) -> GanGame:
    """The game of that name in the table.

    Args:
        name: "gan", "non_saturating", "kl_generator", "least_squares", "hellinger", "kliep", "chi2", "forward_kl",
            "hinge", "total_variation" or "wasserstein".

    Returns:
        The game.

    Raises:
        ValueError: an unknown name.

    >>> gan_game("hinge").real(torch.tensor([-1.0, 2.0]))
    tensor([2., 0.])
    """
    if name not in GAMES:
        raise ValueError(f"no game {name!r}; there are {', '.join(GAMES)}; for your own give a GanGame or ratio_game()")
    return GAMES[name]


def least_squares_game(real: float = 1.0, fake: float = -1.0, target: float | None = None) -> GanGame:
    """Squares of the distances to three labels, eq. (3).

    Args:
        real: label of real examples.
        fake: label of generated ones, below real.
        target: what the generator wants to score; None for `real`. The midpoint of the labels drives mass away from
            where the model has too little: see `game_report`.

    Returns:
        The game; scores belong between fake and real, beyond them the ratio reads as 0 or infinite.

    Raises:
        ValueError: the labels are not in order or not finite.

    >>> least_squares_game(1.0, 0.0).log_ratio(torch.tensor([0.75]))  # log of 3 to 1
    tensor([1.0986])
    """
    goal = real if target is None else target
    if not (-math.inf < fake < real < math.inf and math.isfinite(goal)):
        raise ValueError(f"least_squares_game needs finite labels with fake < real, got real={real}, fake={fake}, "
                         f"target={target}; if your fakes score high, negate the scores")  # fmt: skip

    def generator(s: Tensor) -> Tensor:
        return (s - goal).square()

    return GanGame(
        lambda s: (s - real).square(),  # eq. (3)
        lambda s: (s - fake).square(),
        generator,
        generator,
        (fake, real),
        lambda s: (s - fake).clamp_min(0).log() - (real - s).clamp_min(0).log(),
    )


def power_game(k: float, generator: str | Scalar = "minimax", limit: float = 20.0) -> GanGame:
    """The game of the alpha-divergence u^-k, eq. (4); its best score is log p/q.

    Args:
        k: -1 is KL(p || q), -1/2 Hellinger, 0 KL(q || p), 1 the chi-squared of q against p.
        generator: "minimax", "real", "kl", or a function of the scores.
        limit: > 0, the |s| beyond which a and b run straight on.

    Returns:
        The game.

    Raises:
        ValueError: k or limit not finite, exponents that overflow float32 at the limit, or an unknown generator.

    >>> power_game(0.0).fake(torch.tensor([2.0]))  # KL(q || p) is E_q[-s] at the best critic
    tensor([2.])
    """
    steepest = max(abs(k), abs(k + 1))
    if not (limit > 0 and steepest * limit <= 80):
        raise ValueError(
            f"power_game needs limit > 0 and max(|k|, |k + 1|) * limit <= 80, got k={k} and limit={limit}; e^80 nearly "
            "fills float32: lower limit"
        )

    def falling(power: float) -> Scalar:  # (e^{-power s} - 1) / power and its limit -s
        return continued(lambda s: -growth(-power, s), lambda s: -torch.exp(-power * s), limit)

    below = falling(k)
    game = generator_of(generator, falling(k + 1), lambda s: -below(s), lambda s: s.clamp(-limit, limit))  # eq. (4)
    return GanGame(game.real, game.fake, game.generator, game.generator_real, (-limit, limit), game.log_ratio)


def generator_of(generator: str | Scalar, real: Scalar, fake: Scalar, log_ratio: Scalar) -> GanGame:
    """A critic's a, b and log p/q with the generator of that name."""
    if callable(generator):
        return GanGame(real, fake, generator, log_ratio=log_ratio)
    if generator == "minimax":
        return GanGame(real, fake, lambda s: -fake(s), lambda s: -real(s), log_ratio=log_ratio)
    if generator == "real":
        return GanGame(real, fake, real, real, log_ratio=log_ratio)
    if generator == "kl":
        return GanGame(real, fake, lambda s: -log_ratio(s), log_ratio=log_ratio)
    raise ValueError(f"generator must be 'minimax', 'real', 'kl' or a function of the scores, got {generator!r}")


def continued(value: Scalar, slope: Scalar, limit: float) -> Scalar:
    """A function that is `value` up to |s| = limit and its tangent, with that slope, beyond."""

    def straight(s: Tensor) -> Tensor:
        inside = s.clamp(-limit, limit)
        return value(inside) + slope(inside) * (s - inside)

    return straight


def as_game(game: str | GanGame) -> GanGame:
    """A game from its name, or the game itself."""
    return game if isinstance(game, GanGame) else gan_game(game)


def _softplus(s: Tensor) -> Tensor:
    return -F.logsigmoid(-s)  # torch's softplus drops the rest beyond 20


def _logistic(generator: str) -> GanGame:
    return generator_of(generator, lambda s: _softplus(-s), _softplus, lambda s: s)


GAMES: dict[str, GanGame] = {
    "gan": _logistic("minimax"),
    "non_saturating": _logistic("real"),
    "kl_generator": _logistic("kl"),
    "least_squares": least_squares_game(),
    "hellinger": power_game(-0.5),
    "kliep": power_game(0.0),
    "chi2": power_game(1.0),
    "forward_kl": power_game(-1.0),
    "hinge": GanGame(lambda s: F.relu(1 - s), lambda s: F.relu(1 + s), torch.neg),
    "total_variation": GanGame(lambda s: -s.tanh(), torch.tanh, lambda s: -s.tanh(), torch.tanh),
    "wasserstein": GanGame(torch.neg, lambda s: s, torch.neg),
}
