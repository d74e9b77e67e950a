"""A training step and sampling of Glow: ours and normflows, same levels, steps, widths, images and optimiser.

Ours: as it is, and with its networks in bfloat16 under autocast. The peer: as its example builds it, in float32; with
channels_last; and, as its best, with channels_last under the same autocast, where its 1x1 convolutions round too.

Run: python benchmarks/glow.py [--levels 3] [--steps 8] [--width 256] [--batch 32] [--threads 2] [--json FILE]
Needs: pip install --no-deps normflows; prints one JSON line.
"""

import argparse
import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import normflows
import torch
from torch import nn

from _machine import milliseconds, record, write
from danlu.generative.flow import Flow
from danlu.generative.flow_config import FlowConfig


def peer(levels: int, steps: int, width: int, channels: int, size: int) -> nn.Module:
    """Glow as in normflows' example, with its affine coupling; its lists run from the latents to the image."""
    bases, flows, merges = [], [], []
    for i in range(levels):
        wide = channels * 2 ** (levels + 1 - i)
        flows.append([normflows.flows.GlowBlock(wide, width, scale=True) for _ in range(steps)])
        flows[-1].append(normflows.flows.Squeeze())
        if i > 0:
            merges.append(normflows.flows.Merge())
            shape = (channels * 2 ** (levels - i), size // 2 ** (levels - i), size // 2 ** (levels - i))
        else:
            shape = (channels * 2 ** (levels + 1), size // 2**levels, size // 2**levels)
        bases.append(normflows.distributions.GlowBase(shape))
    return normflows.MultiscaleFlow(bases, flows, merges, class_cond=False)


def training(loss: Callable[[], torch.Tensor], model: nn.Module, bf16: bool) -> Callable[[], None]:
    """One step of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            value = loss()
        value.backward()
        optimizer.step()

    return step


def drawing(sample: Callable[[], object], bf16: bool) -> Callable[[], None]:
    """One batch of samples."""

    @torch.no_grad()
    def draw() -> None:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            sample()

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("levels", 3), ("steps", 8), ("width", 256), ("batch", 32), ("size", 32), ("channels", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    head = record(("danlu", "torch", "normflows"), options.threads)
    x = torch.rand(options.batch, options.channels, options.size, options.size) - 0.5
    config = FlowConfig(
        tuple(x.shape[1:]), levels=options.levels, steps=options.steps, width=options.width, prior="learned"
    )
    arms: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {}
    for name, bf16 in (("ours", False), ("ours_bf16", True)):
        flow = Flow(config)
        with torch.no_grad():
            flow.loss(x)  # starts the actnorms
        loss, sample = (lambda f=flow: f.loss(x)), (lambda f=flow: f.sample(options.batch))
        arms[name] = training(loss, flow, bf16), drawing(sample, bf16)
    for name, bf16 in (("normflows", False), ("normflows_channels_last", False), ("normflows_best", True)):
        other = peer(options.levels, options.steps, options.width, options.channels, options.size)
        image = x
        if name != "normflows":
            other, image = other.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        with torch.no_grad():
            other.forward_kld(image)
        loss = lambda m=other, v=image: m.forward_kld(v)  # noqa: E731
        arms[name] = training(loss, other, bf16), drawing(lambda m=other: m.sample(options.batch), bf16)
    row: dict[str, object] = {name: getattr(options, name) for name in ("levels", "steps", "width", "batch", "size")}
    row["parameters_ours"] = sum(p.numel() for p in flow.parameters())
    row["parameters_normflows"] = sum(p.numel() for p in other.parameters())
    for kind, i in (("step", 0), ("sample", 1)):
        times = dict(zip(arms, milliseconds(*(arm[i] for arm in arms.values()), rounds=options.rounds), strict=True))
        row |= {f"{name}_{kind}_ms": round(value, 2) for name, value in times.items()}
        row |= {
            f"{kind}_ratio_{ours}_{theirs}": round(times[theirs] / times[ours], 3)
            for ours in ("ours", "ours_bf16")
            for theirs in times
            if theirs.startswith("normflows")
        }
    print(json.dumps(row))
    write(options.json, head | row)


if __name__ == "__main__":
    main()
