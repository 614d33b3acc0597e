"""`climafuse scale`: studies of many runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from climafuse.cli.handler import JsonOption, print_json, print_table
from climafuse.errors import spelled_out

if TYPE_CHECKING:
    from climafuse.scaling.runner import Moment
    from climafuse.scaling.study import Study

app = typer.Typer(no_args_is_help=True, help="Studies of many runs: run them, and tell what they found.")
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a study.")]


@app.command()
def run(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study; see examples/studies.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Directory of the study; default: runs/NAME.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and list the runs; run and write nothing.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry-failed", help="Run failed runs again, once.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a study, one run after the other, each in its own process.

    The same command resumes a study: what is done is skipped, what was interrupted goes on. A run that fails is
    recorded with its log and does not end the study. Exit code 75: SIGTERM ended it, saved.
    """
    from climafuse.scaling.study import load_study

    loaded = load_study(study)
    folder = output if output is not None else Path("runs") / loaded.name
    _check_parts(loaded)
    if dry_run:
        _list(loaded, folder, as_json)
        return

    from climafuse.scaling.runner import run_study

    results = run_study(
        loaded,
        folder,
        retry=retry,
        say=lambda line: typer.echo(f"{_clear()}{spelled_out(line)}", err=True),
        progress=_progress(),
    )
    _write(folder, results)
    if as_json:
        print_json(results)
    else:
        _print(results)


@app.command()
def table(folder: Folder, as_json: JsonOption = False) -> None:
    """Print what a study has found so far; writes table.md in its directory."""
    from climafuse.scaling.records import read_results

    results = read_results(folder)
    _write_table(folder, results)
    if as_json:
        print_json(results)
    else:
        _print(results)


@app.command()
def plot(folder: Folder) -> None:
    """Draw what a study has found so far: fact F1 against cost, as figure.png and figure.svg in its directory."""
    from climafuse.data.files import check_destination
    from climafuse.scaling.plots import plot_study
    from climafuse.scaling.records import read_results

    results, paths = read_results(folder), _pictures(folder)
    for path in paths:
        check_destination(path)
    plot_study(results, paths)
    typer.echo("\n".join(map(str, paths)))


def _check_parts(study: Study) -> None:
    """What a run would only find out when its turn comes."""
    from climafuse.registry import ENCODERS, FUSIONS
    from climafuse.scaling.study import first_runs

    for planned in first_runs(study):
        config = planned.config
        ENCODERS.check(config.encoder.name, config.encoder.options, given=1)
        FUSIONS.check(config.fusion.name, config.fusion.options, given=2)


def _list(study: Study, folder: Path, as_json: bool) -> None:
    from climafuse.scaling.study import first_runs, most_runs

    runs = first_runs(study)
    if as_json:
        print_json([{"id": planned.id, "settings": planned.settings} for planned in runs])
        return
    print_table([(planned.id, planned.label) for planned in runs], header=("run", ""))
    later = most_runs(study) - len(runs)
    if later:
        typer.echo(f"and at most {later} more of the best, by {study.metric}")
    seconds = study.budget.seconds
    time = "" if seconds is None else f"; training takes {most_runs(study) * seconds / 60:.0f} minutes in all"
    typer.echo(f"results in {folder}{time}")


def _write(folder: Path, results: dict[str, Any]) -> None:
    _write_table(folder, results)
    if any(record["status"] == "finished" for record in results["runs"]):
        from climafuse.scaling.plots import plot_study

        plot_study(results, _pictures(folder))


def _write_table(folder: Path, results: dict[str, Any]) -> None:
    from climafuse.data.files import whole_file
    from climafuse.scaling.table import markdown

    with whole_file(folder / "table.md") as temporary:
        temporary.write_text(markdown(results), encoding="utf-8")


def _pictures(folder: Path) -> list[Path]:
    return [folder / "figure.png", folder / "figure.svg"]


def _print(results: dict[str, Any]) -> None:
    from climafuse.scaling.table import notes, table_of

    header, cells = table_of(results)
    print_table(cells, header=header)
    typer.echo("")
    for line in notes(results):
        typer.echo(line)


def _progress() -> Callable[[Moment], None]:
    terminal = sys.stderr.isatty()
    every = 1.0 if terminal else 30.0  # seconds between two lines
    last = -every

    def show(moment: Moment) -> None:
        nonlocal last
        if 0 <= moment.seconds - last < every:
            return
        last = moment.seconds
        left = "" if moment.seconds_left is None else f", about {moment.seconds_left / 60:.0f} min left"
        line = f"{moment.done} of {moment.total} runs done, {moment.label} for {moment.seconds:.0f} s{left}"
        typer.echo(f"{_clear()}{line}", nl=not terminal, err=True)

    return show


def _clear() -> str:
    """Off the line of progress."""
    return "\r\033[K" if sys.stderr.isatty() else ""
