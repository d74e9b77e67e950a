r"""Relation triples of one text as arcs over it, gold and predicted in one picture.

The text stands in lines on a grid of cells, a Chinese character two cells wide, a Latin one one, so that a place in the
text is a place in the picture whatever fonts the reader has. An arc leaves the middle of the subject and ends with an
arrow at the middle of the object, its predicate in its line; where they stand in different lines of text it leaves the
line at the right edge and comes back at the left. Arcs of a line are stacked:

    level(a) = the least at which nothing stands in the way, short arcs first                                     (1)

    correct (gold = predicted)      solid, blue                                                                    (2)
    missed (gold only)              dashed, vermilion, "missed" after the predicate
    spurious (predicted only)       dotted, amber, "spurious" after it

Source: none, ours; the look is that of annotation tools.
Shapes: triples are (subject start, end, predicate, object start, end), ends exclusive, in characters.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from danlu.gallery.charts import escape, shorten, svg, text_width, words

__all__ = ["arcs"]

CELL, LINE, STEP, FONT = 9.2, 27.0, 21.0, 16  # pixels: width of a cell, room of a line of text, of a level; type size
EDGE = 14.0  # pixels on either side of the text
KINDS = ("correct", "missed", "spurious")
Arc = tuple[int, int, str, int, int]


@dataclass(frozen=True)
class Stretch:
    """The part of an arc over one line: from x to x', whether it rises from a span there, and whether it ends there."""

    row: int
    left: float
    right: float
    rises: tuple[bool, bool]  # at the left end, at the right end
    arrow: str  # "left", "right" or "": the end that points at the object
    kind: str
    label: str
    tip: str
    label_at: float  # pixel of the middle of the label


def arcs(text: str, gold: Iterable[Sequence[Any]], pred: Iterable[Sequence[Any]], columns: int = 76) -> str:
    """The picture of a text and its triples.

    Args:
        text: what the triples are of.
        gold: the true triples.
        pred: the predicted ones.
        columns: cells of a line.

    Returns:
        SVG text at natural size.

    Raises:
        ValueError: a triple does not lie in the text, or there are fewer than 8 columns.

    >>> arcs("张三去北京", [(0, 2, "去", 3, 5)], [(0, 2, "去", 3, 5)]).count('class="arc correct"')
    1
    """
    if columns < 8:
        raise ValueError(f"arcs needs at least 8 columns, got {columns}")
    truth, found = _checked(text, gold, "gold"), _checked(text, pred, "predicted")
    judged = [(arc, KINDS[0] if arc in truth and arc in found else KINDS[1] if arc in truth else KINDS[2])
              for arc in sorted(truth | found)]  # eq. (2)  # fmt: skip
    places, rows = _grid(text, columns)
    right_edge = EDGE + columns * CELL
    stretches = [part for arc, kind in judged for part in _stretches(text, arc, kind, places, right_edge)]
    levels = _levels(stretches)
    tops: list[float] = []  # where each line's arcs begin
    y = 8.0
    for row in range(rows):
        tops.append(y)
        high = max((levels[i] + 1 for i, part in enumerate(stretches) if part.row == row), default=0)
        y += high * STEP + LINE
    base = [y_next - LINE for y_next in [*tops[1:], y]]  # where each line of text begins
    surest_last = sorted(judged, key=lambda entry: -KINDS.index(entry[1]))
    marked = {span: kind for arc, kind in surest_last for span in ((arc[0], arc[1]), (arc[3], arc[4]))}
    body = [_span(span, kind, places, base) for span, kind in sorted(marked.items())]
    drawn = [_arc(part, levels[i], base[part.row]) for i, part in enumerate(stretches)]
    body += [line for line, _ in drawn] + [label for _, label in drawn]  # labels over all lines
    body += _letters(text, places, base)
    told = "; ".join(f"{text[a[0] : a[1]]} {a[2]} {text[a[3] : a[4]]}: {kind}" for a, kind in judged)
    return svg(2 * EDGE + columns * CELL, y + 4, "".join(body), f"Triples: {told or 'none'}")


def _checked(text: str, triples: Iterable[Sequence[Any]], side: str) -> set[Arc]:
    found: set[Arc] = set()
    for a, b, predicate, c, d in triples:
        if not (0 <= a < b <= len(text) and 0 <= c < d <= len(text)):
            raise ValueError(
                f"the {side} triple {[a, b, predicate, c, d]} does not lie in the text of {len(text)} characters; "
                "spans need 0 <= start < end <= length, end exclusive"
            )
        found.add((a, b, str(predicate), c, d))
    return found


def _grid(text: str, columns: int) -> tuple[list[tuple[int, int, int]], int]:
    """(line, first cell, cells) of every character, and the number of lines; Latin words stay whole if they fit."""
    widths = [2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text]
    places: list[tuple[int, int, int]] = []
    row = column = 0
    for i, character in enumerate(text):
        if character == "\n":
            places.append((row, min(column, columns - 1), 0))
            row, column = row + 1, 0
            continue
        need = widths[i]
        if (
            character.isascii()
            and character.isalnum()
            and (i == 0 or not (text[i - 1].isascii() and text[i - 1].isalnum()))
        ):
            end = i
            while end < len(text) and text[end].isascii() and text[end].isalnum():
                end += 1
            need = min(end - i, columns)
        if column + need > columns and column:
            row, column = row + 1, 0
        if character.isspace() and row and not column:
            widths[i] = 0  # a line that was broken at a blank does not begin with it
        places.append((row, column, widths[i]))
        column += widths[i]
    return places, row + 1


