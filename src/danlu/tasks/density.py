r"""Train a density of images, and compress images with it: `danlu density`, `danlu compress`, `danlu decompress`.

    bits per dimension = -log P(x) / (D log 2)                                                                (1)
    stated length      = the sum over the images of -bound / log 2, a mean over draws                         (2)

(1) is told as the bound that training lowers and as the tighter one of importance sampling; the coder realises (2).

Source: `danlu.tasks.density_model`.
Shapes: N images (N, C, H, W) uint8.
"""

import datetime
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danlu.data.atomic import write_whole
from danlu.data.errors import InputError
from danlu.data.images import read_images, write_images
from danlu.generative.compressed import compress, decompress
from danlu.tasks.density_model import DensityModel, DensitySettings, build_density, open_density, write_density
from danlu.tasks.device import accelerator, choose, machine
from danlu.tasks.fit import fit
from danlu.tasks.folder import check_target, locked, partial_of, publish, read_json, write_json
from danlu.tasks.images import image_levels, load_images
from danlu.tasks.known_sets import SETS
from danlu.tasks.tricks import Plan

__all__ = ["DensitySpec", "compress_images", "decompress_images", "read_source", "train_density"]
LOOKED_AT = 2_000  # images of dev that each evaluation looks at
DRAWS = 50  # latents or noises of the tighter bound
STATED = 20  # draws behind the stated length


@dataclass(frozen=True)
class DensitySpec:
    """What `danlu density` was asked for."""

    kind: str
    images: str
    dev: str = ""
    seed: int = 0
    settings: DensitySettings = field(default_factory=DensitySettings)
    limit: int | None = None
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None


class Images:
    """Images as the training loop takes them."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.lengths = x, [1] * len(x)

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Some of them."""
        return {"x": self.x[list(indices)]}

    def weight(self, indices: Sequence[int]) -> float:
        """How many."""
        return float(len(indices))


def read_source(source: str, part: str, limit: int | None = None) -> tuple[Tensor, int]:
    """Images of a file, a folder or a named set (NAME or NAME:PART), and how many levels they have.

    Args:
        source: what was given.
        part: of a set that is named without one.
        limit: the first so many.

    Returns:
        (N, C, H, W) uint8, and L: 2, 16, 256 or what the set says; of files the power of 2 above the largest level.

    Raises:
        InputError: nothing to read there.
    """
    name, _, chosen = source.partition(":")
    if not Path(source).exists() and name in SETS:
        return load_images(name, chosen or part, limit)[0], image_levels(name)
    x = read_images(source)[:limit]
    return x, max(2, 1 << int(x.max()).bit_length())


