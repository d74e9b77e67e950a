r"""Readers for reading comprehension: a question, a context, and the stretches of the context that answer it.

    squad    {"data": [{"paragraphs": [{"context": ..., "qas": [{"question": ..., "id": ...,                       (1)
                 "answers": [{"text": ..., "answer_start": ...}], "is_impossible": false}]}]}]}
    jsonl    {"context": ..., "question": ..., "answers": [text, or {"text": ..., "start": ...}]}, one a line

An answer has its place when context[start : start + len(text)] == text. Files miss by little things, so a place is
looked for in this order, and whatever is found beyond the first is listed in `Corpus.repaired`:

    1. where the file says
    2. another place of the same text: the one whose start is right if blanks are not counted, else the nearest     (2)
    3. the same after NFKC (full-width forms), without blanks and in small letters; the context's spelling is kept

A text without a start takes its first place, which is no repair. A start of -1 says that the text is an answer in the
annotator's own words. Such an answer counts when predictions are scored, but has no place. An empty list of answers
(or is_impossible) says that the context does not answer the question.
A question all of whose answers should have a place and have none is a bad row; beside one that has its place, an answer
without one is listed in `repaired` and kept for the scores.

Source: own definitions; SQuAD, arXiv:1606.05250 and 1806.03822; the files of CMRC 2018 and DRCD.
Shapes: no tensors; positions count characters (Unicode code points).
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from danlu.data.errors import InputError
from danlu.data.ledger import Corpus, Ledger, RowError, need, need_text
from danlu.data.rows import json_rows, read_lines

__all__ = ["READING_FORMATS", "Answer", "Question", "places", "read_questions"]

READING_FORMATS = ("squad", "jsonl")
_QUESTION_KEY = re.compile(r'(?<!\\)"question"\s*:')
_FREE = -1  # answer_start of an answer in the annotator's own words


@dataclass(frozen=True, slots=True)
class Answer:
    """A text that answers; context[start : start + len(text)] is it, or start is None and the words are free."""

    text: str
    start: int | None

    @property
    def end(self) -> int | None:
        """Where it ends in the context, exclusive."""
        return None if self.start is None else self.start + len(self.text)


@dataclass(frozen=True, slots=True)
class Question:
    """A question on a context; no answers where the context does not tell."""

    question: str
    context: str
    answers: tuple[Answer, ...]
    line: int  # line of the file it stands on, counted from 1
    name: str = ""  # its id in the file

    @property
    def text(self) -> str:
        """The context: two questions on one context belong to the same side of a split."""
        return self.context

    @property
    def best(self) -> Answer | None:
        """The answer with a place that most annotators gave, the first of several; None where there is none."""
        placed = [answer for answer in self.answers if answer.start is not None]
        return Counter(placed).most_common(1)[0][0] if placed else None


def read_questions(path: str | Path, format: str = "auto", on_bad_rows: str = "fail") -> Corpus[Question]:
    """Questions with their contexts and answers from a file in one of the formats (1).

    Args:
        path: the file; "-" reads standard input.
        format: "squad", "jsonl", or "auto" to tell from the name and then from the first line.
        on_bad_rows: "fail" or "skip" (`danlu.data.ledger`); places are repaired, by (2), either way.

    Returns:
        Corpus of `Question`; `repaired` lists answers that stand elsewhere than the file says, `skipped` the questions
        left out; notes count questions, contexts, unanswerable ones and answers in own words.

    Raises:
        InputError: the file or a question cannot be used; the text names file, line, place in the structure and reason.
    """
    if format not in ("auto", *READING_FORMATS):
        raise InputError(f"format must be one of auto, {', '.join(READING_FORMATS)}, got {format!r}")
    ledger = Ledger(path, on_bad_rows)
    lines = read_lines(path, ledger)
    kind = _format_of(path, lines) if format == "auto" else format
    rows = _squad_rows(lines, ledger) if kind == "squad" else _plain_rows(lines, ledger)
    examples: list[Question] = []
    for number, field, row in rows:
        try:
            examples.append(_question(row, field, number, ledger))
        except RowError as error:
            where = f"{field}.{error.field}" if field and error.field else field or error.field
            ledger.bad(number, where, error.reason)
    corpus = ledger.close(examples, kind)
    counts = {
        "questions": len(examples),
        "contexts": len({e.context for e in examples}),
        "unanswerable": sum(not e.answers for e in examples),
        "answers_in_own_words": sum(a.start is None for e in examples for a in e.answers),
    }
    return replace(corpus, notes={**corpus.notes, **{name: n for name, n in counts.items() if n}})


def places(context: str, text: str) -> list[tuple[int, int]]:
    """Every place (start, end) of a text in a context: exact ones, else those alike by width, blanks and case.

    Args:
        context: what is searched.
        text: what is looked for.

    Returns:
        Places in order, overlapping ones too; none for a text of nothing but blanks.

    >>> places("约 ３００ 人，300人", "300人"), places("约 ３００ 人", "300人")
    ([(8, 12)], [(2, 7)])
    """
    if not text.strip():
        return []
    exact = [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]
    if exact:
        return [(start, start + len(text)) for start in exact]
    plain, origin = _plain(context)
    wanted, _ = _plain(text)
    if not wanted:
        return []
    found = [match.start() for match in re.finditer(f"(?={re.escape(wanted)})", plain)]
    return [(origin[start], origin[start + len(wanted) - 1] + 1) for start in found]


def _format_of(path: str | Path, lines: Sequence[str]) -> str:
    if str(path).lower().removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        return "jsonl"
    first = next((line for line in lines if line.strip()), "")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return "squad"  # one value over many lines
    return "squad" if isinstance(row, dict) and "data" in row else "jsonl"


def _plain_rows(lines: Sequence[str], ledger: Ledger) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for number, row in json_rows(lines, ledger):
        yield number, "", row


def _squad_rows(lines: Sequence[str], ledger: Ledger) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(line, place in the structure, row as in JSON Lines) of every question."""
    if ledger.invalid:
        number, reason = next(iter(ledger.invalid.items()))
        raise ledger.fault(f"line {number}: {reason}; a JSON file cannot be read around it")
    text = "\n".join(lines)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise ledger.fault(
            f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}; allowed are one SQuAD object "
            '{"data": [...]} or one object a line'
        ) from None
    except (ValueError, RecursionError):
        raise ledger.fault("not usable JSON: a number too long or nesting too deep") from None
    if not isinstance(whole, dict) or not isinstance(whole.get("data"), list):
        raise ledger.fault('expected {"data": [{"paragraphs": [...]}]} as SQuAD has it, or one object a line')
    number_of = _question_lines(text, whole)
    at = 0
    for d, article in enumerate(whole["data"]):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            ledger.bad(1, f"data[{d}]", "expected an object with a list of paragraphs")
            continue
        for p, paragraph in enumerate(paragraphs):
            place = f"data[{d}].paragraphs[{p}]"
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list):
                ledger.bad(1, place, "expected an object with context and a list qas")
                continue
            for q, entry in enumerate(questions):
                where = f"{place}.qas[{q}]"
                if not isinstance(entry, dict):
                    ledger.bad(1, where, "expected an object with question and answers")
                    continue
                row = {**entry, **({"context": paragraph["context"]} if "context" in paragraph else {})}
                if entry.get("is_impossible") is True:
                    row["answers"] = []
                number = number_of[at] if "question" in entry and number_of else 1
                at += "question" in entry
                yield number, where, row


