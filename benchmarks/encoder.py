"""danlu's encoder against transformers' BertModel: encoding 256 short texts, a training step; one run, equal weights.

python benchmarks/encoder.py [--json FILE] [--repetitions N] [--threads N] [--parts encode,train]

BERT-base shape (12 layers, vocabulary 21128), random weights written by transformers and read by load_hf. Lengths are
log-normal as in short comments (mean near 25 tokens, at most 128), batches of 32 in the order given. The peer also runs
sorted by length, its best; ours also takes all texts in one call, since padding costs it nothing. Tokens are real ones.
Methods alternate within each repetition, so that a busy machine hits all of them; medians are reported. How far the
outputs lie from float32 is printed beside the speed. Training runs twice, in a process as it starts and after
`danlu.tasks.memory.keep_freed_memory`, which `danlu train` calls: us and the peer alike, and each as its program runs.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from _machine import record, write
from danlu.tasks.memory import keep_freed_memory
from danlu.text import load_hf
from danlu.text.inference import for_inference

Batch = tuple[Tensor, Tensor]
TEXTS, BATCH = 256, 32
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TARGETS = {"bf16 given order": 3.0, "bf16 sorted": 1.7, "fp32 given order": 2.5, "train step": 3.0}


def texts() -> list[Tensor]:
    """Random ids of texts whose lengths are log-normal: median 19, mean near 25, at most 128."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.round(np.exp(rng.normal(np.log(19), 0.75, TEXTS))), 4, 128).astype(int)
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 21128, (int(length),), generator=generator) for length in lengths]


def batches(rows: list[Tensor], size: int = BATCH) -> list[Batch]:
    """Batches, each padded to its longest text."""
    made = []
    for i in range(0, len(rows), size):
        ids = nn.utils.rnn.pad_sequence(rows[i : i + size], batch_first=True)
        made.append((ids, ids != 0))
    return made


def medians(methods: dict[str, Callable[[], object]], repetitions: int, warm: int = 1) -> dict[str, float]:
    """Median seconds of each method, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for repetition in range(repetitions + warm):
        for name, method in methods.items():
            begin = time.perf_counter()
            method()
            if repetition >= warm:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def autocast(precision: str) -> torch.autocast:
    """The peer's way to bfloat16."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")


