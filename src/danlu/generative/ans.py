r"""Asymmetric numeral systems: a stack of bits that gives and takes symbols at the length that a distribution says.

    push (start, freq) of 2^r      s' = floor(s / freq) 2^r + s mod freq + start                              (1)
    pop                            c = s mod 2^r, the symbol with start <= c < start + freq,
                                   s' = freq floor(s / 2^r) + c - start                                       (2)
    2^64 <= s < 2^96, words of 32 bits go to and come from the stack                                          (3)
    cum_k = round((2^r - L) F_k) + k,   F_k = P(level < k)                                                    (4)

A push adds r - log2 freq bits to within 2^-32, whatever number of bits that is; a pop takes them away and so draws a
symbol from the distribution, exactly undone by the push (bits back). Last in, first out. Every level gets a frequency
of 1 at least by (4), so that anything can be stored, at a loss below L 2^-r.

Frequencies are whole numbers: both sides must compute the same ones, from the same model on the same kind of machine.

Source: Duda, 2013, arXiv:1311.2540; Townsend, Bird and Barber, 2019, arXiv:1901.04866.
Shapes: n symbols, L levels.
"""

from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ["BitStack", "cumulative_frequencies"]
WORD = 32
_MASK = (1 << WORD) - 1
LOW = 1 << 64  # the least state between two operations, eq. (3)


class BitStack:
    """The stack. Starts with what a file held, or with as little as a state can hold.

    Args:
        words: as `words` gave them, the state's three words last; None: an empty stack.
        feed: words of 32 bits for whoever takes more than is there; they lie at the bottom from then on. Without it
            that is an error.

    Raises:
        ValueError: words that are no stack.

    >>> stack = BitStack()
    >>> stack.push(3, 1, 4)  # level 1, of probability 1/16
    >>> stack.push(4, 12, 4)  # level 2, of probability 12/16
    >>> stack.pop([0, 3, 4, 16]), round(stack.bits, 2)
    (2, 68.0)
    """

    def __init__(self, words: Sequence[int] | np.ndarray | None = None, feed: Iterator[int] | None = None) -> None:
        self.state, self.stack, self.feed, self.fed = LOW, list[int](), feed, 0
        if words is not None:
            *below, low, middle, high = (int(word) for word in words)
            self.state, self.stack = high << 64 | middle << WORD | low, below
            if self.state < LOW:
                raise ValueError("these words are no bit stack: its state is below 2^64")

    @property
    def bits(self) -> float:
        """What the stack holds, its state included."""
        return WORD * len(self.stack) + float(np.log2(float(self.state)))

    def words(self) -> np.ndarray:
        """Everything, as uint32 words."""
        state = [self.state >> shift & _MASK for shift in (0, 32, 64)]
        return np.array([*self.stack, *state], dtype="<u4")

    def push(self, start: int, freq: int, precision: int) -> None:
        """Put a symbol on top, eq. (1).

        Args:
            start: sum of the frequencies before the symbol.
            freq: of the symbol, >= 1.
            precision: r, the frequencies sum to 2^r; at most 32.
        """
        if self.state >= freq << (96 - precision):  # eq. (3): the result would not fit
            self.stack.append(self.state & _MASK)
            self.state >>= WORD
        self.state = (self.state // freq << precision) + self.state % freq + start

    def peek(self, precision: int) -> int:
        """c of eq. (2): where in 2^r the symbol on top lies."""
        return self.state & ((1 << precision) - 1)

    def drop(self, start: int, freq: int, precision: int) -> None:
        """Take the symbol from the top whose place `peek` gave, eq. (2).

        Args:
            start: sum of the frequencies before the symbol.
            freq: of the symbol.
            precision: r.

        Raises:
            ValueError: the stack is used up: more was taken than put in.
        """
        self.state = freq * (self.state >> precision) + (self.state & ((1 << precision) - 1)) - start
        if self.state < LOW:
            if not self.stack and self.feed is not None:
                self.stack.append(next(self.feed))
                self.fed += 1
            if not self.stack:
                raise ValueError("the bit stack is used up: truncated data, or bits back before there were enough")
            self.state = self.state << WORD | self.stack.pop()

    def pop(self, cumulative: Sequence[int] | np.ndarray) -> int:
        """Take one symbol from the top.

        Args:
            cumulative: (L + 1,) sums of frequencies, from 0 to a power of 2.

        Returns:
            The level.
        """
        precision = int(cumulative[-1]).bit_length() - 1
        level = int(np.searchsorted(cumulative, self.peek(precision), side="right")) - 1
        self.drop(int(cumulative[level]), int(cumulative[level + 1] - cumulative[level]), precision)
        return level

    def push_all(self, levels: np.ndarray, cumulative: np.ndarray) -> None:
        """Put symbols on, the last first, so that `pop_all` gives them in order.

        Args:
            levels: (n,) whole numbers.
            cumulative: (n, L + 1) sums of frequencies, from 0 to one power of 2.
        """
        if not len(levels):
            return
        precision = int(cumulative[0, -1]).bit_length() - 1
        rows = np.arange(len(levels))
        starts = cumulative[rows, levels]
        freqs = cumulative[rows, levels + 1] - starts
        for start, freq in zip(starts[::-1].tolist(), freqs[::-1].tolist(), strict=True):
            self.push(start, freq, precision)

    def pop_all(self, cumulative: np.ndarray) -> np.ndarray:
        """Take n symbols.

        Args:
            cumulative: (n, L + 1) sums of frequencies, from 0 to one power of 2.

        Returns:
            (n,) int64.
        """
        return np.array([self.pop(row) for row in cumulative], dtype=np.int64)


def cumulative_frequencies(cdf: np.ndarray, precision: int) -> np.ndarray:
    """Whole numbers for a coder from probabilities, eq. (4).

    Args:
        cdf: (..., L + 1) P(level < k) for k = 0 ... L, from 0 to 1, not falling.
        precision: r; L must be below 2^r.

    Returns:
        int64 of the same shape, from 0 to 2^r, rising everywhere.

    Raises:
        ValueError: more levels than 2^r, or no distribution.

    >>> cumulative_frequencies(np.array([0.0, 0.5, 1.0, 1.0]), 4)
    array([ 0,  7, 15, 16])
    """
    levels = cdf.shape[-1] - 1
    if levels >= 1 << precision:
        raise ValueError(f"{levels} levels do not fit into frequencies that sum to 2^{precision}")
    if cdf.size and not (np.all(np.diff(cdf) >= 0) and np.all(cdf[..., 0] == 0) and np.all(cdf[..., -1] == 1)):
        raise ValueError("a distribution function must rise from 0 to 1, without NaN")
    return np.rint(cdf * ((1 << precision) - levels)).astype(np.int64) + np.arange(levels + 1)
