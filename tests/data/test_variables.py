"""The table of variables, against names and units written out by hand."""

import numpy as np
import pytest

from climafuse.data.variables import (
    QUANTITIES,
    VARIABLES,
    cell_methods,
    check_height,
    check_standard_name,
    find_variable,
    match_variable,
    unit_conversion,
)
from climafuse.errors import CanonicalizationError, VariableNotFoundError

# From the documentation of the products, not from the table.
PRODUCT_NAMES = {
    "ERA5": {"t2m": "t2m", "2t": "t2m", "d2m": "d2m", "u10": "u10", "10u": "u10", "v10": "v10", "msl": "msl",
             "sp": "sp", "tp": "tp", "avg_tprate": "tprate", "mtpr": "tprate", "sst": "sst", "skt": "skt"},
    "MERRA-2": {"T2M": "t2m", "T2MDEW": "d2m", "QV2M": "q2m", "U10M": "u10", "V10M": "v10", "SLP": "msl",
                "PS": "sp", "TS": "skt", "PRECTOT": "tprate", "PRECTOTCORR": "tprate_corrected",
                "T850": "t850", "U850": "u850", "V250": "v250", "Q850": "q850", "H500": "zg500",
                "OMEGA500": "w500", "T": "t", "QV": "q", "H": "zg", "TQV": "tcwv"},
    "ARCO-ERA5": {"2m_temperature": "t2m", "10m_u_component_of_wind": "u10", "surface_pressure": "sp",
                  "mean_sea_level_pressure": "msl", "total_precipitation": "tp", "geopotential": "z",
                  "sea_surface_temperature": "sst", "u_component_of_wind": "u", "temperature": "t"},
    "CMIP": {"tas": "t2m", "psl": "msl", "pr": "tprate", "uas": "u10", "sfcWind": "ws10",
             "tos": "sst", "ta850": "t850", "zg500": "zg500", "hus": "q"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"), [pair for names in PRODUCT_NAMES.values() for pair in names.items()]
)
def test_product_names(name, expected):
    assert find_variable(name, {}).name == expected


def test_case_counts_and_likeness_does_not():
    assert find_variable("T").name == "t"
    for name in ("t2M", "2m temperature", "temp", "PRECTOT2", ""):
        with pytest.raises(VariableNotFoundError, match="t2m"):
            find_variable(name)


@pytest.mark.parametrize(
    ("name", "units", "value", "si"),
    [
        ("t2m", "degC", 25.0, 298.15),
        ("t2m", "Celsius", -273.15, 0.0),
        ("t2m", "degrees C", 25.0, 298.15),
        ("t2m", "deg C", 25.0, 298.15),
        ("t2m", "kelvins", 298.15, 298.15),
        ("sst_anomaly", "degrees C", 1.5, 1.5),
        ("t2m", "degF", 77.0, 298.15),  # 77 °F = 25 °C
        ("sst_anomaly", "degC", 1.5, 1.5),  # a difference: no zero point
        ("sst_anomaly", "degF", 1.8, 1.0),
        ("msl", "hPa", 1013.25, 101325.0),
        ("sp", "millibars", 1000.0, 100000.0),
        ("tp", "mm", 2.5, 0.0025),
        ("tp", "kg m-2", 2.5, 0.0025),  # 1 kg of water on 1 m² is 1 mm deep
        ("u10", "km h-1", 36.0, 10.0),
        ("u10", "kt", 1.0, 1852 / 3600),
        ("u10", "m s**-1", 3.0, 3.0),
        ("u10", "m s^-1", 3.0, 3.0),
        ("u10", "m/s", 3.0, 3.0),
        ("tprate", "mm/day", 86.4, 0.001),
        ("tprate", "kg m**-2 s**-1", 0.001, 0.001),
        ("q850", "g/kg", 8.0, 0.008),
        ("tcc", "%", 50.0, 0.5),
        ("tcc", "(0 - 1)", 0.5, 0.5),
        ("z500", "m**2 s**-2", 55000.0, 55000.0),
    ],
)
def test_units_by_hand(name, units, value, si):
    scale, offset = unit_conversion(VARIABLES[name], units, argument="test")
    assert scale * value + offset == pytest.approx(si, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "units"),
    [("tp", "kg m-2 s-1"), ("tprate", "m"), ("z500", "m"), ("zg500", "m2 s-2"), ("t2m", "1"), ("t2m", None),
     ("u10", "")],
)  # fmt: skip
def test_a_unit_of_another_quantity_is_refused(name, units):
    with pytest.raises(CanonicalizationError, match="units"):
        unit_conversion(VARIABLES[name], units, argument="test")


def test_si_units_of_all_variables_convert_to_themselves():
    for variable in VARIABLES.values():
        assert unit_conversion(variable, variable.units, argument="test") == (1.0, 0.0)
    assert VARIABLES["tp"].units == "m"
    assert VARIABLES["tprate"].units == "kg m-2 s-1"
    assert all(len(quantity.spellings) > 0 for quantity in QUANTITIES.values())


