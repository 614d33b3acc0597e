"""MERRA-2 files to a trained model: opened, prepared, trained on, and asked about a time it has not seen.

    climafuse data download merra2 granules -v t2m -v u10 -v v10 -v msl -v tprate --start 2020-01-01 --end 2020-01-14
    python examples/merra2.py granules/*.nc4             # in runs/merra2; a minute or two
    python examples/merra2.py --steps 20                 # without files, see below

Granules of several collections are opened together as long as their times agree: M2T1NXSLV (temperature, wind,
pressure) and M2T1NXFLX (precipitation) are both hourly means.

Without files, the bundled ERA5 sample is written as MERRA-2 would have it, in the output folder: granules of a day and
a collection, MERRA-2's names, units, attributes and times, longitude from -180, 1e15 where missing. The numbers are
ERA5's, 24 times on a 1° grid: its states at a time stand for the mean of the hour before, and its sum of precipitation
over that hour becomes the mean rate. That shows the way from files to answers, not what MERRA-2 says.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from climafuse import TrainingStore, draw_map, extract, open_climate, parse, prepare, sample_path
from climafuse.data import available_variables
from climafuse.data.store import MANIFEST
from climafuse.data.times import format_time
from climafuse.facts import agrees
from climafuse.model.inference import answer, load_model
from climafuse.training import load_config
from climafuse.training.pipeline import run

VARIABLES = ("t2m", "u10", "v10", "msl", "tprate", "ws10")  # of these, what the files hold
KINDS = ("mean/t2m", "mean/msl", "mean/ws10", "direction")
ASK = "What is the mean temperature?"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the example.

    Returns:
        `files`; `store`; `trained` (what `run` returns); `time` and `text` of the answer; `right`: whether it states
        the mean temperature of the fields; `map`.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="*", type=Path, help="MERRA-2 granules; none: the sample in their layout"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/merra2"), help="folder of all that is made")
    parser.add_argument("--location", default="Paris, FR", help='place name or "latitude,longitude"')
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--windows", type=int, default=400, help="training windows")
    parser.add_argument("--backbone", default=None, help="another backbone: name or folder")
    options = parser.parse_args(arguments)

    files: list[Path] = options.files
    if not files:
        files = write_granules(options.output / "granules")
        print(f"no files given: wrote the bundled ERA5 sample in MERRA-2's layout, {len(files)} granules")

    # Names, units, longitudes and times are settled here; nothing is read yet.
    fields = open_climate(files)
    variables = [name for name in VARIABLES if name in available_variables(fields)]
    print(f"{', '.join(variables)}; {fields.sizes['time']} times from {fields['time'].values[0]}")

    # Split by time with a day between, statistics of the training times only, one chunk a time.
    store = prepare_anew(files, options.output / "store", variables)

    settings = [
        f"data.source={options.output / 'store'}",
        f"data.variables=[{', '.join(variables)}]",
        f"data.train_windows={options.windows}",
        "data.validation_windows=32",
        f"facts.kinds=[{', '.join(KINDS)}]",
        "facts.questions_per_window=4",
        "facts.abstention_fraction=0",
        f"training.steps={options.steps}",
        f"training.evaluation_interval={options.steps}",
        "training.windows_per_step=16",
        f"output.directory={options.output / 'run'}",
        "output.overwrite=true",
    ]
    if options.backbone is not None:
        settings.append(f"backbone.name={options.backbone}")
    trained = run(load_config(None, settings))

    # Asked about the last test time, from the files themselves, and checked against them.
    reader = load_model(trained["model"])
    time = store.time[store.splits.test[-1]]
    found = answer(reader, files, time=time, location=options.location, prompt=ASK)
    (exact,) = extract(found.window, kinds=["mean/t2m"])
    right = any(fact.key == exact.key and agrees(fact, exact) for fact in parse(found.text, ASK))
    print(f"{options.location} at {format_time(time)}: {ASK} {found.text}")
    print(f"in the fields: {exact.value:.1f} °C; the answer is {'right' if right else 'wrong'}")
    picture = options.output / "map.png"
    draw_map(found.window, ["t2m"], path=picture, title=options.location, caption=found.text)
    return {
        "files": files, "store": store, "trained": trained, "time": time, "text": found.text, "right": right,
        "map": picture,
    }  # fmt: skip


def prepare_anew(files: Sequence[Path], folder: Path, variables: Sequence[str]) -> TrainingStore:
    """Make the training store; that of an earlier run of this example makes room for it."""
    if (folder / MANIFEST).is_file():
        shutil.rmtree(folder)
    return prepare(files, folder, variables=variables)


# Collection -> file name part and fields: canonical name, name, units and long name in MERRA-2. After Bosilovich et al.
# 2016, MERRA-2: File Specification, GMAO Office Note 9.
COLLECTIONS = {
    "M2T1NXSLV": ("tavg1_2d_slv_Nx", (
        ("t2m", "T2M", "K", "2-meter_air_temperature"),
        ("u10", "U10M", "m s-1", "10-meter_eastward_wind"),
        ("v10", "V10M", "m s-1", "10-meter_northward_wind"),
        ("msl", "SLP", "Pa", "sea_level_pressure"),
    )),
    "M2T1NXFLX": ("tavg1_2d_flx_Nx", (("tprate", "PRECTOT", "kg m-2 s-1", "total_precipitation"),)),
}  # fmt: skip
FILL = np.float32(1e15)


def write_granules(folder: Path) -> list[Path]:
    """Write the bundled ERA5 sample as MERRA-2 granules: one file a day and collection.

    Args:
        folder: Where they go; made if needed.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sample = open_climate(sample_path("era5")).load()
    # Meters of water in the hour before -> mean rate in that hour; 1 m is 1000 kg m-2.
    sample["tprate"] = sample["tp"] * np.float32(1000 / 3600)
    middle = sample["time"] - np.timedelta64(30, "m")  # of the hour before: MERRA-2 stamps its means there
    sample = sample.assign_coords(time=middle, longitude=(sample["longitude"] + 180) % 360 - 180).sortby(
        "longitude"
    )
    files = []
    for short_name, (part, fields) in COLLECTIONS.items():
        for day, granule in sample.groupby("time.date"):
            path = folder / f"MERRA2_400.{part}.{day:%Y%m%d}.nc4"
            _granule(granule, short_name, part, fields).to_netcdf(path, engine="netcdf4")
            files.append(path)
    return files


