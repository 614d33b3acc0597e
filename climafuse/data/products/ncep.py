"""NCEP/NCAR and NCEP/DOE reanalyses, as NOAA PSL delivers them: NetCDF of the COARDS years, packed, north to south.

Old files count hours from the year 1 in the calendar that changes from Julian to Gregorian in 1582.

Reference: Kalnay et al. (1996), doi:10.1175/1520-0477(1996)077<0437:TNYRP>2.0.CO;2; NOAA PSL, "PSL netCDF conventions".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from climafuse.data.products.base import Product

if TYPE_CHECKING:
    import xarray as xr


def _recognize(dataset: xr.Dataset) -> bool:
    said = f"{dataset.attrs.get('title', '')} {dataset.attrs.get('dataset_title', '')}"
    return re.search("NCEP|NMC", said) is not None


NCEP = Product(
    "NCEP reanalysis",
    spellings={
        "msl": ("slp", "prmsl"),
        "tcwv": ("pr_wtr",),
        "t": ("air",),
        "u": ("uwnd",),
        "v": ("vwnd",),
        "w": ("omega",),
        "q": ("shum",),
        "r": ("rhum",),
        "zg": ("hgt",),
    },
    units={
        "temperature": {"degK": (1.0, 0.0)},
        "pressure": {"Pascals": (1.0, 0.0)},
        "pressure_tendency": {"Pascal/s": (1.0, 0.0)},
        "specific_humidity": {"grams/kg": (1e-3, 0.0)},
    },
    recognize=_recognize,
    own_standard_names=True,  # "pressure" for that at sea level
)
