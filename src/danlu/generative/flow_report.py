r"""Is this flow still invertible in floats: round trip, gain of the inverse, worst product, where its latents lie.

    round trip = max |f^-1(f(v)) - v|                                                                         (1)
    gain = sigma_max(d f^-1 / dz at f(v))                                                                     (2)
    power of a level = mean of z^2 over its latents, 1 under the model                                        (3)

A flow whose likelihood is fine can have an inverse that overflows: gains of coupling layers multiply. (2) is the factor
by which a small change of the latents, or their rounding, grows in the image; it is found by Lanczos steps on products
with the Jacobian, which is never formed. (3) far above 1 on held-out data says which level does not fit them.

Source: Behrmann et al., 2021, arXiv:2006.09347 (2); own definitions.
Shapes: N batch, D numbers of one item.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from danlu.generative.dequantization import dequantize
from danlu.generative.flow import Flow
from danlu.math.singular import top_singular
from danlu.nn.invertible_linear import InvertibleLinear

__all__ = ["FlowReport", "flow_report", "inverse_gain"]


class FlowReport(NamedTuple):
    """What `flow_report` found.

    round_trip: eq. (1), in units of v. gain: eq. (2) at every item, (N,). worst_condition: the largest condition number
    of a 1x1 product, 1 without any. latent_power: eq. (3), a number a level, finest detail first.
    """

    round_trip: float
    gain: Tensor
    worst_condition: float
    latent_power: list[float]


def inverse_gain(flow: Flow, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """How much the inverse amplifies around latents, eq. (2).

    Args:
        flow: in evaluation or training mode, which makes no difference.
        z: (N, D) latents.
        generator: source of the vectors to start from.

    Returns:
        (N,) without a graph.

    >>> from danlu.generative.flow_builders import nice
    >>> inverse_gain(nice((2,), width=4), torch.zeros(1, 2))  # the identity at its start
    tensor([1.])
    """
    found = []
    for item in z.detach():

        def decode(latent: Tensor) -> Tensor:
            return flow.decode(latent[None])[0]

        def forward(v: Tensor, at: Tensor = item) -> Tensor:
            return torch.func.jvp(decode, (at,), (v,))[1]

        def adjoint(u: Tensor, at: Tensor = item) -> Tensor:
            return torch.func.vjp(decode, at)[1](u.reshape(flow.config.shape))[0]

        device = generator.device if generator else item.device
        start = torch.randn(item.shape, generator=generator, device=device, dtype=item.dtype).to(item.device)
        found.append(top_singular(forward, adjoint, start)[0])  # eq. (2)
    return torch.stack(found) if found else z.new_zeros(0)


@torch.no_grad()
def flow_report(flow: Flow, x: Tensor, generator: torch.Generator | None = None) -> FlowReport:
    """Round trip, gain, condition and latent power at some items.

    Args:
        flow: after training; an actnorm that has not started stays so.
        x: (N, *shape), N >= 1, levels (taken at their middles) or v; a few are enough.
        generator: source of the vectors that `inverse_gain` starts from.

    Returns:
        A FlowReport.

    Raises:
        ValueError: no items.
    """
    if not len(x):
        raise ValueError(f"flow_report needs at least one item, got {tuple(x.shape)}")
    modes = [(module, module.training) for module in flow.modules()]
    flow.eval()
    try:
        z = flow.encode(x)  # first, for its messages
        v = x if x.is_floating_point() else dequantize(x, flow.config.num_bins or 2)
        error = (flow.decode(z) - v).abs()  # eq. (1)
        gain = inverse_gain(flow, z, generator)
    finally:
        for module, training in modes:
            module.training = training
    products = [m.weight() for m in flow.modules() if isinstance(m, InvertibleLinear)]
    worst = max((torch.linalg.cond(w).item() for w in products), default=1.0)
    power = [part.square().mean().item() for part in z.split(flow.latent_sizes(), dim=1)]  # eq. (3)
    return FlowReport(error.max().item(), gain, worst, power)
