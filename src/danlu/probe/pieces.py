r"""Sentences as a masked language model reads them: ids, and which positions belong to which word.

Words are cut one by one, so that a treebank's words stay what they are; a running text has every token for a word.

Source: own definitions; words as spans of pieces: kexue.fm/archives/7476.
Shapes: no tensors; W words of T tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["Pieces", "text_pieces", "word_pieces"]


class Pieces(NamedTuple):
    """A sentence as a model reads it: token ids, the positions of each word's pieces, and what each word stands for."""

    ids: tuple[int, ...]
    units: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]


def word_pieces(tokenizer: Any, words: Sequence[str]) -> Pieces:
    """Ids of a sentence of given words, every word cut by itself.

    Args:
        tokenizer: one of danlu's, or a fast one of HuggingFace's.
        words: the words in order.

    Returns:
        Ids with the special tokens; a word that has no piece is one unknown token.

    Raises:
        ValueError: a HuggingFace tokenizer gives a word no token.

    >>> from danlu.text.tokenizer import Tokenizer
    >>> vocab = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "play": 3, "##ing": 4, "he": 5}
    >>> word_pieces(Tokenizer(vocab), ["he", "playing"])
    Pieces(ids=(1, 5, 3, 4, 2), units=((1,), (2, 3)), texts=('he', 'playing'))
    """
    texts = tuple(words)
    if not hasattr(tokenizer, "pieces"):
        encoded = tokenizer(list(words), is_split_into_words=True)
        places: list[list[int]] = [[] for _ in texts]
        for position, word in enumerate(encoded.word_ids()):
            if word is not None:
                places[word].append(position)
        for word, place in zip(texts, places, strict=True):
            if not place:
                raise ValueError(f"the tokenizer gives the word {word!r} no token; take it out of the sentence")
        return Pieces(tuple(encoded["input_ids"]), tuple(map(tuple, places)), texts)
    ids, end = _special(tokenizer)
    units = []
    for word in texts:
        own = list(tokenizer.pieces(word)[0]) or [tokenizer.token_to_id("[UNK]")]
        units.append(tuple(range(len(ids), len(ids) + len(own))))
        ids += own
    return Pieces((*ids, *end), tuple(units), texts)


def text_pieces(tokenizer: Any, text: str) -> Pieces:
    """Ids of a running text with every token as a word of its own, for segmentation.

    Args:
        tokenizer: one of danlu's, or a fast one of HuggingFace's.
        text: any; what no token covers, such as blanks, goes with the token before it.

    Returns:
        Ids with the special tokens; `texts` joined give the text.

    >>> from danlu.text.tokenizer import Tokenizer
    >>> text_pieces(Tokenizer({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "科": 3, "学": 4}), "科 学").texts
    ('科 ', '学')
    """
    if hasattr(tokenizer, "pieces"):
        start, end = _special(tokenizer)
        own, spans = tokenizer.pieces(text)
        ids, at = [*start, *own, *end], [*range(len(start), len(start) + len(own))]
    else:
        encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        ids = encoded["input_ids"]
        at = [i for i, special in enumerate(encoded["special_tokens_mask"]) if not special]
        spans = [encoded["offset_mapping"][i] for i in at]
    begins = [0, *(begin for begin, _ in spans[1:])]
    texts = tuple(text[a:b] for a, b in zip(begins, [*begins[1:], len(text)], strict=True)) if at else ()
    return Pieces(tuple(ids), tuple((i,) for i in at), texts)


def _special(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids before and behind a text."""
    start, end = tokenizer.token_start, tokenizer.token_end
    return tokenizer.tokens_to_ids([] if start is None else [start]), tokenizer.tokens_to_ids(
        [] if end is None else [end]
    )
