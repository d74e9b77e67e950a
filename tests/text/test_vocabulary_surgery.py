"""Vocabulary surgery: against bert4keras' numbers, its loops in numpy, identities, messages."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from danlu.text import (
    autoresize,
    compound,
    orthogonally_resize,
    prune,
    resize_vocabulary,
    resized_config,
)
from danlu.text.config import TransformerConfig
from danlu.text.load_tf import load_tf
from danlu.text.transformer import build_transformer

RNG = torch.Generator().manual_seed(0)
BERT = TransformerConfig.of("bert", vocab_size=6, hidden_size=4, num_layers=1, num_heads=2, intermediate_size=8)
T5 = TransformerConfig.of("t5.1.1", vocab_size=6, hidden_size=4, num_layers=1, num_heads=2, intermediate_size=8)
STATE = {
    "embeddings.token.weight": torch.randn(6, 4, generator=RNG),
    "mlm.bias": torch.randn(6, generator=RNG),
    "lm_head.weight": torch.randn(6, 4, generator=RNG),
    "layers.0.attention.query.weight": torch.randn(4, 4, generator=RNG),
}


def oracles():
    if "DANLU_DATA" not in os.environ:
        pytest.skip("bert4keras' numbers need DANLU_DATA, the folder with oracles/ in it")
    return Path(os.environ["DANLU_DATA"]) / "oracles"


def resized_by_hand(array, shape):
    """Oracle: bert4keras' rule element by element; element i of an axis that grows came from old element ..."""
    places = []
    for old, new in zip(array.shape, shape, strict=True):
        copies = -(-new // old)
        places.append([i if new <= old else i // (2 * copies) * 2 + i % 2 for i in range(new)])
    picked = array[np.ix_(*places)]
    return picked / np.sqrt((picked**2).sum()) * np.sqrt((array**2).sum())


@pytest.mark.parametrize("case", range(5))
def test_resizing_equals_bert4keras(case):
    found = np.load(oracles() / "layers" / "functions.npz")
    given, wanted = (torch.from_numpy(found[f"orthogonally_resize/{case}/{end}"]) for end in ("in", "out"))
    torch.testing.assert_close(orthogonally_resize(given, wanted.shape), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(8, 4), (11, 13), (3, 9), (4, 6), (2, 2)])
def test_resizing_equals_the_rule_element_by_element(shape):
    given = torch.randn(4, 6, dtype=torch.float64, generator=RNG)
    wanted = torch.from_numpy(resized_by_hand(given.numpy(), shape))
    torch.testing.assert_close(orthogonally_resize(given, shape), wanted)
    torch.testing.assert_close(orthogonally_resize(given.t(), shape[::-1]).t(), wanted)  # (in, out) or (out, in)


def test_resizing_keeps_the_norm_the_input_and_orthogonal_columns():
    given = torch.linalg.qr(torch.randn(6, 4, dtype=torch.float64, generator=RNG))[0]  # columns of length 1
    copy = given.clone()
    wide = orthogonally_resize(given, (12, 4))
    assert wide.norm() == pytest.approx(2.0)
    torch.testing.assert_close(wide.t() @ wide, torch.eye(4, dtype=torch.float64))  # the reason for its name
    assert torch.equal(given, copy)
    same = orthogonally_resize(given, (6, 4))
    torch.testing.assert_close(same, given)
    assert same.data_ptr() != given.data_ptr()


def test_zeros_stay_zeros_and_half_precision_stays_in_range():
    zeros = torch.zeros(4)
    assert torch.equal(orthogonally_resize(zeros, (8,)), torch.zeros(8))  # bert4keras: nan
    assert orthogonally_resize(zeros, (4,)).data_ptr() != zeros.data_ptr()
    big = torch.full((64, 64), 60_000.0, dtype=torch.float16)  # its norm is beyond float16
    assert orthogonally_resize(big, (64, 32)).dtype == torch.float16
    assert orthogonally_resize(big / 2, (64, 64)).isfinite().all()


def test_other_windows():
    given = torch.tensor([1.0, 2.0, 3.0])
    assert (orthogonally_resize(given, (6,), window=3) / given[0]).round(decimals=3).tolist() == pytest.approx(
        [0.707, 1.414, 2.121] * 2
    )
    assert orthogonally_resize(given, (6,), window=1).tolist() == pytest.approx(
        [x / 2**0.5 for x in (1, 1, 2, 2, 3, 3)]
    )


def test_a_window_that_does_not_divide_is_told():
    with pytest.raises(ValueError, match=r"cannot widen \(3,\) to \(5,\): axis 0 of 3 elements .* windows of 2"):
        orthogonally_resize(torch.ones(3), (5,))
    with pytest.raises(ValueError, match=r"cannot resize \(3,\) to \(3, 1\): as many axes"):
        orthogonally_resize(torch.ones(3), (3, 1))
    with pytest.raises(ValueError, match="each of at least 1 element"):
        orthogonally_resize(torch.ones(3), (0,))


def test_pruning_takes_the_rows_everywhere():
    pruned = prune(STATE, [4, 0, 5])
    for name in ("embeddings.token.weight", "mlm.bias", "lm_head.weight"):
        assert torch.equal(pruned[name], torch.stack([STATE[name][4], STATE[name][0], STATE[name][5]]))
    assert pruned["layers.0.attention.query.weight"] is STATE["layers.0.attention.query.weight"]
    everything = prune(STATE, range(6))
    assert all(torch.equal(everything[name], STATE[name]) for name in STATE)


def test_compounds_are_weighted_means_of_rows():
    longer = compound(STATE, [[1, 2], ([0, 3, 3], [1, 2.0, -0.5]), (5,), range(2)])
    for name in ("embeddings.token.weight", "mlm.bias", "lm_head.weight"):
        old = STATE[name].double().numpy()
        rows = [
            np.average(old[[1, 2]], 0), np.average(old[[0, 3, 3]], 0, [1, 2.0, -0.5]), old[5], np.average(old[:2], 0)
        ]  # fmt: skip
        wanted = np.concatenate([old, rows])
        assert longer[name].dtype == torch.float32
        np.testing.assert_allclose(longer[name].numpy(), wanted, rtol=1e-6, atol=1e-7)
    assert len(STATE["mlm.bias"]) == 6
    assert compound(STATE, [])["mlm.bias"] is STATE["mlm.bias"]


def test_a_compound_counts_in_the_table_after_keep_tokens():
    both = compound(prune(STATE, [3, 5]), [[0, 1]])["mlm.bias"]
    torch.testing.assert_close(both[2], (STATE["mlm.bias"][3] + STATE["mlm.bias"][5]) / 2)


def test_bfloat16_means_round_once():
    table = {"mlm.bias": torch.tensor([1.0] + [2.0**-9] * 300).bfloat16()}
    mean = compound(table, [range(301)])["mlm.bias"][-1]
    assert mean.item() == pytest.approx((1 + 300 / 512) / 301, rel=2**-8)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([0, 6], r"keep_tokens holds 6, the vocabulary has ids 0 to 5; take it from the same vocab\.txt"),
        ([0, -1], r"keep_tokens holds -1"),
        ([0, 3, 3], r"keep_tokens holds 3 twice"),
        ([], r"keep_tokens is empty; give the old id of every row to keep, or None for all"),
    ],
)
def test_keep_tokens_out_of_place_are_told(keep, message):
    with pytest.raises(ValueError, match=message):
        prune(STATE, keep)
    with pytest.raises(ValueError, match=message):
        resized_config(BERT, keep)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([6], r"compound_tokens\[1\] names row 6, the table has rows 0 to 5; ids count in the table after keep_tokens"),
        ([-1], r"names row -1"),
        ([], r"compound_tokens\[1\] has 0 ids and 0 weights; give ids, or \(ids, as many weights\)"),
        (([1, 2], [1]), r"has 2 ids and 1 weights"),
        (([1, 2], [1, -1]), r"weights \[1\.0, -1\.0\]; they must be finite and not add up to 0"),
        (([1, 2], [1, float("nan")]), r"must be finite"),
    ],
)
def test_compounds_out_of_place_are_told(item, message):
    with pytest.raises(ValueError, match=message):
        compound(STATE, [[0], item])


