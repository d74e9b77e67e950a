"""The command: its options before the subcommand, and the subcommands in the order of the help."""

from typing import Annotated

import typer

from danlu import __version__
from danlu.cli.file_commands import convert, inspect, plot
from danlu.cli.image_commands import compress, decompress, density
from danlu.cli.library_commands import benchmark, copy, data_get, data_list, list_, run, show
from danlu.cli.training_commands import ablate, demo, evaluate, predict, pretrain, serve, train

app = typer.Typer(
    name="danlu",
    help="danlu (丹炉): which of these methods helps on my data? Train, compare, use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
data_app = typer.Typer(help="Named data sets: list them, fetch one.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


def version_callback(value: bool) -> None:
    """Print the version and stop."""
    if value:
        print(f"danlu {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=version_callback, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options before the subcommand."""


for subcommand in (train, evaluate, predict, serve, ablate, demo):
    app.command()(subcommand)
app.command("list")(list_)
for subcommand in (show, copy, run, pretrain, inspect, convert, plot, density, compress, decompress, benchmark):
    app.command()(subcommand)
data_app.command("list")(data_list)
data_app.command("get")(data_get)
