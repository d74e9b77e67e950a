r"""The words of HuggingFace's config.json: which of their keys is which field of ours, for every kind of model.

Source: the configuration classes of transformers 5.23. Shapes: no tensors.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ACTIVATIONS", "GPT_ACTIVATIONS", "NEEDED", "PLAIN", "TYPES", "WRITTEN_AS"]

NEEDED = object()
Keys = dict[str, tuple[str, Any]]  # our field -> (their key, what a missing key means)

_ENCODER: Keys = {
    "vocab_size": ("vocab_size", NEEDED),
    "hidden_size": ("hidden_size", NEEDED),
    "num_layers": ("num_hidden_layers", NEEDED),
    "num_heads": ("num_attention_heads", NEEDED),
    "intermediate_size": ("intermediate_size", NEEDED),
    "max_positions": ("max_position_embeddings", 512),
    "segment_vocab_size": ("type_vocab_size", 2),
    "pad_token_id": ("pad_token_id", 0),
    "activation": ("hidden_act", "gelu"),
    "norm_eps": ("layer_norm_eps", 1e-12),
    "hidden_dropout": ("hidden_dropout_prob", 0.1),
    "attention_dropout": ("attention_probs_dropout_prob", 0.1),
    "initializer_range": ("initializer_range", 0.02),
}
_GPT: Keys = {
    "vocab_size": ("vocab_size", NEEDED),
    "hidden_size": ("n_embd", NEEDED),
    "num_layers": ("n_layer", NEEDED),
    "num_heads": ("n_head", NEEDED),
    "max_positions": ("n_positions", 512),
    "pad_token_id": ("pad_token_id", None),
    "activation": ("afn", "gelu"),
    "norm_eps": ("layer_norm_epsilon", 1e-5),
    "hidden_dropout": ("resid_pdrop", 0.1),
    "attention_dropout": ("attn_pdrop", 0.1),
    "initializer_range": ("initializer_range", 0.02),
}
_T5: Keys = {
    "vocab_size": ("vocab_size", NEEDED),
    "hidden_size": ("d_model", NEEDED),
    "num_layers": ("num_layers", NEEDED),
    "num_decoder_layers": ("num_decoder_layers", None),
    "num_heads": ("num_heads", NEEDED),
    "head_size": ("d_kv", 64),
    "intermediate_size": ("d_ff", NEEDED),
    "pad_token_id": ("pad_token_id", 0),
    "norm_eps": ("layer_norm_epsilon", 1e-6),
    "hidden_dropout": ("dropout_rate", 0.1),
    "attention_dropout": ("dropout_rate", 0.1),
    "num_buckets": ("relative_attention_num_buckets", 32),
    "max_distance": ("relative_attention_max_distance", 128),
}
_ROBERTA: Keys = {**_ENCODER, "pad_token_id": ("pad_token_id", 1)}
TYPES: dict[str, tuple[str, Keys]] = {
    "bert": ("bert", _ENCODER),
    "roberta": ("roberta", _ROBERTA),
    "xlm-roberta": ("roberta", _ROBERTA),
    "camembert": ("roberta", _ROBERTA),
    "albert": (
        "albert",
        {**_ENCODER, "embedding_size": ("embedding_size", 128), "activation": ("hidden_act", "gelu_new"),
         "hidden_dropout": ("hidden_dropout_prob", 0.0), "attention_dropout": ("attention_probs_dropout_prob", 0.0)},
    ),
    "electra": ("electra", {**_ENCODER, "embedding_size": ("embedding_size", 128)}),
    "nezha": ("nezha", {**_ENCODER, "relative_clip": ("max_relative_position", 64)}),  # of transformers 4
    "roformer": ("roformer", {**_ENCODER, "embedding_size": ("embedding_size", None),
                              "max_positions": ("max_position_embeddings", 1536)}),
    "openai-gpt": ("gpt", _GPT),
    "gpt2": ("gpt2", {**_GPT, "intermediate_size": ("n_inner", None), "max_positions": ("n_positions", 1024),
                      "activation": ("activation_function", "gelu_new")}),
    "t5": ("t5.1.0", _T5),
    "mt5": ("mt5.1.1", _T5),
}  # fmt: skip
WRITTEN_AS = {
    "bert": "bert", "roberta": "roberta", "albert": "albert", "albert_unshared": "albert", "electra": "electra",
    "roformer": "roformer", "gpt": "openai-gpt", "gpt2": "gpt2", "t5.1.0": "t5", "t5.1.1": "t5", "mt5.1.1": "mt5",
}  # fmt: skip
PLAIN: dict[str, tuple[Any, ...]] = {  # key -> values under which the weights mean what we compute
    "position_embedding_type": (None, "absolute"),
    "add_cross_attention": (None, False),
    "rotary_value": (None, False),
    "scale_attn_weights": (None, True),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "inner_group_num": (None, 1),
    "quantization_config": (None,),
    "auto_map": (None,),
}
ACTIVATIONS = {  # ours -> theirs; our leaky_relu has another slope than torch's
    "gelu": "gelu", "gelu_tanh": "gelu_new", "gelu_sigmoid": "quick_gelu", "relu": "relu", "squared_relu": "relu2",
    "silu": "silu", "tanh": "tanh", "sigmoid": "sigmoid", "linear": "linear",
}  # fmt: skip
GPT_ACTIVATIONS = {"gelu_tanh": "gelu", "relu": "relu", "silu": "silu"}
