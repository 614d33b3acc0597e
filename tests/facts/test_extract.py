"""Facts of small windows against hand arithmetic, references and invariances."""

from __future__ import annotations

import math
from dataclasses import replace

import cftime
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from climafuse.data.samples import sample_path
from climafuse.data.sources import open_climate
from climafuse.data.window import Window, select_window
from climafuse.errors import CanonicalizationError, OutOfRangeError
from climafuse.facts import Climatology, Fact, extract
from tests.facts.windows import KELVIN, random_window, window


def values(facts: list[Fact]) -> dict[tuple, object]:
    """By (kind, variable, qualifier values)."""
    assert len({fact.key for fact in facts}) == len(facts)
    return {(fact.kind, fact.variable, *(v for _, v in fact.qualifiers)): fact.value for fact in facts}


def test_means_are_weighted_with_the_cosine_of_latitude() -> None:
    # Rows at 0 and 60 degrees weigh 1 and 1/2: (2 * 10 * 1 + 2 * 40 * 0.5) / 3 = 20.
    field = np.array([[10.0, 10.0], [40.0, 40.0]]) + KELVIN
    facts = values(extract(window({"t2m": field}, [0, 60], [10, 20])))
    assert facts["mean", "t2m"] == pytest.approx(20.0, abs=1e-4)
    # Without the cell at (60, 10): (10 + 10 + 40 * 0.5) / 2.5 = 16.
    field[1, 0] = np.nan
    facts = values(extract(window({"t2m": field}, [0, 60], [10, 20])))
    assert facts["mean", "t2m"] == pytest.approx(16.0, abs=1e-4)


def test_spoken_units() -> None:
    facts = values(
        extract(
            window(
                {"msl": [[101325.0]], "tp": [[0.0125]], "tprate": [[1e-4]], "z500": [[54000.0]]}, [50], [0]
            )
        )
    )
    assert facts["mean", "msl"] == pytest.approx(1013.25)
    assert facts["mean", "tp"] == pytest.approx(12.5)  # mm
    assert facts["mean", "tprate"] == pytest.approx(8.64)  # 1e-4 kg m-2 s-1 * 86400 s
    assert facts["mean", "z500"] == pytest.approx(550.65, abs=0.01)  # 54000 / 9.80665 / 10


def test_wind_speed_is_the_mean_of_speeds_and_direction_that_of_the_mean_vector() -> None:
    # Speeds 5 and 5; mean vector (0, 4): from the south, although neither cell is.
    facts = values(extract(window({"u10": [[3.0, -3.0]], "v10": [[4.0, 4.0]]}, [0], [10, 11])))
    assert facts["mean", "ws10"] == pytest.approx(5.0)
    assert facts["direction", "wd10"] == pytest.approx(180.0)


@pytest.mark.parametrize("degrees", range(0, 360, 30))
def test_direction_is_where_the_wind_comes_from(degrees: int) -> None:
    # Towards is from + 180: a wind from the west (270) blows east, u > 0.
    towards = math.radians(degrees + 180)
    fields = {"u10": [[math.sin(towards)]], "v10": [[math.cos(towards)]]}
    found = values(extract(window(fields, [0], [0])))["direction", "wd10"]
    assert (found - degrees + 180) % 360 - 180 == pytest.approx(0, abs=1e-4)


def test_calm_is_a_short_mean_vector() -> None:
    opposite = extract(window({"u10": [[9.0, -9.0]], "v10": [[0.4, 0.4]]}, [0], [0, 1]), kinds=["direction"])
    assert [fact.value for fact in opposite] == ["calm"]
    enough = extract(window({"u10": [[9.0, -9.0]], "v10": [[0.5, 0.5]]}, [0], [0, 1]), kinds=["direction"])
    assert enough[0].value == pytest.approx(180.0)


def test_a_wind_speed_that_is_given_is_taken() -> None:
    facts = values(extract(window({"u10": [[3.0]], "v10": [[4.0]], "ws10": [[6.0]]}, [0], [0])))
    assert facts["mean", "ws10"] == pytest.approx(6.0)
    alone = values(extract(window({"ws10": [[6.0]]}, [0], [0])))
    assert alone["mean", "ws10"] == pytest.approx(6.0)
    assert ("direction", "wd10") not in alone


