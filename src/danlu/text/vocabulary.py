r"""Vocabulary files of BERT, read so that no oddity of the file moves an id, and cut down to what can occur.

    id(token) = number of its line, counted from 0                                   (1)
    token is redundant  <=>  len(token) > 1 and token without ## holds a CJK character or a mark                  (2)

Lines end at "\n" or "\r\n" and nowhere else: U+2028, U+0085 or a lone carriage return may be part of a token. A line
that is empty, or whose token stands again further down, keeps its number and is warned about; of equal tokens the last
one counts, as in the tokenizers the models were trained with. What follows a token on its line after a blank or a tab
(a count, in some files) is left out.

By (2) tokens that the tokenizer cannot produce are dropped: it parts every CJK character and every mark from its
neighbours, so of the 21,128 tokens of the Chinese BERT 7,544 are never seen. `keep_tokens` says which rows of the
embedding remain.

Source: bert4keras' `load_vocab` and `save_vocab`; the file format of BERT, arXiv:1810.04805.
Shapes: no tensors.
"""

import difflib
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from danlu.data.errors import InputError
from danlu.data.ledger import Ledger
from danlu.data.rows import read_lines

__all__ = ["is_cjk", "is_punctuation", "load_vocab", "save_vocab", "simplify_vocab", "stem"]

_CJK = (  # ideographs alone; kana, hangul and bopomofo are letters to BERT
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF)),
    *((0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0x2F800, 0x2FA1F)),
)
_LARGEST = 2**28  # bytes of a vocabulary, unpacked; a few MB of gzip can unpack to more than any memory


if TYPE_CHECKING:  # only type checkers need them apart

    @overload
    def load_vocab(
        path: str | Path, simplified: Literal[False] = False, startswith: Sequence[str] = ...
    ) -> dict[str, int]: ...

    @overload
    def load_vocab(
        path: str | Path, simplified: Literal[True], startswith: Sequence[str] = ...
    ) -> tuple[dict[str, int], list[int]]: ...


def load_vocab(
    path: str | Path, simplified: bool = False, startswith: Sequence[str] = ()
) -> dict[str, int] | tuple[dict[str, int], list[int]]:
    """Ids of the tokens of a vocab.txt, eq. (1); with `simplified` those of `simplify_vocab`.

    Args:
        path: one token a line, UTF-8, plain or gzip.
        simplified: whether to drop redundant tokens, eq. (2).
        startswith: with `simplified`, tokens to put first, such as ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].

    Returns:
        token -> id; with `simplified` that of the smaller vocabulary, and keep_tokens, the old id of each new one.

    Raises:
        InputError: the file cannot be read, is not UTF-8, unpacks to more than 256 MB or holds no token, or startswith
            names what it does not hold.
        ValueError: startswith is given without `simplified`.
    """
    if startswith and not simplified:
        raise ValueError(f"startswith={list(startswith)} orders a simplified vocabulary; pass simplified=True with it")
    vocab: dict[str, int] = {}
    first: dict[str, int] = {}
    empty, twice = [], []
    for number, line in enumerate(read_lines(path, Ledger(path), limit=_LARGEST)):
        token = _token(line)
        if not token:
            empty.append(number + 1)
            continue
        if token in vocab:
            twice.append((token, first[token], number + 1))
        first.setdefault(token, number + 1)
        vocab[token] = number  # eq. (1)
    if not vocab:
        raise InputError(f"{path}: holds no token; a vocabulary has one token a line")
    if empty:
        warnings.warn(
            f"{path}: {len(empty)} empty line{'s' * (len(empty) > 1)} (the first is line {empty[0]}); "
            "they keep their ids, no text reaches them",
            stacklevel=2,
        )
    if twice:
        token, one, two = twice[0]
        warnings.warn(
            f"{path}: {len(twice)} token{'s' * (len(twice) > 1)} found again (the first is {token!r}, lines {one} "
            f"and {two}); the last line counts, ids of other tokens stay",
            stacklevel=2,
        )
    return simplify_vocab(vocab, startswith) if simplified else vocab


