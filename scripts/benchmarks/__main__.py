"""The command line of `scripts/bench`: runs sections, prints a table, writes JSON."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

import climafuse
from climafuse.cli.handler import print_table
from climafuse.errors import ClimafuseError
from climafuse.manifest import machine
from scripts.benchmarks import keeping, results
from scripts.benchmarks.measure import FULL, QUICK, Row, Size

SECTIONS = ("fusion", "generate", "loader", "mock", "optimizer", "prefix")
ON_REQUEST = ("billions", "plan", "prefix_1b", "prepare")  # many minutes, and gigabytes of disk
DISTRIBUTIONS = ("torch", "transformers", "numpy", "xarray", "netCDF4", "zarr")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Ratios, measured side by side.")
    parser.add_argument(
        "sections",
        nargs="*",
        metavar="SECTION",
        help=f"{', '.join(SECTIONS)}: all if none; {', '.join(ON_REQUEST)}",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="put the sections into this file, and its table beside it (.md)",
    )
    parser.add_argument("--fresh", action="store_true", help="measure anew what long sections have kept")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, to see that it works")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch; it decides otherwise")
    options = parser.parse_args(arguments)
    known = (*SECTIONS, *ON_REQUEST)
    unknown = [name for name in options.sections if name not in known]
    if unknown:
        parser.error(f"unknown section {unknown[0]!r}; known: {', '.join(known)}")
    if options.threads is not None:
        if options.threads < 1:
            parser.error("--threads: at least 1")
        torch.set_num_threads(options.threads)
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of cases in processes of their own
    transformers_logging.set_verbosity_error()  # remarks on generation settings, once a call
    size = QUICK if options.quick else FULL
    if options.json is not None:
        size = replace(size, kept=options.json.with_suffix(""))
    try:
        if options.json is not None:
            results.check(options.json)  # refused now, not after an hour
        for name in options.sections if options.fresh else ():
            keeping.forget(size, name)
        run(options.sections or SECTIONS, size, options.json)
    except ClimafuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(sections: Sequence[str], size: Size, path: Path | None = None) -> dict[str, Any]:
    """Run sections one after the other, print their rows, put them into a JSON file and its table.

    Args:
        sections: Names from `SECTIONS`.
        size: How much to measure, on what.
        path: JSON file; sections that it holds already and that are not among these stay. None for none.

    Returns:
        By section: its `header` and `rows`.
    """
    measured = {}
    for name in sections:
        header, rows = _header(size), []
        start = time.perf_counter()
        for row in import_module(f"scripts.benchmarks.{name}").rows(size):
            rows.append(row)
            print(f"{row.section}: {row.case}: ratio {row.ratio:.3f}", file=sys.stderr, flush=True)
        header["load_average_at_end"] = _load()
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        measured[name] = {"header": header, "rows": [row.to_dict() for row in rows]}
        if path is not None:  # after each, as the next may take an hour
            results.put(path, {name: measured[name]})
        _print(header, rows)
    return measured


def _print(header: dict[str, Any], rows: Sequence[Row]) -> None:
    print(f"{results.machine(header)}\n")
    cells = [results.cells(row.to_dict()) for row in rows]
    print_table(cells, header=results.COLUMNS)
    for section, meaning in dict.fromkeys((row.section, row.meaning) for row in rows):
        print(f"\n{section}: ratio = {meaning}\n")


def _header(size: Size) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine(),
        "threads": torch.get_num_threads(),
        "products": keeping.products_in(),
        "python": platform.python_version(),
        "versions": {
            "climafuse": climafuse.__version__,
            **{name: metadata.version(name) for name in DISTRIBUTIONS},
        },
        "size": size.name,
        "load_average_at_start": _load(),
    }


def _load() -> float | None:
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


if __name__ == "__main__":
    sys.exit(main())
