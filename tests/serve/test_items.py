"""Reading requests: what is taken, and for what is not the status, the item and the way out."""

import json

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
from danlu.serve.items import Refused, read_items, request_schema
from danlu.serve.limits import Limits

LIMITS = Limits(max_items=3, max_text=5)
PAIR = ("text_a", "text_b")


def test_one_item_and_several():
    assert read_items('{"text": "北京"}'.encode(), ("text",), LIMITS) == [{"text": "北京"}]
    body = json.dumps({"items": [{"text": "a"}, {"text": ""}, {"text": "b" * 5}]}).encode()
    assert read_items(body, ("text",), LIMITS) == [{"text": "a"}, {"text": ""}, {"text": "b" * 5}]
    assert read_items(b'{"items": []}', ("text",), LIMITS) == []


def test_the_fields_are_those_of_the_task():
    body = b'{"text_b": "x", "text_a": "y"}'
    assert read_items(body, PAIR, LIMITS) == [{"text_a": "y", "text_b": "x"}]
    with pytest.raises(Refused, match=r"no 'text_b'; an item is \{\"text_a\": \"...\", \"text_b\": \"...\"\}"):
        read_items(b'{"text_a": "y"}', PAIR, LIMITS)


def test_length_counts_characters_not_bytes_or_halves():
    text = "𠮷" * 5  # four bytes, two halves of UTF-16 each
    assert read_items(json.dumps({"text": text}).encode(), ("text",), LIMITS) == [{"text": text}]


BAD = {  # what: (body, status, item, words)
    "nothing": (b"", 400, None, "not JSON"),
    "not JSON": (b"{text: 1}", 400, None, "line 1 column 2"),
    "two values": (b"{} {}", 400, None, "not JSON"),
    "not UTF-8": ('{"text": "北"}'.encode("gb18030"), 400, None, "0xb1 at 10"),
    "UTF-16": ('{"text": "a"}'.encode("utf-16"), 400, None, "UTF-8"),
    "a byte order mark": (b'\xef\xbb\xbf{"text": "a"}', 400, None, "not JSON"),
    "NaN": (b'{"text": NaN}', 400, None, "NaN is not JSON"),
    "infinity": (b'{"text": -Infinity}', 400, None, "-Infinity is not JSON"),
    "a huge number": (b'{"text": ' + b"9" * 5000 + b"}", 400, None, "too many digits"),
    "deep lists": (b"[" * 100_000, 400, None, "too deep"),
    "deep objects": (b'{"text":' * 50_000 + b"1" + b"}" * 50_000, 400, None, "too deep"),
    "a list": (b'[{"text": "a"}]', 422, None, 'a list, it must be an object such as {"text": "..."}'),
    "a string": (b'"a"', 422, None, "a string"),
    "null": (b"null", 422, None, "null"),
    "no field": (b"{}", 422, None, "no 'text'"),
    "another field": (b'{"txt": "a", "text": "b"}', 422, None, "unknown field 'txt'"),
    "a long name": (json.dumps({"text": "a", "x" * 999: 1}).encode(), 422, None, "unknown field 'xxx"),
    "items and a field": (b'{"items": [], "text": "a"}', 422, None, "holds 'text'"),
    "items no list": (b'{"items": {"text": "a"}}', 422, None, '"items" is an object'),
    "too many items": (b'{"items": [1, 2, 3, 4]}', 422, None, "4 items, a request may hold 3"),
    "an item is a string": (b'{"items": [{"text": "a"}, "b"]}', 422, 1, 'item 1: a string where {"text"'),
    "a text is null": (b'{"items": [{"text": "a"}, {"text": null}]}', 422, 1, "item 1: text is null"),
    "a text is a number": (b'{"items": [{"text": 1e999}]}', 422, 0, "item 0: text is a number"),
    "a text is true": (b'{"text": true}', 422, None, "text is a truth value"),
    "a text too long": (b'{"items": [{"text": "abcdef"}]}', 422, 0, "6 characters, at most 5 are read"),
    "half a character": (b'{"items": [{"text": "a"}, {"text": "\\ud83d"}]}', 422, 1, "surrogate"),
    "half a character as a name": (b'{"text": "a", "\\ud83d": 1}', 422, None, r"unknown field '\ud83d'"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_refused_says_why(what):
    body, status, item, words = BAD[what]
    with pytest.raises(Refused) as caught:
        read_items(body, ("text",), LIMITS)
    assert (caught.value.status, caught.value.item) == (status, item)
    assert words in caught.value.message
    assert len(caught.value.message) < 200
    caught.value.message.encode()  # can be sent


@pytest.mark.parametrize("fields", [("text",), PAIR])
def test_the_schema_says_what_is_read(fields):
    validator = pytest.importorskip("jsonschema").Draft202012Validator(request_schema(fields, LIMITS))
    good, name = dict.fromkeys(fields, "abc"), fields[-1]
    bodies = [
        good, {"items": [good]}, {"items": []}, {"items": [good] * 3}, {"items": [good] * 4}, {}, [], "a", None,
        {**good, name: "abcdef"}, {**good, name: 1}, {**good, "other": "a"}, {"items": [good, {}]}, {"items": good},
        {**good, "items": []}, {"items": [{**good, name: "abcdef"}]}, {"items": [good], "other": 1},
    ]  # fmt: skip
    for body in bodies:
        try:
            read_items(json.dumps(body).encode(), fields, LIMITS)
            taken = True
        except Refused as refused:
            assert refused.status == 422
            taken = False
        assert validator.is_valid(body) == taken, body
