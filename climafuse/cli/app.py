"""`climafuse`: one command a task.

Importing this module, and so `climafuse --help`, must not import numpy, torch, transformers or xarray
(`tests/test_cli.py` holds it): commands import what they need when they run.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from climafuse import __version__
from climafuse.cli import (
    attribute,
    backbone,
    data,
    doctor,
    download,
    evaluate,
    infer,
    page,
    plan,
    report,
    scale,
    train,
)
from climafuse.cli.handler import CommandGroup

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text: greppable, and importing rich would double the time of --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Gridded climate fields fused into a frozen language model.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"climafuse {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only warnings and errors beside results.")
    ] = False,
) -> None:
    # Progress goes to standard error; standard output is for results.
    logger = logging.getLogger("climafuse")
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]  # one, on the standard error of this call
    logger.propagate = False


app.command("train")(train.train)
app.command("plan")(plan.plan)
app.command("infer")(infer.infer)
app.command("attribute")(attribute.attribute)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)
app.command("demo")(page.demo)
data.app.add_typer(download.app, name="download")
app.add_typer(data.app, name="data")
app.add_typer(backbone.app, name="backbone")
app.add_typer(scale.app, name="scale")
app.command("doctor")(doctor.doctor)


def main() -> None:
    """The console script."""
    app(prog_name="climafuse")
