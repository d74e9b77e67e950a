r"""Token ids of much text in files that are mapped, not read: written as a stream, cut into windows of one length.

Documents d_0, d_1, ... of n_0, n_1, ... tokens lie one after the other in `ids.bin` (uint16, little-endian);
`begins.bin` (uint8) is 1 where a token begins a word, `offsets.bin` (int64) holds the sums of the n. An epoch e takes
the documents in a new order pi, joined by a separator behind each, and begins at a new shift:

    stream_e = d_pi(0) sep d_pi(1) sep ...                                                                  (1)
    window k = stream_e[s + k L : s + (k + 1) L]      0 <= s < L, drawn with pi                               (2)

and the windows themselves come in a new order. All of it follows from (seed, e): nothing needs to be stored to go on.
Memory grows with the number of documents, not of tokens.

Source: own definitions.
Shapes: W windows asked for, L tokens of a window.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from danlu.data.errors import InputError

__all__ = ["TokenCorpus", "Windows", "write_corpus"]

_HEADER, _FORMAT = "corpus.json", 1
_FILES = {"ids": "<u2", "begins": "u1", "offsets": "<i8"}
_CHUNK = 1 << 20  # tokens held before they are written


def write_corpus(
    folder: str | Path,
    documents: Iterable[tuple[ArrayLike, ArrayLike]],
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write documents as a corpus folder, whole or not at all, and return its header.

    Args:
        folder: to be made; a corpus that stands there is replaced.
        documents: (ids, begins) of each: ids in [0, 65535], begins True where a token begins a word; empty documents
            are left out. Taken one by one.
        about: plain values to keep in the header under "about".

    Returns:
        {"format_version", "documents", "tokens", "words", "about"}.

    Raises:
        ValueError: ids and begins of unequal length, or an id that does not fit 16 bits.
        InputError: there is no document with a token.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     write_corpus(f"{place}/c", [([5, 6, 7], [True, False, True]), ([], [])])["words"]
    2
    """
    folder = Path(folder)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.writing")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        header = _write(partial, documents)
        header["about"] = dict(about or {})
        with open(partial / _HEADER, "w", encoding="utf-8") as file:
            file.write(json.dumps(header, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
            _sync(file)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return header


def _write(folder: Path, documents: Iterable[tuple[ArrayLike, ArrayLike]]) -> dict[str, Any]:
    tokens = words = count = held_tokens = 0
    rows: list[np.ndarray] = []
    marks: list[np.ndarray] = []
    ends: list[int] = []
    with ExitStack() as stack:
        files = [stack.enter_context(open(folder / f"{name}.bin", "wb")) for name in _FILES]
        files[2].write(np.zeros(1, "<i8").tobytes())

        def flush() -> None:
            for file, part in zip(files, ([*rows], [*marks], [np.asarray(ends, "<i8")]), strict=True):
                file.writelines(array.tobytes() for array in part)
            for held in (rows, marks, ends):
                held.clear()

        for ids, begins in documents:
            row, mark = np.asarray(ids), np.asarray(begins, dtype=bool)
            if row.shape != mark.shape or row.ndim != 1:
                raise ValueError(
                    f"document {count}: ids have shape {row.shape}, begins {mark.shape}; both must be one list of "
                    "the document's tokens"
                )
            if not len(row):
                continue
            if row.min() < 0 or row.max() > 65_535:
                raise ValueError(
                    f"document {count}: ids lie in {row.min()} to {row.max()}, a corpus holds 0 to 65535; "
                    "use a vocabulary of at most 65,536 tokens"
                )
            rows.append(row.astype("<u2"))
            marks.append(mark.astype("u1"))
            tokens, words, count, held_tokens = (
                tokens + len(row), words + int(mark.sum()), count + 1, held_tokens + len(row),
            )  # fmt: skip
            ends.append(tokens)
            if held_tokens >= _CHUNK:
                flush()
                held_tokens = 0
        flush()
        for file in files:
            _sync(file)
    if not count:
        raise InputError("the text holds no token; a corpus needs at least one line that is not blank")
    return {"format_version": _FORMAT, "documents": count, "tokens": tokens, "words": words}


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


class TokenCorpus:
    """A corpus folder, mapped into memory: `len` counts documents.

    Args:
        folder: that `write_corpus` wrote.

    Raises:
        InputError: no such folder, a newer format, or files whose size is not what the header says.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.header = json.loads((self.folder / _HEADER).read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder} is not a corpus that danlu wrote ({error}); build it again") from None
        if self.header.get("format_version") != _FORMAT:
            raise InputError(
                f"{self.folder} has corpus format {self.header.get('format_version')}, this danlu reads {_FORMAT}; "
                "build it again"
            )
        self.tokens = int(self.header["tokens"])
        sizes = {"ids": self.tokens, "begins": self.tokens, "offsets": int(self.header["documents"]) + 1}
        arrays = {}
        for name, kind in _FILES.items():
            path = self.folder / f"{name}.bin"
            there, wanted = path.stat().st_size if path.is_file() else 0, sizes[name] * np.dtype(kind).itemsize
            if there != wanted:
                raise InputError(f"{path} has {there:,} bytes, {wanted:,} belong there; build the corpus again")
            arrays[name] = np.memmap(path, kind, "r")
        self.ids, self.begins, self.offsets = arrays["ids"], arrays["begins"], arrays["offsets"]

    def __len__(self) -> int:
        return int(self.header["documents"])

    def document(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and begin-of-word flags of one document, copied."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.ids[part].astype(np.int64), self.begins[part].astype(bool)


class Windows:
    """The windows of one epoch, eqs. (1) and (2): `len` of them, `take` some.

    Args:
        corpus: the documents.
        length: L, tokens of a window.
        separator: id put behind every document.
        seed: names the run.
        epoch: e, counted from 0.

    Raises:
        ValueError: length is below 1.
        InputError: the text is shorter than one window.
    """

    def __init__(self, corpus: TokenCorpus, length: int, separator: int, seed: int, epoch: int) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1 token, got {length}")
        self.corpus, self.length, self.separator = corpus, length, separator
        total = corpus.tokens + len(corpus)
        if total < length:
            raise InputError(
                f"the text has {corpus.tokens:,} tokens in {len(corpus):,} documents, a window takes {length}; "
                "give more text or a smaller length"
            )
        random = np.random.default_rng([seed, epoch, length])
        self._documents = random.permutation(len(corpus))
        sizes = np.diff(corpus.offsets)[self._documents] + 1  # with the separator
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._shift = int(random.integers(0, min(length, total - length + 1)))
        self._order = random.permutation((total - self._shift) // length)

    def __len__(self) -> int:
        return len(self._order)

    def take(self, places: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows at some places of the epoch's order.

        Args:
            places: W numbers in [0, len).

        Returns:
            ids (W, L) int64 and begins (W, L) bool; a separator begins a word.
        """
        first = self._shift + self._order[np.asarray(places, np.int64)] * self.length
        at = first[:, None] + np.arange(self.length)  # (W, L) places in the stream  eq. (2)
        which = np.searchsorted(self._starts, at, side="right") - 1
        document = self._documents[which]
        within = at - self._starts[which]
        closing = at + 1 == self._starts[which + 1]
        source = np.where(closing, 0, self.corpus.offsets[document] + within)
        ids = np.where(closing, self.separator, self.corpus.ids[source]).astype(np.int64)  # eq. (1)
        return ids, closing | self.corpus.begins[source].astype(bool)
