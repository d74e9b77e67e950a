"""Tokenizer: against its definition in loops, the Rust library, bert4keras; positions, pairs, cuts, files, messages."""

import json
import pickle
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from danlu.data.errors import InputError
from danlu.text import Encoding, Tokenizer
from danlu.text import tokenizer as module
from danlu.text.vocabulary import is_cjk, is_punctuation

WORDS = (
    "今 天 中 国 科 a b ab ##a ##b ##ab ##1 1 12 ##2 cafe ##s fi x internet 。 ， ! [ ] ' - + . s don t re é ##é i "
    "σ ##ς ας ασ ##ᅡ ᄒ ##ᆫ"
)
PIECES = WORDS.split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCAB = {token: number for number, token in enumerate(SPECIAL + PIECES)}
LOWER, CASED = Tokenizer(VOCAB), Tokenizer(VOCAB, do_lower_case=False)
CHOSEN = (
    "今天中国科。，![]'-+.ab12AB xéÉ\u00ef\u0301\u0327\u0345\u302e\u302f\u200b\u200d\ufeff\xad\0\ufffd\t\n\r\x0b"
    "\x1c\x85\u2028\u3000\xa0ΣσςİıßﬁＡ１，한국カ😀👨🇨𠮷豈≮;\u037e\u1fef\u2000\ue000"
)
CHARACTERS = st.one_of(st.sampled_from(CHOSEN), st.sampled_from("今a1σ \u0301"), st.characters())
TEXTS = st.lists(CHARACTERS, max_size=16).map("".join)  # st.text would draw evenly from all of Unicode


def normal_by_hand(text, lower):
    if lower:
        text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return text


def tokens_by_hand(text, lower=True, word_maxlen=200):
    """Oracle: the definition in loops over the whole text, with no store, no classes and no longest token."""
    spaced = ""
    for c in normal_by_hand(text, lower):
        if is_punctuation(c) or is_cjk(c):
            spaced += f" {c} "
        elif c in "\n\r\t" or unicodedata.category(c) == "Zs":
            spaced += " "
        elif unicodedata.category(c) not in ("Cc", "Cf") and c != "\ufffd":
            spaced += c
    out = []
    for word in spaced.split():
        pieces, rest = [], word
        while rest and len(word) <= word_maxlen:
            mark = "##" if pieces else ""
            fits = [n for n in range(1, len(rest) + 1) if mark + rest[:n] in VOCAB]
            if not fits:
                break
            pieces.append(mark + rest[: max(fits)])
            rest = rest[max(fits) :]
        out += [word] if rest else pieces
    return out


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.booleans())
@example("ΑΣ' ΑΣ", True)
@example("Σ'Α ΑΣ́", True)
@example("ΑΣ'Α", True)  # not the last letter of its word, though the mark parts it from the next
@example("a\u302e\u0327\U00016ff0\u0301b", True)  # marks that NFD puts in another order
@example("internets", True)
@example("a\u2028b", True)
def test_tokens_and_ids_equal_the_definition(text, lower):
    tokenizer = LOWER if lower else CASED
    tokens = tokens_by_hand(text, lower)
    assert tokenizer.tokenize(text) == ["[CLS]", *tokens, "[SEP]"]
    ids, segments = tokenizer.encode(text)
    assert ids == [2, *(VOCAB.get(token, 1) for token in tokens), 3]
    assert segments == [0] * len(ids)
    assert tokenizer.encode_batch([text, text])[1].ids == ids
    assert all(type(number) is int for number in ids)


