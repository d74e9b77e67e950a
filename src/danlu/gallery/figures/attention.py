r"""Attention in pictures: all heads at once, arcs between two columns of tokens, entropy and distance of the heads.

The weights of all heads of a grid share one scale, printed on its bar, so that heads and layers can be compared.
A weight is a share of what flows through one head: no measure of what matters to the output (for that see the impact
matrix, which intervenes).

Source: Vaswani et al., 2017, arXiv:1706.03762 (arcs); Clark et al., 2019, arXiv:1906.04341 (entropy of heads); Vig and
Belinkov, 2019, arXiv:1906.04284 (distance).
Shapes: L layers, H heads, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.gallery.figures.fonts import worded
from danlu.gallery.figures.heat_map import limits
from danlu.gallery.figures.layout import pool_matrix, thin
from danlu.gallery.figures.sheet import Sheet, as_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_attention_arcs", "plot_head_grid", "plot_head_profile"]

GRID_CELLS = 1536  # rows or columns of the mosaic at most
COLUMN = 64  # tokens of a column of arcs at most


def plot_head_grid(
    weights: Any,
    layers: Sequence[str] | None = None,
    heads: Sequence[str] | None = None,
    *,
    high: float | None = None,
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """The maps of all heads of all layers, side by side on one scale.

    Args:
        weights: (L, H, T, S).
        layers: L names; None: numbers from 1.
        heads: H names; None: numbers from 1.
        high: value of the last colour; None: the largest weight.
        title: over the picture.
        ax: axes to draw in; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure.

    Raises:
        ValueError: another shape, labels of another number.

    >>> plot_head_grid([[[[1.0, 0.0], [0.5, 0.5]]]]).axes[0].get_ylabel()
    'layer'
    """
    array = as_array(weights, "weights", 4)
    if not array.size:
        raise ValueError(f"weights must have layers, heads and tokens (L, H, T, S), got shape {array.shape}")
    for name, given, size in (("layers", layers, array.shape[0]), ("heads", heads, array.shape[1])):
        if given is not None and len(given) != size:
            raise ValueError(f"{name} must have {size} names, got {len(given)}")
    number, across = array.shape[:2]
    room = max(4, GRID_CELLS // max(number, across))
    pooled = [[pool_matrix(array[i, j], room) for j in range(across)] for i in range(number)]
    block, (rows, columns) = pooled[0][0][1], pooled[0][0][0].shape
    gap = max(1, max(rows, columns) // 16)
    mosaic = np.full((number * (rows + gap) - gap, across * (columns + gap) - gap), np.nan)
    for i in range(number):
        for j in range(across):
            top, left = i * (rows + gap), j * (columns + gap)
            mosaic[top : top + rows, left : left + columns] = pooled[i][j][0]
    sheet = Sheet(
        (min(1.0 * across + 1.6, 13.0), min(1.0 * number * rows / columns + 1.2, 13.0)), title, ax, path, dark
    )
    if block > 1:
        sheet.note(f"cells are means of {block} × {block}")
    absent = int((~np.isfinite(array)).sum())
    if absent:
        sheet.note(f"{absent:,} weights are no number, left blank")
    _, most = limits(array, None, 0.0, high)
    image = sheet.ax.imshow(
        np.ma.masked_invalid(mosaic), cmap=sheet.scale(), vmin=0.0, vmax=most, interpolation="none", aspect="equal"
    )
    for axis, given, size, step in (
        (sheet.ax.yaxis, layers, number, rows + gap),
        (sheet.ax.xaxis, heads, across, columns + gap),
    ):
        middle = (step - gap) / 2 - 0.5
        shown = thin(size, 24)
        axis.set_ticks(
            [i * step + middle for i in shown],
            labels=[str(i + 1) if given is None else worded(given[i], 16) for i in shown],
        )
        axis.set_tick_params(length=0)
    sheet.ax.set_ylabel("layer")
    sheet.ax.set_xlabel("head (in each: rows are queries, columns keys)")
    for spine in sheet.ax.spines.values():
        spine.set_visible(False)
    for i in range(number):  # a frame around each head
        for j in range(across):
            corner = (j * (columns + gap) - 0.5, i * (rows + gap) - 0.5)
            sheet.ax.add_patch(_frame(corner, columns, rows, sheet.look.rule))
    sheet.bar(image, sheet.ax, "weight")
    return sheet.done()


def plot_attention_arcs(
    weights: Any,
    queries: Sequence[str],
    keys: Sequence[str] | None = None,
    *,
    top: int = 3,
    least: float = 0.05,
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """Two columns of tokens with lines as wide as the weights between them, the strongest of each query.

    Args:
        weights: (T, S) of one head, or of several averaged.
        queries: T tokens, at the left.
        keys: S tokens, at the right; None: the queries.
        top: keys that each query is joined with at most.
        least: weight below which there is no line.
        title: over the picture.
        ax: axes to draw in; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure; of more than 64 tokens it shows the first, and says so.

    Raises:
        ValueError: another shape, a negative weight, tokens of another number, top below 1.

    >>> plot_attention_arcs([[1.0, 0.0]], ["a"], ["a", "b"]).axes[0].lines[0].get_linewidth()
    4.0
    """
    array = as_array(weights, "weights", 2)
    right = queries if keys is None else keys
    if array.shape != (len(queries), len(right)) or not array.size:
        raise ValueError(
            f"weights must be (queries, keys) = ({len(queries)}, {len(right)}), both at least 1, got {array.shape}"
        )
    if bool((array < 0).any()) or top < 1:
        raise ValueError(f"needs weights of at least 0 and top >= 1; got a least {np.nanmin(array):g} and top {top}")
    rows, columns = min(len(queries), COLUMN), min(len(right), COLUMN)
    sheet = Sheet((4.8, max(2.2, 0.24 * max(rows, columns) + 1.0)), title, ax, path, dark)
    if rows < len(queries) or columns < len(right):
        sheet.note(f"the first {rows} of {len(queries):,} queries, the first {columns} of {len(right):,} keys")
    shown = np.nan_to_num(array[:rows, :columns])
    x = np.linspace(0.0, 1.0, 24)
    bend = x * x * (3 - 2 * x)
    for i in range(rows):
        for j in np.argsort(-shown[i], kind="stable")[:top]:
            if shown[i, j] >= max(least, 1e-12):
                weight = min(float(shown[i, j]), 1.0)
                colour = sheet.look.series[i % 5]
                sheet.ax.plot(
                    x, i + (j - i) * bend, color=colour, linewidth=4.0 * weight, alpha=0.35 + 0.55 * weight,
                    solid_capstyle="butt",
                )  # fmt: skip
    for place, tokens, side in ((-0.03, queries[:rows], "right"), (1.03, right[:columns], "left")):
        for i, token in enumerate(tokens):
            special = str(token).startswith("[") and str(token).endswith("]")
            sheet.ax.text(
                place, i, worded(token, 16), ha=side, va="center", fontsize=9,
                color=sheet.look.soft if special else sheet.look.ink,
            )  # fmt: skip
    sheet.ax.set_ylim(max(rows, columns) - 0.4, -1.4)
    sheet.ax.set_xlim(-0.6, 1.6)
    for place, name in ((-0.03, "query"), (1.03, "key")):
        side = "right" if place < 0 else "left"
        sheet.ax.text(place, -1.0, name, ha=side, va="center", fontsize=8, color=sheet.look.soft)
    sheet.bare(sheet.ax)
    return sheet.done()


def plot_head_profile(
    entropy: Any,
    distance: Any,
    *,
    uniform: float | None = None,
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """Entropy and mean distance of every head by layer, a dot a head, a line through the means.

    Args:
        entropy: (L, H) nats, of `danlu.probe.head_entropy`.
        distance: (L, H) tokens, of `danlu.probe.head_distance`.
        uniform: entropy of a head that looks at all alike, log T, as a dashed line.
        title: over the picture.
        ax: axes to draw in, which are divided; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure.

    Raises:
        ValueError: two different shapes, no head, or no number.

    >>> len(plot_head_profile([[0.1, 0.2]], [[1.0, 2.0]]).axes)
    2
    """
    parts = as_array(entropy, "entropy", 2), as_array(distance, "distance", 2)
    if parts[0].shape != parts[1].shape or not parts[0].size:
        raise ValueError(
            f"entropy and distance must be (L, H) alike, at least one; got {parts[0].shape} and {parts[1].shape}"
        )
    if not all(np.isfinite(part).any() for part in parts):
        raise ValueError("entropy and distance must hold a number; all of one are nan, as of a batch without tokens")
    sheet = Sheet((8.0, 3.2), title, ax, path, dark)
    layers = np.arange(1, len(parts[0]) + 1)
    for panel, values, name in zip(sheet.panels((1, 1)), parts, ("entropy (nats)", "distance (tokens)"), strict=True):
        heads = values.shape[1]
        spread = (np.arange(heads) - (heads - 1) / 2) * min(0.05, 0.5 / heads)
        x = (layers[:, None] + spread).ravel()
        panel.scatter(x, values.ravel(), s=16, color=sheet.look.series[0], alpha=0.75, linewidths=0, label="a head")
        panel.plot(layers, np.nanmean(values, 1), color=sheet.look.series[1], linewidth=1.6, label="mean of the layer")
        if name.startswith("entropy") and uniform is not None:
            panel.axhline(uniform, color=sheet.look.soft, linewidth=1, linestyle="--", label="looks at all alike")
        panel.set_xticks([layers[i] for i in thin(len(layers), 12)])
        panel.set_ylim(0, 1.06 * max(float(np.nanmax(values)), uniform or 0.0 if name[0] == "e" else 0.0) or 1.0)
        sheet.plain(panel, "layer", name)
    sheet.legend(sheet.axes[0], loc="best")
    return sheet.done()


def _frame(corner: tuple[float, float], width: float, height: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=0.6)
