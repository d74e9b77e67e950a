"""Charts: parsed back from their SVG and measured, at the edges (nothing, NaN, one value, one cell) and in contrast."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from danlu.gallery import charts
from danlu.gallery.charts import Axis, Series

SVG_UNIT = Axis(0.0, 1.0, (0.0, 1.0), ("0", "1"))


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def found(svg: str, tag: str, css: str = "") -> list[ET.Element]:
    return [e for e in parsed(svg).iter(tag) if css in e.get("class", "").split() or not css]


def test_interval_row_lies_where_the_numbers_say():
    svg = charts.interval_row(Axis(-1, 1, (), ()), 0.5, 0.0, 0.75, "helps", [0.25, None, math.nan, -0.5])
    (bar,) = found(svg, "line", "bar")
    assert (float(bar.get("x1")), float(bar.get("x2"))) == (120.0, 204.0)  # 8 + 224 * (x + 1) / 2
    (zero,) = found(svg, "line", "zero")
    assert float(zero.get("x1")) == 120.0
    assert [float(c.get("cx")) for c in found(svg, "circle", "dot")] == [148.0, 64.0]
    (mark,) = found(svg, "path", "mark")
    corners = [tuple(map(float, p.split())) for p in mark.get("d")[1:-1].split("L")]
    assert sum(x for x, _ in corners) / 3 == pytest.approx(176.0)
    assert min(corners, key=lambda p: p[1])[0] == 176.0  # the tip points up


@pytest.mark.parametrize(
    ("verdict", "shape"),
    [("helps", "up"), ("hurts", "down"), ("no evidence", "circle"), ("too few seeds", "diamond"), ("?", "circle")],
)
def test_each_verdict_has_its_own_shape(verdict, shape):
    svg = charts.interval_row(SVG_UNIT, 0.5, None, None, verdict)
    marks = found(svg, "circle", "mark") + found(svg, "path", "mark")
    assert len(marks) == 1 and not found(svg, "line", "bar")
    if shape == "circle":
        assert marks[0].tag == "circle"
    else:
        points = [tuple(map(float, p.split())) for p in marks[0].get("d")[1:-1].split("L")]
        ys = sorted(y for _, y in points)
        assert {
            "up": len(ys) == 3 and ys[1] == ys[2],
            "down": len(ys) == 3 and ys[0] == ys[1],
            "diamond": len(ys) == 4,
        }[shape]


def test_an_interval_beyond_the_axis_ends_in_an_arrowhead_at_its_edge():
    svg = charts.interval_row(SVG_UNIT, 0.5, -4.0, 0.9, "no evidence")
    (bar,) = found(svg, "line", "bar")
    assert float(bar.get("x1")) == 8.0
    assert "L" in found(svg, "path", "bar")[0].get("d") and "V" in found(svg, "path", "bar")[1].get("d")


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 1], ("0.00", "0.25", "0.50", "0.75", "1.00")),
        ([-0.013, 0.016], ("−0.01", "0.00", "0.01")),
        ([0, 5000], ("0", "2,000", "4,000")),
        ([0, 0.1], ("0.000", "0.025", "0.050", "0.075", "0.100")),
        ([0, 1e-4], ("0", "2.5e−5", "5e−5", "7.5e−5", "0.0001")),
    ],
)
def test_nice_axis_by_hand(values, labels):
    assert charts.nice_axis(values).labels == labels


@pytest.mark.parametrize(
    "values",
    [
        [],
        [None, math.nan],
        [0.0],
        [0.7, 0.7],
        [1e-12, 2e-12],
        [-1e9, 1e9],
        [0.945, 0.9450001],
        [math.inf, 1.0, 2.0],
        [5e-324, 0.0],
    ],
)
def test_nice_axis_always_holds_its_values(values):
    axis = charts.nice_axis(values)
    known = [v for v in values if v is not None and math.isfinite(v)]
    assert axis.low < axis.high and all(axis.low <= v <= axis.high for v in known)
    assert all(axis.low <= t <= axis.high for t in axis.ticks)
    assert len(axis.ticks) == len(axis.labels) <= 6 and len(set(axis.labels)) == len(axis.labels)


def test_signed_axis_marks_the_positive_side_only():
    assert charts.nice_axis([-1, 1], sign=True).labels == ("−1.0", "−0.5", "0.0", "+0.5", "+1.0")


def test_line_chart_maps_its_corners_and_lifts_the_pen_at_nan():
    svg = charts.line_chart([Series("a", [(0, 1.0), (5, math.nan), (10, 2.0), (15, 2.0)])], "a line")
    (line,) = found(svg, "path", "line")
    assert line.get("d").count("M") == 2 and line.get("d").count("L") == 1
    points = [tuple(map(float, p.split())) for p in re.split("[ML]", line.get("d"))[1:]]
    assert points[0][0] < points[1][0] < points[2][0] == 370.0
    assert points[0][1] > points[1][1] == points[2][1]  # higher values lie higher
    assert parsed(svg).get("aria-label") == "a line"


def test_line_chart_goes_logarithmic_only_for_wide_positive_values():
    def wide(values):
        return "log scale" in charts.line_chart([Series("a", list(enumerate(values)))], "x", y_label="loss")

    assert wide([100, 1, 0.1]) and not wide([3, 1]) and not wide([100, 0, 1]) and not wide([100, -1])


def test_line_chart_thins_long_series_to_means():
    points = [(i, float(i % 2)) for i in range(4800)]
    (line,) = found(charts.line_chart([Series("a", points)], "x"), "path", "line")
    assert line.get("d").count("L") == 239
    assert len(set(re.findall(r" ([\d.]+)", line.get("d")))) == 1  # the mean of 0, 1, 0, 1 ... is flat


@pytest.mark.parametrize(
    "points", [[], [(1, math.nan)], [(1, 2.0)], [(1, 0.0), (2, 0.0)], [(3, 1.0), (3, 2.0)], [(1, 1e-300), (2, 1e300)]]
)
def test_line_chart_survives_degenerate_series(points):
    assert "nan" not in charts.line_chart([Series("a", points, dots=True)], "x", best=(1, math.nan)).replace("aria", "")


def test_a_single_point_is_drawn_as_a_dot():
    assert len(found(charts.line_chart([Series("a", [(1, 2.0)])], "x"), "circle")) == 1


def test_heat_map_places_rows_down_and_columns_across():
    svg = charts.heat_map(
        ["a", "b"],
        ["x", "y", "z"],
        [[0, 1, 0], [0, 0, -0.5]],
        [["", "p", ""], ["", "", "q"]],
        "m",
        outlined=[[True, False, False], [False] * 3],
    )
    right, wrong = found(svg, "rect", "pos"), found(svg, "rect", "neg")
    assert (len(right), len(wrong)) == (1, 1)
    assert float(right[0].get("x")) < float(wrong[0].get("x")) and float(right[0].get("y")) < float(wrong[0].get("y"))
    assert (float(right[0].get("fill-opacity")), float(wrong[0].get("fill-opacity"))) == (0.8, 0.4)
    assert right[0][0].text == "a → y: p"
    (frame,) = found(svg, "path", "outlined")
    x, y = map(float, re.match(r"M([\d.]+) ([\d.]+)h", frame.get("d")).groups())
    assert x < float(right[0].get("x")) and y - 1.5 == float(right[0].get("y"))


def test_heat_map_of_sixty_labels_keeps_numbers_in_tooltips():
    n = 60
    labels = [f"B-TYPE{i}" for i in range(n)]
    svg = charts.heat_map(labels, labels, [[0.5] * n] * n, [[f"{i}.{j}" for j in range(n)] for i in range(n)], "m")
    assert not found(svg, "text", "cell") and "B-TYPE7 → B-TYPE41: 7.41" in svg


def test_heat_map_names_the_matrix_that_does_not_fit():
    with pytest.raises(ValueError, match=r"heat_map needs text of 1 rows and 2 columns, .*got 1 rows of \[1\]"):
        charts.heat_map(["a"], ["x", "y"], [[0, 0]], [["1"]], "m")


def test_reliability_diagram_draws_the_gap_to_the_diagonal():
    svg = charts.reliability_diagram(
        [{"confidence": 1.0, "accuracy": 0.0, "count": 3}, {"confidence": 0.5, "accuracy": None, "count": 0}], "bins"
    )
    (gap,) = found(svg, "line", "bar")
    assert (float(gap.get("y1")), float(gap.get("y2"))) == (24.0, 264.0)
    assert float(found(svg, "circle")[0].get("r")) == 9.0


def test_foreign_text_is_escaped_in_every_chart():
    bad = "<script>&\"'\x00"
    for svg in (
        charts.heat_map([bad], [bad], [[1]], [[bad]], bad, bad, bad),
        charts.line_chart([Series(bad, [(0, 1), (1, 2)]), Series("b", [(0, 1)])], bad, bad, bad),
        charts.interval_bars([(bad, 0.1, 0.0, 0.2, "helps")], bad),
        charts.axis_row(SVG_UNIT, bad, bad),
        charts.reliability_diagram([], bad),
    ):
        assert "<script" not in svg and "\x00" not in svg
        parsed(svg)


def colours(block: str) -> dict[str, tuple[float, ...]]:
    return {
        name: tuple(int(h[i : i + 2], 16) / 255 for i in (0, 2, 4))
        for name, h in re.findall(r"--([\w-]+): #([0-9a-f]{6})", block)
    }


def luminance(rgb):  # WCAG 2.2
    return sum(
        w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
        for w, c in zip((0.2126, 0.7152, 0.0722), rgb, strict=True)
    )


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def blocks() -> list[str]:
    return [b for b in re.findall(r"\{([^{}]*)\}", charts.stylesheet()) if "--paper" in b]


def test_both_ways_into_the_dark_are_the_same():
    light, preferred, chosen, *_ = blocks()
    assert colours(preferred) == colours(chosen) and colours(light).keys() == colours(chosen).keys()


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast_of_text_lines_and_cells(theme):
    c = colours(blocks()[theme])
    for name in ("ink", "soft", "helps", "hurts", "even", "amber", "purple"):
        assert contrast(c[name], c["paper"]) >= 4.5, name
    for name in ("ink", "soft"):
        assert contrast(c[name], c["wash"]) >= 4.5, name
    for name in ("heat-pos", "heat-neg"):
        for alpha in (0.1, 0.4, 0.6, 0.8):
            cell = tuple(alpha * h + (1 - alpha) * p for h, p in zip(c[name], c["paper"], strict=True))
            assert contrast(c["ink"], cell) >= 4.5, (name, alpha)
    for name, ground in (("amber", "amber"), ("ink", "amber")):  # text on a spurious mark
        tint = tuple(0.17 * h + 0.83 * p for h, p in zip(c[ground], c["paper"], strict=True))
        assert contrast(c[name], tint) >= 4.5, name


def test_a_logarithmic_axis_spaces_equal_factors_equally():
    (line,) = found(charts.line_chart([Series("a", [(0, 1.0), (1, 10.0), (2, 100.0)])], "x"), "path", "line")
    heights = [float(p.split()[1]) for p in re.split("[ML]", line.get("d"))[1:]]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)  # one decimal is printed
    assert heights[0] > heights[1] > 0