def _granule(
    day: xr.Dataset, short_name: str, part: str, fields: Sequence[tuple[str, str, str, str]]
) -> xr.Dataset:
    """A day of one collection as it is stored: nothing is left for xarray to encode."""
    first = day["time"].values[0]
    minutes = ((day["time"].values - first) // np.timedelta64(1, "m")).astype(np.int32)
    date, clock = str(first.astype("datetime64[s]")).split("T")
    limits = np.array([-FILL, FILL])
    missing = {"_FillValue": FILL, "missing_value": FILL, "fmissing_value": FILL, "vmax": FILL, "vmin": -FILL}
    return xr.Dataset(
        {
            name: (
                ("time", "lat", "lon"),
                np.nan_to_num(day[canonical].values, nan=FILL),
                {
                    "long_name": long_name,
                    "standard_name": long_name,
                    "units": units,
                    "valid_range": limits,
                    **missing,
                },
            )
            for canonical, name, units, long_name in fields
        },
        {
            "time": ("time", minutes, {"long_name": "time", "units": f"minutes since {date} {clock}"}),
            "lat": ("lat", day["latitude"].values, {"long_name": "latitude", "units": "degrees_north"}),
            "lon": ("lon", day["longitude"].values, {"long_name": "longitude", "units": "degrees_east"}),
        },
        {
            "ShortName": short_name,
            "VersionID": "5.12.4",
            "Conventions": "CF-1",
            "Format": "NetCDF-4/HDF-5",
            "Title": f"MERRA2 {part}: the bundled ERA5 sample of climafuse in this layout",
            "Source": "Contains modified Copernicus Climate Change Service information 2026",
        },
    )


if __name__ == "__main__":
    main()
