"""The three services, imitated: real clients, a local server, small files in each product's layout."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import xarray as xr

from climafuse import open_climate
from climafuse.data.download import Plan, Policy, plan_arco, plan_era5, plan_merra2
from tests.data import fixtures
from tests.data.download.server import Answer, Request, Server

# Patient with a machine that is busy, but for tests of stalling themselves.
POLICY = Policy(attempts=4, stall=2.0, first_wait=0.01, longest_wait=0.05)
HASTY = replace(POLICY, stall=0.2)
TOKEN, KEY = "earthdata-token-that-is-secret", "0b5c2e4a-cds-key-that-is-secret"
SECRETS = (TOKEN, KEY)
DAYS = ("2020-02-28", "2020-02-29")


def truth(*names: str, days: int = 2, seed: int = 0) -> fixtures.Truth:
    """Fields large enough to come in several blocks: 3° and six-hourly from 2020-02-28."""
    random = np.random.default_rng(seed)
    known = fixtures.Truth(
        {},
        latitude=np.linspace(-90, 90, 61),
        longitude=np.arange(0, 360, 3.0),
        time=np.datetime64("2020-02-28T00", "s") + np.arange(4 * days) * np.timedelta64(6, "h"),
    )
    shape = (4 * days, 61, 120)
    for name in names:
        known.fields[name] = random.uniform(*fixtures.RANGES[name], size=shape).astype(np.float32)
    return known


def part_of(known: fixtures.Truth, day: int) -> fixtures.Truth:
    """One day of a truth."""
    steps = slice(4 * day, 4 * day + 4)
    return fixtures.Truth(
        {name: values[steps] for name, values in known.fields.items()},
        known.latitude,
        known.longitude,
        known.time[steps],
    )


class Rig:
    """A service: its plan of two days, the path of a file that may misbehave, and what must come of it."""

    name: str
    path: str
    variables = ("t2m", "u10")
    has_ranges = True

    def __init__(self, server: Server, other: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, self.other, self.folder = server, other, folder
        self.truth = truth(*self.variables)

    def plan(self, into: Path, **options: Any) -> Plan:
        raise NotImplementedError

    def check(self, into: Path, plan: Plan) -> None:
        """The files open as the fields that the service has, exactly."""
        opened = open_climate([into / part.name for part in plan.parts], variables=self.variables)
        expected = fixtures.canonical(self.truth)
        xr.testing.assert_equal(opened.load().drop_attrs(), expected)

    def _file(self, dataset: xr.Dataset) -> bytes:
        path = self.folder / "written.nc"
        dataset.to_netcdf(path, engine="netcdf4")
        return path.read_bytes()


class Merra2(Rig):
    """NASA: a catalog (CMR) that lists granules, and a server that holds them."""

    name = "merra2"

    def __init__(self, server: Server, other: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from earthaccess.system import PROD, System

        super().__init__(server, other, folder, monkeypatch)
        monkeypatch.setenv("EARTHDATA_TOKEN", TOKEN)
        monkeypatch.setenv("NETRC", str(folder / "netrc"))
        self.system = System(f"{server.url}/search/", PROD.status_url, PROD.status_api_url, PROD.edl_hostname)
        self.names = [f"MERRA2_400.tavg1_2d_slv_Nx.2020022{day}.nc4" for day in (8, 9)]
        for day, name in enumerate(self.names):
            server.files[f"/data/{name}"] = self._file(fixtures.merra2(part_of(self.truth, day)))
        self.path = f"/data/{self.names[0]}"
        self.checksums = True
        self.host = server.url
        server.dynamic["/search/granules"] = self.catalog

    def plan(self, into: Path, **options: Any) -> Plan:
        return plan_merra2(
            into,
            **{"variables": self.variables, "start": DAYS[0], "end": DAYS[1], "system": self.system}
            | {"policy": POLICY}
            | options,
        )

    def catalog(self, request: Request) -> Answer:
        query = parse_qs(urlsplit(request.path).query)
        items = [self.granule(name) for name in self.names if query["short_name"] == ["M2T1NXSLV"]]
        if query.get("page_size") == ["0"]:
            items, count = [], len(items)
        else:
            count = len(items)
        return Answer.json({"hits": count, "items": items}, **{"CMR-Hits": str(count)})

    def granule(self, name: str) -> dict[str, Any]:
        """As NASA's catalog describes a granule of MERRA-2 (UMM-G)."""
        content = self.server.files[f"/data/{name}"]
        entry: dict[str, Any] = {"Name": name, "SizeInBytes": len(content), "Size": 0.3, "SizeUnit": "MB"}
        if self.checksums:
            entry["Checksum"] = {"Value": hashlib.md5(content).hexdigest(), "Algorithm": "MD5"}
        return {
            "meta": {"concept-id": "G1-GES_DISC", "provider-id": "GES_DISC"},
            "umm": {
                "GranuleUR": f"M2T1NXSLV.5.12.4:{name}",
                "DataGranule": {"ArchiveAndDistributionInformation": [entry]},
                "RelatedUrls": [
                    {"URL": "s3://gesdisc-cumulus-prod-protected/x", "Type": "GET DATA VIA DIRECT ACCESS"},
                    {"URL": f"{self.host}/data/{name}", "Type": "GET DATA"},
                    {"URL": f"{self.host}/opendap/{name}", "Type": "USE SERVICE API"},
                ],
            },
        }


