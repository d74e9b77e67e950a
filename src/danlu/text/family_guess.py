r"""Which family a TensorFlow checkpoint holds, told from the names and shapes of its variables.

    names of the first layer               the layout (`danlu.text.tf_names`): whose code wrote it
    layout bert + position table           bert (Chinese RoBERTa has the same variables and computes the same)
    layout bert, no positions, no biases   roformer_v2
    layout bert, no positions              nezha or roformer: the same variables, other mathematics; nobody can tell
    any other layout                       its family

The sizes follow from the shapes, but not the number of heads, which is the second half of a matrix read as
heads x head size; only T5's bias tables show it. hidden / 64, true of most models, stands as an assumption.

Source: the layouts' own codes, named in `danlu.text.tf_names`.
Shapes: as stored, by name; matrices are (in, out) there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from danlu.text.tf_names import LAYOUTS, Layout

__all__ = ["Guess", "guess"]

Shapes = Mapping[str, tuple[int, ...]]
_FAMILY = {
    "albert": "albert", "electra": "electra", "generator": "electra", "gau": "gau_alpha", "gpt": "gpt", "gpt2": "gpt2",
    "openai": "gpt2", "newslm": "gpt2_ml", "t5.1.0": "t5.1.0", "t5.1.1": "t5.1.1", "mt5.1.1": "mt5.1.1",
}  # fmt: skip
_HEADS = {
    "pooler": ("pooler",),
    "nsp": ("pooler", "nsp.weight", "nsp.bias"),
    "mlm": ("mlm.dense", "mlm.bias"),
    "discriminator": ("discriminator.dense", "discriminator.output"),
}
_USUAL_HEAD = 64  # features of a head in most models


@dataclass(frozen=True)
class Guess:
    """What the names and shapes tell.

    Args:
        family: a key of `FAMILIES`; None where the variables fit several families, or none.
        candidates: all families they fit.
        layout: a key of `LAYOUTS`; None: not a checkpoint that is known here.
        sizes: fields of `TransformerConfig` that the shapes show.
        widths: features of all heads together, "query" and "value".
        heads: heads whose variables are there.
        reasons: the observations, one sentence each.
        assumed: fields of `TransformerConfig` that are usual, not read.
    """

    family: str | None
    candidates: tuple[str, ...]
    layout: str | None
    sizes: dict[str, int]
    widths: dict[str, int]
    heads: tuple[str, ...]
    reasons: tuple[str, ...]
    assumed: dict[str, int]

    def head_sizes(self, num_heads: int) -> dict[str, int]:
        """Fields `head_size` and `key_size` that follow from a number of heads, where they are not the usual ones.

        Args:
            num_heads: attention heads.

        Returns:
            None, one or both of them; nothing where the widths are no multiples of num_heads.

        >>> Guess("bert", ("bert",), "bert", {"hidden_size": 8}, {"query": 4, "value": 8}, (), (), {}).head_sizes(2)
        {'key_size': 2}
        """
        hidden = self.sizes.get("hidden_size", 0)
        query, value = self.widths.get("query", hidden), self.widths.get("value", hidden)
        if num_heads < 1 or query % num_heads or value % num_heads:
            return {}
        sizes = {}
        if value != hidden:
            sizes["head_size"] = value // num_heads
        if query != value:
            sizes["key_size"] = query // num_heads
        return sizes


def guess(shapes: Shapes, layout: str | None = None) -> Guess:
    """The family, layout and sizes of a TensorFlow checkpoint.

    Args:
        shapes: shape by name of its variables.
        layout: a key of `LAYOUTS` to read them as; None: the one that fits. ELECTRA's files often hold two.

    Returns:
        `Guess`; no names whatever make it fail.

    >>> guess({"shared/embedding": (9, 4), "encoder/block_000/layer_000/SelfAttention/q": (4, 4)}).family
    't5.1.0'
    """
    name = _layout(shapes, LAYOUTS if layout is None else {layout: LAYOUTS[layout]})
    if name is None:
        reason = "no token table with a first layer of a known code; `danlu inspect` lists the variables"
        return Guess(None, (), None, {}, {}, (), (reason,), {})
    paths = LAYOUTS[name]
    reasons = [f"{paths.paths['embeddings.token.weight']} and {_first(paths)}: layout {name}"]
    heads = tuple(head for head, modules in _HEADS.items() if all(_present(shapes, paths, m) for m in modules))
    sizes, widths = _sizes(shapes, paths)
    candidates: tuple[str, ...] = (_FAMILY[name],) if name in _FAMILY else _bert_like(shapes, paths, reasons)
    if name in ("electra", "generator"):
        other = LAYOUTS["generator" if name == "electra" else "electra"]
        beside = any(variable.startswith(_scope(other)) for variable in shapes)
        part = "the discriminator" if name == "electra" else "the generator"
        reasons.append(f"this is {part}" + ("; variables of the other part stand beside it" if beside else ""))
    assumed: dict[str, int] = {}
    hidden = sizes.get("hidden_size", 0)
    if name == "gau":
        sizes["num_heads"] = 1
    elif "num_heads" not in sizes and hidden and hidden % _USUAL_HEAD == 0:
        assumed["num_heads"] = hidden // _USUAL_HEAD
        reasons.append(
            f"num_heads {assumed['num_heads']} is assumed: hidden size / {_USUAL_HEAD}; shapes do not show it"
        )
    if "num_heads" in sizes and name != "gau":
        sizes |= Guess(None, (), name, sizes, widths, (), (), {}).head_sizes(sizes["num_heads"])
    family = candidates[0] if len(candidates) == 1 else None
    return Guess(family, candidates, name, sizes, widths, heads, tuple(reasons), assumed)


def _layout(shapes: Shapes, layouts: Mapping[str, Layout]) -> str | None:
    """The layout with the most variables among those whose token table and first layer are there."""
    found = {}
    for name, layout in layouts.items():
        if layout.paths["embeddings.token.weight"] in shapes and _first(layout) in shapes:
            found[name] = sum(_present(shapes, layout, module) for module in layout.paths)
    if "electra" in found:
        found.pop("generator", None)  # pretraining saves both; whoever wants the generator says so
    return max(found, key=lambda name: found[name], default=None)


def _first(layout: Layout) -> str:
    """The matrix by which a layout is recognized."""
    for module in ("layers.attention.query", "encoder.layers.attention.query", "layers.gau.input"):
        if module in layout.paths:
            return layout.paths[module].format(i=0) + layout.kernel
    raise AssertionError("a layout without attention")


def _scope(layout: Layout) -> str:
    return _first(layout).partition("/")[0] + "/encoder/"


def _present(shapes: Shapes, layout: Layout, module: str, i: int = 0) -> bool:
    """Whether a parameter, or the matrix or gain of a module, is there."""
    if module not in layout.paths:
        return False
    path = layout.paths[module].format(i=i)
    ending = layout.gain if module.endswith("norm") else layout.kernel
    return path in shapes or path + ending in shapes


def _bert_like(shapes: Shapes, layout: Layout, reasons: list[str]) -> tuple[str, ...]:
    """Families of the layout bert by what is there and what is not."""
    positions = layout.paths["embeddings.position.weight"] in shapes
    norms = _present(shapes, layout, "layers.attention_norm")
    biases = layout.paths["layers.attention.query"].format(i=0) + layout.bias in shapes
    told = [("a" if positions else "no") + " position table", ("" if biases else "no ") + "biases"]
    reasons.append(", ".join([*told, ("" if norms else "no ") + "norms"]))
    if positions and norms and biases:
        return ("bert",)
    if not positions and not norms and not biases:
        return ("roformer_v2",)
    if not positions and norms and biases:
        reasons.append(
            "nezha and roformer have the same variables; the configuration tells which, or family='nezha' or 'roformer'"
        )
        return ("nezha", "roformer")
    reasons.append("no family has this mixture")
    return ()


def _sizes(shapes: Shapes, layout: Layout) -> tuple[dict[str, int], dict[str, int]]:
    """Fields that the shapes show, and the widths of the heads; what is not there or has other axes is left out."""

    def size(module: str, axis: int, axes: int = 2, i: int = 0) -> int | None:
        if module not in layout.paths:
            return None
        path = layout.paths[module].format(i=i)
        shape = shapes.get(path, shapes.get(path + layout.kernel))
        if shape is not None and layout.leading and module.startswith("layers."):
            shape = shape[layout.leading :]
        return shape[axis] if shape is not None and len(shape) == axes and 0 not in shape else None

    stack = "encoder." if "encoder.layers.attention.query" in layout.paths else ""
    query = f"{stack}layers.attention.query"
    joined = 3 if layout.leading else 1  # OpenAI's c_attn
    found: dict[str, int | None] = {
        "vocab_size": size("embeddings.token.weight", 0),
        "embedding_size": size("embeddings.token.weight", 1),
        "hidden_size": size(query, 0) or size("layers.gau.input", 0),
        "num_layers": _count(shapes, layout, query if query in layout.paths else "layers.gau.input"),
        "intermediate_size": size(f"{stack}layers.feed_forward.input", 1) or size("layers.gau.output", 0),
        "max_positions": size("embeddings.position.weight", 0),
    }
    if "embeddings.segment.weight" in layout.paths:
        found["segment_vocab_size"] = size("embeddings.segment.weight", 0) or 0
    if found["embedding_size"] == found["hidden_size"]:
        del found["embedding_size"]
    if stack:
        found["num_heads"] = size("encoder.position_bias.weight", 0)
        found["num_buckets"] = size("encoder.position_bias.weight", 1)
        decoder = _count(shapes, layout, "decoder.layers.attention.query")
        if decoder != found["num_layers"]:
            found["num_decoder_layers"] = decoder
    gau, inner = size("layers.gau.input", 1), found["intermediate_size"]
    if gau and inner:
        found["key_size"] = gau - 2 * inner
    width, value = size(query, 1), size(f"{stack}layers.attention.value", 1)
    widths = {name: full // joined for name, full in (("query", width), ("value", value)) if full}
    return {name: value for name, value in found.items() if value is not None}, widths


def _count(shapes: Shapes, layout: Layout, module: str) -> int | None:
    """Layers from the first without a gap; None where all share one, so that the file does not show their number."""
    path = layout.paths[module]
    if "{i" not in path:
        return None
    count = 0
    while path.format(i=count) + layout.kernel in shapes:
        count += 1
    return count
