"""One file over HTTP: continued where it broke off, tried again when that may help, whole or not there.

Bytes go to `NAME.part`, and `NAME.part.json` beside it says which version of the file they belong to (ETag or
Last-Modified). The next attempt, of this run or a later one, asks for the rest on the condition that the version is
the same (If-Range). A server that knows no ranges, or has another version by now, sends the whole file, and the part
starts anew. What arrives is checked for what it is (a login page under status 200 is none), its length and its
checksum before it gets its name.

Reference: RFC 9110, section 14 (range requests), 13.1.5 (If-Range), 10.2.3 (Retry-After).
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from climafuse.data.download.access import Access, public_url
from climafuse.data.files import sync, whole_file
from climafuse.errors import DownloadError, OutputError

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

BLOCK = 64 * 1024  # bytes; what is lost of a block that stalls in the middle must be little
# Letters of a checksum in hexadecimal -> its algorithm; services give MD5 more often than not.
_ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses of a server that may do better later

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Policy:
    """How patient to be.

    Args:
        attempts: Attempts in a row that may fail without one new byte.
        unreached: The same for a service that could not even be connected to, ever: there may be no network.
        stall: Seconds without a byte until an attempt has failed.
        first_wait: Seconds before the second attempt; doubled for each further one.
        longest_wait: Seconds; no wait is longer, not even one that the server asks for.
    """

    attempts: int = 8
    unreached: int = 3
    stall: float = 60.0
    first_wait: float = 1.0
    longest_wait: float = 120.0

    def wait(self, failures: int, asked: float | None = None) -> float:
        """Seconds to wait after a number of failures in a row, or as the server asked."""
        doubled = self.first_wait * 2.0 ** min(failures - 1, 30)
        return min(self.longest_wait, doubled if asked is None else max(asked, 0.0))


class Transient(Exception):
    """An attempt failed in a way that another one may not.

    Args:
        reason: What happened, without credentials.
        wait: Seconds that the server asks to wait.
        reached: Whether there was a connection.
    """

    def __init__(self, reason: str, *, wait: float | None = None, reached: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait
        self.reached = reached


@dataclass
class Attempts:
    """Tries something until it works or has failed too often without getting any further."""

    policy: Policy
    name: str
    furthest: int = 0
    failures: int = 0
    reached: bool = False

    def failed(self, failure: Transient, position: int = 0) -> None:
        """Wait after a failure.

        Args:
            failure: What happened.
            position: How far the work had come, in bytes; getting further than ever sets the count back.

        Raises:
            DownloadError: It has failed too often.
        """
        self.failures = 1 if position > self.furthest else self.failures + 1
        self.furthest = max(self.furthest, position)
        self.reached |= failure.reached
        most = self.policy.attempts if self.reached else min(self.policy.attempts, self.policy.unreached)
        if self.failures >= most:
            raise DownloadError(
                self.name,
                expected="a service that delivers it",
                received=f"{failure.reason}, {self.failures} times in a row",
                remedy="Run the same command again later: it goes on from what has arrived."
                if self.reached
                else "Check network and proxy of this machine, then run the same command again.",
            ) from failure
        wait = self.policy.wait(self.failures, failure.wait)
        logger.info("%s: %s; trying again in %.3g s", self.name, failure.reason, wait)
        time.sleep(wait)


@dataclass(frozen=True)
class Origin:
    """A file at a URL, and what its service says of it.

    Args:
        url: Where it is; may hold a signature, and is told without its query.
        session: For the request; carries the login, if any. Requests leaves `Authorization` behind when a
            redirect leads to another host.
        access: The service.
        size: Bytes, where it is known exactly.
        checksum: As in "md5:9e107d9d…", where the service gives one.
    """

    url: str = field(repr=False)
    session: requests.Session = field(repr=False)
    access: Access
    size: int | None = None
    checksum: str | None = None


def download(origin: Origin, destination: Path, *, policy: Policy, progress: Progress) -> None:
    """Bring a file to a path: whole, checked, under its name at the end only.

    Args:
        origin: The file.
        destination: Where it shall be.
        policy: How patient to be.
        progress: Told the bytes that are there and the bytes of the file, where known.

    Raises:
        AccessError: The service wants an account, a login or its terms accepted.
        DownloadError: The file cannot be had, or is not what its service says.
        OutputError: It cannot be written.
    """
    part = _Part(destination, origin)
    attempts = Attempts(policy, destination.name, furthest=part.resumable())
    while True:
        try:
            _attempt(origin, part, policy, progress)
            _verify(origin, part)
            break
        except Transient as failure:
            attempts.failed(failure, part.size())
    with _writing(destination, 0):
        sync(part.path)
        part.path.replace(destination)
        sync(destination.parent)
    part.note.unlink(missing_ok=True)


class _Part:
    """The bytes that are there already, and which version of the file they are of."""

    def __init__(self, destination: Path, origin: Origin) -> None:
        self.path = destination.with_name(f"{destination.name}.part")
        self.note = destination.with_name(f"{destination.name}.part.json")
        self.origin = origin

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self) -> str | None:
        """ETag or date of the version that the bytes belong to."""
        version = self._noted().get("version")
        return version if isinstance(version, str) else None

    def resumable(self) -> int:
        """Bytes to go on from: none unless version or checksum will tell whether the rest fits to them."""
        size, checksum = self.size(), self.origin.checksum
        too_many = self.origin.size is not None and size > self.origin.size
        same = self.version() is not None or (checksum and self._noted().get("checksum") == checksum)
        return size if same and not too_many else 0

    def begin(self, version: str | None) -> None:
        """Forget what is there: the whole file comes."""
        self.discard()
        with whole_file(self.note) as path:
            path.write_text(
                json.dumps({"version": version, "checksum": self.origin.checksum}), encoding="utf-8"
            )

    def _noted(self) -> dict[str, object]:
        try:
            found = json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # nothing is known of the bytes: they come anew
        return found if isinstance(found, dict) else {}

    def open(self, mode: str) -> IO[bytes]:
        with _writing(self.path, self.origin.size or 0):
            return self.path.open(mode)

    def discard(self) -> None:
        with _writing(self.path, 0):
            self.path.unlink(missing_ok=True)
            self.note.unlink(missing_ok=True)


def _attempt(origin: Origin, part: _Part, policy: Policy, progress: Progress) -> None:
    """Ask for what is missing and write what comes; raises Transient if that is not all."""
    offset = part.resumable()
    if offset and offset == origin.size:
        return
    # A body that is compressed on the way could not be continued at a byte of the file.
    headers = {"Accept-Encoding": "identity"}
    if offset:
        version = part.version()
        headers["Range"] = f"bytes={offset}-"
        if version is not None and not version.startswith("W/"):  # a weak ETag must not stand here
            headers["If-Range"] = version
    with _network(origin.access, part, policy):
        response = origin.session.get(
            origin.url, headers=headers, stream=True, timeout=(policy.stall, policy.stall)
        )
        with contextlib.closing(response):
            start, total = _accept(response, origin, part, offset)
            have = start
            with part.open("ab" if start else "wb") as file:
                for block in response.iter_content(BLOCK):
                    if have == start:
                        _check_offer(block, start, total, origin, part)
                    with _writing(part.path, (total or 0) - have):
                        file.write(block)
                        file.flush()  # so that what has arrived outlives an interruption
                    have += len(block)
                    progress(have, total)
    if total is not None and have != total:
        if have > total:
            part.discard()
        raise Transient(f"the body ended after {have:,} of {total:,} bytes")


def _accept(response: requests.Response, origin: Origin, part: _Part, offset: int) -> tuple[int, int | None]:
    """Decides from the header what comes: the byte it starts at, and the bytes of the whole file."""
    status, name = response.status_code, part.path.name.removesuffix(".part")
    version = _version(response)
    if status == 416:
        part.discard()  # the server knows fewer bytes than are there: they are of something else
        raise Transient("the server has no such range; starting anew")
    if status in (401, 403):
        raise origin.access.refused(f"status {status}", argument=name)
    if status in AGAIN:
        raise Transient(f"status {status}", wait=_retry_after(response))
    if status not in (200, 206):
        raise DownloadError(
            name,
            expected=f"a file at {public_url(response.url)}",
            received=f"status {status}",
            remedy="Make the plan anew with --dry-run: the service may have moved the file.",
        )
    if response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
        raise origin.access.refused(
            "a web page instead of the file, as an expired login gives", argument=name
        )
    if status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if span is None or int(span[1]) != offset or version != part.version():
            part.discard()
            raise Transient("the server went on with another version of the file; starting anew")
        start = offset
        total = None if span[2] == "*" else int(span[2])
    else:
        part.begin(version)
        start = 0
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
    total = origin.size if total is None else total
    chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    if total is None and origin.checksum is None and not chunked:
        raise DownloadError(
            name,
            expected="a server that tells the size of a file",
            received="neither size nor checksum",
            remedy="Without them a broken file looks like a whole one; get it from another server.",
        )
    return start, total


def _check_offer(block: bytes, start: int, total: int | None, origin: Origin, part: _Part) -> None:
    """Refuse what cannot be the file, before more than its first bytes have arrived."""
    name = part.path.name.removesuffix(".part")
    if start == 0:
        check_start(block, name, origin.access)
    if origin.size is not None and total != origin.size:
        part.discard()
        raise DownloadError(
            name,
            expected=f"{origin.size:,} bytes, as {origin.access.service} lists it",
            received=f"a file of {total:,} bytes",
            remedy="Make the plan anew with --dry-run: the service may be replacing the file.",
        )


def _verify(origin: Origin, part: _Part) -> None:
    if origin.checksum is None:
        return
    if not has_checksum(part.path, origin.checksum):
        part.discard()
        raise Transient(
            f"what arrived has not the {origin.checksum.partition(':')[0]} that the service lists"
        )


def has_checksum(path: Path, checksum: str) -> bool:
    """Whether a file has a checksum, given as in "md5:9e107d9d…"."""
    algorithm, _, expected = checksum.partition(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest() == expected.lower()


def check_start(block: bytes, name: str, access: Access) -> None:
    """Refuse what does not begin as NetCDF does, before a gigabyte of it has arrived.

    Raises:
        AccessError: It is a web page.
        DownloadError: It is something else.
    """
    if block.startswith((b"CDF", b"\x89HDF")):
        return
    if block.lstrip()[:1] == b"<":
        raise access.refused("a web page instead of the file, as an expired login gives", argument=name)
    kind = "a zip archive" if block.startswith(b"PK") else "another kind of file"
    raise DownloadError(
        name,
        expected="NetCDF",
        received=f"{kind} from {access.service}",
        remedy="Ask for fewer variables at once, or get the file from the service's web page.",
    )


def known_checksum(value: object) -> str | None:
    """A checksum as a service writes it, with its algorithm; None for a kind that cannot be computed here."""
    text = str(value or "").strip().lower()
    if not re.fullmatch(r"[0-9a-f]+", text) or len(text) not in _ALGORITHMS:
        return None
    return f"{_ALGORITHMS[len(text)]}:{text}"


def free_bytes(folder: Path) -> int:
    """Bytes free where a folder is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def check_room(folder: Path, needed: int, *, estimated: bool = False) -> None:
    """Refuse to begin what will not fit.

    Args:
        folder: Where the files go.
        needed: Bytes.
        estimated: Whether the bytes are.

    Raises:
        OutputError: Names the bytes needed and the bytes free.
    """
    free = free_bytes(folder)
    if needed > free:
        raise OutputError(
            str(folder),
            expected=f"{'about ' if estimated else ''}{needed:,} free bytes",
            received=f"{free:,}",
            remedy="Make room, choose another folder, or ask for fewer days, variables or a smaller box.",
        )


