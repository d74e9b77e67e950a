r"""Charts as inline SVG: interval bars, strips of dots, line charts, heat maps, a reliability diagram.

Each function takes plain numbers and returns one `<svg>` string without a script, a font or an address in it. Colours
come from classes in charts.css, so a page in the dark recolours them; whatever a colour says, a shape, a word or a dash
says too. All text passes through `escape`. A value that is not finite is left out of the drawing, never drawn as zero.

    x_pixel = left + (x - low) / (high - low) * (right - left)                                                      (1)
    nice step = the least of {1, 2, 2.5, 5} * 10^k with at most n steps in the range                                (2)

Source: palette after Okabe and Ito, 2008, "Color Universal Design"; reliability diagram: Guo et al., 2017,
arXiv:1706.04599.
Shapes: R rows, C columns of a heat map.
"""

import html
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.gallery.formats import count, finite, number, signed, visible

__all__ = [
    "Axis",
    "Series",
    "axis_row",
    "cost_bar",
    "dot_row",
    "heat_map",
    "interval_bars",
    "interval_row",
    "line_chart",
    "nice_axis",
    "reliability_diagram",
    "stylesheet",
]

ROW_WIDTH, ROW_HEIGHT, ROW_EDGE = 240, 36, 8  # pixels of a one-row chart and what it keeps free on either side
MAX_POINTS = 240  # a line chart averages neighbours beyond this many points a series
HEAT_ALPHA = 0.8  # opacity of a full cell: ink stays readable on it in both themes
SHAPES = {"helps": "up", "hurts": "down", "no evidence": "circle", "too few seeds": "diamond"}


@dataclass(frozen=True)
class Axis:
    """A shared horizontal axis in data units: the range drawn, the ticks in it, and their labels."""

    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]

    def at(self, value: float, left: float, right: float) -> float:
        """The pixel of a value between the pixels left and right, eq. (1)."""
        return left + (value - self.low) / (self.high - self.low) * (right - left)


