"""Training statistics against numbers worked out by hand, and the exact way back."""

import hashlib
import json

import cftime
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from climafuse.data import normalization
from climafuse.data.normalization import (
    compute_statistics,
    denormalize,
    load_statistics,
    moments,
    normalize,
    save_statistics,
    statistics_from_dict,
    statistics_to_dict,
)
from climafuse.data.sources import open_climate
from climafuse.errors import (
    CanonicalizationError,
    ClimateFileError,
    DataError,
    MissingValuesError,
    OutOfRangeError,
    UsageError,
    VariableNotFoundError,
)
from tests.data.fixtures import canonical, era5, truth


def _dataset(values, latitude=(0.0, 60.0), name="t2m"):
    values = np.asarray(values, dtype=np.float32)  # [T, H, W]
    return xr.Dataset(
        {name: (("time", "latitude", "longitude"), values, {"units": "K"})},
        coords={
            "time": np.datetime64("2020-01-01", "s") + np.arange(len(values)) * np.timedelta64(1, "D"),
            "latitude": list(latitude),
            "longitude": np.arange(values.shape[-1]) * 10.0,
        },
    )


def test_mean_and_standard_deviation_by_hand():
    # Weights cos 0° = 1 and cos 60° = 1/2. Two training times; the third is not looked at.
    dataset = _dataset([[[1], [4]], [[3], [4]], [[1000], [-1000]]])
    statistics = compute_statistics(dataset, dataset["time"].values[:2])
    # μ = (1·1 + ½·4 + 1·3 + ½·4) / 3 = 8/3
    # σ² = (1·(5/3)² + ½·(4/3)² + 1·(1/3)² + ½·(4/3)²) / 3 = (25 + 8 + 1 + 8) / 27 = 42/27
    np.testing.assert_allclose(statistics["mean"].values, [8 / 3], rtol=1e-14)
    np.testing.assert_allclose(statistics["std"].values, [np.sqrt(42 / 27)], rtol=1e-14)
    assert statistics["mean"].dtype == np.float64
    assert statistics["units"].values.tolist() == ["K"]


def test_missing_values_are_left_out():
    # Only 1 at the equator (weight 1) and 4 at 60° (weight ½) are there: μ = 3 / 1.5 = 2, σ² = (1 + ½·4) /
    # 1.5 = 2.
    statistics = compute_statistics(_dataset([[[1], [np.nan]], [[np.nan], [4]]]), [0, 1])
    np.testing.assert_allclose(statistics["mean"].values, [2], rtol=1e-14)
    np.testing.assert_allclose(statistics["std"].values, [np.sqrt(2)], rtol=1e-14)


def test_provenance_names_the_training_times_and_the_source(tmp_path):
    path = tmp_path / "somewhere" / "file.nc"
    path.parent.mkdir()
    era5(truth("t2m")).assign_attrs(title="a test").to_netcdf(path, engine="netcdf4")
    statistics = compute_statistics(open_climate(path), [2, 0])
    texts = "2020-02-28T00:00\n2020-02-28T12:00"
    assert statistics.attrs["num_times"] == 2
    assert (statistics.attrs["first_time"], statistics.attrs["last_time"]) == tuple(texts.split())
    assert statistics.attrs["times_sha256"] == hashlib.sha256(texts.encode()).hexdigest()
    assert statistics.attrs["source"] == "a test; file.nc"  # no directory: statistics travel with checkpoints


def test_times_as_values_texts_and_positions_are_the_same():
    dataset = canonical(truth("t2m", "u10"))
    by_position = compute_statistics(dataset, np.array([3, 1, 1]))
    assert by_position.identical(compute_statistics(dataset, dataset["time"].values[[1, 3]]))
    assert by_position.identical(compute_statistics(dataset, ["2020-02-28T06", "2020-02-28T18:00"]))


def test_values_outside_the_training_times_change_nothing():
    dataset = canonical(truth("t2m", "u10"))
    before = compute_statistics(dataset, [0, 1])
    dataset["t2m"].values[2:] = 1e6
    assert compute_statistics(dataset, [0, 1]).identical(before)


def test_blocks_equal_the_whole(monkeypatch):
    """And neither loses digits: pressure varies by 1 % of its value."""
    values = np.random.default_rng(0).normal(101325, 800, (30, 5, 8)).astype(np.float32)
    values[3:9, 2] = np.nan
    dataset = _dataset(values, latitude=np.linspace(-80, 80, 5), name="msl")
    whole = compute_statistics(dataset, np.arange(30))
    monkeypatch.setattr(normalization, "BLOCK_BYTES", 7 * 5 * 8 * 4)
    blocks = compute_statistics(dataset, np.arange(30))
    weights = np.broadcast_to(np.cos(np.deg2rad(dataset["latitude"].values))[:, None], values.shape)
    valid = ~np.isnan(values)
    mean = np.average(values[valid].astype(float), weights=weights[valid])
    std = np.sqrt(np.average((values[valid] - mean) ** 2, weights=weights[valid]))
    for statistics in (whole, blocks):
        np.testing.assert_allclose(statistics["mean"].values, mean, rtol=1e-13)
        np.testing.assert_allclose(statistics["std"].values, std, rtol=1e-11)


