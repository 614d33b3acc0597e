"""Opening files: whatever the disguise, the same fields come out; what is broken is said in one line."""

import pickle
import re
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from climafuse.data.lazy import StoredField
from climafuse.data.sources import available_variables, load_fields, open_climate, select_variables
from climafuse.data.window import select_window
from climafuse.errors import (
    CanonicalizationError,
    ClimafuseError,
    ClimateFileError,
    UsageError,
    VariableNotFoundError,
)
from tests.data.fixtures import Truth, arco, canonical, era5, merra2, truth, write

KINDS = ["netcdf4", "netcdf3", "netcdf3-record", "zarr2", "zarr3"]


def _assert_same(opened, known):
    """Equal to the last bit, coordinates included."""
    expected = canonical(known)
    assert set(opened.data_vars) == set(expected.data_vars)
    for name in ("time", "latitude", "longitude"):
        np.testing.assert_array_equal(opened[name].values, expected[name].values)
    for name in expected.data_vars:
        assert opened[name].dims == ("time", "latitude", "longitude")
        assert opened[name].dtype == np.float32
        np.testing.assert_array_equal(opened[name].values, expected[name].values)


# The same fields out of every product and format.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("product", [era5, merra2, arco])
def test_products_and_formats(product, kind, tmp_path):
    known = truth("t2m", "u10", "v10", "msl")
    known.fields["t2m"][1, 2, 3] = np.nan
    path = write(product(known), tmp_path / "file", kind)
    with open_climate(path) as opened:
        _assert_same(opened, known)
        assert opened["msl"].attrs["units"] == "Pa"
        assert opened["msl"].attrs["standard_name"] == "air_pressure_at_mean_sea_level"
        # MERRA-2's time-averaged collection stays a mean.
        assert opened["t2m"].attrs["cell_methods"] == ("time: mean" if product is merra2 else "time: point")


UNITS = {
    "t2m": {"K": (1, 0), "degC": (1, 273.15), "celsius": (1, 273.15), "degF": (5 / 9, 459.67 * 5 / 9)},
    "msl": {"Pa": (1, 0), "hPa": (100, 0), "mbar": (100, 0)},
    "u10": {"m s-1": (1, 0), "m s**-1": (1, 0), "m/s": (1, 0), "km h-1": (1 / 3.6, 0)},
    "tp": {"m": (1, 0), "mm": (1e-3, 0), "kg m-2": (1e-3, 0)},
}
NAMES = {
    "t2m": ["t2m", "2t", "T2M", "2m_temperature", "tas"],
    "msl": ["msl", "SLP", "mean_sea_level_pressure", "psl"],
    "u10": ["u10", "U10M", "10m_u_component_of_wind", "uas"],
    "tp": ["tp", "total_precipitation"],
}
LATITUDE, LONGITUDE, TIME = ["latitude", "lat", "y"], ["longitude", "lon", "x"], ["time", "valid_time", "t"]


@st.composite
def disguises(draw):
    """A way to write the same fields: names, units, conventions, orders, types."""
    return {
        "names": {name: draw(st.sampled_from(spellings)) for name, spellings in NAMES.items()},
        "units": {name: draw(st.sampled_from(sorted(spellings))) for name, spellings in UNITS.items()},
        "axes": [draw(st.sampled_from(names)) for names in (TIME, LATITUDE, LONGITUDE)],
        "order": draw(st.permutations(range(3))),
        "southward": draw(st.booleans()),
        "shift": draw(st.integers(0, 7)),  # where the row of longitudes is cut
        "centered": draw(st.booleans()),  # [-180, 180) or [0, 360)
        "time_order": draw(st.permutations(range(4))),
        "time_units": draw(st.sampled_from(["seconds", "minutes", "hours", "days"])),
        "extra_dimension": draw(st.booleans()),
    }


def _disguise(known: Truth, how) -> xr.Dataset:
    time_name, latitude_name, longitude_name = how["axes"]
    rows = slice(None, None, -1) if how["southward"] else slice(None)
    columns = np.roll(np.arange(len(known.longitude)), how["shift"])
    steps = list(how["time_order"])
    longitude = known.longitude[columns]
    longitude = np.where(longitude >= 180, longitude - 360, longitude) if how["centered"] else longitude
    length = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}[how["time_units"]]
    seconds = (known.time[steps] - np.datetime64("2000-01-01")) / np.timedelta64(1, "s")
    dims = [(time_name, latitude_name, longitude_name)[axis] for axis in how["order"]]
    fields = {}
    for name, values in known.fields.items():
        scale, offset = UNITS[name][how["units"][name]]
        stored = (values.astype(np.float64) - offset) / scale
        stored = stored[steps][:, rows][:, :, columns].transpose(how["order"])
        if how["extra_dimension"]:
            fields[how["names"][name]] = (["number", *dims], stored[None], {"units": how["units"][name]})
        else:
            fields[how["names"][name]] = (dims, stored, {"units": how["units"][name]})
    return xr.Dataset(
        fields,
        coords={
            time_name: (
                time_name,
                seconds / length,
                {"units": f"{how['time_units']} since 2000-01-01", "axis": "T"},
            ),
            latitude_name: (latitude_name, known.latitude[rows], {"units": "degrees_north"}),
            longitude_name: (longitude_name, longitude, {"standard_name": "longitude"}),
        },
    )


