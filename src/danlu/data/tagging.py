r"""Reader of sentences with a tag a token; every bad row is named by file, line and field.

    format       a row                                                                                (1)
    conll        token and tag in columns, a blank line after each sentence
    segmented    words parted by blanks, one sentence a line; read as characters tagged B, M, E, S
    jsonl        {"text": ..., "entities": [[start, end, type], ...]}, end exclusive, counted in characters
                 {"tokens": [...], "tags": [...]}      {"words": [...]} (segmented)
                 {"text": ..., "label": {type: {name: [[first, last], ...]}}}  (CLUENER, end inclusive)

Files are UTF-8, plain or gzip, "-" is standard input (`danlu.data.rows`). Blank lines carry no row; in conll they part
sentences. In conll the lines "-DOCSTART- ..." and, at the head of a sentence, "# ..." without a tag are passed over.
Tags are checked against their scheme. Corpora do hold stray tags ("I-PER" after "O": 8 of 1,350 messages of Weibo NER),
which teach a constrained tagger the impossible, so the default is to say where; on_bad_rows="repair" rewrites such
sequences as the usual scorer reads them.

Source: own definitions; CoNLL-2003 columns, arXiv:cs/0306050; CLUENER2020, arXiv:2001.04351.
Shapes: no tensors; positions count characters (Unicode code points).
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from danlu.data.ledger import HALF_CHARACTER, Corpus, Ledger, RowError, check_option, need, need_text
from danlu.data.rows import first_lines, holds_objects, json_rows, read_lines, suffix
from danlu.data.tagged import Tagged, join_tokens
from danlu.math.tag_scheme import (
    SCHEMES,
    detect_scheme,
    illegal_steps,
    repair_tags,
    scheme_labels,
    split_tag,
    tags_from_spans,
)

__all__ = ["TAG_FORMATS", "read_tagged"]

TAG_FORMATS = ("conll", "segmented", "jsonl")
_COLUMNS = ("conll", "conllu", "bio", "bmes", "bioes", "iob", "iob2", "bilou", "tsv")  # endings of conll files
_TAG = re.compile(r"O|[BIMESLU](-.+)?")
_BLANKS = re.compile(r"[ \t]+")
_WORD_TAGS = {1: ("S",), 2: ("B", "E"), 3: ("B", "M", "E"), 4: ("B", "M", "M", "E")}
Nested = tuple[tuple[int, int, str], ...]
Sentence = tuple[
    list[str], list[str], str | None, list[int], Nested
]  # tokens, tags, text if known, lines, nested spans


def read_tagged(
    path: str | Path,
    format: str = "auto",
    scheme: str = "auto",
    on_bad_rows: str = "fail",
    token_column: int = 0,
    tag_column: int = -1,
    nested: bool = False,
) -> Corpus[Tagged]:
    """Sentences with one tag a token from a file in one of the formats of table (1).

    Args:
        path: the file; "-" reads standard input.
        format: "conll", "segmented", "jsonl", or "auto" to tell from the name and then from the first lines.
        scheme: tag scheme of the file, or "auto" to tell from its tags; entities are written in it ("auto": BIO).
        on_bad_rows: "fail", "skip" or "repair" (`danlu.data.ledger`).
        token_column: column of the token in conll, counted from 0; negative counts from the end.
        tag_column: column of the tag in conll.
        nested: take overlapping entities: `Tagged.nested` then holds all of them, the tags the longer ones.

    Returns:
        Corpus of `Tagged` with `scheme` set; `skipped` and `repaired` list rows left out and sequences rewritten.

    Raises:
        InputError: the file or a row cannot be used; the text names file, line, field, reason and a way out.
    """
    check_option("format", format, ("auto", *TAG_FORMATS))
    check_option("scheme", scheme, ("auto", *SCHEMES))
    ledger = Ledger(path, on_bad_rows)
    lines = read_lines(path, ledger)
    kind = _format_of(path, lines, ledger) if format == "auto" else format
    if kind == "segmented":
        if scheme not in ("auto", "BMES"):
            raise ledger.fault(f"segmented lines are read as BMES, scheme={scheme!r} cannot be kept")
        return ledger.close(_segmented(lines, ledger), kind, "BMES")
    if kind == "conll":
        sentences = _conll(lines, ledger, token_column, tag_column)
    else:
        sentences = _tagged_objects(lines, ledger, scheme, nested)
    if ledger.rows and on_bad_rows != "skip":
        ledger.close(sentences, kind)  # raises: what is left would only tell the scheme wrongly
    scheme = _scheme_of(sentences, ledger) if scheme == "auto" else scheme
    examples = []
    for tokens, tags, text, numbers, spans in sentences:
        tags = _checked(tags, numbers, scheme, ledger)
        if tags:
            joined = join_tokens(tokens) if text is None else text
            examples.append(Tagged(tuple(tokens), tuple(tags), joined, numbers[0], spans))
    return ledger.close(examples, kind, scheme)


def _format_of(path: str | Path, lines: Sequence[str], ledger: Ledger) -> str:
    """Format by the ending of the name where it decides, else by the first lines that are not blank."""
    first, name = first_lines(lines, ledger), suffix(path)
    if holds_objects(path, first):
        return "jsonl"
    if name in _COLUMNS:
        return "conll"
    if name == "seg":
        return "segmented"
    if name == "csv":
        raise ledger.fault(f"tagged data is not read from CSV; allowed formats are {', '.join(TAG_FORMATS)}")
    columns = [_BLANKS.split(line.strip(" \t")) for line in first if not line.startswith(("#", "-DOCSTART-"))]
    tagged = sum(len(c) >= 2 and _TAG.fullmatch(c[-1]) is not None for c in columns)
    return "conll" if columns and 2 * tagged > len(columns) else "segmented"


def _segmented(lines: Sequence[str], ledger: Ledger) -> list[Tagged]:
    examples = []
    characters: dict[str, str] = {}  # one object per distinct character keeps a corpus of millions small
    longest_single = 0
    parted = False
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if number in ledger.invalid:
            ledger.bad(number, "", ledger.invalid[number])
            continue
        parted = parted or len(words) > 1
        longest_single = max(longest_single, len(words[0]) if not parted else 0)
        text = join_tokens(words)
        joined = text if " " not in text else "".join(words)
        tokens = tuple([characters.setdefault(c, c) for c in joined])
        tags: list[str] = []
        for word in words:
            tags += _WORD_TAGS.get(len(word)) or ("B", *["M"] * (len(word) - 2), "E")
        examples.append(Tagged(tokens, tuple(tags), text, number))
    if examples and not parted and longest_single > 8:
        raise ledger.fault(
            "no line holds a blank between words, so this looks like plain text; segmented lines part words by blanks, "
            "for token and tag columns pass format='conll'"
        )
    return examples


def _conll(lines: Sequence[str], ledger: Ledger, token_column: int, tag_column: int) -> list[Sentence]:
    sentences: list[Sentence] = []
    tokens: list[str] = []
    tags: list[str] = []
    numbers: list[int] = []
    usable = True
    width, width_line, by_tabs = 0, 0, False

    def end_sentence() -> None:
        nonlocal tokens, tags, numbers, usable
        if numbers and usable:
            sentences.append((tokens, tags, None, numbers, ()))
        tokens, tags, numbers, usable = [], [], [], True

    for number, line in enumerate(lines, 1):
        stripped = line.strip(" \t")
        if not stripped or stripped.startswith("-DOCSTART-"):
            end_sentence()
            continue
        numbers.append(number)
        if number in ledger.invalid:
            ledger.bad(number, "", ledger.invalid[number])
            usable = False
            continue
        if not width:
            by_tabs = "\t" in stripped
        columns = line.split("\t") if by_tabs else _BLANKS.split(stripped)
        tag = columns[tag_column].strip(" ") if -len(columns) <= tag_column < len(columns) else ""
        if len(numbers) == 1 and line.startswith("#") and not (len(columns) > 1 and _TAG.fullmatch(tag)):
            numbers.pop()  # a comment at the head of a sentence
            continue
        problem = _column_problem(columns, token_column, tag_column, width, width_line, by_tabs)
        if not width and len(columns) > 1:
            width, width_line = len(columns), number
        if problem is None and not _TAG.fullmatch(tag):
            where = f"column {tag_column + 1 if tag_column >= 0 else len(columns) + 1 + tag_column}"
            problem = (where, f"{tag!r} is not a tag (O, or a prefix of {' '.join('BIMESLU')} alone or as B-TYPE)")
            if tag[:1] in tuple("BIMESLU") and tag[1:2] in tuple("_.:/"):
                problem = (where, f"{tag!r} is not a tag; write {tag[0]}-{tag[2:]}")
            elif len(columns) > 2:
                problem = (where, f"{problem[1]}; tag_column= chooses another of the {len(columns)} columns")
        if problem is not None:
            if usable:  # one entry a sentence: the rest of it is of no use either
                ledger.bad(number, *problem)
            usable = False
            continue
        tokens.append(columns[token_column].strip(" "))
        tags.append(tag)
    end_sentence()
    return sentences


def _column_problem(
    columns: list[str], token_column: int, tag_column: int, width: int, width_line: int, by_tabs: bool
) -> tuple[str, str] | None:
    sign = "tabs" if by_tabs else "blanks"
    size = f"{len(columns)} column{'s' if len(columns) > 1 else ''} (parted by {sign})"
    if len(columns) < 2:
        return "", f"{size}, a token and a tag are needed; sentences are parted by blank lines"
    if width and len(columns) != width:
        return "", f"{size} where line {width_line} has {width}"
    for name, place in (("token_column", token_column), ("tag_column", tag_column)):
        if not -len(columns) <= place < len(columns):
            return "", f"{size}, so {name}={place} does not exist (columns count from 0)"
    if not columns[token_column].strip(" "):
        return f"column {token_column % len(columns) + 1}", "the token is empty"
    return None


def _tagged_objects(lines: Sequence[str], ledger: Ledger, scheme: str, nested: bool) -> list[Sentence]:
    def take(number: int, row: dict[str, Any]) -> Sentence:
        tokens, tags, text, spans = _take_apart(row, "BIO" if scheme == "auto" else scheme, nested)
        return tokens, tags, text, [number] * len(tokens), spans

    return ledger.gather(json_rows(lines, ledger), take)


def _take_apart(row: dict[str, Any], scheme: str, nested: bool) -> tuple[list[str], list[str], str | None, Nested]:
    """Tokens, tags, text and overlapping spans of one JSON object, whichever of the four forms it has."""
    if "tokens" in row or "tags" in row:
        tokens = _texts(need(row, "tokens"), "tokens")
        tags = _texts(need(row, "tags"), "tags")
        if len(tokens) != len(tags):
            raise RowError("tags", f"{len(tags)} tags for {len(tokens)} tokens; every token needs one")
        for i, tag in enumerate(tags):
            if not _TAG.fullmatch(tag):
                raise RowError(f"tags[{i}]", f"{tag!r} is not a tag (O, or a prefix alone or as B-TYPE)")
        text = row.get("text")
        return tokens, tags, text if isinstance(text, str) and text else None, ()
    if "words" in row and "entities" not in row:
        words = _texts(row["words"], "words")
        tags = [tag for word in words for tag in _WORD_TAGS.get(len(word)) or ("B", *["M"] * (len(word) - 2), "E")]
        return list("".join(words)), tags, join_tokens(words), ()
    text = need_text(need(row, "text"), "text")
    if isinstance(row.get("label"), dict) and "entities" not in row:
        found = _clue_entities(row["label"], text)
    else:
        found = _entities(need(row, "entities"), text)
    for (name, one), (other_name, other) in pairwise(found):
        if other[0] < one[1]:
            if nested:
                spans = tuple(sorted({span for _, span in found}))
                kept = _longer(spans)
                return list(text), tags_from_spans(kept, len(text), scheme), text, spans if kept != spans else ()
            a, b = text[one[0] : one[1]], text[other[0] : other[1]]
            raise RowError(other_name, f"{b!r} {list(other)} overlaps {a!r} {list(one)} of {name}; keep one of them")
    return list(text), tags_from_spans([span for _, span in found], len(text), scheme), text, ()


def _longer(spans: Nested) -> Nested:
    """Spans of which none overlap, the longer before the shorter, the earlier before the later."""
    kept: Nested = ()
    for span in sorted(spans, key=lambda s: (s[0] - s[1], s)):
        if all(span[1] <= a or b <= span[0] for a, b, _ in kept):
            kept = (*kept, span)
    return tuple(sorted(kept))


def _texts(value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise RowError(name, "expected a list of texts with at least one")
    for i, item in enumerate(value):
        if not isinstance(item, str) or not item:
            raise RowError(f"{name}[{i}]", f"expected a text that is not empty, got {item!r}")
        if HALF_CHARACTER.search(item):
            raise RowError(f"{name}[{i}]", "holds half a character (a lone surrogate); write the whole one")
    return value


Found = list[tuple[str, tuple[int, int, str]]]  # (field, span), in the order of the text


def _entities(value: Any, text: str) -> Found:
    if not isinstance(value, list):
        raise RowError("entities", "expected a list [[start, end, type], ...]")
    found: Found = []
    for i, item in enumerate(value):
        name = f"entities[{i}]"
        if not isinstance(item, list) or len(item) != 3:
            raise RowError(name, f"expected [start, end, type], got {str(item)[:60]}")
        start, end, kind = item
        found.append((name, _span(start, end, kind, text, name)))
    return sorted(found, key=lambda entry: entry[1])


def _clue_entities(value: dict[str, Any], text: str) -> Found:
    found: Found = []
    for kind, names in value.items():
        for surface, places in names.items() if isinstance(names, dict) else [("", None)]:
            field = f"label.{kind}.{surface}"
            for place in places if isinstance(places, list) else [None]:
                if not isinstance(place, list) or len(place) != 2 or not all(type(p) is int for p in place):
                    raise RowError(field, "expected {type: {name: [[first, last], ...]}}, last inclusive")
                span = _span(place[0], place[1] + 1, kind, text, field)
                if text[span[0] : span[1]] != surface:
                    raise RowError(field, f"the text has {text[span[0] : span[1]]!r} at {place}; the last is inclusive")
                found.append((field, span))
    return sorted(found, key=lambda entry: entry[1])


def _span(start: Any, end: Any, kind: Any, text: str, name: str) -> tuple[int, int, str]:
    if type(start) is not int or type(end) is not int:
        raise RowError(name, f"start and end must be whole numbers, got {start!r} and {end!r}")
    if not isinstance(kind, str) or not kind.strip() or HALF_CHARACTER.search(kind):
        raise RowError(name, f"the type must be a text that is not empty, got {kind!r}")
    if not 0 <= start < end <= len(text):
        raise RowError(
            name,
            f"[{start}, {end}] does not lie in the text of {len(text)} characters; needs 0 <= start < end <= "
            f"{len(text)} (end exclusive, counted in characters, not bytes)",
        )
    return start, end, kind


def _scheme_of(sentences: list[Sentence], ledger: Ledger) -> str:
    """The scheme of all the tags together; IOB1 where BIO is broken and IOB1 never."""
    first_line: dict[str, int] = {}
    for _, tags, _, numbers, _ in sentences:
        for tag, number in zip(tags, numbers, strict=True):
            if tag not in first_line:
                first_line[tag] = number
    if not sentences:
        return ""
    try:
        scheme = detect_scheme(first_line)
    except ValueError as error:
        prefixes: dict[str, int] = {}
        for tag, number in first_line.items():
            if tag != "O":
                prefixes.setdefault(split_tag(tag)[0], number)
        where = ", ".join(f"{p} at line {n}" for p, n in sorted(prefixes.items(), key=lambda item: item[1]))
        raise ledger.fault(f"{error}{f' (first seen: {where})' if len(prefixes) > 1 else ''}") from None
    if scheme == "BIO" and any(illegal_steps(tags, "BIO") for _, tags, *_ in sentences):
        return "BIO" if any(illegal_steps(tags, "IOB1") for _, tags, *_ in sentences) else "IOB1"
    return scheme


def _checked(tags: list[str], numbers: list[int], scheme: str, ledger: Ledger) -> list[str]:
    """The tags if they keep to the scheme, rewritten ones if that is asked for, else nothing and an entry."""
    allowed = set(scheme_labels([""], scheme))
    for tag, number in zip(tags, numbers, strict=True):
        if tag[0] not in allowed:
            ledger.bad(number, "tag", f"{tag!r} is not a tag of {scheme}; scheme= names another one")
            return []
    steps = illegal_steps(tags, scheme)
    if not steps:
        return tags
    at = steps[0]
    if at == len(tags):
        line, what = numbers[-1], f"the sentence ends inside a span: {tags[-1]!r} is not closed"
    elif at == 0:
        line, what = numbers[0], f"{tags[0]!r} cannot open a sentence"
    else:
        line, what = numbers[at], f"{tags[at]!r} cannot follow {tags[at - 1]!r}"
    token = f"token {at + 1}" if at < len(tags) else f"token {len(tags)}"
    if ledger.on_bad_rows == "repair":
        ledger.repair(line, token, f"{what} in {scheme}; rewritten")
        return repair_tags(tags, scheme)
    ledger.bad(
        line,
        token,
        f"{what} in {scheme}; mend the tags, or on_bad_rows='repair' rewrites them as a lenient scorer reads them",
    )
    return []
