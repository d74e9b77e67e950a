r"""Files as numbered lines and rows, and an account of every row that cannot be used.

A file is UTF-8 (a byte-order mark is dropped), plain or gzip (told by its first bytes); "-" is standard input. Lines
end at "\n" or "\r\n" and nowhere else: texts may hold the other line separators of Unicode. Line numbers count from 1
and stay those of the file whatever is skipped. Blank lines carry no row.

    fail:    the first bad row ends the reading with an InputError that says how many more there are         (1)
    skip:    bad rows are left out and listed in `Corpus.skipped`
    repair:  as fail, but tag sequences that break their scheme are rewritten and listed in `Corpus.repaired`

What no row can be blamed for (a missing file, a folder, a broken archive, a missing column, nothing left to use) is an
InputError in every mode.

Source: own definitions; JSON Lines; RFC 4180 (CSV).
Shapes: no tensors.
"""

import csv
import difflib
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from danlu.data.errors import InputError

__all__ = ["BadRow", "Corpus", "Ledger", "json_rows", "read_lines", "table_rows"]

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

    def close(self, examples: list[T], format: str, scheme: str = "") -> Corpus[T]:
        """Corpus of the examples; raises when rows are bad and may not be skipped, or when nothing is left."""
        rows = sorted(self.rows, key=lambda row: row.line)
        if rows and self.on_bad_rows != "skip":
            more = f" ({len(rows) - 1} more bad rows)" if len(rows) > 2 else " (1 more bad row)" * (len(rows) - 1)
            way = "; on_bad_rows='skip' leaves bad rows out and lists them" if examples else ""
            raise InputError(f"{rows[0]}{more}{way}")
        if not examples:
            why = f"all its {len(rows)} rows are bad, the first at line {rows[0].line}" if rows else "the set is empty"
            raise self.fault(f"no example to use: {why}{f' ({rows[0].reason})' if rows else ''}")
        notes = {"repaired": len(self.repaired), "repaired_rows": [str(r) for r in self.repaired[:20]]}
        return Corpus(examples, self.path, format, scheme, rows, self.repaired, notes=notes if self.repaired else {})


