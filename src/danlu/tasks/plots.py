"""The views of `danlu plot`: each opens what it needs, computes, and hands plain numbers to `danlu.gallery.figures`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.data.errors import InputError
from danlu.tasks.attention_plots import draw_arcs, draw_attention, draw_factors, draw_heads, draw_profile
from danlu.tasks.attribution_plots import draw_attributions
from danlu.tasks.impact_plots import draw_boundaries, draw_dependencies, draw_impact, draw_tree
from danlu.tasks.plot_request import Request
from danlu.tasks.result_plots import plot_result, read_result
from danlu.tasks.vector_plots import draw_embedding, draw_similarities, draw_spectrum, draw_sphere

__all__ = ["VIEWS", "View", "draw"]


@dataclass(frozen=True)
class View:
    """One kind of picture: what it shows, what its source is, and who draws it."""

    shows: str
    takes: str
    draw: Callable[[Request], Any]


def draw(name: str, request: Request) -> Any:
    """Draw a view and write its file.

    Args:
        name: a key of `VIEWS`.
        request: of what, and where to.

    Returns:
        The figure.

    Raises:
        InputError: no such view, or a source, text or file that it cannot be made of.
        ImportError: matplotlib is missing.
    """
    if name not in VIEWS:
        raise InputError(f"no view {name!r}; there are {', '.join(VIEWS)} (`danlu plot` says what each shows)")
    if request.out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--out {request.out}: pictures are .png, .svg or .pdf; give a name that ends so")
    if request.out.exists() and not request.overwrite:
        raise InputError(f"{request.out} is there already; give --overwrite, or another name with --out")
    if not request.out.parent.is_dir():
        raise InputError(f"no folder {request.out.parent} to write into; make it first")
    try:
        return VIEWS[name].draw(request)
    except InputError:
        raise
    except ValueError as error:  # what the library says of this model, text or file
        raise InputError(str(error)) from error


def draw_ode(request: Request) -> Any:
    """The fit of a differential equation out of a recipe's result."""
    record = read_result(Path(request.source))
    return plot_result(record, request.texts[0] if request.texts else None, kind="ode", **request.look)


def draw_result(request: Request) -> Any:
    """What a recipe measured."""
    record = read_result(Path(request.source))
    return plot_result(record, request.texts[0] if request.texts else None, **request.look)


VIEWS = {
    "attention": View("weights of one head, or of a layer on average", "MODEL [TEXT]", draw_attention),
    "arcs": View("the same as lines between two columns of tokens", "MODEL [TEXT]", draw_arcs),
    "heads": View("weights of all heads of all layers", "MODEL [TEXT]", draw_heads),
    "profile": View("entropy and distance of all heads by layer", "MODEL [TEXT]", draw_profile),
    "impact": View("what hiding each word does to the others, with trees or cuts", "MODEL [TEXT]", draw_impact),
    "dependencies": View("heads that impacts give", "MODEL [TEXT]", draw_dependencies),
    "tree": View("constituents that impacts give", "MODEL [TEXT]", draw_tree),
    "boundaries": View("how neighbours hold together, and where that cuts a text", "MODEL [TEXT]", draw_boundaries),
    "factors": View("the three factors of Nystrom attention for a head", "MODEL [TEXT]", draw_factors),
    "embedding": View("vectors on the plane of their largest variance", "MODEL|FILE|digits [TEXT ...]", draw_embedding),
    "sphere": View("directions of vectors on a sphere", "MODEL|FILE|digits [TEXT ...]", draw_sphere),
    "spectrum": View("eigenvalues before and after whitening, scores by dimension", "MODEL|FILE|digits", draw_spectrum),
    "similarities": View("cosines of pairs that are alike and of others", "MODEL --data PAIRS", draw_similarities),
    "attributions": View("what training examples did to one prediction", "digits|reviews [NUMBER]", draw_attributions),
    "ode": View("a fitted equation with its band", "RESULT.json [NAME]", draw_ode),
    "result": View("what a recipe measured", "RESULT.json [NAME]", draw_result),
}
