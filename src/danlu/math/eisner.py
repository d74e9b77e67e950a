r"""Eisner's algorithm: the best projective dependency tree of every sentence of a batch, with one root or several.

    I[i, j]  = max_k R[i, k] + L[k + 1, j]                            two complete halves, about to be joined    (1)
    R'[i, j] = I[i, j] + s[j, i],      L'[i, j] = I[i, j] + s[i, j]   the arc i -> j, or j -> i, over them       (2)
    R[i, j]  = max_k R'[i, k] + R[k, j]                               head i at the left end, complete           (3)
    L[i, j]  = max_k L[i, k] + L'[k, j]                               head j at the right end, complete          (4)
    one root:      max_r L[1, r] + R[r, n] + s[r, r]                                                             (5)
    several roots: R[0, n] with a word 0 in front whose arcs score s[d, d] and that nothing governs              (6)

All spans of one width are computed at once, for all sentences: n steps of work B n^2. Eq. (5) gives the exact best tree
with one root at no more cost; many public versions compute (6) alone and return several roots. Among equal trees the
leftmost split wins.

Source: Eisner, 1996, Three new probabilistic models for dependency parsing (COLING); used on impact matrices by Wu et
al., 2020, arXiv:2004.14786.
Shapes: B sentences, n words of the longest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.dependency_tree import tree_inputs

__all__ = ["eisner"]


def eisner(scores: Tensor, mask: Tensor | None = None, single_root: bool = True) -> Tensor:
    """Heads of the best projective tree, eqs. (1) to (6).

    Args:
        scores: (B, n, n) score of each arc, dependents by heads; the diagonal holds the scores of roots; -inf forbids.
        mask: (B, n) bool, True = keep, any pattern; None keeps all.
        single_root: exactly one root, eq. (5); False allows several, eq. (6).

    Returns:
        (B, n) int64: 0 for a root, else the head's number from 1; -1 at masked words.

    Raises:
        ValueError: a shape does not fit, a score is nan or inf, or the scores forbid every tree of a sentence.

    >>> s = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 9.0, 0.0], [0.0, 3.0, 0.0]]])  # the middle word is a good head
    >>> eisner(s)
    tensor([[2, 0, 2]])
    """
    x, lengths, order = tree_inputs("eisner", scores, mask)
    batch, n = x.shape[:2]
    roots = x.diagonal(dim1=1, dim2=2)  # (B, n)
    if not single_root:
        x = F.pad(x, (1, 0, 1, 0), value=-torch.inf)
        x[:, 1:, 0] = roots  # eq. (6)
    m = x.shape[1]
    if not n or not batch:
        return torch.full((batch, n), -1, dtype=torch.int64, device=scores.device)
    right, left, splits = _chart(x)
    starts: tuple[Tensor, Tensor | None]  # flat places of the halves that the whole tree is made of
    number = torch.arange(m, device=x.device)
    if single_root:
        width = (lengths[:, None] - 1 - number).clamp_min(0)  # (B, n) words after each root
        total = left.diagonal(dim1=1, dim2=2) + right.gather(2, width[:, :, None])[:, :, 0] + roots
        total = total.masked_fill(number >= lengths[:, None], -torch.inf)  # eq. (5)
        best, root = total.max(1)  # (B,)
        starts = (root * m + (lengths - 1 - root).clamp_min(0), root)  # R[r, n] and L[1, r]
    else:
        best = right[:, 0].gather(1, lengths[:, None])[:, 0]
        starts = (lengths, None)
    failed = (best == -torch.inf) & (lengths > 0)
    if bool(failed.any()):
        raise ValueError(
            f"no {'single-rooted ' * single_root}projective tree of sentence {int(failed.nonzero()[0, 0])} is allowed: "
            "too many of its arcs are -inf"
        )
    heads = _heads(splits, starts, m)  # (B, m), 0 for none, places from 0 else from 1
    heads = heads if single_root else (heads - 1).clamp_min(0)[:, 1:]
    kept = torch.arange(n, device=x.device) < lengths[:, None]
    old = order.gather(1, (heads - 1).clamp_min(0)) + 1  # the head's number in the sentence as it was given
    heads = torch.where(kept, torch.where(heads > 0, old, torch.zeros_like(old)), torch.full_like(old, -1))
    return torch.empty_like(heads).scatter_(1, order, heads)


Splits = tuple[Tensor, Tensor, Tensor]


def _chart(x: Tensor) -> tuple[Tensor, Tensor, Splits]:
    """R by its left end, L by its right end, and where (1), (3) and (4) split; [b, end, width] each, widths from 0."""
    batch, m = x.shape[:2]
    empty = torch.full((batch, m, m), -torch.inf, dtype=x.dtype, device=x.device)
    by_left = {key: empty.clone() for key in ("R", "R'", "L")}
    by_right = {key: empty.clone() for key in ("R", "L'", "L")}
    for half in (by_left["R"], by_left["L"], by_right["R"], by_right["L"]):
        half[:, :, 0] = 0.0  # a word by itself
    middle, right, left = (torch.zeros((batch, m, m), dtype=torch.int64, device=x.device) for _ in range(3))
    for w in range(1, m):  # spans i .. i + w, i = 0 .. m - w - 1
        c = m - w
        joined, middle[:, :c, w] = (by_left["R"][:, :c, :w] + by_right["L"][:, w:, :w].flip(2)).max(2)  # eq. (1)
        by_left["R'"][:, :c, w] = joined + x.diagonal(-w, 1, 2)  # eq. (2)
        by_right["L'"][:, w:, w] = joined + x.diagonal(w, 1, 2)
        complete, at = (by_left["R'"][:, :c, 1 : w + 1] + by_right["R"][:, w:, :w].flip(2)).max(2)  # eq. (3)
        by_left["R"][:, :c, w] = by_right["R"][:, w:, w] = complete
        right[:, :c, w] = at + 1
        complete, left[:, :c, w] = (by_left["L"][:, :c, :w] + by_right["L'"][:, w:, 1 : w + 1].flip(2)).max(
            2
        )  # eq. (4)
        by_left["L"][:, :c, w] = by_right["L"][:, w:, w] = complete
    return by_left["R"], by_right["L"], (middle, right, left)


def _heads(splits: Splits, starts: tuple[Tensor, Tensor | None], m: int) -> Tensor:
    """Walk down from the whole sentence, widest spans first, all sentences at once; heads count places from 1."""
    middle, right, left = splits
    batch = len(middle)
    used = {key: torch.zeros(batch, m * m, dtype=torch.int32, device=middle.device) for key in ("R", "R'", "L", "L'")}
    heads = torch.zeros(batch, m, dtype=torch.int64, device=middle.device)

    def use(key: str, i: Tensor, width: Tensor, count: Tensor) -> None:
        used[key].scatter_add_(1, i * m + width, count)

    first, second = starts
    ones = torch.ones(batch, 1, dtype=torch.int32, device=middle.device)
    used["R"].scatter_add_(1, first[:, None], ones)
    if second is not None:
        used["L"].scatter_add_(1, second[:, None], ones)
    for w in range(m - 1, 0, -1):
        c = m - w
        i = torch.arange(c, device=middle.device)  # (c,)
        live = used["R"].view(batch, m, m)[:, :c, w].clone()  # (B, c) 1 where R[i, i + w] is part of the tree
        k = right[:, :c, w]
        use("R'", i, k, live)
        use("R", i + k, w - k, live)
        live = used["L"].view(batch, m, m)[:, :c, w].clone()
        k = left[:, :c, w]
        use("L", i, k, live)
        use("L'", i + k, w - k, live)
        rightward, leftward = (used[key].view(batch, m, m)[:, :c, w] for key in ("R'", "L'"))
        heads[:, w:] = torch.where(rightward > 0, i + 1, heads[:, w:])
        heads[:, :c] = torch.where(leftward > 0, i + w + 1, heads[:, :c])
        k = middle[:, :c, w]
        live = rightward + leftward
        use("R", i, k, live)
        use("L", i + k + 1, w - 1 - k, live)
    return heads
