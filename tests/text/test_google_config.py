"""Configuration files: Google's, bert4keras', OpenAI's; both ways; wrong types, variants, files that are none."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.errors import InputError
from danlu.text.config import FAMILIES, TransformerConfig
from danlu.text.google_config import find_config, from_google, read_google, to_google

BERT = {  # Google's Chinese BERT
    "attention_probs_dropout_prob": 0.1, "directionality": "bidi", "hidden_act": "gelu", "hidden_dropout_prob": 0.2,
    "hidden_size": 768, "initializer_range": 0.03, "intermediate_size": 3072, "max_position_embeddings": 511,
    "num_attention_heads": 6, "num_hidden_layers": 11, "pooler_fc_size": 768, "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3, "pooler_size_per_head": 128, "pooler_type": "first_token_transform",
    "type_vocab_size": 3, "vocab_size": 21128,
}  # fmt: skip
SIZES = {"vocab_size": 9, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 12}


def test_every_key_of_google_s_file():
    config, unknown = from_google(BERT, "bert")
    assert config == TransformerConfig.of(
        "bert", vocab_size=21128, hidden_size=768, num_layers=11, num_heads=6, intermediate_size=3072,
        max_positions=511, segment_vocab_size=3, hidden_dropout=0.2, attention_dropout=0.1, initializer_range=0.03,
        activation="gelu",
    )  # fmt: skip
    assert unknown == []


def test_keys_of_bert4keras_go_first():
    config, unknown = from_google(
        {
            **BERT, "max_position": 100, "segment_vocab_size": 0, "dropout_rate": 0.0, "attention_dropout_rate": 0.3,
            "attention_head_size": 32, "attention_key_size": 16, "embedding_size": 128, "hierarchical_position": True,
            "residual_attention_scores": True, "shared_segment_embeddings": True, "layer_norm_eps": 1e-6,
        },
        "bert",
    )  # fmt: skip
    assert (config.max_positions, config.segment_vocab_size, config.hidden_dropout, config.attention_dropout) == (
        100,
        0,
        0,
        0.3,
    )
    assert (config.head_size, config.key_size, config.embedding_size, config.hierarchical_position) == (
        32,
        16,
        128,
        0.4,
    )
    assert config.residual_attention_scores and config.shared_segment_embeddings and config.norm_eps == 1e-6
    assert unknown == []


def test_openai_s_hparams():
    config, unknown = from_google({"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 6}, "gpt2")
    assert (config.vocab_size, config.max_positions, config.hidden_size, config.num_heads) == (50257, 1024, 768, 12)
    assert (config.num_layers, config.intermediate_size, config.segment_vocab_size) == (6, 3072, 0)
    assert config.application == "lm" and unknown == []


def test_t5_and_its_gated_activation():
    values = {
        "hidden_act": ["gelu", "linear"], "hidden_size": 64, "vocab_size": 9, "intermediate_size": 100,
        "num_hidden_layers": 2, "num_attention_heads": 4, "attention_head_size": 10,
        "relative_attention_num_buckets": 16, "relative_attention_max_distance": 99,
        "initializer_factor": 1.0, "num_decoder_layers": 1,
    }  # fmt: skip
    config, unknown = from_google(values, "mt5")
    assert (config.activation, config.num_buckets, config.head_size, config.max_distance) == ("gelu_tanh", 16, 10, 99)
    assert (config.decoder_layers, config.segment_vocab_size, unknown) == (1, 0, [])
    with pytest.raises(InputError, match=r"hidden_act must be a name for this family, got \['gelu', 'linear'\]"):
        from_google(values, "t5.1.0")
    with pytest.raises(InputError, match=r'must be a name, or \[name, "linear"\]'):
        from_google({**values, "hidden_act": ["gelu", "gelu"]}, "t5.1.1")


@pytest.mark.parametrize(
    ("family", "compat", "written", "computed"),
    [
        ("bert", "upstream", "gelu", "gelu"),
        ("bert", "upstream", "relu", "relu"),
        ("bert", "upstream", "gelu_new", "gelu_tanh"),
        ("gpt2", "upstream", "gelu", "gelu_tanh"),  # OpenAI's code has no other
        ("gpt2", "bert4keras", "gelu", "gelu"),
        ("gpt2_ml", "upstream", "gelu", "gelu"),
        ("t5.1.1", "upstream", ["gelu", "linear"], "gelu_tanh"),
        ("t5.1.1", "bert4keras", ["gelu", "linear"], "gelu"),
        ("gau_alpha", "upstream", "swish", "silu"),
    ],
)
def test_which_gelu_is_meant(family, compat, written, computed):
    config, _ = from_google({**BERT, "hidden_act": written}, family, compat=compat)
    assert config.activation == computed and config.compat == compat


def test_what_the_file_leaves_out_and_what_overrides_it():
    values = {name: value for name, value in BERT.items() if name != "max_position_embeddings"}
    config, _ = from_google(
        values, "bert", defaults={"max_positions": 40, "vocab_size": 7}, num_layers=2, application="lm"
    )
    assert (config.max_positions, config.vocab_size, config.num_layers, config.application) == (40, 21128, 2, "lm")
    assert from_google({**BERT, "embedding_size": None}, "bert")[0].embedding_size is None
    assert from_google(BERT, "gau_alpha")[0].num_heads == 1
    assert from_google(BERT, "gpt2")[0].segment_vocab_size == 0


def test_unknown_keys_are_reported():
    _, unknown = from_google({**BERT, "zebra": 1, "adapter_size": 64}, "bert")
    assert unknown == ["adapter_size", "zebra"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", "768", "hidden_size must be a whole number of at least 1, got '768'"),
        ("hidden_size", 768.0, "hidden_size must be a whole number of at least 1, got 768.0"),
        ("hidden_size", True, "hidden_size must be a whole number"),
        ("num_hidden_layers", 0, "num_hidden_layers must be a whole number of at least 1, got 0"),
        ("num_hidden_layers", 10**9, "num_hidden_layers must be a whole number of at most 10000, got 1000000000"),
        ("type_vocab_size", -1, "type_vocab_size must be a whole number of at least 0, got -1"),
        ("hidden_dropout_prob", float("nan"), r"hidden_dropout_prob must be a number in \[0, 1\], got nan"),
        ("hidden_dropout_prob", 1.5, "got 1.5"),
        ("initializer_range", [0.02], r"got \[0.02\]"),
        ("residual_attention_scores", "yes", "residual_attention_scores must be true or false, got 'yes'"),
        ("hierarchical_position", "0.4", "hierarchical_position must be a number"),
        ("hidden_act", 3, "hidden_act must be a name for this family, got 3"),
        ("hidden_act", "gelo", "hidden_act: no activation 'gelo'"),
        ("num_attention_heads", 7, "makes no bert model: hidden_size 768 is not a multiple of num_heads 7"),
        ("num_hidden_groups", 2, "num_hidden_groups is 2, a variant of the model that is not built here; only 1 is"),
        ("ln_type", "preln", "ln_type is 'preln'"),
        ("danlu_colour", 1, "there is no key danlu_colour; there are danlu_ and one of activation, "),
        ("danlu_norm_eps", "1e-5", "danlu_norm_eps must be float, got '1e-5'"),
        ("danlu_residual_attention_scores", 1, "danlu_residual_attention_scores must be bool, got 1"),
    ],
)
def test_wrong_values(key, value, message):
    with pytest.raises(InputError, match=f"^bert_config.json.*{message}"):
        from_google({**BERT, key: value}, "bert", source="bert_config.json")


def test_missing_sizes_and_unknown_settings():
    with pytest.raises(
        InputError, match=r"a.json has no hidden_size, num_attention_heads, intermediate_size; add them"
    ):
        from_google({"vocab_size": 9, "num_hidden_layers": 1}, "bert", source="a.json")
    with pytest.raises(InputError, match=r"no setting 'num_hidden_layers'; did you mean num_layers\?"):
        from_google(BERT, "bert", num_hidden_layers=3)
    with pytest.raises(InputError, match="no setting 'zzz'; TransformerConfig lists them"):
        from_google(BERT, "bert", zzz=3)


VARIANTS = [
    {}, {"embedding_size": 4}, {"norm_eps": 1e-5}, {"pad_token_id": 1, "position_offset": 2}, {"pad_token_id": None},
    {"hierarchical_position": 0.3}, {"residual_attention_scores": True, "shared_segment_embeddings": True},
    {"condition_size": 5, "condition_hidden_size": 3, "condition_activation": "tanh"}, {"activation": "gelu_tanh"},
    {"activation": "gelu"}, {"activation": "relu"}, {"head_size": 2, "key_size": 6}, {"segment_vocab_size": 0},
    {"initializer_range": 0.5, "hidden_dropout": 0.0}, {"embedding_norm_eps": 1e-3, "head_norm_eps": 1e-4},
    {"tie_embeddings": True, "num_decoder_layers": 1, "cross_position_bias": True, "num_buckets": 8},
    {"relative_clip": 9, "max_distance": 50, "max_positions": 3},
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("compat", ["upstream", "bert4keras"])
def test_written_and_read_again_it_is_the_same(family, compat):
    for variant in VARIANTS:
        sizes = {**SIZES, **variant, **({"num_heads": 1} if family == "gau_alpha" else {})}
        config = TransformerConfig.of(family, compat=compat, **sizes)
        values = json.loads(json.dumps(to_google(config)))
        for other in ("upstream", "bert4keras"):
            back, unknown = from_google(values, values["model_type"], compat=other)
            assert back == config.replace(compat=other) and unknown == []
    lm = TransformerConfig.of("bert", **SIZES, application="unilm")
    assert from_google(to_google(lm), "bert")[0] == lm


def test_what_is_written_is_what_google_s_code_reads():
    config, _ = from_google(BERT, "bert")
    written = to_google(config)
    silent = ("directionality", "pooler_")
    assert {key: value for key, value in BERT.items() if not key.startswith(silent)} | {"model_type": "bert"} == written


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda s: st.lists(s, max_size=2),
    max_leaves=3,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*BERT, "embedding_size", "danlu_norm_eps", "danlu_key_size", "hidden_act"]), JSON)
)
def test_any_values_give_a_configuration_or_one_message(values):
    try:
        config, _ = from_google({**BERT, **values}, "bert")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert config.num_layers >= 1


def test_files(tmp_path):
    path = tmp_path / "bert_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(BERT).encode())
    assert read_google(path) == BERT
    for content, message in (
        (b"[1]", "must hold a JSON object like bert_config.json, it holds a list"),
        (b"{", "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "is not JSON"),
        (b" " * (2**20 + 1), "has 1048577 bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_google(path)
    with pytest.raises(InputError, match=r"there is no configuration file .*none.json"):
        read_google(tmp_path / "none.json")


def test_the_file_beside_a_checkpoint(tmp_path):
    prefix = tmp_path / "bert_model.ckpt"
    assert find_config(prefix) is None
    for name in ("tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text("{}")
    assert find_config(prefix) is None
    (tmp_path / "hparams.json").write_text("{}")
    assert find_config(prefix).name == "hparams.json"
    (tmp_path / "albert_config_base.json").write_text("{}")
    with pytest.raises(InputError, match=r"several configurations: albert_config_base.json, hparams.json; .*config="):
        find_config(prefix)
    (tmp_path / "config.json").write_text("{}")
    assert find_config(prefix).name == "config.json"
    (tmp_path / "bert_config.json").write_text("{}")
    assert find_config(prefix).name == "bert_config.json"


@pytest.mark.parametrize("key", ["vocab_size", "num_hidden_layers", "max_position_embeddings", "type_vocab_size"])
def test_a_size_is_not_null(key):
    """Left out it may follow from the file; null is a mistake. Sizes that may be none may be null."""
    with pytest.raises(InputError, match=f"{key} is null; write the size"):
        from_google(
            {**to_google(TransformerConfig("bert", 9, 4, 1, 2, 8)), key: None}, "bert", defaults={"vocab_size": 9}
        )
    optional = {"embedding_size": None, "attention_head_size": None, "pad_token_id": None}
    assert from_google({**to_google(TransformerConfig("bert", 9, 4, 1, 2, 8)), **optional}, "bert")[0].head_size is None
