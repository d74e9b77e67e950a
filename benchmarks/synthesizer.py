"""Every kind of synthesizer against torch's own attention: forward + backward, and what is kept for the backward pass.

python benchmarks/synthesizer.py [--batch 8] [--length 256] [--dim 512] [--heads 8] [--threads 2] [--json FILE]

The peer is nn.MultiheadAttention as it is fastest (need_weights=False, the fused kernel); beside it stands the same
with its weights written out (need_weights=True), which is what a layer with weights of its own can be compared with in
memory. Ratios are ours / peer. Target: random at most 0.7 of the fused peer's time, dense no more memory than the
written-out one.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from _machine import milliseconds, record, write
from danlu.nn import SYNTHESIZER_MODES, SynthesizerAttention

MODES = (*SYNTHESIZER_MODES, "random+vanilla", "dense+vanilla")
TARGETS = {"random": ("fused", 0.7), "dense": ("memory", 1.0)}


def kept(run: Callable[[], Tensor]) -> float:
    """Megabytes of distinct tensors that a forward pass keeps for the backward one."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    alive: list[Tensor] = []  # so that no address is used twice
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(sizes.values()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("batch", 8), ("length", 256), ("dim", 512), ("heads", 8), ("threads", 2), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    head = record(("danlu", "torch"), options.threads)
    x = torch.randn(options.batch, options.length, options.dim, requires_grad=True)
    peer = nn.MultiheadAttention(options.dim, options.heads, batch_first=True)
    ours = {mode: SynthesizerAttention(options.dim, options.heads, mode, options.length) for mode in MODES}

    def fused() -> Tensor:
        return peer(x, x, x, need_weights=False)[0]

    def written_out() -> Tensor:
        return peer(x, x, x, need_weights=True, average_attn_weights=False)[0]

    forward: dict[str, Callable[[], Tensor]] = {"fused": fused, "written out": written_out}
    forward |= {mode: lambda layer=layer: layer(x) for mode, layer in ours.items()}  # type: ignore[misc]

    def both(run: Callable[[], Tensor]) -> Callable[[], None]:
        def step() -> None:
            run().sum().backward()
            x.grad = None
            for module in (peer, *ours.values()):
                module.zero_grad()

        return step

    times = dict(zip(forward, milliseconds(*map(both, forward.values()), rounds=options.rounds), strict=True))
    memory = {name: kept(run) for name, run in forward.items()}
    rows = {
        name: {
            "ms": round(times[name], 3),
            "to_fused": round(times[name] / times["fused"], 3),
            "to_written_out": round(times[name] / times["written out"], 3),
            "kept_mb": round(memory[name], 2),
            "kept_to_written_out": round(memory[name] / memory["written out"], 3),
        }
        for name in forward
    }
    for name, row in rows.items():
        print(f"{name:18} {json.dumps(row)}")
    reached = {
        "random": rows["random"]["to_fused"] <= TARGETS["random"][1],
        "dense": rows["dense"]["kept_to_written_out"] <= TARGETS["dense"][1],
    }
    print(f"targets reached: {reached}")
    sizes = {name: getattr(options, name) for name in ("batch", "length", "dim", "heads")}
    write(
        options.json,
        head | sizes | {"rows": rows, "targets": {k: v[1] for k, v in TARGETS.items()}, "reached": reached},
    )


if __name__ == "__main__":
    main()
