"""One training run as plain data: what to train on, with which tricks and settings, on which device."""

import dataclasses
import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from danlu.data.errors import InputError
from danlu.tasks.fit import Settings

__all__ = ["Spec", "family", "parse_settings"]


@dataclass(frozen=True)
class Spec:
    """What `danlu train` was asked for; JSON there and back."""

    task: str
    train: str
    dev: str | None = None
    test: str | None = None
    model: str = "dgcnn"
    tricks: tuple[str, ...] = ()
    seed: int = 0
    set: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    on_bad_rows: str = "fail"
    format: str = "auto"

    @classmethod
    def parse(cls, task: str, *, settings: Sequence[str] = (), tricks: Sequence[str] = (), **options: Any) -> "Spec":
        """From the words of the command line.

        Args:
            task: name of the task.
            settings: "name=value" words.
            tricks: "NAME[:VALUE]" words.
            options: the other fields.

        Raises:
            InputError: unknown task, setting or trick, or a value that does not fit.
        """
        from danlu.tasks import get_task
        from danlu.tasks.tricks import parse_all

        defaults = get_task(task).defaults
        parse_all(list(tricks), task)
        family(options.get("model", cls.model))
        return cls(task=task, tricks=tuple(tricks), set=parse_settings(settings, defaults), **options)

    def settings(self) -> Settings:
        """The task's defaults with this run's changes."""
        from danlu.tasks import get_task

        return dataclasses.replace(get_task(self.task).defaults, **self.set)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "tricks": list(self.tricks)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Spec":
        """The inverse of `to_json`; unknown keys are ignored."""
        names = {f.name for f in dataclasses.fields(cls)}
        known = {k: v for k, v in value.items() if k in names}
        return cls(**{**known, "tricks": tuple(known.get("tricks", ()))})


LIMITS: dict[str, tuple[float, float]] = {  # smallest and largest sensible value
    "epochs": (0, 1e6),
    "batch_size": (1, 1e6),
    "lr": (1e-12, 1e3),
    "table_lr": (1e-12, 1e3),
    "weight_decay": (0, 10),
    "warmup": (0, 0.99),
    "clip": (0, 1e9),
    "max_len": (8, 1_000_000),
    "min_count": (1, 1e9),
    "dropout": (0, 0.99),
    "patience": (0, 1e9),
    "evaluations": (0, 1e9),
    "save_every": (1, 1e12),
    "context": (0, 10_000),
    "bigram_dim": (1, 4096),
    "bigram_dropout": (0, 0.99),
    "gate_dropout": (0, 0.99),
    "bigram_min_count": (1, 1e9),
}


def parse_settings(words: Sequence[str], defaults: Any) -> dict[str, Any]:
    """Read "name=value" words against a dataclass of defaults.

    Args:
        words: as given to --set.
        defaults: dataclass instance whose fields name the settings and give their types.

    Returns:
        Changed settings only.

    Raises:
        InputError: a word without "=", an unknown name (with the nearest), a value of another type or out of range.
    """
    fields = {f.name: f for f in dataclasses.fields(defaults)}
    first = next(iter(fields))
    changed: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip()
        if not equals:
            raise InputError(
                f"--set takes name=value, got {word!r}; for example --set {first}={getattr(defaults, first)}"
            )
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=2, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InputError(f"no setting {name!r}{hint}; there are {', '.join(fields)}")
        changed[name] = _typed(name, text.strip(), getattr(defaults, name))
    return changed


def _typed(name: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise InputError(f"setting {name} is true or false, got {text!r}")
        return text.lower() == "true"
    if name == "select":
        if text not in ("best", "last"):
            raise InputError(f"setting select is best or last, got {text!r}")
        return text
    if isinstance(default, int | float):
        kind = type(default)
        try:
            value = kind(text)
        except ValueError:
            raise InputError(
                f"setting {name} is {'a whole number' if kind is int else 'a number'}, got {text!r} (default {default})"
            ) from None
        low, high = LIMITS.get(name, (-math.inf, math.inf))
        if not low <= value <= high:
            raise InputError(f"setting {name} lies between {low:g} and {high:g}, got {text}")
        return value
    return text


def family(name: str) -> dict[str, Any]:
    """Sizes of a model name: `dgcnn`, or `dgcnn:LAYERSxWIDTH`.

    Raises:
        InputError: no such family, or sizes out of range.
    """
    found = re.fullmatch(r"dgcnn(?::(\d+)x(\d+))?", name)
    if not found:
        raise InputError(f"no model {name!r}; there is dgcnn, with sizes dgcnn:LAYERSxWIDTH, for example dgcnn:4x128")
    layers, dim = int(found[1] or 4), int(found[2] or 128)
    if not (1 <= layers <= 64 and 8 <= dim <= 4096):
        raise InputError(f"{name}: layers lie in 1 to 64 and the width in 8 to 4096")
    cycle = (1, 2, 4)
    return {"dim": dim, "dilations": [cycle[i % 3] for i in range(layers - 1)] + [1]}
