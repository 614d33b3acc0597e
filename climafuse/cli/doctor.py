"""`climafuse doctor`: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import typer

from climafuse import __version__
from climafuse.cli.handler import JsonOption, print_json, print_table
from climafuse.errors import ClimafuseError


@dataclass(frozen=True)
class Check:
    """One finding.

    Args:
        name: What was looked at.
        ok: Whether it can be used as it is.
        detail: What was found.
        remedy: What to do where it is not.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def doctor(as_json: JsonOption = False) -> None:
    """Check packages, devices, samples and the default backbone."""
    checks = collect()
    if as_json:
        print_json(checks)
    else:
        print_table(
            [("ok" if check.ok else "MISSING", check.name, check.detail) for check in checks],
            header=("", "what", "found"),
        )
        for check in checks:
            if not check.ok:
                typer.echo(f"{check.name}: {check.remedy}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def collect() -> list[Check]:
    """All checks. None reaches for a network."""
    return [
        _self(),
        Check("python", True, f"{platform.python_version()} at {sys.executable}"),
        Check("machine", True, f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        *_packages(),
        _attempt("torch device", _device),
        _attempt("bundled samples", _samples),
        _attempt("default backbone", _backbone),
    ]


def _self() -> Check:
    installed = any(distribution.name == "climafuse" for distribution in metadata.distributions())
    detail = __version__ if installed else f"{__version__}, run from its source without being installed"
    return Check("climafuse", installed, detail, "Install it: pip install -e .")


def _packages() -> list[Check]:
    """The dependencies as the installed package states them, extras left out."""
    from packaging.requirements import Requirement

    try:
        requirements = metadata.requires("climafuse") or []
    except metadata.PackageNotFoundError:
        return []  # said by the check of climafuse itself
    checks = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        remedy = f"Install it: pip install '{requirement}'."
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            checks.append(Check(requirement.name, False, "not installed", remedy))
        else:
            good = requirement.specifier.contains(version, prereleases=True)
            checks.append(Check(requirement.name, good, version, remedy))
    return checks


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Check("torch device", True, f"CUDA: {names}")
    return Check("torch device", True, f"CPU, {torch.get_num_threads()} threads")


def _samples() -> Check:
    from climafuse.data.samples import SAMPLES, sample_path

    for name in SAMPLES:
        sample_path(name)  # verifies the checksum
    return Check("bundled samples", True, ", ".join(SAMPLES))


def _backbone() -> Check:
    from climafuse.backbones.catalog import DEFAULT_BACKBONE
    from climafuse.backbones.fetching import cached_backbone

    path = cached_backbone(DEFAULT_BACKBONE)
    return Check(
        "default backbone",
        path is not None,
        f"{DEFAULT_BACKBONE} at {path}" if path else f"{DEFAULT_BACKBONE} is not here yet",
        f"Fetch it: climafuse backbone fetch {DEFAULT_BACKBONE} (training fetches it by itself).",
    )


def _attempt(name: str, check: Callable[[], Check]) -> Check:
    """A check that fails is a finding, with the error's own words and remedy."""
    try:
        return check()
    except ClimafuseError as error:
        return Check(name, False, str(error), error.remedy)
    except ImportError as error:
        return Check(name, False, str(error), "Install climafuse with its dependencies again.")
