"""Keras weights as models: bert4keras' outputs for every family, its file beside the checkpoint, what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from keras_models import CONFIG, IDS, MODELS, SEGMENTS, values, weights, write, write_tf_format

from danlu.data.errors import InputError
from danlu.text import keras_slots, load_keras_weights
from danlu.text.config import TransformerConfig
from danlu.text.load_report import LoadError
from danlu.text.load_tf import load_tf
from danlu.text.transformer import build_transformer

pytest.importorskip("h5py", reason="Keras weight files need h5py (danlu[keras])")

EXTRA = {
    "albert": {"embedding_size": 4}, "electra": {"embedding_size": 4}, "t5": {"activation": "relu"},
    "gau_alpha": {"key_size": 4, "activation": "silu"},
    "cln": {"condition_size": 4, "condition_hidden_size": 3, "condition_activation": "tanh"},
}  # fmt: skip
OUTPUTS = {  # which of ours bert4keras returned
    "bert_full": ("nsp_logits", "logits"), "albert": ("logits",), "nezha": ("logits",), "roformer": ("pooled",),
    "roformer_v2": ("logits",), "electra": ("discriminator_logits",), "gpt": ("logits",), "gpt2": ("logits",),
    "gpt2_ml": ("logits",), "t5": ("logits",), "t511": ("logits",), "cln": ("hidden_states",),
    "gau_alpha": ("hidden_states",),
}  # fmt: skip
IDS, SEGMENTS = torch.tensor(IDS), torch.tensor(SEGMENTS)


def load(tmp_path, name, layers=None, **settings):
    path = write(tmp_path / f"{name}.h5", weights(name) if layers is None else layers)
    settings = {"family": MODELS[name]["family"], "config": CONFIG, **EXTRA.get(name, {}), **settings}
    return load_keras_weights(path, **settings)


def run(model, name):
    with torch.no_grad():
        if name in ("t5", "t511"):
            return model(IDS, IDS)
        if name in ("gpt2", "gpt2_ml"):
            return model(IDS)
        condition = torch.linspace(-1, 1, 8).view(2, 4) if name == "cln" else None
        return model(IDS, SEGMENTS, condition=condition)


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_equal_bert4keras(tmp_path, name):
    model = load(tmp_path, name)
    outputs = run(model, name)
    for ours, theirs in zip(OUTPUTS[name], MODELS[name]["outputs"], strict=True):
        found, wanted = getattr(outputs, ours), torch.tensor(theirs)
        if ours == "nsp_logits":
            found = found.softmax(-1)
        if ours == "discriminator_logits":
            wanted = wanted[..., 0]
        if found.ndim > 1 and found.shape[1] == IDS.shape[1]:
            found, wanted = found[IDS != 0], wanted[IDS != 0]  # padded positions have no meaning
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
    assert not model.training
    assert set(model.load_report.counts()) <= {"matched", "unused"} and not model.load_report.notes
    unused = [row.theirs for row in model.load_report.of("unused")]
    assert unused == (["Embedding-Relative-Position/embeddings"] if name == "nezha" else [])


def test_the_reference_file_gives_the_weights_of_the_checkpoint_beside_it():
    if "DANLU_DATA" not in os.environ:
        pytest.skip("bert4keras' file needs DANLU_DATA, the folder with oracles/ in it")
    folder = Path(os.environ["DANLU_DATA"]) / "oracles" / "models" / "bert"
    keras = load_keras_weights(folder / "keras_weights.h5", family="bert", config=folder / "config.json")
    original = load_tf(folder, family="bert", heads=("mlm",), compat="bert4keras")
    assert keras.heads == ("mlm",) and keras.config == original.config
    assert keras.load_report.counts() == {"matched": 42}
    wanted = original.state_dict()
    assert keras.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in keras.state_dict().items())


def test_what_lies_on_top_is_handed_out(tmp_path):
    model = load(tmp_path, "crf")
    extra = model.load_report.extra
    assert list(extra) == ["dense_label/kernel", "dense_label/bias", "conditional_random_field/trans"]
    hidden = run(model, "crf").hidden_states  # bert4keras' CRF layer returns its scores as they came
    scores = hidden @ extra["dense_label/kernel"] + extra["dense_label/bias"]
    torch.testing.assert_close(scores[IDS != 0], torch.tensor(MODELS["crf"]["outputs"][0])[IDS != 0], rtol=0, atol=1e-5)
    assert model.heads == () and "dense_label/kernel" not in str(model.load_report)


def test_tf_keras_checkpoints_open_too(tmp_path):
    path = write_tf_format(tmp_path)
    model = load_keras_weights(path, family="bert", config=CONFIG)
    wanted = load(tmp_path, "crf")
    assert all(torch.equal(tensor, wanted.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert model.load_report.extra.keys() == wanted.load_report.extra.keys()
    assert model.load_report.notes == ["the file does not tell the application, opened with 'encoder'"]


def test_a_model_inside_a_model_with_a_prefix(tmp_path):
    model = load(tmp_path, "nested")  # model_15 holds Copy-Embedding-Token and the rest
    hidden = run(model, "nested").hidden_states
    scores = hidden @ model.load_report.extra["top/kernel"] + model.load_report.extra["top/bias"]
    wanted = torch.tensor(MODELS["nested"]["outputs"][0])
    torch.testing.assert_close(scores[IDS != 0], wanted[IDS != 0], rtol=0, atol=1e-5)


def test_two_models_in_one_file_ask_for_the_prefix(tmp_path):
    one = weights("crf")
    other = [[f"Copy-{layer}", [[f"Copy-{w}", -v] for w, v in arrays]] for layer, arrays in one]
    with pytest.raises(InputError, match=r"holds 2 models; pass prefix= one of '', 'Copy-'"):
        load(tmp_path, "crf", one + other)
    plain, copy = (load(tmp_path, "crf", one + other, prefix=prefix) for prefix in ("", "Copy-"))
    assert torch.equal(plain.embeddings.token.weight, -copy.embeddings.token.weight)
    assert "Copy-Embedding-Token/embeddings" in plain.load_report.extra and "dense_label/bias" in copy.load_report.extra


def copied(layers):
    """The same model under names with a prefix."""
    return [[f"Copy-{layer}", [[f"Copy-{weight}", array] for weight, array in arrays]] for layer, arrays in layers]


def test_a_prefix_hides_nothing(tmp_path):
    assert load(tmp_path, "gpt", copied(weights("gpt"))).config.application == "lm"
    with pytest.raises(LoadError, match=r"holds 16 weights that the model has no place for: Copy-Transformer-1-"):
        load(tmp_path, "crf", copied(weights("crf")), config={**CONFIG, "num_hidden_layers": 1})
    layers = weights("nezha")
    next(arrays for layer, arrays in layers if layer == "Embedding-Relative-Position")[0][1] += np.float32(0.01)
    with pytest.raises(InputError, match="is not the table of sinusoids"):
        load(tmp_path, "nezha", copied(layers))
    with pytest.raises(LoadError, match="table has 11 rows, the configuration says 12"):
        load(tmp_path, "crf", copied(weights("crf")), config={**CONFIG, "vocab_size": 12})
    with pytest.raises(LoadError, match=r"37 weights of the model are not in .*; compare family and configuration"):
        load(tmp_path, "crf", prefix="Nobody-")
    told = weights("crf") + copied([layer for layer in weights("crf") if layer[1]])  # the second lists only weights
    assert load(tmp_path, "crf", told, prefix="").load_report.notes == []
    notes = load(tmp_path, "crf", told, prefix="Copy-").load_report.notes
    assert notes == ["the file does not tell the application, opened with 'encoder'"]


@pytest.mark.parametrize("name", ["nezha", "gpt", "bert_full"])
def test_the_application_is_read_and_another_one_is_told(tmp_path, name):
    trained = {"nezha": "unilm", "gpt": "lm", "bert_full": "encoder"}[name]
    assert load(tmp_path, name).config.application == trained
    other = "lm" if trained != "lm" else "encoder"
    model = load(tmp_path, name, application=other)
    assert model.config.application == other
    assert model.load_report.notes == [f"trained with application={trained!r}, opened with {other!r}"]


def test_heads_that_are_asked_for(tmp_path):
    model = load(tmp_path, "bert_full", heads="pooler")
    assert model.heads == ("pooler",)
    assert {row.theirs.split("/")[0] for row in model.load_report.of("unused")} == {
        "MLM-Dense", "MLM-Norm", "MLM-Bias", "NSP-Proba"
    }  # fmt: skip
    assert model.load_report.extra == {}
    with pytest.raises(LoadError, match=r"not in .*crf\.h5: pooler\.weight"):
        load(tmp_path, "crf", heads=["pooler"])


def test_first_layers(tmp_path):
    model = load(tmp_path, "crf", num_layers=1)
    assert len(model.layers) == 1
    torch.testing.assert_close(model.layers[0].attention.query.weight.t(), torch.from_numpy(weights("crf")[8][1][0][1]))
    with pytest.raises(LoadError, match=r"holds 16 weights that the model has no place for: Transformer-1-"):
        load(tmp_path, "crf", config={**CONFIG, "num_hidden_layers": 1})
    t5 = load(tmp_path, "t5", num_layers=1)
    assert (len(t5.encoder.layers), len(t5.decoder.layers)) == (1, 1)


def test_dtype_configurations_and_missing_weights(tmp_path):
    config = TransformerConfig.of("bert", vocab_size=11, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=10,
                                  max_positions=9, hidden_dropout=0.0, compat="bert4keras")  # fmt: skip
    model = load(tmp_path, "crf", config=config, dtype=torch.bfloat16)
    assert model.embeddings.token.weight.dtype == torch.bfloat16 and model.config.hidden_dropout == 0
    again = load(tmp_path, "crf", family="BERT", config=config, application="lm", allow_missing=True)
    assert again.config == config.replace(application="lm")
    assert load(tmp_path, "crf", config={**CONFIG, "zebra": 1}).load_report.notes == ["not understood in config: zebra"]
    with pytest.raises(InputError, match=r"no such setting: .*'colour'; TransformerConfig lists them"):
        load(tmp_path, "crf", config=config, colour="red")
    layers = [entry for entry in weights("crf") if entry[0] != "Embedding-Segment"]
    with pytest.raises(LoadError, match=r"not in .*: embeddings\.segment\.weight \(2, 8\)"):
        load(tmp_path, "crf", layers)
    drawn = load(tmp_path, "crf", layers, allow_missing=True)
    assert drawn.embeddings.segment.weight.abs().sum() > 0
    assert torch.equal(drawn.embeddings.token.weight, torch.from_numpy(values(0, (11, 8))))


def test_a_plain_file_opens_with_a_fresh_condition(tmp_path):
    model = load(tmp_path, "crf", condition_size=3)
    assert model.layers[0].attention_norm.cond_gamma.weight.abs().sum() == 0
    assert model.load_report.counts() == {"matched": 37, "fresh": 10}


@pytest.mark.parametrize(
    ("name", "family", "message"),
    [
        ("roformer", "nezha", r"has rotary positions, nezha has clipped ones; .*: roformer, roformer_v2, gau_alpha"),
        ("nezha", "roformer", r"has clipped positions, roformer has rotary ones; .*: nezha"),
        ("roformer", "bert", r"has rotary positions, bert has learned ones"),
        ("t5", "bert", r"has buckets positions, bert has learned ones; .*: t5.1.0, t5.1.1"),
        ("bert_full", "nezha", r"has learned positions, nezha has clipped"),
        ("roformer_v2", "roformer", r"not in .*roformer_v2\.h5: layers\.0\.attention\.query\.weight \(8, 8\)"),
        ("roformer", "roformer_v2", r"holds \d+ weights that the model has no place for: Embedding-Norm/beta"),
        ("gpt2", "gpt", r"embeddings\.segment\.weight .*has no place for: Output-Norm/beta"),
        ("gpt2_ml", "gpt2", r"has no place for: .*Embedding-Norm"),
        ("t511", "t5.1.0", r"has no place for|another shape"),
        ("albert", "bert", r"layers\.0\.attention\.query\.weight"),
        ("electra", "bert", r"another shape in .*electra\.h5: embeddings\.token\.weight \(11, 8\) against .*\(11, 4\)"),
        ("gau_alpha", "roformer_v2", r"has no place for: Transformer-0-GatedAttentionUnit"),
    ],
)  # fmt: skip
def test_another_family_is_refused(tmp_path, name, family, message):
    with pytest.raises(InputError, match=message):
        load_keras_weights(write(tmp_path / f"{name}.h5", weights(name)), family=family, config=CONFIG)


def test_another_size_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(
        LoadError, match=r"table has 11 rows, the configuration says 21128: .*keep_tokens.*vocab_size=11"
    ):
        load(tmp_path, "crf", config={**CONFIG, "vocab_size": 21128})
    assert load(tmp_path, "crf", config={**CONFIG, "vocab_size": 21128}, vocab_size=11).config.vocab_size == 11
    with pytest.raises(LoadError, match=r"compare family and configuration") as caught:
        load(tmp_path, "crf", config={**CONFIG, "hidden_size": 16})
    assert caught.value.report.of("mismatched")
    with pytest.raises(LoadError, match=r"its norms follow a condition: pass condition_size=4"):
        load(tmp_path, "cln", condition_size=None, condition_hidden_size=None, condition_activation="linear")
    config = TransformerConfig.of("bert", vocab_size=11, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=10)
    with pytest.raises(InputError, match=r"config is of the family bert, family='nezha' was given; make them one"):
        load_keras_weights(write(tmp_path / "m.h5", weights("nezha")), family="nezha", config=config)


def test_nezha_with_another_table_is_refused(tmp_path):
    layers = weights("nezha")
    table = next(arrays for layer, arrays in layers if layer == "Embedding-Relative-Position")
    table[0][1] = table[0][1] + np.float32(0.01)
    with pytest.raises(
        InputError, match=r"Embedding-Relative-Position/embeddings \(129, 4\) is not the table of sinusoids"
    ):
        load(tmp_path, "nezha", layers)
    with pytest.raises(InputError, match=r"\(129, 4\) is not the table of sinusoids \(129, 2\)"):
        load(tmp_path, "nezha", num_heads=4)


def test_a_file_of_another_program_is_told(tmp_path):
    path = write(tmp_path / "m.h5", [["lstm", [["lstm/kernel", values(0, (2, 2))]]]])
    with pytest.raises(
        InputError, match=r"no layer Embedding-Token, so bert4keras did not make its model; .* are lstm"
    ):
        load_keras_weights(path, family="bert", config=CONFIG)


def test_gau_alpha_in_the_order_of_other_versions(tmp_path):
    layers = weights("gau_alpha")
    for layer, arrays in layers:
        if layer.endswith("GatedAttentionUnit"):
            arrays[:] = [arrays[0], arrays[3], arrays[1], arrays[2]]  # output before the scales
    found, wanted = load(tmp_path, "gau_alpha", layers), load(tmp_path, "gau_alpha")
    assert all(torch.equal(tensor, wanted.state_dict()[name]) for name, tensor in found.state_dict().items())


def test_slots_follow_the_order_and_leave_out_what_does_not_fit():
    sizes = {"vocab_size": 11, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 10}
    model = build_transformer(TransformerConfig.of("bert", **sizes), heads=["nsp"])
    layers = {
        "P-NSP-Proba": ["x/kernel", "x/bias"],
        "P-Pooler-Dense": ["y/kernel"],
        "NSP-Proba": ["z/kernel", "z/bias"],
    }
    slots = keras_slots(model, layers, {}, "P-")
    assert {name: (slot.name, slot.transpose) for name, slot in slots.items()} == {
        "nsp.weight": ("x/kernel", True), "nsp.bias": ("x/bias", False)
    }  # fmt: skip


def test_a_decoder_may_be_deeper_than_its_encoder():
    sizes = {"vocab_size": 11, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 10}
    model = build_transformer(TransformerConfig.of("t5.1.0", **sizes, num_decoder_layers=2))
    slots = keras_slots(model, {"Decoder-Transformer-1-FeedForward": ["a", "b"]}, {})
    assert {name: slot.name for name, slot in slots.items()} == {
        "decoder.layers.1.feed_forward.input.weight": "a", "decoder.layers.1.feed_forward.output.weight": "b"
    }  # fmt: skip


def test_types_that_no_weight_has(tmp_path):
    for dtype in (torch.int8, "int8"):
        with pytest.raises(InputError, match=r"dtype must be float32, bfloat16, float16 or float64, .*; got"):
            load(tmp_path, "crf", dtype=dtype)
