"""Files as products write them: header, dimensions, types, packing, fill values, time units and format of each.

Every layout writes the same reference fields, so what ``open_climate`` makes of any of them is known. A new product is
one more `Layout` in `LAYOUTS`; every test over layouts and the table of ``scripts/matrix data`` then hold it, too.

Grids and times are small; all else is as in the files of the product, as far as the document named there tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import xarray as xr

# Canonical name -> a plausible range, SI units.
RANGES = {
    "t2m": (230.0, 310.0), "d2m": (220.0, 300.0), "q2m": (0.0, 0.02), "skt": (220.0, 330.0), "sst": (271.0, 305.0),
    "u10": (-20.0, 20.0), "v10": (-20.0, 20.0), "ws10": (0.0, 30.0), "msl": (97000.0, 104000.0),
    "sp": (50000.0, 104000.0), "tp": (0.0, 0.02), "tprate": (0.0, 0.003), "tprate_corrected": (0.0, 0.003),
    "tcwv": (0.0, 70.0), "tcc": (0.0, 1.0), "siconc": (0.0, 1.0),
    "t": (200.0, 300.0), "u": (-60.0, 60.0), "v": (-60.0, 60.0), "w": (-2.0, 2.0), "z": (0.0, 60000.0),
    "zg": (-100.0, 6000.0), "q": (0.0, 0.02), "r": (0.0, 1.1),
}  # fmt: skip
ON_LEVELS = ("t", "u", "v", "w", "z", "zg", "q", "r")
UNITS = {
    "t2m": "K", "d2m": "K", "q2m": "kg kg-1", "skt": "K", "sst": "K", "u10": "m s-1", "v10": "m s-1",
    "ws10": "m s-1", "msl": "Pa", "sp": "Pa", "tp": "m", "tprate": "kg m-2 s-1", "tprate_corrected": "kg m-2 s-1",
    "tcwv": "kg m-2", "tcc": "1", "siconc": "1", "t": "K", "u": "m s-1", "v": "m s-1", "w": "Pa s-1",
    "z": "m2 s-2", "zg": "m", "q": "kg kg-1", "r": "1",
}  # fmt: skip
ECMWF_UNITS = {
    "u10": "m s**-1", "v10": "m s**-1", "u": "m s**-1", "z": "m**2 s**-2", "q": "kg kg**-1",
    "tcc": "(0 - 1)", "tprate": "kg m**-2 s**-1",
}  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """Canonical fields on a small global grid, and their coordinates."""

    fields: dict[str, np.ndarray]  # name -> [T, H, W], or [T, L, H, W] on levels; float32, SI
    latitude: np.ndarray = field(default_factory=lambda: np.linspace(-90, 90, 7))
    longitude: np.ndarray = field(default_factory=lambda: np.arange(0, 360, 45.0))
    time: np.ndarray = field(
        default_factory=lambda: np.datetime64("2020-02-28T00", "s") + np.arange(4) * np.timedelta64(6, "h")
    )
    level: np.ndarray = field(default_factory=lambda: np.array([500.0, 850.0, 1000.0]))


@dataclass(frozen=True)
class Layout:
    """How one product writes files.

    Args:
        name: Row of the table.
        document: Where it is described.
        names: Canonical name -> name in the file: what the file holds.
        axes: "time", "level", "latitude", "longitude" -> name of the dimension, in the order of storage.
        time: Units and type of the time coordinate.
        calendar: Of the time coordinate; None writes no such attribute, which means the standard one.
        start: First time.
        hours: Time step.
        southward: Whether latitude goes from north to south.
        west: Where the row of longitudes begins: 0 or -180.
        degrees: Type of latitude and longitude.
        level: Unit and type of the level coordinate.
        downward: Whether levels go from the lowest pressure to the highest.
        units: Canonical name -> units attribute, where not the SI unit.
        conversions: Unit as only this product spells it -> scale and offset to the SI unit, by hand.
        packed: Whether fields are packed into 16 bits.
        missing: Missing value, and the attributes that say so.
        field_attributes: Canonical name -> further attributes of the field.
        coordinate_attributes: Axis -> attributes.
        attributes: Of the file.
        finish: Last touches, such as scalar coordinates and bounds.
        method: What the file says a state is: "point" or "mean".
        file: "netcdf4", "netcdf3" (record dimension), "zarr2", "zarr3", "grib1" or "grib2".
        split: Canonical name and day -> which of several files holds the field; None for a single file.
        filename: Of the file; with several, what ``split`` gives is put in.
        uri: Protocol through which the file is opened; empty for a path.
    """

    name: str
    document: str
    names: Mapping[str, str]
    axes: Mapping[str, str]
    time: tuple[str, str]
    calendar: str | None = None
    start: str = "2020-02-27T00:00:00"
    hours: int = 6
    southward: bool = False
    west: float = 0.0
    degrees: str = "f8"
    level: tuple[str | None, str] = ("hPa", "f8")
    downward: bool = True
    units: Mapping[str, str] = field(default_factory=dict)
    conversions: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    packed: bool = False
    missing: tuple[float, tuple[str, ...]] = (float("nan"), ("_FillValue",))
    field_attributes: Callable[[str], dict[str, Any]] = lambda name: {}
    coordinate_attributes: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[xr.Dataset], xr.Dataset] = lambda dataset: dataset
    method: str = "point"
    file: str = "netcdf4"
    split: Callable[[str, str], str] | None = None
    filename: str = "data.nc"
    uri: str = ""

    def truth(self, *, num_times: int = 6, seed: int = 0) -> Truth:
        """Random reference fields of what the layout holds."""
        random = np.random.default_rng(seed)
        time = np.datetime64(self.start, "s") + np.arange(num_times) * np.timedelta64(self.hours, "h")
        known = Truth({}, time=time)
        for name in self.names:
            levels = (len(known.level),) if name in ON_LEVELS else ()
            shape = (num_times, *levels, len(known.latitude), len(known.longitude))
            known.fields[name] = random.uniform(*RANGES[name], size=shape).astype(np.float32)
        if not self.packed or self.missing[1]:
            next(iter(known.fields.values()))[1, ..., 2, 3] = np.nan
        return known

    def times(self, known: Truth) -> np.ndarray:
        """Canonical times: in the calendar of the layout."""
        if self.calendar in (None, "standard", "gregorian", "proleptic_gregorian"):
            return known.time
        fields = [time.item().timetuple()[:6] for time in known.time]
        return np.array([cftime.datetime(*each, calendar=self.calendar) for each in fields], dtype=object)

    def tolerance(self, name: str) -> float:
        """Largest error of a field, from packing and units; 0 where the file holds its very bits."""
        low, high = RANGES[name]
        if self.packed or self.file.startswith("grib"):
            return (high - low) / 64000 + 2**-23 * max(abs(low), abs(high))
        return 0.0 if self._conversion(name) == (1.0, 0.0) else 2**-22 * max(abs(low), abs(high))

    def encode(self, known: Truth) -> xr.Dataset:
        """The reference fields as the file holds them: nothing is decoded."""
        fields = {
            self.names[name]: self._field(name, values, known)
            for name, values in known.fields.items()
            if name in self.names
        }
        used = {dim for variable in fields.values() for dim in variable.dims}
        coordinates = {dim: self._coordinate(axis, known) for axis, dim in self.axes.items() if dim in used}
        return self.finish(xr.Dataset(fields, coordinates, dict(self.attributes)))

    def write(self, known: Truth, folder: Path) -> str:
        """Write the file or files; returns what to give to ``open_climate``."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.file.startswith("grib"):
            return _write_grib(self, known, folder / self.filename)
        dataset = self.encode(known)
        parts = {self.filename: dataset} if self.split is None else self._parts(dataset, known)
        for name, part in parts.items():
            _write(part, str(folder / name), self.file, time=self.axes["time"])
        if self.uri:
            return _upload(folder / self.filename, self.uri)
        return str(folder / (self.filename if self.split is None else self.filename.format("*")))

    def _parts(self, dataset: xr.Dataset, known: Truth) -> dict[str, xr.Dataset]:
        assert self.split is not None
        days = known.time.astype("datetime64[D]").astype(str)
        wanted: dict[str, tuple[list[str], list[int]]] = {}
        for name in known.fields:
            for step, day in enumerate(days):
                names, steps = wanted.setdefault(self.split(name, day), ([], []))
                names += [self.names[name]] * (self.names[name] not in names)
                steps += [step] * (step not in steps)
        others = [v for v in dataset.data_vars if v not in self.names.values()]
        parts = {}
        for key, (names, steps) in wanted.items():
            part = dataset[[*names, *others]].isel({self.axes["time"]: steps})
            parts[self.filename.format(key)] = part.assign_attrs(dataset.attrs)
        return parts

    def _conversion(self, name: str) -> tuple[float, float]:
        """Scale and offset from the units of the file to SI, written down here once more."""
        return {
            "degC": (1.0, 273.15), "hPa": (100.0, 0.0), "%": (0.01, 0.0), "mm": (1e-3, 0.0),
            "km h-1": (1 / 3.6, 0.0), "mm/day": (1 / 86400, 0.0), **self.conversions,
        }.get(self.units.get(name, ""), (1.0, 0.0))  # fmt: skip

    def _field(self, name: str, values: np.ndarray, known: Truth) -> xr.Variable:
        attributes: dict[str, Any] = {"units": self.units.get(name, UNITS[name])}
        scale, offset = self._conversion(name)
        missing = np.isnan(values)
        stored: np.ndarray = values
        if (scale, offset) != (1.0, 0.0):
            stored = ((values.astype(np.float64) - offset) / scale).astype(np.float32)
        marker, keys = self.missing
        if self.packed:
            low, high = ((bound - offset) / scale for bound in RANGES[name])
            step, middle = (high - low) / 65000, (low + high) / 2
            whole = np.where(missing, 0, np.round((stored.astype(np.float64) - middle) / step))
            stored = whole.astype(np.int16)
            attributes |= {"scale_factor": step, "add_offset": middle}
        stored = np.where(missing, stored.dtype.type(marker) if keys else stored, stored)
        attributes |= {key: stored.dtype.type(marker) for key in keys}
        dims = ["time", *(["level"] if name in ON_LEVELS else []), "latitude", "longitude"]
        order = sorted(range(len(dims)), key=lambda n: list(self.axes).index(dims[n]))
        for number, axis in enumerate(dims):
            stored = np.take(stored, self._order(axis, known), axis=number)
        return xr.Variable(
            [self.axes[dims[n]] for n in order],
            np.ascontiguousarray(stored.transpose(order)),
            attributes | self.field_attributes(name),
        )

    def _order(self, axis: str, known: Truth) -> np.ndarray:
        """Where in the canonical order each stored index lies."""
        if axis == "latitude" and self.southward:
            return np.arange(len(known.latitude))[::-1]
        if axis == "longitude" and self.west < 0:
            return np.argsort((known.longitude - self.west) % 360, kind="stable")
        if axis == "level" and not self.downward:
            return np.arange(len(known.level))[::-1]
        return np.arange(len(getattr(known, axis)))

    def _coordinate(self, axis: str, known: Truth) -> xr.Variable:
        attributes = dict(self.coordinate_attributes.get(axis, {}))
        order = self._order(axis, known)
        if axis == "time":
            units, dtype = self.time
            calendar = self.calendar or "standard"
            numbers = cftime.date2num(
                [cftime.datetime(*t.item().timetuple()[:6], calendar=calendar) for t in known.time],
                units.format(self.start.replace("T", " ")),
                calendar,
            )
            values = np.asarray(numbers).astype(dtype)
            attributes |= {"units": units.format(self.start.replace("T", " "))}
            attributes |= {"calendar": self.calendar} if self.calendar else {}
        elif axis == "level":
            unit, dtype = self.level
            factor = 100.0 if unit == "Pa" else 1.0
            values = (known.level[order] * factor).astype(dtype)
            attributes |= {"units": unit} if unit else {}
        elif axis == "longitude":
            values = known.longitude[order]
            values = np.where(values - self.west >= 360, values - 360, values).astype(self.degrees)
        else:
            values = known.latitude[order].astype(self.degrees)
        return xr.Variable((self.axes[axis],), values, attributes)