def _question_lines(text: str, whole: dict[str, Any]) -> list[int]:
    """The line of every question, in order; empty where the keys cannot be told apart from texts."""
    found = [match.start() for match in _QUESTION_KEY.finditer(text)]
    expected = sum(
        isinstance(entry, dict) and "question" in entry
        for article in whole["data"]
        if isinstance(article, dict) and isinstance(article.get("paragraphs"), list)
        for paragraph in article["paragraphs"]
        if isinstance(paragraph, dict) and isinstance(paragraph.get("qas"), list)
        for entry in paragraph["qas"]
    )
    if len(found) != expected:
        return []
    lines, line, done = [], 1, 0
    for at in found:
        line += text.count("\n", done, at)
        done = at
        lines.append(line)
    return lines


def _question(row: dict[str, Any], field: str, number: int, ledger: Ledger) -> Question:
    context, question = need_text(need(row, "context"), "context"), need_text(need(row, "question"), "question")
    given = _answers(need(row, "answers"))
    answers: list[Answer] = []
    missing: tuple[str, str] | None = None
    repairs: list[tuple[str, str]] = []
    for i, (text, start) in enumerate(given):
        name = f"answers[{i}]"
        if start == _FREE:
            answers.append(Answer(text, None))
            continue
        found, repair = _placed(context, text, start)
        if found is None:
            reason = f"{_short(text)} does not stand in the context{_said(start)}"
            missing = missing or (name, reason)
            repairs.append((name, f"{reason}; it counts in scores only"))
            answers.append(Answer(text, None))
            continue
        if repair:
            repairs.append((name, repair))
        answers.append(found)
    if missing and not any(answer.start is not None for answer in answers):
        raise RowError(missing[0], f"{missing[1]}; an answer in own words has the start -1")
    for name, reason in repairs:
        ledger.repair(number, f"{field}.{name}" if field else name, reason)
    told = row.get("id")
    return Question(question, context, tuple(answers), number, str(told) if isinstance(told, str | int) else "")


