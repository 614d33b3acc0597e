"""`climafuse report`: a run as one page that opens anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from climafuse.cli.handler import CheckpointArgument, JsonOption, print_json, progress_line
from climafuse.errors import OutputError, spelled_out

if TYPE_CHECKING:
    from climafuse.model.inference import Reader

REPORT_FILE = "report.html"


def report(
    run: CheckpointArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help=f"Where to write; RUN/{REPORT_FILE} by default.", show_default=False
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=0, help="How many answers to show.")] = 10,
    attribution: Annotated[
        bool,
        typer.Option(
            "--attribution/--no-attribution",
            help="Load the model to draw where the words of an answer come from.",
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Write what a run is worth, as one HTML file; puts the grounding table into its model card, too."""
    written = build_report(run, output, samples=samples, attribution=attribution)
    if as_json:
        print_json(written)
        return
    for note in written["notes"]:
        typer.echo(f"note: {note}", err=True)
    if not written["evaluated"]:
        obstacle = written["obstacle"]
        way = f"{obstacle}: figures are kept apart" if obstacle else f"run `climafuse evaluate {run}` first"
        apart = f" {written['apart']}" if written["apart"] else ""
        typer.echo(spelled_out(f"note: nothing of this run was measured yet; {way}.{apart}"), err=True)
    elif written["stale"]:
        typer.echo(
            f"note: the evaluation is of other weights; run `climafuse evaluate {run}` again", err=True
        )
    typer.echo(str(written["report"]))


def build_report(
    run: Path,
    output: Path | None = None,
    *,
    samples: int = 10,
    attribution: bool = True,
    reader: Reader | None = None,
) -> dict[str, Any]:
    """Write the page, and the grounding table into the model card.

    Args:
        run: Folder of the run, or of the model in it.
        output: Where to write; `REPORT_FILE` in the folder by default.
        samples: How many answers to show.
        attribution: Whether to draw where the words of an answer come from.
        reader: The model of the run; None to load it for that.

    Returns:
        What was written, and of what.
    """
    from climafuse.report.html import write_report
    from climafuse.report.runs import read_run
    from climafuse.report.samples import make_cards
    from climafuse.training.own_files import Result, check_result

    record = read_run(run)
    output = output or record.folder / REPORT_FILE
    check_result(output, "--output", Result.PAGE)  # before a model is loaded for nothing
    cards, notes = make_cards(
        record,
        count=samples,
        attribution=attribution,
        reader=reader,
        progress=progress_line("answers drawn"),
    )
    path = write_report(record, output, cards=cards, notes=notes)
    card = None
    if record.finished and record.evaluation and not record.stale:
        from climafuse.model.card import add_grounding

        try:
            card = add_grounding(record.model, record.evaluation)
        except OutputError as error:  # a run that may only be read: its report is there all the same
            notes = [*notes, f"the model card is without these figures: {error}"]
    return {
        "report": path,
        "bytes": path.stat().st_size,
        "evaluated": bool(record.evaluation),
        "obstacle": record.obstacle,
        "apart": record.apart,
        "stale": record.stale,
        "samples": len(cards),
        "card": card,
        "notes": notes,
    }
