"""Reader of texts with a class.

    format       a row                                                                                (1)
    jsonl        {"text": ..., "label": ...}
    tsv, csv     a header with the columns text and label

Source: own definitions.
Shapes: no tensors.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danlu.data.ledger import Corpus, Ledger, RowError, need, need_text
from danlu.data.rows import open_rows
from danlu.data.tagged import Labelled

__all__ = ["read_labelled"]


def read_labelled(
    path: str | Path,
    format: str = "auto",
    on_bad_rows: str = "fail",
    text_field: str | Sequence[str] = "text",
    label_field: str = "label",
) -> Corpus[Labelled]:
    """Texts with a class from a file in one of the formats of table (1).

    Args:
        path: the file; "-" reads standard input.
        format: "jsonl", "tsv", "csv", or "auto" to tell from the name and then from the first line.
        on_bad_rows: "fail" or "skip" (`danlu.data.ledger`).
        text_field: field or column of the text; several are joined by a line end.
        label_field: field or column of the class; whole numbers become texts ("1").

    Returns:
        Corpus of `Labelled`; `skipped` lists the rows left out.

    Raises:
        InputError: the file or a row cannot be used; the text names file, line, field, reason and a way out.
    """
    fields = [text_field] if isinstance(text_field, str) else list(text_field)
    ledger = Ledger(path, on_bad_rows)
    kind, rows = open_rows(path, format, ledger, [*fields, label_field])

    def take(number: int, row: dict[str, Any]) -> Labelled:
        parts = [need(row, name, "text_field") for name in fields]
        if len(fields) > 1:
            parts = ["\n".join(part for part in parts if isinstance(part, str) and part.strip())]
        text = need_text(parts[0], fields[0])
        return Labelled(text, class_label(need(row, label_field, "label_field"), label_field), number)

    return ledger.close(ledger.gather(rows, take), kind)


def class_label(value: Any, name: str) -> str:
    """A class as a text, from a text or a whole number; else a RowError."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(name, f"expected a text or a whole number, got {value!r}")
    label = value.strip() if isinstance(value, str) else str(value)
    if not label:
        raise RowError(name, "the class is empty")
    return need_text(label, name)
