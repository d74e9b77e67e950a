"""Reading files: both formats, where an answer stands, what is repaired, and how bad questions are named."""

import gzip
import json

import pytest

from danlu.data.errors import InputError
from danlu.data.reading import Answer, Question, places, read_questions

CONTEXT = "一九九八年，小明 在北京大学学习。他喜欢Ｗｉｎ１０。"


def squad(tmp_path, qas, context=CONTEXT, name="a.json", **layout):
    path = tmp_path / name
    value = {"data": [{"paragraphs": [{"context": context, "qas": qas}]}]}
    path.write_text(json.dumps(value, ensure_ascii=False, **layout), encoding="utf-8")
    return path


def jsonl(tmp_path, *rows, name="a.jsonl"):
    path = tmp_path / name
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def one(tmp_path, answers, context=CONTEXT):
    corpus = read_questions(jsonl(tmp_path, {"context": context, "question": "哪里？", "answers": answers}))
    return corpus.examples[0].answers, [row.reason for row in corpus.repaired]


def test_both_formats_say_the_same(tmp_path):
    answers = [{"text": "北京大学", "answer_start": 10}, {"text": "在北京大学", "answer_start": 9}]
    first = read_questions(squad(tmp_path, [{"id": "q1", "question": "哪里？", "answers": answers}]))
    row = {"context": CONTEXT, "question": "哪里？", "id": "q1"}
    second = read_questions(
        jsonl(tmp_path, {**row, "answers": [{"text": a["text"], "start": a["answer_start"]} for a in answers]})
    )
    columns = {"text": [a["text"] for a in answers], "answer_start": [a["answer_start"] for a in answers]}
    third = read_questions(jsonl(tmp_path, {**row, "answers": columns}, name="b.jsonl"))
    expected = Question("哪里？", CONTEXT, (Answer("北京大学", 10), Answer("在北京大学", 9)), 1, "q1")
    assert first.examples == second.examples == third.examples == [expected]
    assert (first.format, second.format) == ("squad", "jsonl")
    assert CONTEXT[10:14] == "北京大学"
    assert expected.text == CONTEXT  # what splits and duplicates go by


def test_gzip_and_a_name_that_says_nothing(tmp_path):
    path = squad(tmp_path, [{"question": "谁？", "answers": [{"text": "小明", "answer_start": 6}]}], indent=1)
    packed = tmp_path / "data.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_questions(packed).examples == read_questions(path).examples
    assert (
        read_questions(jsonl(tmp_path, {"context": "甲", "question": "乙", "answers": ["甲"]}, name="x")).format
        == "jsonl"
    )


@pytest.mark.parametrize(
    ("given", "expected", "repair"),
    [
        ("北京", Answer("北京", 10), None),  # no start: the first place
        ({"text": "北京", "start": 10}, Answer("北京", 10), None),
        ({"text": "北京", "start": 9}, Answer("北京", 10), "'北京' stands at 10, not at 9"),
        ({"text": "小明在", "start": 6}, Answer("小明 在", 6), "'小明在' is spelled '小明 在' at 6 in the context"),
        (
            {"text": "win10", "start": 20},
            Answer("Ｗｉｎ１０", 20),
            "'win10' is spelled 'Ｗｉｎ１０' at 20 in the context",
        ),
        ({"text": " 北京 ", "start": 10}, Answer("北京", 10), "' 北京 ' is spelled '北京' at 10 in the context"),
        ({"text": "我的话", "start": -1}, Answer("我的话", None), None),
    ],
)
def test_the_place_of_an_answer(tmp_path, given, expected, repair):
    answers, repaired = one(tmp_path, [given, "学习"])
    assert answers[0] == expected
    assert repaired == ([repair] if repair else [])
    if expected.start is not None:
        assert CONTEXT[expected.start : expected.end] == expected.text


def test_a_start_that_does_not_count_blanks_beats_the_nearest_place(tmp_path):
    context = "北京 a b c d 北京，北京"  # with blanks at 0, 11 and 14, without them at 0, 6 and 9
    answers, _ = one(tmp_path, [{"text": "北京", "start": 9}], context)  # 11 is nearer
    assert answers[0].start == 14
    answers, _ = one(tmp_path, [{"text": "北京", "start": 13}], context)  # no start by either count: the nearest
    assert answers[0].start == 14


def test_places_overlap_and_are_exact_before_they_are_alike():
    assert places("哈哈哈", "哈哈") == [(0, 2), (1, 3)]
    assert places("A a", "a") == [(2, 3)]
    assert places("A b", "a") == [(0, 1)]
    assert places("甲", " ") == []
    assert places("1.5", "1+5") == []  # nothing is a pattern


def test_what_most_annotators_gave(tmp_path):
    def best(*texts):
        return one(tmp_path, list(texts)) and read_questions(tmp_path / "a.jsonl").examples[0].best

    assert best("北京", "北京大学", "北京大学").text == "北京大学"
    assert best("北京", "北京大学").text == "北京"
    assert best().__class__ is type(None)
    assert best({"text": "别处", "start": -1}, "学习") == Answer("学习", 18 - 4)


