r"""The report page of a training run and of an ablation: a record in, one HTML file out that needs nothing else.

The page is a file a user mails, prints and opens on a phone: styles, script and charts stand inside it, it asks for
nothing from outside (its content policy forbids it), follows the reader's light or dark setting, and escapes every
character that came from the user's data. The policy also admits only the page's own script, by its hash.

A section stands where its key is in the record; a missing, None or empty key drops it. Keys of a training record
(`kind` "train"): title, command, task, created, danlu, machine, settings, data, parameters, metrics, log, transitions,
confusion, calibration, similarities, worst, triples, reading, samples, control, exposure, seconds. Of an ablation
(`kind` "ablation"): title, command, task, metric, seeds, examples, evaluated_on, arms, failed, data, machine, settings,
created, danlu, seconds, notes.

Source: none, ours. Shapes: records are what json.load returns, NaN and None where nothing was measured.
"""

import base64
import datetime
import functools
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from danlu.gallery import charts, formats
from danlu.gallery.arcs import arcs
from danlu.gallery.formats import finite
from danlu.gallery.spans import entity_pieces, word_pieces

__all__ = ["ablation_page", "report_page", "training_page", "write_page"]

Record = Mapping[str, Any]
Links = Sequence[tuple[str, str]]

METRIC_NAMES = {
    "f1": "F1",
    "precision": "Precision",
    "recall": "Recall",
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "loss": "Loss",
    "ece": "Calibration error (ECE)",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
    "rmse": "Root mean square error",
    "em": "Exact match",
    "webqa_score": "WebQA score",
    "score": "Score",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
}
HEADS = ("f1", "accuracy", "macro_f1", "spearman", "score")  # what a reader came for, first found first
LOWER_IS_BETTER = {"loss", "ece", "rmse", "perplexity", "error"}
VERDICT_SIGNS = {"helps": "▲", "hurts": "▼", "no evidence": "○", "too few seeds": "◇"}
QUIET = 200  # characters of a long text without a mark that are shown before the rest is folded
CONTEXT = 60  # characters kept on either side of a fold


def training_page(record: Record, links: Links = ()) -> str:
    """The report of one training run as HTML text.

    Args:
        record: a training record; see the head of this module.
        links: (title, relative address) of pages that belong with this one.

    Returns:
        A whole HTML document.

    Raises:
        ValueError: the record is of another kind, a span does not lie in its text, a matrix does not fit its labels, or
            a link leaves the folder.
        ImportError: jinja2 is not installed.

    >>> "<h1>Tagger</h1>" in training_page({"kind": "train", "title": "Tagger"})
    True
    """
    require_kind(record, "train")
    metrics = {str(k): v for k, v in (record.get("metrics") or {}).items() if isinstance(v, Mapping) and v}
    return render(
        "training.html",
        record,
        links,
        scores=score_table(metrics),
        headline=headline(metrics),
        types=[
            type_table(split, values)
            for split, values in metrics.items()
            if values.get("by_type") and not untyped(values)
        ],
        curves=curves(record.get("log") or []),
        evaluations=evaluations(record.get("log") or []),
        confusion=confusion(record.get("confusion")),
        transitions=transitions(record.get("transitions")),
        calibration=calibration(record.get("calibration")),
        similarities=similarities(record.get("similarities")),
        worst=worst(record.get("worst") or []),
        triples=triples(record.get("triples")),
        reading=reading(record.get("reading") or []),
        control=[dict(item, svg=confusion(item.get("confusion"))) for item in record.get("control") or []],
        exposure=exposure(record.get("exposure")),
    )


def ablation_page(record: Record, links: Links = ()) -> str:
    """The report of an ablation as HTML text.

    Args:
        record: an ablation record; see the head of this module.
        links: (title, relative address) of pages that belong with this one.

    Returns:
        A whole HTML document.

    Raises:
        ValueError: the record is of another kind, or a link leaves the folder.
        ImportError: jinja2 is not installed.

    >>> "<h1>Which trick helps</h1>" in ablation_page({"kind": "ablation", "title": "Which trick helps"})
    True
    """
    require_kind(record, "ablation")
    metric = str(record.get("metric") or "f1")
    arms = list(record.get("arms") or [])
    baseline = find_baseline(arms)
    return render(
        "ablation.html",
        record,
        links,
        metric=metric_name(metric),
        lower=metric in LOWER_IS_BETTER,
        arms=arm_rows(arms, baseline, record.get("seeds") or [], metric, record.get("failed") or []),
        spent=(record.get("seconds") or {}).get("wall") or (record.get("seconds") or {}).get("total"),
        summary=verdict_summary(arms, baseline),
        baseline=baseline,
    )


