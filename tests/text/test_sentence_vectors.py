"""Sentence vectors: poolings by scalar loops, batches do not matter, every kind of encoder, word averages, messages."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.text import (
    POOLINGS,
    EncoderDecoder,
    HFEncoder,
    SpTokenizer,
    Tokenizer,
    Transformer,
    TransformerConfig,
    load_model,
    pool_layers,
    sentence_vectors,
    word_averages,
)
from danlu.text.builtin import builtin_folder
from danlu.text.tokenizer import PairEncoder

assert issubclass(SpTokenizer, PairEncoder)
VOCAB = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, **{letter: 4 + i for i, letter in enumerate("abcdefgh")}}
TOKENIZER = Tokenizer(VOCAB)
TEXTS = ["a b c", "", "h", "b b b b b b b b b b b b", "d e f g", "zz a", "c"]
SIZES = {"vocab_size": 12, "hidden_size": 8, "num_layers": 3, "num_heads": 2, "intermediate_size": 16}


def encoder(family: str = "bert", **options) -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig.of(family, **SIZES), **options).double()


def alone(model: Transformer, text: str, pooling: str) -> torch.Tensor:
    """Oracle: one text without padding, tokens added up in a loop."""
    ids = torch.tensor([TOKENIZER.encode(text)[0]])
    model.eval()
    with torch.no_grad():
        out = model(ids, output_layers=True)
    embeddings, first, *_, before, last = (layer[0] for layer in out.layers)
    mean = {"last_avg": [last], "last2_avg": [before, last], "first_last_avg": [first, last], "embed_avg": [embeddings],
            "embed_last_avg": [embeddings, last]}  # fmt: skip
    if pooling == "cls":
        return last[0]
    if pooling == "pooler":
        return out.pooled[0]
    if pooling == "max":
        return torch.stack([max(column) for column in last.T])
    total = sum((token for layer in mean[pooling] for token in layer), start=torch.zeros(8, dtype=torch.float64))
    return total / (len(mean[pooling]) * len(last))


@pytest.mark.parametrize("pooling", [*POOLINGS, "pooler"])
@pytest.mark.parametrize("batch_tokens", [1, 12, 4096])
def test_equals_each_text_alone(pooling, batch_tokens):
    model = encoder(heads=["pooler"]).train()
    found = sentence_vectors(model, TOKENIZER, TEXTS, pooling, batch_tokens=batch_tokens)
    assert found.dtype == torch.float64
    assert model.training
    assert all(module.training for module in model.modules())
    for text, vector in zip(TEXTS, found, strict=True):
        torch.testing.assert_close(vector, alone(model, text, pooling), rtol=1e-10, atol=1e-12)


def test_pool_layers_takes_the_layers_it_says():
    layers = [torch.full((1, 3, 2), float(2**i)) for i in range(5)]
    mask = torch.tensor([[True, True, False]])
    layers[-1][0, 2] = torch.nan  # padding may hold anything
    expected = {"cls": 16, "last_avg": 16, "last2_avg": 12, "first_last_avg": 9, "embed_last_avg": 8.5, "embed_avg": 1,
                "max": 16}  # fmt: skip
    assert {name: pool_layers(layers, mask, name)[0, 0].item() for name in POOLINGS} == expected


def test_several_poolings_at_once():
    model = encoder()
    found = sentence_vectors(model, TOKENIZER, TEXTS, ["cls", "max"])
    assert list(found) == ["cls", "max"]
    for name, vectors in found.items():
        assert torch.equal(vectors, sentence_vectors(model, TOKENIZER, TEXTS, name))


def test_arrays_lengths_and_order():
    model = encoder().float()
    vectors = sentence_vectors(model, TOKENIZER, TEXTS, as_numpy=True, normalize=True)
    assert isinstance(vectors, np.ndarray)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    turned = sentence_vectors(model, TOKENIZER, TEXTS[::-1], normalize=True)
    np.testing.assert_allclose(turned.numpy()[::-1], vectors, atol=1e-6)
    assert sentence_vectors(model, TOKENIZER, []).shape == (0, 8)


def test_long_texts_are_cut_and_empty_ones_are_zero():
    model = encoder()
    short = sentence_vectors(model, TOKENIZER, ["b b b", "b b b b b b"], max_len=5)
    assert torch.equal(short[0], short[1])
    bare = Tokenizer(VOCAB, token_start=None, token_end=None)
    found = sentence_vectors(model, bare, ["", "a", ""])
    assert not found[0].any()
    assert found[1].any()
    assert not found[2].any()
    assert sentence_vectors(model, bare, ["", ""]).shape == (2, 8)


def test_the_mode_is_put_back_after_a_failure_and_parts_keep_theirs():
    model = encoder().train()
    model.layers[1].eval()
    with pytest.raises(ValueError, match="the position table has 512 rows"):
        sentence_vectors(model, TOKENIZER, ["a " * 600], max_len=700)
    assert model.training
    assert model.layers[0].training
    assert not model.layers[1].training


def test_no_graph_and_nothing_global():
    model = encoder()
    state = torch.get_rng_state()
    vectors = sentence_vectors(model, TOKENIZER, TEXTS)
    assert not vectors.requires_grad
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    vectors.requires_grad_().sum().backward()  # no inference tensor: it may enter a graph


def test_half_precision_comes_back_in_float32():
    model = encoder().float()
    exact = sentence_vectors(model, TOKENIZER, TEXTS)
    for half in (sentence_vectors(encoder().bfloat16(), TOKENIZER, TEXTS),):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, exact, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert sentence_vectors(model, TOKENIZER, TEXTS).dtype == torch.float32


class Table(nn.Module):
    """An encoder of somebody else: a table, called as encoder(ids, mask)."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.table, self.deep = nn.Embedding(12, 4), deep
        self.dropout = nn.Dropout(0.5)

    def forward(self, ids, mask):
        x = self.dropout(self.table(ids))
        return (x, 2 * x, 3 * x) if self.deep else x


