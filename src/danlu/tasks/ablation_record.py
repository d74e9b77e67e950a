"""What an ablation found: the arms against the baseline, with intervals and verdicts, as plain values for JSON."""

import datetime
import sys
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

import danlu
from danlu.data.errors import WorkError
from danlu.tasks.ablation_plan import FILES, Design, Trial, version_of
from danlu.tasks.engines import Engine, processor_name
from danlu.tasks.statistics import paired_contributions, paired_difference, verdicts

__all__ = ["record_of"]


def record_of(
    spec: Mapping[str, Any], design: Design, trials: Mapping[str, Trial], stored: Mapping[str, dict[str, Any]],
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
            "torch": version_of("torch"),
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