def kept(text, lower):
    """The normalised characters of a text that are part of some token."""
    return "".join(
        c
        for c in normal_by_hand(text, lower)
        if unicodedata.category(c) not in ("Cc", "Cf", "Zs", "Zl", "Zp") and c not in "\ufffd\n"
    ).replace("ς", "σ")  # the last sigma of a slice is not always the last of its word


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.booleans())
@example("e\u0301a \u00c9\uff21 \U0001f468\u200d\U0001f469x 한b", True)
def test_slicing_by_offsets_gives_back_the_characters(text, lower):
    tokenizer = LOWER if lower else CASED
    (encoding,) = tokenizer.encode_batch([text])
    tokens = tokenizer.tokenize(text)
    assert encoding.offsets[0] == encoding.offsets[-1] == (0, 0)
    place = 0
    for token, (begin, end), chars in zip(tokens, encoding.offsets, tokenizer.rematch(text, tokens), strict=True):
        if token in ("[CLS]", "[SEP]"):
            assert chars == []
            continue
        assert 0 <= begin < end <= len(text)
        assert begin >= place - 1
        place = end
        stem = token.removeprefix("##").replace("ς", "σ")
        shown = kept(text[begin:end], lower)
        assert stem in shown
        if all(len(kept(c, lower)) <= 1 for c in text[begin:end]):  # no character that two tokens share
            assert stem == shown
        assert (min(chars), max(chars) + 1) == (begin, end)
        assert len(chars) == len(stem)
    covered = {i for chars in tokenizer.rematch(text, tokens) for i in chars}
    if "\u302e" not in text:  # a mark that is moved past others is found under their places
        assert {i for i, c in enumerate(text) if kept(c, lower)} <= covered


def test_offsets_in_numbers():
    def spans(text):
        return [text[a:b] for a, b in LOWER.encode_batch([text])[0].offsets[1:-1]]

    assert spans("今天 Caf\u00e9\u0301s!") == ["今", "天", "Caf\u00e9", "s", "!"]
    assert spans("a\u200bb。") == ["a\u200bb", "。"]
    assert spans("한") == ["한", "한", "한"]
    assert spans("İ i") == ["İ", "i"]
    assert LOWER.rematch("İ i", ["i", "i"]) == [[0], [2]]
    assert LOWER.rematch("İ i", ["i", "i"], compat="bert4keras") == [[0], [3]]  # beyond the text
    assert LOWER.rematch("a", LOWER.tokenize("a")) == [[], [0], []]


def test_rematch_goes_on_where_a_token_is_not_found():
    assert LOWER.rematch("科学 空间", ["科", "[UNK]", "没有", "间"]) == [[0], [], [], [4]]
    assert LOWER.rematch("", ["a"]) == [[]]
    with pytest.raises(ValueError, match="compat must be None or 'bert4keras', got 'hf'"):
        LOWER.rematch("a", ["a"], compat="hf")


@settings(max_examples=200, deadline=None)
@given(st.text("今天。!ab12 A'-éÉ한カ\n\u3000\u0301１\xad\u200b", max_size=20))
def test_equals_the_rust_library_on_everyday_text(text):
    theirs = LOWER.to_rust().encode(text)
    ours = LOWER.encode_batch([text])[0]
    assert ours.ids == theirs.ids
    assert ours.segment_ids == theirs.type_ids
    for (a, b), (c, d) in zip(ours.offsets, theirs.offsets, strict=True):
        # the library counts accents and dropped characters in at the end of a span
        assert a == c
        assert b <= d
        assert not kept(text[b:d], True)
    pair, other = LOWER.encode_batch([text], ["a今"])[0], LOWER.to_rust().encode(text, "a今")
    assert (pair.ids, pair.segment_ids) == (other.ids, other.type_ids)


def test_the_store_of_words_and_classes_changes_nothing(monkeypatch):
    monkeypatch.setattr(module, "_WORDS_KEPT", 2)
    tokenizer = Tokenizer(VOCAB)
    words = ["ab", "abab", "cafés", "x" * 60, "1212", "don't"]
    for text in words * 2 + [" ".join(words)]:
        assert tokenizer.tokenize(text)[1:-1] == tokens_by_hand(text)
        assert tokenizer.encode(text)[0][1:-1] == [VOCAB.get(t, 1) for t in tokens_by_hand(text)]
    assert len(tokenizer._words) <= 2
    ids, spans = tokenizer.pieces("今天ab")
    ids.append(7)
    spans.append((9, 9))  # what is returned belongs to the caller
    assert tokenizer.pieces("今天ab") == ([5, 6, 12], [(0, 1), (1, 2), (2, 4)])
    tokenizer.pieces("ab")[0].append(7)
    assert tokenizer.pieces("ab")[0] == [12]


# pairs and cuts


