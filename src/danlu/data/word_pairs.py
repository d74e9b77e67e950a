r"""Readers of what word vectors are judged by: pairs of words with a score of similarity, and analogies.

    a pair       word, word, score; parted by tabs, or by blanks where a line has no tab                  (1)
    an analogy   a, b, c, d parted by blanks: a is to b as c is to d; ": NAME" opens a section            (2)

Blank lines are passed over, and so are lines of pairs that begin with #.

Source: the layout of WordSim-353 and its kin, of Mikolov et al., 2013, arXiv:1301.3781 and of CA8 (Li et al., 2018).
Shapes: no tensors.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from danlu.data.ledger import Corpus, Ledger, RowError
from danlu.data.rows import read_lines

__all__ = ["Analogy", "read_analogies", "read_word_pairs"]


@dataclass(frozen=True, slots=True)
class Analogy:
    """a is to b as c is to d; section is the heading it stood under."""

    a: str
    b: str
    c: str
    d: str
    section: str = ""


def read_word_pairs(path: str | Path, on_bad_rows: str = "fail") -> Corpus[tuple[str, str, float]]:
    """Pairs of words with the score that people gave them, table (1).

    Args:
        path: a UTF-8 file, plain or gzip; "-" reads standard input.
        on_bad_rows: "fail" or "skip" (`danlu.data.ledger`).

    Returns:
        Corpus of (word, word, score).

    Raises:
        InputError: the file or a row cannot be used; the text names file, line, reason and a way out.
    """
    ledger = Ledger(path, on_bad_rows)

    def take(number: int, line: str) -> tuple[str, str, float]:
        _valid(ledger, number)
        parts = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
        if len(parts) != 3 or not parts[0] or not parts[1]:
            raise RowError("", f"expected word, word, score, got {line[:60]!r}")
        try:
            score = float(parts[2])
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise RowError("score", f"expected a number, got {parts[2]!r}")
        return parts[0], parts[1], score

    lines = enumerate(read_lines(path, ledger), 1)
    rows = ((number, line) for number, line in lines if line.strip() and not line.startswith("#"))
    return ledger.close(ledger.gather(rows, take), "word pairs")


def read_analogies(path: str | Path, on_bad_rows: str = "fail") -> Corpus[Analogy]:
    """Analogies under their headings, table (2).

    Args:
        path: a UTF-8 file, plain or gzip; "-" reads standard input.
        on_bad_rows: "fail" or "skip" (`danlu.data.ledger`).

    Returns:
        Corpus of `Analogy`.

    Raises:
        InputError: the file or a row cannot be used; the text names file, line, reason and a way out.
    """
    ledger = Ledger(path, on_bad_rows)
    section, rows = "", []
    for number, line in enumerate(read_lines(path, ledger), 1):
        if line.startswith(":"):
            section = line[1:].strip()
        elif line.strip():
            rows.append((number, (section, line)))

    def take(number: int, row: tuple[str, str]) -> Analogy:
        _valid(ledger, number)
        words = row[1].split()
        if len(words) != 4:
            raise RowError("", f"expected four words, got {row[1][:60]!r}")
        return Analogy(words[0], words[1], words[2], words[3], row[0])

    return ledger.close(ledger.gather(rows, take), "analogies")


def _valid(ledger: Ledger, number: int) -> None:
    if number in ledger.invalid:
        raise RowError("", ledger.invalid[number])
