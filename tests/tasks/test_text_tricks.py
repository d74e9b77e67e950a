"""Tricks of classify and match: the loss they train on, by hand; they learn; a run cut in two is the same run."""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from danlu.data import LabelledPair
from danlu.data.errors import InputError
from danlu.tasks.backward import Backward, LogitsOf
from danlu.tasks.device import accelerator
from danlu.tasks.folder import read_tensors
from danlu.tasks.objective import Objective, classification_loss
from danlu.tasks.optimizers import build_optimizers
from danlu.tasks.settings import Settings
from danlu.tasks.training import Part, train_folder, train_model
from danlu.tasks.tricks import Plan, parse_all

NEW = ("gp", "vat", "rdrop", "mixup", "adafactor", "egdd")


def parts_of(spec):
    from danlu.data import read_labelled

    return {name: Part(name, path, read_labelled(path).examples)
            for name, path in (("train", spec.train), ("dev", spec.dev))}  # fmt: skip


@pytest.fixture
def classifier(request, classify_spec, tiny_encoder):
    """(model in training mode without dropout, a batch of six texts)."""
    from danlu.tasks import get_task

    kind = getattr(request, "param", "dgcnn:2x16")
    known = {"epochs": 1.0, "batch_size": 8, "dropout": 0.0, "max_len": 16}
    if kind != "encoder":
        known |= {"bigram_dim": 8, "bigram_dropout": 0.0, "gate_dropout": 0.0}
    spec = replace(classify_spec, model=str(tiny_encoder) if kind == "encoder" else kind, set=known)
    parts = parts_of(spec)
    model = train_model(spec, parts).model.train()
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "hidden_dropout"):
            object.__setattr__(module.config, "hidden_dropout", 0.0)
            object.__setattr__(module.config, "attention_dropout", 0.0)
    data = get_task("classify").training_set(model, parts["train"].examples)
    return model, data.collate(range(6))


both = pytest.mark.parametrize("classifier", ["dgcnn:2x16", "encoder"], indirect=True)


def backward_of(trick, model):
    plan = parse_all([trick], "classify")[1]
    return Backward(plan, model, model.attack_weights(), accelerator("cpu", "fp32", 1))


def mean_loss(model, batch):
    return lambda: model(batch) / 6


@both
def test_gp_adds_half_the_squared_gradient_of_every_occurrence(classifier):
    model, batch = classifier
    table = next(m for m in model.modules() if getattr(m, "weight", None) is model.attack_weights()[0])
    seen = []
    handle = table.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    loss = mean_loss(model, batch)()
    handle.remove()
    (gradient,) = torch.autograd.grad(loss, seen)
    got = backward_of("gp:0.5", model)(mean_loss(model, batch), batch, 0)
    torch.testing.assert_close(got.detach(), loss.detach() + 0.25 * gradient.square().sum(), rtol=1e-5, atol=1e-6)
    assert all(p.grad is None or p.grad.to_dense().isfinite().all() for p in model.parameters())


@both
def test_vat_adds_how_far_predictions_move_with_the_table(classifier):
    model, batch = classifier
    table = model.attack_weights()[0]
    plain = mean_loss(model, batch)().item()
    got = backward_of("vat:0.3", model)(mean_loss(model, batch), batch, 1).item()
    assert got > plain
    # no move of this length, among many, moves predictions much further than the one found
    reader = LogitsOf(model)
    name = next(n for n, p in reader.named_parameters() if p is table)
    with torch.no_grad():
        base = model.logits(batch).log_softmax(-1)
        noise = torch.Generator().manual_seed(3)
        moved = []
        for _ in range(30):
            u = torch.randn(table.shape, generator=noise)
            other = functional_call(reader, {name: table + 0.3 * u / u.norm()}, (batch,)).log_softmax(-1)
            moved.append((base.exp() * (base - other)).sum(-1).mean().item())
    assert got - plain > 0.9 * max(moved)


@both
def test_rdrop_without_dropout_is_the_plain_loss(classifier):
    model, batch = classifier
    got = classification_loss(model, batch, Objective("rdrop", 4.0))
    torch.testing.assert_close(got, model(batch), rtol=1e-5, atol=1e-5)


