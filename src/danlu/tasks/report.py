"""The report page of a record, where the extra that draws it is installed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["write_report"]


def write_report(record: dict[str, Any], folder: Path, links: Sequence[tuple[str, str]] = ()) -> Path | None:
    """Write folder/report.html for a training or ablation record.

    Args:
        record: "kind" is "train" or "ablation".
        folder: where to.
        links: (title, relative address) of pages that belong to it.

    Returns:
        The page, or None where jinja2 is not installed; the record then says so in "notes".
    """
    from danlu.gallery import report_page, write_page

    try:
        html = report_page(record, links)
    except ImportError as error:
        record["notes"] = [*record.get("notes", []), f"no report page: {error}"]
        return None
    path = folder / "report.html"
    write_page(html, path)
    return path
