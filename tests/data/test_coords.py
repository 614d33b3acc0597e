"""Axes: found, ordered, checked. Expected values are worked out by hand or by calendar arithmetic."""

import cftime
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from climafuse.data.coords import (
    check_experiment_version,
    latitude_axis,
    level_axis,
    longitude_axis,
    same_places,
    time_axis,
)
from climafuse.errors import CanonicalizationError


def _along(name, values, **attributes):
    return xr.Dataset(coords={name: (name, values, attributes)})


def _time(values, **attributes):
    return time_axis(_along("time", values, **attributes), where="file")


# --- time ---


@pytest.mark.parametrize(
    ("values", "units", "calendar", "expected"),
    [
        ([0, 21600], "seconds since 1970-01-01", "proleptic_gregorian", "1970-01-01T06:00:00"),
        ([0, 1], "hours since 1900-01-01 00:00:00.0", "gregorian", "1900-01-01T01:00:00"),
        ([30, 90], "minutes since 1980-01-01 00:00:00", "standard", "1980-01-01T01:30:00"),
        ([0.0, 59.25], "days since 2020-01-01", "standard", "2020-02-29T06:00:00"),  # 31 + 28 days
        ([0.0, 0.041666666], "days since 2020-01-01", "standard", "2020-01-01T01:00:00"),  # 1/24, cut off
        ([1, 2], "hours since 2020-01-01 00:00:00 -05:00", "standard", "2020-01-01T07:00:00"),
    ],
)
def test_time_is_decoded_to_the_second(values, units, calendar, expected):
    axis = _time(np.array(values), units=units, calendar=calendar)
    assert axis.values.dtype == "datetime64[s]"
    assert str(axis.values[1]) == expected


def test_reference_dates_before_the_gregorian_calendar():
    # 730119 days of the proleptic Gregorian calendar (datetime.date.toordinal), and two more of the mixed
    # one.
    axis = _time(np.array([730119.0 + 2]), units="days since 0001-01-01 00:00:00", calendar="standard")
    assert str(axis.values[0]) == "2000-01-01T00:00:00"


def test_the_standard_calendar_before_1582_is_julian():
    # The day after 4 October 1582 is the 15th. Nothing is printed: warnings are errors here.
    axis = _time(np.array([0.0, 3, 4]), units="days since 1582-10-01", calendar="standard")
    assert [(date.month, date.day, date.calendar) for date in axis.values] == [
        (10, 1, "standard"), (10, 4, "standard"), (10, 15, "standard"),
    ]  # fmt: skip


def test_other_calendars_stay_cftime():
    axis = _time(np.array([59, 29]), units="days since 2001-01-01", calendar="360_day")
    assert axis.values[1] == cftime.datetime(2001, 2, 30, calendar="360_day")  # day 60 of 30-day months
    assert axis.positions.tolist() == [1, 0]


def test_decoded_datasets_are_taken_as_they_are():
    times = np.array(["2020-01-02", "2020-01-01"], dtype="datetime64[ns]")
    axis = _time(times)
    assert axis.values.astype(str).tolist() == ["2020-01-01T00:00:00", "2020-01-02T00:00:00"]
    assert axis.positions.tolist() == [1, 0]
    noleap = np.array([cftime.DatetimeNoLeap(2000, 3, 1)], dtype=object)
    assert _time(noleap).values[0] == noleap[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2020-01-01T05:59:59.999999", "2020-01-01T06:00:00"), ("2020-01-01T05:59:59.4", "2020-01-01T05:59:59")],
)
def test_times_decoded_elsewhere_are_the_nearest_second(text, expected):
    moment = np.datetime64(text, "ns")
    assert _time(np.array([moment])).values.astype(str).tolist() == [expected]
    fields = moment.astype("datetime64[us]").item().timetuple()[:6]
    microsecond = moment.astype("datetime64[us]").item().microsecond
    other = cftime.DatetimeNoLeap(*fields, microsecond)
    assert _time(np.array([other], dtype=object)).values[0].isoformat() == expected


@pytest.mark.parametrize("calendar", ["standard", "proleptic_gregorian", "noleap", "360_day"])
@pytest.mark.parametrize(
    ("reference", "hour"),
    [("2000-01-01 06", 6), ("2000-01-01T06", 6), ("2000-1-1 6", 6), ("2000-01-01 06:30", 6), ("2000-01-01", 0),
     ("2000-01-01 06 -05:00", 11), ("2000-01-01 00:00:0.0", 0)],
)  # fmt: skip
def test_the_hour_of_a_reference_time_counts_in_every_calendar(reference, hour, calendar):
    first = _time(np.array([24]), units=f"hours since {reference}", calendar=calendar).values[0]
    minute = 30 if ":30" in reference else 0
    text = first.isoformat() if first.__class__.__module__.startswith("cftime") else str(first)
    assert text == f"2000-01-02T{hour:02d}:{minute:02d}:00"


