"""Every optimizer trajectory that bert4keras drew: twenty steps on given gradients, each weight after each step.

Made by bert4keras 0.11.5 on TensorFlow 2.15.1 in float32; the gradients are given, so errors do not feed back.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from danlu.optim import (
    EMA,
    LAMB,
    Adafactor,
    Adam,
    GradientAccumulation,
    Lion,
    Lookahead,
    param_groups,
    piecewise_linear,
)

pytestmark = pytest.mark.data
Named = dict[str, torch.nn.Parameter]
MODE: dict[str, Any] = {"compat": "bert4keras"}
SPARED = ("Norm", "bias")


def groups(named: Named, decay: float, spared: tuple[str, ...] = SPARED) -> list[dict[str, Any]]:
    """Two named groups: decay, and none where a name holds one of the words."""
    none = [(n, p) for n, p in named.items() if any(word in n for word in spared)]
    some = [(n, p) for n, p in named.items() if not any(word in n for word in spared)]
    return [g for g in ({"params": some, "weight_decay": decay}, {"params": none, "weight_decay": 0.0}) if g["params"]]


def factors(named: Named) -> list[dict[str, Any]]:
    """bert4keras multiplies the factors of all patterns that match: Dense 10, kernel 0.5, Norm 0."""
    found = [10.0 ** ("Dense" in n) * 0.5 ** ("kernel" in n) * (0.0 if "Norm" in n else 1.0) for n in named]
    return [{"params": [p], "lr": 0.01 * f} for p, f in zip(named.values(), found, strict=True)]


def factored(**options: Any) -> Callable[[Named], Any]:
    options = {"lr": 0.01, "min_dim_size_to_factor": 8} | options
    return lambda named: Adafactor(named.items(), **options, **MODE)


def scheduled(optimizer: torch.optim.Optimizer, points: dict[int, float]) -> Any:
    return optimizer, LambdaLR(optimizer, piecewise_linear(points))


def accumulated(optimizer: torch.optim.Optimizer, steps: int) -> GradientAccumulation:
    return GradientAccumulation(optimizer, steps, **MODE)


def looking_ahead(named: Named, **options: Any) -> torch.optim.Optimizer:
    optimizer = Adam(named.values(), 0.01)
    Lookahead(optimizer, **options, **MODE)
    return optimizer


def stack(named: Named) -> Any:
    optimizer = LAMB(groups(named, 0.05), 0.01, exclude_from_layer_adaptation=SPARED)
    return accumulated(optimizer, 2), LambdaLR(optimizer, piecewise_linear({4: 1, 20: 0.2}))


CASES: dict[str, Callable[[Named], Any]] = {
    "adam": lambda n: Adam(n.values(), 0.01),
    "adam_no_bias_correction": lambda n: Adam(n.values(), 0.01, bias_correction=False),
    "adam_eps": lambda n: Adam(n.values(), 0.01, (0.8, 0.95), 0.01),
    "lion": lambda n: Lion(n.values(), 0.01),
    "lion_default": lambda n: Lion(n.values()),
    "adafactor_default": lambda n: Adafactor(n.items(), **MODE),
    "adafactor_factored": factored(),
    "adafactor_auto_lr": factored(lr=None),
    "adafactor_auto_lr_no_scale": factored(lr=None, scale_parameter=False),
    "adafactor_momentum": factored(beta1=0.9),
    "adafactor_beta2_noclip": factored(beta2=0.99, clip_threshold=None),
    "adafactor_exclude_scale": factored(exclude_from_scale=("Dense",)),
    "adamw": lambda n: Adam(groups(n, 0.1), 0.01),
    "adafactor_weight_decay": factored(weight_decay=0.1),
    "lamb": lambda n: LAMB(groups(n, 0.1), 0.01, exclude_from_layer_adaptation=SPARED),
    "adam_layer_adaptation": lambda n: Adam(n.items(), 0.01, layer_adaptation=True),
    "piecewise_adam": lambda n: scheduled(Adam(n.values(), 0.01), {5: 1, 15: 0.1}),
    "piecewise_adamw": lambda n: scheduled(Adam(n.values(), 0.01, weight_decay=0.1), {0: 0.3, 6: 1, 18: 0}),
    "grad_accum_2": lambda n: accumulated(Adam(n.values(), 0.01), 2),
    "grad_accum_4_adamw": lambda n: accumulated(Adam(n.values(), 0.01, weight_decay=0.1), 4),
    "lookahead": lambda n: looking_ahead(n),
    "lookahead_3_0.8": lambda n: looking_ahead(n, steps=3, alpha=0.8),
    "lazy_adam": lambda n: Adam(n.items(), 0.01, lazy=("Embedding-Token",), **MODE),
    "lazy_adamw": lambda n: Adam(n.items(), 0.01, weight_decay=0.1, lazy=("Embedding",), **MODE),
    "ema_adam": lambda n: Adam(n.values(), 0.01),
    "param_wise_lr": lambda n: Adam(factors(n)),
    "stack": stack,
}


def walk(shared: Any, make: Callable[[Named], Any], decay: float | None = None) -> tuple[dict[str, np.ndarray], Any]:
    """The weights before and after each of the 20 steps, and their average."""
    problem = np.load(shared / "oracles" / "optimizers" / "problem.npz")
    initial = {k.removeprefix("init/"): problem[k] for k in problem.files if k.startswith("init/")}
    named = {n: torch.nn.Parameter(torch.from_numpy(np.array(v))) for n, v in initial.items()}
    made = make(named)
    optimizer, scheduler = made if isinstance(made, tuple) else (made, None)
    ema = EMA(torch.nn.ParameterList(named.values()), decay, init="zero") if decay is not None else None
    path = {n: [p.detach().numpy().copy()] for n, p in named.items()}
    for step in range(20):
        for n, p in named.items():
            p.grad = torch.from_numpy(np.array(problem[f"grad/{n}"][step]))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if ema is not None:
            ema.update()
        for n, p in named.items():
            path[n].append(p.detach().numpy().copy())
    averages = dict(zip(named, ema.averages().values(), strict=True)) if ema is not None else {}
    return {n: np.stack(v) for n, v in path.items()}, averages


def test_every_trajectory_is_followed_here(shared):
    assert set(json.loads((shared / "oracles" / "optimizers" / "index.json").read_text())) == set(CASES)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("case", CASES)
def test_trajectory(shared, case):
    folder = shared / "oracles" / "optimizers"
    decay = json.loads((folder / "index.json").read_text())[case]["arguments"].get("ema_momentum")
    expected = np.load(folder / f"{case}.npz")
    path, averages = walk(shared, CASES[case], decay)
    for name, weights in path.items():
        truth = expected[f"params/{name}"]
        assert np.abs(weights - truth).max() <= 1e-5 * np.abs(truth).max(), name
        if averages:
            truth = expected[f"ema_corrected/{name}"]
            assert np.abs(averages[name].numpy() - truth).max() <= 1e-5 * np.abs(truth).max(), name


@pytest.mark.parametrize("case", ["lazy_adam", "grad_accum_2", "lookahead"])
def test_the_correct_form_goes_another_way(shared, case, monkeypatch):
    """What is that mode's alone: without it the trajectory differs by far more than the tolerance."""
    monkeypatch.setitem(MODE, "compat", None)
    forms = {
        "lazy_adam": lambda n: Adam(n.items(), 0.01, lazy=("Embedding-Token",)),
        "grad_accum_2": lambda n: accumulated(Adam(n.values(), 0.01), 2),
        "lookahead": lambda n: looking_ahead(n),
    }
    expected = np.load(shared / "oracles" / "optimizers" / f"{case}.npz")
    path, _ = walk(shared, forms[case])
    name = "Embedding-Token/embeddings"
    assert np.abs(path[name] - expected[f"params/{name}"]).max() > 1e-3


def test_param_groups_take_the_first_rule_only(shared):
    """Rules ordered narrow first give the multiplied factors of bert4keras."""
    model = torch.nn.ModuleDict({"Dense": torch.nn.Linear(2, 2), "Norm": torch.nn.LayerNorm(2)})
    rules = {r"Dense\.weight": 10 * 0.5, "Dense": 10.0, "Norm": 0.0}
    found = {g["name"]: g["lr"] for g in param_groups(model, 0.01, rules, no_decay=None)}
    assert found == pytest.approx({r"Dense\.weight": 0.05, "Dense": 0.1, "Norm": 0.0})