def _answers(value: Any) -> list[tuple[str, int | None]]:
    """(text, start if it is told) of every answer, in any of the forms that files have."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, dict) and isinstance(value.get("text"), list):  # columns, as the datasets library writes them
        starts = value.get("answer_start", value.get("start")) or [None] * len(value["text"])
        if not isinstance(starts, list) or len(starts) != len(value["text"]):
            raise RowError("answers", "has not as many starts as texts")
        value = [{"text": text, "start": start} for text, start in zip(value["text"], starts, strict=True)]
    if not isinstance(value, list):
        raise RowError("answers", 'expected a list of texts or of {"text": ..., "start": ...}; [] where there is none')
    found: list[tuple[str, int | None]] = []
    for i, item in enumerate(value):
        name = f"answers[{i}]"
        if isinstance(item, dict):
            start = item.get("start", item.get("answer_start"))
            item = need_text(item.get("text"), f"{name}.text")
            if start is not None and (isinstance(start, bool) or not isinstance(start, int) or start < _FREE):
                raise RowError(f"{name}.start", f"expected a whole number of characters, or -1, got {start!r}")
            found.append((item, start))
        else:
            found.append((need_text(item, name), None))
    return found


def _placed(context: str, text: str, start: int | None) -> tuple[Answer | None, str]:
    """The answer at its place, and what was repaired, by (2)."""
    if start is not None and context.startswith(text, start) and not text[0].isspace():
        return Answer(text, start), ""
    bare = text.strip()
    found = places(context, bare)
    if not found:
        return None, ""
    if start is None:
        begin, end = found[0]
    else:
        uncounted = [place for place in found if len("".join(context[: place[0]].split())) == start]
        begin, end = uncounted[0] if uncounted else min(found, key=lambda place: abs(place[0] - start))
    answer = Answer(context[begin:end], begin)
    if answer.text != text:
        return answer, f"{_short(text)} is spelled {_short(answer.text)} at {begin} in the context"
    return answer, "" if start in (None, begin) else f"{_short(text)} stands at {begin}, not at {start}"


def _plain(text: str) -> tuple[str, list[int]]:
    """The text by width, blanks and case made alike, and the place each of its characters comes from."""
    characters: list[str] = []
    origin: list[int] = []
    for i, character in enumerate(text):
        for c in unicodedata.normalize("NFKC", character).lower():
            if not c.isspace():
                characters.append(c)
                origin.append(i)
    return "".join(characters), origin


def _said(start: int | None) -> str:
    return "" if start is None else f", neither at {start} nor elsewhere"


def _short(text: str) -> str:
    return repr(text if len(text) <= 30 else text[:29] + "…")
