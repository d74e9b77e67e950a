"""danlu.text.open_checkpoint on a TensorFlow checkpoint of BERT-base size, 412 MB: reading it into a model.

python benchmarks/tf_checkpoint.py [--json FILE] [--repetitions N] [--threads N]

The checkpoint (the 206 variables of the Chinese BERT-base, random) is written by danlu's writer into a temporary
folder. Every reading runs in a process of its own with the file cache warm; a model without memory (device "meta") gets
its parameters, dense kernels turned to (out, in); "load_tf" is the library's own call, which builds its model and
compares every name and shape before it reads. Seconds are of that call alone, imports done before. Memory is the peak
of anonymous resident pages above those before the call, from a thread that looks every two milliseconds, in a run that
is not timed. Beside it: the checksum taken by google_crc32c and by numpy, none, safetensors on the same numbers, to
which the ratio is (a format without checksums that needs no turning), and TensorFlow where it is installed (import and
reading, which is what its user waits for).
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from _machine import record, write
from danlu.text import open_checkpoint, save_checkpoint
from danlu.text.load_tf import load_tf

SECONDS = {"google_crc32c": 1.5, "load_tf": 1.5, "numpy": 7.0}
CONFIG = {
    "vocab_size": 21_128, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2,
}  # fmt: skip
MEMORY = 1.3  # times the file
TENSORFLOW = "TensorFlow 2.15.1, measured before on two Sapphire Rapids cores: import and read 7.3-9.9 s, peak 835 MB"
TENSORFLOW_READ = """
import sys, time
begin = time.perf_counter()
import tensorflow as tf
reader = tf.train.load_checkpoint(sys.argv[1])
for name in reader.get_variable_to_shape_map(): reader.get_tensor(name)
print(time.perf_counter() - begin)
"""


def shapes(vocab: int = 21_128, dim: int = 768, layers: int = 12) -> dict[str, tuple[int, ...]]:
    """Variables of BERT with its heads, as Google's code names them."""
    found: dict[str, tuple[int, ...]] = {}

    def norm(name: str) -> None:
        found.update({f"{name}/LayerNorm/{part}": (dim,) for part in ("beta", "gamma")})

    def dense(name: str, inputs: int, outputs: int) -> None:
        found.update({f"{name}/dense/kernel": (inputs, outputs), f"{name}/dense/bias": (outputs,)})

    for name, rows in (("word", vocab), ("position", 512), ("token_type", 2)):
        found[f"bert/embeddings/{name}_embeddings"] = (rows, dim)
    norm("bert/embeddings")
    for layer in range(layers):
        at = f"bert/encoder/layer_{layer}"
        for part in ("query", "key", "value"):
            found.update({f"{at}/attention/self/{part}/kernel": (dim, dim), f"{at}/attention/self/{part}/bias": (dim,)})
        dense(f"{at}/attention/output", dim, dim)
        norm(f"{at}/attention/output")
        dense(f"{at}/intermediate", dim, 4 * dim)
        dense(f"{at}/output", 4 * dim, dim)
        norm(f"{at}/output")
    dense("bert/pooler", dim, dim)
    dense("cls/predictions/transform", dim, dim)
    norm("cls/predictions/transform")
    found["cls/predictions/output_bias"] = (vocab,)
    found.update({"cls/seq_relationship/output_weights": (2, dim), "cls/seq_relationship/output_bias": (2,)})
    return found


