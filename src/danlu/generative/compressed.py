r"""Compressed images as a file: what a model's coder puts on a bit stack, and what it takes to get it back.

    header   "DLC1", images, channels, height, width, levels, images put on plainly, digest of the model (8 bytes),
             digest of the pixels (8 bytes), little-endian                                                    (1)
    plain    the first images as uniform levels, where the bits that the model's coder takes before it gives (bits
             back) would cost more                                                                            (2)
    batches  1 image, then a quarter of those that are on the stack, at most `coder.most`                     (3)

What is read back is compared with the digest: a file that another model wrote, or that this machine cannot read (its
processor computes other last digits), is an error and never a wrong picture.

Source: own definition; `danlu.generative.bits_back`.
Shapes: N images (N, C, H, W).
"""

import hashlib
import math
import struct
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from danlu.generative.ans import BitStack, cumulative_frequencies
from danlu.generative.bits_back import Coder

__all__ = ["compress", "decompress"]
HEADER = struct.Struct("<4sIHHHHH8s8s")  # eq. (1)
MAGIC = b"DLC1"


def compress(coder: Coder, x: Tensor, levels: int, model: bytes = b"") -> bytes:
    """Images as a file.

    Args:
        coder: of a model that was trained on such images.
        x: (N, C, H, W) uint8, levels 0 ... L - 1.
        levels: L, 2 to 256.
        model: digest of the model; files of another one are refused when read.

    Returns:
        The bytes; a header of 34 and what the model says.

    Raises:
        ValueError: no images of such levels, or too many at once.
    """
    if x.ndim != 4 or x.dtype != torch.uint8 or not x.numel():
        raise ValueError(f"compress needs images (N, C, H, W) uint8, got {tuple(x.shape)} {x.dtype}")
    if not 2 <= levels <= 256 or int(x.max()) >= levels:
        raise ValueError(f"compress needs levels below {levels}, 2 to 256 of them; got {int(x.max())}")
    if len(x) >= 1 << 32 or max(x.shape[1:]) >= 1 << 16:
        raise ValueError(f"a file holds up to 2^32 images of up to 65,535 pixels a side, got {tuple(x.shape)}")
    trial = BitStack(feed=_words())
    coder.push(trial, x[:1])
    taken, one = 32 * trial.fed, x[0].numel() * math.log2(levels)
    plain = min(len(x), math.ceil(taken / one)) if taken > one else 0  # eq. (2)
    stack = BitStack(feed=_words())
    for image in x[:plain]:
        stack.push_all(image.flatten().numpy(), _uniform(image.numel(), levels))
    for begin, end in _batches(plain, len(x), coder.most):
        coder.push(stack, x[begin:end])
    head = HEADER.pack(MAGIC, len(x), *x.shape[1:], levels, plain, _short(model), _pixels(x))
    return head + stack.words().tobytes()


def decompress(coder: Coder, content: bytes, model: bytes = b"") -> Tensor:
    """The images of a file.

    Args:
        coder: of the model that wrote it.
        content: of the file.
        model: its digest.

    Returns:
        (N, C, H, W) uint8.

    Raises:
        ValueError: no such file, damaged, or of another model.
    """
    if len(content) < HEADER.size + 12 or (len(content) - HEADER.size) % 4 or content[:4] != MAGIC:
        raise ValueError("this is no file of compressed images, or it is truncated")
    _, count, channels, height, width, levels, plain, written_by, pixels = HEADER.unpack_from(content)
    if written_by != _short(model):
        raise ValueError("these images were compressed by another model; give the folder that compressed them")
    stack = BitStack(np.frombuffer(content, "<u4", offset=HEADER.size))
    parts = []
    for begin, end in reversed(_batches(plain, count, coder.most)):
        parts.append(coder.pop(stack, end - begin))
    item = (channels, height, width)
    for _ in range(plain):
        found = stack.pop_all(_uniform(math.prod(item), levels))
        parts.append(torch.from_numpy(found).to(torch.uint8).view(1, *item))
    x = torch.cat(parts[::-1])
    if _pixels(x) != pixels:
        raise ValueError(
            "the images do not come out as they went in: the file is damaged, or this machine computes the model in "
            "other last digits than the one that wrote it"
        )
    return x


def _batches(begin: int, end: int, most: int) -> list[tuple[int, int]]:
    """Where batches begin and end, eq. (3)."""
    found = []
    while begin < end:
        found.append((begin, min(end, begin + max(1, min(most, begin // 4)))))
        begin = found[-1][1]
    return found


def _uniform(count: int, levels: int) -> np.ndarray:
    """Sums of frequencies of levels that are all alike."""
    return np.broadcast_to(cumulative_frequencies(np.linspace(0, 1, levels + 1), 24), (count, levels + 1))


def _words() -> Iterator[int]:
    """Bits without an end, always the same."""
    source = np.random.Generator(np.random.PCG64(5))
    while True:
        yield int(source.integers(1 << 32))


def _short(model: bytes) -> bytes:
    return hashlib.sha256(model).digest()[:8]


def _pixels(x: Tensor) -> bytes:
    return hashlib.sha256(x.contiguous().numpy().tobytes()).digest()[:8]
