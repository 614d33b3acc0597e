"""ERA5: what the store is asked for, and whose key asks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from climafuse.data.download import fetch, plan_era5
from climafuse.data.download.era5 import DATASETS
from climafuse.data.variables import find_variable
from climafuse.data.window import Box
from climafuse.errors import AccessError, DownloadError, UsageError, VariableNotFoundError
from tests.data.download.rigs import KEY, POLICY, Era5
from tests.data.download.server import Answer, Request, Server

SINGLE, LEVELS = DATASETS


@pytest.fixture
def rig(server: Server, other: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Era5:
    (tmp_path / "rig").mkdir()
    return Era5(server, other, tmp_path / "rig", monkeypatch)


def requests_of(folder: Path, *variables: str, **options: Any) -> dict[str, dict[str, Any]]:
    """Kind → request, of one day in July 2019."""
    plan = plan_era5(folder, **{"variables": variables, "start": "2019-07-04", "end": "2019-07-04"} | options)
    return {part.name.split("_")[1]: dict(part.source) for part in plan.parts}  # type: ignore[arg-type]


def test_names_of_the_store_are_those_that_open_climate_knows() -> None:
    for names in DATASETS.values():
        assert {name: find_variable(spelling).name for name, spelling in names.items()} == {
            name: name for name in names
        }


def test_a_request_as_the_store_wants_it(tmp_path: Path) -> None:
    found = requests_of(
        tmp_path, "t2m", "ws10", hours=(0, 12), box=Box(50, 10, 20, 40), grid=0.5, end="2019-07-06"
    )
    assert found == {
        "instant": {
            "dataset": SINGLE,
            "request": {
                "product_type": ["reanalysis"],
                "variable": ["2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind"],
                "year": ["2019"],
                "month": ["07"],
                "day": ["04", "05", "06"],
                "time": ["00:00", "12:00"],
                "area": [60.0, -10.0, 40.0, 30.0],
                "grid": [0.5, 0.5],
                "data_format": "netcdf",
                "download_format": "unarchived",
            },
        }
    }


def test_what_the_store_would_zip_is_asked_for_apart(tmp_path: Path) -> None:
    found = requests_of(tmp_path, "t2m", "tp", "tprate", "z500", "t850")
    assert {kind: request["request"]["variable"] for kind, request in found.items()} == {
        "instant": ["2m_temperature"],
        "accumulated": ["total_precipitation"],
        "mean": ["mean_total_precipitation_rate"],
        "levels": ["geopotential", "temperature"],
    }
    assert found["levels"]["dataset"] == LEVELS
    assert found["levels"]["request"]["pressure_level"] == ["500", "850"]


def test_levels_are_named_with_the_variable_or_apart(tmp_path: Path) -> None:
    found = requests_of(tmp_path, "t", "u300", levels=(850, 500))
    assert found["levels"]["request"]["pressure_level"] == ["300", "500", "850"]
    with pytest.raises(UsageError, match="pressure levels for variables on levels"):
        requests_of(tmp_path, "t")


@pytest.mark.parametrize(
    ("box", "area"),
    [
        (Box(0, 0, 20, 40), [10, -20, -10, 20]),  # over Greenwich
        (Box(0, 180, 20, 40), [10, 160, -10, 200]),  # over the dateline
        (Box(85, 10, 20, 360), [90, -170, 75, 190]),
    ],
)
def test_areas_go_from_west_to_east(tmp_path: Path, box: Box, area: list[float]) -> None:
    assert requests_of(tmp_path, "t2m", box=box)["instant"]["request"]["area"] == area


def test_sizes_are_those_of_uncompressed_fields(tmp_path: Path) -> None:
    """A month of one variable on ERA5's grid, hourly: 744 × 721 × 1440 × 4 bytes."""
    plan = plan_era5(tmp_path, variables=["t2m"], start="2020-01-01", end="2020-03-31")
    assert [part.size for part in plan.parts] == [4 * 24 * days * 721 * 1440 for days in (31, 29, 31)]
    levels = plan_era5(tmp_path, variables=["t850", "u500"], start="2020-01-01", end="2020-01-01", hours=(0,))
    assert levels.parts[0].size == 4 * 2 * 2 * 721 * 1440


