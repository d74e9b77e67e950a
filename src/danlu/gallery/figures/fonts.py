r"""Letters of the pictures: a font for Latin, one for Chinese, Japanese and Korean, and no empty boxes in silence.

Latin is drawn in DejaVu Sans, which comes with matplotlib, everything it lacks in the first of `CJK` that is installed.
What neither has is written as its code point, and a warning names it. In an SVG the letters stay letters, and the fonts
are the reader's.

Source: house rules. Shapes: no tensors.
"""

import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from danlu.gallery.formats import visible

__all__ = ["CJK", "families", "legible", "worded"]

LATIN = "DejaVu Sans"
CJK = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "PingFang SC", "Hiragino Sans GB",
    "Microsoft YaHei", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "SimHei", "Heiti SC", "STHeiti", "Noto Sans CJK JP",
    "Arial Unicode MS", "Droid Sans Fallback", "Noto Serif CJK SC", "SimSun", "AR PL UMing CN",
)  # fmt: skip


@lru_cache(maxsize=1)
def families() -> tuple[str, ...]:
    """Names of the fonts to draw with, the first that has a letter counts.

    Returns:
        DejaVu Sans, and the first of `CJK` that matplotlib finds, if there is one.

    >>> families()[0]
    'DejaVu Sans'
    """
    from matplotlib.font_manager import fontManager

    installed = {entry.name for entry in fontManager.ttflist}
    return (LATIN, *[name for name in CJK if name in installed][:1])


def worded(text: Any, longest: int = 40) -> str:
    r"""Text from outside as a picture may hold it: one line, of bounded length, nothing in it a formula or a command.

    Args:
        text: anything; str() is taken of it.
        longest: characters at most, an ellipsis among them.

    Returns:
        The text; a dollar sign carries a backslash, so that it is drawn as one.

    >>> worded("a$b\n")
    'a\\$b␊'
    """
    plain = visible(text).replace("\n", "␊").replace("\t", "␉")
    return (plain if len(plain) <= longest else plain[: longest - 1] + "…").replace("$", r"\$")


def legible(text: str, names: Iterable[str] | None = None) -> tuple[str, set[str]]:
    """A text with the letters that no font has written as code points.

    Args:
        text: what is to be drawn.
        names: of the fonts; None: `families()`.

    Returns:
        The text, and the letters that were replaced.

    >>> legible("abc")
    ('abc', set())
    """
    known = frozenset().union(*map(_letters, families() if names is None else names))
    lacking = {c for c in text if ord(c) not in known and not c.isspace()}
    return "".join(f"U+{ord(c):04X}" if c in lacking else c for c in text), lacking


def tell_lacking(lacking: set[str]) -> None:
    """Warn of letters that no installed font has."""
    if lacking:
        shown = " ".join(f"U+{ord(c):04X}" for c in sorted(lacking)[:5])
        warnings.warn(
            f"no installed font has {len(lacking)} of the characters ({shown}{' ...' * (len(lacking) > 5)}); they are "
            f"drawn as their code points. Install one of {', '.join(CJK[:4])}, or save as .svg, where the reader's "
            "fonts count",
            stacklevel=4,
        )


@lru_cache(maxsize=16)
def _letters(name: str) -> frozenset[int]:
    """Code points of a font."""
    from matplotlib.font_manager import FontProperties, fontManager, get_font

    font = get_font(fontManager.findfont(FontProperties(family=name), fallback_to_default=False))
    return frozenset(font.get_charmap())
