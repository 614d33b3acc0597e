"""Training: strict configuration, hardened Trainer, checkpoints that are whole or absent, logs.

Names load on first use (PEP 562): reading a configuration or verifying a checkpoint must not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> the module that defines it.
_HOME = {
    "ClimateTextTrainer": "trainer",
    "RunClock": "callbacks",
    "RunConfig": "config",
    "load_config": "config",
    "newest_good_checkpoint": "checkpoint",
    "read_log": "callbacks",
    "verify_checkpoint": "checkpoint",
    "write_folder": "checkpoint",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
