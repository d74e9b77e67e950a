"""Pairs of words with scores, and analogies: what is read, bad rows by line, the sets of the data folder."""

import gzip

import pytest

from danlu.data import Analogy, InputError, read_analogies, read_word_pairs


def test_pairs_parted_by_tabs_or_blanks(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("# score 0-10\ntiger\tcat\t7.35\nnew york\tcity\t8\n\nbook paper 7.46\n", encoding="utf-8")
    expected = [("tiger", "cat", 7.35), ("new york", "city", 8.0), ("book", "paper", 7.46)]
    assert read_word_pairs(path).examples == expected


def test_sections_of_analogies(tmp_path):
    path = tmp_path / "questions.txt.gz"
    path.write_bytes(gzip.compress("a b c d\n: 首都\n雅典 希腊 北京 中国\n: x\np q r s\n".encode()))
    read = read_analogies(path).examples
    assert read == [Analogy("a", "b", "c", "d"), Analogy("雅典", "希腊", "北京", "中国", "首都"),
                    Analogy("p", "q", "r", "s", "x")]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"a\tb", "line 2: expected word, word, score, got 'a\\\\tb'"),
        (b"a\tb\thigh", "line 2, score: expected a number, got 'high'"),
        (b"a\tb\tnan", "line 2, score: expected a number, got 'nan'"),
        (b"\tb\t1", "line 2: expected word, word, score"),
    ],
)
def test_bad_pairs_are_named_and_can_be_skipped(tmp_path, line, message):
    path = tmp_path / "pairs.txt"
    path.write_bytes(b"x\ty\t1\n" + line + b"\nv\tw\t2\n")
    with pytest.raises(InputError, match=message):
        read_word_pairs(path)
    read = read_word_pairs(path, on_bad_rows="skip")
    assert read.examples == [("x", "y", 1.0), ("v", "w", 2.0)]
    assert [row.line for row in read.skipped] == [2]


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_bytes(b"x\ty\t1\n\xff\ty\t1\n")
    assert len(read_word_pairs(path, on_bad_rows="skip")) == 1
    path.write_bytes(b"a b c d\na \xff c d\n")
    assert len(read_analogies(path, on_bad_rows="skip")) == 1


def test_bad_analogies(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text(": s\na b c\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2: expected four words, got 'a b c'"):
        read_analogies(path)


@pytest.mark.data
def test_the_sets_of_the_data_folder(shared):
    folder = shared / "data"
    assert len(read_word_pairs(folder / "word-similarity-en" / "EN-WS-353-ALL.txt")) == 353
    assert len(read_word_pairs(folder / "word-similarity-en" / "EN-SIMLEX-999.txt")) == 999
    for name in ("240", "297"):
        assert len(read_word_pairs(folder / "word-similarity-zh" / f"{name}.txt")) in (240, 297)
    assert len(read_analogies(folder / "ca8" / "semantic.txt.gz")) == 7_636
    assert len(read_analogies(folder / "ca8" / "morphological.txt.gz")) == 10_177
