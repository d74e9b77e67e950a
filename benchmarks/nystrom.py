"""Nyström attention against softmax attention and the two public implementations: time, slope, break-even, error.

python benchmarks/nystrom.py [--json FILE] [--sizes 512,1024,...] [--rounds N] [--threads N]
    [--directions forward,train]

One layer of self-attention, batch 1, 8 heads of 64, 64 landmarks, float32, no mask: the only case in which
transformers' layer computes what its paper says (length = segment_means_seq_len, convolution off). Every method
projects queries, keys and values with the same weights; softmax is torch's fused kernel; lucidrains' layer (pip install
nystrom-attention, left out where it is missing) also has an output projection, and its residual convolution is off.
Ours runs with the steps of the pseudo-inverse that its matrices need ("auto") and with the peers' six ("paper").
Methods alternate within a round, medians are reported. Slope: the power of n between the two largest lengths. Break-
even: the smallest length measured from which on a method is never slower than softmax. Errors are relative to softmax,
on inputs whose neighbours are alike (blocks of 16 plus noise) and on independent ones, where landmarks have nothing to
find. "batch error": how far the first of three sequences lies from what it is alone, by scale 1, 3 and 9 of the inputs;
"padding error": how far real tokens move when the content of padding changes.
"""

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import NystromformerConfig
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

from _machine import milliseconds, record, write
from danlu.nn import nystrom_attention

try:
    from nystrom_attention import NystromAttention as Lucidrains
except ImportError:
    Lucidrains = None

DIM, HEADS, LANDMARKS = 512, 8, 64
SIZES = (512, 1024, 2048, 4096, 8192, 16384)
Layer = Callable[[Tensor], Tensor]


def inputs(n: int, kind: str, batch: int = 1) -> Tensor:
    """(batch, n, DIM): blocks of 16 equal vectors plus noise, or independent vectors."""
    generator = torch.Generator().manual_seed(n)
    free = torch.randn(batch, n, DIM, generator=generator)
    if kind == "independent":
        return free
    blocks = torch.randn(batch, math.ceil(n / 16), DIM, generator=generator).repeat_interleave(16, 1)[:, :n]
    return blocks + 0.1 * free


def projected(x: Tensor, weights: nn.ModuleList) -> list[Tensor]:
    return [linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for linear in weights]


def peer(n: int, weights: nn.ModuleList) -> NystromformerSelfAttention:
    """transformers' layer for one length, with our projections and without its convolution."""
    config = NystromformerConfig(
        hidden_size=DIM, num_attention_heads=HEADS, num_landmarks=LANDMARKS, segment_means_seq_len=n
    )
    layer = NystromformerSelfAttention(config).eval()
    layer.conv_kernel_size = None  # the configuration takes no None
    for mine, name in zip(weights, ("query", "key", "value"), strict=True):
        getattr(layer, name).load_state_dict(mine.state_dict())
    return layer


def methods(n: int, weights: nn.ModuleList) -> dict[str, tuple[Layer, list[nn.Parameter]]]:
    """Name to a layer and its parameters, for one length."""

    def softmax(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*projected(x, weights)).transpose(1, 2).flatten(2)

    def ours(pinv: str) -> Layer:
        return lambda x: nystrom_attention(*projected(x, weights), LANDMARKS, pinv=pinv).transpose(1, 2).flatten(2)

    own = list(weights.parameters())
    found: dict[str, tuple[Layer, list[nn.Parameter]]] = {
        "softmax": (softmax, own), "danlu auto": (ours("auto"), own), "danlu paper": (ours("paper"), own),
    }  # fmt: skip
    if n > LANDMARKS and n % LANDMARKS == 0:
        theirs = peer(n, weights)
        used = [p for name, p in theirs.named_parameters() if not name.startswith("conv")]
        found["transformers"] = (lambda x: theirs(x)[0], used)
    if Lucidrains is not None:
        other = Lucidrains(
            dim=DIM, dim_head=DIM // HEADS, heads=HEADS, num_landmarks=LANDMARKS, pinv_iterations=6, residual=False
        )
        found["lucidrains"] = (other, list(other.parameters()))
    return found


def step(layer: Layer, parameters: list[nn.Parameter], x: Tensor) -> Callable[[], None]:
    """Forward and backward to the inputs and the parameters."""
    x = x.clone().requires_grad_()

    def call() -> None:
        x.grad = None
        for parameter in parameters:
            parameter.grad = None
        layer(x).square().mean().backward()

    return call