def report_page(record: Record, links: Links = ()) -> str:
    """The page of a record of either kind.

    Args:
        record: a record whose `kind` is "train" or "ablation".
        links: (title, relative address) of pages that belong with this one.

    Returns:
        A whole HTML document.

    Raises:
        ValueError: no page is known for this kind, or what `training_page` and `ablation_page` raise.
        ImportError: jinja2 is not installed.

    >>> "<h1>Tagger</h1>" in report_page({"kind": "train", "title": "Tagger"})
    True
    """
    pages = {"train": training_page, "ablation": ablation_page}
    kind = record.get("kind")
    if kind not in pages:
        raise ValueError(f"no page for a record of kind {kind!r}; a page is made of kind 'train' or 'ablation'")
    return pages[kind](record, links)


def write_page(html: str, path: str | os.PathLike[str]) -> None:
    """Write a page so that its file is the old one or the whole new one, never a part.

    Args:
        html: the document.
        path: file to write, in a folder that exists; an older one is replaced.

    Raises:
        OSError: the folder is missing, full or not writable; the older file is then untouched.

    >>> folder = tempfile.TemporaryDirectory()
    >>> write_page("<p>x", Path(folder.name) / "page.html"); os.listdir(folder.name)
    ['page.html']
    >>> folder.cleanup()
    """
    target = Path(path)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(html)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, target.stat().st_mode & 0o777 if target.exists() else 0o644)  # mkstemp made it private
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def render(template: str, record: Record, links: Links, **view: Any) -> str:
    """The template filled with the record and what was prepared for it."""
    return (
        environment()
        .get_template(template)
        .render(
            record=record,
            links=checked_links(links),
            settings=flatten(record.get("settings") or {}),
            machine=flatten(record.get("machine") or {}),
            **view,
        )
    )


@functools.cache
def environment() -> Any:
    """The compiled templates with our filters, styles and script; the same for every page."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise ImportError('report pages need jinja2; install it with: pip install "danlu[plots]"') from error
    folder = Path(__file__).parent
    script = (folder / "page.js").read_text(encoding="utf-8")
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else formats.visible(value),
    )
    made.filters.update(
        number=formats.number,
        signed=formats.signed,
        count=formats.count,
        duration=formats.duration,
        p=formats.p_value,
        metric=metric_name,
        language=language,
        score=lambda v: formats.count(v) if isinstance(v, int) and not isinstance(v, bool) else formats.number(v),
        moment=moment,
    )
    made.globals.update(
        svg=Markup,  # charts escape their own text
        VERDICT_SIGNS=VERDICT_SIGNS,
        css=Markup(charts.stylesheet() + (folder / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return made


def require_kind(record: Record, kind: str) -> None:
    """Raise where a record is of another kind than the page it was given to."""
    if record.get("kind") != kind:
        other = {"train": "ablation_page", "ablation": "training_page"}[kind]
        given = record.get("kind")
        raise ValueError(f"this page shows a record of kind {kind!r}, got {given!r}; use report_page or {other}")


def checked_links(links: Links) -> list[tuple[str, str]]:
    """The links, all of them relative."""
    for title, address in links:
        parts = urlsplit(address.strip())
        if parts.scheme or parts.netloc or address.strip().startswith(("/", "\\")):
            raise ValueError(
                f"the link {title!r} points to {address!r}; a page works offline and links only to files beside it, by "
                "a relative address such as 'ablation.html'"
            )
    return list(links)


def metric_name(key: str) -> str:
    """How a metric is called in print."""
    return METRIC_NAMES.get(key, str(key).replace("_", " "))


def moment(text: Any) -> str:
    """A time stamp for people: minutes are enough, UTC by name; what is no ISO time stays as it is."""
    try:
        when = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    if when.tzinfo is None:
        return f"{when:%Y-%m-%d %H:%M}"
    return f"{when.astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def language(text: Any) -> str:
    """The language to announce for a foreign text: Chinese where it has Han characters and no kana or hangul."""
    codes = [ord(c) for c in str(text)]
    if any(0x3040 <= c <= 0x30FF or 0xAC00 <= c <= 0xD7AF for c in codes):
        return ""
    return "zh" if any(0x3400 <= c <= 0x9FFF or 0x20000 <= c <= 0x3FFFF for c in codes) else ""


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names and plain values."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows.extend(flatten(value, f"{prefix}{key}."))
        else:
            rows.append(
                (f"{prefix}{key}", ", ".join(map(plain, value)) if isinstance(value, list | tuple) else plain(value))
            )
    return rows


def plain(value: Any) -> str:
    """A setting as the user would type it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# Training


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


# Ablation


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
