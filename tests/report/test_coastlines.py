"""Coastlines against geography anybody can look up."""

import numpy as np
import pytest

from climafuse.report.coastlines import coast_in, coast_segments


def _distance(segments: np.ndarray, longitude: float, latitude: float) -> float:
    """Degrees from a point to the nearest end of a segment."""
    points = segments.reshape(-1, 2)
    east = (points[:, 0] - longitude + 180) % 360 - 180
    return float(np.hypot(east, points[:, 1] - latitude).min())


@pytest.mark.parametrize(
    ("longitude", "latitude"),
    [
        (-5.72, 50.07),  # Land's End
        (18.48, -34.35),  # Cape of Good Hope
        (-79.9, 9.35),  # Colón, Panama
        (143.2, -11.0),  # Cape York
        (178.5, -37.7),  # East Cape, New Zealand
    ],
)
def test_capes_lie_on_the_coast(longitude, latitude):
    assert _distance(coast_segments("50m"), longitude, latitude) < 1.0


def test_open_ocean_has_no_coast():
    # Point Nemo, the place farthest from land: 2,688 km, so more than 20 degrees of latitude.
    assert _distance(coast_segments("50m"), -123.4, -48.9) > 20


@pytest.mark.parametrize("scale", ["110m", "50m"])
def test_no_segment_runs_around_the_globe_or_along_a_seam(scale):
    segments = coast_segments(scale)
    length = np.abs(segments[:, 1] - segments[:, 0]).max(axis=1)
    assert length.max() < 10
    meridian = np.abs(np.abs(segments[..., 0]) - 180).max(axis=1) < 1e-6
    assert not meridian.any()  # the closing line of polygons cut at the antimeridian is no coast
    assert segments[..., 1].min() > -89


def test_window_over_the_dateline_gets_one_unbroken_coast():
    # Fiji straddles 180°; the same coast must come out whichever turn the window is written in.
    east = coast_in(170, 190, -22, -12, "50m")
    west = coast_in(-190, -170, -22, -12, "50m")
    assert len(east) == len(west) > 20
    np.testing.assert_allclose(np.sort(east[:, 0, 0] - 360), np.sort(west[:, 0, 0]))
    assert east[..., 0].min() < 180 < east[..., 0].max()
    inside = (east[..., 0] > 165) & (east[..., 0] < 195)
    assert inside.all()
