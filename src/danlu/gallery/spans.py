r"""Gold and predicted spans of one sentence, laid over its text in pieces that a page can set in place.

Two ways of reading, by what the spans mean:

    entities: text = p_1 p_2 ... , pieces cut wherever no span, gold or predicted, crosses                         (1)
    words:    text = c_1 c_2 ... , cut where gold and predicted segmentation both have a boundary                  (2)

In (1) a piece is plain, correct (gold = predicted), wrong (same ends, other type), missed (gold only), spurious
(predicted only) or boundary (they overlap without agreeing; both readings are kept, one above the other). In (2) a
piece agrees when both segmentations cut it alike. Either way the pieces concatenate to the text.

Source: none; the kinds follow the exact-match counting of CoNLL-2003.
Shapes: spans are (start, end, type) with end exclusive, in characters.
"""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["EntityPiece", "WordPiece", "entity_pieces", "word_pieces"]

Span = tuple[int, int, str]


@dataclass(frozen=True)
class EntityPiece:
    """A stretch of text between places that no span crosses.

    kind: plain, correct, wrong, missed, spurious or boundary. gold and pred: the stretch cut at the ends of that side's
    spans, (characters, types joined by +, None outside a span), read where the kind is boundary.
    """

    kind: str
    text: str
    gold_type: str = ""
    pred_type: str = ""
    gold: tuple[tuple[str, str | None], ...] = ()
    pred: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class WordPiece:
    """A stretch between two boundaries that gold and predicted segmentation share, with the words of both."""

    gold: tuple[str, ...]
    pred: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Both sides cut this stretch alike."""
        return self.gold == self.pred


def entity_pieces(text: str, gold: Iterable[Sequence[Any]], pred: Iterable[Sequence[Any]]) -> list[EntityPiece]:
    """The text cut into pieces by eq. (1), each with what gold and prediction say of it.

    Args:
        text: the sentence.
        gold: (start, end, type) of the true spans, end exclusive, in characters.
        pred: the same, predicted.

    Returns:
        Pieces in order; their texts concatenate to `text`.

    Raises:
        ValueError: a span does not lie in the text.

    >>> [(p.kind, p.text) for p in entity_pieces("张三去北京", [(0, 2, "PER"), (3, 5, "LOC")], [(3, 5, "ORG")])]
    [('missed', '张三'), ('plain', '去'), ('wrong', '北京')]
    """
    gold_spans, pred_spans = checked(text, gold, "gold"), checked(text, pred, "predicted")
    pieces: list[EntityPiece] = []
    done = 0
    for start, end in clusters(gold_spans + pred_spans):
        if done < start:
            pieces.append(EntityPiece("plain", text[done:start]))
        inside_gold = [s for s in gold_spans if start <= s[0] < end]
        inside_pred = [s for s in pred_spans if start <= s[0] < end]
        pieces.append(judge(text, start, end, inside_gold, inside_pred))
        done = end
    if done < len(text):
        pieces.append(EntityPiece("plain", text[done:]))
    return pieces


def word_pieces(text: str, gold: Iterable[Sequence[Any]], pred: Iterable[Sequence[Any]]) -> list[WordPiece]:
    """The text cut where gold and predicted words both end, eq. (2).

    Args:
        text: the sentence.
        gold: (start, end, type) of the true words; types are ignored.
        pred: the same, predicted.

    Returns:
        Pieces in order; either side's words concatenate to `text`.

    Raises:
        ValueError: a span does not lie in the text.

    >>> [(p.gold, p.pred) for p in word_pieces("北京大学生", [(0, 2, ""), (2, 5, "")], [(0, 4, ""), (4, 5, "")])]
    [(('北京', '大学生'), ('北京大学', '生'))]
    """
    ends = {0, len(text)}
    gold_cuts = ends | {i for s in checked(text, gold, "gold") for i in s[:2]}
    pred_cuts = ends | {i for s in checked(text, pred, "predicted") for i in s[:2]}
    shared = sorted(gold_cuts & pred_cuts)  # eq. (2)
    gold_places, pred_places = sorted(gold_cuts), sorted(pred_cuts)
    return [
        WordPiece(cut(text, gold_places, start, end), cut(text, pred_places, start, end))
        for start, end in itertools.pairwise(shared)
    ]


def checked(text: str, spans: Iterable[Sequence[Any]], side: str) -> list[Span]:
    """Spans as sorted tuples without repeats; raises on one that is not in the text."""
    found: set[Span] = set()
    for span in spans:
        start, end, kind = span
        if not 0 <= start < end <= len(text):
            raise ValueError(
                f"a {side} span ({start}, {end}, {kind!r}) does not lie in its text of {len(text)} characters; spans "
                "are (start, end, type) with 0 <= start < end <= length, end exclusive, counted in characters"
            )
        found.add((start, end, str(kind)))
    return sorted(found)


def clusters(spans: Iterable[Span]) -> list[tuple[int, int]]:
    """The stretches covered by spans that overlap, directly or through others."""
    merged: list[tuple[int, int]] = []
    for start, end, _ in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def judge(text: str, start: int, end: int, gold: list[Span], pred: list[Span]) -> EntityPiece:
    """The piece of one cluster, eq. (1)."""
    gold_type, pred_type = (" + ".join(dict.fromkeys(s[2] for s in side)) for side in (gold, pred))
    if gold == pred:
        kind = "correct"
    elif not pred:
        kind = "missed"
    elif not gold:
        kind = "spurious"
    elif [s[:2] for s in gold] == [s[:2] for s in pred]:
        kind = "wrong"
    else:
        kind = "boundary"
    rows = (typed(text, start, end, side) for side in (gold, pred))
    return EntityPiece(kind, text[start:end], gold_type, pred_type, *rows)


def typed(text: str, start: int, end: int, spans: list[Span]) -> tuple[tuple[str, str | None], ...]:
    """text[start:end] cut at the ends of the spans, each part with the types that cover it."""
    cuts = sorted({start, end} | {i for s in spans for i in s[:2]})
    parts: list[tuple[str, str | None]] = []
    for a, b in itertools.pairwise(cuts):
        covering = [kind for s, e, kind in spans if s <= a and b <= e]
        parts.append((text[a:b], " + ".join(covering) if covering else None))
    return tuple(parts)


def cut(text: str, places: list[int], start: int, end: int) -> tuple[str, ...]:
    """text[start:end] cut at the places, which are sorted and hold start and end."""
    inside = places[bisect.bisect_left(places, start) : bisect.bisect_right(places, end)]
    return tuple(text[a:b] for a, b in itertools.pairwise(inside))
