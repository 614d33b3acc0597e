"""ARCO-ERA5: which chunks are read, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from climafuse import open_climate
from climafuse.data.download import Plan, arco, fetch, plan_arco
from climafuse.data.download.arco import STORE, _open_store
from climafuse.data.window import Box
from climafuse.errors import DownloadError, OutOfRangeError, UsageError, VariableNotFoundError
from tests.data.download.rigs import POLICY, Arco
from tests.data.download.server import Server

LEVELS = np.array([300, 500, 850], dtype=np.int64)
TIMES = np.datetime64("2020-02-28T00", "s") + np.arange(12) * np.timedelta64(3, "h")
LATITUDE, LONGITUDE = np.arange(90.0, -91, -15), np.arange(0, 360, 15.0)


@pytest.fixture
def dataset() -> xr.Dataset:
    """In the layout of ARCO-ERA5: north to south, all levels in a chunk; its time axis runs further than its data."""
    random = np.random.default_rng(0)
    shape = (len(TIMES), len(LATITUDE), len(LONGITUDE))
    surface = random.uniform(250, 300, shape).astype(np.float32)
    upper = random.uniform(200, 300, (shape[0], 3, *shape[1:])).astype(np.float32)
    hours = ((TIMES - np.datetime64("1900-01-01")) // np.timedelta64(1, "h")).astype(np.int64)
    return xr.Dataset(
        {
            "2m_temperature": (("time", "latitude", "longitude"), surface, {"units": "K"}),
            "temperature": (("time", "level", "latitude", "longitude"), upper, {"units": "K"}),
        },
        {
            "time": ("time", hours, {"units": "hours since 1900-01-01", "calendar": "proleptic_gregorian"}),
            "level": ("level", LEVELS),
            "latitude": ("latitude", LATITUDE.astype(np.float32)),
            "longitude": ("longitude", LONGITUDE.astype(np.float32)),
        },
        {"valid_time_start": "2020-02-28", "valid_time_stop": "2020-02-29"},
    )


def written(dataset: xr.Dataset, path: Path, *, times: int = 1, zarr_format: int = 2, cut: int = 1) -> str:
    sizes = {
        "time": times,
        "level": 3,
        "latitude": len(LATITUDE) // cut + 1,
        "longitude": len(LONGITUDE) // cut,
    }
    encoding = {
        name: {"chunks": [min(sizes[str(dim)], array.sizes[dim]) for dim in array.dims]}
        for name, array in dataset.data_vars.items()
    }
    dataset.to_zarr(path, zarr_format=zarr_format, consolidated=zarr_format == 2, encoding=encoding)
    return str(path)


def planned(folder: Path, store: str, *variables: str, **options: Any) -> Plan:
    request = {"variables": variables, "start": "2020-02-28", "end": "2020-02-29", "store": store}
    return plan_arco(folder, **request | {"policy": POLICY} | options)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_surface_and_one_level_of_some_hours(dataset: xr.Dataset, tmp_path: Path, zarr_format: int) -> None:
    store = written(dataset, tmp_path / "store.zarr", zarr_format=zarr_format)
    plan = planned(tmp_path / "data", store, "t2m", "t850", hours=(0, 12))
    assert plan.summary()["times"] == 3  # two on the first day, one of the second, whose last hour is 09
    assert plan.summary()["chunks"] == 6
    assert plan.summary()["chunk_bytes"] == 3 * 4 * 13 * 24 * (1 + 3)
    fetch(plan, policy=POLICY)
    opened = open_climate(tmp_path / "data" / "*.nc").load()  # type: ignore[arg-type]
    expected = dataset.isel(time=[0, 4, 8], latitude=slice(None, None, -1))
    np.testing.assert_array_equal(opened["t2m"], expected["2m_temperature"])
    np.testing.assert_array_equal(opened["t850"], expected["temperature"].isel(level=2))
    np.testing.assert_array_equal(opened["time"], TIMES[[0, 4, 8]])
    assert set(opened.data_vars) == {"t2m", "t850"}
    assert opened["t2m"].attrs["units"] == "K"


def test_all_levels(dataset: xr.Dataset, tmp_path: Path) -> None:
    store = written(dataset, tmp_path / "store.zarr")
    plan = planned(tmp_path / "data", store, "t", end="2020-02-28")
    assert plan.parts[0].size is not None
    assert plan.parts[0].size >= 8 * 3 * 13 * 24 * 4
    fetch(plan, policy=POLICY)
    opened = open_climate(tmp_path / "data" / plan.parts[0].name).load()
    np.testing.assert_array_equal(opened["t"], dataset["temperature"].isel(time=slice(8))[..., ::-1, :])
    np.testing.assert_array_equal(opened["level"], LEVELS)


def test_a_box_over_greenwich(dataset: xr.Dataset, tmp_path: Path) -> None:
    """Latitude 37.5 to 67.5 has the centers 45 and 60; longitude -22.5 to 22.5 has -15, 0 and 15."""
    store = written(dataset, tmp_path / "store.zarr")
    plan = planned(tmp_path / "data", store, "t2m", box=Box(52.5, 0, 30, 45))
    fetch(plan, policy=POLICY)
    opened = open_climate(tmp_path / "data" / plan.parts[0].name).load()
    np.testing.assert_array_equal(opened["latitude"], [45, 60])
    np.testing.assert_array_equal(opened["longitude"], [0, 15, 345])
    expected = dataset["2m_temperature"].isel(latitude=[3, 2], longitude=[0, 1, 23])
    np.testing.assert_array_equal(opened["t2m"], expected)


@pytest.mark.parametrize(
    ("box", "chunks"),
    [
        (None, 8 * 4),
        (Box(52.5, 37.5, 20, 20), 8),  # latitude 45, 60; longitude 30, 45: north-western chunk only
        (Box(52.5, 180, 20, 40), 16),  # on both sides of 180
        (Box(0, 0, 20, 40), 8 * 2),  # only the equator; on both sides of Greenwich
    ],
)
def test_only_the_chunks_of_the_plan_are_asked_for(
    dataset: xr.Dataset,
    tmp_path: Path,
    server: Server,
    box: Box | None,
    chunks: int,
) -> None:
    """Two by two chunks: rows 90…0 and -15…-90, columns 0…165 and 180…345. The equator's row is in the first."""
    store = tmp_path / "store.zarr"
    written(dataset, store, cut=2)
    for path in store.rglob("*"):
        if path.is_file():
            server.files[f"/{path.relative_to(tmp_path).as_posix()}"] = path.read_bytes()
    plan = planned(tmp_path / "data", f"{server.url}/store.zarr", "t2m", end="2020-02-28", box=box)
    assert plan.summary()["chunks"] == chunks
    assert not [request for request in server.requests if "2m_temperature/" in request.path]
    fetch(plan, policy=POLICY)
    asked = [request.path for request in server.requests if "2m_temperature/" in request.path]
    assert len(asked) == len(set(asked)) == chunks
    assert not [request for request in server.requests if "/temperature/" in request.path]


