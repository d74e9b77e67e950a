r"""Scores of relation triples: exact match of subject, predicate and object, and where the mistakes are.

A triple is (subject, predicate, object). What subject and object are is the caller's: spans of characters, then a
triple is right only at its own place and two mentions of one name are two triples; or texts, then they are one. Within
a sentence a triple counts once. With c right, p predicted and g gold triples over all sentences

    P = c / p,   R = c / g,   F1 = 2 c / (p + g)                                                     (1)

    normal   no two gold triples of the sentence share a subject or object                           (2)
    pair     two share both, in either direction                      (EntityPairOverlap)
    entity   two share one of them and not the other                  (SingleEntityOverlap)

A sentence can be both pair and entity. Partial match, as in the older tables for NYT and WebNLG, compares last words
only: give those as subject and object.

Source: Zeng et al., ACL 2018, P18-1047, for (2); Wei et al., 2020, arXiv:1909.03227, for the breakdown.
Shapes: no tensors.
"""

from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations

from danlu.math.metrics import Report, Score, report_from_counts, score_from_counts

__all__ = ["overlap_kinds", "triple_breakdown", "triple_counts", "triple_report"]

Triple = tuple[Hashable, str, Hashable]
MANY = 5  # gold triples from which on sentences are counted together


def triple_counts(
    predicted: Sequence[Iterable[Triple]], gold: Sequence[Iterable[Triple]]
) -> list[tuple[int, int, int]]:
    """Right, predicted and gold triples of every sentence; their sums give micro F1, their rows resample.

    Args:
        predicted: triples by sentence.
        gold: true triples by sentence.

    Returns:
        One (correct, predicted, gold) per sentence.

    Raises:
        ValueError: the numbers of sentences differ.

    >>> triple_counts([[("a", "r", "b"), ("a", "r", "b"), ("b", "r", "a")]], [[("a", "r", "b")]])
    [(1, 2, 1)]
    """
    return [(len(found & true), len(found), len(true)) for found, true in _sets(predicted, gold)]


def triple_report(predicted: Sequence[Iterable[Triple]], gold: Sequence[Iterable[Triple]]) -> Report:
    """Micro, macro and weighted scores of triples, eq. (1), and those of every predicate.

    Args:
        predicted: triples by sentence.
        gold: true triples by sentence.

    Returns:
        A Report.

    Raises:
        ValueError: the numbers of sentences differ.

    >>> triple_report([[("a", "r", "b")]], [[("a", "r", "b"), ("a", "q", "b")]]).by_type["q"].support
    1
    """
    totals: dict[str, list[int]] = {}
    for found, true in _sets(predicted, gold):
        for column, group in enumerate((found & true, found, true)):
            for _, predicate, _ in group:
                totals.setdefault(predicate, [0, 0, 0])[column] += 1
    return report_from_counts({kind: (c, p, g) for kind, (c, p, g) in totals.items()})


def overlap_kinds(triples: Iterable[Triple]) -> set[str]:
    """What the triples of a sentence share, eq. (2).

    Args:
        triples: of one sentence.

    Returns:
        {"normal"}, or one or both of "pair" and "entity"; nothing for no triples.

    >>> sorted(overlap_kinds([("a", "r", "b"), ("b", "q", "a"), ("a", "r", "c")]))
    ['entity', 'pair']
    """
    distinct = set(triples)
    kinds = set()
    for (s, _, o), (t, _, u) in combinations(distinct, 2):
        shared = {s, o} & {t, u}
        if {s, o} == {t, u}:
            kinds.add("pair")
        elif shared:
            kinds.add("entity")
    return kinds or ({"normal"} if distinct else set())


def triple_breakdown(predicted: Sequence[Iterable[Triple]], gold: Sequence[Iterable[Triple]]) -> dict[str, Score]:
    """Scores of the sentences of each kind of overlap, and of those with 0, 1, 2 ... gold triples.

    Args:
        predicted: triples by sentence.
        gold: true triples by sentence.

    Returns:
        Scores by kind: "normal", "pair", "entity", then "0 triples" ... "4 triples", "5 or more"; kinds without a
        sentence are left out.

    Raises:
        ValueError: the numbers of sentences differ.

    >>> breakdown = triple_breakdown([[("a", "r", "b")]], [[("a", "r", "b"), ("a", "q", "b")]])
    >>> {kind: score.recall for kind, score in breakdown.items()}
    {'pair': 0.5, '2 triples': 0.5}
    """
    names = ["normal", "pair", "entity", "0 triples", "1 triple"]
    names += [f"{n} triples" for n in range(2, MANY)] + [f"{MANY} or more"]
    sums = {name: [0, 0, 0] for name in names}
    seen = set()
    for found, true in _sets(predicted, gold):
        size = names[3 + min(len(true), MANY)]
        for kind in (*overlap_kinds(true), size):
            seen.add(kind)
            for column, value in enumerate((len(found & true), len(found), len(true))):
                sums[kind][column] += value
    return {name: score_from_counts(c, p, g) for name, (c, p, g) in sums.items() if name in seen}


def _sets(
    predicted: Sequence[Iterable[Triple]], gold: Sequence[Iterable[Triple]]
) -> list[tuple[set[Triple], set[Triple]]]:
    if len(predicted) != len(gold):
        raise ValueError(
            f"need the predicted triples of every sentence, got {len(predicted)} predicted and {len(gold)} gold lists; "
            "a sentence without triples has an empty one"
        )
    return [(set(p), set(g)) for p, g in zip(predicted, gold, strict=True)]
