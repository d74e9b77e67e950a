r"""Colours of the pictures: those of the report pages, and two scales that grow evenly to the eye.

    L*a*b* of an sRGB colour by CIE 1976, white point D65                                                      (1)
    distance of two colours = || Lab - Lab' ||                                                                 (2)
    scale(t) = the colour at share t of the length of the line through the anchors in Lab, by (2)              (3)

One scale for what starts at zero, which is the colour of the paper, and one for what has a sign: vermilion below, blue
above, paper at the middle. Lightness falls (in the dark: rises) all the way from the paper, so the order is read
without any hue, in print and by colour-blind readers.

Source: CIE 15:2004; palette after Okabe and Ito, 2008, "Color Universal Design".
Shapes: no tensors.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

__all__ = ["DARK", "LIGHT", "Look", "lab", "scale_colours"]

STEPS = 256
WHITE = np.array([0.95047, 1.0, 1.08883])
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


@dataclass(frozen=True)
class Look:
    """The colours of one theme, as in charts.css; `positive` and `negative` are the anchors of eq. (3)."""

    paper: str
    wash: str
    ink: str
    soft: str
    rule: str
    series: tuple[str, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...]

    @property
    def right(self) -> str:
        """Of what agrees with gold, supports, comes first."""
        return self.series[0]

    @property
    def wrong(self) -> str:
        """Of what does not."""
        return self.series[1]


LIGHT = Look(
    "#fdfcfa", "#f4f2ed", "#1d1c1a", "#5c5954", "#d9d5cc",
    ("#00639b", "#b24a00", "#8f3f70", "#7a5500", "#2b7a64", "#6b6862"),
    ("#fdfcfa", "#6aaed8", "#00639b", "#04304f"), ("#fdfcfa", "#e59a5c", "#b24a00", "#5c2500"),
)  # fmt: skip
DARK = Look(
    "#161614", "#20201d", "#e9e6df", "#a8a49b", "#3b3a36",
    ("#6bb8ea", "#f0924d", "#dc92bd", "#e6ae3c", "#63c2a5", "#a09c94"),
    ("#161614", "#1f6fa8", "#6bb8ea", "#e2f2fc"), ("#161614", "#a34a0c", "#f0924d", "#fdeadb"),
)  # fmt: skip


def lab(rgb: Any) -> Any:
    """L*a*b* of colours, eq. (1).

    Args:
        rgb: (..., 3) sRGB in [0, 1].

    Returns:
        (..., 3) array: lightness in [0, 100], green to red, blue to yellow.

    >>> lab([1.0, 1.0, 1.0]).round(2)[0].item()
    100.0
    """
    c = np.asarray(rgb, dtype=np.float64)
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    t = linear @ TO_XYZ.T / WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


@lru_cache(maxsize=8)
def scale_colours(look: Look, signed: bool = False) -> Any:
    """The colours of a scale from its low end to its high end, eq. (3).

    Args:
        look: `LIGHT` or `DARK`.
        signed: a scale for numbers of both signs, the paper in the middle.

    Returns:
        (256, 3) array of sRGB, or (511, 3) for a signed one.

    >>> scale_colours(LIGHT).shape, scale_colours(LIGHT, signed=True).shape
    ((256, 3), (511, 3))
    """
    up = _line(look.positive)
    return np.concatenate([_line(look.negative)[:0:-1], up]) if signed else up


def _line(anchors: tuple[str, ...]) -> Any:
    """Colours at equal steps of distance along the anchors."""
    points = lab([[int(a[i : i + 2], 16) / 255 for i in (1, 3, 5)] for a in anchors])
    along = np.concatenate([[0.0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])  # eq. (2)
    t = np.linspace(0.0, along[-1], STEPS)
    return _rgb(np.stack([np.interp(t, along, points[:, i]) for i in range(3)], axis=-1))  # eq. (3)


def _rgb(colours: Any) -> Any:
    """The inverse of eq. (1), cut off at what a screen shows."""
    y = (colours[..., 0] + 16) / 116
    f = np.stack([y + colours[..., 1] / 500, y, y - colours[..., 2] / 200], axis=-1)
    xyz = WHITE * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    linear = np.clip(xyz @ np.linalg.inv(TO_XYZ).T, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
