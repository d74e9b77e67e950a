r"""Items of several texts to predict on: a pair, a question with its context.

    name ends in            an item is                                                            (1)
    .jsonl .ndjson          an object a line with a key for each text
    .tsv .tab .csv          a row; the first line names the columns
    anything else, "-"      a line, its texts parted by tabs, in the order of the fields

As with single texts (`danlu.data.texts`) plain lines are answered one by one, tables are checked before any answer, and
no item may be left out.

Source: own definitions.
Shapes: no tensors.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from danlu.data.errors import InputError
from danlu.data.ledger import Ledger, need, need_text
from danlu.data.rows import read_lines, rows_of
from danlu.data.texts import read_texts

__all__ = ["grouped_items", "read_items"]

_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".tsv": "tsv", ".tab": "tsv", ".csv": "csv"}  # table (1)


def read_items(
    path: str | Path, fields: Sequence[str], names: Sequence[Sequence[str]] = ()
) -> Iterator[dict[str, str]]:
    """Items of several texts, in order, table (1).

    Args:
        path: a UTF-8 file, plain or gzip; "-" reads standard input as plain lines.
        fields: names of an item's texts, at least two.
        names: other names that the texts may have in a table, as many in each as there are fields.

    Returns:
        An iterator over dicts with these fields.

    Raises:
        InputError: the file or a row cannot be used; when the first item is asked for, or with that line.
    """
    kind = _ENDINGS.get(Path(str(path).lower().removesuffix(".gz")).suffix)
    return _lines(path, fields) if kind is None else _rows(path, kind, fields, [tuple(fields), *names])


def grouped_items(texts: Sequence[str], fields: Sequence[str]) -> Iterator[dict[str, str]]:
    """Items from a flat list of texts, as many to each as there are fields.

    Args:
        texts: of the first item, of the second, ...
        fields: names of an item's texts.

    Returns:
        An iterator over dicts with these fields.

    Raises:
        InputError: the number of texts does not divide.

    >>> list(grouped_items(["a", "b"], ("text_a", "text_b")))
    [{'text_a': 'a', 'text_b': 'b'}]
    """
    size = len(fields)
    if len(texts) % size:
        raise InputError(f"an item of this model has {size} texts ({', '.join(fields)}), {len(texts)} were given")
    return (dict(zip(fields, texts[i : i + size], strict=True)) for i in range(0, len(texts), size))


def _lines(path: str | Path, fields: Sequence[str]) -> Iterator[dict[str, str]]:
    for number, line in enumerate(read_texts(path, format="txt"), 1):
        texts = line.split("\t")
        if len(texts) != len(fields):
            raise InputError(
                f"{path} line {number}: {len(texts)} text{'s' if len(texts) != 1 else ''} parted by tabs, this model "
                f"reads {len(fields)} ({', '.join(fields)}); JSON Lines (a name in .jsonl) take any text"
            )
        yield dict(zip(fields, texts, strict=True))


def _rows(
    path: str | Path, kind: str, fields: Sequence[str], names: Sequence[Sequence[str]]
) -> Iterator[dict[str, str]]:
    ledger = Ledger(path)
    lines = read_lines(path, ledger)

    def take(_: int, row: Mapping[str, Any]) -> dict[str, str]:
        found = next((known for known in names if all(name in row for name in known)), names[0])
        return {field: _text(row, name) for field, name in zip(fields, found, strict=True)}

    items = ledger.gather(rows_of(kind, lines, ledger, []), take)
    ledger.refuse_bad("every row gets an answer, so mend it or take it out")
    yield from items


def _text(row: Mapping[str, Any], name: str) -> str:
    text = need(dict(row), name)
    return text if isinstance(text, str) and not text.strip() else need_text(text, name)
