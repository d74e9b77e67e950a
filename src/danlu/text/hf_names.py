r"""Names and layouts of HuggingFace folders: where each parameter of ours lies in their files.

    embeddings.word_embeddings.weight         a bare encoder                                                   (1)
    bert.embeddings.word_embeddings.weight    the same inside a model with a head                              (2)

Saved are (1) or (2) as transformers' own classes do; read is either, and the spellings of older files with it
(`module.` in front, LayerNorm.gamma and LayerNorm.beta), by comparing what `bare_name` makes of both. GPT and GPT-2
keep query, key and value side by side in matrices (in, out). ALBERT numbers groups, not layers. What follows from other
weights is not saved: the tied output matrix, its bias, buffers. On reading such names are known, `computed_name` those
that follow from nothing but sizes, `tied_names` the copies, which must be copies. Models that transformers does not
have (`danlu-...`) take BERT's names, or T5's.

Source: the modules of transformers 5.23 and, for NEZHA, 4.30.
Shapes: none here; a slot says how their array becomes ours.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from danlu.text.config import TransformerConfig
from danlu.text.hf_config import to_hf
from danlu.text.slots import Slot

__all__ = ["bare_name", "computed_name", "head_names", "hf_names", "layer_number", "tied_names"]

_PREFIXES = ("bert.", "roberta.", "albert.", "electra.", "roformer.", "nezha.", "transformer.")
_COMPUTED = re.compile(
    r"embeddings\.(?:position_ids|token_type_ids)|h\.\d+\.attn\.(?:masked_)?bias|encoder\.embed_positions\.weight"
    r"|encoder\.layer\.\d+\.attention\.self\.relative_positions_encoding\.positions_encoding"
    r"|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"  # of T5's first port, never used
)
_LIKE = {"xlm-roberta": "roberta", "camembert": "roberta"}  # other names of the same modules
_EMBEDDINGS = {
    "token.weight": "word_embeddings.weight",
    "segment.weight": "token_type_embeddings.weight",
    "position.weight": "position_embeddings.weight",
}
_BERT_LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "input_norm": "intermediate.LayerNorm",
    "feed_forward.input": "intermediate.dense",
    "feed_forward.output": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
    "gau.input": "gau.input",
    "gau.output": "gau.output",
}
_ALBERT_LAYER = {
    "attention.query": "attention.query",
    "attention.key": "attention.key",
    "attention.value": "attention.value",
    "attention.output": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "feed_forward.input": "ffn",
    "feed_forward.output": "ffn_output",
    "feed_forward_norm": "full_layer_layer_norm",
}
_GPT_LAYER = {
    "attention.output": "attn.c_proj",
    "attention_norm": "ln_1",
    "feed_forward.input": "mlp.c_fc",
    "feed_forward.output": "mlp.c_proj",
    "feed_forward_norm": "ln_2",
}
_OWN_ATTENTION = (  # of kinds of attention that transformers' classes do not have
    "projection",
    "mixture_logits",
    *(f"parts.dense.{name}" for name in ("hidden_weight", "hidden_bias", "weight", "bias")),
    *(f"parts.factorized_dense.{name}" for name in ("hidden_weight", "hidden_bias", "weight", "bias")),
    "parts.random.table",
    "parts.factorized_random.row_table",
    "parts.factorized_random.column_table",
    *(f"parts.vanilla.{name}.{end}" for name in ("query", "key") for end in ("weight", "bias")),
)
_BERT_HEADS = {
    "pooler": "pooler.dense",
    "nsp": "cls.seq_relationship",
    "mlm.dense": "cls.predictions.transform.dense",
    "mlm.norm": "cls.predictions.transform.LayerNorm",
    "mlm.bias": "cls.predictions.bias",
    "discriminator.dense": "discriminator_predictions.dense",
    "discriminator.output": "discriminator_predictions.dense_prediction",
}
_HEADS = {  # by model_type, where it is not BERT's
    "roberta": {"mlm.dense": "lm_head.dense", "mlm.norm": "lm_head.layer_norm", "mlm.bias": "lm_head.bias"},
    "albert": {
        "pooler": "pooler", "nsp": "sop_classifier.classifier", "mlm.dense": "predictions.dense",
        "mlm.norm": "predictions.LayerNorm", "mlm.bias": "predictions.bias",
    },
    "electra": {
        "mlm.dense": "generator_predictions.dense", "mlm.norm": "generator_predictions.LayerNorm",
        "mlm.bias": "generator_lm_head.bias",
    },
}  # fmt: skip


def hf_names(config: TransformerConfig, heads: Collection[str] = (), model_type: str | None = None) -> dict[str, Slot]:
    """Where every parameter of a model lies in the file that `save_hf` writes, and transformers would.

    Args:
        config: of the model.
        heads: its heads, of "pooler", "nsp", "mlm" and "discriminator".
        model_type: whose names they are, as config.json calls it; None: as `to_hf` would.

    Returns:
        Our name to its slot; also of parameters that only some options bring (conditional norms, biases).

    >>> config = TransformerConfig("gpt2", 9, 4, 1, 2, 16)
    >>> hf_names(config)["layers.0.attention.key.weight"]
    Slot(name='transformer.h.0.attn.c_attn.weight', transpose=True, part=1, parts=3, leading=0)
    """
    model_type = model_type or str(to_hf(config, heads)["model_type"])
    if config.traits.encoder_decoder:
        return dict(_t5(config))
    if model_type in ("openai-gpt", "gpt2"):
        return dict(_gpt(config, model_type, heads))
    return dict(_encoder(config, model_type, heads))


def bare_name(name: str) -> str:
    """A name of theirs without what differs between bare and headed, old and new files.

    Args:
        name: as it stands in a file or in `hf_names`.

    Returns:
        The name to compare by.

    >>> bare_name("module.bert.pooler.dense.bias"), bare_name("embeddings.LayerNorm.gamma")
    ('pooler.dense.bias', 'embeddings.LayerNorm.weight')
    """
    name = name.removeprefix("module.")
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    name = name.removeprefix(prefix)
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: "LayerNorm." + ("weight" if m[1] == "gamma" else "bias"), name)


def computed_name(bare: str) -> bool:
    """Whether a variable holds nothing that was learned: position ids, causal masks, sinusoids.

    Args:
        bare: from `bare_name`.

    >>> computed_name("embeddings.position_ids"), computed_name("embeddings.position_embeddings.weight")
    (True, False)
    """
    return _COMPUTED.fullmatch(bare) is not None


def tied_names(config: TransformerConfig, model_type: str) -> dict[str, str]:
    """Variables that older files store beside the weight that they are.

    Args:
        config: of the model.
        model_type: whose names they are, as config.json calls it.

    Returns:
        Bare name of the copy to our name of the original.

    >>> tied_names(TransformerConfig("gpt2", 9, 4, 1, 2, 16), "gpt2")
    {'lm_head.weight': 'embeddings.token.weight'}
    """
    table = "embeddings.token.weight"
    if config.traits.encoder_decoder:
        copies = {"encoder.embed_tokens.weight": table, "decoder.embed_tokens.weight": table}
        return copies | ({"lm_head.weight": table} if config.tie_embeddings else {})
    if model_type in ("openai-gpt", "gpt2"):
        return {"lm_head.weight": table}
    decoder = {"roberta": "lm_head.decoder", "albert": "predictions.decoder", "electra": "generator_lm_head"}
    name = decoder.get(_LIKE.get(model_type, model_type), "cls.predictions.decoder")
    copies = {f"{name}.weight": table}
    return copies if model_type == "electra" else copies | {f"{name}.bias": "mlm.bias"}


def head_names(config: TransformerConfig, model_type: str) -> dict[str, list[str]]:
    """Bare names by which a file shows that it has a head.

    Args:
        config: of the model.
        model_type: whose names they are, as config.json calls it.

    Returns:
        Head to the names of its variables, {} for an encoder-decoder; a tied head has none.
    """
    if config.traits.encoder_decoder:
        return {}
    heads = ("pooler", "nsp", "mlm", "discriminator")
    found: dict[str, list[str]] = {}
    for ours, slot in hf_names(config, heads, model_type).items():
        head = ours.partition(".")[0]
        if head in heads and ".cond_" not in ours:
            found.setdefault(head, []).append(bare_name(slot.name))
    return found


def layer_number(bare: str) -> int | None:
    """The layer that a variable belongs to; None for what stands outside of the layers.

    Args:
        bare: from `bare_name`.

    >>> layer_number("encoder.layer.11.output.dense.bias"), layer_number("pooler.dense.bias")
    (11, None)
    """
    found = re.match(r"(?:encoder\.layer|encoder\.albert_layer_groups|h|encoder\.block|decoder\.block)\.(\d+)\.", bare)
    return None if found is None else int(found[1])


def _encoder(config: TransformerConfig, model_type: str, heads: Collection[str]) -> Iterator[tuple[str, Slot]]:
    model_type = _LIKE.get(model_type, model_type)
    prefix = "bert." if model_type.startswith("danlu-") else f"{model_type}."
    base = prefix if set(heads) - {"pooler"} else ""  # eqs. (1), (2)
    for ours, theirs in _EMBEDDINGS.items():
        yield f"embeddings.{ours}", Slot(f"{base}embeddings.{theirs}")
    yield from _norm("embeddings.norm", f"{base}embeddings.LayerNorm")
    project = "encoder.embedding_hidden_mapping_in" if model_type == "albert" else "embeddings_project"
    yield from _linear("embeddings.project", base + project)
    for i in range(1 if config.traits.share_layers else config.num_layers):
        albert = f"{base}encoder.albert_layer_groups.{i}.albert_layers.0."
        inside = albert if model_type == "albert" else f"{base}encoder.layer.{i}."
        for ours, theirs in (_ALBERT_LAYER if model_type == "albert" else _BERT_LAYER).items():
            part = _norm if ours.endswith("norm") else _linear
            yield from part(f"layers.{i}.{ours}", inside + theirs)
        for name in ("query_scale", "key_scale"):
            yield f"layers.{i}.gau.{name}", Slot(f"{inside}gau.{name}")
        if model_type.startswith("danlu-"):
            for name in _OWN_ATTENTION:
                yield f"layers.{i}.attention.{name}", Slot(f"{inside}attention.self.{name}")
    yield from _norm("final_norm", f"{base}encoder.LayerNorm")
    yield from _heads(config, model_type, heads, base)


def _heads(config: TransformerConfig, model_type: str, heads: Collection[str], base: str) -> Iterator[tuple[str, Slot]]:
    for ours, theirs in {**_BERT_HEADS, **_HEADS.get(model_type, {})}.items():
        head = ours.partition(".")[0]
        if head not in heads or (head == "mlm" and config.traits.head != "mlm"):
            continue
        if ours == "mlm.bias":
            yield ours, Slot(theirs)
        else:
            theirs = base + theirs if ours == "pooler" else theirs
            yield from (_norm if ours.endswith("norm") else _linear)(ours, theirs)


def _gpt(config: TransformerConfig, model_type: str, heads: Collection[str]) -> Iterator[tuple[str, Slot]]:
    token, position = ("tokens_embed", "positions_embed") if model_type == "openai-gpt" else ("wte", "wpe")
    yield "embeddings.token.weight", Slot(f"transformer.{token}.weight")
    yield "embeddings.position.weight", Slot(f"transformer.{position}.weight")
    for i in range(config.num_layers):
        inside = f"transformer.h.{i}."
        for part, ours in enumerate(("query", "key", "value")):
            name = f"layers.{i}.attention.{ours}"
            yield f"{name}.weight", Slot(f"{inside}attn.c_attn.weight", transpose=True, part=part, parts=3)
            yield f"{name}.bias", Slot(f"{inside}attn.c_attn.bias", part=part, parts=3)
        for ours, theirs in _GPT_LAYER.items():
            if ours.endswith("norm"):
                yield from _norm(f"layers.{i}.{ours}", inside + theirs)
            else:
                yield f"layers.{i}.{ours}.weight", Slot(f"{inside}{theirs}.weight", transpose=True)
                yield f"layers.{i}.{ours}.bias", Slot(f"{inside}{theirs}.bias")
    yield from _norm("final_norm", "transformer.ln_f")
    yield from _heads(config, model_type, heads, "")


def _t5(config: TransformerConfig) -> Iterator[tuple[str, Slot]]:
    yield "embeddings.token.weight", Slot("shared.weight")
    for stack, count in (("encoder", config.num_layers), ("decoder", config.decoder_layers)):
        sublayers = [("attention", "SelfAttention")] + [("cross_attention", "EncDecAttention")] * (stack == "decoder")
        for i in range(count):
            for number, (ours, theirs) in enumerate(sublayers):
                inside = f"{stack}.block.{i}.layer.{number}."
                for name in ("query", "key", "value", "output"):
                    yield from _linear(f"{stack}.layers.{i}.{ours}.{name}", f"{inside}{theirs}.{name[0]}")
                yield from _norm(f"{stack}.layers.{i}.{ours}_norm", f"{inside}layer_norm")
            inside = f"{stack}.block.{i}.layer.{len(sublayers)}."
            names = {"gate": "wi_0", "input": "wi_1"} if config.traits.gated else {"input": "wi"}
            for ours, theirs in {**names, "output": "wo"}.items():
                yield from _linear(f"{stack}.layers.{i}.feed_forward.{ours}", f"{inside}DenseReluDense.{theirs}")
            yield from _norm(f"{stack}.layers.{i}.feed_forward_norm", f"{inside}layer_norm")
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield f"{stack}.position_bias.weight", Slot(bias)
        yield from _norm(f"{stack}.final_norm", f"{stack}.final_layer_norm")
    yield "lm_head.weight", Slot("lm_head.weight")


def _linear(ours: str, theirs: str) -> Iterator[tuple[str, Slot]]:
    for end in ("weight", "bias"):
        yield f"{ours}.{end}", Slot(f"{theirs}.{end}")


def _norm(ours: str, theirs: str) -> Iterator[tuple[str, Slot]]:
    for end in ("weight", "bias", "cond_gamma.weight", "cond_beta.weight", "cond_hidden.weight"):
        yield f"{ours}.{end}", Slot(f"{theirs}.{end}")
