"""Vocabulary files: ids are line numbers whatever stands in the file, there and back, what is redundant, messages."""

import gzip
import json
import unicodedata
import warnings
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.errors import InputError
from danlu.text import Tokenizer, load_vocab, save_vocab, simplify_vocab
from danlu.text.vocabulary import is_cjk, is_punctuation, stem


def write(tmp_path, data):
    path = tmp_path / "vocab.txt"
    path.write_bytes(data)
    return path


def test_ids_are_line_numbers(tmp_path):
    path = write(tmp_path, "[PAD]\n的\n##a\n\u2028\n\x85\n\u3000\nb 12\nc\t3\nd".encode())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vocab = load_vocab(path)
    assert vocab == {"[PAD]": 0, "的": 1, "##a": 2, "\u2028": 3, "\x85": 4, "\u3000": 5, "b": 6, "c": 7, "d": 8}


def test_windows_lines_and_byte_order_mark(tmp_path):
    assert load_vocab(write(tmp_path, "\ufeffa\r\nb\r\n".encode())) == {"a": 0, "b": 1}


def test_empty_lines_and_repeated_tokens_are_told_and_shift_nothing(tmp_path):
    path = write(tmp_path, b"a\n\nb\n  \na\nc\na\n")
    with pytest.warns(UserWarning) as told:
        vocab = load_vocab(path)
    assert vocab == {"b": 2, "c": 5, "a": 6}  # the last of equal lines, as HuggingFace reads it
    assert "vocab.txt: 2 empty lines (the first is line 2); they keep their ids" in str(told[0].message)
    assert "vocab.txt: 2 tokens found again (the first is 'a', lines 1 and 5)" in str(told[1].message)
    assert all(w.filename == __file__ for w in told)


def test_equals_the_rust_library_on_plain_files(tmp_path):
    from tokenizers.models import WordPiece

    path = write(tmp_path, "[UNK]\n的\n##的\na\nb\na\n".encode())
    with pytest.warns(UserWarning, match="1 token found again"):
        assert load_vocab(path) == WordPiece.read_file(str(path))


def test_a_gzip_bomb_is_refused_before_it_unpacks(tmp_path):
    packed = gzip.compress(b"[PAD]\n")
    assert load_vocab(write(tmp_path, packed)) == {"[PAD]": 0}
    zeros = zlib.compressobj(9, wbits=31)
    piece = bytes(2**20)
    bomb = b"".join([*(zeros.compress(piece) for _ in range(300)), zeros.flush()])  # 300 MB in 0.3 MB
    with pytest.raises(InputError, match=r"vocab\.txt: more than 256 MB of text, which .* is it the right one\?"):
        load_vocab(write(tmp_path, bomb))