def cut_by_hand(first, second, maxlen, pattern, index):
    """Oracle: the special tokens go on, then one token after another is popped from the longer of the two."""
    rows = [["[CLS]", *tokens_by_hand(t), "[SEP]"] for t in ([first] if second is None else [first, second])]
    shared = 1 if second is not None and pattern == "S*E*E" else 0
    while sum(map(len, rows)) - shared > maxlen:
        max(rows, key=len).pop(index)
    ids = [VOCAB.get(t, 1) for t in rows[0]]
    more = [VOCAB.get(t, 1) for t in rows[1][shared:]] if second is not None else []
    return ids + more, [0] * len(ids) + [1] * len(more)


@settings(max_examples=200, deadline=None)
@given(
    st.text("今天ab 。", max_size=9),
    st.one_of(st.none(), st.text("今天ab 。", max_size=9)),
    st.integers(4, 16),
    st.sampled_from(["S*E*E", "S*ES*E"]),
    st.sampled_from(["left", "right"]),
)
def test_cuts_equal_popping(first, second, maxlen, pattern, side):
    index = 1 if side == "left" else -2
    expected = cut_by_hand(first, second, maxlen, pattern, index)
    assert LOWER.encode(first, second, maxlen, pattern, side) == expected
    assert LOWER.encode(first, second, maxlen, pattern, index) == expected
    seconds = None if second is None else [second]
    (encoding,) = LOWER.encode_batch([first], seconds, maxlen, pattern, side)
    assert (encoding.ids, encoding.segment_ids) == expected
    whole = LOWER.encode_batch([first], seconds, None, pattern)[0]
    left = zip(encoding.ids, encoding.segment_ids, encoding.offsets, strict=True)  # cut at the same places
    assert set(left) <= set(zip(whole.ids, whole.segment_ids, whole.offsets, strict=True))
    if second is None:
        tokens = LOWER.tokenize(first, maxlen)
        assert LOWER.tokens_to_ids(tokens) == LOWER.encode(first, maxlen=maxlen)[0]


def test_tokens_may_be_given_and_special_tokens_left_out():
    assert LOWER.encode(["今", "没"], LOWER.tokenize("天")) == ([5, 1, 6, 3], [0, 0, 1, 1])
    bare = Tokenizer(VOCAB, token_start=None, token_end=None)
    assert bare.encode("今天", "中国") == ([5, 6, 7, 8], [0, 0, 1, 1])
    assert bare.encode("今天", "中国", maxlen=3) == ([5, 7, 8], [0, 1, 1])  # the original returned four
    assert bare.encode("今天", maxlen=0) == ([], [])
    assert bare.encode_batch([""]) == [Encoding([], [], [])]
    assert LOWER.encode_batch([]) == []
    assert (bare.start_id, bare.end_id, LOWER.start_id, LOWER.pad_id, LOWER.mask_id) == (None, None, 2, 0, 4)


# settings


def test_words_of_the_caller():
    calls = []

    def words(text):
        calls.append(text)
        return ["中国", *text[2:]] if text.startswith("中国") else list(text)

    tokenizer = Tokenizer(VOCAB | {"中国": 50}, pre_tokenize=words)
    assert tokenizer.tokenize("中国AB")[1:-1] == ["中国", "a", "b"]
    assert calls == ["中国ab"]
    assert tokenizer.encode_batch(["中国AB"])[0] == Encoding(
        [2, 50, VOCAB["a"], VOCAB["b"], 3], [0] * 5, [(0, 0), (0, 2), (2, 3), (3, 4), (0, 0)]
    )
    made_up = Tokenizer(VOCAB, pre_tokenize=lambda text: ["今", "天", "x"])
    assert made_up.encode_batch(["今x"])[0].offsets == [(0, 0), (0, 1), (1, 1), (1, 2), (0, 0)]  # 天 is not there


def test_replaced_tokens_keep_their_place():
    tokenizer = Tokenizer(VOCAB, token_translate={"今": "[MASK]", "##ab": "x"})
    assert tokenizer.tokenize("今1ab") == ["[CLS]", "[MASK]", "1", "x", "[SEP]"]
    encoding = tokenizer.encode_batch(["今1ab"])[0]
    assert encoding.ids == [2, 4, VOCAB["1"], VOCAB["x"], 3]
    assert encoding.offsets == [(0, 0), (0, 1), (1, 2), (2, 4), (0, 0)]


