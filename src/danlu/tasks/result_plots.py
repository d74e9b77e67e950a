"""Pictures of what a recipe or an ablation has stored: found by the form of the lists in its result file.

A result holds figures' data by name, one set a run. Bands over time become fits of equations, square matrices with
labels heat maps, arms bars, everything with an axis of its own lines; where there is nothing of these, what was
measured is drawn with its intervals, beside what the source claims.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danlu.data.errors import InputError
from danlu.gallery import figures

__all__ = ["plot_result", "read_result", "result_parts"]

AXES = ("x", "step", "steps", "lr", "mean length", "nodes", "landmarks")  # lists that others are drawn against
MOST_ROWS = 40


def read_result(path: Path) -> dict[str, Any]:
    """The record of a JSON file that `danlu run --out`, `danlu ablate` or `danlu train` wrote.

    Args:
        path: the file, or a folder that holds ablation.json.

    Returns:
        The record.

    Raises:
        InputError: no such file, or no record in it.
    """
    if path.is_dir():
        path = path / "ablation.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; `danlu run RECIPE --out {path.name}` writes one") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no JSON file ({error}); give what `danlu run --out` wrote") from None
    if not isinstance(record, dict) or not (record.get("measured") or record.get("arms")):
        raise InputError(f"{path} holds no result; give what `danlu run --out` or `danlu ablate` wrote")
    return record


def result_parts(record: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """What can be drawn of a record: name -> (kind, data), kind one of "ode", "matrix", "impact", "spectrum",
    "lines", "bars", "measured".

    Args:
        record: of `read_result`.

    Returns:
        The parts, those with pictures' data of the first run before "measured".

    >>> list(result_parts({"measured": {"a": {"mean": 1.0}}}))
    ['measured']
    """
    runs = record.get("runs") or [{}]
    found = dict(_parts(runs[0].get("figures") or {}, ""))
    if record.get("measured"):
        found["measured"] = ("measured", record)
    if record.get("arms"):
        found["arms"] = ("measured", _ablation(record))
    return found


def plot_result(record: Mapping[str, Any], name: str | None = None, kind: str | None = None, **look: Any) -> Any:
    """Draw one part of a record.

    Args:
        record: of `read_result`.
        name: of `result_parts`; None: the first there is, of that kind.
        kind: refuse others.
        **look: arguments of every picture: path, dark, ax.

    Returns:
        The figure.

    Raises:
        InputError: no such part.
    """
    parts = {key: part for key, part in result_parts(record).items() if kind in (None, part[0])}
    if not parts:
        raise InputError(f"this result holds no {kind}; `danlu plot result` draws {', '.join(result_parts(record))}")
    name = next(iter(parts)) if name is None else name
    if name not in parts:
        raise InputError(f"this result has no {name!r}; it has {', '.join(parts)}")
    form, data = parts[name]
    told = ", ".join(str(x) for x in (record.get("recipe"), name) if x)
    if form == "ode":
        return figures.plot_ode_fit(
            data["times"], data["median"], data["low"], data["high"], observed_times=data.get("observed_times"),
            observed=_holes(data.get("observed")), names=data.get("states"), title=told, **look,
        )  # fmt: skip
    if form == "matrix":
        values, labels, signed = data
        return figures.plot_heat_map(
            values, labels, labels, center=0.0 if signed else None, annotate=True, names=("row", "column", ""),
            title=told, **look,
        )  # fmt: skip
    if form == "lines":
        axis, x, lines = data
        positive = all(v > 0 for v in x) and max(x) > 50 * min(x)
        log = {"x_name": axis, "x_log": positive}
        return figures.plot_lines({key: (x, _holes(y)) for key, y in lines.items()}, title=told, **log, **look)
    if form == "impact":
        return figures.plot_impact(_holes(data[0]), data[1], title=told, **look)
    if form == "spectrum":
        return figures.plot_spectrum({"before": _holes(data)}, title=told, **look)
    if form == "bars":
        return figures.plot_bars(data, title=told, **look)
    measured = {key: value.get("mean") for key, value in data["measured"].items()}
    ends = {key: (v.get("low"), v.get("high")) for key, v in data["measured"].items() if v.get("low") is not None}
    claimed = data.get("claimed") or {}
    return figures.plot_bars(measured, ends, claimed, most=MOST_ROWS, title=told, **look)


def _parts(value: Mapping[str, Any], path: str) -> Iterator[tuple[str, tuple[str, Any]]]:
    """Everything below some figures' data that can be drawn, with dotted names."""
    if {"times", "low", "median", "high"} <= set(value):
        yield path or "fit", ("ode", value)
        return
    labels = next((value[key] for key in ("labels", "names", "pieces") if _words(value.get(key))), None)
    axis = next((key for key in AXES if _numbers(value.get(key))), None)
    lines: dict[str, Any] = {}
    arms = value.get("arm")
    for key, some in value.items():
        name = f"{path}.{key}" if path else key
        if isinstance(some, Mapping):
            if labels is not None and some and all(_square(v, len(labels)) for v in some.values()):
                for inner, matrix in some.items():
                    yield f"{name}.{inner}", ("matrix", (matrix, labels, _signed(matrix)))
            elif some and axis is not None and all(_numbers(v) and len(v) == len(value[axis]) for v in some.values()):
                yield name, ("lines", (axis, value[axis], dict(some)))
            elif some and all(_number(v) for v in some.values()):
                yield name, ("bars", dict(some))
            elif some and all(_numbers(v) for v in some.values()) and not any(key in some for key in AXES):
                for inner, numbers in some.items():
                    lines = {inner: numbers}
                    yield f"{name}.{inner}", ("lines", ("number", list(range(1, len(numbers) + 1)), lines))
                lines = {}
            else:
                yield from _parts(some, name)
        elif key == "impact" and _words(value.get("pieces")) and _square(some, len(value["pieces"])):
            yield name, ("impact", (some, value["pieces"]))
        elif key == "spectrum" and _numbers(some):
            yield name, ("spectrum", some)
        elif labels is not None and _square(some, len(labels)):
            yield name, ("matrix", (some, labels, _signed(some)))
        elif _words(arms) and _numbers(some) and len(some) == len(arms):
            yield name, ("bars", dict(zip(arms, some, strict=True)))
        elif _numbers(some) and key != axis and axis is not None and len(some) == len(value[axis]):
            lines[key] = some
    if lines and axis is not None:
        yield path or "curves", ("lines", (axis, value[axis], lines))


def _ablation(record: Mapping[str, Any]) -> dict[str, Any]:
    """Differences against the baseline, in the form of a recipe's measurements."""
    rows = {}
    for arm in record["arms"]:
        gain = arm.get("difference")
        if gain:
            rows[f"{arm.get('name')} ({gain.get('verdict', '')})"] = gain
    return {"measured": rows or {str(a.get("name")): {"mean": a.get("mean")} for a in record["arms"]}}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(value: Any) -> bool:
    """A list of numbers, holes allowed."""
    return isinstance(value, list) and len(value) > 0 and all(v is None or _number(v) for v in value)


def _words(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(v, str) for v in value)


def _square(value: Any, size: int) -> bool:
    """A matrix with as many rows and columns as labels."""
    return isinstance(value, list) and len(value) == size and all(_numbers(row) and len(row) == size for row in value)


def _signed(matrix: Sequence[Sequence[Any]]) -> bool:
    return any(v is not None and v < 0 for row in matrix for v in row)


def _holes(values: Any) -> Any:
    """None as nan."""
    return None if values is None else np.array(values, dtype=np.float64)
