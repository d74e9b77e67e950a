"""EMA: against numbers by hand, bert4keras, AveragedModel; swapping is exact and leaves training alone."""

import json
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from danlu.optim import EMA, decay_from_half_life, half_life
from danlu.recipes.keras_cooler import SCALES, run


def small(dtype=torch.float32):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def walk(model, seed):
    """Move every parameter somewhere else."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))


def bits(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(("init", "expected"), [("copy", 1.39), ("zero", 0.661 / 0.271)])
def test_weights_1_2_4(init, expected):
    w = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    ema = EMA([w], decay=0.9, init=init)
    for value in (1.0, 2.0, 4.0) if init == "zero" else (2.0, 4.0):
        w.data.fill_(value)
        ema.update()
    assert ema.averages()["0"].item() == pytest.approx(expected, rel=1e-13)
    assert round(expected, 6) in (1.39, 2.439114)


def test_equals_the_recursion_in_numpy():
    model = small(torch.float64)
    ema = EMA(model, decay=0.8)
    theta = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    for step in range(7):
        walk(model, step)
        ema.update()
        theta = {n: 0.8 * theta[n] + 0.2 * p.detach().numpy() for n, p in model.named_parameters()}
    for name, average in ema.averages().items():
        np.testing.assert_allclose(average.numpy(), theta[name], rtol=1e-13, atol=1e-14)


def test_warm_up_by_hand():
    w = nn.Parameter(torch.tensor([0.0], dtype=torch.float64))
    ema = EMA([w], decay=0.5, warmup=True)
    expected = 0.0
    for n in range(1, 15):
        w.data.fill_(float(n * n))
        ema.update()
        a = min(0.5, (1 + n) / (10 + n))
        expected = a * expected + (1 - a) * n * n
    assert ema.averages()["0"].item() == pytest.approx(expected, rel=1e-12)


def test_warm_up_and_zero_start_weigh_to_one():
    w = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    ema = EMA([w], decay=0.99, init="zero", warmup=True)
    for _ in range(5):
        ema.update()
        assert ema.averages()["0"].item() == pytest.approx(3.0, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constant_weights_stay_bit_for_bit(dtype):
    model = small(dtype)
    ema = EMA(model, decay=0.999)
    for _ in range(50):
        ema.update()
    for name, p in model.named_parameters():
        assert torch.equal(ema.averages()[name], p.detach().float())


def test_equals_averaged_model():
    model = small()
    other = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    ema = EMA(model, decay=0.9)
    other.update_parameters(model)  # its first update only copies: now both start at the same weights
    for step in range(5):
        walk(model, step)
        other.update_parameters(model)
        ema.update()
    for name, p in other.module.named_parameters():
        torch.testing.assert_close(ema.averages()[name], p.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.data
@pytest.mark.parametrize("case", ["ema_adam", "stack"])
def test_equals_bert4keras(shared, case):
    folder = shared / "oracles" / "optimizers"
    decay = json.loads((folder / "index.json").read_text())[case]["arguments"]["ema_momentum"]
    file = np.load(folder / f"{case}.npz")
    names = [k.removeprefix("params/") for k in file if k.startswith("params/")]
    weights = [nn.Parameter(torch.tensor(file[f"params/{n}"][0])) for n in names]
    ema = EMA(weights, decay=decay, init="zero")
    for step in range(1, 21):
        for w, n in zip(weights, names, strict=True):
            w.data.copy_(torch.tensor(file[f"params/{n}"][step]))
        ema.update()
    raw = ema.state_dict()
    for i, n in enumerate(names):
        np.testing.assert_allclose(ema.averages()[str(i)].numpy(), file[f"ema_corrected/{n}"], rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(raw[f"average.{i}"].numpy(), file[f"ema_raw/{n}"], rtol=2e-5, atol=2e-6)


def test_bfloat16_average_does_not_stand_still():
    """From 1 towards 1.5 with a = 0.999: one step is 0.0005, a tenth of bfloat16's resolution there."""
    w = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    ema = EMA([w], decay=0.999)
    w.data.fill_(1.5)
    for _ in range(700):
        ema.update()
    assert ema.averages()["0"].dtype == torch.float32
    assert ema.averages()["0"][0].item() == pytest.approx(1.5 - 0.5 * 0.999**700, abs=1e-4)
    with ema.swap():
        assert w.dtype == torch.bfloat16
        assert w[0].item() == pytest.approx(1.25, abs=0.01)


def test_mixed_precisions_in_one_model():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float16))
    ema = EMA([a, b], decay=0.75)
    a.data.fill_(5.0)
    b.data.fill_(5.0)
    ema.update()
    assert [v[0].item() for v in ema.averages().values()] == [2.0, 2.0]


def test_swap_shows_the_average_and_gives_the_bits_back():
    model = small()
    ema = EMA(model, decay=0.7)
    walk(model, 1)
    ema.update()
    before, addresses = bits(model), [p.data_ptr() for p in model.parameters()]
    averages = ema.averages()
    with ema.swap():
        for name, p in model.named_parameters():
            assert torch.equal(p.detach(), averages[name])
        assert [p.data_ptr() for p in model.parameters()] == addresses
        assert torch.is_grad_enabled()
    assert all(torch.equal(x, p) for x, p in zip(before, model.parameters(), strict=True))
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert all(torch.equal(averages[n], v) for n, v in ema.averages().items())


@pytest.mark.parametrize("grad", [True, False])
def test_swap_keeps_the_callers_grad_mode(grad):
    ema = EMA(small())
    with torch.set_grad_enabled(grad):
        with ema.swap():
            assert torch.is_grad_enabled() is grad
        assert torch.is_grad_enabled() is grad


