"""What a download will bring, before it brings anything; and the one loop that brings it.

A plan is a list of parts, each a file. What is there already is known by `download.json` in the folder, which holds
size and SHA-256 of every file that arrived whole: a second run checks those and brings only what is missing or has
changed on the disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from climafuse.data.download.transfer import Policy, Progress, check_room, free_bytes, has_checksum
from climafuse.data.files import whole_file
from climafuse.data.lock import alone
from climafuse.errors import DownloadError

logger = logging.getLogger(__name__)

RECORD_NAME = "download.json"
LOCK_NAME = ".download.lock"
FORMAT = 1

State: TypeAlias = Literal["whole", "changed", "partial", "missing"]
Bring: TypeAlias = Callable[[Path, Policy, Progress], None]
FileProgress: TypeAlias = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Part:
    """One file of a plan.

    Args:
        name: Of the file, in the folder of the plan.
        source: Where it is from, or the request that makes it; without credentials.
        bring: Brings it whole and checked to a path, or raises.
        size: Bytes, where they are known or can be estimated.
        exact: Whether the size is exact.
        checksum: That of the service, as in "md5:9e107d9d…".
    """

    name: str
    source: str | Mapping[str, Any]
    bring: Bring = field(repr=False, compare=False)
    size: int | None = None
    exact: bool = False
    checksum: str | None = None

    def __post_init__(self) -> None:
        """Names come from services: none may lead out of the folder, nor hide in it."""
        if (
            not self.name
            or Path(self.name).name != self.name
            or self.name.startswith(".")
            or "\\" in self.name
        ):
            raise DownloadError(
                "name of a file",
                expected="a plain file name",
                received=repr(self.name),
                remedy="The service lists a file that cannot be stored safely; leave out its day.",
            )


@dataclass(frozen=True)
class Plan:
    """The files that a download will bring.

    Args:
        service: Whose they are: "merra2", "era5", "arco".
        folder: Where they go.
        parts: The files.
        notes: What else a user should know, as in how much must be read to make them; name → JSON value.
    """

    service: str
    folder: Path
    parts: tuple[Part, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """A plan without files, or with two of one name, is a mistake of the request."""
        names = [part.name for part in self.parts]
        if not names or len(set(names)) < len(names):
            raise DownloadError(
                f"plan of {self.service}",
                expected="files of different names",
                received="no file" if not names else "several files of one name",
                remedy="Check dates and variables.",
            )

    def states(self) -> dict[str, State]:
        """What is there of each file. Files that arrived are read and compared with their SHA-256."""
        record = read_record(self.folder)
        return {
            part.name: _state(self.folder / part.name, record.get(part.name), part.checksum)
            for part in self.parts
        }

    def missing_bytes(self, states: Mapping[str, State]) -> int:
        """Bytes still to come, of the files whose size is known; those of begun files are not counted."""
        return sum(
            max(0, (part.size or 0) - _size(_beside(self.folder / part.name)))
            for part in self.parts
            if states[part.name] != "whole"
        )

    @property
    def exact(self) -> bool:
        """Whether the size of every file is known exactly."""
        return all(part.exact for part in self.parts)

    def summary(self) -> dict[str, Any]:
        """The plan as JSON values: files with their states, bytes, room on the disk."""
        states = self.states()
        missing, free = self.missing_bytes(states), free_bytes(self.folder)
        return {
            "service": self.service,
            "folder": str(self.folder),
            "files": [
                {
                    "name": part.name,
                    "bytes": part.size,
                    "exact": part.exact,
                    "checksum": part.checksum,
                    "state": states[part.name],
                    "source": part.source,
                }
                for part in self.parts
            ],
            "bytes": sum(part.size or 0 for part in self.parts),
            "exact": self.exact,
            "bytes_missing": missing,
            "bytes_free": free,
            "fits": missing <= free,
            **self.notes,
        }


@dataclass(frozen=True)
class Fetched:
    """What a download did.

    Args:
        folder: Where the files are.
        files: All files of the plan.
        num_fetched: How many of them were brought now; the others were there and whole.
        num_bytes: Bytes of all files.
    """

    folder: Path
    files: tuple[Path, ...]
    num_fetched: int
    num_bytes: int


def fetch(plan: Plan, *, policy: Policy | None = None, progress: FileProgress | None = None) -> Fetched:
    """Bring the files of a plan that are not there yet.

    Args:
        plan: What to bring.
        policy: How patient to be.
        progress: Told file, bytes there and bytes of the file (None where unknown).

    Returns:
        What there is now: every file of the plan, whole.

    Raises:
        AccessError: The service wants an account, a login or its terms accepted.
        DownloadError: A file cannot be had. Those before it stay, and what has come of it.
        OutputError: A file cannot be written, or there is no room for all of them.
        UsageError: Another process is filling the folder.
    """
    states = plan.states()
    check_room(plan.folder, plan.missing_bytes(states), estimated=not plan.exact)
    if any(state != "whole" for state in states.values()) or read_record(plan.folder).keys() < states.keys():
        with alone(plan.folder / LOCK_NAME):
            _bring(plan, states, policy or Policy(), progress)
    return Fetched(
        folder=plan.folder,
        files=tuple(plan.folder / part.name for part in plan.parts),
        num_fetched=sum(state != "whole" for state in states.values()),
        num_bytes=sum(_size(plan.folder / part.name) for part in plan.parts),
    )


def _bring(plan: Plan, states: Mapping[str, State], policy: Policy, progress: FileProgress | None) -> None:
    record = read_record(plan.folder)
    for part in plan.parts:
        path = plan.folder / part.name
        if states[part.name] == "whole":
            if part.name not in record:
                _enter(plan, part, path)
            continue
        if states[part.name] == "changed":
            logger.info("%s: not as it arrived, brought again", part.name)
        part.bring(path, policy, _named(progress, part.name))
        _enter(plan, part, path)


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """What arrived in a folder: name → size, SHA-256, where from and when; empty where nothing did.

    Raises:
        DownloadError: The record is not one that this version wrote.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = content["files"]
        if content["format"] != FORMAT or not all(
            isinstance(entry["size"], int) and isinstance(entry["sha256"], str) for entry in files.values()
        ):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadError(
            str(path),
            expected=f"a record of downloads, format {FORMAT}",
            received="something else, or an altered one",
            remedy="Delete it to have the files brought again, or choose another folder.",
        ) from error
    return dict(files)


def write_record(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what arrived in a folder."""
    content = {"format": FORMAT, "files": dict(sorted(files.items()))}
    with whole_file(folder / RECORD_NAME) as path:
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def digest(**request: Any) -> str:
    """A few letters that tell one request from another, for names of files."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]


def _enter(plan: Plan, part: Part, path: Path) -> None:
    entry = {
        "size": _size(path),
        "sha256": _sha256(path),
        "service_checksum": part.checksum,
        "service": plan.service,
        "source": part.source,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_record(plan.folder, {**read_record(plan.folder), part.name: entry})


def _state(path: Path, entry: Mapping[str, Any] | None, checksum: str | None) -> State:
    if not path.exists():
        return "partial" if _size(_beside(path)) else "missing"
    if entry is not None:
        same = _size(path) == entry["size"] and _sha256(path) == entry["sha256"]
    else:  # a copy from elsewhere, or an end between the last byte and the record
        same = checksum is not None and has_checksum(path, checksum)
    return "whole" if same else "changed"


def _named(progress: FileProgress | None, name: str) -> Progress:
    return (
        (lambda done, total: None) if progress is None else (lambda done, total: progress(name, done, total))
    )


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