@settings(max_examples=50, deadline=None)
@given(disguises())
def test_any_disguise_gives_the_same_tensor(how):
    known = truth("t2m", "msl", "u10", "tp", seed=1)
    _assert_same(open_climate(_disguise(known, how)), known)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(disguises(), st.sampled_from(KINDS))
def test_any_disguise_in_a_file_gives_the_same_tensor(tmp_path, how, kind):
    known = truth("t2m", "msl", "u10", "tp", seed=2)
    path = tmp_path / "file"
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    with open_climate(write(_disguise(known, how), path, kind)) as opened:
        _assert_same(opened, known)


@settings(max_examples=40, deadline=None)
@given(disguises(), st.data())
def test_any_selection_equals_the_selection_of_the_whole(how, data):
    known = truth("t2m", "msl", "u10", "tp", seed=3)
    opened, whole = open_climate(_disguise(known, how))["t2m"], canonical(known)["t2m"]
    selection = {}
    for dim in opened.dims:
        index = st.integers(-opened.sizes[dim], opened.sizes[dim] - 1)
        bounds = st.integers(0, opened.sizes[dim])
        selection[dim] = data.draw(
            st.one_of(
                index,
                st.lists(index, min_size=0, max_size=5),
                st.builds(slice, bounds, bounds, st.sampled_from([None, 1, 2, -1])),
            )
        )
    np.testing.assert_array_equal(opened.isel(selection).values, whole.isel(selection).values)


def test_empty_and_pointwise_selections():
    known = truth("t2m")
    opened = open_climate(era5(known))["t2m"]
    assert opened.isel(time=slice(0, 0, -1)).values.shape == (0, 7, 8)
    pointwise = opened.isel(
        latitude=xr.DataArray([1, 5], dims="place"), longitude=xr.DataArray([6, 0], dims="place")
    )
    np.testing.assert_array_equal(pointwise.values, known.fields["t2m"][:, [1, 5], [6, 0]])


def test_opening_a_canonical_dataset_changes_nothing(tmp_path):
    known = truth()
    once = open_climate(write(merra2(known), tmp_path / "file.nc", "netcdf4"))
    twice = open_climate(once)
    _assert_same(twice, known)
    assert twice["t2m"].attrs == once["t2m"].attrs
    assert twice.attrs == once.attrs


def test_nothing_is_read_before_it_is_asked_for(tmp_path, monkeypatch):
    path = write(era5(truth()), tmp_path / "file.nc", "netcdf4")
    read, reads = StoredField.read, []
    monkeypatch.setattr(StoredField, "read", lambda field, *a: reads.append(field.where) or read(field, *a))
    opened = open_climate(path, variables=["u10", "ws10"])
    part = opened.isel(time=-1, latitude=slice(2, 4))
    assert reads == []
    assert part["u10"].values.shape == (2, 8)
    assert [re.findall(r"'(\w+)'", where) for where in reads] == [["u10"]]


# Missing values and packing.


@pytest.mark.parametrize(
    "attributes", [{}, {"_FillValue": np.float32(1e15)}, {"missing_value": np.float32(1e15)}]
)
def test_the_fill_value_of_merra2_is_missing_with_and_without_attribute(attributes):
    dataset = merra2(truth("t2m"))
    dataset["T2M"].attrs = {"units": "K"} | attributes
    dataset["T2M"].values[0, 0, 0] = 1e15
    values = open_climate(dataset)["t2m"].values
    assert np.isnan(values).sum() == 1
    assert np.nanmax(values) < 310


