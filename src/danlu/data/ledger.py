"""The account of one file that is being read: what its rows became, which could not be used and why.

    fail:    the first bad row ends the reading with an InputError that says how many more there are         (1)
    skip:    bad rows are left out and listed in `Corpus.skipped`
    repair:  as fail, but tag sequences that break their scheme are rewritten and listed in `Corpus.repaired`

What no row can be blamed for (a missing file, a folder, a broken archive, a missing column, nothing left to use) is an
InputError in every mode.

Source: own definitions.
Shapes: no tensors.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from danlu.data.errors import InputError

__all__ = ["BadRow", "Corpus", "Ledger", "RowError"]

R = TypeVar("R")
T = TypeVar("T")
ON_BAD_ROWS = ("fail", "skip", "repair")
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # an invalid byte, or half of a surrogate pair written in JSON
_SYNONYMS = {
    "text": ("sentence", "content", "review", "comment", "body", "文本", "内容", "句子", "评论"),
    "label": ("class", "category", "target", "sentiment", "label_desc", "label_des", "cat", "标签", "类别"),
    "entities": ("label", "labels", "spans", "entity"),
    "tokens": ("words", "characters", "chars"),
    "tags": ("labels", "ner_tags", "ner"),
}


@dataclass(frozen=True, slots=True)
class BadRow:
    """Where a row cannot be used (or was repaired) and why; str() is one line."""

    path: str
    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        """One line: path, line, field, reason."""
        return f"{self.path}, line {self.line}{f', {self.field}' if self.field else ''}: {self.reason}"


@dataclass(frozen=True)
class Corpus(Generic[T]):
    """What a reader returns: the examples and how they were read."""

    examples: list[T]
    path: str
    format: str
    scheme: str = ""  # tag scheme, "" for classes
    skipped: list[BadRow] = field(default_factory=list)
    repaired: list[BadRow] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)  # what a report should say about the data

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.examples)

    @property
    def labels(self) -> list[str]:
        """The distinct tags or classes in alphabetical order; none where the examples have neither."""
        found: set[str] = set()
        for example in self.examples:
            found.update(getattr(example, "tags", None) or (getattr(example, "label", ""),))
        return sorted(found - {""})


class Ledger:
    """Keeps the account of bad rows while one file is read, eq. (1).

    Args:
        path: the file as the user named it; "-" is standard input.
        on_bad_rows: "fail", "skip" or "repair".
    """

    def __init__(self, path: str | Path, on_bad_rows: str = "fail") -> None:
        if on_bad_rows not in ON_BAD_ROWS:
            raise InputError(f"on_bad_rows must be one of {', '.join(ON_BAD_ROWS)}, got {on_bad_rows!r}")
        self.path = "standard input" if str(path) == "-" else str(path)
        self.on_bad_rows = on_bad_rows
        self.rows: list[BadRow] = []
        self.repaired: list[BadRow] = []
        self.invalid: dict[int, str] = {}  # lines that are not UTF-8, and what to say about them

    def bad(self, line: int, field: str, reason: str) -> None:
        """Enter a row that cannot be used."""
        self.rows.append(BadRow(self.path, line, field, reason))

    def repair(self, line: int, field: str, reason: str) -> None:
        """Enter a row that was rewritten."""
        self.repaired.append(BadRow(self.path, line, field, reason))

    def fault(self, message: str) -> InputError:
        """The error for what no single row can be blamed for, to be raised."""
        return InputError(f"{self.path}: {message}")

    def gather(self, rows: Iterable[tuple[int, R]], take: Callable[[int, R], T]) -> list[T]:
        """What `take` makes of the rows, each with its line; rows for which it raises RowError are entered as bad."""
        examples = []
        for number, row in rows:
            try:
                examples.append(take(number, row))
            except RowError as error:
                self.bad(number, error.field, error.reason)
        return examples

    def refuse_bad(self, way_out: str) -> None:
        """Raises an InputError with the first bad row, how many more there are and how to mend it; nothing if none."""
        rows = sorted(self.rows, key=lambda row: row.line)
        if rows:
            more = f" ({len(rows) - 1} more bad rows)" if len(rows) > 2 else " (1 more bad row)" * (len(rows) - 1)
            raise InputError(f"{rows[0]}{more}{f'; {way_out}' if way_out else ''}")

    def close(self, examples: list[T], format: str, scheme: str = "") -> Corpus[T]:
        """Corpus of the examples; raises when rows are bad and may not be skipped, or when nothing is left."""
        rows = sorted(self.rows, key=lambda row: row.line)
        if self.on_bad_rows != "skip":
            self.refuse_bad("on_bad_rows='skip' leaves bad rows out and lists them" if examples else "")
        if not examples:
            why = f"all its {len(rows)} rows are bad, the first at line {rows[0].line}" if rows else "the set is empty"
            raise self.fault(f"no example to use: {why}{f' ({rows[0].reason})' if rows else ''}")
        notes = {"repaired": len(self.repaired), "repaired_rows": [str(r) for r in self.repaired[:20]]}
        return Corpus(examples, self.path, format, scheme, rows, self.repaired, notes=notes if self.repaired else {})


class RowError(Exception):
    """One row cannot be used; raised while a row is taken apart, entered into the ledger by the reader."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


def check_option(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuses a value that is not among the allowed ones."""
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def need(row: dict[str, Any], name: str, option: str = "") -> Any:
    """row[name], or a RowError that lists the fields and, if one is near, which was probably meant."""
    if name in row:
        return row[name]
    raise RowError(name, f"missing; the row has {listing(row)}{did_you_mean(name, row, option)}")


def need_text(value: Any, name: str) -> str:
    """`value` if it is a text with something in it, else a RowError."""
    if not isinstance(value, str):
        raise RowError(name, f"expected a text, got {kind_of(value)}")
    if not value.strip():
        raise RowError(name, "the text is empty")
    if HALF_CHARACTER.search(value):
        raise RowError(name, "holds half a character (a lone surrogate such as \\ud83d); write the whole one")
    return value


def did_you_mean(name: str, found: Iterable[str], option: str) -> str:
    """What a missing name was probably meant to be, as the end of a message; "" if nothing is near."""
    names = [str(f) for f in found]
    lowered = {f.strip().lower(): f for f in names}
    near = next((lowered[n] for n in (name, *_SYNONYMS.get(name, ())) if n in lowered), None)
    if near is None:
        close = difflib.get_close_matches(name, list(lowered), 1)
        near = lowered[close[0]] if close else None
    if near is None:
        return ""
    return f"; did you mean {near!r}?" + (f" pass {option}={near!r}" if option else f" rename it to {name!r}")


def listing(names: Iterable[Any]) -> str:
    """Names as a message shows them, the first eight."""
    shown = [repr(str(n)[:40]) for n in names]
    return ", ".join(shown[:8]) + (" ..." if len(shown) > 8 else "") if shown else "nothing"


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true/false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
