"""The subcommands on images: train a density of them, compress with it, get them back; each imports what it needs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from danlu.cli.options import (
    Device,
    DeviceOption,
    Json,
    Overwrite,
    Precision,
    PrecisionOption,
    Resume,
    Seed,
    Set,
    Threads,
    command_line,
)

__all__ = ["compress", "decompress", "density"]
MODEL_FOLDER = typer.Argument(help="folder of `danlu density`", metavar="MODEL")
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="the first so many images", metavar="N")]


class Kind(StrEnum):
    """What models a density."""

    vae, nice, realnvp, glow = "vae", "nice", "realnvp", "glow"


def density(
    kind: Annotated[Kind, typer.Argument(help="an autoencoder, or a flow", metavar="vae|nice|realnvp|glow")],
    images: Annotated[
        str,
        typer.Option(
            "--images",
            help="uint8 .npy, folder of pictures, or digits, mnist, fashion-mnist, cifar10",
            metavar="FILE|NAME",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="folder to write", metavar="DIR", show_default=False)],
    dev: Annotated[str, typer.Option("--dev", help="images to choose the weights by", metavar="FILE|NAME")] = "",
    limit: Limit = None,
    seed: Seed = 0,
    set_: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Train a density of images (vae, nice, realnvp, glow): likelihoods, samples, and what `compress` needs."""
    from danlu.cli.progress import Progress
    from danlu.tasks.density import DensitySpec, train_density
    from danlu.tasks.density_model import DensitySettings
    from danlu.tasks.spec import parse_settings

    settings = DensitySettings(**parse_settings(set_ or [], DensitySettings()))
    spec = DensitySpec(
        kind.value, images, dev, seed, settings, limit, device.value, precision.value, threads
    )  # fmt: skip
    with Progress() as progress:
        record = train_density(spec, out, command_line(), resume, overwrite, progress)
    if json:
        return show({k: v for k, v in record.items() if k != "log"})
    for part, measured in record["metrics"].items():
        print(
            f"{part:6} {measured['bits_per_dim']:.4f} bits per dimension (bound), "
            f"{measured['bits_per_dim_importance']:.4f} by importance sampling of the first 200"
        )
    print(f"wrote {out} ({record['parameters']:,} parameters, {record['steps']:,} steps, {record['seconds']:,.0f} s)")
    return None


def compress(
    model: Annotated[Path, MODEL_FOLDER],
    source: Annotated[str, typer.Argument(help="images: .npy, picture, folder, or NAME:PART", metavar="SRC")],
    target: Annotated[Path, typer.Argument(help="file to write", metavar="DST")],
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Compress images without loss, at the length that a density model gives them; `decompress` needs the model."""
    from danlu.tasks.density import compress_images

    told = compress_images(model, source, target, limit)
    if json:
        return show(told)
    print(f"images       {told['images']:,} in {told['seconds']:.1f} s")
    print(f"bytes        {told['bytes']:,}, as uniform levels {told['raw_bytes']:,}")
    print(
        f"bits         {told['bits_per_dim']:.4f} per dimension, stated by the model {told['stated_bits_per_dim']:.4f}"
    )
    print(f"the model    {told['model_bytes']:,} bytes, not counted")
    print(f"wrote {target}")
    return None


def decompress(
    model: Annotated[Path, MODEL_FOLDER],
    source: Annotated[Path, typer.Argument(help="what `danlu compress` wrote", metavar="SRC")],
    target: Annotated[Path, typer.Argument(help=".npy, or a new folder for PNG files", metavar="DST")],
    json: Json = False,
) -> None:
    """Get compressed images back, compared with what went in."""
    from danlu.tasks.density import decompress_images

    told = decompress_images(model, source, target)
    if json:
        return show(told)
    print(
        f"wrote {target}: {told['images']:,} images {tuple(told['shape'])} in {told['seconds']:.1f} s, as they went in"
    )
    return None


def show(value: Any) -> None:
    """One JSON value on stdout."""
    from danlu.cli.show import dump

    dump(value)
