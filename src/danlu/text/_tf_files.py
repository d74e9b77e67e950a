"""Finding the files of a TensorFlow checkpoint from what a user gives, and mapping them into memory.

A user gives the prefix, one of its files or a folder. In a folder the file `checkpoint` names the newest prefix, often
with the path of another machine: its last part is used, inside the folder, and nothing outside of it is opened. Names
are compared as text, never as patterns.
"""

import mmap
import os
import re
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from danlu.data.errors import InputError
from danlu.text._tf_table import MAGIC

__all__ = ["beside", "cure", "find_prefix", "mapped", "regular"]

_FILES = re.compile(r"(.+)\.(?:index|meta|data-\d{5}-of-\d{5})", re.S)
_LFS = b"version https://git-lfs"


def beside(prefix: Path, ending: str) -> Path:
    """The file of a checkpoint with this ending; the dots of a prefix are no endings."""
    return prefix.with_name(prefix.name + ending)


def regular(path: Path) -> Path:
    """The path, if a file that can be read from begin to end is there: a pipe would wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path} is not a file of its own but a folder, pipe or device; give the checkpoint's prefix")
    return path


def mapped(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, mapped so that writing to them would not reach it."""
    if not path.exists():
        raise InputError(f"{path} is missing: the values are in it, the .index has only their places; get it as well")
    with regular(path).open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return np.zeros(0, np.uint8)
        held = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    if held[: len(_LFS)].tobytes() == _LFS:
        raise InputError(f"{path} is a pointer of Git LFS, not the data; fetch the file itself (git lfs pull)")
    return held


def cure(path: Path) -> str:
    """The end of a message about damage."""
    return f"get {path.name} again from where it came, it was cut off or changed on the way"


def find_prefix(path: str | Path) -> Path:
    """The prefix that a user means."""
    path = Path(path)
    if path.is_dir():
        return _in_folder(path)
    named = _FILES.fullmatch(path.name)
    prefix = path if named is None or beside(path, ".index").exists() else path.with_name(named[1])
    if beside(prefix, ".index").exists():
        return prefix
    if prefix.is_file():
        if _is_v1(prefix):
            raise InputError(
                f"{prefix} is a checkpoint of the old V1 format (one file, before 2017), which is not read; open it "
                "with TensorFlow and save it again with tf.compat.v1.train.Saver(write_version=2)"
            )
        raise InputError(f"{prefix} is not a TensorFlow checkpoint: there is no {prefix.name}.index beside it")
    there = _prefixes(path.parent) if path.parent.is_dir() else []
    hint = f"that folder has {', '.join(there[:5])}" if there else "that folder holds no checkpoint"
    raise InputError(f"no TensorFlow checkpoint {prefix}: {prefix.name}.index is missing; {hint}")


def _is_v1(path: Path) -> bool:
    """Whether a file that is no .index ends like one: the V1 format is one table that holds the values, too."""
    try:
        with regular(path).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - len(MAGIC)))
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, InputError):
        return False


def _prefixes(folder: Path) -> list[str]:
    return sorted(name[:-6] for name in os.listdir(folder) if name.endswith(".index") and name != ".index")


def _in_folder(folder: Path) -> Path:
    """The checkpoint of a folder: the one its file `checkpoint` names, or the only one."""
    there = _prefixes(folder)
    state = folder / "checkpoint"
    if state.is_file() and len(there) != 1:
        with regular(state).open("rb") as file:
            text = file.read(1 << 20).decode(errors="replace")
        named = re.search(r'^model_checkpoint_path: "(.*)"', text, re.M)
        last = re.split(r"[/\\]", named[1])[-1] if named else ""  # released files name folders of other machines
        if last in there:
            return folder / last
    if len(there) == 1:
        return folder / there[0]
    if there:
        raise InputError(f"{folder} holds {len(there)} checkpoints: {', '.join(there[:5])}; name one of them")
    for name in sorted(os.listdir(folder))[:1000]:
        if (folder / name).is_file() and _is_v1(folder / name):
            return find_prefix(folder / name)  # which says so
    raise InputError(f"{folder} holds no TensorFlow checkpoint: no file there ends in .index")
