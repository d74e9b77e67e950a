"""word2vec's text format: the same bits after a round trip, gensim both ways, other writers, bad lines, messages."""

import gzip
import importlib.util

import pytest
import torch

from danlu.data import InputError
from danlu.text import WordVectors, read_word2vec, write_word2vec


def vectors(dtype=torch.float32):
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    x[1] *= 1e-39  # subnormal
    x[2] *= 1e38
    return WordVectors(["the", "北京", "</s>", "7"], x.to(dtype))


@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz"])
def test_round_trip_keeps_every_bit(tmp_path, name):
    write_word2vec(tmp_path / name, vectors())
    read = read_word2vec(tmp_path / name)
    assert read.words == vectors().words
    assert torch.equal(read.vectors, vectors().vectors)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    if name.endswith("gz"):
        assert gzip.decompress((tmp_path / name).read_bytes()).startswith(b"4 5\n")


@pytest.mark.skipif(importlib.util.find_spec("gensim") is None, reason="needs gensim")
def test_gensim_reads_and_writes_it(tmp_path):
    from gensim.models import KeyedVectors

    write_word2vec(tmp_path / "ours.txt", vectors())
    theirs = KeyedVectors.load_word2vec_format(tmp_path / "ours.txt")
    assert theirs.index_to_key == vectors().words
    torch.testing.assert_close(torch.from_numpy(theirs.vectors), vectors().vectors)
    theirs.save_word2vec_format(tmp_path / "theirs.txt")
    torch.testing.assert_close(read_word2vec(tmp_path / "theirs.txt").vectors, vectors().vectors)


def test_other_writers(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("new york 1 2 \nparis 3 -4e-1\n", encoding="utf-8")  # GloVe: no first line; but D is told by it
    with pytest.raises(InputError, match="not all of the last 3 parts are numbers"):
        read_word2vec(path)
    path.write_text("2 2\nnew york 1 2 \r\nparis\t3\t-4e-1\n", encoding="utf-8")
    assert read_word2vec(path).words == ["new york", "paris"]
    path.write_text("paris 3 -4e-1\nrome 1 2\n", encoding="utf-8")
    assert read_word2vec(path, max_words=1).vectors.tolist() == [[3.0, pytest.approx(-0.4)]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b 1", "line 3: expected a word and 2 numbers, got 1"),
        ("b x 1", "line 3: not all of the last 2 parts are numbers"),
        ("b nan 1", "line 3: a number is not finite"),
        ("b 1e39 1", "line 3: a number is not finite in float32"),
        ("a 1 1", "line 3: the word 'a' came before"),
    ],
)
def test_bad_lines_are_named_and_can_be_skipped(tmp_path, line, message):
    path = tmp_path / "v.txt"
    path.write_text(f"3 2\na 1 2\n{line}\nc 3 4\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_word2vec(path)
    assert read_word2vec(path, on_bad_rows="skip").words == ["a", "c"]


def test_a_file_that_is_cut_off(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("3 1\na 1\nb 2\n", encoding="utf-8")
    with pytest.raises(InputError, match="3 words are announced, 2 follow"):
        read_word2vec(path)
    assert len(read_word2vec(path, max_words=2)) == 2
    for text in ("", "\n\n", "word\n"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"no vector in it|expected 'V D'"):
            read_word2vec(path)


def test_what_cannot_be_written(tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("old", encoding="utf-8")
    for word in ("new york", "", "a\n"):
        with pytest.raises(ValueError, match="empty or holds a blank"):
            write_word2vec(path, WordVectors([word], torch.ones(1, 2)))
    with pytest.raises(ValueError, match="finite"):
        write_word2vec(path, WordVectors(["a"], torch.tensor([[torch.inf]])))
    assert path.read_text(encoding="utf-8") == "old"
