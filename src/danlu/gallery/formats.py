r"""Numbers and foreign text as a report page prints them.

A page mixes scores, counts, times and ratios; each kind has one form, so that columns line up and a missing value
looks the same everywhere: None and NaN are an en dash. Minus is U+2212, as wide as a plus.

Source: none, house rules. Shapes: plain Python values.
"""

import datetime
import math
import re
from typing import Any

__all__ = [
    "count", "duration", "finite", "language", "metric_name", "moment", "number", "p_value", "ratio", "signed",
    "visible",
]  # fmt: skip

MISSING = "–"
METRIC_NAMES = {
    "f1": "F1",
    "precision": "Precision",
    "recall": "Recall",
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "loss": "Loss",
    "ece": "Calibration error (ECE)",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "rmse": "Root mean square error",
    "em": "Exact match",
    "webqa_score": "WebQA score",
    "score": "Score",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
}
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# What HTML cannot hold (C0 and C1 controls, lone surrogates) and what turns the reading direction of text after it.
UNSAFE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)


def finite(value: Any) -> float | None:
    """The value as a float, or None where it is not a finite number (None, NaN, infinite, a bool, text).

    Args:
        value: anything a record may hold.

    Returns:
        float or None.

    >>> finite(3), finite(float("nan")), finite("3"), finite(True)
    (3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def number(value: Any) -> str:
    """A measured value: four decimals below 10, two below 1000, none above; tiny values as a power of ten.

    Args:
        value: a number, or None or NaN for "not measured".

    Returns:
        The text; an en dash where there is no number.

    >>> number(0.94517), number(-1.5), number(1234.5), number(2e-5), number(None)
    ('0.9452', '−1.5000', '1,234', '2.0 × 10⁻⁵', '–')
    """
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    x = finite(value)
    if x is None:
        return MISSING
    if abs(x) >= 1e9 or 0 < abs(x) < 5e-5:
        mantissa, exponent = f"{x:.1e}".split("e")
        return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPT)}".replace("-", "−", 1)
    decimals = 4 if abs(x) < 10 else 2 if abs(x) < 1000 else 0
    text = f"{x:,.{decimals}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def signed(value: Any) -> str:
    """`number` with its sign always shown, for differences.

    Args:
        value: a number, or None or NaN for "not measured".

    Returns:
        The text, with + or U+2212 in front unless it rounds to zero.

    >>> signed(0.0031), signed(-0.0031), signed(0.0)
    ('+0.0031', '−0.0031', '0.0000')
    """
    text = number(value)
    positive = isinstance(value, int | float) and value > 0 and text.strip("0.,")
    return f"+{text}" if positive and text != MISSING else text


def count(value: Any) -> str:
    """A count with thousands parted by commas.

    Args:
        value: an integer (a float is rounded), or None for "not counted".

    Returns:
        The text; an en dash where there is no number.

    >>> count(1234567), count(None)
    ('1,234,567', '–')
    """
    x = finite(value)
    return MISSING if x is None else f"{round(x):,}".replace("-", "−")


def p_value(value: Any) -> str:
    """A p-value: three decimals, "< 0.001" below that.

    Args:
        value: a probability, or None for "not tested".

    Returns:
        The text.

    >>> p_value(0.0123), p_value(0.0004), p_value(1.0)
    ('0.012', '< 0.001', '1.000')
    """
    x = finite(value)
    if x is None:
        return MISSING
    return "< 0.001" if x < 0.001 else f"{x:.3f}"


def duration(value: Any) -> str:
    """A time in the two largest units that say something.

    Args:
        value: seconds, or None for "not timed".

    Returns:
        The text.

    >>> duration(0.42), duration(12.34), duration(143), duration(3720)
    ('0.42 s', '12.3 s', '2 min 23 s', '1 h 02 min')
    """
    x = finite(value)
    if x is None:
        return MISSING
    if x < 59.95:
        return f"{x:.2f} s" if x < 9.995 else f"{x:.1f} s"
    whole = round(x)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(x / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def ratio(value: Any, baseline: Any) -> str:
    """How many times the baseline a cost is.

    Args:
        value: the cost.
        baseline: the cost it is measured against, > 0.

    Returns:
        The text; an en dash where either is missing or the baseline is zero.

    >>> ratio(34.0, 20.0), ratio(34.0, 0)
    ('× 1.70', '–')
    """
    x, base = finite(value), finite(baseline)
    return MISSING if x is None or not base or base < 0 else f"× {x / base:,.2f}"


def visible(value: Any) -> str:
    r"""Text that came from outside, with what HTML cannot hold or what would reorder the page made harmless.

    Control characters become their pictures (U+2400 and on), the rest of the unsafe ones U+FFFD. Escaping of markup is
    left to whoever writes the markup; the length in characters stays as it was, so offsets into the text hold.

    Args:
        value: anything; str() is taken of it, None is the empty text.

    Returns:
        Text of the same length.

    >>> visible("a\x07b<"), len(visible("\u202eabc"))
    ('a␇b<', 4)
    """
    text = "" if value is None else str(value)
    return UNSAFE.sub(lambda m: chr(0x2400 + ord(m.group())) if ord(m.group()) < 0x20 else "\ufffd", text)


def metric_name(key: str) -> str:
    """How a metric is called in print.

    Args:
        key: of a record.

    Returns:
        Its name; of one that is not known the key with blanks for underscores.

    >>> metric_name("f1"), metric_name("my_score")
    ('F1', 'my score')
    """
    return METRIC_NAMES.get(key, str(key).replace("_", " "))


def moment(text: Any) -> str:
    """A time stamp for people: minutes are enough, UTC by name.

    Args:
        text: an ISO time, with or without a zone.

    Returns:
        The text; what is no ISO time stays as it is.

    >>> moment("2026-01-31T23:30:59-01:00"), moment("yesterday")
    ('2026-02-01 00:30 UTC', 'yesterday')
    """
    try:
        when = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    if when.tzinfo is None:
        return f"{when:%Y-%m-%d %H:%M}"
    return f"{when.astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def language(text: Any) -> str:
    """The language to announce for a foreign text.

    Args:
        text: anything; str() is taken of it.

    Returns:
        "zh" where it has Han characters and no kana or hangul, else the empty text.

    >>> language("中文"), language("かな文"), language("text")
    ('zh', '', '')
    """
    codes = [ord(c) for c in str(text)]
    if any(0x3040 <= c <= 0x30FF or 0xAC00 <= c <= 0xD7AF for c in codes):
        return ""
    return "zh" if any(0x3400 <= c <= 0x9FFF or 0x20000 <= c <= 0x3FFFF for c in codes) else ""
