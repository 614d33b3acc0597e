"""From climate files to windows, pairs and batches. Imports no model code.

Names load on first use (PEP 562): `climafuse.data.Window` must not cost the import of torch.
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> the module that defines it.
_HOME = {
    "Box": "window",
    "ClimateSource": "sources",
    "EpochSampler": "batch",
    "Pair": "pairs",
    "Place": "places",
    "Product": "products.base",
    "SAMPLES": "samples",
    "Sample": "samples",
    "Splits": "splits",
    "TrainingStore": "store",
    "VARIABLES": "variables",
    "Variable": "variables",
    "Window": "window",
    "available_variables": "sources",
    "collate_windows": "batch",
    "compute_statistics": "normalization",
    "data_order": "batch",
    "denormalize": "normalization",
    "find_place": "places",
    "find_variable": "variables",
    "load_fields": "sources",
    "load_statistics": "normalization",
    "normalize": "normalization",
    "open_climate": "sources",
    "prepare": "store",
    "read_pairs": "pairs",
    "rebase": "anomalies",
    "sample_boxes": "batch",
    "sample_path": "samples",
    "save_statistics": "normalization",
    "select_variables": "sources",
    "select_window": "window",
    "split_at": "splits",
    "split_by_periods": "splits",
    "split_by_time": "splits",
    "statistics_from_dict": "normalization",
    "statistics_to_dict": "normalization",
    "write_pairs": "pairs",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
