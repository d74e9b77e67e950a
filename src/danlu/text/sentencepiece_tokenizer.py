r"""SentencePiece for T5, mT5 and CPM with the interface of `Tokenizer`.

The cutting is that of the sentencepiece library (pip install "danlu[text]"); special tokens, pairs and truncation are
those of `danlu.text.tokenizer`. Offsets are the library's, in code points of the text as given; a piece that stands
for nothing in the text (the blank put before the first word) has an empty span.

Source: bert4keras' `SpTokenizer`; Kudo and Richardson, 2018, arXiv:1808.06226.
Shapes: lists of T tokens; no tensors.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from danlu.data.errors import InputError
from danlu.text.tokenizer import PairEncoder, Spans

__all__ = ["SpTokenizer"]


class SpTokenizer(PairEncoder):
    r"""Tokenizer of a SentencePiece model; the name is bert4keras'.

    Args:
        path: the model file, such as spiece.model.
        token_start: put before each text; None for none (T5).
        token_end: put behind each text; None for none.
        pre_tokenize: cuts a text into words, which are joined by blanks before the model sees them.
        token_translate: tokens to replace, such as {"\u2583": "<cls>"}; `decode` replaces them back.

    Raises:
        ImportError: sentencepiece is not installed.
        InputError: the file is missing or is no SentencePiece model.
        ValueError: the model lacks the start or the end token.
    """

    def __init__(
        self,
        path: str | Path,
        token_start: str | None = None,
        token_end: str | None = "</s>",
        pre_tokenize: Callable[[str], Iterable[str]] | None = None,
        token_translate: Mapping[str, str] | None = None,
    ) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise ImportError('SpTokenizer needs sentencepiece; pip install "danlu[text]"') from None
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}; name a SentencePiece model") from None
        self.model: Any = SentencePieceProcessor()
        try:
            if not content:
                raise RuntimeError("empty")
            self.model.LoadFromSerializedProto(content)
        except RuntimeError:
            raise InputError(f"{path}: not a SentencePiece model; T5 keeps it in spiece.model") from None
        self.vocab_size = self.model.get_piece_size()
        self.token_start, self.token_end = token_start, token_end
        self.pre_tokenize = pre_tokenize
        self.token_translate = dict(token_translate or {})
        self._back = {new: old for old, new in self.token_translate.items()}
        self.unk_id = self.model.unk_id()
        self.pad_id = self.model.pad_id() if self.model.pad_id() >= 0 else None
        for name, token in (("token_start", token_start), ("token_end", token_end)):
            if token is not None and self.token_to_id(token) == self.unk_id:
                raise ValueError(f"{path} has no piece {token!r}; pass {name}=None or one of its pieces")
        self.start_id = None if token_start is None else self.token_to_id(token_start)
        self.end_id = None if token_end is None else self.token_to_id(token_end)

    def token_to_id(self, token: str) -> int:
        """The id of a piece, that of the unknown one where it has none.

        Args:
            token: any.

        Returns:
            Its id.
        """
        return int(self.model.piece_to_id(token))

    def id_to_token(self, number: int) -> str:
        """The piece of an id; "" beyond the vocabulary, which T5's embedding outgrows.

        Args:
            number: the id, 0 or more.

        Returns:
            Its piece.

        Raises:
            ValueError: the id is negative.
        """
        if number < 0:
            raise ValueError(f"ids must be 0 or more, got {number}; leave out ignored labels such as -100")
        return str(self.model.id_to_piece(number)) if number < self.vocab_size else ""

    def tokens_of(self, text: str) -> list[str]:
        """Pieces of a text without the special ones.

        Args:
            text: any.

        Returns:
            The pieces, translated if `token_translate` says so.
        """
        pieces = self.model.encode(self._prepared(text)[0], out_type=str)
        return [self.token_translate.get(piece) or piece for piece in pieces]

    def pieces(self, text: str) -> tuple[list[int], Spans]:
        """Ids and offsets of a text without the special tokens.

        Args:
            text: any.

        Returns:
            ids and (begin, end) of each.
        """
        prepared, places = self._prepared(text)
        if hasattr(self.model, "encode_as_offset_mapping"):  # sentencepiece 0.2.2 and newer
            found = self.model.encode_as_offset_mapping(prepared)
            tokens, spans = list(found["pieces"]), [(int(begin), int(end)) for begin, end in found["offsets"]]
        else:
            proto = self.model.encode_as_immutable_proto(prepared).pieces
            tokens, spans = [p.piece for p in proto], [(p.begin, p.end) for p in proto]
        tokens = [self.token_translate.get(token) or token for token in tokens]
        if places is not None:
            spans = [_original(begin, end, places) for begin, end in spans]
        return self.tokens_to_ids(tokens), spans

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text; control pieces are left out.

        Args:
            ids: ids of pieces.

        Returns:
            The text; an unknown piece shows as U+2047 between blanks.

        Raises:
            ValueError: an id is negative.
        """
        tokens = [self._back.get(token) or token for token in self.ids_to_tokens(ids)]
        return str(self.model.decode_pieces(tokens))

    def _prepared(self, text: str) -> tuple[str, list[int] | None]:
        """The text that the model sees and, if it is another one, the position each character comes from (-1: none)."""
        if not isinstance(text, str):
            raise TypeError(f"a text must be a str, got {type(text).__name__}; encode_batch takes several texts")
        if self.pre_tokenize is None:
            return text, None
        words, places, at = [], [], 0
        for word in self.pre_tokenize(text):
            begin = text.find(word, at)
            at = begin + len(word) if begin >= 0 else at
            words.append(word)
            places += [*(range(begin, at) if begin >= 0 else [-1] * len(word)), -1]
        return " ".join(words), places[:-1]


def _original(begin: int, end: int, places: list[int]) -> tuple[int, int]:
    """A span of the joined words as a span of the text; an empty one where it holds nothing of the text."""
    here = [place for place in places[begin:end] if place >= 0]
    before = [place for place in places[:begin] if place >= 0][-1:]
    return (here[0], here[-1] + 1) if here else ((before[0] + 1,) * 2 if before else (0, 0))
