"""Small datasets in the shape that products have, made from one known field ("truth"); for any test."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import xarray as xr

# Canonical name -> a plausible range. Values are float32, so that every conversion and back must return them
# exactly.
RANGES = {
    "t2m": (230.0, 310.0),
    "u10": (-20.0, 20.0),
    "v10": (-20.0, 20.0),
    "msl": (97000.0, 104000.0),
    "tp": (0.0, 0.02),
    "tprate": (0.0, 0.003),
}


@dataclass(frozen=True)
class Truth:
    """Canonical fields on a small global grid, and their coordinates."""

    fields: dict[str, np.ndarray]  # name -> [T, H, W] float32, SI
    latitude: np.ndarray = field(default_factory=lambda: np.linspace(-90, 90, 7))
    longitude: np.ndarray = field(default_factory=lambda: np.arange(0, 360, 45.0))
    time: np.ndarray = field(
        default_factory=lambda: np.datetime64("2020-02-28T00", "s") + np.arange(4) * np.timedelta64(6, "h")
    )


def truth(*names: str, seed: int = 0, num_times: int = 4) -> Truth:
    """Random fields of some variables."""
    random = np.random.default_rng(seed)
    empty = Truth({})
    shape = (num_times, len(empty.latitude), len(empty.longitude))
    fields = {
        name: random.uniform(*RANGES[name], size=shape).astype(np.float32)
        for name in names or ("t2m", "u10", "v10")
    }
    time = empty.time[0] + np.arange(num_times) * np.timedelta64(6, "h")
    return Truth(fields, time=time)


def canonical(known: Truth) -> xr.Dataset:
    """The dataset that ``open_climate`` must make of any disguise of the truth."""
    return xr.Dataset(
        {name: (("time", "latitude", "longitude"), values) for name, values in known.fields.items()},
        coords={"time": known.time, "latitude": known.latitude, "longitude": known.longitude},
    )


def era5(known: Truth) -> xr.Dataset:
    """As the Climate Data Store writes NetCDF today: north to south, seconds since 1970, GRIB attributes."""
    units = {
        "t2m": "K",
        "u10": "m s**-1",
        "v10": "m s**-1",
        "msl": "Pa",
        "tp": "m",
        "tprate": "kg m**-2 s**-1",
    }
    step_types = {"tp": "accum", "tprate": "avg"}
    names = {"tprate": "avg_tprate"}
    return xr.Dataset(
        {
            names.get(name, name): (
                ("valid_time", "latitude", "longitude"),
                values[:, ::-1],
                {
                    "units": units[name],
                    "standard_name": "unknown",
                    "GRIB_stepType": step_types.get(name, "instant"),
                    "GRIB_missingValue": 3.4028234663852886e38,
                },
            )
            for name, values in known.fields.items()
        },
        coords={
            "number": ((), 0, {"standard_name": "realization", "units": "1"}),
            "valid_time": (
                "valid_time",
                known.time.astype("datetime64[s]").astype(np.int64),
                {
                    "standard_name": "time",
                    "units": "seconds since 1970-01-01",
                    "calendar": "proleptic_gregorian",
                },
            ),
            "latitude": (
                "latitude",
                known.latitude[::-1],
                {"units": "degrees_north", "standard_name": "latitude"},
            ),
            "longitude": (
                "longitude",
                known.longitude,
                {"units": "degrees_east", "standard_name": "longitude"},
            ),
        },
        attrs={"Conventions": "CF-1.7", "GRIB_centre": "ecmf"},
    )


def merra2(known: Truth, *, short_name: str = "M2T1NXSLV") -> xr.Dataset:
    """As MERRA-2 granules: -180 to 180, minutes since the first step, 1e15 where missing."""
    names = {"t2m": "T2M", "u10": "U10M", "v10": "V10M", "msl": "SLP", "tprate": "PRECTOT"}
    units = {"t2m": "K", "u10": "m s-1", "v10": "m s-1", "msl": "Pa", "tprate": "kg m-2 s-1"}
    west_first = np.argsort((known.longitude + 180) % 360)
    minutes = (known.time - known.time[0]) // np.timedelta64(1, "m")
    return xr.Dataset(
        {
            names[name]: (
                ("time", "lat", "lon"),
                np.where(np.isnan(values), np.float32(1e15), values)[..., west_first],
                {
                    "units": units[name],
                    "standard_name": "2-meter_air_temperature",
                    "_FillValue": np.float32(1e15),
                    "missing_value": np.float32(1e15),
                    "fmissing_value": np.float32(1e15),
                    "valid_range": np.array([-1e15, 1e15], dtype=np.float32),
                },
            )
            for name, values in known.fields.items()
        },
        coords={
            "time": (
                "time",
                minutes.astype(np.int32),
                {"long_name": "time", "units": f"minutes since {str(known.time[0]).replace('T', ' ')}"},
            ),
            "lat": ("lat", known.latitude, {"long_name": "latitude", "units": "degrees_north"}),
            "lon": (
                "lon",
                ((known.longitude + 180) % 360 - 180)[west_first],
                {"long_name": "longitude", "units": "degrees_east"},
            ),
        },
        attrs={"ShortName": short_name, "Conventions": "CF-1"},
    )


def arco(known: Truth) -> xr.Dataset:
    """As ARCO-ERA5 and WeatherBench 2: long names, longitude before latitude, hours since 1900."""
    names = {
        "t2m": "2m_temperature",
        "u10": "10m_u_component_of_wind",
        "v10": "10m_v_component_of_wind",
        "msl": "mean_sea_level_pressure",
        "tp": "total_precipitation",
    }
    units = {"t2m": "K", "u10": "m s**-1", "v10": "m s**-1", "msl": "Pa", "tp": "m"}
    hours = (known.time - np.datetime64("1900-01-01")) // np.timedelta64(1, "h")
    return xr.Dataset(
        {
            names[name]: (
                ("time", "longitude", "latitude"),
                values.transpose(0, 2, 1)[..., ::-1],
                {"units": units[name], "short_name": name},
            )
            for name, values in known.fields.items()
        },
        coords={
            "time": (
                "time",
                hours.astype(np.int64),
                {"units": "hours since 1900-01-01", "calendar": "proleptic_gregorian"},
            ),
            "latitude": ("latitude", known.latitude[::-1]),
            "longitude": ("longitude", known.longitude),
        },
    )


def write(dataset: xr.Dataset, path: str, kind: str) -> str:
    """Write a dataset as it is: "netcdf4", "netcdf3", "netcdf3-record", "zarr2" or "zarr3"."""
    plain = dataset.copy()
    if kind.startswith("netcdf"):
        if kind == "netcdf4":
            plain.to_netcdf(path, engine="netcdf4", format="NETCDF4")
        else:
            unlimited = [str(next(iter(dataset.dims)))] if kind == "netcdf3-record" else []
            plain.to_netcdf(path, engine="netcdf4", format="NETCDF3_64BIT", unlimited_dims=unlimited)
    else:
        plain.to_zarr(path, zarr_format=int(kind[-1]), consolidated=kind == "zarr2")
    return path
