r"""The bound of a density model is a real file: images coded at its length come back bit for bit.

Claim  arXiv:1901.04866: a variational autoencoder codes images at the length of its negative bound (bits back), within
       1 %, in fewer bytes than general compressors (figures for other models and images, so none is compared);
       arXiv:1905.08500: so does a flow at its dequantised likelihood.
Test   a model is trained, unseen images are compressed and decompressed: bits on disk over bits stated, all images
       identical, and the same images as one optimised PNG mosaic and as xz of their bytes, over ours. The model itself
       is not counted; its size stands beside.
Data   digits of scikit-learn (dev and test parts, 540 images) by an autoencoder and by Glow; mnist and fashion-mnist
       (`danlu data list`), 1,000 images of the test parts, by an autoencoder
Run    danlu run vae_coder --scale smoke|full --seed 0 --set data=mnist
"""

import io
import lzma
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from danlu.data.images import read_images, write_images
from danlu.gallery.record import Result
from danlu.tasks.density import DensitySpec, compress_images, decompress_images, train_density
from danlu.tasks.density_model import DensitySettings
from danlu.tasks.images import load_images

__all__ = ["SCALES", "Config", "run"]


@dataclass(frozen=True)
class Config:
    """Sizes of the models; epochs are passes over `train_images`."""

    data: str = "digits mnist fashion-mnist"
    images: int = 1_000  # that are coded
    train_images: int = 20_000
    vae_epochs: float = 10.0  # of the larger sets
    digits_epochs: float = 150.0
    latent_dim: int = 32
    width: int = 32
    glow_width: int = 48
    glow_steps: int = 6
    lr: float = 1e-3


SCALES = {
    "smoke": Config(
        data="digits", images=30, train_images=300, vae_epochs=1.0, digits_epochs=4.0, latent_dim=4, width=8,
        glow_width=8, glow_steps=1, lr=3e-3,
    ),
    "full": Config(),
}  # fmt: skip


def run(config: Config, seed: int) -> Result:
    """All sets and models with one seed."""
    measured: dict[str, float] = {}
    samples: dict[str, list[list[int]]] = {}
    for name in config.data.split():
        for kind in ("vae", "glow") if name == "digits" else ("vae",):
            arm = f"{name}, {kind}"
            found, drawn = coded(config, name, kind, seed)
            measured |= {f"{arm}: {what}": value for what, value in found.items()}
            samples[arm] = drawn
    return Result(measured=measured, figures={"samples": samples})


def coded(config: Config, name: str, kind: str, seed: int) -> tuple[dict[str, float], list[list[int]]]:
    """One model: what its file holds against what it states and what others need, and some of its samples."""
    small = name == "digits"
    settings = DensitySettings(
        epochs=config.digits_epochs if small else config.vae_epochs,
        lr=config.lr,
        latent_dim=config.latent_dim,
        width=config.glow_width if kind == "glow" else config.width,
        steps=config.glow_steps,
        levels=1 if small else 2,
        select="last",  # what is coded is not chosen by
    )
    x = torch.cat([load_images(name, part)[0] for part in ("test", "dev")])[: config.images]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_images(folder / "x.npy", x)
        spec = DensitySpec(kind, name, name, seed, settings, config.train_images)
        record = train_density(spec, folder / "model")
        told = compress_images(folder / "model", str(folder / "x.npy"), folder / "x.dlc")
        decompress_images(folder / "model", folder / "x.dlc", folder / "back.npy")
        same = torch.equal(read_images(folder / "back.npy"), x)
        drawn = read_images(folder / "model" / "samples.npy")[:10, 0]
    ours = told["bytes"]
    return {
        "bits per dimension on disk": told["bits_per_dim"],
        "bits per dimension stated": told["stated_bits_per_dim"],
        "disk over stated": told["bits_per_dim"] / told["stated_bits_per_dim"],
        "images identical": float(same),
        "PNG mosaic over ours": png_mosaic(x) / ours,
        "xz over ours": len(lzma.compress(x.numpy().tobytes(), preset=9 | lzma.PRESET_EXTREME)) / ours,
        "megabytes of the model": told["model_bytes"] / 1e6,
        "bits per dimension, importance sampling": record["metrics"]["dev"]["bits_per_dim_importance"],
    }, [image.flatten().tolist() for image in drawn]


def png_mosaic(x: Tensor) -> int:
    """Bytes of one optimised PNG that holds all images (N, 1, H, W) side by side."""
    from PIL import Image

    n, _, height, width = x.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.zeros((rows * height, columns * width), np.uint8)
    for i, image in enumerate(x[:, 0].numpy()):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height, left : left + width] = image
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG", optimize=True)
    return buffer.tell()
