"""`climafuse data inspect | describe | prepare`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from climafuse.cli.handler import JsonOption, print_json, print_table, progress_line
from climafuse.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from climafuse.data.pairs import Pair
    from climafuse.data.window import Box, Window

app = typer.Typer(no_args_is_help=True, help="Look into climate files, describe them, make training stores.")

Source = Annotated[str, typer.Argument(help="File, glob, Zarr store or URI, or a bundled sample.")]
Variables = Annotated[
    list[str] | None,
    typer.Option("--variable", "-v", help="Canonical name such as t2m; may be repeated.", show_default=False),
]


@app.command()
def inspect(source: Source, variables: Variables = None, as_json: JsonOption = False) -> None:
    """Show times, grid, variables, units and missing values of a source once it is canonical."""
    from climafuse.data.sources import open_climate, select_variables
    from climafuse.data.store import MANIFEST, TrainingStore

    path = source_path(source)
    if os.path.isfile(os.path.join(path, MANIFEST)):  # False, too, for what can be no path
        dataset = TrainingStore.open(path, memory_bytes=0).to_dataset()
        dataset = dataset if variables is None else select_variables(dataset, variables)
    else:
        dataset = open_climate(path, variables=variables)
    found = summarize(dataset)
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
    box_degrees: Annotated[float, typer.Option("--box-degrees", help="Height and width of a window.")] = 16.0,
    history: Annotated[int, typer.Option("--history", min=1, help="Times in a window.")] = 1,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind", help="Kind of fact, such as mean or mean/t2m; may be repeated.", show_default=False
        ),
    ] = None,
    questions: Annotated[int, typer.Option("--questions", min=1, help="Texts for each window.")] = 4,
    bulletins: Annotated[float, typer.Option("--bulletins", help="Share of bulletins among them.")] = 0.0,
    abstentions: Annotated[
        float, typer.Option("--abstentions", help="Share of questions that the fields cannot answer.")
    ] = 0.1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of places, times and wording.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write climate-text pairs made from facts that are computed from the fields of files or of a training store."""
    import numpy as np

    from climafuse import facts
    from climafuse.data.batch import sample_boxes
    from climafuse.data.pairs import write_pairs
    from climafuse.data.window import Grid
    from climafuse.training.own_files import Result, check_result

    check_result(output, "OUTPUT", Result.PAIRS)
    times, grid, cut = _open_for_windows(source, variables, history)
    if history > times:
        raise UsageError(
            "--history",
            expected=f"at most the {times} times of {source}",
            received=history,
            remedy="Ask for fewer, or give a source of more times.",
        )
    chosen = sample_boxes(
        np.arange(history - 1, times),
        windows,
        size=(box_degrees, box_degrees),
        seed=seed,
        within=Grid(*grid).centers(box_degrees, box_degrees),
    )
    progress = (lambda done, total: None) if as_json else progress_line("windows")

    def cut_all() -> Iterator[tuple[int, Window]]:
        for sample, (step, box) in enumerate(chosen):
            yield sample, cut(step, box)
            progress(sample + 1, windows)

    pairs = facts.describe(
        cut_all(),
        seed=seed,
        kinds=kinds,
        questions_per_window=questions,
        bulletins=bulletins,
        abstentions=abstentions,
    )
    count = 0

    def counted() -> Iterator[Pair]:
        nonlocal count
        for count, pair in enumerate(pairs, start=1):  # noqa: B007 told after the last
            yield pair

    write_pairs(counted(), output)  # one by one: neither windows nor pairs pile up
    if as_json:
        print_json({"output": output, "pairs": count, "windows": windows})
    else:
        typer.echo(f"{output}: {count} pairs about {windows} windows")


def _open_for_windows(
    source: str, variables: list[str] | None, history: int
) -> tuple[int, tuple[np.ndarray, np.ndarray], Callable[[int, Box], Window]]:
    """Number of times, latitude and longitude, and what cuts a window out; from a store a hundred times as fast."""
    from climafuse.data.sources import open_climate, select_variables
    from climafuse.data.store import MANIFEST, TrainingStore
    from climafuse.data.window import select_window

    path = source_path(source)
    if (Path(path) / MANIFEST).is_file():
        store = TrainingStore.open(path)
        if variables is None:
            return len(store.time), (store.latitude, store.longitude), partial(store.window, history=history)
        dataset = select_variables(store.to_dataset(), variables)
    else:
        dataset = open_climate(path, variables=variables)
    times = dataset["time"].values

    def cut(step: int, box: Box) -> Window:
        return select_window(dataset, time=times[step], box=box, history=history)

    return len(times), (dataset["latitude"].values, dataset["longitude"].values), cut