def test_packed_integers_are_unpacked_by_hand():
    dataset = era5(truth("t2m", num_times=1))
    # 0.5 * 100 + 280 = 330; -32767 and -32768 are missing; units in degC on top: + 273.15.
    packed = np.full((1, 7, 8), 100, dtype=np.int16)
    packed[0, 0, 0], packed[0, 0, 1], packed[0, 0, 2] = -32767, -32768, -100
    attributes = {"scale_factor": 0.5, "add_offset": 280.0, "_FillValue": np.int16(-32767)}
    attributes |= {"missing_value": np.array([-32768], dtype=np.int16), "units": "degC"}
    dataset["t2m"] = (dataset["t2m"].dims, packed, attributes)
    values = open_climate(dataset)["t2m"].values[0, -1]  # stored north to south
    assert np.isnan(values[:2]).all()
    assert values[2:4].tolist() == [np.float32(-50 + 280 + 273.15), np.float32(50 + 280 + 273.15)]


def test_packing_and_unit_are_both_undone():
    dataset = era5(truth("msl", num_times=1))
    packed = np.full((1, 7, 8), 100, dtype=np.int16)
    attributes = {"scale_factor": 0.1, "add_offset": 1000.0, "units": "hPa"}
    dataset["msl"] = (dataset["msl"].dims, packed, attributes)
    assert (open_climate(dataset)["msl"].values == 101000).all()  # (0.1 · 100 + 1000) hPa


def test_unsigned_integers_in_disguise():
    dataset = era5(truth("t2m", num_times=1))
    stored = np.full((1, 7, 8), 44, dtype=np.int8)
    stored[0, 0, 0], stored[0, 0, 1] = -6, -1  # as unsigned bytes: 250 and 255
    dataset["t2m"] = (
        dataset["t2m"].dims,
        stored,
        {"units": "K", "_Unsigned": "true", "_FillValue": np.int8(-1)},
    )
    values = open_climate(dataset)["t2m"].values[0, -1]
    assert values[0] == 250
    assert np.isnan(values[1])
    assert values[2] == 44


def test_zeros_of_zarr_2_are_values(tmp_path):
    """Zarr 2 gives arrays the fill value 0 unless told otherwise; a dry hour is not a missing one."""
    known = truth("tp")
    known.fields["tp"][:, :3] = 0
    dataset = era5(known)
    dataset["tp"].attrs["_FillValue"] = np.float32(0)
    opened = open_climate(write(dataset, tmp_path / "file.zarr", "zarr2"))
    assert not np.isnan(opened["tp"].values).any()
    assert (opened["tp"].values == 0).sum() >= 4 * 3 * 8


def test_an_unreadable_attribute_is_named():
    dataset = era5(truth("t2m"))
    dataset["t2m"].attrs["scale_factor"] = "one"
    with pytest.raises(CanonicalizationError, match="scale_factor"):
        open_climate(dataset)


@pytest.mark.parametrize(
    ("dtype", "attributes"),
    [
        ("f4", {"valid_range": np.array([0, 300], dtype=np.float32)}),
        ("f4", {"valid_range": [0.0, 300.0]}),  # as Zarr has it
        ("f4", {"valid_min": np.float32(0), "valid_max": np.float32(300)}),
        ("i2", {"scale_factor": 0.5, "add_offset": 250.0, "valid_range": np.array([-500, 100], dtype=np.int16)}),
        ("i2", {"scale_factor": 0.5, "add_offset": 250.0, "valid_range": np.array([0, 300], dtype=np.float32)}),
    ],
)  # fmt: skip
def test_values_outside_the_valid_range_are_missing(dtype, attributes):
    """0.5 * 100 + 250 = 300 is the last valid one, packed or not."""
    dataset = era5(truth("t2m", num_times=1))
    values = np.array([[250.0, 300.0, 300.5, 310.0]])
    stored = values if dtype == "f4" else (values - 250) / 0.5
    field = np.zeros((1, 7, 8), dtype=dtype) + np.dtype(dtype).type(0 if dtype == "i2" else 250)
    field[0, 0, :4] = stored
    dataset["t2m"] = (dataset["t2m"].dims, field, {"units": "K", **attributes})
    opened = open_climate(dataset)["t2m"].values[0, -1]
    np.testing.assert_array_equal(opened[:4], [250, 300, np.nan, np.nan])
    assert not np.isnan(opened[4:]).any()


# Fields that are the same at all times.


def test_static_fields_of_the_same_file_hold_at_all_its_times(tmp_path):
    """WeatherBench has its land-sea mask without a time dimension."""
    known = truth("t2m")
    mask = np.arange(56, dtype=np.float32).reshape(8, 7) / 55  # [longitude, latitude]
    dataset = arco(known).assign(land_sea_mask=(("longitude", "latitude"), mask, {"units": "(0 - 1)"}))
    opened = open_climate(write(dataset, tmp_path / "file.zarr", "zarr2"))
    assert opened["lsm"].dims == ("time", "latitude", "longitude")
    np.testing.assert_array_equal(opened["lsm"].values, np.repeat(mask.T[None, ::-1], 4, axis=0))
    np.testing.assert_array_equal(
        opened["lsm"].isel(time=[3, 1], longitude=2).values, mask.T[None, ::-1, 2][[0, 0]]
    )
    assert select_window(opened, time=known.time[-1], history=2).fields.shape == (2, 2, 7, 8)
    with pytest.raises(CanonicalizationError, match="without time"):  # weather is not static
        open_climate(
            dataset.assign(t2m=dataset["2m_temperature"].isel(time=0, drop=True)).drop_vars("2m_temperature")
        )


