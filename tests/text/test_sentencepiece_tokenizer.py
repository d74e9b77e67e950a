"""SpTokenizer: a model trained on the spot, spans against the text, pairs and cuts, bert4keras' cases, messages."""

import io
import json
import pickle
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.errors import InputError
from danlu.text import SpTokenizer

TEXTS = ["the cat sat on the mat", "科学空间的科学", "１２３ cats", "on a mat, the cat"] * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    sentencepiece = pytest.importorskip("sentencepiece")
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=content, vocab_size=45, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, model_type="unigram", minloglevel=2, user_defined_symbols=["<sep>"],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("sp") / "spiece.model"
    path.write_bytes(content.getvalue())
    return path


def test_tokens_ids_and_text_belong_together(model):
    tokenizer = SpTokenizer(model)
    tokens = tokenizer.tokenize("the cat")
    ids, segments = tokenizer.encode("the cat")
    assert tokens[-1] == "</s>"
    assert "".join(tokens[:-1]).replace("\u2581", " ").strip() == "the cat"
    assert tokenizer.ids_to_tokens(ids) == tokens
    assert tokenizer.tokens_to_ids(tokens) == ids
    assert segments == [0] * len(ids)
    assert tokenizer.decode(ids) == "the cat"
    assert (tokenizer.end_id, tokenizer.start_id, tokenizer.pad_id, tokenizer.unk_id) == (1, None, 0, 2)
    assert tokenizer.id_to_token(tokenizer.vocab_size) == ""  # T5's embedding has more rows
    assert pickle.loads(pickle.dumps(tokenizer)).encode("the cat")[0] == ids


@settings(max_examples=60, deadline=None)
@given(st.text("thecasonm 科学空间😀é１ ", max_size=15))
def test_spans_are_those_of_the_text(model, text):
    tokenizer = SpTokenizer(model)
    (encoding,) = tokenizer.encode_batch([text])
    end = 0
    for token, (begin, stop) in zip(tokenizer.tokenize(text)[:-1], encoding.offsets[:-1], strict=True):
        assert end <= begin <= stop <= len(text)
        end = stop
        shown = token.replace("\u2581", " ").strip()
        if shown and token in tokenizer.ids_to_tokens([tokenizer.token_to_id(token)]):
            assert shown in (text[begin:stop].strip(), text[begin:stop].strip().replace("１", "1"))
    assert encoding.offsets[-1] == (0, 0)


def test_pairs_are_cut_before_the_end(model):
    tokenizer = SpTokenizer(model)
    a, b = (tokenizer.encode(text)[0] for text in ("the cat sat", "on a mat"))
    ids, segments = tokenizer.encode("the cat sat", "on a mat")
    assert ids == a + b  # no start token, so none is taken off the second
    assert segments == [0] * len(a) + [1] * len(b)
    ids, segments = tokenizer.encode("the cat sat", "on a mat", maxlen=6)
    assert len(ids) == 6
    assert ids[2] == ids[5] == 1
    assert ids[:2] == a[:2]
    assert segments == [0, 0, 0, 1, 1, 1]


def test_words_and_replacements(model):
    words = SpTokenizer(model, token_end=None, pre_tokenize=lambda text: text.split("|"))
    encoding = words.encode_batch(["the|cat"])[0]
    plain = SpTokenizer(model, token_end=None)
    assert encoding.ids == plain.encode("the cat")[0]
    (begin, end) = encoding.offsets[-1]
    assert end == 7
    assert "the|cat"[begin:end] in "cat"
    changed = SpTokenizer(model, token_translate={plain.tokenize("the")[0]: "<sep>"})
    ids = changed.encode("the")[0]
    assert changed.tokenize("the")[0] == "<sep>"
    assert ids[0] == changed.token_to_id("<sep>") != plain.encode("the")[0][0]
    assert changed.decode(ids) == "the"


def test_messages(model, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no\.model: cannot be read: No such file.*name a SentencePiece model"):
        SpTokenizer(tmp_path / "no.model")
    for content in (b"", b"no model at all"):
        (tmp_path / "x.model").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.model: not a SentencePiece model; T5 keeps it in spiece\.model"):
            SpTokenizer(tmp_path / "x.model")
    with pytest.raises(ValueError, match=r"has no piece '\[CLS\]'; pass token_start=None"):
        SpTokenizer(model, token_start="[CLS]")
    with pytest.raises(ValueError, match="ids must be 0 or more, got -100"):
        SpTokenizer(model).decode([-100])
    with pytest.raises(TypeError, match="a text must be a str, got int"):
        SpTokenizer(model).tokenize(3)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r'pip install "danlu\[text\]"'):
        SpTokenizer(model)


@pytest.mark.data
def test_equals_bert4keras(shared):
    pytest.importorskip("sentencepiece")
    folder = shared / "oracles/tokenizer"
    tokenizer = SpTokenizer(folder / "sp.model")
    for case in json.loads((folder / "sentencepiece.json").read_text(encoding="utf-8")):
        assert tokenizer.tokenize(case["text"]) == case["tokens"]
        assert tokenizer.encode(case["text"]) == (case["ids"], case["segments"])
        assert tokenizer.encode(case["text"], maxlen=8)[0] == case["ids_maxlen8"]
        assert tokenizer.decode(case["ids"]) == case["decode"]
