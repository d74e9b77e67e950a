r"""The three factors of Nyström attention side by side; their product, which they stand in for, is never formed.

    F  queries by landmarks    A^+  landmarks by landmarks, of both signs    G  landmarks by keys              (1)

The condition of A^+, which is that of A, says how far rounding is blown up.

Source: Xiong et al., 2021, arXiv:2102.03902. Shapes: T queries, S keys, m landmarks.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.gallery.figures.heat_map import draw_matrix
from danlu.gallery.figures.sheet import Sheet, as_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_nystrom_factors"]


def plot_nystrom_factors(
    left: Any,
    middle: Any,
    right: Any,
    *,
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """F, A^+ and G of one head, eq. (1), each with its own scale.

    Args:
        left: (T, m) of `danlu.nn.nystrom_factors`.
        middle: (m, m), drawn around 0.
        right: (m, S).
        title: over the picture.
        ax: axes to draw in, which are divided; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure, the power of ten of the condition in its title.

    Raises:
        ValueError: shapes that do not multiply.

    >>> len(plot_nystrom_factors([[1.0]], [[1.0]], [[1.0]]).axes)  # three maps, three scales
    6
    """
    f, a, g = as_array(left, "left", 2), as_array(middle, "middle", 2), as_array(right, "right", 2)
    if not (f.shape[1] == a.shape[0] == a.shape[1] == g.shape[0]) or not f.size or not g.size:
        raise ValueError(
            f"left (T, m), middle (m, m) and right (m, S) must multiply, got {f.shape}, {a.shape}, {g.shape}"
        )
    sheet = Sheet((11.5, 3.9), title, ax, path, dark)
    if np.isfinite(a).all():
        condition = float(np.linalg.cond(a))
        sheet.note(f"condition of A⁺: 10^{np.log10(condition):.1f}" if np.isfinite(condition) else "A⁺ is singular")
    parts = ((f, None, ("query", "landmark"), "F"), (a, 0.0, ("landmark", "landmark"), "A⁺"),
             (g, None, ("landmark", "key"), "G"))  # fmt: skip
    for panel, (array, center, names, name) in zip(sheet.panels((1, 1, 1)), parts, strict=True):
        image = draw_matrix(sheet, panel, array, center=center, names=names, labels=12)
        panel.set_aspect("auto")
        sheet.bar(image, panel, name)
    return sheet.done()
