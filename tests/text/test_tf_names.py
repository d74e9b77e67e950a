"""Name tables: tensor lists of real checkpoints, a model's own parameters, the names of the original codes by hand."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from danlu.text.config import FAMILIES, TransformerConfig
from danlu.text.slots import put, take
from danlu.text.tf_names import LAYOUTS, layouts_of, tf_names

SIZES = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 12,
    "max_positions": 7,
}
CASES = {  # case: family, further sizes, heads, layers (None: shared)
    "bert": ("bert", {}, ("pooler", "nsp", "mlm")),
    "bert_fp16": ("bert", {}, ("mlm",)),
    "bert_nosegment": ("bert", {"segment_vocab_size": 0}, ("mlm",)),
    "roberta": ("roberta", {"vocab_size": 193}, ("mlm",)),
    "albert": ("albert", {"embedding_size": 24, "num_layers": 3}, ("pooler", "nsp", "mlm")),
    "nezha": ("nezha", {}, ("pooler", "nsp", "mlm")),
    "roformer": ("roformer", {}, ("pooler", "nsp", "mlm")),
    "roformer_v2": ("roformer_v2", {"key_size": 6}, ("mlm",)),
    "gau_alpha": ("gau_alpha", {"intermediate_size": 64, "num_layers": 4, "key_size": 16}, ()),
    "electra": ("electra", {"embedding_size": 24}, ("discriminator",)),
    "gpt": ("gpt", {}, ()),
    "gpt_nosegment": ("gpt", {"segment_vocab_size": 0}, ()),
    "gpt2": ("gpt2", {}, ()),
    "gpt2_ml": ("gpt2_ml", {}, ()),
    "t5_1_0": ("t5.1.0", {"head_size": 10}, ()),
    "t5_1_1": ("t5.1.1", {"head_size": 10}, ()),
    "mt5_1_1": ("mt5.1.1", {"head_size": 10}, ()),
}
ORACLE = {
    "vocab_size": 203,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 72,
    "max_positions": 40,
}


def canonical(config, heads):
    """Oracle: every parameter of a model with its shape, written out from the naming rules, family by family."""
    d, f, e, v = (
        config.hidden_size,
        config.intermediate_size,
        config.embedding_size or config.hidden_size,
        config.vocab_size,
    )
    h = config.num_heads
    value = h * (config.head_size or d // h)
    query = h * (config.key_size or config.head_size or d // h)
    family = config.family
    rms = family.startswith(("t5", "mt5"))
    plain = family in ("roformer_v2", "gau_alpha")
    shapes = {"embeddings.token.weight": (v, e)}

    def linear(name, inputs, outputs, bias=not (rms or plain)):
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name, size=d):
        if not plain:
            shapes[f"{name}.weight"] = (size,)
        if not plain and not rms:
            shapes[f"{name}.bias"] = (size,)

    def attention(name):
        linear(f"{name}.query", d, query)
        linear(f"{name}.key", d, query)
        linear(f"{name}.value", d, value)
        linear(f"{name}.output", value, d)
        norm(f"{name}_norm")

    def feed_forward(name):
        linear(f"{name}.input", d, f)
        if family in ("t5.1.1", "mt5.1.1"):
            linear(f"{name}.gate", d, f)
        linear(f"{name}.output", f, d)
        norm(f"{name}_norm")

    if rms:
        for stack in ("encoder", "decoder"):
            for i in range(config.num_layers):
                attention(f"{stack}.layers.{i}.attention")
                if stack == "decoder":
                    attention(f"{stack}.layers.{i}.cross_attention")
                feed_forward(f"{stack}.layers.{i}.feed_forward")
            shapes[f"{stack}.position_bias.weight"] = (32, h)
            norm(f"{stack}.final_norm")
        if family != "t5.1.0":
            shapes["lm_head.weight"] = (v, d)
        return shapes
    if family not in ("gpt2", "gpt2_ml") and config.segment_vocab_size:
        shapes["embeddings.segment.weight"] = (2, e)
    if family in ("bert", "roberta", "albert", "electra", "gpt", "gpt2", "gpt2_ml"):
        shapes["embeddings.position.weight"] = (config.max_positions, e)
    if family not in ("gpt", "gpt2"):
        norm("embeddings.norm", e)
    if e != d:
        linear("embeddings.project", e, d)
    for i in range(1 if family == "albert" else config.num_layers):
        if family == "gau_alpha":
            linear(f"layers.{i}.gau.input", d, 2 * f + config.key_size)
            linear(f"layers.{i}.gau.output", f, d)
            shapes[f"layers.{i}.gau.query_scale"] = shapes[f"layers.{i}.gau.key_scale"] = (config.key_size,)
            continue
        attention(f"layers.{i}.attention")
        feed_forward(f"layers.{i}.feed_forward")
        if family == "gpt2_ml":
            del shapes[f"layers.{i}.attention_norm.weight"], shapes[f"layers.{i}.attention_norm.bias"]
            norm(f"layers.{i}.input_norm")
    if family == "gpt2":
        norm("final_norm")
    if "pooler" in heads:
        linear("pooler", d, d)
    if "nsp" in heads:
        linear("nsp", d, 2)
    if "mlm" in heads and not plain:
        linear("mlm.dense", d, e)
        norm("mlm.norm", e)
        shapes["mlm.bias"] = (v,)
    if "discriminator" in heads:
        linear("discriminator.dense", d, d)
        linear("discriminator.output", d, 1)
    return shapes


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_lies_in_the_file_and_nothing_is_left(case):
    if "DANLU_DATA" not in os.environ:
        pytest.skip("DANLU_DATA names the folder with oracles/models")
    stored = json.loads((Path(os.environ["DANLU_DATA"]) / "oracles" / "models" / case / "case.json").read_text())[
        "checkpoint"
    ]
    family, further, heads = CASES[case]
    config = TransformerConfig.of(family, **{**ORACLE, **further})
    slots = tf_names(config, heads)
    expected = canonical(config, heads)
    assert set(slots) == set(expected)
    for name, slot in slots.items():
        theirs = torch.empty(stored[slot.name]["shape"], device="meta")
        assert tuple(take(slot, theirs).shape) == expected[name], name
    left = set(stored) - {slot.name for slot in slots.values()}
    assert all(re.search(r"/adam_[mv]$|^global_step$|^generator", name) for name in left)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_built_model_has_exactly_these_parameters(family):
    build_transformer = pytest.importorskip("danlu.text.transformer").build_transformer
    for heads in ([], ["mlm"], ["pooler"], ["nsp", "mlm"], ["discriminator"]):
        if heads and (FAMILIES[family].encoder_decoder or (family == "electra") == ("discriminator" not in heads)):
            continue
        if family in ("gpt", "gpt2", "gpt2_ml", "gau_alpha", "roformer_v2") and heads != ["mlm"]:
            heads = []
        config = TransformerConfig.of(family, **{**SIZES, "num_layers": 3})
        model = build_transformer(config, heads)
        assert set(tf_names(config, model.heads)) == {name for name, _ in model.named_parameters()}
    embedded = TransformerConfig.of(family, **SIZES, embedding_size=4)
    if not FAMILIES[family].head.startswith(("tied", "untied")):
        assert set(tf_names(embedded)) == {name for name, _ in build_transformer(embedded).named_parameters()}


def names(family, heads=(), layout=None, **sizes):
    config = TransformerConfig.of(family, **{**SIZES, **sizes})
    return {our: slot.name for our, slot in tf_names(config, heads, layout).items()}


def test_albert_has_one_layer_and_unshared_albert_reads_it_into_all():
    shared, unshared = names("albert"), names("albert_unshared")
    prefix = "bert/encoder/transformer/group_0/inner_group_0/"
    assert shared["layers.0.feed_forward.output.weight"] == prefix + "ffn_1/intermediate/output/dense/kernel"
    assert shared["layers.0.attention_norm.bias"] == prefix + "LayerNorm/beta"
    assert shared["layers.0.feed_forward_norm.weight"] == prefix + "LayerNorm_1/gamma"
    assert "layers.1.feed_forward.output.weight" not in shared
    assert unshared["layers.1.feed_forward.output.weight"] == shared["layers.0.feed_forward.output.weight"]
    assert names("albert_unshared", layout="bert")["layers.1.attention_norm.bias"] == (
        "bert/encoder/layer_1/attention/output/LayerNorm/beta"
    )


def test_electra_has_two_parts_over_common_tables():
    first, second = names("electra", ["discriminator"], embedding_size=4), names("electra", ["mlm"], embedding_size=4)
    assert first["embeddings.token.weight"] == second["embeddings.token.weight"] == "electra/embeddings/word_embeddings"
    assert first["embeddings.project.weight"] == "electra/embeddings_project/kernel"
    assert second["embeddings.project.weight"] == "generator/embeddings_project/kernel"
    assert first["discriminator.output.bias"] == "discriminator_predictions/dense_1/bias"
    assert second["layers.1.attention.query.bias"] == "generator/encoder/layer_1/attention/self/query/bias"
    assert {name for our, name in second.items() if our.startswith("mlm.")} == {
        "generator_predictions/dense/kernel", "generator_predictions/dense/bias", "generator_predictions/output_bias",
        "generator_predictions/LayerNorm/gamma", "generator_predictions/LayerNorm/beta",
    }  # fmt: skip


def test_openai_s_joined_matrix_is_cut_in_three():
    config = TransformerConfig.of("gpt2", **SIZES)
    slots = tf_names(config, layout="openai")
    joined = torch.arange(8 * 24.0).reshape(1, 8, 24)
    bias = torch.arange(24.0)
    for part, module in enumerate(("query", "key", "value")):
        weight = slots[f"layers.1.attention.{module}.weight"]
        assert weight.name == "model/h1/attn/c_attn/w"
        assert torch.equal(take(weight, joined), joined[0, :, 8 * part : 8 * part + 8].T)
        assert torch.equal(take(slots[f"layers.1.attention.{module}.bias"], bias), bias[8 * part : 8 * part + 8])
    output = slots["layers.0.attention.output.weight"]
    assert (output.name, output.parts, output.leading) == ("model/h0/attn/c_proj/w", 1, 1)
    assert {slot.name for our, slot in slots.items() if "norm" in our} == {
        "model/h0/ln_1/g", "model/h0/ln_1/b", "model/h0/ln_2/g", "model/h0/ln_2/b", "model/h1/ln_1/g",
        "model/h1/ln_1/b", "model/h1/ln_2/g", "model/h1/ln_2/b", "model/ln_f/g", "model/ln_f/b",
    }  # fmt: skip
    assert slots["layers.1.attention_norm.weight"].name == "model/h1/ln_1/g"
    assert slots["layers.1.feed_forward.input.weight"].name == "model/h1/mlp/c_fc/w"


def test_only_one_matrix_of_bert_is_not_turned():
    slots = tf_names(TransformerConfig.of("bert", **SIZES), ["pooler", "nsp", "mlm"])
    plain = {our for our, slot in slots.items() if our.endswith(".weight") and "norm" not in our and not slot.transpose}
    assert plain == {f"embeddings.{table}.weight" for table in ("token", "segment", "position")} | {"nsp.weight"}


def test_t5_decoders_may_have_another_depth():
    assert sum("decoder.layers" in our for our in names("t5.1.1", num_decoder_layers=1)) * 2 == sum(
        "decoder.layers" in our for our in names("t5.1.1")
    )
    table = names("t5.1.1")
    assert (
        table["encoder.layers.1.feed_forward.gate.weight"] == "encoder/block_001/layer_001/DenseReluDense/wi_0/kernel"
    )
    assert (
        table["decoder.layers.1.feed_forward.input.weight"] == "decoder/block_001/layer_002/DenseReluDense/wi_1/kernel"
    )
    assert "lm_head.weight" not in names("t5.1.1", tie_embeddings=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_put_is_the_inverse_of_take_in_every_layout(family):
    generator = torch.Generator().manual_seed(0)
    for layout in layouts_of(family):
        if family == "albert_unshared" and layout == "albert":
            continue  # many of ours in one of theirs
        heads = ("mlm",) if layout == "generator" else ()
        slots = tf_names(TransformerConfig.of(family, **SIZES), heads, layout)
        ours = {}
        for name, slot in slots.items():
            matrix = slot.transpose or (name.endswith("weight") and "norm" not in name)
            ours[name] = torch.rand((3, 4) if matrix else (3,), generator=generator)
        theirs = put(slots, ours)
        assert len({(slot.name, slot.part) for slot in slots.values()}) == len(slots)
        for name, slot in slots.items():
            assert torch.equal(take(slot, theirs[slot.name]), ours[name])


def test_messages():
    with pytest.raises(ValueError, match="files of gpt2 have the layout gpt2 or openai, got 'bert'"):
        tf_names(TransformerConfig.of("gpt2", **SIZES), layout="bert")
    assert {layout for family in FAMILIES for layout in layouts_of(family)} == set(LAYOUTS)
