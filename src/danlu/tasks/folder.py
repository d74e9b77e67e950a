"""Model folders and training state: written beside, synced, renamed, so that a folder is complete or it is not there.

A run that writes OUT works in OUT.partial and renames it at the end; what stood in OUT before stays until then. A lock
file beside it keeps two runs apart. Tensors are stored as safetensors and the rest as JSON; nothing is pickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from danlu.data.atomic import write_whole
from danlu.data.errors import InputError

__all__ = [
    "FORMAT_VERSION",
    "check_target",
    "digest",
    "locked",
    "partial_of",
    "publish",
    "read_json",
    "read_task",
    "read_tensors",
    "write_json",
    "write_tensors",
]
FORMAT_VERSION = 1
MARK = "task.json"  # written last; a folder without it is not a model folder


def write_json(path: Path, value: Any) -> None:
    """Atomic UTF-8 JSON; NaN and infinities are refused rather than written as non-JSON."""
    write_whole(path, (json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Atomic safetensors file of contiguous CPU copies."""
    write_whole(path, save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}))


def read_json(path: Path) -> Any:
    """The JSON in a file of a model folder; a damaged one is named."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{path.parent} has no {path.name}: not a folder that danlu wrote, or an unfinished one"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it from a copy or train again") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file; a missing, truncated or damaged one is named."""
    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{path.parent} has no {path.name}: not a folder that danlu wrote, or an unfinished one"
        ) from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is truncated or damaged ({error}; {path.stat().st_size:,} bytes); "
            "restore it from a copy or train again"
        ) from None


def digest(path: Path) -> str | None:
    """SHA-256 of a file's content; None for what is not a file (a named data set, standard input)."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_task(folder: Path) -> dict[str, Any]:
    """task.json of a model folder; refuses folders of newer versions and folders of something else."""
    if not folder.exists():
        raise InputError(f"no folder {folder}; give the folder that `danlu train --out` wrote")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the folder that `danlu train --out` wrote")
    task = read_json(folder / MARK)
    version = task.get("format_version") if isinstance(task, dict) else None
    if not isinstance(version, int):
        raise InputError(f"{folder / MARK} has no format_version: not written by danlu")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{folder} has format {version}, this danlu reads up to {FORMAT_VERSION}; install a newer danlu"
        )
    return task


def partial_of(out: Path) -> Path:
    """Where a run that will become `out` keeps its work."""
    return _beside(out, ".partial")


def check_target(out: Path, *, mark: str, overwrite: bool, resume: bool) -> None:
    """Refuse, before any work, an output folder that would lose something of the user's.

    Args:
        out: folder to be written.
        mark: file that tells a complete result ("task.json", "ablation.json").
        overwrite: replace a complete result, drop an unfinished one.
        resume: go on with an unfinished one.

    Raises:
        InputError: with the option that mends it.
    """
    if overwrite and resume:
        raise InputError("give --resume (go on) or --overwrite (start again), not both")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    if out.is_dir() and not (out / mark).exists() and any(out.iterdir()):
        raise InputError(f"--out {out} holds other files and no danlu result; give an empty or a new folder")
    if (out / mark).exists() and not overwrite:
        how = "it is complete, nothing is left to resume; " if resume else ""
        raise InputError(f"{out} already holds a result; {how}--overwrite replaces it, or give another --out")
    if partial_of(out).exists() and not overwrite and not resume:
        raise InputError(
            f"{partial_of(out)} holds an unfinished run; --resume goes on with it, --overwrite starts again"
        )
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write into {parent} (permission denied); give --out a folder you may write to")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock beside `out` while working for it; a second run is refused, a dead one's lock is free."""
    path = _beside(out, ".lock")
    lock = FileLock(path, timeout=0)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(f"another run is writing {out}; wait for it, or give another --out") from None
    except PermissionError:
        raise InputError(
            f"cannot write into {out.parent} (permission denied); give --out a folder you may write to"
        ) from None
    try:
        yield
    finally:
        lock.release()
        path.unlink(missing_ok=True)


def publish(partial: Path, out: Path) -> None:
    """Put the finished work of `partial` in the place of `out`; what stood there is removed only afterwards."""
    old = _beside(out, f".old-{os.getpid()}")
    if out.exists():
        os.replace(out, old)
    try:
        os.replace(partial, out)
    except OSError:
        if old.exists():
            os.replace(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(out: Path, suffix: str) -> Path:
    """The path of `out` with a suffix to its name; "." and ".." are resolved first."""
    named = out if out.name not in ("", "..") else out.resolve()
    return named.with_name(named.name + suffix)
