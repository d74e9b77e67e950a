r"""Curves and bars: fits of differential equations with their bands, lines with bands, arms beside one another.

Bands are drawn behind their line; observations are dots, and one that is nan is left out. Lines differ by colour and by
dash. Bars carry their intervals.

Source: house rules. Shapes: T times, S states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.gallery.figures.fonts import worded
from danlu.gallery.figures.sheet import Sheet, as_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_bars", "plot_lines", "plot_ode_fit"]

DASHES = ("-", "--", ":", "-.")
PANELS = 12  # states of a fit at most
UNEVEN = 100.0  # times the median from which bars need a logarithmic axis


def plot_ode_fit(
    times: Any,
    median: Any,
    low: Any = None,
    high: Any = None,
    *,
    observed_times: Any = None,
    observed: Any = None,
    names: Sequence[str] | None = None,
    time_name: str = "time",
    level: str = "95 % band",
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """Solutions of a fitted equation, a panel a state, with a band and the observations.

    Args:
        times: (T,) of the curves.
        median: (T, S) solutions, such as the middle of `danlu.nn.ode_band`.
        low: (T, S) lower end of the band; None: no band.
        high: (T, S) its upper end.
        observed_times: (M,) times of observations.
        observed: (M, S) of them; nan where a state was not seen.
        names: of the states; None: numbers from 1.
        time_name: what stands under the axis of time.
        level: what the band is called.
        title: over the picture.
        ax: axes to draw in, which are divided; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure.

    Raises:
        ValueError: shapes that do not fit, one end of a band without the other, more than 12 states.

    >>> len(plot_ode_fit([0.0, 1.0], [[1.0, 2.0], [1.5, 1.0]]).axes)
    2
    """
    t, curve = as_array(times, "times", 1), as_array(median, "median", 2)
    states = curve.shape[1]
    if curve.shape[0] != len(t) or not 1 <= states <= PANELS or not len(t):
        raise ValueError(
            f"median must be (T, S) with T = {len(t)} times, at least one, and 1 to {PANELS} states; got {curve.shape}"
        )
    if (low is None) != (high is None) or (observed is None) != (observed_times is None):
        raise ValueError("low goes with high, and observed with observed_times; give both or neither")
    band = None if low is None else (as_array(low, "low", 2), as_array(high, "high", 2))
    if band is not None and any(part.shape != curve.shape for part in band):
        raise ValueError(f"low and high must be {curve.shape} like median, got {band[0].shape} and {band[1].shape}")
    seen = (
        None if observed is None else (as_array(observed_times, "observed_times", 1), as_array(observed, "observed", 2))
    )
    if seen is not None and seen[1].shape != (len(seen[0]), states):
        raise ValueError(f"observed must be ({len(seen[0])}, {states}), nan for what was not seen; got {seen[1].shape}")
    if names is not None and len(names) != states:
        raise ValueError(f"names must be {states}, got {list(names)}")
    across = min(states, 3)
    down = -(-states // across)
    sheet = Sheet((3.4 * across + 0.4, 2.8 * down), title, ax, path, dark)
    panels = sheet.panels((1,) * across, (1,) * down)
    for j, panel in enumerate(panels):
        if j >= states:
            panel.set_visible(False)
            continue
        colour = sheet.look.series[0]
        if band is not None:
            panel.fill_between(t, band[0][:, j], band[1][:, j], color=colour, alpha=0.2, linewidth=0, label=level)
        panel.plot(t, curve[:, j], color=colour, linewidth=1.7, label="fit")
        if seen is not None:
            panel.plot(seen[0], seen[1][:, j], "o", markersize=3.2, color=sheet.look.wrong, label="observed")
        sheet.plain(panel, time_name, str(j + 1) if names is None else names[j])
    sheet.legend(panels[0], loc="best")
    return sheet.done()


def plot_lines(
    lines: Mapping[str, tuple[Any, Any]],
    bands: Mapping[str, tuple[Any, Any]] | None = None,
    *,
    x_name: str = "step",
    y_name: str = "",
    x_log: bool = False,
    y_log: bool = False,
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """Some curves on one pair of axes.

    Args:
        lines: name -> (x, y), numbers of equal length.
        bands: name of a line -> its lower and upper end at the same x.
        x_name: under the axis.
        y_name: beside it.
        x_log: logarithmic x; what is not above 0 is left out.
        y_log: the same for y.
        title: over the picture.
        ax: axes to draw in; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure.

    Raises:
        ValueError: no line, x and y of different length, a band without its line.

    >>> plot_lines({"loss": ([1, 2, 3], [3.0, 2.0, 1.5])}).axes[0].get_xlabel()
    'step'
    """
    if not lines:
        raise ValueError("plot_lines needs at least one line, name -> (x, y)")
    if bands and set(bands) - set(lines):
        raise ValueError(f"bands must belong to lines, got {sorted(set(bands) - set(lines))} beside {sorted(lines)}")
    sheet = Sheet((6.4, 3.6), title, ax, path, dark)
    for i, (name, (xs, ys)) in enumerate(lines.items()):
        x, y = as_array(xs, f"x of {name}", 1), as_array(ys, f"y of {name}", 1)
        if x.shape != y.shape:
            raise ValueError(f"{name} needs as many x as y, got {len(x)} and {len(y)}")
        colour = sheet.look.series[i % 6]
        if bands and name in bands:
            low, high = (as_array(part, f"band of {name}", 1) for part in bands[name])
            if low.shape != x.shape or high.shape != x.shape:
                raise ValueError(f"the band of {name} needs {len(x)} numbers on either side")
            sheet.ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        sheet.ax.plot(
            x, y, color=colour, linestyle=DASHES[(i // 6 + i) % 4], linewidth=1.7, label=worded(name, 40),
            marker="o" if len(x) <= 12 else None, markersize=3,
        )  # fmt: skip
    if x_log:
        sheet.ax.set_xscale("log")
    if y_log:
        sheet.ax.set_yscale("log")
    sheet.plain(sheet.ax, x_name, y_name)
    if len(lines) > 1 or next(iter(lines)):
        outside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if len(lines) > 4 else {"loc": "best"}
        sheet.legend(sheet.ax, **outside)
    return sheet.done()


def plot_bars(
    values: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]] | None = None,
    claimed: Mapping[str, float] | None = None,
    *,
    name: str = "",
    most: int = 40,
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """Numbers with names as dots on lines from zero, with intervals, and what a source claims as a cross.

    Args:
        values: name -> number; those that are not finite are counted in the title.
        intervals: name -> its lower and upper end.
        claimed: name -> number of the source.
        name: of the numbers.
        most: rows at most; the first are drawn.
        title: over the picture.
        ax: axes to draw in; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure; its axis is logarithmic far from zero where one number is 100 times the median.

    Raises:
        ValueError: nothing that is finite.

    >>> [t.get_text() for t in plot_bars({"plain": 0.9, "fgm": 0.95}).axes[0].get_yticklabels()]
    ['plain', 'fgm']
    """
    finite = {key: float(v) for key, v in values.items() if v is not None and np.isfinite(v)}
    if not finite:
        raise ValueError(f"plot_bars needs at least one finite number, got {len(values)} that are none")
    shown = dict(list(finite.items())[:most])
    sheet = Sheet((7.6, 0.27 * len(shown) + 1.2), title, ax, path, dark)
    if len(finite) < len(values):
        sheet.note(f"{len(values) - len(finite)} without a number, left out")
    if len(shown) < len(finite):
        sheet.note(f"the first {len(shown)} of {len(finite)}")
    sizes = sorted(abs(v) for v in shown.values() if v)
    if sizes and sizes[-1] > UNEVEN * sizes[len(sizes) // 2]:
        linear = sizes[len(sizes) // 2]
        sheet.ax.set_xscale("symlog", linthresh=linear)
        sheet.note(f"logarithmic beyond ±{linear:.2g}")
    places = range(len(shown))
    sheet.ax.hlines(places, 0.0, list(shown.values()), color=sheet.look.rule, linewidth=1.5)
    for row, key in enumerate(shown):
        low, high = (intervals or {}).get(key, (None, None))
        if low is not None and high is not None:
            sheet.ax.plot(
                [low, high], [row, row], color=sheet.look.right, linewidth=3, alpha=0.4, solid_capstyle="butt"
            )
    sheet.ax.plot(list(shown.values()), list(places), "o", color=sheet.look.right, markersize=5, label="measured")
    told = [(claimed[key], row) for row, key in enumerate(shown) if claimed and key in claimed]
    if told:
        sheet.ax.plot(*zip(*told, strict=True), "x", color=sheet.look.wrong, markersize=6, label="claimed")
        sheet.legend(sheet.ax, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    sheet.ax.set_yticks(list(places), labels=[worded(key, 44) for key in shown])
    sheet.ax.tick_params(axis="y", length=0)
    sheet.ax.set_ylim(len(shown) - 0.4, -0.6)
    sheet.plain(sheet.ax, name, "", grid="x")
    sheet.ax.spines["left"].set_visible(False)
    return sheet.done()