def test_swap_survives_exceptions():
    model = small()
    ema = EMA(model)
    walk(model, 1)
    before = bits(model)
    with pytest.raises(KeyError), ema.swap():
        raise KeyError
    assert all(torch.equal(x, p) for x, p in zip(before, model.parameters(), strict=True))
    ema.update()  # and the object is usable again


def test_swap_in_swap_and_update_in_swap_are_refused():
    model = small()
    ema = EMA(model)
    walk(model, 2)
    before = bits(model)
    with ema.swap():
        with pytest.raises(RuntimeError, match="already holds the average"), ema.swap():
            pass
        with pytest.raises(RuntimeError, match="average the average"):
            ema.update()
    assert all(torch.equal(x, p) for x, p in zip(before, model.parameters(), strict=True))


def train(look: bool):
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    ema = EMA(model, decay=0.9, optimizer=optimizer)
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        loss = model(torch.randn(8, 3, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if look:
            model.eval()
            with ema.swap(), torch.no_grad():
                model(torch.ones(2, 3))
            model.train()
    return model, ema, optimizer


def test_looking_through_the_average_does_not_change_training():
    (one, ema, state), (two, other, state2) = train(False), train(True)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert all(torch.equal(ema.averages()[n], v) for n, v in other.averages().items())
    for a, b in zip(state.state.values(), state2.state.values(), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_follows_the_optimizer_and_stops_on_request():
    _, ema, optimizer = train(False)
    assert ema.num_updates == 12
    ema.remove()
    optimizer.step()
    assert ema.num_updates == 12


def test_frozen_weights_are_left_out_and_tied_ones_counted_once():
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False), "c": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    model["c"].requires_grad_(False)
    assert list(EMA(model).averages()) == ["a.weight"]
    w = nn.Parameter(torch.ones(2))
    assert list(EMA(iter([w, w])).averages()) == ["0"]


def test_buffers_are_the_models_own_unless_asked_for():
    for buffers in (False, True):
        model = small()
        ema = EMA(model, decay=0.5, buffers=buffers)
        model(torch.full((4, 3), 2.0))
        ema.update()
        mean, count = model[1].running_mean.clone(), int(model[1].num_batches_tracked)
        with ema.swap():
            expected = 0.5 * mean if buffers else mean  # they started at zero
            torch.testing.assert_close(model[1].running_mean, expected)
            assert int(model[1].num_batches_tracked) == count
        assert torch.equal(model[1].running_mean, mean)


@pytest.mark.parametrize("init", ["copy", "zero"])
def test_state_goes_through_safetensors(init, tmp_path):
    model = small()
    ema = EMA(model, decay=0.9, init=init, warmup=True)
    walk(model, 1)
    ema.update()
    safetensors.torch.save_file(ema.state_dict(), tmp_path / "ema.safetensors")
    twin = small()
    other = EMA(twin, decay=0.9, init=init, warmup=True)
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "ema.safetensors"))
    for m, e in ((model, ema), (twin, other)):
        walk(m, 2)
        e.update()
    assert other.num_updates == ema.num_updates == 2
    assert all(torch.equal(other.averages()[n], v) for n, v in ema.averages().items())


def test_state_inside_swap_is_the_average():
    model = small()
    ema = EMA(model, decay=0.9)
    walk(model, 1)
    ema.update()
    outside = ema.state_dict()
    with ema.swap():
        inside = ema.state_dict()
    assert all(torch.equal(inside[k], v) for k, v in outside.items())


def test_state_of_another_model_is_refused_and_changes_nothing():
    ema = EMA(small())
    before = ema.averages()
    state = ema.state_dict()
    with pytest.raises(ValueError, match=r"1 missing \['average.0.bias'\], 1 left over \['x'\].*same model"):
        ema.load_state_dict({**{k: v for k, v in state.items() if k != "average.0.bias"}, "x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"'average.0.bias' has shape \(5,\) in the state, \(4,\) in this EMA"):
        ema.load_state_dict({**state, "average.0.bias": torch.zeros(5), "average.0.weight": torch.zeros(4, 3)})
    assert all(torch.equal(before[n], v) for n, v in ema.averages().items())


def test_follows_a_change_of_precision():
    model = small()
    ema = EMA(model, decay=0.5)
    model.to(torch.bfloat16)
    ema.update()
    with ema.swap():
        assert model[0].weight.dtype == torch.bfloat16
    assert ema.averages()["0.weight"].dtype == torch.float32


def test_the_average_is_steadier_and_better_on_digits():
    """The reason to average: over three runs at least three times steadier and a point better."""
    runs = [run(SCALES["full"], seed).measured for seed in range(3)]
    assert sum(r["spread"] for r in runs) > 3 * sum(r["spread of the average"] for r in runs)
    assert sum(r["gain"] for r in runs) / 3 > 0.01


def test_half_life_is_exact():
    for decay in (0.5, 0.9, 0.999):
        n = half_life(decay)
        assert decay**n == pytest.approx(0.5, rel=1e-12)
        assert decay_from_half_life(n) == pytest.approx(decay, rel=1e-12)
    assert half_life(0.5) == pytest.approx(math.log(2) / -math.log(0.5))


def test_messages():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1.5; 0.999 forgets"):
        EMA(small(), decay=1.5)
    with pytest.raises(ValueError, match=r"'copy' .* or 'zero' .*, got 'zeros'"):
        EMA(small(), init="zeros")
    with pytest.raises(ValueError, match=r"no trainable weight.*unfreeze"):
        EMA(nn.Tanh())
    with pytest.raises(RuntimeError, match="no average before its first update"), EMA(small(), init="zero").swap():
        pass
    with pytest.raises(ValueError, match=r"between 0 and 1 .*got 1\.0"):
        half_life(1.0)
    with pytest.raises(ValueError, match="half life must be > 0 updates, got 0"):
        decay_from_half_life(0)
