"""Repetition of a sequence: against loops written from the definitions, on every short sequence, and on known ones."""

import itertools

import pytest

from danlu.math import longest_repeat, loop_counts, loop_period, rep_w, seq_rep_n

SHORT = [x for n in range(7) for x in itertools.product(range(3), repeat=n)] + list(
    itertools.product(range(2), repeat=9)
)


def rep_w_by_hand(x, w):
    return sum(x[t] in x[max(t - w, 0) : t] for t in range(len(x))) / max(len(x), 1)


def longest_by_hand(x):
    runs = [x[i : i + k] for k in range(1, len(x)) for i in range(len(x) - k + 1)]
    return max((len(run) for run in runs if runs.count(run) > 1), default=0)


def period_by_hand(x, r):
    fitting = [p for p in range(1, len(x) + 1) if p * r <= len(x) and x[-p * r :] == x[-p:] * r]
    return min(fitting, default=0)


def loops_by_hand(x, longest):
    n = len(x)
    return [
        sum(t + 2 * k < n and x[t : t + k + 1] == x[t + k : t + 2 * k + 1] for k in range(1, longest + 1))
        for t in range(n)
    ]


def test_equal_the_definitions_on_every_short_sequence():
    for x in SHORT:
        for w in (1, 2, 5):
            assert rep_w(x, w) == pytest.approx(rep_w_by_hand(x, w)), x
        for r in (2, 3):
            assert loop_period(x, r) == period_by_hand(x, r), x
        assert longest_repeat(x) == longest_by_hand(x), x
        assert loop_counts(x) == loops_by_hand(x, 9), x
        assert loop_counts(x, 2) == loops_by_hand(x, 2), x


def test_seq_rep_n_counts_copies():
    assert seq_rep_n([1, 2, 3, 4], 2) == 0
    assert seq_rep_n([1] * 9, 2) == pytest.approx(7 / 8)  # eight bigrams, one of them distinct
    assert seq_rep_n(list("abcabc"), 3) == pytest.approx(1 / 4)
    assert seq_rep_n([1, 2], 4) == 0
    assert seq_rep_n([1, 1, 2, 2], 1) == 0.5


def test_long_loops_are_found_in_linear_time():
    x = [0, 5, *([1, 2, 3] * 20_000)]
    assert loop_period(x) == 3
    assert longest_repeat(x) == 3 * 20_000 - 3
    assert rep_w(x, 3) == pytest.approx(1 - 5 / len(x))


def test_strings_and_lists_give_the_same():
    text = "很好很好很好很好"
    assert longest_repeat(text) == longest_repeat(list(text)) == 6
    assert loop_period(text) == loop_period(list(text)) == 2
    assert rep_w(text) == 0.75


def test_empty_sequences_have_no_repetition():
    assert (rep_w([]), seq_rep_n([]), longest_repeat([]), loop_period([]), loop_counts([])) == (0, 0, 0, 0, [])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rep_w([1], 0), r"window must be at least 1 token, got 0; the paper uses 16"),
        (lambda: seq_rep_n([1], 0), r"n must be at least 1 token, got 0; 4 is usual"),
        (lambda: loop_period([1], 1), r"repeats must be at least 2 copies, got 1; one copy is no loop"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
