"""Rows: what counts as a line, every way a file can be broken, and the account of bad rows."""

import gzip
import io
import os
import sys

import pytest

from danlu.data.errors import InputError
from danlu.data.ledger import BadRow, Ledger
from danlu.data.rows import json_rows, read_lines, table_rows


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return path


def lines_of(path, mode="fail"):
    return read_lines(path, Ledger(path, mode))


def table_of(folder, text, name="a.csv", columns=("text", "label"), mode="fail"):
    path = write(folder, name, text)
    ledger = Ledger(path, mode)
    rows = list(table_rows(read_lines(path, ledger), ledger, "\t" if ".tsv" in name else ",", columns))
    return rows, ledger.rows


def test_only_line_feeds_end_lines(tmp_path):
    text = "a\u2028b\u0085c\x0bd\r\ne\rf\n\n g "
    assert lines_of(write(tmp_path, "a.txt", text)) == ["a\u2028b\u0085c\x0bd", "e\rf", "", " g "]
    assert lines_of(write(tmp_path, "b.txt", "a\n")) == ["a"]
    assert lines_of(write(tmp_path, "c.txt", "")) == []


def test_byte_order_mark_gzip_and_standard_input(tmp_path, monkeypatch):
    assert lines_of(write(tmp_path, "a.txt", b"\xef\xbb\xbfa\nb")) == ["a", "b"]
    packed = gzip.compress("中\n".encode())
    assert lines_of(write(tmp_path, "a.txt.gz", packed)) == ["中"]
    assert lines_of(write(tmp_path, "no_ending", packed)) == ["中"]  # told by its bytes
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("中\n".encode())))
    assert lines_of("-") == ["中"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.gz", gzip.compress(b"abc" * 1000)[:-9], r"a\.gz: the gzip file ends too early"),
        ("a.gz", gzip.compress(b"abc" * 99)[:-8] + b"12345678", r"a\.gz: the gzip file is damaged"),
        ("a.gz", b"plain", r"named \.gz but not gzip"),
        ("a.txt", b"PK\x03\x04....", r"an archive or a spreadsheet"),
        ("a.txt", "中文".encode("utf-16"), r"this is UTF-16; convert it to UTF-8 \(iconv"),
        ("a.txt", b"ab\ncd\xffe\n", r"a\.txt: line 2: invalid UTF-8 at byte offset 5; mend the line"),
        ("a.txt", b"\xef\xbb\xbfab\xff\xff\n", r"line 1: invalid UTF-8 at byte offset 5"),  # the mark counts
        ("a.txt", "一行\n中文".encode("gb18030"), r"line 1: invalid UTF-8 at byte offset 2; the file may be GB18030"),
    ],
)
def test_broken_files(tmp_path, name, data, message):
    with pytest.raises(InputError, match=message):
        lines_of(write(tmp_path, name, data))


def test_missing_files_and_folders(tmp_path):
    write(tmp_path, "train.jsonl", "x")
    with pytest.raises(InputError, match=r"no such file; near: train\.jsonl"):
        lines_of(tmp_path / "trian.jsonl")
    with pytest.raises(InputError, match=r"no such file, nor its folder"):
        lines_of(tmp_path / "nowhere" / "a.txt")
    with pytest.raises(InputError, match=r"a folder; name a file in it \(train\.jsonl"):
        lines_of(tmp_path)
    if os.geteuid() != 0:  # root reads everything
        path = write(tmp_path, "secret.txt", "x")
        path.chmod(0)
        with pytest.raises(InputError, match=r"secret\.txt: cannot be read: Permission denied"):
            lines_of(path)


