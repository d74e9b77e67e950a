r"""What the page of an ablation shows, made ready for its template: the arms in rows, their charts, the verdicts.

Source: none, ours. Shapes: records are what json.load returns, NaN and None where nothing was measured.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from danlu.gallery import charts, formats
from danlu.gallery.formats import finite

__all__ = ["LOWER_IS_BETTER", "VERDICT_SIGNS", "arm_rows", "find_baseline", "verdict_summary"]

Record = Mapping[str, Any]

LOWER_IS_BETTER = {"loss", "ece", "rmse", "perplexity", "error"}
VERDICT_SIGNS = {"helps": "▲", "hurts": "▼", "no evidence": "○", "too few seeds": "◇"}


def find_baseline(arms: Sequence[Record]) -> Record | None:
    """The arm that the differences are taken against: the one without a difference and without a trick."""
    bare = [a for a in arms if not a.get("difference")]
    return next((a for a in bare if not a.get("with")), bare[0] if bare else None)


def by_seed(arm: Record) -> dict[Any, float | None]:
    """The scores of an arm by seed, None where a trial has none."""
    return {s.get("seed"): finite(s.get("value")) for s in arm.get("scores") or []}


def arm_rows(
    arms: Sequence[Record], baseline: Record | None, seeds: Sequence[Any], metric: str, failed: Sequence[Record]
) -> dict[str, Any]:
    """Everything that the tables of an ablation show, row by row, with their charts."""
    base = by_seed(baseline) if baseline else {}
    seeds = list(dict.fromkeys([*seeds, *(s for a in arms for s in by_seed(a))]))
    paired = [
        [v - b if (v := by_seed(a).get(s)) is not None and (b := base.get(s)) is not None else None for s in seeds]
        for a in arms
    ]
    for i, arm in enumerate(arms):
        if arm is baseline:
            paired[i] = []
    gain = gain_axis(arms, paired)
    broken = {(f.get("arm"), f.get("seed")) for f in failed}
    values = [v for a in arms for v in by_seed(a).values()]
    strip = charts.nice_axis([*values, *(a.get("mean") for a in arms)], steps=3)
    cost = {key: [finite(a.get(key)) for a in arms] for key in ("seconds", "memory_mb")}
    largest = {key: max((v for v in column if v is not None), default=0.0) for key, column in cost.items()}
    rows = []
    for arm, dots in zip(arms, paired, strict=True):
        difference = arm.get("difference") or {}
        verdict = str(difference.get("verdict") or "")
        mean, low, high = (difference.get(k) for k in ("mean", "low", "high"))
        rows.append(
            {
                "arm": arm,
                "tricks": " + ".join(map(str, arm.get("with") or [])),
                "is_baseline": arm is baseline,
                "difference": difference,
                "verdict": verdict,
                "tone": verdict if verdict in ("helps", "hurts") else "even",
                "bar": charts.interval_row(gain, mean, low, high, verdict, dots) if difference else "",
                "strip": charts.dot_row(
                    strip, list(by_seed(arm).values()), arm.get("mean"), (baseline or {}).get("mean")
                ),
                "values": [by_seed(arm).get(s) for s in seeds],
                "failed": [(arm.get("name"), s) in broken or by_seed(arm).get(s, 0.0) is None for s in seeds],
                "time": charts.cost_bar(arm.get("seconds"), largest["seconds"], (baseline or {}).get("seconds")),
                "times": formats.ratio(arm.get("seconds"), (baseline or {}).get("seconds")),
                "memory": charts.cost_bar(
                    arm.get("memory_mb"), largest["memory_mb"], (baseline or {}).get("memory_mb")
                ),
                "memories": formats.ratio(arm.get("memory_mb"), (baseline or {}).get("memory_mb")),
            }
        )
    return {
        "rows": rows,
        "seeds": seeds,
        "gain_axis": charts.axis_row(
            gain, *(("← better", "worse →") if metric in LOWER_IS_BETTER else ("← worse", "better →"))
        ),
        "strip_axis": charts.axis_row(strip),
        "has_time": largest["seconds"] > 0,
        "has_memory": largest["memory_mb"] > 0,
        "has_scores": any(v is not None for v in values),
    }


def gain_axis(arms: Sequence[Record], paired: Sequence[Sequence[float | None]]) -> charts.Axis:
    """The axis of the differences: zero, all means and dots, and intervals up to four times their usual width."""
    known = [d for a in arms if (d := a.get("difference") or {}) and finite(d.get("mean")) is not None]
    ends = [(finite(d.get("low")), finite(d.get("high"))) for d in known]
    widths = sorted((high - low) / 2 for low, high in ends if low is not None and high is not None)
    limit = 4 * widths[len(widths) // 2] if widths else 0.0
    points: list[float | None] = [0.0, *(v for dots in paired for v in dots)]
    for d, (low, high) in zip(known, ends, strict=True):
        mean = float(d["mean"])
        points += [
            mean,
            None if low is None else max(low, mean - limit),
            None if high is None else min(high, mean + limit),
        ]
    return charts.nice_axis(points, sign=True)


def verdict_summary(arms: Sequence[Record], baseline: Record | None) -> list[tuple[str, list[tuple[str, Any]]]]:
    """(verdict, [(arm, mean difference)]) for the sentence at the head of the page, empty verdicts left out."""
    found: dict[str, list[tuple[str, Any]]] = {v: [] for v in VERDICT_SIGNS}
    for arm in arms:
        difference = arm.get("difference") or {}
        if arm is not baseline and difference.get("verdict"):
            found.setdefault(str(difference["verdict"]), []).append((str(arm.get("name")), difference.get("mean")))
    return [(verdict, members) for verdict, members in found.items() if members]
