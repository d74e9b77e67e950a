"""Cosines of pairs on the report page: two lines of steps that hold the numbers, and what cannot be drawn is told."""

import re

import pytest

from danlu.gallery import training_page

RECORD = {
    "middle": 2.5,
    "edges": [0.0, 0.5, 1.0],
    "groups": [
        {"name": "alike", "pairs": 1200, "mean": 0.8125, "share": [0.25, 0.75]},
        {"name": "not <b>alike", "pairs": 40, "mean": 0.3, "share": [1.0, 0.0]},
    ],
}


def page(record):
    return training_page({"kind": "train", "title": "embed", "similarities": record})


def test_both_groups_are_drawn_and_told():
    html = page(RECORD)
    assert '<h2 id="similarities">Similarities</h2>' in html
    assert "alike: 1,200 pairs, mean cosine 0.8125" in html and "Alike is a score above 2.5" in html
    assert "not &lt;b&gt;alike" in html and "not <b>alike" not in html
    lines = re.findall(r'<path class="line s(\d)" d="([^"]*)"', html)
    assert {i for i, _ in lines} == {"0", "1"}
    for _, path in lines:
        points = [tuple(map(float, p)) for p in re.findall(r"(-?[\d.]+)[ ,](-?[\d.]+)", path)]
        assert len(points) == 6 and points[0][0] == points[1][0] and points[2][0] == points[3][0]
    assert "% of the pairs" in html and "cosine" in html


def test_one_group_alone_and_none():
    html = page({**RECORD, "groups": RECORD["groups"][:1], "middle": None})
    assert "1,200 pairs" in html and "Alike is a score" not in html
    assert "Similarities" not in page({**RECORD, "groups": []}) and "Similarities" not in page(None)


def test_bins_without_their_edges_are_refused():
    with pytest.raises(ValueError, match="a histogram of 2 bins needs 3 edges, got 2"):
        page({**RECORD, "edges": [0.0, 1.0]})
