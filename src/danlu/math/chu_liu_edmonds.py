r"""Chu-Liu/Edmonds: the best dependency tree of every sentence, crossing arcs allowed, with one root or several.

    h_d = argmax_h w(h, d)  for every word d; if that is a tree, it is the best one                             (1)
    else a circle C is contracted:  w(h, C) = max_{v in C} w(h, v) - w(h_v, v),   w(C, d) = max_{v in C} w(v, d)   (2)
    w = (- roots used, score), compared in this order, so that "one root" needs no big constant and no search    (3)

Pairs of (3) add and subtract part by part and are totally ordered, which is all that (1) and (2) need; forbidden arcs
weigh more than all roots together. With one big constant instead of pairs the scores' last digits are lost.

Source: Chu & Liu, 1965; Edmonds, 1967; McDonald et al., 2005 (dependency parsing). On the need of one root: Zmigrod et
al., 2020, arXiv:2008.11497. The pairs are ours.
Shapes: B sentences, n words of the longest.
"""

import numpy as np
import torch
from torch import Tensor

from danlu.math.dependency_tree import tree_inputs

__all__ = ["chu_liu_edmonds"]


def chu_liu_edmonds(scores: Tensor, mask: Tensor | None = None, single_root: bool = True) -> Tensor:
    """Heads of the best tree, eqs. (1) to (3).

    Args:
        scores: (B, n, n) score of each arc, dependents by heads; the diagonal holds the scores of roots; -inf forbids.
        mask: (B, n) bool, True = keep, any pattern; None keeps all.
        single_root: exactly one root; False allows several.

    Returns:
        (B, n) int64: 0 for a root, else the head's number from 1; -1 at masked words.

    Raises:
        ValueError: a shape does not fit, a score is nan or inf, or the scores forbid every tree of a sentence.

    >>> s = torch.tensor([[[0.0, 5.0, 0.0], [4.0, 1.0, 0.0], [0.0, 3.0, 0.0]]])  # words 1 and 2 want each other
    >>> chu_liu_edmonds(s)
    tensor([[2, 0, 2]])
    """
    x, lengths, order = tree_inputs("chu_liu_edmonds", scores, mask)
    heads = torch.full(order.shape, -1, dtype=torch.int64)
    for b, (rows, length, places) in enumerate(
        zip(x.cpu().numpy(), lengths.tolist(), order.cpu().numpy(), strict=True)
    ):
        if not length:
            continue
        weight = np.zeros((length + 1, length + 1))  # heads by dependents, place 0 is the root's
        weight[1:, 1:] = rows[:length, :length].T
        weight[0, 1:] = rows[:length, :length].diagonal()
        forbidden = np.isneginf(weight)
        np.fill_diagonal(forbidden, True)
        rank = np.where(forbidden, -(length + 1.0), 0.0)  # worse than a root at every word
        rank[0, 1:] -= float(single_root)  # eq. (3)
        found = _arborescence(rank, np.where(forbidden, 0.0, weight))
        dependents = np.arange(1, length + 1)
        if forbidden[found[1:], dependents].any() or (single_root and (found[1:] == 0).sum() != 1):
            raise ValueError(
                f"no {'single-rooted ' * single_root}tree of sentence {b} is allowed: too many of its arcs are -inf"
            )
        old = np.concatenate([[0], places[:length] + 1])  # numbers in the sentence as it was given
        heads[b, torch.from_numpy(places[:length])] = torch.from_numpy(old[found[1:]])
    return heads.to(scores.device)


Array = np.ndarray


def _arborescence(rank: Array, score: Array) -> Array:
    """Head of every node of a weighted graph (heads by dependents, node 0 the root, whose entry means nothing)."""
    stack: list[tuple[Array, Array, Array, Array, Array]] = []
    while True:
        heads = _best(rank, score)
        circle = _circle(heads)
        if circle is None:
            break
        inside = np.zeros(len(heads), dtype=bool)
        inside[circle] = True
        outer = np.flatnonzero(~inside)  # keeps 0 first; the circle becomes the last node
        into_rank = rank[np.ix_(outer, circle)] - rank[heads[circle], circle]  # (m, |C|)
        into_score = score[np.ix_(outer, circle)] - score[heads[circle], circle]
        enter = _lexicographic(into_rank, into_score, 1)  # which of the circle each head would take
        leave = _lexicographic(rank[np.ix_(circle, outer)], score[np.ix_(circle, outer)], 0)  # which governs each
        size = len(outer) + 1
        own = np.arange(len(outer))
        smaller = []
        for whole, into in ((rank, into_rank), (score, into_score)):
            part = np.zeros((size, size))
            part[:-1, :-1] = whole[np.ix_(outer, outer)]
            part[:-1, -1] = into[own, enter]  # eq. (2)
            part[-1, :-1] = whole[circle[leave], outer]
            smaller.append(part)
        stack.append((heads, circle, outer, enter, leave))
        rank, score = smaller
    while stack:
        inner, (heads, circle, outer, enter, leave) = heads, stack.pop()
        whole = heads.copy()
        from_circle = inner[:-1] == len(outer)
        whole[outer] = np.where(from_circle, circle[leave], outer[np.minimum(inner[:-1], len(outer) - 1)])
        whole[circle[enter[inner[-1]]]] = outer[inner[-1]]  # the arc into the circle breaks it
        heads = whole
    return heads


def _best(rank: Array, score: Array) -> Array:
    """Best head of every node other than itself, eq. (1)."""
    own = np.eye(len(rank), dtype=bool)
    return _lexicographic(np.where(own, -np.inf, rank), score, 0)


def _lexicographic(rank: Array, score: Array, axis: int) -> Array:
    """The first place of the largest pair (rank, score) along an axis."""
    top = rank.max(axis, keepdims=True)
    return np.where(rank == top, score, -np.inf).argmax(axis)


def _circle(heads: Array) -> Array | None:
    """Nodes of one circle of heads, or None; node 0 has no head."""
    state = np.zeros(len(heads), dtype=int)
    state[0] = -1
    for start in range(1, len(heads)):
        at = start
        while state[at] == 0:
            state[at] = start
            at = int(heads[at])
        if state[at] == start:
            members = [at]
            while (at := int(heads[at])) != members[0]:
                members.append(at)
            return np.array(sorted(members))
    return None