_PERIOD = "First and last time of this split, as in 1979-01/2004-12; give all three, or none."


@app.command()
def prepare(
    source: Source,
    destination: Annotated[Path, typer.Argument(help="Folder of the training store; must not exist.")],
    variables: Variables = None,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", help="File of climate-text pairs to keep with it.", show_default=False),
    ] = None,
    gap_hours: Annotated[
        float, typer.Option("--gap-hours", min=0, max=1e6, help="Hours left out between splits.")
    ] = 24.0,
    train: Annotated[str | None, typer.Option("--train", help=_PERIOD, show_default=False)] = None,
    validation: Annotated[str | None, typer.Option("--validation", help=_PERIOD, show_default=False)] = None,
    test: Annotated[str | None, typer.Option("--test", help=_PERIOD, show_default=False)] = None,
    anomalies: Annotated[
        str | None,
        typer.Option(
            "--anomalies",
            help="Measure fields of anomalies against the training times: by month, or all.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a training store: canonical fields, splits with a gap, training statistics.

    If it is interrupted, the same command goes on where it stopped.
    """
    from climafuse.data.store import prepare as prepare_store
    from climafuse.memory import peak_memory_gb

    begin = time.perf_counter()
    store = prepare_store(
        source_path(source),
        destination,
        variables=variables,
        pairs=pairs,
        splits=_periods(train=train, validation=validation, test=test),
        gap=timedelta(hours=gap_hours),
        anomalies=anomalies,  # type: ignore[arg-type]  # checked where it is used
        progress=None if as_json else progress_line("times written", goes_on=True),
    )
    seconds = time.perf_counter() - begin
    splits = {name: len(getattr(store.splits, name)) for name in ("train", "validation", "test")}
    written = sum(file.stat().st_size for file in destination.rglob("*") if file.is_file())
    found = {
        "store": destination,
        "variables": store.variables,
        "times": splits,
        "pairs": len(store.all_pairs),
        "bytes": written,
        "seconds": seconds,
        "times_a_second": len(store.time) / seconds,
        "pairs_a_second": len(store.all_pairs) / seconds,
        "peak_memory_gb": peak_memory_gb(),
    }
    if as_json:
        print_json(found)
        return
    counts = ", ".join(f"{count} {name}" for name, count in splits.items())
    typer.echo(f"{destination}: {', '.join(store.variables)}; times: {counts}; {len(store.all_pairs)} pairs")
    typer.echo(
        f"{written / 1e9:.3g} GB in {seconds:.0f} s, {found['times_a_second']:.3g} times a second"
        + (f", {found['pairs_a_second']:.3g} pairs a second" if store.all_pairs else "")
        + f"; at most {found['peak_memory_gb']:.2f} GB of memory"
    )


def _periods(**given: str | None) -> dict[str, tuple[str, str]] | None:
    """First and last time of each split, from options such as --train 1979-01/2004-12; None for no option."""
    periods: dict[str, tuple[str, str]] = {}
    for name, text in given.items():
        if text is not None:
            first, slash, last = text.partition("/")
            if not (first and slash and last):
                raise UsageError(
                    f"--{name}",
                    expected="a first and a last time with a / between",
                    received=repr(text),
                    remedy="Write for example 1979-01/2004-12.",
                )
            periods[name] = (first, last)
    return periods or None


def source_path(source: str) -> str:
    """A source as `open_climate` takes it: the name of a bundled sample stands for its file."""
    from climafuse.data.samples import SAMPLES, sample_path

    return str(sample_path(source)) if source in SAMPLES and not Path(source).exists() else source  # type: ignore[arg-type]


def summarize(dataset: xr.Dataset) -> dict[str, Any]:
    """What a canonical dataset holds, in plain types.

    Args:
        dataset: Canonical; values are read at its last time only.

    Returns:
        `dimensions`: name → size, first, last, spacing (None where uneven); `variables`: one row each, values
        in SI units.
    """
    import numpy as np

    weights = dataset["latitude"].copy(data=np.cos(np.deg2rad(dataset["latitude"].values)))
    rows = []
    for name, array in dataset.data_vars.items():
        last = array.isel(time=-1).load() if "time" in array.dims else array.load()
        holds_any = bool(last.notnull().any())
        rows.append(
            {
                "name": str(name),
                "long_name": array.attrs.get("long_name", ""),
                "units": array.attrs.get("units", ""),
                "cell_method": array.attrs.get("cell_methods", "").removeprefix("time: ").partition(" (")[0],
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
