"""What `danlu inspect` and `danlu convert` parse and show."""

import difflib
import json
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

from danlu.cli.show import dump, out, table
from danlu.data.errors import InputError, WorkError
from danlu.text.config import TransformerConfig
from danlu.text.convert_model import Conversion
from danlu.text.inspect_model import Inspection
from danlu.text.load_report import LoadReport

__all__ = ["load_options", "print_conversion", "print_inspection", "spoken", "told_warnings", "typed_path", "working"]

_KINDS = {"hf": "HuggingFace folder", "tf": "TensorFlow checkpoint", "keras": "Keras weights"}
_SHOWN = 8  # rows of one status; --variables shows all
_OWN = {  # settings that have an option
    "family": "--family", "application": "--application", "heads": "--heads", "compat": "--compat",
    "config": "--config", "vocab": "--vocab", "dtype": "--dtype", "allow_missing": "--allow-missing",
    "overwrite": "--overwrite", "layers": "--layers",
}  # fmt: skip
_FIELDS = [field.name for field in fields(TransformerConfig) if field.name not in _OWN]
_SPOKEN = (  # what the library says to Python, and how the command line says it
    (r" \((?:overwrite=True|vocab=)\)", ""),
    (r"\bfor heads='auto'", "leave --heads out"),
    (r"\bheads=\(\)", '--heads ""'),
    (r"\bprefix=", "to load_keras_weights prefix="),
    (r"\b(overwrite|allow_missing)=True", lambda found: _OWN[found[1]]),
    (r"\b(family|application|heads|compat|config)='([\w.]+)'", lambda found: f"{_OWN[found[1]]} {found[2]}"),
    (r"\b(family|application|heads|compat|config|vocab)=", lambda found: _OWN[found[1]]),
    (r"\btakes no option '(\w+)'", lambda found: f"takes no {_OWN.get(found[1], '--set ' + found[1])}"),
    (rf"(?<!--set )\b({'|'.join(_FIELDS)})=(?! is )", r"--set \1="),
)  # fmt: skip


def load_options(
    *,
    family: str | None,
    application: str | None,
    heads: list[str] | None,
    num_layers: int | None,
    compat: str | None,
    config: str | None,
    allow_missing: bool,
    settings: list[str] | None,
) -> dict[str, Any]:
    """Options of `load_model` from those of the command; what was not given is left out."""
    given = {"family": family, "application": application, "num_layers": num_layers, "compat": compat, "config": config}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if heads is not None:
        options["heads"] = tuple(part.strip() for value in heads for part in value.split(",") if part.strip())
    if allow_missing:
        options["allow_missing"] = True
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise InputError(f"--set takes name=value, got {setting!r}; for example --set max_positions=1024")
        if name not in _FIELDS:
            raise InputError(f"--set knows no {name!r}; {_nearest(name)}")
        if name in options:
            raise InputError(f"{name} is given twice, by its own option and by --set; leave one out")
        options[name] = _value(name, value)
    return options


