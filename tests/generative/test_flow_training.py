"""Flows in a plain loop: they learn, resume to the bit, accumulate, recompute, run under autocast and torch.compile."""

import json
from dataclasses import replace

import pytest
import torch

from danlu.generative.flow import Flow
from danlu.generative.flow_builders import glow, nice, realnvp
from danlu.generative.flow_config import FlowConfig
from danlu.generative.flow_layers import FlowStep
from danlu.generative.training_state import load_state, save_state
from danlu.nn import ActNorm, Coupling, InvertibleLinear, InvertibleSequential

CONFIG = FlowConfig((1, 8, 8), levels=2, steps=2, width=8, num_bins=5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stripes(n: int, seed: int = 0) -> torch.Tensor:
    """Images of five levels whose rows are equal: easy to compress."""
    row = torch.randint(0, 5, (n, 1, 1, 8), generator=seeded(seed), dtype=torch.uint8)
    return row.expand(n, 1, 8, 8)


def train(flow: Flow, steps: int, generator: torch.Generator, lr: float = 1e-2) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(flow.parameters(), lr)
    for _ in range(steps):
        step(flow, optimizer, generator)
    return optimizer


def step(flow: Flow, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
    x = stripes(32, int(torch.randint(1000, (), generator=generator)))
    optimizer.zero_grad()
    flow.loss(x, generator=generator).backward()
    optimizer.step()


@pytest.mark.parametrize(
    "build",
    [
        lambda g: glow((1, 8, 8), 2, 2, 8, num_bins=5, generator=g),
        lambda g: realnvp((1, 8, 8), 2, 1, 8, num_bins=5, generator=g),
        lambda g: nice((1, 8, 8), 4, 32, 1, num_bins=5, generator=g),
    ],
)
def test_it_learns_and_stays_invertible(build):
    flow = build(seeded())
    x = stripes(64, 5)
    train(flow, 1, seeded(1))
    before = flow.bits_per_dim(x, seeded(2)).mean()
    train(flow, 20, seeded(1))
    assert flow.bits_per_dim(x, seeded(2)).mean() < before - 0.02
    v = (x + 0.5) / 5 - 0.5
    with torch.no_grad():
        assert (flow.decode(flow.encode(v)) - v).abs().max() < 1e-5
    assert torch.equal(flow.reconstruct(x), x)


def test_training_resumes_to_the_bit(tmp_path):
    def setting():
        flow = Flow(CONFIG, seeded())
        return flow, torch.optim.Adam(flow.parameters(), 1e-2), seeded(1)

    flow, optimizer, generator = setting()
    for _ in range(2):
        step(flow, optimizer, generator)
    save_state(tmp_path / "state.safetensors", 2, {"flow": flow}, {"adam": optimizer}, {"noise": generator})
    step(flow, optimizer, generator)
    other, optimizer, generator = setting()
    taken, _ = load_state(tmp_path / "state.safetensors", {"flow": other}, {"adam": optimizer}, {"noise": generator})
    assert taken == 2
    step(other, optimizer, generator)
    assert all(torch.equal(a, b) for a, b in zip(flow.parameters(), other.parameters(), strict=True))


def test_a_config_rebuilds_the_flow():
    flow = Flow(replace(CONFIG, dequantization="variational", alpha=0.05, checkpoint=True), seeded())
    train(flow, 1, seeded())
    text = json.dumps(flow.config.as_dict())
    other = Flow(FlowConfig(**json.loads(text)))
    assert other.config == flow.config
    other.load_state_dict(flow.state_dict())
    x = stripes(3)
    torch.testing.assert_close(other.log_prob(x, seeded()), flow.log_prob(x, seeded()), rtol=0, atol=0)


def test_halves_of_a_batch_accumulate_to_the_whole():
    flow = Flow(replace(CONFIG, num_bins=None), seeded()).double()
    v = stripes(8).double() / 5 - 0.4 + 0.1 * torch.rand(8, 1, 8, 8, dtype=torch.float64, generator=seeded())
    flow.loss(v).backward()
    whole = [p.grad.clone() for p in flow.parameters()]
    flow.zero_grad()
    for half in v.split(4):
        (flow.loss(half) / 2).backward()
    for a, p in zip(whole, flow.parameters(), strict=True):
        torch.testing.assert_close(p.grad, a, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("mixing", ["conv1x1", "shuffle"])
def test_recomputing_changes_no_gradient(mixing):
    grads = []
    for recompute in (False, True):
        flow = Flow(replace(CONFIG, checkpoint=recompute, mixing=mixing), seeded())
        for _ in range(2):  # the first batch starts the actnorms
            flow.zero_grad()
            flow.loss(stripes(6), seeded(3)).backward()
        grads.append([p.grad for p in flow.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_fused_step_is_actnorm_then_mixing_then_coupling():
    actnorm, mixing = ActNorm(4), InvertibleLinear(4, generator=seeded())
    coupling = Coupling(torch.nn.Conv2d(2, 4, 1))
    fused, plain = FlowStep(actnorm, mixing, coupling), InvertibleSequential([actnorm, mixing, coupling])
    x = 3 * torch.randn(5, 4, 3, 3, generator=seeded()) + 1
    y, log_det = fused(x)
    expected, expected_log_det = plain(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(log_det, expected_log_det)
    back, negative = fused.inverse(y)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(negative, -log_det)


def test_a_step_without_shift_is_not_fused_and_right():
    actnorm, mixing = ActNorm(4, shift=False), InvertibleLinear(4, generator=seeded())
    step = FlowStep(actnorm, mixing, Coupling(torch.nn.Linear(2, 4)))
    x = torch.randn(5, 4, generator=seeded())
    y, _ = step(x)
    torch.testing.assert_close(step.inverse(y)[0], x)


def test_under_autocast_only_networks_are_bfloat16():
    flow = Flow(CONFIG, seeded())
    train(flow, 3, seeded())
    v = (stripes(4) + 0.5) / 5 - 0.5
    exact = flow.log_prob(v)
    with torch.autocast("cpu", torch.bfloat16):
        loss = flow.log_prob(v)
        back = flow.decode(flow.encode(v))
    assert loss.dtype == torch.float32
    assert ((loss - exact).abs() < 0.02 * exact.abs() + 2).all()
    assert (loss != exact).any()
    assert (back - v).abs().max() < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        flow.loss(stripes(4), seeded()).backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters())


def test_half_precision_weights_give_float32_densities():
    flow = Flow(CONFIG, seeded())
    train(flow, 1, seeded())
    found = flow.bfloat16().log_prob(stripes(4), seeded())
    assert found.dtype == torch.float32
    assert found.isfinite().all()


@pytest.mark.slow
def test_compiled_it_gives_the_same():
    flow = Flow(replace(CONFIG, levels=1, steps=1), seeded())
    train(flow, 1, seeded())
    v = (stripes(4) + 0.5) / 5 - 0.5
    torch._dynamo.reset()
    compiled = torch.compile(flow.log_prob, backend="eager")
    torch.testing.assert_close(compiled(v), flow.log_prob(v))


def test_the_first_batch_makes_every_step_standard():
    v = 0.1 * torch.rand(256, 1, 8, 8, generator=seeded())
    z, _ = Flow(replace(CONFIG, prior="standard"), seeded())(v)
    assert z.std().item() == pytest.approx(1, abs=0.05)
    assert Flow(replace(CONFIG, prior="standard", actnorm="zeros"), seeded())(v)[0].std() < 0.1
