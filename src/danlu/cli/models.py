"""What `danlu inspect` and `danlu convert` parse and show."""

import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from danlu.cli.show import dump, out, table
from danlu.data.errors import InputError
from danlu.text.config import TransformerConfig
from danlu.text.convert_model import Conversion
from danlu.text.inspect_model import Inspection
from danlu.text.load_report import LoadReport

__all__ = ["load_options", "print_conversion", "print_inspection", "told_warnings"]

_KINDS = {"hf": "HuggingFace folder", "tf": "TensorFlow checkpoint", "keras": "Keras weights"}
_SHOWN = 8  # rows of one status; --variables shows all


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
        if name in options:
            raise InputError(f"{name} is given twice, by its own option and by --set; leave one out")
        options[name] = _value(name, value)
    return options


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
                sys.stderr.write(f"note: {' '.join(message.split())}\n")


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
    facts += [("problem", problem) for problem in found.report.problems()]
    facts += [("note", note) for note in found.report.notes if not all(reason in note for reason in found.reasons[:1])]
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
        sys.stderr.write(f"note: {note}\n")
    for path in done.written:
        print(f"wrote {path}")
    return None