def _write(dataset: xr.Dataset, path: str, file: str, *, time: str) -> None:
    unlimited = [time] if time in dataset.dims else []
    if file == "netcdf4":
        dataset.to_netcdf(path, engine="netcdf4", format="NETCDF4", unlimited_dims=unlimited)
    elif file == "netcdf3":
        dataset.to_netcdf(path, engine="netcdf4", format="NETCDF3_64BIT", unlimited_dims=unlimited)
    else:
        chunks = {name: {"chunks": [1, *v.shape[1:]]} for name, v in dataset.data_vars.items() if v.ndim > 2}
        dataset.to_zarr(path, zarr_format=int(file[-1]), consolidated=file == "zarr2", encoding=chunks)


def _write_grib(layout: Layout, known: Truth, path: Path) -> str:
    """As MARS and the CDS deliver ERA5: a message a field, sums from the forecasts of 06 and 18 hours."""
    import eccodes

    edition = layout.file[-1]
    keys = {
        "centre": "ecmf",
        "Ni": len(known.longitude),
        "Nj": len(known.latitude),
        "latitudeOfFirstGridPointInDegrees": 90.0,
        "latitudeOfLastGridPointInDegrees": -90.0,
        "longitudeOfFirstGridPointInDegrees": 0.0,
        "longitudeOfLastGridPointInDegrees": float(known.longitude[-1]),
        "iDirectionIncrementInDegrees": float(known.longitude[1]),
        "jDirectionIncrementInDegrees": 180 / (len(known.latitude) - 1),
    }
    with path.open("wb") as file:
        for name, fields in known.fields.items():
            on_levels = name in ON_LEVELS
            for valid, at_time in zip(known.time, fields, strict=True):
                for level, values in zip(known.level, at_time, strict=True) if on_levels else [(0, at_time)]:
                    sample = f"regular_ll_{'pl' if on_levels else 'sfc'}_grib{edition}"
                    message = eccodes.codes_grib_new_from_samples(sample)
                    time = valid
                    own: dict[str, Any] = {"level": int(level)} if on_levels else {}
                    if name == "tp":
                        step = (
                            1 + (int(str(valid)[11:13]) - 7) % 12
                        )  # 7 of the forecast of 18 hours is 1 hour
                        time = valid - np.timedelta64(step, "h")
                        own = {"stepType": "accum", "startStep": step - 1, "endStep": step}
                    stamp = str(time)
                    dated = {
                        "dataDate": int(stamp[:10].replace("-", "")),
                        "dataTime": int(stamp[11:13]) * 100,
                    }
                    own |= {"shortName": layout.names[name], "bitsPerValue": 16, "bitmapPresent": 1}
                    for key, value in {**keys, **dated, **own, "missingValue": 9999.0}.items():
                        eccodes.codes_set(message, key, value)
                    stored = np.where(np.isnan(values), 9999.0, values)[::-1].ravel().astype(np.float64)
                    eccodes.codes_set_values(message, stored)
                    eccodes.codes_write(message, file)
                    eccodes.codes_release(message)
    return str(path)