def test_static_fields_of_another_file_hold_at_all_times(tmp_path):
    known = truth("t2m", num_times=4)
    heights = np.linspace(0, 5000, 56, dtype=np.float32).reshape(1, 7, 8)
    constants = merra2(truth("t2m", num_times=1), short_name="M2C0NXASM").drop_vars("T2M")
    constants["time"] = ("time", [0], {"units": "minutes since 1992-01-02 00:00:00"})
    constants["PHIS"] = (("time", "lat", "lon"), heights * 9.8, {"units": "m+2 s-2"})
    paths = [write(constants, tmp_path / "const.nc4", "netcdf4")]
    for part in range(2):
        steps = merra2(known).isel(time=slice(2 * part, 2 * part + 2))
        paths.append(write(steps, tmp_path / f"{part}.nc4", "netcdf4"))
    with open_climate(paths) as opened:
        np.testing.assert_array_equal(opened["time"].values, known.time)
        west_first = np.roll(heights * np.float32(9.8), 4, axis=-1)
        np.testing.assert_allclose(opened["zs"].values, np.repeat(west_first, 4, axis=0), rtol=1e-6)
    with open_climate(paths[0]) as alone:
        assert alone.sizes["time"] == 1


def test_a_file_without_any_time(tmp_path):
    """CMIP's fx files: orog and sftlf."""
    known = truth("t2m")
    fixed = era5(known).isel(valid_time=0, drop=True).rename(t2m="orog")
    fixed["orog"].attrs = {"units": "m", "standard_name": "surface_altitude"}
    paths = [
        write(fixed, tmp_path / "orog.nc", "netcdf4"),
        write(era5(known), tmp_path / "t2m.nc", "netcdf4"),
    ]
    with open_climate(paths) as opened:
        assert list(opened.data_vars) == ["t2m", "orog"]
        np.testing.assert_array_equal(opened["orog"].values, known.fields["t2m"][[0] * 4])
    with pytest.raises(CanonicalizationError, match="together with files that have times"):
        open_climate(paths[0])


# Levels, derived variables, choice.


def _levels(unit: str = "hPa") -> xr.Dataset:
    values = np.arange(2 * 3 * 3 * 4, dtype=np.float32).reshape(2, 3, 3, 4)  # [time, level, lat, lon]
    factor = 100.0 if unit == "Pa" else 1.0
    return xr.Dataset(
        {
            "T": (("time", "lev", "lat", "lon"), values + 200, {"units": "K"}),
            "QV": (("time", "lev", "lat", "lon"), values / 1000, {"units": "kg kg-1"}),
            "SLP": (("time", "lat", "lon"), values[:, 0] + 1e5, {"units": "Pa"}),
        },
        coords={
            "time": ("time", [0, 3], {"units": "hours since 2020-01-01"}),
            "lev": ("lev", np.array([1000.0, 850.0, 500.0]) * factor, {"units": unit, "axis": "Z"}),
            "lat": [-30.0, 0.0, 30.0],
            "lon": [0.0, 90.0, 180.0, 270.0],
        },
    )


@pytest.mark.parametrize("unit", ["hPa", "Pa", "millibar"])
def test_pressure_levels_and_channels(unit):
    dataset = _levels(unit)
    opened = open_climate(dataset)
    assert opened["t"].dims == ("time", "level", "latitude", "longitude")
    assert opened["level"].values.tolist() == [500, 850, 1000]
    np.testing.assert_array_equal(opened["t"].sel(level=500).values, dataset["T"].values[:, 2])
    chosen = open_climate(dataset, variables=["t850", "Q500", "SLP"])
    assert list(chosen.data_vars) == ["t850", "q500", "msl"]
    assert all(chosen[name].dims == ("time", "latitude", "longitude") for name in chosen.data_vars)
    np.testing.assert_array_equal(chosen["t850"].values, dataset["T"].values[:, 1])
    np.testing.assert_array_equal(chosen["q500"].values, dataset["QV"].values[:, 2])
    assert chosen["t850"].attrs["long_name"] == "temperature at 850 hPa"
    assert "level" not in chosen.coords


