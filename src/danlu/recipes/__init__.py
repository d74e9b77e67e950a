"""Recipes: one script per claim of a source; this file finds one, runs it over seeds and keeps every finished seed."""

import datetime
import difflib
import importlib
import json
import math
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from danlu import __version__

__all__ = ["recipe_names", "run_recipe"]


def recipe_names() -> list[str]:
    """Names of the recipes: the files of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("_"))


def run_recipe(
    name: str,
    scale: str = "smoke",
    seeds: Sequence[int] = (0,),
    settings: Sequence[str] = (),
    out: Path | None = None,
    overwrite: bool = False,
    command: str = "",
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> dict[str, Any]:
    """Run a recipe for every seed and put measured beside claimed.

    Args:
        name: of the recipe.
        scale: a key of its SCALES.
        seeds: one run each.
        settings: "name=value" changes of its Config.
        out: JSON file of the record; seeds it already holds are not run again.
        overwrite: start the file afresh.
        command: for the record.
        on_event: is told of progress.

    Returns:
        The record: claim, configuration, one row a seed, mean and 95 % interval of every measured number.

    Raises:
        InputError: unknown recipe, scale or setting, or `out` holds another recipe's or configuration's runs.
    """
    from danlu.data.errors import InputError
    from danlu.tasks.device import choose, machine
    from danlu.tasks.folder import write_json
    from danlu.tasks.spec import parse_settings

    if name not in recipe_names():
        near = difflib.get_close_matches(name, recipe_names(), n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"no recipe {name!r}{hint}; there are {', '.join(recipe_names())}")
    module = importlib.import_module(f"danlu.recipes.{name}")
    if scale not in module.SCALES:
        raise InputError(f"recipe {name} has the scales {', '.join(module.SCALES)}, not {scale!r}")
    config = replace(module.SCALES[scale], **parse_settings(settings, module.SCALES[scale]))
    plain = json.loads(json.dumps(asdict(config)))
    runs: dict[int, dict[str, Any]] = {}
    if out is not None and out.exists() and not overwrite:
        try:
            earlier = json.loads(out.read_text(encoding="utf-8"))
            same = earlier["recipe"] == name and earlier["config"] == plain
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{out} is not a result of a recipe; give another --out") from None
        if not same:
            raise InputError(f"{out} holds runs of another recipe or configuration; --overwrite starts afresh")
        runs = {row["seed"]: row for row in earlier["runs"]}
    record: dict[str, Any] = {}
    for number, seed in enumerate(seeds):
        if seed not in runs:
            on_event({"event": "phase", "text": f"{name} seed {seed} ({number + 1} of {len(seeds)})"})
            began = time.perf_counter()
            result = module.run(config, seed)
            runs[seed] = {
                "seed": seed,
                "measured": dict(result.measured),
                "claimed": dict(result.claimed),
                "figures": result.figures,
                "seconds": round(time.perf_counter() - began, 2),
            }
        record = _record(name, scale, plain, module.__doc__ or "", list(runs.values()), command)
        record["machine"] = machine(*choose("cpu", "auto"))
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, record)
    return record


def _record(
    name: str, scale: str, config: Mapping[str, Any], doc: str, runs: list[dict[str, Any]], command: str
) -> dict[str, Any]:
    names = list(dict.fromkeys(key for row in runs for key in row["measured"]))
    return {
        "kind": "recipe",
        "recipe": name,
        "doc": doc,
        "scale": scale,
        "config": dict(config),
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "danlu": __version__,
        "commit": _commit(),
        "measured": {key: interval([row["measured"][key] for row in runs if key in row["measured"]]) for key in names},
        "claimed": runs[0]["claimed"],
        "seconds": round(sum(row["seconds"] for row in runs), 2),
        "runs": sorted(runs, key=lambda row: row["seed"]),
    }


def interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, standard deviation and 95 % t interval of some runs; a single one has a mean only.

    >>> interval([1.0, 3.0])["mean"]
    2.0
    """
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return {"mean": mean, "std": None, "low": None, "high": None, "n": n}
    from scipy.stats import t

    std = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return {"mean": mean, "std": std, "low": mean - half, "high": mean + half, "n": n}


def _commit() -> str:
    """Commit of the checkout danlu runs from, with + when it has changes; "" elsewhere."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return ""
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--", "src"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if dirty else "")
