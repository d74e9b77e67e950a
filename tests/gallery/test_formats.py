"""Numbers in print: by hand at every edge of every form; foreign text keeps its length and loses its teeth."""

import math

import pytest

from danlu.gallery.formats import count, duration, finite, number, p_value, ratio, signed, visible


@pytest.mark.parametrize("missing", [None, math.nan, "0.5", True, [1.0]])
def test_what_is_no_number_is_a_dash_everywhere(missing):
    assert finite(missing) is None
    assert [f(missing) for f in (number, signed, count, p_value, duration)] == ["–"] * 5
    assert ratio(missing, 1.0) == ratio(1.0, missing) == "–"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.94517, "0.9452"),
        (1, "1.0000"),
        (-0.00312, "−0.0031"),
        (0, "0.0000"),
        (-0.0, "0.0000"),
        (9.99991, "9.9999"),
        (12.345, "12.35"),
        (-1234.5, "−1,234"),
        (2e-5, "2.0 × 10⁻⁵"),
        (-2e-5, "−2.0 × 10⁻⁵"),
        (3.2e12, "3.2 × 10¹²"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (10**400, "–"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0031, "+0.0031"), (-0.0031, "−0.0031"), (0.0, "0.0000"), (12.5, "+12.50"), (2e-6, "+2.0 × 10⁻⁶")],
)
def test_signed(value, text):
    assert signed(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 s"),
        (9.99, "9.99 s"),
        (9.996, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (143, "2 min 23 s"),
        (3599.6, "1 h 00 min"),
        (3720, "1 h 02 min"),
    ],
)
def test_duration_never_prints_sixty(seconds, text):
    assert duration(seconds) == text


def test_counts_p_values_and_ratios():
    assert (count(1234567), count(0), count(2.6)) == ("1,234,567", "0", "3")
    assert (p_value(0.0123), p_value(0.000999), p_value(0.001), p_value(1)) == ("0.012", "< 0.001", "0.001", "1.000")
    assert (ratio(34, 20), ratio(0, 20), ratio(1, 0), ratio(1, -1)) == ("× 1.70", "× 0.00", "–", "–")


def test_visible_keeps_length_and_harmless_text():
    text = "中文 a\tb\n😂👨‍👩‍👧"
    assert visible(text) == text
    nasty = "\x00\x1b[31m\x85\ud800\u202e\u2066x"
    assert len(visible(nasty)) == len(nasty)
    assert visible(nasty) == "␀␛[31m����x"
    visible(nasty).encode("utf-8")
    assert (visible(None), visible(3)) == ("", "3")