def _upload(path: Path, protocol: str) -> str:
    import fsspec

    target = f"{protocol}://{path.parent.name}/{path.name}"
    fsspec.filesystem(protocol).put(str(path), target, recursive=path.is_dir())
    return target


def _degrees(**more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        "latitude": {"units": "degrees_north", "long_name": "latitude"} | more.get("latitude", {}),
        "longitude": {"units": "degrees_east", "long_name": "longitude"} | more.get("longitude", {}),
        "time": {"long_name": "time"} | more.get("time", {}),
        "level": more.get("level", {}),
    }


# ERA5.

_CDS_LONG_NAMES = {
    "t2m": "2 metre temperature", "u10": "10 metre U wind component", "v10": "10 metre V wind component",
    "msl": "Mean sea level pressure", "tp": "Total precipitation", "tcc": "Total cloud cover",
    "t": "Temperature", "z": "Geopotential", "q": "Specific humidity",
}  # fmt: skip
_CF_NAMES = {
    "msl": "air_pressure_at_mean_sea_level", "t": "air_temperature", "z": "geopotential",
    "q": "specific_humidity",
}  # fmt: skip


def _cds_field(name: str) -> dict[str, Any]:
    return {
        "GRIB_dataType": "fc" if name == "tp" else "an",
        "GRIB_typeOfLevel": "isobaricInhPa" if name in ON_LEVELS else "surface",
        "GRIB_stepUnits": np.int64(1),
        "GRIB_stepType": {"tp": "accum", "tprate": "avg"}.get(name, "instant"),
        "GRIB_gridType": "regular_ll",
        "GRIB_missingValue": 3.4028234663852886e38,
        "long_name": _CDS_LONG_NAMES.get(name, name),
        "standard_name": _CF_NAMES.get(name, "unknown"),
    }