def test_weights_without_a_vocabulary_are_told():
    for change in (lambda s: prune(s, [0]), lambda s: compound(s, [[0]])):
        with pytest.raises(ValueError, match=r"changes embeddings\.token\.weight, .* the weights have none"):
            change({"bert.embeddings.word_embeddings.weight": torch.ones(6, 4)})
    with pytest.raises(ValueError, match=r"disagree about the size of the vocabulary: .*weight 6, mlm\.bias 5"):
        prune({**STATE, "mlm.bias": torch.ones(5)}, [0])


def test_padding_moves_with_its_token():
    after = resized_config(BERT.replace(pad_token_id=3), [5, 3, 0], [[0], [1]])
    assert (after.vocab_size, after.pad_token_id) == (5, 1)
    assert resized_config(BERT) == BERT
    assert resized_config(BERT.replace(pad_token_id=None), [5]).pad_token_id is None
    with pytest.raises(ValueError, match=r"leaves out the padding token 0; put it first, or .*pad_token_id=None"):
        resized_config(BERT, [1, 2])


def ratio(name, old, new, config):
    """What autoresize does to a tensor beyond the plain resizing."""
    given = torch.randn(old, generator=RNG)
    resized = autoresize({name: given}, {name: new}, config)[name]
    factors = resized / orthogonally_resize(given, new)
    torch.testing.assert_close(factors, torch.full_like(factors, factors.flatten()[0].item()))
    return pytest.approx(factors.flatten()[0].item())