def test_a_level_that_is_not_there():
    with pytest.raises(VariableNotFoundError, match=r"'t700'.*t500.*t850.*t1000"):
        open_climate(_levels(), variables=["t700"])


def test_model_levels_are_refused_only_if_wanted():
    dataset = _levels("layer")
    assert list(open_climate(dataset).data_vars) == ["msl"]
    assert open_climate(dataset).attrs["ignored_variables"] == "QV, T"
    for variables, source in ((["t850"], dataset), (None, dataset[["T", "QV"]])):
        with pytest.raises(
            VariableNotFoundError, match=r"Not on pressure levels: .*3 values of 'lev' in layer.*Np"
        ):
            open_climate(source, variables=variables)


def test_derived_variables_come_when_asked_for():
    known = truth("u10", "v10")
    known.fields["u10"][0, 0, 0] = np.nan
    opened = open_climate(merra2(known), variables=["ws10", "u10"])
    assert list(opened.data_vars) == ["ws10", "u10"]
    expected = np.sqrt(known.fields["u10"].astype(float) ** 2 + known.fields["v10"].astype(float) ** 2)
    np.testing.assert_allclose(opened["ws10"].values, expected, rtol=1e-6)
    assert opened["ws10"].attrs["cell_methods"] == "time: mean"  # the speed of the mean wind of an hour
    assert "ws10" not in open_climate(merra2(known)).data_vars


def test_what_is_available():
    opened = open_climate(era5(truth("t2m", "u10", "v10")))
    assert available_variables(opened) == ["t2m", "u10", "v10", "ws10"]
    assert list(select_variables(opened, ["ws10"]).data_vars) == ["ws10"]
    assert list(select_variables(opened, "t2m").data_vars) == ["t2m"]  # not t, 2 and m


def test_an_absent_variable_is_named_with_those_there():
    dataset = era5(truth("t2m"))
    dataset["secret"] = dataset["t2m"]
    for name in ("msl", "nonsense", "ws10"):
        with pytest.raises(VariableNotFoundError) as caught:
            open_climate(dataset, variables=["t2m", name])
        assert repr(name) in str(caught.value)
        assert caught.value.expected == "one of t2m"
        assert "secret" in str(caught.value)


def test_messages_about_many_files_stay_short(tmp_path):
    known = truth("t2m", num_times=8)
    paths = [
        write(era5(known).isel(valid_time=[step]), tmp_path / f"{step}.nc", "netcdf4") for step in range(8)
    ]
    with pytest.raises(VariableNotFoundError, match=r"0\.nc to .*7\.nc \(8 files\)") as caught:
        open_climate(paths, variables=["msl"])
    assert "3.nc" not in str(caught.value)


def test_a_file_without_any_known_field():
    dataset = era5(truth("t2m")).rename(t2m="snail_speed")
    with pytest.raises(VariableNotFoundError, match="snail_speed"):
        open_climate(dataset)


def test_a_fault_in_a_variable_that_is_not_wanted_does_no_harm():
    dataset = era5(truth("t2m", "u10"))
    dataset["u10"].attrs["units"] = "furlong fortnight-1"
    assert list(open_climate(dataset, variables=["t2m"]).data_vars) == ["t2m"]
    with pytest.raises(CanonicalizationError, match="furlong"):
        open_climate(dataset)


# What would need a guess.


def _without_units(dataset):
    del dataset["t2m"].attrs["units"]
    return dataset


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_without_units, "no units"),
        (lambda d: d.expand_dims(member=3), "member"),
        (lambda d: d.assign(T2M=d["t2m"]), "t2m, T2M"),
        (lambda d: d.assign_coords(expver=("valid_time", ["0001", "0001", "0005", "0005"])), "expver"),
        (lambda d: d.isel(valid_time=[0, 1, 1]), "more than once"),
        (lambda d: d.isel(valid_time=0, drop=True), "time coordinate"),
        (lambda d: d.rename(t2m="tp").assign_attrs(), "units"),
        (lambda d: d.isel(latitude=[0, 0]), "twice"),
        (lambda d: d.stack(cell=("latitude", "longitude")).reset_index("cell"), "points along"),
        (
            lambda d: d.assign(t2m=d["t2m"].assign_attrs(standard_name="precipitation_flux")),
            "precipitation_flux",
        ),
        (
            lambda d: d.assign(t2m=d["t2m"].assign_attrs(standard_name="air_temperature_anomaly")),
            "air_temperature_anomaly",
        ),
        (
            lambda d: d.assign(t2m=d["t2m"].assign_attrs(units_metadata="temperature: difference")),
            "temperature: difference",
        ),
    ],
)
def test_ambiguous_datasets_are_refused(damage, match):
    with pytest.raises(CanonicalizationError, match=match):
        open_climate(damage(era5(truth("t2m"))))