class Parameters(nn.Module):
    """All parameters of the model by name, kernels (out, in), without memory until they are set."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in shapes().items():
            turned = shape[::-1] if name.endswith("kernel") else shape
            self.register_parameter(name.replace("/", ":"), nn.Parameter(torch.empty(turned, device="meta")))

    def fill(self, name: str, value: Tensor) -> None:
        value = value.t().contiguous() if name.endswith("kernel") else value
        name = name.replace("/", ":")
        assert self._parameters[name].shape == value.shape
        self._parameters[name] = nn.Parameter(value)


def read_ours(prefix: str, verify: bool = True) -> Parameters:
    model = Parameters()
    with open_checkpoint(prefix, verify=verify) as checkpoint:
        for name in checkpoint:
            # a kernel is copied when it is turned, so it may show the file; the rest becomes the model's own
            model.fill(name, checkpoint.tensor(name, copy=not name.endswith("kernel")))
    return model


def read_safetensors(prefix: str) -> Parameters:
    model = Parameters()
    for name, value in load_file(f"{prefix}.safetensors").items():
        model.fill(name, value)
    return model


def anonymous() -> int:
    """Bytes of resident memory that belong to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def child(method: str, prefix: str, measure: str, threads: int) -> None:
    """One reading; prints seconds or bytes."""
    torch.set_num_threads(threads)
    if method == "numpy":
        sys.modules["google_crc32c"] = None  # type: ignore[assignment]  # as if it were not installed
    elif method in ("google_crc32c", "load_tf"):
        import google_crc32c

        assert google_crc32c.implementation == "c"
    read: Callable[[], nn.Module] = {
        "google_crc32c": lambda: read_ours(prefix),
        "load_tf": lambda: load_tf(prefix, family="bert", config=CONFIG),
        "numpy": lambda: read_ours(prefix),
        "not verified": lambda: read_ours(prefix, verify=False),
        "safetensors": lambda: read_safetensors(prefix),
    }[method]
    if measure == "seconds":
        begin = time.perf_counter()
        model = read()
        print(time.perf_counter() - begin)
    else:
        before, peak, done = anonymous(), 0, threading.Event()

        def look() -> None:
            nonlocal peak
            while not done.wait(0.002):
                peak = max(peak, anonymous())

        watcher = threading.Thread(target=look)
        watcher.start()
        model = read()
        done.set()
        watcher.join()
        print(max(peak, anonymous()) - before)
    assert all(not p.is_meta for p in model.parameters())


def run(arguments: list[str]) -> float:
    return float(subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child, options.threads)
        return
    head = record(("danlu", "torch", "numpy", "safetensors"), options.threads)
    methods = ["google_crc32c", "load_tf", "numpy", "not verified", "safetensors"]
    if importlib.util.find_spec("google_crc32c") is None:
        methods = [method for method in methods if method not in ("google_crc32c", "load_tf")]
    with tempfile.TemporaryDirectory() as folder:
        prefix = f"{folder}/bert_model.ckpt"
        generator = torch.Generator().manual_seed(0)
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes().items()}
        begin = time.perf_counter()
        save_checkpoint(prefix, tensors)
        writing = time.perf_counter() - begin
        save_file(tensors, f"{prefix}.safetensors")
        size = Path(f"{prefix}.data-00000-of-00001").stat().st_size
        model = read_ours(prefix)
        for name, value in tensors.items():
            turned = value.t() if name.endswith("kernel") else value
            assert torch.equal(model._parameters[name.replace("/", ":")], turned), name
        count = len(tensors)
        del tensors, model
        begin = time.perf_counter()
        open_checkpoint(prefix)
        opening = time.perf_counter() - begin
        seconds: dict[str, list[float]] = {method: [] for method in methods}
        same = ["--threads", str(options.threads), "--child"]
        for _ in range(options.repetitions):
            for method in methods:  # in turn, so that a busy machine hits all of them
                seconds[method].append(run([__file__, *same, method, prefix, "seconds"]))
        memory = {method: run([__file__, *same, method, prefix, "memory"]) for method in methods}
        if importlib.util.find_spec("tensorflow") is not None:
            seconds["tensorflow, import and read"] = [run(["-c", TENSORFLOW_READ, prefix])]
    print(f"{count} variables, {size:,} bytes; written in {writing:.2f} s (synced), opened in {1e3 * opening:.1f} ms")
    for method, times in seconds.items():
        middle, least = statistics.median(times), min(times)
        told = f"{method:28} median {middle:5.2f} s  least {least:5.2f} s"
        told += f"{middle / statistics.median(seconds['safetensors']):6.1f} x"
        told += f"  peak memory {memory[method] / size:4.2f} x file" if method in memory else ""
        if method in SECONDS:
            ok = middle < SECONDS[method] and memory[method] < MEMORY * size
            told += f"  target {SECONDS[method]} s, {MEMORY} x: {'met' if ok else 'MISSED'}"
        print(told)
    print(TENSORFLOW)
    result = head | {
        "setting": {"bytes": size, "variables": count, "repetitions": options.repetitions},
        "write_seconds": writing,
        "open_seconds": opening,
        "read_seconds": seconds,
        "peak_memory_bytes": memory,
        "target": {"seconds": SECONDS, "memory_of_file": MEMORY},
    }
    write(options.json, result)


if __name__ == "__main__":
    main()
