"""The subcommands that show what there is, and run recipes and benchmarks; each imports what it needs."""

from pathlib import Path
from typing import Annotated

import typer

from danlu.cli.options import (
    Json,
    ListWhat,
    Overwrite,
    Scale,
    command_line,
)

__all__ = ["benchmark", "copy", "data_get", "data_list", "list_", "run", "show"]


def list_(
    what: Annotated[ListWhat, typer.Argument(help="methods, recipes, tricks, tasks or data")] = ListWhat.methods,
    json: Json = False,
) -> None:
    """Names and what each is for."""
    from danlu.cli.listing import listed
    from danlu.cli.show import print_rows

    print_rows(listed(what.value), as_json=json)


def show(
    name: Annotated[str, typer.Argument(help="a method, recipe, trick, task or data set")], json: Json = False
) -> None:
    """The documentation of one name."""
    from danlu.cli.listing import shown
    from danlu.cli.show import print_page

    print_page(shown(name), as_json=json)


def copy(
    recipe: Annotated[str, typer.Argument(help="name of a recipe")],
    path: Annotated[Path, typer.Argument(help="file to write; must not exist")],
) -> None:
    """Copy a recipe's script, to change it."""
    from danlu.cli.listing import copy_recipe

    print(f"wrote {copy_recipe(recipe, path)}")


def run(
    recipe: Annotated[str, typer.Argument(help="name of a recipe; `danlu list recipes` shows them")],
    scale: Annotated[Scale, typer.Option("--scale", help="smoke: seconds; full: the claim at its size")] = Scale.smoke,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="one run with this seed")] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, max=1000, help="runs with seeds 0, 1, ...; an interval needs 2")
    ] = 1,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="a field of the recipe's Config", metavar="NAME=VALUE")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="JSON file for the result; finished seeds in it are not run again", metavar="FILE"),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Run a recipe: measure a source's claim."""
    from danlu.cli.progress import Progress
    from danlu.cli.show import print_recipe
    from danlu.recipes import run_recipe
    from danlu.tasks.memory import keep_freed_memory

    keep_freed_memory()
    with Progress() as progress:
        record = run_recipe(
            recipe,
            scale=scale.value,
            seeds=[seed] if seed is not None else list(range(seeds)),
            settings=set_ or [],
            out=out,
            overwrite=overwrite,
            command=command_line(),
            on_event=progress,
        )
    print_recipe(record, as_json=json)


def benchmark(name: Annotated[str | None, typer.Argument(help="name; none lists them")] = None) -> None:
    """Run a benchmark of the checkout: danlu and the named peer in one process."""
    from danlu.cli.listing import run_benchmark

    raise typer.Exit(run_benchmark(name))


def data_list(json: Json = False) -> None:
    """Licence, size, origin and place of every named set."""
    from danlu.cli.show import print_data
    from danlu.tasks.datasets import list_sets

    print_data(list_sets(), as_json=json)


def data_get(
    name: Annotated[str, typer.Argument(help="name of a set")],
    folder: Annotated[Path, typer.Option("--out", help="folder to write", metavar="DIR")] = Path("danlu-data"),
) -> None:
    """Print licence, origin and conversion of a set; download it if it is stored as its source has it."""
    from danlu.cli.show import print_data_card
    from danlu.tasks.datasets import get

    print_data_card(get(name, folder))
