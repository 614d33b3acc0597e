"""Files by the CF conventions that take the standard names themselves, or those and a height, for names of variables.

Fields of any other name are found by their ``standard_name`` where that is enough (``variables.match_variable``).

Reference: CF standard-name table, version 93.
"""

from __future__ import annotations

from climafuse.data.products.base import Product

CF = Product(
    "CF",
    spellings={
        "t2m": ("air_temperature_at_2_metres", "air_temperature_2m"),
        "d2m": ("dew_point_temperature_at_2_metres", "dew_point_temperature_2m"),
        "skt": ("surface_temperature",),
        "u10": ("eastward_wind_at_10_metres", "eastward_wind_10m"),
        "v10": ("northward_wind_at_10_metres", "northward_wind_10m"),
        "ws10": ("wind_speed_10m",),
        "msl": ("air_pressure_at_mean_sea_level",),
        "sp": ("surface_air_pressure",),
        "tp": ("lwe_thickness_of_precipitation_amount",),
        "tprate": ("precipitation_flux",),
        "tcwv": ("atmosphere_mass_content_of_water_vapor",),
        "sst": ("sea_surface_temperature",),
        # CF v93 has no name of its own for an anomaly of sea surface temperature.
        "sst_anomaly": ("ssta", "sea_surface_temperature_anomaly"),
        "siconc": ("sea_ice_area_fraction",),
        "t": ("air_temperature",),
        "u": ("eastward_wind",),
        "v": ("northward_wind",),
        "w": ("lagrangian_tendency_of_air_pressure",),
        "q": ("specific_humidity",),
        "r": ("relative_humidity",),
        "z": ("geopotential",),
        "zg": ("geopotential_height",),
    },
)
