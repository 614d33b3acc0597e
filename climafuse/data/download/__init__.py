"""Reanalysis from its services: planned, then fetched; what arrived is kept, checked and never fetched twice.

`plan_merra2`, `plan_era5` and `plan_arco` say which files will be made, how large they are and where they are from.
`fetch` brings those that are missing. Each service needs its extra (`pip install 'climafuse[merra2]'`) and, except for
the public stores of `arco`, an account; credentials stay where the service's own library looks for them.
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> the module that defines it.
_HOME = {
    "Fetched": "plan",
    "Part": "plan",
    "Plan": "plan",
    "Policy": "transfer",
    "fetch": "plan",
    "plan_arco": "arco",
    "plan_era5": "era5",
    "plan_merra2": "merra2",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
