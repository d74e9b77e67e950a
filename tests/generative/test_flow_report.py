"""The report of a flow: its gain against the singular values of the whole Jacobian, a round trip that breaks, modes."""

import pytest
import torch

from danlu.generative.flow import Flow
from danlu.generative.flow_config import FlowConfig
from danlu.generative.flow_report import flow_report, inverse_gain
from danlu.nn import ActNorm


def stirred(config: FlowConfig) -> Flow:
    generator = torch.Generator().manual_seed(0)
    flow = Flow(config, generator).double()
    flow(torch.rand(16, *config.shape, dtype=torch.float64, generator=generator) - 0.5)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return flow


@pytest.mark.parametrize("config", [FlowConfig((4,), steps=2, width=5), FlowConfig((1, 4, 4), steps=1, width=3)])
def test_gain_is_the_largest_singular_value(config):
    flow = stirred(config)
    z = torch.randn(2, config.num_dims, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = inverse_gain(flow, z, torch.Generator().manual_seed(2))
    for item, value in zip(z, found, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow.decode(v[None])[0].flatten(), item)
        assert value.item() == pytest.approx(torch.linalg.svdvals(jacobian)[0].item(), rel=1e-3)


def test_report_on_levels_and_on_v():
    flow = stirred(FlowConfig((1, 4, 4), levels=2, steps=1, width=3, num_bins=5))
    levels = torch.randint(0, 5, (3, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    found = flow_report(flow, levels, torch.Generator().manual_seed(2))
    z = flow.encode(levels)
    assert found.latent_power == pytest.approx([z[:, :8].square().mean().item(), z[:, 8:].square().mean().item()])
    other = flow_report(flow, (levels + 0.5).double() / 5 - 0.5, torch.Generator().manual_seed(2))
    assert max(found.round_trip, other.round_trip) < 1e-6  # the middles of levels are float32
    torch.testing.assert_close(found.gain, other.gain, rtol=1e-4, atol=0)
    products = [m.weight() for m in flow.modules() if hasattr(m, "raw_log_scale")]
    assert found.worst_condition == pytest.approx(max(torch.linalg.cond(w).item() for w in products))
    assert flow.training


def test_a_scale_that_swallows_digits_is_seen():
    flow = Flow(FlowConfig((2,), "nice", steps=1, width=4))
    scale = next(m for m in flow.modules() if isinstance(m, ActNorm))
    scale.log_scale.data.fill_(-200.0)  # e^-200 is 0 in float32
    found = flow_report(flow, torch.tensor([[0.25, 0.5]]))
    assert not found.round_trip < 1e-3
    assert found.worst_condition == 1


def test_message():
    with pytest.raises(ValueError, match=r"at least one item, got \(0, 2\)"):
        flow_report(Flow(FlowConfig((2,), width=4)), torch.zeros(0, 2))
