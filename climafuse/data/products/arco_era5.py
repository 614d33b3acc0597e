"""ARCO-ERA5 and WeatherBench 2: Zarr with long names, WeatherBench with longitude before latitude.

Reference: Carver and Merose (2023), ARCO-ERA5, https://github.com/google-research/arco-era5; Rasp et al. (2024),
"WeatherBench 2", doi:10.1029/2023MS004019, and its data guide.
"""

from __future__ import annotations

from climafuse.data.products.base import Product

ARCO_ERA5 = Product(
    "ARCO-ERA5 and WeatherBench 2",
    spellings={
        "t2m": ("2m_temperature",),
        "d2m": ("2m_dewpoint_temperature",),
        "skt": ("skin_temperature",),
        "u10": ("10m_u_component_of_wind",),
        "v10": ("10m_v_component_of_wind",),
        "ws10": ("10m_wind_speed",),
        "msl": ("mean_sea_level_pressure",),
        "sp": ("surface_pressure",),
        "tp": ("total_precipitation",),
        "tprate": ("mean_total_precipitation_rate",),
        "tcwv": ("total_column_water_vapour",),
        "tcc": ("total_cloud_cover",),
        "sst": ("sea_surface_temperature",),
        "siconc": ("sea_ice_cover",),
        "lsm": ("land_sea_mask",),
        "zs": ("geopotential_at_surface",),
        "t": ("temperature",),
        "u": ("u_component_of_wind",),
        "v": ("v_component_of_wind",),
        "w": ("vertical_velocity",),
        "q": ("specific_humidity",),
        "r": ("relative_humidity",),
        "z": ("geopotential",),
        "zg": ("geopotential_height",),
    },
    # Sums over more than the hour of total_precipitation.
    other_fields=("total_precipitation_6hr", "total_precipitation_12hr", "total_precipitation_24hr"),
)
