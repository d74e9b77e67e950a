r"""Which loops a repetition index is made of.

Every closed walk is a power of one that is no power itself, begun at one of its k places. So with w_c = prod P^2 along
such a cycle c, once round,

    R = sum_c k_c w_c / (1 - w_c)                                                                           (1)

The cycle's summand is its contribution: rotations and powers ("ab", "ba", "abab") are in it. A cycle may pass a token
several times ("a a b"). The largest contributions name the loops that a decoder falls into.

Source: the cycles of kexue.fm/archives/8128, gathered by rotation and power.
Shapes: n tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from danlu.probe.bigram import checked_transitions

__all__ = ["Cycle", "top_cycles"]


@dataclass(frozen=True)
class Cycle:
    """A loop: its tokens from the least rotation on, the probability of going round once, its summand of eq. (1)."""

    tokens: tuple[int, ...]
    probability: float
    contribution: float


def top_cycles(P: Tensor, count: int = 10, max_length: int = 6, least: float = 1e-6) -> list[Cycle]:
    """The cycles that contribute most to the repetition index, eq. (1).

    Args:
        P: (n, n) transition probabilities without the end token, dense or sparse.
        count: how many.
        max_length: longest cycle looked for, in tokens.
        least: smaller contributions are not looked for.

    Returns:
        At most `count` cycles, the largest contribution first; a cycle of certain transitions contributes inf.

    Raises:
        ValueError: P is no such matrix, or a setting is out of range.

    >>> [(c.tokens, round(c.contribution, 4)) for c in top_cycles(torch.tensor([[0.0, 1.0], [0.5, 0.0]]))]
    [((0, 1), 0.6667)]
    """
    if count < 1 or max_length < 1 or not least > 0:
        raise ValueError(
            f"top_cycles needs count >= 1, max_length >= 1 and least > 0; got {count}, {max_length}, {least}"
        )
    P = checked_transitions("top_cycles", P)
    threshold = 0.1
    while True:
        found = _cycles(P, max_length, threshold)
        if len(found) >= count or threshold <= least:
            return sorted(found, key=lambda c: (-c.contribution, len(c.tokens), c.tokens))[:count]
        threshold = max(threshold / 10, least)


def _cycles(P: Tensor, max_length: int, threshold: float) -> list[Cycle]:
    """All cycles up to the length whose contribution is at least the threshold."""
    lightest = threshold / (max_length + threshold)  # k w / (1 - w) >= threshold needs w >= threshold / (k + threshold)
    follow = _neighbours(P, lightest)
    found = []
    for start in follow:
        walks: list[tuple[tuple[int, ...], float]] = [((start,), 1.0)]
        while walks:
            walk, weight = walks.pop()
            for token, q in follow.get(walk[-1], ()):
                w = weight * q
                if w < lightest:
                    break  # the next ones are lighter still
                if token == start and _is_least_rotation(walk):
                    k = len(walk)
                    contribution = k * w / (1 - w) if w < 1 else torch.inf  # eq. (1)
                    if contribution >= threshold:
                        found.append(Cycle(walk, w**0.5, contribution))
                if token >= start and len(walk) < max_length:
                    walks.append(((*walk, token), w))
    return found


def _neighbours(P: Tensor, lightest: float) -> dict[int, list[tuple[int, float]]]:
    """token -> (next token, P^2) for the entries of Q that are heavy enough, the heaviest first."""
    P = P if P.is_sparse else P.masked_fill(lightest > P * P, 0.0).to_sparse()
    (rows, columns), values = P.indices().numpy(), P.values().numpy() ** 2
    heavy = values >= lightest
    rows, columns, values = rows[heavy], columns[heavy], values[heavy]
    order = np.lexsort((columns, -values, rows))
    follow: dict[int, list[tuple[int, float]]] = {}
    for row, column, value in zip(rows[order].tolist(), columns[order].tolist(), values[order].tolist(), strict=True):
        follow.setdefault(row, []).append((column, 1.0 if value > 1 - 1e-12 else value))
    return follow


def _is_least_rotation(walk: tuple[int, ...]) -> bool:
    """Whether every other rotation is larger: each cycle passes once, and no power of a shorter one does."""
    return all(walk < walk[i:] + walk[:i] for i in range(1, len(walk)))
