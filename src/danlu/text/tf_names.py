r"""Names and layouts of TensorFlow checkpoints: where each parameter of ours lies in the files of the original codes.

    bert             bert/encoder/layer_0/attention/self/query/kernel    BERT, Chinese RoBERTa, NEZHA, RoFormer (V2)
    albert           bert/encoder/transformer/group_0/inner_group_0/...  ALBERT: one layer, applied several times
    electra          electra/encoder/layer_0/...                         ELECTRA's discriminator
    generator        generator/encoder/layer_0/...                       ELECTRA's generator
    gau              GAU_alpha/encoder/layer_0/gau/i_dense/kernel        GAU-alpha
    gpt, gpt2        gpt/transformer/layer_0/...                         bert4keras, CDial-GPT and CPM
    openai           model/h0/attn/c_attn/w                              GPT-2 of OpenAI, query, key and value in one
    newslm           newslm/layer00/query_layer/kernel                   GPT2-ML
    t5.1.0, t5.1.1   encoder/block_000/layer_000/SelfAttention/q         T5; 1.1 has wi_0 and wi_1 for wi
    mt5.1.1          the same with rms_norm for layer_norm               mT5, T5-PEGASUS

Kernels of dense layers are (in, out) there, ours (out, in); only `cls/seq_relationship/output_weights` is (out, in).
T5's bias tables are (heads, buckets), ours (buckets, heads). A layout is a table of paths; which of them a model needs
follows from its `TransformerConfig`. Unshared ALBERT reads the shared layer into every layer of its own.

Source: google-research/bert, albert and electra; huawei-noah/Pretrained-Language-Model (NEZHA); ZhuiyiTechnology's
roformer, roformer-v2 and GAU-alpha; openai/gpt-2; imcaspar/gpt2-ml; google-research/text-to-text-transfer-transformer;
bert4keras 0.11.5 (variable_mapping).
Shapes: none here; a slot says how their array becomes ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from danlu.text.config import TransformerConfig, family_of
from danlu.text.slots import Slot

__all__ = ["LAYOUTS", "Layout", "layouts_of", "tf_names"]

Paths = dict[str, str]
_EXACT = (".weight", ".bias", "_scale")  # endings of a parameter; other keys of a table are modules


@dataclass(frozen=True)
class Layout:
    """Paths of one model code.

    Args:
        paths: their path by our module or parameter; `layers.` stands for every layer, `{i}` there for its number.
        kernel: ending of a linear layer's matrix.
        bias: ending of a linear layer's bias.
        gain: ending of a norm's gain.
        shift: ending of a norm's shift.
        leading: axes of size 1 before the matrix of a linear layer.
    """

    paths: Paths
    kernel: str = "/kernel"
    bias: str = "/bias"
    gain: str = "/gamma"
    shift: str = "/beta"
    leading: int = 0


def _under(ours: str, theirs: str, paths: Paths) -> Paths:
    """The same table one level deeper."""
    return {ours + our: theirs + their for our, their in paths.items()}


_TABLES = {
    "token.weight": "word_embeddings",
    "segment.weight": "token_type_embeddings",
    "position.weight": "position_embeddings",
}
_LINEARS = {
    "attention.query": "attention/self/query",
    "attention.key": "attention/self/key",
    "attention.value": "attention/self/value",
    "attention.output": "attention/output/dense",
    "feed_forward.input": "intermediate/dense",
    "feed_forward.output": "output/dense",
}
_POST = _LINEARS | {"attention_norm": "attention/output/LayerNorm", "feed_forward_norm": "output/LayerNorm"}
_PRE = _LINEARS | {"attention_norm": "attention/input/LayerNorm", "feed_forward_norm": "input/LayerNorm"}
_ALBERT = {
    "attention.query": "attention_1/self/query",
    "attention.key": "attention_1/self/key",
    "attention.value": "attention_1/self/value",
    "attention.output": "attention_1/output/dense",
    "attention_norm": "LayerNorm",
    "feed_forward.input": "ffn_1/intermediate/dense",
    "feed_forward.output": "ffn_1/intermediate/output/dense",
    "feed_forward_norm": "LayerNorm_1",
}
_GAU = {
    "input": "i_dense",
    "output": "o_dense",
    "query_scale": "q_scaleoffset/gamma",
    "key_scale": "k_scaleoffset/gamma",
}
_OPENAI = {
    "attention_norm": "ln_1",
    "attention.query": "attn/c_attn",
    "attention.key": "attn/c_attn",
    "attention.value": "attn/c_attn",
    "attention.output": "attn/c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.input": "mlp/c_fc",
    "feed_forward.output": "mlp/c_proj",
}
_JOINED = ("attention.query", "attention.key", "attention.value")  # the parts of c_attn, in this order
_NEWSLM = {
    "attention.query": "query_layer",
    "attention.key": "key_layer",
    "attention.value": "value_layer",
    "attention.output": "context_projection_layer",
    "input_norm": "LayerNorm_mlp_ln0",
    "feed_forward.input": "intermediate",
    "feed_forward.output": "output",
    "feed_forward_norm": "LayerNorm_mlp_ln1",
}
_BERT_REST = {
    **_under("embeddings.", "bert/embeddings/", _TABLES | {"norm": "LayerNorm"}),
    "embeddings.project": "bert/encoder/embedding_hidden_mapping_in",
    "pooler": "bert/pooler/dense",
    "nsp.weight": "cls/seq_relationship/output_weights",
    "nsp.bias": "cls/seq_relationship/output_bias",
    "mlm.dense": "cls/predictions/transform/dense",
    "mlm.norm": "cls/predictions/transform/LayerNorm",
    "mlm.bias": "cls/predictions/output_bias",
}
_ELECTRA_TABLES = _under("embeddings.", "electra/embeddings/", _TABLES | {"norm": "LayerNorm"})
_GPT_REST = _under("embeddings.", "gpt/embeddings/", _TABLES) | {
    "embeddings.project": "gpt/transformer/embedding_hidden_mapping_in"
}
_T5_ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}


def _t5(gated: bool, norm: str, final: str) -> Layout:
    dense = {"output": "wo/kernel"} | (
        {"gate": "wi_0/kernel", "input": "wi_1/kernel"} if gated else {"input": "wi/kernel"}
    )
    paths = {"embeddings.token.weight": "shared/embedding"}
    for stack, last in (("encoder", 1), ("decoder", 2)):
        block = {
            **_under("attention.", "layer_000/SelfAttention/", _T5_ATTENTION),
            "attention_norm": f"layer_000/{norm}",
            **_under("feed_forward.", f"layer_{last:03d}/DenseReluDense/", dense),
            "feed_forward_norm": f"layer_{last:03d}/{norm}",
        }
        if stack == "decoder":
            block |= _under("cross_attention.", "layer_001/EncDecAttention/", _T5_ATTENTION)
            block["cross_attention_norm"] = f"layer_001/{norm}"
        bias = f"{stack}/block_000/layer_000/SelfAttention/relative_attention_bias"
        paths |= _under(f"{stack}.layers.", f"{stack}/block_{{i:03d}}/", block)
        paths |= {f"{stack}.position_bias.weight": bias, f"{stack}.final_norm": f"{stack}/{final}"}
    if gated:
        paths["lm_head.weight"] = "decoder/logits/kernel"
    return Layout(paths, kernel="", gain="/scale")


LAYOUTS: dict[str, Layout] = {
    "bert": Layout(_BERT_REST | _under("layers.", "bert/encoder/layer_{i}/", _POST)),
    "albert": Layout(_BERT_REST | _under("layers.", "bert/encoder/transformer/group_0/inner_group_0/", _ALBERT)),
    "electra": Layout({
        **_ELECTRA_TABLES,
        "embeddings.project": "electra/embeddings_project",
        **_under("layers.", "electra/encoder/layer_{i}/", _POST),
        "discriminator.dense": "discriminator_predictions/dense",
        "discriminator.output": "discriminator_predictions/dense_1",
    }),
    "generator": Layout({
        **_ELECTRA_TABLES,
        "embeddings.project": "generator/embeddings_project",
        **_under("layers.", "generator/encoder/layer_{i}/", _POST),
        "mlm.dense": "generator_predictions/dense",
        "mlm.norm": "generator_predictions/LayerNorm",
        "mlm.bias": "generator_predictions/output_bias",
    }),
    "gau": Layout(_BERT_REST | _under("layers.gau.", "GAU_alpha/encoder/layer_{i}/gau/", _GAU)),
    "gpt": Layout(_GPT_REST | _under("layers.", "gpt/transformer/layer_{i}/", _POST)),
    "gpt2": Layout(
        _GPT_REST | _under("layers.", "gpt/transformer/layer_{i}/", _PRE) | {"final_norm": "gpt/output/LayerNorm"}
    ),
    "openai": Layout(
        {"embeddings.token.weight": "model/wte", "embeddings.position.weight": "model/wpe", "final_norm": "model/ln_f"}
        | _under("layers.", "model/h{i}/", _OPENAI),
        kernel="/w", bias="/b", gain="/g", shift="/b", leading=1,
    ),
    "newslm": Layout({
        "embeddings.token.weight": "newslm/embeddings/word_embed",
        "embeddings.position.weight": "newslm/embeddings/pos_embed",
        "embeddings.norm": "newslm/embeddings/LayerNorm_embed_norm",
        **_under("layers.", "newslm/layer{i:02d}/", _NEWSLM),
    }),
    "t5.1.0": _t5(False, "layer_norm", "final_layer_norm"),
    "t5.1.1": _t5(True, "layer_norm", "final_layer_norm"),
    "mt5.1.1": _t5(True, "rms_norm", "rms_norm"),
}  # fmt: skip

_OF_FAMILY = {
    "albert": ("albert",), "albert_unshared": ("albert", "bert"), "electra": ("electra", "generator"),
    "gau_alpha": ("gau",), "gpt": ("gpt",), "gpt2": ("gpt2", "openai"), "gpt2_ml": ("newslm",), "t5.1.0": ("t5.1.0",),
    "t5.1.1": ("t5.1.1", "mt5.1.1"), "mt5.1.1": ("mt5.1.1", "t5.1.1"),
}  # fmt: skip


def layouts_of(family: str) -> tuple[str, ...]:
    """Names of the layouts that files of a family may have, the usual one first.

    Args:
        family: a key of `FAMILIES` or another spelling of it.

    Returns:
        Keys of `LAYOUTS`.

    Raises:
        ValueError: no such family.

    >>> layouts_of("gpt2")
    ('gpt2', 'openai')
    """
    return _OF_FAMILY.get(family_of(family).name, ("bert",))


def tf_names(config: TransformerConfig, heads: Sequence[str] = (), layout: str | None = None) -> dict[str, Slot]:
    """Where every parameter of a model lies in a TensorFlow checkpoint.

    Args:
        config: of the model.
        heads: its heads, of "pooler", "nsp", "mlm" and "discriminator".
        layout: a key of `LAYOUTS`; None: the family's usual one, and ELECTRA's generator where the head is "mlm".

    Returns:
        Our name to its slot. Parameters that such files never hold (of conditional norms) are not among them.

    Raises:
        ValueError: the layout is none of the family's.

    >>> sizes = {"vocab_size": 9, "hidden_size": 4, "num_layers": 2, "num_heads": 2, "intermediate_size": 8}
    >>> tf_names(TransformerConfig.of("bert", **sizes))["layers.1.feed_forward.output.weight"]
    Slot(name='bert/encoder/layer_1/output/dense/kernel', transpose=True, part=0, parts=1, leading=0)
    """
    allowed = layouts_of(config.family)
    if layout is None:
        layout = allowed[1] if allowed[0] == "electra" and "mlm" in heads else allowed[0]
    if layout not in allowed:
        raise ValueError(f"files of {config.family} have the layout {' or '.join(allowed)}, got {layout!r}")
    names: dict[str, Slot] = {}
    for ours, theirs in LAYOUTS[layout].paths.items():
        for name, slot in _slots(ours, theirs, LAYOUTS[layout]):
            if not _exists(name, config, heads):
                continue
            before, found, after = name.partition("layers.")
            if not found:
                names[name] = slot
            for i in range(_num_layers(config, before) if found else 0):
                filled = Slot(slot.name.format(i=i), slot.transpose, slot.part, slot.parts, slot.leading)
                names[f"{before}layers.{i}.{after}"] = filled
    return names


def _slots(ours: str, theirs: str, layout: Layout) -> Iterator[tuple[str, Slot]]:
    """Parameters of one line of a table."""
    last = ours.rpartition(".")[2]
    if ours.endswith(_EXACT):
        yield ours, Slot(theirs, transpose=last == "weight" and ours.startswith(("encoder.", "decoder.", "lm_head.")))
    elif last.endswith("norm"):
        yield f"{ours}.weight", Slot(theirs + layout.gain)
        yield f"{ours}.bias", Slot(theirs + layout.shift)
    else:
        inside = ours.removeprefix("layers.")
        joined = layout is LAYOUTS["openai"] and inside in _JOINED
        part, parts = (_JOINED.index(inside), 3) if joined else (0, 1)
        yield f"{ours}.weight", Slot(theirs + layout.kernel, True, part, parts, layout.leading)
        yield f"{ours}.bias", Slot(theirs + layout.bias, False, part, parts)


def _num_layers(config: TransformerConfig, stack: str) -> int:
    if config.traits.share_layers:
        return 1
    return config.decoder_layers if stack == "decoder." else config.num_layers


def _exists(name: str, config: TransformerConfig, heads: Sequence[str]) -> bool:
    """Whether a model of this configuration has a parameter; `layers.` stands for every layer."""
    traits = config.traits
    first, _, rest = name.partition(".")
    if first in ("pooler", "nsp", "mlm", "discriminator"):
        return first in heads and (first != "mlm" or traits.head == "mlm")
    if first == "lm_head":
        return not config.tie_embeddings
    if first == "embeddings":
        module = rest.partition(".")[0]
        absent = {
            "segment": not traits.segments or not config.segment_vocab_size or config.shared_segment_embeddings,
            "position": traits.positions != "learned",
            "norm": not traits.embedding_norm,
            "project": config.embedding_dim == config.hidden_size,
        }
        if absent.get(module, False):
            return False
    if "norm." in name:
        return traits.norm == "layer" or (traits.norm == "rms" and name.endswith(".weight"))
    return traits.bias or not name.endswith(".bias")