def _at_height(name, height, *, dimension=False):
    dataset = era5(truth("t2m")).rename(t2m=name)
    dataset[name].attrs |= {"units": "K" if name == "tas" else "m s-1"}
    attributes = {"units": "m", "standard_name": "height"}
    dataset = dataset.assign_coords(height=((), height, attributes))
    return dataset.expand_dims("height") if dimension else dataset


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("dimension", [False, True])
@pytest.mark.parametrize(
    ("name", "height", "fits"),
    [
        ("tas", 2.0, True),
        ("tas", 1.5, True),
        ("tas", 80.0, False),
        ("uas", 10.0, True),
        ("uas", 100.0, False),
    ],
)
@pytest.mark.sampled(6)
def test_the_height_that_a_file_states_is_that_of_the_name(name, height, fits, dimension, decoded, tmp_path):
    path = write(_at_height(name, height, dimension=dimension), tmp_path / "file.nc", "netcdf4")
    source = xr.open_dataset(path) if decoded else path
    if fits:
        assert list(open_climate(source).data_vars) == [{"tas": "t2m", "uas": "u10"}[name]]
    else:
        with pytest.raises(CanonicalizationError, match=f"height coordinate of {height:g} m"):
            open_climate(source)


def test_heights_of_other_fields_are_theirs(tmp_path):
    """As CMOR would have it in one file: each field names its own height."""
    dataset = era5(truth("t2m", "u10"))
    for name, height in (("t2m", 2.0), ("u10", 10.0)):
        attributes = {"units": "m", "standard_name": "height"}
        dataset = dataset.assign_coords({f"height_{name}": ((), height, attributes)})
        dataset[name].attrs["coordinates"] = f"height_{name}"
    path = write(dataset, tmp_path / "file.nc", "netcdf4")
    for source in (path, xr.open_dataset(path)):
        assert list(open_climate(source).data_vars) == ["t2m", "u10"]
    dataset["t2m"].attrs["coordinates"] = "height_u10"
    with pytest.raises(CanonicalizationError, match="height coordinate of 10 m"):
        open_climate(write(dataset, tmp_path / "other.nc", "netcdf4"))


def test_levels_that_follow_the_ground_are_said_to_be_no_pressures():
    dataset = _levels("hPa")
    name = "atmosphere_hybrid_sigma_pressure_coordinate"
    dataset["lev"].attrs |= {"standard_name": name, "formula_terms": "a: hyam b: hybm p0: P0 ps: PS"}
    assert list(open_climate(dataset).data_vars) == ["msl"]
    with pytest.raises(VariableNotFoundError, match=f"Not on pressure levels: .*'lev' in hPa, {name}"):
        open_climate(dataset, variables=["t850"])


@pytest.mark.parametrize("name", ["valid_time", "t", "Time"])
def test_extremes_over_the_time_of_the_file_are_no_instants(name, tmp_path):
    dataset = era5(truth("t2m")).rename(valid_time=name)
    dataset["t2m"].attrs["cell_methods"] = f"{name}: maximum"
    with pytest.raises(CanonicalizationError, match="cell method maximum"):
        open_climate(write(dataset, tmp_path / "max.nc", "netcdf4"))
    dataset["t2m"].attrs["cell_methods"] = f"{name}: mean (interval: 1 hour)"
    opened = open_climate(write(dataset, tmp_path / "mean.nc", "netcdf4"))
    assert opened["t2m"].attrs["cell_methods"] == "time: mean (interval: 1 hour)"
    assert open_climate(opened)["t2m"].attrs == opened["t2m"].attrs


def test_precipitation_sums_and_rates_are_never_equated():
    opened = open_climate(era5(truth("tp", "tprate")))
    assert opened["tp"].attrs["cell_methods"] == "time: sum"
    assert opened["tprate"].attrs["cell_methods"] == "time: mean"
    rate = merra2(truth("tprate"))
    with pytest.raises(
        VariableNotFoundError, match=r"'tp'.*tprate is there, but another quantity.*kg m-2 s-1"
    ):
        open_climate(rate, variables=["tp"])
    with pytest.raises(CanonicalizationError, match=r"kg m-2 s-1.*tprate"):
        open_climate(rate.rename(PRECTOT="tp"))