def _cds_finish(dataset: xr.Dataset) -> xr.Dataset:
    number = ((), np.int64(0), {"long_name": "ensemble member numerical id", "units": "1",
                                "standard_name": "realization"})  # fmt: skip
    expver = ("valid_time", np.array(["0001"] * dataset.sizes["valid_time"], dtype=object))
    return dataset.assign_coords(number=number, expver=expver)


ERA5 = Layout(
    "ERA5, CDS",
    "ncdump of data_stream-oper_stepType-instant.nc of the CDS, September 2026",
    names={"t2m": "t2m", "u10": "u10", "v10": "v10", "msl": "msl", "tcc": "tcc", "tp": "tp"},
    axes={"time": "valid_time", "latitude": "latitude", "longitude": "longitude"},
    time=("seconds since 1970-01-01", "i8"),
    calendar="proleptic_gregorian",
    southward=True,
    units=ECMWF_UNITS,
    field_attributes=_cds_field,
    coordinate_attributes=_degrees(
        time={"standard_name": "time"},
        latitude={"standard_name": "latitude", "stored_direction": "decreasing", "_FillValue": np.nan},
        longitude={"standard_name": "longitude", "_FillValue": np.nan},
        level={"long_name": "pressure", "positive": "down", "stored_direction": "decreasing",
               "standard_name": "air_pressure"},
    ),
    attributes={
        "GRIB_centre": "ecmf",
        "GRIB_centreDescription": "European Centre for Medium-Range Weather Forecasts",
        "GRIB_subCentre": np.int64(0),
        "Conventions": "CF-1.7",
        "institution": "European Centre for Medium-Range Weather Forecasts",
    },
    finish=_cds_finish,
    split=lambda name, day: "accum" if name == "tp" else "instant",
    filename="data_stream-oper_stepType-{}.nc",
)  # fmt: skip
ERA5_LEVELS = replace(
    ERA5,
    name="ERA5, CDS, levels",
    names={"t": "t", "z": "z", "q": "q"},
    axes={"time": "valid_time", "level": "pressure_level", "latitude": "latitude", "longitude": "longitude"},
    downward=False,
    split=None,
    filename="levels.nc",
)
ERA5_OLD = Layout(
    "ERA5, CDS until 2024",
    "ECMWF, 'What are NetCDF files and how can I read them', ncdump of a file of grib_to_netcdf-2.24",
    names={"t2m": "t2m", "u10": "u10", "msl": "msl", "tp": "tp", "z": "z"},
    axes={"time": "time", "level": "level", "latitude": "latitude", "longitude": "longitude"},
    time=("hours since 1900-01-01 00:00:00.0", "i4"),
    calendar="gregorian",
    southward=True,
    degrees="f4",
    level=("millibars", "i4"),
    units=ECMWF_UNITS,
    packed=True,
    missing=(-32767, ("_FillValue", "missing_value")),
    field_attributes=lambda name: (
        {"long_name": _CDS_LONG_NAMES[name]}
        | ({"standard_name": _CF_NAMES[name]} if name in _CF_NAMES else {})
    ),
    coordinate_attributes=_degrees(level={"long_name": "pressure_level"}),
    attributes={
        "Conventions": "CF-1.6",
        "history": "2023-03-01 00:00:00 GMT by grib_to_netcdf-2.25.1: /opt/ecmwf/mars-client/bin/grib_to_netcdf",
    },
    file="netcdf3",
    filename="adaptor.mars.internal.nc",
)
ERA5_GRIB = Layout(
    "ERA5, GRIB 1",
    "ECMWF, 'ERA5: data documentation', and messages of MARS as ecCodes shows them",
    names={"t2m": "2t", "u10": "10u", "msl": "msl", "tp": "tp", "t": "t", "z": "z"},
    axes={"time": "valid_time", "level": "isobaricInhPa", "latitude": "latitude", "longitude": "longitude"},
    time=("seconds since 1970-01-01", "i8"),
    file="grib1",
    filename="download.grib",
)
ERA5_GRIB_2 = replace(ERA5_GRIB, name="ERA5, GRIB 2", file="grib2")

