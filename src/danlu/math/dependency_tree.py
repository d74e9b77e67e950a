r"""What decoders of dependency trees share: how arcs, roots and padding are written down, and the sum of a tree.

    S(heads) = sum over words d of  s[d, h_d]  if a word h_d is its head,  s[d, d]  if d is a root             (1)

A head is counted as in CoNLL-U: 0 for a root, else the number of the head word from 1; -1 stands at words that are
masked. Rows of s are dependents, columns heads, as in an impact matrix; the diagonal holds the scores of roots. -inf
forbids an arc.

Source: own definitions; the count of heads is that of CoNLL-U (universaldependencies.org/format.html).
Shapes: B sentences, n words of the longest.
"""

import torch
from torch import Tensor

__all__ = ["is_projective", "is_tree", "tree_inputs", "tree_score"]


def tree_inputs(name: str, scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Arc scores with the kept words first, and what brings heads back to their places.

    Args:
        name: the function that asks, for its messages.
        scores: (B, n, n) arc scores, dependents by heads.
        mask: (B, n) bool, True = keep; None keeps all.

    Returns:
        scores in float64 (float32 on devices without it), kept words first and zeros elsewhere; lengths (B,); order
        (B, n), the old place of each new one.

    Raises:
        ValueError: a shape does not fit, the mask is not bool, or a score is nan or inf.

    >>> tree_inputs("demo", torch.ones(1, 2, 2), torch.tensor([[False, True]]))[1:]
    (tensor([1]), tensor([[1, 0]]))
    """
    if scores.ndim != 3 or scores.shape[1] != scores.shape[2]:
        raise ValueError(
            f"{name} needs scores (B, n, n), dependents by heads with roots on the diagonal; got "
            f"{tuple(scores.shape)}. For one sentence pass scores[None]."
        )
    if mask is None:
        mask = torch.ones(scores.shape[:2], dtype=torch.bool, device=scores.device)
    elif mask.dtype != torch.bool or mask.shape != scores.shape[:2]:
        raise ValueError(
            f"{name} needs a bool mask {tuple(scores.shape[:2])}, True = keep; got {mask.dtype} {tuple(mask.shape)}. "
            "Turn numbers into one with mask.bool()."
        )
    mask = mask.to(scores.device)
    x = scores.detach().to(torch.float32 if scores.device.type == "mps" else torch.float64)
    order = (~mask).to(torch.int8).argsort(dim=1, stable=True)  # (B, n)
    x = x.gather(1, order[:, :, None].expand_as(x)).gather(2, order[:, None, :].expand_as(x))
    real = mask.gather(1, order)
    x = torch.where(real[:, :, None] & real[:, None, :], x, torch.zeros_like(x))
    if bool((x.isnan() | (x == torch.inf)).any()):
        sentence = int((x.isnan() | (x == torch.inf)).flatten(1).any(1).nonzero()[0, 0])
        raise ValueError(
            f"{name} needs numbers or -inf (which forbids an arc); sentence {sentence} has a score that is nan or inf"
        )
    return x, mask.sum(1), order


def tree_score(scores: Tensor, heads: Tensor) -> Tensor:
    """Sum of the scores of a tree's arcs, eq. (1); differentiable.

    Args:
        scores: (B, n, n) arc scores, dependents by heads, roots on the diagonal.
        heads: (B, n) int64, 0 for a root, the head's number from 1, -1 for words that do not count.

    Returns:
        (B,), in float32 or better.

    Raises:
        ValueError: a shape does not fit, or a head is not in [-1, n].

    >>> tree_score(torch.tensor([[[5.0, 1.0], [2.0, 7.0]]]), torch.tensor([[0, 1]]))  # word 1 is the root, 2 below it
    tensor([7.])
    """
    if scores.ndim != 3 or scores.shape[1] != scores.shape[2] or heads.shape != scores.shape[:2]:
        raise ValueError(
            f"tree_score needs scores (B, n, n) and heads (B, n); got {tuple(scores.shape)} and {tuple(heads.shape)}"
        )
    n = scores.shape[1]
    if heads.numel() and not -1 <= int(heads.min()) <= int(heads.max()) <= n:
        raise ValueError(f"heads must lie in [-1, {n}], got {int(heads.min())} to {int(heads.max())}")
    own = torch.arange(n, device=heads.device)
    column = torch.where(heads > 0, heads - 1, own)  # (B, n)
    taken = scores.to(torch.promote_types(scores.dtype, torch.float32)).gather(2, column[:, :, None])[:, :, 0]
    return torch.where(heads >= 0, taken, torch.zeros_like(taken)).sum(1)  # eq. (1)


def is_tree(heads: list[int]) -> bool:
    """Whether every word reaches a root by its heads.

    Args:
        heads: 0 for a root, else the head's number from 1.

    Returns:
        False where a head is out of range or heads turn in a circle; several roots are allowed.

    >>> is_tree([2, 0, 2]), is_tree([2, 1]), is_tree([3])
    (True, False, False)
    """
    state = [0] * (len(heads) + 1)  # 0 new, 1 on the way, 2 reaches a root
    state[0] = 2
    for start in range(1, len(heads) + 1):
        at, trail = start, []
        while state[at] == 0:
            state[at] = 1
            trail.append(at)
            at = heads[at - 1]
            if not 0 <= at <= len(heads):
                return False
        if state[at] == 1:
            return False
        for word in trail:
            state[word] = 2
    return True


def is_projective(heads: list[int]) -> bool:
    """Whether the arcs of a tree, the root's included, can be drawn above the words without crossing.

    Args:
        heads: 0 for a root, else the head's number from 1; they must form a tree.

    Returns:
        True or False.

    >>> is_projective([0, 1, 1]), is_projective([3, 4, 0, 3])
    (True, False)
    """
    arcs = [(min(d, h), max(d, h)) for d, h in enumerate(heads, 1)]
    return not any(a < c < b < d for a, b in arcs for c, d in arcs)
