"""One trial of an ablation in its own process: `python -m danlu.tasks.trial SPEC.json OUT.json`.

SPEC.json holds a `Spec` whose tricks stand under "with". Selection looks at --dev; the trial is judged on --test, or
where there is none on a fixed half of dev that selection never saw.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from danlu.data.errors import InputError, explain
from danlu.tasks import get_task
from danlu.tasks.device import machine
from danlu.tasks.folder import write_json
from danlu.tasks.memory import keep_freed_memory
from danlu.tasks.spec import Spec
from danlu.tasks.training import Part, halves, metric_of, read_parts, score, train_model

__all__ = ["judged_on", "run_trial"]


def judged_on(parts: dict[str, Part]) -> tuple[dict[str, Part], str]:
    """The parts of a trial with "test" always there, and in words what that is.

    Raises:
        InputError: there is nothing to judge on.
    """
    if "test" in parts:
        return parts, f"test ({parts['test'].name})"
    if "dev" not in parts:
        raise InputError("an ablation needs --test, or --dev, one half of which is then kept for the verdict")
    dev = parts["dev"]
    select, judge = halves(dev.examples)
    if not select or not judge:
        raise InputError(
            f"{dev.name} has too few distinct examples ({len(dev.examples)}) to keep half for the verdict; give --test"
        )
    split = {
        **parts,
        "dev": Part("dev", dev.name, select, dev.scheme),
        "test": Part("test", dev.name, judge, dev.scheme),
    }
    return split, f"a fixed half of dev ({dev.name}) that selection never saw"


def run_trial(value: dict[str, Any]) -> dict[str, Any]:
    """Train and judge one arm with one seed.

    Args:
        value: a `Spec` as JSON, tricks under "with".

    Returns:
        "metric", "value", "counts" of every example (or "contributions"), "seconds" of training, "memory_mb" at the
        peak, "metrics", "evaluated_on".
    """
    started = time.perf_counter()
    spec = Spec.from_json({**value, "tricks": value.get("with", [])})
    parts, place = judged_on(read_parts(spec))
    metric = get_task(spec.task).metric
    if metric_of(get_task(spec.task), parts["train"].scheme) != metric:
        raise InputError(f"an ablation compares {metric} example by example, which scores do not have; give classes")
    run = train_model(spec, parts)
    scores = score(run, spec.task, "test")
    return {
        "metric": metric,
        "value": scores.metrics[metric],
        "counts": [list(c) for c in scores.counts],
        **({"contributions": scores.contributions} if scores.contributions else {}),
        "seconds": round(run.result.seconds, 3),
        "total_seconds": round(time.perf_counter() - started, 3),
        "memory_mb": round(peak_memory_mb(), 1),
        "metrics": scores.metrics,
        "steps": run.result.steps,
        "evaluated_on": place,
        "data": [part.card() for part in parts.values()],
        "machine": machine(run.device, run.precision),
    }


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MiB; what its parent held does not count."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:  # ru_maxrss would inherit the parent's peak
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        import psutil

        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss) / 2**20


def main(arguments: list[str]) -> int:
    """Exit code 0; 2 or 1 with one line on stderr where the command line would say so."""
    source, target = map(Path, arguments)
    keep_freed_memory()
    try:
        write_json(target, run_trial(json.loads(source.read_text(encoding="utf-8"))))
    except Exception as error:
        told = explain(error)
        if told is None:
            raise
        sys.stderr.write(f"danlu: {told[0]}\n")
        return told[1]
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
