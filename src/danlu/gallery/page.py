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
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from danlu.gallery import charts, formats
from danlu.gallery._ablation_view import LOWER_IS_BETTER, VERDICT_SIGNS, arm_rows, find_baseline, verdict_summary
from danlu.gallery._training_view import (
    calibration,
    confusion,
    curves,
    evaluations,
    exposure,
    headline,
    reading,
    score_table,
    similarities,
    transitions,
    triples,
    type_table,
    untyped,
    worst,
)

__all__ = ["ablation_page", "report_page", "training_page", "write_page"]

Record = Mapping[str, Any]
Links = Sequence[tuple[str, str]]


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
        metric=formats.metric_name(metric),
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
        metric=formats.metric_name,
        language=formats.language,
        score=lambda v: formats.count(v) if isinstance(v, int) and not isinstance(v, bool) else formats.number(v),
        moment=formats.moment,
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
