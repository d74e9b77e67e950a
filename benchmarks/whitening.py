"""Whitening of float32 vectors whose mean is 100 times their spread: ours and scikit-learn's PCA(whiten=True).

Run: python benchmarks/whitening.py [--rows 200000] [--features 768] [--ratio 100] [--stream 1000000] [--chunk 10000]
[--processes 2] [--threads 1] [--rounds 5] [--json FILE]; prints one JSON line. Ours with float32 products (the default)
and with float64 ones; PCA with the solver it chooses by itself, and the same on vectors cast to float64, which is how
it gets the covariance right (--rounds-double). All keep all dimensions. cov_error is max |cov - 1| of the whitened
vectors, computed in float64. The stream is fitted chunk by chunk in a fresh process; its memory is the peak beyond what
was held when one chunk was there. The parts that several processes fit are merged and compared with one fit.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA

from _machine import milliseconds, record, write
from danlu.text import Whitening


def vectors(rows: int, features: int, ratio: float) -> torch.Tensor:
    """Unequal spreads, 1 in the mean, in mixed directions, and `ratio` as the mean of every feature."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.5, 1.5, features)
    turn = torch.linalg.qr(torch.randn(features, features, generator=generator)).Q
    out = torch.empty(rows, features)
    for part in out.split(8192):
        part.copy_((torch.randn(part.shape, generator=generator) * spread) @ turn + ratio)
    return out


def cov_error(y: np.ndarray, divisor: int) -> float:
    """max |cov - 1| in float64 with the divisor of who whitened, by batches so that no copy of everything is made."""
    batches = np.array_split(y, max(1, len(y) // 8192))
    mean = np.sum([batch.sum(0, dtype=np.float64) for batch in batches], 0) / len(y)
    cov = np.zeros((y.shape[1], y.shape[1]))
    for batch in batches:
        centred = batch.astype(np.float64) - mean
        cov += centred.T @ centred
    return float(np.abs(cov / divisor - np.eye(y.shape[1])).max())


def resident() -> int:
    """Bytes in memory now."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def stream(options: argparse.Namespace, channel: Any) -> None:
    """Fit chunk by chunk, each drawn into the same memory: the peak beyond one chunk, and the time of fitting."""
    torch.set_num_threads(options.threads)
    held = torch.full((options.chunk, options.features), 1.0)  # written to, so that it is in memory
    before, seconds = resident(), 0.0
    generator, whitening = torch.Generator().manual_seed(0), Whitening()
    for begin in range(0, options.stream, options.chunk):
        part = held[: options.stream - begin].normal_(options.ratio, 1.0, generator=generator)
        began = time.perf_counter()
        whitening.partial_fit(part)
        seconds += time.perf_counter() - began
    whitening.eigenvalues_  # noqa: B018 - solve
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    channel.put({"stream_rows": whitening.n_samples_seen_, "stream_s": seconds, "stream_mb": (peak - before) / 1e6})


def fit_part(path: str, begin: int, end: int, options: argparse.Namespace) -> None:
    """One process's share of the vectors, left as a file."""
    torch.set_num_threads(1)
    Whitening(products="float64").partial_fit(np.load(f"{path}/x.npy", mmap_mode="r")[begin:end]).save(
        f"{path}/{begin}"
    )


def merged(options: argparse.Namespace, x: np.ndarray, folder: str) -> float:
    """Largest relative difference between the covariance that processes put together and that of one fit."""
    np.save(f"{folder}/x.npy", x)
    cuts = [0, *(len(x) * i // (2 * options.processes) for i in range(1, options.processes)), len(x)]  # uneven
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=fit_part, args=(folder, a, b, options)) for a, b in pairwise(cuts)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    total = Whitening.load(f"{folder}/{cuts[0]}")
    for begin in cuts[1:-1]:
        total.merge(Whitening.load(f"{folder}/{begin}"))
    whole = Whitening(products="float64").fit(x).moments_.covariance
    return float((total.moments_.covariance - whole).abs().max() / whole.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--ratio", type=float, default=100.0, help="mean of a feature over its spread")
    parser.add_argument("--stream", type=int, default=1_000_000, help="vectors that are streamed")
    parser.add_argument("--chunk", type=int, default=10_000, help="vectors of a chunk")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rounds-double", type=int, default=1, help="of PCA in float64, which is slow and large")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = record(("danlu", "torch", "scikit-learn", "numpy"), options.threads)
    context = multiprocessing.get_context("spawn")
    channel = context.Queue()
    child = context.Process(target=stream, args=(options, channel))
    child.start()
    row: dict[str, Any] = {"rows": options.rows, "features": options.features, "ratio": options.ratio}
    row |= channel.get(timeout=3600)
    child.join()
    x = vectors(options.rows, options.features, options.ratio).numpy()
    ours, exact, theirs = Whitening(), Whitening(products="float64"), PCA(whiten=True)
    fits = [lambda: ours.fit(x), lambda: exact.fit(x), lambda: theirs.fit(x)]
    names = ("ours", "ours_float64_products", "pca")
    for name, taken in zip(names, milliseconds(*fits, rounds=options.rounds), strict=True):
        row[f"{name}_fit_ms"] = taken
    maps = [lambda: ours.transform(x), lambda: theirs.transform(x)]
    row["ours_transform_ms"], row["pca_transform_ms"] = milliseconds(*maps, rounds=options.rounds)
    for name, map_ in zip(names, (ours, exact, theirs), strict=True):
        row[f"{name}_cov_error"] = cov_error(map_.transform(x), len(x) - (name == "pca"))  # PCA divides by N - 1
    row["fit_ratio"] = row["ours_fit_ms"] / row["pca_fit_ms"]
    row["float64_products_fit_ratio"] = row["ours_float64_products_fit_ms"] / row["pca_fit_ms"]
    row["transform_ratio"] = row["ours_transform_ms"] / row["pca_transform_ms"]
    both = [row[f"{name}_fit_ms"] + row[f"{name}_transform_ms"] for name in ("ours", "pca")]
    row["fit_and_transform_ratio"] = both[0] / both[1]
    if options.rounds_double:
        double = PCA(whiten=True)
        (row["pca_float64_fit_ms"],) = milliseconds(
            lambda: double.fit(x.astype(np.float64)), rounds=options.rounds_double
        )
        row["pca_float64_cov_error"] = cov_error(double.transform(x.astype(np.float64)), len(x) - 1)
    with tempfile.TemporaryDirectory() as folder:
        row["merge_error"] = merged(options, x[:50_000], folder)
    row = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}
    print(json.dumps(row))
    write(options.json, head | row)


if __name__ == "__main__":
    main()
