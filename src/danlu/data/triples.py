r"""Reader of relation triples: which spans of a text stand in which relation.

A row is an object of a JSON Lines file with a text and its triples, [] for none:

    {"text": ..., "triples": [[subject, predicate, object], ...]}                                        (1)
    {"tokens": [...], "triples": ...}                      spans then count tokens; joined to a text
    {..., "entities": [[start, end, type], ...], ...}      spans then may be numbers of entities, from 0

"spo", "spo_list" and "relations" stand for "triples" too, and a triple may be {"subject": ..., "predicate": ...,
"object": ...}. Subject and object are

    [start, end] or [start, end, type]      end exclusive                                                (2)
    a text                                  as it stands in the row's text; located by (3)
    3                                       the number of an entity

A predicate is a text. An entity may begin or end with its type, and may name its text last; the letters and digits of
that are then compared with the place. Types are not read: what a predicate joins is for the model to learn. Blanks at
the ends of a span are left out of it.

A text that occurs more than once is one of its mentions, and nobody says which. Of all pairs of mentions is taken

    the pair that does not overlap, with the fewest characters between, the first of those               (3)

where mentions that cut a word ("1" in "2014") count only if there is no other. An example says by `located` whether its
spans were given, so that a model is not judged on mentions that the file never named.

What a row asks for and the text does not have (a name that does not occur, an entity whose text stands elsewhere) makes
a bad row; on_bad_rows="repair" moves the entity to the nearest place that has its text and leaves out triples that
cannot be placed, and lists both.

Source: own definitions; forms (1) and (2) cover DuIE (kexue.fm/archives/7161), WebNLG, CoNLL04, arXiv:1711.07010.
Shapes: no tensors; positions count characters (Unicode code points).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from danlu.data.errors import InputError
from danlu.data.ledger import HALF_CHARACTER, Corpus, Ledger, RowError, need_text
from danlu.data.rows import json_rows, read_lines
from danlu.data.tagged import join_tokens

__all__ = ["Related", "Relation", "locate", "read_triples"]

Span = tuple[int, int]
TRIPLE_FIELDS = ("triples", "spo", "spo_list", "relations")


class Relation(NamedTuple):
    """A triple: character spans of subject and object, end exclusive, and what joins them."""

    subject: Span
    predicate: str
    object: Span


@dataclass(frozen=True, slots=True)
class Related:
    """A text with its triples, each once, in the order of the text; `located`: the file itself gave the spans."""

    text: str
    triples: tuple[Relation, ...]
    line: int  # line of the file it begins on, counted from 1
    located: bool = True


def read_triples(path: str | Path, format: str = "auto", on_bad_rows: str = "fail") -> Corpus[Related]:
    """Texts with their triples from a JSON Lines file in one of the forms (1).

    Args:
        path: the file, plain or gzip; "-" reads standard input.
        format: "jsonl" or "auto"; triples are read from nothing else.
        on_bad_rows: "fail", "skip" or "repair" (`danlu.data.ledger`, and the head of this module).

    Returns:
        Corpus of `Related`; `skipped` and `repaired` list rows left out, and entities moved and triples left out.

    Raises:
        InputError: the file or a row cannot be used; the text names file, line, field, reason and a way out.
    """
    if format not in ("auto", "jsonl"):
        raise InputError(f"format must be one of auto, jsonl, got {format!r}; triples are read from JSON Lines only")
    ledger = Ledger(path, on_bad_rows)
    rows = json_rows(read_lines(path, ledger), ledger)
    return ledger.close(ledger.gather(rows, lambda number, row: _Row(row, number, ledger).example()), "jsonl")


def locate(text: str, subject: str, object: str) -> tuple[Span, Span] | None:
    """The mentions of two names in a text that belong together, eq. (3).

    Args:
        text: the text.
        subject: a name that stands in it.
        object: another, or the same.

    Returns:
        Their spans, or None where one does not occur.

    >>> locate("Ann met Bob. Bob and Al left.", "Bob", "Al")
    ((13, 16), (21, 23))
    """
    pairs = [
        (max(s[0], o[0]) < min(s[1], o[1]), max(o[0] - s[1], s[0] - o[1]), s, o)
        for s in _mentions(text, subject)
        for o in _mentions(text, object)
    ]
    return min(pairs)[2:] if pairs else None


def _mentions(text: str, name: str) -> list[Span]:
    """Places of a name, those that cut no word before the others (which are left out then)."""
    found: list[Span] = []
    at = text.find(name)
    while at >= 0:
        found.append((at, at + len(name)))
        at = text.find(name, at + 1)
    whole = [(a, b) for a, b in found if not _cuts_word(text, a) and not _cuts_word(text, b)]
    return whole or found


def _cuts_word(text: str, at: int) -> bool:
    """Whether letters or digits of a script with blanks stand on both sides of a place."""
    if not 0 < at < len(text):
        return False
    return all(c.isalnum() and ord(c) < 0x2E80 for c in text[at - 1 : at + 1])


class _Row:
    """One object of the file, taken apart."""

    def __init__(self, row: dict[str, Any], line: int, ledger: Ledger) -> None:
        self.row, self.line, self.ledger = row, line, ledger
        self.given = True
        self.starts: list[Span] | None = None  # spans of the tokens, where the row has tokens
        if "tokens" in row:
            self.text = self._joined(row["tokens"], row.get("text"))
        else:
            if "text" not in row:
                names = ", ".join(map(repr, list(row)[:8])) or "nothing"
                raise RowError("text", f"missing; the row has {names}")
            self.text = need_text(row["text"], "text")
        self.entities = self._entities(row.get("entities"))

    def example(self) -> Related:
        """The row as an example."""
        name = next((field for field in TRIPLE_FIELDS if field in self.row), None)
        if name is None:
            names = ", ".join(map(repr, list(self.row)[:8]))
            raise RowError("triples", f"missing; the row has {names}; a text without triples has []")
        value = self.row[name]
        if not isinstance(value, list):
            raise RowError(name, "expected a list [[subject, predicate, object], ...]")
        triples: set[Relation] = set()
        for i, item in enumerate(value):
            field = f"{name}[{i}]"
            try:
                triples.add(self._triple(item, field))
            except _NotThere as error:
                if self.ledger.on_bad_rows != "repair":
                    way = "on_bad_rows='repair' leaves such triples out"
                    raise RowError(error.field, f"{error.reason}; {way}") from None
                self.ledger.repair(self.line, error.field, f"{error.reason}; the triple is left out")
        return Related(self.text, tuple(sorted(triples)), self.line, self.given)

    def _triple(self, item: Any, field: str) -> Relation:
        if isinstance(item, dict):
            missing = [key for key in ("subject", "predicate", "object") if key not in item]
            if missing:
                raise RowError(field, f"a triple needs subject, predicate and object; {missing[0]} is missing")
            item = [item["subject"], item["predicate"], item["object"]]
        if not isinstance(item, list) or len(item) != 3:
            raise RowError(field, f"expected [subject, predicate, object], got {str(item)[:60]}")
        subject, predicate, other = item
        if not isinstance(predicate, str) or not predicate.strip() or HALF_CHARACTER.search(predicate):
            raise RowError(field, f"the predicate must be a text that is not empty, got {predicate!r}")
        if isinstance(other, dict) and "@value" in other:
            other = other["@value"]
        ends = (subject, f"{field}.subject"), (other, f"{field}.object")
        names = [value for value, _ in ends if isinstance(value, str)]
        if len(names) == 2:
            self.given = False
            for value, side in ends:
                self._name(value, side)
            spans = locate(self.text, subject.strip(), other.strip())
            assert spans is not None  # both occur
        elif names:
            raise RowError(field, "give both subject and object as texts, or both as spans or entities")
        else:
            spans = self._span(*ends[0]), self._span(*ends[1])
        return Relation(spans[0], predicate.strip(), spans[1])

    def _name(self, value: str, field: str) -> None:
        name = value.strip()
        if not name:
            raise RowError(field, "the text is empty")
        if name not in self.text:
            raise _NotThere(field, f"{name[:40]!r} does not stand in the text {self.text[:40]!r}")

    def _span(self, value: Any, field: str) -> Span:
        """Characters of a span or of an entity."""
        if type(value) is int:
            if not 0 <= value < len(self.entities):
                raise RowError(field, f"there is no entity {value}; the row has {len(self.entities)}, counted from 0")
            found = self.entities[value]
            if found is None:
                raise _NotThere(field, f"entity {value} does not stand in the text")
            return found
        if not isinstance(value, list) or len(value) not in (2, 3) or not all(type(v) is int for v in value[:2]):
            raise RowError(
                field, f"expected a text, [start, end], [start, end, type] or an entity's number, got {str(value)[:60]}"
            )
        return self._inside(value[0], value[1], field)

    def _inside(self, start: int, end: int, field: str) -> Span:
        size, unit = (len(self.text), "characters") if self.starts is None else (len(self.starts), "tokens")
        if not 0 <= start < end <= size:
            raise RowError(
                field,
                f"[{start}, {end}] does not lie in the text of {size} {unit}; needs 0 <= start < end <= {size} "
                f"(end exclusive, counted in {unit})",
            )
        if self.starts is not None:
            start, end = self.starts[start][0], self.starts[end - 1][1]
        part = self.text[start:end]
        if not part.strip():
            raise RowError(field, f"[{start}, {end}] holds nothing but blanks")
        return start + len(part) - len(part.lstrip()), end - (len(part) - len(part.rstrip()))

    def _entities(self, value: Any) -> list[Span | None]:
        """Spans of the row's entities, None for one that is not where it says."""
        if value is None:
            return []
        if not isinstance(value, list):
            raise RowError("entities", "expected a list [[start, end, type], ...]")
        found: list[Span | None] = []
        for i, item in enumerate(value):
            field = f"entities[{i}]"
            numbers = [v for v in item if type(v) is int] if isinstance(item, list) else []
            if len(numbers) != 2 or len(item) not in (2, 3, 4):
                raise RowError(field, f"expected [start, end, type], got {str(item)[:60]}")
            named = item[-1] if len(item) == 4 and isinstance(item[-1], str) else None
            found.append(self._placed(numbers[0], numbers[1], named, field))
        return found

    def _placed(self, start: int, end: int, named: str | None, field: str) -> Span | None:
        """The span of an entity, its text compared if it names one."""
        has = self.text[max(0, start) : max(0, end)]
        if named is None or self.starts is not None or _squeezed(has) == _squeezed(named):
            return self._inside(start, end, field)
        reason = f"the text has {has[:40]!r} at [{start}, {end}], not {named[:40]!r}"
        if self.ledger.on_bad_rows != "repair":
            raise RowError(field, f"{reason}; on_bad_rows='repair' moves it to the nearest place that has it")
        places = _mentions(self.text, named.strip()) if named.strip() else []
        if not places:
            self.ledger.repair(self.line, field, f"{reason}, and nowhere else; its triples are left out")
            return None
        place = min(places, key=lambda span: abs(span[0] - start))
        self.ledger.repair(self.line, field, f"{reason}; moved to {list(place)}")
        return place

    def _joined(self, tokens: Any, text: Any) -> str:
        """The text of tokens, and where each stands in it."""
        if not isinstance(tokens, list) or not tokens or not all(isinstance(t, str) and t for t in tokens):
            raise RowError("tokens", "expected a list of texts with at least one, none of them empty")
        whole = need_text(text if isinstance(text, str) and text else join_tokens(tokens), "text")
        at, self.starts = 0, []
        for i, token in enumerate(tokens):
            begin = whole.find(token, at)
            if begin < 0 or whole[at:begin].strip():
                raise RowError(f"tokens[{i}]", f"{token[:40]!r} is not what follows in the text at character {at}")
            at = begin + len(token)
            self.starts.append((begin, at))
        return whole


class _NotThere(RowError):
    """A triple names what the text does not have."""


def _squeezed(text: str) -> str:
    """The letters and digits of a text, else all but its blanks: annotation tools rewrite line ends and marks."""
    return "".join(c for c in text if c.isalnum()) or "".join(text.split())
