"""Where climafuse keeps backbones: a directory each, complete or absent, with a manifest of checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from climafuse.data.files import cache_directory

from ..errors import BackboneError
from ..json_file import read_object

MANIFEST_NAME = "climafuse-manifest.json"


def backbones_directory() -> Path:
    """Return the directory that holds one subdirectory per fetched or imported backbone."""
    return cache_directory() / "backbones"


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(directory: Path, **entries: object) -> None:
    """Record the entries, and the size and SHA-256 of every file, in the manifest of a directory.

    Args:
        directory: The directory; its files must be complete.
        **entries: What else to record: `id`, `revision`, `license`, `source`, `random_weights`.
    """
    files = {
        file.name: {"size": file.stat().st_size, "sha256": sha256_file(file)}
        for file in sorted(directory.iterdir())
    }
    text = json.dumps({**entries, "files": files}, indent=2)
    (directory / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Return the manifest of a directory, or None where it has none.

    Raises:
        BackboneError: It is damaged, or names files outside the directory.
    """
    path = directory / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        manifest = read_object(path)
        files = manifest["files"]
        good = isinstance(manifest["id"], str) and all(
            Path(name).name == name and {"size", "sha256"} <= entry.keys() for name, entry in files.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise BackboneError(
            str(path),
            expected="id, and size and sha256 of each file of this directory",
            received="other content",
            remedy="Remove this directory and fetch the backbone again.",
        )
    return manifest


def altered_files(
    directory: Path, manifest: Mapping[str, Any], hashes: Mapping[str, str] | None = None
) -> list[str]:
    """Name the files that are missing or differ from the manifest.

    Args:
        directory: The directory.
        manifest: Its manifest.
        hashes: SHA-256 of files that are known already, by name; the others are compared by size only.
    """
    hashes = hashes or {}
    altered = []
    for name, recorded in manifest["files"].items():
        file = directory / name
        if (
            not file.is_file()
            or file.stat().st_size != recorded["size"]
            or (name in hashes and hashes[name] != recorded["sha256"])
        ):
            altered.append(name)
    return altered
