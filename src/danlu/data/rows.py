r"""Files as numbered lines, and as rows with named fields: JSON Lines, TSV and CSV.

A file is UTF-8 (a byte-order mark is dropped), plain or gzip (told by its first bytes); "-" is standard input. Lines
end at "\n" or "\r\n" and nowhere else: texts may hold the other line separators of Unicode. Line numbers count from 1
and stay those of the file whatever is skipped. Blank lines carry no row. What becomes of rows that cannot be used is
the ledger's to say (`danlu.data.ledger`).

Source: own definitions; JSON Lines; RFC 4180 (CSV).
Shapes: no tensors.
"""

import csv
import difflib
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from danlu.data.ledger import HALF_CHARACTER, Ledger, check_option, did_you_mean, kind_of, listing

__all__ = ["ROW_FORMATS", "json_rows", "open_rows", "read_lines", "table_rows"]

ROW_FORMATS = ("jsonl", "tsv", "csv")
_ENDINGS = {"jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl", "tsv": "tsv", "tab": "tsv", "csv": "csv"}


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


def open_rows(
    path: str | Path, format: str, ledger: Ledger, columns: Sequence[str]
) -> tuple[str, Iterator[tuple[int, dict[str, Any]]]]:
    """The format of a file of rows with named fields, and its rows.

    Args:
        path: the file; "-" reads standard input.
        format: "jsonl", "tsv", "csv", or "auto" to tell from the name and then from the first line.
        ledger: account of the file.
        columns: the columns that a table must have; of JSON objects each is asked by itself.

    Returns:
        The format, and (line number, fields) of every usable row.

    Raises:
        InputError: another format, or the file cannot be used.
    """
    check_option("format", format, ("auto", *ROW_FORMATS))
    lines = read_lines(path, ledger)
    kind = _format_of(path, lines, ledger) if format == "auto" else format
    return kind, rows_of(kind, lines, ledger, columns)


def rows_of(
    kind: str, lines: Sequence[str], ledger: Ledger, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, fields) of every usable row of lines in one of `ROW_FORMATS`."""
    if kind == "jsonl":
        return json_rows(lines, ledger)
    return table_rows(lines, ledger, "," if kind == "csv" else "\t", columns)


def first_lines(lines: Sequence[str], ledger: Ledger) -> list[str]:
    """The first lines that are not blank; refuses a file that has none."""
    first = [line for line in lines[:200] if line.strip()]
    if not first:
        raise ledger.fault("no example to use: the set is empty")
    return first


def holds_objects(path: str | Path, first: Sequence[str]) -> bool:
    """Whether a file is JSON Lines, by its name or its first line."""
    return _ENDINGS.get(suffix(path)) == "jsonl" or (first[0].lstrip()[:1], first[0].rstrip()[-1:]) == ("{", "}")


def suffix(path: str | Path) -> str:
    """Last ending of a name without the dot and without .gz, in small letters."""
    name = str(path).lower().removesuffix(".gz")
    return name.rpartition(".")[2] if "." in Path(name).name else ""


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
                ledger.bad(number, "", f"expected an object {{...}}, got {kind_of(row)}")


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


def _format_of(path: str | Path, lines: Sequence[str], ledger: Ledger) -> str:
    """Format by the ending of the name where it decides, else by the first line that is not blank."""
    first = first_lines(lines, ledger)
    if holds_objects(path, first):
        return "jsonl"
    if found := _ENDINGS.get(suffix(path)):
        return found
    for kind, sign in (("tsv", "\t"), ("csv", ",")):
        if sign in first[0]:
            return kind
    raise ledger.fault(
        f"cannot tell the format: neither the name nor line 1 ({first[0][:40]!r}) says JSON Lines, TSV or CSV; "
        f"pass format= one of {', '.join(ROW_FORMATS)}"
    )


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
        hint = did_you_mean(name, header, "")
        if len(header) == 1:
            other = next((sign for sign in ("\t", ",", ";", "|") if sign != delimiter and sign in header[0]), None)
            if other is not None:
                hint = f"; columns must be parted by {delimiter!r}, this line has {other!r}"
        raise ledger.fault(
            f"line {line}: no column {name!r} in the header; found {listing(header)}{hint} "
            f"(the first line must name the columns)"
        )


def _near(name: str, names: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, names, 3))
