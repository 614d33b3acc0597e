"""Small windows for the tests of facts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from climafuse.data.window import Window

KELVIN = 273.15


def window(
    fields: dict[str, object],
    latitude: Sequence[float],
    longitude: Sequence[float],
    times: Sequence[str] = ("2026-03-25T12:00",),
) -> Window:
    """Each field [T, H, W] or [H, W] (the same at all times), in SI units."""
    shape = (len(times), len(latitude), len(longitude))
    stack = np.stack(
        [np.broadcast_to(np.asarray(field, np.float32), shape) for field in fields.values()], axis=1
    )
    return Window(
        stack,
        tuple(fields),
        np.array(times, "datetime64[s]"),
        np.asarray(latitude, np.float64),
        np.asarray(longitude, np.float64),
    )


def random_window(rng: np.random.Generator, size: int = 6, steps: int = 2, west: float = 350.0) -> Window:
    """Weather-like noise with every usual variable, across Greenwich."""
    shape = (steps, size, size)
    return window(
        {
            "t2m": 280 + 8 * rng.standard_normal(shape),
            "u10": 4 * rng.standard_normal() + 3 * rng.standard_normal(shape),
            "v10": 4 * rng.standard_normal() + 3 * rng.standard_normal(shape),
            "msl": 101300 + 900 * rng.standard_normal(shape),
            "tp": 1e-3 * rng.exponential(size=shape),
        },
        40 + np.arange(size),
        (west + np.arange(size)) % 360,
        [f"2026-03-{25 + step}T12:00" for step in range(steps)],
    )
