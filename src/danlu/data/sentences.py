r"""Reader of what sentence vectors are learned from and judged by: sentences, pairs with a score, triples.

    scheme       a row of jsonl, or the columns of tsv and csv                                (1)
    sentences    {"text": ...}, or in a plain text file a line
    pairs        {"text_a": ..., "text_b": ..., "score" or "label": 3.8}
    triples      {"anchor": ..., "positive": ..., "negative": ...}; the negative may be missing, in all rows

A score says how alike two texts are, on any scale; a label counts as one where it is a number, such as 0 and 1. The two
texts of a pair may have the other names that `danlu.data.pairs_labelled` knows. The first row decides what a file
holds. A name in .txt is plain text; else JSON Lines and tables are told by the name, or by the first line, which holds
an object or names the columns.

Source: own definitions.
Shapes: no tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from danlu.data.errors import InputError
from danlu.data.ledger import Corpus, Ledger, RowError, check_option, listing, need, need_text
from danlu.data.pairs_labelled import LabelledPair, names_of_pair, score_number
from danlu.data.rows import ROW_FORMATS, first_lines, holds_objects, read_lines, rows_of, suffix
from danlu.data.tagged import Labelled

__all__ = ["SENTENCE_FORMATS", "TextGroup", "read_sentences", "text_groups"]

SENTENCE_FORMATS = ("txt", *ROW_FORMATS)
SCHEMES = {
    "sentences": "sentences (text, or plain lines)",
    "pairs": "pairs (text_a and text_b with score or a numeric label)",
    "triples": "triples (anchor, positive and perhaps negative)",
}
_TABLES = {"tsv": "tsv", "tab": "tsv", "csv": "csv"}


@dataclass(frozen=True, slots=True)
class TextGroup:
    """A sentence; or both texts of a pair and its score; or an anchor, its positive and perhaps its negative."""

    texts: tuple[str, ...]
    score: float | None
    line: int  # line of the file it begins on, counted from 1

    @property
    def text(self) -> str:
        """All texts, by which doubles are found."""
        return "\n".join(self.texts)


def read_sentences(
    path: str | Path, format: str = "auto", on_bad_rows: str = "fail", scheme: str = ""
) -> Corpus[TextGroup]:
    """Sentences, pairs or triples from a file in one of the forms of table (1).

    Args:
        path: the file; "-" reads standard input.
        format: "txt", "jsonl", "tsv", "csv", or "auto" to tell from the name and then from the first line.
        on_bad_rows: "fail" or "skip" (`danlu.data.ledger`).
        scheme: "sentences", "pairs" or "triples" refuses a file that holds something else; "" takes any.

    Returns:
        Corpus of `TextGroup`, its scheme what the file holds; `skipped` lists the rows left out.

    Raises:
        InputError: the file or a row cannot be used; the text names file, line, field, reason and a way out.
    """
    check_option("format", format, ("auto", *SENTENCE_FORMATS))
    check_option("scheme", scheme, ("", *SCHEMES))
    ledger = Ledger(path, on_bad_rows)
    lines = read_lines(path, ledger)
    kind = _format_of(path, lines, ledger) if format == "auto" else format
    rows = _plain_rows(lines, ledger) if kind == "txt" else rows_of(kind, lines, ledger, [])
    first = next(rows, None)
    if first is None:
        return ledger.close([], kind)
    found = _scheme_of(first[1])
    if not found:
        head = "line 1 must name the columns, " if kind in _TABLES.values() else ""
        raise ledger.fault(
            f"line {first[0]} has {listing(first[1])}; {head}a file holds {' or '.join(SCHEMES.values())}"
        )
    if scheme and found != scheme:
        raise ledger.fault(f"it holds {SCHEMES[found]}; wanted are {SCHEMES[scheme]}")
    examples = ledger.gather(chain([first], rows), _taker(found, first[1]))
    return ledger.close(examples, kind, found)


def text_groups(corpus: Corpus[Any]) -> Corpus[TextGroup]:
    """Texts with a class as sentences, pairs with a score or a numeric label as pairs.

    Args:
        corpus: of `Labelled` or of `LabelledPair`.

    Returns:
        Corpus of `TextGroup` with the same account of bad rows.

    Raises:
        InputError: a pair has a class that is no number, or the examples are of another kind.

    >>> text_groups(Corpus([LabelledPair("a", "b", "1", None, 7)], "f", "jsonl")).examples
    [TextGroup(texts=('a', 'b'), score=1.0, line=7)]
    """
    groups = []
    for e in corpus.examples:
        if isinstance(e, LabelledPair):
            try:
                score = score_number(e.label, "label") if e.score is None else e.score
            except RowError as error:
                raise InputError(
                    f"{corpus.path}, line {e.line}: the class {e.label!r} does not say how alike two texts are "
                    f"({error.reason}); give pairs with a score, or with labels such as 0 and 1"
                ) from None
            groups.append(TextGroup((e.text_a, e.text_b), score, e.line))
        elif isinstance(e, Labelled):
            groups.append(TextGroup((e.text,), None, e.line))
        else:
            raise InputError(f"{corpus.path} holds neither texts nor pairs of texts, so no sentence vectors")
    scheme = "pairs" if groups and len(groups[0].texts) == 2 else "sentences"
    return replace(corpus, examples=groups, scheme=scheme)


def _format_of(path: str | Path, lines: Sequence[str], ledger: Ledger) -> str:
    ending, first = suffix(path), first_lines(lines, ledger)
    if ending == "txt":
        return "txt"
    if holds_objects(path, first):
        return "jsonl"
    if ending in _TABLES:
        return _TABLES[ending]
    for kind, sign in (("tsv", "\t"), ("csv", ",")):
        if _scheme_of(dict.fromkeys(name.strip() for name in first[0].split(sign))):
            return kind
    return "txt"


def _plain_rows(lines: Sequence[str], ledger: Ledger) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, {"text": line}) of the lines that are not blank."""
    for number, line in enumerate(lines, 1):
        if number in ledger.invalid:
            ledger.bad(number, "", ledger.invalid[number])
        elif line.strip():
            yield number, {"text": line.strip()}


def _scheme_of(row: dict[str, Any]) -> str:
    """What a row with these fields holds; "" if nothing of table (1)."""
    if all(name in row for name in names_of_pair(row)) and ("score" in row or "label" in row):
        return "pairs"
    if "anchor" in row and "positive" in row:
        return "triples"
    return "sentences" if "text" in row else ""


def _taker(scheme: str, first: dict[str, Any]) -> Callable[[int, dict[str, Any]], TextGroup]:
    """Makes the examples of a file whose first row is this one."""
    names: tuple[str, ...] = ("text",) if scheme == "sentences" else ("anchor", "positive")
    names += ("negative",) if scheme == "triples" and "negative" in first else ()
    value = "score" if "score" in first else "label"

    def take(number: int, row: dict[str, Any]) -> TextGroup:
        fields = names_of_pair(row) if scheme == "pairs" else names
        texts = tuple(need_text(need(row, name), name) for name in fields)
        return TextGroup(texts, score_number(need(row, value), value) if scheme == "pairs" else None, number)

    return take