def test_valid_time_goes_before_the_time_a_forecast_was_made():
    # As cfgrib writes: time is the reference, valid_time lies along it.
    dataset = xr.Dataset(
        coords={
            "time": (
                "time",
                [0],
                {"standard_name": "forecast_reference_time", "units": "hours since 2020-01-01"},
            ),
            "valid_time": ("time", [6], {"standard_name": "time", "units": "hours since 2020-01-01"}),
        }
    )
    axis = time_axis(dataset, where="file")
    assert str(axis.values[0]) == "2020-01-01T06:00:00"
    assert axis.dimension == "time"


@pytest.mark.parametrize("dims", ["time", ("time", "step")])
def test_valid_time_goes_before_an_initial_time_that_is_called_time(dims):
    # As xarray stores what cfgrib opened: both have the standard name "time", and only the initial one is a dimension.
    since = {"standard_name": "time", "units": "hours since 2020-01-01"}
    valid = np.array([6, 30]) if dims == "time" else np.array([[6], [30]])
    dataset = xr.Dataset(coords={"time": ("time", [0, 24], since), "valid_time": (dims, valid, since)})
    axis = time_axis(dataset, where="file")
    assert axis.values.astype(str).tolist() == ["2020-01-01T06:00:00", "2020-01-02T06:00:00"]
    assert axis.dimension == "time"


def test_packed_coordinates_are_unpacked():
    since = {"units": "hours since 2020-01-01", "scale_factor": 6.0}
    assert str(_time(np.array([0, 1], dtype="i2"), **since).values[1]) == "2020-01-01T06:00:00"
    packed = _along("lat", np.array([0, 50], dtype="i2"), scale_factor=0.1, add_offset=40.0)
    assert latitude_axis(packed, where="file").values.tolist() == [40.0, 45.0]


@pytest.mark.parametrize(
    ("values", "attributes", "match"),
    [
        ([0, 1], {"units": "hours since 2020-01-01 00:00 EST"}, "instead of EST"),
        (
            [0, 1],
            {"units": "hours since 2020-01-01", "standard_name": "forecast_reference_time"},
            "initial time",
        ),
        ([0, 1], {}, "no units"),
        ([0, 1], {"units": "hours"}, "units 'hours'"),
        ([0, 1], {"units": "hours since yesterday"}, "cannot|decoded"),
        ([3, 3], {"units": "hours since 2020-01-01"}, "2020-01-01T03:00 more than once"),
        ([0.0, np.nan], {"units": "hours since 2020-01-01"}, "missing times"),
        ([], {"units": "hours since 2020-01-01"}, "no times"),
        (["a", "b"], {"units": "hours since 2020-01-01"}, "values"),
    ],
)
def test_times_that_would_need_a_guess(values, attributes, match):
    with pytest.raises(CanonicalizationError, match=match):
        _time(np.array(values), **attributes)


def test_no_time_at_all():
    with pytest.raises(CanonicalizationError, match="a time coordinate"):
        time_axis(_along("latitude", [0.0]), where="file")


def test_two_dimensions_of_time():
    dataset = xr.Dataset(
        coords={"valid_time": (("init", "lead"), [[0, 6], [24, 30]], {"units": "hours since 2020-01-01"})}
    )
    with pytest.raises(CanonicalizationError, match="init, lead"):
        time_axis(dataset, where="file")


# --- latitude and longitude ---


@pytest.mark.parametrize(
    ("source", "expected", "positions"),
    [
        ([0, 90, 180, 270], [0, 90, 180, 270], [0, 1, 2, 3]),
        ([-180, -90, 0, 90], [0, 90, 180, 270], [2, 3, 0, 1]),
        ([270, 180, 90, 0], [0, 90, 180, 270], [3, 2, 1, 0]),
        ([-10.5, 0.0, 10.5], [0, 10.5, 349.5], [1, 2, 0]),
        ([340.0, 350.0, 360.0, 370.0], [0, 10, 340, 350], [2, 3, 0, 1]),
        ([350.1, 370.1], [10.1, 350.1], [1, 0]),  # 370.1 % 360 is 10.100000000000023
        ([-1e-9, 1.0], [0.0, 1.0], [0, 1]),  # not 360
        (np.float32([-1.0, -4e-6, 1.0]), [0.0, 1.0, 359.0], [1, 2, 0]),  # sums of steps in float32
    ],
)
def test_longitudes(source, expected, positions):
    axis = longitude_axis(_along("lon", np.array(source, dtype=float)), where="file")
    assert axis.values.tolist() == expected
    assert axis.positions.tolist() == positions
    assert axis.twins == ()


