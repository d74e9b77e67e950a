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
import datetime
import hashlib
import importlib.metadata
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from urllib.parse import quote

import danlu
from danlu.data.errors import InputError, WorkError
from danlu.tasks.engines import Engine, Work, get_engine, processor_name
from danlu.tasks.folder import check_target, digest, locked, partial_of, publish, write_bytes, write_json
from danlu.tasks.statistics import MIN_SEEDS, metric, paired_contributions, paired_difference, verdicts
from danlu.tasks.tricks import parse

__all__ = ["Arm", "Design", "plan", "run_ablation"]

MARK = "ablation.json"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
FILES = ("train", "dev", "test")  # keys of a spec whose values may name files


@dataclass(frozen=True)
class Arm:
    """One column of the comparison: its name, the tricks it switches on, its expected time against the baseline."""

    name: str
    tricks: tuple[str, ...] = ()
    cost: float = 1.0


@dataclass(frozen=True)
class Design:
    """What is going to be compared: the arms (baseline first), the seeds of every arm, what the reader must know."""

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()


def plan(spec: Mapping[str, Any], tricks: Sequence[str], seeds: int | Sequence[int]) -> Design:
    """The arms of an ablation: baseline, each trick alone, all together.

    Two values of one slot (`head:crf` and `head:memm`) are two arms, but cannot be switched on together: the last arm
    takes the first of each slot, is then called "first of each" and a note says what it leaves out. With one slot only
    there is nothing to put together and no such arm.

    Args:
        spec: the run all arms share; its "with" (or "tricks") are switched on in every arm, "seed" is the first seed.
        tricks: NAME or NAME:VALUE, each once.
        seeds: how many (counting up from the spec's seed), or the seeds themselves.

    Returns:
        The `Design`.

    Raises:
        InputError: no trick, one given twice, an unknown one, or seeds that are none or not distinct.

    >>> [arm.name for arm in plan({"task": "tag"}, ["fgm", "ema"], 3).arms]
    ['baseline', 'fgm', 'ema', 'all']
    """
    if not tricks:
        raise InputError("nothing to compare: give tricks, for example --with fgm,ema; `danlu list tricks` shows them")
    if len(set(tricks)) < len(tricks):
        twice = next(trick for trick in tricks if list(tricks).count(trick) > 1)
        raise InputError(f"trick {twice} is given twice; give each once")
    first = int(spec.get("seed") or 0)
    chosen = tuple(range(first, first + seeds)) if isinstance(seeds, int) else tuple(int(s) for s in seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"seeds must be one or more different whole numbers, got {seeds}; 5 make a usable verdict")
    shared = tuple(spec.get("with") or spec.get("tricks") or ())
    arms, notes, slots, left_out = [Arm("baseline", shared)], [], dict[str, str](), []
    cost = 1.0
    for text in tricks:
        trick = parse(text, spec.get("task"))
        arms.append(Arm(text, (*shared, text), _cost(trick.cost)))
        if trick.slot in slots:
            left_out.append(f"{text} (a rival of {slots[trick.slot]})")
        else:
            slots[trick.slot] = text
            cost *= arms[-1].cost
    if len(slots) > 1:
        name = "first of each" if left_out else "all"
        arms.append(Arm(name, (*shared, *slots.values()), cost))
        if left_out:
            notes.append(f'The arm "{name}" is {" + ".join(slots.values())}; it leaves out {", ".join(left_out)}.')
    if len(chosen) < MIN_SEEDS:
        notes.append(f"With fewer than {MIN_SEEDS} seeds no verdict is given; 5 or more are advised.")
    return Design(tuple(arms), chosen, tuple(notes))


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
            trials = _trials(spec, design, threads)
            stored = _stored(partial / "trials", trials)
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
            record = _record(spec, design, trials, run.stored, engine, threads, command_line)
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
        self, design: Design, trials: Mapping[str, "_Trial"], stored: dict[str, dict[str, Any]], partial: Path,
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
                write_bytes(self.partial / "trials" / f"{name}.json", stored.encode())
                self.stored[name] = answer
                for suffix in (".spec.json", ".json"):
                    (folder / f"{name}{suffix}").unlink(missing_ok=True)
                event["left"] = self.seconds_left(left)
                self.on_event(event)
                if not told and result is not None and left:
                    told = True
                    self.on_event({"event": "estimate", "seconds": event["left"], "of": "first trial"})


