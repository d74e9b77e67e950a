r"""Spectra of sets of vectors before and after whitening, scores by dimension, and histograms of cosines.

    share of an eigenvalue   lambda_i / lambda_1                                                               (1)
    participation ratio      (sum_i lambda_i)^2 / sum_i lambda_i^2                                             (2)

Source: kexue.fm/archives/8069 (spectra and scores by dimension); house rules.
Shapes: N vectors or pairs, D features, k dimensions kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.gallery.figures.fonts import worded
from danlu.gallery.figures.sheet import Sheet, as_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_similarities", "plot_spectrum"]

DASHES = ("-", "--", ":", "-.")


def plot_spectrum(
    spectra: Mapping[str, Any],
    scores: Mapping[str, Mapping[int, float]] | None = None,
    *,
    baseline: float | None = None,
    metric: str = "Spearman",
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """Eigenvalues of covariances on a logarithmic axis, and a score as the number of dimensions grows.

    Args:
        spectra: name -> (D,) eigenvalues, such as before and after whitening; each is divided by its largest.
        scores: name -> {k: score} with k dimensions kept; None: no second panel.
        baseline: score of the vectors as they are, a dashed line.
        metric: name of the score.
        title: over the picture.
        ax: axes to draw in, which are divided where there are scores; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure; the legend gives participation ratios, (sum of eigenvalues)^2 / sum of squares.

    Raises:
        ValueError: no eigenvalues, or negative ones.

    >>> plot_spectrum({"raw": [4.0, 1.0]}).axes[0].get_yscale()
    'log'
    """
    parts = {name: np.sort(as_array(values, f"spectrum of {name}", 1))[::-1] for name, values in spectra.items()}
    for name, values in parts.items():
        if not len(values) or not np.isfinite(values).all() or values[0] <= 0 or values[-1] < -1e-6 * values[0]:
            raise ValueError(
                f"the spectrum of {name} needs finite eigenvalues, none negative and one above 0; got {len(values)} "
                f"from {values.min() if len(values) else 0:.3g}"
            )
    if not parts:
        raise ValueError("plot_spectrum needs at least one spectrum, name -> eigenvalues")
    sheet = Sheet((8.4 if scores else 4.8, 4.0 if scores else 3.4), title, ax, path, dark)
    panels = sheet.panels((1, 1)) if scores else [sheet.ax]
    floor = 1.0
    for i, (name, values) in enumerate(parts.items()):
        share = np.maximum(values / values[0], 0.0)  # eq. (1)
        ratio = share.sum() ** 2 / (share**2).sum()  # eq. (2)
        shown = share[share > 1e-12]
        floor = min(floor, float(shown.min()))
        panels[0].plot(
            np.arange(1, len(shown) + 1), shown, color=sheet.look.series[i % 6], linestyle=DASHES[i % 4], linewidth=1.7,
            label=worded(f"{name} ({ratio:.3g} of {len(values)} dimensions)", 60),
        )  # fmt: skip
    panels[0].set_yscale("log")
    panels[0].set_ylim(max(floor / 1.5, 1e-13) if floor < 0.9 else 0.1, 2.0)
    sheet.plain(panels[0], "number of the eigenvalue", "share of the largest")
    sheet.legend(panels[0], loc="lower left")
    if scores:
        for i, (name, by_dim) in enumerate(scores.items()):
            dims = sorted(int(k) for k in by_dim)
            found = [float(by_dim[k]) for k in dims]
            best = int(np.nanargmax(found)) if np.isfinite(found).any() else None
            told = "" if best is None else f", best {found[best]:.3f} at {dims[best]}"
            panels[1].plot(
                dims, found, color=sheet.look.series[i % 6], linestyle=DASHES[i % 4], marker="o", markersize=3,
                linewidth=1.7, label=worded(name + told, 60),
            )  # fmt: skip
        if baseline is not None:
            label = f"as they are, {baseline:.3f}"
            panels[1].axhline(baseline, color=sheet.look.soft, linewidth=1, linestyle="--", label=label)
        panels[1].set_xscale("log", base=2)
        panels[1].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panels[1].margins(x=0.12, y=0.18)
        sheet.plain(panels[1], "dimensions kept", metric)
        sheet.legend(panels[1], loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return sheet.done()


def plot_similarities(
    groups: Mapping[str, Any],
    *,
    bins: int = 40,
    low: float = -1.0,
    high: float = 1.0,
    name: str = "cosine",
    title: str = "",
    ax: Axes | None = None,
    path: str | Path | None = None,
    dark: bool = False,
) -> Figure:
    """Shares of some groups of similarities by bin, as steps, with a line at the mean of each.

    Args:
        groups: name -> (N,) numbers, such as the cosines of pairs that are alike and of others.
        bins: how many, at least 1.
        low: beginning of the first bin; numbers below it count there.
        high: end of the last; numbers above it count there.
        name: of the numbers.
        title: over the picture.
        ax: axes to draw in; None: a new figure.
        path: .png, .svg or .pdf file to write.
        dark: light on dark.

    Returns:
        The figure.

    Raises:
        ValueError: no groups, none with a finite number, bins below 1, low not below high.

    >>> plot_similarities({"alike": [0.9, 0.8]}).axes[0].get_xlabel()
    'cosine'
    """
    if bins < 1 or not low < high:
        raise ValueError(f"needs bins >= 1 and low < high, got {bins}, {low:g} and {high:g}")
    parts = {key: as_array(values, f"similarities of {key}", 1) for key, values in groups.items()}
    parts = {key: values[np.isfinite(values)] for key, values in parts.items()}
    if not any(len(values) for values in parts.values()):
        raise ValueError("plot_similarities needs at least one finite number; got none in any group")
    sheet = Sheet((6.0, 3.2), title, ax, path, dark)
    edges = np.linspace(low, high, bins + 1)
    for i, (key, values) in enumerate(parts.items()):
        if not len(values):
            sheet.note(f"{key}: no numbers")
            continue
        share = 100 * np.histogram(np.clip(values, low, high), edges)[0] / len(values)
        colour = sheet.look.series[i % 6]
        sheet.ax.stairs(share, edges, color=colour, linewidth=1.7, linestyle=DASHES[i % 4],
                        label=worded(f"{key}: {len(values):,}, mean {values.mean():.3f}", 60))  # fmt: skip
        sheet.ax.stairs(share, edges, color=colour, fill=True, alpha=0.14)
        sheet.ax.axvline(float(np.clip(values.mean(), low, high)), color=colour, linewidth=1, linestyle=DASHES[i % 4])
    sheet.plain(sheet.ax, name, "% of the group")
    sheet.ax.set_xlim(low, high)
    sheet.legend(sheet.ax, loc="best")
    return sheet.done()