@pytest.mark.parametrize("scale", [0.01, -0.01])
def test_limits_of_a_packed_field_in_its_unit(scale):
    dataset = era5(truth("t2m"))
    stored = np.round((dataset["t2m"].values - 273.0) / scale).astype(np.int16)
    below = stored * scale + 273.0 < 280.0
    assert 0 < below.sum() < below.size
    packing = {"units": "K", "scale_factor": scale, "add_offset": 273.0, "valid_min": 280.0}
    dataset["t2m"] = (dataset["t2m"].dims, stored, packing)
    opened = open_climate(dataset)["t2m"].values
    assert np.isnan(opened).sum() == below.sum()
    assert np.nanmin(opened) >= 280.0


def test_monthly_means_of_daily_sums_are_refused(tmp_path):
    dataset = era5(truth("tp")).assign_coords(
        valid_time=(
            "valid_time",
            [0, 31, 60, 91],
            {"units": "days since 2020-01-01", "standard_name": "time"},
        )
    )
    dataset["tp"].attrs.pop("GRIB_stepType")
    with pytest.raises(CanonicalizationError, match="monthly"):
        open_climate(dataset)
    # One file a month, as the old Climate Data Store delivered them.
    for month in range(4):
        dataset.isel(valid_time=[month]).to_netcdf(tmp_path / f"{month}.nc")
    with pytest.raises(CanonicalizationError, match="monthly"):
        open_climate(str(tmp_path / "*.nc"))
    dataset["tp"].attrs["cell_methods"] = "time: sum"
    assert "tp" in open_climate(dataset)


@pytest.mark.parametrize("source", [5, None, era5(truth("t2m"))["t2m"]], ids=["number", "none", "array"])
def test_what_is_no_source(source):
    with pytest.raises(UsageError, match=r"a path, a URI.*received a"):
        open_climate(source)


def test_scalar_time_becomes_a_dimension():
    known = truth("t2m", num_times=1)
    dataset = era5(known).isel(valid_time=0)
    assert dataset["t2m"].dims == ("latitude", "longitude")
    _assert_same(open_climate(dataset), known)


def test_a_repeated_meridian_is_dropped_if_equal_and_refused_if_not():
    known = truth("t2m", "u10")
    dataset = era5(known)
    wrapped = dataset.isel(longitude=[*range(8), 0]).assign_coords(longitude=[*known.longitude, 360.0])
    _assert_same(open_climate(wrapped), known)
    first = wrapped.copy(deep=True)
    first["u10"].values[0, 3, 8] += 1
    with pytest.raises(CanonicalizationError, match="one meridian"):
        open_climate(first)
    last = wrapped.copy(deep=True)
    last["u10"].values[-1, 3, 8] += 1  # found when that time is read, wherever the column is part of it
    opened = open_climate(last)
    np.testing.assert_array_equal(opened["u10"].isel(time=0).values, known.fields["u10"][0])
    np.testing.assert_array_equal(
        opened["u10"].isel(longitude=slice(1, 8)).values, known.fields["u10"][..., 1:]
    )
    with pytest.raises(CanonicalizationError, match="one meridian"):
        opened["u10"].isel(time=-1).values  # noqa: B018


# Several files.


def test_files_are_joined_along_time_and_across_variables(tmp_path):
    """As the Climate Data Store delivers: instants and sums apart, and months apart."""
    known = truth("t2m", "u10", "tp", num_times=6)
    dataset = era5(known)
    for number, steps in enumerate([slice(3, 6), slice(0, 3)]):  # the later first
        part = dataset.isel(valid_time=steps)
        write(part[["t2m", "u10"]], tmp_path / f"instant-{number}.nc", "netcdf4")
        write(part[["tp"]], tmp_path / f"accum-{number}.nc", "netcdf3")
    opened = open_climate(str(tmp_path / "*.nc"))
    _assert_same(opened, known)
    np.testing.assert_array_equal(opened["tp"].isel(time=[4, 0, 3]).values, known.fields["tp"][[4, 0, 3]])
    assert "accum-0.nc" in opened.attrs["climate_source"]


def test_files_that_overlap_or_leave_gaps_are_refused(tmp_path):
    dataset = era5(truth("t2m", "tp"))
    paths = [
        write(dataset[["t2m"]].isel(valid_time=slice(0, 3)), tmp_path / "a.nc", "netcdf4"),
        write(dataset[["t2m"]].isel(valid_time=slice(2, 4)), tmp_path / "b.nc", "netcdf4"),
    ]
    with pytest.raises(CanonicalizationError, match=r"a\.nc.*b\.nc"):
        open_climate(paths)
    paths[1] = write(dataset[["tp"]], tmp_path / "c.nc", "netcdf4")
    with pytest.raises(CanonicalizationError, match="times"):
        open_climate(paths)


