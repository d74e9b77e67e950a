"""piecewise_linear: bert4keras' numbers, lines by hand, LambdaLR on several groups, its messages."""

import json

import numpy as np
import pytest
import torch

from danlu.optim import piecewise_linear


@pytest.mark.data
def test_equals_bert4keras(shared):
    folder = shared / "oracles" / "layers"
    schedules = json.loads((folder / "functions.json").read_text())["piecewise_schedules"]
    file = np.load(folder / "functions.npz")
    for i, schedule in enumerate(schedules):
        factor = piecewise_linear({int(k): v for k, v in schedule.items()})
        got = [factor(int(t)) for t in file["piecewise/t"]]
        np.testing.assert_allclose(got, file[f"piecewise/{i}"], rtol=1e-6, atol=1e-7)


def test_by_hand_in_any_order():
    factor = piecewise_linear({8: 0.0, 0: 0.5, 4: 1.0})
    assert [factor(t) for t in range(10)] == [0.5, 0.625, 0.75, 0.875, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_starts_at_zero_unless_told_otherwise():
    assert piecewise_linear({4: 2})(1) == 0.5
    assert piecewise_linear({0: 2})(1) == 2.0


def test_lambda_lr_scales_every_group():
    a, b = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 100.0}])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, piecewise_linear({2: 1, 4: 0}))
    seen = []
    for _ in range(5):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert seen == [[0.0, 0.0], [0.5, 50.0], [1.0, 100.0], [0.5, 50.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({}, "at least one {step: factor}"),
        ({-1: 1.0}, "whole number >= 0, got -1"),
        ({0.5: 1.0}, "whole number >= 0, got 0.5"),
        ({True: 1.0}, "whole number >= 0, got True"),
        ({"10": 1.0}, "whole number >= 0, got '10'"),
        ({10: -1.0}, "factor at step 10 must be finite and >= 0, got -1.0"),
        ({10: float("nan")}, "factor at step 10 must be finite and >= 0, got nan"),
    ],
)
def test_messages(schedule, message):
    with pytest.raises(ValueError, match=message):
        piecewise_linear(schedule)
