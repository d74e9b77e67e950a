"""What `danlu plot` parses and shows."""

from pathlib import Path
from typing import Any

from danlu.cli.show import dump
from danlu.data.errors import InputError

__all__ = ["plot_view"]


def plot_view(
    what: str | None, source: str | None, texts: list[str], out: Path | None, as_json: bool, **of: Any
) -> None:
    """Draw a view and name the file; without a view list them.

    Args:
        what: name of a view, or a result file.
        source: model, file or name.
        texts: from the command line.
        out: file to write; None: named after view and source.
        as_json: for machines.
        **of: fields of `danlu.tasks.plot_request.Request`.
    """
    from danlu.tasks.plot_request import Request
    from danlu.tasks.plots import VIEWS, draw

    if what is None:
        return list_views(as_json)
    if what not in VIEWS and (Path(what).suffix == ".json" or Path(what).is_dir()):  # danlu plot results/x.json [NAME]
        what, source, texts = "result", what, [*([source] if source else []), *texts]
    if what not in VIEWS:
        raise InputError(f"no view {what!r}; there are {', '.join(VIEWS)} (`danlu plot` says what each shows)")
    if source is None:
        raise InputError(f"danlu plot {what} takes {VIEWS[what].takes}")
    target = out or Path(f"{what}-{Path(source).stem or 'plot'}.png")
    draw(what, Request(source, tuple(texts), target, **of))
    return dump({"view": what, "written": str(target)}) if as_json else print(f"wrote {target}")


def list_views(as_json: bool) -> None:
    """Every view with what it shows and what it takes."""
    from danlu.tasks.plots import VIEWS

    if as_json:
        return dump([{"view": name, "shows": view.shows, "takes": view.takes} for name, view in VIEWS.items()])
    widest = max(len(name) for name in VIEWS)
    for name, view in VIEWS.items():
        print(f"{name:{widest}}  {view.shows}\n{'':{widest}}  danlu plot {name} {view.takes}")
    return None
