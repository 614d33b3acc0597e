"""Results of cases that take minutes each: kept, so that a section that was stopped goes on where it stood.

A file a case. With `scripts/bench --json FILE` they lie in a folder beside it, so that a section may be measured in
several sessions, and what a row was made of can be read; else in climafuse's cache. What was measured is taken again
while its specification, the number of threads and the versions of climafuse and torch are the same; when, and how the
machine multiplies, is kept with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import climafuse
from climafuse.backbones.native import product_dtype
from climafuse.data.files import cache_directory, whole_file
from climafuse.errors import UsageError
from climafuse.json_file import read_object
from scripts.benchmarks.measure import Size


def kept(
    section: str, name: str, spec: dict[str, Any], size: Size, measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return what was measured for a specification before, else what is measured now.

    Args:
        section: Of the benchmark.
        name: Of the case.
        spec: All that the result depends on, as JSON.
        size: Says where results are kept.
        measure: Measures the case.

    Returns:
        The result, with `measured`: when, and in which type bfloat16 was multiplied.
    """
    slug = "".join(letter if letter.isalnum() else "-" for letter in name)
    path = folder(size, section) / f"{slug}.json"
    known = {
        "spec": spec,
        "threads": torch.get_num_threads(),
        "climafuse": climafuse.__version__,
        "torch": torch.__version__,
    }
    if path.is_file():
        try:
            held = read_object(path)
        except ValueError as error:
            raise UsageError(
                str(path),
                expected="a result that scripts/bench has kept",
                received=str(error),
                remedy="Remove the file: its case is then measured anew.",
            ) from error
        if {key: held.get(key) for key in known} == known:
            say(f"{name}: as measured on {held['measured']}")
            return {**held["found"], "measured": held["measured"]}
    say(f"{name}: measuring")
    found = measure()
    date = datetime.now(UTC).isoformat(timespec="minutes").removesuffix("+00:00")
    measured = f"{date}, products in {products_in()}"
    with whole_file(path) as unfinished:
        text = json.dumps({**known, "measured": measured, "found": found}, indent=1)
        unfinished.write_text(text + "\n", encoding="utf-8")
    return {**found, "measured": measured}


def forget(size: Size, section: str) -> None:
    """Forget what was measured."""
    for path in folder(size, section).glob("*.json"):
        path.unlink()


def folder(size: Size, section: str) -> Path:
    """Return where results of a section are kept."""
    return (size.kept or cache_directory() / "benchmarks" / size.name) / section


def products_in() -> str:
    """Return the type in which this machine multiplies bfloat16."""
    return str(product_dtype(torch.bfloat16, torch.device("cpu"))).removeprefix("torch.")


def say(line: str) -> None:
    """Tell how far a long section is."""
    print(line, file=sys.stderr, flush=True)
