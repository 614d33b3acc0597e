"""Anomalies re-based on the training times: exact against xarray's own grouping, and told nothing of other times."""

from __future__ import annotations

from pathlib import Path

import cftime
import numpy as np
import pytest
import xarray as xr

from climafuse.data.anomalies import rebase, rebase_as
from climafuse.data.normalization import compute_statistics, statistics_to_dict
from climafuse.data.samples import sample_path
from climafuse.data.sources import open_climate
from climafuse.data.store import TrainingStore, prepare
from climafuse.data.window import Box, select_window
from climafuse.errors import OutOfRangeError, UsageError
from climafuse.facts import extract

TRAIN = np.arange(26 * 12)  # 1979 to 2004


@pytest.fixture(scope="module")
def sst() -> xr.Dataset:
    with open_climate(sample_path("sst_anomaly")) as dataset:
        return dataset.load()


@pytest.fixture(scope="module")
def expected(sst: xr.Dataset) -> xr.DataArray:
    """By xarray's grouping, in double precision."""
    grouped = sst["sst_anomaly"].astype(np.float64).groupby("time.month")
    normal = sst["sst_anomaly"].astype(np.float64).isel(time=TRAIN).groupby("time.month").mean("time")
    return grouped - normal


def test_each_month_is_measured_against_its_training_months(sst: xr.Dataset, expected: xr.DataArray) -> None:
    rebased = rebase(sst, TRAIN)["sst_anomaly"]
    np.testing.assert_allclose(rebased.values, expected.values, atol=1e-6)
    by_month = rebased.isel(time=TRAIN).astype(np.float64).groupby("time.month").mean("time")
    assert float(np.abs(by_month).max()) < 1e-6
    # The reference of the file, 1981 to 2010, is another: the test years were 0.05 K warmer, say.
    assert float(np.abs(rebased - sst["sst_anomaly"]).max()) > 0.3
    assert (
        rebased.attrs["baseline"] == "1979-01-01T00:00 to 2004-12-01T00:00, 312 times, each month by itself"
    )


def test_all_times_together_take_off_one_field(sst: xr.Dataset) -> None:
    rebased = rebase(sst, TRAIN[:30], "all")
    mean = sst["sst_anomaly"].isel(time=TRAIN[:30]).astype(np.float64).mean("time")
    np.testing.assert_allclose(rebased["sst_anomaly"].values, (sst["sst_anomaly"] - mean).values, atol=1e-6)
    assert rebased.attrs["anomalies"] == "all"
    assert rebased["sst_anomaly"].attrs["baseline"].endswith("30 times")


@pytest.mark.parametrize("index", [
    {"time": 5}, {"time": slice(3, 30, 4), "latitude": slice(20, 25)}, {"time": [400, 7], "longitude": [3, 80, 4]},
    {"time": 11, "latitude": 24, "longitude": 60}, {"latitude": -20},
])  # fmt: skip
def test_any_part_of_it_is_that_part_of_the_whole(
    sst: xr.Dataset, expected: xr.DataArray, index: dict[str, object]
) -> None:
    np.testing.assert_allclose(
        rebase(sst, TRAIN)["sst_anomaly"].isel(index).values,  # type: ignore[arg-type]
        expected.isel(index).values,  # type: ignore[arg-type]
        atol=1e-6,
    )


def test_nothing_of_other_times_reaches_it(sst: xr.Dataset) -> None:
    later = sst.copy(deep=True)
    later["sst_anomaly"][312:] = 40.0
    one, other = (rebase(dataset, TRAIN)["sst_anomaly"].isel(time=TRAIN).values for dataset in (sst, later))
    np.testing.assert_array_equal(one, other)


def test_the_reference_of_the_file_cancels_out(sst: xr.Dataset) -> None:
    offset = np.random.default_rng(0).normal(size=(12, 48, 96)).astype(np.float32)
    other = sst.assign(sst_anomaly=sst["sst_anomaly"] + offset[np.arange(420) % 12])
    np.testing.assert_allclose(
        rebase(other, TRAIN)["sst_anomaly"], rebase(sst, TRAIN)["sst_anomaly"], atol=2e-6
    )
    again = rebase(rebase(sst, TRAIN), TRAIN)
    np.testing.assert_allclose(again["sst_anomaly"], rebase(sst, TRAIN)["sst_anomaly"], atol=1e-6)


