r"""A judge that learned labels from real texts: does it recognise in a generated text what was asked for?

    p(k | x) = softmax_k(w_k . f(x) + b_k),      f(x): 1 / sqrt(n) at each of the n features of x              (1)
    w, b     = argmin - mean log p(label | text) + (l / 2) |w|^2                                               (2)

A text's features are its runs of one to three characters, the length of each of its lines and how many there are (lines
end at marks), each counted once: a text that loops does not shout. Of every label as many texts are learned from, since
as many are asked about. The judge shares nothing with the generator but the training texts; its accuracy on real texts
that it never saw is the ceiling of what it can say about generated ones.

Source: the control experiment that kexue.fm/archives/7124 leaves to the eye.
Shapes: N texts, K labels, G buckets of features.
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from danlu.data.errors import InputError

__all__ = ["Judge", "features"]
BUCKETS = 1 << 16
MOST = 6_000  # texts to learn from
PENALTY = 3e-5  # l of eq. (2)
STEPS = 60
_MARKS = re.compile(r"[，。！？；：、,.!?;:\s]+")


class Judge:
    """Recognises the labels it was shown.

    Args:
        texts: real ones.
        labels: as many, of at least two kinds.

    Raises:
        InputError: only one kind of label.
    """

    def __init__(self, texts: Sequence[str], labels: Sequence[str]) -> None:
        from scipy.optimize import minimize

        self.labels = sorted(set(labels))
        if len(self.labels) < 2:
            raise InputError(f"a judge needs two labels or more, got {', '.join(self.labels) or 'none'}")
        chosen = _balanced(labels, MOST // len(self.labels))
        x = _matrix([texts[i] for i in chosen])  # (N, G + 1)
        number = {label: i for i, label in enumerate(self.labels)}
        gold = np.array([number[labels[i]] for i in chosen])
        shape = (BUCKETS + 1, len(self.labels))
        rows = np.arange(len(gold))

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            w = flat.reshape(shape)
            log_p = _log_softmax(x @ w)  # (N, K)  eq. (1)
            error = np.exp(log_p)
            error[rows, gold] -= 1
            value = -log_p[rows, gold].mean() + PENALTY / 2 * float((w[:-1] ** 2).sum())  # eq. (2)
            slope = (x.T @ error) / len(gold)
            slope[:-1] += PENALTY * w[:-1]
            return value, slope.ravel()

        found = minimize(
            objective, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": STEPS}
        )
        self.weights = found.x.reshape(shape)

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The most probable label of every text."""
        if not texts:
            return []
        return [self.labels[i] for i in (_matrix(texts) @ self.weights).argmax(1).tolist()]


def features(text: str) -> list[int]:
    """Distinct buckets of what a text has, in [0, G).

    >>> len(features("ab")) <= 5  # a, b, ab, one line, of two characters
    True
    """
    grams = {text[i : i + n] for n in (1, 2, 3) for i in range(len(text) - n + 1)}
    lines = [line for line in _MARKS.split(text) if line]
    grams |= {f"\0line {len(line)}" for line in lines} | {f"\0lines {len(lines)}"}
    return sorted({zlib.crc32(gram.encode("utf-8", "surrogatepass")) % BUCKETS for gram in grams})


def _matrix(texts: Sequence[str]) -> Any:
    """f of every text and a 1 for b, as a sparse (N, G + 1) matrix."""
    from scipy.sparse import csr_matrix

    rows = [features(text) for text in texts]
    sizes = [len(row) for row in rows]
    places = np.concatenate([[*row, BUCKETS] for row in rows])
    values = np.concatenate([[*[size**-0.5] * size, 1.0] for size in sizes])
    return csr_matrix((values, places, np.cumsum([0, *(size + 1 for size in sizes)])), shape=(len(rows), BUCKETS + 1))


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    scores = scores - scores.max(1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def _balanced(labels: Sequence[str], most: int) -> list[int]:
    """Indices of as many texts of each label as the rarest has, but at most `most`, evenly spread."""
    own: dict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        own[label].append(i)
    wanted = min(most, *map(len, own.values()))
    return [some[j * len(some) // wanted] for some in own.values() for j in range(wanted)]
