"""Evaluation of samples: each part by its own function, floors and intervals over draws, failures, classes, records."""

import json

import pytest
import torch
from torch import nn

from danlu.data import load_digits
from danlu.generative import FeatureNetConfig, evaluate_samples, train_feature_net
from danlu.math import density_coverage, frechet_distance, kernel_distance, precision_recall

MEASURES = ["frechet", "frechet_limit", "kernel", "precision", "recall", "density", "coverage"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


REAL = torch.randn(120, 2, generator=seeded(0))
FAKE = torch.randn(70, 2, generator=seeded(1)) + 0.7


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def quick(real: torch.Tensor, fake: torch.Tensor, features=same, **settings):
    return evaluate_samples(real, fake, features, **{"num_replicates": 50, "generator": seeded(3)} | settings)


def test_values_are_those_of_the_functions_on_equal_numbers():
    found = quick(REAL, FAKE)
    seed = seeded(3)
    order = torch.randperm(120, generator=seed)
    a, b = REAL[order[:60]], REAL[order[60:]]
    f = FAKE[torch.randperm(70, generator=seed)[:60]]
    assert found.count == 60
    assert list(found.fake) == list(found.floor) == MEASURES
    for measures, other in ((found.fake, f), (found.floor, b)):
        shares, balls = precision_recall(a, other, 3), density_coverage(a, other, 5)
        expected = [frechet_distance(a, other), kernel_distance(a, other), *shares[:2], *balls[:2]]
        names = ["frechet", "kernel", "precision", "recall", "density", "coverage"]
        assert [measures[name].value for name in names] == pytest.approx([v.item() for v in expected], rel=1e-5)


def test_intervals_hold_their_values_and_grow_with_the_level():
    narrow, wide = quick(REAL, FAKE, level=0.5), quick(REAL, FAKE, level=0.99)
    for name in MEASURES:
        value, low, high = narrow.fake[name]
        assert low <= value <= high
        assert wide.fake[name].high - wide.fake[name].low > high - low > 0


def test_bootstrap_of_a_share_is_that_of_its_mean():
    found = quick(REAL, FAKE, num_replicates=400).fake["precision"]
    error = (found.value * (1 - found.value) / 60) ** 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.3)


def test_intervals_cover_the_limit_over_draws():
    truth = 2 * 0.7**2
    hits = 0
    for i in range(30):
        seed = seeded(100 + i)
        x, y = torch.randn(120, 2, generator=seed), torch.randn(60, 2, generator=seed) + 0.7
        _, low, high = quick(x, y, num_replicates=2).fake["frechet_limit"]
        hits += low <= truth <= high
    assert hits >= 24  # of 30 at 95 %; 24 is nearly 4 standard errors below 28.5


def test_a_perfect_generator_is_at_the_floor_and_a_bad_one_is_not():
    perfect = quick(REAL, torch.randn(60, 2, generator=seeded(7)))
    for name in ("frechet_limit", "kernel"):
        assert perfect.fake[name].low < perfect.floor[name].high
        assert perfect.floor[name].low < 0 < perfect.floor[name].high
    bad = quick(REAL, torch.randn(60, 2, generator=seeded(7)) + 3)
    for name in ("frechet", "frechet_limit", "kernel"):
        assert bad.fake[name].low > bad.floor[name].high
    for name in ("precision", "density", "coverage"):
        assert bad.fake[name].high < bad.floor[name].low


def test_classes_are_counted_against_the_reference():
    real = torch.arange(120)[:, None].float() % 4  # classes 0 to 3, equally often
    fake = torch.tensor([[0.0], [0.0], [1.0], [9.0]]).repeat(15, 1)  # 9 is no class of the real ones
    found = quick(
        real, fake + 0.01 * torch.randn(60, 1, generator=seeded(0)), classify=lambda x: x[:, 0].round().long()
    )
    assert found.fake_classes.counts.tolist() == [30, 15, 0, 0]
    assert (found.fake_classes.hit, found.fake_classes.good) == (2, 0.75)
    assert found.floor_classes.hit == 4
    assert found.floor_classes.kl < 0.1 < found.fake_classes.kl


def test_with_a_feature_net_missing_digits_show():
    x, y = load_digits().train
    pixels = (x[:, None] * 16).round().to(torch.uint8)
    config = FeatureNetConfig((1, 8, 8), 10, levels=17, hidden=(8, 16), dim=16)
    net = train_feature_net(pixels[:600], y[:600], config, steps=100, batch_size=64, lr=0.01)
    real, others = pixels[600:900], pixels[900:]
    good, lost = (quick(real, s, net) for s in (others, others[y[900:] < 5].float() / 16))  # floats and levels alike
    assert good.space == lost.space == net.fingerprint
    assert lost.fake["recall"].value < good.fake["recall"].value - 0.1
    assert lost.fake["precision"].value > good.fake["precision"].value - 0.15
    assert lost.fake["coverage"].high < good.fake["coverage"].low
    assert lost.fake["frechet_limit"].low > good.fake["frechet_limit"].high
    assert good.fake_classes.hit == 10
    assert lost.fake_classes.kl > 0.3 > good.fake_classes.kl
    told = json.loads(json.dumps(good.as_dict(), allow_nan=False))
    assert told["space"] == net.fingerprint
    assert told["fake"]["classes"]["hit"] == 10
    assert sum(told["floor"]["classes"]["counts"]) == 150
    assert told["floor"]["frechet"]["value"] == good.floor["frechet"].value


def test_few_samples_have_no_frechet_interval_and_records_stay_json():
    found = quick(REAL[:12].repeat(1, 4), FAKE[:6].repeat(1, 4), classify=lambda x: torch.zeros(len(x)).long())
    assert "frechet_limit" not in found.fake
    assert found.fake["frechet"].low is None
    strange = quick(REAL, FAKE, classify=lambda x: torch.arange(len(x)) * (x[:, 0] < 99) + torch.randint(500, (1,)))
    json.dumps(strange.as_dict(), allow_nan=False)


def test_modules_run_in_evaluation_mode_in_batches_and_come_back():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    net(REAL)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    small, large = quick(REAL, FAKE, net, batch_size=7), quick(REAL, FAKE, net)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert small.fake["frechet"].value == pytest.approx(large.fake["frechet"].value, rel=1e-4)
    again = quick(REAL, FAKE, net)
    assert again.as_dict() == large.as_dict()  # the generator decides everything


def test_messages():
    with pytest.raises(ValueError, match=r"needs 12 real and 6 generated samples .* got 120 and 5"):
        quick(REAL, FAKE[:5])
    with pytest.raises(ValueError, match=r"got 1.0, 50 and 512"):
        quick(REAL, FAKE, level=1.0)
    with pytest.raises(ValueError, match=r"for 60 samples they gave \(2,\)"):
        quick(REAL, FAKE, lambda x: x.sum(0))
    with pytest.raises(ValueError, match=r"needs features \(N, D\) of floats .* got real \(60,\)"):
        quick(REAL, FAKE, lambda x: x[:, 0])
