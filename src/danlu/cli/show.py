"""What the command line prints on stdout: tables and results, JSON where asked."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from danlu.cli.progress import duration

__all__ = [
    "print_ablation", "print_data", "print_data_card", "print_demo", "print_page", "print_predictions",
    "print_recipe", "print_rows", "print_scores", "print_training", "print_vectors_file",
]  # fmt: skip
VERDICT_STYLE = {"helps": "bold green", "hurts": "bold red", "no evidence": "dim", "too few seeds": "dim"}


def out() -> Console:
    """Console on stdout: colour on a terminal, plain wide text in a pipe."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=100_000, no_color=True)


def table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[Any]]) -> Table | Text:
    """A table of (title, "left" or "right") columns; in a pipe plain aligned lines without a frame."""
    cells = [[cell if isinstance(cell, Text) else Text(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        lines = [[title for title, _ in columns], *[[cell.plain for cell in row] for row in cells]]
        widths = [max(cell_len(line[i]) for line in lines) for i in range(len(columns))]
        pads = [[" " * (widths[i] - cell_len(cell)) for i, cell in enumerate(line)] for line in lines]
        sides = [side for _, side in columns]
        aligned = (
            [p + c if side == "right" else c + p for c, p, side in zip(line, pad, sides, strict=True)]
            for line, pad in zip(lines, pads, strict=True)
        )
        return Text("\n".join("  ".join(line).rstrip() for line in aligned))
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, side in columns:
        drawn.add_column(title, justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in cells:
        drawn.add_row(*row)
    return drawn


def dump(value: Any) -> None:
    """One JSON value on stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=1))


def scores_table(metrics: Mapping[str, Mapping[str, Any]]) -> Table | Text:
    """Parts in rows, numbers in columns."""
    names = list(dict.fromkeys(k for part in metrics.values() for k, v in part.items() if isinstance(v, int | float)))
    return table(
        [("", "left"), *[(n, "right") for n in names]],
        [[role, *[number(part.get(n)) for n in names]] for role, part in metrics.items()],
    )


def types_table(by_type: Mapping[str, Mapping[str, float]]) -> Table | Text:
    """Scores of every type or class."""
    keys = ("precision", "recall", "f1", "support")
    return table(
        [("type", "left"), *[(k, "right") for k in keys]],
        [[kind or "(word)", *[number(s[k]) for k in keys]] for kind, s in by_type.items()],
    )


def number(value: Any) -> str:
    """Whole numbers with commas, others with four digits."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def print_training(record: Mapping[str, Any], folder: Path, as_json: bool = False) -> None:
    """The end of `danlu train`."""
    if as_json:
        return dump({**record, "folder": str(folder)})
    console = out()
    if record["metrics"]:
        console.print(scores_table(record["metrics"]))
        last = list(record["metrics"].values())[-1]
        if len(last.get("by_type", {})) > 1:
            console.print(types_table(last["by_type"]))
    seconds = record["seconds"]
    console.print(
        f"{record['steps']:,} steps, {record['parameters']:,} parameters, {record['machine']['precision']}, "
        f"{record['machine']['threads']} threads; "
        f"training {duration(seconds['train'])}, everything {duration(seconds['total'])}"
    )
    for note in record.get("notes", []):
        console.print(Text(f"note: {note}"))
    page = folder / "report.html"
    report = f"report  {page}\n" if page.exists() else ""
    console.print(Text(f"model   {folder}\n{report}use     danlu predict {shlex.quote(str(folder))} TEXT"))
    return None


def print_scores(scores: Mapping[str, Any], as_json: bool = False) -> None:
    """The end of `danlu evaluate`."""
    if as_json:
        return dump(scores)
    console = out()
    card = scores["data"]
    console.print(
        Text(
            f"{card['name']}: {card['examples']:,} examples, {card['tokens']:,} tokens"
            + (f", {card['skipped']:,} skipped" if card["skipped"] else "")
        )
    )
    console.print(scores_table({"": scores["metrics"]}))
    if len(scores["metrics"].get("by_type", {})) > 1:
        console.print(types_table(scores["metrics"]["by_type"]))
    return None


def print_predictions(
    predictions: Iterable[Mapping[str, Any]], show: Callable[[Mapping[str, Any]], str], as_json: bool = False
) -> None:
    """One line for every item, as the task shows it."""
    live = sys.stdout.isatty()
    for prediction in predictions:
        line = json.dumps(prediction, ensure_ascii=False) if as_json else show(prediction)
        try:
            print(line, flush=live)
        except BrokenPipeError:  # the reader has what it wanted
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return


def print_vectors_file(written: Mapping[str, Any], as_json: bool = False) -> None:
    """What `danlu predict --out` wrote."""
    if as_json:
        return dump(written)
    empty = f" ({written['empty']:,} of empty texts are nan)" if written["empty"] else ""
    print(f"wrote {written['rows']:,} vectors of {written['features']:,} numbers{empty} to {written['file']}")
    return None


def verdict_table(record: Mapping[str, Any]) -> Table | Text:
    """Arms in rows: score, gain with interval, verdict, cost."""
    base = record["arms"][0]
    rows = []
    for arm in record["arms"]:
        gap = arm["difference"]
        cost = f"x{arm['seconds'] / base['seconds']:.2f}" if arm.get("seconds") and base.get("seconds") else "-"
        memory = f"{arm['memory_mb']:,.0f}" if arm.get("memory_mb") else "-"
        score = "-" if arm["mean"] is None else f"{arm['mean']:.4f}"
        if gap is None:
            rows.append([arm["name"], score, "", "", "", cost, memory])
            continue
        verdict = Text(gap["verdict"], style=VERDICT_STYLE.get(gap["verdict"], ""))
        span = "-" if gap["low"] is None else f"[{100 * gap['low']:+.2f}, {100 * gap['high']:+.2f}]"
        rows.append([arm["name"], score, f"{100 * gap['mean']:+.2f}", span, verdict, cost, memory])
    metric = record["metric"]
    return table(
        [
            ("arm", "left"),
            (metric, "right"),
            ("gain, points", "right"),
            ("95 % interval", "right"),
            ("verdict", "left"),
            ("time", "right"),
            ("MB", "right"),
        ],
        rows,
    )


def print_ablation(record: Mapping[str, Any], folder: Path, as_json: bool = False) -> None:
    """The end of `danlu ablate`."""
    if as_json:
        return dump({**record, "folder": str(folder)})
    console = out()
    console.print(verdict_table(record))
    console.print(
        Text(f"{len(record['seeds'])} seeds, {record['examples']:,} examples, judged on {record['evaluated_on']}")
    )
    for note in record.get("notes", []):
        console.print(Text(f"note: {note}"))
    for part in record.get("data", []):
        if part.get("also_in_train"):
            count, role = part["also_in_train"], part["role"]
            console.print(Text(f"note: {count:,} examples of {role} also stand in the training data"))
    for failure in record.get("failed", []):
        console.print(Text(f"failed: {failure['arm']} seed {failure['seed']}: {failure['line']}"))
    page = folder / "report.html"
    console.print(Text(f"record  {folder / 'ablation.json'}{f'{chr(10)}report  {page}' if page.exists() else ''}"))
    return None


def print_demo(record: Mapping[str, Any], folder: Path) -> None:
    """The end of `danlu demo`."""
    console = out()
    console.print(
        table(
            [
                ("word segmentation of held-out newspaper", "left"),
                ("precision", "right"),
                ("recall", "right"),
                ("word F1", "right"),
                ("note", "left"),
            ],
            [
                [row["name"], *[f"{row[k]:.4f}" for k in ("precision", "recall", "f1")], row["note"]]
                for row in record["segmenters"]
            ],
        )
    )
    console.print(Text(record["trained_on"]))
    console.print(verdict_table(record["ablation"]))
    console.print(Text(record["ablation_on"]))
    console.print(Text(f"\n{record['sentence']}\n{record['segmented']}\n"))
    console.print(
        Text(
            f"model   {folder / 'model'}\nreport  {folder / 'model' / 'report.html'}\n"
            f"        {folder / 'ablation' / 'report.html'}\n"
            f"use     danlu predict {shlex.quote(str(folder / 'model'))} TEXT\ntook    {duration(record['seconds'])}"
        )
    )


def print_rows(rows: Sequence[Mapping[str, str]], as_json: bool = False) -> None:
    """A list of names."""
    if as_json:
        return dump(list(rows))
    if rows:
        names = list(rows[0])
        out().print(table([(n, "left") for n in names], [[row.get(n, "") for n in names] for row in rows]))
    return None


def print_page(page: Mapping[str, str], as_json: bool = False) -> None:
    """Documentation of one name."""
    if as_json:
        return dump(dict(page))
    out().print(Text(page["doc"]))
    return None


def print_recipe(record: Mapping[str, Any], as_json: bool = False) -> None:
    """Measured beside claimed."""
    if as_json:
        return dump(record)
    console = out()
    rows = []
    for name, value in record["measured"].items():
        span = "" if value["low"] is None else f"[{value['low']:.4f}, {value['high']:.4f}]"
        claim = record["claimed"].get(name)
        rows.append([name, f"{value['mean']:.4f}", span, "" if claim is None else f"{claim:g}"])
    console.print(
        table(
            [
                (f"{record['recipe']} ({record['scale']})", "left"),
                ("measured", "right"),
                ("95 % interval", "right"),
                ("claimed", "right"),
            ],
            rows,
        )
    )
    console.print(f"{len(record['runs'])} seeds, {duration(record['seconds'])}")
    return None


def print_data(rows: Sequence[Mapping[str, Any]], as_json: bool = False) -> None:
    """Named data sets."""
    if as_json:
        return dump(list(rows))
    console = out()
    keys = ("name", "task", "language", "rows", "mb", "licence", "origin", "found")
    console.print(table([(k, "left") for k in keys], [[_cell(row.get(k)) for k in keys] for row in rows]))
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.get("note"):
            notes.setdefault(row["note"], []).append(row["name"])
    for note, names in notes.items():
        console.print(Text(f"{', '.join(names)}: {note}"))
    return None


def print_data_card(card: Mapping[str, Any]) -> None:
    """One data set: licence, origin, conversion, and where it was put."""
    for key, value in card.items():
        print(f"{key}: {_cell(value)}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    if isinstance(value, Mapping):
        return "; ".join(f"{k} {_cell(v)}" for k, v in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
