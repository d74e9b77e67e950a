r"""Word vectors in use: nearest words, analogies, agreement with people's judgement of similarity.

With rows x of length 1 (scaled here, whatever their length) and "a is to b as c is to ?":

    cosine        s(x, y) = x.y                                                                           (1)
    "3CosAdd"     argmax_w s(w, b) - s(w, a) + s(w, c)                                                    (2)
    "3CosMul"     argmax_w s'(w, b) s'(w, c) / (s'(w, a) + eps),   s' = (1 + s) / 2, eps = 1e-3           (3)

where a, b and c themselves are no answers. A row of zeros has cosine 0 with everything.

Source: Mikolov et al., 2013, NAACL ("Linguistic regularities"), for (2); Levy and Goldberg, 2014, CoNLL, for (3).
Shapes: V words, Q queries, D features.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.math.correlation import spearman
from danlu.math.precision import wide

__all__ = ["Agreement", "WordVectors", "analogy_scores", "nearest_rows", "word_similarity"]

_METHODS = ("3CosAdd", "3CosMul")


def nearest_rows(queries: Tensor, vectors: Tensor, k: int = 10) -> tuple[Tensor, Tensor]:
    """The rows with the largest cosine to each query, eq. (1).

    Args:
        queries: (Q, D).
        vectors: (V, D), any float dtype.
        k: how many; at most V are returned.

    Returns:
        Cosines (Q, k) in float32 or better, falling, and rows (Q, k) int64.

    Raises:
        ValueError: the shapes do not fit, k is below 1, or a number is not finite.

    >>> nearest_rows(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [3.0, 0.0]]), k=1)[1]
    tensor([[1]])
    """
    if queries.ndim != 2 or vectors.ndim != 2 or queries.shape[1] != vectors.shape[1] or k < 1:
        raise ValueError(
            f"nearest_rows needs queries (Q, D), vectors (V, D) and k >= 1; got {tuple(queries.shape)}, "
            f"{tuple(vectors.shape)} and k={k}"
        )
    x, rows = _unit(queries), _unit(vectors)
    k = min(k, len(rows))
    if not len(x):
        return x.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64, device=x.device)
    found = [(part @ rows.T).topk(k, dim=1) for part in x.split(_chunk(len(rows)))]  # (Q, k) each  eq. (1)
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def analogy_scores(vectors: Tensor, a: Tensor, b: Tensor, c: Tensor, method: str = "3CosAdd") -> Tensor:
    """How well each word answers "a is to b as c is to ?", eq. (2) or (3).

    Args:
        vectors: (V, D), any float dtype.
        a: (Q,) int64 rows.
        b: (Q,) int64 rows.
        c: (Q,) int64 rows.
        method: "3CosAdd" or "3CosMul".

    Returns:
        (Q, V) scores in float32 or better; -inf for a, b and c themselves.

    Raises:
        ValueError: the shapes do not fit, the method is unknown, or a number is not finite.

    >>> x = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    >>> analogy_scores(x, *torch.tensor([[0], [1], [2]])).argmax(1)
    tensor([3])
    """
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    if vectors.ndim != 2 or a.ndim != 1 or not a.shape == b.shape == c.shape:
        raise ValueError(
            f"analogy_scores needs vectors (V, D) and rows a, b, c (Q,); got {tuple(vectors.shape)} and "
            f"{tuple(a.shape)}, {tuple(b.shape)}, {tuple(c.shape)}"
        )
    x = _unit(vectors)
    if method == "3CosAdd":
        scores = (x[b] - x[a] + x[c]) @ x.T  # (Q, V)  eq. (2)
    else:
        near_a, near_b, near_c = ((1 + x[rows] @ x.T) / 2 for rows in (a, b, c))
        scores = near_b * near_c / (near_a + 1e-3)  # eq. (3)
    return scores.scatter(1, torch.stack([a, b, c], 1), -torch.inf)


@dataclass(frozen=True)
class Agreement:
    """How far cosines follow people's judgement: rho of the `covered` pairs of `total` whose words are both known."""

    rho: float
    covered: int
    total: int


def word_similarity(vectors: "WordVectors", pairs: Iterable[tuple[str, str, float]]) -> Agreement:
    """Spearman's correlation of cosines with scores that people gave to pairs of words.

    Args:
        vectors: of words.
        pairs: (word, word, score), for example of `danlu.data.read_word_pairs`.

    Returns:
        Agreement; rho is 0 where fewer than two pairs are covered. A word that is not known as it is written is looked
        up in lower case.

    >>> x = WordVectors(["a", "b", "c"], torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    >>> word_similarity(x, [("a", "b", 9.0), ("A", "c", 1.0), ("a", "zebra", 5.0)])
    Agreement(rho=1.0, covered=2, total=3)
    """
    rows, scores, total = [], [], 0
    for first, second, score in pairs:
        total += 1
        found = [vectors.find(word) for word in (first, second)]
        if None not in found:
            rows.append(found)
            scores.append(score)
    if len(rows) < 2:
        return Agreement(0.0, len(rows), total)
    x, y = _unit(vectors.vectors)[torch.tensor(rows)].unbind(1)
    return Agreement(float(spearman((x * y).sum(1), torch.tensor(scores, dtype=torch.float64))), len(rows), total)