@contextlib.contextmanager
def _writing(path: Path, needed: int) -> Iterator[None]:
    """Errors of the disk, apart from those of the network: Requests derives its own from OSError."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise OutputError(
            str(path),
            expected=f"room for {needed:,} more bytes" if full else "a file that can be written",
            received=error.strerror or os.strerror(error.errno or 0),
            remedy="Make room or correct the folder, then run the same command again: it goes on from here.",
        ) from error


@contextlib.contextmanager
def _network(access: Access, part: _Part, policy: Policy) -> Iterator[None]:
    """Errors of the network: those that may pass are Transient, others final.

    Theirs are not kept as causes: their texts hold URLs, and signatures in them.
    """
    import requests

    kinds: dict[type[Exception], str] = {
        requests.exceptions.ReadTimeout: f"nothing arrived for {policy.stall:g} s",
        requests.exceptions.ConnectTimeout: f"no connection within {policy.stall:g} s",
        requests.exceptions.ChunkedEncodingError: f"the connection broke after {part.size():,} bytes",
        requests.exceptions.ConnectionError: "no connection, or one that broke or stalled",
    }
    try:
        yield
    except requests.exceptions.SSLError:
        raise _unreachable(access, part, "a certificate that does not fit") from None
    except tuple(kinds) as error:
        raise Transient(next(text for kind, text in kinds.items() if isinstance(error, kind))) from None
    except requests.exceptions.RequestException as error:
        raise _unreachable(access, part, type(error).__name__) from None


def connected(error: requests.RequestException) -> bool:
    """Whether there was a connection when a request failed."""
    import requests
    from urllib3.exceptions import NewConnectionError

    # A name that cannot be resolved is one of these, too.
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return not isinstance(error, requests.exceptions.ConnectTimeout) and not isinstance(
        reason, NewConnectionError
    )


def _unreachable(access: Access, part: _Part, received: str) -> DownloadError:
    return DownloadError(
        part.path.name.removesuffix(".part"),
        expected=f"a connection to {access.service}",
        received=received,
        remedy="Check network, proxy and certificates of this machine.",
    )


def _version(response: requests.Response) -> str | None:
    """What tells one version of a file from another: a strong ETag, else the date, else a weak ETag."""
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified") or etag


def _retry_after(response: requests.Response) -> float | None:
    """Seconds the server asks to wait: it may give a number or a date."""
    text = response.headers.get("Retry-After", "").strip()
    if not text:
        return None
    if text.isdigit():
        return float(text)
    with contextlib.suppress(TypeError, ValueError):
        return (email.utils.parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    return None
