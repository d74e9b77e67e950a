r"""Vectors as points: a map of the two directions of largest variance, and directions on a sphere.

A map says how much of the variance it holds; what is near on it need not be near. Groups differ by colour and by the
shape of the mark; on the sphere, what is on the far side is small and pale.

Source: house rules. Shapes: N vectors, D features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.gallery.figures.fonts import worded
from danlu.gallery.figures.layout import plane
from danlu.gallery.figures.sheet import Sheet, as_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_embedding", "plot_sphere"]

MARKS = "os^Dv*PX<>"
NAMED = 80  # points with a label at most
DRAWN = 20_000  # points of a map at most


def plot_embedding(
    vectors: Any,
    labels: Sequence[str] | None = None,
    groups: Sequence[Any] | None = None,
    *,
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """Vectors as points on the plane of their largest variance.

    Args:
        vectors: (N, D); rows that are not finite are left out and counted.
        labels: N texts, written where there are at most 80 points.
        groups: N names of groups, such as classes; the ten largest have a colour and a mark, others are grey.
        title: over the picture.
        ax: axes to draw in; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure; of more than 20,000 points some, evenly.

    Raises:
        ValueError: labels or groups of another number, no finite row.

    >>> plot_embedding([[0.0, 1.0], [2.0, 1.0]], ["a", "b"]).axes[0].get_xlabel()[:18]
    'first direction of'
    """
    array = as_array(vectors, "vectors", 2)
    kept = _rows(array, labels, groups)
    sheet = Sheet((6.2, 5.2), title, ax, path, dark)
    flat, share = plane(array[kept])
    _tell_left_out(sheet, len(array), kept)
    _scatter(sheet, flat, kept, labels, groups, depth=None)
    sheet.plain(
        sheet.ax, "first direction of largest variance", f"second (both hold {100 * share:.0f} % of it)", grid="both"
    )
    sheet.ax.margins(0.09)
    sheet.ax.set_aspect("equal", adjustable="datalim")
    return sheet.done()


def plot_sphere(
    vectors: Any,
    labels: Sequence[str] | None = None,
    groups: Sequence[Any] | None = None,
    *,
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """Directions as points on a sphere seen from afar; what is on the far side is small and pale.

    Args:
        vectors: (N, 3), or (N, D): then on the three directions of the largest second moment; lengths are set to 1.
        labels: as of `plot_embedding`, for the near side.
        groups: as of `plot_embedding`.
        title: over the picture.
        ax: axes to draw in; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure.

    Raises:
        ValueError: labels or groups of another number, no finite row other than 0, fewer than 3 features.

    >>> len(plot_sphere([[0.0, 0.0, 2.0]], ["a"]).axes[0].texts)
    1
    """
    array = as_array(vectors, "vectors", 2)
    if array.shape[1] < 3:
        raise ValueError(f"a sphere needs vectors of at least 3 features, got {array.shape}; use plot_embedding")
    kept = _rows(array, labels, groups)
    sheet = Sheet((5.4, 5.2), title, ax, path, dark)
    lengths = np.linalg.norm(array[kept], axis=1)
    kept = kept[lengths > 0]
    if not len(kept):
        raise ValueError("all vectors are 0 and have no direction")
    unit = array[kept] / lengths[lengths > 0][:, None]
    if unit.shape[1] > 3:
        axes = np.linalg.svd(unit, full_matrices=False)[2][:3]
        largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
        flat = unit @ (axes * np.where(largest < 0, -1.0, 1.0)).T
        hold = float((flat**2).sum() / len(flat))
        sheet.note(f"three directions that hold {100 * hold:.0f} % of the squares")
        unit = np.pad(flat, ((0, 0), (0, 3 - flat.shape[1])))
        size = np.linalg.norm(unit, axis=1, keepdims=True)
        unit = unit / np.where(size > 0, size, 1.0)
    _tell_left_out(sheet, len(array), kept)
    angle = np.linspace(0.0, 2 * np.pi, 200)
    sheet.ax.fill(np.cos(angle), np.sin(angle), facecolor=sheet.look.wash, edgecolor=sheet.look.rule, linewidth=1.2)
    tilt = np.deg2rad(25.0)
    for latitude in np.deg2rad([-60.0, -30.0, 0.0, 30.0, 60.0]):
        ring = np.stack(
            [np.cos(latitude) * np.cos(angle), np.cos(latitude) * np.sin(angle), np.sin(latitude) + 0 * angle]
        )
        x, y, z = _seen(ring.T, tilt)
        near = np.where(z >= 0, y, np.nan)
        sheet.ax.plot(x, near, color=sheet.look.rule, linewidth=0.7)
    x, y, z = _seen(unit, tilt)
    _scatter(sheet, np.stack([x, y], axis=1), kept, labels, groups, depth=z)
    sheet.ax.set_xlim(-1.25, 1.25)
    sheet.ax.set_ylim(-1.15, 1.15)
    sheet.ax.set_aspect("equal")
    sheet.bare(sheet.ax)
    return sheet.done()


def _rows(array: Any, labels: Sequence[str] | None, groups: Sequence[Any] | None) -> Any:
    """Numbers of the rows to draw."""
    for name, some in (("labels", labels), ("groups", groups)):
        if some is not None and len(some) != len(array):
            raise ValueError(f"{name} must be one for each of the {len(array)} vectors, got {len(some)}")
    kept = np.flatnonzero(np.isfinite(array).all(1)) if array.size else np.zeros(0, dtype=int)
    if not len(kept):
        raise ValueError(f"there is no vector of finite numbers to draw, given {array.shape}")
    return kept if len(kept) <= DRAWN else kept[np.linspace(0, len(kept) - 1, DRAWN).astype(int)]


def _tell_left_out(sheet: Sheet, given: int, kept: Any) -> None:
    if given > len(kept):
        sheet.note(f"{len(kept):,} of {given:,} vectors")


def _seen(points: Any, tilt: float) -> tuple[Any, Any, Any]:
    """Right, up and towards the reader, of points (N, 3) on a globe that is tilted to the reader."""
    x, y, z = points.T
    return x, z * np.cos(tilt) - y * np.sin(tilt), y * np.cos(tilt) + z * np.sin(tilt)


def _scatter(sheet: Sheet, flat: Any, kept: Any, labels: Any, groups: Any, depth: Any) -> None:
    """Points with marks of their groups, and labels where they have room."""
    names = ["" if groups is None else str(groups[i]) for i in kept]
    counts = Counter(names)
    ranked = [name for name, _ in counts.most_common(len(MARKS))]
    if all(name.isdecimal() for name in ranked):
        ranked.sort(key=int)
    near = np.ones(len(kept), dtype=bool) if depth is None else depth >= 0
    size = float(np.clip(9_000 / len(kept), 9, 34))
    for i, name in enumerate([*ranked, None] if len(counts) > len(ranked) else ranked):
        mine = np.array([n not in ranked if name is None else n == name for n in names])
        colour = sheet.look.soft if name is None else sheet.look.series[i % 5]
        mark = "." if name is None else MARKS[i]
        for part, alpha, scale in ((mine & ~near, 0.25, 0.5), (mine & near, 0.45 if name is None else 0.85, 1.0)):
            sheet.ax.scatter(
                flat[part, 0], flat[part, 1], s=scale * size, marker=mark, color=colour, alpha=alpha, linewidths=0
            )
        if groups is not None:  # in the legend every mark is as large and as strong
            sheet.ax.scatter([], [], s=30, marker=mark, color=colour, linewidths=0,
                             label="others" if name is None else worded(name, 24))  # fmt: skip
    if groups is not None:
        sheet.legend(sheet.ax, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    if labels is not None and len(kept) <= NAMED:
        _names(sheet, flat[near], [worded(labels[i], 18) for i in kept[near]])


def _names(sheet: Sheet, flat: Any, labels: Sequence[str]) -> None:
    """Labels above, below or beside their points; one that has no room is left out, and the title counts them."""
    inch = 4.2 / max(float(np.ptp(flat[:, 0])), float(np.ptp(flat[:, 1])), 1e-12) if len(flat) else 1.0
    taken = [(x - 0.04, x + 0.04, y - 0.04, y + 0.04) for x, y in flat * inch]
    left_out = 0
    for (x, y), label in zip(flat * inch, labels, strict=True):
        half = sum(0.06 if ord(c) > 0x2E7F else 0.036 for c in label) + 0.02
        sides = (
            (0.0, 0.11, "center"),
            (0.0, -0.11, "center"),
            (half + 0.06, 0.0, "left"),
            (-half - 0.06, 0.0, "right"),
        )
        for right, up, align in sides:
            box = (x + right - half, x + right + half, y + up - 0.06, y + up + 0.06)
            if not any(box[0] < b and a < box[1] and box[2] < d and c < box[3] for a, b, c, d in taken):
                taken.append(box)
                shift = (0 if align == "center" else 4 if align == "left" else -4, 72 * up)
                sheet.ax.annotate(
                    label, (x / inch, y / inch), textcoords="offset points", xytext=shift, ha=align, va="center",
                    fontsize=8, color=sheet.look.ink,
                )  # fmt: skip
                break
        else:
            left_out += 1
    if left_out:
        sheet.note(f"labels without room: {left_out}")
