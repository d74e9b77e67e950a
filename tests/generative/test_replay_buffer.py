"""Replay buffer: share of fresh starts, which entry makes room, 8 bits, ages, exact resume."""

import math

import pytest
import torch

from danlu.generative.langevin import langevin
from danlu.generative.replay_buffer import ReplayBuffer


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_share_of_fresh_starts_is_binomial():
    buffer = ReplayBuffer(10, (1,), reinit=0.05, dtype=torch.float32)
    buffer.add(torch.full((10, 1), 0.5))
    n = 40_000
    x, age = buffer.draw(n, seeded())
    fresh = x[:, 0] != 0.5
    assert fresh.float().mean().item() == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / n))
    assert torch.equal(fresh, age == 0)
    assert (age[~fresh] == 1).all()
    assert x[fresh].mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 2000))
    assert x[fresh].min() < 0.01 and x[fresh].max() > 0.99


@pytest.mark.parametrize(("reinit", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_never_and_always(reinit, share):
    buffer = ReplayBuffer(4, (2,), reinit=reinit)
    buffer.add(torch.zeros(4, 2))
    assert (buffer.draw(500, seeded())[1] == 0).float().mean() == share
    assert (buffer.draw(500, seeded(), reinit=1 - reinit)[1] == 0).float().mean() == 1 - share


def test_the_oldest_entry_makes_room():
    buffer = ReplayBuffer(4, (1,), bounds=(0, 100), reinit=0.0, dtype=torch.float32)
    buffer.add(torch.tensor([[1.0], [2.0], [3.0]]))
    assert len(buffer) == 3
    assert set(buffer.draw(200, seeded())[0][:, 0].tolist()) == {1.0, 2.0, 3.0}
    buffer.add(torch.tensor([[4.0], [5.0]]))
    assert sorted(buffer.data[:, 0].tolist()) == [2.0, 3.0, 4.0, 5.0]
    buffer.add(torch.arange(6.0, 13.0)[:, None])  # more than it holds: the last ones
    assert sorted(buffer.data[:, 0].tolist()) == [9.0, 10.0, 11.0, 12.0]
    assert len(buffer) == 4


def test_everything_stored_is_drawn_equally_often():
    buffer = ReplayBuffer(8, (1,), bounds=(0, 10), reinit=0.0, dtype=torch.float32)
    buffer.add(torch.arange(4.0)[:, None])
    counts = buffer.draw(20_000, seeded())[0][:, 0].long().bincount(minlength=4).float()
    assert ((counts / 20_000 - 0.25).abs() < 4 * math.sqrt(0.25 * 0.75 / 20_000)).all()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 3.0)])
def test_eight_bits_lose_at_most_one_level(bounds):
    width = bounds[1] - bounds[0]
    x = bounds[0] + width * torch.rand(50, 2, 3, generator=seeded())
    x[0, 0, 0], x[1, 0, 0] = bounds
    buffer = ReplayBuffer(50, (2, 3), bounds=bounds, reinit=0.0)
    buffer.add(x)
    assert buffer.data.dtype == torch.uint8
    error = []
    for seed in range(40):
        drawn, _ = buffer.draw(500, seeded(seed))
        nearest = (drawn[:, None] - x[None]).flatten(2).abs().amax(2).min(1)
        assert (nearest.values <= width / 256 + 1e-6).all()
        error.append((drawn - x[nearest.indices]).mean().item() / width)
    assert abs(sum(error) / len(error)) < 3e-4  # half a level would be 20e-4: the noise fills the level evenly


def test_ages_count_updates():
    buffer = ReplayBuffer(6, (1,), reinit=0.0, dtype=torch.float32)
    assert math.isnan(buffer.mean_age)
    x, age = buffer.draw(6, seeded())  # empty: all fresh
    assert (age == 0).all()
    for expected in (1, 2, 3):
        buffer.add(x, age)
        assert buffer.mean_age == expected
        x, age = buffer.draw(6, seeded(expected))


def test_a_graph_is_cut_off_and_inputs_stay():
    buffer = ReplayBuffer(3, (2,), dtype=torch.float32)
    x = torch.rand(3, 2, generator=seeded(), requires_grad=True)
    buffer.add(x * 0.5)
    assert not buffer.data.requires_grad
    assert list(buffer.parameters()) == []


def test_resumed_chains_are_identical(tmp_path):
    def run(buffer: ReplayBuffer, generator: torch.Generator, steps: int) -> torch.Tensor:
        for _ in range(steps):
            x, age = buffer.draw(5, generator)
            x = langevin(lambda v: v.square().sum(1), x, 0.1, 2, bounds=(0, 1), generator=generator)
            buffer.add(x, age)
        return buffer.data.clone()

    whole = ReplayBuffer(8, (2,))
    expected = run(whole, seeded(5), 6)
    first, g = ReplayBuffer(8, (2,)), seeded(5)
    run(first, g, 3)
    second, h = ReplayBuffer(8, (2,)), torch.Generator()
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    h.set_state(g.get_state())
    assert torch.equal(run(second, h, 3), expected)
    assert torch.equal(second.age, whole.age)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReplayBuffer(0, (1,)), r"capacity >= 1 and reinit in \[0, 1\], got 0 and 0.05"),
        (lambda: ReplayBuffer(1, (1,), reinit=1.5), "got 1 and 1.5"),
        (lambda: ReplayBuffer(1, (1,), dtype=torch.long), "uint8 or a float dtype, got torch.int64"),
        (lambda: ReplayBuffer(1, (1,), bounds=(1.0, 1.0)), "low < high"),
        (lambda: ReplayBuffer(1, (2,)).add(torch.zeros(2)), r"holds entries \(2,\), got x \(2,\)"),
        (
            lambda: ReplayBuffer(1, (1,)).add(torch.full((1, 1), 1.5)),
            r"inside \(0.0, 1.0\), got values from 1.5 to",
        ),
        (lambda: ReplayBuffer(1, (1,)).add(torch.full((1, 1), math.nan)), "got values from nan"),
        (lambda: ReplayBuffer(1, (1,)).add(torch.zeros(2, 1), torch.zeros(3)), r"each of 2 chains, got \(3,\)"),
    ],
)
def test_messages(make, message):
    with pytest.raises(ValueError, match=message):
        make()
