"""What GANs remember: averages and reservoirs by hand, eigenvalues, a game that turns and settles, states, messages."""

import math

import pytest
import torch
from torch import nn

from danlu.generative import SampleHistory, WeightHistory, history_penalty


def test_penalty_and_its_gradient():
    w = torch.tensor([3.0, 1.0], requires_grad=True)
    m = torch.tensor([1.0, 2.0], requires_grad=True)
    value = history_penalty([w, w[:1]], [m, m[1:]], 0.5)
    assert value.item() == pytest.approx(0.5 * (4 + 1 + 1))
    value.backward()
    assert w.grad.tolist() == [0.5 * (2 * 2 + 2 * 1), 0.5 * 2 * -1]
    assert m.grad is None  # the past is a constant


@pytest.mark.parametrize("decay", [None, 0.75])
def test_averages_by_hand(decay):
    layer = nn.Linear(1, 1, bias=False)
    path, mean = [2.0, 5.0, -1.0, 3.0], 2.0
    layer.weight.data.fill_(path[0])
    history = WeightHistory(layer, 2.0, decay)
    assert history.penalty().item() == 0
    for n, value in enumerate(path[1:], 2):
        layer.weight.data.fill_(value)
        history.update()
        mean = sum(path[:n]) / n if decay is None else decay * mean + (1 - decay) * value
        assert history.averages()[0].item() == pytest.approx(mean)
    assert history().item() == pytest.approx(2 * (3.0 - mean) ** 2)
    assert list(history.parameters()) == []


def test_half_precision_averages_do_not_stand_still():
    layer = nn.Linear(1, 1, bias=False).bfloat16()
    layer.weight.data.fill_(1.0)
    history = WeightHistory(layer, decay=0.999)
    layer.weight.data.fill_(2.0)
    for _ in range(100):
        history.update()
    assert history.averages()[0].dtype == torch.float32
    assert history.averages()[0].item() == pytest.approx(2 - 0.999**100, rel=1e-4)


@pytest.mark.parametrize(("weight", "rate", "turn"), [(0.1, 0.05, 1.0), (2.0, 0.3, 0.5), (0.01, 1.0, 3.0)])
def test_eigenvalues_of_the_turning_game(weight, rate, turn):
    w = torch.zeros(4, 4, dtype=torch.float64)  # psi, theta and their averages
    w[0, 1], w[1, 0] = -turn, turn
    for i in (0, 1):
        w[i, i], w[i, i + 2] = -2 * weight, 2 * weight
        w[i + 2, i], w[i + 2, i + 2] = rate, -rate
    found = torch.linalg.eigvals(w)
    assert (found.real < 0).all()
    for x in found.tolist():  # eq. (4), for either sign of the turn
        sides = [abs((x + 2 * weight) * (x + rate) - 2 * weight * rate - s * turn * (x + rate)) for s in (1j, -1j)]
        assert min(sides) < 1e-9


def turning(weight, steps=400, lr=0.1):  # psi theta: one climbs, the other descends
    players = nn.ParameterList([nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))])
    history = WeightHistory(players, weight, decay=0.9)
    for _ in range(steps):
        psi, theta = players
        (a,) = torch.autograd.grad(psi * theta.detach() + history.penalty(), psi)
        (b,) = torch.autograd.grad(-psi.detach() * theta + history.penalty(), theta)
        with torch.no_grad():
            psi -= lr * a
            theta -= lr * b
        history.update()
    return math.hypot(players[0].item(), players[1].item())


def test_history_ends_the_turning():
    assert turning(0.0) > math.sqrt(2)  # outwards, as simultaneous steps do
    assert turning(0.5) < 0.01


def test_reservoir_is_fair():
    seed, capacity, total, runs = torch.Generator().manual_seed(0), 5, 23, 500
    stored = torch.zeros(total)
    for _ in range(runs):
        history = SampleHistory(capacity, ())
        for part in torch.arange(float(total)).split(4):
            history.add(part, seed)
        assert len(history.data.unique()) == capacity  # no example twice
        stored[history.data.long()] += 1
    share = capacity / total
    error = math.sqrt(share * (1 - share) / runs)
    assert (stored / runs - share).abs().max() < 4.2 * error  # 23 comparisons


def test_first_examples_fill_it_in_order():
    history = SampleHistory(4, (2,))
    x = torch.arange(6.0).reshape(3, 2)
    history.add(x)
    assert len(history) == 3
    assert torch.equal(history.data[:3], x)
    history.add(x[:0])
    assert len(history) == 3


def test_mix_takes_a_share_and_remembers_the_new():
    history, seed = SampleHistory(100, (1,), 0.5), torch.Generator().manual_seed(0)
    first = torch.zeros(6, 1, requires_grad=True)
    assert torch.equal(history.mix(first, seed), first)  # nothing to remember yet
    mixed = history.mix(torch.ones(6, 1), seed)
    assert mixed[:3].eq(1).all()
    assert mixed[3:].eq(0).all()
    assert not mixed.requires_grad
    assert len(history) == 12
    assert history.data[:12].sum().item() == 6
    assert SampleHistory(3, (1,), 0.0).mix(torch.ones(2, 1)).tolist() == [[1.0], [1.0]]


def test_states_resume_and_stay_out_of_the_global_stream():
    history = SampleHistory(3, (1,))
    before = torch.get_rng_state()
    history.add(torch.arange(9.0)[:, None], torch.Generator().manual_seed(1))
    assert torch.equal(before, torch.get_rng_state())
    other = SampleHistory(3, (1,))
    other.load_state_dict(history.state_dict())
    a, b = (h.mix(torch.ones(4, 1), torch.Generator().manual_seed(2)) for h in (history, other))
    assert torch.equal(a, b)
    layer = nn.Linear(2, 1)
    weights, twin = WeightHistory(layer), WeightHistory(layer)
    layer.weight.data += 1
    weights.update()
    twin.load_state_dict(weights.state_dict())
    layer.weight.data += 1
    weights.update(), twin.update()
    assert torch.equal(weights.penalty(), twin.penalty())
    assert int(twin.count) == 3


def test_messages():
    layer = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=r"got weights \[\(2,\)\] and averages \[\(1,\)\]"):
        history_penalty([torch.zeros(2)], [torch.zeros(1)])
    with pytest.raises(ValueError, match="must be >= 0, got -1"):
        history_penalty([torch.zeros(2)], [torch.zeros(2)], -1)
    with pytest.raises(ValueError, match="decay must be in"):
        WeightHistory(layer, decay=1.0)
    with pytest.raises(ValueError, match="trained, got none"):
        WeightHistory(nn.ReLU())
    with pytest.raises(ValueError, match="capacity >= 1 and share in"):
        SampleHistory(0, (1,))
    with pytest.raises(ValueError, match="is empty; add"):
        SampleHistory(2, (1,)).draw(1)
    with pytest.raises(ValueError, match=r"shape \(2,\), got a batch \(3, 1\)"):
        SampleHistory(2, (2,)).add(torch.zeros(3, 1))
