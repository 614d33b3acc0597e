"""MERRA-2 granules from NASA's GES DISC: found by earthaccess, brought by our own transfer.

A granule holds a day of one collection, the whole globe and all its variables (some 100 to 1,200 MB). Cutting out
boxes or variables is a service of its own (GES DISC's subsetter) and not part of this.

Reference: Bosilovich et al. 2016, MERRA-2: File Specification, GMAO Office Note 9 (collections and variables).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from climafuse.data.download.access import Access, public_url
from climafuse.data.download.plan import Part, Plan
from climafuse.data.download.request import Days, require, stored_variables
from climafuse.data.download.transfer import (
    AGAIN,
    Attempts,
    Origin,
    Policy,
    Progress,
    Transient,
    connected,
    download,
    known_checksum,
)
from climafuse.data.variables import Variable
from climafuse.errors import DownloadError, VariableNotFoundError

if TYPE_CHECKING:
    import requests
    from earthaccess.auth import Auth
    from earthaccess.system import System

VERSION = "5.12.4"
SERVICE = "NASA Earthdata"
REMEDY = (
    "Make an account at https://urs.earthdata.nasa.gov, approve 'NASA GESDISC DATA ARCHIVE' there under "
    "Applications, and put login and password into ~/.netrc (machine urs.earthdata.nasa.gov) or a token into "
    "the environment variable EARTHDATA_TOKEN."
)

# Collection -> canonical variables it holds, in the order in which collections are preferred: hourly means
# before three-hourly instants. Variables on levels stand for all their channels.
COLLECTIONS: dict[str, tuple[str, ...]] = {
    "M2T1NXSLV": ("t2m", "d2m", "q2m", "skt", "u10", "v10", "msl", "sp", "tcwv", "t850", "t500", "t250", "u850",
                  "u500", "u250", "v850", "v500", "v250", "q850", "q500", "q250", "zg1000", "zg850", "zg500",
                  "zg250", "w500"),
    "M2T1NXFLX": ("tprate", "tprate_corrected", "siconc"),
    "M2T1NXRAD": ("tcc",),
    "M2I3NPASM": ("t", "u", "v", "w", "q", "r", "zg"),
}  # fmt: skip


def plan_merra2(
    folder: str | Path,
    *,
    variables: Sequence[str],
    start: str | date,
    end: str | date,
    collection: str | None = None,
    policy: Policy | None = None,
    system: System | None = None,
) -> Plan:
    """Find the granules that hold variables on some days. Needs no login.

    Args:
        folder: Where they go.
        variables: Canonical names, which choose the collections.
        start: First day.
        end: Last day, included.
        collection: Short name, such as "M2I1NXASM", where the table's choice is not wanted; then no variables are
            needed.
        policy: How patient to be with the search.
        system: NASA's servers; those in operation where None.

    Returns:
        The plan: a part for each granule.

    Raises:
        VariableNotFoundError: No collection of the table holds a variable.
        DownloadError: The search failed, or found no granule.
        UsageError: The request makes no sense, or earthaccess is missing.
    """
    days = Days.of(start, end)
    chosen = (collection,) if collection else collections_of(stored_variables(variables))
    login = _Login(system)
    parts = [
        _part(granule, login) for name in chosen for granule in _search(name, days, login, policy or Policy())
    ]
    return Plan(
        "merra2",
        Path(folder),
        tuple(parts),
        {"collections": list(chosen), "days": [str(days.first), str(days.last)]},
    )


def collections_of(variables: Sequence[Variable]) -> tuple[str, ...]:
    """The collections to take variables from, each once.

    Raises:
        VariableNotFoundError: None of the table holds one.
    """
    chosen: dict[str, None] = {}
    for variable in variables:
        names = (variable.name, variable.parent)
        holders = [name for name, held in COLLECTIONS.items() if any(wanted in held for wanted in names)]
        if not holders:
            raise VariableNotFoundError(
                f"variable {variable.name!r}",
                expected=f"one of {', '.join(name for held in COLLECTIONS.values() for name in held)}",
                received=variable.long_name,
                remedy="MERRA-2 does not hold it, or in a collection that must be named: --collection.",
            )
        chosen[holders[0]] = None
    return tuple(chosen)


class _Login:
    """A session that is logged in when it is first used: a plan asks for no account."""

    def __init__(self, system: System | None) -> None:
        auth = require("earthaccess.auth", extra="merra2", service="MERRA-2")
        self.auth: Auth = auth.Auth()
        if system is not None:
            self.auth._set_earthdata_system(system)

    @property
    def access(self) -> Access:
        token = (self.auth.token or {}).get("access_token")
        secrets = (token, self.auth.password, f"{self.auth.username}:{self.auth.password}")
        return Access(SERVICE, REMEDY, tuple(secret for secret in secrets if secret))

    @cached_property
    def session(self) -> requests.Session:
        """Logged in by environment variables or ~/.netrc; nobody is asked, and nothing is stored."""
        import requests
        from earthaccess.exceptions import LoginAttemptFailure, LoginStrategyUnavailable

        for strategy in ("environment", "netrc"):
            try:
                with _silent("earthaccess"):
                    self.auth.login(strategy=strategy, system=self.auth.system)
            except LoginStrategyUnavailable:
                continue
            except LoginAttemptFailure:
                raise self.access.refused("a login that it refused") from None
            except requests.RequestException as error:
                raise _failed(f"login at {SERVICE}", type(error).__name__) from None
            if self.auth.authenticated:
                return self.auth.get_session()
        raise self.access.refused("no login: neither environment variables nor ~/.netrc hold one")


def _search(collection: str, days: Days, login: _Login, policy: Policy) -> list[Mapping[str, Any]]:
    """Metadata of the granules of a collection on some days, as NASA's catalog (CMR) gives them (UMM-G)."""
    import requests
    from earthaccess.search import DataGranules

    query = DataGranules(login.auth).short_name(collection).version(VERSION)
    query = query.temporal(f"{days.first}T00:00:00Z", f"{days.last}T23:59:59Z")
    query.session = _timed_session(policy)  # the catalog is public: no login goes there
    attempts = Attempts(policy, "search for granules")
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of earthaccess about a call of its own
                granules = [granule["umm"] for granule in query.get_all()]
            break
        except requests.RequestException as error:
            told = f"no answer from {SERVICE} ({type(error).__name__})"
            attempts.failed(Transient(told, reached=connected(error)))
        except RuntimeError as error:  # how earthaccess tells a status
            status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
            if status not in AGAIN:
                raise _failed(
                    "search for granules", f"status {status}: {login.access.told(str(error))}"
                ) from None
            attempts.failed(Transient(f"status {status} from {SERVICE}"))
        except KeyError as error:  # an answer of another form
            raise _failed("search for granules", f"an answer without {error}") from None
    if not granules:
        raise DownloadError(
            f"MERRA-2 collection {collection}",
            expected=f"granules of version {VERSION} from {days.first} to {days.last}",
            received="none",
            remedy="MERRA-2 begins in 1980 and ends some weeks ago; check the days and the collection's short name.",
        )
    return granules


