"""Answers in place on the report page: question, both spans, what is folded, and that nothing is taken as markup."""

from danlu.gallery import training_page

EXAMPLE = {
    "question": "谁<b>在</b>？",
    "text": "甲" * 500 + "张三在北京。" + "乙" * 500,
    "line": 3,
    "gold": [[500, 502, "answer"]],
    "pred": [[503, 505, "answer"]],
    "f1": 0.25,
    "score": 0.875,
    "own_words": ["张先生"],
    "silent": False,
}


def page(**changes):
    return training_page({"kind": "train", "title": "read", "reading": [{**EXAMPLE, **changes}]})


def test_question_and_spans_stand_in_their_context():
    html = page()
    assert "Answers in place" in html
    assert "谁&lt;b&gt;在&lt;/b&gt;？" in html
    assert '<mark class="missed">张三' in html
    assert '<mark class="spurious">北京' in html
    assert "⋯ 380 characters ⋯" in html
    assert "甲" * 61 not in html
    assert all(text in html for text in ("F1 0.2500", "score 0.8750", "Accepted as well", "张先生"))


def test_a_right_answer_is_marked_once():
    html = page(pred=EXAMPLE["gold"])
    assert '<mark class="correct">张三' in html
    assert '<mark class="missed">张三' not in html
    assert '<span class="pair"><span class="row">' in page(pred=[[500, 504, "answer"]])


def test_a_question_without_answer_says_so():
    html = page(gold=[], pred=[], silent=True, own_words=[])
    assert "The text does not answer it." in html
    assert "Accepted as well" not in html


def test_no_section_without_questions():
    assert "Answers in place" not in training_page({"kind": "train", "title": "read"})