class WordVectors:
    """Words and their vectors, to look up, compare and ask.

    Args:
        words: distinct.
        vectors: (V, D), any float dtype.

    Raises:
        ValueError: the numbers of words and rows differ, or a word comes twice.

    >>> x = WordVectors(["a", "b", "c"], torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    >>> [word for word, _ in x.nearest("a")]
    ['b', 'c']
    """

    def __init__(self, words: Sequence[str], vectors: Tensor) -> None:
        self.words, self.vectors = list(words), vectors
        self._rows = {word: row for row, word in enumerate(self.words)}
        if vectors.ndim != 2 or len(vectors) != len(self.words):
            raise ValueError(f"{len(self.words)} words need as many rows (V, D), got {tuple(vectors.shape)}")
        if len(self._rows) != len(self.words):
            twice = next(word for row, word in enumerate(self.words) if self._rows[word] != row)
            raise ValueError(f"the word {twice!r} comes twice; each needs one row")

    def __len__(self) -> int:
        """Number of words."""
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        """Whether a word has a vector."""
        return word in self._rows

    def __getitem__(self, word: str) -> Tensor:
        """The vector (D,) of a word."""
        return self.vectors[self.row(word)]

    def find(self, word: str) -> int | None:
        """The row of a word, else that of its lower case, else None.

        Args:
            word: any text.
        """
        return self._rows.get(word, self._rows.get(word.lower()))

    def row(self, word: str) -> int:
        """The row of a word.

        Args:
            word: of the vocabulary.

        Raises:
            KeyError: there is no such word.
        """
        if word not in self._rows:
            raise KeyError(f"no vector for {word!r} among {len(self)} words; `in` tells whether there is one")
        return self._rows[word]

    def similarity(self, first: str, second: str) -> float:
        """Cosine of two words, eq. (1).

        Args:
            first: a word.
            second: another.
        """
        x, y = _unit(torch.stack([self[first], self[second]]))
        return float(x @ y)

    def nearest(self, query: str | Tensor, k: int = 10) -> list[tuple[str, float]]:
        """The words nearest to a word or to a vector, with cosines, the nearest first; a word does not find itself.

        Args:
            query: a word, or a vector (D,).
            k: how many.
        """
        own = -1 if isinstance(query, Tensor) else self.row(query)
        x = query if isinstance(query, Tensor) else self[query]
        cosines, rows = nearest_rows(x[None], self.vectors, k + (own >= 0))
        found = zip(rows[0].tolist(), cosines[0].tolist(), strict=True)
        return [(self.words[row], cosine) for row, cosine in found if row != own][:k]

    def analogy(self, a: str, b: str, c: str, k: int = 1, method: str = "3CosAdd") -> list[tuple[str, float]]:
        """Answers to "a is to b as c is to ?" with scores, the best first.

        Args:
            a: a word.
            b: what belongs to it.
            c: another word.
            k: how many answers.
            method: "3CosAdd" or "3CosMul".
        """
        first, second, third = (torch.tensor([self.row(word)], device=self.vectors.device) for word in (a, b, c))
        best = analogy_scores(self.vectors, first, second, third, method)[0].topk(min(k, len(self)))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(self.words[row], score) for row, score in found if score > -torch.inf]

    def analogy_accuracy(
        self, questions: Iterable[tuple[str, str, str, str]], method: str = "3CosAdd"
    ) -> tuple[float, int, int]:
        """Share of analogies whose best answer is the right one.

        Args:
            questions: (a, b, c, answer).
            method: "3CosAdd" or "3CosMul".

        Returns:
            (share of the covered ones, 0 if there are none; covered questions, all questions). Words are looked up
            as in `find`.
        """
        asked = [[self.find(word) for word in question] for question in questions]
        rows = torch.tensor([q for q in asked if None not in q], dtype=torch.int64, device=self.vectors.device)
        right = 0
        for part in rows.reshape(-1, 4).split(_chunk(len(self))):
            scores = analogy_scores(self.vectors, part[:, 0], part[:, 1], part[:, 2], method)
            best = scores.max(1)
            right += int(((best.indices == part[:, 3]) & (best.values > -torch.inf)).sum())
        return right / max(1, len(rows)), len(rows), len(asked)


def _chunk(size: int) -> int:
    """Queries at a time, so that about 16 million cosines are held at once."""
    return max(1, 2**24 // max(1, size))


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1, zeros where a row is zero; computed so that no square over- or underflows."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError("vectors must be finite, got nan or inf")
    x = wide(x)
    if not x.numel():
        return x
    top = x.abs().amax(1, keepdim=True)
    return F.normalize(x / top.masked_fill(top == 0, 1), dim=1)