def train_density(
    spec: DensitySpec,
    out: Path,
    command: str = "",
    resume: bool = False,
    overwrite: bool = False,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> dict[str, Any]:
    """Train, measure and write a model folder.

    Args:
        spec: the run.
        out: folder to write; the work stands in OUT.partial until it is complete.
        command: for the record.
        resume: go on with OUT.partial.
        overwrite: replace an earlier result.
        on_event: is told of progress.

    Returns:
        metrics.json.

    Raises:
        InputError: something the user gave cannot be used.
        WorkError: the loss is not finite.
    """
    started = time.perf_counter()
    engine = accelerator(*choose(spec.device, spec.precision), spec.threads)
    if engine.num_processes > 1:
        raise InputError("danlu density runs in one process; start it without accelerate launch")
    with locked(out):
        check_target(out, mark="task.json", overwrite=overwrite, resume=resume)
        x, levels = read_source(spec.images, "train", spec.limit)
        dev = read_source(spec.dev, "dev")[0] if spec.dev else None
        if dev is not None and (dev.shape[1:] != x.shape[1:] or int(dev.max()) >= levels):
            raise InputError(
                f"{spec.dev} holds images {tuple(dev.shape[1:])} of levels up to {int(dev.max())}, {spec.images} "
                f"{tuple(x.shape[1:])} of {levels} levels"
            )
        torch.manual_seed(spec.seed)
        model = build_density(spec.kind, x.shape[1:], levels, spec.settings)
        work = partial_of(out)
        identity = asdict(spec) | {"rows": len(x)}
        if resume and (work / "spec.json").exists():
            changed = [k for k, v in read_json(work / "spec.json").items() if identity.get(k) != v]
            if changed:
                raise InputError(f"{work} was begun with another {', '.join(changed)}; give the same, or --overwrite")
        else:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            write_json(work / "spec.json", identity)
        parts = [("train", spec.images, x)] + ([] if dev is None else [("dev", spec.dev, dev)])
        for role, name, part in parts:
            on_event({"event": "phase", "text": f"{role:5} {name}: {len(part):,} images {tuple(part.shape[1:])}"})
        looked_at = None if dev is None else dev[:LOOKED_AT]

        def evaluate() -> dict[str, float]:
            assert looked_at is not None
            with engine.autocast():
                nats = _over(model.bound, looked_at.to(engine.device))
            return {"bound": float(nats.mean()), "bits_per_dim": model.bits(nats)}

        result = fit(
            model, Images(x), spec.settings, Plan(ema=spec.settings.ema or None), engine, spec.seed,
            evaluate if dev is not None else None, "bound", work / "state", resume, on_event,
        )  # fmt: skip
        on_event({"event": "phase", "text": "measuring"})
        model.to("cpu")
        measured = {role: _measured(model, part[:LOOKED_AT]) for role, _, part in parts}
        record = {
            "task": "density", "kind": spec.kind, "command": command,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(*choose(spec.device, spec.precision)), "settings": asdict(spec.settings),
            "seed": spec.seed, "images": {role: len(part) for role, _, part in parts}, "shape": list(x.shape[1:]),
            "levels": levels, "parameters": sum(p.numel() for p in model.parameters()), "metrics": measured,
            "steps": result.steps, "seconds": round(time.perf_counter() - started, 1), "log": result.log,
        }  # fmt: skip
        final = work / "final"
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir()
        write_images(final / "samples.npy", _samples(model, spec.seed))
        write_json(final / "metrics.json", record)
        write_density(model, final, {k: record[k] for k in ("kind", "command", "settings", "shape")})
        publish(final, out)
        shutil.rmtree(work, ignore_errors=True)
    return record


def compress_images(folder: Path, source: str, target: Path, limit: int | None = None) -> dict[str, Any]:
    """Write images as a file that only this model reads.

    Args:
        folder: of `danlu density`.
        source: as in `read_source`, part test.
        target: file to write; an existing one is refused.
        limit: the first so many images.

    Returns:
        images, bytes, bits_per_dim, stated_bits_per_dim (eq. (2)), raw_bytes, model_bytes, seconds.

    Raises:
        InputError: images that do not fit the model, or a target that is there.
    """
    if target.exists():
        raise InputError(f"{target} is there already; name another file")
    model, name = open_density(folder)
    x, _ = read_source(source, "test", limit)
    if tuple(x.shape[1:]) != tuple(model.shape) or int(x.max()) >= model.levels:
        raise InputError(
            f"{source} holds images {tuple(x.shape[1:])} of levels up to {int(x.max())}; {folder} was trained on "
            f"{tuple(model.shape)} of {model.levels} levels"
        )
    began = time.perf_counter()
    try:
        content = compress(model.coder(), x, model.levels, name)
    except ValueError as error:
        raise InputError(f"{source} cannot be coded by {folder}: {error}") from None
    seconds = time.perf_counter() - began
    try:
        write_whole(target, content)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from None
    dims = x.numel()
    stated = _over(lambda part: model.bound(part, STATED, torch.Generator().manual_seed(0)), x)
    return {
        "images": len(x), "bytes": len(content), "bits_per_dim": 8 * len(content) / dims,
        "stated_bits_per_dim": model.bits(stated), "raw_bytes": math.ceil(dims * math.log2(model.levels) / 8),
        "model_bytes": (folder / "model.safetensors").stat().st_size, "seconds": round(seconds, 2),
    }  # fmt: skip


def decompress_images(folder: Path, source: Path, target: Path) -> dict[str, Any]:
    """Write the images of a compressed file, compared with what went in.

    Args:
        folder: the model that compressed them.
        source: what `compress_images` wrote.
        target: .npy, or a new folder for PNG files.

    Returns:
        images, shape, files, seconds.

    Raises:
        InputError: no such file, damaged, of another model, or a target that is there.
    """
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise InputError(f"{target} is there already; name another")
    model, name = open_density(folder)
    try:
        content = source.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror or error}") from None
    began = time.perf_counter()
    try:
        x = decompress(model.coder(), content, name)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None
    seconds = time.perf_counter() - began
    files = write_images(target, x)
    return {"images": len(x), "shape": list(x.shape[1:]), "files": len(files), "seconds": round(seconds, 2)}


def _measured(model: DensityModel, x: Tensor) -> dict[str, float]:
    """Bits per dimension of a part, eq. (1)."""
    generator = torch.Generator().manual_seed(0)
    bound = _over(lambda part: model.bound(part, 4, generator), x)
    tighter = _over(lambda part: model.log_prob(part, DRAWS, generator), x[:200])
    return {
        "bits_per_dim": model.bits(bound),
        "bits_per_dim_importance": model.bits(tighter),  # of the first 200 images
        "nats": float(bound.mean()),
    }


def _samples(model: DensityModel, seed: int) -> Tensor:
    """A hundred images of the model, (100, C, H, W) uint8."""
    drawn = model.model.sample(100, generator=torch.Generator().manual_seed(seed))
    return drawn.clamp(0, model.levels - 1).to(torch.uint8).view(100, *model.shape)


def _over(measure: Callable[[Tensor], Tensor], x: Tensor, size: int = 100) -> Tensor:
    """A measure of images, some at a time."""
    return torch.cat([measure(part) for part in x.split(size)])
