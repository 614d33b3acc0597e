"""`climafuse data inspect | describe | prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from climafuse.cli.handler import JsonOption, print_json, print_table

if TYPE_CHECKING:
    import xarray as xr

app = typer.Typer(no_args_is_help=True, help="Look into climate files, describe them, make training stores.")

Source = Annotated[str, typer.Argument(help="File, glob, Zarr store or URI, or a bundled sample.")]
Variables = Annotated[
    list[str] | None,
    typer.Option("--variable", "-v", help="Canonical name such as t2m; may be repeated.", show_default=False),
]


@app.command()
def inspect(source: Source, variables: Variables = None, as_json: JsonOption = False) -> None:
    """Show times, grid, variables, units and missing values of a source once it is canonical."""
    from climafuse.data import open_climate

    found = summarize(open_climate(source, variables=variables))
    if as_json:
        print_json({"source": source, **found})
        return
    print_table(
        [
            (name, axis["size"], axis["first"], axis["last"], axis["spacing"] or "uneven")
            for name, axis in found["dimensions"].items()
        ],
        header=("dimension", "size", "first", "last", "spacing"),
    )
    typer.echo()
    columns = ("name", "long_name", "units", "cell_method", "minimum", "mean", "maximum")
    print_table(
        [(*(row[column] for column in columns), f"{row['missing']:.1%}") for row in found["variables"]],
        header=("variable", "", "unit", "in time", "minimum", "mean", "maximum", "missing"),
    )
    typer.echo("\nMinimum, area-weighted mean, maximum and missing cells at the last time.")


@app.command()
def describe(
    source: Source,
    output: Annotated[Path, typer.Argument(help="Where the pairs go: .jsonl, .csv or .parquet.")],
    variables: Variables = None,
    windows: Annotated[int, typer.Option("--windows", min=1, help="How many windows to describe.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of places, times and wording.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write climate-text pairs made from facts that are computed from the fields."""
    raise NotImplementedError


@app.command()
def prepare(
    source: Source,
    destination: Annotated[Path, typer.Argument(help="Directory of the training store.")],
    variables: Variables = None,
    as_json: JsonOption = False,
) -> None:
    """Make a training store: canonical fields, splits with a gap, training statistics."""
    raise NotImplementedError


def summarize(dataset: xr.Dataset) -> dict[str, Any]:
    """What a canonical dataset holds, in plain types.

    Args:
        dataset: Canonical; values are read at its last time only.

    Returns:
        `dimensions`: name → size, first, last, spacing (None where uneven); `variables`: one row each, values in
        SI units.
    """
    import numpy as np

    weights = np.cos(np.deg2rad(dataset["latitude"]))
    rows = []
    for name, array in dataset.data_vars.items():
        last = array.isel(time=-1).load() if "time" in array.dims else array.load()
        holds_any = bool(last.notnull().any())
        rows.append(
            {
                "name": str(name),
                "long_name": array.attrs.get("long_name", ""),
                "units": array.attrs.get("units", ""),
                "cell_method": array.attrs.get("cell_methods", "").removeprefix("time: "),
                "minimum": float(last.min()) if holds_any else None,
                "mean": float(last.astype(np.float64).weighted(weights).mean()) if holds_any else None,
                "maximum": float(last.max()) if holds_any else None,
                "missing": float(last.isnull().mean()),
            }
        )
    dimensions = {str(name): _axis(str(name), dataset[name].values) for name in dataset.dims}
    return {"dimensions": dimensions, "variables": rows}


def _axis(name: str, values: Any) -> dict[str, Any]:
    import numpy as np

    from climafuse.data.times import format_time

    steps = np.diff(values)
    if name == "time":
        spacing = _duration(steps[0]) if len(steps) and (steps == steps[0]).all() else None
        return {
            "size": len(values),
            "first": format_time(values[0]),
            "last": format_time(values[-1]),
            "spacing": spacing,
        }
    even = len(steps) > 0 and np.ptp(steps) < 1e-3
    unit = " hPa" if name == "level" else "°"
    return {
        "size": len(values),
        "first": round(float(values[0]), 6),
        "last": round(float(values[-1]), 6),
        "spacing": f"{np.median(steps):g}{unit}" if even else None,
    }


def _duration(step: Any) -> str:
    """A time step in the largest unit that divides it."""
    import numpy as np
    import pandas as pd

    seconds = int(pd.Timedelta(step) / np.timedelta64(1, "s"))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