def timings(sizes: list[int], direction: str, rounds: int, weights: nn.ModuleList) -> dict[str, dict[int, float]]:
    """Milliseconds by method and length."""
    found: dict[str, dict[int, float]] = {}
    for n in sizes:
        x, layers = inputs(n, "blocks"), methods(n, weights)
        calls: list[Callable[[], object]] = []
        for layer, parameters in layers.values():
            if direction == "train":
                calls.append(step(layer, parameters, x))
            else:
                calls.append(partial(layer, x))
        with torch.set_grad_enabled(direction == "train"):
            times = milliseconds(*calls, rounds=rounds if n < 8192 else max(1, rounds // 2))
        for name, time in zip(layers, times, strict=True):
            found.setdefault(name, {})[n] = round(time, 3)
    return found


def break_even(times: dict[int, float], softmax: dict[int, float]) -> int | None:
    """The smallest length from which on a method is never slower than softmax; None: there is none."""
    best = None
    for n in sorted(times, reverse=True):
        if times[n] > softmax[n]:
            break
        best = n
    return best


def slope(times: dict[int, float]) -> float | None:
    """The power of n between the two largest lengths."""
    if len(times) < 2:
        return None
    first, last = sorted(times)[-2:]
    return round(math.log(times[last] / times[first]) / math.log(last / first), 3)


@torch.no_grad()
def errors(sizes: list[int], weights: nn.ModuleList) -> dict[str, dict[str, dict[int, float]]]:
    """Relative error against softmax by inputs, method and length; layers with other weights have none."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for kind in ("blocks", "independent"):
        for n in sizes:
            layers, x = methods(n, weights), inputs(n, kind)
            exact = layers["softmax"][0](x)
            for name in ("danlu auto", "danlu paper", "transformers"):
                if name in layers:
                    error = ((layers[name][0](x) - exact).norm() / exact.norm()).item()
                    found.setdefault(kind, {}).setdefault(name, {})[n] = error
    return found


@torch.no_grad()
def leaks(n: int, weights: nn.ModuleList) -> dict[str, dict[str, float]]:
    """What neighbours in the batch and the content of padding do to a sequence."""
    layers = methods(n, weights)
    x = inputs(n, "blocks", 3) * torch.tensor([1.0, 3.0, 9.0])[:, None, None]
    batch = {}
    for name, (layer, _) in layers.items():
        alone = layer(x[:1])
        batch[name] = ((layer(x)[:1] - alone).norm() / alone.norm()).item()
    real = n - n // 4
    keep = torch.arange(n)[None] < real
    other = x[:1].clone()
    other[:, real:] = 5 * torch.randn(other[:, real:].shape, generator=torch.Generator().manual_seed(1))
    hidden = (~keep * torch.finfo(torch.float32).min)[:, None, None]

    def masked(name: str, y: Tensor) -> Tensor:
        if name.startswith("danlu"):
            parts = projected(y, weights)
            out = nystrom_attention(*parts, LANDMARKS, mask=keep, pinv=name.split()[1]).transpose(1, 2).flatten(2)
        elif name == "softmax":
            mask = keep[:, None, None]
            out = F.scaled_dot_product_attention(*projected(y, weights), mask).transpose(1, 2).flatten(2)
        elif name == "transformers":
            out = peer(n, weights)(y, hidden)[0]
        else:
            out = layers[name][0](y, mask=keep)  # type: ignore[call-arg]
        return out[:, :real]

    padding = {}
    for name in layers:
        first = masked(name, x[:1])
        padding[name] = ((masked(name, other) - first).norm() / first.norm()).item()
    return {"batch error": batch, "padding error": padding}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--directions", default="forward,train")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    packages = ["danlu", "torch", "transformers", *(["nystrom-attention"] if Lucidrains is not None else [])]
    result = record(packages, options.threads) | {"target": "break-even with softmax at n <= 1024"}
    sizes = [int(size) for size in options.sizes.split(",")]
    weights = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(3))
    with torch.no_grad():
        for linear in weights[:2]:
            linear.weight.mul_(3.0)  # scores of a trained layer's size; fresh ones make every attention a mean
    for direction in options.directions.split(","):
        times = timings(sizes, direction, options.rounds, weights)
        softmax = times["softmax"]
        result[direction] = {
            "milliseconds": times,
            "softmax over": {
                name: {n: round(softmax[n] / t, 3) for n, t in own.items()}
                for name, own in times.items()
                if name != "softmax"
            },
            "break-even": {name: break_even(own, softmax) for name, own in times.items() if name != "softmax"},
            "slope": {name: slope(own) for name, own in times.items()},
        }
    result["relative error"] = errors([n for n in sizes if n <= 4096], weights)
    result |= leaks(min(sizes), weights)
    print(json.dumps(result, indent=1))
    write(options.json, result)


if __name__ == "__main__":
    main()