def _timed_session(policy: Policy) -> requests.Session:
    """A session that does not wait forever, as earthaccess' search would."""
    import requests
    from requests.adapters import HTTPAdapter

    class Timed(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
            return super().send(request, *args, **{**options, "timeout": policy.stall})

    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, Timed())
    return session


def _part(granule: Mapping[str, Any], login: _Login) -> Part:
    links = [
        str(link["URL"])
        for link in granule.get("RelatedUrls", ())
        if link.get("Type") == "GET DATA" and str(link.get("URL", "")).startswith(("http://", "https://"))
    ]
    links = [url for url in links if public_url(url).endswith((".nc4", ".nc"))]
    links.sort(key=lambda url: not url.startswith("https://"))  # a login goes there
    if not links:
        raise DownloadError(
            f"granule {granule.get('GranuleUR')}",
            expected="a link to a NetCDF file",
            received="none",
            remedy="Look for it on https://disc.gsfc.nasa.gov; it may be withdrawn.",
        )
    name = public_url(links[0]).rpartition("/")[2]
    size, exact, checksum = _archived(granule, name)

    def bring(path: Path, policy: Policy, progress: Progress) -> None:
        origin = Origin(links[0], login.session, login.access, size if exact else None, checksum)
        download(origin, path, policy=policy, progress=progress)

    return Part(name, public_url(links[0]), bring, size=size, exact=exact, checksum=checksum)


def _archived(granule: Mapping[str, Any], name: str) -> tuple[int | None, bool, str | None]:
    """Size in bytes, whether it is exact, and checksum of a granule's file, as far as its metadata tell them."""
    entries = granule.get("DataGranule", {}).get("ArchiveAndDistributionInformation", [])
    named = [entry for entry in entries if entry.get("Name") == name]
    if not named and len(entries) != 1:
        return None, False, None  # several files, and none says which it is
    entry = (named or entries)[0]
    checksum = known_checksum(entry.get("Checksum", {}).get("Value"))
    if "SizeInBytes" in entry:
        return int(entry["SizeInBytes"]), True, checksum
    unit = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}.get(entry.get("SizeUnit"))
    return (int(entry["Size"] * unit) if unit and "Size" in entry else None), False, checksum


def _failed(what: str, received: str) -> DownloadError:
    return DownloadError(
        what,
        expected="an answer",
        received=received,
        remedy="Check the network, see https://status.earthdata.nasa.gov, and try again later.",
    )


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """A library's log may repeat what a server says of a login; ours tells it in our own words."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)