def test_a_vector_with_one_component_missing_is_missing() -> None:
    # Only the second cell has both: speed 5, from 180 + atan2(3, 4) = 216.87 degrees.
    facts = values(extract(window({"u10": [[9.0, 3.0]], "v10": [[np.nan, 4.0]]}, [0], [0, 1])))
    assert facts["mean", "ws10"] == pytest.approx(5.0)
    assert facts["direction", "wd10"] == pytest.approx(216.87, abs=0.01)


def test_extremes_and_where_they_are() -> None:
    field = np.array([[1.0, 2.0, 9.0], [-4.0, 5.0, np.nan]]) + KELVIN
    facts = extract(window({"t2m": field}, [10, 12], [359, 0, 1]))
    found = values(facts)
    assert found["maximum", "t2m"] == pytest.approx(9.0, abs=1e-4)
    assert found["minimum", "t2m"] == pytest.approx(-4.0, abs=1e-4)
    assert found["maximum_position", "t2m"] == (10.0, 1.0)
    assert found["minimum_position", "t2m"] == (12.0, 359.0)
    assert {fact.cell for fact in facts if fact.kind.endswith("position")} == {(2.0, 1.0)}


def test_an_even_field_has_no_place_of_extremes() -> None:
    kinds = ["maximum_position", "minimum_position"]
    assert extract(window({"t2m": [[280.0, 280.9]]}, [0], [0, 1]), kinds=kinds) == []
    assert len(extract(window({"t2m": [[280.0, 281.5]]}, [0], [0, 1]), kinds=kinds)) == 2
    assert extract(window({"tp": [[0.0, 0.0]]}, [0], [0, 1]), kinds=kinds) == []


@pytest.mark.parametrize(
    ("change", "trend"), [(1.01, "rising"), (0.99, "steady"), (-0.99, "steady"), (-1.01, "falling")]
)
def test_tendency_is_from_the_first_time_to_the_last(change: float, trend: str) -> None:
    field = 280 + np.array([0.0, 50.0, change])[:, None, None]  # the time between does not matter
    facts = values(extract(window({"t2m": field}, [0], [0], ["2026-03-25", "2026-03-26", "2026-03-27"])))
    assert facts["tendency", "t2m"] == trend
    assert facts["change", "t2m"] == pytest.approx(change, abs=1e-4)


def test_change_compares_the_cells_valid_at_both_times() -> None:
    field = np.array([[[270.0, 300.0]], [[273.0, np.nan]]])
    facts = values(extract(window({"t2m": field}, [0], [0, 1], ["2026-03-25", "2026-03-26"])))
    assert facts["change", "t2m"] == pytest.approx(3.0)  # not 273 - 285
    assert ("tendency", "t2m") not in values(extract(window({"t2m": field[:1]}, [0], [0, 1])))


def test_halves_leave_out_the_row_and_column_in_the_middle() -> None:
    field = np.full((3, 3), 280.0)
    field[1, 1] = 999.0
    field[2, :] += 4  # north
    field[:, 0] += 2  # west
    facts = values(extract(window({"t2m": field}, [0, 1, 2], [359, 0, 1])))
    assert facts["comparison", "t2m", "north-south"] == "north"
    assert facts["comparison", "t2m", "west-east"] == "west"
    facts = values(extract(window({"t2m": np.full((2, 2), 280.0)}, [0, 1], [0, 1])))
    assert facts["comparison", "t2m", "north-south"] == "equal"
    # South warmer by 0.9 K: within the margin of 1 K.
    facts = values(extract(window({"t2m": [[280.9], [280.0]]}, [0, 1], [0])))
    assert facts["comparison", "t2m", "north-south"] == "equal"
    assert ("comparison", "t2m", "west-east") not in facts  # a single column has no halves


