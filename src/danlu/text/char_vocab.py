r"""A vocabulary of characters and of neighbouring pairs, for encoders of text that writes no blanks.

    id(t)     = row of t if it was seen min_count times, else row of lower(t), else row of class(t)               (1)
    symbol(t) = class(t) for numbers and single Latin letters, else id(t)                                         (2)
    pair_i    = symbol(t_{i-1}) V + symbol(t_i),   symbol(t_0) = 0 at the beginning of a sequence                 (3)
    bigram_i  = row of pair_i if it was seen bigram_min_count times, else 1                                       (4)

t_i are the tokens (characters, or words where a text has blanks), V the number of token rows. A class is one of
[HAN], [DIGIT], [LATIN] (begins with a small letter), [CAPITAL], [MARK] (punctuation, symbols, blanks) or [UNK];
full-width forms count as what they stand for. Classes have rows of their own: an unknown character still says what
kind it is, and by (2) the pair before a "year" sign is the same in 1998 and 2026. Row 0 is padding, in both tables.

Rows are ordered by falling count, equal counts by code points, so the order of the texts has no influence. Pairs are
listed, not hashed: no two share a row, and those seen once share a row that stands for every unseen pair.

Source: own definition; character pairs as features of a segmenter after Pei et al., 2014, "Max-margin tensor neural
network for Chinese word segmentation" (ACL).
Shapes: T tokens in a sequence, V token rows.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from danlu.data.errors import InputError

__all__ = ["CharVocab"]

PAD, UNK = 0, 1
_CLASSES = ("[UNK]", "[HAN]", "[DIGIT]", "[LATIN]", "[CAPITAL]", "[MARK]")  # rows 1 .. 6
_SPECIAL = ("[PAD]", *_CLASSES)
_FILES = ("vocab.txt", "bigrams.txt")
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_UNESCAPES = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}


class CharVocab:
    """Rows of tokens and of token pairs, eq. (1) to (4); build one with `CharVocab.build`, read one with `load`.

    Args:
        tokens: the known tokens in the order of their rows, without the special ones.
        bigrams: (N, 2) the known pairs as symbols, in the order of their rows; N = 0 where pairs are not used.

    Raises:
        ValueError: a token or a pair stands twice, a token is the name of a special row, or a symbol has no row.

    >>> vocab = CharVocab.build(["北京北京"], min_count=1, bigram_min_count=2)
    >>> ids, bigrams = vocab.encode(["北京京"])
    >>> vocab.tokens, ids[0].tolist(), bigrams[0].tolist()  # only the pair 北京 was seen twice
    (('京', '北'), [8, 7, 7], [1, 2, 1])
    """

    def __init__(self, tokens: Sequence[str], bigrams: NDArray[np.int64] | None = None) -> None:
        self.tokens = tuple(tokens)
        self._row = {token: row for row, token in enumerate(self.tokens, len(_SPECIAL))}
        reserved = self._row.keys() & set(_SPECIAL)
        if len(self._row) != len(self.tokens) or reserved:
            what = f"{min(reserved)!r} names a special row" if reserved else f"{_repeated(self.tokens)!r} stands twice"
            raise ValueError(f"each token needs one row of its own, but {what}; take it out of the list")
        self.bigrams = np.zeros((0, 2), np.int64) if bigrams is None else np.asarray(bigrams, np.int64)  # (N, 2)
        if self.bigrams.ndim != 2 or self.bigrams.shape[1] != 2:
            raise ValueError(f"bigrams must be (N, 2) symbols, got shape {self.bigrams.shape}")
        if self.bigrams.size and not 0 <= self.bigrams.min() <= self.bigrams.max() < len(self):
            raise ValueError(f"symbols of bigrams must lie in [0, {len(self)}), the rows of the tokens")
        keys = self.bigrams[:, 0] * len(self) + self.bigrams[:, 1]  # (N,)  eq. (3)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]  # (N,) rising
        if (self._keys[1:] == self._keys[:-1]).any():
            raise ValueError("each bigram needs one row of its own, but one stands twice; take it out of the list")
        self._symbol = np.arange(len(self))  # (V,)
        self._symbol[len(_SPECIAL) :] = [self._symbol_of(token, row) for token, row in self._row.items()]

    @classmethod
    def build(
        cls,
        sequences: Iterable[Sequence[str]],
        min_count: int = 2,
        bigram_min_count: int = 2,
        max_bigrams: int | None = None,
    ) -> "CharVocab":
        """The vocabulary of some texts.

        Args:
            sequences: each a string (its characters are the tokens) or a sequence of tokens.
            min_count: tokens rarer than this get no row; 2 or more trains the rows of the classes as well.
            bigram_min_count: pairs rarer than this get no row; with 1 the row of unseen pairs learns from dropout only.
            max_bigrams: at most so many pairs, the most frequent ones; None keeps all, 0 uses no pairs.

        Returns:
            A `CharVocab`; the same whatever the order of the sequences.

        Raises:
            TypeError: `sequences` is one string, or a token is not a string.
            ValueError: a count is below 1, or `max_bigrams` below 0.

        >>> CharVocab.build([["New", "York", "New"], "年年"], min_count=2, max_bigrams=0).tokens
        ('New', '年')
        """
        if min_count < 1 or bigram_min_count < 1:
            raise ValueError(f"counts are at least 1, got min_count={min_count}, bigram_min_count={bigram_min_count}")
        if max_bigrams is not None and max_bigrams < 0:
            raise ValueError(f"max_bigrams must be at least 0, got {max_bigrams}; None sets no limit, 0 uses no pairs")
        flat, begins = _flatten(sequences)
        counts = Counter(flat)
        kept = [t for t, n in counts.items() if n >= min_count and t not in _SPECIAL and _is_text(t)]
        vocab = cls(sorted(kept, key=lambda t: (-counts[t], t)))
        if max_bigrams == 0:
            return vocab
        keys, seen = np.unique(vocab._pairs(vocab._token_ids(flat), begins), return_counts=True)  # (N,) each
        common = seen >= bigram_min_count
        keys, seen = keys[common], seen[common]
        keys = keys[np.argsort(-seen, kind="stable")][:max_bigrams]  # np.unique sorts: equal counts keep that order
        return cls(vocab.tokens, np.stack([keys // len(vocab), keys % len(vocab)], axis=1))

    def __len__(self) -> int:
        return len(_SPECIAL) + len(self.tokens)

    @property
    def num_bigrams(self) -> int:
        """Rows of the table of pairs, padding and unseen ones included; 0 where pairs are not used."""
        return len(self._keys) + 2 if len(self._keys) else 0

    def encode(self, sequences: Iterable[Sequence[str]]) -> tuple[list[Tensor], list[Tensor]]:
        """Rows of every token and of the pair that it forms with the token before it.

        Args:
            sequences: each a string or a sequence of tokens; pairs do not reach across sequences.

        Returns:
            ids and bigram ids, each a list of (T,) int64 tensors; an empty sequence gives tensors of length 0. Where
            the vocabulary has no pairs, bigram ids are 1.

        Raises:
            TypeError: `sequences` is one string, or a token is not a string.

        >>> CharVocab(["年"]).encode(["９年"])[0]  # a digit without a row of its own is [DIGIT], row 3
        [tensor([3, 7])]
        """
        if not isinstance(sequences, str):
            sequences = list(sequences)
        flat, begins = _flatten(sequences)
        ids = self._token_ids(flat)  # (all tokens,)
        bigrams = self._bigram_rows(self._pairs(ids, begins))
        lengths = [len(sequence) for sequence in sequences]
        return list(torch.from_numpy(ids).split(lengths)), list(torch.from_numpy(bigrams).split(lengths))

    def files(self) -> dict[str, str]:
        r"""File names and contents that hold the vocabulary, for a writer of its own; `from_files` is the inverse.

        A line a row in both; a backslash, tab or line break in a token is written as \\, \t, \n or \r.
        """
        names = [token.translate(_ESCAPES) for token in (*_SPECIAL, *self.tokens)]
        pairs = "".join(f"{names[a]}\t{names[b]}\n" for a, b in self.bigrams.tolist())
        return dict(zip(_FILES, ("".join(name + "\n" for name in names), pairs), strict=True))

    @classmethod
    def from_files(cls, files: Mapping[str, str]) -> "CharVocab":
        """The vocabulary that `files` wrote.

        Args:
            files: contents of vocab.txt and bigrams.txt by name.

        Returns:
            A vocabulary equal to the one written.

        Raises:
            ValueError: a file is missing or is not in this format; the line is named.
        """
        for name in _FILES:
            if name not in files:
                raise InputError(f"a character vocabulary needs {' and '.join(_FILES)}; {name} is missing")
        rows = _lines(files["vocab.txt"])
        if tuple(rows[: len(_SPECIAL)]) != _SPECIAL:
            raise InputError(
                f"vocab.txt must begin with the lines {' '.join(_SPECIAL)}; it begins with {' '.join(rows[:7])!r}. "
                "It is not the vocabulary of a character encoder, or was changed by hand"
            )
        row = {name: number for number, name in enumerate(rows)}
        pairs = []
        for number, line in enumerate(_lines(files["bigrams.txt"]), 1):
            left, tab, right = line.partition("\t")
            if not tab or left not in row or right not in row:
                raise InputError(
                    f"bigrams.txt, line {number}: expected two tokens of vocab.txt parted by a tab, got {line!r}; "
                    "the two files must come from the same folder"
                )
            pairs.append((row[left], row[right]))
        try:
            return cls([_unescaped(name) for name in rows[len(_SPECIAL) :]], np.array(pairs, np.int64).reshape(-1, 2))
        except ValueError as error:
            raise InputError(f"vocab.txt or bigrams.txt: {error}") from None

    def save(self, folder: str | Path) -> None:
        """Write vocab.txt and bigrams.txt into an existing folder.

        Args:
            folder: where to.
        """
        for name, content in self.files().items():
            Path(folder, name).write_bytes(content.encode("utf-8"))

    @classmethod
    def load(cls, folder: str | Path) -> "CharVocab":
        """The vocabulary that `save` wrote.

        Args:
            folder: holds vocab.txt and bigrams.txt.

        Returns:
            A vocabulary equal to the one saved.

        Raises:
            ValueError: a file is missing, is not UTF-8 or is not in this format.
        """
        files = {}
        for name in _FILES:
            path = Path(folder, name)
            try:
                files[name] = path.read_bytes().decode("utf-8")
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror or error}") from None
            except UnicodeDecodeError as error:
                raise InputError(f"{path} is not UTF-8 at byte {error.start}; restore it from a copy") from None
        return cls.from_files(files)

    def _token_ids(self, flat: Sequence[str]) -> NDArray[np.int64]:
        get = self._row.get
        ids = np.fromiter((get(token, -1) for token in flat), np.int64, len(flat))
        for position in np.flatnonzero(ids < 0).tolist():  # few
            ids[position] = self._unknown(flat[position])
        return ids

    def _unknown(self, token: str) -> int:
        """The row of a token that has none, eq. (1)."""
        if not isinstance(token, str):
            raise TypeError(f"tokens must be strings, got {token!r} ({type(token).__name__})")
        lower = self._row.get(token.lower())
        return _class_row(token) if lower is None else lower

    def _symbol_of(self, token: str, row: int) -> int:
        kind = _class_row(token)  # eq. (2)
        letter = len(token) == 1 and _CLASSES[kind - 1] in ("[LATIN]", "[CAPITAL]")
        return kind if letter or _CLASSES[kind - 1] == "[DIGIT]" else row

    def _pairs(self, ids: NDArray[np.int64], begins: NDArray[np.int64]) -> NDArray[np.int64]:
        symbols = self._symbol[ids]
        left = np.concatenate([[PAD], symbols[:-1]])[: len(symbols)]
        left[begins] = PAD
        return left * len(self) + symbols  # eq. (3)

    def _bigram_rows(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        if not len(self._keys):
            return np.full(len(keys), UNK, np.int64)
        place = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return np.where(self._keys[place] == keys, self._order[place] + 2, UNK)  # eq. (4)


def _flatten(sequences: Iterable[Sequence[str]]) -> tuple[list[str], NDArray[np.int64]]:
    """All tokens in a row, and where the non-empty sequences begin."""
    if isinstance(sequences, str):
        raise TypeError(f"expected a list of texts, got one string {sequences[:20]!r}; pass [text]")
    sequences = list(sequences)
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    begins = (np.cumsum(lengths) - lengths)[lengths > 0]
    return list(chain.from_iterable(sequences)), begins


def _class_row(token: str) -> int:
    plain = unicodedata.normalize("NFKC", token)
    first = plain[:1]
    if any(c.isdecimal() for c in plain) and all(c.isdecimal() or c in ".,:/%+-" for c in plain):
        name = "[DIGIT]"
    elif "\u2e80" <= first <= "\u2fdf" or "\u3400" <= first <= "\u9fff" or "\U00020000" <= first <= "\U0003ffff":
        name = "[HAN]"
    elif first.isalpha() and unicodedata.name(first, "").startswith("LATIN"):
        name = "[CAPITAL]" if first.isupper() else "[LATIN]"
    elif first and unicodedata.category(first)[0] in "PSZ":
        name = "[MARK]"
    else:
        name = "[UNK]"
    return _CLASSES.index(name) + 1


def _is_text(token: str) -> bool:
    """Half surrogates cannot be written as UTF-8; they stay unknown."""
    if not isinstance(token, str):
        raise TypeError(f"tokens must be strings, got {token!r} ({type(token).__name__})")
    return not any("\ud800" <= c <= "\udfff" for c in token)


def _repeated(tokens: Sequence[str]) -> str:
    return next(token for token, count in Counter(tokens).items() if count > 1)


def _lines(text: str) -> list[str]:
    lines = text.split("\n")  # not splitlines(): a token may be U+2028
    return lines[:-1] if lines[-1] == "" else lines


def _unescaped(name: str) -> str:
    def one(match: re.Match[str]) -> str:
        if match[1] not in _UNESCAPES:
            raise ValueError(f"{name!r} holds a backslash that escapes nothing; write \\\\ for a backslash")
        return _UNESCAPES[match[1]]

    return re.sub(r"\\(.?)", one, name)
