"""Texts to predict on: lines as they come, tables whole, only the name decides; every refusal by its text."""

import gc
import gzip
import io
import json
import os
import sys
import threading
import warnings

import pytest

from danlu.data.errors import InputError
from danlu.data.texts import read_texts


@pytest.fixture
def write(tmp_path):
    def make(name, data):
        path = tmp_path / name
        if isinstance(data, list):
            data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data)
        data = data if isinstance(data, bytes) else data.encode("utf-8")
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return make


def test_plain_lines_are_texts_empty_ones_too(write):
    text = '\ufeffone\n\n two\r\n{"text": 1}\n\u2028\n'  # a brace makes no JSON Lines of a plain file
    for name in ("a.txt", "a", "a.json", "a.txt.gz", "a.jsonl.txt"):
        assert list(read_texts(write(name, text))) == ["one", "", " two", '{"text": 1}', "\u2028"]
    assert list(read_texts(write("empty.txt", ""))) == []


def test_the_mark_at_the_beginning_belongs_to_no_text_others_do(write):
    assert list(read_texts(write("a.txt", "\ufeffa\n\ufeffb\n"))) == ["a", "\ufeffb"]


def test_files_are_closed_standard_input_is_not(write, monkeypatch):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        assert list(read_texts(write("a.txt", "a\n"))) == ["a"]
        gc.collect()
    assert [str(warning.message) for warning in told] == []
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n")))
    assert list(read_texts("-")) == ["a"]
    assert not sys.stdin.buffer.closed


def test_standard_input_is_plain_whatever_it_holds(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a"}\n\nb')))
    assert list(read_texts("-")) == ['{"text": "a"}', "", "b"]


def test_lines_are_answered_while_they_are_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    first_seen = threading.Event()
    seen_before_the_end = []

    def writer():
        with open(tmp_path / "pipe", "wb", buffering=0) as pipe:
            pipe.write(b"a\n")
            seen_before_the_end.append(first_seen.wait(20))
            pipe.write(b"b\n")

    thread = threading.Thread(target=writer)
    thread.start()
    texts = read_texts(tmp_path / "pipe")
    assert next(texts) == "a"
    first_seen.set()
    assert list(texts) == ["b"]
    thread.join()
    assert seen_before_the_end == [True]


@pytest.mark.parametrize("name", ["b.jsonl", "b.ndjson", "b.JSONL", "b.jsonl.gz"])
def test_json_lines(write, name):
    assert list(read_texts(write(name, [{"text": "a", "label": 1}, {"text": " "}, {"text": ""}]))) == ["a", " ", ""]


def test_tables(write):
    assert list(read_texts(write("c.csv", 'id,text\n1,"a\nb"\n2,\n'))) == ["a\nb", ""]
    for name in ("c.tsv", "c.tab", "c.tsv.gz"):
        assert list(read_texts(write(name, "text\tid\na, b\t1\n"))) == ["a, b"]


def test_another_format_or_field(write):
    assert list(read_texts(write("d", [{"t": "a"}]), format="jsonl", text_field="t")) == ["a"]
    assert list(read_texts(write("d.csv", "text\na\n"), format="txt")) == ["text", "a"]
    with pytest.raises(InputError, match=r"format must be one of auto, txt, jsonl, tsv, csv, got 'conll'"):
        read_texts("d", format="conll")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("e.jsonl", [{"text": "a"}, {"text": None}], r"e\.jsonl, line 2, text: expected a text, got null; every row"),
        ("e.jsonl", '{"text": "a"}\n[\n{}\n{}\n', r"line 2.*not JSON.* \(2 more bad rows\); every row gets an answer"),
        ("e.jsonl", [{"text": 1}, {"text": 2}], r"line 1, text: expected .* \(1 more bad row\); every row gets"),
        ("e.jsonl", [{"Text": "a"}], r"text: missing; the row has 'Text'; did you mean 'Text'\? rename it to 'text'"),
        ("e.csv", "id,content\n1,a\n", r"no column 'text' in the header; found 'id', 'content'; did you mean"),
        ("e.txt", b"a\n\xff\n", r"e\.txt line 2: not UTF-8 \(byte 0xff\); convert it, for example with iconv"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told(write, name, data, message):
    with pytest.raises(InputError, match=message):
        list(read_texts(write(name, data)))


def test_files_that_are_none(tmp_path, write):
    with pytest.raises(InputError, match=r"no file .*absent\.txt; give texts, a file, or - for standard input"):
        list(read_texts(tmp_path / "absent.txt"))
    with pytest.raises(InputError, match=r"is a folder; give a file with one text a line"):
        list(read_texts(tmp_path))
    path = write("f.txt.gz", "a\n" * 5000)
    data = bytearray(path.read_bytes())
    path.write_bytes(bytes(data[:-9]))
    with pytest.raises(InputError, match=r"f\.txt\.gz after line \d+: damaged gzip .*; fetch or pack it again"):
        list(read_texts(path))
    (path.parent / "g.txt.gz").write_text("not packed")
    with pytest.raises(InputError, match=r"g\.txt\.gz after line 0: damaged gzip \(Not a gzipped file"):
        list(read_texts(path.parent / "g.txt.gz"))
    data[20:30] = b"\xff" * 10
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"damaged gzip"):
        list(read_texts(path))
