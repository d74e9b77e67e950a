r"""Rebalanced encoding: a vocabulary whose tokens do not almost determine the next one, so generators repeat less.

    A_ij = (c_ij + s) / sum_j' (c_ij' + s) = (c_ij + s) / (c_i + s V)                                       (1)
    every pair with A_ij > gamma and c_ij >= min_count becomes one token; count again; until no pair is left (2)

c_ij counts j right after i inside a sentence, V is the number of tokens, which grows from round to round. The authors
take s = 1, and a pair then needs c_ij > gamma V at least: on less than some million characters hardly any is merged.
There s = 0 with min_count = 5 serves (the post's "merge what is likelier than gamma"). Byte-pair encoding merges what
is frequent; (2) merges what is nearly certain, which takes peaky rows out of the transition matrix. The first round
does most of it; `danlu.probe.repetition_index` tells what more of them buy. Tokens are characters, words or pieces.

In a round the sentence is read from left to right and a merged pair is passed as a whole ("aaa" with the pair aa: "aa",
"a"). Tokens of a unit are joined by JOINER; where text itself holds that character or ESCAPE, it is escaped, so
decode(encode(x)) == x for every text, also one that the merges were not learnt from. The authors' code drops all but
ASCII and keeps a dense V x V table; here characters are kept and a round takes time linear in the text.

Source: Fu et al., 2021, arXiv:2012.14660 (gamma 0.1, 10 rounds in their runs); kexue.fm/archives/8128.
Shapes: a sentence is a list of strings.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from danlu.data.errors import InputError

__all__ = ["RebalancedEncoding", "Round"]

JOINER, ESCAPE = "\u203f", "\u2040"  # two marks under a line of text that text hardly ever has
Pairs = dict[tuple[str, str], str]


@dataclass(frozen=True)
class Round:
    """One round of `fit`: pairs merged, tokens and distinct tokens after it, the largest A of eq. (1) before it."""

    pairs: int
    tokens: int
    vocabulary: int
    largest: float


class RebalancedEncoding:
    """Learns merges from sentences by eq. (2), applies and undoes them.

    Args:
        gamma: transitions likelier than this are merged, in (0, 1).
        rounds: at most so many.
        min_count: rarer pairs stay apart, at least 1.
        smoothing: s of eq. (1), at least 0.

    Raises:
        ValueError: a setting is out of range.

    >>> encoding = RebalancedEncoding(gamma=0.3).fit([list("abab"), list("abc"), list("xab")])
    >>> encoding.encode(list("cab"))
    ['c', 'a‿b']
    >>> encoding.decode(['c', 'a‿b'])
    ['c', 'a', 'b']
    """

    def __init__(self, gamma: float = 0.1, rounds: int = 10, min_count: int = 2, smoothing: float = 1.0) -> None:
        if not 0 < gamma < 1 or rounds < 1 or min_count < 1 or not 0 <= smoothing < math.inf:
            raise ValueError(
                f"RebalancedEncoding needs gamma in (0, 1), rounds >= 1, min_count >= 1 and smoothing >= 0; got "
                f"{gamma}, {rounds}, {min_count}, {smoothing}"
            )
        self.gamma, self.rounds, self.min_count, self.smoothing = gamma, rounds, min_count, smoothing
        self.merges: list[list[tuple[str, str]]] = []  # round -> its pairs
        self.history: list[Round] = []
        self._units: list[Pairs] = []

    def fit(self, corpus: Iterable[Sequence[str]]) -> "RebalancedEncoding":
        """Learn merges; what was learnt before is forgotten.

        Args:
            corpus: sentences as lists of tokens; no unit spans two of them.

        Returns:
            Itself; `history` tells each round, `merges` holds its pairs.

        Raises:
            ValueError: a sentence is a string instead of a list of tokens.
        """
        sentences = [_escaped(sentence) for sentence in corpus]
        self.merges, self.history, self._units = [], [], []
        for _ in range(self.rounds):
            found, largest = self._pairs(sentences)
            if not found:
                break
            units = _units(found)
            sentences = [_merged(sentence, units) for sentence in sentences]
            self.merges.append(found)
            self._units.append(units)
            sizes = sum(map(len, sentences)), len({token for sentence in sentences for token in sentence})
            self.history.append(Round(len(found), *sizes, largest))
        return self

    def encode(self, tokens: Sequence[str]) -> list[str]:
        """Units of a sentence.

        Args:
            tokens: of the kind that `fit` saw; unknown ones stay as they are.

        Returns:
            Units, each of one or several tokens.

        Raises:
            ValueError: `tokens` is a string.
        """
        units = _escaped(tokens)
        for pairs in self._units:
            units = _merged(units, pairs)
        return units

    def decode(self, units: Iterable[str]) -> list[str]:
        """Tokens of units; the inverse of `encode`, and defined for any sequence of units a generator makes.

        Args:
            units: as `encode` gives them.

        Returns:
            Tokens.
        """
        return [_plain(token) for unit in units for token in unit.split(JOINER)]

    def save(self, path: str | Path) -> None:
        """Write settings and merges as JSON.

        Args:
            path: of the file.
        """
        record = {name: getattr(self, name) for name in ("gamma", "rounds", "min_count", "smoothing", "merges")}
        text = json.dumps({"kind": "danlu rebalanced encoding"} | record, ensure_ascii=False)
        Path(path).write_bytes(text.encode("utf-8", "surrogatepass"))

    @classmethod
    def load(cls, path: str | Path) -> "RebalancedEncoding":
        """Read what `save` wrote; the history of the fit is not in it.

        Args:
            path: of the file.

        Returns:
            An encoding that encodes as the saved one did.

        Raises:
            ValueError: the file holds no such record.
            OSError: it cannot be read.
        """
        try:
            record = json.loads(Path(path).read_bytes().decode("utf-8", "surrogatepass"))
            gamma, smoothing = float(record["gamma"]), float(record["smoothing"])
            encoding = cls(gamma, int(record["rounds"]), int(record["min_count"]), smoothing)
            encoding.merges = [[_pair(pair) for pair in pairs] for pairs in record["merges"]]
            if record["kind"] != "danlu rebalanced encoding":
                raise KeyError
        except (UnicodeDecodeError, RecursionError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is not a file of RebalancedEncoding.save ({type(error).__name__}); fit and save again"
            ) from None
        encoding._units = [_units(pairs) for pairs in encoding.merges]
        return encoding

    def _pairs(self, sentences: list[list[str]]) -> tuple[list[tuple[str, str]], float]:
        """Pairs to merge, the likeliest first, and the largest A among pairs that are frequent enough."""
        counts = Counter(pair for sentence in sentences for pair in pairwise(sentence))  # c_ij
        before: Counter[str] = Counter()  # c_i
        for (left, _), count in counts.items():
            before[left] += count
        size = len({token for sentence in sentences for token in sentence})  # V
        shares = {
            pair: (count + self.smoothing) / (before[pair[0]] + self.smoothing * size)  # eq. (1)
            for pair, count in counts.items()
            if count >= self.min_count
        }
        found = [pair for pair, share in shares.items() if share > self.gamma]  # eq. (2)
        return sorted(found, key=lambda pair: (-shares[pair], pair)), max(shares.values(), default=0.0)


def _units(pairs: Iterable[tuple[str, str]]) -> Pairs:
    return {pair: JOINER.join(pair) for pair in pairs}


def _merged(tokens: list[str], pairs: Pairs) -> list[str]:
    """One round: pairs from left to right."""
    units: list[str] = []
    i, last = 0, len(tokens) - 1
    while i <= last:
        unit = pairs.get((tokens[i], tokens[i + 1])) if i < last else None
        units.append(tokens[i] if unit is None else unit)
        i += 1 if unit is None else 2
    return units


def _escaped(tokens: Sequence[str]) -> list[str]:
    if isinstance(tokens, str):
        raise ValueError(f"a sentence is a list of tokens, got the string {tokens[:20]!r}; for characters list(text)")
    return [
        token.replace(ESCAPE, ESCAPE + "0").replace(JOINER, ESCAPE + "1")
        if JOINER in token or ESCAPE in token
        else token
        for token in tokens
    ]


def _plain(token: str) -> str:
    return token.replace(ESCAPE + "1", JOINER).replace(ESCAPE + "0", ESCAPE) if ESCAPE in token else token


def _pair(pair: object) -> tuple[str, str]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(token, str) for token in pair):
        raise TypeError
    return pair[0], pair[1]
