r"""Relation triples over the tokens of a batch: one table of numbers, and what the heads are trained towards.

A row of the table is a triple

    (b, s, s', p, o, o')                                                                             (1)

sentence b, subject tokens s ... s' - 1, predicate p, object tokens o ... o' - 1. A pointer of H types over T tokens has
the H T^2 cells (h, i, j), and is trained towards lists of them, by sentence and type

    {i T + j : (b, h, i, j) is right}                                                                (2)

padded with -1: a handful of numbers where labels for all cells would be millions.

Source: kexue.fm/archives/8888 (sparse labels).
Shapes: N triples in B sentences of T tokens, H types, P the longest list.
"""

import torch
from torch import Tensor

__all__ = ["Triple", "check_triples", "pointer_targets"]

Triple = tuple[int, int, int, int, int]  # subject start and end, predicate, object start and end; ends exclusive


def check_triples(triples: Tensor, batch: int, tokens: int, num_predicates: int) -> None:
    """Refuse a table whose triples do not lie in the batch.

    Args:
        triples: (N, 6) int64, eq. (1).
        batch: B.
        tokens: T.
        num_predicates: predicates are numbered from 0.

    Raises:
        ValueError: another shape or dtype, or a triple outside; the first is named.

    >>> check_triples(torch.tensor([[0, 1, 2, 0, 3, 5]]), batch=1, tokens=5, num_predicates=1)
    """
    if triples.ndim != 2 or triples.shape[1] != 6 or triples.dtype != torch.int64:
        raise ValueError(
            "triples must be an int64 table (N, 6) of sentence, subject start and end, predicate, object start and "
            f"end; got {triples.dtype} {tuple(triples.shape)}. For none write torch.zeros(0, 6, dtype=torch.int64)"
        )
    row, s, s_end, p, o, o_end = triples.unbind(1)
    inside = (row >= 0) & (row < batch) & (p >= 0) & (p < num_predicates)
    for start, end in ((s, s_end), (o, o_end)):
        inside &= (start >= 0) & (start < end) & (end <= tokens)
    if not bool(inside.all()):
        first = triples[~inside][0].tolist()
        raise ValueError(
            f"triple {first} does not lie in a batch of {batch} sentences of {tokens} tokens with {num_predicates} "
            "predicates; spans need 0 <= start < end <= tokens, end exclusive"
        )


def pointer_targets(cells: Tensor, batch: int, types: int, tokens: int) -> Tensor:
    """Lists of right cells for each sentence and type, eq. (2).

    Args:
        cells: (N, 4) int64, rows (b, h, i, j); one named twice counts once.
        batch: B.
        types: H.
        tokens: T.

    Returns:
        (B, H, P) int64 in ascending order, padded with -1; P is 0 where there is nothing.

    >>> pointer_targets(torch.tensor([[0, 1, 2, 0], [0, 1, 0, 1]]), batch=1, types=2, tokens=3)
    tensor([[[-1, -1],
             [ 1,  6]]])
    """
    b, h, i, j = cells.unbind(1)
    square = tokens * tokens
    keys = torch.unique((b * types + h) * square + i * tokens + j)  # (N',) sorted
    group, cell = keys // square, keys % square  # which list, which number in it
    counts = torch.bincount(group, minlength=batch * types)  # (B H,)
    place = torch.arange(len(keys), device=keys.device) - (counts.cumsum(0) - counts)[group]  # (N',) within its list
    longest = int(counts.max()) if len(keys) else 0
    lists = torch.full((batch * types, longest), -1, dtype=torch.int64, device=cells.device)
    lists[group, place] = cell  # eq. (2)
    return lists.view(batch, types, longest)
