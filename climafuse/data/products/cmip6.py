"""CMIP5, CMIP6 and whatever else is written by CMOR: one variable a file, CF throughout, calendars of 365 and 360 days.

Reference: CMIP6 MIP tables (https://github.com/PCMDI/cmip6-cmor-tables); Eyring et al. (2016),
doi:10.5194/gmd-9-1937-2016.
"""

from __future__ import annotations

from climafuse.data.products.base import Product

CMIP6 = Product(
    "CMIP6",
    spellings={
        "t2m": ("tas",),
        "q2m": ("huss",),
        "skt": ("ts",),
        "u10": ("uas",),
        "v10": ("vas",),
        "ws10": ("sfcWind",),
        "msl": ("psl",),
        "sp": ("ps",),
        "tprate": ("pr",),
        "tcwv": ("prw",),
        "tcc": ("clt",),
        "sst": ("tos",),
        "lsm": ("sftlf",),
        "t": ("ta",),
        "u": ("ua",),
        "v": ("va",),
        "w": ("wap",),
        "q": ("hus",),
        "r": ("hur",),
    },
    channels={"t": ("ta",), "u": ("ua",), "v": ("va",), "w": ("wap",), "q": ("hus",), "r": ("hur",)},
)
