"""The page of a model that writes: its texts, the judge's matrices and the curve of own words, escaped, or left out."""

from danlu.gallery import report_page

RECORD = {
    "kind": "train",
    "title": "poems",
    "samples": [
        {"condition": "form 7-jueju", "source": "", "gold": "白日依山盡", "pred": "<b>青山</b>"},
        {"condition": "", "source": "a" * 200, "gold": "title", "pred": "written"},
    ],
    "control": [
        {"field": "form", "accuracy": 0.9, "real": 0.97, "chance": 0.25, "texts": 120,
         "confusion": {"labels": ["<x>", "y"], "matrix": [[50, 10], [2, 58]]}},
    ],
    "exposure": {"gold_prefix": [0.9, 0.8], "own_prefix": [0.9, 0.4], "gap": 0.2},
}  # fmt: skip


def test_sections_stand_where_their_keys_are():
    page = report_page(RECORD)
    for text in (
        "Written texts",
        "2 of the evaluated examples",
        "form 7-jueju",
        "白日依山盡",
        "Control of form",
        "Own words",
    ):
        assert text in page
    assert "<strong>0.9000</strong> of 120 written texts" in page and "own prefix" in page
    assert "108 of 120 on the diagonal" in page
    bare = report_page({"kind": "train", "title": "poems"})
    assert not any(text in bare for text in ("Written texts", "Control of", "Own words"))
    assert "Control of" not in report_page({**RECORD, "control": []})


def test_what_a_model_writes_is_escaped_and_long_sources_end():
    page = report_page(RECORD)
    assert "<b>青山" not in page and "&lt;b&gt;青山" in page and "<x>" not in page
    assert "a" * 160 in page and "a" * 161 not in page
