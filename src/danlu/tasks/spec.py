"""One training run as plain data: what to train on, with which tricks and settings, on which device."""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from danlu.data.errors import InputError
from danlu.tasks.model_choice import Choice, choose_model
from danlu.tasks.settings import Settings, check_attention_word

__all__ = ["Spec", "parse_settings"]


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

        choice = choose_model(options.get("model", cls.model))
        defaults = choice.settings(get_task(task))
        parse_all(list(tricks), task)
        changed = parse_settings(settings, defaults)
        _check_settings(changed, choice)
        return cls(task=task, tricks=tuple(tricks), set=changed, **options)

    def settings(self) -> Settings:
        """The task's defaults with this run's changes."""
        from danlu.tasks import get_task

        return dataclasses.replace(choose_model(self.model).settings(get_task(self.task)), **self.set)

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
    "head_rate": (1e-6, 1e6),
    "overlap": (0, 10_000),
    "max_question": (1, 100_000),
    "max_answer": (0, 100_000),
    "threshold": (0, 0.999),
    "alpha": (0, 1),
    "gamma": (0, 100),
    "token_dropout": (0, 0.99),
    "head_size": (2, 4096),
    "subject_power": (1e-3, 100),
    "object_power": (1e-3, 100),
    "start_threshold": (0, 1),
    "end_threshold": (0, 1),
    "max_target": (2, 100_000),
    "eval_rows": (1, 1e9),
    "beam": (1, 1_000),
    "length_penalty": (-10, 10),
    "temperature": (0, 100),
    "top_p": (1e-6, 1),
    "condition_size": (1, 65_536),
    "condition_min_count": (1, 1e9),
    "judge_rows": (1, 100_000),
}
CHOICES = {
    "select": ("best", "last"),
    "init": ("pretrained", "random"),
    "gelu": ("erf", "tanh", "sigmoid"),
    "span_head": ("start_end", "global_pointer"),
    "vote": ("squared", "sum", "max"),
    "pooling": ("mean", "first"),
    "combine": ("sum", "concat"),
    "decode": ("auto", "beam", "sample"),
}
OF_ENCODERS, OF_DGCNN = ("init", "head_rate", "attention", "gelu"), ("table_lr", "min_count")


def _check_settings(changed: dict[str, Any], choice: Choice) -> None:
    """Refuse a setting that this kind of model does not look at."""
    wrong = [name for name in changed if name in (OF_DGCNN if choice.kind == "encoder" else OF_ENCODERS)]
    if wrong:
        other = "dgcnn" if choice.kind == "encoder" else "a transformer, such as mini-zh"
        raise InputError(f"setting {wrong[0]} is for --model {other}; {choice.name} does not look at it")
    if "attention" in changed:
        check_attention_word(changed["attention"])
    if changed.get("init") == "random" and choice.path is None:
        raise InputError(f"--model {choice.name} has fresh weights anyway; init=random is for a stored model")


def parse_settings(words: Sequence[str], defaults: Any) -> dict[str, Any]:
    """Read "name=value" words against a dataclass of defaults.

    Args:
        words: as given to --set.
        defaults: dataclass instance whose fields name the settings and give their types; its `choices`, if any, say
            which words a setting takes.

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
        choices = {**CHOICES, **getattr(defaults, "choices", {})}
        changed[name] = _typed(name, text.strip(), getattr(defaults, name), choices.get(name, ()))
    return changed


def _typed(name: str, text: str, default: Any, choices: Sequence[str]) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise InputError(f"setting {name} is true or false, got {text!r}")
        return text.lower() == "true"
    if choices:
        if text not in choices:
            raise InputError(f"setting {name} is {' or '.join(choices)}, got {text!r}")
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
