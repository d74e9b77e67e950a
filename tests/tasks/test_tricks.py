"""Tricks: what they set, what they refuse, and that their cards say what the command line shows."""

import inspect

import pytest

from danlu.data.errors import InputError
from danlu.tasks import task_names, tricks
from danlu.tasks.tricks import Plan, parse, parse_all


def test_a_plan_collects_the_tricks():
    _, plan = parse_all(["fgm:0.25", "ema", "head:memm", "crf_lr:30"], "tag")
    assert plan == Plan(attack="fgm", epsilon=0.25, ema=0.999, head="memm", lr_rules=((r"^head\.", 30.0),))


def test_without_tricks_the_plan_is_the_default():
    assert parse_all([], "tag")[1] == Plan()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["fmg"], "unknown trick 'fmg'; did you mean fgm"),
        (["fgm:-0.5"], "epsilon must be > 0 and finite, got -0.5; to switch the trick off leave it out"),
        (["fgm:0"], "epsilon must be > 0"),
        (["fgm:nan"], "finite number"),
        (["fgm:x"], "takes a number .epsilon., got 'x'; write for example --with fgm:0.5"),
        (["ema:1.5"], "decay between 0 and 1, got 1.5"),
        (["head:crff"], "head takes softmax, memm, bimemm, crf, global_pointer; got 'crff'; did you mean crf"),
        (["constraints:1"], "takes no value"),
        (["soft_f1"], "fits classify and match, not tag"),
        (["layer_decay:1.2"], "layer_decay takes a factor in .0, 1., got 1.2"),
        (["fgm", "pgd"], "tricks fgm and pgd both set the attack"),
        (["soft_f1:1.5"], "must be in .0, 1., got 1.5"),
    ],
)
def test_refusals(texts, message):
    with pytest.raises(InputError, match=message):
        parse_all(texts, "classify" if "1.5" in texts[0] and texts[0].startswith("soft") else "tag")


@pytest.mark.parametrize("name", tricks.__all__)
def test_every_trick_says_slot_cost_tasks_and_source(name):
    card = tricks.describe(getattr(tricks, name))
    assert set(card) == {"claim", "slot", "cost", "tasks", "source"}
    assert card["tasks"] and set(card["tasks"].split()) <= set(task_names())


@pytest.mark.parametrize("name", tricks.__all__)
def test_every_trick_works_with_its_default(name):
    assert parse(name).apply(Plan()) != Plan() or name == "head"
    assert len(inspect.signature(getattr(tricks, name)).parameters) <= 2
