"""Every run of bert4keras on every family: checkpoints through load_tf, outputs within 1e-5 of the largest one.

Packed and padded, each run twice. Positions of padding are not compared: the reference computes them, nobody reads
them.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from danlu.text.load_tf import load_tf

ROOT = Path(os.environ.get("DANLU_DATA", "")) / "oracles" / "models"
HERE = "DANLU_DATA" in os.environ and ROOT.is_dir()
pytestmark = pytest.mark.skipif(not HERE, reason="needs $DANLU_DATA/oracles/models")
FAMILIES = {"GAUAlpha": "gau_alpha"}
# Other files hold what these runs show: keras_weights.h5 is read by test_keras_weights.py.
ELSEWHERE = {"keras_weights.h5"}


def cases():
    if not HERE:
        return []
    found = []
    for folder in sorted(ROOT.iterdir()):
        for run in json.loads((folder / "case.json").read_text())["runs"]:
            if run["run"] not in ELSEWHERE and "fails_in_the_reference" not in run:
                found.append(pytest.param(folder, run, id=f"{folder.name}-{run['run']}"))
    return found


def settings(folder, run):
    """The reference's arguments as those of load_tf."""
    given = dict(run.get("arguments") or {})
    heads, options = [], {}
    if given.pop("with_mlm", None):
        heads.append("mlm")
    pool = given.pop("with_pool", None)
    if pool:
        heads.append("pooler")
        options["pooler_activation"] = "tanh" if pool is True else pool
    if given.pop("with_nsp", None):
        heads.append("nsp")
    if given.pop("with_discriminator", None):
        heads.append("discriminator")
    if given.pop("layer_norm_cond", None):
        options["condition_size"] = 11
        options["condition_hidden_size"] = given.pop("layer_norm_cond_hidden_size", None)
        options["condition_activation"] = given.pop("layer_norm_cond_hidden_act", "linear")
    alpha = given.pop("hierarchical_position", None)
    if alpha is not None:
        options["hierarchical_position"] = 0.4 if alpha is True else alpha
    if given.pop("set_gelu", None):
        options["activation"] = "gelu_tanh"
    if "num_hidden_layers" in given:
        options["num_layers"] = given.pop("num_hidden_layers")
    if given.pop("autoresize_weights", None):
        options["autoresize"] = True
    if "compound_tokens" in given:
        given.pop("compound_tokens")  # the case describes them in words
        options["compound_tokens"] = [[7, 9], [5, 6, 8], ([10, 11], [1, 3])]
    if folder.name.endswith("_nosegment"):
        options["segment_vocab_size"] = 0
    for name in ("with_lm", "final_activation", "custom_position_ids", "prefix"):  # they change no number we compute
        given.pop(name, None)
    return tuple(heads), {**options, **given}


def condition_norms(model, weights):
    """Put the extra kernels of conditional norms, in the reference's order of creation, into the model."""
    for layer in {name.rsplit("/", 2)[0] for name in weights}:
        kernels = [
            weights[f"{layer}/dense{suffix}/kernel"]
            for suffix in ("", "_1", "_2")
            if f"{layer}/dense{suffix}/kernel" in weights
        ]
        block = (
            model.layers[int(layer.split("-")[1]) if layer.split("-")[1].isdigit() else 0]
            if layer.startswith("T")
            else None
        )
        if block is None:
            norm = model.embeddings.norm
        else:
            norm = block.attention_norm if "Attention" in layer else block.feed_forward_norm
        names = ["cond_hidden", "cond_beta", "cond_gamma"][3 - len(kernels) :]
        for name, kernel in zip(names, kernels, strict=True):
            getattr(norm, name).weight.data.copy_(torch.from_numpy(kernel).T)


def outputs(model, run, given, pack):
    """Outputs by the reference's names, and which positions of the ids are tokens."""
    if run["family"].split(".")[0] in ("t5", "mt5"):
        source, target = given.get("Encoder-Input-Token"), given.get("Decoder-Input-Token")
        if target is None:
            return {"hidden": model.encode(source.long(), pack=pack)[0]}, source != 0
        if source is None:
            out = model.decode(target.long(), given["Input-Context"])
        else:
            out = model(source.long(), target.long(), pack=pack)
        return {"logits": out.logits, "probs": out.logits.softmax(-1)}, target != 0
    ids, segments, places = (given.get(f"Input-{name}") for name in ("Token", "Segment", "Position"))
    out = model(
        ids.long(), None if segments is None else segments.long(), pack=pack, output_layers=True,
        position_ids=None if places is None else places.long(), condition=given.get("Input-Condition"),
    )  # fmt: skip
    got = {"hidden": out.hidden_states, "pooled": out.pooled, "logits": out.logits, "mlm": out.logits}
    got |= {f"layer:Transformer-{i}-FeedForward-Norm": layer for i, layer in enumerate(out.layers[1:])}
    got["layer:Embedding-Norm"] = out.layers[0]
    if out.logits is not None:
        got["probs"] = out.logits.softmax(-1)
    if out.nsp_logits is not None:
        got["nsp"] = out.nsp_logits.softmax(-1)
    if out.discriminator_logits is not None:
        got["logits"] = out.discriminator_logits[..., None]
        got["probs"] = got["logits"].sigmoid()
    return got, ids != 0


@pytest.mark.parametrize(("folder", "run"), cases())
def test_equals_bert4keras(folder, run):
    heads, options = settings(folder, run)
    family = FAMILIES.get(run["family"], run["family"]).removesuffix("_encoder").removesuffix("_decoder")
    if family.startswith(("t5", "mt5")):
        heads = "auto"
    with np.load(folder / "io.npz") as file:
        stored = {name: file[name] for name in file.files if name.startswith(run["run"] + "/")}
    parts = {kind: {} for kind in ("in", "out", "cln")}
    for name, value in stored.items():
        kind, _, rest = name.removeprefix(run["run"] + "/").partition("/")
        parts[kind][rest] = value
    model = load_tf(folder / "model.ckpt", family=family, heads=heads, compat="bert4keras", **options)
    condition_norms(model, parts["cln"])
    given = {name.removeprefix("Copy-"): torch.from_numpy(value) for name, value in parts["in"].items()}
    for pack in (None, False):
        with torch.no_grad():
            got, keep = outputs(model, run, given, pack)
        keep[:, 0] = True
        assert parts["out"]
        for name, want in parts["out"].items():
            ours = got[name].numpy()
            assert ours.shape == want.shape
            apart = np.abs(ours - want)
            worst = apart[keep.numpy()].max() if apart.ndim == 3 else apart.max()
            assert worst <= 1e-5 * np.abs(want).max(), f"{name}: {worst / np.abs(want).max():.1e}"