def test_sums_and_means_of_precipitation_are_two_variables():
    assert VARIABLES["tp"].cell_method == "sum"
    assert VARIABLES["tprate"].cell_method == "mean"
    assert find_variable("PRECTOT") is not find_variable("tp")


def test_channels():
    t850 = VARIABLES["t850"]
    assert (t850.parent, t850.level, t850.units) == ("t", 850.0, "K")
    assert VARIABLES["u10"].level is None  # 10 m, not 10 hPa
    assert VARIABLES["u10"].long_name.startswith("10 meter")


def test_derived_wind_speed():
    derive = VARIABLES["ws10"].derive
    assert derive.inputs == ("u10", "v10")
    assert derive.function(np.array([3.0]), np.array([-4.0])) == 5.0  # 3-4-5


@pytest.mark.parametrize(
    ("name", "attributes", "has_level", "expected"),
    [
        ("field", {"standard_name": "air_pressure_at_mean_sea_level"}, False, "msl"),
        ("field", {"standard_name": "air_temperature"}, True, "t"),
        ("field", {"standard_name": "air_temperature"}, False, None),  # of which height?
        ("field", {"standard_name": "surface_temperature_anomaly"}, False, None),  # land too
        ("z", {}, False, None),  # ERA5's single-level z is the ground
        ("z", {}, True, "z"),
        ("field", {}, False, None),
    ],
)
def test_matching_by_attributes(name, attributes, has_level, expected):
    variable = match_variable(name, attributes, has_level=has_level)
    assert (variable and variable.name) == expected


def test_contradicting_standard_name_is_refused():
    with pytest.raises(CanonicalizationError, match="precipitation_flux"):
        check_standard_name(VARIABLES["tp"], {"standard_name": "precipitation_flux"}, argument="tp")
    for harmless in ("unknown", "air_temperature"):
        check_standard_name(VARIABLES["t2m"], {"standard_name": harmless}, argument="t2m")


@pytest.mark.parametrize(
    ("name", "standard_name"),
    [("t2m", "air_temperature_anomaly"), ("msl", "air_pressure_at_mean_sea_level standard_error"),
     ("u", "eastward_sea_water_velocity"), ("u10", "x_wind"), ("q", "mass_fraction_of_cloud_liquid_water_in_air"),
     ("sst", "sea_surface_temperature_anomaly"), ("tp", "convective_precipitation_amount"),
     ("zg", "surface_altitude"), ("t850", "air_potential_temperature")],
)  # fmt: skip
def test_standard_names_outside_the_table_contradict_too(name, standard_name):
    with pytest.raises(CanonicalizationError, match=standard_name):
        check_standard_name(VARIABLES[name], {"standard_name": standard_name}, argument="test")


@pytest.mark.parametrize(
    ("name", "standard_name"),
    # What ecCodes 2.50 gives ERA5's fields (key cfName), editions 1 and 2; CMIP5; CF's aliases.
    [("t2m", "air_temperature"), ("d2m", "unknown"), ("q2m", "specific_humidity"), ("u10", "eastward_wind"),
     ("msl", "air_pressure_at_mean_sea_level"), ("sp", "surface_air_pressure"), ("tp", "unknown"),
     ("tcwv", "lwe_thickness_of_atmosphere_mass_content_of_water_vapor"), ("tcc", "cloud_area_fraction"),
     ("siconc", "sea_ice_area_fraction"), ("lsm", "land_binary_mask"), ("orog", "geopotential_height"),
     ("zs", "geopotential"), ("w", "lagrangian_tendency_of_air_pressure"), ("zg", "geopotential_height"),
     ("msl", "air_pressure_at_sea_level"), ("tcwv", "atmosphere_water_vapor_content"), ("skt", "surface_temperature"),
     ("tp", "precipitation_amount"), ("t850", "air_temperature"),
     ("sst_anomaly", "surface_temperature_anomaly"), ("sst_anomaly", "sea_surface_temperature_anomaly")],
)  # fmt: skip
def test_standard_names_that_products_write(name, standard_name):
    check_standard_name(VARIABLES[name], {"standard_name": standard_name}, argument="test")


def test_phrases_instead_of_standard_names_are_for_products_that_write_them():
    for product, name, phrase in (
        ("merra2", "t2m", "2-meter_air_temperature"),
        ("merra2", "msl", "sea_level_pressure"),
        ("ncep", "msl", "pressure"),
    ):
        check_standard_name(VARIABLES[name], {"standard_name": phrase}, argument="test", products=[product])
        with pytest.raises(CanonicalizationError, match=phrase):
            check_standard_name(VARIABLES[name], {"standard_name": phrase}, argument="test")
    for contradiction in ("surface_air_pressure", "air_pressure_at_mean_sea_level standard_error"):
        with pytest.raises(CanonicalizationError, match=contradiction):
            check_standard_name(
                VARIABLES["msl"], {"standard_name": contradiction}, argument="test", products=["merra2"]
            )