def test_unanswerable_questions(tmp_path):
    qas = [
        {"question": "甲？", "answers": [], "is_impossible": True},
        {"question": "乙？", "answers": [{"text": "北京", "answer_start": 10}], "is_impossible": True},
        {"question": "丙？", "answers": [{"text": "北京", "answer_start": 10}], "is_impossible": False},
    ]
    corpus = read_questions(squad(tmp_path, qas))
    assert [len(e.answers) for e in corpus.examples] == [0, 0, 1]
    assert corpus.notes == {"questions": 3, "contexts": 1, "unanswerable": 2}


def test_an_answer_nowhere_is_bad_alone_and_kept_beside_another(tmp_path):
    answers, repaired = one(tmp_path, ["北京", {"text": "上海", "start": 3}])
    assert answers == (Answer("北京", 10), Answer("上海", None))
    assert repaired == ["'上海' does not stand in the context, neither at 3 nor elsewhere; it counts in scores only"]
    with pytest.raises(
        InputError, match=r"line 1, answers\[0\]: '上海' does not stand in the context; an answer in own"
    ):
        one(tmp_path, ["上海"])


def test_squad_names_line_and_place(tmp_path):
    qas = [
        {"question": 'say "question": now', "answers": [{"text": "北京", "answer_start": 10}]},
        {"question": "乙？", "answers": [{"text": "上海", "answer_start": 2}]},
        {"question": "", "answers": []},
    ]
    path = squad(tmp_path, qas, indent=1)
    lines = path.read_text(encoding="utf-8").split("\n")
    number = next(i for i, line in enumerate(lines, 1) if "乙？" in line)
    message = rf"a\.json, line {number}, data\[0\]\.paragraphs\[0\]\.qas\[1\]\.answers\[0\]: '上海'.*\(1 more bad row\)"
    with pytest.raises(InputError, match=message):
        read_questions(path)
    corpus = read_questions(path, on_bad_rows="skip")
    assert [row.field for row in corpus.skipped] == [
        "data[0].paragraphs[0].qas[1].answers[0]",
        "data[0].paragraphs[0].qas[2].question",
    ]
    assert (len(corpus), corpus.examples[0].line) == (1, next(i for i, line in enumerate(lines, 1) if "say" in line))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "甲", "answers": ["甲"]}, r"line 1, context: missing"),
        ({"context": "甲", "answers": ["甲"]}, r"line 1, question: missing"),
        ({"context": "甲", "question": "乙"}, r"line 1, answers: missing"),
        ({"context": "甲", "question": "乙", "answers": 3}, r"answers: expected a list of texts or of"),
        ({"context": "甲", "question": "乙", "answers": [3]}, r"answers\[0\]: expected a text, got"),
        (
            {"context": "甲", "question": "乙", "answers": [{"text": "甲", "start": "0"}]},
            r"answers\[0\]\.start: expected a",
        ),
        ({"context": "甲", "question": "乙", "answers": [{"text": "甲", "start": -2}]}, r"got -2"),
        (
            {"context": "甲", "question": "乙", "answers": {"text": ["甲"], "start": [0, 1]}},
            r"not as many starts as texts",
        ),
        ('{"context": ', r"line 1, column 13: not JSON"),
    ],
)
def test_bad_rows_say_what_is_wrong(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        read_questions(jsonl(tmp_path, row))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [\n{]}', r"line 2, column 2: not JSON: .*SQuAD object"),
        ('{"data": 3}', r"expected \{\"data\": \[\{\"paragraphs\""),
        ('{"data": [{"paragraphs": 3}]}', r"line 1, data\[0\]: expected an object with a list of paragraphs"),
        (
            '{"data": [{"paragraphs": [{"context": "x"}]}]}',
            r"data\[0\]\.paragraphs\[0\]: expected an object with context",
        ),
        ('{"data": [{"paragraphs": [{"context": "x", "qas": [3]}]}]}', r"qas\[0\]: expected an object with question"),
        ('{"data": []}', r"no example to use: the set is empty"),
    ],
)
def test_bad_squad_files_say_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "b.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_questions(path)


def test_an_unknown_format(tmp_path):
    with pytest.raises(InputError, match=r"format must be one of auto, squad, jsonl, got 'csv'"):
        read_questions(tmp_path / "a.json", format="csv")


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "questions", "contexts", "repaired", "skipped"),
    [
        ("cmrc2018/dev", 3219, 848, 17, 0),
        ("cmrc2018/trial", 1000, 256, 7, 2),
        ("drcd/dev", 3524, 1000, 0, 0),
        ("drcd/test", 3493, 1000, 0, 0),
    ],
)
def test_the_real_files(shared, file, questions, contexts, repaired, skipped):
    corpus = read_questions(shared / "data" / f"{file}.json.gz", on_bad_rows="skip")
    assert len(corpus) == questions
    assert len({e.context for e in corpus.examples}) == contexts
    assert (len(corpus.repaired), len(corpus.skipped)) == (repaired, skipped)
    placed = [(e.context, a) for e in corpus.examples for a in e.answers if a.start is not None]
    assert all(context[a.start : a.end] == a.text for context, a in placed)