def read_lines(path: str | Path, ledger: Ledger, limit: int | None = None) -> list[str]:
    r"""The lines of a file without their ends.

    Args:
        path: a UTF-8 file, plain or gzip; "-" reads standard input.
        ledger: account of the file; with on_bad_rows="skip" its `invalid` names the lines that are not UTF-8, whose
            bad bytes stand in the result as lone surrogates.
        limit: bytes, unpacked, beyond which the file is refused; None: none.

    Returns:
        Lines in order; a closing "\n" starts no further line.

    Raises:
        InputError: the file is missing, a folder, unreadable, a broken or foreign archive, in UTF-16, larger than the
            limit, or (unless bad rows are skipped) not UTF-8.
    """
    data = _bytes(path, ledger, limit)
    if data.startswith(b"\xef\xbb\xbf"):
        data, dropped = data[3:], 3
    else:
        dropped = 0
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ledger.fault("this is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if ledger.on_bad_rows != "skip":
            line = data.count(b"\n", 0, error.start) + 1
            raise ledger.fault(
                f"line {line}: invalid UTF-8 at byte offset {error.start + dropped}; {_other_encoding(data)}"
            ) from None
        text = data.decode("utf-8", "surrogateescape")
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if "\r" in text:
        lines = [line[:-1] if line.endswith("\r") else line for line in lines]
    if HALF_CHARACTER.search(text):
        for number, content in enumerate(lines, 1):
            if found := HALF_CHARACTER.search(content):
                at = len(content[: found.start()].encode("utf-8", "surrogateescape"))
                ledger.invalid[number] = f"invalid UTF-8 at byte {at + 1} of the line"
    return lines


def json_rows(lines: Sequence[str], ledger: Ledger) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for every line that holds a JSON object; the others are entered as bad.

    Args:
        lines: lines of a JSON Lines file; blank ones are passed over.
        ledger: account of the file.

    Returns:
        An iterator over the usable rows.

    Raises:
        InputError: the file is one JSON array instead of one object a line.
    """
    first = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if number in ledger.invalid:
            ledger.bad(number, "", ledger.invalid[number])
            continue
        if first and line.lstrip().startswith("[") and not line.rstrip().endswith("]"):
            raise ledger.fault("one JSON array; write one object a line (jq -c '.[]')")
        first = False
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            hint = "; an object must stand on one line (jq -c .)" if line.strip() in "{[" else ""
            ledger.bad(number, f"column {error.colno}", f"not JSON: {error.msg}{hint}")
        except (ValueError, RecursionError):
            ledger.bad(number, "", "not usable JSON: a number too long or nesting too deep")
        else:
            if isinstance(row, dict):
                yield number, row
            elif isinstance(row, list) and row and isinstance(row[0], dict):
                raise ledger.fault(f"line {number}: one JSON array; write one object a line (jq -c '.[]')")
            else:
                ledger.bad(number, "", f"expected an object {{...}}, got {_kind(row)}")


def table_rows(
    lines: Sequence[str], ledger: Ledger, delimiter: str, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    r"""(line number, {column: text}) for every row of a table with a header; the others are entered as bad.

    CSV follows RFC 4180: quoted fields may hold commas, doubled quotes and line ends. In TSV a line is a row; a field
    wholly in quotes with inner quotes doubled is unquoted, any other quote is part of the text.

    Args:
        lines: lines of the file, the first that is not blank names the columns; blank lines are passed over.
        ledger: account of the file.
        delimiter: "," or "\t".
        columns: the columns that the caller needs.

    Returns:
        An iterator over the usable rows, with every column of the file.

    Raises:
        InputError: there is no header, a name stands twice in it, or a needed column is missing.
    """
    records = _csv_records(lines, ledger) if delimiter == "," else _tsv_records(lines, ledger)
    header: list[str] | None = None
    for number, fields in records:
        if header is None:
            header = [name.strip() for name in fields]
            _check_header(header, columns, ledger, delimiter, number)
        elif len(fields) != len(header):
            size = f"{len(fields)} column{'s' if len(fields) > 1 else ''}"
            extra = "a text that holds the separator or a line end must be in quotes (CSV) or go to JSON Lines"
            ledger.bad(number, "", f"{size} where the header has {len(header)}; {extra}")
        else:
            yield number, dict(zip(header, fields, strict=True))


def need(row: dict[str, Any], name: str, option: str = "") -> Any:
    """row[name], or a RowError that lists the fields and, if one is near, which was probably meant."""
    if name in row:
        return row[name]
    raise RowError(name, f"missing; the row has {_listing(row)}{_did_you_mean(name, row, option)}")


def need_text(value: Any, name: str) -> str:
    """`value` if it is a text with something in it, else a RowError."""
    if not isinstance(value, str):
        raise RowError(name, f"expected a text, got {_kind(value)}")
    if not value.strip():
        raise RowError(name, "the text is empty")
    if HALF_CHARACTER.search(value):
        raise RowError(name, "holds half a character (a lone surrogate such as \\ud83d); write the whole one")
    return value


class RowError(Exception):
    """One row cannot be used; raised while a row is taken apart, entered into the ledger by the reader."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


def _bytes(path: str | Path, ledger: Ledger, limit: int | None = None) -> bytes:
    if str(path) == "-":
        data = sys.stdin.buffer.read()
    else:
        file = Path(path)
        try:
            with file.open("rb") as opened:
                data = opened.read(-1 if limit is None else limit + 1)
        except FileNotFoundError:
            near = _near(file.name, [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else [])
            where = f"no such file{f'; near: {near}' if near else ''}"
            raise ledger.fault(
                where if file.parent.is_dir() else f"no such file, nor its folder {file.parent}"
            ) from None
        except IsADirectoryError:
            files = sorted(p.name for p in file.iterdir() if p.is_file())[:4]
            raise ledger.fault(
                f"a folder; name a file in it{f' ({chr(44).join(files)} ...)' if files else ''}"
            ) from None
        except OSError as error:
            raise ledger.fault(f"cannot be read: {error.strerror or error}") from None
    if data.startswith(b"\x1f\x8b"):
        try:
            if limit is None:
                data = gzip.decompress(data)
            else:
                with gzip.GzipFile(fileobj=io.BytesIO(data)) as unpacked:
                    data = unpacked.read(limit + 1)
        except EOFError:
            raise ledger.fault("the gzip file ends too early (a broken copy or download); get it again") from None
        except (OSError, zlib.error) as error:
            raise ledger.fault(f"the gzip file is damaged ({error}); get it again") from None
    elif str(path).endswith(".gz") and data:
        raise ledger.fault("named .gz but not gzip; rename it or compress it")
    if limit is not None and len(data) > limit:
        raise ledger.fault(
            f"more than {limit / 2**20:.0f} MB of text, which this kind of file never has; is it the right one?"
        )
    if data.startswith((b"PK\x03\x04", b"BZh", b"\xfd7zXZ")):
        raise ledger.fault("an archive or a spreadsheet (zip, xlsx, bz2, xz); unpack or export it to a text file")
    return data


def _other_encoding(data: bytes) -> str:
    try:
        data.decode("gb18030")
    except UnicodeDecodeError:
        return "mend the line, or on_bad_rows='skip' leaves it out"
    return "the file may be GB18030; convert it (iconv -f GB18030 -t UTF-8)"


def _csv_records(lines: Sequence[str], ledger: Ledger) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((line + "\n" for line in lines), strict=True)
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            ledger.bad(start, "", f"not CSV: {_csv_reason(str(error), start, reader.line_num)}")
            continue
        end = reader.line_num
        broken = next((n for n in range(start, end + 1) if n in ledger.invalid), None) if ledger.invalid else None
        if broken is not None:
            ledger.bad(start, "", f"{ledger.invalid[broken]} (line {broken})")
        elif any(text.strip() for text in fields) or len(fields) > 1:
            if fields:
                fields[-1] = fields[-1].removesuffix("\n")
            yield start, fields


def _csv_reason(error: str, start: int, end: int) -> str:
    if "unexpected end of data" in error or "field larger" in error:
        return f"the quote opened in the row of line {start} is not closed (read on to line {end}); double inner quotes"
    return f"{error}; double the quotes inside a quoted field"


def _tsv_records(lines: Sequence[str], ledger: Ledger) -> Iterator[tuple[int, list[str]]]:
    width = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if number in ledger.invalid:
            ledger.bad(number, "", ledger.invalid[number])
            continue
        fields = [_unquoted(text) for text in line.split("\t")]
        width = width or len(fields)
        if len(fields) > width and '"' in line:  # perhaps a tab inside quotes
            try:
                quoted = next(csv.reader([line], delimiter="\t", strict=True))
            except csv.Error:
                quoted = fields
            fields = quoted if len(quoted) == width else fields
        yield number, fields


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == '"' == text[-1] and '"' not in text[1:-1].replace('""', ""):
        return text[1:-1].replace('""', '"')
    return text


def _check_header(header: list[str], columns: Sequence[str], ledger: Ledger, delimiter: str, line: int) -> None:
    for name in header:
        if header.count(name) > 1:
            raise ledger.fault(f"line {line}: the header names {name!r} twice; every column needs its own name")
    for name in columns:
        if name in header:
            continue
        hint = _did_you_mean(name, header, "")
        if len(header) == 1:
            other = next((sign for sign in ("\t", ",", ";", "|") if sign != delimiter and sign in header[0]), None)
            if other is not None:
                hint = f"; columns must be parted by {delimiter!r}, this line has {other!r}"
        raise ledger.fault(
            f"line {line}: no column {name!r} in the header; found {_listing(header)}{hint} "
            f"(the first line must name the columns)"
        )


def _did_you_mean(name: str, found: Iterable[str], option: str) -> str:
    names = [str(f) for f in found]
    lowered = {f.strip().lower(): f for f in names}
    near = next((lowered[n] for n in (name, *_SYNONYMS.get(name, ())) if n in lowered), None)
    if near is None:
        close = difflib.get_close_matches(name, list(lowered), 1)
        near = lowered[close[0]] if close else None
    if near is None:
        return ""
    return f"; did you mean {near!r}?" + (f" pass {option}={near!r}" if option else f" rename it to {name!r}")


def _near(name: str, names: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, names, 3))


def _listing(names: Iterable[Any]) -> str:
    shown = [repr(str(n)[:40]) for n in names]
    return ", ".join(shown[:8]) + (" ..." if len(shown) > 8 else "") if shown else "nothing"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true/false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
