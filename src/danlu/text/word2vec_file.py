r"""The text format of word2vec for word vectors, read and written.

    first line   V D                          (GloVe's files lack it)                                     (1)
    a line       word x_1 ... x_D             parted by single blanks

What is written is read back to the same bits. A word may hold blanks when the file is read, since D is known; none that
is written may.

Source: the program word2vec (Mikolov et al., 2013); Pennington et al., 2014, for files without a first line.
Shapes: V words, D features.
"""

import gzip
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from danlu.data.ledger import Ledger
from danlu.data.rows import read_lines
from danlu.text.word_vectors import WordVectors

__all__ = ["read_word2vec", "write_word2vec"]


def read_word2vec(path: str | Path, max_words: int | None = None, on_bad_rows: str = "fail") -> WordVectors:
    """Word vectors in a text file, table (1).

    Args:
        path: a UTF-8 file, plain or gzip.
        max_words: read the first ones only; None: all.
        on_bad_rows: "fail", or "skip" to leave out lines of another width, of numbers that are none, and words that
            came before.

    Returns:
        WordVectors in float32.

    Raises:
        InputError: the file cannot be read, or a line is bad; the text names the line and the reason.
    """
    ledger = Ledger(path, on_bad_rows)
    lines = [(number, line.rstrip(" \t")) for number, line in enumerate(read_lines(path, ledger), 1)]
    lines = [(number, line) for number, line in lines if line.strip()]
    if not lines:
        raise ledger.fault("there is no vector in it")
    head = lines[0][1].split()
    announced = None
    if len(head) == 2 and all(part.isascii() and part.isdigit() for part in head):
        announced, dim = int(head[0]), int(head[1])
        lines = lines[1:]
    else:
        dim = len(head) - 1
    if dim < 1:
        raise ledger.fault(f"the first line is {lines[0][1][:60]!r}; expected 'V D', or a word and its numbers")
    found: dict[str, np.ndarray] = {}
    for number, line in lines[:max_words]:
        parts = line.rsplit(" ", dim) if "\t" not in line else line.rsplit(None, dim)
        reason = ledger.invalid.get(number, "")
        values = np.zeros(0, np.float32)
        if not reason and len(parts) != dim + 1:
            reason = f"expected a word and {dim} numbers, got {len(parts) - 1}"
        if not reason:
            try:
                values = np.array(parts[1:], np.float64)
            except ValueError:
                reason = f"not all of the last {dim} parts are numbers"
            with np.errstate(over="ignore"):
                values = values.astype(np.float32)
            if not reason and not np.isfinite(values).all():
                reason = "a number is not finite in float32"
            if not reason and parts[0] in found:
                reason = f"the word {parts[0]!r} came before"
        if reason:
            ledger.bad(number, "", reason)
        else:
            found[parts[0]] = values
    if announced is not None and max_words is None and announced != len(lines):
        ledger.bad(1, "", f"{announced} words are announced, {len(lines)} follow: the file may be cut off")
    corpus = ledger.close(list(found), "word2vec text")
    return WordVectors(corpus.examples, torch.from_numpy(np.stack(list(found.values()))))


def write_word2vec(path: str | Path, vectors: WordVectors) -> None:
    """Write word vectors as text, whole or not at all; a name in .gz is packed.

    Args:
        path: of the file.
        vectors: what to write; numbers go out in float32.

    Raises:
        ValueError: a word is empty or holds a blank, or a number is not finite.
    """
    bad = next((word for word in vectors.words if not word or word.split() != [word]), None)
    if bad is not None:
        raise ValueError(f"the word {bad!r} is empty or holds a blank, which the format cannot tell; rename it")
    if not bool(torch.isfinite(vectors.vectors).all()):
        raise ValueError("vectors must be finite, got nan or inf")
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        opened = gzip.open if path.name.endswith(".gz") else open
        with opened(temporary, "wt", encoding="utf-8", newline="\n") as file:
            file.writelines(_lines(vectors))
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _lines(vectors: WordVectors) -> Iterator[str]:
    rows: Iterable[np.ndarray] = vectors.vectors.detach().cpu().float().numpy()
    yield f"{len(vectors)} {vectors.vectors.shape[1]}\n"
    for word, row in zip(vectors.words, rows, strict=True):
        yield f"{word} {' '.join(map(str, row))}\n"  # numpy's shortest text that reads back to the same float32
