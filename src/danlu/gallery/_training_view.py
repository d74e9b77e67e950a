r"""What the page of a training run shows, made ready for its template: tables, charts, and texts with their marks.

Source: none, ours. Shapes: records are what json.load returns, NaN and None where nothing was measured.
"""

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from danlu.gallery import charts, formats
from danlu.gallery.arcs import arcs
from danlu.gallery.formats import METRIC_NAMES, finite, language, metric_name
from danlu.gallery.spans import entity_pieces, word_pieces

__all__ = [
    "calibration", "confusion", "curves", "evaluations", "exposure", "headline", "reading", "score_table",
    "similarities", "transitions", "triples", "type_table", "untyped", "worst",
]  # fmt: skip

Record = Mapping[str, Any]

HEADS = ("f1", "accuracy", "macro_f1", "spearman", "score")  # what a reader came for, first found first
QUIET = 200  # characters of a long text without a mark that are shown before the rest is folded
CONTEXT = 60  # characters kept on either side of a fold


def score_table(metrics: Mapping[str, Record]) -> dict[str, Any]:
    """Metrics as rows, splits as columns, the metrics people know first."""
    known = list(METRIC_NAMES)
    keys = dict.fromkeys(
        k for values in metrics.values() for k, v in values.items() if not isinstance(v, Mapping | list)
    )
    order = sorted(keys, key=lambda k: known.index(k) if k in known else len(known))
    rows = [(metric_name(k), [v.get(k) for v in metrics.values()]) for k in order]
    if any(untyped(v) for v in metrics.values()):
        supports = [v["by_type"][""].get("support") if untyped(v) else None for v in metrics.values()]
        rows.append(("Support", supports))
    return {"splits": list(metrics), "rows": rows}


def untyped(values: Record) -> bool:
    """Whether the only type of spans is the empty one, as in word segmentation; its scores are then the whole's."""
    return list(values.get("by_type") or {}) == [""]


def headline(metrics: Mapping[str, Record]) -> list[tuple[str, str, float]]:
    """(split, metric, value) of the score a reader came for, on each split, test first."""
    found = []
    for split in sorted(metrics, key=lambda s: s != "test"):
        for key in HEADS:
            value = finite(metrics[split].get(key))
            if value is not None:
                found.append((split, metric_name(key), value))
                break
    return found


def type_table(split: str, values: Record) -> dict[str, Any]:
    """Precision, recall, F1 and support of each type, most frequent first, with a bar for F1."""
    rows = sorted(values["by_type"].items(), key=lambda item: -(finite(item[1].get("support")) or 0))
    return {"split": split, "rows": [(name, row, charts.cost_bar(finite(row.get("f1")), 1.0)) for name, row in rows]}


def curves(log: Sequence[Record]) -> list[str]:
    """One chart each for the loss, the score on dev and the learning rate, as far as the log has them; one x axis."""
    loss, rate = numeric(log, "loss"), numeric(log, "lr")
    dev = {key: numeric(evaluations(log)["raw"], key) for key in ("loss", *HEADS)}
    key = next((k for k in HEADS if dev[k]), "f1")
    steps = [step for points in (loss, rate, dev["loss"], dev[key]) for step, _ in points]
    span = (min(steps), max(steps)) if steps else None
    figures = []
    lines = [charts.Series(n, p, dots=d) for n, p, d in (("train", loss, False), ("dev", dev["loss"], True)) if p]
    if lines:
        ends = [(s.name, formats.number(s.points[0][1]), formats.number(s.points[-1][1])) for s in lines]
        told = "Loss by step: " + "; ".join(f"{name} from {first} to {last}" for name, first, last in ends)
        title = f"{lines[0].name} loss" if len(lines) == 1 else "loss"
        figures.append(charts.line_chart(lines, told, y_label=title, x_range=span))
    if dev[key]:
        best = max((point for point in dev[key] if math.isfinite(point[1])), key=lambda point: point[1])
        title = f"{metric_name(key)} on dev"
        told = f"{title} by step: best {formats.number(best[1])} at step {formats.count(best[0])}"
        line = charts.Series("dev", dev[key], dots=len(dev[key]) <= 60)
        figures.append(charts.line_chart([line], told, y_label=title, best=best, x_range=span))
    if rate:
        highest = max((value for _, value in rate if math.isfinite(value)))
        told = f"Learning rate by step: highest {formats.number(highest)}"
        line = charts.Series("lr", rate)
        figures.append(charts.line_chart([line], told, y_label="learning rate", x_range=span, log=False))
    return figures