def _nearest(name: str) -> str:
    """Where to turn with a setting that is no field of a configuration."""
    if name in _OWN:
        return f"its option is {_OWN[name]}"
    if name == "keep_tokens":
        return "--simplify-vocab leaves out tokens; others are chosen in Python, load_model(keep_tokens=...)"
    near = difflib.get_close_matches(name, _FIELDS, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"it takes {', '.join(_FIELDS[:8])} and the other fields of a model's configuration"


def typed_path(text: str, what: str) -> Path:
    """A path as it was typed; an empty one, as of a variable that is not set, would be the current folder."""
    if not text:
        raise InputError(f"{what} is empty; give a path, . for the current folder")
    return Path(text)


def spoken(message: str) -> str:
    """A message of the library in the words of the command line.

    >>> spoken("pass family='nezha', or num_heads=12 and config= a file")
    'pass --family nezha, or --set num_heads=12 and --config a file'
    """
    for python, option in _SPOKEN:
        message = re.sub(python, option, message)
    return message


class Stopped(Exception):
    """The command was stopped from outside."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def working(left: str) -> Iterator[None]:
    """Failures told in the words of the command, a request to end (SIGTERM) like Ctrl-C, so that files are cleaned up.

    Args:
        left: what stands after an interruption.
    """
    asked: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if not asked:  # a second one would stop the cleaning
            asked.append(number)
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()  # others cannot take signals
    before = signal.signal(signal.SIGTERM, end) if main else None
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(f"{'ended' if asked else 'interrupted'}; {left}", 143 if asked else 130) from None
    except InputError as error:
        raise InputError(spoken(str(error))) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "not enough memory" in str(error):
            raise WorkError(f"not enough memory for this model; {left}") from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _value(name: str, text: str) -> Any:
    """A number, true, false, null or a word, as the field of the configuration is declared."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    declared = {field.name: str(field.type) for field in fields(TransformerConfig)}.get(name, "")
    for kind, fits, what in (
        ("int", type(value) is int, "a whole number"),
        ("float", type(value) in (int, float), "a number"),
        ("bool", type(value) is bool, "true or false"),
        ("str", type(value) is str, "a word"),
    ):
        if declared.startswith(kind) and not fits and not (value is None and "None" in declared):
            raise InputError(f"--set {name}= is {what}{' or null' * ('None' in declared)}, got {text!r}")
    return value


@contextmanager
def told_warnings() -> Iterator[None]:
    """Warnings of the library as one line each on stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            yield
        finally:
            for message in dict.fromkeys(str(item.message) for item in caught if item.category is UserWarning):
                sys.stderr.write(f"note: {spoken(' '.join(message.split()))}\n")


def print_inspection(found: Inspection, variables: bool = False, as_json: bool = False) -> None:
    """What was found, then the table of what loads where."""
    if as_json:
        return dump(found.record(variables))
    family = found.family or (
        " or ".join(found.candidates) + ", which must be said" if found.candidates else "not known"
    )
    facts = [("kind", _KINDS[found.kind]), ("file", found.source)]
    if found.layout is not None:
        facts.append(("layout", found.layout))
    facts.append(("family", family))
    facts += [("", reason) for reason in found.reasons]
    sizes = [f"{name} {value}{' (assumed)' * (name in found.assumed)}" for name, value in found.sizes.items()]
    facts += [("" if i else "sizes", ", ".join(sizes[i : i + 4])) for i in range(0, len(sizes), 4)]
    facts.append(("heads", ", ".join(found.heads) or "none"))
    if found.vocabulary is not None:
        tokens, rows = found.vocabulary["tokens"], found.vocabulary["rows"]
        fits = (
            ""
            if rows is None
            else ", as many as the table has rows"
            if tokens == rows
            else f", the table has {rows} rows"
        )
        facts.append(("vocabulary", f"{found.vocabulary['file']}: {tokens} tokens{fits}"))
    facts.append(("weights", ", ".join(f"{n} {status}" for status, n in found.report.counts().items()) or "none"))
    facts += [("problem", spoken(problem)) for problem in found.problems()]
    facts += [
        ("note", spoken(note)) for note in found.report.notes if not all(reason in note for reason in found.reasons[:1])
    ]
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        print(f"{name:{width}}  {text}")
    print()
    out().print(
        table([(title, "left") for title in ("", "model", "shape", "file", "shape")], _rows(found.report, variables))
    )
    return None


def _rows(report: LoadReport, variables: bool) -> list[Sequence[str]]:
    """Lines of the table, the first of each status unless all are wanted."""
    lines: list[Sequence[str]] = []
    for status in dict.fromkeys(row.status for row in report.rows):
        rows = report.of(status)
        shown = rows if variables else rows[:_SHOWN]
        for row in shown:
            name = status + "!" * row.refused
            lines.append((name, row.ours or "-", _shape(row.ours_shape), row.theirs or "-", _shape(row.theirs_shape)))
        if len(rows) > len(shown):
            lines.append((status, f"... {len(rows) - len(shown)} more, --variables shows them", "", "", ""))
    state = report.training_state if variables else report.training_state[:1]
    lines += [("training state", "-", "", name, "") for name in state]
    if len(report.training_state) > len(state):
        lines.append(("training state", f"... {len(report.training_state) - len(state)} more", "", "", ""))
    return lines


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "(" + ", ".join(map(str, shape)) + ")"


def print_conversion(done: Conversion, as_json: bool = False) -> None:
    """What was read on stderr, the written files on stdout."""
    counts = done.report.counts()
    if as_json:
        notes = [*done.report.notes, *done.notes]
        return dump({"written": [str(path) for path in done.written], "counts": counts, "notes": notes})
    sys.stderr.write(f"read {done.report.source}: {', '.join(f'{n} {status}' for status, n in counts.items())}\n")
    unused = [str(row.theirs) for row in done.report.of("unused")]
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        sys.stderr.write(f"not read: {', '.join(unused[:3])}{more}; `danlu inspect` shows all\n")
    for note in [*done.report.notes, *done.notes]:
        sys.stderr.write(f"note: {spoken(note)}\n")
    for path in done.written:
        print(f"wrote {path}")
    return None
