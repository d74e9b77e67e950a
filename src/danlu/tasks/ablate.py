"""An ablation: the baseline, each trick alone, all together; the same seeds everywhere; an honest verdict on each.

Every trial is a process of its own, with the same number of threads whatever runs beside it, stored when it ends:

    OUT.partial/trials/ARM-SEED.json    one finished trial: what was asked, what came out (counts of every example)
    OUT.partial/work/                   trials in flight
    OUT/ablation.json, OUT/trials/      the end: OUT.partial takes the place of OUT

A trial is known by everything that its numbers depend on: its settings, the content of its data files, the versions of
danlu and torch. A run that goes on with stored trials refuses those of other settings. Selection inside a trial sees
the dev set only; the verdicts stand on the test set or, without one, on a fixed half of dev that selection never sees.
"""

import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from danlu.data.atomic import write_whole
from danlu.data.errors import InputError, WorkError
from danlu.tasks.ablation_plan import Arm, Design, Trial, plan, stored_trials, trials_of
from danlu.tasks.ablation_record import record_of
from danlu.tasks.engines import Engine, Work, get_engine
from danlu.tasks.folder import check_target, locked, partial_of, publish, write_json
from danlu.tasks.statistics import metric

__all__ = ["Arm", "Design", "plan", "run_ablation"]

MARK = "ablation.json"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def run_ablation(
    spec: Mapping[str, Any],
    tricks: Sequence[str],
    seeds: int | Sequence[int],
    out: Path,
    jobs: int = 1,
    engine: str | Engine = "local",
    resume: bool = False,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    *,
    overwrite: bool = False,
    command: Sequence[str] | None = None,
    command_line: str = "",
    baseline_seconds: float | None = None,
    finish: Callable[[dict[str, Any], Path], None] = lambda record, folder: None,
) -> dict[str, Any]:
    """Run every trial of the plan that is not stored yet, judge the arms, write `out`.

    Events, each a dict with "event": "plan" (trials, stored, arms, seeds, jobs), "estimate" (seconds, of: "caller",
    "stored trials" or "first trial"), "trial" (arm, seed, value, seconds, done, trials, left), "failed" (arm, seed,
    line, done, trials, left), "done" (seconds). `left` is in seconds, None while unknown.

    Args:
        spec: the run all arms share, plain JSON; "with", "seed", "threads" and "evaluate_on" are set per trial.
        tricks: NAME or NAME:VALUE, each once.
        seeds: how many, or the seeds themselves; going on with more seeds than before is allowed.
        out: folder to write.
        jobs: trials at a time.
        engine: "local", "ray" or an engine.
        resume: go on with the trials an earlier run stored; trials that failed are tried again.
        on_event: is told what happens.
        overwrite: replace an earlier result.
        command: runs one trial: these words, then the specification's file and the result's file.
        command_line: what the user typed, for the record.
        baseline_seconds: expected time of one baseline trial, if known: an estimate before anything starts.
        finish: called with the record and the folder before the folder takes its place (to write a page into it).

    Returns:
        The record that ablation.json holds; "failed" lists the trials that did not end well.

    Raises:
        InputError: a trial ended with exit code 2 (its line), `out` is taken or in use, stored trials are of other
            settings, the engine is not installed.
        WorkError: no trial of the baseline or of any other arm ended well, trials cannot be compared, the disk is full.
    """
    began = time.perf_counter()
    out = Path(out)
    design = plan(spec, tricks, seeds)
    threads = int(spec.get("threads") or 1)
    if isinstance(engine, str):
        try:
            engine = get_engine(engine, jobs, threads, _gpus(spec, engine))
        except ImportError as error:
            raise InputError(str(error)) from None
    partial = partial_of(out)
    with locked(out):
        again = resume and not overwrite and not partial.exists() and _has_failures(out)
        if not again:
            check_target(out, mark=MARK, overwrite=overwrite, resume=resume)
        try:
            if overwrite:
                shutil.rmtree(partial, ignore_errors=True)
            (partial / "trials").mkdir(parents=True, exist_ok=True)
            if again:
                shutil.copytree(out / "trials", partial / "trials", dirs_exist_ok=True)
            shutil.rmtree(partial / "work", ignore_errors=True)
            (partial / "work").mkdir()
            for leftover in (partial / "trials").glob("*.tmp"):  # of a run that was killed while it wrote
                leftover.unlink()
            trials = trials_of(spec, design, threads)
            stored = stored_trials(partial / "trials", trials)
            todo = [name for name in trials if "result" not in stored.get(name, {})]
            on_event(
                {
                    "event": "plan", "trials": len(trials), "stored": len(trials) - len(todo), "jobs": engine.jobs,
                    "arms": [arm.name for arm in design.arms], "seeds": list(design.seeds),
                }
            )  # fmt: skip
            run = _Run(design, trials, stored, partial, engine, on_event)
            run.estimate(todo, baseline_seconds)
            run.work(todo, command or [sys.executable, "-m", "danlu.tasks.trial"], _environment(threads))
            record = record_of(spec, design, trials, run.stored, engine, threads, command_line)
            record["seconds"]["wall"] = round(time.perf_counter() - began, 3)
            shutil.rmtree(partial / "work", ignore_errors=True)
            write_json(partial / MARK, record)
            finish(record, partial)
            publish(partial, out)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise WorkError(
                f"could not write the ablation{where}: {error.strerror or error}; finished trials are "
                f"kept in {partial}; make room, --resume goes on with them"
            ) from error
        finally:
            _remove_if_empty(partial)
    on_event({"event": "done", "seconds": time.perf_counter() - began})
    return record


