"""Report pages and their charts: plain records in, one self-contained HTML file out."""

from danlu.gallery.charts import (
    Axis,
    Series,
    heat_map,
    interval_bars,
    line_chart,
    reliability_diagram,
    stylesheet,
)
from danlu.gallery.page import ablation_page, report_page, training_page, write_page
from danlu.gallery.record import Result

__all__ = [
    "Axis",
    "Result",
    "Series",
    "ablation_page",
    "heat_map",
    "interval_bars",
    "line_chart",
    "reliability_diagram",
    "report_page",
    "stylesheet",
    "training_page",
    "write_page",
]
