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
    Correlation,
    Decay,
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
    assert {decay.hours for decay in anywhere(50).candidates().decays} == {math.inf}  # one time
    assert {decay.kilometers for decay in series(50).candidates().decays} == {math.inf}  # one place
    assert series(9).candidates().decays == []
    both = SamplePoints(np.arange(50.0), anywhere(50).latitude, anywhere(50).longitude).candidates().decays
    assert {math.isfinite(decay.hours) for decay in both} == {True, False}
    assert Decay(math.inf, math.inf) not in both  # that is the mean


def test_no_shorter_lengths_are_looked_for_than_the_floor():
    points, random = anywhere(96), np.random.default_rng(0)
    lengths = {decay.kilometers for decay in points.candidates(Scales(24.0, 1600.0)).decays}
    assert min(lengths) == pytest.approx(1600)
    assert min(decay.kilometers for decay in points.candidates().decays) < 1000
    # Longer than all that could be told from the mean: the longest of these is left.
    assert {decay.kilometers for decay in points.candidates(Scales(0.0, 9000.0)).decays} == {max(lengths)}
    root = np.linalg.cholesky(points.correlated(Decay(math.inf, 1600.0)))
    inflations = [
        [points.correlation(scores, floor).inflation for floor in (Scales(0.0, 1600.0), Scales())]
        for scores in (root @ random.standard_normal((96, 40))).T
    ]
    known = points.correlated(Decay(math.inf, 1600.0)).mean() * 96
    floored, free = np.mean(inflations, axis=0)
    assert free < floored
    assert floored == pytest.approx(known, rel=0.3)


def test_smooth_scores_are_told_from_rough_ones():
    """Oracle: the squared exponential that they are drawn from, of which the exponential reaches much farther."""
    points, random = anywhere(240), np.random.default_rng(0)
    chord = 2 * 6371 * np.sin(points.distances / 2 / 6371)
    covariance = np.exp(-np.square(chord / 1500.0))
    np.testing.assert_allclose(points.correlated(Decay(math.inf, 1500.0, smooth=True)), covariance, rtol=1e-9)
    root = np.linalg.cholesky(covariance + 1e-8 * np.eye(240))
    scores = (root @ random.standard_normal((240, 20)) + 0.3 * random.standard_normal((240, 20))).T
    found = [points.correlation(row) for row in scores]
    smooth = [
        sum(share for decay, share in zip(c.decays, c.shares, strict=True) if decay.smooth) for c in found
    ]
    assert np.median(smooth) > 0.8
    known = 1 + (covariance.mean() * 240 - 1) / 1.09
    assert np.median([correlation.inflation for correlation in found]) == pytest.approx(known, rel=0.3)
    assert np.median([correlation.scales.kilometers for correlation in found]) == pytest.approx(1500, rel=0.2)


def test_a_mixture_falls_to_its_e_folding_length():
    points = series(20)
    one = Correlation(points, [Decay(7.0, 300.0)], np.array([0.4])).scales
    assert (one.hours, one.kilometers) == pytest.approx((7, 300))
    # exp(-t/2)/4 + 3/4 exp(-(t/9)²) = 1/e, by hand: t = 7.69 gives 0.0053 + 0.3614.
    mixed = Correlation(
        points, [Decay(2.0, math.inf), Decay(9.0, math.inf, smooth=True)], np.array([0.1, 0.3])
    )
    assert mixed.scales.hours == pytest.approx(7.69, abs=0.02)
    assert mixed.scales.kilometers == math.inf
    assert Correlation(points, [Decay(7.0, 300.0)], np.array([0.0])).scales == Scales()


def test_independent_scores_are_told_from_correlated_ones():
    points, random = series(200, step=6.0), np.random.default_rng(0)
    noise = random.standard_normal((20, 200))
    correlated = [np.linalg.cholesky(points.correlated(Decay(24.0, math.inf))) @ row for row in noise]
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