class _Run:
    """The trials of one call: what is stored, what is left, how long it takes."""

    def __init__(
        self, design: Design, trials: Mapping[str, Trial], stored: dict[str, dict[str, Any]], partial: Path,
        engine: Engine, on_event: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        self.design, self.trials, self.stored = design, trials, stored
        self.partial, self.engine, self.on_event = partial, engine, on_event

    def seconds_left(self, names: Sequence[str], unit: float | None = None) -> float | None:
        """Time for these trials: their costs against those of the finished ones, `jobs` at a time."""
        if unit is None:
            ended = [(self.trials[n].arm.cost, s["seconds"]) for n, s in self.stored.items() if "result" in s]
            if not ended:
                return None
            unit = sum(seconds for _, seconds in ended) / sum(cost for cost, _ in ended)
        return unit * sum(self.trials[n].arm.cost for n in names) / min(self.engine.jobs, max(len(names), 1))

    def estimate(self, todo: Sequence[str], baseline_seconds: float | None) -> None:
        """Say how long it takes, when something is known before the start."""
        source = "stored trials"
        seconds = self.seconds_left(todo)
        if seconds is None and baseline_seconds is not None:
            source, seconds = "caller", self.seconds_left(todo, baseline_seconds)
        if seconds is not None and todo:
            self.on_event({"event": "estimate", "seconds": seconds, "of": source})

    def work(self, todo: Sequence[str], command: Sequence[str], env: Mapping[str, str]) -> None:
        """Run the trials, store each when it ends; stop all at the first mistake of the user's."""
        folder = self.partial.absolute() / "work"
        works = []
        for name in todo:
            write_json(folder / f"{name}.spec.json", self.trials[name].spec)
            works.append(Work([*command, str(folder / f"{name}.spec.json"), str(folder / f"{name}.json")], env))
        told = any("result" in s for s in self.stored.values())
        left = list(todo)
        with contextlib.closing(self.engine.run(works)) as finished:  # closing kills what still runs
            for index, end in finished:
                name = todo[index]
                trial = self.trials[name]
                left.remove(name)
                if end.code == 2:
                    raise InputError(_last_line(end.tail) or f"trial {name} refused its settings and did not say why")
                answer: dict[str, Any] = {"key": trial.key, "identity": trial.identity}
                answer |= {"seconds": end.seconds, "processor": end.processor}
                result, problem = _read_result(folder / f"{name}.json", end.code, end.tail)
                event = {
                    "arm": trial.arm.name, "seed": trial.seed, "done": len(self.trials) - len(left),
                    "trials": len(self.trials),
                }  # fmt: skip
                if result is None:
                    answer["failed"] = problem
                    event |= {"event": "failed", "line": problem}
                else:
                    answer["result"] = result
                    event |= {"event": "trial", "value": result["value"], "seconds": end.seconds}
                stored = json.dumps(answer, ensure_ascii=False, allow_nan=False)  # compact: counts are long
                write_whole(self.partial / "trials" / f"{name}.json", stored.encode())
                self.stored[name] = answer
                for suffix in (".spec.json", ".json"):
                    (folder / f"{name}{suffix}").unlink(missing_ok=True)
                event["left"] = self.seconds_left(left)
                self.on_event(event)
                if not told and result is not None and left:
                    told = True
                    self.on_event({"event": "estimate", "seconds": event["left"], "of": "first trial"})


def _read_result(path: Path, code: int, tail: str) -> tuple[dict[str, Any] | None, str]:
    """What a trial wrote, or why it counts as failed."""
    if code < 0:
        lost = tail.startswith("Ray lost")
        return None, _last_line(tail) if lost else f"killed by signal {-code} ({_signal(-code)})"
    if code != 0:
        return None, _last_line(tail) or f"ended with exit code {code}"
    try:
        result = json.loads(path.read_bytes())
        value, parts = float(result["value"]), result.get("contributions")
        counts = metric(result["counts"]) if parts is None else fmean(map(float, parts))
    except (OSError, ValueError, TypeError, KeyError) as error:
        return None, f"wrote no usable result ({type(error).__name__}: {error})"
    if getattr(counts, "ndim", 0) or not abs(float(counts) - value) <= 1e-6:
        return None, f"its score is {value}, but its {'counts' if parts is None else 'contributions'} give {counts}"
    return result, ""


def _environment(threads: int) -> dict[str, str]:
    """The same for every trial: its threads, and the order of Python's sets of strings."""
    return {**dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONHASHSEED": "0"}


def _gpus(spec: Mapping[str, Any], engine: str) -> float:
    """GPUs that one trial uses, for Ray to book."""
    device = str(spec.get("device") or "auto")
    if engine != "ray" or device not in ("auto", "cuda"):
        return 0.0
    import torch

    return 1.0 if torch.cuda.is_available() or device == "cuda" else 0.0


def _has_failures(out: Path) -> bool:
    """Whether `out` is a finished ablation some of whose trials failed."""
    try:
        return bool(json.loads((out / MARK).read_bytes()).get("failed"))
    except (OSError, ValueError, AttributeError):
        return False


def _remove_if_empty(partial: Path) -> None:
    """Leave no trace of a run that stopped before its first trial ended."""
    if partial.is_dir() and not any((partial / "trials").glob("*.json")):
        shutil.rmtree(partial, ignore_errors=True)


def _last_line(text: str) -> str:
    line = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    return line.removeprefix("danlu: ")


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return "unknown"
    return f"{name}, perhaps out of memory" if name == "SIGKILL" else name