# ARCO-ERA5 and WeatherBench 2.

_LONG_NAMES = {
    "t2m": "2m_temperature", "u10": "10m_u_component_of_wind", "v10": "10m_v_component_of_wind",
    "msl": "mean_sea_level_pressure", "tp": "total_precipitation", "t": "temperature", "z": "geopotential",
}  # fmt: skip
ARCO = Layout(
    "ARCO-ERA5",
    "github.com/google-research/arco-era5, full_37-1h-0p25deg-chunk-1.zarr-v3 (Zarr format 2)",
    names=_LONG_NAMES,
    axes={"time": "time", "level": "level", "latitude": "latitude", "longitude": "longitude"},
    time=("hours since 1900-01-01", "i8"),
    calendar="proleptic_gregorian",
    southward=True,
    degrees="f4",
    level=(None, "i8"),
    units=ECMWF_UNITS,
    field_attributes=lambda name: {"long_name": _CDS_LONG_NAMES[name], "short_name": name},
    coordinate_attributes={"latitude": {"units": "degrees_north", "long_name": "latitude"}},
    attributes={"valid_time_start": "1940-01-01", "valid_time_stop": "2023-03-31"},
    file="zarr2",
    filename="full_37-1h.zarr",
)
ARCO_3 = replace(ARCO, name="ARCO-ERA5, Zarr 3", file="zarr3")
WEATHERBENCH = replace(
    ARCO,
    name="WeatherBench 2",
    document="weatherbench2.readthedocs.io, data guide: 1959-2023_01_10-6h-64x32_equiangular_conservative.zarr",
    axes={"time": "time", "level": "level", "longitude": "longitude", "latitude": "latitude"},
    time=("hours since 1959-01-01", "i8"),
    southward=False,
    degrees="f8",
    names={k: v for k, v in _LONG_NAMES.items() if k != "tp"},
    coordinate_attributes={},
    attributes={},
    filename="1959-2023_01_10-6h.zarr",
)
WEATHERBENCH_URI = replace(WEATHERBENCH, name="WeatherBench 2, memory://", uri="memory")


