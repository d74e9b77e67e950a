"""CharVocab: rows and pairs against loops in plain Python, order and ties, files there and back, messages."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.errors import InputError
from danlu.text import CharVocab

TEXTS = ["我爱北京", "北京爱我，我爱北京！", "", "京", "１９９８年", "2026年Ａb年"]


def ids_of(vocab: CharVocab, text) -> list[int]:
    return vocab.encode([text])[0][0].tolist()


def pairs_of(vocab: CharVocab, text) -> list[int]:
    return vocab.encode([text])[1][0].tolist()


def by_hand(texts, min_count, bigram_min_count):
    """Oracle: counts and rows of plain characters (no digits, no Latin letters) with dictionaries and loops."""
    counts = Counter(c for text in texts for c in text)
    tokens = sorted((c for c in counts if counts[c] >= min_count), key=lambda c: (-counts[c], ord(c)))
    row = {c: 7 + i for i, c in enumerate(tokens)}
    known = [[row.get(c, 2) for c in text] for text in texts]  # Han without a row: [HAN], row 2
    seen = Counter(pair for text in known for pair in zip([0, *text], text, strict=False))
    kept = sorted((p for p in seen if seen[p] >= bigram_min_count), key=lambda p: (-seen[p], p))
    pair_row = {p: 2 + i for i, p in enumerate(kept)}
    pairs = [[pair_row.get(p, 1) for p in zip([0, *text], text, strict=False)] for text in known]
    return tokens, known, pairs


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("甲乙丙丁", max_size=8), max_size=6), st.integers(1, 3), st.integers(1, 3))
def test_equals_dictionaries_and_loops(texts, min_count, bigram_min_count):
    vocab = CharVocab.build(texts, min_count=min_count, bigram_min_count=bigram_min_count)
    tokens, known, pairs = by_hand(texts, min_count, bigram_min_count)
    ids, bigrams = vocab.encode(texts)
    assert list(vocab.tokens) == tokens
    assert [x.tolist() for x in ids] == known
    assert [x.tolist() for x in bigrams] == pairs
    assert len(vocab) == 7 + len(tokens)
    assert vocab.num_bigrams >= max((max(p) for p in pairs if p), default=0) + 1 or vocab.num_bigrams == 0


def test_a_case_by_head():
    vocab = CharVocab.build(["甲乙甲乙", "乙"], min_count=1, bigram_min_count=2)
    assert vocab.tokens == ("乙", "甲")  # 3 and 2 times
    assert vocab.bigrams.tolist() == [[8, 7]]  # only 甲乙 stands twice
    assert vocab.num_bigrams == 3
    assert ids_of(vocab, "甲乙丙") == [8, 7, 2]
    assert pairs_of(vocab, "甲乙丙") == [1, 2, 1]


def test_pairs_do_not_reach_across_sequences():
    vocab = CharVocab.build(["甲乙"], min_count=1, bigram_min_count=1)
    together = vocab.encode(["甲", "", "乙"])[1]
    assert [x.tolist() for x in together] == [pairs_of(vocab, "甲"), [], pairs_of(vocab, "乙")]
    assert pairs_of(vocab, "乙") == [1]  # not the pair 甲乙


@pytest.mark.parametrize(
    ("token", "row"),
    [
        ("龘", 2), ("𠮷", 2), ("７", 3), ("7", 3), ("3.14", 3), ("50%", 3), ("１９９８", 3), ("abc", 4), ("ａ", 4),
        ("é", 4), ("Abc", 5), ("Ａ", 5), ("UN-backed", 5), ("。", 6), ("《", 6), ("…", 6), ("+", 6), (" ", 6),
        ("\u3000", 6), ("я", 1), ("カ", 1), ("", 1), ("\x00", 1), ("[UNK]", 6),
    ],
)  # fmt: skip
def test_an_unknown_token_still_says_its_class(token, row):
    assert ids_of(CharVocab([]), [token]) == [row]


def test_unknown_words_fall_back_to_small_letters():
    vocab = CharVocab(["the", "The"])
    assert ids_of(vocab, ["The", "THE", "Them"]) == [8, 7, 5]


def test_digits_and_letters_share_their_pairs_but_not_their_rows():
    vocab = CharVocab.build(["１年", "２年", "Ａ股", "Ｂ股"], min_count=1, bigram_min_count=2)
    assert len(set(ids_of(vocab, "１２ＡＢ"))) == 4
    assert pairs_of(vocab, "１年")[1] == pairs_of(vocab, "９年")[1] > 1  # ９ was never seen
    assert pairs_of(vocab, "Ａ股")[1] == pairs_of(vocab, "Ｂ股")[1] > 1


def test_words_keep_their_own_pairs():
    vocab = CharVocab.build([["New", "York"], ["New", "York"], ["Old", "York"]], min_count=1)
    assert pairs_of(vocab, ["New", "York"])[1] > 1
    assert pairs_of(vocab, ["Old", "York"])[1] == 1


def test_order_of_texts_has_no_influence():
    vocab, again = CharVocab.build(TEXTS, 1, 1), CharVocab.build(TEXTS[::-1], 1, 1)
    assert vocab.files() == again.files()


def test_the_most_frequent_pairs_stay():
    texts = ["甲乙"] * 5 + ["乙丙"] * 3 + ["丙丁"] * 2
    vocab = CharVocab.build(texts, min_count=1, max_bigrams=2)
    assert vocab.num_bigrams == 4
    assert pairs_of(vocab, "甲乙") == [2, 3] or pairs_of(vocab, "甲乙") == [3, 2]
    assert pairs_of(vocab, "丙丁") == [1, 1]


def test_without_pairs():
    vocab = CharVocab.build(TEXTS, max_bigrams=0)
    assert vocab.num_bigrams == 0
    assert pairs_of(vocab, "我爱") == [1, 1]


def test_a_string_and_its_characters_are_the_same():
    vocab = CharVocab.build(TEXTS, 1, 1)
    assert ids_of(vocab, "北京") == ids_of(vocab, ["北", "京"]) == ids_of(vocab, ("北", "京"))
    assert vocab.encode([])[0] == []
    assert vocab.encode(iter(["北京"]))[0][0].dtype == torch.int64


AWKWARD = ["\n", "\r", "\t", "\\", "\\n", "\u2028", " ", "a\tb", "甲", "\x85", '"', "\\\\"]


def test_files_there_and_back(tmp_path):
    vocab = CharVocab.build([AWKWARD, AWKWARD, "甲乙甲乙"], min_count=1, bigram_min_count=1)
    assert set(AWKWARD) <= set(vocab.tokens)
    vocab.save(tmp_path)
    for again in (CharVocab.load(tmp_path), CharVocab.from_files(vocab.files())):
        assert again.tokens == vocab.tokens
        np.testing.assert_array_equal(again.bigrams, vocab.bigrams)
        for old, new in zip(vocab.encode([AWKWARD, "乙甲"]), again.encode([AWKWARD, "乙甲"]), strict=True):
            assert [x.tolist() for x in old] == [x.tolist() for x in new]
    lines = (tmp_path / "vocab.txt").read_bytes().decode().split("\n")
    assert lines[:2] == ["[PAD]", "[UNK]"]
    assert lines[vocab.encode(["甲"])[0][0].item()] == "甲"  # the line number is the row


def test_half_surrogates_and_names_of_special_rows_stay_unknown():
    vocab = CharVocab.build([["\ud800", "[UNK]", "[PAD]", "甲"]] * 2)
    assert vocab.tokens == ("甲",)
    assert ids_of(vocab, ["\ud800", "[PAD]"]) == [1, 6]
    vocab.files()["bigrams.txt"].encode("utf-8")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CharVocab.build("北京"), TypeError, r"got one string '北京'; pass \[text\]"),
        (lambda: CharVocab([]).encode("北京"), TypeError, r"pass \[text\]"),
        (lambda: CharVocab.build([[1, 2]], min_count=1), TypeError, r"tokens must be strings, got 1 \(int\)"),
        (lambda: CharVocab(["甲"]).encode([["甲", None]]), TypeError, r"got None \(NoneType\)"),
        (lambda: CharVocab.build([], min_count=0), ValueError, "at least 1, got min_count=0, bigram_min_count=2"),
        (lambda: CharVocab.build([], bigram_min_count=0), ValueError, "bigram_min_count=0"),
        (lambda: CharVocab.build([], max_bigrams=-1), ValueError, "got -1; None sets no limit"),
        (lambda: CharVocab(["甲", "甲"]), ValueError, "'甲' stands twice"),
        (lambda: CharVocab(["[PAD]"]), ValueError, r"'\[PAD\]' names a special row"),
        (lambda: CharVocab(["甲"], np.array([[7, 8]])), ValueError, r"must lie in \[0, 8\)"),
        (lambda: CharVocab(["甲"], np.array([7, 7])), ValueError, r"\(N, 2\) symbols, got shape \(2,\)"),
        (lambda: CharVocab(["甲"], np.array([[7, 7], [7, 7]])), ValueError, "one stands twice"),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("bigrams.txt"), "bigrams.txt is missing"),
        (lambda f: f.update({"vocab.txt": "甲\n乙\n"}), r"must begin with the lines \[PAD\] .* it begins with '甲 乙'"),
        (lambda f: f.update({"bigrams.txt": "甲\t乙\n甲乙\n"}), "line 2: expected two tokens .* got '甲乙'"),
        (lambda f: f.update({"bigrams.txt": "丙\t甲\n"}), "line 1.*same folder"),
        (lambda f: f.update({"vocab.txt": f["vocab.txt"] + "甲\n"}), "'甲' stands twice"),
        (lambda f: f.update({"vocab.txt": f["vocab.txt"] + "x\\y\n"}), "backslash that escapes nothing"),
    ],
)
def test_damaged_files_are_named(change, message):
    files = CharVocab.build(["甲乙", "甲乙"]).files()
    change(files)
    with pytest.raises(InputError, match=message):
        CharVocab.from_files(files)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*vocab\.txt: No such file"):
        CharVocab.load(tmp_path)
    CharVocab([]).save(tmp_path)
    (tmp_path / "bigrams.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8 at byte 0"):
        CharVocab.load(tmp_path)
