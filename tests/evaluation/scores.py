"""Where and when made-up samples are."""

from __future__ import annotations

import numpy as np

from climafuse.evaluation.correlation import SamplePoints


def series(number: int, *, step: float = 1.0) -> SamplePoints:
    """At one place, every `step` hours."""
    return SamplePoints(step * np.arange(number), np.full(number, 45.0), np.full(number, 10.0))


def anywhere(number: int, *, times: int = 1, step: float = 8.0, seed: int = 0) -> SamplePoints:
    """At random places of the globe, as many at each time."""
    random = np.random.default_rng(seed)
    latitude = np.degrees(np.arcsin(random.uniform(-1, 1, number)))
    return SamplePoints(step * (np.arange(number) % times), latitude, random.uniform(0, 360, number))