@pytest.mark.parametrize(
    ("name", "factor"),  # of an encoder of width 4, 8 inside, brought to width 16, 24 inside
    [
        ("attention.query", 4**0.25), ("attention.key", 4**0.25), ("attention.value", 1), ("attention.output", 1),
        ("feed_forward.input", 3**0.5), ("attention_norm", 1),
    ],
)  # fmt: skip
def test_scales_of_an_encoder(name, factor):
    sizes = {"feed_forward.input": ((8, 4), (24, 16))}.get(name, ((4, 4), (16, 16)))
    name = f"layers.0.{name}"
    assert ratio(f"{name}.weight", *sizes, BERT) == factor
    assert ratio(f"{name}.bias", *((s[0],) for s in sizes), BERT) == factor


def test_scales_of_the_other_branches():
    out = "layers.0.feed_forward.output"
    assert ratio(f"{out}.weight", (4, 8), (16, 24), BERT) == 3**-0.5
    assert ratio(f"{out}.bias", (4,), (16,), BERT) == 0.5
    relu = BERT.replace(activation="relu")
    assert ratio("layers.0.feed_forward.input.weight", (8, 4), (24, 16), relu) == 0.5
    assert ratio("layers.0.feed_forward.input.bias", (8,), (24,), relu) == 3**-0.5
    assert ratio("encoder.layers.0.feed_forward.gate.weight", (8, 4), (24, 16), T5) == 3**0.5
    assert ratio("encoder.layers.0.feed_forward.input.weight", (8, 4), (24, 16), T5) == 0.5
    assert ratio("encoder.layers.0.attention.query.weight", (4, 4), (16, 16), T5) == 1  # scores are not divided there
    assert ratio("decoder.layers.0.cross_attention.query.weight", (4, 4), (16, 16), T5) == 1
    assert ratio("mlm.dense.weight", (4, 4), (16, 16), BERT) == 1


def test_what_fits_is_handed_on():
    assert autoresize(STATE, {"mlm.bias": (6,)}, BERT) == STATE
    assert autoresize(STATE, {"mlm.bias": (6,)}, BERT)["mlm.bias"] is STATE["mlm.bias"]


