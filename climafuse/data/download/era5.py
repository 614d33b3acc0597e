"""ERA5 from the Copernicus Climate Data Store: requests made by cdsapi, results brought by our own transfer.

One request makes one file: the variables of one kind over a month or a day. Instants, sums and means are asked for
apart, because the store packs them into a zip archive when they come together. A request waits in the store's queue
for minutes to hours; its number is kept in `NAME.request.json`, so that a later run goes on waiting for it instead of
asking again.

Reference: ECMWF, "ERA5: data documentation", and "Climate Data Store: how to use the API",
https://cds.climate.copernicus.eu/how-to-api.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from climafuse.data.download.access import Access
from climafuse.data.download.plan import Part, Plan, digest
from climafuse.data.download.request import Days, check_hours, require, stored_variables
from climafuse.data.download.transfer import (
    AGAIN,
    Attempts,
    Origin,
    Policy,
    Progress,
    Transient,
    check_room,
    download,
    known_checksum,
)
from climafuse.data.files import whole_file
from climafuse.data.variables import Variable
from climafuse.data.window import Box
from climafuse.errors import AccessError, DownloadError, UsageError, VariableNotFoundError

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

SERVICE = "the Climate Data Store"
REMEDY = (
    "Make an account at https://cds.climate.copernicus.eu, accept the licence of the data set at the end of its "
    "download form, and put url and key from https://cds.climate.copernicus.eu/how-to-api into ~/.cdsapirc or "
    "the environment variables CDSAPI_URL and CDSAPI_KEY."
)
GRID = 0.25  # degrees, of ERA5 in the store

# Canonical name -> name in the store's forms, for each of its data sets.
DATASETS: dict[str, dict[str, str]] = {
    "reanalysis-era5-single-levels": {
        "t2m": "2m_temperature",
        "d2m": "2m_dewpoint_temperature",
        "skt": "skin_temperature",
        "u10": "10m_u_component_of_wind",
        "v10": "10m_v_component_of_wind",
        "msl": "mean_sea_level_pressure",
        "sp": "surface_pressure",
        "tp": "total_precipitation",
        "tprate": "mean_total_precipitation_rate",
        "tcwv": "total_column_water_vapour",
        "tcc": "total_cloud_cover",
        "sst": "sea_surface_temperature",
        "siconc": "sea_ice_cover",
    },
    "reanalysis-era5-pressure-levels": {
        "t": "temperature",
        "u": "u_component_of_wind",
        "v": "v_component_of_wind",
        "w": "vertical_velocity",
        "q": "specific_humidity",
        "r": "relative_humidity",
        "z": "geopotential",
    },
}

# Cell method -> what a file of such variables is called.
_KINDS = {"point": "instant", "sum": "accumulated", "mean": "mean"}


def plan_era5(
    folder: str | Path,
    *,
    variables: Sequence[str],
    start: str | date,
    end: str | date,
    hours: Sequence[int] | None = None,
    levels: Sequence[int] = (),
    box: Box | None = None,
    grid: float = GRID,
    split: str = "month",
    url: str | None = None,
    key: str | None = None,
) -> Plan:
    """Plan the requests that make some days of ERA5. Needs neither account nor network.

    Args:
        folder: Where the files go.
        variables: Canonical names; "t850" asks for a level, "t" for those in `levels`. All variables on levels
            come on all levels asked for, so that they open together.
        start: First day.
        end: Last day, included.
        hours: Hours of the day, UTC; all 24 where None.
        levels: Pressure levels in hPa.
        box: What to cut out; None for the globe.
        grid: Spacing in degrees; the store interpolates to another than 0.25.
        split: A file for each "month" or each "day".
        url: Of the store; that of cdsapi's configuration where None.
        key: For the store; that of cdsapi's configuration where None, which is the better place.

    Returns:
        The plan. Sizes are those of uncompressed fields; files come smaller.

    Raises:
        VariableNotFoundError: ERA5 does not hold a variable.
        UsageError: The request makes no sense, or cdsapi is missing.
    """
    require("cdsapi", extra="era5", service="ERA5")
    if split not in ("month", "day"):
        raise UsageError("split", expected="month or day", received=split, remedy="Choose one of the two.")
    if not 0 < grid <= 90:
        raise UsageError(
            "grid", expected="degrees in (0, 90]", received=grid, remedy="Write for example 0.25 or 1."
        )
    days, chosen = Days.of(start, end), check_hours(hours)
    store = _Store(url, key)
    parts = []
    for name, request in _requests(stored_variables(variables), levels).items():
        dataset = str(request.pop("dataset"))
        request |= {"product_type": ["reanalysis"], "time": [f"{hour:02d}:00" for hour in chosen]}
        if box is not None:
            request["area"] = _area(box)
        if grid != GRID:
            request["grid"] = [grid, grid]
        request |= {"data_format": "netcdf", "download_format": "unarchived"}
        for piece in days.split(split):
            parts.append(_part(name, dataset, request, piece, store, _cells(box, grid)))
    return Plan("era5", Path(folder), tuple(parts))


def _requests(variables: Sequence[Variable], levels: Sequence[int]) -> dict[str, dict[str, Any]]:
    """What must be asked for apart: name of the kind -> its data set, variables and levels."""
    found: dict[str, dict[str, Any]] = {}
    single, on_levels = DATASETS
    for variable in variables:
        name = variable.parent or variable.name
        dataset = next((key for key, held in DATASETS.items() if name in held), None)
        if dataset is None:
            raise VariableNotFoundError(
                f"variable {variable.name!r}",
                expected=f"one of {', '.join(key for held in DATASETS.values() for key in held)}",
                received=variable.long_name,
                remedy="ERA5 does not hold it, or under another name.",
            )
        kind = _KINDS[variable.cell_method] if dataset == single else "levels"
        request = found.setdefault(kind, {"dataset": dataset, "variable": []})
        if DATASETS[dataset][name] not in request["variable"]:
            request["variable"].append(DATASETS[dataset][name])
        if dataset == on_levels:
            asked = levels if variable.level is None else (*levels, variable.level)
            request["pressure_level"] = sorted({*request.get("pressure_level", ()), *map(int, asked)})
    for request in found.values():
        if request.get("pressure_level") == []:
            raise UsageError(
                "levels",
                expected="pressure levels for variables on levels",
                received="none",
                remedy="Name them as in t850, or give --level 850 --level 500.",
            )
        if "pressure_level" in request:
            request["pressure_level"] = [str(level) for level in request["pressure_level"]]
    return found


def _area(box: Box) -> list[float]:
    """North, west, south, east, as the store wants it; east of west where the box crosses the dateline."""
    west = (box.west + 180.0) % 360.0 - 180.0
    return [round(value, 4) for value in (box.north, west, box.south, west + box.width)]


def _cells(box: Box | None, grid: float) -> int:
    """Grid cells of a field."""
    height, width = (180.0, 360.0) if box is None else (box.north - box.south, box.width)
    return (int(height / grid) + 1) * max(1, int(width / grid))


def _part(name: str, dataset: str, request: Mapping[str, Any], days: Days, store: _Store, cells: int) -> Part:
    whole = {
        **request,
        "year": [f"{days.first:%Y}"],
        "month": [f"{days.first:%m}"],
        "day": [f"{day:%d}" for day in days.each()],
    }
    fields = (
        len(days.each()) * len(whole["time"]) * len(whole["variable"]) * len(whole.get("pressure_level", "1"))
    )
    return Part(
        f"era5_{name}_{days}_{digest(dataset=dataset, **request)}.nc",
        {"dataset": dataset, "request": whole},
        partial(store.bring, dataset, whole),
        size=4 * fields * cells,
    )


class _Store:
    """The Climate Data Store as one user sees it. The key is read when it is first needed, and kept here only."""

    def __init__(self, url: str | None, key: str | None) -> None:
        self._given = url, key
        self._made: Any = None

    @cached_property
    def _credentials(self) -> tuple[str, str]:
        """URL and key, from where cdsapi looks for them."""
        from cdsapi.api import get_url_key_verify

        try:
            url, key, _ = get_url_key_verify(*self._given, None)
        except Exception as error:  # cdsapi raises nothing more special
            where = os.environ.get("CDSAPI_RC", "~/.cdsapirc")
            raise Access(SERVICE, REMEDY).refused(
                f"no key: neither CDSAPI_KEY nor {where} hold one"
            ) from error
        if ":" in key:
            raise Access(SERVICE, REMEDY, (key, *key.split(":"))).refused(
                "a key of the old store (number:key), which was closed in 2024"
            )
        return url, key

    @property
    def access(self) -> Access:
        return Access(SERVICE, REMEDY, (self._credentials[1],))

    def bring(
        self, dataset: str, request: Mapping[str, Any], path: Path, policy: Policy, progress: Progress
    ) -> None:
        """Have the store make a file, wait for it, and bring it."""
        import requests

        ticket = path.with_name(f"{path.name}.request.json")
        results = self._results(dataset, request, ticket, policy, path.name)
        with self._asking(path.name):
            url, asset = results.location, results.asset
        size = asset.get("file:size")
        with requests.Session() as session:  # without the key: results may lie on another host
            origin = Origin(
                url,
                session,
                self.access,
                None if size is None else int(size),
                known_checksum(asset.get("file:checksum")),
            )
            part = path.with_name(f"{path.name}.part")
            have = part.stat().st_size if part.exists() else 0
            check_room(path.parent, max(0, (origin.size or 0) - have))
            try:
                download(origin, path, policy=policy, progress=progress)
            except DownloadError as error:
                if not isinstance(
                    error.__cause__, Transient
                ):  # results are deleted after days: ask anew then
                    ticket.unlink(missing_ok=True)
                raise
        ticket.unlink(missing_ok=True)

    def _results(
        self, dataset: str, request: Mapping[str, Any], ticket: Path, policy: Policy, name: str
    ) -> Any:
        """The results of a request: of the one that waits since an earlier run, or of a new one."""
        attempts, waits = Attempts(policy, name), 0
        number = earlier = _number(ticket)
        while True:
            try:
                with self._asking(name):
                    client = self._client(policy)
                    if number is None:
                        remote = client.submit(dataset, dict(request))
                        number = remote.request_id
                        with whole_file(ticket) as temporary:
                            temporary.write_text(json.dumps({"request": number}), encoding="utf-8")
                    else:
                        remote = client.get_remote(number)
                    while not remote.results_ready:
                        waits += 1
                        time.sleep(policy.wait(waits))
                    return remote.get_results()
            except Transient as failure:
                attempts.failed(failure)
            except DownloadError as error:
                ticket.unlink(missing_ok=True)
                if number != earlier or number is None or isinstance(error, AccessError):
                    raise
                logger.info("%s: request %s of an earlier run is gone, asking anew", name, number)
                number = earlier = None

    def _client(self, policy: Policy) -> Any:
        """The client of the store, silent; each of its calls is tried once, and again by us."""
        if self._made is None:
            import cdsapi

            url, key = self._credentials
            tell = {"warning_callback": self._tell, "error_callback": self._tell, "info_callback": self._tell}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # news of the store that cannot be read are no reason to stop
                self._made = cdsapi.Client(
                    url=url,
                    key=key,
                    quiet=True,
                    progress=False,
                    delete=False,
                    timeout=policy.stall,
                    retry_max=1,
                    sleep_max=policy.longest_wait,
                    session=_session(url),
                    debug_callback=_nothing,  # would be the whole text of every answer
                    **tell,
                ).client
        return self._made

    def _tell(self, text: str, *values: object) -> None:
        logger.info("%s", self.access.told(text % values if values else text))

    @contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Errors of the store and of its client, told without the key; causes are left out, as they may hold it."""
        import requests
        from ecmwf.datastores.processing import LinkError, ProcessingFailedError

        access = self.access
        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status in AGAIN:
                raise Transient(f"status {status} from {SERVICE}") from None
            if status in (401, 403):
                raise access.refused(str(error), argument=name) from None
            raise _failed(name, access.told(str(error))) from None
        except ProcessingFailedError as error:
            raise _failed(name, f"a request that failed: {access.told(str(error))}") from None
        except requests.exceptions.SSLError:
            raise _failed(name, "a certificate that does not fit") from None
        except requests.RequestException as error:
            raise Transient(f"no answer from {SERVICE} ({type(error).__name__})") from None
        except (KeyError, TypeError, AssertionError, LinkError) as error:  # an answer of another form
            raise _failed(name, f"an answer that is none ({type(error).__name__})") from None


def _number(ticket: Path) -> str | None:
    """The number of a request that an earlier run left waiting."""
    try:
        number = json.loads(ticket.read_text(encoding="utf-8"))["request"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none was left: it is asked for anew
    return number if isinstance(number, str) else None


def _session(url: str) -> requests.Session:
    """A session that sends the key to the store's own host only, wherever a link or a redirect leads."""
    import requests

    def host(of: str) -> tuple[str, str]:
        parts = urlsplit(of)
        return parts.scheme, parts.netloc

    class KeepsKey(requests.Session):
        def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
            if host(str(request.url)) != host(url):
                request.headers.pop("PRIVATE-TOKEN", None)
            return super().send(request, **options)

    return KeepsKey()


def _nothing(*_: object) -> None:
    pass


def _failed(name: str, received: str) -> DownloadError:
    return DownloadError(
        name,
        expected=f"a file made by {SERVICE}",
        received=received,
        remedy="Correct the request if the store says what is wrong with it; else try again later.",
    )
