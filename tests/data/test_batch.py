"""Batches: padding, masks and normalization by hand; orders and boxes as pure functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from climafuse.data.batch import EpochSampler, collate_windows, data_order, sample_boxes
from climafuse.data.normalization import compute_statistics
from climafuse.data.window import Box, Window
from climafuse.errors import ModelInputError, UsageError


def make_window(
    shape: tuple[int, int, int], *, variables: tuple[str, ...] = ("t2m", "msl"), seed: int = 0
) -> Window:
    num_times, height, width = shape
    rng = np.random.default_rng(seed)
    return Window(
        rng.normal(size=(num_times, len(variables), height, width)).astype(np.float32),
        variables,
        np.datetime64("1970-01-02T12:00", "s") + np.arange(num_times) * np.timedelta64(6, "h"),
        10.0 + np.arange(height),
        np.array([358.0, 359.0, 0.0, 1.0, 2.0, 3.0])[:width],
    )


@pytest.fixture
def statistics() -> xr.Dataset:
    # One row on the equator, so that all cells weigh the same. t2m: 280, 284 -> mean 282, std 2; msl: std
    # 500.
    values = {"t2m": [[[280.0, 284.0]]], "msl": [[[100000.0, 101000.0]]]}
    dataset = xr.Dataset(
        {
            name: (("time", "latitude", "longitude"), np.array(value, np.float32))
            for name, value in values.items()
        },
        coords={"time": [np.datetime64("2026-01-01", "ns")], "latitude": [0.0], "longitude": [0.0, 180.0]},
    )
    return compute_statistics(dataset, dataset["time"].values)


def test_fields_are_normalized_and_missing_values_are_zero_with_mask_false(statistics: xr.Dataset) -> None:
    window = make_window((1, 1, 2))
    window.fields[0, 0, 0] = [286, np.nan]
    window.fields[0, 1, 0] = [100000, np.nan]
    batch = collate_windows([window], statistics)
    assert batch["climate_fields"].dtype == torch.float32
    # (286 - 282) / 2 = 2 and (100000 - 100500) / 500 = -1
    torch.testing.assert_close(batch["climate_fields"], torch.tensor([[[[[2.0, 0.0]], [[-1.0, 0.0]]]]]))
    assert batch["climate_mask"].tolist() == [[[[[True, False]], [[True, False]]]]]
    assert not torch.isnan(batch["climate_fields"]).any()


def test_coordinates_and_days(statistics: xr.Dataset) -> None:
    batch = collate_windows([make_window((2, 3, 4))], statistics)
    assert batch["climate_latitude"].tolist() == [[10, 11, 12]]
    assert batch["climate_longitude"].tolist() == [[358, 359, 0, 1]]
    assert batch["climate_time"].tolist() == [[1.5, 1.75]]
    assert [batch[f"climate_{name}"].dtype for name in ("latitude", "longitude", "time", "mask")] == [
        torch.float32, torch.float32, torch.float64, torch.bool
    ]  # fmt: skip


def test_smaller_windows_are_padded_at_the_end(statistics: xr.Dataset) -> None:
    small, large = make_window((1, 2, 3)), make_window((2, 4, 6), seed=1)
    both = collate_windows([small, large], statistics)
    alone = collate_windows([small], statistics)
    assert both["climate_fields"].shape == (2, 2, 2, 4, 6)
    # A window is the same in company as alone, and what is added is neither value nor valid.
    for name in ("climate_fields", "climate_mask"):
        torch.testing.assert_close(both[name][:1, :1, :, :2, :3], alone[name])
        assert not both[name][0, 1:].any()
        assert not both[name][0, :, :, 2:].any()
        assert not both[name][0, :, :, :, 3:].any()
    assert both["climate_mask"][1].all()
    assert both["climate_latitude"][0].tolist() == [10, 11, 11, 11]
    assert both["climate_longitude"][0].tolist() == [358, 359, 0, 0, 0, 0]
    assert both["climate_time"][0].tolist() == [1.5, 1.5]


def test_channels_follow_the_statistics_and_absent_variables_are_masked(statistics: xr.Dataset) -> None:
    window = make_window((2, 2, 2), variables=("msl", "t2m"))
    swapped = Window(window.fields[:, ::-1], ("t2m", "msl"), window.time, window.latitude, window.longitude)
    torch.testing.assert_close(collate_windows([window], statistics), collate_windows([swapped], statistics))
    lacking = Window(window.fields[:, :1], ("msl",), window.time, window.latitude, window.longitude)
    batch = collate_windows([lacking], statistics)
    assert not batch["climate_mask"][:, :, 0].any()
    torch.testing.assert_close(
        batch["climate_fields"][:, :, 1], collate_windows([window], statistics)["climate_fields"][:, :, 1]
    )


def test_windows_are_not_changed(statistics: xr.Dataset) -> None:
    window = make_window((2, 2, 2))
    before = window.fields.copy()
    collate_windows([window], statistics)["climate_fields"].zero_()
    np.testing.assert_array_equal(window.fields, before)


def test_unknown_variables_and_no_windows_are_refused(statistics: xr.Dataset) -> None:
    with pytest.raises(ModelInputError, match="received z500"):
        collate_windows([make_window((1, 1, 1), variables=("t2m", "z500"))], statistics)
    with pytest.raises(ModelInputError, match="at least one"):
        collate_windows([], statistics)


def test_order_is_a_permutation_that_seed_and_epoch_change() -> None:
    orders = [data_order(1000, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert sorted(order) == list(range(1000))
    assert (orders[0] != orders[1]).any()
    assert (orders[0] != orders[2]).any()
    assert (orders[1] != orders[2]).any()


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x64-10 as in Salmon et al. 2011: four words from a counter and a key."""
    mask = 2**64 - 1
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            second >> 64 ^ counter[1] ^ key[0],
            second & mask,
            first >> 64 ^ counter[3] ^ key[1],
            first & mask,
        ]
        key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
    return counter


