r"""What perturbed masking finds in a sentence: impacts, where words end, and trees, in one picture.

The diagonal is blank (0), since a word's effect on itself is none by definition. Rows are the words that are touched,
columns those that are hidden. Squares on the diagonal are words; bars over a text are the scores of its gaps, and the
low ones are cut.

Source: Wu et al., 2020, arXiv:2004.14786; kexue.fm/archives/7476.
Shapes: W words, W - 1 gaps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.gallery.figures.fonts import worded
from danlu.gallery.figures.heat_map import draw_matrix
from danlu.gallery.figures.layout import arc_levels, tree_places
from danlu.gallery.figures.sheet import Sheet, as_array
from danlu.gallery.figures.trees import WORDS, checked_heads, draw_arcs, draw_tree, word_room

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_boundaries", "plot_impact"]

GAPS = 120  # of a strip at most
SQUARES = 256  # words up to which their squares can be seen


def plot_impact(
    values: Any,
    words: Sequence[str],
    *,
    heads: Sequence[int] | None = None,
    gold: Sequence[int] | None = None,
    tree: Any = None,
    cuts: Collection[int] = (),
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """An impact matrix, with the trees that were read off it above.

    Args:
        values: (W, W), [a, b] what hiding b does to a, of `danlu.probe.impact_matrix`.
        words: W of them.
        heads: of a dependency tree, from 1, 0 for the root; drawn above up to 60 words.
        gold: the true heads.
        tree: nested constituents, of `danlu.probe.ImpactMatrix.tree`.
        cuts: numbers k of the gaps between words k - 1 and k where a text is cut; drawn up to 256 words.
        title: over the picture.
        ax: axes to draw in, which are divided where there is a tree; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure.

    Raises:
        ValueError: another shape, heads of another number, a cut that is no gap.

    >>> plot_impact([[0.0, 2.0], [1.0, 0.0]], ["a", "b"]).axes[0].get_ylabel()
    'touched'
    """
    array = as_array(values, "values", 2)
    count = len(words)
    if array.shape != (count, count) or not count:
        raise ValueError(f"values must be (W, W) with a word each, at least one; got {array.shape} and {count} words")
    if not all(0 < k < count for k in cuts):
        raise ValueError(f"cuts must be numbers of gaps in [1, {count - 1}], got {sorted(cuts)}")
    if gold is not None and heads is None:
        raise ValueError("gold heads are drawn beside predicted ones; give heads too")
    over: list[tuple[str, float]] = []
    if heads is not None:
        some = checked_heads(words, heads, gold)
        deep = max(arc_levels([(i, h - 1) for i, h in enumerate(some) if h]) or [0])
        over.append(("arcs", 0.9 + 0.3 * min(deep, 12) + (0.0 if gold is None else 1.0)))
    if tree is not None and count <= WORDS:
        over.append(("tree", 0.9 + 0.28 * min(max(place[1] for place in tree_places(tree)[1]), 14)))
    room = word_room(words[:WORDS])[-1] + 1.2
    side = max(3.4, min(0.27 * count + 1.4, 12.0))
    width = max(side + 1.2, room if over else 0.0)
    sheet = Sheet((width, side + sum(height for _, height in over) + 0.3), title, ax, path, dark)
    panels = sheet.panels((1,), (*(height for _, height in over), side)) if over else [sheet.ax]
    for (kind, _), panel in zip(over, panels, strict=False):
        if kind == "arcs":
            assert heads is not None
            draw_arcs(sheet, panel, words[:WORDS], heads[:WORDS], None if gold is None else gold[:WORDS])
        else:
            draw_tree(sheet, panel, tree)
    if gold is not None and heads is not None:
        right = sum(a == b for a, b in zip(heads, gold, strict=True))
        sheet.note(f"{right} of {count} heads right (dashed: wrong, dotted below: gold)")
    off = array.copy()
    inside = ~np.eye(count, dtype=bool)
    least = float(np.nanmin(off[inside])) if inside.any() and np.isfinite(off[inside]).any() else 0.0
    off[~inside] = 0.0
    from matplotlib.patches import Rectangle

    last = panels[-1]
    image = draw_matrix(
        sheet, last, off, words, words, center=0.0 if least < 0 else None, low=None if least < 0 else 0.0,
        names=("touched", "hidden"),
    )  # fmt: skip
    ends = sorted({0, count, *cuts}) if cuts and count <= SQUARES else []
    for start, end in pairwise(ends):
        last.add_patch(
            Rectangle(
                (start - 0.5,) * 2, end - start, end - start, fill=False, edgecolor=sheet.look.wrong, linewidth=1.4
            )
        )
    sheet.bar(image, last, "impact")
    return sheet.done()


def plot_boundaries(
    texts: Sequence[str],
    scores: Any,
    *,
    threshold: float | None = None,
    gold: Collection[int] | None = None,
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """How strongly neighbours hold together, a bar a gap; what lies below the threshold is cut.

    Args:
        texts: W pieces of a text.
        scores: (W - 1,) of the gaps, of `danlu.probe.neighbour_scores`.
        threshold: below it a gap is a cut.
        gold: numbers k of the gaps, before piece k, where words really end: a triangle each.
        title: over the picture.
        ax: axes to draw in; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure; of a text longer than 120 pieces the beginning, which it says.

    Raises:
        ValueError: scores of another number, fewer than two pieces.

    >>> len(plot_boundaries("abc", [1.0, 2.0], threshold=1.5).axes[0].patches)
    2
    """
    values = as_array(scores, "scores", 1)
    if len(texts) < 2 or len(values) != len(texts) - 1:
        raise ValueError(
            f"{len(texts)} pieces have {max(len(texts) - 1, 0)} gaps, at least one, got {len(values)} scores"
        )
    shown = min(len(values), GAPS)
    sheet = Sheet((max(4.6, min(0.26 * (shown + 1) + 1.4, 20.0)), 3.0), title, ax, path, dark)
    if shown < len(values):
        sheet.note(f"the first {shown + 1} of {len(texts):,} pieces")
    heights, at = values[:shown], np.arange(shown) + 0.5
    cut = np.zeros(shown, dtype=bool) if threshold is None else heights < threshold
    for part, colour, name in ((~cut, sheet.look.right, "together"), (cut, sheet.look.wrong, "cut")):
        if part.any():
            label = name if threshold is not None else None
            sheet.ax.bar(at[part], np.nan_to_num(heights[part]), width=0.62, color=colour, label=label)
    most = max(float(np.nanmax(np.nan_to_num(heights))), threshold if threshold and np.isfinite(threshold) else 0.0)
    if threshold is not None and np.isfinite(threshold):
        sheet.ax.axhline(
            threshold, color=sheet.look.soft, linewidth=1, linestyle="--", label=f"threshold {threshold:.3g}"
        )
    if gold is not None:
        ends = [k - 0.5 for k in gold if 0 < k <= shown]
        sheet.ax.plot(
            ends, [1.06 * most] * len(ends), "v", markersize=4, color=sheet.look.ink, label="end of a word (gold)"
        )
    sheet.ax.set_xticks(range(shown + 1), labels=[worded(t.strip() or "␣", 6) for t in texts[: shown + 1]])
    sheet.plain(sheet.ax, "", "holds together")
    sheet.ax.tick_params(axis="x", length=0)
    if max(len(t) for t in texts) > 2:
        sheet.ax.tick_params(axis="x", labelrotation=90)
    sheet.ax.set_xlim(-0.6, shown + 0.6)
    sheet.ax.set_ylim(min(0.0, float(np.nanmin(np.nan_to_num(heights)))), 1.14 * most or 1.0)
    sheet.legend(sheet.ax, ncols=4 if shown > 20 else 2, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    return sheet.done()