def test_no_west_and_east_all_the_way_around() -> None:
    field = np.tile(280.0 + 5 * np.arange(8), (2, 1))
    around = values(extract(window({"t2m": field}, [0, 1], np.arange(8) * 45)))
    assert ("comparison", "t2m", "west-east") not in around
    part = values(extract(window({"t2m": field}, [0, 1], np.arange(8) * 40)))
    assert part["comparison", "t2m", "west-east"] == "east"


def test_events_take_a_single_cell() -> None:
    fields = {
        "t2m": np.array([[-0.1, 29.9]]) + KELVIN,
        "ws10": [[17.2, 1.0]],
        "tp": [[0.0, 0.00999]],
    }
    facts = values(extract(window(fields, [0], [0, 1])))
    assert facts["event", "t2m", "freezing"] == "yes"
    assert facts["event", "t2m", "heat"] == "no"
    assert facts["event", "ws10", "gale"] == "yes"
    assert facts["event", "tp", "wet"] == "yes"
    assert facts["event", "tp", "heavy_precipitation"] == "no"


def test_of_a_missing_variable_nothing_is_said() -> None:
    full = random_window(np.random.default_rng(0))
    fields = full.fields.copy()
    fields[:, full.variables.index("t2m")] = np.nan
    fields[:, full.variables.index("u10")] = np.nan
    variables = {fact.variable for fact in extract(replace(full, fields=fields))}
    assert variables == {"msl", "tp"}  # no wind without u10


def test_missing_at_the_valid_time_is_missing() -> None:
    field = np.array([[[280.0]], [[np.nan]]])
    assert extract(window({"t2m": field}, [0], [0], ["2026-03-25", "2026-03-26"])) == []


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.3]))
def test_means_agree_with_xarray(seed: int, missing: float) -> None:
    rng = np.random.default_rng(seed)
    full = random_window(rng)
    fields = np.where(rng.random(full.fields.shape) < missing, np.float32(np.nan), full.fields)
    found = values(extract(replace(full, fields=fields), kinds=["mean/t2m", "maximum/t2m"]))
    array = xr.DataArray(
        fields[-1, 0].astype(np.float64), coords={"latitude": full.latitude}, dims=("latitude", "longitude")
    )
    reference = array.weighted(np.cos(np.deg2rad(array.latitude))).mean()
    assert found["mean", "t2m"] == pytest.approx(float(reference) - KELVIN, abs=1e-6)
    assert found["maximum", "t2m"] == pytest.approx(float(array.max()) - KELVIN)


def test_facts_do_not_depend_on_the_order_of_variables_nor_on_longitude() -> None:
    full = random_window(np.random.default_rng(1))
    order = [3, 2, 0, 4, 1]
    shuffled = replace(
        full, fields=full.fields[:, order], variables=tuple(full.variables[index] for index in order)
    )
    moved = replace(full, longitude=(full.longitude + 100) % 360)
    expected = values(extract(full))
    for other in (shuffled, moved):
        found = values(extract(other))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if not key[0].endswith("position"):
                assert found[key] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value)


def test_a_dataset_is_one_window() -> None:
    full = random_window(np.random.default_rng(2), west=10.0)
    dataset = xr.Dataset(
        {
            name: (("time", "latitude", "longitude"), full.fields[:, index])
            for index, name in enumerate(full.variables)
        },
        {"time": full.time, "latitude": full.latitude, "longitude": full.longitude},
    )
    assert extract(dataset) == extract(full)


def climatology(
    values: object, latitude: list[float], longitude: list[float], months: bool = False
) -> xr.Dataset:
    array = np.asarray(values, np.float64)
    dims = ("month", "latitude", "longitude") if months else ("latitude", "longitude")
    coords = {"latitude": latitude, "longitude": longitude} | ({"month": np.arange(1, 13)} if months else {})
    return xr.Dataset({"t2m": (dims, array)}, coords)


