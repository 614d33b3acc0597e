"""Windows: which cells lie in a box, and which steps in a history."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from climafuse.data.window import Box, Grid, Window, select_window
from climafuse.errors import (
    CanonicalizationError,
    OutOfRangeError,
    PlaceError,
    UsageError,
    VariableNotFoundError,
)

LATITUDE = np.arange(-90.0, 91.0)
LONGITUDE = np.arange(360.0)


def make_dataset(
    latitude: np.ndarray = LATITUDE, longitude: np.ndarray = LONGITUDE, steps: int = 3
) -> xr.Dataset:
    """Two variables whose values tell where they come from."""
    shape = (steps, len(latitude), len(longitude))
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    time = np.datetime64("2026-03-25", "ns") + np.arange(steps) * np.timedelta64(8, "h")
    return xr.Dataset(
        {
            "t2m": (("time", "latitude", "longitude"), values),
            "msl": (("time", "latitude", "longitude"), -values),
        },
        coords={"time": time, "latitude": latitude, "longitude": longitude},
    )


def cells(box: Box, latitude: np.ndarray = LATITUDE, longitude: np.ndarray = LONGITUDE) -> tuple[list, list]:
    rows, columns = Grid(latitude, longitude).locate(box)
    return list(latitude[rows]), [value for piece in columns for value in longitude[piece]]


def test_west_and_south_edges_belong_to_a_box_and_east_and_north_edges_do_not() -> None:
    assert cells(Box(0, 10, 4, 4)) == ([-2, -1, 0, 1], [8, 9, 10, 11])


def test_window_wraps_over_greenwich_west_to_east() -> None:
    assert cells(Box(50, 0, 2, 6))[1] == [357, 358, 359, 0, 1, 2]
    assert cells(Box(50, -1, 2, 6))[1] == [356, 357, 358, 359, 0, 1]
    assert Grid(LATITUDE, LONGITUDE).locate(Box(50, 1.5, 2, 4))[1] == (slice(0, 4),)  # from 359.5: one piece


def test_window_stops_at_the_poles_and_the_last_box_takes_the_pole() -> None:
    assert cells(Box(88, 0, 8, 1))[0] == [84, 85, 86, 87, 88, 89, 90]  # 84 to 92
    assert cells(Box(86, 0, 8, 1))[0] == [82, 83, 84, 85, 86, 87, 88, 89, 90]  # 82 to 90: no box beyond could
    assert cells(Box(-90, 0, 4, 1))[0] == [-90, -89]


@settings(deadline=None)
@given(
    west=st.floats(-720, 720),
    widths=st.lists(st.floats(0.5, 90), min_size=1, max_size=8),
    south=st.floats(-89, 0),
)
def test_boxes_side_by_side_share_no_cell_and_leave_none_out(west: float, widths: list, south: float) -> None:
    # Boxes that go once around the globe hold each column exactly once, and stacked ones each row.
    widths = [min(width * 360 / sum(widths), 360.0) for width in widths]
    columns: list[float] = []
    for width in widths:
        try:
            columns += cells(Box(0, west + width / 2, 10, width))[1]
        except OutOfRangeError:  # too narrow to hold a cell
            assert width <= 1
        west += width
    assert sorted(columns) == list(LONGITUDE)
    lower, upper = (
        cells(Box((south - 90) / 2, 0, south + 90, 1))[0],
        cells(Box((south + 90) / 2, 0, 90 - south, 1))[0],
    )
    assert lower + upper == list(LATITUDE)


@settings(deadline=None)
@given(
    shift=st.integers(0, 359), longitude=st.floats(0, 360), latitude=st.floats(-90, 90), size=st.floats(1, 60)
)
def test_window_of_a_rolled_grid_is_the_same_window(
    shift: int, longitude: float, latitude: float, size: float
) -> None:
    # A window over the seam equals the window of the same field with the seam elsewhere.
    dataset = make_dataset(LATITUDE[::10], steps=1)
    rolled = dataset.roll(longitude=shift, roll_coords=False)  # the field moves east by `shift` columns
    here = select_window(dataset, time="2026-03-25", box=Box(latitude, longitude, 20, size))
    there = select_window(rolled, time="2026-03-25", box=Box(latitude, longitude + shift, 20, size))
    np.testing.assert_array_equal(here.fields, there.fields)
    np.testing.assert_array_equal(here.latitude, there.latitude)
    np.testing.assert_allclose((here.longitude + shift) % 360, there.longitude)


def test_float32_coordinates_do_not_lose_cells_at_the_edge() -> None:
    # float32(359.9) is 359.89999…: still on the western edge of a box that begins at 359.9.
    grid = np.arange(3600).astype(np.float32) / np.float32(10)
    columns = cells(Box(0, 0, 2, 0.2), longitude=grid.astype(np.float64))[1]
    np.testing.assert_allclose(columns, [359.9, 0.0], atol=1e-4)
    # float32(9.9) is 9.8999996: on the northern edge of a box that ends at 9.9, so not in it.
    rows = cells(Box(9.8, 0, 0.2, 0.2), latitude=grid[:200].astype(np.float64))[0]
    np.testing.assert_allclose(rows, [9.7, 9.8], atol=1e-4)


def test_whole_globe_begins_at_the_western_edge() -> None:
    assert cells(Box(0, 0, 180, 360))[1] == [*range(180, 360), *range(180)]
    assert cells(Box(0, 0, 180, 360))[0] == list(LATITUDE)


def test_region_over_greenwich_cuts_off_at_its_edges() -> None:
    # 350 … 359, 0 … 9 stored ascending; a box around 5°E reaches past the region.
    region = np.array([*range(10), *range(350, 360)], dtype=np.float64)
    assert cells(Box(50, 5, 2, 20), longitude=region)[1] == [355, 356, 357, 358, 359, *range(10)]


@pytest.mark.parametrize("place", [(50, 40), (50, -20), (20, 5)])
def test_place_outside_a_region_is_refused(place: tuple[float, float]) -> None:
    region = np.array([*range(10), *range(350, 360)], dtype=np.float64)
    with pytest.raises(OutOfRangeError, match=r"within the fields, latitude 40 to 60"):
        Grid(np.arange(40.0, 61.0), region).locate(Box(*place, 30, 30))


def test_gaussian_grid_covers_the_pole() -> None:
    gaussian = np.array([-87.159, -83.479, -79.777, 79.777, 83.479, 87.159])
    assert cells(Box(90, 0, 16, 1), latitude=gaussian)[0] == [83.479, 87.159]
    assert cells(Box(-90, 0, 16, 1), latitude=gaussian)[0] == [-87.159, -83.479]


def test_box_between_cells_is_refused() -> None:
    with pytest.raises(OutOfRangeError, match="at least one grid cell"):
        Grid(LATITUDE, LONGITUDE).locate(Box(0.5, 0.5, 0.5, 0.5))


@pytest.mark.parametrize(("args", "error"), [
    ((91, 0, 1, 1), PlaceError), ((np.nan, 0, 1, 1), PlaceError), ((0, np.inf, 1, 1), PlaceError),
    ((0, 0, 0, 1), UsageError), ((0, 0, 1, 361), UsageError),
])  # fmt: skip
def test_impossible_boxes_are_refused(args: tuple, error: type[Exception]) -> None:
    with pytest.raises(error):
        Box(*args)


def test_box_edges() -> None:
    box = Box(85, -5, 16, 20)
    assert (box.longitude, box.south, box.north, box.west, box.east) == (355, 77, 90, 345, 5)
    assert Box(0, -1e-20, 1, 1).longitude == 0


def test_history_ends_at_the_valid_time() -> None:
    window = select_window(make_dataset(), time="2026-03-25T16:00", box=Box(0, 0, 2, 2), history=2)
    assert list(window.time) == [np.datetime64("2026-03-25T08:00"), np.datetime64("2026-03-25T16:00")]
    # Value of t2m at step t, row r, column c is (t * 181 + r) * 360 + c; rows -1, 0 are 89, 90; columns 359,
    # 0.
    expected = [[[(t * 181 + r) * 360 + c for c in (359, 0)] for r in (89, 90)] for t in (1, 2)]
    np.testing.assert_array_equal(window.field("t2m"), expected)
    np.testing.assert_array_equal(window.field("msl"), np.negative(expected))
    assert window.fields.dtype == np.float32
    assert list(window.longitude) == [359, 0]


def test_history_before_the_first_time_names_the_usable_range() -> None:
    with pytest.raises(OutOfRangeError, match="valid time from 2026-03-25T08:00 to 2026-03-25T16:00"):
        select_window(make_dataset(), time="2026-03-25", history=2)
    with pytest.raises(OutOfRangeError, match="too few steps"):
        select_window(make_dataset(), time="2026-03-25", history=9)
    with pytest.raises(UsageError):
        select_window(make_dataset(), time="2026-03-25", history=0)


def test_only_the_cut_is_read() -> None:
    class Counting(xr.backends.common.BackendArray):
        def __init__(self, values):
            self.values, self.shape, self.dtype, self.read = values, values.shape, values.dtype, 0

        def __getitem__(self, key):
            def get(index):
                part = self.values[index]
                self.read += part.size
                return part

            return xr.core.indexing.explicit_indexing_adapter(
                key, self.shape, xr.core.indexing.IndexingSupport.BASIC, get
            )

    values = Counting(np.zeros((3, 181, 360), dtype=np.float32))
    lazy = xr.core.indexing.LazilyIndexedArray(values)
    dataset = make_dataset().drop_vars(["t2m", "msl"]).assign(t2m=(("time", "latitude", "longitude"), lazy))
    select_window(dataset, time="2026-03-25T08:00", box=Box(0, 0, 4, 4))
    assert values.read == 16


def test_all_missing_variable_stays_and_is_not_available() -> None:
    dataset = make_dataset()
    dataset["msl"] = dataset["msl"] * np.nan
    dataset["t2m"][0, 90, 0] = np.nan  # one missing value is no missing variable
    window = select_window(dataset, time="2026-03-25", box=Box(0, 0, 4, 4))
    assert window.variables == ("t2m", "msl")
    assert window.available() == ("t2m",)
    assert np.isnan(window.field("msl")).all()


def test_absent_variable_is_named() -> None:
    window = Window.from_dataset(make_dataset())
    with pytest.raises(VariableNotFoundError, match="z500: expected one of t2m, msl"):
        window.field("z500")


def test_from_dataset_orders_dimensions_and_spreads_what_has_no_time() -> None:
    dataset = make_dataset()
    other = dataset.transpose("longitude", "time", "latitude")
    np.testing.assert_array_equal(Window.from_dataset(other).fields, Window.from_dataset(dataset).fields)
    static = dataset.assign(lsm=dataset["t2m"].isel(time=0, drop=True))
    window = Window.from_dataset(static)
    np.testing.assert_array_equal(window.field("lsm"), window.field("t2m")[[0, 0, 0]])


def test_one_time_as_a_plain_coordinate() -> None:
    window = Window.from_dataset(make_dataset().isel(time=1))
    assert window.fields.shape == (1, 2, 181, 360)


def test_levels_are_refused() -> None:
    with pytest.raises(CanonicalizationError, match="choose one level"):
        Window.from_dataset(make_dataset().expand_dims(level=[500.0]))


def test_shapes_must_fit() -> None:
    with pytest.raises(UsageError, match=r"shape \(1, 1, 2, 2\)"):
        Window(np.zeros((1, 1, 2, 3), np.float32), ("t2m",), np.zeros(1, "M8[s]"), np.zeros(2), np.zeros(2))


def test_centers_of_boxes_keep_boxes_inside_a_region_and_anywhere_on_the_sphere() -> None:
    globe = Grid(np.arange(-90.0, 91), np.arange(360.0))
    assert globe.centers(16, 16) is None
    # Cells of 1 degree from 340 to 19 over Greenwich, 40 to 59 north: edges 339.5 to 19.5 and 39.5 to 59.5.
    longitude = np.sort(np.arange(340.0, 380) % 360)
    area = Grid(np.arange(40.0, 60), longitude).centers(10, 16)
    assert area is not None
    assert (area.south, area.north) == (44.5, 54.5)
    assert (area.west % 360, area.width) == (347.5, 24.0)
    # A side shorter than twice the margin leaves its middle half: of 20 degrees 10.
    narrow = Grid(np.arange(40.0, 60), longitude).centers(16, 16)
    assert narrow is not None
    assert narrow.height == 10
    # At a pole nothing is cut off but by the pole.
    polar = Grid(np.arange(50.0, 91), np.arange(360.0)).centers(16, 16)
    assert polar is not None
    assert (polar.south, polar.north, polar.width) == (57.5, 90.0, 360.0)