def numeric(log: Sequence[Record], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have this key; NaN where the value is not finite. All NaN counts as none."""
    points = []
    for i, row in enumerate(log):
        if row.get(key) is not None and not isinstance(row[key], Mapping | list | str):
            step, value = finite(row.get("step")), finite(row[key])
            points.append((float(i) if step is None else step, math.nan if value is None else value))
    return points if any(math.isfinite(v) for _, v in points) else []


def evaluations(log: Sequence[Record]) -> dict[str, Any]:
    """The evaluations on dev during training, as a table."""
    rows = [
        {"step": r.get("step"), "epoch": r.get("epoch"), **r["dev"]} for r in log if isinstance(r.get("dev"), Mapping)
    ]
    keys = dict.fromkeys(
        k for row in rows for k, v in row.items() if k not in ("step", "epoch") and not isinstance(v, Mapping | list)
    )
    return {"raw": rows, "keys": list(keys)}


def confusion(record: Record | None) -> str | None:
    """Counts, gold by predicted; shaded by the share of the row, right ones blue, errors vermilion."""
    if not record or not record.get("labels"):
        return None
    labels, matrix = [str(x) for x in record["labels"]], record["matrix"]
    shade: list[list[float]] = []
    for i, row in enumerate(matrix):
        total = sum(finite(v) or 0.0 for v in row) or 1.0
        shade.append([(finite(v) or 0.0) / total * (1 if i == j else -1) for j, v in enumerate(row)])
    text = [[formats.count(v) for v in row] for row in matrix]
    right = sum(finite(row[i]) or 0.0 for i, row in enumerate(matrix) if i < len(row))
    whole = sum(finite(v) or 0.0 for row in matrix for v in row)
    told = f"Confusion matrix of {len(labels)} labels: {formats.count(right)} of {formats.count(whole)} on the diagonal"
    return charts.heat_map(labels, labels, shade, text, told, "gold", "predicted")


def transitions(record: Record | None) -> str | None:
    """Transition scores, from by to; shaded by sign and size, relative to the largest legal one."""
    if not record or not record.get("labels"):
        return None
    labels, matrix, illegal = [str(x) for x in record["labels"]], record["matrix"], record.get("illegal")
    legal = [
        abs(v)
        for i, row in enumerate(matrix)
        for j, x in enumerate(row)
        if (v := finite(x)) is not None and not (illegal and illegal[i][j])
    ]
    largest = max(legal, default=0.0) or 1.0
    shade = [
        [max(-1.0, min(1.0, v / largest)) if (v := finite(x)) is not None else None for x in row] for row in matrix
    ]
    text = [[short_score(x) for x in row] for row in matrix]
    forbidden = sum(map(bool, (x for row in illegal or [] for x in row)))
    told = f"Transition scores between {len(labels)} tags, {forbidden} of them forbidden and outlined"
    return charts.heat_map(labels, labels, shade, text, told, "from", "to", illegal)


def short_score(value: Any) -> str:
    """A transition score in the room of a cell."""
    x = finite(value)
    if x is None:
        return formats.number(value)
    text = f"{x / 1000:,.0f}k" if abs(x) >= 1000 else f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}"
    return text.replace("-", "−")


def exposure(record: Record | None) -> str | None:
    """Share of right tokens by position: after gold tokens, and after the model's own."""
    if not record or not record.get("gold_prefix"):
        return None
    lines = [
        charts.Series(name, [(t + 1, value) for t, value in enumerate(record.get(key) or [])])
        for name, key in (("gold prefix", "gold_prefix"), ("own prefix", "own_prefix"))
    ]
    told = f"Right tokens by position; gold prefixes have {formats.number(record.get('gap'))} more of them"
    return charts.line_chart(lines, told, "token", "right", log=False, width=560)


def calibration(record: Record | None) -> dict[str, Any] | None:
    """The reliability diagram and the numbers behind it."""
    bins = [b for b in (record or {}).get("bins") or [] if isinstance(b, Mapping)]
    if not record or not bins:
        return None
    told = f"Reliability diagram of {len(bins)} bins, expected calibration error {formats.number(record.get('ece'))}"
    return {"svg": charts.reliability_diagram(bins, told), "bins": bins, "ece": record.get("ece")}


def similarities(record: Record | None) -> dict[str, Any] | None:
    """Cosines of the pairs that are alike and of those that are not, as steps over the bins."""
    groups = [g for g in (record or {}).get("groups") or [] if isinstance(g, Mapping) and g.get("share")]
    if not record or not groups:
        return None
    edges = record.get("edges") or []
    lines = []
    for group in groups:
        heights = [finite(v) for v in group["share"]]
        if len(edges) != len(heights) + 1:
            raise ValueError(f"a histogram of {len(heights)} bins needs {len(heights) + 1} edges, got {len(edges)}")
        steps = [
            (x, math.nan if height is None else 100 * height)
            for left, right, height in zip(edges, edges[1:], heights, strict=False)
            for x in (left, right)
        ]
        lines.append(charts.Series(str(group.get("name")), [(edges[0], 0.0), *steps, (edges[-1], 0.0)]))
    told = "; ".join(
        f"{g.get('name')}: {formats.count(g.get('pairs'))} pairs, mean cosine {formats.number(g.get('mean'))}"
        for g in groups
    )
    svg = charts.line_chart(lines[:3], f"Cosines of pairs. {told}", "cosine", "% of the pairs", log=False, width=560)
    return {"svg": svg, "groups": groups, "middle": record.get("middle")}


def worst(examples: Sequence[Record]) -> dict[str, Any]:
    """The worst examples prepared for one of three layouts: words, entities or classes."""
    spans = [s for e in examples for side in ("gold", "pred") if isinstance(e.get(side), list) for s in e[side]]
    if not examples or not any(isinstance(e.get(side), list) for e in examples for side in ("gold", "pred")):
        return {"layout": "classes", "examples": [dict(e, shown=folded(str(e.get("text") or ""))) for e in examples]}
    words = bool(spans) and not any(s[2] for s in spans)
    laid = []
    for e in examples:
        text, gold, pred = str(e.get("text") or ""), e.get("gold") or [], e.get("pred") or []
        pieces: list[Any] = list(word_pieces(text, gold, pred) if words else entity_pieces(text, gold, pred))
        laid.append(
            {
                "loss": e.get("loss"),
                "language": language(text),
                "pieces": fold_words(pieces) if words else fold_entities(pieces),
            }
        )
    return {"layout": "words" if words else "entities", "examples": laid}


def reading(examples: Sequence[Record]) -> list[dict[str, Any]]:
    """Questions with their contexts: the gold answer and the found one in place, long stretches without them folded."""
    laid = []
    for e in examples:
        text = str(e.get("text") or "")
        pieces = entity_pieces(text, e.get("gold") or [], e.get("pred") or [])
        laid.append(dict(e, language=language(text), pieces=fold_entities(pieces)))
    return laid


def triples(record: Record | None) -> dict[str, Any] | None:
    """Triples as arcs over their texts, and the scores of sentences by what their triples share."""
    if not record or not (record.get("examples") or record.get("breakdown")):
        return None
    examples = [
        {"svg": arcs(str(e.get("text") or ""), e.get("gold") or [], e.get("pred") or []), "line": e.get("line")}
        for e in record.get("examples") or []
    ]
    return {"examples": examples, "breakdown": record.get("breakdown") or []}


def folded(text: str) -> list[Any]:
    """A text with its middle folded away where it is long."""
    return fold_entities([SimpleNamespace(kind="plain", text=text)])


def fold_entities(pieces: Sequence[Any]) -> list[Any]:
    """Long stretches without a mark keep their ends; a fold says how many characters it hides."""
    laid: list[Any] = []
    for piece in pieces:
        if piece.kind != "plain" or len(piece.text) <= QUIET:
            laid.append(piece)
            continue
        laid.append(SimpleNamespace(kind="plain", text=piece.text[:CONTEXT]))
        laid.append(SimpleNamespace(kind="fold", hidden=len(piece.text) - 2 * CONTEXT))
        laid.append(SimpleNamespace(kind="plain", text=piece.text[-CONTEXT:]))
    return laid


def fold_words(pieces: Sequence[Any]) -> list[Any]:
    """Long runs of agreeing words keep their ends; a fold says how many characters it hides."""
    laid: list[Any] = []
    run: list[Any] = []

    def flush() -> None:
        if sum(len(w) for p in run for w in p.gold) > QUIET and len(run) > CONTEXT:
            half = CONTEXT // 2
            hidden = sum(len(w) for p in run[half:-half] for w in p.gold)
            laid.extend([*run[:half], SimpleNamespace(fold=True, hidden=hidden), *run[-half:]])
        else:
            laid.extend(run)
        run.clear()

    for piece in pieces:
        if not piece.agrees:
            flush()
            laid.append(piece)
        else:
            run.append(piece)
    flush()
    return laid
