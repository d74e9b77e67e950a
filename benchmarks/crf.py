"""danlu.nn.CRF against pytorch-crf: loss + backward and decoding, one process, one run, the same numbers in.

python benchmarks/crf.py [--json FILE] [--repetitions N] [--threads N]

The peer runs as its README shows it (batch_first=True) and at its best (time-major, contiguous emissions, which spares
it the strided reads); both ratios are printed. Methods alternate within each repetition, so that a busy machine hits
all of them; medians are reported. Compilation is timed in processes of their own, with an empty cache and a filled one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchcrf import CRF as PeerCRF

from _machine import record, write
from danlu.nn.crf import crf_nll
from danlu.nn.crf_decode import viterbi

BATCH, STEPS = 64, 128
SIZES = (4, 21, 64)
TARGET = 5.0
FIRST_CALL = """
import time, torch
from danlu.nn import CRF
crf, f, y = CRF(4), torch.randn(2, 5, 4), torch.zeros(2, 5, dtype=torch.long)
begin = time.perf_counter()
crf(f, y).backward()
middle = time.perf_counter()
crf.decode(f)
print(middle - begin, time.perf_counter() - middle)
"""


def first_call() -> dict[str, list[float]]:
    """Seconds of the first loss + backward and the first decode of a process: cache empty, then filled."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("empty cache", "filled cache"):
            out = subprocess.run(
                [sys.executable, "-c", FIRST_CALL], env={**os.environ, "NUMBA_CACHE_DIR": folder}, check=True,
                capture_output=True, text=True,
            ).stdout  # fmt: skip
            seconds[name] = [float(x) for x in out.split()]
    return seconds


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


def case(size: int, lengths: str, repetitions: int) -> dict[str, object]:
    """One row of the table: times of all methods, and how far their numbers are apart."""
    generator = torch.Generator().manual_seed(size)
    f = torch.randn(BATCH, STEPS, size, generator=generator)
    y = torch.randint(size, (BATCH, STEPS), generator=generator)
    length = torch.full((BATCH,), STEPS)
    if lengths == "ragged":
        length = torch.randint(STEPS // 8, STEPS + 1, (BATCH,), generator=generator)
        length[0] = STEPS
    mask = torch.arange(STEPS) < length[:, None]
    peer = PeerCRF(size, batch_first=True)
    peer_best = PeerCRF(size)
    peer_best.load_state_dict(peer.state_dict())
    ours = [p.detach().clone().requires_grad_() for p in peer.parameters()]
    start, end, transitions = ours
    f_time, y_time, mask_time = (x.transpose(0, 1).contiguous() for x in (f, y, mask))
    leaf, leaf_time = f.clone().requires_grad_(), f_time.clone().requires_grad_()

    def clear(*tensors: Tensor) -> None:
        for tensor in tensors:
            tensor.grad = None

    def peer_loss(crf: PeerCRF, emissions: Tensor, tags: Tensor, keep: Tensor) -> Tensor:
        clear(emissions, *crf.parameters())
        loss = -crf(emissions, tags, keep, reduction="mean")
        loss.backward()
        return loss.detach()

    def our_loss(backend: str) -> Tensor:
        clear(leaf, *ours)
        loss = crf_nll(leaf, y, transitions, start, end, mask, backend=backend)
        loss.backward()
        return loss.detach()

    value = peer_loss(peer, leaf, y, mask)
    grads = [leaf.grad, *(p.grad for p in peer.parameters())]
    with torch.no_grad():
        paths = [tag for row in peer.decode(f, mask) for tag in row]
    apart: dict[str, float] = {}
    for backend in ("kernel", "torch"):
        apart[f"value {backend}"] = (our_loss(backend) - value).abs().item()
        apart[f"gradient {backend}"] = max(
            (a - b).abs().max().item() for a, b in zip([leaf.grad, *(p.grad for p in ours)], grads, strict=True)
        )
        same = viterbi(f, transitions, start, end, mask, backend)[0][mask].tolist()
        apart[f"tags {backend}"] = sum(a != b for a, b in zip(same, paths, strict=True))
    with torch.no_grad():
        train = medians(
            {
                "peer": torch.enable_grad()(lambda: peer_loss(peer, leaf, y, mask)),
                "peer best": torch.enable_grad()(lambda: peer_loss(peer_best, leaf_time, y_time, mask_time)),
                "kernel": torch.enable_grad()(lambda: our_loss("kernel")),
                "torch": torch.enable_grad()(lambda: our_loss("torch")),
            },
            repetitions,
        )
        decode = medians(
            {
                "peer": lambda: peer.decode(f, mask),
                "peer best": lambda: peer_best.decode(f_time, mask_time),
                "kernel": lambda: viterbi(f, transitions, start, end, mask, "kernel"),
                "torch": lambda: viterbi(f, transitions, start, end, mask, "torch"),
            },
            repetitions,
        )
    return {"tags": size, "lengths": lengths, "loss_ms": train, "decode_ms": decode, "apart": apart}


def ratios(ms: dict[str, float]) -> dict[str, float]:
    """How many times faster than the peer, as it is and at its best."""
    return {f"{ours} vs {peer}": ms[peer] / ms[ours] for ours in ("kernel", "torch") for peer in ("peer", "peer best")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = record(("danlu", "torch", "numba", "numpy", "pytorch-crf"), options.threads)
    compile_seconds = first_call()
    for name, (loss, decode) in compile_seconds.items():
        print(f"first call, {name}: loss + backward {loss:.2f} s, decode {decode:.2f} s")
    print(f"\nB={BATCH}, T={STEPS}, float32, {options.threads} threads; milliseconds, median of {options.repetitions}")
    head = ("K", "lengths", "what", "peer", "peer best", "kernel", "torch", "kernel x", "(best)", "torch x", "(best)")
    layout = "{:>3} {:<8}{:<14}" + "{:>11}" * 8
    print(layout.format(*head))
    rows = []
    for size in SIZES:
        for lengths in ("full", "ragged"):
            row = case(size, lengths, options.repetitions)
            rows.append(row)
            for key, what in (("loss_ms", "loss+backward"), ("decode_ms", "decode")):
                ms = row[key]
                assert isinstance(ms, dict)
                row[key.replace("ms", "ratio")] = times = ratios(ms)
                numbers = [f"{ms[n]:.2f}" for n in ("peer", "peer best", "kernel", "torch")]
                print(layout.format(size, lengths, what, *numbers, *(f"{x:.1f}" for x in times.values())))
    print("\nlargest difference from the peer (mean loss, its gradients, number of other tags):")
    for row in rows:
        apart = row["apart"]
        assert isinstance(apart, dict)
        print(f"{row['tags']:>3} {row['lengths']:<8}" + ", ".join(f"{k} {v:.1e}" for k, v in apart.items()))
    ratio_keys = [(key, peer) for key in ("loss_ratio", "decode_ratio") for peer in ("peer", "peer best")]
    worst = min(row[key][f"kernel vs {peer}"] for row in rows for key, peer in ratio_keys)  # type: ignore[index]
    print(f"\nkernel, worst of all cases: {worst:.1f} x (target {TARGET:.0f} x)")
    result = head | {
        "setting": {"batch": BATCH, "steps": STEPS, "dtype": "float32", "repetitions": options.repetitions},
        "first_call_seconds": compile_seconds,
        "rows": rows,
        "worst_kernel_ratio": worst,
    }
    write(options.json, result)


if __name__ == "__main__":
    main()
