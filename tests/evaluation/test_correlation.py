"""Correlation of scores. Oracles: hand arithmetic on the sphere, processes of known correlation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from climafuse.data.samples import sample_path
from climafuse.data.sources import open_climate
from climafuse.data.store import TrainingStore
from climafuse.data.window import Window
from climafuse.errors import UsageError
from climafuse.evaluation.correlation import (
    MOST,
    SamplePoints,
    Scales,
    anomaly_scales,
    field_scales,
    great_circle,
)
from tests.evaluation.scores import anywhere, series


def test_a_quarter_of_the_way_around():
    quarter = math.pi / 2 * 6371
    found = great_circle(
        np.array([0.0, 0.0, 90.0]), np.array([0.0, 350.0, 7.0]), np.array(0.0), np.array(80.0)
    )
    np.testing.assert_allclose(found, [80 / 90 * quarter, quarter, quarter])
    # Oracle: the angle between unit vectors.
    points = anywhere(50, seed=1)
    turn, tilt = np.radians(points.longitude), np.radians(points.latitude)
    vectors = np.stack([np.cos(tilt) * np.cos(turn), np.cos(tilt) * np.sin(turn), np.sin(tilt)])
    np.testing.assert_allclose(
        points.distances, 6371 * np.arccos(np.clip(vectors.T @ vectors, -1, 1)), atol=0.2
    )


def test_points_of_windows_are_valid_times_and_centers():
    window = Window(
        np.zeros((2, 1, 3, 3), np.float32),
        ("t2m",),
        np.array(["1970-01-01T21", "1970-01-02T03"], dtype="datetime64[s]"),
        np.array([-10.0, -9.0, -8.0]),
        np.array([359.0, 0.0, 1.0]),
    )
    points = SamplePoints.of_windows([window, window])
    assert (points.hours.tolist(), points.latitude.tolist()) == ([27, 27], [-9, -9])
    np.testing.assert_allclose(np.cos(np.radians(points.longitude)), 1)
    assert points.num_places == 1


@pytest.mark.parametrize(
    ("hours", "latitude", "longitude"),
    [([0, 1], [0], [0]), ([], [], []), ([[0]], [[0]], [[0]]), ([np.nan], [0], [0]), ([0], [0], [np.inf])],
)
def test_points_that_are_none(hours: list, latitude: list, longitude: list):
    with pytest.raises(UsageError, match="samples"):
        SamplePoints(hours, latitude, longitude)


def test_what_samples_cannot_tell_is_infinite():
    assert {scales.hours for scales in anywhere(50).candidates} == {math.inf}  # one time
    assert {scales.kilometers for scales in series(50).candidates} == {math.inf}  # one place
    assert series(9).candidates == []
    both = SamplePoints(np.arange(50.0), anywhere(50).latitude, anywhere(50).longitude).candidates
    assert {math.isfinite(scales.hours) for scales in both} == {True, False}
    assert Scales(math.inf, math.inf) not in both  # that is the mean


def test_independent_scores_are_told_from_correlated_ones():
    points, random = series(200, step=6.0), np.random.default_rng(0)
    noise = random.standard_normal((20, 200))
    correlated = [np.linalg.cholesky(points.correlated(Scales(24.0, math.inf))) @ row for row in noise]
    alone = [points.correlation(row).inflation for row in noise]
    together = [points.correlation(row) for row in correlated]
    # Sum of exp(-|k| 6/24): (1 + x) / (1 - x), x = exp(-1/4): 8.04, a little less of 200.
    assert 5 < np.median([correlation.inflation for correlation in together]) < 11
    assert np.median(alone) < 1.6
    assert 15 < np.median([correlation.scales.hours for correlation in together]) < 36
    assert np.median([correlation.share for correlation in together]) > 0.8


def test_scores_of_any_scale_and_mean_are_correlated_alike():
    points, scores = anywhere(60), np.random.default_rng(3).standard_normal(60)
    expected = points.correlation(scores).matrix
    np.testing.assert_allclose(points.correlation(1e-3 * scores - 7).matrix, expected, rtol=1e-6)
    assert points.correlation(np.full(60, 0.3)).share == 0  # scores that are all one tell nothing


def test_the_correlation_is_one_between_samples_and_themselves():
    points = anywhere(80)
    matrix = points.correlation(np.sin(np.radians(points.latitude))).matrix
    assert np.diag(matrix).tolist() == [1.0] * 80
    assert np.linalg.eigvalsh(matrix).min() > -1e-9
    assert matrix[~np.eye(80, dtype=bool)].max() < 1


def test_of_many_samples_some_are_measured_and_all_are_correlated():
    points = series(MOST + 100)
    found = points.correlation(np.sin(points.hours / 20))
    assert found.matrix.shape == (MOST + 100, MOST + 100)
    assert found.share > 0.9


def test_lengths_of_fields():
    # Two variables, one of longer correlation in time, the other in space; on a band around 40 °N.
    hours, latitude, longitude = 6.0 * np.arange(60), np.array([38.0, 40.0, 42.0]), np.arange(0.0, 360.0, 4.0)
    grid = [axis.ravel() for axis in np.meshgrid(latitude, longitude, indexing="ij")]
    space = great_circle(grid[0][:, None], grid[1][:, None], *grid)
    lags = np.abs(hours[:, None] - hours)
    random = np.random.default_rng(0)

    def field(length: float, distance: float) -> np.ndarray:
        noise = random.standard_normal((60, space.shape[0]))
        root = [
            np.linalg.cholesky(np.exp(-m) + 1e-9 * np.eye(len(m))) for m in (lags / length, space / distance)
        ]
        return root[0] @ noise @ root[1].T

    fields = np.stack([280 + 9 * field(30.0, 500.0), 1e5 + 700 * field(8.0, 1500.0)], axis=1)
    found = anomaly_scales(fields, hours, *grid)
    assert found.hours == pytest.approx(30, rel=0.25)
    assert found.kilometers == pytest.approx(1500, rel=0.25)
    fields[:, :, :90] = np.nan  # land
    assert anomaly_scales(fields, hours, *grid).kilometers == pytest.approx(1500, rel=0.3)
    assert anomaly_scales(fields[:9], hours[:9], *grid) == Scales(math.inf, math.inf)
    assert anomaly_scales(fields[..., 90:99], hours, grid[0][90:99], grid[1][90:99]) == Scales(
        math.inf, math.inf
    )
    # Months of a large annual cycle are no correlation of the weather.
    days = hours * 20
    year = np.sin(2 * np.pi * days / 24 / 365.2425 + 1.0)[:, None, None]
    calm = anomaly_scales(fields, days, *grid)
    assert anomaly_scales(fields + 1e4 * year, days, *grid).hours == pytest.approx(calm.hours, rel=1e-3)


def test_lengths_of_the_fields_of_a_store():
    """Oracle: the same, cell by cell."""
    store = TrainingStore.from_dataset(open_climate(sample_path("era5")))
    found = field_scales(store)
    assert 500 < found.kilometers < 5000
    assert 12 < found.hours < 240
    rows, columns, steps = np.array([3, 90, 17]), np.array([0, 200, 359]), np.array([0, 5])
    cells = store.cells(steps, rows, columns)
    for time, cell in np.ndindex(2, 3):
        part = store.fields[steps[time], :, rows[cell], columns[cell]]
        np.testing.assert_array_equal(cells[time, :, cell], part)
