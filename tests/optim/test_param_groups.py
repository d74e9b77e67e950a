"""param_groups: who lands where, the reparametrisation it replaces, bert4keras' rates per weight, slips of the pen."""

import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from danlu.optim import LayerDecay, param_groups, piecewise_linear


class Tagger(nn.Module):
    """Names as in a real model: embeddings, three layers, a final norm, a head, a CRF."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict(
            {
                "embeddings": nn.Embedding(5, 4),
                "layer": nn.ModuleList([nn.Linear(4, 4) for _ in range(3)]),
                "final": nn.ModuleDict({"LayerNorm": nn.LayerNorm(4)}),
            }
        )
        self.classifier = nn.Linear(4, 3)
        self.crf = nn.Module()
        self.crf.transitions = nn.Parameter(torch.zeros(3, 3))


def by_name(model, groups):
    """name of the parameter -> its group; also asserts that each parameter is in exactly one."""
    where = {}
    for group in groups:
        for p in group["params"]:
            assert id(p) not in where
            where[id(p)] = group
    return {name: where[id(p)] for name, p in model.named_parameters()}


def test_first_match_wins_and_everything_is_somewhere():
    model = Tagger()
    got = by_name(model, param_groups(model, 0.1, {"crf": 100, r"^classifier": 10, "encoder": 0.5}, weight_decay=0.2))
    assert got["crf.transitions"]["lr"] == pytest.approx(10.0)
    assert got["classifier.bias"]["lr"] == pytest.approx(1.0)
    assert got["encoder.layer.1.weight"]["lr"] == pytest.approx(0.05)
    assert {g["name"] for g in got.values()} >= {"crf, no decay", "^classifier", "^classifier, no decay"}
    narrow = by_name(model, param_groups(model, 1.0, {r"layer\.2\.": 3.0, "encoder": 2.0}))
    assert [narrow[f"encoder.layer.{i}.weight"]["lr"] for i in range(3)] == [2.0, 2.0, 3.0]


def test_decay_spares_biases_norms_vectors_and_transitions():
    model = Tagger()
    model.scale = nn.Parameter(torch.ones(3))
    model.relative_bias = nn.Parameter(torch.ones(3, 3))
    decayed = {n for n, g in by_name(model, param_groups(model, 0.1, weight_decay=0.2)).items() if g["weight_decay"]}
    layers = {f"encoder.layer.{i}.weight" for i in range(3)}
    assert decayed == {"encoder.embeddings.weight", "classifier.weight"} | layers
    everything = by_name(model, param_groups(model, 0.1, weight_decay=0.2, no_decay=None))
    assert {g["weight_decay"] for g in everything.values()} == {0.2}
    vectors = by_name(model, param_groups(model, 0.1, weight_decay=0.2, no_decay=()))
    assert vectors["crf.transitions"]["weight_decay"] == 0.2
    assert vectors["scale"]["weight_decay"] == 0.0


def test_layer_decay_by_hand():
    model = Tagger()
    got = by_name(model, param_groups(model, 1.0, {"encoder": LayerDecay(0.5), "crf": 100}))
    rates = {n: g["lr"] for n, g in got.items() if n.endswith("weight")}
    assert rates == {
        "encoder.embeddings.weight": 0.125,
        "encoder.layer.0.weight": 0.25,
        "encoder.layer.1.weight": 0.5,
        "encoder.layer.2.weight": 1.0,
        "encoder.final.LayerNorm.weight": 1.0,
        "classifier.weight": 1.0,
    }
    assert got["encoder.layer.0.weight"]["name"] == "encoder layer 0"
    assert got["encoder.embeddings.weight"]["name"] == "encoder embeddings"


@pytest.mark.parametrize("name", ["h.3.attn", "blocks.3.mlp", "encoder.layers.3.fc", "layer.3.x"])
def test_layer_numbers_of_the_common_families(name):
    assert re.search(LayerDecay(0.9).pattern, name).group(1) == "3"
    assert re.search(LayerDecay(0.9).pattern, "path.3.x") is None


def test_tied_weight_answers_to_both_names_once():
    model = nn.ModuleDict({"embed": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
    model["head"].weight = model["embed"].weight
    (group,) = param_groups(model, 1.0, {"head": 3.0})
    assert len(group["params"]) == 1
    assert group["lr"] == 3.0


def test_frozen_and_excluded_parameters_are_left_out():
    model = Tagger()
    model.encoder["embeddings"].requires_grad_(False)
    groups = param_groups(model, 1.0, {"embeddings": 0.1}, exclude=[model.crf.transitions])
    held = {id(p) for g in groups for p in g["params"]}
    assert id(model.crf.transitions) not in held
    assert id(model.encoder["embeddings"].weight) not in held
    assert len(held) == len(list(model.parameters())) - 2


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_any_torch_optimizer_takes_them(optimizer):
    model = Tagger()
    made = optimizer(param_groups(model, 0.1, {"crf": 100}))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    made.step()
    assert [g["name"] for g in made.param_groups][-1] == "crf, no decay"


@pytest.mark.parametrize(("kind", "power"), [("adam", 1), ("sgd", 2)])
def test_group_does_what_the_reparametrisation_does(kind, power):
    """theta = lambda theta' at rate eta: lambda eta under Adam with epsilon 0, lambda^2 eta under SGD."""
    scale, eta = 7.0, 0.001
    start = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    hidden = nn.Parameter(start / scale)
    module = nn.Module()
    module.crf = nn.Parameter(start.clone())
    groups = param_groups(module, eta, {"crf": scale**power}, weight_decay=0.0)
    make = partial(torch.optim.Adam, lr=eta, eps=0.0) if kind == "adam" else partial(torch.optim.SGD, lr=eta)
    one, two = make([hidden]), make(groups)
    for _ in range(15):
        for optimizer, theta in ((one, lambda: scale * hidden), (two, lambda: module.crf)):
            optimizer.zero_grad()
            value = theta()
            (value**4 / 4 - value.sin()).sum().backward()
            optimizer.step()
    torch.testing.assert_close(scale * hidden.detach(), module.crf.detach(), rtol=1e-9, atol=1e-11)
    assert (module.crf.detach() - start).abs().min() > 0.01