# MERRA-2.


def _gmao(name: str) -> dict[str, Any]:
    limits = np.array([-1e15, 1e15], dtype=np.float32)
    long_names = {"t2m": "2-meter_air_temperature", "u10": "10-meter_eastward_wind",
                  "v10": "10-meter_northward_wind", "msl": "sea_level_pressure", "t": "air_temperature",
                  "zg": "edge_heights", "tprate": "total_precipitation"}  # fmt: skip
    return {
        "long_name": long_names.get(name, name),
        "standard_name": long_names.get(name, name),
        "scale_factor": np.float32(1),
        "add_offset": np.float32(0),
        "vmax": limits[1],
        "vmin": limits[0],
        "valid_range": limits,
    }


def merra2_attributes(collection: str, short_name: str, long_name: str) -> dict[str, str]:
    """Global attributes of a granule."""
    return {
        "History": "Original file generated: Thu Mar  5 15:11:46 2020 GMT",
        "Comment": f"GMAO filename: d5124_m2_jan10.{collection}.20200227.nc4",
        "Filename": f"MERRA2_400.{collection}.20200227.nc4",
        "Conventions": "CF-1",
        "Institution": "NASA Global Modeling and Assimilation Office",
        "References": "http://gmao.gsfc.nasa.gov",
        "Format": "NetCDF-4/HDF-5",
        "SpatialCoverage": "global",
        "VersionID": "5.12.4",
        "TemporalRange": "1980-01-01 -> 2016-12-31",
        "identifier_product_doi_authority": "http://dx.doi.org/",
        "ShortName": short_name,
        "LongName": f"MERRA2 {collection}: {long_name}",
        "Title": f"MERRA2 {collection}: {long_name}",
        "RangeBeginningDate": "2020-02-27",
        "RangeBeginningTime": "00:00:00.000000",
        "RangeEndingDate": "2020-02-27",
        "RangeEndingTime": "23:59:59.000000",
        "DataResolution": "0.5 x 0.625",
    }


