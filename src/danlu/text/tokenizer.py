r"""WordPiece as bert4keras defines it: the same tokens, ids and positions, at several times the speed of the Rust call.

A text is lowered and stripped of accents (lower(), NFD, category Mn dropped; only with do_lower_case), controls and
U+FFFD are dropped, blanks part words, every CJK character and every mark is a word. A word is cut greedily:

    piece_k = the longest prefix of what is left that the vocabulary holds (from the second piece on: with ##)     (1)

A word longer than word_maxlen, or with a rest that has no piece, is one token, itself; its id is that of [UNK].

Position lists (`rematch`) and offsets count code points of the text as it was given. Offsets are (begin, end), end
exclusive: text[begin:end], normalised, is the token's characters. Where one character gives several (a hangul
syllable has up to three letters in NFD) tokens may share it. Special tokens have (0, 0).

What makes it quick: the class of each code point is found once and kept. A text of nothing but characters that are
words by themselves, most Chinese sentences, is one table look-up a character; of other texts the runs between such
characters are looked up in a store of words seen. Both rest on (2), which fails for the capital sigma alone: its small
letter depends on its neighbours across marks. A text that holds one takes the plain path.

    normalise(text) = join of normalise(word) over its words                         (2)

The Rust library is for interchange: `to_rust` and `save` give a tokenizer.json that HuggingFace opens. It agrees on
everyday text; it differs on final sigmas, on private and unassigned code points (which it drops) and on special tokens
in the text (which it keeps whole; `keep_whole` does that here).

bert4keras loses its way after "\u0130" (lower() makes two characters of it): its positions count in text.lower().
`rematch(..., compat="bert4keras")` returns those; the default returns positions in the text. Where it raises, a token
that is not found gets no position and the search goes on behind the last one found.

Source: bert4keras' `Tokenizer`; BERT, arXiv:1810.04805.
Shapes: lists of T tokens; no tensors (`danlu.data.sequences.pad_sequences` makes them).
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.data.errors import InputError
from danlu.data.sequences import truncate, truncated_lengths
from danlu.text.vocabulary import is_cjk, is_punctuation, load_vocab, save_vocab, stem

if TYPE_CHECKING:
    import tokenizers

__all__ = ["Encoding", "PairEncoder", "Spans", "Tokenizer"]

Spans = list[tuple[int, int]]
_BLANK, _PART, _HARD = -1, -2, -3  # classes of code points; 0 and above: a word by itself, the class is its id
_WORDS_KEPT, _WORD_KEPT = 100_000, 40  # words in the store, characters of the longest one
_PATTERNS = ("S*E*E", "S*ES*E")
_OPENING = re.compile(  # marks that want no blank behind them: CJK marks, and ASCII ones that open or join
    "([+\\-/={(<[\u00b7\u2013\u2014\u2018\u2019\u201b-\u201f\u2026\u2027\u3000-\u3003\u3008-\u3011\u3014-\u301f"
    "\u3030\u303e\u303f\ufe4f\ufe51\ufe54\uff01-\uff0d\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff64]) "
)


@dataclass(frozen=True, slots=True)
class Encoding:
    """What a model needs of a text or a pair: ids, which text each token is from, where it stands in that text."""

    ids: list[int]
    segment_ids: list[int]
    offsets: Spans


class PairEncoder:
    """Encoding of texts and pairs with special tokens and truncation, for any way of cutting a text into pieces."""

    vocab_size: int
    token_start: str | None
    token_end: str | None

    def tokens_of(self, text: str) -> list[str]:
        """Tokens of a text without the special ones."""
        raise NotImplementedError

    def pieces(self, text: str) -> tuple[list[int], Spans]:
        """Ids and offsets of a text without the special ones."""
        raise NotImplementedError

    def token_to_id(self, token: str) -> int:
        """The id of a token, that of the unknown token where it has none."""
        raise NotImplementedError

    def id_to_token(self, number: int) -> str:
        """The token of an id."""
        raise NotImplementedError

    def tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """`token_to_id` of each.

        Args:
            tokens: any.

        Returns:
            As many ids.
        """
        return [self.token_to_id(token) for token in tokens]

    def ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """`id_to_token` of each.

        Args:
            ids: any.

        Returns:
            As many tokens.
        """
        return [self.id_to_token(int(number)) for number in ids]

    def tokenize(self, text: str, maxlen: int | None = None) -> list[str]:
        """Tokens of a text with the special ones around them.

        Args:
            text: any.
            maxlen: tokens allowed, special ones included; the end of the text is left out.

        Returns:
            The tokens; a word that cannot be cut stands there whole.

        Raises:
            ValueError: maxlen leaves no room for the special tokens.
        """
        tokens = [*self._starts(), *self.tokens_of(_checked(text)), *self._ends()]
        if maxlen is not None:
            self._check_room(maxlen, 1, 1)
            tokens = truncate(tokens, maxlen, -1 - len(self._ends()))
        return tokens

    def encode(
        self,
        first: str | Sequence[str],
        second: str | Sequence[str] | None = None,
        maxlen: int | None = None,
        pattern: str = "S*E*E",
        truncate_from: str | int = "right",
    ) -> tuple[list[int], list[int]]:
        """Ids and segment ids of a text or a pair, as bert4keras returns them.

        Args:
            first: a text, or its tokens as `tokenize` returns them.
            second: a second one.
            maxlen: tokens allowed in all; the longer of the two is cut.
            pattern: "S*E*E" (one start token for both) or "S*ES*E" (one for each).
            truncate_from: "right" cuts just before the end token, "left" just after the start token, a number is the
                index that tokens are taken from (`danlu.data.truncate`, special tokens count).

        Returns:
            ids and segment ids (0 for the first, 1 for the second), equally long.

        Raises:
            ValueError: an option is none of those allowed, or maxlen leaves no room for the special tokens.
        """
        both = [first] if second is None else [first, second]
        rows = [self._row(part) for part in both]
        if maxlen is not None and all(isinstance(part, str) for part in both):
            self._check_room(maxlen, 1 if pattern == "S*E*E" else len(both), len(both))
        encoding = self._joined(rows, maxlen, pattern, truncate_from)
        return encoding.ids, encoding.segment_ids

    def encode_batch(
        self,
        first: Iterable[str],
        second: Iterable[str] | None = None,
        maxlen: int | None = None,
        pattern: str = "S*E*E",
        truncate_from: str | int = "right",
    ) -> list[Encoding]:
        """Ids, segment ids and offsets of each text or pair.

        Args:
            first: texts.
            second: as many second texts.
            maxlen: as in `encode`.
            pattern: as in `encode`.
            truncate_from: as in `encode`.

        Returns:
            An `Encoding` for each.

        Raises:
            TypeError: one text is given instead of several.
            ValueError: as in `encode`, or there are not as many second texts as first ones.
        """
        if isinstance(first, str) or isinstance(second, str):
            raise TypeError("encode_batch takes several texts, got one; write encode_batch([text])")
        number = 1 if second is None else 2
        if maxlen is not None:
            self._check_room(maxlen, 1 if pattern == "S*E*E" else number, number)
        if second is None:
            return [self._joined([self._row(text)], maxlen, pattern, truncate_from) for text in first]
        firsts, seconds = list(first), list(second)
        if len(firsts) != len(seconds):
            raise ValueError(f"as many second texts as first ones are needed, got {len(seconds)} and {len(firsts)}")
        return [
            self._joined([self._row(a), self._row(b)], maxlen, pattern, truncate_from)
            for a, b in zip(firsts, seconds, strict=True)
        ]

    def _starts(self) -> list[str]:
        return [] if self.token_start is None else [self.token_start]

    def _ends(self) -> list[str]:
        return [] if self.token_end is None else [self.token_end]

    def _row(self, part: str | Sequence[str]) -> tuple[list[int], Spans]:
        """Ids and offsets of one text with its special tokens."""
        if not isinstance(part, str):
            ids = self.tokens_to_ids(part)
            return ids, [(0, 0)] * len(ids)
        ids, spans = self.pieces(part)
        start, end = self._marks
        return [*start, *ids, *end], [*[(0, 0)] * len(start), *spans, *[(0, 0)] * len(end)]

    @property
    def _marks(self) -> tuple[list[int], list[int]]:
        return self.tokens_to_ids(self._starts()), self.tokens_to_ids(self._ends())

    def _check_room(self, maxlen: int, starts: int, ends: int) -> None:
        room = starts * len(self._starts()) + ends * len(self._ends())
        if maxlen < room:
            raise ValueError(f"maxlen must be at least {room}, the number of special tokens, got {maxlen}")

    def _joined(
        self, rows: list[tuple[list[int], Spans]], maxlen: int | None, pattern: str, truncate_from: str | int
    ) -> Encoding:
        if pattern not in _PATTERNS:
            raise ValueError(f"pattern must be one of {', '.join(_PATTERNS)}, got {pattern!r}")
        if isinstance(truncate_from, str) and truncate_from not in ("right", "left"):
            raise ValueError(f"truncate_from must be 'right', 'left' or an index, got {truncate_from!r}")
        shared = len(self._starts()) if pattern == "S*E*E" and len(rows) == 2 else 0  # taken off the second
        if maxlen is not None and sum(len(ids) for ids, _ in rows) - shared > maxlen:
            index = truncate_from
            if isinstance(index, str):
                index = -1 - len(self._ends()) if index == "right" else len(self._starts())
            lengths = truncated_lengths([len(ids) for ids, _ in rows], maxlen + shared)
            rows = [(truncate(i, n, index), truncate(o, n, index)) for (i, o), n in zip(rows, lengths, strict=True)]
        ids, spans = rows[0]
        segments = [0] * len(ids)
        if len(rows) == 2:
            ids, spans = ids + rows[1][0][shared:], spans + rows[1][1][shared:]
            segments += [1] * (len(ids) - len(segments))
        return Encoding(ids, segments, spans)


class Tokenizer(PairEncoder):
    """WordPiece tokenizer of BERT with bert4keras' interface, eq. (1).

    Args:
        vocab: token -> id, or the path of a vocab.txt.
        do_lower_case: whether to lower the text and strip accents (bert4keras: False by default).
        token_start: put before each text; None for none.
        token_end: put behind each text; None for none.
        pre_tokenize: cuts a (lowered) text into words; those the vocabulary holds are tokens, the others are cut as
            without it.
        token_translate: tokens to replace, such as {"的": "[unused1]"}; their positions stay.
        word_maxlen: longer words are not cut.
        keep_whole: tokens of the vocabulary that stay whole in a text, such as ["[MASK]"].

    Raises:
        ValueError: the vocabulary lacks [UNK], a start or end token or one of `keep_whole`, or holds a negative id.

    >>> tokenizer = Tokenizer({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "科": 3, "学": 4, "he": 5, "##llo": 6})
    >>> tokenizer.tokenize("科学 Hello")
    ['[CLS]', '科', '学', 'he', '##llo', '[SEP]']
    >>> tokenizer.encode("科学 Hello", maxlen=5)
    ([1, 3, 4, 5, 2], [0, 0, 0, 0, 0])
    >>> tokenizer.encode_batch(["学 Hello"])[0].offsets
    [(0, 0), (0, 1), (2, 4), (4, 7), (0, 0)]
    """

    _classes: "_Classes"
    _words: dict[str, tuple[list[int], Spans]]  # ids and offsets of runs between characters that are words
    _unit: Spans  # (0, 1), (1, 2), ...
    _whole: re.Pattern[str] | None

    def __init__(
        self,
        vocab: Mapping[str, int] | str | Path,
        do_lower_case: bool = True,
        token_start: str | None = "[CLS]",
        token_end: str | None = "[SEP]",
        pre_tokenize: Callable[[str], Iterable[str]] | None = None,
        token_translate: Mapping[str, str] | None = None,
        word_maxlen: int = 200,
        keep_whole: Sequence[str] = (),
    ) -> None:
        self.vocab = dict(load_vocab(vocab) if isinstance(vocab, str | Path) else vocab)
        wanted: list[tuple[str | None, str]] = [("[UNK]", ""), (token_start, "pass token_start=None")]
        wanted += [(token_end, "pass token_end=None"), *((token, "leave it out of keep_whole") for token in keep_whole)]
        for token, way in wanted:
            if token is not None and token not in self.vocab:
                way = f"; {way}" if way else ""
                raise ValueError(
                    f"the vocabulary of {len(self.vocab)} tokens has no {token!r}{way}; if it was simplified, "
                    "startswith=['[PAD]', '[UNK]', '[CLS]', '[SEP]'] keeps the special tokens"
                )
        if min(self.vocab.values()) < 0:
            raise ValueError(f"ids must be 0 or more, got {min(self.vocab.values())}; see danlu.text.load_vocab")
        self.vocab_size = max(self.vocab.values()) + 1
        self.do_lower_case = do_lower_case
        self.token_start, self.token_end = token_start, token_end
        self.pre_tokenize = pre_tokenize
        self.token_translate = dict(token_translate or {})
        self.word_maxlen = word_maxlen
        self.keep_whole = tuple(keep_whole)
        self.pad_id, self.mask_id = self.vocab.get("[PAD]"), self.vocab.get("[MASK]")
        self.unk_id = self.vocab["[UNK]"]
        self.start_id = None if token_start is None else self.vocab[token_start]
        self.end_id = None if token_end is None else self.vocab[token_end]
        self._token = {number: token for token, number in self.vocab.items()}
        self._longest = max(map(len, self.vocab))  # no piece of eq. (1) is longer
        self._special_ids = ([*self._id(token_start)], [*self._id(token_end)])
        self._forget()

    def token_to_id(self, token: str) -> int:
        """The id of a token, that of [UNK] where it has none.

        Args:
            token: any.

        Returns:
            Its id.
        """
        return self.vocab.get(token, self.unk_id)

    def id_to_token(self, number: int) -> str:
        """The token of an id.

        Args:
            number: the id.

        Returns:
            Its token.

        Raises:
            ValueError: no token has this id.
        """
        if number not in self._token:
            raise ValueError(f"no token has the id {number}; ids of this vocabulary lie in [0, {self.vocab_size})")
        return self._token[number]

    def tokens_of(self, text: str) -> list[str]:
        """Tokens of a text without the special ones.

        Args:
            text: any.

        Returns:
            The tokens, translated if `token_translate` says so.
        """
        return [self.token_translate.get(token) or token for token, _, _ in self._plain(_checked(text))]

    def pieces(self, text: str) -> tuple[list[int], Spans]:
        """Ids and offsets of a text without the special tokens.

        Args:
            text: any.

        Returns:
            ids and (begin, end) of each.
        """
        codes = list(map(self._classes.__getitem__, _checked(text)))
        if not codes:
            return [], []
        lowest = min(codes)
        if lowest == _HARD or (self._whole is not None and self._whole.search(text)):
            return self._plain_ids(text)
        unit = self._unit
        if len(unit) < len(codes):
            unit = self._unit = [(i, i + 1) for i in range(2 * len(codes))]
        if lowest >= 0:
            return codes, unit[: len(codes)]
        ids: list[int] = []
        spans: Spans = []
        begin = -1  # of the run in work
        for i, code in enumerate([*codes, _BLANK]):
            if code == _PART:
                if begin < 0:
                    begin = i
                continue
            if begin >= 0:
                run = text[begin:i]
                some = self._words.get(run) or self._word(run)
                ids += some[0]
                spans += [(a + begin, b + begin) for a, b in some[1]]
                begin = -1
            if code >= 0:
                ids.append(code)
                spans.append(unit[i])
        return ids, spans

    def rematch(self, text: str, tokens: Iterable[str], compat: str | None = None) -> list[list[int]]:
        r"""Positions in the text of each token's characters.

        Args:
            text: the text.
            tokens: its tokens in order, special ones included.
            compat: None counts in the text; "bert4keras" in text.lower(), which differs behind an "\u0130".

        Returns:
            A list a token: one position a character of the normalised token, [] for special tokens ([...]) and for
            those not found.

        Raises:
            ValueError: compat is neither.

        >>> Tokenizer({"[UNK]": 0}, token_start=None, token_end=None).rematch("Cafe\u0301 ok", ["caf", "##e", "ok"])
        [[0, 1, 2], [3], [6, 7]]
        """
        if compat not in (None, "bert4keras"):
            raise ValueError(f"compat must be None or 'bert4keras', got {compat!r}")
        kept = [
            (c, i)
            for c, i in self._normalised(text.lower() if compat and self.do_lower_case else text)
            if not _dropped(c)
        ]
        normal, places = "".join(c for c, _ in kept), [i for _, i in kept]
        out: list[list[int]] = []
        at = 0
        for token in tokens:
            begin = -1 if _is_special(token) else normal.find(stem(token), at)
            if begin >= 0:
                at = begin + len(stem(token))
            out.append(places[begin:at] if begin >= 0 else [])
        return out

    def decode(self, ids: Iterable[int], tokens: Sequence[str] | None = None) -> str:
        """Readable text: blanks between words, none between CJK characters; special tokens are left out.

        Args:
            ids: ids of tokens.
            tokens: the tokens themselves, if known: words without an id are not lost then.

        Returns:
            The text.

        Raises:
            ValueError: no token has one of the ids.

        >>> tokenizer = Tokenizer({"[UNK]": 0, "科": 1, "学": 2, "he": 3, "##llo": 4}, token_start=None, token_end=None)
        >>> tokenizer.decode([1, 2, 3, 4, 3])
        '科学hello he'
        """
        parts: list[str] = []
        for token in tokens or self.ids_to_tokens(ids):
            single = len(token) == 1
            if _is_special(token):
                continue
            if token.startswith("##"):
                parts += [token[2:]] * (len(token) > 2)
            elif single and not is_cjk(token) and is_punctuation(token):
                parts += (token, " ")
            elif (single and is_cjk(token)) or (parts and is_cjk(parts[-1][-1])):
                parts.append(token)
            else:
                parts += (" ", token)
        text = re.sub(" +", " ", "".join(parts))
        text = re.sub("' (re|m|s|t|ve|d|ll) ", r"'\1 ", text)
        text = _OPENING.sub(r"\1", text)
        return re.sub(r"(\d\.) (\d)", r"\1\2", text).strip()

    def to_rust(self) -> "tokenizers.Tokenizer":
        """The same tokenizer in the Rust library; the module says where they differ.

        Returns:
            A `tokenizers.Tokenizer` whose special tokens are the bracketed ones that this one uses.

        Raises:
            ValueError: `pre_tokenize` or `token_translate` is in use; neither can be handed over.
        """
        from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
        from tokenizers import Tokenizer as Rust

        if self.pre_tokenize is not None or self.token_translate:
            raise ValueError("pre_tokenize and token_translate have no counterpart in the Rust library; leave them out")
        rust = Rust(models.WordPiece(self.vocab, unk_token="[UNK]", max_input_chars_per_word=self.word_maxlen))
        rust.normalizer = normalizers.BertNormalizer(lowercase=self.do_lower_case, strip_accents=self.do_lower_case)
        rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        rust.decoder = decoders.WordPiece()
        start, end = self._starts(), self._ends()
        rust.post_processor = processors.TemplateProcessing(
            single=[*start, "$A", *end],
            pair=[*start, "$A", *end, "$B:1", *(f"{token}:1" for token in end)],
            special_tokens=[(token, self.vocab[token]) for token in dict.fromkeys(start + end)],
        )
        named = ["[PAD]", "[UNK]", "[MASK]", *start, *end, *self.keep_whole]
        rust.add_special_tokens([AddedToken(t, special=True) for t in dict.fromkeys(named) if t in self.vocab])
        return rust

    def save(self, folder: str | Path) -> None:
        """Write vocab.txt, tokenizer.json and tokenizer_config.json, which HuggingFace's AutoTokenizer opens.

        Args:
            folder: an existing folder.

        Raises:
            ValueError: as in `to_rust`, or a token cannot stand on a line.
        """
        rust = self.to_rust()
        save_vocab(Path(folder, "vocab.txt"), self.vocab)
        Path(folder, "tokenizer.json").write_text(rust.to_str(pretty=True), encoding="utf-8")
        config: dict[str, Any] = {"tokenizer_class": "BertTokenizer", "do_lower_case": self.do_lower_case}
        config |= {"cls_token": self.token_start, "sep_token": self.token_end, "word_maxlen": self.word_maxlen}
        config["keep_whole"] = list(self.keep_whole)
        Path(folder, "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a folder that `save` or HuggingFace wrote.

        Args:
            folder: holds vocab.txt and, unless lower case is right, tokenizer_config.json.

        Returns:
            A tokenizer equal to the one saved.

        Raises:
            InputError: a file is missing or is not in its format.
        """
        path = Path(folder, "tokenizer_config.json")
        options: dict[str, Any] = {}
        if path.exists():
            try:
                config = json.loads(path.read_text(encoding="utf-8"))
                options = {n: config[n] for n in ("do_lower_case", "word_maxlen", "keep_whole") if n in config}
                for option, name, default in (
                    ("token_start", "cls_token", "[CLS]"),
                    ("token_end", "sep_token", "[SEP]"),
                ):
                    token = config.get(name, default)
                    options[option] = token["content"] if isinstance(token, dict) else token
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise InputError(f"{path}: not the settings of a tokenizer: {error}") from None
        return cls(Path(folder, "vocab.txt"), **options)

    def __getstate__(self) -> dict[str, Any]:
        lost = ("_classes", "_words", "_unit", "_whole")
        return {name: value for name, value in self.__dict__.items() if name not in lost}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        """Start with empty stores of classes and words."""
        self._classes = _Classes(self._class_of)
        self._words = {}
        self._unit = []
        longest_first = sorted(self.keep_whole, key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def _id(self, token: str | None) -> list[int]:
        return [] if token is None else [self.vocab[token]]

    @property
    def _marks(self) -> tuple[list[int], list[int]]:
        return self._special_ids

    def _class_of(self, character: str) -> int:
        """_BLANK, _PART, _HARD, or the id of a character that is a word."""
        if self.pre_tokenize is not None or (character == "\u03a3" and self.do_lower_case):
            return _HARD
        kinds = [(c, _kind(c)) for c, _ in self._normalised(character)]
        kinds = [(c, kind) for c, kind in kinds if kind != "dropped"]
        if len(kinds) == 1 and kinds[0][1] == "word":
            return self._translated_id(kinds[0][0])
        if all(kind == "part" for _, kind in kinds):  # also characters of which nothing is left
            return _PART
        return _BLANK if all(kind == "blank" for _, kind in kinds) else _HARD  # mixed: none up to Unicode 14

    def _translated_id(self, token: str) -> int:
        return self.token_to_id(self.token_translate.get(token) or token)

    def _word(self, run: str) -> tuple[list[int], Spans]:
        found = self._plain_ids(run)
        if len(run) <= _WORD_KEPT:
            if len(self._words) >= _WORDS_KEPT:
                self._words.clear()
            self._words[run] = found
        return found

    def _plain_ids(self, text: str) -> tuple[list[int], Spans]:
        pieces = self._plain(text)
        return [self._translated_id(token) for token, _, _ in pieces], [(begin, end) for _, begin, end in pieces]

    def _plain(self, text: str) -> list[tuple[str, int, int]]:
        """Tokens of any text with their offsets, by the definitions; what has no place stands at the end so far."""
        out: list[tuple[str, int, int]] = []
        at = 0
        for match in [*(self._whole.finditer(text) if self._whole else ()), None]:
            part = text[at : match.start() if match else len(text)]
            tokens = self._cut(part)
            end = at
            for token, places in zip(tokens, self.rematch(part, tokens), strict=True):
                begin, end = (at + min(places), at + max(places) + 1) if places else (end, end)
                out.append((token, begin, end))
            if match:
                out.append((match[0], match.start(), match.end()))
                at = match.end()
        return out

    def _cut(self, text: str, words: bool = True) -> list[str]:
        text = "".join(c for c, _ in self._normalised(text))
        if words and self.pre_tokenize is not None:
            out: list[str] = []
            for word in self.pre_tokenize(text):
                out += [word] if word in self.vocab else self._cut(word, words=False)
            return out
        spaced = {"word": " {} ", "blank": " ", "dropped": "", "part": "{}"}
        found = "".join(spaced[_kind(c)].format(c) for c in text).split(" ")
        return [piece for word in found if word for piece in self._pieces_of(word)]

    def _pieces_of(self, word: str) -> list[str]:
        """Eq. (1)."""
        if len(word) > self.word_maxlen:
            return [word]
        pieces: list[str] = []
        begin, mark = 0, ""
        while begin < len(word):
            for end in range(min(len(word), begin + self._longest), begin, -1):
                if mark + word[begin:end] in self.vocab:
                    break
            else:
                return [word]
            pieces.append(mark + word[begin:end])
            begin, mark = end, "##"
        return pieces

    def _normalised(self, text: str) -> list[tuple[str, int]]:
        """Characters of the text, lowered and without accents if so wished, each with the position it comes from."""
        if not self.do_lower_case:
            return list(zip(text, range(len(text)), strict=True))
        low = text.lower()
        places = range(len(text)) if len(low) == len(text) else [i for i, c in enumerate(text) for _ in c.lower()]
        parted = [(c, i) for whole, i in zip(low, places, strict=True) for c in unicodedata.normalize("NFD", whole)]
        out: list[tuple[str, int]] = []
        for rank, run in groupby(parted, key=lambda item: unicodedata.combining(item[0]) > 0):
            marks = list(run)  # accents on one letter stand in canonical order
            out += sorted(marks, key=lambda item: unicodedata.combining(item[0])) if rank else marks
        return [item for item in out if unicodedata.category(item[0]) != "Mn"]


class _Classes(dict[str, int]):
    """Classes of the characters seen so far; a new one is classified when it is looked up."""

    def __init__(self, classify: Callable[[str], int]) -> None:
        super().__init__()
        self._classify = classify

    def __missing__(self, character: str) -> int:
        code = self[character] = self._classify(character)
        return code


def _kind(character: str) -> str:
    """What a normalised character is to the words: "word" by itself, "blank", "dropped" or "part"."""
    if is_punctuation(character) or is_cjk(character):
        return "word"
    if character in " \t\n\r" or unicodedata.category(character)[0] == "Z":
        return "blank"
    return "dropped" if _dropped(character) else "part"


def _dropped(character: str) -> bool:
    return character in "\0\ufffd" or unicodedata.category(character) in ("Cc", "Cf")


def _is_special(token: str) -> bool:
    return token[:1] == "[" and token[-1:] == "]"


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"a text must be a str, got {type(text).__name__}; encode_batch takes several texts")
    return text
