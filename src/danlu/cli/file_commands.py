"""The subcommands on files of models: what they hold, as another library's, as pictures; each imports what it needs."""

from pathlib import Path
from typing import Annotated

import typer

from danlu.cli.options import (
    Application,
    Compat,
    Family,
    Json,
    ModelFormat,
    Overwrite,
    Stored,
)

__all__ = ["convert", "inspect", "plot"]


def inspect(
    checkpoint: Annotated[str, typer.Argument(help="HuggingFace folder, TensorFlow checkpoint, Keras weights")],
    family: Family = None,
    variables: Annotated[bool, typer.Option("--variables", help="every variable, not the first of each kind")] = False,
    json: Json = False,
) -> None:
    """What a model's files hold: family, sizes, heads, and what would load where."""
    from danlu.cli.models import print_inspection, told_warnings, typed_path, working
    from danlu.text.inspect_model import inspect_model

    with told_warnings(), working("inspect writes nothing"):
        found = inspect_model(typed_path(checkpoint, "CHECKPOINT"), family)
    print_inspection(found, variables, as_json=json)
    if found.damage:  # the model cannot be loaded as it is
        raise typer.Exit(2)


def convert(
    source: Annotated[
        str, typer.Argument(help="HuggingFace folder, TensorFlow checkpoint, Keras weights", metavar="SRC")
    ],
    target: Annotated[str, typer.Argument(help="folder to make; with --to onnx also a name.onnx", metavar="DST")],
    to: Annotated[ModelFormat, typer.Option("--to", help="what to write", show_default=False)],
    family: Family = None,
    application: Annotated[Application | None, typer.Option("--application", help="which tokens a token sees")] = None,
    heads: Annotated[
        list[str] | None,
        typer.Option("--heads", help="pooler,nsp,mlm,discriminator [default: those there]", metavar="HEAD,..."),
    ] = None,
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="only the first layers", metavar="N")] = None,
    vocab: Annotated[
        Path | None, typer.Option("--vocab", help="vocabulary [default: beside SRC]", metavar="FILE")
    ] = None,
    simplify_vocab: Annotated[
        bool, typer.Option("--simplify-vocab", help="leave out tokens that no Chinese text reaches")
    ] = False,
    dtype: Annotated[Stored, typer.Option("--dtype", help="type of the stored weights")] = Stored.fp32,
    compat: Annotated[
        Compat | None, typer.Option("--compat", help="whose epsilons and gelu [default: upstream]")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="configuration [default: the one beside SRC]", metavar="FILE")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="a field of the model's configuration", metavar="NAME=VALUE")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="weights that SRC lacks start at random")
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write a model of one library as another's: HuggingFace, TensorFlow or ONNX."""
    from danlu.cli.models import load_options, print_conversion, told_warnings, typed_path, working
    from danlu.text.convert_model import convert_model

    options = load_options(
        family=family, application=application, heads=heads, num_layers=layers, compat=compat,
        config=None if config is None else str(config), allow_missing=allow_missing, settings=set_,
    )  # fmt: skip
    places = typed_path(source, "SRC"), typed_path(target, "DST")
    with told_warnings(), working(f"nothing was written, and what stood at {target} is as it was"):
        done = convert_model(
            *places, to.value, vocab=vocab, simplify=simplify_vocab, dtype=dtype.value, overwrite=overwrite,
            **options,
        )  # fmt: skip
    print_conversion(done, as_json=json)


def plot(
    what: Annotated[
        str | None, typer.Argument(help="a view, or a result file; none lists the views", metavar="WHAT")
    ] = None,
    source: Annotated[
        str | None, typer.Argument(help="model folder or name, file of vectors, result file", metavar="DIR|FILE")
    ] = None,
    texts: Annotated[
        list[str] | None, typer.Argument(help="texts, or the part of a result", metavar="[TEXT ...]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help=".png, .svg or .pdf [default: WHAT-SOURCE.png]", metavar="FILE")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="pairs or labelled texts, where a view takes them", metavar="FILE|NAME")
    ] = None,
    layer: Annotated[int | None, typer.Option("--layer", min=1, help="of attention [default: the last]")] = None,
    head: Annotated[int | None, typer.Option("--head", min=1, help="of attention [default: the mean]")] = None,
    landmarks: Annotated[int, typer.Option("--landmarks", min=1, max=1024, help="of the factors")] = 16,
    dark: Annotated[bool, typer.Option("--dark", help="light on dark")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Draw attention, impacts, vectors, attributions or a result as PNG, SVG or PDF."""
    from danlu.cli.plot import plot_view

    plot_view(
        what, source, texts or [], out, json, data=data, layer=layer, head=head, landmarks=landmarks, dark=dark,
        overwrite=overwrite,
    )  # fmt: skip
