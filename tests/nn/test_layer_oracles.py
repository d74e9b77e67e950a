"""The single layers of bert4keras 0.11.5 against ours: attention, gated attention units, feed-forward, accuracies.

What has a page of its own (CRF, MEMM, pointers, losses, positions, norms, activations, schedules) is tested there.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from danlu.math import attention_normalize, tag_accuracy
from danlu.nn import crf_nll, hierarchical_positions
from danlu.nn.attention import AttentionContext, MultiHeadAttention
from danlu.nn.feed_forward import FeedForward
from danlu.nn.gated_attention_unit import GatedAttentionUnit
from danlu.nn.layout import packed_layout, padded_layout

pytestmark = pytest.mark.data


@pytest.fixture
def layers(shared):
    with np.load(shared / "oracles" / "layers" / "single_layers.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def weights(layers, name):
    """The weights of a layer in the order of creation, kernels as nn.Linear has them."""
    return [layers[key].mT if layers[key].ndim == 2 else layers[key] for key in ordered(layers, f"{name}/weights/")]


def ordered(layers, start):
    return sorted(
        (key for key in layers if key.startswith(start)), key=lambda key: int(key[len(start) :].split("/")[0])
    )


def filled(module, names, values):
    """The module with parameters set by name; an output of another size than the module's is put in its place."""
    for name, value in zip(names, values, strict=True):
        owner, leaf = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        setattr(owner, leaf, nn.Parameter(value))
    return module