def test_any_callable():
    deep, flat = Table(True), Table(False)
    flat.load_state_dict(deep.state_dict())
    base = sentence_vectors(flat, TOKENIZER, TEXTS, "last_avg")
    torch.testing.assert_close(sentence_vectors(deep, TOKENIZER, TEXTS, "first_last_avg"), 2.5 * base)
    by_function = sentence_vectors(lambda ids, mask: flat.table(ids), TOKENIZER, TEXTS, "last_avg")
    torch.testing.assert_close(by_function, base)
    with pytest.raises(ValueError, match=r"first_last_avg needs the hidden states of every layer.*take last_avg"):
        sentence_vectors(flat, TOKENIZER, TEXTS)
    with pytest.raises(ValueError, match="has no pooler; load it with heads="):
        sentence_vectors(flat, TOKENIZER, TEXTS, "pooler")


def test_encoder_of_an_encoder_decoder():
    torch.manual_seed(0)
    model = EncoderDecoder(TransformerConfig.of("t5", **SIZES)).double().eval()
    found = sentence_vectors(model, TOKENIZER, TEXTS, "last_avg")
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            expected = model.encode(torch.tensor([TOKENIZER.encode(text)[0]]))[0].mean(1)[0]
        torch.testing.assert_close(vector, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["roformer", "nezha", "albert", "gau_alpha", "roberta"])
def test_other_families(family):
    sizes = SIZES | ({"num_heads": 1} if family == "gau_alpha" else {})
    torch.manual_seed(0)
    model = Transformer(TransformerConfig.of(family, **sizes)).double()
    together = sentence_vectors(model, TOKENIZER, TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(sentence_vectors(model, TOKENIZER, [text])[0], vector, rtol=1e-9, atol=1e-12)


def test_the_built_in_model():
    folder = builtin_folder("mini-zh")
    model, tokenizer = load_model(folder), Tokenizer.load(folder)
    vectors = sentence_vectors(
        model, tokenizer, ["今天天气很好", "今天天气不错", "股票大跌了"], "last_avg", normalize=True
    )
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


@pytest.mark.slow
def test_a_published_sentence_encoder_and_transformers():
    """MiniLM by danlu and by transformers, and the mean that its own card asks for."""
    folder = builtin_folder("minilm")
    texts = ["A man is playing a guitar.", "Somebody plays an instrument.", "The stock market fell."]
    ours = sentence_vectors(load_model(folder), Tokenizer.load(folder), texts, [*POOLINGS, "pooler"])
    theirs = sentence_vectors(HFEncoder(folder), Tokenizer.load(folder), texts, [*POOLINGS, "pooler"])
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=2e-5)
    v = F.normalize(ours["last_avg"], dim=-1)
    assert v[0] @ v[1] > 0.4 > v[0] @ v[2]


def test_word_averages():
    rows, table = {"a": 0, "b": 2}, torch.tensor([[1.0, 0.0], [9.0, 9.0], [3.0, 4.0]])
    sentences = [["a", "b", "b"], [], ["?"], ["b", "?"]]
    expected = torch.tensor([[7 / 3, 8 / 3], [0, 0], [0, 0], [3, 4]])
    torch.testing.assert_close(word_averages(sentences, rows, table), expected)
    weighted = word_averages(sentences, rows, table, torch.tensor([2.0, 0.0, 1.0]))
    torch.testing.assert_close(weighted, torch.tensor([[2.0, 2.0], [0, 0], [0, 0], [3, 4]]))
    assert not word_averages(sentences, rows, table, torch.zeros(3)).any()
    assert word_averages([], rows, table).shape == (0, 2)
    assert word_averages(sentences, rows, table.bfloat16()).dtype == torch.bfloat16
    grown = table.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: word_averages(sentences, rows, t), grown)


def test_messages():
    model = encoder()
    with pytest.raises(TypeError, match="takes several texts, got one"):
        sentence_vectors(model, TOKENIZER, "a b")
    with pytest.raises(ValueError, match=r"pooling must be one of cls, last_avg.* or pooler, got 'mean'"):
        sentence_vectors(model, TOKENIZER, TEXTS, "mean")
    with pytest.raises(ValueError, match="at least one pooling and batch_tokens >= 1"):
        sentence_vectors(model, TOKENIZER, TEXTS, [])
    with pytest.raises(ValueError, match="maxlen must be at least 2"):
        sentence_vectors(model, TOKENIZER, TEXTS, max_len=1)
    with pytest.raises(ValueError, match=r"pooling must be one of cls.*got 'pooler'"):
        pool_layers([torch.zeros(1, 1, 1)] * 2, pooling="pooler")
    with pytest.raises(ValueError, match=r"output of every layer; use danlu\.nn\.pool for one"):
        pool_layers([torch.zeros(1, 1, 1)])
    with pytest.raises(ValueError, match=r"table \(V, D\) and weights \(V,\); got \(3,\) and weights none"):
        word_averages([["a"]], {"a": 0}, torch.zeros(3))
    with pytest.raises(ValueError, match=r"got \(3, 2\) and weights \(2,\)"):
        word_averages([["a"]], {"a": 0}, torch.zeros(3, 2), torch.zeros(2))
