"""A data product of your own in one file: what it calls the fields, and what must be set right in its files.

    python examples/own_product.py                       # writes runs/own_product/model.nc; seconds

A product is an instance of `Product`: canonical names and what the product calls them, units that nobody else spells
that way, how its files are recognized, and what has to be set right in them before they are understood. One call
registers it. From then on `open_climate`, and all that builds on it, reads its files like those of ERA5.

The files of this example are those of a regional model that never was: Europe out of the bundled ERA5 sample, under
names, units and an undeclared missing value of its own. A name that a product shares with another one for a different
field (here `q`, precipitation) means what the product says in its own files only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from climafuse import Box, extract, open_climate, sample_path, select_window
from climafuse.data import Product
from climafuse.registry import PRODUCTS


def _recognize(dataset: xr.Dataset) -> bool:
    return str(dataset.attrs.get("source", "")).startswith("EXAMPLE-RM")


def _adapt(dataset: xr.Dataset) -> xr.Dataset:
    """Say what the files leave out: -999 is missing, and precipitation is the sum of the hour before."""
    adapted = dataset.copy()
    for variable in adapted.data_vars.values():
        variable.attrs.setdefault("missing_value", np.float32(-999))
    if "q" in adapted:
        adapted["q"].attrs.setdefault("cell_methods", "time: sum (interval: 1 hour)")
    return adapted


EXAMPLE_MODEL = Product(
    "EXAMPLE-RM",
    spellings={"t2m": ("temp2",), "u10": ("wind_e",), "v10": ("wind_n",), "msl": ("press",), "tp": ("q",)},
    units={"temperature": {"Grad Celsius": (1.0, 273.15)}},
    recognize=_recognize,
    adapt=_adapt,
)
PRODUCTS.register("example_model", EXAMPLE_MODEL)


def write_file(path: Path) -> None:
    """A file as that model would write it."""
    fields = open_climate(sample_path("era5")).sel(latitude=slice(35, 65), longitude=slice(0, 30)).load()
    file = xr.Dataset(attrs={"source": "EXAMPLE-RM 1.0"})
    file["temp2"] = (fields["t2m"] - np.float32(273.15)).assign_attrs(units="Grad Celsius")
    file["wind_e"] = fields["u10"].assign_attrs(units="m/s")
    file["wind_n"] = fields["v10"].assign_attrs(units="m/s")
    file["press"] = (fields["msl"] / 100).assign_attrs(units="hPa")
    file["q"] = (fields["tp"] * 1000).assign_attrs(units="mm")
    file["temp2"][:, 0, 0] = -999  # a cell that the model does not have
    for variable in file.data_vars.values():
        variable.attrs = {"units": variable.attrs["units"]}
        variable.encoding = {"_FillValue": None}
    path.parent.mkdir(parents=True, exist_ok=True)
    file.to_netcdf(path)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the example.

    Returns:
        `file`: its path; `fields`: the canonical dataset; `facts`: what is true of a window in it.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/own_product"), help="folder of the file")
    options = parser.parse_args(arguments)
    path = options.output / "model.nc"
    write_file(path)

    fields = open_climate(path, variables=["temp2", "press", "q", "ws10"])
    for name, field in fields.data_vars.items():
        told = [field.attrs.get("source_name", "derived"), field.attrs["units"], field.attrs["cell_methods"]]
        print(f"{name}:", ", ".join(told))
    window = select_window(fields, time="2026-03-31T15:00", box=Box(48.9, 12.3, 16, 16))
    facts = extract(window, kinds=["mean/t2m", "mean/msl", "mean/ws10"])
    print(*facts, sep="\n")
    return {"file": path, "fields": fields, "facts": facts}


if __name__ == "__main__":
    main()