def test_other_calendars():
    dataset = _dataset(np.arange(4).reshape(2, 2, 1))
    dataset["time"] = [cftime.datetime(2000, 2, day, calendar="360_day") for day in (29, 30)]
    assert compute_statistics(dataset, ["2000-02-30"]).attrs["first_time"] == "2000-02-30T00:00"


STATISTICS = xr.Dataset(
    {
        "mean": ("variable", np.array([287.5, 101200.0, 1.2e-4])),
        "std": ("variable", np.array([15.7, 1088.0, 4.7e-4])),
        "units": ("variable", ["K", "Pa", "m"]),
    },
    coords={"variable": ["t2m", "msl", "tp"]},
    attrs={"num_times": 18},
)


def test_normalize_by_hand():
    values = np.array([287.5, 287.5 + 15.7, 287.5 - 2 * 15.7, np.nan]).reshape(1, 1, 4)
    normalized = normalize(values, STATISTICS, ["t2m"])
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized.ravel(), [0, 1, -2, np.nan], atol=1e-6)


def test_variables_are_told_by_name_not_by_position():
    values = np.stack([np.full((2, 2), 101200.0), np.full((2, 2), 287.5)])  # [V, H, W]: msl, t2m
    assert (normalize(values, STATISTICS, ["msl", "t2m"]) == 0).all()


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([("t2m", 180, 340), ("msl", 87000, 109000), ("tp", 0, 0.5)]),
    arrays(np.float32, (2, 1, 3, 2), elements=st.floats(0, 1, width=32)),
)
def test_denormalize_is_the_inverse_to_the_rounding_of_float32(case, unit):
    name, low, high = case
    values = (low + unit.astype(np.float64) * (high - low)).astype(np.float32)
    back = denormalize(normalize(values, STATISTICS, [name]), STATISTICS, [name])
    _, mean, std = (moment for moment in moments(STATISTICS.sel(variable=[name])))
    # Half a unit in the last place of the normalized value, in physical units, and of the result.
    bound = (
        np.spacing(np.abs((values - mean) / std).astype(np.float32)) * std / 2
        + np.spacing(np.abs(values)) / 2
    )
    assert (np.abs(back.astype(np.float64) - values) <= bound * 1.001).all()


def test_to_and_from_json_and_netcdf(tmp_path):
    statistics = compute_statistics(open_climate(era5(truth("t2m", "u10"))), [0, 1])
    assert statistics_from_dict(json.loads(json.dumps(statistics_to_dict(statistics)))).identical(statistics)
    save_statistics(statistics, tmp_path / "statistics.nc")
    assert load_statistics(tmp_path / "statistics.nc").identical(statistics)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content["variables"]["t2m"].update(std=0.0),
        lambda content: content["variables"]["t2m"].update(mean=float("nan")),
        lambda content: content["variables"]["t2m"].pop("std"),
        lambda content: content["variables"].clear(),
        lambda content: content.pop("provenance"),
        lambda content: content.update(variables=[1]),
    ],
)
def test_damaged_statistics_are_refused(damage):
    content = json.loads(json.dumps(statistics_to_dict(STATISTICS)))
    damage(content)
    with pytest.raises(DataError, match="statistics"):
        statistics_from_dict(content)


def test_a_file_without_statistics(tmp_path):
    with pytest.raises(ClimateFileError):
        load_statistics(tmp_path / "absent.nc")
    canonical(truth()).to_netcdf(tmp_path / "fields.nc", engine="netcdf4")
    with pytest.raises(DataError, match="t2m"):
        load_statistics(tmp_path / "fields.nc")


@pytest.mark.parametrize(
    ("values", "times", "error", "match"),
    [
        (np.full((2, 2, 3), 101325.1), [0, 1], DataError, "101325 everywhere"),
        (np.zeros((2, 2, 3)), [0, 1], DataError, "0 everywhere"),
        (np.full((2, 2, 3), np.nan), [0, 1], MissingValuesError, "t2m"),
        (np.zeros((2, 2, 3)), [], UsageError, "at least one"),
        (np.zeros((2, 2, 3)), [2], OutOfRangeError, "0 to 1"),
        (np.zeros((2, 2, 3)), [-1], OutOfRangeError, "0 to 1"),
        (np.zeros((2, 2, 3)), ["2020-01-05"], OutOfRangeError, "2020-01-05"),
    ],
)
def test_refusals(values, times, error, match):
    with pytest.raises(error, match=match):
        compute_statistics(_dataset(values), times)


def test_rounding_is_no_variance():
    """The mean of a constant is off by its last digit, and the deviations from it are not exactly zero."""
    constant = np.full((3, 7, 5), 287.65)
    with pytest.raises(DataError, match="everywhere"):
        compute_statistics(_dataset(constant, latitude=np.linspace(-77, 83, 7)), [0, 1, 2])


def test_levels_must_be_chosen():
    dataset = _dataset(np.arange(12).reshape(2, 2, 3)).expand_dims(level=[500.0, 850.0])
    with pytest.raises(CanonicalizationError, match="t850"):
        compute_statistics(dataset, [0])


def test_variables_that_do_not_fit():
    with pytest.raises(VariableNotFoundError, match="'u10'"):
        normalize(np.zeros((1, 2, 2)), STATISTICS, ["u10"])
    with pytest.raises(UsageError, match="height, width"):
        denormalize(np.zeros((1, 2, 2)), STATISTICS, ["t2m", "msl"])
