"""The cost of one EMA update: ours, the loop per tensor that timm uses, and torch's AveragedModel.

Run: python benchmarks/ema.py [--tensors 200] [--size 4096] [--threads 1] [--json FILE]; prints one JSON line.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from _machine import record, write
from danlu.optim import EMA

DECAY = 0.999


def milliseconds(*functions: Callable[[], object], rounds: int = 40) -> list[float]:
    """Median of each, taken in turns so that a busy machine hits all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for taken, function in zip(times, functions, strict=True):
            began = time.perf_counter()
            function()
            taken.append(1e3 * (time.perf_counter() - began))
    return [statistics.median(taken[5:]) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=int, default=200)
    parser.add_argument("--size", type=int, default=4096, help="numbers in a tensor")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    head = record(("danlu", "torch"), options.threads)
    model = nn.ParameterList([nn.Parameter(torch.randn(options.size)) for _ in range(options.tensors)])
    shadow = copy.deepcopy(model)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    plain = AveragedModel(model, avg_fn=lambda mean, value, _: DECAY * mean + (1 - DECAY) * value)
    ema = EMA(model, decay=DECAY)

    @torch.no_grad()
    def loop() -> None:  # as timm's ModelEmaV2 does it
        for mean, value in zip(shadow.state_dict().values(), model.state_dict().values(), strict=True):
            mean.copy_(DECAY * mean + (1 - DECAY) * value)

    @torch.no_grad()
    def lean_loop() -> None:  # the best a loop can do
        for mean, value in zip(shadow.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, 1 - DECAY)

    functions = [ema.update, loop, lean_loop, lambda: averaged.update_parameters(model)]
    functions.append(lambda: plain.update_parameters(model))
    ours, timm, lean, foreach, default = milliseconds(*functions)
    row = {
        "tensors": options.tensors,
        "size": options.size,
        "ours_ms": ours,
        "timm_like_loop_ms": timm,
        "lerp_loop_ms": lean,
        "AveragedModel_multi_avg_fn_ms": foreach,
        "AveragedModel_avg_fn_ms": default,
    }
    row |= {k.replace("_ms", "_ratio"): v / ours for k, v in list(row.items())[3:]}
    row = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
    print(json.dumps(row))
    write(options.json, head | row)


if __name__ == "__main__":
    main()