def merra2_layout(
    collection: str, short_name: str, names: Mapping[str, str], *, start: str, hours: int, **more: Any
) -> Layout:
    """MERRA-2 granules of one collection, one a day."""
    limits = {"vmax": np.float32(1e15), "vmin": np.float32(-1e15),
              "valid_range": np.array([-1e15, 1e15], dtype=np.float32)}  # fmt: skip
    settings: dict[str, Any] = {
        "axes": {"time": "time", "level": "lev", "latitude": "lat", "longitude": "lon"},
        "time": ("minutes since {}", "i4"),
        "west": -180.0,
        "missing": (1e15, ("_FillValue", "missing_value", "fmissing_value")),
        "downward": False,
        "field_attributes": _gmao,
        "coordinate_attributes": _degrees(
            latitude=limits,
            longitude=limits,
            time={"time_increment": np.int32(hours * 10000), "begin_date": np.int32(20200227),
                  "begin_time": np.int32(int(start[14:16]) * 100), **limits},
            level={"long_name": "vertical level", "positive": "down", "coordinate": "PLE",
                   "standard_name": "PLE_level", **limits},
        ),
        "attributes": merra2_attributes(collection, short_name, "2d,Time-Averaged or Instantaneous"),
        "method": "mean" if short_name[2] == "T" else "point",
        "split": lambda name, day: day.replace("-", ""),
        "filename": f"MERRA2_400.{collection}.{{}}.nc4",
    }  # fmt: skip
    return Layout(
        f"MERRA-2 {collection}",
        "Bosilovich et al. (2016), GMAO Office Note 9, sections 2 and 6; ncdump of a granule",
        names=names,
        start=start,
        hours=hours,
        **(settings | more),
    )


MERRA2 = merra2_layout(
    "tavg1_2d_slv_Nx",
    "M2T1NXSLV",
    {"t2m": "T2M", "u10": "U10M", "v10": "V10M", "msl": "SLP", "sp": "PS"},
    start="2020-02-27T21:30:00",  # six hours, over midnight: two granules
    hours=1,
)
MERRA2_FLUX = merra2_layout(
    "tavg1_2d_flx_Nx", "M2T1NXFLX", {"tprate": "PRECTOT"}, start="2020-02-27T00:30:00", hours=1
)
MERRA2_LEVELS = merra2_layout(
    "inst3_3d_asm_Np",
    "M2I3NPASM",
    {"t": "T", "u": "U", "zg": "H", "q": "QV", "msl": "SLP"},
    start="2020-02-27T12:00:00",
    hours=3,
)
MERRA2_URI = replace(
    MERRA2, name="MERRA-2, memory://", split=None, filename="MERRA2_400.tavg1_2d_slv_Nx.20200227.nc4",
    uri="memory",
)  # fmt: skip


# CMIP6.


def _cmor(name: str) -> dict[str, Any]:
    standard = {"t2m": "air_temperature", "u10": "eastward_wind", "msl": "air_pressure_at_mean_sea_level",
                "tprate": "precipitation_flux", "t": "air_temperature",
                "zg": "geopotential_height"}  # fmt: skip
    # CMOR calls both "height", in files of their own; here one dataset holds them until it is split.
    scalar = {"t2m": {"coordinates": "height"}, "u10": {"coordinates": "height10m"}}.get(name, {})
    return {"standard_name": standard[name], "cell_methods": "area: time: mean",
            "cell_measures": "area: areacella", **scalar}  # fmt: skip


def _cmor_finish(dataset: xr.Dataset) -> xr.Dataset:
    """Bounds of every axis, and the height of near-surface fields."""
    for axis in ("time", "lat", "lon"):
        values = dataset[axis].values.astype(np.float64)
        half = abs(values[1] - values[0]) / 2
        dataset[f"{axis}_bnds"] = ((axis, "bnds"), np.stack([values - half, values + half], axis=1))
    height = {"units": "m", "axis": "Z", "positive": "up", "long_name": "height", "standard_name": "height"}
    return dataset.assign_coords(height=((), 2.0, height), height10m=((), 10.0, height))


