"""What a finished folder holds, and whether it still does.

A checkpoint or saved model is a folder with a `manifest.json` written last: size and SHA-256 of every file,
the versions that wrote it, and a digest over the manifest itself. A folder without one was never finished.
This module imports no other part of the package, so that the layer which loads a model and the layer which
trains one can both ask.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from climafuse import __version__
from climafuse.errors import CheckpointError
from climafuse.json_file import read_object

MANIFEST_NAME = "manifest.json"
FORMAT = 1
# A model card is prose that its reader may edit; hidden entries belong to hubs and file managers.
UNVERIFIED_NAMES = frozenset({MANIFEST_NAME, "README.md"})
_DISTRIBUTIONS = ("torch", "transformers", "safetensors", "numpy")


def verified_files(directory: Path) -> list[str]:
    """The files of a folder that its manifest answers for, as sorted POSIX paths relative to it."""
    found = []
    for path in directory.rglob("*"):
        relative = path.relative_to(directory)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and relative.as_posix() not in UNVERIFIED_NAMES:
            found.append(relative.as_posix())
    return sorted(found)


def write_manifest(directory: Path, *, kind: str, details: Mapping[str, Any] | None = None) -> None:
    """Writes `manifest.json` over everything now in a folder. Call it last.

    Args:
        directory: The finished folder.
        kind: What it is: "checkpoint" (a run can be resumed from it) or "model".
        details: More to record, such as the step; JSON values.
    """
    content = {
        "format": FORMAT,
        "kind": kind,
        "details": dict(details or {}),
        "versions": versions(_DISTRIBUTIONS),
        "files": {
            name: {"size": (directory / name).stat().st_size, "sha256": sha256(directory / name)}
            for name in verified_files(directory)
        },
    }
    content["digest"] = _digest(content)
    (directory / MANIFEST_NAME).write_text(_spelled(content), encoding="utf-8")


def verify_folder(directory: str | Path) -> dict[str, Any]:
    """Checks every file of a checkpoint or saved model against its manifest.

    Args:
        directory: The folder.

    Returns:
        The manifest.

    Raises:
        CheckpointError: Names the file and what differs: absent or unreadable manifest, missing file, extra
            file, other size, other content.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    recorded: dict[str, dict[str, Any]] = manifest["files"]
    try:
        _compare(directory, recorded)
    except OSError as error:
        raise _damaged(
            Path(error.filename or directory), "a disk that can be read", f"{type(error).__name__}: {error}"
        ) from error
    return manifest


def _compare(directory: Path, recorded: Mapping[str, Mapping[str, Any]]) -> None:
    present = set(verified_files(directory))
    for name in sorted(recorded.keys() | present):
        path = directory / name
        if name not in present:
            raise _damaged(path, "the file that the manifest lists", "no such file")
        if name not in recorded:
            raise _damaged(path, "only files that the manifest lists", "a file that was added later")
        size = path.stat().st_size
        if size != recorded[name]["size"]:
            raise _damaged(path, f"{recorded[name]['size']} bytes", f"{size} bytes")
    # Sizes first, over all files: a truncated gigabyte should not be found only after hashing the others.
    for name, entry in recorded.items():
        found = sha256(directory / name)
        if found != entry["sha256"]:
            raise _damaged(
                directory / name, f"SHA-256 {entry['sha256'][:16]}…", f"{found[:16]}… at the same size"
            )


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads a manifest and checks it against its own digest, without looking at the files.

    Raises:
        CheckpointError: There is none, or it was altered.
    """
    path = directory / MANIFEST_NAME
    if not directory.is_dir():
        raise _damaged(directory, "the folder of a checkpoint or saved model", "no such folder")
    if not path.is_file():
        raise _damaged(path, "a manifest, which is written last", "no such file: saving did not finish")
    try:
        text = path.read_text(encoding="utf-8")
        manifest = read_object(path)
    except (ValueError, OSError) as error:  # not UTF-8, not JSON, or a disk that fails
        raise _damaged(path, "a JSON manifest", f"unreadable text ({error})") from error
    if manifest.get("digest") != _digest(manifest):
        raise _damaged(path, "a manifest that fits its own digest", "an altered one")
    if not _is_manifest(manifest):
        raise _damaged(path, "format, versions, and size and sha256 of each file", "other content")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            str(path),
            expected=f"manifest format {FORMAT}",
            received=f"format {manifest['format']}",
            remedy=f"Load it with climafuse {manifest['versions'].get('climafuse')}, which wrote it.",
        )
    if text != _spelled(manifest):  # a lost line feed at the end is a file cut short
        raise _damaged(path, "a manifest spelled as climafuse does", "an altered one")
    return manifest


def _is_manifest(content: Mapping[str, Any]) -> bool:
    """Anybody can write a manifest with a digest that fits: whether it has the parts that are used."""
    files = content.get("files")
    return (
        isinstance(content.get("format"), int)
        and isinstance(content.get("versions"), dict)
        and isinstance(files, dict)
        and all(isinstance(entry, dict) and {"size", "sha256"} <= entry.keys() for entry in files.values())
        and all(isinstance(entry["sha256"], str) for entry in files.values())
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _spelled(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of climafuse, Python and other packages, for records of what wrote a file."""
    found = {"climafuse": __version__, "python": platform.python_version()}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """What a figure was measured on, for records."""
    return {"system": platform.platform(), "processor": _processor(), "cores": available_cores()}


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """Name of the processor where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over the manifest without its digest, in one canonical spelling."""
    body = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, expected: str, received: str) -> CheckpointError:
    return CheckpointError(
        str(path),
        expected=expected,
        received=received,
        remedy="The folder is incomplete or altered: use another one, or copy it again from its source.",
    )