def test_requests_that_differ_make_files_of_different_names(tmp_path: Path) -> None:
    base = {"variables": ["t2m"], "start": "2020-01-01", "end": "2020-01-31"}
    others = [
        {},
        {"variables": ["d2m"]},
        {"hours": (0,)},
        {"grid": 1.0},
        {"box": Box(0, 0, 10, 10)},
        {"end": "2020-01-30"},
    ]
    names = {plan_era5(tmp_path, **base | other).parts[0].name for other in others}
    assert len(names) == len(others)
    longer = plan_era5(tmp_path, **base | {"end": "2020-02-10"})
    assert longer.parts[0].name in names  # January stays what it is


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "year"}, "month or day"),
        ({"grid": 0}, "degrees in"),
        ({"grid": math.nan}, "degrees in"),
        ({"hours": (24,)}, "hours of the day"),
        ({"variables": ["sst_anomaly"]}, "ERA5 does not hold it"),
    ],
)
def test_requests_without_sense_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, VariableNotFoundError), match=message):
        requests_of(tmp_path, "t2m", **options)


def test_a_plan_needs_no_key_and_a_fetch_tells_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CDSAPI_URL", "CDSAPI_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CDSAPI_RC", str(tmp_path / "none"))
    plan = plan_era5(tmp_path / "data", variables=["t2m"], start="2020-01-01", end="2020-01-01", hours=(0,))
    with pytest.raises(AccessError, match=r"no key.*how-to-api into ~/.cdsapirc"):
        fetch(plan)
    assert not (tmp_path / "data").exists()


def test_a_key_of_the_old_store_is_told_as_such(rig: Era5, tmp_path: Path) -> None:
    plan = rig.plan(tmp_path, key="12345:0b5c2e4a-1111", url=f"{rig.server.url}/api")
    with pytest.raises(AccessError, match="closed in 2024") as caught:
        fetch(plan, policy=POLICY)
    assert "0b5c2e4a" not in str(caught.value)
    assert not rig.server.requests


def test_a_key_that_the_store_refuses_is_not_told(rig: Era5, tmp_path: Path) -> None:
    """The server answers with all the headers that it got, the key among them."""
    wrong = "1c6d3f5b-wrong-key"
    with pytest.raises(AccessError, match=r"401.*'PRIVATE-TOKEN': '\*\*\*'") as caught:
        fetch(rig.plan(tmp_path, key=wrong), policy=POLICY)
    assert wrong not in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_licence_that_is_not_accepted_is_told_with_its_page(rig: Era5, tmp_path: Path) -> None:
    page = "https://cds.climate.copernicus.eu/datasets/reanalysis-era5-single-levels?tab=download"
    answer = {"title": "required licences not accepted", "detail": f"please visit {page} to accept"}
    plain = rig.api
    rig.server.dynamic["/api/"] = lambda request: (
        Answer.json(answer, 403) if request.path.endswith("/execution") else plain(request)
    )
    with pytest.raises(AccessError, match=r"required licences not accepted.*reanalysis-era5-single-levels"):
        fetch(rig.plan(tmp_path), policy=POLICY)


def test_an_answer_of_another_form_is_told(rig: Era5, tmp_path: Path) -> None:
    rig.server.dynamic = {"/api/": lambda request: Answer.json([])}
    with pytest.raises(DownloadError, match="an answer that is none"):
        fetch(rig.plan(tmp_path), policy=POLICY)
    rig.server.dynamic = {"/api/": lambda request: Answer(200, b"<html>maintenance</html>")}
    with pytest.raises(DownloadError, match=r"an answer that is none|no answer"):
        fetch(rig.plan(tmp_path), policy=POLICY)


def test_a_link_to_another_host_gets_no_key(rig: Era5, tmp_path: Path) -> None:
    """The store's answers say where to look next; the key goes to the store alone."""
    plain, rig.other.files = rig.api, rig.server.files

    def elsewhere(request: Request) -> Answer:
        answer = plain(request)
        answer.body = answer.body.replace(rig.server.url.encode(), rig.other.url.encode())
        return answer

    rig.server.dynamic["/api/"] = elsewhere
    rig.other.dynamic["/api/"] = plain
    with pytest.raises(AccessError, match="401"):
        fetch(rig.plan(tmp_path), policy=POLICY)
    assert rig.other.requests
    assert not rig.other.sent("PRIVATE-TOKEN")
    assert rig.server.sent("PRIVATE-TOKEN") == {KEY}
