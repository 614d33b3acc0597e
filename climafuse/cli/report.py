"""`climafuse report`: a run as one page that opens anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from climafuse.cli.handler import JsonOption, print_json, progress_line


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, as `climafuse train` left it.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Where to write; RUN/report.html by default.", show_default=False
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
    from climafuse.report.html import write_report
    from climafuse.report.runs import read_run
    from climafuse.report.samples import make_cards

    record = read_run(run)
    cards, notes = make_cards(
        record, count=samples, attribution=attribution, progress=progress_line("answers drawn")
    )
    path = write_report(record, output or run / "report.html", cards=cards, notes=notes)
    card = None
    if record.finished and record.evaluation and not record.stale:
        from climafuse.model.card import add_grounding

        card = add_grounding(record.model, record.evaluation)
    if as_json:
        print_json(
            {
                "report": path,
                "bytes": path.stat().st_size,
                "evaluated": bool(record.evaluation),
                "stale": record.stale,
                "samples": len(cards),
                "card": card,
                "notes": notes,
            }
        )
        return
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    if not record.evaluation:
        typer.echo(f"note: nothing was measured yet; run `climafuse evaluate {run}` first", err=True)
    elif record.stale:
        typer.echo(
            f"note: the evaluation is of other weights; run `climafuse evaluate {run}` again", err=True
        )
    typer.echo(str(path))