@pytest.mark.parametrize(
    ("anomaly", "words"),
    [
        (0.99, "near normal"),
        (1.01, "above normal"),
        (4.01, "well above normal"),
        (-1.01, "below normal"),
        (-4.01, "well below normal"),
    ],
)
def test_anomalies_and_their_classes(anomaly: float, words: str) -> None:
    # The climatology holds more cells than the window, on which it is 280 and 290.
    normal = climatology([[1.0, 280.0, 290.0]], [10.0], [9.0, 10.0, 11.0])
    facts = values(
        extract(window({"t2m": [[280 + anomaly, 290 + anomaly]]}, [10], [10, 11]), climatology=normal)
    )
    assert facts["anomaly", "t2m"] == pytest.approx(anomaly, abs=1e-4)
    assert facts["anomaly_class", "t2m"] == words


def test_climatology_by_month() -> None:
    normal = climatology(270 + np.arange(1, 13)[:, None, None], [0.0], [0.0], months=True)
    normal = normal.isel(month=slice(None, None, -1))  # in any order
    march = window({"t2m": [[275.0]]}, [0], [0], ["2026-03-01"])
    assert values(extract(march, climatology=normal))["anomaly", "t2m"] == pytest.approx(2.0)
    december = window({"t2m": [[275.0]]}, [0], [0], ["1969-12-31T23:00"])
    assert values(extract(december, climatology=normal))["anomaly", "t2m"] == pytest.approx(-7.0)
    other = replace(march, time=np.array([cftime.datetime(2026, 4, 30, calendar="360_day")]))
    assert values(extract(other, climatology=normal))["anomaly", "t2m"] == pytest.approx(1.0)


def test_a_climatology_that_does_not_fit_is_refused() -> None:
    here = window({"t2m": [[275.0]]}, [0], [0])
    with pytest.raises(OutOfRangeError, match="latitude"):
        extract(here, climatology=climatology([[280.0]], [0.5], [0.0]))
    with pytest.raises(CanonicalizationError, match="month"):
        extract(
            here, climatology=climatology(np.zeros((12, 1, 1)), [0.0], [0.0], months=True).isel(month=[0])
        )
    with pytest.raises(CanonicalizationError, match="level"):
        Climatology.from_dataset(climatology([[280.0]], [0.0], [0.0]).expand_dims("level"))


def pacific(index: float, rows: list[float], longitude: np.ndarray) -> Window:
    """Anomaly of ``index`` in the Niño 3.4 box as NOAA bounds it, 9 K everywhere else."""
    inside = (np.abs(rows)[:, None] <= 5) & (longitude >= 190) & (longitude <= 240)
    return window({"sst_anomaly": np.where(inside, index, 9.0)}, rows, longitude)


@pytest.mark.parametrize(
    ("index", "state"),
    [(0.51, "El Niño"), (0.49, "neutral"), (-0.49, "neutral"), (-0.51, "La Niña")],
)
def test_nino34_and_enso(index: float, state: str) -> None:
    facts = values(extract(pacific(index, [-7.5, -5, -2.5, 0, 2.5, 5, 7.5], np.arange(180, 260, 2.5))))
    assert facts["nino34", "sst"] == pytest.approx(index)
    assert facts["enso", "sst"] == state


def test_nino34_is_area_weighted_over_the_cells_with_a_value() -> None:
    rows, columns = [-4.0, 0.0, 4.0], np.arange(190.0, 241.0)
    field = np.tile(np.array([[1.0], [2.0], [3.0]]), (1, len(columns)))
    field[2, ::2] = np.nan
    # Weights: 51 columns of the rows at 4S and 0, 25 at 4N.
    weight = math.cos(math.radians(4))
    expected = (51 * weight * 1 + 51 * 2 + 25 * weight * 3) / (51 * weight + 51 + 25 * weight)
    facts = values(extract(window({"sst_anomaly": field}, rows, columns)))
    assert facts["nino34", "sst"] == pytest.approx(expected)
    assert ("mean", "sst_anomaly") not in facts  # that is the anomaly of sst
    assert ("anomaly", "sst") in facts


