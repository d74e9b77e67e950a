"""config.json of HuggingFace: transformers' own classes both ways, every field back, refusals by their text."""

import dataclasses
import json

import pytest

from danlu.text.config import FAMILIES, TransformerConfig
from danlu.text.hf_config import from_hf, hf_type, to_hf

SIZES = {"vocab_size": 50, "hidden_size": 24, "num_layers": 3, "num_heads": 4, "intermediate_size": 40}
ENCODER = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
}  # fmt: skip
T5 = {"vocab_size": 50, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_heads": 4}


def theirs(model_type: str, values: dict) -> dict:
    """A configuration as transformers writes it into config.json, parsed."""
    plain = {key: value for key, value in values.items() if key != "model_type"}
    transformers = pytest.importorskip("transformers")
    return json.loads(transformers.CONFIG_MAPPING[model_type](**plain).to_json_string(use_diff=False))


def differing(config: TransformerConfig, **expected) -> dict:
    """The fields that are not as expected; those not named are expected as the family has them."""
    usual = dataclasses.asdict(TransformerConfig.of(config.family, **{**SIZES, **expected}))
    return {name: value for name, value in dataclasses.asdict(config).items() if value != usual[name]}


@pytest.mark.parametrize(
    ("model_type", "given", "family", "expected"),
    [
        ("bert", ENCODER, "bert", {}),
        ("bert", {**ENCODER, "hidden_act": "gelu_new", "type_vocab_size": 3, "is_decoder": True}, "bert",
         {"activation": "gelu_tanh", "segment_vocab_size": 3, "application": "lm"}),
        ("roberta", {**ENCODER, "max_position_embeddings": 514, "type_vocab_size": 1}, "roberta",
         {"position_offset": 2, "pad_token_id": 1, "segment_vocab_size": 1}),
        ("albert", {**ENCODER, "embedding_size": 16}, "albert",
         {"embedding_size": 16, "activation": "gelu_tanh", "hidden_dropout": 0.0, "attention_dropout": 0.0}),
        ("albert", {**ENCODER, "embedding_size": 16, "num_hidden_groups": 3}, "albert_unshared",
         {"embedding_size": 16, "activation": "gelu_tanh", "hidden_dropout": 0.0, "attention_dropout": 0.0}),
        ("electra", {**ENCODER, "embedding_size": 16}, "electra", {"embedding_size": 16}),
        ("roformer", {**ENCODER, "max_position_embeddings": 512}, "roformer", {"max_positions": 512}),
        ("openai-gpt", {"vocab_size": 50, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 32}, "gpt",
         {"intermediate_size": 96, "max_positions": 32, "segment_vocab_size": 0}),
        ("gpt2", {"vocab_size": 50, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_inner": 40}, "gpt2", {}),
        ("t5", T5, "t5.1.0", {"head_size": 8}),
        ("t5", {**T5, "d_kv": 6, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, "t5.1.1",
         {"tie_embeddings": True}),  # said falsely by transformers 5, see test_t5_ties
        ("mt5", {**T5, "num_decoder_layers": 2}, "mt5.1.1",
         {"head_size": 8, "num_decoder_layers": 2, "tie_embeddings": True}),
    ],
)  # fmt: skip
def test_transformers_own_files(model_type, given, family, expected):
    config = from_hf(theirs(model_type, given))
    assert config.family == family
    assert differing(config, **expected) == {}
    written = to_hf(config)
    assert from_hf(written) == config
    expected_file, read_back = theirs(model_type, given), theirs(model_type, written)
    unlike = {key: (value, read_back[key]) for key, value in expected_file.items() if read_back.get(key) != value}
    assert set(unlike) <= {"dtype", "architectures", "bos_token_id", "eos_token_id", "decoder_start_token_id"}, unlike


@pytest.mark.parametrize(
    ("values", "scaled", "tied"),
    [
        ({}, True, True),
        ({"tie_word_embeddings": False}, False, False),  # as T5 1.1's official folders have it
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False, True),  # as transformers 5 writes it
    ],
)
def test_t5_ties_and_scales(values, scaled, tied):
    for feed_forward in ("relu", "gated-gelu"):
        config = from_hf({"model_type": "t5", **T5, "feed_forward_proj": feed_forward, **values})
        assert (config.scale_logits, config.tie_embeddings) == (scaled, tied)
        assert not from_hf({"model_type": "mt5", **T5, **values}).scale_logits
        assert to_hf(config)["model_type"] == "t5"
        assert from_hf(to_hf(config)) == config


@pytest.mark.parametrize(
    ("feed_forward", "family", "activation"),
    [
        ("relu", "t5.1.0", "relu"), ("gelu", "t5.1.0", "gelu"), ("gated-gelu", "t5.1.1", "gelu_tanh"),
        ("gated-silu", "t5.1.1", "silu"), ("gated-gelu_python", "t5.1.1", "gelu"), ("gelu_new", "t5.1.0", "gelu_tanh"),
    ],
)  # fmt: skip
def test_t5_feed_forward(feed_forward, family, activation):
    """The activation that transformers' own class understands by the name is ours."""
    config = from_hf({"model_type": "t5", **T5, "feed_forward_proj": feed_forward})
    assert (config.family, config.activation) == (family, activation)
    assert to_hf(config)["feed_forward_proj"] == feed_forward
    in_theirs = theirs("t5", to_hf(config))
    same = {"gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh"}
    assert same.get(in_theirs["dense_act_fn"], in_theirs["dense_act_fn"]) == activation
    assert in_theirs["is_gated_act"] is config.traits.gated


VARIANTS = [
    {},
    {"compat": "bert4keras"},
    {"application": "unilm"},
    {"application": "lm", "pad_token_id": None},
    {"hierarchical_position": 0.4, "max_positions": 7},
    {"condition_size": 5, "condition_hidden_size": 3, "condition_activation": "relu"},
    {"residual_attention_scores": True},
    {"embedding_size": 16},
    {"head_size": 8, "key_size": 4},
    {"segment_vocab_size": 0},
    {"shared_segment_embeddings": True},
    {"activation": "leaky_relu"},
    {"activation": "gelu_sigmoid", "pooler_activation": "linear"},
    {"embedding_norm_eps": 1e-3, "head_norm_eps": 1e-12, "norm_eps": 1e-5},
    {"num_decoder_layers": 3, "cross_position_bias": True, "scale_logits": True},
    {"position_offset": 2, "pad_token_id": 1},
    {"hidden_dropout": 0.3, "attention_dropout": 0.2, "initializer_range": 0.01, "first_token_kept": False},
    {"relative_clip": 9, "num_buckets": 8, "max_distance": 20, "tie_embeddings": False},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "-".join(changes) or "plain")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_comes_back(family, changes):
    changes = dict(changes)
    if FAMILIES[family].encoder_decoder:
        changes.pop("application", None)
    for plain in (
        TransformerConfig(family, **{**SIZES, **changes}),
        TransformerConfig.of(family, **{**SIZES, **changes}),
    ):
        written = json.loads(json.dumps(to_hf(plain, ["mlm"]), allow_nan=False))
        assert from_hf(written) == plain


@pytest.mark.parametrize(
    ("family", "changes", "model_type"),
    [
        ("bert", {}, "bert"),
        ("roberta", {}, "bert"),  # the Chinese one
        ("roberta", {"position_offset": 2, "pad_token_id": 1}, "roberta"),
        ("roberta", {"position_offset": 2, "pad_token_id": 0}, "danlu-roberta"),
        ("bert", {"position_offset": 2, "pad_token_id": 1}, "danlu-bert"),
        ("bert", {"residual_attention_scores": True}, "danlu-bert"),
        ("bert", {"embedding_size": 16}, "danlu-bert"),
        ("bert", {"head_size": 8}, "danlu-bert"),
        ("bert", {"pooler_activation": "linear"}, "danlu-bert"),
        ("bert", {"shared_segment_embeddings": True}, "danlu-bert"),
        ("bert", {"embedding_norm_eps": 1e-3}, "danlu-bert"),
        ("bert", {"hierarchical_position": 0.4, "application": "unilm"}, "bert"),
        ("bert", {"condition_size": 3}, "danlu-bert"),
        ("t5.1.0", {"condition_size": 3}, "danlu-t5.1.0"),
        ("albert", {}, "danlu-albert"),  # transformers projects between equal sizes too
        ("bert", {"segment_vocab_size": 0}, "bert"),
        ("albert", {"embedding_size": 16, "compat": "bert4keras", "norm_eps": 1e-7}, "albert"),
        ("roberta", {"position_offset": 2, "pad_token_id": 1, "activation": "relu"}, "danlu-roberta"),
        ("electra", {"activation": "gelu_tanh"}, "danlu-electra"),
        ("nezha", {}, "danlu-nezha"),
        ("gpt", {"intermediate_size": 96}, "danlu-gpt"),  # it has segments
        ("gpt", {"intermediate_size": 96, "segment_vocab_size": 0, "activation": "gelu_tanh"}, "openai-gpt"),
        ("gpt", {"intermediate_size": 96, "segment_vocab_size": 0, "activation": "gelu"}, "danlu-gpt"),
        ("gpt", {"intermediate_size": 40, "segment_vocab_size": 0, "activation": "gelu_tanh"}, "danlu-gpt"),
        ("gpt2", {}, "gpt2"),
        ("t5.1.1", {"tie_embeddings": False, "scale_logits": True}, "danlu-t5.1.1"),
        ("t5.1.1", {"tie_embeddings": False, "cross_position_bias": True}, "danlu-t5.1.1"),
        ("mt5.1.1", {"tie_embeddings": False, "scale_logits": True}, "danlu-mt5.1.1"),
        ("mt5.1.1", {"tie_embeddings": False}, "mt5"),
    ],
)
def test_what_transformers_would_compute_otherwise_it_refuses(family, changes, model_type):
    """RoBERTa's and ELECTRA's MLM heads have gelu built in, so with another activation they differ with that head."""
    config = TransformerConfig(family, **{**SIZES, **changes})
    assert to_hf(config, ["mlm"])["model_type"] == model_type
    if family == "electra":
        assert to_hf(config, ["discriminator"])["model_type"] == "electra"


def test_classes():
    def architecture(family, heads, **changes):
        return to_hf(TransformerConfig.of(family, **{**SIZES, **changes}), heads)["architectures"]

    assert architecture("bert", []) == ["BertModel"]
    assert architecture("bert", ["pooler"]) == ["BertModel"]
    assert architecture("bert", ["pooler", "nsp"]) == ["BertForNextSentencePrediction"]
    assert architecture("bert", ["pooler", "nsp", "mlm"]) == ["BertForPreTraining"]
    assert architecture("bert", ["mlm"], application="lm") == ["BertLMHeadModel"]
    assert architecture("roformer", ["mlm"], application="lm") == ["RoFormerForCausalLM"]
    assert architecture("electra", ["discriminator"], embedding_size=16) == ["ElectraForPreTraining"]
    assert architecture("electra", ["mlm"]) == ["ElectraForMaskedLM"]
    assert architecture("albert", ["pooler", "nsp", "mlm"], embedding_size=16) == ["AlbertForPreTraining"]
    assert architecture("gpt2", ["mlm"]) == ["GPT2LMHeadModel"]
    assert architecture("mt5", []) == ["MT5ForConditionalGeneration"]


def test_other_peoples_types():
    """NEZHA as transformers 4 wrote it, RoFormerV2 as its port to torch does, files without a type."""
    nezha = from_hf({"model_type": "nezha", **ENCODER, "max_relative_position": 9})
    assert (nezha.family, nezha.relative_clip) == ("nezha", 9)
    v2 = from_hf({"model_type": "roformer", **ENCODER, "use_bias": False, "norm_type": "rms_norm"})
    assert v2.family == "roformer_v2"
    assert from_hf({**ENCODER}, family="nezha").family == "nezha"
    assert from_hf({"model_type": "bert", **ENCODER}, family="roberta").position_offset == 0
    assert from_hf({"model_type": "xlm-roberta", **ENCODER}).position_offset == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**ENCODER}, r"has no model_type; say what it is with family="),
        ({"model_type": "bart", **ENCODER}, r"'bart' is none of bert, .*; HFEncoder opens other models"),
        ({"model_type": "umt5", **T5}, r"'umt5' is none of .*HFEncoder"),
        ({"model_type": ["bert"], **ENCODER}, r"model_type .* must be a string"),
        ({"model_type": "bert", **ENCODER, "hidden_size": "24"}, r"hidden_size .* whole number of 32 bits, got '24'"),
        ({"model_type": "bert", **ENCODER, "num_hidden_layers": True}, r"layers .* whole number .*, got True"),
        ({"model_type": "bert", **ENCODER, "layer_norm_eps": float("nan")}, r"layer_norm_eps .* a number, got nan"),
        ({"model_type": "bert", "vocab_size": 5}, r"lacks hidden_size"),
        ({"model_type": "bert", **ENCODER, "hidden_size": 0}, r"hidden_size must be at least 1"),
        ({"model_type": "bert", **ENCODER, "hidden_act": "gelu_10"}, r"no activation 'gelu_10'"),
        ({"model_type": "bert", **ENCODER, "hidden_act": "leaky_relu"}, r"leaky_relu .* slope"),
        ({"model_type": "bert", **ENCODER, "position_embedding_type": "relative_key"}, r"position_embedding_type='rel"),
        ({"model_type": "bert", **ENCODER, "add_cross_attention": True}, r"add_cross_attention=True"),
        ({"model_type": "bert", **ENCODER, "quantization_config": {"bits": 4}}, r"quantization_config"),
        ({"model_type": "bert", **ENCODER, "auto_map": {"AutoModel": "m.M"}}, r"auto_map.*HFEncoder"),
        ({"model_type": "roformer", **ENCODER, "rotary_value": True}, r"rotary_value=True"),
        ({"model_type": "gpt2", "scale_attn_weights": False, **SIZES, "n_embd": 24, "n_layer": 1, "n_head": 4},
         r"scale_attn_weights=False"),
        ({"model_type": "albert", **ENCODER, "num_hidden_groups": 2}, r"num_hidden_groups is 2; .*one group"),
        ({"model_type": "t5", **T5, "feed_forward_proj": "odd-relu"}, r"like 'relu' or 'gated-gelu', got 'odd-relu'"),
        ({"model_type": "danlu-bert", **SIZES, "num_heads": None}, r"num_heads in config.json must be a whole number"),
        ({"model_type": "danlu-bert", "vocab_size": 50}, r"lacks hidden_size; restore"),
        ({"model_type": "danlu-nothing", **SIZES}, r"no transformer family 'nothing'"),
        ({"model_type": "bert", **ENCODER, "danlu_condition_size": 1.5}, r"danlu_condition_size .* or null, got 1.5"),
    ],
)  # fmt: skip
def test_refusals(config, message):
    with pytest.raises(ValueError, match=message):
        from_hf(config)


def test_a_family_must_fit_the_file():
    with pytest.raises(ValueError, match=r"gau_alpha has no layout .* model_type is danlu-gau_alpha; got .*'bert'"):
        from_hf({"model_type": "bert", **ENCODER}, family="GAUAlpha")
    with pytest.raises(ValueError, match=r"says danlu-nezha, family='bert' was given"):
        from_hf({"model_type": "danlu-nezha", **SIZES}, family="bert")


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act"])
def test_a_null_is_refused(key):
    with pytest.raises(ValueError, match=f"{key} in config.json must be .*, got None"):
        from_hf({"model_type": "bert", **ENCODER, key: None})


def test_whose_names_the_weights_have():
    assert hf_type({"model_type": "xlm-roberta"}, "roberta") == "xlm-roberta"
    assert hf_type({"model_type": "bert"}, "roberta") == "bert"  # the Chinese one
    assert hf_type({"model_type": "danlu-nezha"}) == "danlu-nezha"
    assert hf_type({}, "gpt") == "openai-gpt"