@dataclass(frozen=True)
class Series:
    """One line of a line chart: its name, its points (x, y), and whether each point is marked with a dot."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def stylesheet() -> str:
    """The style rules and colours, light and dark, that a page with these charts needs.

    Returns:
        CSS text.

    >>> "prefers-color-scheme: dark" in stylesheet()
    True
    """
    return (Path(__file__).parent / "charts.css").read_text(encoding="utf-8")


def nice_axis(values: Sequence[float | None], steps: int = 4, sign: bool = False) -> Axis:
    """An axis that holds all the values, with round ticks, eq. (2).

    Args:
        values: what must lie in it; None and non-finite values are ignored.
        steps: most steps between ticks.
        sign: show + on the labels of positive ticks.

    Returns:
        Axis; its ends are the extreme values with a margin of 4 % of the range.

    >>> nice_axis([0.0, 1.0]).labels
    ('0.00', '0.25', '0.50', '0.75', '1.00')
    """
    known = [v for v in map(finite, values) if v is not None] or [0.0, 1.0]
    low, high = min(known), max(known)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):  # one value: open a window around it
        pad = abs(low) * 0.05 or 1.0
        low, high = low - pad, high + pad
    margin = 0.04 * (high - low)
    raw = (high - low) / steps
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))  # eq. (2)
    first, last = math.ceil((low - margin) / step - 1e-9), math.floor((high + margin) / step + 1e-9)
    ticks = tuple(i * step for i in range(first, last + 1))
    largest = max(abs(low), abs(high))
    return Axis(low - margin, high + margin, ticks, tuple(tick_label(t, step, largest, sign) for t in ticks))


def interval_row(
    axis: Axis,
    mean: float | None,
    low: float | None,
    high: float | None,
    verdict: str,
    dots: Sequence[float | None] = (),
    label: str = "",
) -> str:
    """One interval on a shared axis: a bar from low to high, a mark at the mean, dots beneath, the zero line.

    Args:
        axis: shared by the rows of a table; an end outside it is drawn as an arrowhead.
        mean: difference against the baseline, in the metric's unit.
        low: lower end of the interval, or None where there is none.
        high: its upper end.
        verdict: "helps" (triangle up), "hurts" (triangle down), "too few seeds" (diamond), else a circle.
        dots: differences seed by seed.
        label: what a screen reader says; made from the numbers where empty.

    Returns:
        SVG text 240 wide, 36 high.

    >>> 'class="helps mark"' in interval_row(nice_axis([0, 1]), 0.5, 0.2, 0.8, "helps")
    True
    """
    left, right, y = ROW_EDGE, ROW_WIDTH - ROW_EDGE, 14.0
    tone = verdict if verdict in ("helps", "hurts") else "even"
    parts = []
    if axis.low <= 0 <= axis.high:
        zero = axis.at(0, left, right)
        parts.append(f'<line class="zero" x1="{zero:.1f}" y1="0" x2="{zero:.1f}" y2="{ROW_HEIGHT}"/>')
    m, a, b = finite(mean), finite(low), finite(high)
    if a is not None and b is not None:
        xa, xb = axis.at(max(a, axis.low), left, right), axis.at(min(b, axis.high), left, right)
        parts.append(f'<line class="{tone} bar" x1="{xa:.1f}" y1="{y}" x2="{xb:.1f}" y2="{y}"/>')
        for x, out, way in ((xa, a < axis.low, 1), (xb, b > axis.high, -1)):
            arrow, cap = f"M{x + 5 * way:.1f} {y - 4}L{x:.1f} {y}l{5 * way} 4", f"M{x:.1f} {y - 4}V{y + 4}"
            shape = arrow if out else cap
            parts.append(f'<path class="{tone} bar" style="fill:none" d="{shape}"/>')
    if m is not None:
        x = axis.at(min(max(m, axis.low), axis.high), left, right)
        parts.append(marker(x, y, SHAPES.get(verdict, "circle"), tone))
    for value in map(finite, dots):
        if value is not None:
            x = axis.at(min(max(value, axis.low), axis.high), left, right)
            parts.append(disc("dot", x, y + 12, 2, signed(value)))
    told = label or f"difference {signed(mean)}, interval {signed(low)} to {signed(high)}, {verdict}"
    return svg(ROW_WIDTH, ROW_HEIGHT, "".join(parts), told)


def axis_row(axis: Axis, below: str = "", above: str = "") -> str:
    """The axis of a column of one-row charts, to stand in its head.

    Args:
        axis: the shared axis.
        below: what it means to lie towards the low end, over that end.
        above: the same for the high end.

    Returns:
        SVG text 240 wide, 30 high; marked as decoration, the rows say their numbers themselves.

    >>> axis_row(nice_axis([0, 1]), "← worse", "better →").count("</text>")
    7
    """
    left, right = ROW_EDGE, ROW_WIDTH - ROW_EDGE
    parts = []
    for text, end, anchor in ((below, left, "start"), (above, right, "end")):
        if text:
            parts.append(words(text, end, 9, anchor, "strong"))
    parts.append(f'<line class="axis" x1="{left}" y1="29.5" x2="{right}" y2="29.5"/>')
    for tick, text in zip(axis.ticks, axis.labels, strict=True):
        x = axis.at(tick, left, right)
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="26" x2="{x:.1f}" y2="30"/>')
        parts.append(words(text, x, 22, "middle"))
    return svg(ROW_WIDTH, 30, "".join(parts), "")


def dot_row(
    axis: Axis, values: Sequence[float | None], mean: float | None, reference: float | None = None, label: str = ""
) -> str:
    """The values of one arm as dots on a shared axis, its mean as a tick, the baseline's mean as a dashed line.

    Args:
        axis: shared by the rows of a table.
        values: one a seed; None and NaN are left out.
        mean: their mean.
        reference: the baseline's mean.
        label: what a screen reader says; made from the numbers where empty.

    Returns:
        SVG text 240 wide, 20 high.

    >>> dot_row(nice_axis([0, 1]), [0.2, None, 0.8], 0.5).count("<circle")
    2
    """
    left, right, height = ROW_EDGE, ROW_WIDTH - ROW_EDGE, 20
    parts = []
    base, middle = finite(reference), finite(mean)
    if base is not None:
        x = axis.at(base, left, right)
        parts.append(f'<line class="zero" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{height}"/>')
    if middle is not None:
        x = axis.at(middle, left, right)
        parts.append(f'<line class="mean" x1="{x:.1f}" y1="4" x2="{x:.1f}" y2="{height - 4}"/>')
    for value in map(finite, values):
        if value is not None:
            x = axis.at(value, left, right)
            parts.append(disc("dot", x, height / 2, 3, number(value)))
    return svg(ROW_WIDTH, height, "".join(parts), label or f"{', '.join(map(number, values))}; mean {number(mean)}")


def cost_bar(value: float | None, largest: float, reference: float | None = None) -> str:
    """A plain bar from zero, with a tick where the reference ends.

    Args:
        value: length, >= 0, or None for no bar.
        largest: the value that fills the width, > 0.
        reference: where to set the tick, or None.

    Returns:
        SVG text 120 wide, 10 high; marked as decoration, the number stands beside it.

    >>> 'width="60.0"' in cost_bar(1.0, 2.0)
    True
    """
    parts = []
    size, top, base = finite(value), finite(largest), finite(reference)
    if top and size is not None:
        parts.append(f'<rect class="spark" x="0" y="1" width="{120 * min(max(size / top, 0), 1):.1f}" height="8"/>')
    if top and base is not None:
        x = f"{120 * min(base / top, 1):.1f}"
        parts.append(f'<line class="axis" x1="{x}" y1="0" x2="{x}" y2="10"/>')
    return svg(120, 10, "".join(parts), "")


def interval_bars(rows: Sequence[tuple[str, float | None, float | None, float | None, str]], title: str = "") -> str:
    """A whole figure of intervals on one axis, for pages that have no table to set the rows in.

    Args:
        rows: (name, mean, low, high, verdict), drawn top to bottom.
        title: what is measured, above the axis.

    Returns:
        SVG text 400 wide.

    >>> interval_bars([("fgm", 0.5, 0.2, 0.8, "helps")], "F1").count("<svg")
    3
    """
    axis = nice_axis([0.0] + [v for row in rows for v in row[1:4]], sign=True)
    parts = [f'<g transform="translate(150 0)">{axis_row(axis, above=title)}</g>']
    told = []
    for i, (name, mean, low, high, verdict) in enumerate(rows):
        y = 38 + i * ROW_HEIGHT
        parts.append(words(shorten(name, 22), 142, y + 18, "end", "strong"))
        parts.append(f'<g transform="translate(150 {y})">{interval_row(axis, mean, low, high, verdict)}</g>')
        told.append(f"{name}: {signed(mean)} ({signed(low)} to {signed(high)}), {verdict}")
    return svg(400, 40 + len(rows) * ROW_HEIGHT, "".join(parts), "; ".join(told))


def line_chart(
    series: Sequence[Series],
    label: str,
    x_label: str = "step",
    y_label: str = "",
    best: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
    log: bool | None = None,
    width: int = 380,
    height: int = 230,
) -> str:
    """Lines over a common x axis.

    Args:
        series: at most three; a point that is not finite breaks its line. Beyond 240 points neighbours are averaged.
        label: what a screen reader says of the picture.
        x_label: name of the x axis.
        y_label: name of the y axis, above it.
        best: a point to ring.
        x_range: ends of the x axis, for charts that stand beside one another; None takes those of the points.
        log: whether the y axis is logarithmic; None makes it so for positive values that span more than a factor of 20.
        width: pixels at natural size.
        height: pixels at natural size.

    Returns:
        SVG text.

    >>> line_chart([Series("loss", [(1, 2.0), (2, float("nan")), (3, 1.0)])], "loss").count("M")
    2
    """
    lines = [Series(s.name, thin(s.points), s.dots) for s in series]
    xs = [x for s in lines for x, y in s.points if finite(y) is not None and finite(x) is not None]
    ys = [v for s in lines for _, y in s.points if (v := finite(y)) is not None]
    positive = bool(ys) and min(ys) > 0
    log = positive and (max(ys) / min(ys) > 20 if log is None else log)
    y_axis = log_axis(min(ys), max(ys)) if log else nice_axis(ys, steps=5)
    ends = list(x_range or xs)
    x_axis = nice_axis(ends, steps=5)
    if ends and min(ends) < max(ends):
        x_axis = Axis(min(ends), max(ends), x_axis.ticks, x_axis.labels)
    left, right, top, bottom = 12 + 6.2 * max(map(len, y_axis.labels), default=3), width - 10, 30, height - 32

    def height_of(value: float) -> float:
        return y_axis.at(math.log10(value) if log else value, bottom, top)

    parts = []
    for tick, text in zip(y_axis.ticks, y_axis.labels, strict=True):
        y = y_axis.at(tick, bottom, top)
        parts.append(f'<line class="grid" x1="{left:.1f}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(words(text, left - 6, y + 4, "end"))
    parts.append(f'<line class="axis" x1="{left:.1f}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    for tick, text in zip(x_axis.ticks, x_axis.labels, strict=True):
        if x_axis.low <= tick <= x_axis.high:
            x = x_axis.at(tick, left, right)
            parts.append(f'<line class="axis" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}"/>')
            parts.append(words(text, x, bottom + 16, "middle"))
    parts.append(words(x_label, right, height - 2, "end"))
    parts.append(words(f"{y_label} (log scale)" if log else y_label, 0, 11, css="strong"))
    legend = float(right)
    for i, s in reversed(list(enumerate(lines))):
        drawn: list[tuple[float, float] | None] = []
        for x, y in s.points:
            known = finite(x) is not None and finite(y) is not None
            drawn.append((x_axis.at(x, left, right), height_of(y)) if known else None)
        parts.append(f'<path class="line s{i % 3}" d="{path(drawn)}"/>')
        for before, point, after in zip([None, *drawn], drawn, [*drawn[1:], None], strict=False):
            if point is not None and (
                s.dots or (before is None and after is None)
            ):  # alone, it has no line to be seen by
                parts.append(disc(f"d{i % 3}", *point, 2.5))
        if len(lines) > 1:
            legend -= text_width(s.name)
            parts.append(words(s.name, legend, 11))
            parts.append(f'<line class="line s{i % 3}" x1="{legend - 26:.1f}" y1="7" x2="{legend - 6:.1f}" y2="7"/>')
            legend -= 38
    if best is not None and finite(best[0]) is not None and finite(best[1]) is not None:
        x, y = x_axis.at(best[0], left, right), height_of(best[1])
        anchor = "end" if x > (left + right) / 2 else "start"
        parts.append(f'<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="6"/>')
        parts.append(words(f"best {number(best[1])}", x, y - 11, anchor, "strong"))
    return svg(width, height, "".join(parts), label)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    shade: Sequence[Sequence[float | None]],
    text: Sequence[Sequence[str]],
    label: str,
    row_title: str = "",
    column_title: str = "",
    outlined: Sequence[Sequence[bool]] | None = None,
) -> str:
    """A matrix as coloured cells, numbers in them where they fit (up to 24 columns), in a tooltip where they do not.

    Args:
        rows: R names.
        columns: C names.
        shade: (R, C) in [-1, 1]; positive cells blue, negative vermilion, 0 or None unpainted.
        text: (R, C) what each cell says; "" for nothing.
        label: what a screen reader says of the picture.
        row_title: what the rows are.
        column_title: what the columns are.
        outlined: (R, C) cells to draw a frame around.

    Returns:
        SVG text at natural size; a page lets it scroll in a box of its own.

    Raises:
        ValueError: a matrix has another shape than the names.

    >>> heat_map(["a"], ["b"], [[0.5]], [["7"]], "one cell").count("<rect")
    2
    """
    for name, matrix in (("shade", shade), ("text", text), ("outlined", outlined)):
        if matrix is not None and (len(matrix) != len(rows) or any(len(line) != len(columns) for line in matrix)):
            raise ValueError(
                f"heat_map needs {name} of {len(rows)} rows and {len(columns)} columns, one a label; got {len(matrix)} "
                f"rows of {sorted({len(line) for line in matrix})}; give one list a row label, one value a column label"
            )
    wide = max((text_width(t) for line in text for t in line), default=0) * 10 / 11 + 8
    size = 15 if max(len(rows), len(columns)) > 24 else min(max(30, math.ceil(wide)), 64)
    tall = size if size < 30 else min(size, 32)
    row_names, column_names = [shorten(r, 18) for r in rows], [shorten(c, 18) for c in columns]
    left = 12 + max((text_width(r) for r in row_names), default=0) + (18 if row_title else 0)
    longest = max((text_width(c) for c in column_names), default=0)
    upright = longest > size - 2
    top = (longest if upright else 12) + 10 + (18 if column_title else 0)
    width, height = left + size * len(columns) + 2, top + tall * len(rows) + 2
    parts = []
    if column_title:
        parts.append(words(f"{column_title} →", left, 11, css="strong"))
    if row_title:
        parts.append(words(f"← {row_title}", 11, top, "end", "strong", turned=True))
    for j, name in enumerate(column_names):
        x = left + (j + 0.5) * size
        parts.append(words(name, x + 4, top - 6, turned=True) if upright else words(name, x, top - 6, "middle"))
    frames = []
    for i, name in enumerate(row_names):
        y = top + i * tall
        parts.append(words(name, left - 6, y + tall / 2 + 4, "end"))
        for j in range(len(columns)):
            x, value, shown = left + j * size, finite(shade[i][j]), text[i][j]
            if value:
                tip = f"<title>{escape(rows[i])} → {escape(columns[j])}: {escape(shown)}</title>" if shown else ""
                look = f'class="{"pos" if value > 0 else "neg"}" fill-opacity="{HEAT_ALPHA * min(abs(value), 1.0):.2f}"'
                parts.append(f'<rect {look} x="{x:.1f}" y="{y:.1f}" width="{size}" height="{tall}">{tip}</rect>')
            if shown and size >= 30:
                parts.append(words(shown, x + size / 2, y + tall / 2 + 3.5, "middle", "cell"))
            if outlined is not None and outlined[i][j]:
                frames.append(f"M{x + 1.5:.1f} {y + 1.5:.1f}h{size - 3}v{tall - 3}h{3 - size}z")
    across, down = size * len(columns), tall * len(rows)
    parts.append(f'<rect class="frame" x="{left:.1f}" y="{top:.1f}" width="{across}" height="{down}"/>')
    if frames:
        parts.append(f'<path class="outlined" d="{"".join(frames)}"/>')
    return svg(width, height, "".join(parts), label, fixed=True)


def reliability_diagram(bins: Sequence[Mapping[str, Any]], label: str, size: int = 300) -> str:
    """Accuracy against confidence by bin, the diagonal of a calibrated model, and how many predictions each bin holds.

    Args:
        bins: {"confidence", "accuracy", "count"}, the means over each bin; a bin without predictions is left out.
        label: what a screen reader says of the picture.
        size: pixels of a side.

    Returns:
        SVG text.

    >>> reliability_diagram([{"confidence": 0.9, "accuracy": 0.8, "count": 5}], "one bin").count("<circle")
    1
    """
    axis = Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0), ("0", "0.25", "0.50", "0.75", "1"))
    left, right, top, bottom = 34, size - 10, 24, size - 36
    parts = [words("accuracy", 0, 11, css="strong")]
    for tick, text in zip(axis.ticks, axis.labels, strict=True):
        x, y = axis.at(tick, left, right), axis.at(tick, bottom, top)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts += [words(text, left - 6, y + 4, "end"), words(text, x, bottom + 16, "middle")]
    parts.append(words("mean confidence of the bin", right, size - 3, "end"))
    parts.append(f'<line class="zero" x1="{left}" y1="{bottom}" x2="{right}" y2="{top}"/>')
    most = max((finite(b.get("count")) or 0.0 for b in bins), default=0.0)
    for b in bins:
        confidence, accuracy, held = finite(b.get("confidence")), finite(b.get("accuracy")), finite(b.get("count"))
        if confidence is None or accuracy is None or held == 0:
            continue
        x, y = axis.at(confidence, left, right), axis.at(accuracy, bottom, top)
        calibrated = axis.at(confidence, bottom, top)
        radius = 3 + 6 * math.sqrt((held or 0.0) / most) if most else 4
        tip = f"confidence {number(confidence)}, accuracy {number(accuracy)}, {count(held)} predictions"
        parts.append(f'<line class="hurts bar" x1="{x:.1f}" y1="{calibrated:.1f}" x2="{x:.1f}" y2="{y:.1f}"/>')
        parts.append(disc("d0", x, y, radius, tip))
    return svg(size, size, "".join(parts), label)


def escape(text: Any) -> str:
    """Foreign text made safe for markup and attributes."""
    return html.escape(visible(text), quote=True)


def svg(width: float, height: float, body: str, label: str, fixed: bool = False) -> str:
    """The outer element: an image with a name, or decoration where the name is empty."""
    role = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    style = ' style="max-width:none"' if fixed else ""
    w, h = f"{width:.0f}", f"{height:.0f}"
    return f'<svg class="chart" viewBox="0 0 {w} {h}" width="{w}" height="{h}"{style} {role}>{body}</svg>'


def words(text: Any, x: float, y: float, anchor: str = "start", css: str = "", turned: bool = False) -> str:
    """Foreign or own text at a place, read upwards where turned."""
    place = f'transform="translate({x:.1f} {y:.1f}) rotate(-90)"' if turned else f'x="{x:.1f}" y="{y:.1f}"'
    look = f' class="{css}"' if css else ""
    return f'<text{look} {place} text-anchor="{anchor}">{escape(text)}</text>'


def disc(css: str, x: float, y: float, radius: float, tip: str = "") -> str:
    """A dot with a tooltip."""
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{title}</circle>'


def marker(x: float, y: float, shape: str, tone: str) -> str:
    """The mark at a mean."""
    if shape == "circle":
        return f'<circle class="{tone} mark" cx="{x:.1f}" cy="{y}" r="4"/>'
    corners = {
        "up": ((-5, 4), (5, 4), (0, -5)),
        "down": ((-5, -4), (5, -4), (0, 5)),
        "diamond": ((-5, 0), (0, -5), (5, 0), (0, 5)),
    }[shape]
    return f'<path class="{tone} mark" d="M{"L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in corners)}z"/>'


def path(points: Sequence[tuple[float, float] | None]) -> str:
    """Path data through the points, lifted at every None."""
    steps, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
        else:
            steps.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
            pen = "L"
    return "".join(steps)


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS points, each the mean of its neighbours; a group without a finite value stays a gap."""
    group = -(-len(points) // MAX_POINTS)
    if group <= 1:
        return list(points)
    means = []
    for start in range(0, len(points), group):
        known = [(x, y) for x, y in points[start : start + group] if finite(x) is not None and finite(y) is not None]
        if known:
            xs, ys = zip(*known, strict=True)
            means.append((sum(xs) / len(known), sum(ys) / len(known)))
        else:
            means.append((points[start][0], math.nan))
    return means


def log_axis(low: float, high: float) -> Axis:
    """An axis in decimal logarithms of a positive quantity, ticks at 1, 2 and 5 times the powers of ten."""
    a, b = math.log10(low), math.log10(high)
    margin = 0.04 * (b - a)
    powers = range(math.floor(a), math.ceil(b) + 1)
    for mantissas in ((1, 2, 5), (1,)):
        values = [m * 10.0**p for p in powers for m in mantissas]
        ticks = [v for v in values if a - margin <= math.log10(v) <= b + margin]
        if len(ticks) <= 7:
            break
    ticks = ticks[:: -(-len(ticks) // 7)] if ticks else []
    labels = tuple(f"{t:,.6g}" if t >= 1e-4 else f"{t:.0e}".replace("e-0", "e-").replace("-", "−") for t in ticks)
    return Axis(a - margin, b + margin, tuple(math.log10(t) for t in ticks), labels)


def tick_label(value: float, step: float, largest: float, sign: bool) -> str:
    """A tick with the decimals its step needs; a power of ten where the whole axis is tiny or huge."""
    place = math.floor(math.log10(step) + 1e-9)
    exact = place - (round(step / 10.0**place, 6) % 1 != 0)  # the last decimal place; 2.5 * 10^k needs one more
    if step >= 1e6 or largest < 1e-3:
        digits = max(1, math.floor(math.log10(largest)) - exact + 1)
        text = f"{value:.{digits}g}".replace("e+0", "e").replace("e-0", "e-")
    else:
        text = f"{value:,.{max(0, -exact)}f}"
    text = text.lstrip("-") if not text.strip("-0.,") else text.replace("-", "−")
    return f"+{text}" if sign and value > 0 and text.strip("0.,") else text


def shorten(text: Any, length: int) -> str:
    """The text cut to a number of characters, with an ellipsis for the rest."""
    whole = visible(text)
    return whole if len(whole) <= length else whole[: length - 1] + "…"


def text_width(text: str) -> float:
    """Pixels of a text at 11 px, estimated: a Chinese character is as wide as it is high, a Latin one 0.6 of it."""
    return sum(11 if unicodedata.east_asian_width(c) in "WF" else 6.4 for c in text)