def test_rdrop_asks_two_draws_of_dropout_to_agree(classifier):
    model, batch = classifier
    model.dropout.p = 0.5
    torch.manual_seed(0)
    a, b = model.logits({k: torch.cat([v, v]) for k, v in batch.items()}).chunk(2)
    torch.manual_seed(0)
    got = classification_loss(model, batch, Objective("rdrop", 2.0))
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    divergence = ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2  # half of KL both ways
    label = torch.arange(6), batch["label"]
    expected = (-(p[label] + q[label]) / 2 + divergence).sum()  # alpha / 2 of it
    torch.testing.assert_close(got, expected)


@both
def test_mixup_mixes_what_stands_under_the_last_layer(classifier):
    model, batch = classifier
    vectors = []
    handle = model.dropout.register_forward_hook(lambda _module, _inputs, out: vectors.append(out.detach()))
    model.logits(batch)
    handle.remove()
    from danlu.train import draw_mix

    mix = draw_mix(6, 0.4, generator=torch.Generator().manual_seed(9))
    weight, label = mix.weight[:, None], batch["label"]
    mixed = weight * vectors[0] + (1 - weight) * vectors[0][mix.partner]
    log_p = model.output(mixed).float().log_softmax(-1)
    rows = torch.arange(6)
    expected = -(mix.weight * log_p[rows, label] + (1 - mix.weight) * log_p[rows, label[mix.partner]]).sum()
    got = classification_loss(model, batch, Objective("mixup", 0.4, seed=9))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_optimizers_take_their_own_rates():
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(4, 4), "output": torch.nn.Linear(4, 2)})
    settings = Settings(lr=1e-3)
    (ada,) = build_optimizers(model, settings, Plan(optimizer=("adafactor", 0.02), lr_rules=((r"^output\.", 10.0),)))
    rates = {(g["name"], g["scale_parameter"]): g["lr"] for g in ada.param_groups}
    expected = {("base", True): 0.02, ("base, no decay", False): 1e-3,
                (r"^output\.", True): 0.2, (r"^output\., no decay", False): 1e-2}  # fmt: skip
    assert rates == pytest.approx(expected)
    (egdd,) = build_optimizers(model, settings, Plan(optimizer=("egdd", 0.05)))
    assert type(egdd).__name__ == "EGDD" and {g["lr"] for g in egdd.param_groups} == {0.05}


@pytest.mark.parametrize("trick", NEW)
def test_they_learn_and_a_resumed_run_is_the_same(classify_spec, tmp_path, trick):
    spec = replace(classify_spec, tricks=(trick,), set={**classify_spec.set, "epochs": 4.0, "save_every": 7})
    whole = train_folder(spec, tmp_path / "whole")
    assert whole["metrics"]["test"]["accuracy"] > 0.8

    def stop(event):
        if event.get("event") == "step" and event["step"] == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_folder(spec, tmp_path / "parts", on_event=stop)
    train_folder(spec, tmp_path / "parts", resume=True)
    first, second = (read_tensors(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("trick", ["rdrop", "mixup", "vat", "soft_f1"])
def test_scores_are_no_classes(classify_spec, trick):
    rows = [LabelledPair("我们", "北京", "", float(i), i) for i in range(4)]
    spec = replace(classify_spec, task="match", tricks=(trick,), set={"epochs": 1.0})
    with pytest.raises(InputError, match=f"{trick} is for classes; these pairs have scores"):
        train_model(spec, {"train": Part("train", "x", rows, "score")})


def test_the_whole_list_of_an_ablation_is_understood():
    names = ["fgm", "pgd", "noise", "gp", "vat", "mixup", "rdrop", "ema", "adafactor", "egdd", "soft_f1"]
    for name in names:
        trick = parse_all([name], "classify")[0][0]
        assert trick.cost.endswith("x time")
    with pytest.raises(InputError, match="tricks gp and vat both set the attack"):
        parse_all(["gp", "vat"], "classify")
    with pytest.raises(InputError, match="both set the optimizer"):
        parse_all(["adafactor", "egdd"], "classify")