@dataclass(frozen=True)
class _Trial:
    arm: Arm
    seed: int
    spec: dict[str, Any]
    identity: dict[str, Any]
    key: str


def _trials(spec: Mapping[str, Any], design: Design, threads: int) -> dict[str, _Trial]:
    """Name -> trial, all arms of the first seed first: whoever looks early sees every arm."""
    contents = {key: digest(Path(str(spec[key]))) for key in FILES if spec.get(key)}
    versions = {"danlu": danlu.__version__, "torch": _version("torch")}
    trials = {}
    for seed in design.seeds:
        for arm in design.arms:
            own = {**spec, "with": list(arm.tricks), "seed": seed, "threads": threads}
            if "tricks" in spec:
                own["tricks"] = list(arm.tricks)
            own.setdefault("evaluate_on", "test" if spec.get("test") else "half of dev")
            identity = json.loads(json.dumps({"spec": own, "contents": contents, "versions": versions}))
            key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
            trials[f"{quote(arm.name, safe=':').replace(':', '=')}-{seed}"] = _Trial(arm, seed, own, identity, key)
    return trials


def _stored(folder: Path, trials: Mapping[str, _Trial]) -> dict[str, dict[str, Any]]:
    """The trials an earlier run left, after checking that they are of this plan; a damaged one is run again."""
    stored = {}
    for path in sorted(folder.glob("*.json")):
        name = path.name.removesuffix(".json")
        try:
            answer = json.loads(path.read_bytes())
            key, identity = answer["key"], answer["identity"]
        except (ValueError, TypeError, KeyError):
            continue
        if name not in trials or key != trials[name].key:
            known = name in trials
            reason = _what_differs(identity, trials[name].identity) if known else f"trial {name} is not in this plan"
            raise InputError(
                f"{folder.parent} holds trials of other settings ({reason}); give the settings of the first run to go "
                "on, or --overwrite to start again"
            )
        stored[name] = answer
    return stored


def _what_differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    for part, label in (("spec", ""), ("contents", "content of the file given as --"), ("versions", "version of ")):
        old, new = before.get(part, {}), now.get(part, {})
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                if part == "contents":
                    return f"{label}{key} changed"
                return f"{label}{key} was {old.get(key)!r}, is now {new.get(key)!r}"
    return "the stored trial is of another kind"


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