def test_a_file_takes_whole_chunks_of_time(dataset: xr.Dataset, tmp_path: Path) -> None:
    """Chunks of five times: 12 times are three chunks, of which the first day has 0-7."""
    store = written(dataset, tmp_path / "store.zarr", times=5)
    plan = planned(tmp_path / "data", store, "t2m", file_bytes=1)
    spans = [part.name.split("_")[1] for part in plan.parts]
    assert spans == [
        "20200228T0000-20200228T1200",
        "20200228T1500-20200229T0300",
        "20200229T0600-20200229T0900",
    ]
    fetch(plan, policy=POLICY)
    opened = open_climate([tmp_path / "data" / part.name for part in plan.parts]).load()
    np.testing.assert_array_equal(opened["t2m"], dataset["2m_temperature"][:, ::-1])
    # Two chunks of 5 × 13 × 24 × 4 bytes fit into 13,000.
    assert len(planned(tmp_path, store, "t2m", file_bytes=13_000).parts) == 2


def test_no_chunk_is_read_twice(
    dataset: xr.Dataset, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of five times, read one at a time."""
    monkeypatch.setattr(arco, "READ_BYTES", 1)
    store = tmp_path / "store.zarr"
    written(dataset, store, times=5)
    for path in store.rglob("*"):
        if path.is_file():
            server.files[f"/{path.relative_to(tmp_path).as_posix()}"] = path.read_bytes()
    plan = planned(tmp_path / "data", f"{server.url}/store.zarr", "t2m")
    fetch(plan, policy=POLICY)
    asked = [request.path for request in server.requests if "2m_temperature/" in request.path]
    assert len(asked) == len(set(asked)) == plan.summary()["chunks"] == 3
    opened = open_climate(tmp_path / "data" / plan.parts[0].name).load()
    np.testing.assert_array_equal(opened["t2m"], dataset["2m_temperature"][:, ::-1])


def test_few_hours_of_a_day_do_not_make_small_files(dataset: xr.Dataset, tmp_path: Path) -> None:
    """Every fourth time, and room for two fields of 13 × 24 × 4 bytes: files take eight steps of the axis."""
    store = written(dataset, tmp_path / "store.zarr")
    plan = planned(tmp_path, store, "t2m", hours=(0, 12), file_bytes=2 * 1248)
    assert [part.source["times"] for part in plan.parts] == [  # type: ignore[index]
        ["2020-02-28T00:00", "2020-02-28T12:00"],
        ["2020-02-29T00:00", "2020-02-29T00:00"],
    ]


def test_a_small_box_does_not_make_files_of_years(
    dataset: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file ends where the chunks read for it do: three of 13 × 24 × 4 bytes, however little is kept of each."""
    store = written(dataset, tmp_path / "store.zarr")
    assert len(planned(tmp_path, store, "t2m", box=Box(45, 15, 1, 1)).parts) == 1
    monkeypatch.setattr(arco, "FILE_READS", 3 * 1248)
    assert len(planned(tmp_path, store, "t2m", box=Box(45, 15, 1, 1)).parts) == 4


def test_zeros_are_values(dataset: xr.Dataset, tmp_path: Path) -> None:
    """A store of Zarr 2 whose fill value is 0, as of arrays that were given none: dry hours are not missing."""
    dataset["total_precipitation"] = dataset["2m_temperature"].copy(
        data=np.zeros_like(dataset["2m_temperature"])
    )
    dataset["total_precipitation"].attrs["units"] = "m"
    store = tmp_path / "store.zarr"
    encoding = {"total_precipitation": {"chunks": (1, 13, 24), "_FillValue": np.float32(0)}}
    dataset.to_zarr(store, zarr_format=2, encoding=encoding, write_empty_chunks=True)
    plan = planned(tmp_path / "data", str(store), "tp")
    fetch(plan, policy=POLICY)
    assert float(open_climate(tmp_path / "data" / plan.parts[0].name)["tp"].max()) == 0.0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"start": "2020-02-27"}, OutOfRangeError, "days from 2020-02-28 to 2020-02-29"),
        ({"end": "2020-03-01"}, OutOfRangeError, "days from 2020-02-28 to 2020-02-29"),
        ({"hours": (1,)}, OutOfRangeError, "at hours that it holds"),
        ({"variables": ["u10"]}, VariableNotFoundError, "u10"),
        ({"variables": ["t700"]}, VariableNotFoundError, "t700"),
        ({"box": Box(7, 7, 1, 1)}, OutOfRangeError, "at least one grid cell"),
        ({"store": "nowhere://x"}, UsageError, "protocol"),
    ],
)
def test_what_the_store_does_not_hold_is_refused(
    dataset: xr.Dataset, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    store = written(dataset, tmp_path / "store.zarr")
    with pytest.raises(error, match=message):
        planned(tmp_path / "data", options.pop("store", store), **{"variables": ["t2m"]} | options)
    assert not (tmp_path / "data").exists()


def test_a_chunk_that_was_lost_is_refused(dataset: xr.Dataset, tmp_path: Path) -> None:
    store = written(dataset, tmp_path / "store.zarr", zarr_format=3)
    plan = planned(tmp_path / "data", store, "t2m")
    (tmp_path / "store.zarr" / "2m_temperature" / "c" / "3" / "0" / "0").unlink()
    with pytest.raises(DownloadError, match="c/3/0/0: expected a chunk; received none"):
        fetch(plan, policy=POLICY)
    assert not list((tmp_path / "data").glob("*.nc"))


@pytest.mark.slow  # imports Google's clients
def test_the_public_store_is_asked_without_an_account() -> None:
    pytest.importorskip("gcsfs")
    store: Any = _open_store(STORE)
    assert store.fs.storage_options["token"] == "anon"
    assert store.path == STORE.removeprefix("gs://")


def test_a_signature_in_a_uri_is_not_told(
    server: Server, other: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rig").mkdir()
    rig = Arco(server, other, tmp_path / "rig", monkeypatch)
    with pytest.raises(DownloadError) as caught:
        rig.plan(tmp_path / "data", store=f"{server.url}/none.zarr?signature=secret")
    assert "secret" not in str(caught.value)
