"""`climafuse data download merra2 | era5 | arco`: reanalysis from its services, planned first."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from climafuse.cli.data import Variables
from climafuse.cli.handler import JsonOption, print_json, print_table
from climafuse.errors import UsageError

if TYPE_CHECKING:
    from climafuse.data.download import Plan
    from climafuse.data.window import Box

app = typer.Typer(
    no_args_is_help=True,
    help="Fetch reanalysis: what is there is kept, what broke off goes on. --dry-run shows files and bytes.",
)

Folder = Annotated[Path, typer.Argument(help="Where the files go; run the same command again to go on.")]
Start = Annotated[str, typer.Option("--start", help="First day, as in 2020-01-01.")]
End = Annotated[str, typer.Option("--end", help="Last day, included.")]
Hours = Annotated[
    str | None,
    typer.Option("--hours", help="Hours of the day (UTC), as in 0,6,12,18; all without.", show_default=False),
]
BoxOption = Annotated[
    str | None,
    typer.Option(
        "--box",
        help="Latitude and longitude of the center, height and width in degrees, as in 48.9,2.3,16,16.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the files and their bytes, and fetch nothing.")]


@app.command()
def merra2(
    folder: Folder,
    start: Start,
    end: End,
    variables: Variables = None,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection",
            help="Short name, as in M2I1NXASM, instead of those of the variables.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch MERRA-2 granules (whole days, all variables of a collection) from NASA; needs an Earthdata login."""
    from climafuse.data.download import plan_merra2

    plan = plan_merra2(folder, variables=variables or (), start=start, end=end, collection=collection)
    _carry_out(plan, dry_run=dry_run, as_json=as_json)


@app.command()
def era5(
    folder: Folder,
    start: Start,
    end: End,
    variables: Variables = None,
    hours: Hours = None,
    levels: Annotated[
        list[int] | None,
        typer.Option(
            "--level", help="Pressure level in hPa, for t, u, v …; may be repeated.", show_default=False
        ),
    ] = None,
    box: BoxOption = None,
    grid: Annotated[float, typer.Option("--grid", help="Spacing in degrees.")] = 0.25,
    split: Annotated[
        str, typer.Option("--split", help="A request and a file for each month or day.")
    ] = "month",
    dry_run: DryRun = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch ERA5 from the Copernicus Climate Data Store; needs an account there."""
    from climafuse.data.download import plan_era5

    plan = plan_era5(
        folder,
        variables=variables or (),
        start=start,
        end=end,
        hours=_hours(hours),
        levels=levels or (),
        box=_box(box),
        grid=grid,
        split=split,
    )
    _carry_out(plan, dry_run=dry_run, as_json=as_json)


@app.command()
def arco(
    folder: Folder,
    start: Start,
    end: End,
    variables: Variables = None,
    hours: Hours = None,
    box: BoxOption = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            help="URI of another Zarr store in its layout, such as one of WeatherBench 2; ARCO-ERA5 without.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    as_json: JsonOption = False,
) -> None:
    """Read ERA5 from the public ARCO-ERA5 store and keep it as NetCDF; needs no account."""
    from climafuse.data.download import plan_arco
    from climafuse.data.download.arco import STORE

    plan = plan_arco(
        folder,
        variables=variables or (),
        start=start,
        end=end,
        hours=_hours(hours),
        box=_box(box),
        store=store or STORE,
    )
    _carry_out(plan, dry_run=dry_run, as_json=as_json)


def _carry_out(plan: Plan, *, dry_run: bool, as_json: bool) -> None:
    from climafuse.data.download import fetch

    if dry_run:
        summary = plan.summary()
        if as_json:
            print_json(summary)
        else:
            _print_plan(summary)
        return
    try:
        progress = None if as_json else _transfer_line([part.name for part in plan.parts])
        done = fetch(plan, progress=progress)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; the same command goes on from here", err=True)
        raise
    if as_json:
        print_json(
            {
                "folder": done.folder,
                "files": [str(path) for path in done.files],
                "fetched": done.num_fetched,
                "bytes": done.num_bytes,
            }
        )
    else:
        kept = len(done.files) - done.num_fetched
        typer.echo(
            f"{done.folder}: {_files(len(done.files))}, {spoken_bytes(done.num_bytes)}; "
            f"{done.num_fetched} fetched, {kept} were there"
        )


def _print_plan(summary: dict[str, Any]) -> None:
    print_table(
        [
            (file["name"], _about(file["bytes"], file["exact"]), file["state"], file["checksum"] and "yes")
            for file in summary["files"]
        ],
        header=("file", "size", "state", "checksum"),
    )
    total, missing = (_about(summary[key], summary["exact"]) for key in ("bytes", "bytes_missing"))
    typer.echo(f"\n{_files(len(summary['files']))}, {total}; to fetch: {missing}")
    if "chunks" in summary:
        typer.echo(
            f"read for them: {summary['chunks']:,} chunks of {summary['store']}, "
            f"{spoken_bytes(summary['chunk_bytes'])} before compression"
        )
    room = "" if summary["fits"] else ": too little"
    typer.echo(f"free in {summary['folder']}: {spoken_bytes(summary['bytes_free'])}{room}")


def _about(size: int | None, exact: bool) -> str:
    return "unknown" if size is None else f"{'' if exact else 'about '}{spoken_bytes(size)}"


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"


def spoken_bytes(size: float) -> str:
    """Bytes for people: `392 MB`, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def _transfer_line(files: Sequence[str]) -> Callable[[str, int, int | None], None]:
    """A callback that shows the file, its bytes, the rate and the time left, on standard error.

    On a terminal the line is rewritten in place; elsewhere a new line is written every few seconds.
    """
    terminal = sys.stderr.isatty()
    begun: dict[str, tuple[float, int]] = {}  # when a file began in this run, and with how many bytes
    last = 0.0

    def show(name: str, done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        began, had = begun.setdefault(name, (now, done))
        if done != total and now - last < (0.1 if terminal else 5.0):
            return
        last = now
        rate = (done - had) / (now - began) if now > began else 0.0
        line = f"{name} (file {files.index(name) + 1} of {len(files)}): {spoken_bytes(done)}"
        if total is not None:
            line += f" of {spoken_bytes(total)}"
        if rate > 0:
            line += f", {spoken_bytes(rate)}/s"
            line += f", {(total - done) / rate:.0f} s left" if total is not None else ""
        if terminal:
            typer.echo(f"\r\033[K{line}" + ("\n" if done == total else ""), nl=False, err=True)
        else:
            typer.echo(line, err=True)

    return show


def _hours(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(hour) for hour in text.split(",")]
    except ValueError as error:
        raise UsageError(
            "--hours",
            expected="hours of the day with commas between",
            received=repr(text),
            remedy="Write for example 0,6,12,18.",
        ) from error


def _box(text: str | None) -> Box | None:
    from climafuse.data.window import Box

    if text is None:
        return None
    try:
        latitude, longitude, height, width = (float(number) for number in text.split(","))
    except ValueError as error:
        raise UsageError(
            "--box",
            expected="four numbers: latitude and longitude of the center, height, width",
            received=repr(text),
            remedy="Write for example 48.9,2.3,16,16.",
        ) from error
    return Box(latitude, longitude, height, width)
