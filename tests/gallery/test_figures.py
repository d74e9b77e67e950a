"""Every picture: labels, limits, data drawn, files that parse and repeat, foreign letters, bad input, bounded sizes."""

import sys
import warnings
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="needs matplotlib; install the extra plots")
from matplotlib.figure import Figure

from danlu.gallery import figures as f
from danlu.gallery.figures import fonts

R = np.random.default_rng(0)
W = R.dirichlet(np.ones(5), size=(2, 3, 5))  # (L, H, T, T)
WORDS = ["我们", "在", "北京", "读", "书"]
DRAWN = {
    "heat map": lambda **o: f.plot_heat_map(W[0, 0], WORDS, WORDS, **o),
    "heads": lambda **o: f.plot_head_grid(W, **o),
    "arcs": lambda **o: f.plot_attention_arcs(W[0, 0], WORDS, **o),
    "profile": lambda **o: f.plot_head_profile(W[..., 0, 0], W[..., 0, 1], uniform=1.6, **o),
    "impact": lambda **o: f.plot_impact(W[0, 0], WORDS, heads=[4, 4, 2, 0, 4], tree=((0, 1), (2, (3, 4))), **o),
    "dependencies": lambda **o: f.plot_dependencies(WORDS, [4, 4, 2, 0, 4], [4, 3, 4, 0, 4], **o),
    "constituents": lambda **o: f.plot_constituents((("我们", "在"), "北京"), **o),
    "boundaries": lambda **o: f.plot_boundaries(WORDS, [1.0, 4.0, 2.0, 5.0], threshold=3.0, gold=[1, 3], **o),
    "spectrum": lambda **o: f.plot_spectrum({"raw": [3.0, 1.0, 0.1]}, {"raw": {1: 0.1, 2: 0.3}}, baseline=0.2, **o),
    "embedding": lambda **o: f.plot_embedding(R.random((5, 4)), WORDS, list("aabbb"), **o),
    "sphere": lambda **o: f.plot_sphere(R.standard_normal((5, 4)), WORDS, **o),
    "similarities": lambda **o: f.plot_similarities({"like": [0.9, 0.7], "unlike": [0.1]}, **o),
    "attributions": lambda **o: f.plot_attributions([0.3, -0.1, 0.2], ["a", "$b$", "中"], R.random((3, 4, 4)), **o),
    "ode": lambda **o: f.plot_ode_fit([0.0, 1.0], [[1.0, 2.0], [2.0, 1.0]], names=["x", "y"], **o),
    "lines": lambda **o: f.plot_lines({"a": ([1, 2], [3, 4])}, {"a": ([2, 3], [4, 5])}, **o),
    "bars": lambda **o: f.plot_bars({"a": 1.0, "b": 2.0}, {"a": (0.5, 1.5)}, {"b": 2.5}, **o),
    "factors": lambda **o: f.plot_nystrom_factors(R.random((6, 2)), R.standard_normal((2, 2)), R.random((2, 6)), **o),
}
every = pytest.mark.parametrize("name", DRAWN)


def texts_of(figure):
    from matplotlib.text import Text

    figure.canvas.draw()
    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


