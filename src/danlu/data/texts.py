r"""Texts to predict on: the lines of a plain file as they come, or the text column of a table.

    name ends in            a text is                                                                     (1)
    .jsonl .ndjson          the field "text" of an object a line
    .tsv .tab .csv          the column "text"; the first line names the columns
    anything else, "-"      a line, empty ones too

Only the name decides: a line of plain text may well begin with a brace. ".gz" may follow each. Plain lines are read one
by one, so a pipe is answered while it is still being written; tables are read whole and checked before any answer, for
in CSV a text may hold line ends. Unlike in training a text may be empty, but none may be left out: the answers behind
it would belong to other rows.

Source: own definitions.
Shapes: no tensors.
"""

import contextlib
import gzip
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from danlu.data.errors import InputError
from danlu.data.ledger import Ledger, need, need_text
from danlu.data.rows import read_lines, rows_of

__all__ = ["TEXT_FORMATS", "read_texts"]

TEXT_FORMATS = ("txt", "jsonl", "tsv", "csv")
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".tsv": "tsv", ".tab": "tsv", ".csv": "csv"}  # table (1)


def read_texts(path: str | Path, format: str = "auto", text_field: str = "text") -> Iterator[str]:
    """Texts to predict on, in order, table (1).

    Args:
        path: a UTF-8 file, plain or gzip; "-" reads standard input as plain lines.
        format: "txt", "jsonl", "tsv", "csv", or "auto" to tell from the name.
        text_field: field or column of the text.

    Returns:
        An iterator; from a plain file as many texts as it has lines, from a table as many as rows that are not blank.

    Raises:
        InputError: the file or a row cannot be used; when the first text is asked for, or with that line.
    """
    if format not in ("auto", *TEXT_FORMATS):
        raise InputError(f"format must be one of auto, {', '.join(TEXT_FORMATS)}, got {format!r}")
    if format == "auto":
        format = _ENDINGS.get(Path(str(path).lower().removesuffix(".gz")).suffix, "txt")
    return _lines(str(path)) if format == "txt" else _rows(path, format, text_field)


def _rows(path: str | Path, format: str, text_field: str) -> Iterator[str]:
    ledger = Ledger(path)
    lines = read_lines(path, ledger)

    def take(number: int, row: dict[str, Any]) -> str:
        text = need(row, text_field)
        blank = isinstance(text, str) and not text.strip()
        return str(text) if blank else need_text(text, text_field)

    texts = ledger.gather(rows_of(format, lines, ledger, [text_field]), take)
    ledger.refuse_bad("every row gets an answer, so mend it or take it out")
    yield from texts


def _lines(path: str) -> Iterator[str]:
    try:
        opened = gzip.open if path.endswith(".gz") else open
        stream = sys.stdin.buffer if path == "-" else opened(path, "rb")
    except FileNotFoundError:
        raise InputError(f"no file {path}; give texts, a file, or - for standard input") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give a file with one text a line") from None
    with contextlib.nullcontext() if path == "-" else stream:
        number = 0
        try:
            for number, raw in enumerate(stream):
                yield raw.decode("utf-8").removeprefix("\ufeff" if number == 0 else "").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path} line {number + 1}: not UTF-8 (byte {error.object[error.start]:#04x}); "
                "convert it, for example with iconv -f gb18030 -t utf-8"
            ) from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{path} after line {number}: damaged gzip ({error}); fetch or pack it again") from None