@pytest.mark.parametrize(
    ("rows", "west", "east"),
    [
        ([-2.5, 0, 2.5, 5], 180, 260),
        ([-5, -2.5, 0, 2.5], 180, 260),
        ([-5, 0, 5], 195, 260),
        ([-5, 0, 5], 180, 235),
    ],
)
def test_no_nino34_where_the_window_cuts_the_box(rows: list[float], west: float, east: float) -> None:
    facts = values(extract(pacific(1.0, rows, np.arange(west, east, 2.5))))
    assert ("nino34", "sst") not in facts
    assert ("enso", "sst") not in facts


def test_sea_surface_temperature_with_a_climatology_has_an_index_too() -> None:
    rows, columns = np.arange(-7.5, 8, 2.5), np.arange(180, 260, 2.5)
    absolute = window({"sst": np.full((len(rows), len(columns)), 301.5)}, rows, columns)
    normal = xr.Dataset(
        {"sst": (("latitude", "longitude"), np.full((len(rows), len(columns)), 300.0))},
        {"latitude": rows, "longitude": columns},
    )
    assert ("nino34", "sst") not in values(extract(absolute))
    assert values(extract(absolute, climatology=normal))["nino34", "sst"] == pytest.approx(1.5)
    # Anomalies are re-based by a climatology of anomalies.
    anomalies = replace(absolute, variables=("sst_anomaly",), fields=absolute.fields - 300)
    rebased = extract(anomalies, climatology=normal.rename(sst="sst_anomaly") - 299.75)
    assert values(rebased)["nino34", "sst"] == pytest.approx(1.25)


def test_nino34_of_december_1997() -> None:
    """Real monthly anomalies against 1981-2010 around the box, on a T30 grid, rounded to 0.01 K.

    Oracle: worked out before, the index of that month on this grid is +2.85 with the rows strictly inside
    5 degrees and +2.14 with the rows at 5.57 degrees. The weights of the two inner rows are equal, so the
    index is the plain mean of the 28 values from 191.25 to 240 degrees east.
    """
    rows = [-5.567, -1.856, 1.856, 5.567]
    columns = 187.5 + 3.75 * np.arange(16)
    anomaly = np.array(
        [
            [0.31, 0.47, 0.81, 1.09, 1.42, 1.82, 2.15, 2.34, 2.36, 2.41, 2.45, 2.34, 2.38, 2.49, 2.51, 2.59],
            [0.76, 1.02, 1.34, 1.72, 2.15, 2.52, 2.81, 3.19, 3.52, 3.76, 3.81, 3.71, 3.81, 4.00, 4.08, 4.17],
            [0.76, 0.99, 1.32, 1.71, 2.09, 2.38, 2.60, 2.88, 3.18, 3.35, 3.49, 3.51, 3.46, 3.60, 3.82, 3.91],
            [
                -0.55,
                -0.65,
                -0.31,
                0.15,
                0.47,
                0.69,
                0.93,
                1.14,
                1.34,
                1.37,
                1.38,
                1.59,
                1.64,
                1.56,
                1.79,
                1.91,
            ],
        ]
    )
    facts = values(extract(window({"sst_anomaly": anomaly}, rows, columns, ["1997-12-01"])))
    assert facts["nino34", "sst"] == pytest.approx(2.85, abs=0.01)
    assert facts["nino34", "sst"] == pytest.approx(anomaly[1:3, 1:15].mean(), abs=1e-6)
    assert facts["enso", "sst"] == "El Niño"
    outer = np.average(anomaly[:, 1:15].mean(axis=1), weights=np.cos(np.deg2rad(rows)))
    assert outer == pytest.approx(
        2.14, abs=0.01
    )  # these are the values of the notes, and the outer rows matter


def test_nino34_of_the_bundled_sample() -> None:
    """The same month from the whole file, through every step from the file to the fact."""
    anomalies = select_window(open_climate(sample_path("sst_anomaly")), time="1997-12")
    facts = values(extract(anomalies, kinds=["nino34", "enso"]))
    assert facts["nino34", "sst"] == pytest.approx(2.85, abs=0.005)
    assert facts["enso", "sst"] == "El Niño"
