r"""What one can see of a passage without reading it: where it repeats the question and the other passages.

    m_t = 1 if the token p_t occurs in the question, else 0                                                      (1)
    o_t = share of the other passages that hold p_t                                                              (2)
    j_t = |Q & W_t| / |Q u W_t|              sets of tokens of the question and of the window at t               (3)
    e_t = 1 / (1 + d(Q, W_t))                d: fewest insertions, deletions and replacements                    (4)
    e_t = 1 - d(Q, W_t) / max(|Q|, |W_t|)    the other way to make d relative                                    (5)

The window W_t is as long as the question and is cut at the ends of the passage. The post tells neither where it sits
nor how d is made relative; its worked example ends at 0 and has values like 1 / (1 + d). Here the window is centred by
default, `window="start"` lets it begin at t; `relative` chooses between (4) and (5). The post computes all four for
words and for characters; tokens are whatever the caller cuts.

Source: kexue.fm/archives/5409, where eight such features are worth about two points; the distance is Levenshtein's.
Shapes: T tokens of a passage, S tokens of the question, F features.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["evidence_features", "passage_overlap", "question_overlap", "window_edit_similarity", "window_jaccard"]


def question_overlap(question: Sequence[str], passage: Sequence[str]) -> Tensor:
    """Whether each token of the passage occurs in the question, eq. (1).

    Args:
        question: tokens, or a text (its characters).
        passage: the same.

    Returns:
        (T,) float32 of 0 and 1.

    >>> question_overlap("谁在", "我在这")
    tensor([0., 1., 0.])
    """
    asked = set(question)
    return torch.tensor([float(token in asked) for token in passage])  # eq. (1)


def passage_overlap(passages: Sequence[Sequence[str]]) -> list[Tensor]:
    """For each token of each passage the share of the other passages that hold it, eq. (2).

    Args:
        passages: tokens of every passage of one question.

    Returns:
        A (T,) float32 for each; zeros where there is no other passage.

    >>> passage_overlap(["ab", "bc", "b"])
    [tensor([0., 1.]), tensor([1., 0.]), tensor([1.])]
    """
    held = Counter(token for passage in passages for token in set(passage))
    others = max(1, len(passages) - 1)
    return [torch.tensor([(held[token] - 1) / others for token in passage]) for passage in passages]  # eq. (2)


def window_jaccard(question: Sequence[str], passage: Sequence[str], window: str = "centre") -> Tensor:
    """How alike the tokens of the question and of a window at each place are as sets, eq. (3).

    Args:
        question: tokens, or a text.
        passage: the same.
        window: "centre" puts the place in its middle, "start" at its beginning.

    Returns:
        (T,) float32 in [0, 1].

    Raises:
        ValueError: an unknown window.

    >>> window_jaccard("ab", "abxx", "start")  # {a, b}, {b, x}, {x}, {x}
    tensor([1.0000, 0.3333, 0.0000, 0.0000])
    """
    asked = set(question)
    values = []
    counts: Counter[str] = Counter()
    common, begin, end = 0, 0, 0
    for first, last in _windows(len(question), len(passage), window):
        for token in passage[end:last]:
            counts[token] += 1
            common += counts[token] == 1 and token in asked
        for token in passage[begin:first]:
            counts[token] -= 1
            if not counts[token]:
                del counts[token]
                common -= token in asked
        begin, end = first, last
        union = len(asked) + len(counts) - common
        values.append(common / union if union else 0.0)  # eq. (3)
    return torch.tensor(values, dtype=torch.float32)


def window_edit_similarity(
    question: Sequence[str], passage: Sequence[str], window: str = "centre", relative: str = "inverse"
) -> Tensor:
    """How few edits turn the question into a window at each place, eq. (4) or (5).

    Args:
        question: tokens, or a text.
        passage: the same.
        window: "centre" puts the place in its middle, "start" at its beginning.
        relative: "inverse" is (4), "length" is (5).

    Returns:
        (T,) float32 in [0, 1].

    Raises:
        ValueError: an unknown window, or neither (4) nor (5).

    >>> window_edit_similarity("ab", "abx", "start")  # distances 0, 2 and 2
    tensor([1.0000, 0.3333, 0.3333])
    """
    if relative not in ("inverse", "length"):
        raise ValueError(f"relative must be 'inverse' or 'length', got {relative!r}")
    size, total = len(question), len(passage)
    borders = np.array(_windows(size, total, window), np.int64).reshape(-1, 2)  # (T, 2)
    if not total or not size:
        return torch.zeros(total)
    number = {token: i for i, token in enumerate(dict.fromkeys([*question, *passage]))}
    asked = np.array([number[token] for token in question])
    text = np.array([number[token] for token in passage])
    lengths = borders[:, 1] - borders[:, 0]  # (T,)
    # every column of the table at once, all windows side by side; what lies behind a short window is not read
    row = np.tile(np.arange(size + 1)[:, None], (1, total))  # (S + 1, T): distance of Q[:i] to the empty window
    distance = np.where(lengths == 0, row[size], 0)
    for j in range(int(lengths.max())):
        token = text[np.minimum(borders[:, 0] + j, total - 1)]  # (T,)
        new = np.empty_like(row)
        new[0] = j + 1
        for i in range(size):
            replaced = row[i] + (asked[i] != token)
            new[i + 1] = np.minimum(np.minimum(row[i + 1], new[i]) + 1, replaced)
        row = new
        distance = np.where(lengths == j + 1, row[size], distance)
    if relative == "inverse":
        return torch.from_numpy(1 / (1 + distance)).float()  # eq. (4)
    return torch.from_numpy(1 - distance / np.maximum(size, lengths)).float()  # eq. (5)


def evidence_features(
    question: Sequence[str], passages: Sequence[Sequence[str]], window: str = "centre", relative: str = "inverse"
) -> list[Tensor]:
    """All four features of every passage of a question, eq. (1) to (5).

    Args:
        question: tokens, or a text.
        passages: the same for every passage.
        window: as in `window_jaccard`.
        relative: as in `window_edit_similarity`.

    Returns:
        A (T, 4) float32 for each: in the question, in other passages, Jaccard, edits.

    Raises:
        ValueError: an unknown window or measure.

    >>> evidence_features("ab", ["ab"], "start")[0][0].tolist()
    [1.0, 0.0, 1.0, 1.0]
    """
    shared = passage_overlap(passages)
    return [
        torch.stack(
            [
                question_overlap(question, passage),
                other,
                window_jaccard(question, passage, window),
                window_edit_similarity(question, passage, window, relative),
            ],
            dim=-1,
        )  # (T, 4)
        for passage, other in zip(passages, shared, strict=True)
    ]


def _windows(size: int, total: int, window: str) -> list[tuple[int, int]]:
    """(first, last) of the window at every place, last exclusive, cut at the ends of the passage."""
    if window not in ("centre", "start"):
        raise ValueError(f"window must be 'centre' or 'start', got {window!r}")
    before = (size - 1) // 2 if window == "centre" else 0
    return [(max(0, t - before), max(0, min(total, t - before + size))) for t in range(total)]
