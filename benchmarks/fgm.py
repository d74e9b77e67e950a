"""The cost of an FGM step against a plain step and the widely copied snippet, and of moving a few rows of a big table.

Run: python benchmarks/fgm.py [--threads 1] [--json FILE]; prints one JSON line.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _machine import record, write
from danlu.train import fgm_backward, perturbed, pgd_backward


def milliseconds(*functions: Callable[[], object], rounds: int) -> list[float]:
    """Median of each, taken in turns so that a busy machine hits all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 2):
        for taken, function in zip(times, functions, strict=True):
            began = time.perf_counter()
            function()
            taken.append(1e3 * (time.perf_counter() - began))
    return [statistics.median(taken[2:]) for taken in times]


class Encoder(nn.Module):
    def __init__(self, vocabulary: int, dim: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        layer = nn.TransformerEncoderLayer(dim, dim // 64, 4 * dim, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(dim, 10)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(ids)).mean(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = record(("danlu", "torch"), options.threads)
    torch.manual_seed(0)
    model, ids, label = Encoder(8000, 256, 4), torch.randint(0, 8000, (16, 64)), torch.randint(0, 10, (16,))
    weight = model.embed.weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def loss_fn() -> Tensor:
        return F.cross_entropy(model(ids), label)

    def step(backward: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            optimizer.zero_grad()
            backward()
            optimizer.step()

        return run

    def snippet() -> None:  # two full backward passes, a clone of the table
        loss_fn().backward()
        saved = weight.data.clone()
        norm = torch.norm(weight.grad)
        if norm != 0:
            weight.data.add_(0.5 * weight.grad / norm)
        loss_fn().backward()
        weight.data = saved

    steps = [
        step(lambda: loss_fn().backward()),
        step(lambda: fgm_backward(loss_fn, weight, 0.5)),
        step(snippet),
        step(lambda: pgd_backward(loss_fn, weight)),
    ]
    plain, ours, naive, pgd = milliseconds(*steps, rounds=options.rounds)

    table = nn.Parameter(torch.randn(21128, 768))
    delta = torch.zeros(21128, 768)
    rows = torch.randint(0, 21128, (4096,)).unique()
    delta[rows] = torch.randn(len(rows), 768)
    sparse = torch.sparse_coo_tensor(rows[None], delta[rows], delta.shape, is_coalesced=True, check_invariants=False)

    def move(d: Tensor) -> None:
        with perturbed(table, d):
            pass

    dense_ms, sparse_ms = milliseconds(lambda: move(delta), lambda: move(sparse), rounds=options.rounds)
    row = {
        "model": "4 layers of 256, 16 x 64 tokens, vocabulary 8000, AdamW",
        "plain_step_ms": plain,
        "fgm_ratio": ours / plain,
        "snippet_ratio": naive / plain,
        "pgd3_ratio": pgd / plain,
        "table": "21128 x 768, 4096 tokens",
        "perturb_dense_ms": dense_ms,
        "perturb_rows_ms": sparse_ms,
        "rows_speedup": dense_ms / sparse_ms,
    }
    row = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
    print(json.dumps(row))
    write(options.json, head | row)


if __name__ == "__main__":
    main()
