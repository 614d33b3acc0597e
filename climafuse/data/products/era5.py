"""ERA5 from the Climate Data Store: NetCDF of the old and the new format, and GRIB as cfgrib reads it.

Until September 2024 NetCDF 3 came, packed into 16 bits, from ``grib_to_netcdf``; since then NetCDF 4 comes, written by
cfgrib, with ``valid_time`` and the ``GRIB_`` attributes. Both use these short names. GRIB tools write those that begin
with a digit as they are (``2t``), as NCL does (``VAR_2T``), or as the CDS does (``t2m``).

Reference: ECMWF, "ERA5: data documentation", table 1 and following, and "Conversion table for accumulated variables";
"CDS: GRIB to netCDF conversion" (2024).
"""

from __future__ import annotations

from climafuse.data.products.base import Product

ERA5 = Product(
    "ERA5",
    spellings={
        "t2m": ("2t", "VAR_2T"),
        "d2m": ("2d", "VAR_2D"),
        "q2m": ("2sh",),
        "u10": ("10u", "VAR_10U"),
        "v10": ("10v", "VAR_10V"),
        "ws10": ("10si", "si10"),
        "msl": ("MSL",),
        "sp": ("SP",),
        "tp": ("TP",),
        "tprate": ("mtpr", "avg_tprate"),
        "tcc": ("TCC",),
        "sst": ("SSTK",),
        "siconc": ("ci", "CI"),
        "lsm": ("LSM",),
        "zg": ("gh",),
    },
    channels={"zg": ("gh",)},
    units={
        "fraction": {"(0 - 1)": (1.0, 0.0)},
        "water_depth": {"m of water equivalent": (1.0, 0.0)},
        "height": {"gpm": (1.0, 0.0)},
    },
    no_standard_names=("unknown",),
)