@pytest.mark.parametrize(
    ("source", "expected", "twins"),
    [
        ([0, 120, 240, 360], [0, 120, 240], ((0, 3),)),
        ([-180, -60, 60, 180], [60, 180, 300], ((0, 3),)),
    ],
)
def test_a_meridian_that_is_there_twice(source, expected, twins):
    axis = longitude_axis(_along("lon", np.array(source, dtype=float)), where="file")
    assert axis.values.tolist() == expected
    assert axis.twins == twins


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(-360, 360), st.booleans())
def test_longitudes_keep_their_meridians(num, start, backwards):
    """Whatever the convention: ascending in [0, 360), and every value is the meridian of its position."""
    source = start + np.arange(num) * (360.0 / num)
    source = source[::-1] if backwards else source
    axis = longitude_axis(_along("lon", source), where="file")
    assert (np.diff(axis.values) > 0).all()
    assert axis.values[0] >= 0
    assert axis.values[-1] < 360
    turned = source[axis.positions] - axis.values
    np.testing.assert_allclose(turned, np.round(turned / 360) * 360, atol=1e-5)


def test_latitudes_south_to_north():
    axis = latitude_axis(_along("latitude", np.array([90.0, 0.0, -90.0])), where="file")
    assert axis.values.tolist() == [-90, 0, 90]
    assert axis.positions.tolist() == [2, 1, 0]


def test_coordinates_are_found_by_attributes_before_names():
    dataset = xr.Dataset(
        coords={
            "y": ("rows", [10.0, 20.0], {"standard_name": "latitude"}),
            "lat": ("other", [1.0], {}),
            "x": ("columns", [5.0, 6.0], {"units": "degreeE"}),
        }
    )
    assert latitude_axis(dataset, where="file").dimension == "rows"
    assert longitude_axis(dataset, where="file").values.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("dataset", "match"),
    [
        (_along("lat", [0.0, 0.0]), "0 twice"),
        (_along("lat", [0.0, 95.0]), "-90 to 90"),
        (_along("lat", [0.0, np.nan]), "missing"),
        (_along("lat", [0.0, 1.0], units="radians"), "radians"),
        (_along("y", [0.0, 1e6], axis="Y", units="m"), "units 'm'"),
        (_along("row", [0.0]), "a latitude coordinate"),
        (xr.Dataset(coords={"lat": (("y", "x"), np.zeros((2, 2)))}), "curvilinear"),
        (
            xr.Dataset(coords={n: (n, [0.0], {"standard_name": "latitude"}) for n in ("lat_u", "lat_v")}),
            "lat_u, lat_v",
        ),
    ],
)
def test_latitudes_that_would_need_a_guess(dataset, match):
    with pytest.raises(CanonicalizationError, match=match):
        latitude_axis(dataset, where="file")


@pytest.mark.parametrize("source", [[0.0, 5.0, 5.0], [0.0, 200.0, 400.0], [0.0, np.inf], [1000.0]])
def test_longitudes_that_would_need_a_guess(source):
    with pytest.raises(CanonicalizationError):
        longitude_axis(_along("lon", np.array(source)), where="file")


def _field_on(mapping, **coordinates):
    """A field on a grid of some mapping, and its coordinates: name -> (values, attributes)."""
    return xr.Dataset(
        {"t2m": (("y", "x"), np.zeros((2, 2)), {"grid_mapping": "crs"}), "crs": ((), 0, mapping)},
        {name: (dim, values, attributes) for name, (dim, values, attributes) in coordinates.items()},
    )


_ROTATED = {"grid_mapping_name": "rotated_latitude_longitude", "grid_north_pole_latitude": 39.25}


