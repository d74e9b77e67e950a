"""What every benchmark says of itself: command, date, commit, machine and versions; and the file that holds it."""

import contextlib
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

from danlu.tasks.engines import processor_name


def record(packages: Iterable[str], threads: int | None = None) -> dict[str, object]:
    """The head of a result: call it before measuring, so that the load is that of the others on this machine.

    `packages` are those whose versions matter; `threads` is how many the measured process may use.
    """
    script, commit = Path(sys.argv[0]), None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, no checkout
        commit = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    return {
        "benchmark": script.stem,
        "command": shlex.join(["python", f"benchmarks/{script.name}", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "machine": {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "threads": threads,
            "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        },
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
    }


def write(path: Path | None, result: Mapping[str, object]) -> None:
    """Write the result as JSON, in a folder that is made if need be; None: not asked for, nothing is written."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")


def milliseconds(*functions: Callable[[], object], rounds: int) -> list[float]:
    """Median of each, taken in turns so that a busy machine hits all alike; a first round is not counted."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for taken, function in zip(times, functions, strict=True):
            began = time.perf_counter()
            function()
            taken.append(1e3 * (time.perf_counter() - began))
    return [statistics.median(taken[1:]) for taken in times]