def simplify_vocab(vocab: Mapping[str, int], startswith: Sequence[str] = ()) -> tuple[dict[str, int], list[int]]:
    """The vocabulary without redundant tokens, eq. (2), and the old ids of what is left.

    Args:
        vocab: token -> id.
        startswith: tokens to keep whatever they are and to put first; special tokens such as [CLS] are redundant by
            (2), so those a tokenizer needs must be named.

    Returns:
        token -> new id (0, 1, ...; after `startswith` in the order of the old ids), and keep_tokens, the old id of each
        new one: rows keep_tokens of an embedding fit the new vocabulary.

    Raises:
        InputError: startswith names a token that the vocabulary lacks, or one token twice.

    >>> simplify_vocab({"[PAD]": 0, "[UNK]": 1, "的": 2, "##的": 3, "un": 4, "##ed": 5}, ["[PAD]"])
    ({'[PAD]': 0, '的': 1, 'un': 2, '##ed': 3}, [0, 2, 4, 5])
    """
    missing = [token for token in startswith if token not in vocab]
    if missing or len(set(startswith)) < len(startswith):
        what = "takes a place only once"
        if missing:
            near = ", ".join(map(repr, difflib.get_close_matches(missing[0], vocab, n=3)))
            what = f"has no {missing[0]!r}{f' (near: {near})' if near else ''}"
        raise InputError(f"startswith={list(startswith)}: the vocabulary {what}; name tokens it holds, each once")
    rest = [token for token in sorted(vocab, key=vocab.__getitem__) if not _is_redundant(token)]
    tokens = dict.fromkeys([*startswith, *rest])
    return {token: new for new, token in enumerate(tokens)}, [vocab[token] for token in tokens]


def save_vocab(path: str | Path, vocab: Mapping[str, int]) -> None:
    """Write a vocabulary as one token a line in the order of the ids; ids without a token become empty lines.

    Args:
        path: the file to write.
        vocab: token -> id.

    Raises:
        ValueError: an id is negative or belongs to two tokens, or a token cannot stand on a line.
    """
    lines = [""] * (max(vocab.values(), default=-1) + 1)
    for token, number in vocab.items():
        if _token(token) != token or not token or "\n" in token or token.endswith("\r"):
            raise ValueError(f"the token {token!r} cannot stand on a line of its own; take it out of the vocabulary")
        if number < 0 or lines[number]:
            what = "is negative" if number < 0 else f"belongs to {lines[number]!r} too"
            raise ValueError(f"the id {number} of {token!r} {what}; each token needs an id of its own, 0 or more")
        lines[number] = token
    Path(path).write_bytes("".join(line + "\n" for line in lines).encode("utf-8"))


def is_cjk(character: str) -> bool:
    """Whether BERT takes a character for an ideograph, a word of its own.

    Args:
        character: one character.

    Returns:
        True for the blocks of Han ideographs, False for kana, hangul and marks.

    >>> [is_cjk(c) for c in "中の。a"]
    [True, False, False, False]
    """
    code = ord(character)
    return any(low <= code <= high for low, high in _CJK)


def is_punctuation(character: str) -> bool:
    """Whether BERT takes a character for a mark, a word of its own: Unicode P* and all ASCII that is not alphanumeric.

    Args:
        character: one character.

    Returns:
        True also for $ + < = > ^ ` | ~, which Unicode calls symbols; False for blanks and controls.

    >>> [is_punctuation(c) for c in "。$￥ a"]
    [True, True, False, False, False]
    """
    return unicodedata.category(character)[0] == "P" or ("!" <= character <= "~" and not character.isalnum())


def stem(token: str) -> str:
    """The token without the ## of a piece that goes on.

    Args:
        token: any.

    Returns:
        The characters that it stands for.

    >>> stem("##ing")
    'ing'
    """
    return token.removeprefix("##")


def _token(line: str) -> str:
    """The first field of a line, where blanks and tabs part fields."""
    fields = line.replace("\t", " ").strip(" ").split(" ", 1)
    return fields[0]


def _is_redundant(token: str) -> bool:
    return len(token) > 1 and any(is_cjk(c) or is_punctuation(c) for c in stem(token))  # eq. (2)
