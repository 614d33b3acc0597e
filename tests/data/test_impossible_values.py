"""What is never weather is refused with its variable and time, wherever fields are read: infinities, and codes for
missing values that no attribute declares."""

import numpy as np
import pytest

from climafuse.data.batch import collate_windows
from climafuse.data.normalization import compute_statistics
from climafuse.data.sources import open_climate
from climafuse.data.variables import QUANTITIES, VARIABLES, unit_conversion
from climafuse.data.window import Window
from climafuse.errors import CanonicalizationError, DataError, ModelInputError
from tests.data import fixtures


def _known(value):
    known = fixtures.truth("t2m", "msl", num_times=4)
    known.fields["msl"][2, 3, 4] = value  # 12:00 of the first day
    return known


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("make", [fixtures.era5, fixtures.merra2, fixtures.arco])
def test_reading_names_variable_and_time(make, value, tmp_path):
    path = fixtures.write(make(_known(value)), str(tmp_path / "fields.nc"), "netcdf4")
    dataset = open_climate(path)
    assert np.isfinite(dataset["msl"].isel(time=1).values).all()  # other times are as good as ever
    with pytest.raises(CanonicalizationError, match=r"at 2020-02-28T12:00: .* received 1 infinite") as caught:
        dataset["msl"].load()
    assert {"mean_sea_level_pressure", "msl", "SLP"} & set(str(caught.value).split("'"))


@pytest.mark.parametrize("make", [fixtures.era5, fixtures.merra2, fixtures.arco])
def test_an_undeclared_code_for_missing_values_is_refused(make, tmp_path):
    path = fixtures.write(make(_known(-9999.0)), str(tmp_path / "fields.nc"), "netcdf4")
    with pytest.raises(
        CanonicalizationError, match=r"at 2020-02-28T12:00: .*1 values such as -9999.*_FillValue"
    ):
        open_climate(path)["msl"].load()
    stored = make(_known(-9999.0))
    (name,) = {"msl", "SLP", "mean_sea_level_pressure"} & set(stored.data_vars)
    stored[name].attrs["_FillValue"] = np.float32(-9999)
    stored[name].encoding.pop("_FillValue", None)
    assert np.isnan(open_climate(stored)["msl"].values).sum() == 1


@pytest.mark.parametrize("code", [-999.0, -9999.0, -32767.0, -99999.0])
def test_usual_codes_are_impossible_in_every_unit_of_every_quantity(code):
    for name, quantity in QUANTITIES.items():
        for unit, (scale, offset) in quantity.spellings.items():
            if (code, name) != (-999.0, "geopotential"):  # which a deep low has near the ground
                assert code * scale + offset < quantity.possible[0], (name, unit)


@pytest.mark.parametrize(
    ("name", "units"),
    [("t2m", "K"), ("sst_anomaly", "degC"), ("msl", "Pa"), ("msl", "hPa"), ("tp", "mm"), ("tp", "m"),
     ("tprate", "mm/day"), ("tprate", "mm h-1"), ("tcwv", "kg m-2"), ("q", "g kg-1"), ("r", "%"), ("tcc", "%"),
     ("siconc", "1"), ("w", "Pa s-1")],
)  # fmt: skip
def test_minus_99_9_is_refused_where_no_weather_comes_near_it(name, units):
    variable = VARIABLES[name]
    scale, offset = unit_conversion(variable, units, argument="test")
    assert -99.9 * scale + offset < QUANTITIES[variable.quantity].possible[0]


def test_minus_99_9_of_precipitation_is_refused_when_read():
    known = fixtures.truth("tp", num_times=4)
    known.fields["tp"][2, 3, 4] = -0.0999  # -99.9 mm
    with pytest.raises(CanonicalizationError, match=r"at 2020-02-28T12:00: .*1 values such as -0\.0999"):
        open_climate(fixtures.era5(known))["tp"].load()


@pytest.mark.parametrize(
    ("name", "value"),  # far more than packing, ringing of spectral models and interpolation have left in files
    [("water_depth", -0.01), ("water_flux", -2e-4), ("specific_humidity", -2e-3), ("fraction", -0.2),
     ("water_mass", -5), ("pressure", -1), ("temperature", 0), ("temperature_difference", -60)],
)  # fmt: skip
def test_what_is_slightly_negative_is_possible(name, value):
    assert QUANTITIES[name].possible[0] < value


@pytest.mark.parametrize(
    ("name", "coldest", "hottest"),  # the records of the Earth's surface, or of the free air to 50 hPa
    [("temperature", 165, 330), ("pressure", 3e4, 109e3), ("speed", -140, 140), ("water_depth", 0, 1.9),
     ("water_flux", 0, 0.64), ("specific_humidity", 0, 0.04), ("geopotential", -7000, 2.2e5),
     ("height", -700, 22000), ("fraction", 0, 1.8), ("pressure_tendency", -20, 20), ("water_mass", 0, 100)],
)  # fmt: skip
def test_records_of_the_weather_are_possible(name, coldest, hottest):
    low, high = QUANTITIES[name].possible
    assert low < coldest < hottest < high


def test_an_infinite_fill_value_is_missing():
    stored = fixtures.era5(_known(np.inf))
    stored["msl"].attrs["_FillValue"] = np.float32(np.inf)
    assert np.isnan(open_climate(stored)["msl"].values[2, 3, 4])


def test_statistics_and_tensors_of_datasets_made_in_python():
    dataset = fixtures.canonical(_known(np.inf))
    with pytest.raises(DataError, match=r"'msl' at 2020-02-28T12:00"):
        compute_statistics(dataset, [0, 2])
    statistics = compute_statistics(dataset, [0, 1, 3])
    with pytest.raises(ModelInputError, match=r"'msl' at 2020-02-28T12:00"):
        collate_windows([Window.from_dataset(dataset)], statistics)