@pytest.mark.parametrize(
    ("dataset", "match"),
    [
        (
            _along("rlat", [0.0, 1.0], standard_name="grid_latitude", units="degrees", axis="Y"),
            "grid_latitude",
        ),
        (_along("lat", [0.0, 1.0], standard_name="grid_latitude", units="degrees"), "grid_latitude"),
        (_along("lat", [0.0, 1.0], standard_name="projection_y_coordinate"), "projection_y_coordinate"),
        (_along("y", [0.0, 1.0], axis="Y"), "axis 'Y' without"),
        (_field_on(_ROTATED, lat=("y", [0.0, 1.0], {"units": "degrees"})), "rotated_latitude_longitude"),
        (_field_on(_ROTATED, rlat=("y", [0.0, 1.0], {"units": "degrees", "axis": "Y"})), "rotated_latitude"),
        (_field_on({"grid_mapping_name": "lambert_conformal_conic"}, lat=("y", [0.0, 1.0], {})), "lambert"),
    ],
)
def test_coordinates_of_other_grids_are_no_latitudes(dataset, match):
    with pytest.raises(CanonicalizationError, match=match):
        latitude_axis(dataset, where="file")
    with pytest.raises(CanonicalizationError, match=match):
        latitude_axis(xr.decode_cf(dataset, decode_coords="all"), where="file")


@pytest.mark.parametrize(
    "dataset",
    [
        _along("lat", [0.0, 1.0]),  # WeatherBench
        _along(
            "lat", [0.0, 1.0], standard_name="latitude", long_name="Latitude of Grid Cell Centers"
        ),  # CESM
        _along("LAT", [0.0, 1.0], standard_name="Latitude", units="degrees"),
        _along("y", [0.0, 1.0], axis="Y", units="degrees"),
        _field_on({"grid_mapping_name": "latitude_longitude"}, lat=("y", [0.0, 1.0], {"units": "degrees"})),
        _field_on({"crs_wkt": "GEOGCS[...]"}, lat=("y", [0.0, 1.0], {})),
        # On Mercator's map latitude is a function of y alone.
        _field_on({"grid_mapping_name": "mercator"}, lat=("y", [0.0, 1.0], {"standard_name": "latitude"})),
        # A mapping that another field refers to, or that regridding left behind without its variable.
        _field_on(_ROTATED, lat=("y", [0.0, 1.0], {"units": "degrees_north"})).drop_vars("crs"),
    ],
)
def test_what_may_be_a_latitude(dataset):
    assert latitude_axis(dataset, where="file").values.tolist() == [0, 1]


# --- level, experiment version ---


@pytest.mark.parametrize(
    ("name", "values", "attributes", "expected"),
    [
        ("plev", [85000.0, 50000.0], {"units": "Pa"}, [500, 850]),
        ("lev", [850.0, 500.0], {"units": "hPa"}, [500, 850]),
        ("pressure_level", [1000.0, 850.0], {"units": "hPa"}, [850, 1000]),
        ("level", [500, 850], {}, [500, 850]),  # ARCO-ERA5
        ("height", [500.0], {"standard_name": "air_pressure", "units": "millibars"}, [500]),
        ("lev", [850.0, 500.0], {"units": "hPa", "standard_name": "PLE_level"}, [500, 850]),  # MERRA-2
        ("lev", [850.0, 500.0], {"units": "millibar", "long_name": "altitude"}, [500, 850]),  # GrADS servers
        ("pressure_level", [500.0], {"units": "hPa", "standard_name": "pressure_level"}, [500]),  # ncWMS
        ("pressure_level", [4, 137], {}, [4, 137]),
        ("level", [4, 137], {"standard_name": "air_pressure"}, [4, 137]),
        ("level", [850], {}, [850]),
        # WeatherBench 2 and ARCO-ERA5, by their data guides.
        ("level", [50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000], {}, "as they are"),
        (
            "level",
            [
                1,
                2,
                3,
                5,
                7,
                10,
                20,
                30,
                50,
                70,
                100,
                125,
                150,
                175,
                200,
                225,
                250,
                300,
                350,
                400,
                450,
                500,
                550,
                600,
                650,
                700,
                750,
                775,
                800,
                825,
                850,
                875,
                900,
                925,
                950,
                975,
                1000,
            ],
            {},
            "as they are",
        ),
    ],
)
def test_levels_in_hectopascal(name, values, attributes, expected):
    axis = level_axis(_along(name, values, **attributes), name, where="file")
    assert axis.values.tolist() == (values if expected == "as they are" else expected)


@pytest.mark.parametrize(
    ("name", "attributes"),
    [("lev", {"units": "layer"}), ("lev", {}), ("height", {"units": "m"}), ("level", {"units": "1"})],
)
def test_model_levels_and_heights_are_no_pressure(name, attributes):
    assert level_axis(_along(name, [1.0, 2.0], **attributes), name, where="file") is None


