"""The cost of an Adafactor step on the shapes of BERT-base: ours, transformers', torch's; the bytes of their states.

Run: python benchmarks/adafactor.py [--layers 12] [--vocabulary 30522] [--threads 1] [--rounds 9] [--json FILE]; prints
one JSON line. Ours is timed with the compiled sweeps (extra [fast]) and in pure torch; the peers in their defaults,
torch's also with foreach=True.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor as TransformersAdafactor

from _machine import milliseconds, record, write
from danlu.optim import Adafactor
from danlu.optim._adafactor_blocks import kernel_for


def bert_shapes(vocabulary: int, layers: int, dim: int = 768) -> list[tuple[int, ...]]:
    """The parameters of a BERT encoder with its pooler."""
    layer: list[tuple[int, ...]] = [(dim, dim), (dim,)] * 4 + [(dim,)] * 4
    layer += [(4 * dim, dim), (4 * dim,), (dim, 4 * dim), (dim,)]
    return [(vocabulary, dim), (512, dim), (2, dim), (dim,), (dim,), *(layer * layers), (dim, dim), (dim,)]


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = [t for s in optimizer.state.values() for k, t in s.items() if isinstance(t, Tensor) and k != "step"]
    return sum(t.numel() * t.element_size() for t in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=30522)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = record(("danlu", "torch", "transformers"), options.threads)
    torch.manual_seed(0)
    params = [nn.Parameter(0.02 * torch.randn(s)) for s in bert_shapes(options.vocabulary, options.layers)]
    for p in params:
        p.grad = 0.01 * torch.randn_like(p)
    ours = Adafactor(params, lr=None, min_dim_size_to_factor=1)  # what the peers do
    peer = TransformersAdafactor(params)
    single, foreach = (torch.optim.Adafactor(params, foreach=f) for f in (False, True))

    def pure() -> None:
        before = os.environ.get("DANLU_KERNELS")
        os.environ["DANLU_KERNELS"] = "off"
        try:
            ours.step()
        finally:
            if before is None:
                del os.environ["DANLU_KERNELS"]
            else:
                os.environ["DANLU_KERNELS"] = before

    functions = [ours.step, pure, peer.step, single.step, foreach.step]
    compiled_ms, pure_ms, transformers_ms, single_ms, foreach_ms = milliseconds(*functions, rounds=options.rounds)
    least = sum(4 * (sum(p.shape) if p.ndim > 1 else p.numel()) for p in params)
    row: dict[str, object] = {
        "parameters": sum(p.numel() for p in params),
        "compiled": kernel_for(params[0], params[0]) is not None,
        "ours_ms": compiled_ms,
        "ours_pure_torch_ms": pure_ms,
        "transformers_ms": transformers_ms,
        "torch_ms": single_ms,
        "torch_foreach_ms": foreach_ms,
        "transformers_ratio": transformers_ms / compiled_ms,
        "torch_ratio": single_ms / compiled_ms,
        "torch_foreach_ratio": foreach_ms / compiled_ms,
        "pure_transformers_ratio": transformers_ms / pure_ms,
        "pure_torch_ratio": single_ms / pure_ms,
        "ours_state_bytes": state_bytes(ours),
        "least_state_bytes": least,
        "transformers_state_bytes": state_bytes(peer),
        "torch_state_bytes": state_bytes(single),
    }
    row = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
    print(json.dumps(row))
    write(options.json, head | row)


if __name__ == "__main__":
    main()
