"""Places of the pictures as numbers: against loops and closed forms; colours even to the eye; letters never boxes."""

import itertools
import warnings

import numpy as np
import pytest

from danlu.gallery.figures import colours, fonts
from danlu.gallery.figures.colours import DARK, LIGHT, lab, scale_colours
from danlu.gallery.figures.layout import arc_levels, merge_pieces, plane, pool_matrix, thin, tree_places
from danlu.gallery.figures.sheet import as_array, check_path, wrapped

pytest.importorskip("matplotlib", reason="needs matplotlib; install the extra plots")
R = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(7, 7), (5, 11), (1, 9), (9, 1)])
def test_blocks_are_means_of_their_numbers(shape):  # oracle: a loop over the blocks, ragged ends included
    x = R.random(shape)
    x[0, 0] = np.nan
    pooled, k = pool_matrix(x, 4)
    assert k == -(-max(shape) // 4) and max(pooled.shape) <= 4
    for i, j in np.ndindex(pooled.shape):
        block = x[i * k : (i + 1) * k, j * k : (j + 1) * k]
        known = block[np.isfinite(block)]
        expected = known.mean() if known.size else np.nan
        np.testing.assert_allclose(pooled[i, j], expected, rtol=1e-12)


def test_a_block_without_numbers_has_none_and_small_matrices_stay():
    x = np.full((4, 4), np.nan)
    assert np.isnan(pool_matrix(x, 2)[0]).all()
    assert pool_matrix(x, 4)[0] is x


def test_labels_are_thinned_to_at_most_as_many_as_fit():
    for count, most in itertools.product((0, 1, 59, 60, 61, 2000), (1, 60)):
        places = thin(count, most)
        assert len(places) <= most and places == sorted(places)
        assert not count or places[0] == 0


def levels_by_recursion(arcs):  # oracle: eq. (2) as it stands, for arcs of different ends
    def level(a, b):
        inside = [(c, d) for c, d in arcs if a <= c and d <= b and (c, d) != (a, b)]
        return 1 + max((level(c, d) for c, d in inside), default=0)

    return [level(a, b) for a, b in arcs]


def test_arcs_stand_above_what_is_inside_them():
    for _ in range(30):
        ends = list(itertools.combinations(range(7), 2))
        arcs = [ends[i] for i in R.choice(len(ends), 6, replace=False)]
        assert arc_levels([(b, a) if R.random() < 0.5 else (a, b) for a, b in arcs]) == levels_by_recursion(arcs)


def test_a_tree_has_even_leaves_and_parents_above_the_middle_of_their_children():
    leaves, places = tree_places([["a", ["b", "c"]], "d", ["e"]])
    assert leaves == list("abcde")
    assert [place[0] for place in places[:5]] == [0, 1, 2, 3, 4]
    for x, height, children in places[5:]:
        assert x == (places[children[0]][0] + places[children[-1]][0]) / 2
        assert height == 1 + max(places[c][1] for c in children)
    assert places[-1][1] == 3


def test_a_chain_of_a_thousand_words_is_laid_out():
    tree = "x"
    for _ in range(3000):
        tree = (tree, "y")
    assert tree_places(tree)[1][-1][1] == 3000


def test_merged_words_keep_the_rows_summing_to_one():
    w = R.dirichlet(np.ones(6), size=(2, 6))
    units = [(0,), (1, 2, 3), (4, 5)]
    merged = merge_pieces(w, units)
    np.testing.assert_allclose(merged.sum(-1), 1.0, rtol=1e-12)
    by_hand = [[sum(w[0, i, j] for i in a for j in b) / len(a) for b in units] for a in units]
    np.testing.assert_allclose(merged[0], by_hand, rtol=1e-12)
    with pytest.raises(ValueError, match="every word needs pieces"):
        merge_pieces(w, [(0,), ()])


def test_the_plane_holds_the_variance_that_eigenvalues_say():  # oracle: eigh of the covariance
    x = R.standard_normal((30, 5)) * [5, 3, 1, 1, 0.5] + 100
    flat, share = plane(x)
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    np.testing.assert_allclose(flat.var(0), values[:2], rtol=1e-9)
    assert share == pytest.approx(values[:2].sum() / values.sum())
    np.testing.assert_allclose(plane(x * 1e200)[0], flat * 1e200, rtol=1e-9)  # squares would overflow


@pytest.mark.parametrize("x", [np.ones((1, 3)), np.ones((4, 1)), np.zeros((3, 3))])
def test_a_plane_of_points_without_spread(x):
    flat, share = plane(x)
    assert flat.shape == (len(x), 2) and not flat.any() and share == 1.0


def test_lab_of_known_colours():  # oracle: published values of the sRGB primaries under D65
    known = {(1, 0, 0): (53.24, 80.09, 67.20), (0, 0, 1): (32.30, 79.19, -107.86), (0, 0, 0): (0, 0, 0)}
    for rgb, expected in known.items():
        np.testing.assert_allclose(lab(rgb), expected, atol=0.05)


@pytest.mark.parametrize("look", [LIGHT, DARK])
def test_scales_grow_evenly_from_the_paper(look):
    scale = scale_colours(look)
    steps = np.linalg.norm(np.diff(lab(scale), axis=0), axis=1)
    assert steps.max() / steps.min() < 1.2  # even to the eye; what is left is the cut at what a screen shows
    light = np.diff(lab(scale)[:, 0])
    assert (light < 0).all() if look is LIGHT else (light > 0).all()  # read without hues
    signed = scale_colours(look, signed=True)
    paper = [int(look.paper[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    np.testing.assert_allclose(signed[255], paper, atol=2e-3)
    np.testing.assert_allclose(signed[255:], scale)
    np.testing.assert_allclose(lab(signed[0])[0], lab(signed[-1])[0], atol=8)  # both ends weigh alike
    assert np.linalg.norm(lab(signed[100]) - lab(signed[410])) > 50  # and are told apart


def test_back_and_forth_between_colour_spaces():
    rgb = R.random((50, 3))
    np.testing.assert_allclose(colours._rgb(lab(rgb)), rgb, atol=1e-4)


def test_letters_no_font_has_are_told_and_written_as_code_points():
    shown, missing = fonts.legible("a中", ["DejaVu Sans"])
    assert shown == "aU+4E2D" and missing == {"中"}
    with pytest.warns(UserWarning, match=r"1 of the characters \(U\+4E2D\).*save as \.svg"):
        fonts.tell_lacking(missing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fonts.tell_lacking(set())


def test_foreign_text_is_one_bounded_line_and_no_formula():
    assert fonts.worded("x" * 99) == "x" * 39 + "…"
    assert fonts.worded("$a$") == r"\$a\$"
    assert "\n" not in fonts.worded("a\nb") and "\u202e" not in fonts.worded("\u202eb")


def test_titles_are_wrapped_where_they_would_leave_the_picture():
    for text in ("word " * 30, "大肠杆菌" * 20, "a" * 50):
        lines = wrapped(text, 20)
        whole = "".join(lines).replace(" ", "")
        assert whole == text.replace(" ", "")
    assert all(sum(2 if ord(c) > 0x2E7F else 1 for c in line) <= 20 for line in wrapped("大肠杆菌 ab" * 9, 20))


def test_messages():
    with pytest.raises(ValueError, match=r"weights must have 2 axes, got shape \(3,\)"):
        as_array([1, 2, 3], "weights", 2)
    with pytest.raises(ValueError, match="rows of one length"):
        as_array([[1], [1, 2]], "weights")
    with pytest.raises(ValueError, match=r"must end in .png, .svg, .pdf, got 'a.gif'"):
        check_path("a.gif")
    with pytest.raises(ValueError, match="no children"):
        tree_places(["a", []])