class Era5(Rig):
    """The Climate Data Store: requests that wait, run and end, and their results."""

    name = "era5"

    def __init__(self, server: Server, other: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(server, other, folder, monkeypatch)
        for variable in ("CDSAPI_URL", "CDSAPI_KEY"):
            monkeypatch.delenv(variable, raising=False)
        (folder / "cdsapirc").write_text(f"url: {server.url}/api\nkey: {KEY}\n")
        monkeypatch.setenv("CDSAPI_RC", str(folder / "cdsapirc"))
        self.jobs: dict[str, dict[str, Any]] = {}
        self.states = ["accepted", "running", "successful"]
        self.path = "/results/job0.nc"
        self.checksums = True
        self.host = server.url
        self.made = {f"{28 + day}": self._file(fixtures.era5(part_of(self.truth, day))) for day in (0, 1)}
        server.dynamic["/api/"] = self.api

    def plan(self, into: Path, **options: Any) -> Plan:
        request = {"variables": self.variables, "start": DAYS[0], "end": DAYS[1], "split": "day"}
        return plan_era5(into, **request | {"hours": (0, 6, 12, 18), "grid": 3.0} | options)

    def api(self, request: Request) -> Answer:
        """The parts of the API that cdsapi uses (OGC API Processes)."""
        path = urlsplit(request.path).path.removeprefix("/api/")
        if path == "catalogue/v1/messages":
            return Answer.json({"messages": []})
        if request.headers.get("PRIVATE-TOKEN") != KEY:
            return Answer.json({"title": "Authentication failed", "detail": f"not {request.headers}"}, 401)
        if path == "retrieve/v1/processes/reanalysis-era5-single-levels":
            return Answer.json({"id": "reanalysis-era5-single-levels"})
        if path.endswith("/execution"):
            number = f"job{len(self.jobs)}"
            inputs = json.loads(request.body)["inputs"]
            self.jobs[number] = {"inputs": inputs, "states": list(self.states)}
            self.server.files[f"/results/{number}.nc"] = self.made[inputs["day"][0]]
            return Answer.json(self._job(number, "accepted"), 201)
        found = re.fullmatch(r"retrieve/v1/jobs/(\w+)(/results)?", path)
        if found is None or found[1] not in self.jobs:
            return Answer.json({"type": "job not found", "title": "job not found"}, 404)
        number, states = found[1], self.jobs[found[1]]["states"]
        if found[2] is None:
            return Answer.json(self._job(number, states.pop(0) if len(states) > 1 else states[0]))
        if states[0] == "failed":
            return Answer.json({"title": "The job has failed", "detail": f"MARS said no to {KEY}"}, 400)
        content = self.server.files[f"/results/{number}.nc"]
        value: dict[str, Any] = {
            "type": "application/netcdf",
            "href": f"{self.host}/results/{number}.nc?signature={KEY}",
            "file:size": len(content),
            "file:local_path": f"s3://cci2-prod-cache-1/{number}.nc",
        }
        if self.checksums:
            value["file:checksum"] = hashlib.md5(content).hexdigest()
        return Answer.json({"asset": {"value": value}})

    def _job(self, number: str, status: str) -> dict[str, Any]:
        monitor = f"{self.server.url}/api/retrieve/v1/jobs/{number}"
        return {
            "processID": "reanalysis-era5-single-levels",
            "jobID": number,
            "status": status,
            "metadata": {"log": [["2026-01-01T00:00:00", f"INFO for {KEY}"]]},
            "links": [
                {"href": monitor, "rel": "monitor"},
                {"href": monitor, "rel": "self"},
                {"href": f"{monitor}/results", "rel": "results"},
            ],
        }


class Arco(Rig):
    """A public Zarr store over HTTP, in the layout of ARCO-ERA5: one chunk a time, the whole globe in it."""

    name = "arco"
    has_ranges = False

    def __init__(self, server: Server, other: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(server, other, folder, monkeypatch)
        store = folder / "store.zarr"
        dataset = fixtures.arco(self.truth)
        dataset.attrs |= {"valid_time_start": "2020-02-28", "valid_time_stop": "2020-02-29"}
        encoding = {name: {"chunks": (1, 120, 61)} for name in dataset.data_vars}
        dataset.to_zarr(store, zarr_format=2, consolidated=True, encoding=encoding)
        for path in store.rglob("*"):
            if path.is_file():
                server.files[f"/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
        self.store = f"{server.url}/store.zarr"
        self.path = "/store.zarr/2m_temperature/0.0.0"

    def plan(self, into: Path, **options: Any) -> Plan:
        # Two files: four times of two variables in each.
        file_bytes = 4 * 2 * 4 * 61 * 120
        return plan_arco(
            into,
            **{"variables": self.variables, "start": DAYS[0], "end": DAYS[1], "store": self.store}
            | {"policy": POLICY, "file_bytes": file_bytes}
            | options,
        )


RIGS: Sequence[type[Rig]] = (Merra2, Era5, Arco)
