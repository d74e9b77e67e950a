"""Items of several texts: files, lines with tabs, flat lists; and what is refused."""

import gzip
import io
import sys

import pytest

from danlu.data import grouped_items, read_items
from danlu.data.errors import InputError

FIELDS = ("text_a", "text_b")
ITEMS = [{"text_a": "甲, 乙", "text_b": "丙"}, {"text_a": "", "text_b": "丁"}]


def test_tables(tmp_path):
    csv = tmp_path / "x.csv"
    csv.write_text('id,text_b,text_a\n1,丙,"甲, 乙"\n2,丁,""\n', encoding="utf-8")
    assert list(read_items(csv, FIELDS)) == ITEMS
    tsv = tmp_path / "x.tsv.gz"
    tsv.write_bytes(gzip.compress("query\ttitle\n甲, 乙\t丙\n\t丁\n".encode()))
    assert list(read_items(tsv, FIELDS, [("query", "title")])) == ITEMS
    rows = tmp_path / "x.jsonl"
    rows.write_text(
        '{"text_b": "丙", "text_a": "甲, 乙", "label": 1}\n\n{"text_a": "", "text_b": "丁"}\n', encoding="utf-8"
    )
    assert list(read_items(rows, FIELDS)) == ITEMS


def test_lines_are_parted_by_tabs(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    path.write_text("甲, 乙\t丙\n\t丁\n", encoding="utf-8")
    assert list(read_items(path, FIELDS)) == ITEMS
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("甲, 乙\t丙\n\t丁\n".encode())))
    assert list(read_items("-", FIELDS)) == ITEMS


def test_lines_are_read_one_by_one(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("甲\t乙\nnur eine\n", encoding="utf-8")
    items = read_items(path, FIELDS)
    assert next(items) == {"text_a": "甲", "text_b": "乙"}
    with pytest.raises(
        InputError, match=r"x\.txt line 2: 1 text parted by tabs, this model reads 2 \(text_a, text_b\)"
    ):
        next(items)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text_a": "甲"}\n', r"line 1, text_b: missing.*every row gets an answer"),
        ('{"text_a": "甲", "text_b": 3}\n', r"line 1, text_b: expected a text, got a number"),
        ('{"text_a": "甲"}\n{"text_b": "乙"}\n', r"line 1, text_b: missing.*\(1 more bad row\)"),
    ],
)
def test_messages(text, message, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        next(read_items(path, FIELDS))


def test_flat_lists():
    assert list(grouped_items(["a", "b", "c", "d"], FIELDS)) == [
        {"text_a": "a", "text_b": "b"},
        {"text_a": "c", "text_b": "d"},
    ]
    with pytest.raises(InputError, match=r"an item of this model has 2 texts \(text_a, text_b\), 3 were given"):
        grouped_items(["a", "b", "c"], FIELDS)