def _middle(span: tuple[int, int], places: Sequence[tuple[int, int, int]]) -> tuple[int, float]:
    """Line and pixel of the middle of a span's part on its first line."""
    row = places[span[0]][0]
    cells = [place for place in places[span[0] : span[1]] if place[0] == row]
    return row, EDGE + CELL * (cells[0][1] + cells[-1][1] + cells[-1][2]) / 2


def _stretches(text: str, arc: Arc, kind: str, places: Sequence[tuple[int, int, int]], edge: float) -> list[Stretch]:
    """An arc cut where it leaves a line; short ones are widened to hold their predicate."""
    a, b, predicate, c, d = arc
    label = shorten(predicate, 24) + (f" · {kind}" if kind != KINDS[0] else "")
    tip = f"{text[a:b]} → {predicate} → {text[c:d]} ({kind})"
    (row, x), (row_o, x_o) = _middle((a, b), places), _middle((c, d), places)
    backward = (row_o, x_o) < (row, x)
    low, high = sorted(((row, x), (row_o, x_o)))
    parts = []
    for line in range(low[0], high[0] + 1):
        first, last = line == low[0], line == high[0]
        left, right = low[1] if first else EDGE / 2, high[1] if last else edge + EDGE / 2
        arrow = "left" if backward and first else "right" if last and not backward else ""
        half = text_width(label) / 2 + 4
        middle = min(max((left + right) / 2, half), edge + EDGE - half)  # inside the picture
        parts.append(Stretch(line, left, right, (first, last), arrow, kind, label, tip, middle))
    return parts


def _room(part: Stretch) -> tuple[float, float]:
    """What a stretch takes of its level: itself or its predicate, whichever is wider."""
    half = text_width(part.label) / 2 + 4
    return min(part.left, part.label_at - half) - 3, max(part.right, part.label_at + half) + 3


def _levels(stretches: Sequence[Stretch]) -> list[int]:
    """The level of each, eq. (1)."""
    levels = [0] * len(stretches)
    order = sorted(range(len(stretches)), key=lambda i: (stretches[i].right - stretches[i].left, i))
    taken: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for i in order:
        part, (left, right) = stretches[i], _room(stretches[i])
        level = 0
        while any(left < b and a < right for a, b in taken.get((part.row, level), ())):
            level += 1
        levels[i] = level
        taken.setdefault((part.row, level), []).append((left, right))
    return levels


def _arc(part: Stretch, level: int, base: float) -> tuple[str, str]:
    """The line of a stretch with its arrow, and its predicate; base is where the text begins."""
    foot, y, bend = base - 1, base - 8 - level * STEP, 5.0
    left, right = part.left, part.right
    if all(part.rises) and right - left < 2 * bend:
        bend = (right - left) / 2
    start = (
        f"M{left:.1f} {foot:.1f}V{y + bend:.1f}Q{left:.1f} {y:.1f} {left + bend:.1f} {y:.1f}"
        if part.rises[0]
        else (f"M{left:.1f} {y:.1f}")
    )
    stop = (
        f"H{right - bend:.1f}Q{right:.1f} {y:.1f} {right:.1f} {y + bend:.1f}V{foot:.1f}"
        if part.rises[1]
        else (f"H{right:.1f}")
    )
    drawn = f'<path class="arc {part.kind}" d="{start}{stop}"><title>{escape(part.tip)}</title></path>'
    if part.arrow:
        x = left if part.arrow == "left" else right
        drawn += f'<path class="tip {part.kind}" d="M{x - 3.5:.1f} {foot - 5:.1f}h7l-3.5 6z"/>'
    width, middle = text_width(part.label) + 6, part.label_at
    veil = f'<rect class="veil" x="{middle - width / 2:.1f}" y="{y - 14:.1f}" width="{width:.1f}" height="12"/>'
    return drawn, veil + words(part.label, middle, y - 4, "middle", part.kind)


def _span(span: tuple[int, int], kind: str, places: Sequence[tuple[int, int, int]], base: Sequence[float]) -> str:
    """A bar under a subject or an object, on each of its lines."""
    bars = []
    for row in sorted({place[0] for place in places[span[0] : span[1]]}):
        cells = [place for place in places[span[0] : span[1]] if place[0] == row and place[2]]
        if cells:
            x, end = EDGE + CELL * cells[0][1], EDGE + CELL * (cells[-1][1] + cells[-1][2])
            y = base[row] + FONT + 4
            bars.append(f'<path class="under {kind}" d="M{x + 1:.1f} {y:.1f}H{end - 1:.1f}"/>')
    return "".join(bars)


def _letters(text: str, places: Sequence[tuple[int, int, int]], base: Sequence[float]) -> list[str]:
    """The text, every character at its cell; a combining mark goes with the letter before it."""
    rows: dict[int, list[tuple[float, str]]] = {}
    for character, (row, column, width) in zip(text, places, strict=True):
        line = rows.setdefault(row, [])
        if not width and line and character != "\n":
            line[-1] = line[-1][0], line[-1][1] + character
        elif not character.isspace():
            line.append((EDGE + CELL * (column + width / 2), character))
    return [
        f'<text class="letters" text-anchor="middle" y="{base[row] + FONT:.1f}">'
        + "".join(f'<tspan x="{x:.1f}">{escape(letters)}</tspan>' for x, letters in line)
        + "</text>"
        for row, line in sorted(rows.items())
    ]
