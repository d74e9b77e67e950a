r"""Reader of text pairs with a class or a score: paraphrases, inference, similarity.

    format       a row                                                                        (1)
    jsonl        {"text_a": ..., "text_b": ..., "label": ...}      a class, as text or whole number
                 {"text_a": ..., "text_b": ..., "score": ...}      a number
    tsv, csv     a header with these columns

The two texts may also be called text1 and text2, sentence1 and sentence2, query and title, question1 and question2, or
premise and hypothesis. A file holds classes or scores; where a row has both, the class counts unless target="score".

Source: own definitions; the names are those of AFQMC, OCNLI, LCQMC, QQP and SNLI.
Shapes: no tensors.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from danlu.data.labelled import class_label
from danlu.data.ledger import Corpus, Ledger, RowError, check_option, need, need_text
from danlu.data.rows import open_rows

__all__ = ["PAIR_NAMES", "LabelledPair", "read_labelled_pairs"]

PAIR_NAMES = (
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("query", "title"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
)
TARGETS = ("label", "score")


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two texts with their class, or with a score and the class ""."""

    text_a: str
    text_b: str
    label: str
    score: float | None
    line: int  # line of the file it begins on, counted from 1

    @property
    def text(self) -> str:
        """Both texts, by which doubles are found."""
        return f"{self.text_a}\n{self.text_b}"


def read_labelled_pairs(
    path: str | Path,
    format: str = "auto",
    on_bad_rows: str = "fail",
    target: str = "auto",
    unlabelled: Sequence[str] = (),
) -> Corpus[LabelledPair]:
    """Pairs of texts with a class or a score from a file in one of the formats of table (1).

    Args:
        path: the file; "-" reads standard input.
        format: "jsonl", "tsv", "csv", or "auto" to tell from the name and then from the first line.
        on_bad_rows: "fail" or "skip" (`danlu.data.ledger`).
        target: "label", "score", or "auto": what the first row has.
        unlabelled: classes that say that there is none, such as "-"; such rows are bad rows.

    Returns:
        Corpus of `LabelledPair`, its scheme "label" or "score"; `skipped` lists the rows left out.

    Raises:
        InputError: the file or a row cannot be used; the text names file, line, field, reason and a way out.
    """
    check_option("target", target, ("auto", *TARGETS))
    ledger = Ledger(path, on_bad_rows)
    kind, rows = open_rows(path, format, ledger, [])
    first = next(rows, None)
    if first is not None:
        if kind != "jsonl":  # the columns are the same in every row: what is missing is missing once
            _check_columns(first[1], target, ledger)
        if target == "auto":
            target = "label" if "label" in first[1] or "score" not in first[1] else "score"
        rows = chain([first], rows)

    def take(number: int, row: dict[str, Any]) -> LabelledPair:
        text_a, text_b = (need_text(need(row, name), name) for name in names_of_pair(row))
        value = need(row, target)
        if target == "score":
            return LabelledPair(text_a, text_b, "", score_number(value), number)
        label = class_label(value, "label")
        if label in unlabelled:
            raise RowError("label", f"{label!r} says that there is no class")
        return LabelledPair(text_a, text_b, label, None, number)

    return ledger.close(ledger.gather(rows, take), kind, target if target in TARGETS else "label")


def names_of_pair(row: dict[str, Any]) -> tuple[str, str]:
    """Which of the names the row's texts have; the first pair where it has none."""
    return next((pair for pair in PAIR_NAMES if pair[0] in row and pair[1] in row), PAIR_NAMES[0])


def _check_columns(row: dict[str, Any], target: str, ledger: Ledger) -> None:
    found = f"found {', '.join(repr(name) for name in list(row)[:8])} (the first line must name the columns)"
    if any(name not in row for name in names_of_pair(row)):
        raise ledger.fault(f"no columns for the two texts, text_a and text_b (or {_listed(PAIR_NAMES[1:])}); {found}")
    wanted = TARGETS if target == "auto" else (target,)
    if not any(name in row for name in wanted):
        raise ledger.fault(f"no column {' or '.join(wanted)}; {found}")


def _listed(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{a} and {b}" for a, b in pairs)


def score_number(value: Any, name: str = "score") -> float:
    """A score as a finite number, from a number or a text that spells one; else a RowError."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise RowError(name, f"expected a number, got {value[:40]!r}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise RowError(name, f"expected a finite number, got {str(value)[:40]}")
    return float(value)
