"""Memory of GPLinker's loss over long texts with many predicates: sparse labels beside a map of zeros and ones.

python benchmarks/gplinker.py [--json FILE] [--batches N ...] [--threads N]

512 tokens of 768 features, 50 predicates, 20 triples a text, float32, forward and backward through the head. Each
measurement is a process of its own; reported is the growth of its peak of resident memory over that before the call.
"Dense" is the same head and the same loss written with a target of the shape of the maps, as the labels of most
public implementations are.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import torch

from _machine import record, write
from danlu.losses import multilabel_cross_entropy
from danlu.text import GPLinker

TOKENS, FEATURES, PREDICATES = 512, 768, 50
TARGET_MB = 1_000


def peak() -> float:
    """Megabytes that this process ever held (ru_maxrss counts KiB, on macOS bytes)."""
    unit = 1e6 if sys.platform == "darwin" else 1e6 / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def child(labels: str, batch: int) -> None:
    """One step; prints megabytes and the loss."""
    torch.manual_seed(0)
    linker, x = GPLinker(FEATURES, PREDICATES), torch.randn(batch, TOKENS, FEATURES, requires_grad=True)
    rows = [[b, i, i + 2, i // 20, i + 7, i + 9] for b in range(batch) for i in range(0, 400, 20)]
    triples = torch.tensor(rows)  # (N, 6), ends exclusive
    before = peak()
    if labels == "sparse":
        loss = linker.loss(x, triples)
    else:
        loss = torch.zeros(())
        b, s0, s1, r, o0, o1 = (triples - torch.tensor([0, 0, 1, 0, 0, 1])).unbind(1)  # last tokens instead of ends
        entities = torch.cat([torch.stack([b, 0 * b, s0, s1]), torch.stack([b, 0 * b + 1, o0, o1])], 1)
        cells = entities, torch.stack([b, r, s0, o0]), torch.stack([b, r, s1, o1])
        for scores, cell in zip(linker(x), cells, strict=True):
            target = torch.zeros_like(scores)
            target[tuple(cell)] = 1.0
            loss = loss + multilabel_cross_entropy(scores.flatten(2), target.flatten(2), "sum")
    loss.backward()
    print(peak() - before, loss.item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        child(options.child[0], int(options.child[1]))
        return
    head = record(("danlu", "torch"), options.threads)
    print(f"{TOKENS} tokens, {FEATURES} features, {PREDICATES} predicates, float32; MB above those before the call")
    megabytes: dict[str, dict[str, float]] = {}
    for batch in options.batches:
        found = {}
        for labels in ("sparse", "dense"):
            command = [sys.executable, __file__, "--threads", str(options.threads), "--child", labels, str(batch)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[labels] = [float(number) for number in out.split()]
        (sparse, a), (dense, b) = found["sparse"], found["dense"]
        if abs(a - b) > 1e-4 * abs(b):
            raise SystemExit(f"the two losses differ: {a} and {b}")
        megabytes[str(batch)] = {"sparse": sparse, "dense": dense}
        print(f"  batch {batch}: sparse {sparse:>7,.0f}   dense {dense:>7,.0f}   loss {a:,.1f} both ways")
    most = max(row["sparse"] for row in megabytes.values())
    print(f"most of sparse labels {most:,.0f} MB (target under {TARGET_MB:,})")
    setting = {"tokens": TOKENS, "features": FEATURES, "predicates": PREDICATES, "dtype": "float32"}
    write(options.json, head | {"setting": setting, "megabytes_by_batch": megabytes})


if __name__ == "__main__":
    main()
