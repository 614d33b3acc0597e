"""What people ask for and no kind of fact speaks of, known by name so that its absence can be said.

There are many, so that a model learns to take the name from the question: of a few it would learn these few. Some are
left out of all texts that are made for training. Evaluation asks about them: is it said of these, too, that they are
not there?
"""

from __future__ import annotations

# By canonical name where there is one: of fields that hold it, its absence is not said.
_CANONICAL = {
    "r2": "relative humidity",
    "q2m": "specific humidity",
    "skt": "skin temperature",
    "tcc": "cloud cover",
    "tcwv": "column water vapor",
    "siconc": "sea ice cover",
    "orog": "terrain height",
    "sd": "snow depth",
    "ssrd": "solar radiation",
    "swvl1": "soil moisture",
    "swh": "wave height",
}
_NAMES = (
    # atmosphere
    "low cloud cover", "high cloud cover", "cloud top temperature", "cloud ice", "cloud liquid water", "mixing ratio",
    "wet bulb temperature", "humidex", "wind chill", "fog density", "lightning rate", "convective energy",
    "convective inhibition", "lifted index", "boundary layer height", "tropopause height", "vertical velocity",
    "divergence", "potential vorticity", "velocity potential", "potential temperature", "wind shear", "wind stress",
    "storm intensity", "freezing level", "freezing rain", "hail size", "air density", "ozone", "carbon dioxide",
    "carbon monoxide", "nitrogen dioxide", "nitrous oxide", "sulfur dioxide", "ammonia", "formaldehyde", "black carbon",
    "mineral dust", "sea salt", "sulfate", "aerosol optical depth", "fine particles", "smoke", "pollen", "volcanic ash",
    "air quality index",
    # radiation and fluxes
    "thermal radiation", "net radiation", "ultraviolet index", "sunshine duration", "albedo", "sensible heat flux",
    "latent heat flux", "ground heat flux", "potential evaporation", "evapotranspiration",
    # land and water on it
    "runoff", "groundwater depth", "lake level", "lake temperature", "flood depth", "drought index", "soil carbon",
    "soil acidity", "leaf area", "vegetation index", "biomass", "canopy height", "tree cover", "crop yield",
    "burned area", "fire danger", "surface roughness", "land use", "irrigation", "erosion", "population density",
    "electricity demand",
    # snow and ice
    "snow cover", "snow density", "snowmelt", "sea ice thickness", "ice drift", "glacier mass", "permafrost depth",
    "ice sheet height",
    # ocean
    "wave period", "wave direction", "swell height", "current speed", "ocean heat content", "mixed layer depth",
    "thermocline depth", "upwelling", "dissolved oxygen", "nitrate", "phosphate", "silicate", "alkalinity", "plankton",
    "turbidity", "tide height", "sea floor depth", "coral cover",
    # elsewhere
    "magnetic field", "cosmic radiation", "solar wind", "gravity", "seismic activity",
)  # fmt: skip
_UNTRAINED = (
    "vorticity", "wind gust", "visibility", "cloud base height", "methane", "evaporation", "river discharge",
    "soil temperature", "snowfall", "salinity", "sea level", "chlorophyll",
)  # fmt: skip


def _keys(names: tuple[str, ...]) -> dict[str, str]:
    return {name.replace(" ", "_"): name for name in names}


UNTRAINED_NAMES = _keys(_UNTRAINED)
UNSEEN_NAMES: dict[str, str] = {**_CANONICAL, **_keys(_NAMES), **UNTRAINED_NAMES}
