"""MERRA-2: granules of one day and one collection, as GES DISC delivers them.

Missing values are 1e15, and stay so where tools drop the attribute that says it (``lazy.FILL_THRESHOLD``). Collections
named ``tavg`` hold means over the interval around the time stamp (00:30 for the first hour), those named ``inst``
instants; fields of the two have the same names and no ``cell_methods``, so the short name of the collection decides.
Collections ``Np`` are on pressure levels, ``Nv`` and ``Ne`` on layers and edges of the model, which are no pressures.

Reference: Bosilovich, Lucchesi and Suarez (2016), "MERRA-2: File Specification", GMAO Office Note 9 (version 1.1),
sections 2.3, 3 and appendix A.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from climafuse.data.products.base import Product

if TYPE_CHECKING:
    import xarray as xr

# M2T1NXSLV is time-averaged hourly, M2I1NXASM instantaneous, M2IMNPASM a monthly mean of instants, M2IUNPASM a
# monthly mean diurnal cycle; M2C0NXASM holds constants.
_SHORT_NAME = re.compile(r"M2([TI])(\w)")


def _recognize(dataset: xr.Dataset) -> bool:
    """By the short name, or where that was lost by the title ("MERRA2 tavg1_2d_slv_Nx: ...") or who wrote it."""
    said = f"{dataset.attrs.get('Title', '')} {dataset.attrs.get('Institution', '')}"
    return _SHORT_NAME.match(str(dataset.attrs.get("ShortName", ""))) is not None or (
        re.search("MERRA|Global Modeling and Assimilation Office", said) is not None
    )


def _adapt(dataset: xr.Dataset) -> xr.Dataset:
    """Say of every field whether it is an instant or a mean, where it does not itself."""
    collection = _SHORT_NAME.match(str(dataset.attrs.get("ShortName", "")))
    if collection is None:
        return dataset
    method = "point" if collection[1] == "I" and collection[2] not in "MU" else "mean"
    adapted = dataset.copy()
    for variable in adapted.data_vars.values():
        variable.attrs.setdefault("cell_methods", f"time: {method}")
    return adapted


MERRA2 = Product(
    "MERRA-2",
    spellings={
        "t2m": ("T2M",),
        "d2m": ("T2MDEW",),
        "q2m": ("QV2M",),
        "skt": ("TS",),
        "u10": ("U10M",),
        "v10": ("V10M",),
        "msl": ("SLP",),
        "sp": ("PS",),
        "tprate": ("PRECTOT",),
        "tprate_corrected": ("PRECTOTCORR", "PRECTOTCORRLAND"),
        "tcwv": ("TQV",),
        "tcc": ("CLDTOT",),
        "siconc": ("FRSEAICE",),
        "zs": ("PHIS",),
        "t": ("T",),
        "u": ("U",),
        "v": ("V",),
        "w": ("OMEGA",),
        "q": ("QV",),
        "r": ("RH",),
        "zg": ("H",),
    },
    channels={
        "t": ("T",),
        "u": ("U",),
        "v": ("V",),
        "w": ("OMEGA",),
        "q": ("Q",),
        "r": ("RH",),
        "zg": ("H",),
    },
    units={"geopotential": {"m+2 s-2": (1.0, 0.0)}},
    recognize=_recognize,
    adapt=_adapt,
    own_standard_names=True,  # the long name once more
)
