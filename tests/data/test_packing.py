"""Packed fields: a dataset that xarray has decoded gives what the file does; what cannot be unpacked is refused."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from climafuse.data.sources import open_climate
from climafuse.errors import CanonicalizationError
from tests.data.fixtures import era5, truth, write


def _stored(numbers, attributes, name="t2m"):
    """A file of ERA5 whose field holds these numbers in its first row, and the first of them elsewhere."""
    dataset = era5(truth(name, num_times=1))
    numbers = np.asarray(numbers)
    field = np.full((1, 7, 8), numbers[0], dtype=numbers.dtype)
    field[0, 0, : len(numbers)] = numbers
    units = {"t2m": "K", "u10": "m s-1"}[name]
    dataset[name] = (dataset[name].dims, field, {"units": units, **attributes})
    return dataset


def _row(source, name="t2m"):
    return open_climate(source)[name].values[0, -1]  # stored north to south


# One field of NCEP, as NOAA PSL packs it: 150.00 to 375.05 K are valid, 32766 is missing.
NCEP = {
    "scale_factor": np.float32(0.01),
    "add_offset": np.float32(477.65),
    "missing_value": np.int16(32766),
    "valid_range": np.array([-32765, -10260], dtype=np.int16),
}
CASES = {
    "limits of NCEP": (np.array([-20000, -32765, -10260, -10259, 32766], "i2"), NCEP, [0, 0, 0, 1, 1]),
    # Of uwnd: in float32, as xarray unpacks, -20264 is 0.020004; exactly it were 0.020008.
    "a limit that rounding undercuts": (
        np.array([-20264, -20265, -20000], "i2"),
        {"scale_factor": np.float32(0.01), "add_offset": np.float32(202.66), "valid_min": np.int16(-20264)},
        [0, 1, 0],
    ),
    "a smallest number": (
        np.array([5, 0, -1, 3000], "i2"),
        {"scale_factor": 0.1, "add_offset": 250.0, "valid_min": np.int16(0)},
        [0, 0, 1, 0],
    ),
    "a negative scale": (
        np.array([5, 0, -1, 300, 301], "i2"),
        {"scale_factor": -0.1, "add_offset": 250.0, "valid_min": np.int16(0), "valid_max": np.int16(300)},
        [0, 0, 1, 0, 1],
    ),
    "limits in the unit of the field": (
        np.array([5, 0, -1, 300], "i2"),
        {"scale_factor": 0.5, "add_offset": 250.0, "valid_min": np.float32(249.75)},
        [0, 0, 1, 0],
    ),
    # (250.3 - 250) / 0.1 is 3.0000000000001137: the third number is valid all the same.
    "a limit that rounds to above its number": (
        np.array([5, 3, 2], "i2"),
        {"scale_factor": 0.1, "add_offset": 250.0, "valid_min": np.float64(250.3)},
        [0, 0, 1],
    ),
    "no scale": (
        np.array([250, 249, 300], "i2"),
        {"_FillValue": np.int16(-1), "valid_min": np.int16(250)},
        [0, 1, 0],
    ),
    # The NetCDF Users' Guide has the limits of unsigned numbers in the signed type: 0s, -2s is 0 to 65534.
    "unsigned in disguise": (
        np.array([20000, 60000, 65534, 65535], "u2").view("i2"),
        {
            "scale_factor": 0.005,
            "add_offset": 100.0,
            "_Unsigned": "true",
            "_FillValue": np.int16(-1),
            "valid_range": np.array([0, -2], dtype=np.int16),
        },
        [0, 0, 0, 1],
    ),
    "unsigned without a fill value": (
        np.array([200, 250, 255], "u1").view("i1"),
        {"_Unsigned": "true", "valid_max": np.int8(-2)},
        [0, 0, 1],
    ),
    # DAP 2 has no signed bytes.
    "signed in disguise": (
        np.array([10, -10, -128], "i1").view("u1"),
        {"scale_factor": 1.0, "add_offset": 250.0, "_Unsigned": "false", "valid_min": np.uint8(0x81)},  # -127
        [0, 0, 1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_decoded_dataset_gives_what_the_file_gives(case, tmp_path):
    """Which cells are missing is by hand, the values are those of xarray."""
    numbers, attributes, missing = CASES[case]
    path = write(_stored(numbers, attributes), tmp_path / "file.nc", "netcdf4")
    with xr.open_dataset(path) as decoded:
        values = decoded["t2m"].values[0, 0, : len(numbers)].astype(np.float64)
        expected = np.where(missing, np.nan, values)
        for found in (_row(path), _row(decoded), _row(decoded.load())):
            np.testing.assert_allclose(found[: len(numbers)], expected, rtol=1e-6, atol=1e-5)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["i1", "i2", "i4", "u1", "u2"]),
    st.floats(1e-3, 0.2).map(np.float32),
    st.booleans(),
    st.lists(st.integers(-100, 100), min_size=3, max_size=8),
    st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
def test_any_packing(dtype, scale, negative, shifted, ends):
    """Limits in integers leave out the same numbers of the file and of the decoded dataset: those outside."""
    middle = 0 if dtype[0] == "i" else 100
    numbers = (np.array(shifted) + middle).astype(dtype)
    limits = np.sort(numbers.astype(int)[np.array(ends) % len(numbers)])
    attributes = {
        "scale_factor": np.float32(-scale if negative else scale),
        "add_offset": np.float32(250.1),  # rounded in float32 by xarray, to above and below the very limits
        "valid_range": limits.astype(dtype),
    }
    stored = _stored(numbers, attributes)
    expected = (numbers < limits[0]) | (numbers > limits[1])
    for source in (stored, xr.decode_cf(stored)):
        np.testing.assert_array_equal(np.isnan(_row(source)[: len(numbers)]), expected)


def test_integers_that_may_be_limits_of_what_a_field_was_packed_in_are_no_guess():
    """After arithmetic nothing tells how a field was packed; limits that leave nothing out do no harm."""
    numbers, attributes, _ = CASES["limits of NCEP"]
    decoded = xr.decode_cf(_stored(numbers, attributes)).drop_encoding()
    with pytest.raises(
        CanonicalizationError, match=r"valid_range -32765, -10260, and values such as 277\.65"
    ):
        _row(decoded)
    harmless = decoded.assign(t2m=decoded["t2m"].assign_attrs(valid_range=[0, 400]))
    assert (np.isnan(_row(harmless)[:5]) == [0, 0, 0, 0, 1]).all()
    plain = decoded.assign(t2m=decoded["t2m"].assign_attrs(valid_range=[0.0, 300.0]))
    assert (np.isnan(_row(plain)[:5]) == [0, 0, 1, 1, 1]).all()  # 277.65, 150, 375.05, 375.06 K, missing


@pytest.mark.parametrize("key", ["scale_factor", "add_offset"])
@pytest.mark.parametrize(
    ("value", "received"),
    [([], "none"), ([1.0, 2.0], "1, 2"), (np.nan, "nan"), (np.inf, "inf"), (0.0, "0"), ("one", "'one'")],
)
def test_what_nothing_can_be_unpacked_with_is_refused(key, value, received):
    limits = {"valid_range": np.array([0.0, 400.0], dtype=np.float32)}
    stored = _stored(np.array([250, 251], "i2"), {key: value, **limits})
    if (key, received) == ("add_offset", "0"):
        assert _row(stored)[1] == 251
        return
    with pytest.raises(CanonicalizationError, match=rf"number.*{key}.*received {received}"):
        open_climate(stored)
    bent = era5(truth("t2m"))
    bent["latitude"].attrs[key] = value
    with pytest.raises(CanonicalizationError, match=rf"'latitude'.*number.*{key}.*received {received}"):
        open_climate(bent)
