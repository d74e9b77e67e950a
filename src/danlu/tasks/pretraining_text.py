r"""Plain text made ready for pretraining: a vocabulary, a corpus of token ids, and where its words begin.

A file holds one document a line; blank lines are left out. Where no vocabulary is given it is built:

    [PAD] [UNK] [CLS] [SEP] [MASK], letters and digits a b ... 9, each also as ##a ##b ... ##9,
    then by frequency the characters that are words by themselves, and at most 1/15 words of letters and digits   (1)

so that `danlu.text.Tokenizer` and transformers' BertTokenizer read vocab.txt alike. Where a word begins is told by a
segmenter, a folder of `danlu train tag`; without one every token that does not start with ## is a word. The segmenter
runs once: its marks are stored with the ids.

Source: Devlin et al., 2018, arXiv:1810.04805 (vocabulary); Cui et al., 2019, arXiv:1906.08101 (words).
Shapes: no tensors.
"""

import re
import string
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from danlu.data.corpus import TokenCorpus, write_corpus
from danlu.data.errors import InputError
from danlu.data.texts import read_texts
from danlu.tasks.device import inference
from danlu.tasks.trained import Trained
from danlu.text import Tokenizer

__all__ = ["SPECIAL", "build_vocab", "prepare", "read_documents", "word_marks"]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PIECES = string.ascii_lowercase + string.digits
_RUN = re.compile(r"[a-z0-9]+")
_LONGEST = 100_000  # characters of a piece that is segmented and cut at a time
_TOGETHER = 2_000_000  # characters segmented together
Tell = Callable[[dict[str, Any]], None]


def read_documents(paths: Iterable[str]) -> Iterator[str]:
    """Documents of plain text files, in order, one a line.

    Args:
        paths: files, plain or .gz; "-" is standard input.

    Returns:
        An iterator over the lines that are not blank; very long ones in pieces.

    Raises:
        InputError: a file cannot be read.
    """
    for path in paths:
        for line in read_texts(path, format="txt"):
            for begin in range(0, len(line), _LONGEST):
                if piece := line[begin : begin + _LONGEST].strip():
                    yield piece


def build_vocab(documents: Iterable[str], size: int = 7_500) -> dict[str, int]:
    """A vocabulary of characters from text, (1).

    Args:
        documents: text.
        size: tokens at the most.

    Returns:
        token -> id.

    Raises:
        InputError: size leaves no room beside the special tokens and the pieces.

    >>> list(build_vocab(["中文 中 Abc", "abc"], size=80))[-3:]
    ['abc', '中', '文']
    """
    fixed = [*SPECIAL, *_PIECES, *(f"##{piece}" for piece in _PIECES)]
    if not len(fixed) < size <= 65_536:
        raise InputError(f"a vocabulary built from text has {len(fixed) + 1} to 65,536 tokens, got {size}")
    normal = Tokenizer({token: number for number, token in enumerate(fixed)})
    characters: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for document in documents:
        lowered = document.lower()
        characters.update(lowered)
        words.update(_RUN.findall(lowered))
    counts: Counter[str] = Counter()
    for character, count in characters.items():
        for token in normal.tokens_of(character):  # as the tokenizer spells it: without accents, none for a blank
            if len(token) == 1:
                counts[token] += count
    frequent = Counter({word: count for word, count in words.items() if 2 <= len(word) <= 20 and count > 1})
    counts.update(dict(_first(frequent, size // 15)))
    room = [token for token, _ in _first(counts, len(counts)) if token not in fixed]
    return {token: number for number, token in enumerate([*fixed, *room][:size])}


def _first(counts: Counter[str], number: int) -> list[tuple[str, int]]:
    """The most frequent, equal ones in the order of their characters."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number]


def word_marks(trained: Trained, texts: list[str]) -> list[np.ndarray]:
    """Where words begin: for every text a bool for every character, by a model of task tag.

    Args:
        trained: words as BMES or entities as BIO, of characters.
        texts: any.

    Returns:
        Arrays as long as their texts; behind a blank a word may go on. In a model of entities every character outside
        of them is a word.
    """
    with inference(trained.device, trained.precision):
        found = trained.task.predict(trained.model, texts)
    marks = []
    for text, prediction in zip(texts, found, strict=True):
        begins = np.ones(len(text), bool)
        if "words" in prediction:
            begins[:] = False
            solid = np.fromiter((not c.isspace() for c in text), bool, len(text)).nonzero()[0]
            sizes = [sum(not c.isspace() for c in word) for word in prediction["words"]]
            starts = np.cumsum([0, *sizes])[:-1]
            begins[solid[starts[starts < len(solid)]]] = True
        else:
            for start, end, _ in prediction["entities"]:
                begins[start + 1 : end] = False
        marks.append(begins)
    return marks


def prepare(
    paths: list[str], folder: Path, tokenizer: Tokenizer, segmenter: Trained | None = None,
    on_event: Tell = lambda event: None,
) -> TokenCorpus:  # fmt: skip
    """The corpus of some text files, written to `folder`.

    Args:
        paths: as in `read_documents`.
        folder: to be made.
        tokenizer: cuts and numbers.
        segmenter: says where words begin; None: every token that does not start with ##.
        on_event: is told of progress.

    Returns:
        The corpus, opened.

    Raises:
        InputError: a file cannot be read, or there is no text.
    """
    piece = np.zeros(tokenizer.vocab_size, bool)
    piece[[number for token, number in tokenizer.vocab.items() if token.startswith("##")]] = True

    def documents() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        told, done = time.monotonic(), 0
        for texts in _together(read_documents(paths)):
            marks = word_marks(segmenter, texts) if segmenter is not None else [None] * len(texts)
            for text, begins in zip(texts, marks, strict=True):
                ids, spans = tokenizer.pieces(text)
                row = np.asarray(ids, np.int64)
                opens = ~piece[row]
                if begins is not None and len(row):
                    opens &= begins[np.fromiter((start for start, _ in spans), np.int64, len(spans))]
                    opens[0] = True
                yield row, opens
            done += sum(map(len, texts))
            if time.monotonic() - told > 20:
                told = time.monotonic()
                on_event({"event": "phase", "text": f"{done:,} characters numbered"})

    write_corpus(folder, documents(), {"segmented": segmenter is not None, "vocab_size": tokenizer.vocab_size})
    return TokenCorpus(folder)


def _together(documents: Iterator[str]) -> Iterator[list[str]]:
    """Documents in groups of some million characters, so that like lengths can be found to batch."""
    while group := list(islice(documents, 1)):
        size = len(group[0])
        for document in documents:
            group.append(document)
            size += len(document)
            if size >= _TOGETHER:
                break
        yield group
