"""Small datasets in the shape that products have, made from one known field ("truth"); for any test.

``layouts`` has the products in full; these are three of them as datasets in memory.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import xarray as xr

from tests.data.layouts import ERA5, MERRA2, RANGES, WEATHERBENCH, Truth

_ERA5 = replace(ERA5, names={**ERA5.names, "tprate": "avg_tprate"})
_MERRA2 = replace(
    MERRA2, names={"t2m": "T2M", "u10": "U10M", "v10": "V10M", "msl": "SLP", "tprate": "PRECTOT"}
)
_ARCO = replace(WEATHERBENCH, southward=True, names={**WEATHERBENCH.names, "tp": "total_precipitation"})


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
    return _ERA5.encode(known).drop_vars("expver")


def merra2(known: Truth, *, short_name: str = "M2T1NXSLV") -> xr.Dataset:
    """As MERRA-2 granules: -180 to 180, minutes since the first step, 1e15 where missing."""
    return _MERRA2.encode(known).assign_attrs(ShortName=short_name)


def arco(known: Truth) -> xr.Dataset:
    """As ARCO-ERA5 and WeatherBench 2: long names, longitude before latitude, hours since 1959."""
    return _ARCO.encode(known)


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
