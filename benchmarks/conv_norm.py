"""The norm of a convolution: ours, the singular values of every frequency, and the materialised operator.

Run: python benchmarks/conv_norm.py [--channels 64] [--size 32] [--kernel 3] [--dense-channels 8] [--dense-size 16]
[--threads 1] [--json FILE]; prints one JSON line. The dense operator has (channels size^2)^2 numbers, so it is built
for smaller sizes, on which ours is timed as well.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from _machine import milliseconds, record, write
from danlu.math import conv_norm


def every_frequency(weight: Tensor, size: int) -> Tensor:
    """Sedghi, Gupta and Long: the transform of the kernel, all singular values of all size^2 blocks."""
    return torch.linalg.svdvals(torch.fft.fft2(weight, s=(size, size)).permute(2, 3, 0, 1)).amax()


def materialised(weight: Tensor, size: int, mode: str) -> Tensor:
    """The whole operator, a column for each place of the input, and its largest singular value."""
    channels, pad = weight.shape[1], weight.shape[2] // 2
    x = torch.eye(channels * size**2).view(-1, channels, size, size)
    x = F.pad(x, (pad,) * 4, mode="circular" if mode == "circular" else "constant")
    return torch.linalg.matrix_norm(F.conv2d(x, weight).flatten(1), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--kernel", type=int, default=3)
    parser.add_argument("--dense-channels", type=int, default=8)
    parser.add_argument("--dense-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    head = record(("danlu", "torch"), options.threads)
    pad = options.kernel // 2
    large = torch.randn(options.channels, options.channels, options.kernel, options.kernel)
    small = torch.randn(options.dense_channels, options.dense_channels, options.kernel, options.kernel)
    n, m = options.size, options.dense_size

    def ours(weight: Tensor, size: int, mode: str) -> Tensor:
        return conv_norm(weight, size, padding=pad, padding_mode=mode)

    times = milliseconds(
        lambda: ours(large, n, "circular"),
        lambda: ours(large, n, "zeros"),
        lambda: every_frequency(large, n),
        lambda: ours(small, m, "circular"),
        lambda: ours(small, m, "zeros"),
        lambda: materialised(small, m, "circular"),
        lambda: materialised(small, m, "zeros"),
        rounds=options.rounds,
    )
    names = ("circular", "zeros", "every_frequency", "small_circular", "small_zeros", "dense_circular", "dense_zeros")
    row: dict[str, object] = {"channels": options.channels, "size": n, "kernel": options.kernel}
    row |= {"dense_channels": options.dense_channels, "dense_size": m}
    row |= {f"{name}_ms": round(t, 4) for name, t in zip(names, times, strict=True)}
    row["every_frequency_over_circular"] = round(times[2] / times[0], 2)
    row["dense_over_circular"] = round(times[5] / times[3], 2)
    row["dense_over_zeros"] = round(times[6] / times[4], 2)
    exact = {"circular": every_frequency(large, n), "dense_zeros": materialised(small, m, "zeros")}
    row["circular_error"] = float((ours(large, n, "circular") / exact["circular"] - 1).abs())
    row["zeros_error"] = float((ours(small, m, "zeros") / exact["dense_zeros"] - 1).abs())
    print(json.dumps(row))
    write(options.json, head | row)


if __name__ == "__main__":
    main()
