r"""How near generated text is to a reference, and how varied it is: BLEU, ROUGE and two measures beside them.

    p_n        = sum_i sum_g min(#_g(prediction_i), #_g(gold_i)) / sum_i #(prediction_i)      n-grams g       (1)
    BLEU       = min(1, e^{1 - r/c}) (p_1 ... p_N)^{1/N},      c, r: tokens of the predictions and of the gold (2)
    ROUGE-n    F1 of the n-grams that prediction and gold share, counted as in (1)                            (3)
    ROUGE-L    F1 of their longest common subsequence, P = LCS / |prediction|, R = LCS / |gold|               (4)
    distinct_n = different n-grams of all texts / n-grams of all texts                                        (5)
    accuracy_t = share of the texts with gold_t = prediction_t among those whose gold reaches t               (6)

BLEU belongs to a whole set of texts, (2); means of single texts' BLEU, as papers on titles report them, need a small
`epsilon` in place of the matches that a short text lacks. Order and fluency beyond n tokens are not seen by (1) to (3).
(6) is low for a good paraphrase; what tells is its fall from gold prefixes to own ones (exposure bias).

The longest common subsequence takes a row of its table in one long integer (Hyyro, 2004), n m / 64 word operations.

Source: Papineni et al., 2002, "BLEU: a method for automatic evaluation of machine translation"; Lin, 2004, "ROUGE: a
    package for automatic evaluation of summaries"; epsilon: Chen and Cherry, 2014, method 1; (5) Li et al., 2015,
    arXiv:1510.03055; kexue.fm/archives/7259 reports ROUGE-1, ROUGE-2, ROUGE-L and BLEU.
Shapes: a text is a sequence of hashable tokens: characters, words or ids.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from danlu.math.metrics import Score, score_from_counts

__all__ = ["bleu", "distinct_n", "lcs_length", "position_accuracy", "rouge_l", "rouge_n"]

Tokens = Sequence[Hashable]


def bleu(predicted: Sequence[Tokens], gold: Sequence[Tokens], max_order: int = 4, epsilon: float = 0.0) -> float:
    """BLEU of some texts with one reference each, eq. (2); of one text it is sentence BLEU.

    Args:
        predicted: texts.
        gold: as many references.
        max_order: longest n-gram N, at least 1.
        epsilon: stands for the matches of an order that has none; 0.1 is usual for single texts, 0 gives BLEU 0.

    Returns:
        In [0, 1]; 0 where nothing was predicted or no token matches.

    Raises:
        ValueError: as many references as texts are needed, max_order below 1, or epsilon negative.

    >>> round(bleu(["the cat sat".split()], ["the cat sat down".split()], max_order=2), 4)  # e^{1 - 4/3}
    0.7165
    """
    _check_pairs("bleu", predicted, gold)
    if max_order < 1 or epsilon < 0:
        raise ValueError(f"bleu needs max_order >= 1 and epsilon >= 0; got {max_order} and {epsilon}")
    written, reference = sum(map(len, predicted)), sum(map(len, gold))
    precisions = []
    for n in range(1, max_order + 1):
        shared = sum(_shared(p, g, n) for p, g in zip(predicted, gold, strict=True))
        total = sum(max(len(p) - n + 1, 0) for p in predicted)
        if not shared and (n == 1 or not epsilon):
            return 0.0
        precisions.append((shared or epsilon) / max(total, 1))  # eq. (1)
    brevity = min(0.0, 1 - reference / written)
    return math.exp(brevity + sum(map(math.log, precisions)) / max_order)  # eq. (2)


def rouge_n(predicted: Tokens, gold: Tokens, n: int = 1) -> Score:
    """Precision, recall and F1 of the n-grams of one text, eq. (3).

    Args:
        predicted: the text.
        gold: its reference.
        n: length of the n-grams, at least 1.

    Returns:
        A Score; support counts the reference's n-grams.

    Raises:
        ValueError: n is below 1.

    >>> rouge_n("abab", "abb", 1).f1, rouge_n("abab", "abb", 2).recall  # a b b of 4 and 3; of ab, bb only ab
    (0.8571428571428571, 0.5)
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 token, got {n}; ROUGE-1, ROUGE-2 and ROUGE-L are usual")
    return score_from_counts(_shared(predicted, gold, n), max(len(predicted) - n + 1, 0), max(len(gold) - n + 1, 0))


def rouge_l(predicted: Tokens, gold: Tokens) -> Score:
    """Precision, recall and F1 of the longest common subsequence of one text, eq. (4).

    Args:
        predicted: the text.
        gold: its reference.

    Returns:
        A Score; support counts the reference's tokens.

    >>> rouge_l("axbc", "abcd")  # a b c
    Score(precision=0.75, recall=0.75, f1=0.75, support=4)
    """
    return score_from_counts(lcs_length(predicted, gold), len(predicted), len(gold))  # eq. (4)


def lcs_length(first: Tokens, second: Tokens) -> int:
    """Length of the longest sequence of tokens that both texts hold in this order, gaps allowed.

    Args:
        first: a text.
        second: another.

    Returns:
        Tokens; `danlu.data.longest_common_subsequence` also says which.

    >>> lcs_length("abcbdab", "bdcaba")
    4
    """
    marks: dict[Hashable, int] = {}
    for place, token in enumerate(second):
        marks[token] = marks.get(token, 0) | 1 << place
    ones = row = (1 << len(second)) - 1  # bit j is 0 where the count rises from j to j + 1 tokens of `second`
    for token in first:
        match = row & marks.get(token, 0)
        row = ((row + match) | (row - match)) & ones
    return len(second) - row.bit_count()


def distinct_n(texts: Sequence[Tokens], n: int = 2) -> float:
    """Share of different n-grams among all n-grams of some texts, eq. (5): low where texts are alike.

    Args:
        texts: any number; it falls with their number, so compare equal numbers.
        n: length of the n-grams, at least 1.

    Returns:
        In [0, 1]; 0 where no text has n tokens.

    Raises:
        ValueError: n is below 1.

    >>> distinct_n(["abc", "abd"], 2)  # ab, bc, ab, bd
    0.75
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 token, got {n}; 1 and 2 are usual")
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0  # eq. (5)


def position_accuracy(predicted: Sequence[Tokens], gold: Sequence[Tokens]) -> list[float]:
    """Share of right tokens at every position, eq. (6).

    Args:
        predicted: texts; what one lacks of its reference's length is wrong.
        gold: as many references.

    Returns:
        One number a position of the longest reference.

    Raises:
        ValueError: as many references as texts are needed.

    >>> position_accuracy(["ab", "x"], ["ab", "ab"])
    [0.5, 0.5]
    """
    _check_pairs("position_accuracy", predicted, gold)
    shares = []
    for t in range(max(map(len, gold), default=0)):
        right = [t < len(p) and p[t] == g[t] for p, g in zip(predicted, gold, strict=True) if t < len(g)]
        shares.append(sum(right) / len(right))  # eq. (6)
    return shares


def _grams(text: Tokens, n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def _shared(predicted: Tokens, gold: Tokens, n: int) -> int:
    """n-grams that both have, each as often as both have it."""
    return (Counter(_grams(predicted, n)) & Counter(_grams(gold, n))).total()


def _check_pairs(name: str, predicted: Sequence[Tokens], gold: Sequence[Tokens]) -> None:
    if isinstance(predicted, str) or isinstance(gold, str):
        raise ValueError(f"{name} takes lists of texts, got one text; write [text] for a single one")
    if len(predicted) != len(gold):
        raise ValueError(f"{name} needs one reference a text; got {len(predicted)} texts and {len(gold)} references")
