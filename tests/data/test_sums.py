"""Sums over different intervals are no one variable. What the files mean is written down by hand."""

import cftime
import numpy as np
import pytest
import xarray as xr

from climafuse.data.sources import open_climate
from climafuse.data.variables import find_variable
from climafuse.errors import CanonicalizationError, VariableNotFoundError
from tests.data.fixtures import arco, era5, truth


def _sums(hours, *, bounds=None, calendar="standard", **attributes):
    """Precipitation at these hours of 2020; bounds are how many hours before each time they begin."""
    dataset = era5(truth("tp", num_times=len(hours)))
    time = {"units": "hours since 2020-01-01", "calendar": calendar, "standard_name": "time"}
    dataset = dataset.assign_coords(valid_time=("valid_time", np.array(hours, dtype=float), time))
    del dataset["tp"].attrs["GRIB_stepType"]
    dataset["tp"].attrs |= attributes
    if bounds is not None:
        begin = np.array(hours) - np.array(bounds)
        dataset["valid_time"].attrs["bounds"] = "time_bounds"
        dataset["time_bounds"] = (("valid_time", "nv"), np.stack([begin, np.array(hours)], axis=1))
    return dataset


def _open(tmp_path, *datasets):
    paths = []
    for number, dataset in enumerate(datasets):
        paths.append(tmp_path / f"{number}.nc")
        dataset.to_netcdf(paths[-1])
    with open_climate(paths) as opened:
        return opened["tp"].values.shape[0]


ONE_HOUR = {"cell_methods": "time: sum (interval: 1 hour)"}
JOINED = {
    "one interval": (_sums([1, 2, 3]), _sums([4, 5, 6])),
    "hours of which some are lacking": (_sums([1, 2, 3, 9]), _sums([20, 21, 22])),
    "a single time, of which nothing is known": (_sums([1, 2, 3]), _sums([9])),
    "times at random": (_sums([0, 1, 10, 40]), _sums([46, 52, 58])),
    "another step, and the interval stated": (_sums([1, 2, 3], **ONE_HOUR), _sums([6, 12, 18], **ONE_HOUR)),
    "another step, and the interval by bounds": (
        _sums([1, 2, 3], bounds=[1, 1, 1]),
        _sums([6, 12, 18], bounds=[1, 1, 1]),
    ),
    "bounds without extent": (_sums([1, 2, 3], bounds=[0, 0, 0]), _sums([6], bounds=[1])),
    "months": (
        _sums([744, 1440], bounds=[744, 696], cell_methods="time: sum"),  # January and February of 2020
        _sums([2184], bounds=[744], cell_methods="time: sum"),
    ),
    "steps of 7 and 8 hours": (_sums([0, 7, 15, 23]), _sums([30, 38, 45])),
}


@pytest.mark.parametrize("case", JOINED)
def test_sums_over_one_interval_are_joined(case, tmp_path):
    one, other = JOINED[case]
    assert _open(tmp_path, one, other) == one["tp"].sizes["valid_time"] + other["tp"].sizes["valid_time"]


DIFFERENT = {
    "time steps": (_sums([1, 2, 3]), _sums([6, 12, 18]), "1 h by its time step", "6 h by its time step"),
    "some hours are lacking": (_sums([1, 2, 3, 9]), _sums([12, 18, 24]), "1 h", "6 h"),
    "time bounds": (
        _sums([6, 12, 18], bounds=[6, 6, 6]),
        _sums([24, 30, 36], bounds=[1, 1, 1]),
        "1 h by its time bounds",
        "6 h by its time bounds",
    ),
    "bounds and steps": (
        _sums([6, 12, 18], bounds=[1, 1, 1]), _sums([24, 30, 36]),
        "1 h by its time bounds", "6 h by its time step",
    ),
    "bounds of single times": (_sums([6], bounds=[6]), _sums([24], bounds=[24]), "6 h", "24 h"),
    "bounds against what is stated": (
        _sums([6], bounds=[6], **ONE_HOUR), _sums([24], bounds=[24], **ONE_HOUR), "6 h", "24 h",
    ),
    "a calendar of 360 days": (
        _sums([1, 2], calendar="360_day"), _sums([24, 48], calendar="360_day"), "1 h", "24 h",
    ),
    "a day and months": (
        _sums([24, 48], cell_methods="time: sum"),
        _sums([744, 1440, 2184], cell_methods="time: sum"),
        "24 h", "720 h",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENT)
def test_sums_over_different_intervals_are_refused(case, tmp_path):
    """Both intervals, what tells them and what to do stand in the error, whichever file comes first."""
    one, other, *intervals = DIFFERENT[case]
    for pair in ((one, other), (other, one)):
        with pytest.raises(CanonicalizationError) as caught:
            _open(tmp_path, *pair)
        assert intervals[0] in caught.value.expected
        assert intervals[1] in caught.value.received
        assert {"0.nc", "1.nc"} <= set(str(caught.value).replace(":", "/").replace(" ", "/").split("/"))
        assert "cell_methods 'time: sum (interval: 1 hour)'" in caught.value.remedy


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("calendar", ["standard", "360_day"])
def test_sums_since_the_start_of_the_day_are_refused(calendar, decoded):
    """As ERA5-Land has them, where the bounds of the time tell: 1 hour at 01:00, 3 hours at 03:00."""
    growing = _sums([1, 2, 3], bounds=[1, 2, 3], calendar=calendar)
    source = xr.decode_cf(growing) if decoded else growing
    if decoded and calendar == "360_day":
        assert isinstance(source["time_bounds"].values[0, 0], cftime.Datetime360Day)
    with pytest.raises(CanonicalizationError, match=r"1 h by its time bounds .*received 3 h"):
        open_climate(source)


def test_bounds_that_tell_nothing_are_left_alone():
    instants = _sums([1, 2, 3], bounds=[0, 0, 0])
    assert "tp" in open_climate(instants)
    absent = _sums([1, 2, 3])
    absent["valid_time"].attrs["bounds"] = "nowhere"
    assert "tp" in open_climate(absent)


@pytest.mark.parametrize("hours", [6, 12, 24])
def test_longer_sums_of_weatherbench_are_not_the_hourly_one(hours):
    name = f"total_precipitation_{hours}hr"
    standard_name = {"standard_name": "lwe_thickness_of_precipitation_amount"}
    dataset = arco(truth("t2m", "tp")).rename(total_precipitation=name)
    dataset[name].attrs |= standard_name
    opened = open_climate(dataset)
    assert list(opened.data_vars) == ["t2m"]
    assert opened.attrs["ignored_variables"] == name
    with pytest.raises(VariableNotFoundError, match=name):
        open_climate(dataset, variables=["tp"])
    with pytest.raises(VariableNotFoundError):
        find_variable(name, standard_name)