@pytest.mark.parametrize(
    ("name", "metadata", "fits"),
    [("t2m", "temperature: difference", False), ("t2m", "temperature: on_scale", True),
     ("t2m", "temperature: unknown", True), ("sst_anomaly", "temperature: difference", True),
     ("sst_anomaly", "temperature: on_scale", False), ("skt", "temperature:difference", False)],
)  # fmt: skip
def test_units_metadata_of_temperatures(name, metadata, fits):
    attributes = {"units_metadata": metadata}
    if fits:
        check_standard_name(VARIABLES[name], attributes, argument="test")
        return
    with pytest.raises(CanonicalizationError, match="units_metadata"):
        check_standard_name(VARIABLES[name], attributes, argument="test")


@pytest.mark.parametrize(
    ("name", "heights", "fits"),
    [("t2m", [2], True), ("t2m", [1.5], True), ("t2m", [80], False), ("t2m", [10], False), ("t2m", [0], False),
     ("t2m", [float("nan")], False), ("q2m", [1.5], True), ("u10", [10], True), ("u10", [100], False),
     ("ws10", [80], False), ("u10", [2, 10], True), ("msl", [100], True), ("t2m", [], True)],
)  # fmt: skip
def test_heights_above_the_ground(name, heights, fits):
    if fits:
        check_height(VARIABLES[name], heights, argument="test")
        return
    with pytest.raises(CanonicalizationError, match="height"):
        check_height(VARIABLES[name], heights, argument="test")


@pytest.mark.parametrize(
    ("name", "attributes", "expected"),
    [
        ("t2m", {}, "time: point"),
        ("t2m", {"cell_methods": "time: mean"}, "time: mean"),
        ("t2m", {"cell_methods": "area: time: mean"}, "area: time: mean"),  # CMIP
        ("t2m", {"GRIB_stepType": "instant"}, "time: point"),
        ("t2m", {"GRIB_stepType": "avgua"}, "time: mean"),  # ERA5 monthly means
        ("tp", {"GRIB_stepType": "accum"}, "time: sum"),
        ("tp", {"cell_methods": "time: sum (interval: 1 hour)"}, "time: sum (interval: 1 hour)"),
        ("tp", {"cell_methods": "valid_time: sum (interval: 1 hour)"}, "time: sum (interval: 1 hour)"),
        ("t2m", {"cell_methods": "t: mean"}, "time: mean"),
        ("t2m", {"cell_methods": "time : mean"}, "time: mean"),
        ("t2m", {"cell_methods": "time: lat: lon: mean"}, "time: lat: lon: mean"),
        ("t2m", {"cell_methods": "area: mean"}, "time: point"),  # nothing is said of time
        ("tp", {"cell_methods": "area: mean (comment: of points)"}, "time: sum"),
        (
            "t2m",
            {"cell_methods": "area: mean where land over all_area_types Time: mean (of maxima: none (sic))"},
            "area: mean where land over all_area_types time: mean (of maxima: none (sic))",
        ),
        (
            "t2m",
            {"cell_methods": "time: mean within years time: mean over years"},
            "time: mean within years time: mean over years",
        ),
    ],
)
def test_cell_methods_are_kept(name, attributes, expected):
    assert cell_methods(VARIABLES[name], attributes, argument="test") == expected


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        (
            "tp",
            {"GRIB_stepType": "avgad"},
        ),  # monthly means of ERA5: meters a day, under the name and unit of a sum
        ("tp", {"cell_methods": "time: mean"}),
        ("tprate", {"cell_methods": "time: sum"}),
        ("tprate", {"GRIB_stepType": "instant"}),
        ("t2m", {"cell_methods": "time: maximum"}),
        ("t2m", {"cell_methods": "time: maximum within days time: mean over days"}),
        ("t2m", {"cell_methods": "valid_time: maximum"}),  # the time dimension of the Climate Data Store
        ("t2m", {"cell_methods": "t: maximum"}),
        ("t2m", {"cell_methods": "Time: minimum (interval: 1 hour)"}),
        ("t2m", {"cell_methods": "time_counter: maximum"}),
        ("t2m", {"cell_methods": "area: time: maximum"}),
        ("tp", {"cell_methods": "valid_time: mean"}),
        ("t2m", {"cell_methods": "maximum"}),
        ("t2m", {"cell_methods": "mean"}),  # over what?
        ("t2m", {"cell_methods": "area: mean, time: max"}),
        ("t2m", {"cell_methods": "time: mean of daily maximum"}),
        ("t2m", {"cell_methods": "time:"}),
    ],
)
def test_other_cell_methods_are_refused(name, attributes):
    with pytest.raises(CanonicalizationError, match="cell method"):
        cell_methods(VARIABLES[name], attributes, argument="test")


def test_a_method_over_another_dimension_of_the_file_says_nothing_of_time():
    attributes = {"cell_methods": "percentile: maximum"}
    assert (
        cell_methods(VARIABLES["t2m"], attributes, argument="t", other_axes=["percentile"]) == "time: point"
    )
    with pytest.raises(CanonicalizationError, match="maximum"):
        cell_methods(VARIABLES["t2m"], attributes, argument="test")