class Bert4keras(torch.optim.Optimizer):
    """Adam by hand with bert4keras' epsilon, 1e-6 outside the root, and its decoupled decay."""

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                s = self.state[p]
                n = s["n"] = s.get("n", 0) + 1
                s["m"] = 0.9 * s.get("m", 0.0) + 0.1 * p.grad
                s["v"] = 0.999 * s.get("v", 0.0) + 0.001 * p.grad**2
                move = s["m"] / (1 - 0.9**n) / ((s["v"] / (1 - 0.999**n)).sqrt() + 1e-6)
                p.data -= group["lr"] * (move + group["weight_decay"] * p.data)


@pytest.mark.data
@pytest.mark.parametrize("case", ["param_wise_lr", "piecewise_adam", "piecewise_adamw"])
def test_equals_bert4keras(shared, case):
    folder = shared / "oracles" / "optimizers"
    arguments = json.loads((folder / "index.json").read_text())[case]["arguments"]
    problem, expected = np.load(folder / "problem.npz"), np.load(folder / f"{case}.npz")
    names = [k.removeprefix("init/") for k in problem if k.startswith("init/")]
    model = nn.Module()
    for name in names:
        model.register_parameter(name, nn.Parameter(torch.tensor(problem[f"init/{name}"], dtype=torch.float64)))
    rules = arguments.get("paramwise_lr_schedule", {})
    if rules:  # the original multiplies the factors of all that match: 10 * 0.5 for the kernel of Dense
        assert rules == {"Dense": 10, "kernel": 0.5, "Norm": 0}
        rules = {"Dense.*kernel": 5, **rules}
    groups = param_groups(model, arguments["learning_rate"], rules, arguments.get("weight_decay_rate", 0.0), None)
    if spared := arguments.get("exclude_from_weight_decay"):  # the original spares by name only, not by shape
        kept = [n for n in names if not any(part in n for part in spared)]
        assert set(kept) >= {"Scalar"}
        base = {"lr": arguments["learning_rate"]}
        groups = [
            {**base, "params": [model.get_parameter(n) for n in kept], "weight_decay": arguments["weight_decay_rate"]},
            {**base, "params": [model.get_parameter(n) for n in names if n not in kept], "weight_decay": 0.0},
        ]
    optimizer = Bert4keras(groups, {})
    points = {int(k): v for k, v in arguments.get("lr_schedule", {"0": 1}).items()}
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, piecewise_linear(points))
    for step in range(20):
        for name in names:
            p = model.get_parameter(name)
            p.grad = torch.tensor(problem[f"grad/{name}"][step], dtype=torch.float64)
        optimizer.step()
        scheduler.step()
        for name in names:
            got = model.get_parameter(name).detach().numpy()
            np.testing.assert_allclose(got, expected[f"params/{name}"][step + 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rules": {"crv": 100}}, "rule 'crv' matches no parameter; the names are encoder.embeddings.weight, encoder"),
        ({"rules": {"crf": 100, "crf.t": 10}}, r"'crf.t' comes too late: 'crf.transitions' .*narrower pattern first"),
        ({"rules": {"crf": -1}}, "factor of rule 'crf' must be >= 0, got -1; 0 holds"),
        ({"rules": {"classifier": LayerDecay(0.9)}}, "of rule 'classifier' finds no layer number .*classifier.weight"),
        ({"lr": 0.0}, "needs lr > 0 and weight_decay >= 0, got lr=0.0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
    ],
)
def test_messages(arguments, message):
    with pytest.raises(ValueError, match=message):
        param_groups(Tagger(), **{"lr": 0.1, **arguments})


def test_messages_of_layer_decay_and_of_nothing_to_train():
    with pytest.raises(ValueError, match=r"rate in \(0, 1\], got 1.2"):
        LayerDecay(1.2)
    with pytest.raises(ValueError, match="needs a group around the layer's number"):
        LayerDecay(0.9, pattern="layer")
    with pytest.raises(ValueError, match="no trainable parameter; unfreeze"):
        param_groups(Tagger().requires_grad_(False), 0.1)


def test_long_lists_of_names_are_cut():
    model = nn.ModuleList([nn.Linear(1, 1) for _ in range(15)])
    with pytest.raises(ValueError, match=r"9\.bias and 10 more"):
        param_groups(model, 0.1, {"crf": 1.0})
