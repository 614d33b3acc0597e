"""Whole runs in miniature: a climate file, a tiny backbone in a folder, and a configuration of both."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from climafuse.training.config import RunConfig, read_dataclass
from tests.tiny import tiny_model, tiny_tokenizer

TIMES = np.datetime64("2026-03-01", "ns") + np.arange(20) * np.timedelta64(12, "h")


def write_climate(path: Path, *, seed: int = 0, region: bool = False) -> Path:
    """Twenty half days on a 10° grid, or on a 2° grid from 30 to 60°N and 350 to 370°E."""
    rng = np.random.default_rng(seed)
    if region:
        latitude, longitude = np.arange(30.0, 61, 2), np.arange(-10.0, 11, 2)
    else:
        latitude, longitude = np.arange(-80.0, 81, 10), np.arange(0.0, 360, 10)
    shape = (len(TIMES), len(latitude), len(longitude))
    dims = ("time", "latitude", "longitude")

    def noise(mean: float, spread: float) -> np.ndarray:
        field = rng.normal(0, spread, (shape[0], 1, 1)) + rng.normal(mean, spread / 3, shape)
        return field.astype("float32")

    xr.Dataset(
        {
            "t2m": (dims, noise(283, 12), {"units": "K"}),
            "msl": (dims, noise(101300, 1500), {"units": "Pa"}),
        },
        coords={"time": TIMES, "latitude": latitude, "longitude": longitude},
    ).to_netcdf(path)
    return path


def save_backbone(folder: Path, architecture: str = "llama") -> Path:
    """A random backbone with its tokenizer, as a directory."""
    tiny_model(architecture).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def settings(climate: Path, backbone: Path, output: Path, /, **changes: Any) -> dict[str, Any]:
    """A short run with everything on: stored states, sampled vocabulary, thinned labels."""
    content: dict[str, Any] = {
        "data": {
            "source": str(climate),
            "variables": ["t2m", "msl"],
            "history": 2,
            "box_degrees": 40.0,
            "train_windows": 12,
            "validation_windows": 4,
            "test_windows": 4,
        },
        "facts": {"kinds": ["mean", "maximum", "tendency"], "questions_per_window": 2},
        "backbone": {"name": str(backbone), "dtype": "float32"},
        "encoder": {"options": {"width": 16, "depth": 1, "heads": 2, "patch": 2}},
        "fusion": {"sites": [2, "output"], "options": {"heads": 2, "head_width": 8, "feed_forward": 16}},
        "training": {
            "steps": 8,
            "windows_per_step": 4,
            "accumulation": 2,
            "evaluation_interval": 4,
            "logging_interval": 1,
            "sampled_vocabulary": 8,
            "labels_decided_by_words": 0.5,
        },
        "evaluation": {"max_new_tokens": 8},
        "output": {"directory": str(output), "save_interval": 4, "tensorboard": False},
    }
    for section, values in copy.deepcopy(changes).items():
        content[section].update(values)
    return content


def make_config(climate: Path, backbone: Path, output: Path, /, **changes: Any) -> RunConfig:
    """The same as a configuration."""
    return read_dataclass(RunConfig, settings(climate, backbone, output, **changes))