_HYBRID = "atmosphere_hybrid_sigma_pressure_coordinate"


@pytest.mark.parametrize("values", [[500.0, 850.0, 992.5], [0.5, 0.85, 0.9925]])
@pytest.mark.parametrize(
    "attributes",
    [
        {"standard_name": _HYBRID, "formula_terms": "a: hyam b: hybm p0: P0 ps: PS"},  # CESM
        {"standard_name": "atmosphere_sigma_coordinate"},
        {"standard_name": "atmosphere_ln_pressure_coordinate"},
        {"standard_name": "model_level_number"},
        {"standard_name": "sea_water_pressure"},
        {"long_name": "hybrid level at midpoints (1000*(A+B))"},
        {"long_name": "model level number"},
        {"formula_terms": "sigma: lev ps: PS ptop: PTOP"},
    ],
)
@pytest.mark.parametrize("name", ["lev", "level"])
def test_levels_that_follow_the_ground_are_no_pressure_in_any_unit(name, attributes, values):
    for units in ({"units": "hPa"}, {}):
        assert level_axis(_along(name, values, **attributes, **units), name, where="file") is None


def test_reference_pressures_of_layers_are_no_pressure_levels():
    dataset = _along("lev", [500.0, 850.0], standard_name=_HYBRID, units="hPa")
    reference = ("lev", [50000.0, 85000.0], {"standard_name": "air_pressure", "units": "Pa"})
    assert level_axis(dataset.assign_coords(plev=reference), "lev", where="file") is None


@pytest.mark.parametrize(
    "values", [[1], [1, 2, 3], [135, 136, 137], [10, 20, 30], [5, 15, 25], [85000, 50000, 10000], [0, 100]]
)
def test_what_a_level_without_a_unit_could_also_be(values):
    assert level_axis(_along("level", np.array(values)), "level", where="file") is None


@pytest.mark.parametrize(
    ("name", "attributes"),
    [("pressure_level", {}), ("isobaricInhPa", {}), ("level", {"units": "hPa"}),
     ("level", {"standard_name": "air_pressure"})],
)  # fmt: skip
def test_no_pressure_is_as_high_as_one_in_pascal(name, attributes):
    with pytest.raises(CanonicalizationError, match="10000 to 85000 hPa"):
        level_axis(_along(name, [85000.0, 50000.0, 10000.0], **attributes), name, where="file")


@pytest.mark.parametrize("values", [[1, 2], [137, 136, 135, 134]])
def test_numbers_of_layers_without_a_unit_are_no_pressure(values):
    said = (
        {} if len(values) > 2 else {"long_name": "model_level_number"}
    )  # as the Climate Data Store wrote it
    assert level_axis(_along("level", values, **said), "level", where="file") is None


def test_single_and_double_precision_are_one_grid():
    longitude = np.arange(3600) / 10
    assert same_places(longitude, np.round(longitude.astype(np.float32).astype(np.float64), 6))
    assert not same_places(longitude, longitude + 0.01)
    assert not same_places(longitude, longitude[:-1])


def test_a_single_level_without_dimension():
    dataset = xr.Dataset(coords={"level": ((), 850, {"units": "hPa"})})
    axis = level_axis(dataset, None, where="file")
    assert (axis.dimension, axis.values.tolist()) == (None, [850])


@pytest.mark.parametrize(
    "dataset",
    [
        xr.Dataset({"expver": ("valid_time", ["0001", "0005"])}),
        xr.Dataset({"expver": (("valid_time", "n"), np.array([[b"1"], [b"5"]], dtype="S1"))}),
        xr.Dataset({"tp": (("expver", "time"), np.zeros((2, 1)))}, coords={"expver": [1, 5]}),
        xr.Dataset({"tp": (("expver", "time"), np.zeros((2, 1)))}),
    ],
)
def test_mixed_experiment_versions_are_refused(dataset):
    with pytest.raises(CanonicalizationError, match="expver"):
        check_experiment_version(dataset, where="file")


@pytest.mark.parametrize(
    "dataset",
    [
        xr.Dataset({"expver": ("valid_time", ["0001", "0001"])}),
        xr.Dataset({"expver": (("valid_time", "n"), np.array([list("0001")] * 2, dtype="S1"))}),
        xr.Dataset({"expver": ((), "0005")}),
        xr.Dataset(),
    ],
)
def test_one_experiment_version_is_fine(dataset):
    check_experiment_version(dataset, where="file")
