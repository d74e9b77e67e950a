r"""Names of layers in bert4keras' models: where each parameter of ours lies in a Keras weight file.

    Embedding-Token, Embedding-Segment, Embedding-Position, Embedding-Norm, Embedding-Mapping              (1)
    Transformer-{i}-MultiHeadSelfAttention, ...-Norm, Transformer-{i}-FeedForward, ...-Norm                (2)
    Pooler-Dense, NSP-Proba, MLM-Dense, MLM-Norm, MLM-Bias, Discriminator-Dense, Discriminator-Prediction  (3)

The names are the same in every program. ALBERT's shared block has no number, T5's begin with Encoder- or Decoder-,
GPT2-ML has two norms around its feed-forward layer, GAU-alpha's attention is GatedAttentionUnit. Inside a layer weights
have no reliable names, only an order: query before key, kernel before bias, shift before gain before condition.

Source: Su, bert4keras 0.11.5 (models.py, layers.py); ZhuiyiTechnology/GAU-alpha (models.py).
Shapes: kernels are (in, out) there, ours (out, in).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from danlu.text.config import TransformerConfig
from danlu.text.slots import Slot
from danlu.text.transformer import EncoderDecoder, Transformer

__all__ = ["keras_slots"]


def keras_slots(
    model: Transformer | EncoderDecoder, layers: Mapping[str, Sequence[str]], ranks: Mapping[str, int], prefix: str = ""
) -> dict[str, Slot]:
    """Where every parameter of a model lies in a Keras weight file.

    Args:
        model: built with the heads wanted; it may be on the meta device.
        layers: the weights of each layer, in order.
        ranks: number of axes of each weight; GAU-alpha's order depends on the version, but matrices come in order.
        prefix: what stands before the layers' names.

    Returns:
        Our name to its slot. A layer with another number of weights than ours stays without.

    >>> sizes = {"vocab_size": 9, "hidden_size": 4, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}
    >>> from danlu.text.transformer import build_transformer
    >>> model = build_transformer(TransformerConfig.of("bert", **sizes), heads=["mlm"])
    >>> keras_slots(model, {"MLM-Dense": ["MLM-Dense/kernel", "MLM-Dense/bias"]}, {})["mlm.dense.weight"]
    Slot(name='MLM-Dense/kernel', transpose=True, part=0, parts=1, leading=0)
    """
    names = {name for name, _ in model.named_parameters()}
    slots: dict[str, Slot] = {}
    for layer, candidates in _layers(model.config):
        ours = [name for name in candidates if name in names]
        theirs = list(layers.get(prefix + layer, ()))
        if layer.endswith("GatedAttentionUnit"):
            theirs.sort(key=lambda key: -ranks.get(key, 0))  # stable: input before output, query before key
        if len(theirs) < len(ours):
            ours = [name for name in ours if ".cond_" not in name]
        if len(theirs) == len(ours):
            slots |= {name: Slot(key, transpose=_turned(name)) for name, key in zip(ours, theirs, strict=True)}
    return slots


def _layers(config: TransformerConfig) -> Iterator[tuple[str, list[str]]]:
    """Every layer that may hold weights, and ours in its order; some of them only exist under another configuration."""
    yield "Embedding-Token", ["embeddings.token.weight"]
    if config.traits.encoder_decoder:
        for stack, num_layers in (("Encoder", config.num_layers), ("Decoder", config.decoder_layers)):
            ours = stack.lower()
            yield f"{stack}-Embedding-Relative-Position", [f"{ours}.position_bias.weight"]
            for i in range(num_layers):
                yield from _block(f"{stack}-Transformer-{i}-", f"{ours}.layers.{i}.", False)
            yield f"{stack}-Output-Norm", _norm(f"{ours}.final_norm")
        yield "Decoder-Output-LM", ["lm_head.weight"]
        return
    yield "Embedding-Segment", ["embeddings.segment.weight"]
    yield "Embedding-Position", ["embeddings.position.weight"]
    yield "Embedding-Norm", _norm("embeddings.norm")
    yield "Embedding-Mapping", _linear("embeddings.project")
    shared = config.traits.share_layers
    for i in range(1 if shared else config.num_layers):
        number = "" if shared else f"{i}-"
        yield from _block(f"Transformer-{number}", f"layers.{i}.", config.traits.block == "gpt2_ml")
    yield "Output-Norm", _norm("final_norm")
    yield "Pooler-Dense", _linear("pooler")
    yield "NSP-Proba", _linear("nsp")
    yield "MLM-Dense", _linear("mlm.dense")
    yield "MLM-Norm", _norm("mlm.norm")
    yield "MLM-Bias", ["mlm.bias"]
    yield "Discriminator-Dense", _linear("discriminator.dense")
    yield "Discriminator-Prediction", _linear("discriminator.output")


def _block(theirs: str, ours: str, gpt2_ml: bool) -> Iterator[tuple[str, list[str]]]:
    for layer, attention in (("MultiHeadSelfAttention", "attention"), ("MultiHeadCrossAttention", "cross_attention")):
        parts = ("query", "key", "value", "output")
        yield theirs + layer, [name for part in parts for name in _linear(f"{ours}{attention}.{part}")]
        yield f"{theirs}{layer}-Norm", _norm(f"{ours}{attention}_norm")
    gau = f"{ours}gau."
    yield theirs + "GatedAttentionUnit", [
        f"{gau}input.weight", f"{gau}output.weight", f"{gau}query_scale", f"{gau}key_scale",
    ]  # fmt: skip
    branches = ("gate", "input", "output")  # the activated one first
    yield theirs + "FeedForward", [name for part in branches for name in _linear(f"{ours}feed_forward.{part}")]
    yield f"{theirs}FeedForward-Norm{'-1' if gpt2_ml else ''}", _norm(f"{ours}feed_forward_norm")
    yield f"{theirs}FeedForward-Norm-0", _norm(f"{ours}input_norm")


def _linear(ours: str) -> list[str]:
    return [f"{ours}.weight", f"{ours}.bias"]


def _norm(ours: str) -> list[str]:
    conditional = [f"{ours}.cond_hidden.weight", f"{ours}.cond_beta.weight", f"{ours}.cond_gamma.weight"]
    return [f"{ours}.bias", f"{ours}.weight", *conditional]


def _turned(name: str) -> bool:
    """Linear layers are kernels there; tables and vectors are as ours."""
    plain = ("embeddings.token.", "embeddings.segment.", "embeddings.position.")
    last = name.split(".")[-2]
    return name.endswith(".weight") and not (name.startswith(plain) or last.endswith("norm") or last == "position_bias")
