r"""Pairs to learn generation from: a source and the text to write, or a condition and the text to write, or all three.

    format       a row                                                                                       (1)
    jsonl        {"source": ..., "target": ...}
                 {"target": ..., "condition": {"form": "7-jueju", "author": "..."}}     several named labels
                 {"target": ..., "condition": "positive"}                               one label
                 {"target": ..., "condition": [0.2, -1.5, ...]}                         a vector, say of a picture
    tsv, csv     a header with target, and source, condition or condition.NAME (a label each)

A file keeps to one form: every row has a source or none has, the same labels, vectors of one length. What the first
usable row has is asked of the others, since a row without its condition would teach that the condition may be ignored.

Source: own definitions.
Shapes: no tensors.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.data.errors import InputError
from danlu.data.ledger import Corpus, Ledger, RowError, need, need_text
from danlu.data.rows import open_rows

__all__ = ["Condition", "Pair", "read_condition", "read_pairs"]
ONE_LABEL = "condition"  # name of a label that stands alone


@dataclass(frozen=True, slots=True)
class Condition:
    """What a text is to be like: named labels, or a vector, or neither."""

    labels: tuple[tuple[str, str], ...] = ()
    vector: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.labels or self.vector)

    def __str__(self) -> str:
        """As a reader of a report wants it: "form 7-jueju, author Li Bai"."""
        if self.vector:
            return f"vector of {len(self.vector)} numbers"
        return ", ".join(value if name == ONE_LABEL else f"{name} {value}" for name, value in self.labels)

    @property
    def kind(self) -> str:
        """The form that all rows of a file share, in words."""
        if self.vector:
            return f"a vector of {len(self.vector)} numbers"
        names = [name for name, _ in self.labels]
        return f"the label{'s' * (len(names) > 1)} {', '.join(names)}" if names else "no condition"


@dataclass(frozen=True, slots=True)
class Pair:
    """A text to write, what it is written from and what it is to be like."""

    source: str  # "" where only a condition leads
    target: str
    condition: Condition
    line: int  # line of the file it begins on, counted from 1

    @property
    def text(self) -> str:
        """What tells whether two parts of the data share an example."""
        return self.source or self.target


def read_condition(value: Any, name: str = ONE_LABEL) -> Condition:
    """The condition that a JSON value stands for, table (1).

    Args:
        value: a text or whole number (one label), an object of labels, or a list of numbers.
        name: the field it stands in, for messages.

    Returns:
        The condition; labels are in alphabetical order of their names.

    Raises:
        InputError: it is none of these, or holds nothing.

    >>> read_condition({"form": "7-jueju", "author": 3}).labels
    (('author', '3'), ('form', '7-jueju'))
    >>> read_condition([1, 0.5]).vector
    (1.0, 0.5)
    """
    try:
        return _condition(value, name)
    except RowError as error:
        raise InputError(f"{error.field}: {error.reason}") from None


def read_pairs(
    path: str | Path,
    format: str = "auto",
    on_bad_rows: str = "fail",
    source_field: str = "source",
    target_field: str = "target",
    condition_fields: Sequence[str] = (),
) -> Corpus[Pair]:
    """Pairs from a file in one of the formats of table (1).

    Args:
        path: the file; "-" reads standard input.
        format: "jsonl", "tsv", "csv", or "auto" to tell from the name and then from the first line.
        on_bad_rows: "fail" or "skip" (`danlu.data.ledger`).
        source_field: field or column of the source.
        target_field: field or column of the text to write.
        condition_fields: fields that are labels of the condition, in place of "condition".

    Returns:
        Corpus of `Pair`; `skipped` lists the rows left out.

    Raises:
        InputError: the file or a row cannot be used; the text names file, line, field, reason and a way out.
    """
    ledger = Ledger(path, on_bad_rows)
    kind, rows = open_rows(path, format, ledger, [target_field, *condition_fields])
    first: list[Pair] = []

    def take(number: int, row: dict[str, Any]) -> Pair:
        pair = _pair(row, number, source_field, target_field, condition_fields)
        if first:
            _same_form(pair, first[0])
        else:
            first.append(pair)
        return pair

    return ledger.close(ledger.gather(rows, take), kind)


def _pair(row: Mapping[str, Any], line: int, source: str, target: str, condition_fields: Sequence[str]) -> Pair:
    columns = [name for name in row if name.startswith(f"{ONE_LABEL}.") and name != f"{ONE_LABEL}."]
    if condition_fields:
        condition = _labels({name: need(dict(row), name) for name in condition_fields}, "")
    elif columns:
        condition = _labels({name.removeprefix(f"{ONE_LABEL}."): row[name] for name in columns}, f"{ONE_LABEL}.")
    else:
        condition = _condition(row[ONE_LABEL], ONE_LABEL) if row.get(ONE_LABEL) is not None else Condition()
    written = need_text(need(dict(row), target, "target_field"), target)
    if not condition or row.get(source) not in (None, ""):
        return Pair(need_text(need(dict(row), source, "source_field"), source), written, condition, line)
    return Pair("", written, condition, line)


def _same_form(pair: Pair, first: Pair) -> None:
    """Refuses a row of another form than the first one."""
    if bool(pair.source) != bool(first.source):
        has, lacks = ("no source", "one") if first.source else ("a source", "none")
        raise RowError("source", f"the row has {has}, line {first.line} has {lacks}; give it to every row or to none")
    if pair.condition.kind != first.condition.kind:
        raise RowError(
            ONE_LABEL,
            f"the row has {pair.condition.kind}, line {first.line} has {first.condition.kind}; all rows need the same",
        )


def _condition(value: Any, name: str) -> Condition:
    if isinstance(value, list):
        if not value:
            raise RowError(name, "the vector is empty")
        for i, item in enumerate(value):
            if isinstance(item, bool) or not isinstance(item, int | float) or not abs(item) <= sys.float_info.max:
                way = "; labels need names: {name: label}" if isinstance(item, str) else ""
                raise RowError(f"{name}[{i}]", f"expected a finite number, got {str(item)[:40]!r}{way}")
        return Condition(vector=tuple(float(item) for item in value))
    if isinstance(value, dict):
        if not value:
            raise RowError(name, "the condition names no label")
        return _labels(value, f"{name}.")
    return Condition(labels=((ONE_LABEL, _label(value, name)),))


def _labels(values: Mapping[str, Any], prefix: str) -> Condition:
    return Condition(labels=tuple((name, _label(values[name], f"{prefix}{name}")) for name in sorted(values)))


def _label(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(name, f"expected a label (a text or a whole number), got {str(value)[:40]!r}")
    return need_text(str(value), name).strip()
