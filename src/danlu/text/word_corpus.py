r"""Documents as word numbers: a vocabulary by frequency, the words one after another, and where each document begins.

A word that occurs c times of T is kept in a pass with probability

    p(c) = min(1, (sqrt(c / (t T)) + 1) t T / c)                                                          (1)

and drawn as a negative in proportion to c^{3/4}, through Walker's table: draw a column i evenly, keep it with
probability accept_i, else take alias_i.

Source: Mikolov et al., 2013, arXiv:1310.4546, with (1) in the form of the program word2vec; Walker, 1977.
Shapes: V words, N documents, T words of all documents together.
"""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["WordCorpus", "build_corpus", "encode", "keep_probability", "walker_table"]


@dataclass(frozen=True)
class WordCorpus:
    """Documents as numbers of words.

    words: the vocabulary, the most frequent first. counts (V,) int64. ids (T,) int32: the words of all documents that
    are in the vocabulary. offsets (N + 1,) int64: document i is ids[offsets[i] : offsets[i + 1]], and may be empty.
    """

    words: list[str]
    counts: np.ndarray
    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    def digest(self) -> str:
        """What tells this corpus from another: SHA-256 of words, ids and offsets."""
        found = hashlib.sha256("\0".join(self.words).encode("utf-8", "surrogatepass"))
        for numbers in (self.ids, self.offsets):
            found.update(np.ascontiguousarray(numbers).tobytes())
        return found.hexdigest()


def build_corpus(documents: Iterable[Sequence[str]], min_count: int = 5, max_words: int | None = None) -> WordCorpus:
    """Count the words of documents and number those that are frequent enough.

    Args:
        documents: lists of words, read once; a document without words keeps its place.
        min_count: words that occur less often are left out.
        max_words: keep at most as many, the most frequent; None: all.

    Returns:
        WordCorpus; among equally frequent words the order of their characters decides.

    Raises:
        TypeError: a document is one text instead of a list of words.
        ValueError: there is no document, fewer than two words are frequent enough, or a setting is below 1.

    >>> build_corpus([["b", "a", "b"], ["a", "b"]], min_count=1).words
    ['b', 'a']
    """
    if min_count < 1 or (max_words is not None and max_words < 2):
        raise ValueError(f"min_count must be at least 1 and max_words at least 2, got {min_count} and {max_words}")
    number: dict[str, int] = {}
    flat, offsets = array("q"), array("q", [0])
    for document in documents:
        _refuse_text(document)
        flat.extend([number.setdefault(word, len(number)) for word in document])
        offsets.append(len(flat))
    if len(offsets) == 1:
        raise ValueError("there is no document to learn from; give lists of words")
    all_ids = np.frombuffer(flat, np.int64) if len(flat) else np.zeros(0, np.int64)
    counts = np.bincount(all_ids, minlength=len(number))
    names = list(number)
    chosen = sorted((i for i in range(len(names)) if counts[i] >= min_count), key=lambda i: (-counts[i], names[i]))
    chosen = chosen[:max_words]
    if len(chosen) < 2:
        raise ValueError(
            f"{len(chosen)} of {len(names)} words occur at least min_count={min_count} times, 2 are needed; "
            "lower min_count or give more text"
        )
    renumber = np.full(len(names), -1, np.int32)
    renumber[chosen] = np.arange(len(chosen), dtype=np.int32)
    ids, places = _known_only(renumber[all_ids], np.frombuffer(offsets, np.int64))
    return WordCorpus([names[i] for i in chosen], counts[chosen].astype(np.int64), ids, places)


def encode(documents: Iterable[Sequence[str]], number: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Documents in the words of a known vocabulary; others are left out.

    Args:
        documents: lists of words.
        number: word -> id.

    Returns:
        ids (T,) int32 and offsets (N + 1,) int64.

    Raises:
        TypeError: a document is one text instead of a list of words.
    """
    flat, offsets = array("i"), array("q", [0])
    for document in documents:
        _refuse_text(document)
        flat.extend([number.get(word, -1) for word in document])
        offsets.append(len(flat))
    return _known_only(np.array(flat, np.int32), np.array(offsets, np.int64))


def keep_probability(counts: np.ndarray, subsample: float) -> np.ndarray:
    """How likely each word survives subsampling in a pass, eq. (1).

    Args:
        counts: (V,) occurrences.
        subsample: t; 0 keeps all.

    Returns:
        (V,) float64 in (0, 1].
    """
    if not subsample:
        return np.ones(len(counts))
    share = counts / (subsample * counts.sum())
    return np.minimum(1.0, (np.sqrt(share) + 1) / share)  # eq. (1)


def walker_table(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Table to draw in proportion to weights with two random numbers whatever their count.

    Args:
        weights: (V,) above zero.

    Returns:
        accept (V,) float64 and alias (V,) int32.
    """
    accept = np.asarray(weights, np.float64) * (len(weights) / np.sum(weights, dtype=np.float64))
    alias = np.arange(len(accept), dtype=np.int32)
    small, large = list(np.nonzero(accept < 1)[0]), list(np.nonzero(accept >= 1)[0])
    while small and large:
        low, high = small.pop(), large[-1]
        alias[low] = high
        accept[high] -= 1 - accept[low]
        if accept[high] < 1:
            small.append(large.pop())
    accept[small] = 1.0  # what rounding left over
    accept[large] = 1.0
    return accept, alias


def _known_only(ids: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = ids >= 0
    before = np.concatenate([[0], np.cumsum(known)])
    return np.ascontiguousarray(ids[known], np.int32), before[offsets].astype(np.int64)


def _refuse_text(document: Sequence[str]) -> None:
    if isinstance(document, str | bytes):
        raise TypeError(f"a document is a list of words, got the text {document[:20]!r}; split it, say with .split()")
