"""How commands end and how they speak: exit codes, one-line errors, tables and JSON.

0 success · 1 data, a model or a run is at fault · 2 the call is wrong · 3 a model was evaluated and is not grounded ·
75 a run was told to end by SIGTERM or SIGUSR1, has been saved, and goes on with `--resume` · 130 interrupted by
Ctrl-C. A `ClimafuseError` is one line on standard error; any other exception is a bug of climafuse and keeps its
traceback. Standard output carries results only, so that it can be piped; with `--json`, exactly one JSON document.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from climafuse.errors import ClimafuseError, RunInterruptedError, spelled_out

NOT_GROUNDED = 3
CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Directory of a run, or of the model in it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document for programs.")]


class CommandGroup(TyperGroup):
    """A group of commands that turns errors raised on purpose into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command."""
        try:
            return super().invoke(ctx)
        except ClimafuseError as error:
            if not error.told:
                kind = "interrupted" if isinstance(error, RunInterruptedError) else "error"
                typer.echo(f"{kind}: {error}", err=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            line = "\n" if sys.stderr.isatty() else ""  # off the line of progress
            typer.echo(f"{line}interrupted{f': {error}' if error.args else ''}", err=True)
            raise typer.Exit(130) from error


def print_json(value: object) -> None:
    """One JSON document on standard output; numbers that are not finite become null."""
    document = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    typer.echo(spelled_out(document, json.dumps))  # what is spelled out stands in texts, where it reads alike


def print_weights(identity: Mapping[str, Any]) -> None:
    """Say that a backbone's weights are random, where they are: its words then mean nothing.

    Args:
        identity: Of the backbone.
    """
    from climafuse.backbones import weights_of

    if identity.get("random_weights"):
        typer.echo(f"backbone: {identity['id']}, {weights_of(identity)}")


def print_table(rows: Iterable[Sequence[object]], *, header: Sequence[str]) -> None:
    """Left-aligned columns under a header; None is a dash."""
    table = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def progress_line(label: str, *, goes_on: bool = False) -> Callable[[int, int], None]:
    """A callback that shows how far a job is, how fast it goes and how long it may take, on standard error.

    On a terminal the line is rewritten in place; elsewhere a new line is written every few seconds.

    Args:
        label: What is counted.
        goes_on: The first call only tells where the job begins: an earlier run may have done a part.
    """
    start = last = time.monotonic()
    terminal = sys.stderr.isatty()
    begin: int | None = None if goes_on else 0

    def show(done: int, total: int) -> None:
        nonlocal last, begin
        now = time.monotonic()
        if begin is None:
            begin = done
            if done:
                typer.echo(f"going on from {done} of {total} {label}", err=True)
            return
        if done < total and now - last < (0.1 if terminal else 5.0):
            return
        last = now
        rate = max(done - begin, 1) / max(now - start, 1e-9)
        line = f"{done} of {total} {label}, {rate:.3g} a second, {(total - done) / rate:.0f} s left"
        if terminal:
            typer.echo(f"\r\033[K{line}" + ("\n" if done == total else ""), nl=False, err=True)
        else:
            typer.echo(line, err=True)

    return show


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"  # pressures read 101325, not 1.013e+05
    return spelled_out(str(value)).replace("\n", "\\n")


def _plain(value: Any) -> Any:
    """A value in JSON types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars, without importing numpy
        plain = value.tolist()
        # datetime64 in units that Python dates cannot hold come out as plain integers: keep the text.
        return (
            str(value)
            if getattr(value, "dtype", None) is not None and value.dtype.kind == "M"
            else _plain(plain)
        )
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, Path | date):
        return str(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")
