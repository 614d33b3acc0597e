"""A process that opens untrusted climate files one after the other, and says what came of each.

Run as a script. Each line of standard input is a path; each line of standard output a JSON object:

    {"outcome": "read", "coordinates": {name: digest}, "fields": {name: [digest, attributes]}, "problems": [...]}
    {"outcome": "refused", "type": ..., "line": ...}       a ClimafuseError
    {"outcome": "raised", "type": ..., "line": ...}        anything else: never right

`problems` names every way in which what was read is no canonical dataset, and every warning. Memory is limited,
so that a shape of terabytes ends in an error and not on the machine.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import resource
import sys
import traceback
import warnings
from typing import Any

import numpy as np
import xarray as xr

from climafuse.data.sources import open_climate
from climafuse.errors import ClimafuseError

MEMORY = 3 * 2**30  # of address space, most of it libraries
SPOKEN = ("units", "cell_methods", "source_name")


def read(path: str) -> dict[str, Any]:
    """Open a source and read every value in it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with open_climate(path) as dataset:
                fields = {str(name): dataset[name].values for name in dataset.data_vars}
                found = {
                    "outcome": "read",
                    "coordinates": {str(n): _digest(c.values) for n, c in dataset.coords.items()},
                    "fields": {
                        name: [_digest(values), *(str(dataset[name].attrs.get(key)) for key in SPOKEN)]
                        for name, values in fields.items()
                    },
                    "problems": _problems(dataset, fields),
                }
        except ClimafuseError as error:
            found = {"outcome": "refused", "type": type(error).__name__, "line": str(error)}
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            found = {
                "outcome": "raised",
                "type": type(error).__name__,
                "line": f"{error} ({last.filename}:{last.lineno})",
            }
    found["warnings"] = sorted({f"{w.category.__name__}: {w.message}" for w in caught})
    return found


def _problems(dataset: xr.Dataset, fields: dict[str, np.ndarray]) -> list[str]:
    """How a dataset is not canonical, by the definitions in DESIGN; none of the package's own checks are used."""
    problems = []
    latitude, longitude = dataset["latitude"].values, dataset["longitude"].values
    if not (np.isfinite(latitude).all() and (np.abs(latitude) <= 90).all() and (np.diff(latitude) > 0).all()):
        problems.append(f"latitude {latitude}")
    if not ((longitude >= 0).all() and (longitude < 360).all() and (np.diff(longitude) > 0).all()):
        problems.append(f"longitude {longitude}")
    time = dataset["time"].values
    if not all(one < other for one, other in itertools.pairwise(time)):
        problems.append(f"time {time}")
    for name, values in fields.items():
        if values.dtype != np.float32 or np.isinf(values).any():
            problems.append(f"{name} of {values.dtype}, {np.isinf(values).sum()} infinite")
        dims = tuple(d for d in ("time", "level", "latitude", "longitude") if d in dataset[name].dims)
        if dataset[name].dims != dims or "units" not in dataset[name].attrs:
            problems.append(f"{name} along {dataset[name].dims}")
    return problems


def _digest(values: np.ndarray) -> str:
    content = str(values.tolist()).encode() if values.dtype == object else values.tobytes()
    return f"{values.shape} {values.dtype} {hashlib.sha256(content).hexdigest()[:16]}"


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        print(json.dumps(read(line.rstrip("\n"))), flush=True)