def attention(layers, name):
    values = weights(layers, f"mha_{name}")
    kinds = ("weight", "bias") if len(values) == 8 else ("weight",)
    names = [f"{part}.{kind}" for part in ("query", "key", "value", "output") for kind in kinds]
    module = MultiHeadAttention(12, 3, len(values[0]) // 3, 4, bias=len(kinds) == 2, scaled=name != "noscale")
    return filled(module, names, values)


def close(got, expected):
    torch.testing.assert_close(got, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("name", ["plain", "keysize_nobias", "noscale"])
def test_attention(layers, name):
    module, x, mask = attention(layers, name), layers["x"], layers["mask"]
    expected = layers[f"mha_{name}/self"]
    close(module(x.flatten(0, 1), AttentionContext(padded_layout(2, 8, mask))).unflatten(0, (2, 8)), expected)
    close(module(x, mask), expected)
    layout = packed_layout(mask)
    close(module(layout.gather(x), AttentionContext(layout)), layout.gather(expected))
    cross = module.cross(x, layers["context"], mask=layers["context_mask"], bias=None, dropout=0.0)
    close(cross, layers[f"mha_{name}/cross"])


def test_attention_with_a_bias_and_its_scores(layers):
    module, mask = attention(layers, "bias"), layers["mask"]
    context = AttentionContext(padded_layout(2, 8, mask), bias=layers["mha_bias/a_bias"], realformer="sum")
    close(module(layers["x"].flatten(0, 1), context).unflatten(0, (2, 8)), layers["mha_bias/self"])
    close(context.scores[0], layers["mha_bias/scores_before_bias"])


@pytest.mark.parametrize("kind", ["softmax_plus", "squared_relu"])
@pytest.mark.parametrize("place", ["self", "cross"])
def test_attention_with_other_weights(layers, kind, place):
    module = attention(layers, kind)
    keys, mask = ("x", "mask") if place == "self" else ("context", "context_mask")
    query = module.query(layers["x"]).unflatten(2, (3, 4)).transpose(1, 2)  # (B, H, T, K)
    key, value = (part(layers[keys]).unflatten(2, (3, 4)).transpose(1, 2) for part in (module.key, module.value))
    a = attention_normalize(query @ key.mT / 2, layers[mask][:, None, None], kind)
    close(module.output((a @ value).transpose(1, 2).flatten(2)), layers[f"mha_{kind}/{place}"])


@pytest.mark.parametrize("kind", ["softmax_plus", "squared_relu"])
def test_gated_attention_unit(layers, kind):
    names = ["input.weight", "input.bias", "query_shift", "query_scale", "key_shift", "key_scale"]
    names += ["output.weight", "output.bias"]
    unit = GatedAttentionUnit(12, 18, 6, bias=True, normalization=kind)
    filled(unit, names, weights(layers, f"gau_self_{kind}"))
    expected = layers[f"gau_self_{kind}/out"]
    out = unit(layers["x"].flatten(0, 1), AttentionContext(padded_layout(2, 8, layers["mask"])))
    close(out.unflatten(0, (2, 8)), expected)
    close(unit(layers["x"], layers["mask"]), expected)
    layout = packed_layout(layers["mask"])
    close(unit(layout.gather(layers["x"]), AttentionContext(layout)), layout.gather(expected))


@pytest.mark.parametrize("kind", ["softmax_plus", "squared_relu"])
def test_gated_attention_over_other_keys(layers, kind):
    """Keys are the tokens backwards, values half of them (read off the numbers); the queries' mask hides keys."""
    gate_query, key, value, output = (
        lambda x, w=w, b=b: F.linear(x, w, b)
        for w, b in zip(*[iter(weights(layers, f"gau_cross_{kind}"))] * 2, strict=True)
    )
    x = layers["x"]
    u, q = F.silu(gate_query(x)).split([18, 6], -1)
    a = attention_normalize(q @ F.silu(key(x.flip(1))).mT / 6**0.5, layers["mask"][:, None], kind)
    close(output(u * (a @ F.silu(value(x / 2)))), layers[f"gau_cross_{kind}/out"])


@pytest.mark.parametrize(
    ("name", "activation", "parts"),
    [
        ("ffn_gelu", "gelu", ["input", "output"]),
        ("ffn_gated", "gelu", ["gate", "input", "output"]),
        ("ffn_swiglu", "swish", ["gate", "input", "output"]),
    ],
)
def test_feed_forward(layers, name, activation, parts):
    names = [f"{part}.{kind}" for part in parts for kind in ("weight", "bias")]
    module = filled(FeedForward(12, 10, activation, gated="gate" in parts), names, weights(layers, name))
    close(module(layers["x"]), layers[f"{name}/out"])


def test_position_tables(layers):  # hierarchical ones have their test beside the function
    for name, merge in (("add", lambda x, p: x + p), ("mul", lambda x, p: x * (1 + p)), ("zero", lambda _, p: p[None])):
        table = hierarchical_positions(layers[f"pos_{name}/weights/0/{position(layers, name)}/embeddings"], 0.4, 8)
        torch.testing.assert_close(merge(layers["x"], table), layers[f"pos_{name}/out"])


def position(layers, name):
    (key,) = ordered(layers, f"pos_{name}/weights/")
    return key.split("/")[3]


def test_pooling_over_windows_is_torchs_own(shared):
    with np.load(shared / "oracles" / "layers" / "functions.npz") as file:
        z = {key: torch.from_numpy(file[key]) for key in file.files if key.startswith(("pool1d/", "rms/"))}
    x = z["pool1d/x"].mT  # (B, D, T)
    close(F.max_pool1d(x, 3, 2).mT, z["pool1d/max_3_2"])
    close(F.max_pool1d(x, 3, 1, 1).mT, z["pool1d/max_3_1_same"])
    close(F.avg_pool1d(x, 3, 2).mT, z["pool1d/avg_3_2"])
    close(F.avg_pool1d(x, 3, 1, 1, count_include_pad=False).mT, z["pool1d/avg_3_1_same"])
    close(x.square().mean(1).sqrt(), z["rms/out"])


CHAINS = [f"crf_{i}_lrmult{m}" for i in (0, 1) for m in (1, 50)]
HISTORIES = [f"memm_{i}_lrmult{m}_{kind}" for i in (0, 1) for m in (1, 50) for kind in ("full", "lowrank")]


def chain(shared, name):
    with np.load(shared / "oracles" / "layers" / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def kept(tags, mask):
    return [row[keep].tolist() for row, keep in zip(tags, mask, strict=True)]


@pytest.mark.parametrize("name", CHAINS)
def test_crf_as_bert4keras_masks_and_counts(shared, name):  # losses, gradients and paths: test_crf.py
    z = chain(shared, name)
    masked = crf_nll(z["masked_emissions"], z["labels"], z["trans"], mask=z["mask"], reduction="none")
    close(masked, z["dense_loss"])
    predicted = kept(z["emissions"].argmax(-1), z["mask"])
    assert tag_accuracy(predicted, kept(z["labels"], z["mask"])) == pytest.approx(z["accuracy"].item(), abs=1e-6)


@pytest.mark.parametrize("name", HISTORIES)
def test_memm_accuracy_given_the_true_neighbours(shared, name):  # losses and gradients: test_memm.py
    z = chain(shared, name)
    f, y = z["emissions"], z["labels"].long()
    transitions = z["trans"] if "trans" in z else z["l_trans"] @ z["r_trans"].T
    gold = kept(y, z["mask"])
    accuracies = {}
    for direction, g in (("forward", transitions), ("backward", transitions.T)):
        predicted = []
        for row, tags, keep in zip(f, y, z["mask"], strict=True):
            e, t = row[keep], tags[keep]
            if direction == "backward":
                e, t = e.flip(0), t.flip(0)
            best = (e + torch.cat([e[:1], g[t[:-1]]])).argmax(-1)
            predicted.append((best.flip(0) if direction == "backward" else best).tolist())
        accuracies[direction] = tag_accuracy(predicted, gold)
        assert accuracies[direction] == pytest.approx(z[f"accuracy_{direction}"].item(), abs=1e-6)
    assert sum(accuracies.values()) / 2 == pytest.approx(z["accuracy"].item(), abs=1e-6)


def test_no_case_is_forgotten(shared, layers):
    """A case added to the folder turns this red until some test reads it.

    One is read by none: `novar`, a norm that centres and does not scale, which no model has and danlu does not offer.
    """
    cases = [f"{i}_rope{r}_tril{t}" for i in (0, 1) for r in (0, 1) for t in (0, 1)]
    pointers = {f"{kind}_{case}" for kind in ("GlobalPointer", "EfficientGlobalPointer") for case in cases}
    files = {"functions", "multilabel_loss", "single_layers", *CHAINS, *HISTORIES, *pointers}
    assert {path.stem for path in (shared / "oracles" / "layers").glob("*.npz")} == files
    functions = {"act", "sinusoidal", "rotary", "attn_norm", "piecewise", "orthogonally_resize", "pool1d", "rms"}
    with np.load(shared / "oracles" / "layers" / "functions.npz") as file:
        assert {key.split("/")[0] for key in file.files} == functions
    attention = {f"mha_{k}" for k in ("plain", "keysize_nobias", "noscale", "softmax_plus", "squared_relu", "bias")}
    units = {f"gau_{place}_{kind}" for place in ("self", "cross") for kind in ("softmax_plus", "squared_relu")}
    norms = {"ln", "ln_eps1e-12", "rms", "norm_only", "novar", "cln", "cln_hidden", "cond"}
    positions = {"pos_add", "pos_mul", "pos_zero", "pos_hier", "pos_hier0.2", "sinpos_add", "sinpos_mul", "sinpos_zero"}
    relative = {"relpos", "t5rel_bi", "t5rel_uni", "t5rel_bi16_40"}
    rest = {"x", "context", "mask", "context_mask", "ffn_gelu", "ffn_gated", "ffn_swiglu", "gap_masked", "gmp_masked"}
    assert {key.split("/")[0] for key in layers} == attention | units | norms | positions | relative | rest
