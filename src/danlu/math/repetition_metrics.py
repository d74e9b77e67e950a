r"""How much a generated sequence repeats itself: four numbers and the loops that begin at each of its positions.

    rep_w       = mean over t of [x_t is among x_{t-w} .. x_{t-1}]                                          (1)
    seq_rep_n   = 1 - |distinct n-grams| / |n-grams|                                                       (2)
    longest     = max length of a run of tokens that stands at two places (they may overlap)               (3)
    loop period = least p such that the sequence ends with r copies of its last p tokens                   (4)
    loops(t)    = number of k >= 1 with x_t .. x_{t+k} = x_{t+k} .. x_{t+2k}                                (5)

(1) and (2) lie in [0, 1] and also count what good text repeats; compare them with those of the training text. (4) sees
text that got stuck and nothing else. The mean of (5) over the places of a token is its repetition index, which
`danlu.probe.repetition_index` computes from bigrams without any sample.

Source: (1) Fu et al., 2021, arXiv:2012.14660; (2) Welleck et al., 2019, arXiv:1908.04319; (5) counts the repetitions of
    kexue.fm/archives/8128.
Shapes: sequences are lists of ids (any hashable tokens), one at a time.
"""

from collections.abc import Hashable, Sequence

import numpy as np

__all__ = ["longest_repeat", "loop_counts", "loop_period", "rep_w", "seq_rep_n"]


def rep_w(ids: Sequence[Hashable], window: int = 16) -> float:
    """Share of tokens that occurred among the `window` tokens before them, eq. (1).

    Args:
        ids: tokens of one sequence.
        window: how far to look back, in tokens, at least 1.

    Returns:
        In [0, 1]; 0 for an empty sequence.

    Raises:
        ValueError: window is below 1.

    >>> rep_w([7, 8, 7, 9], window=2)  # only the second 7 is a repetition
    0.25
    """
    if window < 1:
        raise ValueError(f"window must be at least 1 token, got {window}; the paper uses 16")
    last: dict[Hashable, int] = {}
    repeated = 0
    for t, token in enumerate(ids):
        repeated += t - last.get(token, t - window - 1) <= window  # eq. (1)
        last[token] = t
    return repeated / max(len(ids), 1)


def seq_rep_n(ids: Sequence[Hashable], n: int = 4) -> float:
    """Share of n-grams that are copies of another one, eq. (2).

    Args:
        ids: tokens of one sequence.
        n: length of the n-grams, at least 1.

    Returns:
        In [0, 1]; 0 for a sequence shorter than n.

    Raises:
        ValueError: n is below 1.

    >>> seq_rep_n([1, 2, 1, 2, 1], n=2)  # 12, 21, 12, 21
    0.5
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 token, got {n}; 4 is usual")
    total = len(ids) - n + 1
    if total < 1:
        return 0.0
    return 1 - len({tuple(ids[i : i + n]) for i in range(total)}) / total  # eq. (2)


def longest_repeat(ids: Sequence[Hashable]) -> int:
    """Length of the longest run of tokens that stands at two places, eq. (3); linear time (suffix automaton).

    Args:
        ids: tokens of one sequence.

    Returns:
        Tokens; 0 when all differ. The two places may overlap: n equal tokens give n - 1.

    >>> longest_repeat([1, 2, 3, 9, 1, 2, 3])
    3
    """
    following: list[dict[Hashable, int]] = [{}]  # of every state: token -> state
    link, size = [-1], [0]  # the state of the longest proper suffix that stands elsewhere too; longest run of the state
    last = longest = 0
    for token in ids:
        state = len(size)
        following.append({})
        size.append(size[last] + 1)
        link.append(0)
        p = last
        while p >= 0 and token not in following[p]:
            following[p][token] = state
            p = link[p]
        if p >= 0:
            q = following[p][token]
            if size[q] != size[p] + 1:  # q also stands for longer runs: part the short ones off
                clone = len(size)
                following.append(dict(following[q]))
                size.append(size[p] + 1)
                link.append(link[q])
                link[q] = clone
                while p >= 0 and following[p].get(token) == q:
                    following[p][token] = clone
                    p = link[p]
                q = clone
            link[state] = q
            longest = max(longest, size[q])  # eq. (3): the longest end of x_1 .. x_t that stood before
        last = state
    return longest


def loop_period(ids: Sequence[Hashable], repeats: int = 3) -> int:
    """Least period of the loop in which a sequence ends, eq. (4).

    Args:
        ids: tokens of one sequence, without the end token.
        repeats: copies that make a loop, at least 2.

    Returns:
        Tokens; 0 when the sequence does not end in a loop.

    Raises:
        ValueError: repeats is below 2.

    >>> loop_period([5, 1, 2, 1, 2, 1, 2]), loop_period([1, 2, 1, 2, 3])
    (2, 0)
    """
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2 copies, got {repeats}; one copy is no loop")
    for period in range(1, len(ids) // repeats + 1):
        tail = ids[len(ids) - repeats * period :]
        if tail[period:] == tail[:-period]:  # eq. (4)
            return period
    return 0


def loop_counts(ids: Sequence[int], max_length: int | None = None) -> list[int]:
    """Number of loops that begin at each position, eq. (5).

    Args:
        ids: integer tokens of one sequence.
        max_length: longest loop k looked for, in tokens; None looks for all that fit.

    Returns:
        One number a position.

    >>> loop_counts([3, 3, 3, 3])  # k = 1 takes three tokens, k = 2 would need five
    [1, 1, 0, 0]
    """
    x = np.asarray(ids)
    counts = np.zeros(len(x), np.int64)
    longest = (len(x) - 1) // 2 if max_length is None else min(max_length, (len(x) - 1) // 2)
    for k in range(1, longest + 1):
        same = np.concatenate([[0], np.cumsum(x[k:] == x[:-k])])  # matches at distance k before each place
        counts[: len(x) - 2 * k] += same[k + 1 :] - same[: -k - 1] == k + 1  # eq. (5)
    return [int(c) for c in counts]
