r"""What all pictures share: the sheet they are drawn on, the look of the axes, and how they are saved.

Figures are built without pyplot: no window, no state that outlives them, none left open. With `ax=` a picture goes into
somebody's axes; pictures of several panels divide these. PNG, SVG and PDF by the ending of `path`; two calls write the
same bytes. An SVG keeps text as text and cells as crisp pixels.

Source: house rules. Shapes: W x H inches, 150 pixels each.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.gallery.figures.colours import DARK, LIGHT, scale_colours
from danlu.gallery.figures.fonts import families, legible, tell_lacking, worded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Sheet", "as_array", "check_path", "wrapped"]

ENDINGS = (".png", ".svg", ".pdf")
DPI = 150
LARGEST = 24.0  # inches of either side
_SAVING = threading.Lock()  # settings of matplotlib are changed for the time of a save, and put back


def as_array(values: Any, asked: str, ndim: int | None = None) -> Any:
    """Numbers as a float64 array.

    Args:
        values: tensor, array or nested lists, any numeric dtype.
        asked: what they are, for messages.
        ndim: how many axes they must have; None: any.

    Returns:
        The array, detached and on the CPU.

    Raises:
        ValueError: not numbers, ragged rows, another number of axes.

    >>> as_array([[1, 2]], "weights", 2).shape
    (1, 2)
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{asked} must be numbers in rows of one length; {error}") from None
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{asked} must have {ndim} {'axes' if ndim > 1 else 'axis'}, got shape {array.shape}")
    return array


def check_path(path: str | Path | None) -> Path | None:
    """The path of a picture, refused before any work if its ending is none of those that can be written.

    Args:
        path: a name that ends in .png, .svg or .pdf, or None.

    Returns:
        The path.

    Raises:
        ValueError: another ending.

    >>> check_path("a.svg").suffix
    '.svg'
    """
    if path is None:
        return None
    found = Path(path)
    if found.suffix.lower() not in ENDINGS:
        raise ValueError(f"path must end in {', '.join(ENDINGS)}, got {str(found)!r}")
    return found


def wrapped(text: str, room: int) -> list[str]:
    """A text in lines of so many letters, a Chinese one counting as two.

    Args:
        text: one line.
        room: letters.

    Returns:
        The lines; words stay whole if they fit.

    >>> wrapped("ab cd 中文", 5)
    ['ab cd', '中文']
    """
    lines, line, width = [], "", 0
    for word in re.findall(r"\s+|[\u2e80-\uffff]|[^\s\u2e80-\uffff]+", text):
        size = 2 if len(word) == 1 and ord(word) > 0x2E7F else len(word)
        if width + size > room and line.strip():
            lines.append(line.strip())
            line, width = "", 0
            if word.isspace():
                continue
        line, width = line + word, width + size
    return [*lines, line.strip()] if line.strip() or not lines else lines