def test_skipping_names_the_lines_that_are_not_utf8(tmp_path):
    path = write(tmp_path, "a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n{"a": 3}\n')
    ledger = Ledger(path, "skip")
    rows = list(json_rows(read_lines(path, ledger), ledger))
    assert [number for number, _ in rows] == [1, 3]
    assert [str(row) for row in ledger.rows] == [f"{path}, line 2: invalid UTF-8 at byte 8 of the line"]


def test_json_rows(tmp_path):
    text = '{"a": 1}\n\n[1, 2]\n{"a": \n"x"\n{"n": ' + "9" * 5000 + "}\n" + "[" * 100000 + "]\n" + '{"b": 2}'
    ledger = Ledger("f")
    rows = list(json_rows(text.split("\n"), ledger))
    assert rows == [(1, {"a": 1}), (8, {"b": 2})]
    reasons = {row.line: str(row) for row in ledger.rows}
    assert reasons[3] == "f, line 3: expected an object {...}, got a list"
    assert "line 4, column" in reasons[4]
    assert "not JSON" in reasons[4]
    assert "got a text" in reasons[5]
    assert "a number too long or nesting too deep" in reasons[6]
    assert reasons.keys() == {3, 4, 5, 6, 7}
    with pytest.raises(InputError, match=r"one JSON array; write one object a line"):
        list(json_rows(['[{"a": 1}, {"a": 2}]'], Ledger("f")))
    with pytest.raises(InputError, match=r"one JSON array"):
        list(json_rows(["[", '{"a": 1}', "]"], Ledger("f")))
    ledger = Ledger("f")
    assert list(json_rows(["{", '"a": 1', "}"], ledger)) == []
    assert "an object must stand on one line" in str(ledger.rows[0])


def test_csv_follows_rfc_4180(tmp_path):
    text = 'label,text\r\npos,"a, ""b""\nc"\r\n\r\nneg,d"e\r\n'
    rows, bad = table_of(tmp_path, text)
    assert rows == [(2, {"label": "pos", "text": 'a, "b"\nc'}), (5, {"label": "neg", "text": 'd"e'})]
    assert bad == []


def test_csv_bad_rows_keep_their_line(tmp_path):
    text = 'text,label\na,b,c\n"x"y,z\nok,1\n"never closed,1\nlost,2\n'
    rows, bad = table_of(tmp_path, text)
    assert rows == [(4, {"text": "ok", "label": "1"})]
    assert [row.line for row in bad] == [2, 3, 5]
    assert "3 columns where the header has 2" in str(bad[0])
    assert "double the quotes" in str(bad[1])
    assert "the quote opened in the row of line 5 is not closed (read on to line 6)" in str(bad[2])
    skipping = b'text,label\n"a\n\xff",1\nok,2\n'
    rows, bad = table_of(tmp_path, skipping, mode="skip")
    assert rows == [(4, {"text": "ok", "label": "2"})]
    assert "invalid UTF-8" in str(bad[0])
    assert "(line 3)" in str(bad[0])


def test_tsv_leaves_quotes_alone_unless_they_wrap_the_field(tmp_path):
    text = 'text\tlabel\n"quoted ""so"""\t1\n"Go" he said "now"\t2\nan inch "\t3\n"tab\there"\t4\n\none\ttwo\tthree\n'
    rows, bad = table_of(tmp_path, text, "a.tsv")
    assert [row["text"] for _, row in rows] == ['quoted "so"', '"Go" he said "now"', 'an inch "', "tab\there"]
    assert [number for number, _ in rows] == [2, 3, 4, 5]
    assert [row.line for row in bad] == [7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,text,label\n", r"line 1: the header names 'text' twice"),
        (
            "sentence,label\nx,1\n",
            r"no column 'text' in the header; found 'sentence', 'label'; did you mean 'sentence'",
        ),
        ("Text,label\nx,1\n", r"did you mean 'Text'"),
        ("txet,label\nx,1\n", r"did you mean 'txet'"),
        ("text,标签\nx,1\n", r"no column 'label'.*did you mean '标签'"),
        ("text;label\nx;1\n", r"columns must be parted by ',', this line has ';'"),
        ("很好,1\n不好,0\n", r"found '很好', '1' \(the first line must name the columns\)"),
    ],
)
def test_headers(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        table_of(tmp_path, text)


def test_the_account(tmp_path):
    ledger = Ledger("f", "fail")
    ledger.bad(9, "text", "late")
    ledger.bad(3, "label", "early")
    with pytest.raises(InputError, match=r"^f, line 3, label: early \(1 more bad row\); on_bad_rows='skip' leaves"):
        ledger.close(["x"], "jsonl")
    ledger.bad(4, "", "third")
    with pytest.raises(InputError, match=r"early \(2 more bad rows\)$"):  # skipping would leave nothing
        ledger.close([], "jsonl")
    ledger.on_bad_rows = "skip"
    assert [row.line for row in ledger.close(["x"], "jsonl").skipped] == [3, 4, 9]
    with pytest.raises(
        InputError, match=r"f: no example to use: all its 3 rows are bad, the first at line 3 \(early\)"
    ):
        ledger.close([], "jsonl")
    with pytest.raises(InputError, match=r"f: no example to use: the set is empty"):
        Ledger("f").close([], "jsonl")
    with pytest.raises(InputError, match=r"on_bad_rows must be one of fail, skip, repair, got 'ignore'"):
        Ledger("f", "ignore")
    assert str(BadRow("-", 1, "", "why")) == "-, line 1: why"


def test_a_limit_counts_unpacked_bytes(tmp_path):
    for name, data in (("a.txt", b"123456\n8"), ("a.txt.gz", gzip.compress(b"123456\n8"))):
        path = write(tmp_path, name, data)
        assert read_lines(path, Ledger(path), limit=100) == ["123456", "8"]
    assert read_lines(tmp_path / "a.txt", Ledger("a.txt"), limit=8) == ["123456", "8"]
    bomb = write(tmp_path, "b.gz", gzip.compress(bytes(3 * 2**20)))
    plain = write(tmp_path, "b.txt", bytes(3 * 2**20))
    for path in (bomb, plain):
        with pytest.raises(InputError, match=r"b\.\w+: more than 2 MB of text, which this kind of file never has"):
            read_lines(path, Ledger(path), limit=2**21)
