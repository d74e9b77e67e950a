r"""Measures of dependency and constituency trees without labels.

Over words d with gold head g_d and predicted head h_d, arcs of punctuation and of the root left out on request:

    UAS   = share of words with h_d = g_d                                                                       (1)
    UUAS  = share of gold arcs that are predicted in either direction                                           (2)
    NED   = share of words whose predicted head is the gold head, a gold dependent, or the gold head's head      (3)

A tree with one root has UAS <= UUAS <= NED. A word left out takes its own arc with it, not those to it.

    F1 of a sentence = 2 c / (p + g),  c spans in both, p and g predicted and gold spans                         (4)

Spans of one word and the whole sentence do not count; without any span on both sides F1 is 1; means are over sentences.
Where words are dropped (punctuation), spans shrink to the words that stay. Other conventions move F1 by points.

Source: Wu et al., 2020, arXiv:2004.14786 (UAS, UUAS, NED; sentence F1); Schwartz et al., 2011 (NED); own definitions
of what is left out.
Shapes: no tensors; heads count from 1, 0 is the root, -1 is skipped; spans are (start, end), end exclusive, from 0.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from danlu.math.constituency_tree import Tree

__all__ = [
    "AttachmentScores",
    "attachment_counts",
    "attachment_scores",
    "bracket_f1",
    "subtree_spans",
    "tree_spans",
]

Heads = Sequence[int]
Span = tuple[int, int]


class AttachmentScores(NamedTuple):
    """Eqs. (1) to (3) over all sentences, and the arcs they are shares of."""

    uas: float
    uuas: float
    ned: float
    arcs: int


def attachment_counts(
    predicted: Heads, gold: Heads, keep: Sequence[bool] | None = None, root: bool = False
) -> tuple[int, int, int, int]:
    """Numbers right by eqs. (1), (2) and (3) in one sentence, and of gold arcs.

    Args:
        predicted: heads, as many as there are words.
        gold: true heads.
        keep: False for words whose arc is left out; None keeps all.
        root: count the arc to the root as well.

    Returns:
        (UAS, UUAS, NED, arcs) as counts; their sums over sentences make micro averages.

    Raises:
        ValueError: the lengths differ, or a head is not in [-1, n].

    >>> attachment_counts([2, 3, 0], [2, 0, 2])  # the arc between 2 and 3 has the wrong direction
    (1, 2, 2, 2)
    """
    n = len(gold)
    if len(predicted) != n or (keep is not None and len(keep) != n):
        raise ValueError(
            f"as many predicted heads (and entries of keep) as gold heads are needed; got {len(predicted)}"
            f"{'' if keep is None else f' ({len(keep)})'} and {n}"
        )
    if any(not -1 <= head <= n for head in [*predicted, *gold]):
        raise ValueError(f"heads of {n} words must lie in [-1, {n}]; got {list(predicted)} and {list(gold)}")
    kept = [True] * n if keep is None else [bool(k) for k in keep]
    drawn = {(min(d, h), max(d, h)) for d, h in enumerate(predicted, 1) if kept[d - 1] and (h > 0 or (root and h == 0))}
    uas = uuas = ned = arcs = 0
    for d, (h, g) in enumerate(zip(predicted, gold, strict=True), 1):
        if not kept[d - 1]:
            continue
        if g > 0 or (root and g == 0):
            arcs += 1
            uas += h == g  # eq. (1)
            uuas += (min(d, g), max(d, g)) in drawn  # eq. (2)
            ned += h == g or (g > 0 and h == gold[g - 1] and (h > 0 or root))  # eq. (3), upwards
        ned += h > 0 and gold[h - 1] == d and kept[h - 1]  # downwards
    return uas, uuas, ned, arcs


def attachment_scores(
    predicted: Sequence[Heads],
    gold: Sequence[Heads],
    keep: Sequence[Sequence[bool]] | None = None,
    root: bool = False,
) -> AttachmentScores:
    """Eqs. (1) to (3) over all words of all sentences.

    Args:
        predicted: heads by sentence.
        gold: true heads by sentence.
        keep: False for words whose arc is left out, such as punctuation; None keeps all.
        root: count arcs to the root as well; with a root that was given away they are free points.

    Returns:
        Shares; 0 where there is no arc.

    Raises:
        ValueError: the numbers of sentences or words differ, or a head is out of range.

    >>> attachment_scores([[2, 3, 0]], [[2, 0, 2]])
    AttachmentScores(uas=0.5, uuas=1.0, ned=1.0, arcs=2)
    """
    if len(predicted) != len(gold) or (keep is not None and len(keep) != len(gold)):
        raise ValueError(
            f"as many predicted sentences (and entries of keep) as gold ones are needed; got {len(predicted)}"
            f"{'' if keep is None else f' ({len(keep)})'} and {len(gold)}"
        )
    masks: Sequence[Sequence[bool] | None] = [None] * len(gold) if keep is None else keep
    rows = [attachment_counts(p, g, k, root) for p, g, k in zip(predicted, gold, masks, strict=True)]
    uas, uuas, ned, arcs = (sum(column) for column in zip(*rows, strict=True)) if rows else (0, 0, 0, 0)
    return AttachmentScores(uas / max(arcs, 1), uuas / max(arcs, 1), ned / max(arcs, 1), arcs)


def bracket_f1(
    predicted: Sequence[Collection[Span]],
    gold: Sequence[Collection[Span]],
    lengths: Sequence[int],
    keep: Sequence[Sequence[bool]] | None = None,
) -> float:
    """Mean over sentences of the F1 of unlabelled spans, eq. (4).

    Args:
        predicted: spans by sentence, `tree_spans` of a tree.
        gold: true spans by sentence.
        lengths: words of each sentence.
        keep: False for words to drop before spans are compared, such as punctuation; None keeps all.

    Returns:
        A number in [0, 1]; 0 without sentences.

    Raises:
        ValueError: the numbers of sentences or words differ, or a span does not lie in its sentence.

    >>> bracket_f1([[(0, 2), (0, 3), (0, 4)]], [[(0, 2), (2, 4)]], [4])  # the whole sentence does not count
    0.5
    """
    if not len(predicted) == len(gold) == len(lengths) or (keep is not None and len(keep) != len(gold)):
        raise ValueError(
            f"as many predicted and gold sentences and lengths are needed; got {len(predicted)}, {len(gold)} and "
            f"{len(lengths)}{'' if keep is None else f', keep {len(keep)}'}"
        )
    total = 0.0
    for i, (found, true, length) in enumerate(zip(predicted, gold, lengths, strict=True)):
        kept = None if keep is None else keep[i]
        p, g = (_counted(spans, length, kept, i) for spans in (found, true))
        total += 2 * len(p & g) / (len(p) + len(g)) if p or g else 1.0  # eq. (4)
    return total / len(gold) if gold else 0.0


def tree_spans(tree: Tree) -> set[Span]:
    """Spans of all nodes of more than one word.

    Args:
        tree: nested pairs (or longer tuples) of word numbers in order.

    Returns:
        (start, end) of each, the whole sentence included.

    >>> sorted(tree_spans(((0, 1), 2)))
    [(0, 2), (0, 3)]
    """
    spans: set[Span] = set()
    stack: list[tuple[Tree, list[int]]] = [(tree, [])]  # a node and, once opened, its first and last words
    done: list[Span] = []
    while stack:
        node, opened = stack.pop()
        if isinstance(node, int):
            done.append((node, node + 1))
        elif not opened and len(node):
            stack.append((node, [len(done)]))
            stack += [(child, []) for child in reversed(node)]
        elif opened:
            span = (done[opened[0]][0], done[-1][1])
            del done[opened[0] :]
            done.append(span)
            if span[1] - span[0] > 1:
                spans.add(span)
    return spans


def subtree_spans(heads: Heads) -> set[Span]:
    """Spans of the words below and including each word, where these stand side by side: a dependency tree's phrases.

    Args:
        heads: 0 for a root, else the head's number from 1; a tree.

    Returns:
        (start, end) of those of more than one word.

    Raises:
        ValueError: the heads turn in a circle.

    >>> sorted(subtree_spans([2, 0, 4, 2]))
    [(0, 4), (2, 4)]
    """
    n = len(heads)
    below: list[set[int]] = [{d} for d in range(n)]
    for d in range(n):
        at, steps = heads[d], 0
        while at > 0:
            below[at - 1].add(d)
            at, steps = heads[at - 1], steps + 1
            if steps > n:
                raise ValueError(f"the heads turn in a circle at word {d + 1}: {list(heads)}")
    return {(min(w), max(w) + 1) for w in below if len(w) > 1 and max(w) + 1 - min(w) == len(w)}


def _counted(spans: Collection[Span], length: int, keep: Sequence[bool] | None, sentence: int) -> set[Span]:
    """The spans that count: shrunk to kept words, longer than one, shorter than the sentence."""
    if keep is not None and len(keep) != length:
        raise ValueError(f"sentence {sentence} has {length} words, its keep {len(keep)} entries")
    before = [0]  # kept words before each place
    for i in range(length):
        before.append(before[-1] + (keep is None or bool(keep[i])))
    counted = set()
    for start, end in spans:
        if not 0 <= start < end <= length:
            raise ValueError(f"span ({start}, {end}) does not lie in sentence {sentence} of {length} words")
        span = (before[start], before[end])
        if 1 < span[1] - span[0] < before[-1]:
            counted.add(span)
    return counted