def test_order_is_that_of_philox_numbers_under_seed_and_epoch() -> None:
    # Were the stream another one on some machine or version, a run could not be resumed there.
    numbers = philox([1, 0, 0, 0], [3, 2]) + philox([2, 0, 0, 0], [3, 2])
    by_hand = sorted(range(7), key=lambda sample: numbers[sample])
    assert data_order(7, seed=3, epoch=2).tolist() == by_hand


def test_first_places_are_uniform() -> None:
    # Each of 10 samples comes first in a tenth of 2,000 epochs: 200 with a standard deviation of 13.4.
    first = np.bincount([data_order(10, seed=0, epoch=epoch)[0] for epoch in range(2000)], minlength=10)
    assert abs(first - 200).max() < 4 * 13.4


def test_sampler_goes_on_where_it_stopped() -> None:
    sampler = EpochSampler(10, seed=5)
    sampler.set_epoch(3)
    whole = list(sampler)
    resumed = EpochSampler(10, seed=5)
    resumed.set_epoch(3, start=4)
    assert list(resumed) == whole[4:]
    assert (len(sampler), len(resumed)) == (10, 6)
    resumed.set_epoch(4)
    assert list(resumed) == data_order(10, seed=5, epoch=4).tolist()
    assert list(EpochSampler(10, seed=5, start=4)) == data_order(10, seed=5, epoch=0).tolist()[4:]
    with pytest.raises(UsageError):
        sampler.set_epoch(0, start=11)


def test_boxes_are_uniform_over_area_and_a_longer_list_only_appends() -> None:
    drawn = sample_boxes(np.array([3, 5, 9]), 3000, size=(16, 20), seed=1)
    assert drawn[:10] == sample_boxes(np.array([3, 5, 9]), 10, size=(16, 20), seed=1)
    assert drawn[:10] != sample_boxes(np.array([3, 5, 9]), 10, size=(16, 20), seed=2)
    latitude = np.array([box.latitude for _, box in drawn])
    longitude = np.array([box.longitude for _, box in drawn])
    assert {(box.height, box.width) for _, box in drawn} == {(16, 20)}
    # Half of the sphere lies within 30 degrees of the equator; 3,000 draws: standard deviation 0.9 %.
    assert np.mean(abs(latitude) < 30) == pytest.approx(0.5, abs=0.04)
    assert np.mean(latitude > 0) == pytest.approx(0.5, abs=0.04)
    np.testing.assert_allclose(np.histogram(longitude, 4, (0, 360))[0] / 3000, 0.25, atol=0.035)
    np.testing.assert_allclose(
        [np.mean([step == t for step, _ in drawn]) for t in (3, 5, 9)], 1 / 3, atol=0.04
    )


def test_boxes_within_a_region_across_greenwich() -> None:
    drawn = sample_boxes(np.array([0]), 200, size=(4, 4), seed=0, within=Box(50, 0, 20, 40))
    assert all(40 <= box.latitude <= 60 for _, box in drawn)
    assert all(box.longitude <= 20 or box.longitude >= 340 for _, box in drawn)
    assert len({box.longitude > 180 for _, box in drawn}) == 2


def test_a_share_of_the_boxes_is_at_places() -> None:
    plain = sample_boxes(np.arange(9), 2000, size=(10, 50), seed=4)
    places = [(0.0, 215.0, 0.5), (48.9, 2.3, 0.2)]
    drawn = sample_boxes(np.arange(9), 2000, size=(10, 50), seed=4, places=places)
    assert [step for step, _ in drawn] == [step for step, _ in plain]
    at = [(box.latitude, box.longitude) for _, box in drawn]
    # 2,000 draws: standard deviations of 1.1 % and 0.9 %.
    assert at.count((0.0, 215.0)) / 2000 == pytest.approx(0.5, abs=0.04)
    assert at.count((48.9, 2.3)) / 2000 == pytest.approx(0.2, abs=0.03)
    elsewhere = [n for n, place in enumerate(at) if place not in [(0.0, 215.0), (48.9, 2.3)]]
    assert all(drawn[n] == plain[n] for n in elsewhere)
    # Which boxes are at places has nothing to do with their times.
    assert {step for (step, _), place in zip(drawn, at, strict=True) if place == (0.0, 215.0)} == set(
        range(9)
    )
    assert sample_boxes(np.arange(9), 10, size=(10, 50), seed=4, places=places) == drawn[:10]
    everywhere = sample_boxes(np.arange(9), 500, size=(10, 50), seed=4, places=[(1.0, 2.0, 1.0)])
    assert {(box.latitude, box.longitude) for _, box in everywhere} == {(1.0, 2.0)}


def test_impossible_draws_are_refused() -> None:
    with pytest.raises(UsageError, match="seed"):
        data_order(3, seed=-1, epoch=0)
    with pytest.raises(UsageError, match="times"):
        sample_boxes(np.array([], dtype=int), 1, size=(1, 1), seed=0)