def test_a_cell_without_training_values_has_none(sst: xr.Dataset) -> None:
    holes = sst.copy(deep=True)
    holes["sst_anomaly"][TRAIN[::12], 24, 50] = np.nan  # January
    holes["sst_anomaly"][1, 24, 51] = np.nan  # a February: the mean is that of the others
    rebased = rebase(holes, TRAIN)["sst_anomaly"]
    assert bool(np.isnan(rebased[::12, 24, 50]).all())
    assert not bool(np.isnan(rebased[1::12, 24, 50]).any())
    others = sst["sst_anomaly"].values[TRAIN[13::12], 24, 51].astype(np.float64)
    assert float(rebased[13, 24, 51]) == pytest.approx(float(others[0] - others.mean()), abs=1e-6)


def test_months_of_other_calendars() -> None:
    times = cftime.num2date(np.arange(0, 720, 30), "days since 2000-01-16", calendar="360_day")
    values = np.arange(24.0)[:, None, None] + np.arange(6.0).reshape(2, 3)
    dataset = xr.Dataset(
        {"sst_anomaly": (("time", "latitude", "longitude"), values.astype(np.float32))},
        {"time": times, "latitude": [0.0, 10.0], "longitude": [0.0, 10.0, 20.0]},
    )
    # A month is less the same month of the first year: 0 in that year, 12 steps more in the second.
    rebased = rebase(dataset, np.arange(12))["sst_anomaly"].values
    assert (rebased[:12] == 0).all()
    assert (rebased[12:] == 12).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"season": "year"}, "one of month, all"),
        ({"steps": np.arange(7)}, "none in month 8"),
        ({"rename": "sst"}, "such as sst_anomaly"),
    ],
)
def test_what_cannot_be_rebased_is_refused(sst: xr.Dataset, change: dict[str, object], message: str) -> None:
    dataset = sst.rename(sst_anomaly="sst") if "rename" in change else sst
    with pytest.raises(UsageError, match=message):
        rebase(dataset, change.get("steps", TRAIN), change.get("season", "month"))  # type: ignore[arg-type]


def test_statistics_say_what_fields_are_measured_against(sst: xr.Dataset) -> None:
    statistics = statistics_to_dict(compute_statistics(rebase(sst, TRAIN), TRAIN))
    assert statistics["provenance"]["anomalies"] == "month"
    assert abs(statistics["variables"]["sst_anomaly"]["mean"]) < 1e-6
    again = rebase_as(sst, statistics)
    np.testing.assert_array_equal(again["sst_anomaly"], rebase(sst, TRAIN)["sst_anomaly"])
    # More times before and after are in the way of nobody; fewer, or a gap among them, are.
    np.testing.assert_array_equal(
        rebase_as(sst.isel(time=slice(0, 330)), statistics)["sst_anomaly"], again["sst_anomaly"][:330]
    )
    for lacking in (slice(312, None), slice(1, None), np.delete(np.arange(420), 100)):
        with pytest.raises(OutOfRangeError, match="312 training times, 1979-01-01T00:00 to 2004-12-01T00:00"):
            rebase_as(sst.isel(time=lacking), statistics)
    plain = statistics_to_dict(compute_statistics(sst, TRAIN))
    assert "anomalies" not in plain["provenance"]
    assert rebase_as(sst, plain) is sst


def test_a_store_holds_them_and_remembers(tmp_path: Path, expected: xr.DataArray) -> None:
    periods = {
        "train": ("1979-01", "2004-12"), "validation": ("2005-04", "2006-10"), "test": ("2007-01", "2013-12"),
    }  # fmt: skip
    store = prepare(sample_path("sst_anomaly"), tmp_path / "store", splits=periods, anomalies="month")
    assert [len(store.splits.indices(name)) for name in periods] == [312, 19, 84]  # type: ignore[arg-type]
    assert store.statistics.attrs["anomalies"] == "month"
    assert store.provenance["variables"]["sst_anomaly"]["baseline"].startswith("1979-01-01T00:00 to 2004-12")
    december = store.window(227, Box(0, 215, 11, 52))  # December 1997
    part = expected.isel(time=227).sel(latitude=december.latitude, longitude=december.longitude)
    np.testing.assert_allclose(december.field("sst_anomaly")[0], part.values, atol=1e-6)
    assert TrainingStore.open(tmp_path / "store").statistics.attrs["anomalies"] == "month"


def test_the_box_of_the_region_holds_just_its_cells(sst: xr.Dataset) -> None:
    # Then the mean anomaly of the window is the Niño 3.4 index.
    window = select_window(rebase(sst, TRAIN), time="1997-12", box=Box(0, 215, 11, 52))
    facts = {fact.kind: fact.value for fact in extract(window, kinds=["anomaly", "nino34", "enso"])}
    assert facts["nino34"] == pytest.approx(facts["anomaly"], abs=1e-6)
    assert facts["enso"] == "El Niño"
