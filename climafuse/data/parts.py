"""Folders made in parts: an interrupted job goes on where it stopped, and the folder still appears whole.

Beside the folder to be, `.NAME.parts/` holds

    plan.json       what the job is; only the same job may go on. And details that its first run noted
    done.jsonl      one record for each finished part, written after the files of the part are on the disk
    folder/         what there is so far; renamed when it is whole
    lock            held while a process writes
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from climafuse.data.files import sync, whole_file
from climafuse.data.lock import alone
from climafuse.errors import OutputError, UsageError

PLAN, DONE, FOLDER, LOCK = "plan.json", "done.jsonl", "folder", "lock"


class Parts:
    """An open folder in parts. `folder_in_parts` makes it.

    Args:
        place: The hidden folder beside the final one.
        details: What the first run noted.
        records: Of the parts that an earlier run finished; if there are none, the folder is empty.
    """

    def __init__(self, place: Path, details: Any, records: list[dict[str, Any]]) -> None:
        self.folder = place / FOLDER
        self.details = details
        self.records = records
        self._log = place / DONE

    def add(self, record: Mapping[str, Any]) -> None:
        """Record a finished part. Its files must be on the disk (`sync`) by now.

        Args:
            record: What is to be known of it; JSON values.
        """
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(dict(record))


@contextlib.contextmanager
def folder_in_parts(
    path: str | os.PathLike[str],
    plan: Mapping[str, Any],
    *,
    details: Callable[[], Any],
    repeatable: bool,
    final: tuple[type[Exception], ...] = (),
) -> Iterator[Parts]:
    """Fill a folder in parts, then rename it. The final path must not exist.

    What was finished stays if the job is killed or interrupted, or the disk is full.

    Args:
        path: Where the folder shall be; its parent is made.
        plan: What the job is; JSON values. Parts of another plan are not mixed with this one's.
        details: Gives what a job notes when it begins, and finds again when it goes on; JSON values.
        repeatable: Whether a job with the same plan finds the same data. If not, it begins anew.
        final: Errors after which no part is kept, since the same job would fail at the same place again.

    Yields:
        The parts so far.

    Raises:
        UsageError: Parts of another job are there, or a process is writing them now.
        OutputError: The folder cannot be written.
    """
    path = Path(path)
    place = path.with_name(f".{path.name}.parts")
    parts: Parts | None = None
    try:
        with alone(place / LOCK):
            try:
                parts = _open(place, plan, details, repeatable=repeatable)
                yield parts
                _sync_tree(parts.folder)
                parts.folder.rename(path)
                sync(path.parent)
            except BaseException as error:
                useless = parts is not None and not (parts.records and repeatable)
                if useless or isinstance(error, final):
                    shutil.rmtree(place, ignore_errors=True)
                raise
            shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        kept = place.exists()
        raise OutputError(
            str(path),
            expected="a place that can be written, with room on the disk",
            received=error.strerror or str(error),
            remedy=f"Make room and repeat the command, which goes on from the parts in {place}; or remove them."
            if kept
            else "Choose another place, or make room; nothing was left half-written.",
        ) from error


def _open(place: Path, plan: Mapping[str, Any], details: Callable[[], Any], *, repeatable: bool) -> Parts:
    """Parts of an earlier run of this plan, or an empty folder where there are none."""
    plan = json.loads(json.dumps(plan))
    try:
        found = json.loads((place / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict) and (place / FOLDER).is_dir():
        earlier = found.get("plan", {})
        other = sorted(key for key in {*plan, *earlier} if plan.get(key) != earlier.get(key))
        if other:
            raise UsageError(
                str(place),
                expected="the job that was interrupted, whose parts are there",
                received=f"one that differs in {', '.join(other)}",
                remedy="Repeat that command as it was, or remove the folder to begin anew.",
            )
        records = _read_records(place / DONE) if repeatable else []
        if records:
            return Parts(place, found["details"], records)
    (place / DONE).unlink(missing_ok=True)
    shutil.rmtree(place / FOLDER, ignore_errors=True)  # what no record vouches for
    (place / FOLDER).mkdir()
    noted = details()
    with whole_file(place / PLAN) as file:
        file.write_text(json.dumps({"plan": plan, "details": noted}, indent=1), encoding="utf-8")
    return Parts(place, json.loads(json.dumps(noted)), [])


def _read_records(path: Path) -> list[dict[str, Any]]:
    """Whole lines; what a kill or a power cut left of the last one is cut off, so that the next can follow."""
    records: list[dict[str, Any]] = []
    size = 0
    content = path.read_bytes() if path.exists() else b""
    for line in content.splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(record, dict):
            break
        records.append(record)
        size += len(line)
    if size < len(content):
        os.truncate(path, size)
    return records


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))
