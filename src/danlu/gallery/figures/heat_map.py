r"""A matrix as a heat map: rows look, columns are looked at.

Beyond 256 rows or columns neighbours are averaged, beyond about 60 labels only every k-th is written, and the title
says the former. Cells that are no number are hatched and counted. A matrix of both signs has the paper at `center`.

Source: house rules. Shapes: R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.gallery.figures.fonts import worded
from danlu.gallery.figures.layout import pool_matrix, thin
from danlu.gallery.figures.sheet import Sheet, as_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_matrix", "plot_heat_map"]

ANNOTATED = 16  # rows or columns up to which cells may hold their numbers


def plot_heat_map(
    values: Any,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    *,
    center: float | None = None,
    low: float | None = None,
    high: float | None = None,
    annotate: bool = False,
    names: tuple[str, str, str] = ("query", "key", "weight"),
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """A matrix of numbers as colours.

    Args:
        values: (R, C), any numeric dtype; nan is hatched.
        rows: R labels; None: numbers from 0.
        columns: C labels; None: numbers from 0.
        center: draw with a scale of two signs around it; None: one sign, from `low`.
        low: value of the first colour; None: 0 where nothing is below, else the smallest.
        high: value of the last colour; None: the largest.
        annotate: write the numbers into the cells, up to 16 rows and columns.
        names: of the rows, of the columns and of the values.
        title: over the picture.
        ax: axes to draw in; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure.

    Raises:
        ValueError: no matrix, labels of another number, low not below high.

    >>> plot_heat_map([[0.0, 1.0]]).axes[0].get_ylabel()
    'query'
    """
    array = as_array(values, "values", 2)
    side = max(4.2, min(0.26 * max(array.shape) + 2.0, 14.0))
    width = max(4.2, min(0.26 * array.shape[1] + 2.6, 15.0)) if array.size else 4.2
    height = max(2.4, min(0.26 * array.shape[0] + 1.8, 14.0)) if array.size else side
    sheet = Sheet((width, height), title, ax, path, dark)
    image = draw_matrix(
        sheet, sheet.ax, array, rows, columns, center=center, low=low, high=high, annotate=annotate, names=names[:2]
    )
    sheet.bar(image, sheet.ax, names[2])
    return sheet.done()


def draw_matrix(
    sheet: Sheet,
    ax: Axes,
    array: Any,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    *,
    center: float | None = None,
    low: float | None = None,
    high: float | None = None,
    annotate: bool = False,
    names: tuple[str, str] = ("", ""),
    labels: int = 60,
) -> Any:
    """The cells, labels and hatches of a matrix; returns the image, whose scale `Sheet.bar` can draw.

    Args:
        sheet: that is drawn on.
        ax: its axes.
        array: (R, C) float64.
        rows: as of `plot_heat_map`.
        columns: as of `plot_heat_map`.
        center: as of `plot_heat_map`.
        low: as of `plot_heat_map`.
        high: as of `plot_heat_map`.
        annotate: as of `plot_heat_map`.
        names: of the axes.
        labels: most labels on a side.

    Returns:
        The image.
    """
    if not array.size:
        raise ValueError(f"a heat map needs at least one row and one column, got shape {array.shape}")
    for side, given, size in (("rows", rows, array.shape[0]), ("columns", columns, array.shape[1])):
        if given is not None and len(given) != size:
            raise ValueError(f"{side} must have one label each: {size} of them, got {len(given)}")
    pooled, block = pool_matrix(array)
    known = np.isfinite(pooled)
    least, most = limits(array, center, low, high)
    image = ax.imshow(
        np.ma.masked_where(~known, pooled), cmap=sheet.scale(center is not None), vmin=least, vmax=most,
        interpolation="none", aspect="auto" if max(array.shape) > 3 * min(array.shape) else "equal",
    )  # fmt: skip
    if block > 1:
        sheet.note(f"cells are means of {block} × {block}")
    absent = int((~np.isfinite(array)).sum())
    if absent:
        sheet.note(f"hatched: {absent:,} without a number")
        ax.patch.set(hatch="////", edgecolor=sheet.look.soft)
        ax.patch.set_linewidth(0)
    for axis, given, size in ((ax.yaxis, rows, array.shape[0]), (ax.xaxis, columns, array.shape[1])):
        places = thin(size, min(labels, 24) if given is None and axis is ax.xaxis else labels)
        shown = [str(i) if given is None else worded(given[i], 14) for i in places]
        axis.set_ticks([(i + 0.5) / block - 0.5 for i in places], labels=shown)
        axis.set_tick_params(length=0 if size <= labels else 2)
    for text in ax.get_xticklabels():  # one character stands upright, words are turned
        if columns is not None and len(text.get_text()) > 1:
            text.set_rotation(90)
    ax.set_ylabel(worded(names[0]))
    ax.set_xlabel(worded(names[1]))
    if annotate and max(array.shape) <= ANNOTATED:
        middle = (least + most) / 2 if center is None else center
        reach = (most - least) / 2 if center is None else most - center
        for (i, j), value in np.ndenumerate(array):
            if np.isfinite(value):
                share = abs(value - middle) / reach if center is not None else (value - least) / (most - least)
                colour = sheet.look.paper if share > 0.55 else sheet.look.ink
                ax.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=7, color=colour)
    return image


def limits(array: Any, center: float | None, low: float | None, high: float | None) -> tuple[float, float]:
    """Values of the first and the last colour; around a center both are as far from it."""
    known = array[np.isfinite(array)]
    smallest, largest = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if center is not None:
        ends = [abs(end - center) for end in (smallest, largest)] if low is None and high is None else []
        ends += [abs(end - center) for end in (low, high) if end is not None]
        reach = max(ends) or 1.0
        return center - reach, center + reach
    least = low if low is not None else min(0.0, smallest) if smallest >= 0 else smallest
    most = high if high is not None else largest
    if most == least and (low is None or high is None):
        most = least + 1.0
    if not most > least:
        raise ValueError(f"low must be below high, got {least:g} and {most:g}")
    return least, most