def _cmip6(name: str, calendar: str, names: Mapping[str, str], **more: Any) -> Layout:
    return Layout(
        name,
        "CMIP6 MIP tables and CMOR 3; ncdump of tas_day_CanESM5_historical_r1i1p1f1_gn",
        names=names,
        axes={"time": "time", "level": "plev", "latitude": "lat", "longitude": "lon"},
        time=("days since 1850-01-01", "f8"),
        calendar=calendar,
        start="2020-02-25T12:00:00",
        level=("Pa", "f8"),
        downward=False,
        missing=(1e20, ("_FillValue", "missing_value")),
        field_attributes=_cmor,
        coordinate_attributes=_degrees(
            time={"standard_name": "time", "axis": "T", "bounds": "time_bnds"},
            latitude={"standard_name": "latitude", "axis": "Y", "bounds": "lat_bnds"},
            longitude={"standard_name": "longitude", "axis": "X", "bounds": "lon_bnds"},
            level={"standard_name": "air_pressure", "axis": "Z", "positive": "down", "long_name": "pressure"},
        ),
        attributes={"Conventions": "CF-1.7 CMIP-6.2", "mip_era": "CMIP6", "activity_id": "CMIP",
                    "experiment_id": "historical", "grid_label": "gn", "variant_label": "r1i1p1f1"},
        finish=_cmor_finish,
        method="mean",
        split=lambda canonical, day: names[canonical],
        filename="{}_day_model_historical_r1i1p1f1_gn.nc",
        **more,
    )  # fmt: skip


CMIP6 = _cmip6("CMIP6, noleap", "noleap", {"t2m": "tas", "u10": "uas", "msl": "psl", "tprate": "pr"})
CMIP6_360 = _cmip6("CMIP6, 360_day", "360_day", {"t2m": "tas", "t": "ta", "zg": "zg"})


# COARDS and CF.

NCEP = Layout(
    "NCEP reanalysis, NetCDF 3",
    "NOAA PSL, ncdump of air.2001.nc and uwnd.2001.nc of the NCEP/NCAR reanalysis; COARDS (1995)",
    names={"t": "air", "u": "uwnd", "zg": "hgt", "msl": "slp"},
    axes={"time": "time", "level": "level", "latitude": "lat", "longitude": "lon"},
    time=("hours since 1-1-1 00:00:0.0", "f8"),
    southward=True,
    degrees="f4",
    level=("millibar", "f4"),
    downward=False,
    units={"t": "degK", "u": "m/s", "msl": "Pascals"},
    packed=True,
    missing=(32766, ("missing_value",)),
    field_attributes=lambda name: {
        "valid_range": np.array([RANGES[name][0] - 50, RANGES[name][1] + 50], dtype=np.float32),
        "precision": np.int16(2),
        "GRIB_name": "TMP",
        "statistic": "Individual Obs",
        "dataset": "NMC Reanalysis",
    },
    coordinate_attributes=_degrees(
        time={"delta_t": "0000-00-00 06:00:00"}, level={"positive": "down", "long_name": "Level"}
    ),
    attributes={"Conventions": "COARDS", "title": "4x daily NMC reanalysis (2001)"},
    file="netcdf3",
    filename="air.2001.nc",
)
GENERIC = Layout(
    "CF, other units",
    "CF conventions 1.11, sections 3 and 4, examples",
    names={"t2m": "air_temperature_2m", "u10": "eastward_wind_10m", "msl": "pressure", "tprate": "rain"},
    axes={"latitude": "y", "time": "t", "longitude": "x"},
    time=("minutes since 2000-01-01 00:00:00", "f8"),
    calendar="standard",
    units={"t2m": "degC", "u10": "km h-1", "msl": "hPa", "tprate": "mm/day"},
    missing=(-9999.0, ("_FillValue",)),
    field_attributes=lambda name: {
        "standard_name": {
            "t2m": "air_temperature",
            "u10": "eastward_wind",
            "msl": "air_pressure_at_mean_sea_level",
            "tprate": "precipitation_flux",
        }[name],
        "cell_methods": "time: mean",
    },
    coordinate_attributes={
        "time": {"standard_name": "time"},
        "latitude": {"standard_name": "latitude", "units": "degrees_north"},
        "longitude": {"standard_name": "longitude", "units": "degrees_east"},
    },
    attributes={"Conventions": "CF-1.11"},
    method="mean",
    filename="generic.nc",
)

LAYOUTS = (
    ERA5,
    ERA5_LEVELS,
    ERA5_OLD,
    ERA5_GRIB,
    ERA5_GRIB_2,
    ARCO,
    ARCO_3,
    WEATHERBENCH,
    WEATHERBENCH_URI,
    MERRA2,
    MERRA2_FLUX,
    MERRA2_LEVELS,
    MERRA2_URI,
    CMIP6,
    CMIP6_360,
    NCEP,
    GENERIC,
)