def test_what_cannot_be_resized_is_named():
    with pytest.raises(ValueError, match=r"layers\.0\.gau\.input\.weight .* joins three matrices"):
        autoresize({"layers.0.gau.input.weight": torch.ones(8, 4)}, {"layers.0.gau.input.weight": (16, 8)}, BERT)
    with pytest.raises(ValueError, match=r"^embeddings\.segment\.weight: cannot widen \(1, 4\)"):
        autoresize({"embeddings.segment.weight": torch.ones(1, 4)}, {"embeddings.segment.weight": (2, 4)}, BERT)


class Tiny(torch.nn.Module):
    """A model with the canonical names of what the surgery touches."""

    def __init__(self):
        super().__init__()
        self.config = BERT
        self.embeddings = torch.nn.Module()
        self.embeddings.token = torch.nn.Embedding(6, 4)
        self.lm_head = torch.nn.Linear(4, 6, bias=False)
        self.mlm = torch.nn.Module()
        self.mlm.bias = torch.nn.Parameter(torch.arange(6.0))
        self.stack = torch.nn.Module()
        self.stack.config = self.config


def test_a_built_model_is_changed_in_place():
    model = Tiny()
    model.lm_head.weight.requires_grad_(False)
    table, logits = model.embeddings.token.weight.detach().clone(), model.lm_head.weight.clone()
    resize_vocabulary(model, [0, 5, 2], [[1, 2]])
    assert model.config.vocab_size == 4 and model.stack.config is model.config
    torch.testing.assert_close(
        model.embeddings.token(torch.tensor([1, 3])), torch.stack([table[5], table[[5, 2]].mean(0)])
    )
    assert model.mlm.bias.tolist() == [0, 5, 2, 3.5] and model.mlm.bias.requires_grad
    assert torch.equal(model.lm_head(torch.eye(4))[:, 1], logits[5]) and not model.lm_head.weight.requires_grad
    assert (model.embeddings.token.num_embeddings, model.lm_head.out_features) == (4, 4)


def test_a_refused_change_leaves_the_model_alone():
    model = Tiny()
    before = dict(model.named_parameters())
    with pytest.raises(ValueError, match=r"compound_tokens\[0\] names row 3"):
        resize_vocabulary(model, [0, 5, 2], [[3]])
    assert model.config is BERT and all(model.get_parameter(name) is p for name, p in before.items())


def test_a_loaded_model_with_another_vocabulary_equals_bert4keras():
    folder = oracles() / "models" / "bert"
    runs = {run["run"]: run for run in json.loads((folder / "case.json").read_text())["runs"]}
    keep = runs["keep_compound_tokens"]["arguments"]["keep_tokens"]
    model = load_tf(folder, family="bert", heads=("mlm",), compat="bert4keras")
    resize_vocabulary(model, keep, [[7, 9], [5, 6, 8], ([10, 11], [1, 3])])
    assert model.config.vocab_size == model.embeddings.token.num_embeddings == 67
    io = np.load(folder / "io.npz")
    inputs = (torch.from_numpy(io[f"keep_compound_tokens/in/Input-{name}"]).long() for name in ("Token", "Segment"))
    ids, segments = inputs
    wanted = torch.from_numpy(io["keep_compound_tokens/out/logits"])
    with torch.no_grad():
        found = model(ids, segments).logits
    torch.testing.assert_close(found[ids != 0], wanted[ids != 0], rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_an_encoder_decoder_keeps_one_configuration():
    model = build_transformer(T5)
    kept = model.lm_head.weight[[0, 4]].clone()
    resize_vocabulary(model, [0, 4])
    assert torch.equal(model.lm_head.weight, kept) and model.config.vocab_size == 2
    assert model.encoder.config is model.decoder.config is model.config
    with torch.no_grad():
        assert model(torch.tensor([[0, 1]]), torch.tensor([[0, 1, 1]])).logits.shape == (1, 3, 2)
