r"""GANs small enough to be exact: a table for a critic, a softmax for a generator, no sampling.

    critic       s*(x) = the score with log u(s*) = log p(x) / q(x)                                        (1)
    generator    q = softmax(theta),   theta <- theta - lr q (c - sum q c),   c(x) = c(s*(x))              (2)

c is the generator's loss of the game and (2) the gradient of E_q[c(s*)] with s* held fixed, which is what training
does: one generator step after the critic has answered. Where c(s*(u)) falls strictly in u = p / q, (2) descends a
divergence and ends at q = p; where it does not, q leaves places that have too little (`danlu.losses.game_report`).
Least squares with the midpoint for a target is such a game, although its value has its minimum at q = p.

Source: kexue.fm/archives/7210; Basioti and Moustakides, 2020, arXiv:2002.00865; the table and (2) are ours.
Shapes: K outcomes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from danlu.losses.gan import GanGame, as_game
from danlu.losses.likelihood_ratio import game_log_ratio

__all__ = ["FiniteGame", "best_scores", "finite_game_gradient", "play_finite_game"]

REACH = 30.0  # scores are looked for up to here where the game has no domain


@dataclass(frozen=True)
class FiniteGame:
    """Where a game ended: q (K,), and the total variation to p after each step (steps + 1,)."""

    probabilities: Tensor
    distances: Tensor


def best_scores(log_ratio: Tensor, game: str | GanGame = "non_saturating") -> Tensor:
    """The best critic's scores for known log p/q, eq. (1).

    Args:
        log_ratio: any shape and float dtype.
        game: a name of `danlu.losses.gan`, or a game; its critic must know p/q.

    Returns:
        The shape of log_ratio, float64, without a graph; the end of the domain, or +-30, where no score says as much.

    Raises:
        ValueError: the critic of this game does not know p/q.

    >>> best_scores(torch.tensor([1.0986]), "least_squares")  # (3 - 1) / (3 + 1)
    tensor([0.5000], dtype=torch.float64)
    """
    game, v = as_game(game), log_ratio.detach().double()
    low, high = (max(-REACH, game.domain[0]), min(REACH, game.domain[1]))
    below, above = torch.full_like(v, low), torch.full_like(v, high)
    for _ in range(60):
        middle = (below + above) / 2
        up = game_log_ratio(middle, game).detach() < v
        below, above = torch.where(up, middle, below), torch.where(up, above, middle)
    return (below + above) / 2


def finite_game_gradient(p: Tensor, logits: Tensor, game: str | GanGame = "non_saturating") -> Tensor:
    """The generator's gradient with respect to its logits at the best critic held fixed, eq. (2).

    Args:
        p: (K,) probabilities of the data, > 0.
        logits: (K,) theta.
        game: a name of `danlu.losses.gan`, or a game; its critic must know p/q.

    Returns:
        (K,) float64.

    Raises:
        ValueError: p is no distribution with K > 0 positive outcomes, logits of another shape, or a game whose critic
            does not know p/q.

    >>> finite_game_gradient(torch.tensor([0.5, 0.5]), torch.zeros(2)).abs().sum().item()  # q = p already
    0.0
    """
    _check(p, logits)
    q = logits.double().softmax(0)
    with torch.no_grad():
        cost = as_game(game).generator(best_scores(p.double().log() - q.log(), game))
    return q * (cost - (q * cost).sum())  # eq. (2)


def play_finite_game(
    p: Tensor, logits: Tensor, game: str | GanGame = "non_saturating", lr: float = 0.5, steps: int = 1_000
) -> FiniteGame:
    """Plain steps of the generator against the best critic, eq. (2).

    Args:
        p: (K,) probabilities of the data, > 0.
        logits: (K,) theta at the start.
        game: a name of `danlu.losses.gan`, or a game; its critic must know p/q.
        lr: > 0.
        steps: >= 0.

    Returns:
        Where it ended.

    Raises:
        ValueError: as `finite_game_gradient`, or lr or steps out of range.

    >>> play_finite_game(torch.tensor([0.8, 0.2]), torch.zeros(2), "gan", steps=300).distances[-1].item() < 1e-3
    True
    """
    _check(p, logits)
    if not (0 < lr < math.inf and steps >= 0):
        raise ValueError(f"play_finite_game needs a finite lr > 0 and steps >= 0, got {lr} and {steps}")
    p, theta = p.double(), logits.double()
    distances = [(p - theta.softmax(0)).abs().sum() / 2]
    for _ in range(steps):
        theta = theta - lr * finite_game_gradient(p, theta, game)
        distances.append((p - theta.softmax(0)).abs().sum() / 2)
    return FiniteGame(theta.softmax(0), torch.stack(distances))


def _check(p: Tensor, logits: Tensor) -> None:
    if p.ndim != 1 or not len(p) or p.shape != logits.shape:
        raise ValueError(f"a finite game needs p (K,) and logits (K,); got {tuple(p.shape)} and {tuple(logits.shape)}")
    if not (bool((p > 0).all()) and abs(float(p.double().sum()) - 1) < 1e-4):
        raise ValueError(f"p must be probabilities > 0 of sum 1, got {p.tolist()}; leave out what never happens")
