"""Pictures of plain numbers with matplotlib, one view a function: every one returns its Figure and can write a file."""

from danlu.gallery.figures.attention import plot_attention_arcs, plot_head_grid, plot_head_profile
from danlu.gallery.figures.attributions import plot_attributions
from danlu.gallery.figures.curves import plot_bars, plot_lines, plot_ode_fit
from danlu.gallery.figures.heat_map import plot_heat_map
from danlu.gallery.figures.impact import plot_boundaries, plot_impact
from danlu.gallery.figures.nystrom import plot_nystrom_factors
from danlu.gallery.figures.points import plot_embedding, plot_sphere
from danlu.gallery.figures.spectrum import plot_similarities, plot_spectrum
from danlu.gallery.figures.trees import plot_constituents, plot_dependencies

__all__ = [
    "plot_attention_arcs",
    "plot_attributions",
    "plot_bars",
    "plot_boundaries",
    "plot_constituents",
    "plot_dependencies",
    "plot_embedding",
    "plot_head_grid",
    "plot_head_profile",
    "plot_heat_map",
    "plot_impact",
    "plot_lines",
    "plot_nystrom_factors",
    "plot_ode_fit",
    "plot_similarities",
    "plot_spectrum",
    "plot_sphere",
]
