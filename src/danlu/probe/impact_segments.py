r"""Word segmentation out of impacts: a text is cut where neighbours hardly touch each other.

    cut between i and i+1  iff  c_i < tau,      c_i = (F[i, i+1] + F[i+1, i]) / 2                               (1)
    length:  tau such that  pieces / words = mean_length  over all texts                                        (2)
    otsu:    tau that parts the c of all texts into two groups with the largest variance between their means     (3)

tau is a number of one model, one layer and one distance, 8 for the post's; (2) and (3) find it without labels. The cuts
of a corpus also make a lexicon: count the words, drop the rare ones, and give the rest to any dictionary segmenter.

Source: kexue.fm/archives/7476, (1) and the lexicon; Otsu, 1979, (3); (2) ours.
Shapes: W pieces of a text, W - 1 scores.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["THRESHOLDS", "build_lexicon", "cut_threshold", "cut_words"]

THRESHOLDS = ("length", "otsu")


def cut_threshold(scores: Sequence[Tensor], method: str = "length", mean_length: float = 1.6) -> float:
    """tau of eq. (1) for a corpus, without labels, by eq. (2) or (3).

    Args:
        scores: the c of each text, (W - 1,) each, (0,) of a text of one piece; every tensor stands for one text.
        method: "length" or "otsu".
        mean_length: pieces of a word on average, at least 1, for "length"; Chinese has about 1.6 characters.

    Returns:
        A threshold halfway between two scores; -inf where nothing is to be cut, inf where everything is.

    Raises:
        ValueError: an unknown method, a mean length below 1, no scores, or a score that is nan.

    >>> cut_threshold([torch.tensor([1.0, 9.0, 2.0, 8.0])], mean_length=2.0)  # 5 pieces, 2.5 words: 1.5 cuts, so 2
    5.0
    """
    if method not in THRESHOLDS or not mean_length >= 1:
        raise ValueError(
            f"method must be one of {', '.join(THRESHOLDS)} and mean_length at least 1; got {method!r} and "
            f"{mean_length}"
        )
    values = torch.cat([torch.as_tensor(s, dtype=torch.float64).flatten() for s in scores]) if len(scores) else None
    if values is None or not len(values) or bool(values.isnan().any()):
        raise ValueError(
            f"cut_threshold needs scores that are numbers; got {0 if values is None else len(values)} of "
            f"{len(scores)} texts{', some of them nan' * (values is not None and len(values) > 0)}"
        )
    values = values.sort().values
    if method == "length":
        pieces = len(values) + len(scores)
        cuts = min(max(round(pieces / mean_length - len(scores)), 0), len(values))  # eq. (2)
    else:
        below = torch.arange(1, len(values), dtype=torch.float64)  # scores in the lower group
        if not len(below):
            return torch.inf
        total, low = values.sum(), values.cumsum(0)[:-1]
        apart = low / below - (total - low) / (len(values) - below)  # difference of the means
        cuts = int((below * (len(values) - below) * apart**2).argmax()) + 1  # eq. (3)
    if cuts == 0:
        return -torch.inf
    if cuts == len(values):
        return torch.inf
    return float((values[cuts - 1] + values[cuts]) / 2)


def cut_words(texts: Sequence[str], scores: Tensor | Sequence[float], threshold: float) -> list[str]:
    """The words of one text, eq. (1).

    Args:
        texts: what the pieces stand for, W of them.
        scores: (W - 1,) the c between them.
        threshold: tau.

    Returns:
        Words in order, joined they give the text.

    Raises:
        ValueError: there are not W - 1 scores.

    >>> cut_words("大肠杆菌是", [9.0, 9.5, 12.0, 3.0], 8.0)
    ['大肠杆菌', '是']
    """
    values = scores.tolist() if isinstance(scores, Tensor) else list(scores)
    if len(values) != max(len(texts) - 1, 0):
        raise ValueError(f"{len(texts)} pieces have {max(len(texts) - 1, 0)} places to cut, got {len(values)} scores")
    words = list(texts[:1])
    for piece, score in zip(texts[1:], values, strict=True):
        if score < threshold:  # eq. (1)
            words.append(piece)
        else:
            words[-1] += piece
    return words


def build_lexicon(sentences: Iterable[Sequence[str]], min_count: int = 2, min_length: int = 2) -> dict[str, int]:
    """Words that a segmented corpus holds again and again, for a dictionary segmenter.

    Args:
        sentences: words of each sentence.
        min_count: rarer words are dropped, at least 1.
        min_length: shorter words are dropped, in characters; blanks around a word do not count.

    Returns:
        Word -> count, the frequent ones first, equal ones in the order of their characters.

    Raises:
        ValueError: a minimum below 1.

    >>> build_lexicon([["大肠", "是"], ["大肠", "是"], ["细菌"]])
    {'大肠': 2}
    """
    if min_count < 1 or min_length < 1:
        raise ValueError(f"min_count and min_length must be at least 1, got {min_count} and {min_length}")
    counts = Counter(word.strip() for words in sentences for word in words)
    kept = [(word, n) for word, n in counts.items() if n >= min_count and len(word) >= min_length]
    return dict(sorted(kept, key=lambda pair: (-pair[1], pair[0])))
