"""Images by name, as the whole numbers they are stored as.

    dev = images with sha256(pixels) mod 10 = 0 of the official training part, train the others                 (1)
    order of a part: that of the hash, so that the first N are a fair sample whatever order the file has         (2)

Source: the sets of `danlu.tasks.known_sets`.
Shapes: N images of C channels, H x W pixels.
"""

import hashlib
import io
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from danlu.data.embedded import load_digits
from danlu.data.errors import InputError
from danlu.tasks import datasets

__all__ = ["image_levels", "load_images"]


def load_images(name: str, part: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Pixels and labels of one part of a named set of images.

    Args:
        name: "digits" (in the package scikit-learn), "mnist", "fashion-mnist" or "cifar10" (in $DANLU_DATA).
        part: "train", "dev" or "test".
        limit: at most so many images, the first ones of (2).

    Returns:
        Pixels (N, C, H, W) uint8 from 0 to `image_levels(name)` - 1, and labels (N,) int64.

    Raises:
        InputError: no such set or part, no set of images, or it is not on this machine.
        ImportError: a package that the set comes with, or that decodes it, is not installed.
    """
    found = datasets.find(name)
    if found.task != "images":
        raise InputError(f"{name} is a set for {found.task}, not of images; {_named()}")
    if part not in ("train", "dev", "test"):
        raise InputError(f"a set of images has the parts train, dev and test, not {part!r}")
    if name == "digits":
        x, y = getattr(load_digits(), part)
        return (x[:limit, None] * 16).round().to(torch.uint8), y[:limit]
    stored, share = found.shares.get(part, (part, ()))
    suffix = stored.removeprefix("official-")
    with np.load(datasets.file_of(found, stored), allow_pickle=False) as file:
        labels = file[f"y_{suffix}"]
        images = (
            file[f"x_{suffix}"] if f"x_{suffix}" in file else _cut(file[f"jpeg_{suffix}"], file[f"offset_{suffix}"])
        )
    marks = [hashlib.sha256(image).digest() for image in images]
    chosen = [i for i, mark in enumerate(marks) if not share or int.from_bytes(mark) % 10 in share]  # eq. (1)
    order = sorted(chosen, key=marks.__getitem__)[:limit]  # eq. (2)
    pixels = images[order] if isinstance(images, np.ndarray) else np.stack([_decoded(images[i]) for i in order])
    x = torch.from_numpy(pixels)
    x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
    return x, torch.from_numpy(labels[order]).long()


def image_levels(name: str) -> int:
    """How many values a pixel of a named set can have.

    Args:
        name: as in `load_images`.

    Returns:
        17 for the digits of scikit-learn, 256 for the others.

    >>> image_levels("digits"), image_levels("mnist")
    (17, 256)
    """
    return 17 if name == "digits" else 256


def _cut(content: np.ndarray, offsets: np.ndarray) -> list[bytes]:
    """The files that stand in one row of bytes."""
    whole = content.tobytes()
    return [whole[a:b] for a, b in pairwise(offsets)]


def _decoded(jpeg: bytes) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError('these images are JPEG files and need Pillow; pip install "danlu[plots]"') from None
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def _named() -> str:
    return "those are " + ", ".join(row["name"] for row in datasets.list_sets() if row["task"] == "images")
