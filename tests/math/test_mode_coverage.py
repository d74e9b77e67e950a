"""Mode coverage: counted by hand, the KL's own floor by simulation, samples that are no numbers, messages."""

import math

import pytest
import torch

from danlu.math import mode_coverage

MODES = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])


def test_counts_by_hand():
    x = torch.tensor([[0.1, 0.0], [0.0, 0.5], [0.0, 0.51], [2.0, 0.2], [1.0, 1.0], [math.nan, 0.0], [math.inf, 0.0]])
    found = mode_coverage(x, MODES, radius=0.5)
    assert found.counts.tolist() == [2, 1, 0]  # on the rim is in
    assert (found.hit, found.good) == (2, 3 / 7)
    want = 2 / 3 * math.log(2 / 3 * 3) + 1 / 3 * math.log(1 / 3 * 3)
    assert found.kl == pytest.approx(want)
    assert found.floor == pytest.approx(2 / 6)
    assert mode_coverage(x, MODES, 0.5, least=2).hit == 1
    assert mode_coverage(x, MODES, math.inf).counts.sum().item() == 5


def test_weights_of_the_modes():
    x = MODES[[0, 0, 1, 2]]
    assert mode_coverage(x, MODES, 0.1, torch.tensor([2.0, 1.0, 1.0])).kl == pytest.approx(0, abs=1e-12)
    got = mode_coverage(x, MODES, 0.1, torch.tensor([1.0, 2.0, 1.0])).kl
    assert got == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(0.5))


def test_the_floor_is_what_a_perfect_sampler_gets():
    seed = torch.Generator().manual_seed(0)
    kls = [mode_coverage(MODES[torch.randint(3, (200,), generator=seed)], MODES, 0.1).kl for _ in range(300)]
    mean = sum(kls) / 300
    error = torch.tensor(kls).std().item() / 300**0.5
    assert abs(mean - 2 / 400) < 4 * error + 1e-4  # the next term of the expansion is of order n^-2


def test_nothing_good_and_many_at_once():
    nothing = mode_coverage(torch.full((4, 2), 50.0), MODES, 1.0)
    assert (nothing.hit, nothing.good, nothing.kl, nothing.floor) == (0, 0.0, math.inf, math.inf)
    many = mode_coverage(torch.zeros(3_000_000, 2, dtype=torch.bfloat16), MODES, 1.0)
    assert many.counts.tolist() == [3_000_000, 0, 0]
    assert many.kl == pytest.approx(math.log(3))


def test_messages():
    with pytest.raises(ValueError, match=r"got \(0, 2\) and \(3, 2\)"):
        mode_coverage(torch.zeros(0, 2), MODES, 1.0)
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3, 2\)"):
        mode_coverage(torch.zeros(2, 3), MODES, 1.0)
    with pytest.raises(ValueError, match="radius > 0 and least >= 1, got 0 and 1"):
        mode_coverage(torch.zeros(2, 2), MODES, 0)
    with pytest.raises(ValueError, match=r"3 numbers > 0, one a mode, got \[1.0, 0.0, 1.0\]"):
        mode_coverage(torch.zeros(2, 2), MODES, 1.0, torch.tensor([1.0, 0.0, 1.0]))
