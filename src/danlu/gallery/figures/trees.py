r"""Trees over a sentence: arcs from heads to dependents, and constituents.

    right arcs (in both)           solid, blue, above the words
    arcs only predicted            dashed, vermilion, above
    arcs only in gold              dotted, grey, below

Without gold all arcs are above and solid. The root has a line from above. Arcs stand as high as they have arcs inside
(`arc_levels`); words keep their places, so a long sentence makes a wide picture, cut off after 60 words.

Source: house rules; the look is that of treebank browsers. Shapes: W words.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.gallery.figures.fonts import worded
from danlu.gallery.figures.layout import arc_levels, tree_places
from danlu.gallery.figures.sheet import Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_arcs", "draw_tree", "plot_constituents", "plot_dependencies"]

WORDS = 60  # of a picture at most
LEVELS = 14  # of a tree, beyond which levels are drawn closer


def plot_dependencies(
    words: Sequence[str],
    heads: Sequence[int],
    gold: Sequence[int] | None = None,
    *,
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """The arcs of a dependency tree over its words, and what a second tree has otherwise under them.

    Args:
        words: W of them.
        heads: number of the head of each word, from 1; 0 for a root.
        gold: the true heads.
        title: over the picture.
        ax: axes to draw in; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure; with gold the title counts what agrees.

    Raises:
        ValueError: no words, heads of another number or out of range.

    >>> len(plot_dependencies(["he", "sleeps"], [2, 0]).axes[0].texts)
    2
    """
    shown = checked_heads(words, heads, gold)
    room = word_room(words[:WORDS])
    levels = max(arc_levels([(i, h - 1) for i, h in enumerate(shown) if h]) or [0])
    depth = 0 if gold is None else 1 + max(arc_levels([(i, h - 1) for i, h in enumerate(gold[:WORDS]) if h]) or [0])
    sheet = Sheet((room[-1] + 1.2, 1.6 + 0.32 * min(levels + depth, 24)), title, ax, path, dark)
    if len(words) > WORDS:
        sheet.note(f"the first {WORDS} of {len(words):,} words")
    if gold is not None:
        right = sum(a == b for a, b in zip(heads, gold, strict=True))
        sheet.note(f"{right} of {len(words)} heads right; above: predicted (dashed: wrong), below: missed")
    draw_arcs(sheet, sheet.ax, words[:WORDS], heads[:WORDS], None if gold is None else gold[:WORDS])
    return sheet.done()


def plot_constituents(
    tree: Any,
    *,
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """A constituency tree with its words on one line.

    Args:
        tree: a word, or a tuple or list of trees, nested.
        title: over the picture.
        ax: axes to draw in; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure.

    Raises:
        ValueError: a node without children, or more than 60 words.

    >>> len(plot_constituents((("the", "cat"), "sleeps")).axes[0].texts)
    3
    """
    leaves, places = tree_places(tree)
    if len(leaves) > WORDS:
        raise ValueError(f"a tree of {len(leaves)} words does not fit; draw its parts, of at most {WORDS} words each")
    height = max(place[1] for place in places)
    sheet = Sheet((word_room(leaves)[-1] + 1.2, 1.4 + 0.34 * min(height, LEVELS)), title, ax, path, dark)
    draw_tree(sheet, sheet.ax, tree)
    return sheet.done()


def draw_arcs(sheet: Sheet, ax: Axes, words: Sequence[str], heads: Sequence[int], gold: Sequence[int] | None) -> None:
    """Words and arcs on given axes.

    Args:
        sheet: that is drawn on.
        ax: its axes.
        words: at most 60.
        heads: of these words; a head beyond them is drawn to the edge.
        gold: as of `plot_dependencies`.
    """
    x = word_room(words)
    last = len(words)
    heads = [min(h, last) for h in heads]
    sure = [gold is None or heads[i] == min(gold[i], last) for i in range(last)]
    above = [(i, h - 1) for i, h in enumerate(heads) if h and h - 1 != i]
    levels = arc_levels(above)
    top = max(levels, default=0)
    for (i, h), level in zip(above, levels, strict=True):
        _arc(ax, x[h], x[i], 0.35, level, sheet.look.right if sure[i] else sheet.look.wrong, "-" if sure[i] else "--")
    for i, h in enumerate(heads):
        if not h:
            colour = sheet.look.right if sure[i] else sheet.look.wrong
            _arrow(ax, x[i], top + 1.0, 0.35, colour, "-" if sure[i] else "--")
    low = 0.0
    if gold is not None:
        below = [(i, min(h, last) - 1) for i, h in enumerate(gold) if h and not sure[i] and min(h, last) - 1 != i]
        depths = arc_levels(below)
        for (i, h), level in zip(below, depths, strict=True):
            _arc(ax, x[h], x[i], -0.35, -level, sheet.look.soft, ":")
        for i, h in enumerate(gold):
            if not h and not sure[i]:
                _arrow(ax, x[i], -max(depths, default=0) - 1.0, -0.35, sheet.look.soft, ":")
        low = -max(depths, default=0) - 1.2
    for place, word in zip(x, words, strict=True):
        ax.text(place, 0.0, worded(word, 14), ha="center", va="center", fontsize=10, color=sheet.look.ink)
    ax.set_xlim(-0.5, x[-1] + 0.5)
    ax.set_ylim(min(low, -0.5), top + 1.3)
    sheet.bare(ax)


def draw_tree(sheet: Sheet, ax: Axes, tree: Any) -> None:
    """A constituency tree on given axes.

    Args:
        sheet: that is drawn on.
        ax: its axes.
        tree: as of `plot_constituents`.
    """
    leaves, places = tree_places(tree)
    x = word_room(leaves)
    top = max(place[1] for place in places)
    step = min(1.0, LEVELS / max(top, 1))
    at = np.interp([place[0] for place in places], np.arange(len(leaves)), x)
    for _, height, children in places:
        y = 0.35 + height * step
        if children:
            ax.plot([at[children[0]], at[children[-1]]], [y, y], color=sheet.look.right, linewidth=1.4)
        for child in children:
            low = 0.35 + places[child][1] * step
            ax.plot([at[child]] * 2, [low, y], color=sheet.look.right, linewidth=1.4)
    for place, leaf in zip(x, leaves, strict=True):
        ax.text(place, 0.0, worded(leaf, 14), ha="center", va="center", fontsize=10, color=sheet.look.ink)
    ax.set_xlim(-0.5, x[-1] + 0.5)
    ax.set_ylim(-0.5, top * step + 0.8)
    sheet.bare(ax)


def word_room(words: Sequence[Any]) -> Any:
    """Places of the middles of some words, in inches, so that none touches the next."""
    widths = [sum(0.16 if ord(c) > 0x2E7F else 0.095 for c in worded(w, 14).replace("\\", "")) for w in words]
    steps = [max(0.42, (a + b) / 2 + 0.14) for a, b in pairwise(widths)]
    return np.concatenate([[0.0], np.cumsum(steps)])


def checked_heads(words: Sequence[str], heads: Sequence[int], gold: Sequence[int] | None) -> list[int]:
    """The heads of the words shown."""
    for name, some in (("heads", heads), ("gold", gold)):
        if some is not None and (len(some) != len(words) or not all(0 <= h <= len(words) for h in some)):
            raise ValueError(
                f"{name} must be {len(words)} numbers in [0, {len(words)}], 0 for a root; got {list(some)}"
            )
    if not words:
        raise ValueError("there are no words to draw a tree over")
    return [min(h, WORDS) for h in heads[:WORDS]]


def _arc(ax: Any, start: float, end: float, foot: float, level: float, colour: str, style: str) -> None:
    """From the head to its dependent, with an arrow there."""
    turn, sign = np.linspace(0.0, np.pi, 48), 1 if level > 0 else -1
    start, end = start + (0.06 if end > start else -0.06), end - (0.06 if end > start else -0.06)
    y = foot + sign * (abs(level) - 0.2) * np.sin(turn) ** 0.7
    ax.plot(start + (end - start) * (1 - np.cos(turn)) / 2, y, color=colour, linestyle=style, linewidth=1.4)
    ax.plot([end], [foot + sign * 0.06], marker="v" if sign > 0 else "^", markersize=4, color=colour)


def _arrow(ax: Any, x: float, start: float, end: float, colour: str, style: str) -> None:
    """The line of a root."""
    ax.plot([x, x], [start, end], color=colour, linestyle=style, linewidth=1.4)
    ax.plot(
        [x], [end + (0.06 if start > end else -0.06)], marker="v" if start > end else "^", markersize=4, color=colour
    )
