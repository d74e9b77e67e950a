"""The feature network: learns digits, the same each time, standard features, levels and gradients, what it refuses."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from danlu.data import load_digits
from danlu.generative import FeatureNet, FeatureNetConfig, train_feature_net
from danlu.generative.training_state import load_state, save_state

DIGITS = FeatureNetConfig((1, 8, 8), 10, levels=17, hidden=(8, 16), dim=16)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digits(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = getattr(load_digits(), part)
    return (x[:, None] * 16).round().to(torch.uint8), y


@pytest.fixture(scope="module")
def trained() -> FeatureNet:
    return train_feature_net(*digits("train"), DIGITS, steps=120, batch_size=64, lr=0.01)


def test_learns_the_digits_and_stands_in_evaluation_mode(trained):
    x, y = digits("test")
    assert (trained.classify(x) == y).double().mean() > 0.8
    assert not trained.training


def test_features_are_standard_on_what_it_was_trained_on(trained):
    found = trained.features(digits("train")[0]).double()
    alive = trained.scale != 1.0
    assert alive.sum() > 8
    torch.testing.assert_close(found.mean(0), torch.zeros(16).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        found.std(0, correction=0)[alive], torch.ones(int(alive.sum())).double(), atol=1e-3, rtol=0
    )


def test_features_by_hand(trained):
    x = digits("test")[0][:3]
    h = 2 * x.float() / 16 - 1
    for layer in trained.body:
        h = layer(h)
    expected = (h.clamp_min(0) - trained.center) / trained.scale
    torch.testing.assert_close(trained.features(x), expected)
    torch.testing.assert_close(trained(x), trained.to_logits(h.clamp_min(0)))


def test_the_same_each_time_and_nothing_global_moves():
    x, y = digits("train")
    state = torch.get_rng_state()
    a, b = (train_feature_net(x, y, DIGITS, steps=3, batch_size=8) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    c = train_feature_net(x, y, DIGITS, steps=3, batch_size=8, generator=seeded(1))
    torch.manual_seed(5)
    d = train_feature_net(x, y, DIGITS, steps=3, batch_size=8, generator=seeded(0))
    assert a.fingerprint == b.fingerprint == d.fingerprint != c.fingerprint
    assert len(a.fingerprint) == 8
    with torch.no_grad():  # under no_grad it trains as well
        assert train_feature_net(x, y, DIGITS, steps=3, batch_size=8).fingerprint == a.fingerprint


def test_floats_are_rounded_to_the_levels_and_pass_their_gradient(trained):
    x = digits("test")[0][:4]
    near = (x.double() / 16 + 0.02).clamp(0, 1)  # less than half a level away
    torch.testing.assert_close(trained.features(near), trained.features(x))
    torch.testing.assert_close(trained.features(x.half() / 16), trained.features(x))
    pixels = (x.float() / 16).requires_grad_()
    trained.features(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0


def test_a_loop_of_ones_own_brings_samples_nearer(trained):
    target = trained.features(digits("test")[0][:1]).detach()
    pixels = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    optimizer = torch.optim.SGD([pixels], lr=0.02)
    start = F.mse_loss(trained.features(pixels), target).item()
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(trained.features(pixels), target).backward()
        optimizer.step()
        pixels.data.clamp_(0, 1)
    assert F.mse_loss(trained.features(pixels), target).item() < 0.9 * start


def test_bfloat16_and_an_empty_batch_and_other_strides(trained):
    x = digits("test")[0][:6]
    with torch.autocast("cpu", torch.bfloat16):
        found = trained.features(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, trained.features(x), atol=0.15, rtol=0.05)
    assert trained.features(x[:0]).shape == (0, 16)
    torch.testing.assert_close(trained.features(x.mT.contiguous().mT), trained.features(x))


def test_config_and_state_go_through_files(trained, tmp_path):
    config = FeatureNetConfig(**json.loads(json.dumps(dataclasses.asdict(DIGITS))))
    assert config == DIGITS
    save_state(tmp_path / "net", 1, {"net": trained})
    other = FeatureNet(config)
    load_state(tmp_path / "net", {"net": other})
    assert other.fingerprint == trained.fingerprint


def test_messages(trained):
    x, y = digits("test")
    with pytest.raises(ValueError, match=r"takes images \(N, \*\(1, 8, 8\)\), got \(2, 1, 4, 4\)"):
        trained(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"in 0 .. 16 \(levels=17\), got 0 .. 200"):
        trained(torch.tensor([0, 200] * 32, dtype=torch.uint8).reshape(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"got -1 .. 1; a generator that ends in tanh gives 2 x - 1"):
        trained(torch.tensor([-1.0, 1.0] * 32).reshape(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got nan"):
        trained(torch.full((1, 1, 8, 8), torch.nan))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 10\), got 0 .. 10"):
        train_feature_net(x[:11], torch.arange(11), DIGITS)
    with pytest.raises(ValueError, match=r"labels \(N,\) int64; got .* torch.float32"):
        train_feature_net(x, y.float(), DIGITS)
    with pytest.raises(ValueError, match=r"lr > 0, got 0, 128 and 0.002"):
        train_feature_net(x, y, DIGITS, steps=0)
    with pytest.raises(ValueError, match="even dim >= 2; got 10, 256 and 7"):
        FeatureNetConfig((1, 8, 8), 10, dim=7)