def test_long_words_and_words_kept_whole():
    short = Tokenizer(VOCAB, word_maxlen=3)
    assert short.tokenize("aba abab")[1:-1] == ["ab", "##a", "abab"]
    assert short.encode("abab")[0] == [2, 1, 3]
    assert LOWER.tokenize("今[MASK]天")[1:-1] == ["今", "[", "mask", "]", "天"]
    whole = Tokenizer(VOCAB, keep_whole=["[MASK]", "[SEP]"])
    assert whole.tokenize("今[MASK]A[SEP][MASK")[1:-1] == ["今", "[MASK]", "a", "[SEP]", "[", "mask"]
    encoding = whole.encode_batch(["今[MASK]A"])[0]
    assert encoding.ids == [2, 5, 4, VOCAB["a"], 3]
    assert encoding.offsets == [(0, 0), (0, 1), (1, 7), (7, 8), (0, 0)]
    assert whole.encode("今A")[0] == LOWER.encode("今A")[0]


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("[CLS] 今 天 。 中 [SEP]", "今天。中"),
        ("今 cafe ##s 中", "今cafes中"),
        ("a b ##ab 今 ! a", "a bab今! a"),
        ("don ' t re ' s", "don't re' s"),
        ("a + b - ( 1 . 2 )", "a+b-(1.2)"),
        ("今 ， a 。 1 ！", "今，a。1！"),
        ("## a", "a"),
        ("##a 今", "a今"),
        ("", ""),
        ("[UNK] [MASK]", ""),
    ],
)
def test_decoded_text(tokens, text):
    assert LOWER.decode([], tokens=tokens.split()) == text


def test_ids_and_tokens():
    assert LOWER.decode(LOWER.encode("Cafés今天!")[0]) == "cafes今天!"
    assert LOWER.decode([1, 5], tokens=["没", "今"]) == "没今"  # words without an id are not lost
    assert LOWER.ids_to_tokens([5, 1]) == ["今", "[UNK]"]
    with pytest.raises(
        ValueError, match=rf"no token has the id 999; ids of this vocabulary lie in \[0, {len(VOCAB)}\)"
    ):
        LOWER.decode([999])


def test_files_there_and_back(tmp_path):
    tokenizer = Tokenizer(VOCAB, do_lower_case=False, word_maxlen=50, keep_whole=["[MASK]"])
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.vocab, again.do_lower_case, again.word_maxlen) == (VOCAB, False, 50)
    assert again.encode("Ab[MASK]今") == tokenizer.encode("Ab[MASK]今")
    from tokenizers import Tokenizer as Rust

    assert (
        Rust.from_file(str(tmp_path / "tokenizer.json")).encode("ab[MASK]今").ids == tokenizer.encode("ab[MASK]今")[0]
    )
    config = {"cls_token": {"content": "[MASK]"}, "sep_token": None, "do_lower_case": False}  # as HuggingFace may write
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.load(tmp_path).tokenize("aA") == ["[MASK]", "aA"]
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.load(tmp_path).encode("AB") == LOWER.encode("AB")
    assert Tokenizer(tmp_path / "vocab.txt").vocab == VOCAB
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(InputError, match=r"tokenizer_config\.json: not the settings of a tokenizer"):
        Tokenizer.load(tmp_path)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("Ab 今[MASK]") == tokenizer.encode("Ab 今[MASK]")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Tokenizer({"a": 0}),
            r"the vocabulary of 1 tokens has no '\[UNK\]'; if it was simplified, startswith=",
        ),
        (lambda: Tokenizer({"[UNK]": 0}), r"has no '\[CLS\]'; pass token_start=None; if it was simplified"),
        (lambda: Tokenizer({"[UNK]": 0}, token_start=None), r"has no '\[SEP\]'; pass token_end=None"),
        (lambda: Tokenizer(VOCAB, keep_whole=["[X]"]), r"has no '\[X\]'; leave it out of keep_whole"),
        (lambda: Tokenizer(VOCAB | {"q": -1}), "ids must be 0 or more, got -1"),
        (lambda: LOWER.encode("a", pattern="SEE"), r"pattern must be one of S\*E\*E, S\*ES\*E, got 'SEE'"),
        (
            lambda: LOWER.encode("a", truncate_from="top"),
            "truncate_from must be 'right', 'left' or an index, got 'top'",
        ),
        (lambda: LOWER.encode("a", maxlen=1), "maxlen must be at least 2, the number of special tokens, got 1"),
        (lambda: LOWER.tokenize("a", maxlen=1), "maxlen must be at least 2"),
        (lambda: LOWER.encode("a", "b", maxlen=2), "maxlen must be at least 3"),
        (lambda: LOWER.encode("a", "b", maxlen=3, pattern="S*ES*E"), "maxlen must be at least 4"),
        (lambda: LOWER.encode_batch(["a"], ["b"], maxlen=2), "maxlen must be at least 3"),
        (lambda: LOWER.encode_batch(["a"], []), "as many second texts as first ones are needed, got 0 and 1"),
        (lambda: Tokenizer(VOCAB, pre_tokenize=list).to_rust(), "have no counterpart in the Rust library"),
        (lambda: Tokenizer(VOCAB, token_translate={"a": "b"}).to_rust(), "have no counterpart"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_one_text_or_several():
    with pytest.raises(TypeError, match=r"encode_batch takes several texts, got one; write encode_batch\(\[text\]\)"):
        LOWER.encode_batch("今天")
    for call in (LOWER.tokenize, LOWER.tokens_of, LOWER.pieces):
        with pytest.raises(TypeError, match="a text must be a str, got list; encode_batch takes several texts"):
            call(["今"])


# bert4keras


@pytest.fixture
def cases(shared):
    folder = shared / "oracles/tokenizer"
    return lambda name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), str(folder / "vocab.txt")


