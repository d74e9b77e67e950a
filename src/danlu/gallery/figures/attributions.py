r"""What training examples did to one prediction: bars, with the examples' images or texts beside them.

Bars to the right pushed the number up, bars to the left down. The strongest of both kinds are drawn; the title says how
many there are, and what the others did together.

Source: kexue.fm/archives/8009 (a prediction as a sum over examples); house rules.
Shapes: N training examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.gallery.figures.fonts import worded
from danlu.gallery.figures.sheet import Sheet, as_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_attributions"]


def plot_attributions(
    contributions: Any,
    texts: Sequence[str] | None = None,
    images: Any = None,
    *,
    explained: Any = None,
    top: int = 6,
    name: str = "contribution",
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """The examples that pushed a prediction up and down the most.

    Args:
        contributions: (N,) such as `PathAttribution.contributions[row, output]`.
        texts: N texts or labels; None: the numbers of the examples.
        images: (N, height, width) numbers, drawn in grey beside the bars.
        explained: the text, or the (height, width) image, whose prediction it is.
        top: examples of each sign at most.
        name: of the contributions.
        title: over the picture.
        ax: axes to draw in, which are divided where there are images; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure.

    Raises:
        ValueError: no number, a contribution that is not finite, texts or images of another number, top below 1.

    >>> len(plot_attributions([0.5, -0.2, 0.0]).axes[0].patches)
    2
    """
    values = as_array(contributions, "contributions", 1)
    if not len(values) or not np.isfinite(values).all() or top < 1:
        raise ValueError(
            f"needs finite contributions of at least one example and top >= 1; got {len(values)}, "
            f"{int((~np.isfinite(values)).sum())} of them not finite, and top {top}"
        )
    pictures = None if images is None else as_array(images, "images", 3)
    for what, some in (("texts", texts), ("images", pictures)):
        if some is not None and len(some) != len(values):
            raise ValueError(f"{what} must be one for each of the {len(values)} examples, got {len(some)}")
    order = np.argsort(-values, kind="stable")
    up = [int(i) for i in order[:top] if values[i] > 0]
    down = [int(i) for i in order[::-1][:top] if values[i] < 0]
    shown = [*up, *down[::-1]]
    whole, rest = (sign_free(x, values) for x in (values.sum(), values.sum() - values[shown].sum()))
    sheet = Sheet((6.8 if texts is None else 8.6, max(2.0, 0.42 * len(shown) + 1.3)), title, ax, path, dark)
    if explained is not None and isinstance(explained, str):
        sheet.note(f"explained: {worded(explained, 80)}")
    sheet.note(f"{len(shown)} of {len(values):,} examples; the others add {rest:+.3g} to a sum of {whole:+.3g}")
    bars = sheet.ax
    if pictures is not None:
        parts = sheet.panels((0.14, 1) if explained is None or isinstance(explained, str) else (0.3, 0.14, 1))
        column, bars = parts[-2], parts[-1]
        if len(parts) == 3:
            _image(sheet, parts[0], as_array(explained, "explained", 2))
            parts[0].set_xlabel("explained")
        height, width = pictures.shape[1:]
        for row, i in enumerate(shown):
            half, side = 0.42, 0.42 * width / height
            place = (-side, side, row + half, row - half)
            column.imshow(pictures[i], cmap=_grey(sheet), extent=place, interpolation="none")
        column.set_xlim(-0.5 * width / height, 0.5 * width / height)
        column.set_ylim(len(shown) - 0.4, -0.6)
        column.set_aspect("equal", anchor="E")
        sheet.bare(column)
    colours = [sheet.look.right if values[i] > 0 else sheet.look.wrong for i in shown]
    bars.barh(range(len(shown)), values[shown], color=colours, height=0.62)
    for row, i in enumerate(shown):
        bars.annotate(
            f"{values[i]:+.3g}".replace("-", "−"), (values[i], row), textcoords="offset points",
            xytext=(4 if values[i] > 0 else -4, 0), ha="left" if values[i] > 0 else "right", va="center", fontsize=8,
            color=sheet.look.soft,
        )  # fmt: skip
    labels = [f"{i}" if texts is None else worded(texts[i], 34) for i in shown]
    bars.set_yticks(range(len(shown)), labels=labels)
    bars.tick_params(axis="y", length=0)
    bars.set_ylim(len(shown) - 0.4, -0.6)
    bars.axvline(0.0, color=sheet.look.soft, linewidth=1)
    bars.margins(x=0.16)
    sheet.plain(bars, name, "", grid="x")
    bars.spines["left"].set_visible(False)
    return sheet.done()


def sign_free(total: float, values: Any) -> float:
    """A sum, with what is only rounding as 0."""
    return 0.0 if abs(total) < 1e-12 * np.abs(values).sum() else float(total)


def _grey(sheet: Sheet) -> Any:
    """From the paper to the ink."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("danlu grey", [sheet.look.paper, sheet.look.ink])


def _image(sheet: Sheet, ax: Any, picture: Any) -> None:
    ax.imshow(picture, cmap=_grey(sheet), interpolation="none")
    sheet.bare(ax)