class Sheet:
    """A figure in the making: `figure`, `ax`, `look`; `done` finishes it."""

    def __init__(
        self,
        size: tuple[float, float],
        title: str = "",
        ax: Axes | None = None,
        path: str | Path | None = None,
        dark: bool = False,
    ) -> None:
        """Take an empty figure, or somebody's axes.

        Args:
            size: inches, width and height, of a figure of our own.
            title: over the picture.
            ax: draw here instead.
            path: file to write at the end.
            dark: light on dark.

        Raises:
            ValueError: an ending of path that cannot be written.
            ImportError: matplotlib is missing.
        """
        self.path, self.look, self.notes = check_path(path), DARK if dark else LIGHT, [title] if title else []
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("pictures need matplotlib, which is not installed: pip install 'danlu[plots]'") from None
        if ax is None:
            width, height = (min(max(side, 1.5), LARGEST) for side in size)
            figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor=self.look.paper)
            FigureCanvasAgg(figure)
            figure.get_layout_engine().set(w_pad=0.09, h_pad=0.09)  # type: ignore[union-attr, call-arg]
            ax = figure.add_subplot()
            self.owned = True
        else:
            self.owned = False
        root = ax.get_figure(root=True)
        assert root is not None
        self.figure: Figure = root
        self.ax = ax
        self.axes: list[Axes] = [ax]

    def note(self, text: str) -> None:
        """Add to the title what a reader must know: pooled, cut off, cells without a number."""
        self.notes.append(text)

    def panels(self, widths: Sequence[float], heights: Sequence[float] = (1.0,)) -> list[Axes]:
        """Axes in rows and columns of these relative sizes, row by row, in the place of `ax`."""
        spec = self.ax.get_subplotspec()
        if spec is None:  # axes that somebody placed by hand: divide them
            self.ax.axis("off")
            gap, found = 0.12, []
            tops, lefts = 1 - np.cumsum([0, *heights]) / sum(heights), np.cumsum([0, *widths]) / sum(widths)
            for i in range(len(heights)):
                for j in range(len(widths)):
                    w, h = lefts[j + 1] - lefts[j], tops[i] - tops[i + 1]
                    box = (lefts[j] + gap * w, tops[i + 1] + gap * h, (1 - 2 * gap) * w, (1 - 2 * gap) * h)
                    found.append(self.ax.inset_axes(box))
        else:
            self.ax.remove()
            grid = spec.subgridspec(len(heights), len(widths), width_ratios=widths, height_ratios=heights)
            owner = getattr(spec.get_gridspec(), "figure", None) or self.figure
            found = [owner.add_subplot(grid[i, j]) for i in range(len(heights)) for j in range(len(widths))]
        self.axes = list(found)
        self.ax = found[0]
        return found

    def scale(self, signed: bool = False) -> Any:
        """Colour map of the look; numbers that are none show the paper."""
        from matplotlib.colors import ListedColormap

        colours = ListedColormap(scale_colours(self.look, signed), name="danlu signed" if signed else "danlu")
        return colours.with_extremes(bad=(0.0, 0.0, 0.0, 0.0))

    def plain(self, ax: Axes, x: str = "", y: str = "", grid: str = "y") -> None:
        """Axes with labels, two lines instead of a box, and a grid behind the data along `grid` ("x", "y" or "")."""
        ax.set_xlabel(worded(x, 80))
        ax.set_ylabel(worded(y, 80))
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        if grid:
            ax.grid(axis=grid, color=self.look.rule, linewidth=0.7)  # type: ignore[arg-type]
            ax.set_axisbelow(True)

    def bare(self, ax: Axes) -> None:
        """Axes without ticks and box."""
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)

    def legend(self, ax: Axes, **options: Any) -> None:
        """A legend without a frame, if there is anything to name."""
        if ax.get_legend_handles_labels()[1]:
            ax.legend(frameon=False, fontsize=8, labelcolor=self.look.ink, **options)

    def bar(self, image: Any, axes: Axes | Sequence[Axes], label: str) -> None:
        """The scale of an image, beside its axes."""
        ours = self.figure.colorbar(image, ax=axes, label=worded(label, 60), fraction=0.046, pad=0.02)
        ours.outline.set_visible(False)
        self.axes.append(ours.ax)

    def done(self) -> Figure:
        """Colour and check all texts, write the file if one was asked for, return the figure."""
        if self.notes:
            room = int(12 * self.figure.get_figwidth())  # letters of a line
            lines = [line for note in self.notes for line in wrapped(worded(note, 200), room)]
            if self.owned:
                self.figure.suptitle("\n".join(lines), x=0.015, ha="left", fontsize=10, color=self.look.ink)
            else:
                self.ax.set_title("\n".join(lines), loc="left", fontsize=10, color=self.look.ink)
        self._dress()
        if self.path is not None:
            self._save(self.path)
        return self.figure

    def _dress(self) -> None:
        """Fonts and colours of all axes of the sheet; what no font has is written out, unless an SVG is made."""
        from matplotlib.text import Text
        from matplotlib.ticker import FixedLocator

        fonts, look = list(families()), self.look
        lacking: set[str] = set()
        for ax in self.axes:
            ax.set_facecolor(look.paper)
            ax.tick_params(colors=look.soft, labelfontfamily=fonts, which="both")
            ax.tick_params(labelsize=8)
            for spine in ax.spines.values():
                spine.set_color(look.rule)
            for label in (ax.xaxis.label, ax.yaxis.label):
                label.set_color(look.soft)
                label.set_fontsize(9)
        svg = self.path is not None and self.path.suffix.lower() == ".svg"
        for axis in [axis for ax in self.axes for axis in (ax.xaxis, ax.yaxis)]:
            if isinstance(axis.get_major_locator(), FixedLocator) and not svg:  # written anew with every drawing
                pairs = [legible(label.get_text()) for label in axis.get_ticklabels()]
                lacking |= set().union(*(missing for _, missing in pairs))
                if lacking:
                    axis.set_ticks(axis.get_ticklocs(), labels=[label for label, _ in pairs])
        found = [text for ax in self.axes for text in ax.findobj(Text)] + list(self.figure.texts)
        found += [t for t in (getattr(self.figure, "_suptitle", None),) if t is not None]
        for text in found:
            text.set_fontfamily(fonts)
            if not svg:
                shown, missing = legible(text.get_text())
                lacking |= missing
                if missing:
                    text.set_text(shown)
        tell_lacking(lacking)

    def _save(self, path: Path) -> None:
        """Write the figure once all of it is drawn."""
        from matplotlib import rc_context

        ending = path.suffix.lower()[1:]
        dates: dict[str, dict[str, Any]] = {
            "svg": {"Date": None, "Creator": None},
            "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
            "png": {"Software": None},
        }
        buffer = io.BytesIO()
        settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "danlu", "pdf.fonttype": 42}
        with _SAVING, rc_context(settings), warnings.catch_warnings():
            if ending == "svg":
                warnings.filterwarnings("ignore", "Glyph .* missing from font")
            self.figure.savefig(buffer, format=ending, metadata=dates[ending], facecolor=self.figure.get_facecolor())
        path.write_bytes(buffer.getvalue())