def _record(
    spec: Mapping[str, Any], design: Design, trials: Mapping[str, _Trial], stored: Mapping[str, dict[str, Any]],
    engine: Engine, threads: int, command_line: str,
) -> dict[str, Any]:  # fmt: skip
    """The whole report as plain values."""
    results: dict[str, dict[int, dict[str, Any]]] = {arm.name: {} for arm in design.arms}
    failed, notes = [], list(design.notes)
    for name, trial in trials.items():
        answer = stored[name]
        if "result" in answer:
            result = answer["result"]  # its own "seconds" are those of the training alone
            results[trial.arm.name][trial.seed] = {**result, "seconds": result.get("seconds", answer["seconds"])}
        else:
            failed.append({"arm": trial.arm.name, "seed": trial.seed, "line": answer["failed"]})
    baseline = results["baseline"]
    if not baseline or not any(results[arm.name] for arm in design.arms[1:]):
        what = "the baseline" if not baseline else "any arm beside the baseline"
        raise WorkError(f"no trial of {what} ended well: nothing to compare; the first failure: {failed[0]['line']}")
    examples = {len(_by_example(result)) for by_seed in results.values() for result in by_seed.values()}
    if len(examples) > 1:
        raise WorkError(f"the trials scored different numbers of examples ({sorted(examples)}) and cannot be compared")
    differences = {}
    for arm in design.arms[1:]:
        common = [seed for seed in design.seeds if seed in baseline and seed in results[arm.name]]
        if len(common) < len(design.seeds):
            notes.append(f'"{arm.name}" is compared on {len(common)} of {len(design.seeds)} seeds; the others failed.')
        if common:
            compare = paired_contributions if "contributions" in baseline[common[0]] else paired_difference
            try:
                differences[arm.name] = compare(
                    [_by_example(baseline[seed]) for seed in common],
                    [_by_example(results[arm.name][seed]) for seed in common],
                )
            except ValueError as error:
                raise WorkError(f"the trials of {arm.name} cannot be compared with the baseline: {error}") from error
    judged = dict(zip(differences, verdicts(list(differences.values())), strict=True))
    arms = []
    for arm in design.arms:
        by_seed = results[arm.name]
        values = [by_seed[seed]["value"] for seed in by_seed]
        memory = [r["memory_mb"] for r in by_seed.values() if r.get("memory_mb") is not None]
        difference = None
        if arm.name in differences:
            d, verdict = differences[arm.name], judged[arm.name]
            difference = {
                "mean": d.mean, "low": d.low, "high": d.high, "p": d.p, "p_holm": verdict.p_holm, "df": d.df,
                "seeds": d.seeds, "verdict": verdict.verdict,
            }  # fmt: skip
        arms.append(
            {
                "name": arm.name,
                "with": list(arm.tricks),
                "scores": [
                    {"seed": s, "value": r["value"], "seconds": r["seconds"], "memory_mb": r.get("memory_mb")}
                    for s, r in by_seed.items()
                ],
                "mean": fmean(values) if values else None,
                "std": stdev(values) if len(values) > 1 else None,
                "seconds": fmean(r["seconds"] for r in by_seed.values()) if by_seed else None,
                "memory_mb": max(memory) if memory else None,
                "difference": difference,
            }
        )
    sample = next(iter(baseline.values()))
    processors = sorted({answer["processor"] for answer in stored.values() if answer.get("processor")})
    if len(processors) > 1:
        notes.append(
            f"The trials ran on {len(processors)} kinds of processor ({'; '.join(processors)}); equal seeds need not "
            "give equal numbers across them."
        )
    notes.append(
        "Each interval alone covers the mean difference over fresh seeds and fresh examples in 95 of 100 ablations; "
        "the verdicts are corrected for the number of arms (Holm), so an interval may leave out zero without a verdict."
    )
    where = {"test": "the test set", "half of dev": "a fixed half of dev that selection never saw"}
    evaluate_on = str(next(iter(trials.values())).spec["evaluate_on"])
    hidden = {"with", "tricks", "seed", "threads", "evaluate_on", "task", *FILES}
    task = str(spec.get("task", ""))
    return {
        "kind": "ablation",
        "title": f"{task}: {', '.join(_tricks_of(design))} against the baseline",
        "command": command_line,
        "task": task,
        "metric": str(sample.get("metric", "f1")),
        "seeds": list(design.seeds),
        "examples": examples.pop(),
        "evaluated_on": sample.get("evaluated_on") or where.get(evaluate_on, evaluate_on),
        "arms": arms,
        "failed": failed,
        "data": sample.get("data") or [{"role": key, "name": str(spec[key])} for key in FILES if spec.get(key)],
        "machine": {
            "cpu": "; ".join(processors) or processor_name(),
            "threads": threads,
            "python": ".".join(map(str, sys.version_info[:3])),
            "torch": _version("torch"),
            **(sample.get("machine") or {}),
        },
        "settings": {
            **{key: value for key, value in spec.items() if key not in hidden and value is not None},
            "jobs": engine.jobs, "engine": engine.name,
        },
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "danlu": danlu.__version__,
        "seconds": {"total": sum(answer["seconds"] for answer in stored.values())},
        "notes": notes,
    }  # fmt: skip


def _by_example(result: Mapping[str, Any]) -> list[Any]:
    """What a trial says of every example: counts, or the contributions to its score."""
    found: list[Any] = result.get("contributions", result["counts"])
    return found


def _tricks_of(design: Design) -> list[str]:
    """The names of the arms that switch on one trick."""
    return [arm.name for arm in design.arms if arm.tricks and arm.tricks[-1] == arm.name]


def _environment(threads: int) -> dict[str, str]:
    """The same for every trial: its threads, and the order of Python's sets of strings."""
    return {**dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONHASHSEED": "0"}


def _cost(text: str) -> float:
    """The (larger) factor in "0.8 to 1.0 x time"; 1 where the card is silent."""
    factor = re.search(r"(\d+(?:\.\d+)?) x time", text)
    return float(factor[1]) if factor else 1.0


def _gpus(spec: Mapping[str, Any], engine: str) -> float:
    """GPUs that one trial uses, for Ray to book."""
    device = str(spec.get("device") or "auto")
    if engine != "ray" or device not in ("auto", "cuda"):
        return 0.0
    import torch

    return 1.0 if torch.cuda.is_available() or device == "cuda" else 0.0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


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
