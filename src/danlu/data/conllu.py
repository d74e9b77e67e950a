r"""Reader of treebanks in CoNLL-U: words with their heads, for measuring parsers.

    1	他	他	PRON	PRP	_	2	nsubj	_	SpaceAfter=No                (1)

A word is a line of ten columns parted by tabs: number, form, lemma, coarse and fine part of speech, features, head,
relation, and two more. Sentences end at a blank line. Lines "# text = ..." before the words give the text; without one
it is joined from the forms, with a blank wherever SpaceAfter=No does not stand. Ranges ("1-2", several words written as
one) and empty nodes ("8.1") are no words and are passed over. Files with the fields filled by "_" from the seventh on
hold no trees and are refused as such.

A sentence is bad as a whole: with a line of another shape, numbers that do not count 1, 2, 3 ..., a head that is none
of them, or heads that turn in a circle. One with several roots is a forest, and kept.

Source: universaldependencies.org/format.html.
Shapes: no tensors; heads count from 1, 0 is the root.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from danlu.data.errors import InputError
from danlu.data.ledger import Corpus, Ledger, RowError
from danlu.data.rows import read_lines
from danlu.math.dependency_tree import is_tree

__all__ = ["Parsed", "read_conllu"]

COLUMNS = 10
_NO_WORD = re.compile(r"\d+-\d+|\d+\.\d+")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_TEXT = re.compile(r"#\s*text\s*=\s*(.*\S)")


@dataclass(frozen=True, slots=True)
class Parsed:
    """One sentence with its dependency tree."""

    words: tuple[str, ...]
    heads: tuple[int, ...]  # 0 for a root, else the head's number from 1
    relations: tuple[str, ...]
    upos: tuple[str, ...]
    text: str
    line: int  # line of the file it begins on, counted from 1

    @property
    def root(self) -> int:
        """Number of the first root, from 1."""
        return self.heads.index(0) + 1

    @property
    def punctuation(self) -> tuple[bool, ...]:
        """True where a word is tagged PUNCT, or its relation is punct where there are no tags."""
        return tuple(
            tag == "PUNCT" or (tag == "_" and relation.split(":")[0] == "punct")
            for tag, relation in zip(self.upos, self.relations, strict=True)
        )


def read_conllu(path: str | Path, format: str = "auto", on_bad_rows: str = "fail") -> Corpus[Parsed]:
    """Sentences with their trees from a CoNLL-U file, form (1).

    Args:
        path: the file, plain or gzip; "-" reads standard input.
        format: "conllu" or "auto"; trees are read from nothing else.
        on_bad_rows: "fail" or "skip" (a bad line makes its sentence bad); "repair" mends nothing and acts as "fail".

    Returns:
        Corpus of `Parsed`; `skipped` lists the bad sentences by the line at fault.

    Raises:
        InputError: the file or a sentence cannot be used; the text names file, line, column and reason.
    """
    if format not in ("auto", "conllu"):
        raise InputError(f"format must be one of auto, conllu, got {format!r}; trees are read from CoNLL-U only")
    ledger = Ledger(path, on_bad_rows)
    sentences = []
    for block in _blocks(read_lines(path, ledger)):
        try:
            sentences.append(_sentence(block, ledger))
        except _LineError as error:
            ledger.bad(error.line, error.field, error.reason)
    return ledger.close(sentences, "conllu")


Block = list[tuple[int, str]]  # numbered lines


class _LineError(RowError):
    """A fault of one line, which makes its sentence bad; entered under that line."""

    def __init__(self, line: int, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.line = line


def _blocks(lines: Sequence[str]) -> list[Block]:
    """Runs of lines between blank ones, without those that are nothing but comments."""
    blocks: list[Block] = []
    now: Block = []
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            now.append((number, line))
        elif now:
            if not all(text.startswith("#") for _, text in now):
                blocks.append(now)
            now = []
    return blocks


def _sentence(block: Block, ledger: Ledger) -> Parsed:
    text = ""
    rows: list[tuple[int, list[str]]] = []
    forms: list[tuple[str, bool]] = []  # what is written, and whether a blank follows
    covered = 0  # last word of the range in work
    for number, line in block:
        if number in ledger.invalid:
            raise _LineError(number, "", ledger.invalid[number])
        if line.startswith("#"):
            found = _TEXT.match(line)
            text = found[1] if found and not rows else text
            continue
        columns = line.split("\t")
        if len(columns) != COLUMNS:
            hint = "; columns are parted by tabs, not by blanks" if len(columns) == 1 and " " in line.strip() else ""
            size = f"{len(columns)} column{'s' * (len(columns) != 1)}"
            raise _LineError(number, "", f"{size}, CoNLL-U has {COLUMNS}{hint}")
        blank_follows = "SpaceAfter=No" not in columns[9].split("|")
        if _NO_WORD.fullmatch(columns[0]):
            if "-" in columns[0]:
                covered = int(columns[0].split("-")[1])
                forms.append((columns[1], blank_follows))
            continue
        if columns[0] != str(len(rows) + 1):
            raise _LineError(number, "column 1", f"expected the number {len(rows) + 1}, got {columns[0]!r}")
        if not columns[1].strip():
            raise _LineError(number, "column 2", "the form is empty")
        rows.append((number, columns))
        if len(rows) > covered:
            forms.append((columns[1], blank_follows))
    if not rows:
        raise _LineError(block[0][0], "", "no word in this sentence, only ranges or empty nodes")
    heads = tuple(_head(number, columns[6], len(rows)) for number, columns in rows)
    if not is_tree(list(heads)):
        raise _LineError(rows[0][0], "column 7", "the heads turn in a circle and reach no root")
    if not text:
        text = "".join(form + " " * blank for form, blank in forms).strip()
    words, upos, relations = (tuple(columns[i] for _, columns in rows) for i in (1, 3, 7))
    return Parsed(words, heads, relations, upos, text, block[0][0])


def _head(number: int, value: str, size: int) -> int:
    if value == "_":
        raise _LineError(number, "column 7", "no head ('_'); this file holds no trees")
    if not _NUMBER.fullmatch(value) or int(value) > size:
        raise _LineError(number, "column 7", f"the head must be a number from 0 to {size}, got {value!r}")
    return int(value)