def encode(folder: str, repetitions: int, precisions: list[str]) -> dict[str, object]:
    """Seconds for the 256 texts, and errors against float32."""
    rows = texts()
    given, ordered, whole = batches(rows), batches(sorted(rows, key=len)), batches(rows, TEXTS)
    with contextlib.redirect_stdout(io.StringIO()):
        peer = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    model = load_hf(folder, heads=())

    def run_peer(work: list[Batch], precision: str) -> None:
        with torch.inference_mode(), autocast(precision):
            for ids, keep in work:
                peer(ids, attention_mask=keep.long())

    def run(fast: nn.Module, work: list[Batch]) -> None:
        with torch.inference_mode():
            for ids, keep in work:
                fast(ids, mask=keep)

    def outputs(call: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        with torch.inference_mode():
            return torch.cat([call(ids, keep)[keep].float() for ids, keep in given[:2]])

    exact = outputs(lambda ids, keep: peer(ids, attention_mask=keep.long()).last_hidden_state)
    result: dict[str, object] = {
        "real tokens": sum(len(row) for row in rows),
        "padded tokens": {
            "given": sum(ids.numel() for ids, _ in given),
            "sorted": sum(ids.numel() for ids, _ in ordered),
        },
    }
    for precision in precisions:
        fast = for_inference(model, DTYPES[precision])
        seconds = medians(
            {
                "transformers, given order": lambda p=precision: run_peer(given, p),
                "transformers, sorted": lambda p=precision: run_peer(ordered, p),
                "danlu, given order": lambda f=fast: run(f, given),
                "danlu, sorted": lambda f=fast: run(f, ordered),
                "danlu, one call": lambda f=fast: run(f, whole),
            },
            repetitions,
        )
        ours = outputs(lambda ids, keep, f=fast: f(ids, mask=keep).hidden_states)
        with autocast(precision):
            theirs = outputs(lambda ids, keep: peer(ids, attention_mask=keep.long()).last_hidden_state)
        result[precision] = {
            "seconds": seconds,
            "ratios": {
                "given order, batches of 32": seconds["transformers, given order"] / seconds["danlu, given order"],
                "given order, one call": seconds["transformers, given order"] / seconds["danlu, one call"],
                "sorted": seconds["transformers, sorted"] / min(seconds["danlu, sorted"], seconds["danlu, one call"]),
            },
            "mean error": {
                "danlu": (ours - exact).abs().mean().item(),
                "transformers": (theirs - exact).abs().mean().item(),
            },
        }
        print(json.dumps({precision: result[precision]}), file=sys.stderr, flush=True)
        del fast
    return result


class Classifier(nn.Module):
    """danlu's encoder with transformers' classification head."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.encoder = load_hf(folder, heads=("pooler",))
        self.dropout, self.classifier = nn.Dropout(0.1), nn.Linear(768, 2)

    def forward(self, ids: Tensor, keep: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.encoder(ids, mask=keep).pooled))


def train(folder: str, repetitions: int) -> dict[str, object]:
    """Seconds of a step at batch 32, bf16 autocast, mean of three batches; the peer as it is and at its best.

    First in a process as it starts, then after `keep_freed_memory`, which the programs of danlu call and the peer's do
    not; every method is measured both ways.
    """
    rows = texts()[: 3 * BATCH]
    given, ordered = batches(rows), batches(sorted(rows, key=len))
    labels = torch.arange(BATCH) % 2

    def stepper(make: Callable[[], nn.Module], work: list[Batch], call, fused: bool) -> Callable[[], object]:
        model = make().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused or None)

        def steps() -> None:
            for ids, keep in work:
                optimizer.zero_grad()
                with autocast("bf16"):
                    logits = call(model, ids, keep)
                F.cross_entropy(logits.float(), labels).backward()
                optimizer.step()

        return steps

    def peer() -> nn.Module:
        with contextlib.redirect_stdout(io.StringIO()):
            return BertForSequenceClassification.from_pretrained(folder, num_labels=2)

    def call_peer(model: nn.Module, ids: Tensor, keep: Tensor) -> Tensor:
        return model(ids, attention_mask=keep.long()).logits

    def call(model: nn.Module, ids: Tensor, keep: Tensor) -> Tensor:
        return model(ids, keep)

    methods = {
        "transformers": (peer, given, call_peer, False),
        "transformers at its best": (peer, ordered, call_peer, True),
        "danlu": (lambda: Classifier(folder), given, call, True),
    }

    def measure() -> dict[str, float]:
        return {  # one model in memory at a time, so no alternation here
            name: medians({name: stepper(*arguments)}, repetitions)[name] / len(given)
            for name, arguments in methods.items()
        }

    plain = measure()
    result: dict[str, object] = {"seconds": plain, "ratios": ratios(plain, plain["danlu"])}
    if keep_freed_memory():
        kept = measure()
        result |= {"seconds, freed memory kept": kept, "ratios, freed memory kept": ratios(kept, kept["danlu"])}
        result["ratios, each program as it runs"] = ratios(plain, kept["danlu"])
    return result


def ratios(seconds: dict[str, float], ours: float) -> dict[str, float]:
    """How many of our steps go into one of each peer's."""
    return {name: value / ours for name, value in seconds.items() if name != "danlu"}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", default="encode,train")
    parser.add_argument("--precisions", default="bf16,fp32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    result = record(("danlu", "torch", "transformers", "numpy"), options.threads) | {"targets": TARGETS}
    with tempfile.TemporaryDirectory() as folder:
        BertModel(BertConfig(vocab_size=21128)).save_pretrained(folder)
        if "encode" in options.parts:
            result["encode"] = encode(folder, options.repetitions, options.precisions.split(","))
        if "train" in options.parts:
            result["train"] = train(folder, options.repetitions)
    print(json.dumps(result, indent=1))
    write(options.json, result)


if __name__ == "__main__":
    main()
