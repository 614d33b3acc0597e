"""Coastlines of the world, offline.

Natural Earth land polygons as TopoJSON, bundled with the package (`natural_earth/README.md` tells source and
licence). Mapping libraries fetch such lines when they first draw; a compute node without a network would hang
there.

Reference: the TopoJSON format specification, section 2.1.3 (transforms) and 2.1.4 (arcs).
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np

Scale = Literal["110m", "50m"]

# A polygon across the antimeridian, or around the pole, is closed along it in the source; that is no coast.
_SEAM = 1e-2  # degrees


@cache
def coast_segments(scale: Scale = "110m") -> np.ndarray:
    """Every straight piece of coast.

    Args:
        scale: Natural Earth's scale, "110m" (1:110 million) for world maps or "50m" for regions.

    Returns:
        [N, 2, 2] segments of (longitude, latitude) in degrees. A segment starts in [-180, 180] and goes the
        short way to its end, which may lie a little beyond ±180: no segment ever runs around the globe.
    """
    packed = files("climafuse.report").joinpath("natural_earth", f"land-{scale}.json.gz").read_bytes()
    topology = json.loads(gzip.decompress(packed))
    # Arcs are quantized and delta-encoded: positions are running sums of integer steps.
    arcs = [np.cumsum(np.array(arc, dtype=np.int64), axis=0) for arc in topology["arcs"]]  # each [n, 2]
    scale_, offset = (np.array(topology["transform"][key]) for key in ("scale", "translate"))
    pieces = (
        np.concatenate([np.stack([arc[:-1], arc[1:]], axis=1) for arc in arcs]) * scale_ + offset
    )  # [N, 2, 2]

    on_antimeridian = (np.abs(np.abs(pieces[..., 0]) - 180) < _SEAM).all(axis=1)
    at_pole = (np.abs(pieces[..., 1]) > 90 - _SEAM).any(axis=1)
    pieces = pieces[~on_antimeridian & ~at_pole]
    step = (pieces[:, 1, 0] - pieces[:, 0, 0] + 180) % 360 - 180
    pieces[:, 1, 0] = pieces[:, 0, 0] + step
    return pieces


def coast_in(west: float, east: float, south: float, north: float, scale: Scale) -> np.ndarray:
    """The coast that can be seen in a window, in the window's own longitudes.

    Args:
        west: Western edge, degrees east, any turn of the circle.
        east: Eastern edge, degrees east, larger than `west` by up to 360.
        south: Southern edge, degrees north.
        north: Northern edge, degrees north.
        scale: See `coast_segments`.

    Returns:
        [N, 2, 2] segments of (longitude, latitude), longitudes shifted by whole turns into the window.
        Segments that cross an edge are whole.
    """
    segments = coast_segments(scale)
    latitude = segments[..., 1]  # [N, 2]
    segments = segments[(latitude.max(axis=1) >= south) & (latitude.min(axis=1) <= north)]
    found = []
    for turn in range(int(np.floor((west - 180) / 360)), int(np.ceil((east + 180) / 360)) + 1):
        shifted = segments + np.array([360.0 * turn, 0.0])
        longitude = shifted[..., 0]
        found.append(shifted[(longitude.max(axis=1) >= west) & (longitude.min(axis=1) <= east)])
    return np.concatenate(found)