def test_files_of_different_grids_or_cell_methods_are_refused(tmp_path):
    known = truth("t2m")
    instants = write(merra2(known, short_name="M2I1NXASM"), tmp_path / "a.nc", "netcdf4")
    means = merra2(known).assign_coords(time=("time", [0, 1, 2, 3], {"units": "days since 2021-01-01"}))
    with pytest.raises(CanonicalizationError, match="time: mean"):
        open_climate([instants, write(means, tmp_path / "b.nc", "netcdf4")])
    with pytest.raises(CanonicalizationError, match="latitudes"):
        open_climate([instants, write(means.isel(lat=slice(2, 5)), tmp_path / "c.nc", "netcdf4")])


def test_pickled_datasets_open_again(tmp_path):
    known = truth()
    opened = open_climate(write(era5(known), tmp_path / "file.nc", "netcdf4"))
    _assert_same(pickle.loads(pickle.dumps(opened)), known)


def test_threads_read_the_same(tmp_path):
    known = truth("t2m", num_times=40)
    opened = open_climate(write(era5(known), tmp_path / "file.nc", "netcdf4"))
    with ThreadPoolExecutor(4) as pool:
        fields = list(pool.map(lambda step: opened["t2m"].isel(time=step).values, list(range(40)) * 2))
    np.testing.assert_array_equal(fields, np.concatenate([known.fields["t2m"]] * 2))


# Broken files.


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"temperature 12 C, wind west\n", "another kind of file"),
        (b"", "an empty file"),
        (b"PK\x03\x04rest of a zip", "zip archive"),
        (b"GRIB....", "cannot be read"),
        (b"\n<!DOCTYPE html><html>login</html>", "web page"),
        (b"CDF\x01", "header"),
        (b"\x89HDF\r\n\x1a\n and nothing else", "cannot be read"),
    ],
)
def test_other_files_renamed(content, match, tmp_path):
    path = tmp_path / "file.nc"
    path.write_bytes(content)
    with pytest.raises(ClimateFileError, match=match) as caught:
        open_climate(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("source", ["absent.nc", "absent.zarr", "absent/*.nc", [], "."])
def test_missing_files(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClimateFileError):
        open_climate(source)


@pytest.mark.parametrize("kind", ["netcdf4", "netcdf3", "netcdf3-record"])
@pytest.mark.parametrize("share", [0.99, 0.9, 0.5, 0.1])
def test_truncated_files_never_give_zeros(kind, share, tmp_path):
    """The NetCDF library reads zeros past the end of a classic file."""
    path = write(era5(truth(num_times=8)), tmp_path / "file.nc", kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ClimateFileError, match=r"file\.nc"):
        open_climate(path)


def test_damage_that_shows_on_reading_only(tmp_path):
    random = np.random.default_rng(0).normal(280, 10, (8, 40, 80)).astype(np.float32)
    dataset = era5(
        Truth({"t2m": random}, np.linspace(-78, 78, 40), np.arange(80) * 4.5, truth(num_times=8).time)
    )
    dataset["t2m"].encoding = {"zlib": True, "chunksizes": (1, 40, 80)}
    path = write(dataset, tmp_path / "file.nc", "netcdf4")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = b"\x00" * 3000
    path.write_bytes(content)
    opened = open_climate(path)
    np.testing.assert_array_equal(opened["t2m"].isel(time=0).values, random[0])
    for read in (load_fields, lambda d: d.load(), lambda d: d["t2m"].values):
        with pytest.raises(ClimateFileError, match=r"file\.nc"):
            read(opened)


@pytest.mark.parametrize("kind", ["zarr2", "zarr3"])
def test_a_truncated_chunk_of_zarr(kind, tmp_path):
    path = write(era5(truth("t2m")), tmp_path / "file.zarr", kind)
    chunk = next(p for p in (path / "t2m").rglob("*") if p.is_file() and p.name[0] in "0c")
    chunk.write_bytes(chunk.read_bytes()[:50])
    opened = open_climate(path)
    with pytest.raises(ClimateFileError, match=r"file\.zarr"):
        load_fields(opened)


def test_zarr_without_consolidated_metadata_and_with_a_note_beside_it_opens_silently(tmp_path):
    known = truth()
    path = write(era5(known), tmp_path / "file.zarr", "zarr3")
    (path / "note.json").write_text("{}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _assert_same(open_climate(path), known)
        _assert_same(open_climate(f"file://{path}"), known)


def test_every_error_is_one_of_ours(tmp_path):
    """A Zarr array instead of a group, and metadata that are no JSON."""
    path = write(era5(truth("t2m")), tmp_path / "file.zarr", "zarr3")
    with pytest.raises(ClimafuseError):
        open_climate(path / "t2m")
    (path / "zarr.json").write_text("{ broken")
    with pytest.raises(ClimafuseError):
        open_climate(path)
