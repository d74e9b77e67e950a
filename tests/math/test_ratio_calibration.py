"""Calibration of log-ratios: exact finite odds, bins by hand, the two numbers of the repair, extremes, messages."""

import math

import pytest
import torch

from danlu.math import ratio_calibration

V = torch.tensor([1 / 3, 1.0, 3.0], dtype=torch.float64).log()
REAL, FAKE = V.repeat_interleave(torch.tensor([1, 2, 3])), V.repeat_interleave(torch.tensor([3, 2, 1]))


def test_true_odds_have_no_error():
    found = ratio_calibration(REAL, FAKE, bins=3)
    assert found.error == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(found.predicted, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    torch.testing.assert_close(found.observed, found.predicted)
    want = -sum(w * math.log(p) for w, p in [(1 / 12, 0.25), (2 / 12, 0.5), (3 / 12, 0.75)]) * 2
    assert found.cross_entropy == pytest.approx(want)


def test_error_by_hand():
    real, fake = torch.tensor([2.0, 2.0]), torch.tensor([2.0, -1.0, -1.0, -1.0])
    found = ratio_calibration(real, fake, bins=2)  # masses: 2 has 1/2 + 1/8, -1 has 3/8
    sigmoid = [1 / (1 + math.exp(-2.0)), 1 / (1 + math.exp(1.0))]
    assert found.error == pytest.approx(5 / 8 * abs(sigmoid[0] - 0.8) + 3 / 8 * sigmoid[1])


def test_sizes_of_the_samples_do_not_count():
    found = ratio_calibration(REAL.repeat(7), FAKE, bins=3)
    assert found.error == pytest.approx(0, abs=1e-12)
    assert found.cross_entropy == pytest.approx(ratio_calibration(REAL, FAKE).cross_entropy)


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (0.25, 0.0), (3.0, -1.0), (-2.0, 0.5)])
def test_repair_finds_temperature_and_shift(slope, shift):
    seed = torch.Generator().manual_seed(0)
    x = torch.randn(4_000, generator=seed, dtype=torch.float64)
    y = torch.randn(4_000, generator=seed, dtype=torch.float64) - 1  # log p/q = x + 1/2
    v = [slope * (s + 0.5) + shift for s in (x, y)]
    found = ratio_calibration(*v)
    for s, told in zip((x, y), v, strict=True):
        assert (found.apply(told) - (s + 0.5)).abs().max() < 0.35  # about 3 standard errors at |x| = 4
    repaired = ratio_calibration(*(found.apply(told) for told in v))
    assert repaired.slope == pytest.approx(1, abs=1e-6)
    assert repaired.shift == pytest.approx(0, abs=1e-6)
    assert repaired.cross_entropy <= found.cross_entropy + 1e-9
    assert repaired.error < 0.03


def test_knowing_nothing():
    found = ratio_calibration(torch.zeros(5), torch.zeros(9))
    assert found.cross_entropy == pytest.approx(math.log(2))
    assert found.error == pytest.approx(0)
    assert len(found.predicted) == 1


def test_parted_samples_get_a_finite_slope():
    found = ratio_calibration(torch.full((50,), 3.0), torch.full((50,), -3.0))
    assert found.apply(torch.tensor(3.0)).item() == pytest.approx(math.log(51), rel=1e-5)
    huge = ratio_calibration(torch.full((50,), 3e8), torch.full((50,), -3e8))
    assert huge.slope * 3e8 == pytest.approx(math.log(51), rel=1e-5)
    assert huge.cross_entropy == 0


def test_low_precision_and_empty():
    assert ratio_calibration(REAL.bfloat16(), FAKE.bfloat16(), 3).error < 0.01
    with pytest.raises(ValueError, match=r"got \(0,\), \(6,\) and 10"):
        ratio_calibration(REAL[:0], FAKE)
    with pytest.raises(ValueError, match="bins >= 1"):
        ratio_calibration(REAL, FAKE, 0)
    with pytest.raises(ValueError, match="finite log-ratios"):
        ratio_calibration(REAL / 0 * 0, FAKE)
