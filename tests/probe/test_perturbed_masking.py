"""Perturbed masking: closed form of a linear model, one pair at a time by hand, rows, batches, both libraries."""

import itertools

import pytest
import torch
from torch import nn

from danlu.probe import Pieces, impact_matrix, neighbour_scores, text_pieces, word_pieces
from danlu.text.config import TransformerConfig
from danlu.text.single_stack import Transformer
from danlu.text.tokenizer import Tokenizer

MASK = 3
VOCAB = {
    t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[MASK]", "[SEP]", "科", "学", "空", "间", "he", "##llo"])
}


def tiny(heads=(), family="bert", **sizes):
    torch.manual_seed(0)
    config = TransformerConfig.of(
        family,
        **{"vocab_size": 30, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32} | sizes,
    )
    model = Transformer(config, heads).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5)  # fresh weights hardly listen to the context
    return model.eval()


def sentences(seed=0):
    """Words of one to three pieces, other lengths each; one sentence without and one with a single word."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for words in (4, 0, 2, 5, 1):
        sizes = torch.randint(1, 4, (words,), generator=generator).tolist()
        ids, units = [2], []
        for size in sizes:
            units.append(tuple(range(len(ids), len(ids) + size)))
            ids += torch.randint(5, 30, (size,), generator=generator).tolist()
        found.append(Pieces((*ids, 4), tuple(units), tuple("w" * words)))
    return found


def by_hand(states, sentence, distance="euclid", row="mean_vector", mask_id=MASK):
    """Oracle: one sentence, two words at a time, one forward pass a row; states(ids list) -> (T, D)."""
    words = len(sentence.units)
    out = torch.zeros(words, words, dtype=torch.float64)
    for a, b in itertools.permutations(range(words), 2):
        alone, both = list(sentence.ids), list(sentence.ids)
        for p in sentence.units[a]:
            alone[p] = both[p] = mask_id
        for p in sentence.units[b]:
            both[p] = mask_id
        x, y = (states(ids)[list(sentence.units[a])] for ids in (alone, both))  # (P, D)
        if row == "mean_vector":
            x, y = x.mean(0, keepdim=True), y.mean(0, keepdim=True)
        if row == "first":
            x, y = x[:1], y[:1]
        if distance == "euclid":
            each = ((x - y) ** 2).sum(1).sqrt()
        elif distance == "cos":
            each = 1 - (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
        else:
            truth = torch.tensor(sentence.ids)[list(sentence.units[a])][: len(x)]
            each = torch.stack([x[k, t] - y[k, t] for k, t in enumerate(truth)])
        out[a, b] = each.mean()
    return out


def states_of(model):
    def states(ids):
        with torch.no_grad():
            return model(torch.tensor([ids])).hidden_states[0]

    return states


def test_closed_form_of_a_linear_model():
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(9, 9, dtype=torch.float64, generator=generator)
    table = torch.randn(30, 6, dtype=torch.float64, generator=generator)

    def model(ids, mask):
        return w[: ids.shape[1], : ids.shape[1]] @ table[ids]

    ids = torch.randint(5, 30, (9,), generator=generator).tolist()
    singles = Pieces(tuple(ids), tuple((i,) for i in range(9)), ("",) * 9)
    moved = (table[ids] - table[MASK]).norm(dim=1)
    expected = w.abs() * moved  # |w_ij| ||e(x_j) - m||
    got = impact_matrix(model, [singles], MASK)[0]
    torch.testing.assert_close(got, expected.fill_diagonal_(0.0), rtol=1e-12, atol=1e-12)

    words = Pieces(tuple(ids), ((0, 1), (2,), (4, 5, 8)), ("",) * 3)  # 3, 6, 7 are never hidden
    got = impact_matrix(model, [words], MASK)[0]
    for a, b in itertools.permutations(range(3), 2):
        change = w[list(words.units[a])][:, list(words.units[b])] @ (table[ids] - table[MASK])[list(words.units[b])]
        assert got[a, b].item() == pytest.approx(change.mean(0).norm().item(), rel=1e-12)


@pytest.mark.parametrize("row", ["mean_vector", "mean_distance", "first"])
@pytest.mark.parametrize("distance", ["euclid", "cos"])
def test_equals_one_pair_at_a_time(distance, row):
    model, some = tiny(), sentences()
    got = impact_matrix(model, some, MASK, distance, row)
    for sentence, F in zip(some, got, strict=True):
        torch.testing.assert_close(F, by_hand(states_of(model), sentence, distance, row))
    assert [tuple(F.shape) for F in got] == [(4, 4), (0, 0), (2, 2), (5, 5), (1, 1)]
    assert got[4].item() == 0.0


@pytest.mark.parametrize("row", ["mean_vector", "mean_distance", "first"])
def test_probabilities_equal_one_pair_at_a_time(row):
    model, some = tiny(["mlm"]), sentences()

    def probabilities(ids):
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].softmax(-1)

    def plain(ids, mask):
        return model(ids, mask=mask).logits

    expected = [by_hand(probabilities, s, "prob", "first" if row == "first" else "mean_distance") for s in some]
    for way in (model, plain):
        for F, e in zip(impact_matrix(way, some, MASK, "prob", row), expected, strict=True):
            torch.testing.assert_close(F, e)
    assert min(float(e.min()) for e in expected if e.numel()) < 0  # signed


@pytest.mark.parametrize("token_budget", [1, 7, 40, 100_000])
def test_batches_change_nothing(token_budget):
    model, some = tiny(), sentences(1)
    expected = impact_matrix(model, some, MASK)
    for order in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2], [2]):
        got = impact_matrix(model, [some[i] for i in order], MASK, token_budget=token_budget)
        for i, F in zip(order, got, strict=True):
            torch.testing.assert_close(F, expected[i])


def test_more_sentences_than_are_kept_at_a_time():
    model, some = tiny(), sentences(2) * 30
    got = impact_matrix(model, some, MASK)
    for i, F in enumerate(got):
        torch.testing.assert_close(F, got[i % 5])


def test_rows_are_shared_and_within_the_budget():
    seen = []

    def model(ids, mask):
        seen.append((ids.clone(), mask))
        return torch.nn.functional.one_hot(ids, 30).double().cumsum(1).flip(1).cumsum(1)

    some = [Pieces(tuple(range(5, 5 + n)), tuple((i,) for i in range(n)), ("",) * n) for n in (20, 6)]
    impact_matrix(model, some, MASK, token_budget=100)
    assert sum(len(ids) for ids, _ in seen) == 20 * 21 // 2 + 6 * 7 // 2
    assert all(ids.numel() <= 100 for ids, _ in seen)
    hidden = {tuple(row.tolist()) for ids, _ in seen for row in (ids == MASK)}
    assert len(hidden) == len({tuple(r.tolist()) for ids, mask in seen for r in torch.where(mask, ids == MASK, True)})
    seen.clear()
    impact_matrix(model, some, MASK, pairs="neighbours")
    assert sum(len(ids) for ids, _ in seen) == 2 * 20 - 1 + 2 * 6 - 1


def test_neighbours_are_those_of_the_whole():
    model, some = tiny(), sentences()
    whole, near = (impact_matrix(model, some, MASK, pairs=pairs) for pairs in ("all", "neighbours"))
    for F, N in zip(whole, near, strict=True):
        band = torch.ones_like(F).triu(-1).tril(1)
        torch.testing.assert_close(N, F * band)
        torch.testing.assert_close(neighbour_scores(N), neighbour_scores(F))
    c = neighbour_scores(whole[0])
    assert c[1].item() == pytest.approx((whole[0][1, 2] + whole[0][2, 1]).item() / 2)
    assert [len(neighbour_scores(F)) for F in whole] == [3, 0, 1, 4, 0]


def test_layers():
    model, some = tiny(), sentences()[:1]
    got = impact_matrix(model, some, MASK, layers=[0, 1, -1])[0]
    assert got.shape == (3, 4, 4)
    assert got[0].abs().max() < 1e-12  # before the first layer nobody has seen anybody
    torch.testing.assert_close(got[2], impact_matrix(model, some, MASK)[0])

    def first(ids):
        with torch.no_grad():
            return model(torch.tensor([ids]), output_layers=True).layers[1][0]

    torch.testing.assert_close(got[1], by_hand(first, some[0]))
    listed = impact_matrix(lambda ids, mask: list(model(ids, mask=mask, output_layers=True).layers[1:]), some, MASK)[0]
    torch.testing.assert_close(listed, got[1:])
    assert impact_matrix(model, sentences()[1:2], MASK, layers=[0, -1])[0].shape == (2, 0, 0)


def test_a_model_of_huggingface():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, initializer_range=0.3,
    )  # fmt: skip
    model, some = transformers.BertModel(config, add_pooling_layer=False), sentences()  # in training mode: dropout
    got = impact_matrix(model, some, MASK)
    assert model.training
    assert all(m.training for m in model.modules())
    model.eval()

    def states(ids):
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids])).last_hidden_state[0].double()

    for sentence, F in zip(some, got, strict=True):
        torch.testing.assert_close(F.double(), by_hand(states, sentence), rtol=1e-4, atol=1e-5)
    layers = impact_matrix(model, some[:1], MASK, layers=[-1])[0]
    torch.testing.assert_close(layers[0], got[0], rtol=1e-4, atol=1e-5)
    head = transformers.BertForMaskedLM(config).eval()
    with pytest.raises(ValueError, match=r"MaskedLMOutput without hidden states.*layers=\[-1\]"):
        impact_matrix(head, some, MASK)
    assert impact_matrix(head, some[:1], MASK, layers=[-1])[0].shape == (1, 4, 4)
    assert impact_matrix(head, some[:1], MASK, "prob")[0].abs().max() < 1
    long = Pieces(tuple(range(5, 29)) * 2, ((1,), (2,)), ("", ""))
    with pytest.raises(ValueError, match="sentence 1 has 48 tokens, more than the 40 positions of the model"):
        impact_matrix(model, [some[0], long], MASK)


def test_modes_are_put_back_also_after_an_error():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5).eval()

        def forward(self, ids, mask):
            assert not self.inner.training
            assert not torch.is_grad_enabled()
            raise RuntimeError("no")

    model = Fails()
    with pytest.raises(RuntimeError, match="no"):
        impact_matrix(model, sentences(), MASK)
    assert model.training
    assert model.inner.training
    assert not model.frozen.training
    assert torch.is_grad_enabled()


def test_dropout_is_off_and_nothing_needs_a_gradient():
    model, some = tiny(hidden_dropout=0.5).train(), sentences()
    first, second = impact_matrix(model, some, MASK), impact_matrix(model, some, MASK)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(F.requires_grad for F in first)
    torch.testing.assert_close(first, impact_matrix(model.eval(), some, MASK))


def test_autocast():
    model, some = tiny().float(), sentences()
    exact = impact_matrix(model, some, MASK)
    with torch.autocast("cpu", torch.bfloat16):
        rough = impact_matrix(model, some, MASK)
    for a, b in zip(exact, rough, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert a.numel() == 0 or (a - b).abs().max() <= 0.1 * a.abs().max()


@pytest.mark.slow
def test_a_compiled_model():
    model, some = tiny(), sentences()[:1]
    compiled = impact_matrix(torch.compile(model, backend="eager"), some, MASK)
    torch.testing.assert_close(compiled, impact_matrix(model, some, MASK))


def test_words_that_a_model_was_never_shown_far_apart_padding_is_not_read():
    model = tiny()

    def poisoned(ids, mask):  # what stands at padding is garbage
        return torch.where(mask[:, :, None], model(ids, mask=mask).hidden_states, torch.nan)

    for a, b in zip(impact_matrix(poisoned, sentences(), MASK), impact_matrix(model, sentences(), MASK), strict=True):
        torch.testing.assert_close(a, b)


def test_causal_models_are_refused():
    with pytest.raises(ValueError, match="reads from left to right only, and perturbed masking needs"):
        impact_matrix(tiny(application="lm"), sentences(), MASK)


def test_words_of_our_tokenizer():
    tokenizer = Tokenizer(VOCAB)
    pieces = word_pieces(tokenizer, ["科学", "\u0000", "hello", "科"])
    assert pieces.ids == (2, 5, 6, 1, 9, 10, 5, 4)
    assert pieces.units == ((1, 2), (3,), (4, 5), (6,))
    assert pieces.texts == ("科学", "\u0000", "hello", "科")
    bare = word_pieces(Tokenizer(VOCAB, token_start=None, token_end=None), ["科", "学"])
    assert bare[:2] == ((5, 6), ((0,), (1,)))
    assert word_pieces(tokenizer, []) == Pieces((2, 4), (), ())


@pytest.mark.parametrize("text", ["科学 空间", " 科  hello学。", "he hello", "", "   ", "科"])
def test_texts_are_whole(text):
    pieces = text_pieces(Tokenizer(VOCAB), text)
    assert "".join(pieces.texts) == (text if pieces.units else "")
    assert len(pieces.texts) == len(pieces.units) == len(pieces.ids) - 2


def test_tokenizers_of_huggingface():
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer(VOCAB)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=ours.to_rust(), unk_token="[UNK]", mask_token="[MASK]"
    )
    assert word_pieces(theirs, ["科学", "hello", "空"]) == word_pieces(ours, ["科学", "hello", "空"])
    assert text_pieces(theirs, "科 学hello") == text_pieces(ours, "科 学hello")
    with pytest.raises(ValueError, match=r"gives the word '\\x00' no token; take it out"):
        word_pieces(theirs, ["科", "\u0000"])


@pytest.mark.data
def test_the_model_that_comes_with_danlu(shared):
    from danlu.text.builtin import builtin_folder
    from danlu.text.load_model import load_model

    folder = builtin_folder("mini-zh")
    tokenizer, model = Tokenizer.load(folder), load_model(folder)
    some = [text_pieces(tokenizer, "是细菌"), word_pieces(tokenizer, ["计算机", "的", "鼠标"])]
    for sentence, F in zip(some, impact_matrix(model, some, tokenizer.mask_id), strict=True):
        torch.testing.assert_close(
            F.double(), by_hand(states_of(model), sentence, mask_id=tokenizer.mask_id), rtol=1e-4, atol=1e-4
        )


SENTENCE = Pieces((2, 5, 6, 4), ((1,), (2,)), ("", ""))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: impact_matrix(m, [SENTENCE], 3, "l2"), "distance must be one of euclid, cos, prob, got 'l2'"),
        (lambda m: impact_matrix(m, [SENTENCE], 3, row="avg"), "row must be one of mean_vector, mean_distance, first"),
        (lambda m: impact_matrix(m, [SENTENCE], 3, pairs="some"), "pairs must be one of all, neighbours, got 'some'"),
        (lambda m: impact_matrix(m, [SENTENCE], 3, token_budget=0), "token_budget must be at least 1.*got 0"),
        (lambda m: impact_matrix(m, [SENTENCE], 3, layers=[]), "layers must name at least one"),
        (lambda m: impact_matrix(m, [SENTENCE], 3, "prob", layers=[0]), r"reads the last layer only.*layers=\[0\]"),
        (lambda m: impact_matrix(m, [SENTENCE], 3, "prob"), "distance='prob' needs logits.*got TransformerOutput"),
        (lambda m: impact_matrix(m, [SENTENCE], 3, layers=[9]), r"layers must lie in \[-3, 2\], got \[9\]"),
        (lambda m: impact_matrix(m, [SENTENCE._replace(units=((1,), ()))], 3), "sentence 0 has a word without pieces"),
        (lambda m: impact_matrix(m, [SENTENCE._replace(units=((1,), (1,)))], 3), "or two words that share one"),
        (lambda m: impact_matrix(m, [SENTENCE._replace(units=((1,), (4,)))], 3), "at positions 1 to 4, but 4 tokens"),
        (
            lambda m: impact_matrix(lambda ids, mask: ids, [SENTENCE], 3),
            r"hidden states \(B, T, D\) for ids \(2, 4\); got",
        ),
        (lambda m: impact_matrix(lambda ids, mask: 3, [SENTENCE], 3), "returned int without hidden states"),
        (lambda m: impact_matrix(lambda ids, mask: ids[..., None].double(), [SENTENCE], 3, layers=[0]), "one tensor"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny())


def test_no_sentences():
    assert impact_matrix(tiny(), [], MASK) == []
