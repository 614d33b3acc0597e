"""Features of places and times: one value for one place, whatever the convention."""

from __future__ import annotations

import math

import pytest
import torch

from climafuse.encoders.positions import (
    NUM_PLACE_FEATURES,
    NUM_TIME_FEATURES,
    TROPICAL_YEAR,
    WAVENUMBERS,
    fresh,
    place_features,
    time_features,
)


@pytest.mark.parametrize(("east", "same"), [(359.5, -0.5), (180.0, -180.0), (200.25, -159.75), (0.0, 360.0)])
def test_one_place_has_one_value(east: float, same: float) -> None:
    latitude = torch.tensor([12.5])
    one, other = (
        place_features(latitude, torch.tensor([east])),
        place_features(latitude, torch.tensor([same])),
    )
    assert one.shape == (1, NUM_PLACE_FEATURES)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_neighbors_over_greenwich_are_as_near_as_elsewhere() -> None:
    latitude = torch.zeros(2)
    over = place_features(latitude, torch.tensor([359.5, 0.5])).diff(dim=0).norm()
    elsewhere = place_features(latitude, torch.tensor([99.5, 100.5])).diff(dim=0).norm()
    torch.testing.assert_close(over, elsewhere, rtol=1e-3, atol=1e-4)


def test_place_features_by_hand() -> None:
    # At 30°N 90°E the first wavenumber gives sin 30° = 1/2, cos 30°, sin 90° = 1, cos 90° = 0.
    features = place_features(torch.tensor(30.0), torch.tensor(90.0))
    waves = len(WAVENUMBERS)
    assert features[0].item() == pytest.approx(0.5)
    assert features[waves].item() == pytest.approx(math.sqrt(3) / 2)
    assert features[2 * waves].item() == pytest.approx(1.0)
    assert features[3 * waves].item() == pytest.approx(0.0, abs=1e-6)


def test_places_a_few_degrees_apart_differ() -> None:
    grid = torch.cartesian_prod(torch.arange(-90.0, 90.1, 10.0), torch.arange(0.0, 360.0, 10.0))
    features = place_features(grid[:, 0], grid[:, 1])
    distance = torch.cdist(features, features) + 9 * torch.eye(len(features))
    assert distance.min() > 0.5


def test_time_features_by_hand() -> None:
    # 1970-01-01T06:00 is a quarter of a day, and a quarter of a day out of 365.2422 in the year; 18 hours
    # before the valid time, 1970-01-02T00:00.
    time = torch.tensor([[0.25, 1.0]], dtype=torch.float64)
    features = time_features(time)
    assert features.shape == (1, 2, NUM_TIME_FEATURES)
    assert features.dtype == torch.float32
    year = 2 * math.pi * 0.25 / TROPICAL_YEAR
    before = [math.tanh(0.75), math.tanh(0.75 / 30)]
    expected = [math.sin(year), math.cos(year), 1.0, 0.0, *before]
    assert features[0, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert features[0, 1, 4:].tolist() == [0.0, 0.0]


def test_the_hour_survives_in_todays_dates() -> None:
    # 2026-03-25 is day 20537; float32 would keep it to 1/500 of a day only.
    for hour in (0, 6, 7):
        phase = time_features(torch.tensor([[20537 + hour / 24]], dtype=torch.float64))[0, 0, 2:4]
        angle = 2 * math.pi * hour / 24
        assert phase.tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-6)


def test_repeated_coordinates_are_padding() -> None:
    coordinate = torch.tensor([[358.0, 359.0, 0.0, 0.0], [5.0, 6.0, 7.0, 8.0], [3.0, 3.0, 3.0, 3.0]])
    assert fresh(coordinate).tolist() == [[True, True, True, False], [True] * 4, [True] + [False] * 3]