@every
def test_every_picture_is_drawn_without_a_warning(name, tmp_path):
    dark = list(DRAWN).index(name) % 2 == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = DRAWN[name](title="题目 $5", path=tmp_path / "a.png", dark=dark)
    assert isinstance(figure, Figure)
    png = (tmp_path / "a.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and len(png) > 3000
    paper = figure.get_facecolor()[:3]
    assert (max(paper) < 0.2) == dark
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    assert any(r"题目 \$5" in text for text in texts_of(figure))  # drawn as a dollar, not as a formula


@pytest.mark.parametrize("name", ["heat map", "arcs", "dependencies", "sphere", "attributions"])
def test_two_svgs_are_the_same_bytes_and_hold_text(name, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    state = R.bit_generator.state
    DRAWN[name](title="标题", path=tmp_path / "a.svg")
    R.bit_generator.state = state
    DRAWN[name](title="标题", path=tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    root = ET.parse(tmp_path / "a.svg").getroot()
    assert "标题" in ["".join(e.itertext()) for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
@every
def test_every_picture_goes_into_given_axes(name):
    figure = Figure()
    given = figure.add_subplot(1, 2, 2)
    assert DRAWN[name](ax=given) is figure
    assert all(ax.get_position().x0 > 0.4 for ax in figure.axes)  # nothing in the other half
    by_hand = Figure()
    DRAWN[name](ax=by_hand.add_axes((0.1, 0.1, 0.8, 0.8)))
    texts_of(by_hand)


def test_the_heat_map_shows_its_numbers_on_its_scale():
    values = torch.tensor([[0.0, 0.25], [0.75, 0.5]], dtype=torch.bfloat16, requires_grad=True)
    ax = f.plot_heat_map(values, ["a", "b"], ["c", "d"]).axes[0]
    image = ax.images[0]
    np.testing.assert_array_equal(image.get_array(), [[0.0, 0.25], [0.75, 0.5]])
    assert image.get_clim() == (0.0, 0.75)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["c", "d"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("key", "query")


def test_a_signed_scale_is_as_long_on_either_side():
    image = f.plot_heat_map([[-3.0, 1.0]], center=0.0).axes[0].images[0]
    assert image.get_clim() == (-3.0, 3.0)
    assert f.plot_heat_map([[-1.0, 3.0]], center=1.0).axes[0].images[0].get_clim() == (-1.0, 3.0)
    assert f.plot_heat_map([[-1.0, 3.0]], center=0.0).axes[0].images[0].get_clim() == (-3.0, 3.0)
    assert f.plot_heat_map([[-3.0, 1.0]], center=0.0, high=1.0).axes[0].images[0].get_clim() == (-1.0, 1.0)
    assert f.plot_heat_map([[2.0, 2.0]]).axes[0].images[0].get_clim() == (0.0, 2.0)
    assert f.plot_heat_map([[0.0]]).axes[0].images[0].get_clim() == (0.0, 1.0)
    assert f.plot_heat_map([[-4.0, -2.0]]).axes[0].images[0].get_clim() == (-4.0, -2.0)


def test_cells_without_a_number_are_hatched_and_counted():
    figure = f.plot_heat_map([[np.nan, 1.0], [np.inf, 0.0]])
    assert "hatched: 2 without a number" in "\n".join(texts_of(figure))
    assert figure.axes[0].patch.get_hatch()
    assert figure.axes[0].images[0].get_array().mask.tolist() == [[True, False], [True, False]]
    assert np.isfinite(f.plot_heat_map([[np.nan]]).axes[0].images[0].get_clim()).all()


@pytest.mark.slow
def test_long_inputs_are_pooled_thinned_and_bounded():
    n = 2000
    x = R.random((n, n))
    figure = f.plot_heat_map(x, [str(i) for i in range(n)])
    ax = figure.axes[0]
    assert max(ax.images[0].get_array().shape) <= 256 and len(ax.get_yticks()) <= 60
    assert "cells are means of 8 × 8" in "\n".join(texts_of(figure))
    place, label = ax.get_yticks()[7], ax.get_yticklabels()[7].get_text()
    assert place == pytest.approx((int(label) + 0.5) / 8 - 0.5)  # the label stands at its row's block
    words = [f"w{i}" for i in range(n)]
    many = [
        figure,
        f.plot_impact(x[:700, :700], words[:700], cuts=range(1, 700, 2)),
        f.plot_attention_arcs(x, words),
        f.plot_boundaries(words, x[0, 1:]),
        f.plot_dependencies(words, [0, *range(1, n)]),
        f.plot_embedding(x[:, :3], words, words),
        f.plot_bars({w: 1.0 for w in words}),
        f.plot_head_grid(R.random((2, 2, 700, 700))),
        f.plot_attributions(x[0], words),
    ]
    for drawn in many:
        assert max(drawn.get_size_inches()) <= 24 and len(drawn.findobj()) < 6000
    told = ["\n".join(t.get_text() for t in drawn.texts) + drawn._suptitle.get_text() for drawn in many[2:5]]
    assert "first 64 of 2,000" in told[0] and "first 121 of 2,000" in told[1] and "first 60 of 2,000" in told[2]


def test_the_grid_puts_every_head_in_its_place():
    ax = f.plot_head_grid(W, high=1.0).axes[0]
    mosaic = ax.images[0].get_array()
    step = (mosaic.shape[0] + 1) // 2
    for i, j in np.ndindex(2, 3):
        np.testing.assert_array_equal(mosaic[i * step : i * step + 5, j * step : j * step + 5], W[i, j])
    assert ax.images[0].get_clim() == (0.0, 1.0) and (ax.get_ylabel(), ax.get_xlabel()[:4]) == ("layer", "head")


def test_twelve_by_twelve_heads_make_a_small_svg(tmp_path):
    f.plot_head_grid(R.dirichlet(np.full(64, 0.05), size=(12, 12, 64)), path=tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size < 1_200_000


def test_arcs_join_the_strongest_keys_as_wide_as_their_weights():
    ax = f.plot_attention_arcs([[0.6, 0.3, 0.1], [0.01, 0.0, 0.99]], ["p", "q"], ["r", "s", "t"], top=2).axes[0]
    drawn = [(line.get_ydata()[0], line.get_ydata()[-1], line.get_linewidth()) for line in ax.lines]
    assert drawn == [(0.0, 0.0, 2.4), (0.0, 1.0, 1.2), (1.0, 2.0, 3.96)]


def test_impacts_leave_the_diagonal_blank_and_square_the_words():
    figure = f.plot_impact([[9.0, 2.0, 1.0], [3.0, 9.0, 1.0], [1.0, 1.0, 9.0]], "abc", cuts=[2])
    image = figure.axes[0].images[0]
    assert image.get_array().diagonal().tolist() == [0, 0, 0] and image.get_clim() == (0.0, 3.0)
    signed = f.plot_impact([[0.0, -2.0], [1.0, 0.0]], "ab").axes[0].images[0]
    assert signed.get_clim() == (-2.0, 2.0)  # differences of probabilities have both signs
    squares = [(p.get_x(), p.get_y(), p.get_width()) for p in figure.axes[0].patches]
    assert squares == [(-0.5, -0.5, 2.0), (1.5, 1.5, 1.0)]


def test_right_and_wrong_heads_look_different_and_gold_is_below():
    figure = f.plot_dependencies(["a", "b", "c"], [2, 0, 1], [2, 0, 2])
    styles = [(line.get_linestyle(), line.get_ydata()) for line in figure.axes[0].lines if len(line.get_ydata()) > 10]
    assert [style for style, _ in styles] == ["-", "--", ":"]
    assert min(styles[1][1]) > 0 > max(styles[2][1])
    assert "2 of 3 heads right" in "\n".join(texts_of(figure))
    tips = [line.get_xdata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    words = {t.get_text(): t.get_position()[0] for t in figure.axes[0].texts}
    assert abs(tips[0] - words["a"]) < 0.1 and abs(tips[1] - words["c"]) < 0.1  # arrows point at the dependents


def test_scores_below_the_threshold_are_drawn_as_cuts():
    ax = f.plot_boundaries("abcd", [1.0, 5.0, 3.0], threshold=3.0, gold=[1]).axes[0]
    by_label = {c.get_label(): [(p.get_x() + p.get_width() / 2, p.get_height()) for p in c] for c in ax.containers}
    assert by_label == {"together": [(1.5, 5.0), (2.5, 3.0)], "cut": [(0.5, 1.0)]}
    gold = next(line for line in ax.lines if line.get_marker() == "v")
    assert gold.get_xdata().tolist() == [0.5]
    assert f.plot_boundaries("ab", [1.0], threshold=-np.inf).axes[0].get_ylim()[1] > 1


def test_spectra_are_shares_with_their_participation_ratio():
    ax = f.plot_spectrum({"raw": [2.0, 4.0, 0.0]}, {"raw": {4: 0.5, 2: 0.7}}, baseline=0.6).axes
    np.testing.assert_array_equal(ax[0].lines[0].get_ydata(), [1.0, 0.5])
    assert ax[0].lines[0].get_label() == "raw (1.8 of 3 dimensions)"  # 36 / 20
    assert ax[1].lines[0].get_xdata().tolist() == [2, 4] and ax[1].lines[0].get_label() == "raw, best 0.700 at 2"


def test_maps_draw_every_point_and_leave_out_what_is_no_number():
    x = R.standard_normal((6, 3))
    x[2, 0] = np.nan
    figure = f.plot_embedding(x, groups=list("aababb"))
    drawn = sum(len(c.get_offsets()) for c in figure.axes[0].collections)
    assert drawn == 5 and "5 of 6 vectors" in "\n".join(texts_of(figure))


def test_the_sphere_keeps_directions_and_dims_the_far_side():
    x = torch.tensor([[5.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, -1.0, 0.0]])
    ax = f.plot_sphere(x, ["right", "near", "far"]).axes[0]
    places = [c.get_offsets().data for c in ax.collections]
    everything = np.concatenate([p for p in places if len(p)])
    assert any(np.allclose(p, (1.0, 0.0), atol=1e-9) for p in everything)
    assert (np.linalg.norm(everything, axis=1) <= 1 + 1e-9).all()
    assert {t.get_text() for t in ax.texts} == {"right", "near"}


def test_histograms_are_shares_of_their_group():
    ax = f.plot_similarities({"a": [0.1, 0.1, 0.9, np.nan], "b": [2.0]}, bins=2, low=0.0).axes[0]
    steps = [p for p in ax.patches if not p.get_fill()]
    np.testing.assert_allclose(steps[0].get_data().values, [200 / 3, 100 / 3])
    np.testing.assert_allclose(steps[1].get_data().values, [0.0, 100.0])  # beyond the end counts in the last bin
    assert steps[0].get_label() == "a: 3, mean 0.367"


def test_the_strongest_examples_of_both_signs_are_drawn_in_order():
    figure = f.plot_attributions([0.1, -0.5, 0.3, 0.2, -0.1, 0.0], list("uvwxyz"), top=2, explained="why")
    ax = figure.axes[0]
    assert [p.get_width() for p in ax.patches] == [0.3, 0.2, -0.1, -0.5]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["w", "x", "y", "v"]
    assert ax.patches[0].get_facecolor() != ax.patches[3].get_facecolor()
    assert "4 of 6 examples; the others add +0.1 to a sum of +0" in "\n".join(texts_of(figure)).replace("\n", " ")


def test_bands_lie_about_their_curves_and_holes_stay_holes():
    figure = f.plot_ode_fit(
        [0, 1, 2], [[1.0], [2.0], [3.0]], [[0.5], [1.5], [2.5]], [[1.5], [2.5], [3.5]], observed_times=[0, 1],
        observed=[[1.1], [np.nan]], names=["$NH_3$"],
    )  # fmt: skip
    ax = figure.axes[0]
    band = ax.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.5, 3.5)
    assert np.isnan(ax.lines[1].get_ydata()[1]) and ax.get_ylabel() == r"\$NH_3\$"


def test_bars_hold_values_intervals_and_claims():
    ax = f.plot_bars({"a": 1.0, "b": float("nan"), "c": 3.0}, {"a": (0.5, 1.5)}, {"c": 2.0}).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "c"]
    data = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}
    assert data["measured"] == ([1.0, 3.0], [0, 1]) and data["claimed"] == ([2.0], [1])
    assert ([0.5, 1.5], [0, 0]) in data.values()


def test_bars_of_very_different_numbers_can_all_be_read():
    assert f.plot_bars({"a": 1.0, "b": 2.0, "c": -300.0}).axes[0].get_xscale() == "symlog"
    assert f.plot_bars({"a": 1.0, "b": 2.0, "c": -100.0}).axes[0].get_xscale() == "linear"
    assert f.plot_bars({"a": 0.0}).axes[0].get_xscale() == "linear"


def test_factors_have_scales_of_their_own_and_the_condition():
    figure = f.plot_nystrom_factors([[0.5, 0.5]], [[10.0, 0.0], [0.0, -0.1]], [[1.0], [1.0]])
    assert [ax.images[0].get_clim() for ax in figure.axes if ax.images] == [(0.0, 0.5), (-10.0, 10.0), (0.0, 1.0)]
    assert "10^2.0" in "\n".join(texts_of(figure))
    assert "singular" in "\n".join(texts_of(f.plot_nystrom_factors([[1.0]], [[0.0]], [[1.0]])))


def test_without_a_chinese_font_letters_become_code_points_and_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(fonts, "CJK", ())
    fonts.families.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no installed font has 1 of the characters"):
            figure = f.plot_heat_map([[1.0, 0.0]], ["中"], ["a", "b"])
        assert "U+4E2D" in texts_of(figure) and "中" not in texts_of(figure)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the reader of an SVG has fonts
            f.plot_heat_map([[1.0, 0.0]], ["中"], ["a", "b"], path=tmp_path / "a.svg")
        assert "中" in (tmp_path / "a.svg").read_text(encoding="utf-8")
    finally:
        fonts.families.cache_clear()


def test_chinese_is_drawn_by_a_chinese_font():
    if len(fonts.families()) == 1:
        pytest.skip("needs a Chinese font, such as Noto Sans CJK")
    figure = f.plot_heat_map([[1.0]], ["中"], ["国"])
    assert {"中", "国"} <= set(texts_of(figure))
    assert fonts.families()[1] in figure.axes[0].get_yticklabels()[0].get_fontfamily()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"danlu\[plots\]"):
        f.plot_heat_map([[1.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: f.plot_heat_map([[1.0]], ["a", "b"]), r"rows must have one label each: 1 of them, got 2"),
        (lambda: f.plot_heat_map(np.zeros((0, 3))), r"at least one row and one column, got shape \(0, 3\)"),
        (lambda: f.plot_heat_map([[1.0]], low=2.0, high=1.0), "low must be below high, got 2 and 1"),
        (lambda: f.plot_heat_map([[1.0]], path="a.bmp"), "must end in .png"),
        (lambda: f.plot_head_grid(W[0]), "weights must have 4 axes"),
        (lambda: f.plot_head_grid(W, heads=["a"]), "heads must have 3 names, got 1"),
        (lambda: f.plot_attention_arcs([[1.0]], []), r"\(queries, keys\) = \(0, 0\)"),
        (lambda: f.plot_attention_arcs([[-1.0]], ["a"]), "weights of at least 0"),
        (lambda: f.plot_head_profile([[1.0]], [[1.0, 2.0]]), "alike"),
        (lambda: f.plot_head_profile([[np.nan]], [[1.0]]), "must hold a number"),
        (lambda: f.plot_impact([[1.0]], ["a", "b"]), "a word each"),
        (lambda: f.plot_impact([[1.0]], ["a"], cuts=[1]), "cuts must be numbers of gaps"),
        (lambda: f.plot_impact([[1.0]], ["a"], gold=[0]), "give heads too"),
        (lambda: f.plot_dependencies([], []), "no words"),
        (lambda: f.plot_dependencies(["a"], [2]), r"heads must be 1 numbers in \[0, 1\]"),
        (lambda: f.plot_dependencies(["a"], [0], [0, 1]), "gold must be 1 numbers"),
        (lambda: f.plot_constituents([str(i) for i in range(61)]), "at most 60 words"),
        (lambda: f.plot_boundaries("ab", [1.0, 2.0]), "1 gaps, at least one, got 2"),
        (lambda: f.plot_spectrum({}), "at least one spectrum"),
        (lambda: f.plot_spectrum({"a": [1.0, -1.0]}), "none negative"),
        (lambda: f.plot_embedding([[np.nan]]), "no vector of finite numbers"),
        (lambda: f.plot_embedding([[1.0]], ["a", "b"]), "one for each of the 1 vectors, got 2"),
        (lambda: f.plot_sphere([[1.0, 2.0]]), "at least 3 features"),
        (lambda: f.plot_sphere([[0.0, 0.0, 0.0]]), "have no direction"),
        (lambda: f.plot_similarities({"a": []}), "at least one finite number"),
        (lambda: f.plot_attributions([np.nan]), "1 of them not finite"),
        (lambda: f.plot_attributions([1.0], ["a", "b"]), "texts must be one for each of the 1 examples, got 2"),
        (lambda: f.plot_ode_fit([0.0], [[1.0]], low=[[1.0]]), "give both or neither"),
        (lambda: f.plot_ode_fit([0.0], [[1.0], [2.0]]), r"T = 1 times"),
        (lambda: f.plot_lines({}), "at least one line"),
        (lambda: f.plot_lines({"a": ([1], [1, 2])}), "as many x as y, got 1 and 2"),
        (lambda: f.plot_bars({"a": float("nan")}), "at least one finite number"),
        (lambda: f.plot_nystrom_factors([[1.0]], [[1.0, 2.0]], [[1.0]]), "must multiply"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
