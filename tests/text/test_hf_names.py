"""Names in HuggingFace folders: exactly those that transformers' own classes save, whatever the prefix."""

import re

import pytest

from danlu.text.config import FAMILIES, TransformerConfig
from danlu.text.hf_config import from_hf
from danlu.text.hf_names import bare_name, computed_name, head_names, hf_names, layer_number, tied_names

SIZES = {"vocab_size": 50, "hidden_size": 24, "num_layers": 2, "num_heads": 4, "intermediate_size": 40}
ENCODER = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
}  # fmt: skip
GPT = {"vocab_size": 50, "n_embd": 24, "n_layer": 2, "n_head": 4}
T5 = {"vocab_size": 50, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
CLASSES = {
    "BertModel": ("bert", ENCODER, ["pooler"]),
    "BertForMaskedLM": ("bert", ENCODER, ["mlm"]),
    "BertForPreTraining": ("bert", ENCODER, ["pooler", "nsp", "mlm"]),
    "RobertaModel": ("roberta", ENCODER, ["pooler"]),
    "RobertaForMaskedLM": ("roberta", ENCODER, ["mlm"]),
    "AlbertModel": ("albert", {**ENCODER, "embedding_size": 16}, ["pooler"]),
    "AlbertForPreTraining": ("albert", {**ENCODER, "embedding_size": 16}, ["pooler", "nsp", "mlm"]),
    "AlbertForMaskedLM": ("albert", {**ENCODER, "embedding_size": 16, "num_hidden_groups": 2}, ["mlm"]),
    "ElectraModel": ("electra", {**ENCODER, "embedding_size": 16}, []),
    "ElectraForPreTraining": ("electra", {**ENCODER, "embedding_size": 16}, ["discriminator"]),
    "ElectraForMaskedLM": ("electra", {**ENCODER, "embedding_size": 24}, ["mlm"]),
    "RoFormerModel": ("roformer", {**ENCODER, "embedding_size": 16}, []),
    "RoFormerForMaskedLM": ("roformer", ENCODER, ["mlm"]),
    "OpenAIGPTLMHeadModel": ("openai-gpt", GPT, ["mlm"]),
    "GPT2LMHeadModel": ("gpt2", GPT, ["mlm"]),
    "T5ForConditionalGeneration": ("t5", T5, []),
    "MT5ForConditionalGeneration": ("mt5", T5, []),
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_names_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    model_type, values, heads = CLASSES[name]
    theirs = getattr(transformers, name)(transformers.CONFIG_MAPPING[model_type](**values))
    config = from_hf({"model_type": model_type, **theirs.config.to_dict()})
    ours = {slot.name for slot in hf_names(config, heads).values()}
    held = set(theirs.state_dict())
    tied = {full for full in held if bare_name(full) in tied_names(config, model_type)}
    assert held - ours - tied == {full for full in held if computed_name(bare_name(full))}
    conditional = {full for full in ours if re.search(r"\.cond_(gamma|beta|hidden)\.", full)}
    unused = {full for full in ours - held - conditional if "gau." not in full}
    assert all(re.search(r"embeddings_project|mapping_in|position_embeddings|encoder\.LayerNorm|intermediate\.LayerNorm"
                         r"|layer_norm\.bias|SelfAttention.*bias|EncDecAttention.*bias|DenseReluDense.*bias|lm_head"
                         r"|ln_f", full) for full in unused), unused  # fmt: skip
    for copy, original in tied_names(config, model_type).items():
        full = next((full for full in held if bare_name(full) == copy), None)
        if full is not None:
            state = theirs.state_dict()
            assert state[full].data_ptr() == state[hf_names(config, heads)[original].name].data_ptr()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("heads", [[], ["pooler"], ["pooler", "nsp", "mlm", "discriminator"]])
def test_no_two_parameters_share_a_place(family, heads):
    """Two parts of one matrix are two places; names stay apart when prefixes go."""
    for changes in ({}, {"residual_attention_scores": True, "num_layers": 12}):
        config = TransformerConfig.of(family, **{**SIZES, **changes})
        slots = hf_names(config, heads)
        assert len({(bare_name(slot.name), slot.part) for slot in slots.values()}) == len(slots)
        assert set(head_names(config, f"danlu-{family}")) <= {"pooler", "nsp", "mlm", "discriminator"}


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
        ("module.roberta.encoder.layer.3.output.LayerNorm.beta", "encoder.layer.3.output.LayerNorm.bias"),
        ("cls.predictions.transform.LayerNorm.gamma", "cls.predictions.transform.LayerNorm.weight"),
        ("embeddings.LayerNorm.cond_gamma.weight", "embeddings.LayerNorm.cond_gamma.weight"),
        ("transformer.h.0.attn.c_attn.weight", "h.0.attn.c_attn.weight"),
        ("encoder.layer.0.bert.weight", "encoder.layer.0.bert.weight"),
    ],
)
def test_bare_names(name, bare):
    assert bare_name(name) == bare


def test_layers_and_computed():
    assert layer_number("encoder.albert_layer_groups.10.albert_layers.0.ffn.bias") == 10
    assert layer_number("decoder.block.7.layer.2.layer_norm.weight") == 7
    assert layer_number("h.3.ln_1.bias") == 3
    assert layer_number("encoder.embed_positions.weight") is None
    assert computed_name("h.0.attn.masked_bias") and not computed_name("h.0.attn.c_attn.bias")
    assert not computed_name("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")


def test_heads_that_a_file_shows():
    found = head_names(TransformerConfig.of("bert", **SIZES), "bert")
    assert found["nsp"] == ["cls.seq_relationship.weight", "cls.seq_relationship.bias"]
    assert "cls.predictions.bias" in found["mlm"] and "pooler.dense.weight" in found["pooler"]
    assert "mlm" not in head_names(
        TransformerConfig.of("roformer_v2", **SIZES), "danlu-roformer_v2"
    )  # tied, nothing to see
    assert head_names(TransformerConfig.of("t5", **SIZES), "t5") == {}
