"""danlu.nn.MEMM against CRF recursions: forward and backward of the head alone, one process, the same numbers in.

python benchmarks/memm.py [--json FILE] [--repetitions N] [--threads N]

B=32, T=128. Few tags (K=7): softmax, MEMM and Bi-MEMM beside pytorch-crf (an eager recursion, as its README shows it
and time-major, its best) and beside danlu's own CRF in its three forms. Many tags (K=1000): MEMM with rank 32 beside
the full matrix. Methods alternate within each repetition, so that a busy machine hits all of them; medians are
reported.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchcrf import CRF as PeerCRF

from _machine import record, write
from danlu.nn import CRF, MEMM, SoftmaxHead, crf_nll

BATCH, STEPS = 32, 128
FEW, MANY, RANK = 7, 1000, 32
TARGET_RATIO, TARGET_SECONDS = 8.0, 0.2


def medians(methods: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median milliseconds of each method, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for repetition in range(repetitions + 2):
        for name, method in methods.items():
            begin = time.perf_counter()
            method()
            if repetition >= 2:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in times.items()}


def step(head: nn.Module, loss: Callable[[Tensor], Tensor], emissions: Tensor) -> Callable[[], None]:
    """One forward and backward pass from zeroed gradients."""

    def run() -> None:
        emissions.grad = None
        head.zero_grad(set_to_none=True)
        loss(emissions).backward()

    return run


def inputs(size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    emissions = torch.randn(BATCH, STEPS, size, generator=generator).requires_grad_()
    tags = torch.randint(size, (BATCH, STEPS), generator=generator)
    lengths = torch.randint(STEPS // 2, STEPS + 1, (BATCH,), generator=generator)
    lengths[0] = STEPS
    return emissions, tags, torch.arange(STEPS) < lengths[:, None]


def few_tags() -> dict[str, Callable[[], None]]:
    f, y, mask = inputs(FEW)
    heads: dict[str, nn.Module] = {
        "softmax": SoftmaxHead(FEW),
        "MEMM": MEMM(FEW),
        "Bi-MEMM": MEMM(FEW, bidirectional=True),
        "CRF (danlu)": CRF(FEW),
    }
    methods = {name: step(head, lambda x, h=head: h(x, y, mask), f) for name, head in heads.items()}  # type: ignore[misc]
    crf = heads["CRF (danlu)"]
    for backend in ("torch", "autograd"):
        methods[f"CRF (danlu, {backend})"] = step(
            crf,
            lambda x, b=backend: crf_nll(x, y, crf.transitions, crf.start, crf.end, mask, backend=b),  # type: ignore[misc]
            f,
        )
    peer, best = PeerCRF(FEW, batch_first=True), PeerCRF(FEW)
    methods["CRF (pytorch-crf)"] = step(peer, lambda x: -peer(x, y, mask, reduction="mean"), f)
    f_time = f.detach().transpose(0, 1).contiguous().requires_grad_()
    y_time, mask_time = y.T.contiguous(), mask.T.contiguous()
    methods["CRF (pytorch-crf, best)"] = step(best, lambda x: -best(x, y_time, mask_time, reduction="mean"), f_time)
    return methods


def many_tags() -> dict[str, Callable[[], None]]:
    f, y, mask = inputs(MANY)
    heads = {
        "softmax": SoftmaxHead(MANY),
        f"MEMM, rank {RANK}": MEMM(MANY, rank=RANK),
        f"Bi-MEMM, rank {RANK}": MEMM(MANY, rank=RANK, bidirectional=True),
        "MEMM, full matrix": MEMM(MANY),
    }
    return {name: step(head, lambda x, h=head: h(x, y, mask), f) for name, head in heads.items()}  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = record(("danlu", "torch", "numpy", "pytorch-crf"), options.threads)
    print(f"B={BATCH}, T={STEPS}, ragged, float32, {options.threads} threads; ms, median of {options.repetitions}")
    few = medians(few_tags(), options.repetitions)
    many = medians(many_tags(), max(3, options.repetitions // 3))
    for size, table in ((FEW, few), (MANY, many)):
        print(f"\nK={size}")
        for name, ms in table.items():
            print(f"  {name:<26}{ms:>10.2f}")
    eager = few["CRF (pytorch-crf, best)"] / few["Bi-MEMM"]
    own = few["CRF (danlu)"] / few["Bi-MEMM"]
    seconds = many[f"MEMM, rank {RANK}"] / 1e3
    print(f"\nBi-MEMM is {eager:.1f} x faster than the eager CRF at its best (target {TARGET_RATIO:.0f} x)")
    print(f"danlu's CRF takes {own:.2f} x the time of Bi-MEMM")
    print(f"K={MANY}, rank {RANK}: {seconds:.3f} s a step (target {TARGET_SECONDS} s)")
    result = head | {
        "setting": {"batch": BATCH, "steps": STEPS, "dtype": "float32", "repetitions": options.repetitions},
        "ms": {f"K={FEW}": few, f"K={MANY}": many},
        "eager_crf_over_bi_memm": eager,
        "own_crf_over_bi_memm": own,
        "many_tags_seconds": seconds,
    }
    write(options.json, result)


if __name__ == "__main__":
    main()