TOKENS = st.lists(
    st.text(st.characters(exclude_characters="\n\t\r ", exclude_categories=["Cs"]), min_size=1, max_size=4),
    unique=True, min_size=1, max_size=8,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(TOKENS, st.integers(0, 2))
def test_files_there_and_back(tmp_path_factory, tokens, gap):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    if tokens[0].startswith("\ufeff") and not gap:
        return  # a byte-order mark at the head of a file is not text
    vocab = {token: gap + number for number, token in enumerate(tokens)}
    save_vocab(path, vocab)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ids without a token are empty lines
        assert load_vocab(path) == vocab


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = write(tmp_path_factory.mktemp("vocab"), data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            vocab = load_vocab(path)
        except InputError:
            return
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert all(lines[number].strip(b" \t").startswith(token.encode()) for token, number in vocab.items())


def test_simplified_drops_what_cannot_be_produced(tmp_path):
    tokens = [
        "[PAD]",
        "[unused1]",
        "[UNK]",
        "的",
        "##的",
        "中国",
        "##，",
        "!",
        "...",
        "un",
        "##ed",
        "か",
        "##か",
        "a中",
    ]
    path = write(tmp_path, "\n".join(tokens).encode())
    vocab, keep = load_vocab(path, simplified=True, startswith=["[UNK]", "中国"])
    assert list(vocab) == ["[UNK]", "中国", "的", "!", "un", "##ed", "か", "##か"]
    assert list(vocab.values()) == list(range(8))
    assert [tokens[old] for old in keep] == list(vocab)
    assert simplify_vocab({"b": 7, "a": 3}) == ({"a": 0, "b": 1}, [3, 7])


@settings(max_examples=60, deadline=None)
@given(st.text("中。aé1, か", max_size=12))
def test_a_simplified_vocabulary_cuts_every_text_alike(text):
    pieces = ["中", "##中", "。", "##。", "a", "##a", "e", "##1", "1", ",", "中a", "##a,", "か", "a1"]
    vocab = {token: number for number, token in enumerate(["[UNK]", "[CLS]", "[SEP]", *pieces])}
    small, keep = simplify_vocab(vocab, ["[UNK]", "[CLS]", "[SEP]"])
    whole, cut = Tokenizer(vocab), Tokenizer(small)
    assert len(small) < len(vocab)
    assert [keep[i] for i in cut.encode(text)[0]] == whole.encode(text)[0]


def test_classes_of_characters_follow_unicode():
    marks = {c for c in map(chr, range(128)) if c.isprintable() and not c.isalnum() and c != " "}
    assert {c for c in map(chr, range(128)) if is_punctuation(c)} == marks
    names = {c: unicodedata.name(chr(c), "") for c in [*range(0x2E00, 0xFB00), *range(0x20000, 0x2FA20)]}
    ideographs = {c for c, n in names.items() if n.startswith(("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH"))}
    ours = {c for c in names if is_cjk(chr(c))}
    assert ours <= ideographs | {c for c in ours if not names[c]}  # nothing else, but for places not yet given away
    later = {c for c in ideographs - ours}
    assert all(0x2CEB0 <= c <= 0x2EBE0 or c >= 0x2EBF0 for c in later)  # blocks younger than BERT
    assert [is_punctuation(c) for c in "。￥中 \n"] == [True, False, False, False, False]
    assert [stem(t) for t in ("##a", "a##", "#")] == ["a", "a##", "#"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: load_vocab(p / "no.txt"), r"no\.txt: no such file"),
        (lambda p: load_vocab(write(p, b"\n\n")), r"vocab\.txt: holds no token; a vocabulary has one token a line"),
        (lambda p: load_vocab(write(p, b"a\n\xff\n")), r"vocab\.txt: line 2: invalid UTF-8"),
        (
            lambda p: load_vocab(write(p, b"a\n"), startswith=["a"]),
            r"startswith=\['a'\] orders a simplified",
        ),
        (lambda p: simplify_vocab({"[CLS]": 0}, ["[CSL]"]), r"has no '\[CSL\]' \(near: '\[CLS\]'\); name tokens"),
        (lambda p: simplify_vocab({"a": 0}, ["a", "a"]), "the vocabulary takes a place only once; name tokens"),
        (lambda p: save_vocab(p / "v", {"a b": 0}), "the token 'a b' cannot stand on a line of its own"),
        (lambda p: save_vocab(p / "v", {"a\n": 0}), r"the token 'a\\n' cannot stand"),
        (lambda p: save_vocab(p / "v", {"": 0}), "the token '' cannot stand"),
        (lambda p: save_vocab(p / "v", {"a": -1}), "the id -1 of 'a' is negative"),
        (lambda p: save_vocab(p / "v", {"a": 1, "b": 1}), "the id 1 of 'b' belongs to 'a' too"),
    ],
)
def test_messages(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)


@pytest.mark.data
def test_equals_bert4keras(shared):
    folder = shared / "oracles/tokenizer"
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    for case in json.loads((folder / "simplified.json").read_text(encoding="utf-8")).values():
        vocab, keep = load_vocab(folder / "vocab.txt", simplified=True, startswith=case["startswith"] or [])
        assert (len(vocab), keep) == (case["size"], case["keep_tokens"])
        assert list(vocab) == [tokens[old] for old in keep]
