"""`climafuse train`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from climafuse.cli.handler import JsonOption, print_json


def train(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG.yaml", help="Configuration; without one, the built-in demo.", show_default=False
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="section.key=value", help="Override one setting; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory of the run (output.directory).", show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint that verifies.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check everything and print the whole configuration; train and write nothing."
        ),
    ] = False,
    auto_batch: Annotated[
        bool,
        typer.Option(
            "--auto-batch",
            help="Cut a step into the microbatches that fit (training.accumulation); same result.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train encoder and fusion inside a frozen language model.

    SIGTERM or SIGUSR1 ends a run after its step: saved, exit code 75. Go on with --resume, as after any interruption.
    """
    from climafuse.training.config import load_config

    settings = list(overrides or [])
    if output is not None:
        settings.append(f"output.directory={json.dumps(str(output))}")  # quoted: a path is not YAML
    configuration = load_config(config, settings)  # before the imports that take seconds

    from climafuse.training.group import join
    from climafuse.training.pipeline import run

    try:
        result = run(configuration, resume=resume, dry_run=dry_run, auto_batch=auto_batch)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(_way_on(configuration.output.directory)) from error
    if not join().is_first:
        return
    if as_json:
        print_json(result)
    elif dry_run:
        training = replace(configuration.training, accumulation=result["accumulation"])
        typer.echo(replace(configuration, training=training).to_yaml(comments=True), nl=False)


def _way_on(directory: str) -> str:
    from climafuse.training.checkpoint import list_checkpoints

    saved = list_checkpoints(directory)
    if not saved:
        return f"no checkpoint in {directory} yet, so the run would begin again."
    return f"{saved[-1][1]} is saved. Go on from it with --resume."