@pytest.mark.data
@pytest.mark.parametrize("lower", [True, False])
def test_single_texts_equal_bert4keras(cases, lower):
    read, vocab = cases
    tokenizer = Tokenizer(vocab, do_lower_case=lower)
    some = [case for case in read("single") if case["do_lower_case"] == lower]
    assert len(some) > 50
    for case in some:
        text = case["text"]
        assert tokenizer.tokenize(text) == case["tokens"]
        assert tokenizer.encode(text) == (case["ids"], case["segments"])
        assert tokenizer.decode(case["ids"]) == case["decode"]
        assert tokenizer.rematch(text, case["tokens"], compat="bert4keras") == case["rematch"]
        places = tokenizer.rematch(text, case["tokens"])
        if not lower or "\u0130" not in text:  # there its positions count in another text
            assert places == case["rematch"]
        spans = [(min(p), max(p) + 1) if p else (0, 0) for p in places]
        assert tokenizer.encode_batch([text]) == [Encoding(case["ids"], case["segments"], spans)]


@pytest.mark.data
def test_pairs_equal_bert4keras(cases):
    read, vocab = cases
    tokenizer = Tokenizer(vocab)
    for case in read("pairs"):
        expected = (case["ids"], case["segments"])
        assert tokenizer.encode(case["first"], case["second"], **case["arguments"]) == expected
        (encoding,) = tokenizer.encode_batch([case["first"]], [case["second"]], **case["arguments"])
        assert (encoding.ids, encoding.segment_ids) == expected
        options = {name: value for name, value in case["arguments"].items() if name != "pattern"}
        assert tokenizer.encode(case["first"], **options)[0] == case["single_ids"]


@pytest.mark.data
def test_variants_equal_bert4keras(cases):
    read, path = cases
    variants = read("variants")
    words = set(variants["word_list"])

    def longest_word_first(text):
        while text:
            n = next((n for n in (4, 3, 2) if text[:n] in words), 1)
            yield text[:n]
            text = text[n:]

    plain = Tokenizer(path)
    made = {
        "word_level": Tokenizer(plain.vocab | variants["word_ids"], pre_tokenize=longest_word_first),
        "no_specials": Tokenizer(path, token_start=None, token_end=None),
        "word_maxlen_10": Tokenizer(path, word_maxlen=10),
        "translate": Tokenizer(path, token_translate=variants["token_translate"]),
    }
    for case in variants["cases"]:
        tokenizer = made[case["variant"]]
        assert tokenizer.tokenize(case["text"]) == case["tokens"]
        assert tokenizer.encode(case["text"])[0] == case["ids"]
        assert tokenizer.encode_batch([case["text"]])[0].ids == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["decode"]
